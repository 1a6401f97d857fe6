"""What parent orders are, and what one does next: schedules of child orders. No I/O here.

A parent is stepped under its account's lock, by what is kept of it, its newest child and the time. Each of its slices has one
child at most, by a number that follows from the schedule, so that a step that is done again does nothing again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from libs.errors import Refusal
from libs.money import CONTEXT, ZERO, divide, down_to, multiply, plain
from services.orders import margin, placing
from services.orders.domain import (
    Account,
    IllegalMove,
    Instrument,
    Limits,
    Order,
    OrderType,
    Quote,
    Side,
    State,
    Ticket,
    TimeInForce,
)
from services.orders.refusals import (
    InstrumentNotFound,
    NoFreshPrice,
    NotionalTooSmall,
    ParentOrderInvalid,
    UserDeleted,
)

SLICES_MAX = 10_000
SCHEDULE_MAX = timedelta(days=3_660)
"""From now until a schedule ends."""
CATCH_UP_TIMES = 2
"""A TWAP's slice is for at most so many times its own share, with what earlier slices have left."""
RETRY_MIN, RETRY_MAX = timedelta(seconds=1), timedelta(minutes=5)
"""Between two tries of one slice: as long as it has been tried already, within these."""
CANCEL_AGAIN = timedelta(seconds=5)
"""A venue may refuse a cancel, and the child goes on: then it is asked for again."""


class ParentKind(Enum):
    TWAP = "twap"
    ICEBERG = "iceberg"
    DCA = "dca"


class ParentState(Enum):
    ACTIVE = "active"
    CANCELING = "canceling"
    CANCELED = "canceled"
    COMPLETED = "completed"
    EXPIRED = "expired"
    FAILED = "failed"


class ParentMove(Enum):
    """What may happen to a parent."""

    CANCEL_REQUESTED = "cancel_requested"
    CANCELED = "canceled"
    COMPLETED = "completed"
    EXPIRED = "expired"
    FAILED = "failed"


