"""A service called sample that has nothing but what every service has, and a table of notes."""

import asyncio
from dataclasses import dataclass

import asyncpg

from migrations import shared
from tests.servers import PASSWORD, PostgresServer, copy_database

WORD = "sample"
TEMPLATE = "sample_template"


@dataclass(frozen=True)
class Sample:
    """The urls of one fresh database, by role."""

    rpc_url: str
    worker_url: str
    superuser_url: str


def make_template(server: PostgresServer) -> None:
    """Create, once per run, the database that each test gets a copy of."""
    asyncio.run(_make_template(server))


async def _make_template(server: PostgresServer) -> None:
    superuser = await asyncpg.connect(server.url("postgres"))
    await superuser.execute(f"CREATE ROLE tradeloom LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    await superuser.execute(f"CREATE DATABASE {TEMPLATE} OWNER tradeloom")
    owner = await asyncpg.connect(server.url(TEMPLATE, "tradeloom"))
    for statement in [
        *shared.home(WORD),
        f"SET search_path = {WORD}",
        *shared.store_tables(WORD),
        "CREATE TABLE notes (note_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id uuid NOT NULL, text text)",
        "CREATE INDEX notes_user_id ON notes (user_id)",
        *shared.own(WORD, "notes"),
        *shared.grant(WORD, "notes", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, INSERT"),
    ]:
        await owner.execute(statement)
    await owner.close()
    for role in ("rpc", "worker"):
        await superuser.execute(f"ALTER ROLE {WORD}_{role} LOGIN PASSWORD '{PASSWORD}'")
    await superuser.close()


async def make_sample(server: PostgresServer, name: str) -> Sample:
    await copy_database(server, TEMPLATE, name)
    return Sample(
        rpc_url=server.url(name, f"{WORD}_rpc"),
        worker_url=server.url(name, f"{WORD}_worker"),
        superuser_url=server.url(name),
    )
