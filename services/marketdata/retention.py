"""Drops what is older than an operator wants to keep: whole parts of ticks and of the shorter bars.

In three steps, each a transaction of its own, so that a process may die between any two. First it is said up to when the parts of a
table are dropped: from then on nothing is written to them, and no bar is made of what is in them. Then coverage is moved, so that
a reader who resumes before is told of a gap. Only then the parts go, each when nobody is in the way for a moment.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from libs.store.background import running
from libs.store.database import Database, StillLocked
from libs.store.leases import Lease, fence, holding
from services.marketdata import parts, tick_store
from services.marketdata.parts import TICKS

LOOK_SECONDS = 3_600.0
AGAIN_SECONDS = 5.0
"""After a turn that did not end."""
PARTS_MAX = 20
"""Dropped in one turn."""
LOCK_SECONDS = 0.05
"""So long a part waits at most until nobody uses its table; so long those who come after it may have to wait for it."""

WRITERS_SECONDS = 2.0
"""So long it waits for those who write, and they never for it."""


class Retention:
    """kept_days says for each table how long what is in its parts is kept; 0 is for ever. database is of the worker role."""

    def __init__(self, database: Database, kept_days: Mapping[str, int]) -> None:
        self._database, self._kept_days = database, kept_days

    async def turn(self, lease: Lease, now: datetime) -> bool:
        """Drops what is due, and says whether that was all."""
        try:
            due, until = await self._say_so(lease, now)
            if any(parent == TICKS for parent, _ in due):
                await self._move_coverage(lease, until)
            for _, part in due[:PARTS_MAX]:
                async with self._database.transaction(lock_seconds=LOCK_SECONDS) as rows:
                    await fence(rows, lease)
                    await parts.drop(rows, part)
        except StillLocked:
            return False
        return len(due) <= PARTS_MAX

    async def _say_so(self, lease: Lease, now: datetime) -> tuple[list[tuple[str, str]], datetime]:
        """Up to when each table is dropped, for which it waits until nobody writes: the parts that go, and the ticks' time."""
        async with self._database.transaction(lock_seconds=WRITERS_SECONDS) as rows:
            await fence(rows, lease)
            for parent, days in self._kept_days.items():
                if days:
                    await parts.drop_before(rows, parent, now - timedelta(days=days))
            return await parts.to_drop(rows), (await parts.read_dropped(rows))[TICKS]

    async def _move_coverage(self, lease: Lease, until: datetime) -> None:
        """One instrument after the other, so that storing of none waits long."""
        async with self._database.transaction() as rows:
            instrument_ids = await tick_store.covered(rows)
        for instrument_id in instrument_ids:
            async with self._database.transaction() as rows:
                await fence(rows, lease)
                await tick_store.uncover(rows, instrument_id, until)


@asynccontextmanager
async def retaining(database: Database, kept_days: Mapping[str, int]) -> AsyncIterator[None]:
    """Has one of the replicas drop what is due during the block, at once and then every hour."""
    retention = Retention(database, kept_days)

    async def work() -> None:
        async with holding(database, "retention") as lease:
            while True:
                is_done = await retention.turn(lease, datetime.now(UTC))
                await asyncio.sleep(LOOK_SECONDS if is_done else AGAIN_SECONDS)

    async with running("dropping what is not kept", work):
        yield
