"""What accounts and orders are, and what may happen to them. No I/O here.

An AccountState is an account under its lock: its orders, balances and positions as they were read. Every change goes
through a function of this module, is counted by the account's sequence and noted, and is saved as a whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from enum import Enum
from uuid import UUID

from libs.errors import Exhausted, Invalid, NotAllowed, NotFound, Unavailable
from libs.money import CONTEXT, ZERO, divide, is_multiple, multiply, plain, rounded


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class OrderType(Enum):
    MARKET = "market"
    LIMIT = "limit"


class TimeInForce(Enum):
    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"


class State(Enum):
    PENDING_NEW = "pending_new"
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    PENDING_CANCEL = "pending_cancel"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class Kind(Enum):
    """What happened to an order."""

    ACCEPTED = "accepted"
    WORKING = "working"
    FILLED = "filled"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELED = "canceled"
    REJECTED = "rejected"
    CANCEL_REJECTED = "cancel_rejected"


class Mode(Enum):
    PAPER = "paper"
    LIVE = "live"


class AccountKind(Enum):
    CASH = "cash"
    MARGIN = "margin"


OPEN = frozenset({State.PENDING_NEW, State.NEW, State.PARTIALLY_FILLED, State.PENDING_CANCEL, State.UNKNOWN})

# The life of an order: what may happen to it when, and what it is then. A fill decides by its quantity between
# PARTIALLY_FILLED and FILLED; it is applied in every state, because the venue's word on a trade is final.
MOVES: dict[tuple[State, Kind], State] = {
    (State.PENDING_NEW, Kind.WORKING): State.NEW,
    (State.PENDING_NEW, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.PENDING_NEW, Kind.CANCELED): State.CANCELED,
    (State.PENDING_NEW, Kind.REJECTED): State.REJECTED,
    (State.NEW, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.NEW, Kind.CANCELED): State.CANCELED,
    (State.NEW, Kind.REJECTED): State.REJECTED,
    (State.PARTIALLY_FILLED, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.PARTIALLY_FILLED, Kind.CANCELED): State.CANCELED,
    # The venue had not yet answered when the cancel was asked for; the cancel stays under way.
    (State.PENDING_CANCEL, Kind.WORKING): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.CANCELED): State.CANCELED,
    (State.PENDING_CANCEL, Kind.REJECTED): State.REJECTED,
    (State.UNKNOWN, Kind.WORKING): State.NEW,
    (State.UNKNOWN, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.UNKNOWN, Kind.CANCELED): State.CANCELED,
    (State.UNKNOWN, Kind.REJECTED): State.REJECTED,
}


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# So much may a feeder's clock be ahead of ours. A quote from further ahead may have any age: a clock was set back.
CLOCK_SKEW_SECONDS_MAX = 1.0


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"


class OrderNotFound(NotFound):
    reason = "ORDER_NOT_FOUND"


class InstrumentNotFound(NotFound):
    reason = "INSTRUMENT_NOT_FOUND"


class InstrumentHalted(NotAllowed):
    reason = "INSTRUMENT_HALTED"


class PriceOffTick(Invalid):
    reason = "PRICE_OFF_TICK"


class QuantityOffLot(Invalid):
    reason = "QUANTITY_OFF_LOT"


class NotionalTooSmall(NotAllowed):
    reason = "NOTIONAL_TOO_SMALL"


class InsufficientBalance(NotAllowed):
    reason = "INSUFFICIENT_BALANCE"


class NoFreshPrice(NotAllowed):
    reason = "NO_FRESH_PRICE"


class OrderDone(NotAllowed):
    reason = "ORDER_DONE"


class TooManyOpenOrders(Exhausted):
    reason = "TOO_MANY_OPEN_ORDERS"


class TooManyAccounts(Exhausted):
    reason = "TOO_MANY_ACCOUNTS"


class UserDeleted(NotAllowed):
    reason = "USER_DELETED"


class TooBusy(Exhausted):
    reason = "TOO_BUSY"


class AccountLocked(Unavailable):
    """Another transaction is at work on the account; who asked not to wait for it gets this."""


class IllegalMove(Exception):
    """The table of moves does not know this; told by a venue, it is recorded and changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    instrument_id: str
    base_asset: str
    quote_asset: str
    tick_size: Decimal
    lot_size: Decimal
    minimum_notional: Decimal
    maker_fee_rate: Decimal
    taker_fee_rate: Decimal
    trading: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Prices are exact text of the feed's doubles; bid or ask is None where there is no book."""

    bid: Decimal | None
    ask: Decimal | None
    last: Decimal | None
    market_time: datetime
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What the client asked for."""

    account_id: UUID
    instrument_id: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    limit_price: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    open_orders_max: int
    quote_age_seconds_max: float
    market_protection: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    order_id: UUID
    user_id: UUID
    account_id: UUID
    instrument_id: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    limit_price: Decimal | None
    protection_price: Decimal | None
    state: State
    filled_quantity: Decimal
    filled_notional: Decimal
    fees: Decimal
    fee_asset: str
    reserved_asset: str
    reserved: Decimal
    fee_rate: Decimal
    reason: str
    create_time: datetime
    update_time: datetime
    market_time: datetime
    revision: int

    @property
    def remaining(self) -> Decimal:
        return max(ZERO, self.quantity - self.filled_quantity)

    @property
    def average_price(self) -> Decimal | None:
        return divide(self.filled_notional, self.filled_quantity) if self.filled_quantity else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    execution_id: UUID
    order_id: UUID
    user_id: UUID
    account_id: UUID
    instrument_id: str
    side: Side
    price: Decimal
    quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    venue_fill_id: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """A trade as the venue tells it."""

    venue_fill_id: str
    price: Decimal
    quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    asset: str
    total: Decimal = ZERO
    reserved: Decimal = ZERO

    @property
    def available(self) -> Decimal:
        return self.total - self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Netting: one for each instrument. average_price is of what is open, 0 when flat."""

    instrument_id: str
    quantity: Decimal = ZERO
    average_price: Decimal = ZERO
    realized_profit: Decimal = ZERO
    fees: Decimal = ZERO
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a ledger transaction; the amounts of a transaction sum to zero for each asset."""

    book: str
    asset: str
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    kind: str
    order_id: UUID | None
    execution_id: UUID | None
    time: datetime
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one order, as it is told."""

    account_sequence: int
    kind: Kind
    order: Order
    execution: Execution | None
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    account_id: UUID
    user_id: UUID
    name: str
    mode: Mode
    kind: AccountKind
    create_time: datetime
    account_sequence: int = 0
    open_orders: int = 0
    closed: bool = False
    """For good: whose it was is gone."""


