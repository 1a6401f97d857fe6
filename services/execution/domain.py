"""What an order at a venue is and what may happen to it. No I/O here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from enum import Enum
from uuid import UUID

from libs.errors import NotAllowed, NotFound, Unavailable
from libs.matching.grid import Grid
from libs.matching.orders import Side
from libs.money import CONTEXT, ZERO, plain, rounded
from libs.native import OrderType, TimeInForce


class VenueNotFound(NotFound):
    reason = "VENUE_NOT_FOUND"


class CredentialNotFound(NotFound):
    reason = "CREDENTIAL_NOT_FOUND"


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"


class ReconciliationNotFound(NotFound):
    reason = "RECONCILIATION_NOT_FOUND"


class ExternalOrderNotFound(NotFound):
    reason = "EXTERNAL_ORDER_NOT_FOUND"


class ExternalOrderDone(NotAllowed):
    reason = "EXTERNAL_ORDER_DONE"


class InstrumentNotFound(NotFound):
    reason = "INSTRUMENT_NOT_FOUND"


class NotConnected(NotAllowed):
    reason = "NOT_CONNECTED"


class VenueUnavailable(Unavailable):
    reason = "VENUE_UNAVAILABLE"


def venue_unavailable(venue: str, retry_after_seconds: float = 1.0) -> VenueUnavailable:
    return VenueUnavailable(
        "the venue does not answer now", retry_after_seconds=retry_after_seconds, venue=venue, dependency="venue"
    )


class Mode(Enum):
    PAPER = "paper"
    LIVE = "live"


class AccountKind(Enum):
    """Which of a venue's wallets an account trades with."""

    CASH = "cash"
    MARGIN = "margin"
    """That of perpetual futures."""


AT_LIMIT = frozenset({OrderType.LIMIT, OrderType.STOP_LIMIT, OrderType.TAKE_PROFIT_LIMIT})
"""Those that trade, once they may, at a limit or better."""
WITHOUT_STOP = frozenset({OrderType.MARKET, OrderType.LIMIT})


AT_ONCE = frozenset({TimeInForce.IOC, TimeInForce.FOK})


class State(Enum):
    """Nothing is ever sent again from SENDING: whoever finds an order there asks the venue what became of it."""

    INTENDED = "intended"
    SENDING = "sending"
    UNKNOWN = "unknown"
    """The venue's answer was lost: its own record will settle it."""
    WORKING = "working"
    FILLED = "filled"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"


