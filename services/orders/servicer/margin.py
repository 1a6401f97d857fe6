"""Leverage and funding of margin accounts."""

from datetime import datetime, timedelta
from uuid import UUID

from tradeloom.orders.v1 import margin_pb2, margin_pb2_grpc

from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.mesh.wire import time_asked
from libs.store.database import Connection, Database
from services.orders import margin_store, margin_use_cases, margin_wire, wire
from services.orders.domain import EPOCH
from services.orders.margin_funding import Payment
from services.orders.margin_store import MarginStore
from services.orders.servicer.desk import USUAL_PAGE_SIZE, own_account
from services.orders.store import AccountStore

MICROSECOND = timedelta(microseconds=1)


class MarginServicer(margin_pb2_grpc.MarginServiceServicer):
    def __init__(self, database: Database, set_leverage: margin_use_cases.SetLeverage) -> None:
        self._database, self._set_leverage = database, set_leverage

    async def SetLeverage(self, request, context):
        async def work(rows: Connection) -> margin_pb2.SetLeverageResponse:
            account = await self._set_leverage(
                AccountStore(rows), MarginStore(rows), UUID(request.account_id), request.leverage
            )
            return margin_pb2.SetLeverageResponse(account=wire.account_to_proto(account))

        return await answer_once(self._database, key_of(request), margin_pb2.SetLeverageResponse, work)

    async def ListFundingPayments(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        before = place_of(request.page_token)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await margin_store.list_payments(
                rows,
                account.account_id,
                instrument_id=request.instrument_id,
                start_time=time_asked(request, "start_time"),
                end_time=time_asked(request, "end_time"),
                before=before,
                limit=size + 1,
            )
        page, more = found[:size], len(found) > size
        return margin_pb2.ListFundingPaymentsResponse(
            payments=map(margin_wire.payment_to_proto, page),
            next_page_token=token_after(page[-1]) if more else "",
        )


def token_after(payment: Payment) -> str:
    return pages.token_after((payment.funding_time - EPOCH) // MICROSECOND, payment.instrument_id)


def place_of(page_token: str) -> tuple[datetime, str] | None:
    """Where the previous page ended; None for the first."""
    key = pages.key_of(page_token, 2)
    if key is None:
        return None
    try:
        return EPOCH + timedelta(microseconds=int(key[0])), str(key[1])
    except (ValueError, OverflowError):
        raise pages.PageTokenInvalid({"page_token": "is not one that was given out"}) from None