@dataclass(slots=True, kw_only=True)
class AccountState:
    """An account under its lock, and what has been changed in it since."""

    account: Account
    balances: dict[str, Balance] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    orders: dict[UUID, Order] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    known_fills: set[str] = field(default_factory=set)

    def balance(self, asset: str) -> Balance:
        return self.balances.get(asset) or Balance(asset=asset)

    def add(self, asset: str, *, total: Decimal = ZERO, reserved: Decimal = ZERO) -> None:
        before = self.balance(asset)
        self.balances[asset] = replace(before, total=before.total + total, reserved=before.reserved + reserved)

    def note(self, kind: Kind, order: Order, now: datetime, execution: Execution | None = None) -> Order:
        """Counts the change, and keeps the order as it now is."""
        was = self.orders.get(order.order_id)
        sequence = self.account.account_sequence + 1
        opened = (order.state in OPEN) - (was is not None and was.state in OPEN)
        self.account = replace(self.account, account_sequence=sequence, open_orders=self.account.open_orders + opened)
        order = replace(order, revision=sequence, update_time=now)
        self.orders[order.order_id] = order
        self.events.append(Event(account_sequence=sequence, kind=kind, order=order, execution=execution, time=now))
        return order


def open_account(account: Account, starting: Iterable[tuple[str, Decimal]], now: datetime) -> AccountState:
    """A new account with its starting balances, each against the book "opening"."""
    state = AccountState(account=account)
    for asset, amount in starting:
        state.add(asset, total=amount)
        entries = (
            Entry(book="account", asset=asset, amount=amount),
            Entry(book="opening", asset=asset, amount=-amount),
        )
        state.transactions.append(
            Transaction(kind="opening", order_id=None, execution_id=None, time=now, entries=entries)
        )
    return state


