"""Steps parent orders that are due. Every replica looks; a parent is stepped under its account's lock, each time once.

What is not due costs nothing: a replica that has nothing to do asks once a second, by an index.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from libs.errors import Refusal
from libs.store.background import running
from libs.store.database import Database
from services.orders import parent_store
from services.orders.parent_store import Due, ParentStore
from services.orders.parent_use_cases import StepParentOrder
from services.orders.store import AccountStore

POLL_SECONDS = 1.0
BUSY_SECONDS = 0.05
"""Until a parent is tried again whose account others had locked."""
LOCK_SECONDS = 0.1
"""Longer than what others do with an account takes; a parent that waits longer is not the others' trouble."""
PARENTS_AT_ONCE, STEPS_AT_ONCE = 100, 4
"""Of a look, and of those in steps side by side: each takes a database connection."""
PUT_OFF = timedelta(minutes=1)
"""A parent whose step fails for a reason nobody has foreseen is tried again after that."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stepping:
    """database is of the worker role."""

    database: Database
    step_parent: StepParentOrder
    now: Callable[[], datetime]
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Has it look at once, where something was placed or a child is done."""
        self.woken.set()

    async def __call__(self) -> None:
        """Steps what is due, and returns when it is time to look again."""
        self.woken.clear()
        until = self.now() + timedelta(seconds=POLL_SECONDS)
        async with self.database.reading() as rows:
            found = await parent_store.due_parents(rows, until, PARENTS_AT_ONCE)
        now = self.now()
        due = [each for each in found if each.due_time <= now]
        stepped: list[bool] = []
        for first in range(0, len(due), STEPS_AT_ONCE):
            stepped += await asyncio.gather(*map(self._try, due[first : first + STEPS_AT_ONCE]))
        if due and all(stepped):
            return
        soonest = min((each.due_time for each in found if each.due_time > now), default=until)
        seconds = BUSY_SECONDS if due else max(0.0, (soonest - self.now()).total_seconds())
        try:
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        except TimeoutError:
            pass

    async def _try(self, due: Due) -> bool:
        """Whether it was stepped, by whomever; one person's trouble is not the others'."""
        try:
            await self.step(due)
        except Refusal as refusal:
            log.info("a parent order waits", parent_order_id=str(due.parent_order_id), why=str(refusal))
            return False
        except Exception:
            log.exception("a parent order cannot be stepped", parent_order_id=str(due.parent_order_id))
            async with self.database.transaction(due.user_id) as rows:
                await parent_store.put_off(rows, due.parent_order_id, self.now() + PUT_OFF)
        return True

    async def step(self, due: Due) -> bool:
        """Whether there was anything to do: another replica may have been first."""
        async with self.database.transaction(due.user_id, lock_seconds=LOCK_SECONDS) as rows:
            return await self.step_parent(
                AccountStore(rows), ParentStore(rows), due.account_id, due.instrument_id, due.parent_order_id
            )


@asynccontextmanager
async def stepping(
    database: Database, step_parent: StepParentOrder, now: Callable[[], datetime]
) -> AsyncIterator[Stepping]:
    """Steps parents during the block. database is of the worker role."""
    worker = Stepping(database, step_parent, now)
    async with running("parent orders", worker):
        yield worker
