"""What an order at a venue is and what may happen to it. No I/O here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

from libs.errors import NotFound, Unavailable
from libs.matching.grid import Grid
from libs.matching.orders import Side, TimeInForce
from libs.money import ZERO


class VenueNotFound(NotFound):
    reason = "VENUE_NOT_FOUND"


class CredentialNotFound(NotFound):
    reason = "CREDENTIAL_NOT_FOUND"


class VenueUnavailable(Unavailable):
    reason = "VENUE_UNAVAILABLE"


def venue_unavailable(venue: str, retry_after_seconds: float = 1.0) -> VenueUnavailable:
    return VenueUnavailable(
        "the venue does not answer now", retry_after_seconds=retry_after_seconds, venue=venue, dependency="venue"
    )


class Mode(Enum):
    PAPER = "paper"
    LIVE = "live"


class OrderType(Enum):
    MARKET = "market"
    LIMIT = "limit"


class State(Enum):
    """Nothing is ever sent again from SENDING: whoever finds an order there asks the venue what became of it."""

    INTENDED = "intended"
    SENDING = "sending"
    WORKING = "working"
    FILLED = "filled"
    CANCELED = "canceled"
    REJECTED = "rejected"


OPEN = frozenset({State.INTENDED, State.SENDING, State.WORKING})


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
    """order_id is the client order id at the venue."""

    order_id: UUID
    user_id: UUID
    account_id: UUID
    venue: str
    instrument_id: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    worst_price: Decimal | None
    """A limit order's limit, a market order's protection; None accepts any price."""
    active_time_ns: int
    """Market time of its decision plus the venue's latency, in nanoseconds since 1970; 0 if it was decided on none."""
    state: State = State.INTENDED
    filled_quantity: Decimal = ZERO
    fill_count: int = 0
    entered: bool = False
    """Whether the paper market has met it."""
    reason: str = ""
    """Why it was rejected or canceled."""

    @property
    def remaining(self) -> Decimal:
        return self.quantity - self.filled_quantity

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def rests(self) -> bool:
        """Whether it may wait for the market as long as it likes."""
        return self.time_in_force is TimeInForce.GTC


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    cause: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    reason: str
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRejected:
    """The order was done before the cancel came."""

    reason: str
    time_ns: int


Event = Accepted | Filled | Canceled | Rejected | CancelRejected
"""What a venue says of an order; time_ns is market time, in nanoseconds since 1970."""


class IllegalMove(Exception):
    """The table of moves does not know this: a defect, after which nothing is committed."""


# A fill decides by the quantity left between WORKING and FILLED.
MOVES: dict[tuple[State, type[Event]], State] = {
    (State.INTENDED, Accepted): State.WORKING,
    (State.INTENDED, Rejected): State.REJECTED,
    (State.SENDING, Accepted): State.WORKING,
    (State.SENDING, Rejected): State.REJECTED,
    (State.WORKING, Filled): State.WORKING,
    (State.WORKING, Canceled): State.CANCELED,
    (State.FILLED, CancelRejected): State.FILLED,
    (State.CANCELED, CancelRejected): State.CANCELED,
    (State.REJECTED, CancelRejected): State.REJECTED,
}


def apply(order: Order, event: Event) -> Order:
    """The order after the event. Raises IllegalMove."""
    state = MOVES.get((order.state, type(event)))
    if state is None:
        raise IllegalMove(f"order {order.order_id} is {order.state.value}: {event}")
    match event:
        case Filled(quantity=quantity):
            filled_quantity = order.filled_quantity + quantity
            if quantity <= ZERO or filled_quantity > order.quantity:
                raise IllegalMove(f"order {order.order_id} has {order.remaining} left: {event}")
            state = State.FILLED if filled_quantity == order.quantity else state
            return replace(order, state=state, filled_quantity=filled_quantity, fill_count=order.fill_count + 1)
        case Canceled(cause=reason) | Rejected(reason=reason):
            return replace(order, state=state, reason=reason)
        case _:
            return replace(order, state=state)


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
