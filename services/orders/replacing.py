"""Whether an order may be changed, and what follows from the change."""

from dataclasses import replace
from datetime import datetime

from libs.errors import Invalid, Refusal
from libs.money import ZERO
from services.orders import domain, life, live, margin, placing
from services.orders.domain import (
    MOVES,
    AccountState,
    Instrument,
    Kind,
    Limits,
    Mode,
    Order,
    Quote,
    Replacement,
    Side,
    State,
)
from services.orders.refusals import (
    InstrumentHalted,
    InstrumentNotFound,
    NotReplaceable,
    NotTakenByVenue,
    OrderLiquidates,
    ReplacementInvalid,
    UserDeleted,
)
from services.orders.risk import Weighing


def replace_order(
    state: AccountState,
    order: Order,
    change: Replacement,
    *,
    instrument: Instrument | None,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
    now: datetime,
) -> Order:
    """Asks the venue for the change and sets aside the more of both, or refuses it and changes nothing."""
    if state.account.closed:
        raise UserDeleted
    if instrument is None:
        raise InstrumentNotFound(f"no instrument {order.instrument_id}", instrument_id=order.instrument_id)
    if not instrument.trading:
        raise InstrumentHalted(f"{order.instrument_id} cannot be traded now", instrument_id=order.instrument_id)
    if order.state is not State.HELD and (order.state, Kind.REPLACE_REQUESTED) not in MOVES:
        raise NotReplaceable(f"the order is {order.state.value}", order_id=order.order_id, state=order.state.name)
    if order.liquidates:
        raise OrderLiquidates(order.order_id)
    if order.parent_order_id is not None:
        raise NotReplaceable("it is a child of a parent order", order_id=order.order_id, state=order.state.name)
    if state.account.mode is Mode.LIVE:
        for refusal in live.objections(state.account, enabled=weighing.live_trading):
            raise refusal
    if order.state is State.HELD and order.trigger_time is not None:
        raise NotReplaceable("its price was reached", order_id=order.order_id, state=order.state.name)
    check_applies(order, change)
    if state.account.mode is Mode.LIVE and order.state is not State.HELD:
        check_changes(state.account.venue, order)
    if off_grid := placing.grid_objection(
        change.quantity, change.limit_price, change.stop_price, change.trail, instrument
    ):
        raise placing.within("replacement", off_grid)
    change = with_prices(order, change, instrument, quote, limits)
    changed = domain.changed(order, change)
    if state.account.mode is Mode.LIVE and (not_taken := not_taken_any_more(state, changed)):
        raise not_taken
    counts = not order.awaits_entry
    if counts and change.stop_price is not None and (hit := placing.trigger_objection(changed, quote, limits)):
        raise hit
    price = changed.worst_price or changed.stop_price
    if price is not None and (too_small := placing.notional_objection(changed.quantity, price, instrument)):
        raise too_small
    if order.reduce_only and changed.quantity > order.quantity:
        for refusal in placing.reducing_objections(state, order, changed.remaining):
            raise refusal
    if counts:
        proposal = placing.proposal_of(changed, quote, limits, orders=0, replaced=order.open_quantity)
        for refusal in weighing.refusals(proposal, now):
            raise refusal
    asked = changed if order.state is State.HELD else replace(order, replacement=change)
    if state.account.is_margin:
        check_margin(state, order, asked, weighing, limits)
    else:
        check_balance(state, asked)
    if order.waits_here and counts and quote is not None:
        # What was seen before this says nothing of the new price.
        order = replace(order, market_time=quote.market_time)
    return life.request_replace(state, order, change, now)


def not_taken_any_more(state: AccountState, changed: Order) -> Refusal | None:
    """Where a venue would have to have an order as it has none."""
    venue = state.account.venue
    if changed.state is State.HELD:
        return live.not_taken(venue, changed)
    if words := live.lacks(venue, live.as_triggered(changed) if changed.triggers_here else changed):
        return NotTakenByVenue(f"{venue} has no {words}", venue=venue, order_type=changed.order_type.name)
    return None


