"""Speaks the execution API: reads the request, asks the store, writes the response."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc

from libs.errors import Unauthenticated
from libs.ids import uuid7
from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.store.database import Connection, Database
from services.execution import store, wire
from services.execution.clients import Keys
from services.execution.domain import (
    AccountNotFound,
    ExternalOrderDone,
    ExternalOrderNotFound,
    InstrumentNotFound,
    LiveAccount,
    NotConnected,
    ReconciliationNotFound,
    VenueCard,
    find_venue,
)
from services.execution.live import reconciliation_store
from services.execution.live import store as live_store
from services.execution.live import wire as live_wire
from services.execution.live.reconciliation_store import ExternalOrder
from services.execution.venues.credentials import Checkers

USUAL_PAGE_SIZE = 50
OPERATORS = frozenset({"operator", "admin"})


class ExecutionServicer(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(
        self,
        database: Database,
        worker: Database,
        venues: Mapping[str, VenueCard],
        keys: Keys,
        checkers: Checkers,
        unknown_alert_seconds: float,
    ) -> None:
        """Worker is for what is counted and looked for over all users: what venues carry, and what operators name."""
        self._database, self._worker, self._venues = database, worker, venues
        self._keys, self._checkers = keys, checkers
        self._alert = timedelta(seconds=unknown_alert_seconds)

    async def ListVenues(self, request, context):
        counts = await self._count_open()
        cards = [self._venues[venue] for venue in sorted(self._venues)]
        return execution_pb2.ListVenuesResponse(
            venues=[wire.venue_to_proto(card, counts.get(card.venue, 0)) for card in cards]
        )

    async def GetVenue(self, request, context):
        card = find_venue(self._venues, request.venue)
        counts = await self._count_open()
        return execution_pb2.GetVenueResponse(venue=wire.venue_to_proto(card, counts.get(card.venue, 0)))

    async def CheckBrokerCredential(self, request, context):
        try:
            user_id = identity.current().user_id
        except LookupError:
            raise Unauthenticated("the call names no user") from None
        async with self._checkers.turn(user_id):
            key = await self._keys.lease_to_test(user_id, UUID(request.credential_id), request.request_id)
            rights = await self._checkers.check(key)
        return wire.rights_to_proto(rights, key.revision, datetime.now(UTC))

    async def _count_open(self) -> dict[str, int]:
        async with self._worker.transaction() as rows:
            return await store.count_open(rows)

    # Comparing with venues.

    async def Reconcile(self, request, context):
        caller, account_id = identity.current(), UUID(request.account_id)
        is_operator = bool(caller.roles & OPERATORS)
        database = self._worker if is_operator else self._database
        async with database.transaction(caller.user_id) as rows:
            account = await own_account(rows, request.account_id)

        async def work(rows: Connection) -> execution_pb2.ReconcileResponse:
            # As it stands by now.
            if (current := await live_store.find_account(rows, account_id)) is None or current.credential_id is None:
                raise NotConnected("the account's venue is not connected", account_id=account_id)
            if not is_operator:
                await reconciliation_store.take_turn(rows, account_id)
            asked = await reconciliation_store.request(rows, uuid7(), account_id, account.user_id)
            return execution_pb2.ReconcileResponse(reconciliation=live_wire.reconciliation_to_proto(asked, []))

        key = key_of(request)
        return await answer_once(self._database, key, execution_pb2.ReconcileResponse, work, also=[account.user_id])

    async def GetReconciliation(self, request, context):
        caller, reconciliation_id = identity.current(), UUID(request.reconciliation_id)
        database = self._worker if caller.roles & OPERATORS else self._database
        async with database.transaction(caller.user_id) as rows:
            found = await reconciliation_store.find(rows, reconciliation_id)
            if found is None or not caller.may_use_account(found.account_id):
                raise ReconciliationNotFound("no such reconciliation", reconciliation_id=reconciliation_id)
            differences = await reconciliation_store.find_differences(rows, [reconciliation_id])
        return execution_pb2.GetReconciliationResponse(
            reconciliation=live_wire.reconciliation_to_proto(found, differences[reconciliation_id])
        )

    async def ListReconciliations(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            before = pages.uuid_after(request.page_token)
            found = await reconciliation_store.list_of(rows, account.account_id, before, size + 1)
            page, more = found[:size], len(found) > size
            differences = await reconciliation_store.find_differences(rows, [one.reconciliation_id for one in page])
        return execution_pb2.ListReconciliationsResponse(
            reconciliations=[
                live_wire.reconciliation_to_proto(one, differences[one.reconciliation_id]) for one in page
            ],
            next_page_token=pages.token_after(str(page[-1].reconciliation_id)) if more else "",
        )

    async def ListUnknownOrders(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        async with self._worker.transaction() as rows:
            found = await live_store.list_unknown(rows, pages.time_and_uuid_after(request.page_token), size + 1)
        page, more = found[:size], len(found) > size
        return execution_pb2.ListUnknownOrdersResponse(
            orders=[
                live_wire.unknown_to_proto(row, alerted=row["now"] - row["send_time"] >= self._alert) for row in page
            ],
            next_page_token=(
                pages.token_after(page[-1]["send_time"].isoformat(), str(page[-1]["order_id"])) if more else ""
            ),
        )

    # Orders that are not ours.

    async def ListExternalOrders(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await reconciliation_store.list_external(
                rows,
                account.account_id,
                pages.uuid_after(request.page_token),
                size + 1,
                include_decided=request.include_decided,
            )
        page, more = found[:size], len(found) > size
        return execution_pb2.ListExternalOrdersResponse(
            orders=[live_wire.external_to_proto(order) for order in page],
            next_page_token=pages.token_after(str(page[-1].external_order_id)) if more else "",
        )

    async def AdoptExternalOrder(self, request, context):
        async def work(rows: Connection) -> execution_pb2.AdoptExternalOrderResponse:
            order = await self._decided(rows, request.external_order_id, "adopting")
            await self._check_instrument(order.instrument_id)
            return execution_pb2.AdoptExternalOrderResponse(order=live_wire.external_to_proto(order))

        await self._check_bound(request.external_order_id)
        return await answer_once(self._database, key_of(request), execution_pb2.AdoptExternalOrderResponse, work)

    async def IgnoreExternalOrder(self, request, context):
        async def work(rows: Connection) -> execution_pb2.IgnoreExternalOrderResponse:
            order = await self._decided(rows, request.external_order_id, "ignored")
            return execution_pb2.IgnoreExternalOrderResponse(order=live_wire.external_to_proto(order))

        await self._check_bound(request.external_order_id)
        return await answer_once(self._database, key_of(request), execution_pb2.IgnoreExternalOrderResponse, work)

    async def _check_bound(self, external_order_id: str) -> None:
        """Before an earlier answer is looked for: to a key that is bound to accounts there are no others."""
        caller = identity.current()
        async with self._database.transaction(caller.user_id) as rows:
            await own_external(rows, external_order_id)

    async def _check_instrument(self, instrument_id: str) -> None:
        """What is not known cannot be followed: nobody could tell what it costs."""
        async with self._worker.transaction() as rows:
            if not await store.find_instruments(rows, [instrument_id]):
                raise InstrumentNotFound(f"no instrument {instrument_id}", instrument_id=instrument_id)

    async def _decided(self, rows: Connection, external_order_id: str, state: str) -> ExternalOrder:
        order = await own_external(rows, external_order_id, lock=True)
        if order.state in {"adopted", "done"}:
            raise ExternalOrderDone(
                f"the order is {order.state}", external_order_id=order.external_order_id, state=order.state
            )
        return await reconciliation_store.put_external_state(rows, order.external_order_id, state)


async def own_account(rows: Connection, account_id: str) -> LiveAccount:
    """One of those that the rows' policies show to the caller. Raises AccountNotFound."""
    account = await live_store.find_account(rows, UUID(account_id))
    if account is None or not identity.current().may_use_account(account.account_id):
        raise AccountNotFound("no such live account", account_id=account_id)
    return account


async def own_external(rows: Connection, external_order_id: str, *, lock: bool = False) -> ExternalOrder:
    order = await reconciliation_store.find_external(rows, UUID(external_order_id), lock=lock)
    if order is None or not identity.current().may_use_account(order.account_id):
        raise ExternalOrderNotFound("no such order", external_order_id=external_order_id)
    return order
