"""What is of Binance's futures alone: stops that become other orders, positions, funding, and accounts that are set up otherwise."""

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from libs.bus.budget import Use
from libs.matching.orders import Side
from libs.venues import limits_from
from services.execution.domain import AccountKind, OrderType, Position, TimeInForce, VenueNotFound
from services.execution.venues import binance_futures
from services.execution.venues.binance_futures import BinanceFuturesPort
from services.execution.venues.ccxt_port import Answered, Verdict, exact_json
from services.execution.venues.port import (
    NOT_NATIVE,
    WAITS,
    Balance,
    Done,
    Lost,
    NotNow,
    OrderState,
    Refused,
    Told,
    Unknown,
    VenuePort,
)
from services.execution.venues.ports import card_of
from tests.execution.venue_stand import FUTURES, PortStand, futures_stand, listening
from tests.venues import faults
from tests.venues.binance_futures import BinanceFutures
from tests.venues.binance_futures_market import Market
from tests.venues.binance_futures_orders import Account
from tests.venues.faults import RequestFault

HOUR_MILLISECONDS = 3_600_000


@pytest.fixture
async def stand(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PortStand]:
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    async with futures_stand(FUTURES, redis) as opened:
        yield opened


def market_of(stand: PortStand) -> Market:
    assert isinstance(stand.market, Market)
    return stand.market


def account_of(stand: PortStand) -> Account:
    assert isinstance(stand.account, Account)
    return stand.account


def venue_of(stand: PortStand) -> BinanceFutures:
    assert isinstance(stand.venue, BinanceFutures)
    return stand.venue


# Stops.


def stop_ticket(stand: PortStand, **of: Any) -> Any:
    """Sells one coin where the price falls to 29,500."""
    values = {"order_type": OrderType.STOP, "side": Side.SELL, "stop_price": Decimal(29_500), "limit_price": None}
    return stand.ticket(**{**values, **of})


async def test_what_a_stop_becomes_is_found_under_the_id_it_was_placed_under(stand: PortStand):
    stand.market.trade("30000", "0.1")
    ticket = stop_ticket(stand)
    async with stand.opened() as port:
        placed = await port.submit(ticket)
        assert isinstance(placed, Done)
        assert placed.order
        assert placed.order.venue_order_id.endswith(WAITS)
        assert placed.order == await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        stand.market.trade("29500", "0.1", buyer_is_maker=True)
        assert await port.open_orders() == []
        became = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        [fill] = await stand.all_fills(port)
    assert became
    assert (became.state, became.filled_quantity, became.client_order_id) == (
        OrderState.FILLED,
        1,
        ticket.client_order_id,
    )
    assert not became.venue_order_id.endswith(WAITS)
    assert (fill.client_order_id, fill.venue_order_id) == (ticket.client_order_id, became.venue_order_id)


async def test_a_stop_tells_of_itself_and_then_of_what_it_became(stand: PortStand):
    stand.market.trade("30000", "0.1")
    ticket = stop_ticket(stand, limit_price=Decimal(29_400), order_type=OrderType.STOP_LIMIT)
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        stand.market.trade("29500", "0.1", buyer_is_maker=True)
        await heard.until(lambda: bool(heard.told) and heard.told[-1].state is OrderState.FILLED)
    assert {told.client_order_id for told in heard.told} == {ticket.client_order_id}
    waits = [told.venue_order_id.endswith(WAITS) for told in heard.told]
    assert waits == sorted(waits, reverse=True)
    assert set(waits) == {True, False}
    assert sum((told.fill.quantity for told in heard.told if told.fill), Decimal(0)) == 1


@pytest.mark.parametrize("knows_id", [True, False])
async def test_a_stop_is_taken_back_by_either_id(stand: PortStand, knows_id: bool):
    stand.market.trade("30000", "0.1")
    ticket = stop_ticket(stand)
    async with stand.opened() as port:
        await port.submit(ticket)
        [waiting] = await port.open_orders()
        venue_order_id = waiting.venue_order_id if knows_id else ""
        assert isinstance(await port.cancel(stand.instrument_id, ticket.client_order_id, venue_order_id), Done)
        found = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        assert found
        assert found.state is OrderState.CANCELED
        again = await port.cancel(stand.instrument_id, ticket.client_order_id, venue_order_id)
    assert again == Refused(code="-2011", words="Unknown order sent.")


