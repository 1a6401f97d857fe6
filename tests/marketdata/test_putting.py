"""Putting bars of a venue's record: checked as imported files are, all or nothing, and harmless to repeat."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.marketdata.v1 import marketdata_pb2_grpc
from tradeloom.marketdata.v1.marketdata_pb2 import Candle, PutCandlesRequest, PutCandlesResponse

from libs.mesh.wire import timestamp
from services.marketdata import parts
from tests.marketdata.stand import (
    BTC,
    START,
    Caller,
    Feeder,
    announce,
    desk_of,
    select,
    stored_bars,
    stored_through,
    tick_at,
)
from tests.marketdata.test_imports import file_of
from tests.mesh import Installation

MINUTE = timedelta(minutes=1)
OFTEN = {
    "store_interval_seconds": "0.02",
    "candle_interval_seconds": "0.02",
    "drain_seconds": "0.2",
    "second_kept_days": "0",
}


@pytest.fixture
async def feeds(installation: Installation) -> AsyncIterator[Any]:
    """marketdata as feeds calls it."""
    await announce(installation, BTC)
    async with installation.serve("marketdata", **OFTEN) as service:
        yield service.stub(marketdata_pb2_grpc.MarketDataServiceStub, caller="feeds")


def bar(minute: int, close: float = 11.0, trade_count: int = 7, **changes: Any) -> Candle:
    values: dict[str, Any] = {"open": 10, "high": 12, "low": 9, "close": close, "volume": 5, "trade_count": trade_count}
    return Candle(**({"open_time": timestamp(START + minute * MINUTE)} | values | changes))


def putting(*candles: Candle, bar_size: str = "1m", instrument_id: str = BTC) -> PutCandlesRequest:
    return PutCandlesRequest(instrument_id=instrument_id, bar_size=bar_size, candles=candles)


def counts(done: PutCandlesResponse) -> tuple[int, int, int, int]:
    return done.inserted_count, done.changed_count, done.unchanged_count, done.skipped_count


def values(rows: list[Any]) -> list[tuple[float, int, int, bool]]:
    return [(row["close"], row["trade_count"], row["revision"], row["imported"]) for row in rows]


async def test_bars_are_stored_with_their_counts_and_make_the_longer_ones_and_repeating_changes_nothing(
    installation, feeds
):
    asked = putting(*(bar(minute) for minute in (2, 0, 1)))
    assert counts(await feeds.PutCandles(asked)) == (3, 0, 0, 0)
    before = await select(installation, "SELECT * FROM market_data_ohlcv ORDER BY bar_size, open_time")
    [series] = await select(installation, "SELECT * FROM series")
    assert counts(await feeds.PutCandles(asked)) == (0, 0, 3, 0)
    assert await select(installation, "SELECT * FROM market_data_ohlcv ORDER BY bar_size, open_time") == before
    assert [series] == await select(installation, "SELECT * FROM series")
    assert values(await stored_bars(installation)) == [(11, 7, 1, True)] * 3
    for size in ("5m", "15m", "1h", "4h", "1d", "1w"):
        assert values(await stored_bars(installation, bar_size=size)) == [(11, 21, 1, False)]
    assert counts(await feeds.PutCandles(putting(bar(1, close=12), bar(3), bar(0, trade_count=8)))) == (1, 2, 0, 0)
    assert values(await stored_bars(installation)) == [
        (11, 8, 2, True),
        (12, 7, 2, True),
        (11, 7, 1, True),
        (11, 7, 1, True),
    ]
    # Who does not know the count leaves it as it is.
    assert counts(await feeds.PutCandles(putting(bar(0, trade_count=0)))) == (0, 0, 1, 0)
    assert values(await stored_bars(installation))[0] == (11, 8, 2, True)


async def test_no_tick_changes_what_was_put_whether_it_came_before_or_comes_later(installation, feeds, redis):
    feeder = Feeder(redis)
    await feeder.append([tick_at(START + timedelta(seconds=1), 50.0)])
    await feeder.append([tick_at(START + timedelta(minutes=5), 51.0)])
    await stored_through(installation, feeder)
    assert counts(await feeds.PutCandles(putting(bar(0), bar(1)))) == (1, 1, 0, 0)
    await feeder.append([tick_at(START + timedelta(seconds=2), 99.0), tick_at(START + timedelta(minutes=5), 52.0)])
    await stored_through(installation, feeder)
    assert values(await stored_bars(installation)) == [(11, 7, 2, True), (11, 7, 1, True), (52, 2, 1, False)]
    [hour] = await stored_bars(installation, bar_size="1h")
    assert (hour["open"], hour["high"], hour["close"], hour["volume"], hour["trade_count"]) == (10, 52, 52, 12, 16)


async def test_what_an_operator_imported_stays_whatever_a_venue_says(installation):
    await announce(installation, BTC)
    async with installation.serve("marketdata", **OFTEN) as service:
        feeds = service.stub(marketdata_pb2_grpc.MarketDataServiceStub, caller="feeds")
        operator = Caller(service.stub(marketdata_pb2_grpc.MarketDataServiceStub))
        assert counts(await feeds.PutCandles(putting(bar(0), bar(1)))) == (2, 0, 0, 0)
        # The first as it stands, the second corrected.
        corrected = file_of("2026-03-02 10:00:00,10,12,9,11,5", "2026-03-02 10:01:00,10,12,9,12,5")
        done = await operator.load(BTC, corrected, bar_size="1m")
        assert (done.inserted_count, done.changed_count, done.unchanged_count) == (0, 1, 1)
        before = await stored_bars(installation)
        assert counts(await feeds.PutCandles(putting(bar(0, close=10), bar(1), bar(2)))) == (1, 0, 2, 0)
        assert (await stored_bars(installation))[:2] == before
        # What the venue itself said it may say otherwise, and so may the operator of their own.
        assert counts(await feeds.PutCandles(putting(bar(2, close=10)))) == (0, 1, 0, 0)
        done = await operator.load(BTC, file_of("2026-03-02 10:01:00,10,12,9,10,5"), bar_size="1m")
        assert done.changed_count == 1
    assert values(await stored_bars(installation)) == [(11, 7, 1, True), (10, 0, 3, True), (10, 7, 2, True)]


WRONG: dict[str, tuple[Candle, str, str]] = {
    "no time": (Candle(open=1, high=1, low=1, close=1), "open_time", "must be there"),
    "too old": (bar(3, open_time=Timestamp(seconds=-60)), "open_time", "is before 1970"),
    "off the grid": (
        bar(3, open_time=timestamp(START + timedelta(seconds=1))),
        "open_time",
        "is not where a bar of 1m opens",
    ),
    "between seconds": (
        bar(3, open_time=Timestamp(seconds=60, nanos=1)),
        "open_time",
        "is not where a bar of 1m opens",
    ),
    "not ended": (
        bar(3, open_time=timestamp(datetime(2200, 1, 1, tzinfo=UTC))),
        "open_time",
        "is of a bar that has not ended yet",
    ),
    "repeated": (bar(1), "open_time", "repeats that of candles[1]"),
    "not finite": (bar(3, volume=float("inf")), "volume", "is not finite"),
    "no number": (bar(3, open=float("nan")), "open", "is not finite"),
    "upside down": (bar(3, high=8), "high", "is below low"),
    "high": (bar(3, high=10.5), "high", "is below open or close"),
    "low": (bar(3, low=10.5), "low", "is above open or close"),
    "volume": (bar(3, volume=-1), "volume", "is negative"),
    "no price": (bar(3, open=0, high=0, low=0, close=0), "open", "is not above zero"),
    "below zero": (bar(3, low=-1), "low", "is not above zero"),
    "too large": (bar(3, volume=1.1e15), "volume", "is larger than any may be, 1e+15"),
    "too many": (bar(3, trade_count=10**12 + 1), "trade_count", "is larger than any may be, 1e+12"),
    "count": (bar(3, trade_count=-1), "trade_count", "is negative"),
}


def violations_of(error: aio.AioRpcError) -> dict[str, str]:
    told: Any = error
    status, bad = rpc_status.from_call(told), error_details_pb2.BadRequest()
    assert status
    assert any(detail.Unpack(bad) for detail in status.details)
    return {violation.field: violation.description for violation in bad.field_violations}


@pytest.mark.parametrize("wrong", WRONG)
async def test_one_wrong_bar_refuses_all_and_says_which_field_of_it_and_why(installation, feeds, wrong):
    candle, field, why = WRONG[wrong]
    with pytest.raises(aio.AioRpcError) as caught:
        await feeds.PutCandles(putting(bar(0), bar(1), bar(2), candle))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations_of(caught.value) == {f"candles[3].{field}": why}
    assert await stored_bars(installation) == []


async def test_weeks_open_on_mondays_and_of_many_wrong_bars_forty_are_named(feeds):
    monday = bar(0, open_time=timestamp(datetime(2026, 3, 2, tzinfo=UTC)))
    assert counts(await feeds.PutCandles(putting(monday, bar_size="1w"))) == (1, 0, 0, 0)
    thursdays = [
        bar(0, open_time=timestamp(datetime(2026, 1, 1, tzinfo=UTC) - number * timedelta(days=7)))
        for number in range(50)
    ]
    with pytest.raises(aio.AioRpcError) as caught:
        await feeds.PutCandles(putting(*thursdays, bar_size="1w"))
    assert len(violations_of(caught.value)) == 40


async def test_market_time_lets_a_bar_end_that_has_not_by_the_wall(installation, feeds, redis):
    opened = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=1)
    ahead = bar(0, open_time=timestamp(opened))
    with pytest.raises(aio.AioRpcError):
        await feeds.PutCandles(putting(ahead))
    feeder = Feeder(redis)
    await feeder.append([tick_at(opened + MINUTE, 50.0)])
    await stored_through(installation, feeder)
    assert counts(await feeds.PutCandles(putting(ahead))) == (1, 0, 0, 0)


async def test_what_is_older_than_bars_are_kept_is_passed_over(installation, feeds, redis):
    kept_from = START.replace(hour=0) + timedelta(days=1)
    async with desk_of(installation, redis) as desk, desk._storer._database.transaction() as rows:
        await parts.drop_before(rows, "market_data_ohlcv_1s", kept_from)
    seconds = [bar(0, open_time=timestamp(kept_from + timedelta(seconds=second))) for second in range(-3, 2)]
    assert counts(await feeds.PutCandles(putting(*seconds, bar_size="1s"))) == (2, 0, 0, 3)
    assert counts(await feeds.PutCandles(putting(*seconds[:2], bar_size="1s"))) == (0, 0, 0, 2)
    assert len(await stored_bars(installation, bar_size="1s")) == 2
    # Longer ones are kept on.
    assert counts(await feeds.PutCandles(putting(bar(0)))) == (1, 0, 0, 0)


async def test_days_that_a_calendar_gives_are_no_venues_and_shorter_bars_make_them(installation, feeds):
    async with installation.connect() as rows:
        await rows.execute("UPDATE marketdata.instruments SET calendar = 'XNYS', time_zone = 'America/New_York'")
        await rows.execute("UPDATE marketdata.series SET calendar = 'XNYS'")
    day = bar(0, open_time=timestamp(START.replace(hour=0)))
    with pytest.raises(aio.AioRpcError) as caught:
        await feeds.PutCandles(putting(day, bar_size="1d"))
    assert violations_of(caught.value) == {"bar_size": "must be shorter: days of the instrument are those of XNYS"}
    # New York opens at half past two.
    hours = [bar(60 * number, open_time=timestamp(START + timedelta(hours=number))) for number in range(4, 7)]
    assert counts(await feeds.PutCandles(putting(*hours, bar_size="1h"))) == (3, 0, 0, 0)
    [made] = await stored_bars(installation, bar_size="1d")
    assert (made["volume"], made["trade_count"]) == (15, 21)


async def test_only_instruments_that_exist_have_bars(feeds):
    with pytest.raises(aio.AioRpcError) as caught:
        await feeds.PutCandles(putting(bar(0), instrument_id="SIM:NONE"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
