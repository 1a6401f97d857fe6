"""What positions and open orders of a margin account are backed by.

All positions that settle in one asset are backed by the wallet in that asset and by what all of them would make at their mark
prices: cross margin, in which profit that is not realised counts as loss does. What an open order sets aside is the initial
margin that the position takes more once it has traded at its worst price, and its fees; so much of it as closes takes none. What
trading at worse than the mark price would lose at once is not set aside.

Orders of one side share the room that the position leaves to close: those that only reduce come first, then the older ones.
What waits for an entry is taken as if all of the entry had traded. Of two legs the older sets aside for both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_UP, Decimal
from uuid import UUID

from libs import margin
from libs.margin import Perpetual
from libs.money import ZERO, multiply, rounded
from libs.native import KNOWN
from services.orders import books
from services.orders.domain import (
    OPEN,
    Account,
    AccountState,
    Balance,
    Execution,
    Exposure,
    GroupRole,
    Instrument,
    Order,
    Position,
    Side,
    changed,
)
from services.orders.refusals import AccountNotMargin, InstrumentNotForAccount

VENUES = frozenset(venue for venue, perpetuals in KNOWN if perpetuals)
"""Where a live margin account may be."""
MarkOf = Callable[[str], Decimal | None]
"""The mark price of an instrument; None where there is none, or none that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What an order sets aside."""

    margin: Decimal = ZERO
    fees: Decimal = ZERO

    @property
    def total(self) -> Decimal:
        return rounded(self.margin + self.fees, ROUND_UP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A position that is not flat, at its mark price."""

    position: Position
    perpetual: Perpetual | None
    """Its terms; None of an instrument that is not known here, as where nothing is told of it: then nothing has its mark price."""
    mark: Decimal | None
    leverage: int

    def counts_in(self, asset: str) -> bool:
        """Whether it settles in the asset: without its terms it may."""
        return self.perpetual is None or self.perpetual.settle_asset == asset

    @property
    def notional(self) -> Decimal | None:
        return None if self.mark is None else margin.notional(self.position.quantity, self.mark)

    @property
    def profit(self) -> Decimal | None:
        if self.mark is None:
            return None
        return margin.unrealised_profit(self.position.quantity, self.position.average_price, self.mark)

    @property
    def initial(self) -> Decimal | None:
        if self.notional is None or self.perpetual is None:
            return None
        return margin.initial_margin(self.notional, Decimal(self.leverage), self.perpetual.margin_tiers)

    @property
    def maintenance(self) -> Decimal | None:
        if self.notional is None or self.perpetual is None:
            return None
        return margin.maintenance_margin(self.notional, self.perpetual.margin_tiers)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginStanding:
    """Where a margin account stands in one settle asset; what goes by a mark price that is missing is None."""

    asset: str
    wallet: Decimal
    reserved: Decimal
    profit: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None

    @property
    def balance(self) -> Decimal | None:
        return None if self.profit is None else self.wallet + self.profit

    @property
    def available(self) -> Decimal | None:
        """What new orders may use; negative where there is less than nothing."""
        if self.balance is None or self.initial is None:
            return None
        return self.balance - self.initial - self.reserved

    @property
    def ratio(self) -> Decimal | None:
        """None where it is not known, and where the balance is used up."""
        if self.balance is None or self.maintenance is None:
            return None
        return margin.margin_ratio(self.maintenance, self.balance)

    @property
    def is_used_up(self) -> bool:
        """Whether its positions are to be liquidated: the margin ratio is 1 or beyond. Never while a mark price is missing."""
        if self.balance is None or not self.maintenance:
            return False
        return self.maintenance >= self.balance


def check_kind(account: Account, instrument: Instrument) -> None:
    """Raises InstrumentNotForAccount unless the account is of the kind that trades the instrument."""
    if account.is_margin is not (instrument.perpetual is not None):
        kind = account.kind.value
        what = "perpetual futures alone" if account.is_margin else "no perpetual futures"
        raise InstrumentNotForAccount(
            {"instrument_id": f"a {kind} account trades {what}"},
            instrument_id=instrument.instrument_id,
            account_kind=kind.upper(),
        )


def check_margin(account: Account) -> None:
    if not account.is_margin:
        raise AccountNotMargin("the account is a cash account", account_id=str(account.account_id))


def reserved_asset(account: Account, instrument: Instrument, side: Side) -> str:
    """What an order sets aside: of a margin account what it settles in, which is the quote asset, else what it pays with."""
    return instrument.quote_asset if account.is_margin or side is Side.BUY else instrument.base_asset


# Where an account stands.


def holdings(
    account: Account, positions: Iterable[Position], perpetuals: Mapping[str, Perpetual], mark_of: MarkOf
) -> list[Holding]:
    """The positions that are not flat, in the order of their instruments."""
    held = sorted((each for each in positions if each.quantity), key=lambda each: each.instrument_id)
    return [
        Holding(
            position=each,
            perpetual=perpetuals.get(each.instrument_id),
            mark=mark_of(each.instrument_id) if each.instrument_id in perpetuals else None,
            leverage=account.leverage,
        )
        for each in held
    ]


