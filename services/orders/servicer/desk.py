"""What the servicers of orders share."""

from uuid import UUID

from tradeloom.orders.v1 import orders_pb2

from libs.mesh.wire import timestamp
from libs.store.database import Connection
from services.orders import market, store
from services.orders.domain import Account
from services.orders.refusals import AccountNotFound

USUAL_PAGE_SIZE = 50


async def own_account(rows: Connection, account_id: str, *, lock: bool = False) -> Account:
    """The account, if it is the caller's: row security shows no other. With lock nobody else changes it meanwhile."""
    account = await store.find_account(rows, UUID(account_id), lock=lock)
    if account is None:
        raise AccountNotFound("no such account", account_id=account_id)
    return account


def beat() -> orders_pb2.OrdersHeartbeat:
    return orders_pb2.OrdersHeartbeat(time=timestamp(market.now()))
