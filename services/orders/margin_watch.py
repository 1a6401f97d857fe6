"""What goes on beside the requests of margin accounts: funding is paid, and used-up margin is liquidated.

Settlements are paid by every replica, an account of a settlement by one at a time. Margin is looked at by one replica, under a
lease. What is looked at under no lock is looked at once more under the account's before anything is changed. A live account is
liquidated by its venue: its owner is warned here, and no more.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from libs.errors import Refusal
from libs.ids import uuid7
from libs.store.background import running
from libs.store.database import Database
from libs.store.leases import Lease, LeaseLost, fence, holding
from services.orders import equity_store, margin, margin_store, margin_use_cases, market, placing, risk_store
from services.orders.domain import Account, Mode
from services.orders.equity_store import Held
from services.orders.margin import MarginStanding
from services.orders.margin_funding import Settlement, Undone
from services.orders.margin_store import MarginStore
from services.orders.margin_use_cases import Liquidate, SettleFunding
from services.orders.store import AccountStore

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
"""How often it is looked whether a settlement is to be paid."""
SETTLEMENTS_AT_ONCE = 50
ACCOUNTS_AT_ONCE = 100
"""Of one settlement, in one transaction."""
LOOK_SECONDS = 1.0
LOOKED_AT_ONCE = 500
WARNED_EVERY = timedelta(minutes=10)
WARNED_KNOWN_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Funding:
    """database is of the worker role."""

    database: Database
    settle_funding: SettleFunding

    async def __call__(self) -> None:
        """Pays what is due, a page of accounts of each settlement, and pauses where nothing was."""
        async with self.database.reading() as rows:
            undone = await margin_store.undone(rows, SETTLEMENTS_AT_ONCE)
        worked = False
        for each in undone:
            try:
                worked |= await self.step(each.settlement)
            except Refusal as refusal:
                # Somebody's locked account is not the others' trouble: the page is tried again.
                log.warning("funding waits", instrument_id=each.settlement.instrument_id, why=refusal.reason)
            except Exception:
                # Nor is one settlement's the others'.
                log.exception("funding cannot be paid", instrument_id=each.settlement.instrument_id)
        if not worked:
            await asyncio.sleep(POLL_SECONDS)

    async def step(self, settlement: Settlement) -> bool:
        """Pays a page of accounts; whether there was anything to do. How far it has come is noted with the payments."""
        page = await self._page(settlement)
        if page is None:
            return False
        undone, people = page
        async with self.database.transaction(*{user_id for _, user_id in people}) as rows:
            locked = await margin_store.lock_undone(rows, settlement)
            if locked is None or locked.after_account_id != undone.after_account_id:
                return False
            account_ids = [account_id for account_id, _ in people]
            paid = 0
            if account_ids:
                paid = await self.settle_funding(AccountStore(rows), MarginStore(rows), settlement, account_ids)
            is_last = len(people) < ACCOUNTS_AT_ONCE
            await margin_store.go_on(rows, undone, None if is_last else account_ids[-1])
        if paid:
            log.info("funding was paid", instrument_id=settlement.instrument_id, accounts=paid)
        return True

    async def _page(self, settlement: Settlement) -> tuple[Undone, list[tuple[UUID, UUID]]] | None:
        async with self.database.transaction() as rows:
            undone = await margin_store.lock_undone(rows, settlement)
            if undone is None:
                return None
            return undone, await margin_store.whom_it_is_for(rows, undone, ACCOUNTS_AT_ONCE)


@dataclass(slots=True)
class MarginWatch:
    """database is of the worker role."""

    database: Database
    liquidate: Liquidate
    warned: OrderedDict[tuple[UUID, str], datetime] = field(default_factory=OrderedDict)

    async def turn(self, lease: Lease) -> None:
        """Looks at all margin accounts that hold something, or owe something."""
        after = margin_store.FIRST
        while True:
            async with self.database.reading() as rows:
                accounts = await margin_store.find_margined(rows, after, LOOKED_AT_ONCE)
                held = await equity_store.read_held(rows, accounts) if accounts else {}
            for account in accounts:
                await self._look(lease, account, held[account.account_id])
            if len(accounts) < LOOKED_AT_ONCE:
                return
            after = accounts[-1].account_id

    async def _look(self, lease: Lease, account: Account, held: Held) -> None:
        now = market.now()
        standings = self._standings(account, held, now)
        is_owing = not held.positions and any(each.wallet < 0 for each in standings)
        if account.mode is Mode.PAPER and (is_owing or any(each.is_used_up for each in standings)):
            await self._liquidate(lease, account)
        for standing in standings:
            if margin_use_cases.is_near(standing) and self._is_news(account, standing, now):
                await self._warn(lease, account, standing, now)

    def _standings(self, account: Account, held: Held, now: datetime) -> list[MarginStanding]:
        known, limits = self.liquidate.market, self.liquidate.limits
        instruments = {each.instrument_id: known.instrument(each.instrument_id) for each in held.positions}
        perpetuals = {name: each.perpetual for name, each in instruments.items() if each and each.perpetual}
        marks = {name: placing.fresh_mark(known.quote(name, now), limits) for name in instruments}
        return margin.standings(held.balances, margin.holdings(account, held.positions, perpetuals, marks.get))

    async def _liquidate(self, lease: Lease, account: Account) -> None:
        try:
            async with self.database.transaction(account.user_id) as rows:
                await fence(rows, lease)
                looked = await self.liquidate(AccountStore(rows), account.account_id)
        except Refusal as refusal:
            log.warning("a liquidation waits", account_id=str(account.account_id), why=refusal.reason)
            return
        except LeaseLost:
            raise
        except Exception:
            # One account's trouble is not the others'.
            log.exception("an account cannot be liquidated", account_id=str(account.account_id))
            return
        for order in looked.orders:
            log.warning("a liquidation", account_id=str(account.account_id), instrument_id=order.instrument_id)

    def _is_news(self, account: Account, standing: MarginStanding, now: datetime) -> bool:
        key = account.account_id, standing.asset
        last = self.warned.get(key)
        if last is not None and abs(now - last) < WARNED_EVERY:
            return False
        self.warned[key] = now
        self.warned.move_to_end(key)
        while len(self.warned) > WARNED_KNOWN_MAX:
            self.warned.popitem(last=False)
        return True

    async def _warn(self, lease: Lease, account: Account, standing: MarginStanding, now: datetime) -> None:
        async with self.database.transaction(account.user_id) as rows:
            await fence(rows, lease)
            await risk_store.add_events(rows, [margin_use_cases.warned(uuid7(), account, standing, now)])


@asynccontextmanager
async def backing(database: Database, settle_funding: SettleFunding, liquidate: Liquidate) -> AsyncIterator[None]:
    """Pays funding, and has one of the replicas look at margin, during the block. database is of the worker role."""
    watch = MarginWatch(database, liquidate)

    async def look() -> None:
        async with holding(database, "margin") as lease:
            while True:
                await watch.turn(lease)
                await asyncio.sleep(LOOK_SECONDS)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running("funding", Funding(database, settle_funding)))
        await stack.enter_async_context(running("margin of accounts", look))
        yield
