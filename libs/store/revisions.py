"""A service starts only at a revision of its schema that it knows."""

import asyncpg

from libs.store.database import Connection
from migrations import heads


class RevisionUnknown(Exception):
    """The schema is not at the revision this code was written for."""


async def check_revision(rows: Connection, word: str) -> None:
    """Raise RevisionUnknown unless the schema of word is at the newest revision in its migrations folder."""
    try:
        found = await rows.fetchval("SELECT version_num FROM alembic_version")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        found = None
    if found != (known := heads(word)):
        raise RevisionUnknown(
            f"the schema {word} is at {found or 'no revision'}, this code knows {known}: run python -m migrations {word} upgrade head"
        )
