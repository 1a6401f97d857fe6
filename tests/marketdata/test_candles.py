"""Candles, read by the page and streamed: alignment, half-open bars, closing by market time, resuming by cursor."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self

import grpc
import polars as pl
import pytest
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND
from libs.mesh.pages import token_after
from libs.mesh.wire import timestamp
from services.marketdata import candle_stream, importing
from services.marketdata.candle_store import Head
from services.marketdata.candle_stream import CandleCursor, parse_cursor
from tests.marketdata.stand import (
    BTC,
    START,
    Caller,
    Feeder,
    announce,
    desk_of,
    next_of,
    served,
    stored_through,
    tick_at,
)
from tests.marketdata.test_imports import HAND, HEADER, file_of
from tests.marketdata.test_instruments import refused

MINUTE = timedelta(minutes=1)


async def page(caller: Caller, instrument_id: str = BTC, **more):
    request = marketdata_pb2.GetCandlesRequest(instrument_id=instrument_id, **more)
    return await caller.ask("GetCandles", request)


async def pages(caller: Caller, instrument_id: str, **more):
    """All pages, in the order they come."""
    found, token = [], ""
    while True:
        answer = await page(caller, instrument_id, page_token=token, **more)
        found.append(list(answer.candles))
        if not (token := answer.next_page_token):
            return found


def values(candle):
    return (
        candle.open_time.ToDatetime(UTC),
        candle.open,
        candle.high,
        candle.low,
        candle.close,
        pytest.approx(candle.volume),
    )


def aggregated(content: bytes, every: str):
    """What polars makes of the file alone; its weeks begin on Monday too."""
    return (
        pl.read_csv(content, try_parse_dates=True)
        .with_columns(pl.col("timestamp").dt.replace_time_zone("UTC").dt.truncate(every).alias("time"))
        .group_by("time", maintain_order=True)
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
        )
        .sort("time")
        .rows()
    )


async def test_longer_bars_equal_what_polars_makes_of_the_imported_file(caller, recorded_bars):
    await caller.put(HAND)
    await caller.load(HAND, recorded_bars)
    for bar_size in ("1m", "5m", "15m", "1h", "4h", "1d", "1w"):
        found = await pages(
            caller, HAND, bar_size=bar_size, start_time=timestamp(datetime(2021, 1, 1, tzinfo=UTC)), page_size=5000
        )
        candles = [candle for each in found for candle in each]
        expected = aggregated(recorded_bars, bar_size)
        if bar_size != "1m":
            # The first bar opens before the first minute; a bar is asked for by its opening.
            assert candles[0].open_time.ToDatetime(UTC) <= datetime(2021, 12, 31, 23, 1, tzinfo=UTC)
        assert [values(candle) for candle in candles] == expected
        assert len(found) == -(-len(expected) // 5000)
        # The file ends at 05:32 on a Tuesday: bars that reach beyond are not closed.
        length = BAR_SIZES[bar_size].length
        end = datetime(2022, 2, 1, 5, 32, tzinfo=UTC)
        assert [candle.closed for candle in candles] == [row[0] + length <= end for row in expected]


async def test_pages_go_forward_from_a_start_and_back_in_time_without_one(caller):
    await caller.put(HAND)
    opened = [START + MINUTE * number for number in range(0, 40, 2)]
    lines = "".join(f"{time:%Y-%m-%d %H:%M:%S},1,2,1,2,1\n" for time in opened)
    await caller.load(HAND, (HEADER + lines).encode(), is_sparse=True)

    def times(found):
        return [[(each.open_time.ToDatetime(UTC) - START) // MINUTE for each in one] for one in found]

    forward = await pages(caller, HAND, start_time=timestamp(START + MINUTE), page_size=8)
    assert times(forward) == [[2, 4, 6, 8, 10, 12, 14, 16], [18, 20, 22, 24, 26, 28, 30, 32], [34, 36, 38]]
    backward = await pages(caller, HAND, end_time=timestamp(START + 38 * MINUTE), page_size=8)
    assert times(backward) == [[22, 24, 26, 28, 30, 32, 34, 36], [6, 8, 10, 12, 14, 16, 18, 20], [0, 2, 4]]
    span = {"start_time": timestamp(START + MINUTE), "end_time": timestamp(START + 20 * MINUTE)}
    five = await pages(caller, HAND, bar_size="5m", page_size=2, **span)
    assert times(five) == [[5, 10], [15]]
    assert [candle.volume for candle in five[0]] == [2, 3]
    assert times(await pages(caller, HAND, bar_size="5m", page_size=3)) == [[25, 30, 35], [10, 15, 20], [0, 5]]
    assert times(await pages(caller, HAND, start_time=timestamp(START + 60 * MINUTE))) == [[]]


async def test_a_bar_is_closed_once_market_time_has_passed_its_end(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.tick((0, 10), (59.999, 12))
    await stored_through(installation, feeder)

    async def closed(bar_size: str):
        return [candle.closed for candle in (await page(caller, bar_size=bar_size)).candles]

    assert await closed("1m") == [False]
    # A book may come before trades that were made before it.
    await feeder.append([], book=START + MINUTE + timedelta(milliseconds=10))
    await stored_through(installation, feeder)
    assert await closed("1m") == [False]
    await feeder.tick((59.9995, 12))
    await feeder.append([], market_time=START + MINUTE)
    await stored_through(installation, feeder)
    assert await closed("1m") == [True]
    assert await closed("5m") == [False]
    await feeder.tick((300, 11))
    await stored_through(installation, feeder)
    assert await closed("5m") == [True, False]
    first = (await page(caller)).candles[0]
    assert (first.open, first.close, first.volume, first.trade_count, first.revision) == (10, 12, 3, 3, 1)


@pytest.mark.parametrize("bar_size", ["1m", "5m"])
async def test_no_import_ahead_of_the_ticks_closes_what_these_make(installation, caller, redis, bar_size):
    await announce(installation, BTC)
    feeder = Feeder(redis)

    async def told() -> list[tuple[float, bool, int]]:
        return [(each.close, each.closed, each.revision) for each in (await page(caller, bar_size=bar_size)).candles]

    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(START, 10.0), tick_at(START + 10 * SECOND, 11.0)]))
        stream = caller.candles(BTC, bar_size=bar_size)
        assert not (await next_of(stream)).candles[0].closed
        lines = [f"2026-03-02 10:{minute}:00,1,2,1,2,5" for minute in range(30, 35)]
        await caller.load(BTC, file_of(*lines), bar_size="1m")
        ahead = [(2, True, 1)] * (5 if bar_size == "1m" else 1)
        assert await told() == [(11, False, 1), *ahead]
        assert all(candle.closed for candle in (await next_of(stream)).candles)
        await desk.store(feeder.batch([tick_at(START + 20 * SECOND, 12.0)]))
        assert await told() == [(12, False, 1), *ahead]
        assert [candle.closed for candle in (await next_of(stream)).candles] == [False]
        await desk.store(feeder.batch([], market_time=START + 5 * MINUTE))
        assert await told() == [(12, True, 1), *ahead]
        assert [(candle.close, candle.closed) for candle in (await next_of(stream)).candles] == [(12, True)]


async def test_a_bar_that_is_imported_as_it_stands_is_told_of_as_closed(installation, caller, redis):
    await announce(installation, BTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(START, 10.0)]))
    await caller.load(BTC, file_of("2026-03-02 10:30:00,1,2,1,2,5"), bar_size="1m")
    stream = caller.candles(BTC)
    assert [candle.closed for candle in (await next_of(stream)).candles] == [False, True]
    done = await caller.load(BTC, file_of("2026-03-02 10:00:00,10,10,10,10,1"), bar_size="1m")
    assert (done.inserted_count, done.changed_count, done.unchanged_count) == (0, 0, 1)
    assert [(candle.closed, candle.revision) for candle in (await next_of(stream)).candles] == [(True, 1)]


class Ahead(datetime):
    """The clock of a host that is a year ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(days=365)


