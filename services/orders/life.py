"""What becomes of an order once it is placed: what its owner asks for, and what its venue tells.

Each function applies one kind of the table of moves and sets aside what the order may cost since. What follows for other
orders of the account, those of its group and those that only reduce, happens in the same call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Any
from uuid import UUID

from libs.money import ZERO, multiply, rounded
from services.orders import books
from services.orders.domain import (
    OPEN,
    AccountState,
    Execution,
    Fill,
    GroupRole,
    IllegalMove,
    Instrument,
    Kind,
    Mode,
    Order,
    Replacement,
    Side,
    State,
    TimeInForce,
    changed,
    moved,
)
from services.orders.refusals import OrderDone

ONE = Decimal(1)
USER, GROUP = "user", "group"
"""Why an order was canceled: its owner wanted it, or it was for the sake of its group."""
EXCESS, CLOSING, LIQUIDATION = "excess", "closing", "liquidation"
"""The same: there is less to reduce than it is for, or it was in the way of its position's closing, or of a liquidation."""
AT_ONCE = frozenset({TimeInForce.IOC, TimeInForce.FOK})
KILL_SWITCH = "kill_switch/"
"""Before the scope of a switch: why an order was canceled that one was set to cancel."""


def cost(side: Side, quantity: Decimal, price: Decimal, fee_rate: Decimal) -> Decimal:
    """What trading so much may cost: price and fee when buying, the asset itself when selling.

    Rounded up at the 18th digit after the point, and what is paid is rounded down: never is too little set aside.
    """
    if side is Side.SELL:
        return quantity
    notional = multiply(quantity, price)
    return rounded(notional + multiply(notional, fee_rate), ROUND_UP)


def to_reserve(order: Order, *, waiting: Decimal = ZERO, brought: Decimal = ZERO) -> Decimal:
    """What the rest of an open order may still cost, as it is or as it is being changed.

    So much of it may be waiting for an entry that brings so much for each unit: of that only the difference is needed.
    """
    # Only what was adopted may buy without a worst price: then at its stop.
    price = order.worst_price or order.stop_price or ZERO
    needed = cost(order.side, order.remaining - waiting, price, order.fee_rate)
    if waiting:
        each = cost(order.side, ONE, order.worst_price or ZERO, order.fee_rate)
        needed = rounded(needed + multiply(waiting, max(ZERO, each - brought)), ROUND_UP)
    if order.replacement is not None:
        as_changed = replace(changed(order, order.replacement), replacement=None)
        needed = max(needed, to_reserve(as_changed, waiting=waiting, brought=brought))
    return needed


def group_reserves(orders: Iterable[Order]) -> list[tuple[Order, Decimal]]:
    """What each order of one group sets aside.

    Of two legs the dearer one sets aside for both, since they share a quantity. What waits for an entry needs nothing of
    what the entry will bring, and all of what it has brought.
    """
    members = sorted(orders, key=lambda order: order.order_id)
    entry = next((order for order in members if order.group_role is GroupRole.ENTRY), None)
    traded = entry.filled_quantity if entry is not None else ZERO
    needs: dict[UUID, Decimal] = {}
    for order in members:
        if order.state not in OPEN:
            needs[order.order_id] = ZERO
            continue
        waiting = brought = ZERO
        if entry is not None and order.side is not entry.side:
            brought = brought_by(entry)
            if order.group_role is GroupRole.LEG:
                waiting = order.waiting
            elif order.state is State.HELD:
                # Those before it have the first claim on what has been brought.
                covered = min(order.quantity, traded)
                traded -= covered
                waiting = order.quantity - covered
        needs[order.order_id] = to_reserve(order, waiting=waiting, brought=brought)
    legs = [order for order in members if order.group_role is GroupRole.LEG and order.state in OPEN]
    if len(legs) > 1:
        dearest = max(legs, key=lambda leg: needs[leg.order_id])
        needs |= {leg.order_id: ZERO for leg in legs if leg is not dearest}
    return [(order, needs[order.order_id]) for order in members]


def brought_by(entry: Order) -> Decimal:
    """What each unit of an entry brings at its worst, of what orders of the other side cost."""
    if entry.side is Side.BUY:
        return ONE
    price = entry.worst_price or ZERO
    if entry.replacement is not None:
        price = min(price, changed(entry, entry.replacement).worst_price or ZERO)
    return multiply(price, ONE - entry.fee_rate)


