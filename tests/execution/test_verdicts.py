"""What each venue's no means of an order, code by code, and how an order is written in each venue's words."""

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.orders import Side
from services.execution.domain import OrderType, TimeInForce
from services.execution.venues import binance, binance_futures, kraken
from services.execution.venues.binance import BinancePort
from services.execution.venues.ccxt_port import Answered, CcxtPort, Verdict
from services.execution.venues.kraken import KrakenPort
from services.execution.venues.port import NOT_NATIVE, Card, Ticket

REFUSED, NOT_NOW, UNKNOWN = Verdict.REFUSED, Verdict.NOT_NOW, Verdict.UNKNOWN


class Unopened:
    """What is asked of a port that needs no connection."""

    def __init__(self, kind: type[CcxtPort]) -> None:
        self.port = kind.__new__(kind)

    def verdict(self, status: int, response: Any) -> Verdict:
        said = self.port.said(status, response) or ("", "")
        return self.port.verdict(Answered(status, *said))

    def is_of_address(self, status: int, response: Any) -> bool:
        return self.port.is_of_address(Answered(status, *(self.port.said(status, response) or ("", ""))))


BINANCE, KRAKEN = Unopened(BinancePort), Unopened(KrakenPort)


def test_binance_says_that_a_stop_is_reached_in_words_of_their_own():
    said = [(-2010, "Stop price would trigger immediately."), (-2010, "Account has insufficient balance."), (-1013, "")]
    assert [BINANCE.port.is_reached(Answered(400, str(code), words)) for code, words in said] == [True, False, False]


