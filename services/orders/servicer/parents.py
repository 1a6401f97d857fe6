"""Parent orders: schedules of child orders."""

from collections.abc import Callable
from uuid import UUID

from tradeloom.orders.v1 import parents_pb2, parents_pb2_grpc

from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.store.database import Connection, Database
from services.orders import parent_store, parent_wire
from services.orders.parent_store import ParentStore
from services.orders.parent_use_cases import CancelParentOrder, PlaceParentOrder
from services.orders.refusals import ParentOrderNotFound
from services.orders.servicer.desk import USUAL_PAGE_SIZE, own_account
from services.orders.store import AccountStore


class ParentOrderServicer(parents_pb2_grpc.ParentOrderServiceServicer):
    def __init__(
        self, database: Database, place: PlaceParentOrder, cancel: CancelParentOrder, wake: Callable[[], None]
    ) -> None:
        """Wake has this process's worker look at once."""
        self._database, self._place, self._cancel, self._wake = database, place, cancel, wake

    async def PlaceParentOrder(self, request, context):
        ticket = parent_wire.ticket_from_proto(request)

        async def work(rows: Connection) -> parents_pb2.PlaceParentOrderResponse:
            parent = await self._place(AccountStore(rows), ParentStore(rows), ticket)
            rows.after_commit(self._wake)
            return parents_pb2.PlaceParentOrderResponse(parent_order=parent_wire.parent_to_proto(parent))

        return await answer_once(self._database, key_of(request), parents_pb2.PlaceParentOrderResponse, work)

    async def CancelParentOrder(self, request, context):
        parent_order_id = UUID(request.parent_order_id)

        async def work(rows: Connection) -> parents_pb2.CancelParentOrderResponse:
            account_id = await parent_store.account_of_parent(rows, parent_order_id)
            parent = await self._cancel(AccountStore(rows), ParentStore(rows), account_id, parent_order_id)
            return parents_pb2.CancelParentOrderResponse(parent_order=parent_wire.parent_to_proto(parent))

        return await answer_once(self._database, key_of(request), parents_pb2.CancelParentOrderResponse, work)

    async def GetParentOrder(self, request, context):
        parent_order_id = UUID(request.parent_order_id)
        async with self._database.transaction(identity.current().user_id, snapshot=True) as rows:
            parent = await parent_store.find(rows, parent_order_id)
            if parent is None:
                raise ParentOrderNotFound("no such parent order", parent_order_id=parent_order_id)
            skips = await parent_store.skips_of(rows, parent_order_id)
        return parents_pb2.GetParentOrderResponse(
            parent_order=parent_wire.parent_to_proto(parent), skips=map(parent_wire.skip_to_proto, skips)
        )

    async def ListParentOrders(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await parent_store.list_parents(
                rows,
                account.account_id,
                [parent_wire.STATES[state] for state in request.states],
                before=pages.uuid_after(request.page_token),
                limit=size + 1,
            )
        page, more = found[:size], len(found) > size
        return parents_pb2.ListParentOrdersResponse(
            parent_orders=map(parent_wire.parent_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].parent_order_id)) if more else "",
        )