def noted(
    state: AccountState,
    kind: Kind,
    order: Order,
    now: datetime,
    execution: Execution | None = None,
    *,
    send_before: datetime | None = None,
) -> Order:
    """Notes a change of an order that is in its state already, and sets aside what is needed since.

    What orders of a margin account need, they need of each other: margin.back sees to it, once for all changes.
    """
    if state.account.is_margin:
        state.unbacked.add(order.instrument_id)
        return state.note(kind, order, now, execution, send_before=send_before)
    if order.group_id is None:
        needed = to_reserve(order) if order.state in OPEN else ZERO
        return state.note(kind, books.set_aside(state, order, needed), now, execution, send_before=send_before)
    order = state.note(kind, order, now, execution, send_before=send_before)
    share_reserves(state, order)
    return state.orders[order.order_id]


def share_reserves(state: AccountState, order: Order) -> None:
    """Divides anew what the order's group has set aside."""
    for member, needed in group_reserves([order, *state.group(order)]):
        if (kept := books.set_aside(state, member, needed)) is not member:
            state.keep(kept)


def move(order: Order, kind: Kind, **changes: Any) -> Order:
    """The order after something happened to it. Raises IllegalMove."""
    order = replace(order, **changes) if changes else order
    return replace(order, state=moved(order, kind))


def request_cancel(state: AccountState, order: Order, now: datetime, cause: str = USER) -> Order:
    """Notes that a cancel is under way, and why; asking again changes nothing. What is still held here is canceled at once."""
    if order.state is State.PENDING_CANCEL:
        return order
    if order.state is State.HELD:
        return apply_ended(state, order, Kind.CANCELED, cause, now)
    if order.state not in OPEN:
        raise OrderDone(f"the order is {order.state.value}", order_id=order.order_id, state=order.state.name)
    why = "" if cause == USER else cause
    return noted(state, Kind.CANCEL_REQUESTED, move(order, Kind.CANCEL_REQUESTED, reason=why), now)


def request_replace(state: AccountState, order: Order, change: Replacement, now: datetime) -> Order:
    """Notes that a change is under way, with the more of both set aside; what is still held here is changed at once."""
    if order.state is State.HELD:
        return noted(state, Kind.REPLACED, move(changed(order, change), Kind.REPLACED), now)
    return noted(state, Kind.REPLACE_REQUESTED, move(order, Kind.REPLACE_REQUESTED, replacement=change), now)


def apply_working(state: AccountState, order: Order, now: datetime) -> Order:
    """The venue has the order."""
    return noted(state, Kind.WORKING, move(order, Kind.WORKING), now)


def apply_triggered(state: AccountState, order: Order, time: datetime, now: datetime) -> Order:
    """The order's stop was reached, at this market time; of one that waits here for its limit, that."""
    waits = order.stop_price is not None or order.trail is not None or order.waits_here
    if not waits or order.trigger_time is not None:
        raise IllegalMove(f"{Kind.TRIGGERED.value} of an order that waits for no stop")
    return noted(state, Kind.TRIGGERED, move(order, Kind.TRIGGERED, trigger_time=time), now)


def send(state: AccountState, order: Order, send_before: datetime, now: datetime) -> Order:
    """Has an order that waited here go to its venue, before that time or not at all."""
    return noted(state, Kind.RELEASED, move(order, Kind.RELEASED, reason=""), now, send_before=send_before)


def take_back(state: AccountState, order: Order, reason: str, now: datetime) -> Order:
    """Has an order that its venue certainly does not have wait here again, with all that it has set aside."""
    return noted(state, Kind.RETURNED, move(order, Kind.RETURNED, triggers_here=True, reason=reason), now)


def apply_unknown(state: AccountState, order: Order, now: datetime) -> Order:
    """The venue's answer was lost: the order keeps what it has set aside."""
    return noted(state, Kind.UNKNOWN, move(order, Kind.UNKNOWN), now)


def apply_ended(state: AccountState, order: Order, kind: Kind, reason: str, now: datetime) -> Order:
    """The order was canceled, rejected or expired: what it had set aside is free again, and what waited for it ends."""
    if kind is Kind.CANCELED and reason == USER and order.state is State.PENDING_CANCEL and order.reason:
        # A venue knows of a cancel that was asked for, and not for whose sake.
        reason = order.reason
    ended = noted(state, kind, move(order, kind, reason=reason, replacement=None), now)
    if ended.group_role is GroupRole.ENTRY:
        for waiting in state.group(ended):
            if waiting.state is State.HELD and not waiting.released_quantity:
                apply_ended(state, state.orders[waiting.order_id], Kind.CANCELED, GROUP, now)
            elif waiting.state in OPEN and waiting.released_quantity is not None:
                keep_released(state, state.orders[waiting.order_id], now)
    return state.orders[ended.order_id]