async def test_a_clock_that_is_ahead_lets_no_bar_of_the_future_be_imported(installation, caller, monkeypatch):
    await announce(installation, BTC)
    monkeypatch.setattr(importing, "datetime", Ahead)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    bars = file_of(f"{tomorrow:%Y-%m-%d %H:%M:00},1,2,1,2,5")
    assert await refused(caller.load(BTC, bars, bar_size="1m")) == "IMPORT_LINES_INVALID"


async def test_a_token_that_was_not_given_out_and_an_unknown_instrument_are_refused(installation, caller):
    assert await refused(page(caller)) == "INSTRUMENT_NOT_FOUND"
    await announce(installation, BTC)
    assert await refused(page(caller, page_token="x")) == "PAGE_TOKEN_INVALID"
    assert await refused(page(caller, page_token="WyJ4IiwgInkiXQ")) == "PAGE_TOKEN_INVALID"
    for microseconds in (2**62, -(2**62)):  # no time at all
        assert await refused(page(caller, page_token=token_after("after", microseconds))) == "PAGE_TOKEN_INVALID"
    assert await refused(page(caller, bar_size="2m")) == "INVALID_FIELDS"
    for cursor in ("x", f"{BTC}/5m@1.2", f"{BTC}/1m@1"):
        with pytest.raises(grpc.aio.AioRpcError):
            await next_of(caller.candles(BTC, after_cursor=cursor))


