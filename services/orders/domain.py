"""What accounts and orders are, and what may happen to them. No I/O here.

An AccountState is an account under its lock: its orders, balances and positions as they were read. Every change goes
through a function of `placing` or `life`, is counted by the account's sequence and noted, and is saved as a whole.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from libs.margin import Perpetual
from libs.money import ZERO, divide, multiply
from libs.native import TimeInForce


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class OrderType(Enum):
    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"
    TRAILING_STOP = "trailing_stop"
    TAKE_PROFIT = "take_profit"


class State(Enum):
    HELD = "held"
    PENDING_NEW = "pending_new"
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    PENDING_CANCEL = "pending_cancel"
    CANCELED = "canceled"
    PENDING_REPLACE = "pending_replace"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class Kind(Enum):
    """What happened to an order."""

    ACCEPTED = "accepted"
    RELEASED = "released"
    WORKING = "working"
    TRIGGERED = "triggered"
    FILLED = "filled"
    REDUCED = "reduced"
    CANCEL_REQUESTED = "cancel_requested"
    CANCEL_REJECTED = "cancel_rejected"
    CANCELED = "canceled"
    REPLACE_REQUESTED = "replace_requested"
    REPLACED = "replaced"
    REPLACE_REJECTED = "replace_rejected"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    RETURNED = "returned"


class GroupKind(Enum):
    OCO = "oco"
    OTO = "oto"
    BRACKET = "bracket"


class GroupRole(Enum):
    ENTRY = "entry"
    TRIGGERED = "triggered"
    LEG = "leg"


class Mode(Enum):
    PAPER = "paper"
    LIVE = "live"


class LiveState(Enum):
    """Whether a live account may trade."""

    UNCONFIRMED = "unconfirmed"
    CONNECTING = "connecting"
    ON = "on"
    STOPPED = "stopped"


class AccountKind(Enum):
    CASH = "cash"
    MARGIN = "margin"


class Switch(Enum):
    """How much a kill switch forbids; ordered, the worst of several holds."""

    OFF = 0
    REDUCE_ONLY = 1
    HALT = 2


class Scope(Enum):
    """Whom a kill switch is for."""

    GLOBAL = "global"
    USER = "user"
    ACCOUNT = "account"
    DEPLOYMENT = "deployment"


class Lock(Enum):
    """What an account was locked by: only what reduces is taken until it is lifted."""

    DAILY_LOSS = "daily_loss"
    DRAWDOWN = "drawdown"


OPEN = frozenset(
    {
        State.HELD,
        State.PENDING_NEW,
        State.NEW,
        State.PARTIALLY_FILLED,
        State.PENDING_CANCEL,
        State.PENDING_REPLACE,
        State.UNKNOWN,
    }
)

# The life of an order: what may happen to it when, and what it is then. What is not here is not possible. NEW stands for
# an order that goes on: its fills decide whether it is NEW or PARTIALLY_FILLED, and a change that is still under way makes
# it PENDING_REPLACE. A fill is applied in every state, because the venue's word on a trade is final; it makes an order
# FILLED in any state once nothing is left to trade, and so does a change to a quantity that has traded meanwhile.
MOVES: dict[tuple[State, Kind], State] = {
    # Until the entry of its group trades, or its price is reached, what waits is changed and canceled here, and expires here.
    # One whose stop was reached may still wait until the venue has canceled another.
    (State.HELD, Kind.RELEASED): State.PENDING_NEW,
    (State.HELD, Kind.TRIGGERED): State.HELD,
    (State.HELD, Kind.FILLED): State.NEW,
    (State.HELD, Kind.REDUCED): State.HELD,
    (State.HELD, Kind.CANCELED): State.CANCELED,
    (State.HELD, Kind.REPLACED): State.HELD,
    (State.HELD, Kind.EXPIRED): State.EXPIRED,
    # The venue has not answered yet. It may tell of anything that came after its answer first.
    (State.PENDING_NEW, Kind.RELEASED): State.PENDING_NEW,
    (State.PENDING_NEW, Kind.WORKING): State.NEW,
    (State.PENDING_NEW, Kind.TRIGGERED): State.NEW,
    (State.PENDING_NEW, Kind.FILLED): State.NEW,
    (State.PENDING_NEW, Kind.REDUCED): State.PENDING_NEW,
    (State.PENDING_NEW, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.PENDING_NEW, Kind.CANCELED): State.CANCELED,
    (State.PENDING_NEW, Kind.REJECTED): State.REJECTED,
    (State.PENDING_NEW, Kind.EXPIRED): State.EXPIRED,
    (State.PENDING_NEW, Kind.UNKNOWN): State.UNKNOWN,
    # Its venue certainly does not have what closes: it waits here again.
    (State.PENDING_NEW, Kind.RETURNED): State.HELD,
    (State.NEW, Kind.RELEASED): State.NEW,
    (State.NEW, Kind.TRIGGERED): State.NEW,
    (State.NEW, Kind.FILLED): State.NEW,
    (State.NEW, Kind.REDUCED): State.NEW,
    (State.NEW, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.NEW, Kind.CANCELED): State.CANCELED,
    (State.NEW, Kind.REPLACE_REQUESTED): State.PENDING_REPLACE,
    (State.NEW, Kind.REJECTED): State.REJECTED,
    (State.NEW, Kind.EXPIRED): State.EXPIRED,
    (State.NEW, Kind.UNKNOWN): State.UNKNOWN,
    (State.PARTIALLY_FILLED, Kind.RELEASED): State.NEW,
    (State.PARTIALLY_FILLED, Kind.TRIGGERED): State.NEW,
    (State.PARTIALLY_FILLED, Kind.FILLED): State.NEW,
    (State.PARTIALLY_FILLED, Kind.REDUCED): State.NEW,
    (State.PARTIALLY_FILLED, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.PARTIALLY_FILLED, Kind.CANCELED): State.CANCELED,
    (State.PARTIALLY_FILLED, Kind.REPLACE_REQUESTED): State.PENDING_REPLACE,
    (State.PARTIALLY_FILLED, Kind.EXPIRED): State.EXPIRED,
    (State.PARTIALLY_FILLED, Kind.UNKNOWN): State.UNKNOWN,
    # Whatever the venue tells before it has answered the cancel, the cancel stays under way.
    (State.PENDING_CANCEL, Kind.RELEASED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.WORKING): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.TRIGGERED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.FILLED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.REDUCED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.CANCEL_REJECTED): State.NEW,
    (State.PENDING_CANCEL, Kind.CANCELED): State.CANCELED,
    (State.PENDING_CANCEL, Kind.REPLACED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.REPLACE_REJECTED): State.PENDING_CANCEL,
    (State.PENDING_CANCEL, Kind.REJECTED): State.REJECTED,
    (State.PENDING_CANCEL, Kind.EXPIRED): State.EXPIRED,
    (State.PENDING_CANCEL, Kind.UNKNOWN): State.UNKNOWN,
    (State.PENDING_REPLACE, Kind.RELEASED): State.PENDING_REPLACE,
    (State.PENDING_REPLACE, Kind.TRIGGERED): State.PENDING_REPLACE,
    (State.PENDING_REPLACE, Kind.FILLED): State.PENDING_REPLACE,
    (State.PENDING_REPLACE, Kind.REDUCED): State.PENDING_REPLACE,
    (State.PENDING_REPLACE, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.PENDING_REPLACE, Kind.CANCELED): State.CANCELED,
    (State.PENDING_REPLACE, Kind.REPLACED): State.NEW,
    (State.PENDING_REPLACE, Kind.REPLACE_REJECTED): State.NEW,
    (State.PENDING_REPLACE, Kind.REJECTED): State.REJECTED,
    (State.PENDING_REPLACE, Kind.EXPIRED): State.EXPIRED,
    (State.PENDING_REPLACE, Kind.UNKNOWN): State.UNKNOWN,
    # Anything the venue says of it settles what was not known.
    (State.UNKNOWN, Kind.RELEASED): State.UNKNOWN,
    (State.UNKNOWN, Kind.WORKING): State.NEW,
    (State.UNKNOWN, Kind.TRIGGERED): State.NEW,
    (State.UNKNOWN, Kind.FILLED): State.NEW,
    (State.UNKNOWN, Kind.REDUCED): State.UNKNOWN,
    (State.UNKNOWN, Kind.CANCEL_REQUESTED): State.PENDING_CANCEL,
    (State.UNKNOWN, Kind.CANCEL_REJECTED): State.NEW,
    (State.UNKNOWN, Kind.CANCELED): State.CANCELED,
    (State.UNKNOWN, Kind.REPLACED): State.NEW,
    (State.UNKNOWN, Kind.REPLACE_REJECTED): State.NEW,
    (State.UNKNOWN, Kind.REJECTED): State.REJECTED,
    (State.UNKNOWN, Kind.EXPIRED): State.EXPIRED,
    # The venue filled before it saw the cancel, or tells of its trades last.
    (State.FILLED, Kind.FILLED): State.FILLED,
    (State.CANCELED, Kind.FILLED): State.CANCELED,
    (State.REJECTED, Kind.FILLED): State.REJECTED,
    (State.EXPIRED, Kind.FILLED): State.EXPIRED,
    # It was done when the cancel, or the change, came to the venue.
    (State.FILLED, Kind.CANCEL_REJECTED): State.FILLED,
    (State.CANCELED, Kind.CANCEL_REJECTED): State.CANCELED,
    (State.REJECTED, Kind.CANCEL_REJECTED): State.REJECTED,
    (State.EXPIRED, Kind.CANCEL_REJECTED): State.EXPIRED,
    (State.FILLED, Kind.REPLACE_REJECTED): State.FILLED,
    (State.CANCELED, Kind.REPLACE_REJECTED): State.CANCELED,
    (State.REJECTED, Kind.REPLACE_REJECTED): State.REJECTED,
    (State.EXPIRED, Kind.REPLACE_REJECTED): State.EXPIRED,
}


COMPLETING = frozenset({Kind.FILLED, Kind.REPLACED})
AT_PRICE = frozenset({Kind.TRIGGERED, Kind.EXPIRED})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


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
    time_zone: str = "UTC"
    """Of its exchange: there a trading day ends at midnight."""
    perpetual: Perpetual | None = None
    """The terms of a perpetual future; None of anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Prices are exact text of the feed's doubles; bid or ask is None where there is no book."""

    bid: Decimal | None
    ask: Decimal | None
    last: Decimal | None
    market_time: datetime
    age_seconds: float
    mark: Decimal | None = None
    """What a perpetual future is valued at; it has an age of its own."""
    mark_age_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """How far a trailing stop follows behind the best last price: an amount, or a percentage of that price."""

    amount: Decimal | None = None
    percent: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What somebody notes about an order, for nobody but themselves; each tag once, sorted."""

    note: str = ""
    tags: tuple[str, ...] = ()


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
    stop_price: Decimal | None = None
    trail: Trail | None = None
    expire_time: datetime | None = None
    post_only: bool = False
    reduce_only: bool = False
    annotation: Annotation | None = None
    deployment_id: UUID | None = None
    parent_order_id: UUID | None = None
    slice_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A change of an order that is under way, by its id at the venue; what is None stays as it is."""

    client_order_id: UUID
    quantity: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail: Trail | None = None
    protection_price: Decimal | None = None
    """Where the stop changes and there is no limit: what follows from the stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    quote_age_seconds_max: float
    market_protection: Decimal
    live_send_seconds: float = 30.0
    """An order of a live account is sent to its venue within so many, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """fees are in fee_asset, which is the instrument's quote asset: what is paid in another one counts at its price."""

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
    stop_price: Decimal | None = None
    trail: Trail | None = None
    expire_time: datetime | None = None
    post_only: bool = False
    reduce_only: bool = False
    trigger_time: datetime | None = None
    replacement: Replacement | None = None
    replaced_as: UUID | None = None
    """Its id at the venue since it was last changed there; until then that is order_id."""
    group_id: UUID | None = None
    group_role: GroupRole | None = None
    deployment_id: UUID | None = None
    released_quantity: Decimal | None = None
    """What an entry has released of its quantity so far; None where it waits for none.

    What the other leg has traded is taken off both, so that the difference is what waits.
    """
    parent_order_id: UUID | None = None
    slice_number: int | None = None
    """Of its parent's schedule: a parent has one child for each slice at most."""
    external_id: str | None = None
    """What its venue knew it by when it was adopted, maybe nothing; None for one that was placed here."""
    triggers_here: bool = False
    """Of a live account: whether its price is watched for here. Its venue knows nothing of it until then, and nothing of its stop."""
    liquidates: bool = False
    """Whether it closes a position because the account's margin was used up."""

    @property
    def client_order_id(self) -> UUID | str:
        return self.replaced_as or self.external_id or self.order_id

    @property
    def worst_price(self) -> Decimal | None:
        """None for a trailing stop that sells: its stop moves."""
        return self.limit_price or self.protection_price

    @property
    def at_venue(self) -> Decimal:
        """How much of it can trade at this moment."""
        return max(ZERO, self.remaining - self.waiting)

    @property
    def open_quantity(self) -> Decimal:
        """How much of it may still trade without its owner's doing: nothing once it is done."""
        return self.at_venue if self.state in OPEN else ZERO

    @property
    def waiting(self) -> Decimal:
        """How much of it an entry has yet to release."""
        if self.released_quantity is None:
            return ZERO
        return self.quantity - self.released_quantity

    @property
    def awaits_entry(self) -> bool:
        """Whether nothing of it may trade before the entry of its group has."""
        return self.state is State.HELD and self.released_quantity == ZERO

    @property
    def waits_here(self) -> bool:
        """Whether what comes next of it is ours to do, and not a venue's."""
        return self.state is State.HELD and self.triggers_here

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
    deployment_id: UUID | None = None


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
    realized_profit: Decimal | None = None
    """What the venue says that closing has made, of a perpetual future; None where it does not say."""


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
    funding: Decimal = ZERO
    """Of a perpetual future: the sum of what was received, or paid if negative."""


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
    deployment_id: UUID | None = None
    cause: str = ""
    """Of an adjustment: what explains it, and the reconciliation that found it."""
    reconciliation_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one order, as it is told."""

    account_sequence: int
    kind: Kind
    order: Order
    execution: Execution | None
    time: datetime
    send_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many orders an account has lately placed: each adds one, and a second takes off as many as are allowed in it."""

    level: Decimal = ZERO
    time: datetime = EPOCH

    def at(self, now: datetime, per_second: int) -> "Rate":
        """A clock that was set back takes nothing off, and holds nobody up for longer than the allowance does."""
        elapsed = max(timedelta(), now - self.time)
        drained = multiply(Decimal(per_second), Decimal(min(elapsed, DAY) // timedelta(microseconds=1)).scaleb(-6))
        return Rate(level=max(ZERO, self.level - drained), time=now)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskLimits:
    """What an account may be at most; None means there is no such limit.

    Quantities are in base assets, notionals in quote assets, each of one instrument; losses are in the account's valuation
    asset, percentages such as 10 for a tenth.
    """

    open_orders_max: int
    orders_per_second_max: int
    price_collar_percent: Decimal
    order_quantity_max: Decimal | None = None
    order_notional_max: Decimal | None = None
    position_quantity_max: Decimal | None = None
    position_notional_max: Decimal | None = None
    fat_finger_percent: Decimal | None = None
    daily_loss_max: Decimal | None = None
    drawdown_percent_max: Decimal | None = None
    day_start_hour: int = 0
    """In UTC: the daily loss counts from then on."""

    @property
    def go_by_worth(self) -> bool:
        """Whether the account's worth has to be known."""
        return any(
            each is not None for each in (self.fat_finger_percent, self.daily_loss_max, self.drawdown_percent_max)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What an account holds of one instrument, and what its open orders may still buy and sell."""

    position: Decimal = ZERO
    open_buys: Decimal = ZERO
    open_sells: Decimal = ZERO

    def opened(self, side: Side, quantity: Decimal) -> "Exposure":
        """With so much more that may trade on a side."""
        if side is Side.BUY:
            return replace(self, open_buys=self.open_buys + quantity)
        return replace(self, open_sells=self.open_sells + quantity)

    def worst(self, side: Side) -> Decimal:
        """The position after everything open on this side."""
        return self.position + self.open_buys if side is Side.BUY else self.position - self.open_sells


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
    valuation_asset: str = ""
    """What its worth and its losses are counted in."""
    limits_revision: int = 0
    rate_level: Decimal = ZERO
    rate_time: datetime = EPOCH
    day_start_time: datetime | None = None
    day_start_equity: Decimal | None = None
    peak_equity: Decimal | None = None
    """The most it was ever worth, since a lock was last lifted."""
    locks: frozenset[Lock] = frozenset()
    venue: str = ""
    """Where the money of a live account is; of a paper account there is nothing of this and of what follows."""
    live_state: LiveState | None = None
    stop_reason: str = ""
    credential_id: UUID | None = None
    """The key that was confirmed, as long as it counts."""
    credential_revision: int = 0
    live_sequence: int = 0
    """Counts what was told of its confirmations and stops."""
    adjustments: int = 0
    """How often its balances were brought to what its venue holds; the first time opens its books."""
    leverage: int = 1
    """Of a margin account: how many times what backs it the notional of a position may be, where its tier allows that."""

    @property
    def is_margin(self) -> bool:
        return self.kind is AccountKind.MARGIN

    @property
    def rate(self) -> Rate:
        return Rate(level=self.rate_level, time=self.rate_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTrading:
    """Whether real money is traded here at all."""

    enabled: bool = False
    reason: str = ""
    set_time: datetime | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A key for an account's venue, as users tells of it; the key itself is not known here."""

    credential_id: UUID
    user_id: UUID
    account_id: UUID
    venue: str
    revision: int
    usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSwitch:
    scope: Scope
    target_id: UUID | None
    """None for everybody's."""
    user_id: UUID | None
    mode: Switch
    reason: str
    by_operator: bool
    canceling: bool
    """Whether open orders it holds for are still to be asked to cancel."""
    revision: int
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskEvent:
    risk_event_id: UUID
    user_id: UUID
    account_id: UUID | None
    kind: str
    limit_name: str
    time: datetime
    value: str = ""
    bound: str = ""
    instrument_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """By how much more the children of a parent order are open, may trade and have traded, since they were read."""

    open_children: int = 0
    working_quantity: Decimal = ZERO
    filled_quantity: Decimal = ZERO
    filled_notional: Decimal = ZERO
    fees: Decimal = ZERO
    has_ended: bool = False
    """Whether a child that was open is done."""

    def after(self, was: Order | None, order: Order) -> "Progress":
        """With what a child has become."""
        opened = (order.state in OPEN) - (was is not None and was.state in OPEN)
        return Progress(
            open_children=self.open_children + opened,
            working_quantity=self.working_quantity + order.open_quantity - (was.open_quantity if was else ZERO),
            filled_quantity=self.filled_quantity + order.filled_quantity - (was.filled_quantity if was else ZERO),
            filled_notional=self.filled_notional + order.filled_notional - (was.filled_notional if was else ZERO),
            fees=self.fees + order.fees - (was.fees if was else ZERO),
            has_ended=self.has_ended or opened < 0,
        )


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
    changed_orders: set[UUID] = field(default_factory=set)
    changed_balances: set[str] = field(default_factory=set)
    annotations: dict[UUID, Annotation] = field(default_factory=dict)
    """Of orders that were placed since."""
    serialized: dict[UUID, tuple[Order, bytes]] = field(default_factory=dict)
    """Orders as they are told: each is serialized once, for its owner's answer, for streams and for other services."""
    deployments: dict[tuple[UUID, str], Position] = field(default_factory=dict)
    """What each deployment has made of an instrument, of those whose orders trade."""
    limits: RiskLimits | None = None
    exposures: dict[str, Exposure] = field(default_factory=dict)
    """Of the instruments that orders are being placed in."""
    switches: list[tuple[Scope, UUID | None, Switch]] = field(default_factory=list)
    """Those that are on, everybody's and its owner's, each with what it is for."""
    opened: dict[tuple[str, Side], Decimal] = field(default_factory=dict)
    """By instrument and side how much more may trade at venues since, or less."""
    progress: dict[UUID, Progress] = field(default_factory=dict)
    """By parent order what has become of its children since."""
    perpetuals: dict[str, Perpetual] = field(default_factory=dict)
    """Of a margin account the terms of what it holds and orders; all its positions and open orders are at hand then."""
    unbacked: set[str] = field(default_factory=set)
    """Instruments of a margin account whose orders may have to set aside another margin since: see margin.back."""
    changed_positions: set[str] = field(default_factory=set)
    risk_events: list[RiskEvent] = field(default_factory=list)

    def balance(self, asset: str) -> Balance:
        return self.balances.get(asset) or Balance(asset=asset)

    def add(self, asset: str, *, total: Decimal = ZERO, reserved: Decimal = ZERO) -> None:
        before = self.balance(asset)
        self.balances[asset] = replace(before, total=before.total + total, reserved=before.reserved + reserved)
        self.changed_balances.add(asset)

    def keep(self, order: Order) -> None:
        """Keeps the order as it now is; what is told of it to nobody needs no event."""
        was = self.orders.get(order.order_id)
        opened = order.open_quantity - (was.open_quantity if was is not None else ZERO)
        if opened:
            key = (order.instrument_id, order.side)
            self.opened[key] = self.opened.get(key, ZERO) + opened
            if exposure := self.exposures.get(order.instrument_id):
                self.exposures[order.instrument_id] = exposure.opened(order.side, opened)
        if order.parent_order_id is not None:
            before = self.progress.get(order.parent_order_id, Progress())
            self.progress[order.parent_order_id] = before.after(was, order)
        self.orders[order.order_id] = order
        self.changed_orders.add(order.order_id)

    def group(self, order: Order) -> list[Order]:
        """The other orders of its group, in the order they were asked for."""
        if order.group_id is None:
            return []
        others = (each for each in self.orders.values() if each.group_id == order.group_id)
        return sorted((each for each in others if each.order_id != order.order_id), key=lambda each: each.order_id)

    def note(
        self,
        kind: Kind,
        order: Order,
        now: datetime,
        execution: Execution | None = None,
        *,
        send_before: datetime | None = None,
    ) -> Order:
        """Counts the change, and keeps the order as it now is."""
        was = self.orders.get(order.order_id)
        sequence = self.account.account_sequence + 1
        opened = (order.state in OPEN) - (was is not None and was.state in OPEN)
        self.account = replace(self.account, account_sequence=sequence, open_orders=self.account.open_orders + opened)
        if order.revision != sequence:
            order = replace(order, revision=sequence, update_time=now)
        self.keep(order)
        self.events.append(
            Event(
                account_sequence=sequence,
                kind=kind,
                order=order,
                execution=execution,
                time=now,
                send_before=send_before,
            )
        )
        return order


def changed(order: Order, change: Replacement) -> Order:
    """The order as a change makes it."""
    return replace(
        order,
        quantity=change.quantity or order.quantity,
        limit_price=change.limit_price or order.limit_price,
        stop_price=change.stop_price or order.stop_price,
        trail=change.trail or order.trail,
        protection_price=change.protection_price or order.protection_price,
    )


def moved(order: Order, kind: Kind) -> State:
    """What an order is after something happened to it; order is as it is then, but for its state. Raises IllegalMove."""
    state = MOVES.get((order.state, kind))
    # What a venue does to its orders is done here to those alone that wait here for their price.
    if state is None or (order.state is State.HELD and kind in AT_PRICE and not order.triggers_here):
        raise IllegalMove(f"{kind.value} in state {order.state.value}")
    if kind in COMPLETING and order.filled_quantity >= order.quantity:
        return State.FILLED
    if state is not State.NEW:
        return state
    if order.replacement is not None:
        return State.PENDING_REPLACE
    return State.PARTIALLY_FILLED if order.filled_quantity else State.NEW
