"""The main job on real input: recorded trades drive ticks, bars and fills through the whole mesh; real bars are imported."""

import asyncio
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import grpc
import polars as pl
import pytest
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.cli.client import sign_in
from libs.mesh.channel import open_edge_channel
from libs.money import CONTEXT, plain
from tests import recorded
from tests.stack import Stack

CALL_SECONDS = 20
REPLAY_SECONDS = 90
# Two and a half days in about half a minute.
SPEED = 8_000
TICK = Decimal("0.00000001")
PASSWORD = "correct horse battery"


def file_instrument() -> marketdata_pb2.Instrument:
    return marketdata_pb2.Instrument(
        instrument_id=f"FILE:XRPETH{uuid4().hex[:8].upper()}",
        description="Ripple in Ether, recorded in October 2019",
        asset_class=marketdata_pb2.ASSET_CLASS_CRYPTO,
        base_asset="XRP",
        quote_asset="ETH",
        tick_size={"value": plain(TICK)},
        lot_size={"value": "1"},
        minimum_notional={"value": "0.0001"},
        maker_fee_rate={"value": "0"},
        taker_fee_rate={"value": "0"},
    )


async def read_ticks(market, session, instrument_id: str, count: int) -> list[tuple[int, float, float, str]]:
    """Every tick from the first one on, resuming by cursor where the stream is cut."""
    cursors, ticks = [f"{instrument_id}@0-0"], []
    while len(ticks) < count:
        request = marketdata_pb2.StreamTicksRequest(instrument_ids=[instrument_id], after_cursors=cursors)
        try:
            async for message in market.StreamTicks(request, metadata=session):
                assert not message.HasField("gap"), message
                for batch in message.batches:
                    ticks += [(t.time.ToMilliseconds(), t.price, t.quantity, t.trade_id) for t in batch.ticks]
                    cursors = [batch.cursor]
                if len(ticks) >= count:
                    break
        except aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise
            await asyncio.sleep(0.1)  # Not announced yet, or too slow for a moment.
    return ticks


async def first_quote(market, session, instrument_id: str) -> marketdata_pb2.Quote:
    while True:
        try:
            request = marketdata_pb2.GetQuoteRequest(instrument_id=instrument_id)
            return (await market.GetQuote(request, metadata=session, timeout=CALL_SECONDS)).quote
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            await asyncio.sleep(0.1)


async def until_priced(portfolios, session, account_id: str) -> None:
    """orders hears of the instrument and of its prices a moment after marketdata; then XRP is worth some ETH there."""
    request = orders_pb2.GetPortfolioRequest(account_id=account_id)
    while True:
        portfolio = await portfolios.GetPortfolio(request, metadata=session, timeout=CALL_SECONDS)
        if "XRP" not in {amount.asset for amount in portfolio.equity}:
            return
        await asyncio.sleep(0.1)


def expected_fills(trades: pl.DataFrame, order: orders_pb2.Order) -> list[tuple[int, Decimal, Decimal]]:
    """What the file says: a resting order fills at its limit whenever a trade goes beyond it, by that trade's quantity."""
    buys, limit = order.side == orders_pb2.ORDER_SIDE_BUY, Decimal(order.limit_price.value)
    left, fills = Decimal(order.quantity.value), []
    active = order.market_time.ToMilliseconds()
    later = trades.filter(pl.col("timestamp") >= active).select("timestamp", "price", "amount")
    for place, (time, price, amount) in enumerate(later.iter_rows()):
        traded = Decimal(str(price)).quantize(TICK, context=CONTEXT)
        if left and (traded < limit if buys else traded > limit):
            quantity = min(left, Decimal(int(amount)))
            fills.append((time, limit if place else traded, quantity))
            left -= quantity
    return fills