# In Binance's own words, from its list of errors; and whether an order may be there all the same.
BINANCE_SAYS = [
    (500, None, None, UNKNOWN),
    (502, None, None, UNKNOWN),
    (
        503,
        -1007,
        "Timeout waiting for response from backend server. Send status unknown; execution status unknown.",
        UNKNOWN,
    ),
    (503, -1008, "Server is currently overloaded with other requests. Please try again in a few minutes.", UNKNOWN),
    (503, -2010, "Account has insufficient balance for requested action.", UNKNOWN),
    (400, -1000, "An unknown error occurred while processing the request.", UNKNOWN),
    (400, -1001, "Internal error; unable to process your request. Please try again.", UNKNOWN),
    (400, -1004, "Server is busy, please wait and try again", UNKNOWN),
    (400, -1006, "An unexpected response was received from the message bus. Execution status unknown.", UNKNOWN),
    (400, -1007, "Timeout waiting for response from backend server.", UNKNOWN),
    (400, -1010, "ERROR_MSG_RECEIVED", UNKNOWN),
    (400, -1016, "This service is no longer available.", UNKNOWN),
    (400, -2010, "Duplicate order sent.", UNKNOWN),
    (400, -9999, "A code of tomorrow.", UNKNOWN),
    (403, None, None, UNKNOWN),
    (404, None, None, UNKNOWN),
    (429, -1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE.", NOT_NOW),
    (418, -1003, "Way too much request weight used; IP banned until 1659146400000.", NOT_NOW),
    (429, None, None, NOT_NOW),
    (429, -1015, "Too many new orders; current limit is 100 orders per 10 SECOND.", NOT_NOW),
    (400, -1015, "Too many new orders; current limit is 100 orders per 10 SECOND.", NOT_NOW),
    (400, -1021, "Timestamp for this request is outside of the recvWindow.", NOT_NOW),
    *((400, int(code), "", REFUSED) for code in sorted(binance.REFUSED)),
    (400, -2010, "Account has insufficient balance for requested action.", REFUSED),
    (401, -2015, "Invalid API-key, IP, or permissions for action.", REFUSED),
]


@pytest.mark.parametrize(("status", "code", "words", "verdict"), BINANCE_SAYS)
def test_a_no_of_binance_means(status: int, code: int | None, words: str | None, verdict: Verdict):
    response = None if code is None else {"code": str(code), "msg": words}
    assert BINANCE.verdict(status, response) is verdict


KRAKEN_SAYS = [
    (500, [], UNKNOWN),
    (520, [], UNKNOWN),
    (503, ["EOrder:Insufficient funds"], UNKNOWN),
    (403, [], UNKNOWN),
    (429, [], NOT_NOW),
    (200, ["EService:Unavailable"], UNKNOWN),
    (200, ["EService:Busy"], UNKNOWN),
    (200, ["EService:Timeout"], UNKNOWN),
    (200, ["EService:Deadline elapsed"], UNKNOWN),
    (200, ["EGeneral:Internal error"], UNKNOWN),
    (200, ["EDatabase:Internal error"], UNKNOWN),
    (200, ["EOrder:An error of tomorrow"], UNKNOWN),
    (200, ["EGeneral:Invalid arguments:cl_ord_id"], UNKNOWN),
    (200, ["EOrder:Insufficient funds", "EService:Busy"], UNKNOWN),
    (200, ["EOrder:Insufficient funds", "EGeneral:Invalid arguments:volume"], REFUSED),
    (200, ["EAPI:Rate limit exceeded", "EOrder:Insufficient funds"], NOT_NOW),
    *((200, [error], NOT_NOW) for error in kraken.NOT_NOW),
    (200, ["EService:Throttled: 1659146400"], NOT_NOW),
    *((200, [error], REFUSED) for error in kraken.REFUSED),
    (200, ["EGeneral:Invalid arguments:volume minimum not met"], REFUSED),
]


@pytest.mark.parametrize(("status", "errors", "verdict"), KRAKEN_SAYS)
def test_a_no_of_kraken_means(status: int, errors: list[str], verdict: Verdict):
    assert KRAKEN.verdict(status, {"error": errors} if errors else None) is verdict


def test_what_one_account_did_does_not_hold_up_the_others():
    assert BINANCE.is_of_address(429, {"code": "-1003", "msg": ""})
    assert BINANCE.is_of_address(418, None)
    assert not BINANCE.is_of_address(429, {"code": "-1015", "msg": ""})
    assert not BINANCE.is_of_address(400, {"code": "-1021", "msg": ""})
    assert KRAKEN.is_of_address(200, {"error": ["EGeneral:Too many requests"]})
    assert KRAKEN.is_of_address(429, None)
    assert not KRAKEN.is_of_address(200, {"error": ["EAPI:Rate limit exceeded"]})
    assert not KRAKEN.is_of_address(200, {"error": ["EOrder:Rate limit exceeded"]})


def test_a_warning_of_kraken_is_no_no():
    assert KRAKEN.port.said(200, {"error": ["WGeneral:Be careful"], "result": {}}) is None


@given(status=st.integers(100, 599), code=st.integers(-99_999, 99_999), words=st.text(max_size=40))
def test_binance_refuses_only_by_a_known_code_below_500(status: int, code: int, words: str):
    if BINANCE.verdict(status, {"code": str(code), "msg": words}) is REFUSED:
        assert str(code) in binance.REFUSED
        assert status < 500
        assert "duplicate" not in words.lower()


@given(status=st.integers(100, 599), errors=st.lists(st.text(max_size=40), max_size=3))
def test_kraken_refuses_only_by_errors_that_are_all_known(status: int, errors: list[str]):
    if KRAKEN.verdict(status, {"error": errors}) is REFUSED:
        assert status < 400
        assert all(error.startswith((*kraken.REFUSED, "W")) for error in errors)


# How an order is written.


def ticket(venue: str, order_type: OrderType = OrderType.LIMIT, **of: Any) -> Ticket:
    values: dict[str, Any] = {
        "client_order_id": str(uuid4()),
        "instrument_id": f"{venue}:BTCUSDT",
        "side": Side.SELL,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal("0.00000001"),
    }
    return Ticket(**{**values, "order_type": order_type, **of})


ONE, TWO = Decimal("1.10"), Decimal("2E+3")
BINANCE_WRITES = [
    (OrderType.MARKET, {"time_in_force": TimeInForce.IOC}, {"type": "MARKET"}),
    (OrderType.LIMIT, {"limit_price": ONE}, {"type": "LIMIT", "price": "1.1", "timeInForce": "GTC"}),
    (
        OrderType.LIMIT,
        {"limit_price": ONE, "time_in_force": TimeInForce.FOK},
        {"type": "LIMIT", "price": "1.1", "timeInForce": "FOK"},
    ),
    (OrderType.LIMIT, {"limit_price": ONE, "post_only": True}, {"type": "LIMIT_MAKER", "price": "1.1"}),
    (OrderType.STOP, {"stop_price": TWO}, {"type": "STOP_LOSS", "stopPrice": "2000"}),
    (
        OrderType.STOP_LIMIT,
        {"stop_price": TWO, "limit_price": ONE},
        {"type": "STOP_LOSS_LIMIT", "stopPrice": "2000", "price": "1.1", "timeInForce": "GTC"},
    ),
    (OrderType.TAKE_PROFIT, {"stop_price": TWO}, {"type": "TAKE_PROFIT", "stopPrice": "2000"}),
    (
        OrderType.TAKE_PROFIT_LIMIT,
        {"stop_price": TWO, "limit_price": ONE},
        {"type": "TAKE_PROFIT_LIMIT", "stopPrice": "2000", "price": "1.1", "timeInForce": "GTC"},
    ),
    (OrderType.TRAILING_STOP, {"trail_fraction": Decimal("0.015")}, {"type": "STOP_LOSS", "trailingDelta": "150"}),
]


@pytest.mark.parametrize(("order_type", "of", "written"), BINANCE_WRITES)
def test_an_order_is_written_for_binance(order_type: OrderType, of: dict[str, Any], written: dict[str, str]):
    wanted = ticket("BINANCE", order_type, **of)
    assert binance.CARD.refusal(wanted) is None
    assert binance.order_params(wanted) == {
        "symbol": "BTCUSDT",
        "side": "SELL",
        "quantity": "0.00000001",
        **written,
    }


GTD = {"time_in_force": TimeInForce.GTD, "expire_time_ns": 1_700_000_000_999_999_999}
KRAKEN_WRITES = [
    (OrderType.MARKET, {"time_in_force": TimeInForce.IOC}, {"ordertype": "market"}),
    (OrderType.LIMIT, {"limit_price": ONE}, {"ordertype": "limit", "price": "1.1", "timeinforce": "GTC"}),
    (
        OrderType.LIMIT,
        {"limit_price": ONE, **GTD},
        {"ordertype": "limit", "price": "1.1", "timeinforce": "GTD", "expiretm": "1700000000"},
    ),
    (
        OrderType.LIMIT,
        {"limit_price": ONE, "post_only": True},
        {"ordertype": "limit", "price": "1.1", "timeinforce": "GTC", "oflags": "post,fciq"},
    ),
    (OrderType.STOP, {"stop_price": TWO}, {"ordertype": "stop-loss", "price": "2000", "timeinforce": "GTC"}),
    (
        OrderType.STOP_LIMIT,
        {"stop_price": TWO, "limit_price": ONE},
        {"ordertype": "stop-loss-limit", "price": "2000", "price2": "1.1", "timeinforce": "GTC"},
    ),
    (OrderType.TAKE_PROFIT, {"stop_price": TWO}, {"ordertype": "take-profit", "price": "2000", "timeinforce": "GTC"}),
    (
        OrderType.TAKE_PROFIT_LIMIT,
        {"stop_price": TWO, "limit_price": ONE},
        {"ordertype": "take-profit-limit", "price": "2000", "price2": "1.1", "timeinforce": "GTC"},
    ),
    (
        OrderType.TRAILING_STOP,
        {"trail_amount": TWO},
        {"ordertype": "trailing-stop", "price": "+2000", "timeinforce": "GTC"},
    ),
    (
        OrderType.TRAILING_STOP,
        {"trail_fraction": Decimal("0.015")},
        {"ordertype": "trailing-stop", "price": "+1.5%", "timeinforce": "GTC"},
    ),
]


@pytest.mark.parametrize(("order_type", "of", "written"), KRAKEN_WRITES)
def test_an_order_is_written_for_kraken(order_type: OrderType, of: dict[str, Any], written: dict[str, str]):
    wanted = ticket("KRAKEN", order_type, **of)
    assert kraken.CARD.refusal(wanted) is None
    expected = {"type": "sell", "volume": "0.00000001", "oflags": "fciq", **written}
    assert kraken.order_params(wanted) == expected


@pytest.mark.parametrize("card", [binance.CARD, kraken.CARD], ids=lambda card: card.venue)
@pytest.mark.parametrize("order_type", OrderType)
@pytest.mark.parametrize("time_in_force", TimeInForce)
def test_what_a_card_has_not_is_refused(card: Card, order_type: OrderType, time_in_force: TimeInForce):
    refused = card.refusal(ticket(card.venue, order_type, time_in_force=time_in_force))
    assert (refused is None) == ((order_type, time_in_force) in card.takes)
    assert refused is None or refused.code == NOT_NATIVE


@pytest.mark.parametrize("fraction", ["0.00015", "0", "-0.01", "0.2001"])
def test_binance_trails_by_whole_basis_points_alone(fraction: str):
    wanted = ticket("BINANCE", OrderType.TRAILING_STOP, trail_fraction=Decimal(fraction))
    assert binance.CARD.refusal(wanted) is not None


@pytest.mark.parametrize("fraction", ["0.001", "0.025", "0.1"])
def test_of_futures_binance_trails_by_whole_tenths_of_a_percent(fraction: str):
    wanted = ticket("BINANCE", OrderType.TRAILING_STOP, trail_fraction=Decimal(fraction))
    wanted = replace(wanted, instrument_id="BINANCE:BTCUSDT-PERP")
    assert binance_futures.CARD.refusal(wanted) is None
    for other in ("0.0005", "0.0025", "0.101"):
        refused = binance_futures.CARD.refusal(replace(wanted, trail_fraction=Decimal(other)))
        assert refused is not None
        assert refused.code == NOT_NATIVE


def test_an_amount_is_trailed_where_the_venue_can():
    wanted = ticket("BINANCE", OrderType.TRAILING_STOP, trail_amount=ONE)
    assert binance.CARD.refusal(wanted) is not None
