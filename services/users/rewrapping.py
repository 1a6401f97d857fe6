"""Puts every data key under the newest key-encryption key, beside live traffic.

Each row is replaced only if it still has the key that was wrapped anew. So it does not matter who else is at it, when it
is killed, or how often it is begun; and a secret can be opened at every moment, before its row was touched or after.
"""

from dataclasses import dataclass
from typing import Any

import structlog

from libs.mesh.sealing import Outcome
from libs.sealing import KeysUnavailable, Sealer, Unsealable, WrappedKey
from libs.store.database import Database
from services.users import store, use_cases
from services.users.store import PRIMARY_KEYS, WrappedRow

log = structlog.get_logger(__name__)

BATCH_ROWS = 50


@dataclass(frozen=True, slots=True)
class Rewrapping:
    """database is of the worker role."""

    database: Database
    sealer: Sealer

    async def __call__(self) -> Outcome:
        """Raises KeysUnavailable where nobody can say which key is the newest."""
        newest = await self.sealer.keys.newest()
        rewrapped = failed = 0
        for table in PRIMARY_KEYS:
            after: tuple[Any, ...] | None = None
            while found := await self._batch(table, newest, after):
                opened = [(row, key) for row in found if (key := await self._rewrap(table, row))]
                rewrapped += await self._replace(table, opened)
                failed += len(found) - len(opened)
                after = found[-1].key
        async with self.database.transaction() as rows:
            counts = await store.count_by_key(rows)
        left = {key_id: count for key_id, count in counts.items() if key_id != newest}
        return Outcome(newest=newest, rewrapped=rewrapped, failed=failed, left=left)

    async def _batch(self, table: str, newest: str, after: tuple[Any, ...] | None) -> list[WrappedRow]:
        async with self.database.transaction() as rows:
            return await store.other_than(rows, table, newest, after, BATCH_ROWS)

    async def _rewrap(self, table: str, row: WrappedRow) -> WrappedKey | None:
        """By itself, before any row is locked: whoever keeps the keys may be slow."""
        try:
            return await self.sealer.rewrap(row.wrapped, context_of(table, row))
        except (Unsealable, KeysUnavailable) as error:
            log.error("a secret cannot be rewrapped", table=table, key=[*map(str, row.key)], error=str(error))  # noqa: TRY400 (its trace says no more)
            return None

    async def _replace(self, table: str, opened: list[tuple[WrappedRow, WrappedKey]]) -> int:
        """How many still had the key that was wrapped anew."""
        async with self.database.transaction(*{row.user_id for row, _ in opened}) as rows:
            return sum([await store.replace_wrapped(rows, table, row, key) for row, key in opened])


def context_of(table: str, row: WrappedRow) -> bytes:
    if table == "user_broker_credentials":
        [credential_id] = row.key
        return use_cases.context_of_credential(row.user_id, credential_id)
    export_id, part = row.key
    return use_cases.context_of_part(row.user_id, export_id, part)