OPEN = frozenset({State.INTENDED, State.SENDING, State.UNKNOWN, State.WORKING})
GROUP = "group"
"""The cause with which a leg ends whose quantity the other has traded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """What is known of an instrument here. Fee rates are fractions of the notional."""

    instrument_id: str
    quote_asset: str
    tick_size: Decimal
    lot_size: Decimal
    maker_fee_rate: Decimal
    taker_fee_rate: Decimal
    has_book: bool

    @property
    def grid(self) -> Grid:
        return Grid(self.tick_size, self.lot_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    order_id: UUID
    user_id: UUID
    account_id: UUID
    venue: str
    instrument_id: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    """What the venue is to trade of it in all: of a leg that is released part by part what was released so far, and less
    what the others of its group have traded."""
    worst_price: Decimal | None
    """The limit of one that trades at a limit, else its protection; None accepts any price."""
    active_time_ns: int
    """Market time of its decision plus the venue's latency, in nanoseconds since 1970; 0 if it was decided on none. Once
    its stop was reached, or it has lost its place, when it may enter."""
    client_order_id: str
    """Its id at the venue: order_id, or since it was last replaced the id of that change."""
    venue_order_id: str = ""
    """The venue's own."""
    stop_price: Decimal | None = None
    """What the last price has to reach; of a trailing stop, where it stands now."""
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None
    trigger_time_ns: int | None = None
    """Market time at which its stop was reached."""
    expire_time_ns: int | None = None
    """In nanoseconds since 1970."""
    post_only: bool = False
    group_id: UUID | None = None
    """Of legs that share a quantity, and of those alone."""
    released_quantity: Decimal | None = None
    """Of an order that is released part by part: all of it so far, whatever has traded since."""
    held_back: Decimal = ZERO
    """What may be released later."""
    state: State = State.INTENDED
    filled_quantity: Decimal = ZERO
    fill_count: int = 0
    entered: bool = False
    """Whether the paper market has met it."""
    queue_ahead: Decimal | None = None
    """What the paper market serves before it of what rests at its price; None where that is not known."""
    reason: str = ""
    """Why it was rejected or canceled."""
    send_before: datetime | None = None
    """It is to be sent before this, or not at all."""
    accept_time: datetime | None = None
    """When it was accepted here."""
    reduce_only: bool = False
    deployment_id: UUID | None = None
    """The strategy's that placed it."""
    send_time: datetime | None = None
    """When it was last sent to a venue beyond the network, or the answer to that was lost."""
    filled_before: Decimal = ZERO
    """Of one that was adopted: what it had traded before, as the venue counts it."""

    @property
    def remaining(self) -> Decimal:
        return self.quantity - self.filled_quantity

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def trades_at_limit(self) -> bool:
        return self.order_type in AT_LIMIT

    @property
    def has_stop(self) -> bool:
        return self.order_type not in WITHOUT_STOP

    @property
    def rests(self) -> bool:
        """Whether it may wait for the market as long as it likes."""
        if self.time_in_force in AT_ONCE:
            return False
        return self.trades_at_limit or self.trigger_time_ns is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A change that is asked for; what is None stays as it is."""

    client_order_id: str
    """The order's id at the venue once it is changed."""
    quantity: Decimal | None = None
    """What has traded included."""
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    venue_order_id: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    venue_fill_id: str
    price: Decimal
    quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    time_ns: int
    realized_profit: Decimal | None = None
    """Of a perpetual future: what the venue says closing so much of the position has made, without the fee."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    stop_price: Decimal
    """Where the stop stood."""
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    cause: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    reason: str
    time_ns: int
    not_sent: bool = False
    """Whether it was rejected here before it was sent, for what may be over another time."""
    stop_reached: bool = False
    """Whether the venue refused it as its stop is reached already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRejected:
    """The order was done before the cancel came."""

    reason: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    replacement: Replacement
    venue_order_id: str
    time_ns: int
    keeps_id: bool = False
    """Whether the venue knows the order by its former id still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceRejected:
    """The order is as it was, or was done before the change came."""

    client_order_id: str
    reason: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Whether the venue has the order is not known."""

    reason: str
    time_ns: int


Event = (
    Accepted
    | Filled
    | Triggered
    | Canceled
    | Expired
    | Rejected
    | CancelRejected
    | Replaced
    | ReplaceRejected
    | Unknown
)
"""What a venue says of an order; time_ns is market time, in nanoseconds since 1970."""


class IllegalMove(Exception):
    """The table of moves does not know this: a defect, after which nothing is committed."""


# A fill decides by the quantity left between WORKING and FILLED. The paper venue takes an order from INTENDED to WORKING
# in one step; one beyond the network is asked from SENDING, and what it says of an UNKNOWN order settles that.
MOVES: dict[tuple[State, type[Event]], State] = {
    (State.INTENDED, Accepted): State.WORKING,
    (State.INTENDED, Rejected): State.REJECTED,
    # Taken back before it was sent.
    (State.INTENDED, Canceled): State.CANCELED,
    (State.SENDING, Accepted): State.WORKING,
    (State.SENDING, Rejected): State.REJECTED,
    (State.SENDING, Unknown): State.UNKNOWN,
    (State.UNKNOWN, Accepted): State.WORKING,
    (State.UNKNOWN, Filled): State.WORKING,
    (State.UNKNOWN, Canceled): State.CANCELED,
    (State.UNKNOWN, Expired): State.EXPIRED,
    (State.UNKNOWN, Rejected): State.REJECTED,
    (State.WORKING, Filled): State.WORKING,
    (State.WORKING, Triggered): State.WORKING,
    (State.WORKING, Canceled): State.CANCELED,
    (State.WORKING, Expired): State.EXPIRED,
    # A post-only order that would have taken.
    (State.WORKING, Rejected): State.REJECTED,
    (State.WORKING, Replaced): State.WORKING,
    (State.WORKING, ReplaceRejected): State.WORKING,
    **{(done, event): done for done in set(State) - OPEN for event in (CancelRejected, ReplaceRejected)},
    # A venue told of the end first: a fill is applied whenever it comes.
    **{(done, Filled): done for done in (State.CANCELED, State.EXPIRED, State.REJECTED)},
}


