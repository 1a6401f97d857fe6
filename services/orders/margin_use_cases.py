"""What is done with margin accounts, one per intention. Each works on stores that are bound to one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from libs.money import ZERO, down_to, plain
from services.orders import books, life, margin, margin_funding, placing, use_cases
from services.orders.domain import (
    OPEN,
    Account,
    AccountState,
    Instrument,
    Kind,
    Limits,
    Mode,
    Order,
    OrderType,
    RiskEvent,
    Side,
    Ticket,
    TimeInForce,
)
from services.orders.margin import MarginStanding
from services.orders.margin_funding import Payment, Settlement, Told
from services.orders.refusals import UserDeleted
from services.orders.use_cases import Accounts, Market, locked_account

SETTLEMENTS_AT_ONCE = 500
"""Of those that a late fill may correct, read and brought to what they should be at once."""
INSURANCE = "insurance"
WARNED_FROM = Decimal("0.8")
"""The margin ratio at which the owner is warned."""


class Margins(Protocol):
    """Where what is kept of margin accounts lives, in the same transaction as the accounts."""

    async def set_leverage(self, account_id: UUID, leverage: int) -> None: ...
    async def quantity_before(self, state: AccountState, settlement: Settlement) -> Decimal: ...
    async def find_payments(
        self, account_ids: Sequence[UUID], instrument_id: str, funding_times: Sequence[datetime]
    ) -> Mapping[tuple[UUID, datetime], Payment]: ...
    async def put_payments(self, payments: Sequence[tuple[Account, Payment]]) -> None: ...
    async def settlements_after(self, instrument_id: str, time: datetime, limit: int) -> Sequence[Settlement]: ...
    async def settlements_near(self, instrument_id: str, time: datetime) -> Sequence[Settlement]: ...
    async def claim_told(
        self, account_ids: Sequence[UUID], instrument_id: str, funding_times: Sequence[datetime]
    ) -> None: ...
    async def add_told(self, account: Account, told: Told) -> bool: ...


@dataclass(frozen=True, slots=True)
class SetLeverage:
    """Has positions and open orders backed by another leverage, where there is enough for that."""

    market: Market
    limits: Limits
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, margins: Margins, account_id: UUID, leverage: int) -> Account:
        _, state = await locked_account(accounts, account_id)
        if state.account.closed:
            raise UserDeleted
        margin.check_margin(state.account)
        before = state.account.leverage
        state.account = replace(state.account, leverage=leverage)
        state.unbacked |= {order.instrument_id for order in state.orders.values() if order.state in OPEN}
        margin.back(state)
        if leverage < before:
            self._check(state)
        await accounts.save([state])
        await margins.set_leverage(account_id, leverage)
        return state.account

    def _check(self, state: AccountState) -> None:
        """Raises a refusal where more is to be set aside than there is, or where nobody knows whether."""
        now = self.now()
        held = {name: self.market.quote(name, now) for name, each in state.positions.items() if each.quantity}
        marks = {name: placing.fresh_mark(quote, self.limits) for name, quote in held.items()}
        own = margin.holdings(state.account, state.positions.values(), state.perpetuals, marks.get)
        for each in own:
            if each.mark is None:
                name = each.position.instrument_id
                raise placing.no_fresh_mark(name, held[name], self.limits)
        for standing in margin.standings(state.balances.values(), own):
            if standing.available is not None and standing.available < ZERO and (standing.initial or standing.reserved):
                needed, balance = (standing.initial or ZERO) + standing.reserved, standing.balance or ZERO
                raise placing.insufficient_margin(standing.asset, needed, balance)


@dataclass(frozen=True, slots=True)
class SettleFunding:
    """Brings what accounts were paid by one settlement to what follows from their fills."""

    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, margins: Margins, settlement: Settlement, account_ids: Sequence[UUID]
    ) -> int:
        """How many payments have changed."""
        states = await accounts.lock(account_ids, [settlement.instrument_id])
        live = [account_id for account_id, state in states.items() if state.account.mode is Mode.LIVE]
        if live:
            await margins.claim_told(live, settlement.instrument_id, [settlement.funding_time])
        before = await margins.find_payments(account_ids, settlement.instrument_id, [settlement.funding_time])
        changed: list[tuple[Account, Payment]] = []
        for account_id, state in states.items():
            if settlement.instrument_id not in state.perpetuals:
                continue
            quantity = await margins.quantity_before(state, settlement)
            known = before.get((account_id, settlement.funding_time))
            if payment := margin_funding.settle(state, settlement, quantity, known, self.now()):
                changed.append((state.account, payment))
        await accounts.save(list(states.values()))
        await margins.put_payments(changed)
        return len(changed)


async def correct_funding(margins: Margins, state: AccountState, now: datetime) -> None:
    """Brings payments of settlements after the fills that have just been applied to what they are with them.

    Call it under the account's lock, before the fills are saved.
    """
    if not state.account.is_margin:
        return
    account_id = state.account.account_id
    for instrument_id, earliest in margin_funding.earliest(state).items():
        after: datetime | None = earliest
        while after is not None:
            settlements = await margins.settlements_after(instrument_id, after, SETTLEMENTS_AT_ONCE)
            times = [each.funding_time for each in settlements]
            if times and state.account.mode is Mode.LIVE:
                await margins.claim_told([account_id], instrument_id, times)
            before = await margins.find_payments([account_id], instrument_id, times) if times else {}
            changed: list[tuple[Account, Payment]] = []
            for each in settlements:
                quantity, known = (
                    await margins.quantity_before(state, each),
                    before.get((account_id, each.funding_time)),
                )
                if payment := margin_funding.settle(state, each, quantity, known, now):
                    changed.append((state.account, payment))
            await margins.put_payments(changed)
            after = times[-1] if len(settlements) == SETTLEMENTS_AT_ONCE else None


async def tell_funding(margins: Margins, state: AccountState, told: Told, now: datetime) -> None:
    """Enters what a live account's venue has settled, once. Call it under the account's lock, before that is saved."""
    if not await margins.add_told(state.account, told):
        return
    account_id = state.account.account_id
    near = await margins.settlements_near(told.instrument_id, told.funding_time)
    settlement = margin_funding.nearest(near, told.funding_time)
    if settlement is not None:
        told = replace(told, funding_time=settlement.funding_time)
        await margins.claim_told([account_id], told.instrument_id, [told.funding_time])
    payments = await margins.find_payments([account_id], told.instrument_id, [told.funding_time])
    known = payments.get((account_id, told.funding_time))
    if settlement is not None and told.instrument_id in state.perpetuals:
        quantity = await margins.quantity_before(state, settlement)
        known = margin_funding.settle(state, settlement, quantity, known, now) or known
    await margins.put_payments([(state.account, margin_funding.tell(state, told, known, now))])


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look at an account's margin."""

    events: Sequence[RiskEvent] = ()
    orders: Sequence[Order] = ()


