"""Translates between the orders API and the orders domain."""

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from tradeloom.orders.v1 import events_pb2, live_pb2, orders_pb2
from tradeloom.type.v1 import decimal_pb2

from libs.errors import Refusal
from libs.mesh.errors import to_status
from libs.mesh.wire import decimal_from_proto, decimal_to_proto, embedded, time_asked, timestamp
from libs.money import multiply, plain, rounded
from services.orders.domain import (
    Account,
    AccountKind,
    AccountState,
    Annotation,
    Balance,
    Event,
    Execution,
    GroupKind,
    GroupRole,
    Kind,
    LiveState,
    LiveTrading,
    Mode,
    Order,
    OrderType,
    Replacement,
    Side,
    State,
    Ticket,
    TimeInForce,
    Trail,
)
from services.orders.ledger_store import LedgerEntry
from services.orders.margin import MarginStanding
from services.orders.use_cases import Portfolio, Preview, ValuedPosition

ORDER_CHANGED = events_pb2.OrderChanged.DESCRIPTOR.full_name
SIDES = {orders_pb2.ORDER_SIDE_BUY: Side.BUY, orders_pb2.ORDER_SIDE_SELL: Side.SELL}
SIDE_TO_PROTO = {value: key for key, value in SIDES.items()}
TYPE_TO_PROTO = {each: orders_pb2.OrderType.Value(f"ORDER_TYPE_{each.name}") for each in OrderType}
TYPES = {value: key for key, value in TYPE_TO_PROTO.items()}
TIME_IN_FORCE_TO_PROTO = {each: orders_pb2.TimeInForce.Value(f"TIME_IN_FORCE_{each.name}") for each in TimeInForce}
TIMES_IN_FORCE = {value: key for key, value in TIME_IN_FORCE_TO_PROTO.items()}
GROUP_KINDS = {orders_pb2.GroupKind.Value(f"GROUP_KIND_{kind.name}"): kind for kind in GroupKind}
ROLE_TO_PROTO = {role: orders_pb2.GroupRole.Value(f"GROUP_ROLE_{role.name}") for role in GroupRole}
STATE_TO_PROTO = {state: orders_pb2.OrderState.Value(f"ORDER_STATE_{state.name}") for state in State}
STATES = {value: key for key, value in STATE_TO_PROTO.items()}
KIND_TO_PROTO = {kind: orders_pb2.OrderEventKind.Value(f"ORDER_EVENT_KIND_{kind.name}") for kind in Kind}
MODE_TO_PROTO = {mode: orders_pb2.AccountMode.Value(f"ACCOUNT_MODE_{mode.name}") for mode in Mode}
MODES = {value: key for key, value in MODE_TO_PROTO.items()}
LIVE_STATE_TO_PROTO = {state: orders_pb2.LiveState.Value(f"LIVE_STATE_{state.name}") for state in LiveState}
ACCOUNT_KIND_TO_PROTO = {kind: orders_pb2.AccountKind.Value(f"ACCOUNT_KIND_{kind.name}") for kind in AccountKind}
BUCKETS = {
    orders_pb2.EQUITY_RESOLUTION_UNSPECIFIED: "day",
    orders_pb2.EQUITY_RESOLUTION_MINUTE: "minute",
    orders_pb2.EQUITY_RESOLUTION_HOUR: "hour",
    orders_pb2.EQUITY_RESOLUTION_DAY: "day",
}
ACCOUNT_KINDS = {value: key for key, value in ACCOUNT_KIND_TO_PROTO.items()}