def check_stays(account: Account) -> None:
    """Raises UserDeleted where nothing is traded any more."""
    if account.closed:
        raise user_deleted()


def user_deleted() -> UserDeleted:
    return UserDeleted("the person was deleted for good")


def place(
    state: AccountState,
    ticket: Ticket,
    *,
    instrument: Instrument | None,
    quote: Quote | None,
    limits: Limits,
    order_id: UUID,
    now: datetime,
) -> Order:
    """Accepts an order and sets aside what it may cost, or refuses it and changes nothing."""
    check_stays(state.account)
    if instrument is None:
        raise InstrumentNotFound(f"no instrument {ticket.instrument_id}", instrument_id=ticket.instrument_id)
    if not instrument.trading:
        raise InstrumentHalted(f"{ticket.instrument_id} cannot be traded now", instrument_id=ticket.instrument_id)
    check_grid(ticket, instrument)
    if state.account.open_orders >= limits.open_orders_max:
        raise TooManyOpenOrders("too many open orders", open_orders_max=limits.open_orders_max)
    protection = None
    if ticket.order_type is OrderType.MARKET:
        protection = protection_price(ticket, instrument, fresh(quote, ticket, limits), limits.market_protection)
    worst_price = ticket.limit_price or protection
    assert worst_price is not None, "a limit order has its limit, a market order its protection"
    notional = multiply(ticket.quantity, worst_price)
    if notional < instrument.minimum_notional:
        raise NotionalTooSmall(
            f"{plain(notional)} {instrument.quote_asset} is below the least",
            notional=plain(notional),
            minimum_notional=plain(instrument.minimum_notional),
        )
    order = Order(
        order_id=order_id,
        user_id=state.account.user_id,
        account_id=state.account.account_id,
        instrument_id=ticket.instrument_id,
        side=ticket.side,
        order_type=ticket.order_type,
        time_in_force=ticket.time_in_force,
        quantity=ticket.quantity,
        limit_price=ticket.limit_price,
        protection_price=protection,
        state=State.PENDING_NEW,
        filled_quantity=ZERO,
        filled_notional=ZERO,
        fees=ZERO,
        fee_asset=instrument.quote_asset,
        reserved_asset=instrument.quote_asset if ticket.side is Side.BUY else instrument.base_asset,
        reserved=ZERO,
        fee_rate=max(ZERO, instrument.maker_fee_rate, instrument.taker_fee_rate),
        reason="",
        create_time=now,
        update_time=now,
        # Without a quote nothing was decided on: the first tick that comes may fill it.
        market_time=quote.market_time if quote else EPOCH,
        revision=0,
    )
    needed = to_reserve(order)
    available = state.balance(order.reserved_asset).available
    if needed > available:
        raise InsufficientBalance(
            f"{plain(needed)} {order.reserved_asset} is needed and {plain(available)} available",
            asset=order.reserved_asset,
            needed=plain(needed),
            available=plain(available),
        )
    state.add(order.reserved_asset, reserved=needed)
    return state.note(Kind.ACCEPTED, replace(order, reserved=needed), now)


def check_grid(ticket: Ticket, instrument: Instrument) -> None:
    """Names every field that is off its grid; the reason is the first one's."""
    reasons: list[type[Invalid]] = []
    violations: dict[str, str] = {}
    metadata: dict[str, str] = {}
    if not is_multiple(ticket.quantity, instrument.lot_size):
        reasons.append(QuantityOffLot)
        violations["quantity"] = f"must be a multiple of {plain(instrument.lot_size)}"
        metadata |= {"quantity": plain(ticket.quantity), "lot_size": plain(instrument.lot_size)}
    if ticket.limit_price is not None and not is_multiple(ticket.limit_price, instrument.tick_size):
        reasons.append(PriceOffTick)
        violations["limit_price"] = f"must be a multiple of {plain(instrument.tick_size)}"
        metadata |= {"price": plain(ticket.limit_price), "tick_size": plain(instrument.tick_size)}
    if reasons:
        raise reasons[0](violations, **metadata)