def apply_cancel_rejected(state: AccountState, order: Order, reason: str, now: datetime) -> Order:
    """The order was done when the cancel came, or lives on: it is what its fills say."""
    alive = {"reason": reason} if order.state in OPEN else {}
    return noted(state, Kind.CANCEL_REJECTED, move(order, Kind.CANCEL_REJECTED, **alive), now)


def apply_replaced(state: AccountState, order: Order, client_order_id: str, now: datetime) -> Order:
    """The venue changed the order, and knows it by this id."""
    change = order.replacement
    if change is None or str(change.client_order_id) != client_order_id:
        raise IllegalMove(f"{Kind.REPLACED.value} as {client_order_id}, which is not the change under way")
    replaced = replace(changed(order, change), replacement=None, replaced_as=change.client_order_id)
    return noted(state, Kind.REPLACED, move(replaced, Kind.REPLACED), now)


def apply_replace_rejected(
    state: AccountState, order: Order, client_order_id: str, reason: str, now: datetime
) -> Order:
    """The order stays as it was, or was done by then."""
    if order.replacement is not None and str(order.replacement.client_order_id) != client_order_id:
        raise IllegalMove(f"{Kind.REPLACE_REJECTED.value} of {client_order_id}, which is not the change under way")
    alive = {"reason": reason} if order.state in OPEN else {}
    return noted(state, Kind.REPLACE_REJECTED, move(order, Kind.REPLACE_REJECTED, replacement=None, **alive), now)


def apply_fill(
    state: AccountState,
    order: Order,
    fill: Fill,
    instrument: Instrument,
    *,
    execution_id: UUID,
    now: datetime,
    fee_price: Decimal | None = None,
) -> Order:
    """Applies a trade once: to the order, the balances, the position and the ledger; then to orders that depend on it.

    fee_price is that of a fee which is paid in neither of the instrument's assets, in the quote asset; None if unknown.
    """
    if fill.venue_fill_id in state.known_fills:
        return order
    fee_worth = books.fee_worth(fill, instrument, fee_price)
    filled = move(
        order,
        Kind.FILLED,
        filled_quantity=order.filled_quantity + fill.quantity,
        filled_notional=order.filled_notional + multiply(fill.price, fill.quantity),
        fees=order.fees + fee_worth,
    )
    if filled.state is State.FILLED:
        filled = replace(filled, replacement=None, reason="")
    state.known_fills.add(fill.venue_fill_id)
    if instrument.perpetual is not None:
        state.perpetuals.setdefault(instrument.instrument_id, instrument.perpetual)
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
        deployment_id=order.deployment_id,
    )
    books.book(state, execution, instrument, fee_worth=fee_worth, now=now, realized_profit=fill.realized_profit)
    filled = noted(state, Kind.FILLED, filled, now, execution)
    if filled.group_role is GroupRole.ENTRY:
        release(state, filled, fill, now)
    elif filled.group_role is GroupRole.LEG:
        take_off_other_leg(state, filled, fill.quantity, now)
    cancel_excess(state, order.instrument_id, now)
    return state.orders[order.order_id]


def release(state: AccountState, entry: Order, fill: Fill, now: datetime) -> None:
    """Releases what an entry's trade has: legs for as much, others once all of the entry has traded.

    Of a paper account that goes to the venue. Of a live one it waits here on: `triggers` has it sent, once and whole.
    """
    for waiting in state.group(entry):
        if waiting.state not in OPEN or waiting.released_quantity is None:
            continue
        released = waiting.released_quantity
        if waiting.group_role is GroupRole.LEG:
            released = min(waiting.quantity, released + fill.quantity)
        elif entry.state is State.FILLED:
            released = waiting.quantity
        if released != waiting.released_quantity:
            # As the trades before it have left it.
            current = state.orders[waiting.order_id]
            more = replace(current, released_quantity=released)
            if not current.waits_here:
                # Prices are held against the times of quotes alone where it waits here: a venue's clock may be ahead of them.
                more = move(more, Kind.RELEASED, market_time=fill.time)
            noted(state, Kind.RELEASED, more, now)