def check_changes(venue: str, order: Order) -> None:
    """Raises a refusal where the venue does not change an order that it has: nothing is asked of it, and the order stays."""
    words = live.changes_no(venue, order)
    if not words:
        return
    why = f"{venue} changes no {words}"
    if order.filled_quantity and not live.changes_no(venue, replace(order, filled_quantity=ZERO)):
        raise NotReplaceable(why, order_id=order.order_id, state=order.state.name)
    raise NotTakenByVenue(why, venue=venue, order_type=order.order_type.name)


def check_applies(order: Order, change: Replacement) -> None:
    """Raises ReplacementInvalid where the order has no such thing to change."""
    waits_for_stop = order.trigger_time is None and (order.stop_price is not None or order.trail is not None)
    found: dict[str, str] = {}
    if change.limit_price is not None and order.limit_price is None:
        found["limit_price"] = "is not one that the order has"
    if change.stop_price is not None and (not waits_for_stop or order.trail is not None):
        found["stop_price"] = "is not one that the order waits for"
    if change.trail is not None and (not waits_for_stop or order.trail is None):
        found["trail"] = "is not one that the order waits at"
    if change.quantity is not None and order.group_id is not None:
        found["quantity"] = "of an order in a group stays as it is"
    elif change.quantity is not None and change.quantity <= order.filled_quantity:
        found["quantity"] = "must be above what has traded"
    if found:
        raise ReplacementInvalid({f"replacement.{field}": why for field, why in found.items()}, order_id=order.order_id)


def with_prices(
    order: Order, change: Replacement, instrument: Instrument, quote: Quote | None, limits: Limits
) -> Replacement:
    """The change with what follows from it for an order without a limit: the worst price beyond its new stop.

    Of a trailing stop that buys nothing but a fresh price tells how high its stop may be then.
    """
    stop_price = change.stop_price
    if change.trail is not None and not order.awaits_entry:
        last = quote.last if quote is not None and placing.is_fresh(quote, limits) else None
        if last is None and order.side is Side.BUY:
            raise placing.no_fresh_price(order.instrument_id, quote, limits)
        if last is not None:
            stop_price = placing.first_stop(order.side, change.trail, last, instrument)
            if stop_price <= 0:
                raise Invalid({"replacement.trail": "must be less than the last price"})
    if stop_price is None or order.limit_price is not None or (order.trail is not None and order.side is Side.SELL):
        return replace(change, stop_price=stop_price)
    protection = placing.protection_price(order.side, stop_price, instrument, limits.market_protection)
    return replace(change, stop_price=stop_price, protection_price=protection)


def check_balance(state: AccountState, asked: Order) -> None:
    """Raises InsufficientBalance where the order as it is asked for, or its group with it, needs more than there is."""
    needs = [(asked, life.to_reserve(asked))]
    if asked.group_id is not None:
        needs = life.group_reserves([asked, *state.group(asked)])
    for asset in {order.reserved_asset for order, _ in needs}:
        more = sum((need - order.reserved for order, need in needs if order.reserved_asset == asset), ZERO)
        if more > ZERO and (short := placing.balance_objection(state, asset, more)):
            raise short


def check_margin(state: AccountState, order: Order, asked: Order, weighing: Weighing, limits: Limits) -> None:
    """Raises a refusal where a margin account has not enough for the order as it is asked for.

    One that opens no more than it did is not refused.
    """
    margin.back(state)
    others = [each for each in margin.orders_of(state, order.instrument_id) if each.order_id != order.order_id]
    before = margin.needs(state, order.instrument_id, [*others, order])
    after = margin.needs(state, order.instrument_id, [*others, asked])
    more = sum((need.total - before[order_id].total for order_id, need in after.items()), ZERO)
    is_opening = after[asked.order_id].margin > before[order.order_id].margin
    for refusal in placing.margin_objections(state, asked, more, weighing, limits, opens=is_opening):
        raise refusal