def fresh(quote: Quote | None, ticket: Ticket, limits: Limits) -> Quote:
    if quote is None or not -CLOCK_SKEW_SECONDS_MAX <= quote.age_seconds <= limits.quote_age_seconds_max:
        age = "never" if quote is None else f"{quote.age_seconds:.1f}"
        raise NoFreshPrice(
            f"no quote of {ticket.instrument_id} in the last {limits.quote_age_seconds_max:g} s",
            instrument_id=ticket.instrument_id,
            age_seconds=age,
        )
    return quote


def protection_price(ticket: Ticket, instrument: Instrument, quote: Quote, fraction: Decimal) -> Decimal:
    """The worst price a market order takes: the quote moved by the fraction, onto the tick grid, never past it."""
    buys = ticket.side is Side.BUY
    reference = (quote.ask if buys else quote.bid) or quote.last
    if reference is None:
        raise NoFreshPrice(
            f"{ticket.instrument_id} has no price to buy or sell at",
            instrument_id=ticket.instrument_id,
            age_seconds=f"{quote.age_seconds:.1f}",
        )
    bound = multiply(reference, 1 + fraction if buys else 1 - fraction)
    ticks = CONTEXT.divide(bound, instrument.tick_size).to_integral_value(ROUND_DOWN if buys else ROUND_UP)
    return multiply(ticks, instrument.tick_size)


def to_reserve(order: Order) -> Decimal:
    """What the rest of an order may still cost: price and fee when buying, the asset itself when selling.

    Rounded up at the 18th digit after the point, and what is paid is rounded down: never is too little set aside.
    """
    if order.side is Side.SELL:
        return order.remaining
    price = order.limit_price or order.protection_price or ZERO
    notional = multiply(order.remaining, price)
    return rounded(notional + multiply(notional, order.fee_rate), ROUND_UP)


def request_cancel(state: AccountState, order: Order, now: datetime) -> Order:
    """Notes that a cancel is under way; asking again changes nothing."""
    if order.state is State.PENDING_CANCEL:
        return order
    if order.state not in OPEN:
        raise OrderDone(f"the order is {order.state.value}", order_id=order.order_id, state=order.state.name)
    return state.note(Kind.CANCEL_REQUESTED, replace(order, state=moved(order, Kind.CANCEL_REQUESTED)), now)


def moved(order: Order, kind: Kind) -> State:
    try:
        return MOVES[order.state, kind]
    except KeyError:
        raise IllegalMove(f"{kind.value} in state {order.state.value}") from None


def apply_working(state: AccountState, order: Order, now: datetime) -> Order:
    """The venue has the order; already filled before that was told, it stays as it is."""
    if order.state in (State.PARTIALLY_FILLED, State.FILLED):
        return order
    return state.note(Kind.WORKING, replace(order, state=moved(order, Kind.WORKING)), now)


def apply_ended(state: AccountState, order: Order, kind: Kind, reason: str, now: datetime) -> Order:
    """The venue canceled or rejected the order: what it had set aside is free again."""
    ended = replace(order, state=moved(order, kind), reason=reason, reserved=ZERO)
    state.add(order.reserved_asset, reserved=-order.reserved)
    return state.note(kind, ended, now)


def apply_cancel_rejected(state: AccountState, order: Order, reason: str, now: datetime) -> Order:
    """The order was done when the cancel came, or lives on: it is what its fills say."""
    if order.state is not State.PENDING_CANCEL:
        return state.note(Kind.CANCEL_REJECTED, order, now)
    back = State.PARTIALLY_FILLED if order.filled_quantity else State.NEW
    return state.note(Kind.CANCEL_REJECTED, replace(order, state=back, reason=reason), now)