@dataclass(frozen=True, slots=True)
class Liquidate:
    """Closes what a paper account holds once its margin is used up, and makes up for what is below zero after that.

    All under the account's lock and by what is so under it: a position is closed by one order at a time.
    """

    market: Market
    limits: Limits
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, account_id: UUID) -> Looked:
        states, state = await locked_account(accounts, account_id)
        if state.account.mode is not Mode.PAPER:
            return Looked()
        now = self.now()
        events: list[RiskEvent] = []
        orders: list[Order] = []
        for standing in self.standings(state, now):
            if standing.is_used_up:
                placed = self._close(state, standing, now)
                orders += placed
                events += [liquidated(self.next_id(), state.account, standing, order, now) for order in placed]
            elif (
                standing.wallet < ZERO and standing.maintenance == ZERO and not self._is_closing(state, standing.asset)
            ):
                books.enter(state, INSURANCE, {standing.asset: -standing.wallet}, now)
        if orders:
            await accounts.cancel_parents(states, now)
        await accounts.save([state])
        await accounts.add_risk_events(events)
        return Looked(events, orders)

    def standings(self, state: AccountState, now: datetime) -> list[MarginStanding]:
        """By mark prices of the last seconds."""
        quotes = {name: self.market.quote(name, now) for name, each in state.positions.items() if each.quantity}
        marks = {name: placing.fresh_mark(quote, self.limits) for name, quote in quotes.items()}
        held = margin.holdings(state.account, state.positions.values(), state.perpetuals, marks.get)
        return margin.standings(state.balances.values(), held)

    def _is_closing(self, state: AccountState, asset: str) -> bool:
        return any(
            self._closing(state, order.instrument_id)
            for order in state.orders.values()
            if order.reserved_asset == asset
        )

    def _closing(self, state: AccountState, instrument_id: str) -> bool:
        """Whether an order that liquidates is under way."""
        orders = margin.orders_of(state, instrument_id)
        return any(order.liquidates and order.state in OPEN for order in orders)

    def _close(self, state: AccountState, standing: MarginStanding, now: datetime) -> list[Order]:
        """Asks to cancel what does not reduce, and closes each position that nothing closes yet."""
        asset = standing.asset
        named = [
            order.order_id
            for order in state.orders.values()
            if order.reserved_asset == asset and order.state in OPEN and not order.reduce_only
        ]
        use_cases.cancel_each(state, sorted(named), now, life.LIQUIDATION)
        placed: list[Order] = []
        for position in list(state.positions.values()):
            instrument = self.market.instrument(position.instrument_id)
            perpetual = state.perpetuals.get(position.instrument_id)
            if instrument is None or perpetual is None or perpetual.settle_asset != asset:
                continue
            quantity = down_to(abs(position.quantity), instrument.lot_size)
            if quantity and not self._closing(state, position.instrument_id):
                side = Side.SELL if position.quantity > 0 else Side.BUY
                if order := self._order(state, instrument, side, quantity, now):
                    placed.append(order)
        return placed

    def _order(
        self, state: AccountState, instrument: Instrument, side: Side, quantity: Decimal, now: datetime
    ) -> Order | None:
        """A market order past limits and switches; None until there is a price to bound it by."""
        ticket = Ticket(
            account_id=state.account.account_id,
            instrument_id=instrument.instrument_id,
            side=side,
            order_type=OrderType.MARKET,
            time_in_force=TimeInForce.IOC,
            quantity=quantity,
            limit_price=None,
            reduce_only=True,
        )
        quote = self.market.quote(instrument.instrument_id, now)
        drafted = placing.drafted(
            state, ticket, instrument=instrument, quote=quote, limits=self.limits, order_id=self.next_id(), now=now
        )
        if drafted.worst_price is None:
            return None
        order = replace(drafted, reason=life.LIQUIDATION, liquidates=True)
        state.add(order.reserved_asset, reserved=order.reserved)
        state.unbacked.add(order.instrument_id)
        order = state.note(Kind.ACCEPTED, order, now)
        # What only reduces goes, as far as it is for more than is left to reduce.
        life.cancel_excess(state, instrument.instrument_id, now)
        return order


def liquidated(
    risk_event_id: UUID, account: Account, standing: MarginStanding, order: Order, now: datetime
) -> RiskEvent:
    return event_of(risk_event_id, account, "liquidated", standing, now, instrument_id=order.instrument_id)


def warned(risk_event_id: UUID, account: Account, standing: MarginStanding, now: datetime) -> RiskEvent:
    return event_of(risk_event_id, account, "margin_warned", standing, now)


def event_of(
    risk_event_id: UUID,
    account: Account,
    kind: str,
    standing: MarginStanding,
    now: datetime,
    *,
    instrument_id: str = "",
) -> RiskEvent:
    """Where the account stood: its margin ratio, or that its balance was used up."""
    return RiskEvent(
        risk_event_id=risk_event_id,
        user_id=account.user_id,
        account_id=account.account_id,
        kind=kind,
        limit_name=f"margin_ratio/{standing.asset}",
        value="USED_UP" if standing.ratio is None else plain(standing.ratio),
        bound="1",
        instrument_id=instrument_id,
        time=now,
    )


def is_near(standing: MarginStanding) -> bool:
    """Whether the owner is to be warned."""
    if not standing.maintenance or standing.balance is None:
        return False
    return standing.ratio is None or standing.ratio >= WARNED_FROM
