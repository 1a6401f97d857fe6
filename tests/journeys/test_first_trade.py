"""A newcomer's first trade, through the one port, by each kind of program."""

from decimal import Decimal
from uuid import uuid4

import pytest

from tests.journeys.callers import BufCurl, Caller, Curl, Grpcurl, Json, Refused, Stubs, many
from tests.stack import Stack

PASSWORD = "correct horse battery"
BTC = "SIM:BTCUSDT"


@pytest.fixture(params=[Grpcurl, BufCurl, Stubs, Curl])
def caller(request: pytest.FixtureRequest, stack: Stack) -> Caller:
    return request.param(stack.edge)


def signed_in(caller: Caller) -> str:
    email = f"{uuid4()}@example.com"
    caller.call("AuthService.Register", {"email": email, "password": PASSWORD, "full_name": "New"})
    session = caller.call("AuthService.Login", {"email": email, "password": PASSWORD})
    me = caller.call("AuthService.GetMe", {}, session["access_token"])
    assert me["user"]["email"] == email
    return session["access_token"]


def filled(messages: list[Json]) -> bool:
    order = messages[-1].get("event", {}).get("order", {})
    return order.get("state") == "ORDER_STATE_FILLED"


def opened_account(caller: Caller, token: str) -> str:
    request = {
        "request_id": str(uuid4()),
        "name": "first",
        "mode": "ACCOUNT_MODE_PAPER",
        "kind": "ACCOUNT_KIND_CASH",
        "starting_balances": [{"asset": "USDT", "amount": {"value": "100000"}}],
    }
    return caller.call("PortfolioService.CreateAccount", request, token)["account"]["account_id"]


def test_a_newcomer_registers_watches_trades_and_sees_the_fill(caller: Caller) -> None:
    token = signed_in(caller)
    found = caller.call("MarketDataService.SearchInstruments", {"query": "BTC"}, token)
    assert BTC in [instrument["instrument_id"] for instrument in found["instruments"]]
    first, *messages = caller.stream("MarketDataService.StreamTicks", {"instrument_ids": [BTC]}, token, many(3))
    assert first["acknowledgement"]["cursors"]
    assert all(batch["instrument_id"] == BTC for message in messages for batch in message["batches"])

    account_id = opened_account(caller, token)
    order = {
        "request_id": str(uuid4()),
        "account_id": account_id,
        "instrument_id": BTC,
        "side": "ORDER_SIDE_BUY",
        "order_type": "ORDER_TYPE_MARKET",
        "quantity": {"value": "0.25"},
    }
    placed = caller.call("OrderService.PlaceOrder", order, token)["order"]
    again = caller.call("OrderService.PlaceOrder", order, token)["order"]
    assert again == placed
    with pytest.raises(Refused) as refused:
        caller.call("OrderService.PlaceOrder", {**order, "quantity": {"value": "0.5"}}, token)
    assert refused.value.code == 6

    # From the account's first event: the stream waits for what has not happened yet.
    request = {"account_id": account_id, "after_cursor": "0"}
    story = caller.stream("OrderService.StreamOrderEvents", request, token, filled)[1:]
    states = [step["event"]["order"]["state"].removeprefix("ORDER_STATE_") for step in story]
    # It may take more than one level of the book.
    parts = states.count("PARTIALLY_FILLED")
    assert states == ["PENDING_NEW", "NEW", *["PARTIALLY_FILLED"] * parts, "FILLED"]
    assert [step["cursor"] for step in story] == [str(number) for number in range(1, len(story) + 1)]

    executions = caller.call("OrderService.ListExecutions", {"account_id": account_id}, token)["executions"]
    assert sum(Decimal(each["quantity"]["value"]) for each in executions) == Decimal("0.25")
    paid = sum(
        Decimal(each["price"]["value"]) * Decimal(each["quantity"]["value"]) + Decimal(each["fee"]["value"])
        for each in executions
    )
    portfolio = caller.call("PortfolioService.GetPortfolio", {"account_id": account_id}, token)
    balances = {each["asset"]: Decimal(each["total"]["value"]) for each in portfolio["balances"]}
    assert balances == {"BTC": Decimal("0.25"), "USDT": 100_000 - paid}
    assert portfolio["positions"][0]["quantity"]["value"] == "0.25"


def test_a_resting_limit_order_can_be_canceled(caller: Caller) -> None:
    token = signed_in(caller)
    account_id = opened_account(caller, token)
    order = {
        "request_id": str(uuid4()),
        "account_id": account_id,
        "instrument_id": BTC,
        "side": "ORDER_SIDE_BUY",
        "order_type": "ORDER_TYPE_LIMIT",
        "quantity": {"value": "0.25"},
        "limit_price": {"value": "1000"},
    }
    placed = caller.call("OrderService.PlaceOrder", order, token)["order"]
    request = {"account_id": account_id, "after_cursor": "0"}
    assert len(caller.stream("OrderService.StreamOrderEvents", request, token, many(3))) == 3
    cancel = {"request_id": str(uuid4()), "order_id": placed["order_id"]}
    caller.call("OrderService.CancelOrder", cancel, token)
    *_, last = caller.stream("OrderService.StreamOrderEvents", request, token, many(5))
    assert last["event"]["order"]["state"] == "ORDER_STATE_CANCELED"
    portfolio = caller.call("PortfolioService.GetPortfolio", {"account_id": account_id}, token)
    assert portfolio["balances"][0]["available"]["value"] == "100000"


def test_nobody_sees_what_belongs_to_another(caller: Caller) -> None:
    mine, other = signed_in(caller), signed_in(caller)
    account_id = opened_account(caller, mine)
    for method in ("PortfolioService.GetPortfolio", "OrderService.ListOrders", "PortfolioService.ListPositions"):
        with pytest.raises(Refused) as refused:
            caller.call(method, {"account_id": account_id}, other)
        assert refused.value.code == 5


def test_every_violated_field_is_named(caller: Caller) -> None:
    token = signed_in(caller)
    with pytest.raises(Refused) as refused:
        caller.call("OrderService.PlaceOrder", {"account_id": "x", "quantity": {"value": "-1"}}, token)
    assert refused.value.code == 3
    for field in ("request_id", "account_id", "instrument_id", "side", "order_type", "quantity"):
        assert field in str(refused.value)
