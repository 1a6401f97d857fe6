"""What an API key that is bound to accounts may name: to it there are no others.

It stands around every RPC, before answers to earlier requests are looked for. What names no account is refused, so that
an RPC that is added is closed to such keys until somebody has said what it may show them.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from libs.errors import Forbidden
from libs.mesh.around import Call, Onward
from libs.mesh.identity import Identity
from libs.store.database import Database
from services.orders import parent_store, store
from services.orders.refusals import AccountNotFound, OrderNotFound, ParentOrderNotFound

FILTERED = frozenset({"GetLiveTrading", "ListAccounts", "PlaceOrders"})
"""They keep a bound key to its accounts by themselves, or tell nothing of any."""
ACCOUNT, ORDER, PARENT = "account_id", "order_id", "parent_order_id"
HOLDING = ("order", "orders")
"""Fields of a request with orders to be placed, each of which names its account."""


@dataclass(frozen=True, slots=True)
class Binding:
    database: Database

    async def __call__(self, call: Call, onward: Onward) -> Any:
        caller = call.identity
        if caller is not None and caller.account_ids is not None and call.method.name not in FILTERED:
            await self._check(call.request, caller)
        return await onward(call)

    async def _check(self, request: Message | None, caller: Identity) -> None:
        # An order beside an account is looked for in that account alone.
        if account_ids := accounts_named(request):
            for account_id in account_ids:
                if not caller.may_use_account(UUID(account_id)):
                    raise AccountNotFound("no such account", account_id=account_id)
        elif order_id := named(request, ORDER):
            async with self.database.transaction(caller.user_id) as rows:
                found = await store.account_of_order(rows, UUID(order_id))
            if found is not None and not caller.may_use_account(found):
                raise OrderNotFound("no such order", order_id=order_id)
        elif parent_order_id := named(request, PARENT):
            async with self.database.transaction(caller.user_id) as rows:
                found = await parent_store.account_of_parent(rows, UUID(parent_order_id))
            if found is not None and not caller.may_use_account(found):
                raise ParentOrderNotFound("no such parent order", parent_order_id=parent_order_id)
        else:
            raise Forbidden("the API key is bound to accounts, and this is about more than those", needs="accounts:all")


def accounts_named(request: Message | None) -> list[str]:
    """Every account that a request names, itself or in the orders that it holds."""
    if request is None:
        return []
    held = [getattr(request, field) for field in HOLDING if field in request.DESCRIPTOR.fields_by_name]
    orders = [order for each in held for order in ([each] if isinstance(each, Message) else each)]
    return [account_id for one in (request, *orders) if (account_id := named(one, ACCOUNT))]


def named(request: Message | None, field: str) -> str:
    """The id that a request names; empty where it names none."""
    return "" if request is None or field not in request.DESCRIPTOR.fields_by_name else getattr(request, field)