def apply(order: Order, event: Event) -> Order:
    """The order after the event. Raises IllegalMove."""
    state = MOVES.get((order.state, type(event)))
    if state is None:
        raise IllegalMove(f"order {order.order_id} is {order.state.value}: {event}")
    match event:
        case Accepted(venue_order_id=venue_order_id):
            return replace(order, state=state, venue_order_id=venue_order_id)
        case Filled(quantity=quantity):
            filled_quantity = order.filled_quantity + quantity
            if quantity <= ZERO or filled_quantity > order.quantity:
                raise IllegalMove(f"order {order.order_id} has {order.remaining} left: {event}")
            state = State.FILLED if filled_quantity == order.quantity else state
            return replace(order, state=state, filled_quantity=filled_quantity, fill_count=order.fill_count + 1)
        case Triggered(stop_price=stop_price, time_ns=time_ns):
            return replace(order, state=state, stop_price=stop_price, trigger_time_ns=time_ns)
        case Replaced(replacement=replacement, venue_order_id=venue_order_id):
            client_order_id = order.client_order_id if event.keeps_id else replacement.client_order_id
            order = replace(changed(order, replacement), state=state, client_order_id=client_order_id)
            return replace(order, venue_order_id=venue_order_id or order.venue_order_id)
        case Canceled(cause=reason) | Rejected(reason=reason):
            return replace(order, state=state, reason=reason)
        case _:
            return replace(order, state=state)


def changed(order: Order, replacement: Replacement) -> Order:
    """The order as a replacement wants it. Raises ValueError, saying why, where it cannot be.

    The protection of one that becomes a market order at its stop stays as far beyond the stop, in proportion.
    """
    if replacement.quantity is not None and replacement.quantity <= order.filled_quantity:
        raise ValueError(f"{plain(order.filled_quantity)} has traded already")
    if replacement.limit_price is not None and not order.trades_at_limit:
        raise ValueError("the order has no limit price")
    trails = replacement.trail_amount is not None or replacement.trail_percent is not None
    if replacement.stop_price is not None or trails:
        if not order.has_stop:
            raise ValueError("the order has no stop price")
        if order.trigger_time_ns is not None:
            raise ValueError("the order's stop was reached already")
        if trails and order.order_type is not OrderType.TRAILING_STOP:
            raise ValueError("the order does not trail")
    worst_price = order.worst_price if replacement.limit_price is None else replacement.limit_price
    if replacement.stop_price is not None and order.stop_price and worst_price and not order.trades_at_limit:
        # Never further than it was, so that it costs no more than was set aside.
        rounding = ROUND_DOWN if order.side is Side.BUY else ROUND_UP
        moved = CONTEXT.divide(CONTEXT.multiply(worst_price, replacement.stop_price), order.stop_price)
        worst_price = rounded(moved, rounding)
    return replace(
        order,
        client_order_id=replacement.client_order_id,
        quantity=order.quantity if replacement.quantity is None else replacement.quantity,
        worst_price=worst_price,
        stop_price=order.stop_price if replacement.stop_price is None else replacement.stop_price,
        trail_amount=replacement.trail_amount if trails else order.trail_amount,
        trail_percent=replacement.trail_percent if trails else order.trail_percent,
    )


