"""To an API key that is bound to accounts, the owner's other accounts do not exist."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from redis.asyncio import Redis
from tradeloom.orders.v1 import orders_pb2
from tradeloom.policy.v1 import policy_pb2

from libs.ids import uuid7
from libs.mesh.contract import methods
from services.orders.binding import ACCOUNT, FILTERED, HOLDING, ORDER, PARENT
from tests.mesh import Installation, Served, sign_in
from tests.orders.stand import Trader, Venue, decimal, ids, limit, reason, refusal, resting, trader
from tests.orders.test_tenants import NAMING_RPCS, answer, calls, parent_of

KEY = ["read", "trade"]


def scope_of(name: str) -> int:
    return next(method.policy.scope for method in methods("orders").values() if method.name == name)


CLOSED = {"CreateAccount", "SetGlobalKillSwitch", "SetLiveTrading"}
"""What a bound key may not call at all."""
FOR_KEYS = [name for name in NAMING_RPCS if scope_of(name) != policy_pb2.SCOPE_ACCOUNT]


def bound(person: Trader, *accounts: str, scopes: list[str] | None = None) -> Trader:
    """The same person as an API key of theirs that is bound to these accounts."""
    metadata = sign_in(person.user_id, scopes=scopes or KEY, accounts=list(accounts))
    return replace(person, metadata=metadata, account_id=accounts[0])


@pytest.mark.parametrize("name", FOR_KEYS)
async def test_an_account_outside_of_the_binding_is_as_one_that_nobody_has(
    installation: Installation, orders: Served, redis: Redis, venue: Venue, name: str
):
    whole = await trader(orders)
    second = await trader(orders, user_id=whole.user_id)
    order, parent = await resting(installation, venue, whole), await parent_of(whole, redis)
    key = bound(whole, second.account_id)
    method, request = calls(key, whole.account_id, order.order_id, parent)[name]
    refused = await refusal(answer(method(request, metadata=key.metadata, timeout=20)))
    method, request = calls(key, (nobodys := str(uuid7())), nobodys, nobodys)[name]
    unknown = await refusal(answer(method(request, metadata=key.metadata, timeout=20)))
    assert (refused.code, refused.reason) == (unknown.code, unknown.reason)
    assert refused.metadata.keys() == unknown.metadata.keys()
    named = {"account_id": whole.account_id, "order_id": order.order_id, "parent_order_id": parent}
    assert refused.metadata.items() <= named.items()
    assert len(refused.metadata) == 1
    # Nothing was done, and within the binding all is as for everybody.
    assert (await whole.list_orders()).orders == [order]
    mine = bound(whole, whole.account_id)
    method, request = calls(mine, whole.account_id, order.order_id, parent)[name]
    assert await answer(method(request, metadata=mine.metadata, timeout=20))


async def test_the_answer_to_an_earlier_request_is_not_told_to_a_key_that_could_not_have_made_it(orders: Served):
    whole = await trader(orders)
    key = bound(whole, (await trader(orders, user_id=whole.user_id)).account_id)
    placing = limit(whole.account_id)
    order = (await whole.send(placing)).order
    await whole.cancel(order.order_id, request_id="once")
    assert await reason(key.cancel(order.order_id, request_id="once")) == "ORDER_NOT_FOUND"
    assert await reason(key.send(placing)) == "ACCOUNT_NOT_FOUND"


async def test_an_order_of_another_account_is_in_no_list_of_a_bound_account(orders: Served):
    whole = await trader(orders)
    order = await whole.place()
    key = bound(whole, (await trader(orders, user_id=whole.user_id)).account_id)
    assert (await key.list_executions(order_id=order.order_id)).executions == []
    assert (await key.list_orders()).orders == []


async def test_accounts_are_listed_and_paged_within_the_binding(orders: Served):
    whole = await trader(orders)
    own = [whole.account_id, *[(await trader(orders, user_id=whole.user_id)).account_id for _ in range(4)]]
    someone = (await trader(orders)).account_id
    key = bound(whole, own[1], own[4], own[3], someone)
    found: list[str] = []
    token = ""
    while True:
        asked = orders_pb2.ListAccountsRequest(page_size=2, page_token=token)
        page = await key.portfolios.ListAccounts(asked, metadata=key.metadata)
        found += [account.account_id for account in page.accounts]
        if not (token := page.next_page_token):
            break
        assert len(page.accounts) == 2
    assert found == [own[1], own[3], own[4]]
    strangers = bound(whole, someone)
    page = await key.portfolios.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=strangers.metadata)
    assert (list(page.accounts), page.next_page_token) == ([], "")
    assert await reason(strangers.portfolio()) == "ACCOUNT_NOT_FOUND"


async def test_orders_of_one_batch_are_each_held_to_their_own_keys_binding(orders: Served):
    whole = await trader(orders)
    second = await trader(orders, user_id=whole.user_id)
    key = bound(whole, second.account_id)
    outcomes = await asyncio.gather(
        *(caller.send(limit(account.account_id)) for caller in (whole, key) for account in (whole, second) * 5),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Exception) for one in outcomes) == 5
    assert len((await whole.list_orders()).orders) == 5
    assert len((await second.list_orders()).orders) == 10
    assert sorted(ids((await key.list_orders()).orders)) == sorted(ids((await second.list_orders()).orders))


async def test_orders_that_a_request_holds_are_held_to_the_binding_too(orders: Served):
    whole = await trader(orders)
    second = await trader(orders, user_id=whole.user_id)
    key = bound(whole, second.account_id)
    both = [limit(whole.account_id), limit(second.account_id)]
    placing = orders_pb2.PlaceOrdersRequest(orders=both)
    outcomes = (await key.orders.PlaceOrders(placing, metadata=key.metadata)).outcomes
    assert [each.WhichOneof("outcome") for each in outcomes] == ["refusal", "order"]
    assert (await whole.list_orders()).orders == []
    for account, said in ((whole, "ACCOUNT_NOT_FOUND"), (second, "")):
        order = limit(account.account_id, request_id="group")
        grouping = orders_pb2.PlaceOrderGroupRequest(
            request_id="group", kind=orders_pb2.GROUP_KIND_OCO, orders=[order, order]
        )
        previewing = orders_pb2.PreviewOrderRequest(order=order)
        for call in (
            key.orders.PlaceOrderGroup(grouping, metadata=key.metadata),
            key.orders.PreviewOrder(previewing, metadata=key.metadata),
        ):
            if said:
                assert await reason(call) == said
            else:
                assert await call


async def test_a_bound_key_opens_no_account_even_if_its_scope_would_let_it(orders: Served):
    whole = await trader(orders)
    asked = orders_pb2.CreateAccountRequest(
        request_id="x",
        name="n",
        mode=orders_pb2.ACCOUNT_MODE_PAPER,
        kind=orders_pb2.ACCOUNT_KIND_CASH,
        starting_balances=[orders_pb2.Amount(asset="USDT", amount=decimal(1))],
    )
    assert await whole.portfolios.CreateAccount(asked, metadata=whole.metadata)
    for scopes in (KEY, ["account", *KEY]):
        key = bound(whole, whole.account_id, scopes=scopes)
        refused = await refusal(key.portfolios.CreateAccount(asked, metadata=key.metadata))
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "NOT_PERMITTED")


async def test_a_key_that_is_bound_to_nothing_sees_nothing(orders: Served):
    """An empty list is a list: only a token without one is unbound."""
    whole = await trader(orders)
    metadata = sign_in(whole.user_id, scopes=KEY, accounts=[])
    page = await whole.portfolios.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=metadata)
    assert list(page.accounts) == []
    assert await reason(replace(whole, metadata=metadata).portfolio()) == "ACCOUNT_NOT_FOUND"


def fields(message: Descriptor, seen: tuple[Any, ...] = ()) -> Iterator[tuple[bool, Any]]:
    """Every field that a message holds at any depth, and whether it is the message's own."""
    for field in message.fields:
        yield not seen, field
        if field.message_type is not None and field.message_type not in seen:
            yield from fields(field.message_type, (*seen, message))