def take_off_other_leg(state: AccountState, leg: Order, quantity: Decimal, now: datetime) -> None:
    """What one leg has traded the other one is not for any more. Reduced to nothing it stays until the venue has canceled it.

    The paper venue does that by itself, any other is asked. What is held here has no venue, and ends.
    """
    for other in state.group(leg):
        if other.group_role is GroupRole.LEG and other.state in OPEN:
            reduce(state, state.orders[other.order_id], quantity, now)


def reduce(state: AccountState, order: Order, quantity: Decimal, now: datetime) -> None:
    """An order of a group is for so much less."""
    left = {"quantity": max(order.filled_quantity, order.quantity - quantity)}
    if order.released_quantity is not None:
        left["released_quantity"] = max(order.filled_quantity, order.released_quantity - quantity)
    less = noted(state, Kind.REDUCED, move(order, Kind.REDUCED, **left), now)
    if state.account.mode is Mode.LIVE and not less.remaining:
        request_cancel(state, less, now, GROUP)


def keep_released(state: AccountState, order: Order, now: datetime) -> None:
    """Its entry has ended: what was released of it is all of it, and where nothing is left of that it ends too."""
    if order.waiting:
        order = move(order, Kind.REDUCED, quantity=order.released_quantity)
        if order.quantity and order.filled_quantity >= order.quantity:
            order = replace(order, state=State.FILLED, replacement=None)
        order = noted(state, Kind.REDUCED, order, now)
    if not order.quantity:
        request_cancel(state, order, now, GROUP)


def reducible(state: AccountState, instrument_id: str, side: Side) -> Decimal:
    """How much of a position orders of this side can close."""
    position = state.positions.get(instrument_id)
    held = position.quantity if position is not None else ZERO
    return max(ZERO, held if side is Side.SELL else -held)


def reducing(state: AccountState, instrument_id: str, side: Side) -> list[Order]:
    """Open orders that only reduce, oldest first."""
    found = (
        order
        for order in state.orders.values()
        if order.reduce_only and order.state in OPEN and order.instrument_id == instrument_id and order.side is side
    )
    return sorted(found, key=lambda order: order.order_id)


def wanted(orders: Sequence[Order]) -> Decimal:
    """How much they may still trade at the venue; two legs of one group share a quantity."""
    shares: dict[UUID, Decimal] = {}
    for order in orders:
        key = (order.group_id if order.group_role is GroupRole.LEG else None) or order.order_id
        shares[key] = max(shares.get(key, ZERO), order.at_venue)
    return sum(shares.values(), ZERO)


def cancel_excess(state: AccountState, instrument_id: str, now: datetime) -> None:
    """Asks to cancel the newest of the orders that only reduce, until the others are for no more than the position.

    Those that liquidate go last.
    """
    for side in Side:
        orders = [order for order in reducing(state, instrument_id, side) if order.state is not State.PENDING_CANCEL]
        orders.sort(key=lambda order: not order.liquidates)
        cancel_newest(state, orders, reducible(state, instrument_id, side), now, EXCESS)


def cancel_newest(state: AccountState, orders: list[Order], room: Decimal, now: datetime, cause: str) -> list[Order]:
    """Asks to cancel the last of these, until the others are for no more than the room; those whose cancel is under way."""
    canceled: list[Order] = []
    while orders and wanted(orders) > room:
        newest = orders.pop()
        if newest.at_venue:
            canceled.append(request_cancel(state, state.orders[newest.order_id], now, cause))
    return canceled


def make_way(state: AccountState, instrument_id: str, side: Side, quantity: Decimal, now: datetime) -> None:
    """Asks to cancel the newest of the orders that only reduce, until there is room to close so much beside the others.

    Those that liquidate or trade at once stay: what they close is closed. An entry that is still open goes with its legs, for
    it would go on without them.
    """
    found = reducing(state, instrument_id, side)
    staying = [order for order in found if order.state is not State.PENDING_CANCEL and not gives_way(order)]
    orders = [order for order in found if order.state is not State.PENDING_CANCEL and gives_way(order)]
    room = reducible(state, instrument_id, side) - wanted(staying) - quantity
    for canceled in cancel_newest(state, orders, max(ZERO, room), now, CLOSING):
        for entry in state.group(canceled):
            if entry.group_role is GroupRole.ENTRY and entry.state in OPEN:
                request_cancel(state, entry, now, CLOSING)


def gives_way(order: Order) -> bool:
    """Whether an order that only reduces is canceled for another one that closes: it rests, or waits for its price."""
    trades_at_once = order.time_in_force in AT_ONCE or (order.limit_price is None and order.trigger_time is not None)
    return not order.liquidates and not trades_at_once