def ticket_from_proto(request: orders_pb2.PlaceOrderRequest) -> Ticket:
    order_type = TYPES[request.order_type]
    usual = TimeInForce.IOC if order_type is OrderType.MARKET else TimeInForce.GTC
    return Ticket(
        account_id=UUID(request.account_id),
        instrument_id=request.instrument_id,
        side=SIDES[request.side],
        order_type=order_type,
        time_in_force=TIMES_IN_FORCE.get(request.time_in_force) or usual,
        quantity=decimal_from_proto(request.quantity),
        limit_price=decimal_from_proto(request.limit_price) if request.HasField("limit_price") else None,
        stop_price=decimal_from_proto(request.stop_price) if request.HasField("stop_price") else None,
        trail=trail_from_proto(request.trail) if request.HasField("trail") else None,
        expire_time=time_asked(request, "expire_time"),
        post_only=request.post_only,
        reduce_only=request.reduce_only,
        annotation=annotation_from_proto(request) if request.note or request.tags else None,
        deployment_id=UUID(request.deployment_id) if request.deployment_id else None,
    )


def annotation_from_proto(request: orders_pb2.PlaceOrderRequest | orders_pb2.AnnotateOrderRequest) -> Annotation:
    return Annotation(note=request.note, tags=tuple(sorted(request.tags)))


def trail_from_proto(trail: orders_pb2.Trail) -> Trail:
    if trail.HasField("amount"):
        return Trail(amount=decimal_from_proto(trail.amount))
    return Trail(percent=decimal_from_proto(trail.percent))


def trail_to_proto(trail: Trail | None) -> orders_pb2.Trail | None:
    if trail is None:
        return None
    return orders_pb2.Trail(amount=decimal_to_proto(trail.amount), percent=decimal_to_proto(trail.percent))


def replacement_from_proto(asked: orders_pb2.Replacement, client_order_id: UUID) -> Replacement:
    return Replacement(
        client_order_id=client_order_id,
        quantity=decimal_from_proto(asked.quantity) if asked.HasField("quantity") else None,
        limit_price=decimal_from_proto(asked.limit_price) if asked.HasField("limit_price") else None,
        stop_price=decimal_from_proto(asked.stop_price) if asked.HasField("stop_price") else None,
        trail=trail_from_proto(asked.trail) if asked.HasField("trail") else None,
    )


def replacement_to_proto(change: Replacement) -> orders_pb2.Replacement:
    return orders_pb2.Replacement(
        quantity=decimal_to_proto(change.quantity),
        limit_price=decimal_to_proto(change.limit_price),
        # Where a trailing stop begins follows from its trail, and nobody asked for it.
        stop_price=decimal_to_proto(change.stop_price) if change.trail is None else None,
        trail=trail_to_proto(change.trail),
        client_order_id=str(change.client_order_id),
    )


def order_to_proto(order: Order, annotation: Annotation | None = None) -> orders_pb2.Order:
    message = orders_pb2.Order(
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
        stop_price=decimal_to_proto(order.stop_price),
        trail=trail_to_proto(order.trail),
        expire_time=timestamp(order.expire_time),
        post_only=order.post_only,
        reduce_only=order.reduce_only,
        trigger_time=timestamp(order.trigger_time),
        replacement=replacement_to_proto(order.replacement) if order.replacement else None,
        client_order_id=str(order.client_order_id),
        released_quantity=decimal_to_proto(order.released_quantity),
        external=order.external_id is not None,
        triggers_here=order.triggers_here,
        liquidates=order.liquidates,
    )
    if order.group_id is not None and order.group_role is not None:
        message.group_id, message.group_role = str(order.group_id), ROLE_TO_PROTO[order.group_role]
    if order.deployment_id is not None:
        message.deployment_id = str(order.deployment_id)
    if order.parent_order_id is not None and order.slice_number is not None:
        message.parent_order_id, message.slice_number = str(order.parent_order_id), order.slice_number
    if annotation is not None:
        message.note = annotation.note
        message.tags.extend(annotation.tags)
    return message


def outcome_to_proto(outcome: bytes | Refusal, word: str) -> orders_pb2.PlaceOrderOutcome:
    """What became of one order of several: the answer of PlaceOrder, or its refusal."""
    if isinstance(outcome, Refusal):
        return orders_pb2.PlaceOrderOutcome(refusal=to_status(outcome, word))
    return orders_pb2.PlaceOrderOutcome(order=orders_pb2.PlaceOrderResponse.FromString(outcome).order)


