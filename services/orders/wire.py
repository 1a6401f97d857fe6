"""Translates between the orders API and the orders domain."""

from collections.abc import Sequence
from uuid import UUID

from tradeloom.orders.v1 import events_pb2, orders_pb2

from libs.mesh.wire import decimal_from_proto, decimal_to_proto, timestamp
from services.orders.domain import (
    Account,
    AccountKind,
    Balance,
    Event,
    Execution,
    Kind,
    Mode,
    Order,
    OrderType,
    Side,
    State,
    Ticket,
    TimeInForce,
)
from services.orders.use_cases import Portfolio, ValuedPosition

SIDES = {orders_pb2.ORDER_SIDE_BUY: Side.BUY, orders_pb2.ORDER_SIDE_SELL: Side.SELL}
TYPES = {orders_pb2.ORDER_TYPE_MARKET: OrderType.MARKET, orders_pb2.ORDER_TYPE_LIMIT: OrderType.LIMIT}
TIMES_IN_FORCE = {
    orders_pb2.TIME_IN_FORCE_GTC: TimeInForce.GTC,
    orders_pb2.TIME_IN_FORCE_IOC: TimeInForce.IOC,
    orders_pb2.TIME_IN_FORCE_FOK: TimeInForce.FOK,
}
USUAL = {OrderType.MARKET: TimeInForce.IOC, OrderType.LIMIT: TimeInForce.GTC}
SIDE_TO_PROTO = {value: key for key, value in SIDES.items()}
TYPE_TO_PROTO = {value: key for key, value in TYPES.items()}
TIME_IN_FORCE_TO_PROTO = {value: key for key, value in TIMES_IN_FORCE.items()}
STATE_TO_PROTO = {state: orders_pb2.OrderState.Value(f"ORDER_STATE_{state.name}") for state in State}
STATES = {value: key for key, value in STATE_TO_PROTO.items()}
KIND_TO_PROTO = {kind: orders_pb2.OrderEventKind.Value(f"ORDER_EVENT_KIND_{kind.name}") for kind in Kind}
MODE_TO_PROTO = {mode: orders_pb2.AccountMode.Value(f"ACCOUNT_MODE_{mode.name}") for mode in Mode}
MODES = {value: key for key, value in MODE_TO_PROTO.items()}
ACCOUNT_KIND_TO_PROTO = {kind: orders_pb2.AccountKind.Value(f"ACCOUNT_KIND_{kind.name}") for kind in AccountKind}
ACCOUNT_KINDS = {value: key for key, value in ACCOUNT_KIND_TO_PROTO.items()}


def ticket_from_proto(request: orders_pb2.PlaceOrderRequest) -> Ticket:
    order_type = TYPES[request.order_type]
    return Ticket(
        account_id=UUID(request.account_id),
        instrument_id=request.instrument_id,
        side=SIDES[request.side],
        order_type=order_type,
        time_in_force=TIMES_IN_FORCE.get(request.time_in_force) or USUAL[order_type],
        quantity=decimal_from_proto(request.quantity),
        limit_price=decimal_from_proto(request.limit_price) if request.HasField("limit_price") else None,
    )


def order_to_proto(order: Order) -> orders_pb2.Order:
    return orders_pb2.Order(
        order_id=str(order.order_id),
        account_id=str(order.account_id),
        instrument_id=order.instrument_id,
        side=SIDE_TO_PROTO[order.side],
        order_type=TYPE_TO_PROTO[order.order_type],
        time_in_force=TIME_IN_FORCE_TO_PROTO[order.time_in_force],
        quantity=decimal_to_proto(order.quantity),
        limit_price=decimal_to_proto(order.limit_price),
        state=STATE_TO_PROTO[order.state],
        filled_quantity=decimal_to_proto(order.filled_quantity),
        average_price=decimal_to_proto(order.average_price),
        fees=decimal_to_proto(order.fees),
        fee_asset=order.fee_asset,
        reason=order.reason,
        create_time=timestamp(order.create_time),
        update_time=timestamp(order.update_time),
        market_time=timestamp(order.market_time),
        revision=order.revision,
        protection_price=decimal_to_proto(order.protection_price),
    )


def execution_to_proto(execution: Execution) -> orders_pb2.Execution:
    return orders_pb2.Execution(
        execution_id=str(execution.execution_id),
        order_id=str(execution.order_id),
        account_id=str(execution.account_id),
        instrument_id=execution.instrument_id,
        side=SIDE_TO_PROTO[execution.side],
        price=decimal_to_proto(execution.price),
        quantity=decimal_to_proto(execution.quantity),
        fee=decimal_to_proto(execution.fee),
        fee_asset=execution.fee_asset,
        maker=execution.maker,
        venue_fill_id=execution.venue_fill_id,
        time=timestamp(execution.time),
    )


def account_to_proto(account: Account) -> orders_pb2.Account:
    return orders_pb2.Account(
        account_id=str(account.account_id),
        name=account.name,
        mode=MODE_TO_PROTO[account.mode],
        kind=ACCOUNT_KIND_TO_PROTO[account.kind],
        create_time=timestamp(account.create_time),
        revision=account.account_sequence,
    )


def event_to_proto(event: Event) -> orders_pb2.OrderEvent:
    return orders_pb2.OrderEvent(
        account_sequence=event.account_sequence,
        kind=KIND_TO_PROTO[event.kind],
        order=order_to_proto(event.order),
        execution=execution_to_proto(event.execution) if event.execution else None,
        time=timestamp(event.time),
    )


def told(event: Event, mode: Mode) -> tuple[bytes, tuple[str, bytes]]:
    """An event as streams send it, and as a fact for the other services."""
    message = event_to_proto(event)
    fact = events_pb2.OrderChanged(event=message, mode=MODE_TO_PROTO[mode])
    return message.SerializeToString(), (fact.DESCRIPTOR.full_name, fact.SerializeToString())


def balance_to_proto(balance: Balance) -> orders_pb2.Balance:
    return orders_pb2.Balance(
        asset=balance.asset,
        total=decimal_to_proto(balance.total),
        reserved=decimal_to_proto(balance.reserved),
        available=decimal_to_proto(balance.available),
    )


def position_to_proto(valued: ValuedPosition) -> orders_pb2.Position:
    position = valued.position
    return orders_pb2.Position(
        instrument_id=position.instrument_id,
        quantity=decimal_to_proto(position.quantity),
        average_price=decimal_to_proto(position.average_price) if position.quantity else None,
        realized_profit=decimal_to_proto(position.realized_profit),
        fees=decimal_to_proto(position.fees),
        unrealized_profit=decimal_to_proto(valued.unrealized_profit),
        mark_price=decimal_to_proto(valued.mark_price),
        update_time=timestamp(position.update_time),
    )


def positions_to_proto(positions: Sequence[ValuedPosition]) -> list[orders_pb2.Position]:
    return [position_to_proto(valued) for valued in positions]


def portfolio_to_proto(portfolio: Portfolio) -> orders_pb2.GetPortfolioResponse:
    return orders_pb2.GetPortfolioResponse(
        account=account_to_proto(portfolio.account),
        balances=[balance_to_proto(balance) for balance in portfolio.balances],
        positions=positions_to_proto(portfolio.positions),
        equity=[
            orders_pb2.Amount(asset=asset, amount=decimal_to_proto(amount))
            for asset, amount in portfolio.equity.items()
        ],
        revision=portfolio.account.account_sequence,
    )
