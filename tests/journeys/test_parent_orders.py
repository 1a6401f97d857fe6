"""Large orders worked in small ones, over REST, at the real paper venue of the whole mesh."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from tests.journeys.callers import Curl, Json
from tests.journeys.test_first_trade import BTC, opened_account, signed_in
from tests.stack import Stack

DONE_SECONDS = 40.0


def twap(price: str) -> Json:
    end = datetime.now(UTC) + timedelta(seconds=2.9)
    return {"twap": {"quantity": {"value": "0.3"}, "end_time": end.isoformat(), "interval_seconds": 1}}


def iceberg(price: str) -> Json:
    """It takes what the market offers, a part at a time."""
    return {
        "iceberg": {
            "quantity": {"value": "0.3"},
            "display_quantity": {"value": "0.1"},
            "limit_price": {"value": price},
        }
    }


@pytest.mark.parametrize("schedule", [twap, iceberg])
def test_a_parent_order_trades_all_of_its_quantity(stack: Stack, schedule: Callable[[str], Json]) -> None:
    caller = Curl(stack.edge)
    token = signed_in(caller)
    account_id = opened_account(caller, token)
    quote = caller.call("MarketDataService.GetQuote", {"instrument_id": BTC}, token)["quote"]
    price = str(round(float(quote["ask_price"]) * 1.03))
    asked = {"request_id": str(uuid4()), "account_id": account_id, "instrument_id": BTC, "side": "ORDER_SIDE_BUY"}
    placed = caller.call("ParentOrderService.PlaceParentOrder", {**asked, **schedule(price)}, token)["parent_order"]
    named = {"parent_order_id": placed["parent_order_id"]}

    def found() -> Any:
        return caller.call("ParentOrderService.GetParentOrder", named, token)["parent_order"]

    until = time.monotonic() + DONE_SECONDS
    while (parent := found())["state"] in ("PARENT_ORDER_STATE_ACTIVE", "PARENT_ORDER_STATE_CANCELING"):
        assert time.monotonic() < until, parent
        time.sleep(0.1)
    children = caller.call("OrderService.ListOrders", {"account_id": account_id, **named}, token)["orders"]
    traded = sum(Decimal(child["filled_quantity"]["value"]) for child in children)
    assert Decimal(parent["filled_quantity"]["value"]) == traded
    numbers = [child["slice_number"] for child in children]
    assert len(set(numbers)) == len(numbers)
    if schedule is iceberg:
        assert (parent["state"], traded, sorted(numbers)) == ("PARENT_ORDER_STATE_COMPLETED", Decimal("0.3"), [1, 2, 3])
    else:
        # A busy machine may miss a slice, and a thin book fill one in part: then it is behind when it ends.
        assert Decimal(0) < traded <= Decimal("0.3")
        is_whole = traded == Decimal("0.3")
        assert parent["state"] == f"PARENT_ORDER_STATE_{'COMPLETED' if is_whole else 'EXPIRED'}"
    portfolio = caller.call("PortfolioService.GetPortfolio", {"account_id": account_id}, token)
    assert Decimal(portfolio["positions"][0]["quantity"]["value"]) == traded
