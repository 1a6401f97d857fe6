"""Watches prices for orders of live accounts that wait here, and has those whose price is reached go to their venue.

One replica at a time looks, under a lease. What is looked at under no lock is stepped under its account's: a leader that was
followed by another while it stood still finds its lease fenced, and an order that was sent waits here no more. Where a stop
that trails stands is written as it moves, so that the next leader goes on from there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

import structlog
from prometheus_client import Histogram

from libs.errors import Refusal
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import Lease, LeaseLost, fence, holding
from services.orders import market, store, triggers
from services.orders.domain import AccountState, Kind, Order
from services.orders.market import Market
from services.orders.placing import is_fresh
from services.orders.store import AccountStore
from services.orders.use_cases import StepWaiting

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.05
"""Between two looks at all that wait; quotes are read every quote_poll_seconds."""
ORDERS_AT_ONCE = 100
"""Of a page of a look, and so of one transaction: an account stays locked for no longer than that takes."""
STEPS_AT_ONCE = 4
"""Accounts side by side: each takes a database connection."""
LOCK_SECONDS = 0.5
"""An account that others have locked for longer is tried again with the next look."""
AGAIN_SECONDS = 1.0
"""What could do nothing, as while a kill switch is on, is tried again after that; after a failure nobody has foreseen, too."""
REST_SECONDS = 60.0
"""So often it is looked whether the venue can have an order after all. What is in its way tells when it ends: this is for what
forbade it then."""
FIRST = "", UUID(int=0)

DELAY = Histogram(
    "tradeloom_trigger_delay_seconds",
    "From when a quote was received until an order whose price it reached was committed to be sent.",
    buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)


@dataclass(slots=True)
class Triggering:
    """database is of the worker role."""

    database: Database
    known: Market
    step_waiting: StepWaiting
    tries: dict[UUID, float] = field(default_factory=dict)
    """When an order that is due and could do nothing is tried again, on the event loop's clock."""
    rest_at: float = 0.0

    async def turn(self, lease: Lease) -> None:
        """Looks once at everything that is due, and now and then at what its venue might have as it is."""
        async with self.database.reading() as rows:
            names = await store.waiting_instruments(rows)
        seen: set[UUID] = set()
        prices, now = self._prices(names), market.now()
        async for page in self._pages(lambda rows, after: store.find_due(rows, prices, now, after, ORDERS_AT_ONCE)):
            seen |= {order.order_id for order in page}
            left = await self._step_all(lease, self._due(page))
            again = asyncio.get_running_loop().time() + AGAIN_SECONDS
            self.tries |= {order.order_id: again for order in left}
        self.tries = {order_id: at for order_id, at in self.tries.items() if order_id in seen}
        at = asyncio.get_running_loop().time()
        if at >= self.rest_at:
            self.rest_at = at + REST_SECONDS
            async for page in self._pages(lambda rows, after: store.find_resting(rows, after, ORDERS_AT_ONCE)):
                await self._step_all(lease, filter(triggers.could_rest, page))

    def _prices(self, names: Iterable[str]) -> dict[str, Decimal]:
        """The last ones of fresh quotes."""
        now = market.now()
        quotes = {name: self.known.quote(name, now) for name in names}
        limits = self.step_waiting.limits
        return {name: quote.last for name, quote in quotes.items() if quote and quote.last and is_fresh(quote, limits)}

    async def _pages(
        self, find: Callable[[Connection, tuple[str, UUID]], Awaitable[list[Order]]]
    ) -> AsyncIterator[list[Order]]:
        after = FIRST
        while True:
            async with self.database.reading() as rows:
                page = await find(rows, after)
            if page:
                yield page
            if len(page) < ORDERS_AT_ONCE:
                return
            after = page[-1].instrument_id, page[-1].order_id

    async def _step_all(self, lease: Lease, orders: Iterable[Order]) -> list[Order]:
        """Those that could do nothing."""
        by_account: dict[UUID, list[Order]] = {}
        for order in orders:
            by_account.setdefault(order.account_id, []).append(order)
        accounts, left = list(by_account.values()), []
        for first in range(0, len(accounts), STEPS_AT_ONCE):
            steps = (self._try(lease, orders) for orders in accounts[first : first + STEPS_AT_ONCE])
            # Each is waited for, also where the lease is lost: none goes on in nobody's name.
            for each in await asyncio.gather(*steps, return_exceptions=True):
                if isinstance(each, BaseException):
                    raise each
                left += each
        return left

    def _due(self, page: Iterable[Order]) -> Iterable[Order]:
        now, at = market.now(), asyncio.get_running_loop().time()
        for order in page:
            instrument = self.known.instrument(order.instrument_id)
            if instrument is None:
                continue
            quote = self.known.quote(order.instrument_id, now)
            limits = self.step_waiting.limits
            is_due = triggers.is_due(order, instrument=instrument, quote=quote, limits=limits, now=now)
            if is_due and self.tries.get(order.order_id, at) <= at:
                yield order

    async def _try(self, lease: Lease, orders: list[Order]) -> list[Order]:
        """One account's trouble is not the others'."""
        try:
            return await self.step(lease, orders)
        except LeaseLost:
            raise
        except Refusal as refusal:
            log.info("an order that waits here waits", account_id=str(orders[0].account_id), why=str(refusal))
            return []
        except Exception:
            log.exception("what waits here cannot be stepped", account_id=str(orders[0].account_id))
            return orders

    async def step(self, lease: Lease, orders: list[Order]) -> list[Order]:
        """Does what orders of one account can do, in one transaction; those of them that could do nothing."""
        account_id = orders[0].account_id
        began, now = asyncio.get_running_loop().time(), market.now()
        quotes = {order.instrument_id: self.known.quote(order.instrument_id, now) for order in orders}
        async with self.database.transaction(orders[0].user_id, lock_seconds=LOCK_SECONDS) as rows:
            await fence(rows, lease)
            accounts = AccountStore(rows)
            states = await accounts.lock([account_id])
            await accounts.load_orders(states, [order.order_id for order in orders])
            await self.step_waiting.load(accounts, states)
            for state in states.values():
                self.step_waiting(state)
            await accounts.save(list(states.values()))
        elapsed = asyncio.get_running_loop().time() - began
        for state in states.values():
            for order_id in triggered(state):
                quote = quotes.get(state.orders[order_id].instrument_id)
                delay = elapsed + (quote.age_seconds if quote else 0.0)
                DELAY.observe(delay)
                log.info("a price was reached", order_id=str(order_id), delay_seconds=round(delay, 3))
        changed = {order_id for state in states.values() for order_id in state.changed_orders}
        return [order for order in orders if order.order_id not in changed]


def triggered(state: AccountState) -> list[UUID]:
    return [event.order.order_id for event in state.events if event.kind is Kind.TRIGGERED]


@asynccontextmanager
async def triggering(database: Database, known: Market, step_waiting: StepWaiting) -> AsyncIterator[None]:
    """Has one of the replicas look during the block. database is of the worker role."""

    async def work() -> None:
        async with holding(database, "triggers") as lease:
            watch = Triggering(database, known, step_waiting)
            while True:
                await watch.turn(lease)
                await asyncio.sleep(LOOK_SECONDS)

    async with running("orders that wait here", work):
        yield
