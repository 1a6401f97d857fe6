"""Orders and their story."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.errors import CursorInvalid, Refusal
from libs.ids import uuid7
from libs.mesh import identity, pages
from libs.mesh.errors import away
from libs.mesh.requests import answer_once, key_of
from libs.mesh.wire import time_asked
from libs.store.database import Connection, Database
from services.orders import store, use_cases, wire
from services.orders.batches import Batches
from services.orders.domain import Order
from services.orders.hub import Hub
from services.orders.refusals import AccountNotFound, OrderNotFound
from services.orders.servicer.desk import USUAL_PAGE_SIZE, beat, own_account
from services.orders.store import AccountStore, Filter
from services.orders.use_cases import Placing, Selection

FIRST_CURSOR = "0"
WORD = "orders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intentions:
    """What may be done with orders beside placing one."""

    place_group: use_cases.PlaceGroup
    preview_order: use_cases.PreviewOrder
    replace_order: use_cases.ReplaceOrder
    cancel_order: use_cases.CancelOrder
    cancel_all_orders: use_cases.CancelAllOrders
    annotate_order: use_cases.AnnotateOrder


class OrderServicer(orders_pb2_grpc.OrderServiceServicer):
    def __init__(
        self, database: Database, batches: Batches, intentions: Intentions, hub: Hub, heartbeat_seconds: float
    ) -> None:
        self._database, self._batches, self._intentions = database, batches, intentions
        self._hub, self._heartbeat_seconds = hub, heartbeat_seconds

    async def PlaceOrder(self, request, context) -> Any:
        # Serialized already: it is what is kept for a repeat, too.
        return await self._batches.place(Placing(key_of(request), wire.ticket_from_proto(request)))

    async def PlaceOrders(self, request, context):
        asked = [placing_of(each) for each in request.orders]
        placed = iter(await self._batches.place_all([each for each in asked if isinstance(each, Placing)]))
        outcomes = [outcome_of(next(placed)) if isinstance(each, Placing) else each for each in asked]
        return orders_pb2.PlaceOrdersResponse(outcomes=[wire.outcome_to_proto(each, WORD) for each in outcomes])

    async def PlaceOrderGroup(self, request, context):
        async def work(rows: Connection) -> orders_pb2.PlaceOrderGroupResponse:
            orders = await self._intentions.place_group(
                AccountStore(rows),
                wire.GROUP_KINDS[request.kind],
                [wire.ticket_from_proto(each) for each in request.orders],
            )
            return orders_pb2.PlaceOrderGroupResponse(
                group_id=str(orders[0].group_id), orders=map(wire.order_to_proto, orders)
            )

        return await answer_once(self._database, key_of(request), orders_pb2.PlaceOrderGroupResponse, work)

    async def PreviewOrder(self, request, context):
        ticket = wire.ticket_from_proto(request.order)
        async with self._database.transaction(identity.current().user_id, snapshot=True) as rows:
            state = await store.read_state(rows, ticket.account_id, [ticket.instrument_id])
            if state is None:
                raise AccountNotFound("no such account", account_id=request.order.account_id)
            preview = await self._intentions.preview_order(AccountStore(rows), state, ticket)
        return wire.preview_to_proto(preview, WORD)

    async def ReplaceOrder(self, request, context):
        order_id = UUID(request.order_id)
        change = wire.replacement_from_proto(request.replacement, uuid7())

        async def work(rows: Connection) -> orders_pb2.ReplaceOrderResponse:
            account_id = await store.account_of_order(rows, order_id)
            order = await self._intentions.replace_order(AccountStore(rows), account_id, order_id, change)
            return orders_pb2.ReplaceOrderResponse(order=wire.order_to_proto(order))

        return await answer_once(self._database, key_of(request), orders_pb2.ReplaceOrderResponse, work)

    async def CancelOrder(self, request, context):
        order_id = UUID(request.order_id)

        async def work(rows: Connection) -> orders_pb2.CancelOrderResponse:
            account_id = await store.account_of_order(rows, order_id)
            order = await self._intentions.cancel_order(AccountStore(rows), account_id, order_id)
            return orders_pb2.CancelOrderResponse(order=wire.order_to_proto(order))

        return await answer_once(self._database, key_of(request), orders_pb2.CancelOrderResponse, work)

    async def CancelAllOrders(self, request, context):
        selection = Selection(
            instrument_id=request.instrument_id or None,
            side=wire.SIDES.get(request.side),
            deployment_id=UUID(request.deployment_id) if request.deployment_id else None,
        )

        async def work(rows: Connection) -> orders_pb2.CancelAllOrdersResponse:
            account, order_ids, parent_order_ids = await self._intentions.cancel_all_orders(
                AccountStore(rows), UUID(request.account_id), selection
            )
            return orders_pb2.CancelAllOrdersResponse(
                order_ids=map(str, order_ids),
                revision=account.account_sequence,
                parent_order_ids=map(str, parent_order_ids),
            )

        return await answer_once(self._database, key_of(request), orders_pb2.CancelAllOrdersResponse, work)

    async def AnnotateOrder(self, request, context):
        order_id, annotation = UUID(request.order_id), wire.annotation_from_proto(request)

        async def work(rows: Connection) -> orders_pb2.AnnotateOrderResponse:
            account_id = await store.account_of_order(rows, order_id)
            order = await self._intentions.annotate_order(AccountStore(rows), account_id, order_id, annotation)
            return orders_pb2.AnnotateOrderResponse(order=wire.order_to_proto(order, annotation))

        return await answer_once(self._database, key_of(request), orders_pb2.AnnotateOrderResponse, work)

    async def GetOrder(self, request, context):
        async with self._database.transaction(identity.current().user_id) as rows:
            order = await store.find_order(rows, UUID(request.order_id))
            if order is None:
                raise OrderNotFound("no such order", order_id=request.order_id)
            (message,) = await annotated(rows, [order])
        return orders_pb2.GetOrderResponse(order=message)

    async def ListOrders(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        wanted = Filter(
            states=[wire.STATES[state] for state in request.states],
            instrument_id=request.instrument_id,
            start_time=time_asked(request, "start_time"),
            end_time=time_asked(request, "end_time"),
            tag=request.tag,
            deployment_id=UUID(request.deployment_id) if request.deployment_id else None,
            group_id=UUID(request.group_id) if request.group_id else None,
            parent_order_id=UUID(request.parent_order_id) if request.parent_order_id else None,
        )
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            before = pages.uuid_after(request.page_token)
            found = await store.list_orders(rows, account.account_id, wanted, before=before, limit=size + 1)
            page, more = found[:size], len(found) > size
            orders = await annotated(rows, page)
        return orders_pb2.ListOrdersResponse(
            orders=orders, next_page_token=pages.token_after(str(page[-1].order_id)) if more else ""
        )

    async def ListExecutions(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await store.list_executions(
                rows,
                account.account_id,
                order_id=UUID(request.order_id) if request.order_id else None,
                before=pages.uuid_after(request.page_token),
                limit=size + 1,
            )
        page, more = found[:size], len(found) > size
        return orders_pb2.ListExecutionsResponse(
            executions=map(wire.execution_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].execution_id)) if more else "",
        )

    async def StreamOrderEvents(self, request, context):
        user_id = identity.current().user_id
        async with self._hub.listening(request.account_id) as woken:
            acknowledgement, sequence = await self._acknowledge(request, user_id)
            yield acknowledgement
            while True:
                woken.clear()
                async with self._database.transaction(user_id) as rows:
                    events = await store.events_after(rows, UUID(request.account_id), sequence)
                for sequence, event in events:
                    yield orders_pb2.StreamOrderEventsResponse(
                        cursor=str(sequence), event=orders_pb2.OrderEvent.FromString(event)
                    )
                if events:
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await woken.wait()
                if not woken.is_set():
                    yield orders_pb2.StreamOrderEventsResponse(cursor=str(sequence), heartbeat=beat())

    async def _acknowledge(
        self, request: orders_pb2.StreamOrderEventsRequest, user_id: UUID
    ) -> tuple[orders_pb2.StreamOrderEventsResponse, int]:
        # Of one moment, so that the orders are those of exactly that sequence.
        async with self._database.transaction(user_id, snapshot=True) as rows:
            account = await own_account(rows, request.account_id)
            sequence = account.account_sequence
            orders = [] if request.after_cursor else await store.open_orders(rows, account.account_id)
        if request.after_cursor:
            sequence = sequence_from(request.after_cursor, sequence)
        acknowledgement = orders_pb2.OrdersAcknowledgement(
            open_orders=map(wire.order_to_proto, orders), heartbeat_seconds=max(1, round(self._heartbeat_seconds))
        )
        message = orders_pb2.StreamOrderEventsResponse(cursor=str(sequence), acknowledgement=acknowledgement)
        return message, sequence


async def annotated(rows: Connection, orders: Sequence[Order]) -> list[orders_pb2.Order]:
    """Orders with what their owner has noted about them."""
    annotations = await store.annotations_of(rows, [order.order_id for order in orders]) if orders else {}
    return [wire.order_to_proto(order, annotations.get(order.order_id)) for order in orders]


def placing_of(request: orders_pb2.PlaceOrderRequest) -> Placing | Refusal:
    """One order of several, or why it is none. An account that the caller's key is not bound to is as one nobody has."""
    if not identity.current().may_use_account(UUID(request.account_id)):
        return AccountNotFound("no such account", account_id=request.account_id)
    try:
        return Placing(key_of(request), wire.ticket_from_proto(request))
    except Refusal as refusal:
        return refusal


def outcome_of(placed: bytes | BaseException) -> bytes | Refusal:
    """The answer or the refusal of one order of several; raises what is neither, and a repeat tells."""
    if isinstance(placed, bytes | Refusal):
        return placed
    if isinstance(placed, Exception) and (refusal := away(placed)):
        return refusal
    raise placed


def sequence_from(cursor: str, newest: int) -> int:
    if not cursor.isascii() or not cursor.isdigit() or int(cursor) > newest:
        raise CursorInvalid({"after_cursor": "is not one that this account's stream gave out"})
    return int(cursor)
