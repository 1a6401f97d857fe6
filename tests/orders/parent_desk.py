"""A desk for parent orders without a clock and without a venue: the use cases as they are, on a store in memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.ids import uuid7
from libs.money import ZERO
from services.orders import life
from services.orders.domain import OPEN, AccountState, Instrument, Kind, Order, Quote, RiskEvent, Side, State
from services.orders.parent_use_cases import StepParentOrder
from services.orders.parents import LIVE, Parent, ParentKind, ParentState, ParentTicket, Skip, accept
from services.orders.use_cases import NoteRefusals, Weigh
from tests.orders.accounts import BTC, LIMITS, NOW, QUOTE, USUAL, account_with, as_it_is, fill_of


class Killed(Exception):
    """The process died: nothing of the transaction is left."""


@dataclass
class OneMarket:
    """One instrument, whose quote is fresh until somebody says otherwise."""

    instrument_: Instrument = BTC
    quoted: Quote | None = QUOTE
    live_trading: bool = False

    def instrument(self, instrument_id: str) -> Instrument | None:
        return self.instrument_ if instrument_id == self.instrument_.instrument_id else None

    def quote(self, instrument_id: str, now: datetime) -> Quote | None:
        return self.quoted

    def pricing(self, asset: str) -> Instrument | None:
        return None

    def pricing_in(self, asset: str, quote_asset: str) -> Instrument | None:
        return None


@dataclass
class Transaction:
    """Sees copies, which are kept when it commits; dies at the call that it is told to, if any."""

    state: AccountState
    parent: Parent
    skips: list[Skip]
    dies_after: int | None = None

    def _live(self) -> None:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise Killed
            self.dies_after -= 1

    async def lock(self, account_ids: Iterable[UUID], instrument_ids: Iterable[str] = ()) -> dict[UUID, AccountState]:
        self._live()
        return {self.state.account.account_id: self.state}

    async def find(self, parent_order_id: UUID) -> Parent | None:
        self._live()
        return self.parent

    async def put(self, parent: Parent) -> None:
        self._live()
        counted = ("open_children", "working_quantity", "filled_quantity", "filled_notional", "fees")
        self.parent = replace(parent, **{name: getattr(self.parent, name) for name in counted})

    async def add_skips(self, parent: Parent, skips: Sequence[Skip]) -> None:
        self._live()
        self.skips += skips

    async def last_child(self, parent_order_id: UUID) -> tuple[State, datetime] | None:
        self._live()
        newest = max(self.state.orders.values(), key=lambda order: order.slice_number or 0, default=None)
        return (newest.state, newest.update_time) if newest else None

    async def open_children(self, parent: Parent) -> list[UUID]:
        self._live()
        return [order.order_id for order in self.state.orders.values() if order.state in OPEN]

    async def load_orders(self, states: Mapping[UUID, AccountState], order_ids: Iterable[UUID]) -> None:
        self._live()

    async def add_risk_events(self, events: Sequence[RiskEvent]) -> None:
        self._live()

    async def save(self, states: Sequence[AccountState]) -> None:
        """Counts as Postgres does."""
        self._live()
        for made in self.state.progress.values():
            self.parent = replace(
                self.parent,
                open_children=self.parent.open_children + made.open_children,
                working_quantity=self.parent.working_quantity + made.working_quantity,
                filled_quantity=self.parent.filled_quantity + made.filled_quantity,
                filled_notional=self.parent.filled_notional + made.filled_notional,
                fees=self.parent.fees + made.fees,
            )
            is_waiting = self.parent.due_time is None or self.parent.state is ParentState.CANCELING
            if made.has_ended and self.parent.state in LIVE and is_waiting:
                self.parent = replace(self.parent, due_time=self.state.events[-1].time)
        self.state.progress, self.state.events = {}, []


@dataclass
class Desk:
    """One account with one parent order, and whatever befalls them."""

    parent: Parent
    state: AccountState
    market: OneMarket = field(default_factory=OneMarket)
    now: datetime = NOW
    skips: list[Skip] = field(default_factory=list)

    def __post_init__(self) -> None:
        weigh = Weigh(self.market, USUAL)  # type: ignore[arg-type]
        noting = NoteRefusals(uuid7)
        self._step = StepParentOrder(self.market, LIMITS, weigh, noting, uuid7, lambda: self.now)

    @property
    def children(self) -> list[Order]:
        return sorted(self.state.orders.values(), key=lambda order: order.slice_number or 0)

    @property
    def open(self) -> list[Order]:
        return [child for child in self.children if child.state in OPEN]

    @property
    def quantities(self) -> list[str]:
        return [f"{child.quantity:f}" for child in self.children]

    def _begin(self, dies_after: int | None = None) -> Transaction:
        return Transaction(as_it_is(self.state), self.parent, [*self.skips], dies_after)

    def _commit(self, transaction: Transaction) -> None:
        self.state, self.parent, self.skips = transaction.state, transaction.parent, transaction.skips

    async def step(self, dies_after: int | None = None) -> bool:
        """A step of whoever looks, as often as there is something due; one that is killed leaves nothing."""
        transaction = self._begin(dies_after)
        asked: Any = transaction
        parent = self.parent
        try:
            done = await self._step(asked, asked, parent.account_id, parent.instrument_id, parent.parent_order_id)
        except Killed:
            return False
        self._commit(transaction)
        return done

    async def steps(self) -> None:
        """Until nothing is due."""
        while await self.step():
            pass

    async def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        await self.steps()

    async def tell(self, change: Any) -> None:
        """What a venue says, applied as its facts are."""
        transaction = self._begin()
        change(transaction.state)
        await transaction.save([transaction.state])
        self._commit(transaction)

    async def fill(self, quantity: Decimal | None = None, price: str = "100") -> None:
        """All of what is open has traded, or so much of each."""
        for child in self.open:
            traded = min(child.remaining, child.remaining if quantity is None else quantity)
            fill = fill_of(child, f"{traded:f}", price, fill_id=str(uuid7()))
            await self.tell(
                lambda state, child=child, fill=fill: life.apply_fill(
                    state, child, fill, BTC, execution_id=uuid7(), now=self.now
                )
            )

    async def end(self, kind: Kind) -> None:
        """The venue ends what is open; it rejects nothing that has traded."""
        for child in self.open:
            if kind is Kind.REJECTED and child.filled_quantity:
                continue
            await self.tell(lambda state, child=child: life.apply_ended(state, child, kind, "venue", self.now))


def twap(quantity: str, *, seconds: int, interval: int, price: str | None = None, **other: Any) -> Desk:
    return desk(
        kind=ParentKind.TWAP,
        quantity=Decimal(quantity),
        end_time=NOW + timedelta(seconds=seconds),
        slice_interval=timedelta(seconds=interval),
        limit_price=Decimal(price) if price else None,
        **other,
    )


def iceberg(quantity: str, displayed: str, **other: Any) -> Desk:
    return desk(
        kind=ParentKind.ICEBERG,
        quantity=Decimal(quantity),
        slice_quantity=Decimal(displayed),
        limit_price=Decimal(100),
        **other,
    )


def dca(*, amount: str | None = None, quantity: str | None = None, purchases: int = 3, **other: Any) -> Desk:
    return desk(
        kind=ParentKind.DCA,
        slice_amount=Decimal(amount) if amount else None,
        slice_quantity=Decimal(quantity) if quantity else None,
        purchases=purchases,
        **{"slice_interval": timedelta(minutes=1), **other},
    )


def desk(*, balance: str = "1000000", market: OneMarket | None = None, **asked: Any) -> Desk:
    state = account_with(USDT=balance, BTC="1000")
    market = market or OneMarket()
    ticket = ParentTicket(
        account_id=state.account.account_id, instrument_id=BTC.instrument_id, **{"side": Side.BUY, **asked}
    )
    parent = accept(
        ticket, account=state.account, instrument=BTC, quote=market.quoted, parent_order_id=uuid7(), now=NOW
    )
    return Desk(parent, state, market)


def total(orders: Iterable[Order]) -> Decimal:
    return sum((order.quantity for order in orders), ZERO)
