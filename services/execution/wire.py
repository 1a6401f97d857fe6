"""Translates between the contract and the execution domain."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.execution.v1 import execution_pb2
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import events_pb2, orders_pb2, risk_pb2
from tradeloom.users.v1 import users_pb2

from libs.matching.grid import Grid
from libs.matching.orders import Book, Print, Side
from libs.mesh.wire import decimal_from_proto, time_from_proto, timestamp
from libs.money import ZERO
from services.execution.domain import (
    PAPER,
    AccountKind,
    CredentialProblem,
    Instrument,
    KeyRights,
    LeasedKey,
    LiveAccount,
    Mode,
    Order,
    OrderType,
    Replacement,
    Switch,
    SwitchMode,
    TimeInForce,
    VenueCard,
    venue_for,
)

SECOND_NS = 1_000_000_000

SIDES = {orders_pb2.ORDER_SIDE_BUY: Side.BUY, orders_pb2.ORDER_SIDE_SELL: Side.SELL}
TYPES = {
    orders_pb2.ORDER_TYPE_MARKET: OrderType.MARKET,
    orders_pb2.ORDER_TYPE_LIMIT: OrderType.LIMIT,
    orders_pb2.ORDER_TYPE_STOP: OrderType.STOP,
    orders_pb2.ORDER_TYPE_STOP_LIMIT: OrderType.STOP_LIMIT,
    orders_pb2.ORDER_TYPE_TRAILING_STOP: OrderType.TRAILING_STOP,
    orders_pb2.ORDER_TYPE_TAKE_PROFIT: OrderType.TAKE_PROFIT,
}
TIMES_IN_FORCE = {
    orders_pb2.TIME_IN_FORCE_GTC: TimeInForce.GTC,
    orders_pb2.TIME_IN_FORCE_IOC: TimeInForce.IOC,
    orders_pb2.TIME_IN_FORCE_FOK: TimeInForce.FOK,
    orders_pb2.TIME_IN_FORCE_DAY: TimeInForce.DAY,
    orders_pb2.TIME_IN_FORCE_GTD: TimeInForce.GTD,
}
PROBLEMS = {
    CredentialProblem.KEY_INVALID: execution_pb2.CREDENTIAL_PROBLEM_KEY_INVALID,
    CredentialProblem.SECRET_INVALID: execution_pb2.CREDENTIAL_PROBLEM_SECRET_INVALID,
}
SWITCH_MODES = {
    risk_pb2.KILL_SWITCH_MODE_OFF: SwitchMode.OFF,
    risk_pb2.KILL_SWITCH_MODE_REDUCE_ONLY: SwitchMode.REDUCE_ONLY,
    risk_pb2.KILL_SWITCH_MODE_HALT: SwitchMode.HALT,
}
SCOPES = {
    risk_pb2.KILL_SWITCH_SCOPE_GLOBAL: "global",
    risk_pb2.KILL_SWITCH_SCOPE_USER: "user",
    risk_pb2.KILL_SWITCH_SCOPE_ACCOUNT: "account",
    risk_pb2.KILL_SWITCH_SCOPE_DEPLOYMENT: "deployment",
}
KINDS = {orders_pb2.ACCOUNT_KIND_CASH: AccountKind.CASH, orders_pb2.ACCOUNT_KIND_MARGIN: AccountKind.MARGIN}
MODES = {orders_pb2.ACCOUNT_MODE_PAPER: Mode.PAPER, orders_pb2.ACCOUNT_MODE_LIVE: Mode.LIVE}


def order_from_proto(changed: events_pb2.OrderChanged, user_id: UUID, *, latency_ns: int) -> Order:
    """The intent that an accepted or a released order gives. Without a market time of its own it is active at once."""
    order = changed.event.order
    order_type = TYPES[order.order_type]
    if order_type is OrderType.TAKE_PROFIT and order.HasField("limit_price"):
        order_type = OrderType.TAKE_PROFIT_LIMIT
    limit_price, released_quantity = _decimal(order, "limit_price"), _decimal(order, "released_quantity")
    quantity = decimal_from_proto(order.quantity)
    market_time_ns = nanoseconds(order.market_time)
    trail_amount, trail_percent = _trail(order)
    asked = Order(
        order_id=UUID(order.order_id),
        user_id=user_id,
        account_id=UUID(order.account_id),
        venue=venue_for(MODES[changed.mode], order.instrument_id),
        instrument_id=order.instrument_id,
        side=SIDES[order.side],
        order_type=order_type,
        time_in_force=TIMES_IN_FORCE[order.time_in_force],
        quantity=quantity if released_quantity is None else released_quantity,
        worst_price=_decimal(order, "protection_price") if limit_price is None else limit_price,
        active_time_ns=market_time_ns + latency_ns if market_time_ns > 0 else 0,
        client_order_id=order.client_order_id or order.order_id,
        stop_price=_decimal(order, "stop_price"),
        trail_amount=trail_amount,
        trail_percent=trail_percent,
        expire_time_ns=nanoseconds(order.expire_time) if order.HasField("expire_time") else None,
        post_only=order.post_only,
        group_id=UUID(order.group_id) if order.group_role == orders_pb2.GROUP_ROLE_LEG else None,
        released_quantity=released_quantity,
        held_back=held_back_in(order) or ZERO,
        send_before=time_from_proto(changed.send_before) if changed.HasField("send_before") else None,
        accept_time=time_from_proto(order.create_time) if order.HasField("create_time") else None,
        reduce_only=order.reduce_only,
        deployment_id=UUID(order.deployment_id) if order.deployment_id else None,
    )
    return asked if asked.venue == PAPER else beyond_network(asked, changed)


def beyond_network(asked: Order, changed: events_pb2.OrderChanged) -> Order:
    """As a venue is to have it that knows of no groups: what is sent of one is all that is to trade.

    One whose price was watched for by orders is what it has become: a limit order, or a market order within its protection.
    That it was found to make a position smaller is said of the time at which it was released.
    """
    order = changed.event.order
    asked = replace(asked, group_id=None, released_quantity=None, held_back=ZERO)
    if changed.event.kind == orders_pb2.ORDER_EVENT_KIND_RELEASED and changed.event.HasField("time"):
        asked = replace(asked, accept_time=time_from_proto(changed.event.time))
    if not order.triggers_here:
        return asked
    asked = replace(asked, stop_price=None, trail_amount=None, trail_percent=None)
    if order.HasField("limit_price"):
        return replace(asked, order_type=OrderType.LIMIT)
    return replace(asked, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC, expire_time_ns=None)


def held_back_in(order: orders_pb2.Order) -> Decimal | None:
    """What an order that is released part by part may be released for later; None for others.

    What the others of its group have traded is taken off its quantity and off what was released alike.
    """
    released_quantity = _decimal(order, "released_quantity")
    return None if released_quantity is None else max(ZERO, decimal_from_proto(order.quantity) - released_quantity)


def replacement_from_proto(replacement: orders_pb2.Replacement) -> Replacement:
    trail_amount, trail_percent = _trail(replacement)
    return Replacement(
        client_order_id=replacement.client_order_id,
        quantity=_decimal(replacement, "quantity"),
        limit_price=_decimal(replacement, "limit_price"),
        stop_price=_decimal(replacement, "stop_price"),
        trail_amount=trail_amount,
        trail_percent=trail_percent,
    )


def live_account_from_proto(changed: events_pb2.LiveAccountChanged, user_id: UUID) -> LiveAccount:
    return LiveAccount(
        account_id=UUID(changed.account_id),
        user_id=user_id,
        venue=changed.venue,
        credential_id=UUID(changed.credential_id) if changed.credential_id else None,
        credential_revision=changed.credential_revision,
        trading=changed.trading,
        kind=KINDS.get(changed.kind, AccountKind.CASH),
        confirm_count=int(changed.trading),
    )


def switch_from_proto(switch: risk_pb2.KillSwitch) -> Switch:
    return Switch(
        scope=SCOPES[switch.scope],
        target_id=UUID(switch.target_id) if switch.target_id else None,
        by_operator=switch.by_operator,
        mode=SWITCH_MODES[switch.mode],
        time=time_from_proto(switch.time),
    )


def _decimal(message: Message, name: str) -> Decimal | None:
    return decimal_from_proto(getattr(message, name)) if message.HasField(name) else None


def _trail(message: orders_pb2.Order | orders_pb2.Replacement) -> tuple[Decimal | None, Decimal | None]:
    """Amount and percent, of which one is set where there is a trail."""
    distance = message.trail.WhichOneof("distance") if message.HasField("trail") else None
    value = decimal_from_proto(getattr(message.trail, distance)) if distance else None
    return (None, value) if distance == "percent" else (value, None)


def instrument_from_proto(instrument: marketdata_pb2.Instrument) -> Instrument:
    return Instrument(
        instrument_id=instrument.instrument_id,
        quote_asset=instrument.quote_asset,
        tick_size=decimal_from_proto(instrument.tick_size),
        lot_size=decimal_from_proto(instrument.lot_size),
        maker_fee_rate=decimal_from_proto(instrument.maker_fee_rate),
        taker_fee_rate=decimal_from_proto(instrument.taker_fee_rate),
        has_book=instrument.has_book,
    )


def moments_from_bytes(response: bytes, grid: Grid) -> Iterator[Print | Book]:
    """What a serialized message of batches says of one instrument's market: its ticks in sequence, then the book.

    What was brought after it had been missed is of the past, and fills nothing.
    """
    for batch in marketdata_pb2.StreamTicksResponse.FromString(response).batches:
        if batch.backfill:
            continue
        for tick in batch.ticks:
            yield grid.trade(nanoseconds(tick.time), tick.price, tick.quantity)
        if batch.HasField("book"):
            yield grid.book(
                nanoseconds(batch.book.time),
                [(level.price, level.quantity) for level in batch.book.bids],
                [(level.price, level.quantity) for level in batch.book.asks],
            )


def venue_to_proto(card: VenueCard, open_order_count: int) -> execution_pb2.Venue:
    return execution_pb2.Venue(
        venue=card.venue,
        description=card.description,
        order_types=[order_type.name for order_type in card.order_types],
        times_in_force=[time_in_force.name for time_in_force in card.times_in_force],
        open_order_count=open_order_count,
    )


def key_from_proto(leased: users_pb2.LeaseBrokerCredentialResponse) -> LeasedKey:
    return LeasedKey(
        venue=leased.venue,
        api_key=leased.api_key,
        api_secret=leased.api_secret,
        passphrase=leased.passphrase,
        expire_time=time_from_proto(leased.expire_time),
        revision=leased.revision,
    )


def rights_to_proto(rights: KeyRights, revision: int, now: datetime) -> execution_pb2.CheckBrokerCredentialResponse:
    return execution_pb2.CheckBrokerCredentialResponse(
        can_read=rights.can_read,
        can_trade=rights.can_trade,
        can_withdraw=rights.can_withdraw,
        problem=PROBLEMS[rights.problem] if rights.problem else execution_pb2.CREDENTIAL_PROBLEM_UNSPECIFIED,
        check_time=timestamp(now),
        revision=revision,
    )


def nanoseconds(time: Timestamp) -> int:
    """Since 1970; 0 for a time that is not set."""
    return time.seconds * SECOND_NS + time.nanos


def timestamp_from_ns(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // SECOND_NS, nanos=time_ns % SECOND_NS)