def preview_to_proto(preview: Preview, word: str) -> orders_pb2.PreviewOrderResponse:
    message = orders_pb2.PreviewOrderResponse(refusals=[to_status(refusal, word) for refusal in preview.refusals])
    if (order := preview.order) is None:
        return message
    message.order.CopyFrom(order_to_proto(order))
    message.order.ClearField("order_id")
    message.order.ClearField("client_order_id")
    message.reserved.CopyFrom(orders_pb2.Amount(asset=order.reserved_asset, amount=decimal_to_proto(order.reserved)))
    if preview.notional is not None:
        fee = rounded(multiply(preview.notional, order.fee_rate))
        message.notional.CopyFrom(orders_pb2.Amount(asset=order.fee_asset, amount=decimal_to_proto(preview.notional)))
        message.fee.CopyFrom(orders_pb2.Amount(asset=order.fee_asset, amount=decimal_to_proto(fee)))
    if preview.initial_margin is not None:
        message.initial_margin.CopyFrom(
            orders_pb2.Amount(asset=order.reserved_asset, amount=decimal_to_proto(preview.initial_margin))
        )
    if preview.liquidation_price is not None:
        message.liquidation_price.value = plain(preview.liquidation_price)
    for margin in preview.margins:
        message.margins.add(
            limit=margin.limit, value=decimal_to_proto(margin.value), bound=decimal_to_proto(margin.bound)
        )
    return message


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
        valuation_asset=account.valuation_asset,
        venue=account.venue,
        live_state=LIVE_STATE_TO_PROTO[account.live_state] if account.live_state else orders_pb2.LIVE_STATE_UNSPECIFIED,
        stop_reason=account.stop_reason,
        leverage=account.leverage if account.is_margin else 0,
    )


def live_account_to_fact(account: Account) -> events_pb2.LiveAccountChanged:
    """A live account as execution hears of it."""
    return events_pb2.LiveAccountChanged(
        account_id=str(account.account_id),
        venue=account.venue,
        credential_id=str(account.credential_id or ""),
        credential_revision=account.credential_revision,
        trading=account.live_state in (LiveState.CONNECTING, LiveState.ON),
        kind=ACCOUNT_KIND_TO_PROTO[account.kind],
    )


def live_trading_to_proto(trading: LiveTrading) -> live_pb2.LiveTrading:
    return live_pb2.LiveTrading(
        enabled=trading.enabled,
        reason=trading.reason,
        set_time=timestamp(trading.set_time),
        revision=trading.revision,
    )


def order_bytes(state: AccountState, order: Order) -> bytes:
    """The order's message, made once while its account is at hand."""
    kept = state.serialized.get(order.order_id)
    if kept is None or kept[0] is not order:
        kept = state.serialized[order.order_id] = order, order_to_proto(order).SerializeToString()
    return kept[1]


def place_answer(state: AccountState, order: Order) -> bytes:
    """PlaceOrder's answer."""
    return embedded(orders_pb2.PlaceOrderResponse.ORDER_FIELD_NUMBER, order_bytes(state, order))


def told(state: AccountState, event: Event) -> tuple[bytes, tuple[str, bytes]]:
    """An event as streams send it, and as a fact for the other services."""
    rest = orders_pb2.OrderEvent(
        account_sequence=event.account_sequence,
        kind=KIND_TO_PROTO[event.kind],
        execution=execution_to_proto(event.execution) if event.execution else None,
        time=timestamp(event.time),
    ).SerializeToString()
    message = rest + embedded(orders_pb2.OrderEvent.ORDER_FIELD_NUMBER, order_bytes(state, event.order))
    of_fact = events_pb2.OrderChanged(
        mode=MODE_TO_PROTO[state.account.mode], send_before=timestamp(event.send_before)
    ).SerializeToString()
    fact = of_fact + embedded(events_pb2.OrderChanged.EVENT_FIELD_NUMBER, message)
    return message, (ORDER_CHANGED, fact)


