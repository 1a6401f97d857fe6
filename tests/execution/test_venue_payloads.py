"""Recorded payloads of real venues are read as they are written: no number changes on its way.

Of accounts there are recordings of Binance alone; those of Kraken are of its public markets.
"""

from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from libs.matching.orders import Side
from services.execution.venues import binance
from services.execution.venues.binance import BinancePort
from services.execution.venues.ccxt_port import exact_json
from services.execution.venues.port import OrderState, VenueFill
from tests.recorded import BINANCE_SPOT

RECORDED = BINANCE_SPOT
HTTP, STREAM = RECORDED / "http_json", RECORDED / "user_data_json"
pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="made by real venues, beside the project")


def read(path: Path) -> Any:
    return exact_json(path.read_text())


def numbers(value: Any) -> set[Decimal]:
    """All decimals in it, of whatever it consists."""
    if isinstance(value, Decimal):
        return {value}
    if is_dataclass(value):
        return set().union(*(numbers(getattr(value, each.name)) for each in fields(value)))
    return set().union(*map(numbers, value)) if isinstance(value, (list, tuple)) else set()


async def told(event: Any) -> list[Any]:
    return await BinancePort.__new__(BinancePort).told(event)


def test_orders_on_record_are_read_as_they_are_written():
    rows = [read(HTTP / "order_response.json"), *read(HTTP / "open_orders_response.json")]
    rows += read(HTTP / "all_orders_response.json")
    assert len(rows) == 3
    for row in rows:
        order = binance.order_of(row)
        assert str(order.quantity) == row["origQty"]
        assert f"{order.filled_quantity:f}" == row["executedQty"]
        assert str(order.limit_price) == row["price"]
        assert order.stop_price is None
        assert (order.client_order_id, order.venue_order_id) == (
            row["clientOrderId"],
            f"{row['symbol']}-{row['orderId']}",
        )
        assert (order.instrument_id, order.side) == (f"BINANCE:{row['symbol']}", Side[row["side"]])
        assert order.time_ns == int(row["updateTime"]) * 1_000_000


def test_a_placed_order_and_its_fills_are_read_as_they_are_written():
    answer = read(HTTP / "new_order_full_response.json")
    done = binance.placed(answer, answer["clientOrderId"])
    assert done.order and done.order.state is OrderState.FILLED
    assert [(str(fill.price), str(fill.quantity), str(fill.fee), fill.fee_asset) for fill in done.fills] == [
        (fill["price"], fill["qty"], fill["commission"], fill["commissionAsset"]) for fill in answer["fills"]
    ]
    assert sum((fill.quantity for fill in done.fills), Decimal(0)) == done.order.filled_quantity
    assert len({fill.venue_fill_id for fill in done.fills}) == 5


def test_canceled_orders_are_read_under_their_own_ids():
    rows = [read(HTTP / "cancel_order_response.json")]
    rows += [row for row in read(HTTP / "cancel_open_orders_response.json") if "orderReports" not in row]
    for row in rows:
        order = binance.canceled_of(row, row["origClientOrderId"])
        assert order.state is OrderState.CANCELED
        assert (f"{order.quantity:f}", f"{order.filled_quantity:f}") == (row["origQty"], row["executedQty"])
        assert order.client_order_id == row["origClientOrderId"] != row["clientOrderId"]


def test_fills_on_record_are_read_as_they_are_written():
    [row] = read(HTTP / "account_trades_response.json")
    assert binance.fill_of(row) == VenueFill(
        venue_fill_id="BNBBTC-28457-100234",
        venue_order_id="BNBBTC-100234",
        client_order_id="",
        instrument_id="BINANCE:BNBBTC",
        side=Side.BUY,
        price=Decimal("4.00000100"),
        quantity=Decimal("12.00000000"),
        fee=Decimal("10.10000000"),
        fee_asset="BNB",
        maker=False,
        time_ns=1_499_865_549_590_000_000,
    )


def test_two_orders_of_one_number_are_two_where_their_symbols_differ():
    [row] = read(HTTP / "account_trades_response.json")
    other = binance.fill_of({**row, "symbol": "BNBUSDT"})
    assert other.venue_order_id != binance.fill_of(row).venue_order_id
    assert other.venue_order_id == binance.order_id_of("BNBUSDT", row["orderId"])


def test_balances_are_read_as_they_are_written():
    answer = read(HTTP / "account_response.json")
    found = binance.balances_of(answer)
    assert {asset: (f"{balance.free:f}", f"{balance.locked:f}") for asset, balance in found.items()} == {
        row["asset"]: (row["free"], row["locked"]) for row in answer["balances"]
    }


@pytest.mark.parametrize("path", sorted(STREAM.glob("*.json")), ids=lambda path: path.stem)
async def test_every_recorded_event_of_a_user_is_read(path: Path):
    """Those about orders tell all there is to tell, those about money and lists nothing."""
    event = read(path)
    inner = event.get("event", event)
    found = await told(event)
    if inner["e"] != "executionReport":
        assert found == []
        return
    [one] = found
    assert (one.client_order_id, one.venue_order_id) == (
        inner["C"] or inner["c"],
        f"{inner['s']}-{inner['i']}",
    )
    assert one.state is binance.STATES[inner["X"]]
    assert one.time_ns == int(inner["T"]) * 1_000_000
    assert (one.fill is not None) == (inner["x"] == "TRADE")
    if one.fill:
        assert (str(one.fill.price), str(one.fill.quantity), str(one.fill.fee)) == (inner["L"], inner["l"], inner["n"])
        assert (one.fill.fee_asset, one.fill.maker) == (inner["N"], inner["m"])
    assert one.reason == inner.get("eR", "")


def event(name: str, **changed: Any) -> dict[str, Any]:
    return {**read(STREAM / f"execution_report_{name}.json"), **changed}


async def test_a_fill_that_is_told_after_the_cancel_is_told():
    """The venue's own order, where the cancel and the fill raced, and nothing of it is left out."""
    half = {"l": "0.50000000", "z": "0.50000000", "X": "PARTIALLY_FILLED"}
    story = [event("new"), event("trade", **half), event("canceled", z="0.50000000"), event("trade", **half)]
    found = [one for each in story for one in await told(each)]
    assert [one.state for one in found] == [
        OrderState.WORKING,
        OrderState.WORKING,
        OrderState.CANCELED,
        OrderState.WORKING,
    ]
    first, late = found[1].fill, found[3].fill
    assert first and late and first.venue_fill_id == late.venue_fill_id == "ETHUSDT-98765432-12345678"


async def test_the_same_trade_has_one_id_in_all_three_places():
    streamed = (await told(event("trade")))[0].fill
    row = {
        "symbol": "ETHUSDT",
        "id": "98765432",
        "orderId": "12345678",
        "price": "2500.00000000",
        "qty": "1.00000000",
        "commission": "0.00100000",
        "commissionAsset": "ETH",
        "time": "1709654401000",
        "isBuyer": True,
        "isMaker": True,
    }
    recorded = binance.fill_of(row)
    assert streamed and streamed.venue_fill_id == recorded.venue_fill_id
    assert numbers(streamed) == numbers(recorded)


async def test_a_cancel_with_an_id_of_its_own_is_told_of_the_order():
    [one] = await told(event("canceled", c="the cancel's own", C="ours"))
    assert one.client_order_id == "ours"


@pytest.mark.parametrize("name", ["L", "l", "n", "t", "i", "T", "m", "X", "S"])
async def test_an_event_that_lacks_something_is_not_read(name: str):
    malformed = {key: value for key, value in event("trade").items() if key != name}
    with pytest.raises(KeyError):
        await told(malformed)
