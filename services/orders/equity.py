"""Notes what accounts are worth, minute by minute, and locks those that have lost more than they may.

One replica at a time looks, under a lease. What is looked at under no lock is looked at once more under the account's before
anything is changed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import structlog

from libs.ids import uuid7
from libs.money import plain
from libs.store.background import running
from libs.store.database import Database
from libs.store.leases import Lease, fence, holding
from services.orders import equity_store, market, risk, risk_store, store, use_cases
from services.orders.domain import Account, Lock, RiskEvent, RiskLimits
from services.orders.equity_store import Watched
from services.orders.market import Market

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often accounts with limits on losses are looked at."""
NOTE_SECONDS = 60.0
ACCOUNTS_AT_ONCE = 500
THIN_SECONDS = 3_600.0
MINUTES_KEPT, HOURS_KEPT = timedelta(days=7), timedelta(days=730)
THINNED = ((MINUTES_KEPT, "hour"), (HOURS_KEPT, "day"))
THIN_SPAN = timedelta(days=1)
"""Of all accounts, in one transaction."""
FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Seen:
    """An account after a look at what it is worth, and what came of it."""

    account: Account
    events: tuple[RiskEvent, ...]


def looked_at(account: Account, equity: Decimal, limits: RiskLimits, now: datetime) -> Seen:
    """Begins a day that has come, follows the most it was worth, and locks it where it lost too much.

    A clock that is set back begins no day again.
    """
    events: list[RiskEvent] = []
    start = risk.day_start(now, limits.day_start_hour)
    locks, day_start_time, day_start_equity = account.locks, account.day_start_time, account.day_start_equity
    if day_start_time is None or start > day_start_time:
        day_start_time, day_start_equity = start, equity
        if Lock.DAILY_LOSS in locks:
            locks -= {Lock.DAILY_LOSS}
            events.append(event_of(account, "lifted", Lock.DAILY_LOSS, now))
    elif day_start_equity is None:
        # What it was worth then was not known.
        day_start_equity = equity
    peak = equity if account.peak_equity is None else max(account.peak_equity, equity)
    for lock, margin in (
        (Lock.DAILY_LOSS, risk.daily_loss_of(limits, equity, day_start_equity)),
        (Lock.DRAWDOWN, risk.drawdown_of(limits, equity, peak)),
    ):
        if margin and not margin.is_kept and lock not in locks:
            locks |= {lock}
            events.append(event_of(account, "locked", lock, now, value=plain(margin.value), bound=plain(margin.bound)))
    seen = replace(
        account, day_start_time=day_start_time, day_start_equity=day_start_equity, peak_equity=peak, locks=locks
    )
    return Seen(seen, tuple(events))


def event_of(account: Account, kind: str, lock: Lock, now: datetime, *, value: str = "", bound: str = "") -> RiskEvent:
    return RiskEvent(
        risk_event_id=uuid7(),
        user_id=account.user_id,
        account_id=account.account_id,
        kind=kind,
        limit_name=f"lock/{lock.value}",
        time=now,
        value=value,
        bound=bound,
    )


@dataclass(slots=True)
class Watch:
    """Database is of the worker role."""

    database: Database
    known: Market
    usual: RiskLimits
    note_at: float = 0.0
    thin_at: float = 0.0

    async def turn(self, lease: Lease) -> None:
        """Looks at all accounts once a minute, and in between at those that have limits on losses."""
        loop = asyncio.get_running_loop()
        noting = loop.time() >= self.note_at
        if noting:
            self.note_at = loop.time() + NOTE_SECONDS
        async for page in self._pages(only_limited=not noting):
            await self._look(lease, page, noting=noting)
        if loop.time() >= self.thin_at:
            self.thin_at = loop.time() + THIN_SECONDS
            await self._thin(lease)

    async def _pages(self, *, only_limited: bool) -> AsyncIterator[list[Watched]]:
        after = FIRST
        while True:
            async with self.database.reading() as rows:
                page = await equity_store.find_watched(rows, after, ACCOUNTS_AT_ONCE, only_limited=only_limited)
            if page:
                yield page
            if len(page) < ACCOUNTS_AT_ONCE:
                return
            after = page[-1].account.account_id

    async def _look(self, lease: Lease, page: list[Watched], *, noting: bool) -> None:
        now = market.now()
        valued = list(self._valued(page, now))
        changed = [each for each, equity in valued if self._is_news(each, equity, now)]
        if noting and valued:
            minute = now.replace(second=0, microsecond=0)
            users = {each.account.user_id for each, _ in valued}
            async with self.database.transaction(*users) as rows:
                await fence(rows, lease)
                await equity_store.add_points(rows, [(each.account, minute, equity) for each, equity in valued])
        for each in changed:
            await self._change(lease, each)

    def _is_news(self, watched: Watched, equity: Decimal, now: datetime) -> bool:
        """Whether there is more to change than the most it was worth, which is noted with the next point."""
        account = watched.account
        seen = looked_at(account, equity, risk.with_set(self.usual, watched.limits), now).account
        return replace(seen, peak_equity=account.peak_equity) != account

    def _valued(self, page: list[Watched], now: datetime) -> Iterator[tuple[Watched, Decimal]]:
        """Those whose worth is known."""
        for each in page:
            equity = use_cases.equity_of(each.account, each.balances, each.positions, self.known, now)
            if equity is not None:
                yield each, equity

    async def _change(self, lease: Lease, watched: Watched) -> None:
        async with self.database.transaction(watched.account.user_id) as rows:
            await fence(rows, lease)
            account = await store.find_account(rows, watched.account.account_id, lock=True)
            if account is None:
                return
            limits = risk.with_set(
                self.usual, (await risk_store.find_limits(rows, [account.account_id]))[account.account_id]
            )
            now = market.now()
            held = await store.balances(rows, account.account_id)
            positions = await store.backed_positions(rows, account)
            equity = use_cases.equity_of(account, held, positions, self.known, now)
            if equity is None:
                return
            seen = looked_at(account, equity, limits, now)
            await risk_store.put_worth(rows, seen.account)
            await risk_store.add_events(rows, seen.events)
        for event in seen.events:
            log.warning(
                "a lock", account_id=str(account.account_id), kind=event.kind, lock=event.limit_name, value=event.value
            )

    async def _thin(self, lease: Lease) -> None:
        for kept, bucket in THINNED:
            is_more = True
            while is_more:
                async with self.database.transaction() as rows:
                    await fence(rows, lease)
                    is_more = await equity_store.thin(rows, bucket, market.now() - kept, THIN_SPAN)


@asynccontextmanager
async def watching(database: Database, known: Market, usual: RiskLimits) -> AsyncIterator[None]:
    """Has one of the replicas look during the block. database is of the worker role."""
    watch = Watch(database, known, usual)

    async def work() -> None:
        async with holding(database, "equity") as lease:
            while True:
                await watch.turn(lease)
                await asyncio.sleep(LOOK_SECONDS)

    async with running("what accounts are worth", work):
        yield