def balance_to_proto(balance: Balance) -> orders_pb2.Balance:
    return orders_pb2.Balance(
        asset=balance.asset,
        total=decimal_to_proto(balance.total),
        reserved=decimal_to_proto(balance.reserved),
        available=decimal_to_proto(balance.available),
    )


def position_to_proto(valued: ValuedPosition, *, is_margin: bool = False) -> orders_pb2.Position:
    position, holding = valued.position, valued.holding
    return orders_pb2.Position(
        instrument_id=position.instrument_id,
        quantity=decimal_to_proto(position.quantity),
        average_price=decimal_to_proto(position.average_price) if position.quantity else None,
        realized_profit=decimal_to_proto(position.realized_profit),
        fees=decimal_to_proto(position.fees),
        unrealized_profit=decimal_to_proto(valued.unrealized_profit),
        mark_price=decimal_to_proto(valued.mark_price),
        update_time=timestamp(position.update_time),
        notional=amount_to_proto(holding and holding.notional),
        initial_margin=amount_to_proto(holding and holding.initial),
        maintenance_margin=amount_to_proto(holding and holding.maintenance),
        liquidation_price=decimal_to_proto(valued.liquidation_price),
        funding=decimal_to_proto(position.funding) if is_margin else None,
    )


def amount_to_proto(amount: Decimal | None) -> decimal_pb2.Decimal | None:
    """What was worked out to the last digit, with as many as the contract has; None stays unset."""
    return decimal_to_proto(None if amount is None else rounded(amount))


def positions_to_proto(positions: Sequence[ValuedPosition], *, is_margin: bool) -> list[orders_pb2.Position]:
    return [position_to_proto(valued, is_margin=is_margin) for valued in positions]


def portfolio_to_proto(portfolio: Portfolio) -> orders_pb2.GetPortfolioResponse:
    return orders_pb2.GetPortfolioResponse(
        account=account_to_proto(portfolio.account),
        balances=[balance_to_proto(balance) for balance in portfolio.balances],
        positions=positions_to_proto(portfolio.positions, is_margin=portfolio.account.is_margin),
        equity=[
            orders_pb2.Amount(asset=asset, amount=amount_to_proto(amount)) for asset, amount in portfolio.equity.items()
        ],
        revision=portfolio.account.account_sequence,
        margins=map(standing_to_proto, portfolio.margins),
    )


def standing_to_proto(standing: MarginStanding) -> orders_pb2.MarginStanding:
    return orders_pb2.MarginStanding(
        asset=standing.asset,
        wallet_balance=amount_to_proto(standing.wallet),
        unrealized_profit=amount_to_proto(standing.profit),
        margin_balance=amount_to_proto(standing.balance),
        initial_margin=amount_to_proto(standing.initial),
        maintenance_margin=amount_to_proto(standing.maintenance),
        reserved=amount_to_proto(standing.reserved),
        available=amount_to_proto(standing.available),
        margin_ratio=decimal_to_proto(standing.ratio),
    )


def entry_to_proto(entry: LedgerEntry) -> orders_pb2.LedgerEntry:
    return orders_pb2.LedgerEntry(
        entry_id=entry.entry_id,
        transaction_id=str(entry.transaction_id),
        kind=entry.kind,
        book=entry.book,
        asset=entry.asset,
        amount=decimal_to_proto(entry.amount),
        order_id=str(entry.order_id or ""),
        execution_id=str(entry.execution_id or ""),
        deployment_id=str(entry.deployment_id or ""),
        time=timestamp(entry.time),
        cause=entry.cause,
        reconciliation_id=entry.reconciliation_id,
    )