def standing(asset: str, balance: Balance | None, held: Sequence[Holding]) -> MarginStanding:
    """Where an account stands in an asset, with what it holds."""
    balance = balance or Balance(asset=asset)
    own = [each for each in held if each.counts_in(asset)]
    return MarginStanding(
        asset=asset,
        wallet=balance.total,
        reserved=balance.reserved,
        profit=total(each.profit for each in own),
        initial=total(each.initial for each in own),
        maintenance=total(each.maintenance for each in own),
    )


def total(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """Their sum; None where one is not known."""
    known = ZERO
    for amount in amounts:
        if amount is None:
            return None
        known += amount
    return known


def standing_in(state: AccountState, asset: str, mark_of: MarkOf) -> MarginStanding:
    """Where an account stands in an asset, under its lock."""
    held = holdings(state.account, state.positions.values(), state.perpetuals, mark_of)
    return standing(asset, state.balances.get(asset), held)


def standings(balances: Iterable[Balance], held: Sequence[Holding]) -> list[MarginStanding]:
    """In each asset of which there is something, in the order of their names."""
    kept = {each.asset: each for each in balances}
    assets = sorted(kept.keys() | {each.perpetual.settle_asset for each in held if each.perpetual is not None})
    return [standing(asset, kept.get(asset), held) for asset in assets]


def valued(balances: Iterable[Balance], held: Sequence[Holding]) -> list[Balance] | None:
    """Balances with what positions would make at their mark prices; None where one has none."""
    if any(each.mark is None for each in held):
        return None
    found = standings(balances, held)
    worth = [Balance(asset=each.asset, total=each.balance) for each in found if each.balance is not None]
    return worth if len(worth) == len(found) else None


def liquidation_price(holding: Holding, held: Sequence[Holding], wallet: Decimal, step: Decimal) -> Decimal | None:
    """Of one position while all others that settle in its asset stand as they are; None too where one has no mark price."""
    if holding.perpetual is None:
        return None
    asset = holding.perpetual.settle_asset
    others = [
        each for each in held if each.counts_in(asset) and each.position.instrument_id != holding.position.instrument_id
    ]
    maintenance, profit = total(each.maintenance for each in others), total(each.profit for each in others)
    if maintenance is None or profit is None:
        return None
    return margin.liquidation_price(
        holding.position.quantity,
        holding.position.average_price,
        wallet,
        holding.perpetual.margin_tiers,
        other_maintenance=maintenance,
        other_profit=profit,
        step=step,
    )


def traded(
    state: AccountState, order: Order, price: Decimal, wallet: Decimal, now: datetime
) -> tuple[Position, Decimal]:
    """The position and the wallet once all of an order has traded at the price, with its fees."""
    before = state.positions.get(order.instrument_id) or Position(instrument_id=order.instrument_id)
    fee = rounded(multiply(multiply(order.quantity, price), order.fee_rate), ROUND_UP)
    execution = Execution(
        execution_id=order.order_id,
        order_id=order.order_id,
        user_id=order.user_id,
        account_id=order.account_id,
        instrument_id=order.instrument_id,
        side=order.side,
        price=price,
        quantity=order.quantity,
        fee=fee,
        fee_asset=order.fee_asset,
        maker=False,
        venue_fill_id="",
        time=now,
    )
    after = books.traded(before, execution, fee, now)
    return after, wallet + after.realized_profit - before.realized_profit - fee


# What orders set aside.


def worst_price(order: Order) -> Decimal:
    """The price an order's margin and fees are counted at: the worst it takes, or its stop where that is higher."""
    return max(order.worst_price or ZERO, order.stop_price or ZERO)


@dataclass(slots=True)
class Unit:
    """An order, or two legs that share a quantity, as it is or as it is being changed: the more of both."""

    order: Order
    price: Decimal
    open_quantity: Decimal
    waiting: Decimal
    remaining_notional: Decimal

    @staticmethod
    def of(order: Order) -> "Unit":
        variants = [order] if order.replacement is None else [order, changed(order, order.replacement)]
        return Unit(
            order,
            max(map(worst_price, variants)),
            max(each.at_venue for each in variants),
            max(each.waiting for each in variants),
            max(multiply(each.remaining, worst_price(each)) for each in variants),
        )

    def with_leg(self, leg: "Unit") -> None:
        """Takes in the other leg of its group."""
        self.price = max(self.price, leg.price)
        self.open_quantity = max(self.open_quantity, leg.open_quantity)
        self.waiting = max(self.waiting, leg.waiting)
        self.remaining_notional = max(self.remaining_notional, leg.remaining_notional)


def units(orders: Iterable[Order], side: Side) -> list[Unit]:
    """The open orders of a side, in the order in which they share the room to close."""
    found: list[Unit] = []
    legs: dict[UUID, Unit] = {}
    own = (order for order in orders if order.side is side and order.state in OPEN)
    for order in sorted(own, key=lambda order: (not order.reduce_only, order.order_id)):
        unit = Unit.of(order)
        if order.group_id is not None and order.group_role is GroupRole.LEG:
            if first := legs.get(order.group_id):
                first.with_leg(unit)
                continue
            legs[order.group_id] = unit
        found.append(unit)
    return found


def needs(state: AccountState, instrument_id: str, orders: Iterable[Order]) -> dict[UUID, Need]:
    """What each of these, all the orders of the instrument that there are, sets aside."""
    every = list(orders)
    entries = {order.group_id: order for order in every if order.group_role is GroupRole.ENTRY}
    found = {order.order_id: Need() for order in every}
    for side in Side:
        reached = held_on(state, instrument_id, side)
        waiting_before: dict[UUID | None, Decimal] = {}
        for unit in units(every, side):
            order, entry = unit.order, entries.get(unit.order.group_id)
            # A stop that trails an entry begins where that has traded.
            price = unit.price or (worst_price(entry) if entry is not None else ZERO)
            taken = more_margin(state, instrument_id, reached, unit.open_quantity, price)
            reached += unit.open_quantity
            if unit.waiting:
                before = waiting_before.get(order.group_id, ZERO)
                brought = entry.open_quantity if entry is not None and entry.side is not side else ZERO
                taken += more_margin(state, instrument_id, reached + before - brought, unit.waiting, price)
                waiting_before[order.group_id] = before + unit.waiting
            found[order.order_id] = Need(
                margin=ZERO if order.reduce_only else taken,
                fees=rounded(multiply(unit.remaining_notional, order.fee_rate), ROUND_UP),
            )
    return found


def held_on(state: AccountState, instrument_id: str, side: Side) -> Decimal:
    """What is held, as orders of a side add to it: negative is what they can close."""
    position = state.positions.get(instrument_id)
    held = position.quantity if position is not None else ZERO
    return held if side is Side.BUY else -held


def open_on(state: AccountState, instrument_id: str, side: Side) -> Decimal:
    """How much may trade of all open orders of a side: the sum of what units makes of them, without their prices."""
    legs: dict[UUID, Decimal] = {}
    found = ZERO
    for order in state.orders.values():
        if order.side is not side or order.instrument_id != instrument_id or order.state not in OPEN:
            continue
        quantity = order.at_venue
        if order.replacement is not None:
            quantity = max(quantity, changed(order, order.replacement).at_venue)
        if order.group_id is not None and order.group_role is GroupRole.LEG:
            legs[order.group_id] = max(quantity, legs.get(order.group_id, ZERO))
        else:
            found += quantity
    return found + sum(legs.values(), ZERO)


def exposure(state: AccountState, instrument_id: str) -> Exposure:
    """By the positions and orders at hand, with what has just changed in them; two legs count once."""
    return Exposure(
        position=held_on(state, instrument_id, Side.BUY),
        open_buys=open_on(state, instrument_id, Side.BUY),
        open_sells=open_on(state, instrument_id, Side.SELL),
    )


def more_margin(state: AccountState, instrument_id: str, held: Decimal, quantity: Decimal, price: Decimal) -> Decimal:
    """The initial margin that a position takes more with so much more of its side; what closes takes none."""
    opened, before = max(ZERO, held + quantity), max(ZERO, held)
    if opened == before:
        return ZERO
    leverage, tiers = Decimal(state.account.leverage), state.perpetuals[instrument_id].margin_tiers
    return margin.initial_margin(opened * price, leverage, tiers) - margin.initial_margin(
        before * price, leverage, tiers
    )


def need_of_new(state: AccountState, order: Order, price_least: Decimal = ZERO) -> Need:
    """What an order sets aside that is the newest of its side, and in no group; at that price where its own is lower."""
    price = max(worst_price(order), price_least)
    fees = rounded(multiply(multiply(order.remaining, price), order.fee_rate), ROUND_UP)
    if order.reduce_only:
        return Need(fees=fees)
    reached = held_on(state, order.instrument_id, order.side) + open_on(state, order.instrument_id, order.side)
    return Need(margin=more_margin(state, order.instrument_id, reached, order.remaining, price), fees=fees)


def orders_of(state: AccountState, instrument_id: str) -> list[Order]:
    return [order for order in state.orders.values() if order.instrument_id == instrument_id]


def back(state: AccountState) -> None:
    """Has the orders of instruments in which something has changed set aside what they need since.

    Once for all that a transaction does, before its rows are written and before what is available is looked at: until then
    what is set aside is what it was, and may be too much or too little.
    """
    for instrument_id in sorted(state.unbacked):
        orders = orders_of(state, instrument_id)
        for order_id, need in needs(state, instrument_id, orders).items():
            order = state.orders[order_id]
            if (kept := books.set_aside(state, order, need.total)) is not order:
                state.keep(kept)
    state.unbacked.clear()