def apply_fill(
    state: AccountState, order: Order, fill: Fill, instrument: Instrument, *, execution_id: UUID, now: datetime
) -> Order:
    """Applies a trade once: to the order, the balances, the position and the ledger."""
    if fill.venue_fill_id in state.known_fills:
        return order
    state.known_fills.add(fill.venue_fill_id)
    notional = multiply(fill.price, fill.quantity)
    execution = Execution(
        execution_id=execution_id,
        order_id=order.order_id,
        user_id=order.user_id,
        account_id=order.account_id,
        instrument_id=order.instrument_id,
        side=order.side,
        price=fill.price,
        quantity=fill.quantity,
        fee=fill.fee,
        fee_asset=fill.fee_asset,
        maker=fill.maker,
        venue_fill_id=fill.venue_fill_id,
        time=fill.time,
    )
    filled = replace(
        order,
        filled_quantity=order.filled_quantity + fill.quantity,
        filled_notional=order.filled_notional + notional,
        fees=order.fees + fill.fee,
    )
    filled = replace(filled, state=state_after_fill(order, filled))
    # What is done has nothing set aside; what goes on keeps what its rest may cost.
    reserved = to_reserve(filled) if filled.state in OPEN else ZERO
    state.add(order.reserved_asset, reserved=reserved - order.reserved)
    settle(state, execution, rounded(notional, ROUND_DOWN), instrument)
    position = state.positions.get(order.instrument_id) or Position(instrument_id=order.instrument_id)
    state.positions[order.instrument_id] = traded(position, execution, now)
    state.executions.append(execution)
    return state.note(Kind.FILLED, replace(filled, reserved=reserved), now, execution)


def state_after_fill(order: Order, filled: Order) -> State:
    if filled.filled_quantity >= filled.quantity:
        return State.FILLED
    # A cancel under way stays so; an order that had ended stays ended, and has traded all the same.
    return order.state if order.state is State.PENDING_CANCEL or order.state not in OPEN else State.PARTIALLY_FILLED


def settle(state: AccountState, execution: Execution, notional: Decimal, instrument: Instrument) -> None:
    """Moves both assets and the fee, against the books of the venue and of fees."""
    sign = 1 if execution.side is Side.BUY else -1
    base, quote = sign * execution.quantity, -sign * notional
    state.add(instrument.base_asset, total=base)
    state.add(instrument.quote_asset, total=quote)
    state.add(execution.fee_asset, total=-execution.fee)
    entries = [
        Entry(book="account", asset=instrument.base_asset, amount=base),
        Entry(book="venue", asset=instrument.base_asset, amount=-base),
        Entry(book="account", asset=instrument.quote_asset, amount=quote),
        Entry(book="venue", asset=instrument.quote_asset, amount=-quote),
    ]
    if execution.fee:
        entries.append(Entry(book="account", asset=execution.fee_asset, amount=-execution.fee))
        entries.append(Entry(book="fees", asset=execution.fee_asset, amount=execution.fee))
    state.transactions.append(
        Transaction(
            kind="fill",
            order_id=execution.order_id,
            execution_id=execution.execution_id,
            time=execution.time,
            entries=tuple(entries),
        )
    )


def traded(position: Position, execution: Execution, now: datetime) -> Position:
    """The position after a trade: more of the same side averages in, the other side closes first, the rest turns it."""
    signed = execution.quantity if execution.side is Side.BUY else -execution.quantity
    before, price = position.quantity, execution.price
    after = before + signed
    profit, average = ZERO, position.average_price
    if before * signed >= 0:
        average = divide(multiply(abs(before), average) + multiply(abs(signed), price), abs(after))
    else:
        closed = min(abs(before), abs(signed))
        profit = rounded(multiply(closed, price - average if before > 0 else average - price))
        if abs(signed) > abs(before):
            average = price
        elif after == 0:
            average = ZERO
    return replace(
        position,
        quantity=after,
        average_price=average,
        realized_profit=position.realized_profit + profit,
        fees=position.fees + execution.fee,
        update_time=now,
    )
