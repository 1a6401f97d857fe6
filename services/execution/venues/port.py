"""What a venue beyond the network is to this service, whichever it is: every request may be lost, and so may every answer.

A command ends in one of four ways, and the difference between two of them is what keeps an order from being sent twice or
forgotten: Refused is said only where the venue itself said, in a code that means it, that it did not take the command;
whatever else goes wrong after the first byte may have left is Unknown. NotNow means that nothing was taken either, and
that it may be asked again. The port itself never sends a command a second time.

An order whose outcome is unknown is settled by the venue's own record. That it is not on record says so only once
Card.validity_seconds have passed since the port was last at work on it: until then the request may still arrive.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Protocol

from libs.matching.orders import Side
from libs.native import PERPETUAL, Native, OrderType, TimeInForce
from services.execution.domain import Funding, Position, VenueCard

TAKES_LIMIT = OrderType.TAKE_PROFIT_LIMIT
"""To people one that is a take-profit with a limit price."""
INSTRUMENTS_MAX = 50
"""Whose fills are asked for at once: what was read is not lost where the next is not answered."""
WAITS = "~"
"""Ends a venue's id of an order that waits for its trigger, where the venue gives another id to what it becomes."""


class OrderState(Enum):
    """What a venue says of an order. The last four are ends."""

    WORKING = "working"
    """Also where it waits for its trigger, and where it has traded in part."""
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Replacing(Enum):
    """How a venue changes a working order."""

    NOT_NATIVE = "not_native"
    AMENDS = "amends"
    """In place: the order keeps its ids and its fills, and the new quantity is that of all of it."""
    NEW_ORDER = "new_order"
    """Another order takes its place, under an id of its own, if the first has not traded by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """An order to be sent. Prices are in the quote asset, quantities in units of the base asset."""

    client_order_id: str
    """A UUID as text: the venue knows the order by it, and it names no other order, ever."""
    instrument_id: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_fraction: Decimal | None = None
    """Of the best last price; one of both for a trailing stop."""
    expire_time_ns: int | None = None
    """With GTD, since 1970."""
    post_only: bool = False
    reduce_only: bool = False
    """Of a perpetual future: it may make a position smaller and nothing else. Where nothing can be owed it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueFill:
    """A fill as the venue has it on record."""

    venue_fill_id: str
    """The same wherever it is told, and no other fill's of the account."""
    venue_order_id: str
    client_order_id: str
    """Empty where the venue does not say it with the fill."""
    instrument_id: str
    side: Side
    price: Decimal
    quantity: Decimal
    fee: Decimal
    """Below zero for a rebate."""
    fee_asset: str
    """Empty where nothing was charged and no asset is said."""
    maker: bool
    time_ns: int
    realized_profit: Decimal | None = None
    """Of a perpetual future: what closing so much of the position has made, without the fee, in the quote asset."""
    forced: str = ""
    """Why the venue itself placed its order, as where it liquidates; empty where somebody did, or that is not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueOrder:
    """An order as the venue has it on record."""

    client_order_id: str
    """Ours is the UUID's text; of an order made by hand it is whatever the venue made up, or empty."""
    venue_order_id: str
    instrument_id: str
    side: Side
    state: OrderState
    quantity: Decimal
    filled_quantity: Decimal
    limit_price: Decimal | None
    stop_price: Decimal | None
    time_ns: int
    """When it last changed, as far as the venue says."""
    reason: str = ""
    """Why it ended, in the venue's words."""
    forced: str = ""
    """As of a fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Of one asset. locked is what open orders hold, and of a margin account what its positions do.

    Together they are what there is: of a margin account its wallet, without what open positions would make.
    """

    free: Decimal
    locked: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class FundingPage:
    """Entries after a cursor, the oldest first; some that were before it may be among them, where the record is late."""

    entries: tuple[Funding, ...]
    cursor: str
    is_last: bool
    """Whether the record ended there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The venue took the command. order is its record, where it answers with one; fills are those it told with it.

    Else venue_order_id is its id of what was placed, where the answer says that.
    """

    order: VenueOrder | None = None
    venue_order_id: str = ""
    fills: tuple[VenueFill, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The venue did not take the command: what it asked for is certainly not there. Code and words are the venue's own."""

    code: str
    words: str
    ended: VenueOrder | None = None
    """Of a replacement: the order that the venue took back before it refused the one in its place."""
    stop_reached: bool = False
    """Whether it was refused because its stop is reached already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """The venue may have taken the command, or may yet take it."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """The command was not taken, and may be asked again after so long."""

    retry_after_seconds: float
    why: str


Outcome = Done | Refused | Unknown | NotNow

NOT_NATIVE = "NOT_NATIVE"
"""The code of a refusal that is this side's own: the venue has no such thing, and was not asked."""


class VenueRefused(Exception):
    """The venue does not answer such a question to this key. Code and words are the venue's own."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(f"{code} {words}")
        self.code, self.words = code, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """From here on all is told. What happened before is to be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """From here until Connected nothing is told."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Something happened to an order. Venues may tell a thing twice, late, or after what came of it."""

    client_order_id: str
    """Empty where the venue does not say it every time; venue_order_id names the order always."""
    venue_order_id: str
    state: OrderState
    time_ns: int
    fill: VenueFill | None = None
    reason: str = ""


StreamEvent = Connected | Lost | Told


@dataclass(frozen=True, slots=True, kw_only=True)
class FillPage:
    """Fills after a cursor, the oldest of each instrument first; some that were before it may be among them."""

    fills: tuple[VenueFill, ...]
    cursor: str
    is_last: bool
    """Whether the record ended there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card(Native):
    """What a venue takes natively, and how sure that is."""

    is_proved: bool
    """Whether every promise of the port was shown to hold for it; else it is experimental."""
    replacing: Replacing
    has_stream: bool
    """Else what happens is found by asking."""
    validity_seconds: float
    """So long after it was sent a request may still be taken; infinite where the venue has no such bound."""
    perpetuals: bool = False
    """Whether it is perpetual futures that are traded there, and not what they are futures of."""
    exchange: str = ""
    """Ccxt's name of where they are, in capitals, if it is not the venue's: a place with servers and limits of its own."""

    @property
    def exchange_name(self) -> str:
        return self.exchange or self.venue

    @property
    def segment(self) -> str:
        """By which those who bring its market data name it too: they share what may be asked of it."""
        return f"{self.venue}{PERPETUAL}" if self.perpetuals else self.venue

    @property
    def of_venue(self) -> VenueCard:
        """The same for people."""
        types, times = ({one[number] for one in self.takes} for number in (0, 1))
        return VenueCard(
            venue=self.venue,
            description=f"Real money; {'proved' if self.is_proved else 'experimental'}",
            order_types=tuple(each for each in OrderType if each in types and each is not TAKES_LIMIT),
            times_in_force=tuple(each for each in TimeInForce if each in times),
        )

    def refusal(self, ticket: Ticket) -> Refused | None:
        """Why the venue cannot take such an order natively; None if it can."""
        if ticket.instrument_id.endswith(PERPETUAL) != self.perpetuals:
            words = f"{'such instrument' if self.perpetuals else 'perpetual future'} for an account of this kind"
        else:
            words = self.lacks(
                ticket.order_type,
                ticket.time_in_force,
                post_only=ticket.post_only,
                trail_amount=ticket.trail_amount,
                trail_fraction=ticket.trail_fraction,
            )
        return Refused(code=NOT_NATIVE, words=f"{self.venue} has no {words}") if words else None

    def change_refusal(self, working: VenueOrder, ticket: Ticket) -> Refused | None:
        """Why the venue cannot make the order that rests there what the ticket says; None if it can."""
        words = self.changes_no(ticket.order_type, has_traded=bool(working.filled_quantity))
        if words:
            return Refused(code=NOT_NATIVE, words=f"{self.venue} changes no {words}")
        return self.refusal(ticket)


class VenuePort(Protocol):
    """One account at a venue. A question that is not answered raises VenueUnavailable, one that is refused VenueRefused.

    An order is sent once, after its move from INTENDED to SENDING is committed under the lease of its account; whoever finds
    it in SENDING later does not send it again, but asks order_by_client_id() and fills_since().
    """

    card: Card

    async def submit(self, ticket: Ticket) -> Outcome:
        """Sends an order."""
        ...

    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome:
        """Takes an order back: by the venue's id where that is given, as of an order that was made by hand.

        Refused also means that it is done already, or not there yet.
        """
        ...

    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome:
        """Changes a working order into what the ticket says, as Card.replacing says.

        The ticket's client order id is the order's own where it amends, and another one where a new order takes its place.
        """
        ...

    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]:
        """All that may still trade, whoever placed them: of that instrument at least, of all where none is said.

        Of all a venue may count as more than ten times as much asked.
        """
        ...

    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None:
        """The newest order of that id on record; None if there is none."""
        ...

    async def fills_since(self, cursor: str, instrument_ids: Sequence[str]) -> FillPage:
        """One page of the fills after a cursor, of these instruments at least; an empty cursor begins with the oldest kept.

        At most INSTRUMENTS_MAX of them; the cursor keeps what was reached of others.
        """
        ...

    async def balances(self) -> dict[str, Balance]:
        """By asset, as this service names assets; what there is nothing of may be left out."""
        ...

    async def positions(self) -> dict[str, Position]:
        """By instrument, those that are not flat; none where Card.perpetuals does not say that there may be any."""
        ...

    async def funding_since(self, cursor: str, begin_time_ns: int) -> FundingPage:
        """One page of the record of funding after a cursor; an empty cursor begins at that time."""
        ...

    async def unfit(self) -> str:
        """Why an account that is set up so is not carried, and what its owner is to set; empty if it is."""
        ...

    def stream(self) -> AsyncIterator[StreamEvent]:
        """What happens to the account's orders, in the venue's own order, over one connection after the other."""
        ...