class Told:
    """What a stream of candles has told so far."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, int, float]] = []
        self.forming: list[tuple[int, float]] = []
        self.cursor = ""

    def take(self, message) -> None:
        for candle in message.candles:
            minute = (candle.open_time.ToDatetime(UTC) - START) // MINUTE
            if candle.closed:
                self.closed.append((minute, candle.revision, candle.close))
            else:
                self.forming.append((minute, candle.close))
        self.cursor = message.cursor

    async def until_closed(self, stream, minute: int, revision: int = 1) -> None:
        while not any(each[:2] == (minute, revision) for each in self.closed):
            self.take(await next_of(stream))


async def test_a_stream_tells_the_forming_bar_and_each_closed_one_once(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.tick((0, 10), (61, 11))
    await stored_through(installation, feeder)
    stream = caller.candles(BTC)
    told = Told()
    first = await next_of(stream)
    assert first.acknowledgement
    told.take(first)
    assert (told.closed, told.forming) == ([(0, 1, 10)], [(1, 11)])
    await feeder.tick((62, 12))
    while (1, 12) not in told.forming:
        told.take(await next_of(stream))
    await feeder.tick((120, 13))
    await told.until_closed(stream, 1)
    await feeder.tick((30, 9))  # late: corrects a closed bar
    await told.until_closed(stream, 0, revision=2)
    assert told.closed == [(0, 1, 10), (1, 1, 12), (0, 2, 9)]


@pytest.mark.parametrize("bar_size", ["1m", "5m"])
async def test_streams_resume_over_restarts_and_no_closed_bar_is_missed_or_repeated(
    installation, redis, bar_size, monkeypatch
):
    monkeypatch.setattr(candle_stream, "CANDLES_MAX", 2)
    await announce(installation, BTC)
    feeder = Feeder(redis)
    told = Told()
    length = BAR_SIZES[bar_size].length // MINUTE
    for round_number in range(4):
        async with served(installation) as caller:
            if told.cursor:
                stream = caller.candles(BTC, bar_size=bar_size, after_cursor=told.cursor)
            else:
                stream = caller.candles(BTC, bar_size=bar_size)
            told.take(await next_of(stream))
            for number in range(6):
                minute = (round_number * 10 + number) * length
                await feeder.tick((minute * 60, 100 + minute), (minute * 60 + 30, 200 + minute))
            await told.until_closed(stream, (round_number * 10 + 4) * length)
        async with served(installation):
            for number in range(6, 10):
                minute = (round_number * 10 + number) * length
                await feeder.tick((minute * 60, 100 + minute), (minute * 60 + 30, 200 + minute))
            await stored_through(installation, feeder)
    expected = [(number * length, 1, 200 + number * length) for number in range(35)]
    assert told.closed == expected


async def test_a_longer_bar_closes_also_when_its_last_minutes_had_no_trade(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.tick((0, 10))
    await stored_through(installation, feeder)
    stream = caller.candles(BTC, bar_size="5m")
    told = Told()
    told.take(await next_of(stream))
    assert told.closed == []
    await feeder.tick((400, 11))
    await told.until_closed(stream, 0)
    assert told.closed == [(0, 1, 10)]


async def test_what_is_imported_is_told_page_by_page_and_resumed_in_the_middle(installation, caller, monkeypatch):
    monkeypatch.setattr(candle_stream, "CANDLES_MAX", 10)
    await announce(installation, BTC)
    stream = caller.candles(BTC)
    told = Told()
    told.take(await next_of(stream))
    lines = "".join(f"{START + MINUTE * number:%Y-%m-%d %H:%M:%S},1,2,1,2,1\n" for number in range(35))
    await caller.load(BTC, (HEADER + lines).encode())
    told.take(await next_of(stream))
    assert len(told.closed) == 10
    stream = caller.candles(BTC, after_cursor=told.cursor)
    await told.until_closed(stream, 34)
    assert told.closed == [(number, 1, 2) for number in range(35)]


async def test_a_quiet_candle_stream_gets_heartbeats_with_its_cursor(installation):
    await announce(installation, BTC)
    async with served(installation, stream_heartbeat_seconds="0.1") as caller:
        stream = caller.candles(BTC)
        first = await next_of(stream)
        beat = await next_of(stream)
        assert beat.HasField("heartbeat_time")
        assert beat.cursor == first.cursor


async def test_the_newest_bars_are_shown_though_market_time_leads_the_wall_clock(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    now = datetime.now(UTC)
    times = [now - 2 * MINUTE, now + timedelta(days=2), now + timedelta(days=2) + MINUTE]
    await feeder.append([tick_at(time, price) for price, time in enumerate(times, 10)])
    await stored_through(installation, feeder)
    assert [candle.close for candle in (await page(caller, bar_size="1m")).candles] == [10, 11, 12]
    onwards = await pages(caller, BTC, bar_size="1m", page_size=2, start_time=timestamp(times[0] - MINUTE))
    assert [[candle.close for candle in candles] for candles in onwards] == [[10, 11], [12]]
    assert (await page(caller, bar_size="1d", page_size=1)).candles[0].close == 12
    first = await next_of(caller.candles(BTC))
    assert [candle.close for candle in first.candles] == [10, 11, 12]
    assert [candle.close for candle in (await page(caller, bar_size="1m", end_time=timestamp(now))).candles] == [10]


async def test_a_cursor_from_before_a_loss_of_data_gets_a_gap_and_a_snapshot(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.append([tick_at(START, 10.0)])
    await stored_through(installation, feeder)
    ahead = CandleCursor(BTC, BAR_SIZES["1m"], Head(900, START + timedelta(days=1), START))
    first = await next_of(caller.candles(BTC, after_cursor=str(ahead)))
    assert first.HasField("gap")
    assert first.gap.end_time.ToDatetime(UTC) == START + timedelta(days=1)
    assert [candle.close for candle in first.candles] == [10]


def test_a_cursor_reads_back_as_it_was_written_and_fits_the_contract():
    size = BAR_SIZES["15m"]
    plain = CandleCursor("SIM:A/B", size, Head(12, START, START - MINUTE))
    longest = CandleCursor(
        f"{'V' * 16}:{'S' * 32}", size, *[Head(10**12, START, START)] * 2, after=START + timedelta(minutes=15)
    )
    for cursor in (plain, longest):
        assert parse_cursor(str(cursor), cursor.instrument_id, size) == cursor
        assert len(str(cursor)) <= 160
    # As they were before.
    assert parse_cursor("SIM:A/B/15m@12:60", "SIM:A/B", size).told == Head(12, *[EPOCH + MINUTE] * 2)
