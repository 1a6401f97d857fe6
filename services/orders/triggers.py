"""Orders of live accounts that wait here, and what they do next. No I/O here.

An order waits here, and its venue knows nothing of it, while the entry of its group has not released it, while another order
of its group is at the venue in its place, and where the venue has no such order: then until its price is reached. Each step is
taken under the account's lock by the order as it is stored, so that one that is taken again does nothing again: an order that
has gone to its venue waits here no more.

Venues have no groups. So an order of one goes to the venue when the others are done there: legs when the entry has ended, and
of two legs one at a time. Where a price is reached meanwhile, the cancel of what is in the way is asked for first, and what the
venue has traded of that by then is taken off.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from libs.errors import Refusal
from libs.money import ZERO, down_to
from services.orders import life, live, placing
from services.orders.domain import (
    OPEN,
    Account,
    AccountKind,
    AccountState,
    GroupRole,
    Instrument,
    Kind,
    Limits,
    Mode,
    Order,
    OrderType,
    Quote,
    RiskEvent,
    Side,
    State,
)
from services.orders.refusals import InstrumentHalted, UserDeleted
from services.orders.risk import Weighing

CANCEL_AGAIN = timedelta(seconds=5)
"""A venue may refuse a cancel, and the order lives on: then it is asked for again."""
SEND_AGAIN = timedelta(seconds=5)
"""What could not be sent is tried again after that: who refused it may know less by now than is known here."""


def waiting(state: AccountState) -> list[Order]:
    """Those of an account that are at hand, oldest first."""
    if state.account.mode is not Mode.LIVE:
        return []
    return sorted((order for order in state.orders.values() if order.waits_here), key=lambda order: order.order_id)


def at_hand(state: AccountState) -> list[Order]:
    """What waits here, and what may have to once more is told of it."""
    coming = [order for order in state.orders.values() if comes_back(state.account, order)]
    return [*waiting(state), *coming]


def step(
    state: AccountState,
    order: Order,
    *,
    instrument: Instrument,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
    now: datetime,
) -> None:
    """Does what an order that waits here can do now, which may be nothing. Its group is at hand."""
    if has_expired(order, now):
        life.apply_ended(state, order, Kind.EXPIRED, order.time_in_force.value, now)
        return
    if not order.open_quantity or (order.reason and now - order.update_time < SEND_AGAIN):
        return
    last = price_seen(order, quote, limits)
    rests = may_rest(state, order)
    if last is not None and not rests and (stop_price := followed(order, last, instrument)) != order.stop_price:
        order = replace(order, stop_price=stop_price)
        state.keep(order)
        if state.account.is_margin:
            # What it sets aside goes by its stop.
            state.unbacked.add(order.instrument_id)
    for _ in objections(state, order, instrument, quote, limits, weighing):
        return
    if order.trigger_time is not None:
        make_way_or_send(state, order, instrument, limits, now, again=CANCEL_AGAIN)
    elif last is not None and reached(order, last) and not (rests and order.order_type is OrderType.LIMIT):
        assert quote is not None, "a price was seen"
        order = replace(order, protection_price=protection(order, instrument, limits), reason="")
        order = life.apply_triggered(state, order, quote.market_time, now)
        make_way_or_send(state, order, instrument, limits, now, again=timedelta())
    elif rests:
        send(state, replace(order, triggers_here=False), instrument, limits, now)


def comes_back(account: Account, order: Order) -> bool:
    """Whether an order waits here again where its venue certainly does not have it: what closes, and was to wait for a price.

    A position that was to have a stop must not be without one because its venue was away for a while. What opens has a time to
    be sent before, and so has what is to close at once: its owner sees that it did not.
    """
    if account.mode is not Mode.LIVE or order.state is not State.PENDING_NEW:
        return False
    follows_entry = order.group_role is GroupRole.LEG and order.released_quantity is not None
    sells_own = account.kind is AccountKind.CASH and order.side is Side.SELL
    waits = order.group_role is GroupRole.LEG or order.order_type not in live.WITHOUT_STOP
    return waits and (follows_entry or sells_own or order.reduce_only)


def take_back(state: AccountState, order: Order, reason: str, now: datetime, *, stop_reached: datetime | None) -> Order:
    """Has an order that comes back wait here; where its venue says that its stop was reached by some time, that is so.

    Then it has no reason to wait.
    """
    if stop_reached is None or order.stop_price is None or order.trigger_time is not None:
        return life.take_back(state, order, reason, now)
    return life.apply_triggered(state, life.take_back(state, order, "", now), stop_reached, now)


def not_sent(risk_event_id: UUID, order: Order, reason: str, now: datetime) -> RiskEvent:
    """Says that an order which closes waits here to be tried again."""
    return RiskEvent(
        risk_event_id=risk_event_id,
        user_id=order.user_id,
        account_id=order.account_id,
        kind="not_sent",
        limit_name="send",
        value=reason,
        instrument_id=order.instrument_id,
        time=now,
    )


def send(state: AccountState, order: Order, instrument: Instrument, limits: Limits, now: datetime) -> None:
    """For what there is to sell: a venue may have taken its fee out of what the entry of its group has bought."""
    if short := shortage(state, order, instrument):
        for leg in [order, *sharing(state, order)]:
            life.reduce(state, leg, short, now)
        order = replace(state.orders[order.order_id], triggers_here=order.triggers_here)
    if order.state is State.HELD:
        life.send(state, order, live.send_before(limits, now), now)


def shortage(state: AccountState, order: Order, instrument: Instrument) -> Decimal:
    """By how much less than what was released can be sold, in whole lots."""
    if order.side is Side.BUY or order.released_quantity is None or state.account.kind is not AccountKind.CASH:
        return ZERO
    held = state.balance(order.reserved_asset)
    own = sum((each.reserved for each in (order, *sharing(state, order))), ZERO)
    free = max(ZERO, held.total - held.reserved + own)
    return max(ZERO, order.at_venue - down_to(free, instrument.lot_size))


def sharing(state: AccountState, order: Order) -> list[Order]:
    """The open leg with which it shares a quantity, if it is one and there is another."""
    if order.group_role is not GroupRole.LEG:
        return []
    return [other for other in state.group(order) if other.group_role is GroupRole.LEG and other.state in OPEN]


def is_due(order: Order, *, instrument: Instrument, quote: Quote | None, limits: Limits, now: datetime) -> bool:
    """Whether a step would do something now, as far as the order and its price tell: its account and its group may say no."""
    if has_expired(order, now) or not order.open_quantity:
        return has_expired(order, now)
    if order.trigger_time is not None:
        return True
    last = price_seen(order, quote, limits)
    return last is not None and (reached(order, last) or followed(order, last, instrument) != order.stop_price)


def has_expired(order: Order, now: datetime) -> bool:
    return order.expire_time is not None and order.expire_time <= now


def price_seen(order: Order, quote: Quote | None, limits: Limits) -> Decimal | None:
    """The last price, where it is of now and not from before the order could trade."""
    if quote is None or not placing.is_fresh(quote, limits) or quote.market_time < order.market_time:
        return None
    return quote.last


def followed(order: Order, last: Decimal, instrument: Instrument) -> Decimal | None:
    """Where a stop stands after this price: one that trails never goes back."""
    if order.trail is None or order.trigger_time is not None:
        return order.stop_price
    stop_price = placing.first_stop(order.side, order.trail, last, instrument)
    if stop_price <= ZERO or order.stop_price is None:
        return stop_price if stop_price > ZERO else order.stop_price
    return min(order.stop_price, stop_price) if order.side is Side.BUY else max(order.stop_price, stop_price)


def reached(order: Order, last: Decimal) -> bool:
    """A limit order waits here where its place at the venue is another's, and for its limit then."""
    price = order.limit_price if order.order_type is OrderType.LIMIT else order.stop_price
    return price is not None and placing.is_reached(order, price, last)