async def test_a_stop_that_was_triggered_is_taken_back_as_what_it_became(stand: PortStand):
    stand.market.trade("30000", "0.1")
    stand.market.book({}, {"30010": "5"})
    ticket = stop_ticket(stand, limit_price=Decimal(29_450), order_type=OrderType.STOP_LIMIT)
    async with stand.opened() as port:
        await port.submit(ticket)
        [waiting] = await port.open_orders()
        stand.market.trade("29500", "0.1", buyer_is_maker=True)
        [became] = await port.open_orders()
        assert became.venue_order_id != waiting.venue_order_id
        outcome = await port.cancel(stand.instrument_id, ticket.client_order_id, waiting.venue_order_id)
    assert isinstance(outcome, Done)
    assert outcome.order
    assert (outcome.order.state, outcome.order.venue_order_id) == (OrderState.CANCELED, became.venue_order_id)


async def test_a_stop_whose_answer_is_lost_is_found_and_one_that_was_there_is_no_other(stand: PortStand):
    ticket = stop_ticket(stand)
    stand.fault(faults.lost_answer(method="POST", path="/algoOrder"))
    async with stand.opened() as port:
        assert not isinstance(await port.submit(ticket), (Done, Refused, NotNow))
        assert await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        # Binance says so by a code, after which it is not taken for refused.
        assert not isinstance(await port.submit(ticket), (Done, Refused, NotNow))
    assert len(account_of(stand).waiting) == 1


async def test_a_stop_trails_by_tenths_of_a_percent(stand: PortStand):
    stand.market.trade("30000", "0.1")
    trailing = {"order_type": OrderType.TRAILING_STOP, "stop_price": None}
    async with stand.opened() as port:
        for fraction in ("0.0005", "0.0015", "0.101"):
            outcome = await port.submit(stop_ticket(stand, **trailing, trail_fraction=Decimal(fraction)))
            assert isinstance(outcome, Refused)
            assert outcome.code == NOT_NATIVE
        ticket = stop_ticket(stand, **trailing, trail_fraction=Decimal("0.01"))
        assert isinstance(await port.submit(ticket), Done)
        stand.market.trade("30500", "0.1")
        assert len(await port.open_orders()) == 1
        stand.market.trade("30195", "0.1", buyer_is_maker=True)
        found = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
    assert found
    assert found.state is OrderState.FILLED


async def test_a_stop_that_closes_whatever_there_will_be_is_left_to_whom_it_is_of(stand: PortStand):
    ticket = stop_ticket(stand)
    async with stand.opened() as port:
        await port.submit(ticket)
        account_of(stand).waiting[0].close_position = True
        assert await port.open_orders() == []


async def test_stops_are_not_changed(stand: PortStand):
    ticket = stop_ticket(stand)
    async with stand.opened() as port:
        await port.submit(ticket)
        [waiting] = await port.open_orders()
        changed = stop_ticket(stand, client_order_id=ticket.client_order_id, stop_price=Decimal(29_000))
        outcome = await port.replace(waiting, changed)
    assert outcome == Refused(code=NOT_NATIVE, words="BINANCE changes no stop orders")


