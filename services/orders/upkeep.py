"""What goes on beside the requests: cancels that kill switches ask for, and what is left of people who were deleted for good.

After those their orders are canceled and their words forgotten. The books stay under the bare user id: accounts without their
names, orders, fills, positions, the ledger, worth and what limits did, for what was traded must be provable. No free text is
among them: what was noted about orders, limits and switches stand beside them and go. Execution keeps orders and fills by the
same ids, and no text of anybody's: it hears of the cancels as of any other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import structlog

from libs.errors import Refusal
from libs.store.database import Database
from services.orders import risk_store, store, use_cases
from services.orders.domain import KillSwitch, Scope
from services.orders.life import KILL_SWITCH
from services.orders.store import AccountStore

POLL_SECONDS = 1.0
PEOPLE_AT_ONCE = 100
ORDERS_AT_ONCE = 200
REQUESTS_AT_ONCE = 5_000
SWITCHES_AT_ONCE = 100
NOTES_AT_ONCE = 5_000

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def one_after_another(
    found: Iterable[T], step: Callable[[T], Awaitable[bool]], what: str, named: Callable[[T], str]
) -> None:
    """Does a step of each, and pauses if there was nothing to do; one's locked account is not the others' trouble."""
    worked = False
    for each in found:
        try:
            worked |= await step(each)
        except Refusal as refusal:
            log.warning("work waits for a lock", what=what, of=named(each), why=refusal.reason)
    if not worked:
        await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Departing:
    """database is of the worker role. Every replica works; a person is in one's hands at a time."""

    database: Database
    cancel_orders: use_cases.CancelOrdersOf

    async def __call__(self) -> None:
        async with self.database.reading() as rows:
            people = await store.departures(rows, PEOPLE_AT_ONCE)
        await one_after_another(people, self.step, "a departure", str)

    async def step(self, user_id: UUID) -> bool:
        """Does a slice of what is left; whether there was anything but waiting for venues.

        A cancel that a venue refuses leaves the order open: then it is asked for again.
        """
        async with self.database.transaction(user_id) as rows:
            if not await store.lock_departure(rows, user_id):
                return False
            canceled = await self.cancel_orders(AccountStore(rows), user_id)
            forgotten = await store.forget_requests(rows, user_id, REQUESTS_AT_ONCE)
            forgotten += await store.forget_words(rows, user_id, NOTES_AT_ONCE)
            finished = not canceled and not forgotten and await store.finish_departure(rows, user_id)
        if finished:
            log.info("nothing personal is left of a person who was deleted", user_id=str(user_id))
        return bool(canceled or forgotten or finished)


def cause_of(switch: KillSwitch) -> str:
    """Why an order is canceled that the switch holds for, in the words of the refusal that it makes."""
    return f"{KILL_SWITCH}{switch.scope.value}"


@dataclass(frozen=True, slots=True)
class Switched:
    """Asks to cancel the open orders that a kill switch holds for, where it was set so. database is of the worker role.

    In slices, each a transaction of its own: a process may die between any two, and the next goes on.
    """

    database: Database
    cancel_orders: use_cases.CancelOrdersOf

    async def __call__(self) -> None:
        async with self.database.reading() as rows:
            switches = await risk_store.canceling(rows, SWITCHES_AT_ONCE)
        await one_after_another(switches, self.step, "a kill switch", lambda switch: switch.scope.value)

    async def step(self, switch: KillSwitch) -> bool:
        """Does a slice of what is left; whether there was anything."""
        if switch.user_id is not None:
            return await self._cancel(switch, switch.user_id)
        return await self._cancel_everybodys(switch)

    async def _cancel(self, switch: KillSwitch, user_id: UUID) -> bool:
        only = {
            Scope.ACCOUNT: {"account_id": switch.target_id},
            Scope.DEPLOYMENT: {"deployment_id": switch.target_id},
        }.get(switch.scope, {})
        async with self.database.transaction(user_id) as rows:
            if not await risk_store.lock_canceling(rows, switch):
                return False
            canceled = await self.cancel_orders(AccountStore(rows), user_id, cause=cause_of(switch), **only)
            if not canceled:
                await risk_store.finish_canceling(rows, switch)
        return True

    async def _cancel_everybodys(self, switch: KillSwitch) -> bool:
        """A pass over all who have open orders; the last one finds nothing left."""
        left, after = False, UUID(int=0)
        while True:
            async with self.database.transaction() as rows:
                users = await risk_store.users_with_open_orders(rows, after, PEOPLE_AT_ONCE)
            for user_id in users:
                try:
                    async with self.database.transaction(user_id) as rows:
                        # Whoever lets trading go on meanwhile ends this.
                        if not await risk_store.lock_canceling(rows, switch):
                            return False
                        canceled = await self.cancel_orders(AccountStore(rows), user_id, cause=cause_of(switch))
                        left |= bool(canceled)
                except Refusal as refusal:
                    # One person's locked account is not the others' trouble.
                    left = True
                    log.warning("cancels of a kill switch wait", user_id=str(user_id), why=refusal.reason)
            if len(users) < PEOPLE_AT_ONCE:
                break
            after = users[-1]
        if not left:
            async with self.database.transaction() as rows:
                await risk_store.finish_canceling(rows, switch)
        return True