def on_grid(order: Order, tick_size: Decimal) -> Order:
    """The order with a worst price that is a whole number of ticks: where it was moved with its stop it may be none."""
    if order.worst_price is None:
        return order
    rounding = ROUND_DOWN if order.side is Side.BUY else ROUND_UP
    ticks = CONTEXT.divide(order.worst_price, tick_size).to_integral_value(rounding)
    return replace(order, worst_price=CONTEXT.multiply(ticks, tick_size))


def less(order: Order, quantity: Decimal) -> Order:
    """The order after the others of its group have traded so much more."""
    if not quantity:
        return order
    return replace(order, quantity=max(order.filled_quantity, order.quantity - quantity))


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """More of an order may trade, or no more will be released."""

    held_back: Decimal | None
    """What is held back of it from then on; None if that was not said."""
    is_last: bool
    group_filled: Decimal
    """What the others of its group have traded."""


def released(order: Order, release: Release) -> Order:
    """The order after a release: one that had traded all that had been released works again."""
    if order.state not in (State.WORKING, State.FILLED):
        return order
    held_back = order.held_back if release.held_back is None else min(order.held_back, release.held_back)
    more = order.held_back - held_back
    if more:
        released_quantity = (order.released_quantity or ZERO) + more
        quantity = max(order.filled_quantity, released_quantity - release.group_filled)
        order = replace(order, held_back=held_back, released_quantity=released_quantity, quantity=quantity)
    elif order.state is State.FILLED:
        return order
    if release.is_last:
        order = replace(order, held_back=ZERO)
    return replace(order, state=State.WORKING) if order.remaining else order


PAPER = "PAPER"


def venue_for(mode: Mode, instrument_id: str) -> str:
    """Where an account's orders go: simulated money to the paper venue, real money to the instrument's own."""
    return PAPER if mode is Mode.PAPER else instrument_id.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueCard:
    """What a venue takes."""

    venue: str
    description: str
    order_types: tuple[OrderType, ...]
    times_in_force: tuple[TimeInForce, ...]


def find_venue(venues: Mapping[str, VenueCard], venue: str) -> VenueCard:
    card = venues.get(venue)
    if card is None:
        raise VenueNotFound(f"there is no venue {venue}", venue=venue)
    return card


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAccount:
    """An account at a venue beyond the network, as its owner last confirmed or stopped it."""

    account_id: UUID
    user_id: UUID
    venue: str
    credential_id: UUID | None
    """Nothing is asked of the venue without one."""
    credential_revision: int
    """Of the key that was confirmed."""
    trading: bool
    """Whether new orders may be sent."""
    kind: AccountKind = AccountKind.CASH
    confirm_count: int = 0
    """How often it was confirmed: each time its venue tells what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """In one perpetual future, as its venue has it; quantity is below zero when short."""

    quantity: Decimal
    average_price: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """An entry of the venue's record of what was received for holding a perpetual future, or paid if it is below zero."""

    venue_id: str
    """The same wherever it is told, and no other entry's of the account."""
    instrument_id: str
    amount: Decimal
    asset: str
    time_ns: int


class SwitchMode(Enum):
    OFF = "off"
    REDUCE_ONLY = "reduce_only"
    HALT = "halt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A kill switch, as it was last set; for everybody without a target."""

    scope: str
    target_id: UUID | None
    by_operator: bool
    mode: SwitchMode
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedKey:
    """Somebody's key at a venue, to be forgotten at expire_time; never shown in a trace or a log."""

    venue: str
    api_key: str
    api_secret: str
    passphrase: str
    expire_time: datetime
    revision: int
    """Of the credential: another one means another key."""

    def __repr__(self) -> str:
        return f"LeasedKey({self.venue}, …)"


class CredentialProblem(Enum):
    """Why a venue takes a key for nobody's."""

    KEY_INVALID = "key_invalid"
    SECRET_INVALID = "secret_invalid"  # noqa: S105 (a name)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRights:
    """What a venue lets a key do."""

    can_read: bool = False
    can_trade: bool = False
    can_withdraw: bool = False
    problem: CredentialProblem | None = None