def protection(order: Order, instrument: Instrument, limits: Limits) -> Decimal | None:
    """As any stop has it; of one that trails by where it stands now."""
    if order.trail is None or order.stop_price is None:
        return order.protection_price
    return placing.protection_price(order.side, order.stop_price, instrument, limits.market_protection)


def objections(
    state: AccountState,
    order: Order,
    instrument: Instrument,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
) -> Iterator[Refusal]:
    """Why nothing may be sent now: then it waits on, and what its price is when that is over decides."""
    if state.account.closed:
        yield UserDeleted()
    if not instrument.trading:
        yield InstrumentHalted(f"{order.instrument_id} cannot be traded now", instrument_id=order.instrument_id)
    yield from live.objections(state.account, enabled=weighing.live_trading)
    proposal = placing.proposal_of(order, quote, limits, orders=0, replaced=order.open_quantity)
    yield from weighing.switched_off(proposal)


def may_rest(state: AccountState, order: Order) -> bool:
    """Whether its venue is to have the order as it is: it takes it, and nothing of its group is in the way.

    What has begun to trail here goes on here, for at the venue it would begin anew.
    """
    if not could_rest(order):
        return False
    if order.group_role is not GroupRole.LEG:
        return True
    others = [other for other in state.group(order) if other.state in OPEN]
    if any(not other.waits_here or other.trigger_time is not None for other in others):
        return False
    legs = sorted((order, *others), key=lambda leg: leg.order_id)
    return live.resting(state.account.venue, [leg for leg in legs if not has_begun(leg)]) is order


def could_rest(order: Order) -> bool:
    """The same but for its group, of an order that is released."""
    if order.trigger_time is not None or has_begun(order) or not order.open_quantity:
        return False
    return not live.lacks(order.instrument_id.partition(":")[0], order)


def has_begun(order: Order) -> bool:
    """Whether its stop trails already."""
    return order.trail is not None and order.stop_price is not None


def make_way_or_send(
    state: AccountState, order: Order, instrument: Instrument, limits: Limits, now: datetime, *, again: timedelta
) -> None:
    """Sends an order whose price was reached, or has what is in its way canceled: that is asked for again after so long.

    While it is not known what became of that, nothing is sent.
    """
    in_the_way = [other for other in state.group(order) if is_in_the_way(order, other)]
    for other in in_the_way:
        if other.state is not State.PENDING_CANCEL and (not again or now - other.update_time >= again):
            life.request_cancel(state, other, now, life.GROUP)
    if not in_the_way:
        send(state, order, instrument, limits, now)


def is_in_the_way(order: Order, other: Order) -> bool:
    """What shares a leg's quantity at the venue, or could still add to it."""
    if order.group_role is not GroupRole.LEG or other.state not in OPEN:
        return False
    return not other.waits_here
