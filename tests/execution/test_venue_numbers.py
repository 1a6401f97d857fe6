"""Numbers of venues are read as they are written, also where a stream writes them as numbers: Kraken's, by its documentation."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.execution.venues import kraken
from services.execution.venues.ccxt_port import exact, exact_json
from services.execution.venues.kraken import KrakenPort

EXECUTION = """{"channel":"executions","type":"update","data":[{"order_id":"OK4GJX-KSTLS-7DZZO5",
"cl_ord_id":"6d1b345e-2821-40e2-ad83-4ecb18a06876","exec_id":"T5DIUI-5N4KO-Z5BPXK","exec_type":"trade","trade_id":8253473,
"symbol":"BTC/USD","side":"sell","last_qty":0.00000001,"last_price":26599.9000000000,"liquidity_ind":"t","cost":0.00026599,
"order_type":"limit","order_status":"partially_filled","timestamp":"2023-09-22T10:33:05.709949Z",
"fees":[{"asset":"USD","qty":0.1234567890123456789}]}],"sequence":8}"""


def kraken_port() -> Any:
    made: Any = KrakenPort.__new__(KrakenPort)
    made._pairs = kraken.Pairs(symbols={"XXBTZUSD": "BTCUSD", "XBTUSD": "BTCUSD"}, quotes={"BTCUSD": "USD"})
    return made


async def test_krakens_numbers_never_become_floats():
    [one] = await kraken_port().told(exact_json(EXECUTION))
    assert one.fill
    assert (str(one.fill.price), str(one.fill.fee)) == ("26599.9000000000", "0.1234567890123456789")
    assert one.fill.quantity == Decimal("0.00000001")
    assert (one.fill.venue_fill_id, one.fill.instrument_id) == ("T5DIUI-5N4KO-Z5BPXK", "KRAKEN:BTCUSD")
    assert one.fill.time_ns == 1_695_378_785_709_949_000
    assert one.client_order_id == "6d1b345e-2821-40e2-ad83-4ecb18a06876"


async def test_fees_in_two_assets_are_not_added_up():
    message = json.loads(EXECUTION, parse_float=str, parse_int=str)
    message["data"][0]["fees"].append({"asset": "KFEE", "qty": "1"})
    with pytest.raises(ValueError, match="more than one asset"):
        await kraken_port().told(message)


def test_a_trade_on_krakens_record_is_read_as_it_is_written():
    row = exact_json(
        '{"ordertxid":"OQCLML-BW3P3-BUCMWZ","postxid":"TKH2SE-M7IF5-CFI7LT","pair":"XXBTZUSD","time":1688667796.8802,'
        '"type":"buy","ordertype":"limit","price":"30010.00000","cost":"600.20000","fee":"0.00000","vol":"0.02000000",'
        '"margin":"0.00000","leverage":"0","misc":"","trade_id":40274859,"maker":true}'
    )
    fill = kraken_port()._fill("THVRQM-33VKH-UCI7BS", row)
    assert (str(fill.price), str(fill.quantity), fill.fee, fill.fee_asset) == ("30010.00000", "0.02000000", 0, "USD")
    assert (fill.venue_fill_id, fill.maker, fill.time_ns) == ("THVRQM-33VKH-UCI7BS", True, 1_688_667_796_880_200_000)


# Numbers.


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**17), max_value=10**17, places=18))
def test_a_number_is_read_as_it_is_written(number: Decimal):
    written: Mapping[str, Any] = exact_json(f'{{"n": {number:f}, "s": "{number:f}"}}')
    assert exact(written["n"]) == exact(written["s"]) == number


@pytest.mark.parametrize("written", [1.5, 1, None, True, "", "NaN", "Infinity", "1e19", "abc", [], {}])
def test_what_is_no_written_number_is_none(written: Any):
    with pytest.raises((TypeError, ValueError, ArithmeticError)):
        exact(written)