LIVE = frozenset({ParentState.ACTIVE, ParentState.CANCELING})
MOVES: dict[tuple[ParentState, ParentMove], ParentState] = {
    (ParentState.ACTIVE, ParentMove.CANCEL_REQUESTED): ParentState.CANCELING,
    (ParentState.ACTIVE, ParentMove.CANCELED): ParentState.CANCELED,
    (ParentState.ACTIVE, ParentMove.COMPLETED): ParentState.COMPLETED,
    (ParentState.ACTIVE, ParentMove.EXPIRED): ParentState.EXPIRED,
    (ParentState.ACTIVE, ParentMove.FAILED): ParentState.FAILED,
    # Its last child traded before the venue saw the cancel, or after.
    (ParentState.CANCELING, ParentMove.COMPLETED): ParentState.COMPLETED,
    (ParentState.CANCELING, ParentMove.CANCELED): ParentState.CANCELED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentTicket:
    """What the client asked for.

    quantity is all of a TWAP or an iceberg; slice_quantity what an iceberg displays or a DCA purchases each time, and
    slice_amount that of a DCA in the quote asset. A DCA is told by purchases or by end_time.
    """

    account_id: UUID
    instrument_id: str
    kind: ParentKind
    side: Side
    quantity: Decimal | None = None
    slice_quantity: Decimal | None = None
    slice_amount: Decimal | None = None
    limit_price: Decimal | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    slice_interval: timedelta | None = None
    purchases: int | None = None
    deployment_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A parent order as it is kept. What its children have done is counted as they change."""

    parent_order_id: UUID
    user_id: UUID
    account_id: UUID
    instrument_id: str
    kind: ParentKind
    side: Side
    quantity: Decimal | None
    slice_quantity: Decimal | None
    slice_amount: Decimal | None
    limit_price: Decimal | None
    start_time: datetime
    end_time: datetime | None
    """Nothing is placed from then on; None for an iceberg."""
    slice_interval: timedelta | None
    slices: int
    deployment_id: UUID | None
    fee_asset: str
    create_time: datetime
    update_time: datetime
    state: ParentState = ParentState.ACTIVE
    reason: str = ""
    slice_number: int = 0
    """The last slice that is over with: placed, skipped, or with nothing to place."""
    due_time: datetime | None = None
    """When it is looked at next; None while it waits for its children alone."""
    skipped_slices: int = 0
    refused_slice: int = 0
    refusal_reason: str = ""
    refusal_message: str = ""
    refusal_time: datetime | None = None
    open_children: int = 0
    working_quantity: Decimal = ZERO
    """What open children may still trade."""
    filled_quantity: Decimal = ZERO
    filled_notional: Decimal = ZERO
    fees: Decimal = ZERO

    @property
    def committed(self) -> Decimal:
        """What has traded, and what may."""
        return self.filled_quantity + self.working_quantity

    @property
    def remaining(self) -> Decimal:
        """What no child is for yet. A fill that comes after its child was canceled makes it less, never below zero."""
        return max(ZERO, (self.quantity or ZERO) - self.committed)

    @property
    def is_filled(self) -> bool:
        return self.quantity is not None and self.filled_quantity >= self.quantity

    @property
    def average_price(self) -> Decimal | None:
        return divide(self.filled_notional, self.filled_quantity) if self.filled_quantity else None


@dataclass(frozen=True, slots=True)
class Skip:
    """Slices, from the first to the last, for which there is no child, and why."""

    first_slice: int
    last_slice: int
    reason: str
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a parent does now: the parent after it, slices it skips, and the child it places or the cancel it asks for."""

    parent: Parent
    skips: Sequence[Skip] = ()
    slice_number: int | None = None
    """Of the child to be placed; None for none."""
    cancels: bool = False


def moved(parent: Parent, move: ParentMove, now: datetime, reason: str = "") -> Parent:
    """The parent after something happened to it. Raises IllegalMove."""
    try:
        state = MOVES[parent.state, move]
    except KeyError:
        raise IllegalMove(f"{move.value} in state {parent.state.value}") from None
    due_time = now + CANCEL_AGAIN if state in LIVE else None
    return replace(parent, state=state, reason=reason or parent.reason, due_time=due_time, update_time=now)


# Accepting one.


def accept(
    ticket: ParentTicket,
    *,
    account: Account,
    instrument: Instrument | None,
    quote: Quote | None,
    parent_order_id: UUID,
    now: datetime,
) -> Parent:
    """The parent as it begins, or a refusal that names what can never be placed."""
    if account.closed:
        raise UserDeleted
    if instrument is None:
        raise no_instrument(ticket.instrument_id)
    margin.check_kind(account, instrument)
    start = max(now, ticket.start_time or now)
    slices, end = schedule(ticket, start, now)
    parent = Parent(
        parent_order_id=parent_order_id,
        user_id=account.user_id,
        account_id=account.account_id,
        instrument_id=ticket.instrument_id,
        kind=ticket.kind,
        side=ticket.side,
        quantity=ticket.quantity,
        slice_quantity=ticket.slice_quantity,
        slice_amount=ticket.slice_amount,
        limit_price=ticket.limit_price,
        start_time=start,
        end_time=end,
        slice_interval=ticket.slice_interval,
        slices=slices,
        deployment_id=ticket.deployment_id,
        fee_asset=instrument.quote_asset,
        create_time=now,
        update_time=now,
        due_time=start,
    )
    check_slices(parent, instrument, quote)
    return parent


def schedule(ticket: ParentTicket, start: datetime, now: datetime) -> tuple[int, datetime | None]:
    """How many slices there are, and when the last one is over. Raises ParentOrderInvalid."""
    if ticket.kind is ParentKind.ICEBERG:
        assert ticket.quantity is not None
        assert ticket.slice_quantity is not None
        slices = ceiling(ticket.quantity, ticket.slice_quantity)
        if slices > SLICES_MAX:
            raise ParentOrderInvalid({"iceberg.display_quantity": f"would make more than {SLICES_MAX} slices"})
        return slices, None
    interval, end = ticket.slice_interval, ticket.end_time
    assert interval is not None
    kind = ticket.kind.value
    if ticket.start_time is not None and ticket.start_time > now + SCHEDULE_MAX:
        raise ParentOrderInvalid({f"{kind}.start_time": f"must be within {SCHEDULE_MAX.days} days from now"})
    if ticket.purchases is not None:
        # Before it is a time: no calendar may have it.
        length, slices, where = interval * ticket.purchases, ticket.purchases, f"{kind}.purchases"
        end = start + min(length, SCHEDULE_MAX + interval)
    else:
        assert end is not None
        slices, where = -((start - end) // interval), f"{kind}.end_time"
        if end <= start:
            raise ParentOrderInvalid({where: "must be after the start, and after now"})
        if slices > SLICES_MAX:
            raise ParentOrderInvalid({f"{kind}.interval_seconds": f"would make more than {SLICES_MAX} slices"})
    if end > now + SCHEDULE_MAX:
        raise ParentOrderInvalid({where: f"must end it within {SCHEDULE_MAX.days} days from now"})
    return slices, end


def no_instrument(instrument_id: str) -> InstrumentNotFound:
    return InstrumentNotFound(f"no instrument {instrument_id}", instrument_id=instrument_id)


def ceiling(value: Decimal, step: Decimal) -> int:
    steps = CONTEXT.divide_int(value, step)
    return int(steps) + (CONTEXT.multiply(steps, step) < value)


def check_slices(parent: Parent, instrument: Instrument, quote: Quote | None) -> None:
    """Raises a refusal unless the smallest of its children can be placed as things are now."""
    kind = parent.kind.value
    own = {ParentKind.ICEBERG: "iceberg.display_quantity", ParentKind.DCA: "dca.quantity"}.get(parent.kind, "")
    for field, quantity in ((f"{kind}.quantity", parent.quantity), (own, parent.slice_quantity)):
        if off_grid := placing.grid_objection(quantity, None, None, None, instrument):
            raise type(off_grid)(dict.fromkeys([field], *off_grid.violations.values()), **off_grid.metadata)
    if off_grid := placing.grid_objection(None, parent.limit_price, None, None, instrument):
        raise placing.within(kind, off_grid)
    price = parent.limit_price or likely_price(parent.side, quote)
    if price is None:
        raise NoFreshPrice(
            f"{parent.instrument_id} has no price by which its slices could be judged",
            instrument_id=parent.instrument_id,
            age_seconds="never",
        )
    smallest = smallest_slice(parent, instrument, price)
    if smallest < instrument.lot_size:
        field = f"{kind}.amount" if parent.slice_amount is not None else f"{kind}.quantity"
        raise ParentOrderInvalid({field: f"makes slices of less than one lot, which is {instrument.lot_size:f}"})
    if too_small := placing.notional_objection(smallest, price, instrument):
        raise too_small


def smallest_slice(parent: Parent, instrument: Instrument, price: Decimal) -> Decimal:
    """The least that a child is for, if nothing is missed."""
    match parent.kind:
        case ParentKind.TWAP:
            return down_to(CONTEXT.divide(parent.quantity or ZERO, Decimal(parent.slices)), instrument.lot_size)
        case ParentKind.ICEBERG:
            displayed = parent.slice_quantity or ZERO
            return (parent.quantity or ZERO) - multiply(displayed, Decimal(parent.slices - 1))
        case ParentKind.DCA:
            return purchase(parent, instrument, price)


def likely_price(side: Side, quote: Quote | None) -> Decimal | None:
    return ((quote.ask if side is Side.BUY else quote.bid) or quote.last) if quote is not None else None


def purchase(parent: Parent, instrument: Instrument, price: Decimal) -> Decimal:
    """What a DCA buys this time."""
    if parent.slice_quantity is not None:
        return parent.slice_quantity
    return down_to(CONTEXT.divide(parent.slice_amount or ZERO, price), instrument.lot_size)


# What it does next.


def next_step(parent: Parent, last_child: State | None, now: datetime) -> Step:
    """What it does now, of an iceberg by what has become of its newest child."""
    if parent.state not in LIVE:
        return Step(parent=replace(parent, due_time=None))
    if parent.is_filled and not parent.open_children:
        return Step(parent=moved(parent, ParentMove.COMPLETED, now))
    if parent.state is ParentState.CANCELING:
        if parent.open_children:
            return Step(parent=replace(parent, due_time=now + CANCEL_AGAIN), cancels=True)
        return Step(parent=moved(parent, ParentMove.CANCELED, now))
    if parent.kind is ParentKind.ICEBERG:
        return next_of_iceberg(parent, last_child, now)
    return next_of_schedule(parent, now)


def next_of_iceberg(parent: Parent, last_child: State | None, now: datetime) -> Step:
    """One child at a time: the next one when all of the one before has traded, and none after one that ended otherwise."""
    if parent.open_children:
        return Step(parent=replace(parent, due_time=None))
    match last_child:
        case State.CANCELED:
            return Step(parent=moved(parent, ParentMove.CANCELED, now, "CHILD_CANCELED"))
        case State.REJECTED | State.EXPIRED:
            return Step(parent=moved(parent, ParentMove.FAILED, now, f"CHILD_{last_child.name}"))
    return Step(parent=parent, slice_number=parent.slice_number + 1)


def next_of_schedule(parent: Parent, now: datetime) -> Step:
    """The slice that is on now, unless it is over with; those before it, of which nothing came, are skipped."""
    assert parent.slice_interval is not None
    assert parent.end_time is not None
    if now < parent.start_time:
        return Step(parent=replace(parent, due_time=parent.start_time))
    is_over = now >= parent.end_time
    number = (
        parent.slices + 1 if is_over else min(parent.slices, (now - parent.start_time) // parent.slice_interval + 1)
    )
    parent, skips = skipping(parent, number - 1, now)
    if not is_over and parent.slice_number < number:
        return Step(parent=parent, skips=skips, slice_number=number)
    return Step(parent=waiting(parent, now), skips=skips)


def skipping(parent: Parent, last_slice: int, now: datetime) -> tuple[Parent, list[Skip]]:
    """The parent with all slices up to this one over with. Of these the first alone may have been tried."""
    first = parent.slice_number + 1
    if last_slice < first:
        return parent, []
    skips: list[Skip] = []
    count, untried = last_slice - first + 1, first
    if parent.refused_slice == first:
        skips.append(Skip(first, first, parent.refusal_reason, parent.refusal_message, now))
        untried += 1
    if untried <= last_slice:
        skips.append(Skip(untried, last_slice, "MISSED", "nobody was there to place it in its time", now))
    over = replace(parent, slice_number=last_slice, skipped_slices=parent.skipped_slices + count, update_time=now)
    return over, skips


def waiting(parent: Parent, now: datetime) -> Parent:
    """The parent after a slice: until the next one, or after the last one until its children are done."""
    assert parent.slice_interval is not None
    if parent.slice_number < parent.slices:
        return replace(parent, due_time=parent.start_time + parent.slice_interval * parent.slice_number)
    if parent.open_children:
        return replace(parent, due_time=None)
    if parent.kind is ParentKind.DCA or parent.is_filled:
        return moved(parent, ParentMove.COMPLETED, now)
    return moved(parent, ParentMove.EXPIRED, now, "UNFILLED")


# The child of a slice.


def child_quantity(parent: Parent, number: int, instrument: Instrument, quote: Quote | None, limits: Limits) -> Decimal:
    """How much the slice is for; zero where there is nothing to place. Raises NoFreshPrice."""
    match parent.kind:
        case ParentKind.TWAP:
            target = twap_target(parent, number, instrument)
            own = target - twap_target(parent, number - 1, instrument)
            behind = max(ZERO, target - parent.committed)
            return down_to(min(behind, own * CATCH_UP_TIMES, parent.remaining), instrument.lot_size)
        case ParentKind.ICEBERG:
            return min(parent.slice_quantity or ZERO, parent.remaining)
        case ParentKind.DCA:
            price = likely_price(parent.side, quote) if placing.is_fresh(quote, limits) else None
            if price is None:
                raise placing.no_fresh_price(parent.instrument_id, quote, limits)
            quantity = purchase(parent, instrument, price)
            if not quantity:
                least = multiply(instrument.lot_size, price)
                raise NotionalTooSmall(
                    f"the amount buys less than one lot, which costs {plain(least)} {instrument.quote_asset}",
                    notional=plain(parent.slice_amount or ZERO),
                    minimum_notional=plain(least),
                )
            return quantity


def twap_target(parent: Parent, number: int, instrument: Instrument) -> Decimal:
    """How much should have been placed after so many slices: of all the lots as many as their part, to the last one exactly."""
    share = multiply(parent.quantity or ZERO, Decimal(number))
    return down_to(CONTEXT.divide(share, Decimal(parent.slices)), instrument.lot_size)


def child_ticket(parent: Parent, number: int, quantity: Decimal) -> Ticket:
    """An iceberg's child rests at its limit; all others take what the market offers."""
    rests = parent.kind is ParentKind.ICEBERG
    return Ticket(
        account_id=parent.account_id,
        instrument_id=parent.instrument_id,
        side=parent.side,
        order_type=OrderType.LIMIT if parent.limit_price is not None else OrderType.MARKET,
        time_in_force=TimeInForce.GTC if rests else TimeInForce.IOC,
        quantity=quantity,
        limit_price=parent.limit_price,
        deployment_id=parent.deployment_id,
        parent_order_id=parent.parent_order_id,
        slice_number=number,
    )


def placed(parent: Parent, child: Order, now: datetime) -> Parent:
    """The parent after its child was placed. What the child is for, it is told with the child itself."""
    assert child.slice_number is not None
    parent = replace(
        parent, slice_number=child.slice_number, open_children=parent.open_children + 1, update_time=now, due_time=None
    )
    return parent if parent.kind is ParentKind.ICEBERG else waiting(parent, now)


def unneeded(parent: Parent, number: int, now: datetime) -> Parent:
    """The parent after a slice for which there was nothing to place."""
    return waiting(replace(parent, slice_number=number, update_time=now), now)


def refused(parent: Parent, number: int, refusal: Refusal, since: datetime, now: datetime) -> Parent:
    """The parent after a child was refused: it is tried again, by a schedule as long as its slice is on.

    since is when the slice was first to be placed.
    """
    parent = replace(
        parent,
        refused_slice=number,
        refusal_reason=refusal.reason,
        refusal_message=str(refusal),
        refusal_time=now,
        update_time=now,
    )
    again = now + min(RETRY_MAX, max(RETRY_MIN, now - since))
    if parent.slice_interval is not None:
        again = min(again, parent.start_time + parent.slice_interval * number)
    return replace(parent, due_time=again)


def slice_start(parent: Parent, number: int) -> datetime:
    """When a slice is first to be placed; of an iceberg that is so of the first alone."""
    return parent.start_time + parent.slice_interval * (number - 1) if parent.slice_interval else parent.start_time
