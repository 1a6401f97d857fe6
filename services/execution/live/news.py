"""What a venue says of an order of ours, made into the events of its life. No I/O here.

Venues tell things twice, late, and after what came of them. So each news is held against the order as it is stored: what is
known already is passed over, a step that was not told is made from what follows from it, and a fill is always applied.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Self

from libs import native
from libs.matching.orders import Side
from libs.money import ZERO, divide, multiply
from services.execution import domain
from services.execution.domain import (
    AT_ONCE,
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Expired,
    Filled,
    Instrument,
    Order,
    OrderType,
    Position,
    Rejected,
    Replaced,
    Replacement,
    ReplaceRejected,
    State,
)
from services.execution.venues.port import WAITS, Done, OrderState, Replacing, Ticket, Told, VenueFill, VenueOrder

NOT_YET = frozenset({State.INTENDED, State.SENDING, State.UNKNOWN})
"""In which nothing says yet that the venue has the order."""
PERCENT = Decimal("0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a venue says of one order, whether it told it, answered it or has it on record."""

    client_order_id: str
    venue_order_id: str
    state: OrderState | None
    """None where only a fill is on record."""
    time_ns: int
    fills: tuple[VenueFill, ...] = ()
    filled_quantity: Decimal | None = None
    """All that has traded; None where it is not said."""
    reason: str = ""

    @classmethod
    def told(cls, told: Told) -> Self:
        return cls(
            client_order_id=told.client_order_id,
            venue_order_id=told.venue_order_id,
            state=told.state,
            time_ns=told.time_ns,
            fills=(told.fill,) if told.fill else (),
            reason=told.reason,
        )

    @classmethod
    def on_record(cls, order: VenueOrder, fills: tuple[VenueFill, ...] = ()) -> Self:
        return cls(
            client_order_id=order.client_order_id,
            venue_order_id=order.venue_order_id,
            state=order.state,
            time_ns=order.time_ns,
            fills=fills,
            filled_quantity=order.filled_quantity,
            reason=order.reason,
        )

    @classmethod
    def placed(cls, client_order_id: str, done: Done, now_ns: int) -> Self:
        """What an answer says that took an order."""
        if done.order is not None:
            return cls.on_record(done.order, done.fills)
        return cls(
            client_order_id=client_order_id,
            venue_order_id=done.venue_order_id,
            state=OrderState.WORKING,
            time_ns=now_ns,
            fills=done.fills,
        )

    @classmethod
    def of_fills(cls, fills: Sequence[VenueFill]) -> Self:
        """Of one order, as its fills are on record."""
        return cls(
            client_order_id=fills[0].client_order_id,
            venue_order_id=fills[0].venue_order_id,
            state=None,
            time_ns=fills[-1].time_ns,
            fills=tuple(fills),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A replacement that is asked for; send_time is when it was last sent, or the answer to that was lost."""

    replacement: Replacement
    send_time: datetime | None

    @property
    def client_order_id(self) -> str:
        return self.replacement.client_order_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An order as it is stored, and what is asked of it."""

    order: Order
    cancel_asked: bool = False
    changes: tuple[Change, ...] = ()
    known_fills: Collection[str] = ()
    """The ids of fills that are applied, or were before it was ours."""
    now_ns: int = 0

    @property
    def sent_change(self) -> Change | None:
        return next((change for change in self.changes if change.send_time is not None), None)


@dataclass(slots=True)
class Walk:
    """An order on its way through events."""

    order: Order
    events: list[Event] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    """After each event."""
    fills: list[VenueFill] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """The changes that are."""
    cancel_answered: bool = False
    is_short: bool = False
    """Whether the venue has more fills of it than are here, and its record is to be asked again."""

    def apply(self, event: Event) -> None:
        self.order = domain.apply(self.order, event)
        self.events.append(event)
        self.orders.append(self.order)

    def replaced(self, replacement: Replacement, venue_order_id: str, time_ns: int, *, keeps_id: bool) -> None:
        """Whatever was asked for has come true, also where it has traded by then what it is to trade in all."""
        event = Replaced(replacement=replacement, venue_order_id=venue_order_id, time_ns=time_ns, keeps_id=keeps_id)
        done = replacement.quantity is not None and replacement.quantity <= self.order.filled_quantity
        if not done:
            self.apply(event)
        else:
            self.apply(replace(event, replacement=replace(replacement, quantity=None)))
            self.order = replace(self.order, quantity=self.order.filled_quantity, state=State.FILLED)
            self.events[-1], self.orders[-1] = event, self.order
        self.answered.append(replacement.client_order_id)

    def fill(self, fill: VenueFill) -> None:
        filled_quantity = self.order.filled_quantity + fill.quantity
        if filled_quantity > self.order.quantity:
            # The venue is right: it has traded more than was asked for, or than is known here to have been.
            self.order = replace(self.order, quantity=filled_quantity)
        self.apply(
            Filled(
                venue_fill_id=fill.venue_fill_id,
                price=fill.price,
                quantity=fill.quantity,
                fee=fill.fee,
                fee_asset=fill.fee_asset,
                maker=fill.maker,
                time_ns=fill.time_ns,
                realized_profit=fill.realized_profit,
            )
        )
        self.fills.append(fill)


def follow(standing: Standing, news: News, replacing: Replacing) -> Walk:
    """What the news makes of the order. Nothing, if all of it was known."""
    walk = Walk(standing.order)
    new = [fill for fill in news.fills if fill.venue_fill_id not in standing.known_fills and fill.quantity > ZERO]
    change = standing.sent_change
    by_new_id = change is not None and news.client_order_id == change.client_order_id
    if change and by_new_id and replacing is Replacing.NEW_ORDER and news.state is not OrderState.REJECTED:
        _accept(walk, news)
        walk.replaced(change.replacement, news.venue_order_id, news.time_ns, keeps_id=False)
        change = None
    if walk.order.state in NOT_YET and news.state is OrderState.REJECTED and not new and not news.filled_quantity:
        walk.apply(Rejected(reason=news.reason or "the venue rejected it", time_ns=news.time_ns))
        return _with_answers(walk, standing)
    _accept(walk, news)
    for fill in new:
        if change and replacing is Replacing.AMENDS and _tells_of(change, walk.order, fill, news):
            walk.replaced(change.replacement, walk.order.venue_order_id, fill.time_ns, keeps_id=True)
            change = None
        walk.fill(fill)
    if _is_current(walk.order, news):
        if news.venue_order_id and _is_provisional(walk.order.venue_order_id):
            walk.order = replace(walk.order, venue_order_id=news.venue_order_id)
        # Of one that is being replaced by another its end may be part of that.
        if not (change and replacing is Replacing.NEW_ORDER and news.state is not OrderState.FILLED):
            _end(walk, news, standing)
    return _with_answers(walk, standing)


def _accept(walk: Walk, news: News) -> None:
    """Whatever else is told of it, the venue has the order."""
    if walk.order.state in NOT_YET:
        walk.apply(Accepted(venue_order_id=news.venue_order_id, time_ns=news.time_ns))


def _is_current(order: Order, news: News) -> bool:
    """Whether the news is of the order as the venue has it now, not of what it was before it was replaced."""
    if news.client_order_id:
        return news.client_order_id == order.client_order_id
    return not order.venue_order_id or news.venue_order_id == order.venue_order_id


def _is_provisional(venue_order_id: str) -> bool:
    """Whether the venue may have another id of the order by now."""
    return not venue_order_id or venue_order_id.endswith(WAITS)


def _tells_of(change: Change, order: Order, fill: VenueFill, news: News) -> bool:
    """Whether such a fill can only be of the order as it was to be amended."""
    quantity = change.replacement.quantity
    if quantity is None or quantity <= order.quantity:
        return False
    filled_quantity = order.filled_quantity + fill.quantity
    goes_on = news.state is OrderState.WORKING and filled_quantity == order.quantity
    return filled_quantity > order.quantity or goes_on


def _end(walk: Walk, news: News, standing: Standing) -> None:
    order = walk.order
    here = order.filled_quantity + order.filled_before
    if news.filled_quantity is not None and news.filled_quantity > here:
        walk.is_short = True
        return
    if not order.is_open or news.state in {None, OrderState.WORKING}:
        return
    match news.state:
        case OrderState.FILLED:
            # All of it, says the venue, and has not told what for.
            walk.is_short = True
        case OrderState.REJECTED if not order.filled_quantity:
            walk.apply(Rejected(reason=news.reason or "the venue rejected it", time_ns=news.time_ns))
        case OrderState.EXPIRED if order.expire_time_ns is not None and order.time_in_force not in AT_ONCE:
            walk.apply(Expired(time_ns=news.time_ns))
        case _:
            walk.apply(Canceled(cause=_cause(order, news, standing), time_ns=news.time_ns))


def _cause(order: Order, news: News, standing: Standing) -> str:
    if standing.cancel_asked:
        return "user"
    if order.order_type is OrderType.MARKET and order.worst_price is not None:
        return "protection_price"
    if order.time_in_force in AT_ONCE:
        return order.time_in_force.value
    return news.reason or "venue"


def _with_answers(walk: Walk, standing: Standing) -> Walk:
    """What is asked of an order that is done is answered with that; of one that never came to the venue, with nothing."""
    order = walk.order
    if order.is_open:
        return walk
    is_rejected = order.state is State.REJECTED
    time_ns = walk.events[-1].time_ns if walk.events else standing.now_ns
    for change in standing.changes:
        if change.client_order_id not in walk.answered:
            walk.answered.append(change.client_order_id)
            if not is_rejected:
                reason = f"the order is {order.state.value}"
                walk.apply(ReplaceRejected(client_order_id=change.client_order_id, reason=reason, time_ns=time_ns))
    if standing.cancel_asked:
        walk.cancel_answered = True
        if order.state is not State.CANCELED and not is_rejected:
            walk.apply(CancelRejected(reason=f"the order is {order.state.value}", time_ns=time_ns))
    return walk


def rejected(
    standing: Standing, reason: str, time_ns: int, *, not_sent: bool = False, stop_reached: bool = False
) -> Walk:
    """After the venue, or this side, has refused an order that is certainly not there."""
    walk = Walk(standing.order)
    if walk.order.state in NOT_YET:
        walk.apply(Rejected(reason=reason, time_ns=time_ns, not_sent=not_sent, stop_reached=stop_reached))
    return _with_answers(walk, standing)


def canceled_unsent(standing: Standing, time_ns: int) -> Walk:
    walk = Walk(standing.order)
    if walk.order.state is State.INTENDED:
        walk.apply(Canceled(cause="user", time_ns=time_ns))
    return _with_answers(walk, standing)


def change_rejected(standing: Standing, client_order_id: str, reason: str, time_ns: int) -> Walk:
    """The order is as it was."""
    walk = Walk(standing.order)
    if any(change.client_order_id == client_order_id for change in standing.changes):
        walk.answered.append(client_order_id)
        walk.apply(ReplaceRejected(client_order_id=client_order_id, reason=reason, time_ns=time_ns))
    return _with_answers(walk, standing)


def amended(standing: Standing, client_order_id: str, time_ns: int) -> Walk:
    """The venue has changed the order in place."""
    walk = Walk(standing.order)
    change = next((change for change in standing.changes if change.client_order_id == client_order_id), None)
    if change and walk.order.state is State.WORKING:
        walk.replaced(change.replacement, walk.order.venue_order_id, time_ns, keeps_id=True)
    return _with_answers(walk, standing)


def is_as_asked(replacement: Replacement, record: VenueOrder) -> bool:
    """Whether the venue's record has what a change in place asked for."""
    asked = (
        (replacement.quantity, record.quantity),
        (replacement.limit_price, record.limit_price),
        (replacement.stop_price, record.stop_price),
    )
    return all(wanted is None or wanted == found for wanted, found in asked)


# What is sent.


def ticket_of(order: Order, client_order_id: str = "") -> Ticket:
    """The order as the venue is to have it: where it has a protection price, as a limit order at that."""
    limit_price = order.worst_price
    order_type, time_in_force = native.at_venue(
        order.order_type,
        order.time_in_force,
        is_bounded=limit_price is not None,
        expires=order.expire_time_ns is not None,
    )
    trails = order.order_type is OrderType.TRAILING_STOP
    return Ticket(
        client_order_id=client_order_id or order.client_order_id,
        instrument_id=order.instrument_id,
        side=order.side,
        order_type=order_type,
        time_in_force=time_in_force,
        quantity=order.quantity,
        limit_price=None if trails else limit_price,
        stop_price=None if trails else order.stop_price,
        trail_amount=order.trail_amount,
        trail_fraction=None if order.trail_percent is None else multiply(order.trail_percent, PERCENT),
        expire_time_ns=order.expire_time_ns if time_in_force is domain.TimeInForce.GTD else None,
        post_only=order.post_only,
        reduce_only=order.reduce_only,
    )


def working_order(order: Order) -> VenueOrder:
    """As the venue has it on record, by all that is known."""
    return VenueOrder(
        client_order_id=order.client_order_id,
        venue_order_id=order.venue_order_id,
        instrument_id=order.instrument_id,
        side=order.side,
        state=OrderState.WORKING,
        quantity=order.quantity,
        filled_quantity=order.filled_quantity,
        limit_price=order.worst_price,
        stop_price=order.stop_price,
        time_ns=0,
    )


# What a fill moves.


def assets_of(instrument: Instrument) -> tuple[str, str]:
    """The base and the quote asset."""
    symbol = instrument.instrument_id.partition(":")[2]
    return symbol.removesuffix(instrument.quote_asset), instrument.quote_asset


def amounts_of(fill: VenueFill, instrument: Instrument) -> dict[str, Decimal]:
    """By how much the fill changes what there is of each asset; one of a perpetual future by what closing has made alone."""
    base, quote = assets_of(instrument)
    if fill.realized_profit is not None:
        amounts = {quote: fill.realized_profit}
    else:
        sign = 1 if fill.side is Side.BUY else -1
        amounts = {base: sign * fill.quantity, quote: -sign * multiply(fill.price, fill.quantity)}
    if fill.fee:
        asset = fill.fee_asset or quote
        amounts[asset] = amounts.get(asset, ZERO) - fill.fee
    return {asset: amount for asset, amount in amounts.items() if amount}


def position_after(position: Position, fill: VenueFill) -> Position:
    """What a fill of a perpetual future leaves of the position: its average price is of what was opened last, if it is turned."""
    signed = fill.quantity if fill.side is Side.BUY else -fill.quantity
    quantity = position.quantity + signed
    if not quantity:
        return Position(quantity=ZERO, average_price=ZERO)
    if position.quantity * quantity < 0 or not position.quantity:
        return Position(quantity=quantity, average_price=fill.price)
    if abs(quantity) < abs(position.quantity):
        return Position(quantity=quantity, average_price=position.average_price)
    cost = multiply(position.quantity, position.average_price) + multiply(signed, fill.price)
    return Position(quantity=quantity, average_price=divide(cost, quantity))