def test_every_rpc_names_accounts_and_orders_where_the_binding_looks_for_them():
    """An RPC that is added and names them in another place, or not at all, has to be decided on here."""
    for method in methods("orders").values():
        asked = method.descriptor.input_type
        naming = [
            (own, field)
            for own, field in fields(asked)
            if field.name.removesuffix("s").endswith((ACCOUNT, ORDER))
            and field.type == field.TYPE_STRING
            # Ours to give: that of a request is not read.
            and field.name != "client_order_id"
        ]
        for own, field in naming:
            where = f"{method.name}: {field.full_name}"
            holder = field.containing_type
            held = [each.name for each in asked.fields if each.message_type is holder]
            assert own or set(held) & set(HOLDING), f"{where} is neither the request's own nor that of an order in it"
            assert field.name in (ACCOUNT, ORDER, PARENT), f"{where} is none of the names that are looked for"
            assert not field.is_repeated, f"{where} may name several"
            assert not method.client_streams, f"{where} comes after the call began"
        closed = not naming and method.name not in FILTERED
        assert closed == (method.name in CLOSED), f"{method.name} is closed to bound keys: {closed}"


def test_every_rpc_that_names_an_account_or_an_order_is_tried():
    named = {
        method.name
        for method in methods("orders").values()
        if {ACCOUNT, ORDER, PARENT} & set(method.descriptor.input_type.fields_by_name)
    }
    assert set(NAMING_RPCS) == named
