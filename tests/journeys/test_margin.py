"""A perpetual future on margin, over REST, at the real paper venue of the whole mesh: long, short, flat, and the books."""

import time
from decimal import Decimal
from typing import Any
from uuid import uuid4

from tests.journeys.callers import Curl
from tests.journeys.test_first_trade import signed_in
from tests.stack import Stack

PERP = "SIM:BTCUSDT-PERP"
DONE_SECONDS = 40.0
WALLET = Decimal(100_000)


def test_a_perpetual_future_is_bought_turned_and_closed_on_margin(stack: Stack) -> None:
    caller = Curl(stack.edge)
    token = signed_in(caller)
    asked = {
        "request_id": str(uuid4()),
        "name": "margin",
        "mode": "ACCOUNT_MODE_PAPER",
        "kind": "ACCOUNT_KIND_MARGIN",
        "leverage": 5,
        "starting_balances": [{"asset": "USDT", "amount": {"value": str(WALLET)}}],
    }
    account = caller.call("PortfolioService.CreateAccount", asked, token)["account"]
    assert account["leverage"] == 5
    named = {"account_id": account["account_id"]}

    def portfolio() -> Any:
        return caller.call("PortfolioService.GetPortfolio", named, token)

    def held() -> Decimal:
        positions = portfolio().get("positions", [])
        return Decimal(positions[0]["quantity"]["value"]) if positions else Decimal(0)

    until = time.monotonic() + DONE_SECONDS

    def done(placed: Any) -> None:
        """Returns once nothing more of an order can trade."""
        while placed["state"] not in ("ORDER_STATE_FILLED", "ORDER_STATE_CANCELED"):
            assert time.monotonic() < until, placed
            time.sleep(0.1)
            placed = caller.call("OrderService.GetOrder", {"order_id": placed["order_id"]}, token)["order"]

    def hold(target: str) -> None:
        """Trades until so much is held: a thin book fills a market order in part."""
        while missing := Decimal(target) - held():
            order = {
                **named,
                "request_id": str(uuid4()),
                "instrument_id": PERP,
                "side": "ORDER_SIDE_BUY" if missing > 0 else "ORDER_SIDE_SELL",
                "order_type": "ORDER_TYPE_MARKET",
                "quantity": {"value": str(abs(missing))},
            }
            done(caller.call("OrderService.PlaceOrder", order, token)["order"])

    hold("0.5")
    (position,) = portfolio()["positions"]
    mark, entry = Decimal(position["mark_price"]["value"]), Decimal(position["average_price"]["value"])
    notional = Decimal(position["notional"]["value"])
    assert notional == Decimal("0.5") * mark
    assert Decimal(position["initial_margin"]["value"]) == notional / 5
    (standing,) = portfolio()["margins"]
    wallet = Decimal(standing["wallet_balance"]["value"])
    assert WALLET - Decimal("0.5") * entry * Decimal("0.0006") < wallet < WALLET
    # Of half a bitcoin the wallet backs all; of three, which the leverage allows, it does not.
    assert "liquidation_price" not in position
    hold("3")
    (position,) = portfolio()["positions"]
    price = Decimal(position["liquidation_price"]["value"])
    wallet = Decimal(portfolio()["margins"][0]["wallet_balance"]["value"])
    entry = Decimal(position["average_price"]["value"])
    tiers = caller.call("MarketDataService.GetInstrument", {"instrument_id": PERP}, token)["instrument"]["perpetual"]
    tier = [each for each in tiers["margin_tiers"] if Decimal(each["notional_floor"]["value"]) <= 3 * price][-1]
    maintenance = 3 * price * Decimal(tier["maintenance_margin_rate"]["value"]) - Decimal(
        tier["maintenance_amount"]["value"]
    )
    # At that price what is left is what must be there, to a tick of three bitcoins.
    assert abs(wallet + 3 * (price - entry) - maintenance) <= 3

    hold("-1")
    while held():
        closing = {**named, "request_id": str(uuid4()), "instrument_id": PERP}
        done(caller.call("PortfolioService.ClosePosition", closing, token)["order"])
    entries = caller.call("PortfolioService.ListLedgerEntries", {**named, "page_size": 500}, token)["entries"]
    assert {each["asset"] for each in entries} == {"USDT"}
    assert {each["book"] for each in entries} == {"account", "opening", "venue", "fees"}
    sums: dict[str, Decimal] = {}
    for each in entries:
        key = each["transaction_id"]
        sums[key] = sums.get(key, Decimal(0)) + Decimal(each["amount"]["value"])
    assert set(sums.values()) == {Decimal(0)}
    own = sum((Decimal(each["amount"]["value"]) for each in entries if each["book"] == "account"), Decimal(0))
    (balance,) = portfolio()["balances"]
    assert Decimal(balance["total"]["value"]) == own
    assert Decimal(balance["reserved"]["value"]) == 0
    listed = caller.call("PortfolioService.ListPositions", {**named, "include_flat": True}, token)["positions"]
    (flat,) = listed
    made, fees = Decimal(flat["realized_profit"]["value"]), Decimal(flat["fees"]["value"])
    assert own == WALLET + made - fees