async def test_a_change_that_may_have_been_sent_before_the_order_was_done_is_unknown(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:
        await port.submit(ticket)
        [working] = await port.open_orders()
        stand.market.trade("29000", "1", buyer_is_maker=True)
        changed = stand.ticket(client_order_id=ticket.client_order_id, quantity=Decimal(2))
        assert isinstance(await port.replace(working, changed), Unknown)


async def test_a_change_that_is_there_already_is_done(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:
        await port.submit(ticket)
        [working] = await port.open_orders()
        assert isinstance(await port.replace(working, ticket), Done)


# What is refused, in Binance's words.


async def test_orders_are_refused_for_what_is_of_futures(stand: PortStand):
    tight = {"limit_price": Decimal(30_010), "quantity": Decimal(3)}
    refused = [
        (stand.ticket(reduce_only=True), "-2022"),
        (stand.ticket(**tight, time_in_force=TimeInForce.FOK), "-5021"),
        (stand.ticket(**tight, post_only=True), "-5022"),
        (stand.ticket(quantity=Decimal(100)), "-2019"),
        (stand.ticket(quantity=Decimal("0.001")), "-4164"),
        (stand.ticket(limit_price=Decimal("29000.05")), "-4014"),
        (stop_ticket(stand, stop_price=Decimal(30_500)), "-2021"),
    ]
    stand.market.trade("30000", "0.1")
    async with stand.opened() as port:
        for ticket, code in refused:
            outcome = await port.submit(ticket)
            assert isinstance(outcome, Refused)
            assert (outcome.code, outcome.stop_reached) == (code, code == "-2021")
    assert (stand.account.orders, account_of(stand).waiting) == ([], [])


async def test_what_is_no_perpetual_future_is_no_order_for_such_an_account(stand: PortStand):
    async with stand.opened() as port:
        asked = len(stand.venue.asked)
        outcome = await port.submit(stand.ticket(instrument_id="BINANCE:BTCUSDT"))
        assert len(stand.venue.asked) == asked
    assert outcome == Refused(code=NOT_NATIVE, words="BINANCE has no such instrument for an account of this kind")
    spot = await card_of("BINANCE")
    assert spot.refusal(stand.ticket()) is not None
    with pytest.raises(VenueNotFound):
        await card_of("KRAKEN", AccountKind.MARGIN)


# What an account holds.


async def test_positions_and_the_wallet_follow_what_is_traded(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        assert await port.positions() == {}
        await port.submit(stand.market_ticket(quantity=Decimal(2)))
        assert await port.positions() == {
            stand.instrument_id: Position(quantity=Decimal(2), average_price=Decimal(30_010))
        }
        await port.submit(stand.market_ticket(quantity=Decimal(3), side=Side.SELL, reduce_only=False))
        await heard.until(lambda: len([told for told in heard.told if told.fill]) == 2)
        positions, balances = await port.positions(), await port.balances()
        fills = await stand.all_fills(port)
    assert positions == {stand.instrument_id: Position(quantity=Decimal(-1), average_price=Decimal(29_990))}
    # Two coins were bought at 30,010 and sold at 29,990.
    assert [fill.realized_profit for fill in fills] == [0, -40]
    assert [told.fill.realized_profit for told in heard.told if told.fill] == [0, -40]
    fees = sum((fill.fee for fill in fills), Decimal(0))
    wallet = balances["USDT"]
    assert wallet.free + wallet.locked == 1_000_000 - 40 - fees


async def test_what_may_be_withdrawn_of_profits_is_not_in_the_wallet(stand: PortStand):
    """Not before the position is closed."""
    async with stand.opened() as port:
        await port.submit(stand.market_ticket(quantity=Decimal(1)))
        stand.market.trade("40000", "0.1")
        account_of(stand).leverage["BTCUSDT"] = 100
        wallet = stand.account.balances["USDT"].free
        assert account_of(stand).available("USDT") > wallet
        assert await port.balances() == {"USDT": Balance(free=wallet, locked=Decimal(0))}


async def test_a_position_that_binance_takes_off_says_so(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(stand.market_ticket(quantity=Decimal(1)))
        market_of(stand).close_out(account_of(stand))
        market_of(stand)
        await heard.until(
            lambda: any(told.client_order_id.startswith("autoclose-") for told in heard.told if told.fill)
        )
        forced = [fill.forced for fill in await stand.all_fills(port)]
    assert forced == ["", "Binance liquidates a position with it"]
    assert {told.fill.forced for told in heard.told if told.fill} == set(forced)


# Funding.


def hours_ago(hours: int) -> int:
    """In milliseconds, at the hour."""
    now = time.time_ns() // 1_000_000
    return now - now % HOUR_MILLISECONDS - hours * HOUR_MILLISECONDS


async def read_funding(port: VenuePort, cursor: str, begin: int) -> tuple[list[Any], str, int]:
    """All that comes, where the record ended, and in how many pages."""
    entries: list[Any] = []
    for count in range(1, 100):
        page = await port.funding_since(cursor, begin * 1_000_000)
        entries += page.entries
        cursor = page.cursor
        if page.is_last:
            return entries, cursor, count
    raise AssertionError("the record has no end")


async def test_funding_is_read_on_from_where_it_was_read_to(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binance_futures, "PAGE_FUNDING", 10)
    market, account = market_of(stand), account_of(stand)
    begin = hours_ago(24 * 30)
    async with stand.opened() as port:
        await port.submit(stand.market_ticket(quantity=Decimal(1)))
        amounts = [market.fund(account, "0.0001", begin + number * 8 * HOUR_MILLISECONDS) for number in range(90)]
        first, cursor, pages = await read_funding(port, "", begin)
        # Of what was read only what may still be joined by more is asked for again.
        again, cursor, page_count = await read_funding(port, cursor, begin)
        late = market.fund(account, "0.0002", begin + 89 * 8 * HOUR_MILLISECONDS)
        more, _, _ = await read_funding(port, cursor, begin)
    assert [entry.amount for entry in first] == amounts
    assert len({entry.venue_id for entry in first}) == 90
    assert {entry.asset for entry in first} == {"USDT"}
    assert first[0].instrument_id == "BINANCE:BTCUSDT-PERP"
    assert first[0].time_ns == begin * 1_000_000
    assert pages > 9
    assert (len(again), page_count) == (1, 1)
    assert late in [entry.amount for entry in more]


async def test_nothing_that_came_at_one_time_is_left_out_at_the_end_of_a_page(
    stand: PortStand, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(binance_futures, "PAGE_FUNDING", 3)
    market, account = market_of(stand), account_of(stand)
    async with stand.opened() as port:
        await port.submit(stand.market_ticket(quantity=Decimal(1)))
        for _ in range(7):
            market.fund(account, "0.0001", hours_ago(1))
        entries, _, pages = await read_funding(port, "", hours_ago(2))
    assert (len({entry.venue_id for entry in entries}), pages) == (7, 3)


# How an account is set up.


async def test_an_account_that_is_set_up_otherwise_is_told_what_to_set(stand: PortStand):
    account = account_of(stand)
    async with stand.opened() as port:
        assert await port.unfit() == ""
        account.margin_types["BTCUSDT"] = "ISOLATED"
        assert await port.unfit() == "the account at BINANCE has isolated margin for BTCUSDT: set it to cross margin"
        account.multi_assets = True
        assert "multi-assets mode: set its asset mode to single-asset" in await port.unfit()
        account.dual_side = True
        assert "hedge mode: set its position mode to one-way" in await port.unfit()
        outcome = await port.submit(stand.ticket())
    assert isinstance(outcome, Refused)
    assert outcome.code == "-4061"


# Its stream.


async def test_a_stream_whose_key_expires_is_lost_and_another_is_followed(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        venue_of(stand).expire_listen_keys()
        await heard.until(lambda: heard.connections == 2)
        await port.submit(stand.ticket())
        await heard.until(lambda: len(heard.told) == 1)
    assert Lost(why="listenKeyExpired") in heard.events


async def test_a_streams_key_is_kept_and_one_that_is_gone_ends_it(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binance_futures, "KEEP_SECONDS", 0.05)
    venue = venue_of(stand)

    def kept() -> int:
        return stand.asked_count("/listenKey")

    async with stand.opened() as port, listening(port) as heard:
        await heard.until(lambda: kept() >= 3)
        assert heard.connections == 1
        # Without a word to those who listen.
        venue.listen_keys.clear()
        await heard.until(lambda: heard.connections == 2)


# What it answers, as Binance documents it.


def test_orders_are_read_as_they_are_documented():
    row = exact_json("""{"clientOrderId": "testOrder", "cumQty": "0", "cumQuote": "0", "executedQty": "0.4", "orderId": 22542179,
      "avgPrice": "0.00000", "origQty": "10", "price": "9300.5", "reduceOnly": false, "side": "BUY", "positionSide": "BOTH",
      "status": "PARTIALLY_FILLED", "stopPrice": "0", "closePosition": false, "symbol": "BTCUSDT", "timeInForce": "GTD",
      "type": "LIMIT", "origType": "LIMIT", "updateTime": 1566818724722, "workingType": "CONTRACT_PRICE",
      "priceProtect": false, "priceMatch": "NONE", "selfTradePreventionMode": "NONE", "goodTillDate": 1693207680000}""")
    order = binance_futures.order_of(row)
    assert (order.venue_order_id, order.instrument_id, order.state) == (
        "BTCUSDT-22542179",
        "BINANCE:BTCUSDT-PERP",
        OrderState.WORKING,
    )
    assert (str(order.quantity), str(order.filled_quantity), str(order.limit_price)) == ("10", "0.4", "9300.5")
    assert (order.stop_price, order.time_ns) == (None, 1_566_818_724_722_000_000)


def test_orders_that_wait_are_read_as_they_are_documented():
    row = exact_json("""{"algoId": 2146760, "clientAlgoId": "6B2I9XVcJpCjqPAJ4YoFX7", "algoType": "CONDITIONAL",
      "orderType": "TAKE_PROFIT", "symbol": "BNBUSDT", "side": "SELL", "positionSide": "BOTH", "timeInForce": "GTC",
      "quantity": "0.01", "algoStatus": "NEW", "actualOrderId": "", "actualPrice": "0.00000", "triggerPrice": "750.000",
      "price": "750.000", "icebergQuantity": null, "closePosition": false, "priceProtect": false, "reduceOnly": false,
      "createTime": 1750485492076, "updateTime": 1750514545091, "triggerTime": 0, "goodTillDate": 0}""")
    order = binance_futures.waiting_of(row)
    assert (order.venue_order_id, order.state) == ("BNBUSDT-2146760~", OrderState.WORKING)
    assert (str(order.quantity), str(order.stop_price), str(order.limit_price)) == ("0.01", "750.000", "750.000")
    became = {"algoStatus": "FINISHED", "actualOrderId": "22542179", "actualQty": "0.01"}
    order = binance_futures.waiting_of({**row, **became})
    assert (order.venue_order_id, order.state, str(order.filled_quantity)) == (
        "BNBUSDT-22542179",
        OrderState.FILLED,
        "0.01",
    )
    half = binance_futures.waiting_of({**row, **became, "actualQty": "0.005"})
    assert half.state is OrderState.CANCELED


def test_fills_positions_balances_and_funding_are_read_as_they_are_documented():
    [fill] = map(
        binance_futures.fill_of,
        exact_json("""[{"buyer": false, "commission": "0.07819010", "commissionAsset": "USDT", "id": 698759, "maker": false,
          "orderId": 25851813, "price": "7819.01", "qty": "0.002", "quoteQty": "15.63802", "realizedPnl": "-0.91539999",
          "side": "SELL", "positionSide": "BOTH", "symbol": "BTCUSDT", "time": 1569514978020}]"""),
    )
    assert (fill.venue_fill_id, fill.side, fill.maker) == ("BTCUSDT-698759-25851813", Side.SELL, False)
    assert [str(value) for value in (fill.price, fill.quantity, fill.fee, fill.realized_profit)] == [
        "7819.01",
        "0.002",
        "0.07819010",
        "-0.91539999",
    ]
    positions = exact_json("""[{"symbol": "ADAUSDT", "positionSide": "BOTH", "positionAmt": "-30", "entryPrice": "0.385",
      "breakEvenPrice": "0.385077", "markPrice": "0.41047590", "unRealizedProfit": "0.76427700", "liquidationPrice": "0",
      "isolatedMargin": "0", "notional": "12.31427700", "marginAsset": "USDT", "isolatedWallet": "0",
      "initialMargin": "0.61571385", "maintMargin": "0.08004280", "positionInitialMargin": "0.61571385",
      "openOrderInitialMargin": "0", "adl": 2, "bidNotional": "0", "askNotional": "0", "updateTime": 1720736417660}]""")
    assert binance_futures.positions_of(positions) == {
        "BINANCE:ADAUSDT-PERP": Position(quantity=Decimal(-30), average_price=Decimal("0.385"))
    }
    with pytest.raises(ValueError, match="hedge"):
        binance_futures.positions_of([{**positions[0], "positionSide": "SHORT"}])
    balances = exact_json("""[{"accountAlias": "SgsR", "asset": "USDT", "balance": "122607.35137903",
      "crossWalletBalance": "23.72469206", "crossUnPnl": "0.00000000", "availableBalance": "23.72469206",
      "maxWithdrawAmount": "23.72469206", "marginAvailable": true, "updateTime": 1617939110373}]""")
    [(asset, balance)] = binance_futures.balances_of(balances).items()
    assert (asset, str(balance.free), str(balance.free + balance.locked)) == ("USDT", "23.72469206", "122607.35137903")
    income = exact_json("""{"symbol": "BTCUSDT", "incomeType": "FUNDING_FEE", "income": "-0.01000000", "asset": "USDT",
      "info": "FUNDING_FEE", "time": 1570636800000, "tranId": 9689322392, "tradeId": ""}""")
    funding = binance_futures.funding_of(income)
    assert (funding.venue_id, str(funding.amount), funding.time_ns) == (
        "BTCUSDT-9689322392",
        "-0.01000000",
        1_570_636_800_000_000_000,
    )
    with pytest.raises(ValueError, match="income"):
        binance_futures.funding_of({**income, "incomeType": "COMMISSION"})


async def told(event: str) -> list[Told]:
    return await BinanceFuturesPort.__new__(BinanceFuturesPort).told(exact_json(event))


async def test_what_is_told_is_read_as_it_is_documented():
    """As far as it is documented: an order that trades, one that expires, one that waits and one that was triggered."""
    order = """{"e":"ORDER_TRADE_UPDATE","E":1568879465651,"T":1568879465650,"o":{"s":"BTCUSDT","c":"TEST","S":"SELL",
      "o":"MARKET","f":"GTC","q":"0.5","p":"0","ap":"49000.00","sp":"0","x":"%s","X":"%s","i":8886774,"l":"%s","z":"0.2",
      "L":"49000.0","n":"0.00045","N":"USDT","T":1568879465650,"t":987654321,"b":"0","a":"0","m":false,"R":false,
      "wt":"CONTRACT_PRICE","ot":"MARKET","ps":"BOTH","cp":false,"rp":"10.5","pP":false,"si":0,"ss":0,"V":"EXPIRE_MAKER",
      "pm":"NONE","gtd":0,"er":"%s"}}"""
    [traded] = await told(order % ("TRADE", "PARTIALLY_FILLED", "0.2", "0"))
    assert traded.fill
    assert (traded.fill.venue_fill_id, traded.state) == ("BTCUSDT-987654321-8886774", OrderState.WORKING)
    assert [str(value) for value in (traded.fill.quantity, traded.fill.fee, traded.fill.realized_profit)] == [
        "0.2",
        "0.00045",
        "10.5",
    ]
    [expired] = await told(order % ("EXPIRED", "EXPIRED_IN_MATCH", "0", "1"))
    assert (expired.fill, expired.state) == (None, OrderState.EXPIRED)
    assert expired.reason == "it would have traded with another of the account"
    [amended] = await told(order % ("AMENDMENT", "NEW", "0", "0"))
    assert (amended.fill, amended.state) == (None, OrderState.WORKING)
    waits = """{"e":"ALGO_UPDATE","T":1765431097030,"E":1765431097037,"o":{"caid":"O-1","aid":1000000033225453,
      "at":"CONDITIONAL","o":"STOP_MARKET","s":"DOGEUSDT","S":"BUY","ps":"BOTH","f":"GTC","q":"38","X":"%s","ai":"%s",
      "ap":"0","aq":"0","act":"MARKET","tp":"0.13855","p":"0","V":"EXPIRE_MAKER","wt":"CONTRACT_PRICE","pm":"NONE",
      "cp":false,"pP":false,"R":false,"tt":1765431097019,"gtd":0}}"""
    [waiting] = await told(waits % ("NEW", ""))
    assert (waiting.venue_order_id, waiting.state) == ("DOGEUSDT-1000000033225453~", OrderState.WORKING)
    [triggered] = await told(waits % ("TRIGGERED", "88937381063"))
    assert (triggered.client_order_id, triggered.venue_order_id) == ("O-1", "DOGEUSDT-88937381063")
    assert await told(waits % ("FINISHED", "88937381063")) == []
    [canceled] = await told(waits % ("CANCELED", ""))
    assert canceled.state is OrderState.CANCELED
    assert await told('{"e":"ACCOUNT_UPDATE","E":1,"T":1,"a":{"m":"FUNDING_FEE","B":[]}}') == []


# What its no means.

SAYS = [
    (503, -1007, Verdict.UNKNOWN),
    (503, -1008, Verdict.UNKNOWN),
    (500, -2019, Verdict.UNKNOWN),
    (400, -1000, Verdict.UNKNOWN),
    (400, -1001, Verdict.UNKNOWN),
    (400, -1006, Verdict.UNKNOWN),
    (400, -4116, Verdict.UNKNOWN),
    (400, -9999, Verdict.UNKNOWN),
    (403, None, Verdict.UNKNOWN),
    (429, -1003, Verdict.NOT_NOW),
    (418, -1003, Verdict.NOT_NOW),
    (400, -1015, Verdict.NOT_NOW),
    (400, -1021, Verdict.NOT_NOW),
    (400, -5028, Verdict.NOT_NOW),
    *((400, int(code), Verdict.REFUSED) for code in sorted(binance_futures.REFUSED)),
]


def verdict_of(status: int, code: int | None) -> Verdict:
    port = BinanceFuturesPort.__new__(BinanceFuturesPort)
    said = port.said(status, None if code is None else {"code": str(code), "msg": ""}) or ("", "")
    return port.verdict(Answered(status, *said))


@pytest.mark.parametrize(("status", "code", "verdict"), SAYS)
def test_a_no_means(status: int, code: int | None, verdict: Verdict):
    assert verdict_of(status, code) is verdict


@given(status=st.integers(100, 599), code=st.integers(-99_999, 99_999))
def test_only_a_known_code_below_500_refuses(status: int, code: int):
    if verdict_of(status, code) is Verdict.REFUSED:
        assert str(code) in binance_futures.REFUSED
        assert status < 500


def test_what_it_has_done_may_be_told_by_a_code():
    port = BinanceFuturesPort.__new__(BinanceFuturesPort)
    assert port.said(200, {"code": "200", "msg": "success"}) is None


def test_the_budget_keeps_orders_below_their_own_limits():
    """Each costs four of the weights that an address has; Binance allows 300 in ten seconds and 1,200 in a minute."""
    limits = limits_from(0.0, binance_futures.CARD.segment)
    for seconds, orders_max in ((10, 300), (60, 1_200)):
        assert (limits.capacity + seconds * limits.units_per_second) / binance_futures.ORDER_COST <= orders_max
    assert limits.capacity + 60 * limits.units_per_second <= 2_400


async def test_every_way_to_order_costs_as_much(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:

        async def spent() -> float:
            return (await port._budget.state()).spent[Use.ORDER]

        before = await spent()
        await port.submit(ticket)
        plain = await spent()
        await port.submit(stop_ticket(stand))
        stop = await spent()
        [working] = [order for order in await port.open_orders() if not order.venue_order_id.endswith(WAITS)]
        asked = await spent()
        await port.replace(working, stand.ticket(client_order_id=ticket.client_order_id, limit_price=Decimal(28_000)))
        changed = await spent()
    assert [plain - before, stop - plain, changed - asked] == [binance_futures.ORDER_COST] * 3


async def test_an_account_that_orders_too_much_does_not_hold_up_others(stand: PortStand):
    venue_of(stand).limits.orders.maximum = 1
    async with stand.opened() as port:
        assert isinstance(await port.submit(stand.ticket()), Done)
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert await port.open_orders()


async def test_an_order_that_came_too_late_to_be_matched_sets_the_clock(stand: PortStand):
    body = '{"code":-5028,"msg":"Timestamp for this request is outside of the ME recvWindow."}'
    headers = {"Content-Type": "application/json"}
    stand.fault(RequestFault(400, headers, body, method="POST", path=stand.kind.submit_path))
    async with stand.opened() as port:
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert stand.asked_count("/fapi/v1/time") == 1
        assert isinstance(await port.submit(stand.ticket()), Done)