async def test_recorded_trades_drive_ticks_bars_and_fills(stack: Stack) -> None:
    trades = pl.read_parquet(recorded.trades())
    shutil.copyfile(recorded.trades(), stack.replays / recorded.TRADES)
    instrument = file_instrument()
    async with open_edge_channel(stack.edge) as channel, asyncio.timeout(REPLAY_SECONDS):
        market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        orders = orders_pb2_grpc.OrderServiceStub(channel)
        portfolios = orders_pb2_grpc.PortfolioServiceStub(channel)
        feeds = feeds_pb2_grpc.FeedServiceStub(channel)
        email = f"{uuid4()}@example.com"
        register = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
        await auth_pb2_grpc.AuthServiceStub(channel).Register(register, timeout=CALL_SECONDS)
        session, admin = await sign_in(channel, email, PASSWORD), await sign_in(channel, *stack.admin)
        request = orders_pb2.CreateAccountRequest(
            request_id=str(uuid4()),
            name="recorded",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[{"asset": asset, "amount": {"value": "1000000"}} for asset in ("XRP", "ETH")],
        )
        account = (await portfolios.CreateAccount(request, metadata=session, timeout=CALL_SECONDS)).account

        source = feeds_pb2.ReplaySource(
            files=[feeds_pb2.RecordedFile(file=recorded.TRADES, instrument=instrument)], speed=SPEED
        )
        start = feeds_pb2.StartFeedRequest(request_id=str(uuid4()), replay=source)
        await feeds.StartFeed(start, metadata=admin, timeout=CALL_SECONDS)
        reading = asyncio.create_task(read_ticks(market, session, instrument.instrument_id, len(trades)))

        quote = await first_quote(market, session, instrument.instrument_id)
        await until_priced(portfolios, session, account.account_id)
        placed: list[orders_pb2.Order] = []
        for side, factor in ((orders_pb2.ORDER_SIDE_BUY, "0.99"), (orders_pb2.ORDER_SIDE_SELL, "1.02")):
            limit = (Decimal(str(quote.last_price)) * Decimal(factor)).quantize(TICK, context=CONTEXT)
            place = orders_pb2.PlaceOrderRequest(
                request_id=str(uuid4()),
                account_id=account.account_id,
                instrument_id=instrument.instrument_id,
                side=side,
                order_type=orders_pb2.ORDER_TYPE_LIMIT,
                quantity={"value": "20000"},
                limit_price={"value": plain(limit)},
            )
            answer = await orders.PlaceOrder(place, metadata=session, timeout=CALL_SECONDS)
            placed.append(answer.order)

        ticks = await reading
        expected_ticks = trades.select("timestamp", "price", "amount", "id").rows()
        assert ticks == expected_ticks

        await until_bars(market, session, instrument.instrument_id, trades)
        for order in placed:
            expected = expected_fills(trades, order)
            assert expected, "the recording never reaches the limit: the test would show nothing"
            found: list[tuple[int, Decimal, Decimal]] = []
            while len(found) < len(expected):
                listing = orders_pb2.ListExecutionsRequest(
                    account_id=account.account_id, order_id=order.order_id, page_size=500
                )
                page = await orders.ListExecutions(listing, metadata=session, timeout=CALL_SECONDS)
                found = [
                    (fill.time.ToMilliseconds(), Decimal(fill.price.value), Decimal(fill.quantity.value))
                    for fill in reversed(page.executions)
                ]
                await asyncio.sleep(0.1)
            assert found == expected


async def until_bars(market, session, instrument_id: str, trades: pl.DataFrame) -> None:
    """Waits until the stored bars are those that polars makes of the same file."""
    minutes = trades.with_columns(minute=pl.col("timestamp") // 60_000 * 60_000).group_by("minute", maintain_order=True)
    columns = {
        "open": pl.col("price").first(),
        "high": pl.col("price").max(),
        "low": pl.col("price").min(),
        "close": pl.col("price").last(),
        "count": pl.len(),
    }
    expected = minutes.agg(**columns).rows()
    volumes = minutes.agg(pl.col("amount").sum())["amount"].to_list()
    while True:
        bars: list[marketdata_pb2.Candle] = []
        request = marketdata_pb2.GetCandlesRequest(instrument_id=instrument_id, page_size=5_000)
        request.start_time.FromMilliseconds(expected[0][0])
        while True:
            page = await market.GetCandles(request, metadata=session, timeout=CALL_SECONDS)
            bars += page.candles
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if sum(bar.trade_count for bar in bars) == len(trades):
            break
        await asyncio.sleep(0.2)
    found = [(b.open_time.ToMilliseconds(), b.open, b.high, b.low, b.close, b.trade_count) for b in bars]
    assert found == expected
    assert [bar.volume for bar in bars] == pytest.approx(volumes, rel=1e-12)
    # The last minute has not passed in market time: its bar is still forming.
    assert [bar.closed for bar in bars] == [True] * (len(bars) - 1) + [False]


async def test_real_bars_are_imported_whole_or_not_at_all(stack: Stack, tmp_path: Path) -> None:
    instrument = file_instrument()
    instrument.instrument_id = f"BINANCE:BTCPERP{uuid4().hex[:8].upper()}"
    instrument.asset_class = marketdata_pb2.ASSET_CLASS_PERPETUAL
    async with open_edge_channel(stack.edge) as channel:
        admin = await sign_in(channel, *stack.admin)
        market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        put = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid4()), instrument=instrument)
        await market.PutInstrument(put, metadata=admin, timeout=CALL_SECONDS)

        broken = tmp_path / "broken.csv"
        lines = recorded.bars().read_text().splitlines()
        lines[4_321] = lines[4_321].replace(",", ",x", 1)
        broken.write_text("\n".join(lines))
        refused = imported(stack, broken, instrument.instrument_id)
        assert refused.returncode == 1
        assert "4322" in refused.stdout + refused.stderr
        assert await count_bars(market, admin, instrument.instrument_id) == 0

        first = imported(stack, recorded.bars(), instrument.instrument_id)
        assert first.returncode == 0, first.stdout + first.stderr
        assert f"inserted   {recorded.BAR_COUNT}" in first.stdout
        assert await count_bars(market, admin, instrument.instrument_id) == recorded.BAR_COUNT

        again = imported(stack, recorded.bars(), instrument.instrument_id)
        assert "inserted   0" in again.stdout
        assert f"unchanged  {recorded.BAR_COUNT}" in again.stdout


def imported(stack: Stack, file: Path, instrument_id: str) -> "subprocess.CompletedProcess[str]":
    return stack.command("import", str(file), "--instrument", instrument_id, "--bar-size", "1m")


async def count_bars(market, session, instrument_id: str) -> int:
    request = marketdata_pb2.GetCandlesRequest(instrument_id=instrument_id, page_size=5_000)
    request.start_time.FromSeconds(1_640_000_000)
    count = 0
    while True:
        page = await market.GetCandles(request, metadata=session, timeout=CALL_SECONDS)
        count += len(page.candles)
        if not page.next_page_token:
            return count
        request.page_token = page.next_page_token
