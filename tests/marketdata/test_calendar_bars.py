"""Days and weeks of instruments that trade in an exchange's sessions: against polars and zoneinfo, which know no code of ours."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache, partial
from io import BytesIO
from itertools import pairwise
from zoneinfo import ZoneInfo

import exchange_calendars
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from libs.bar_sizes import BAR_SIZES, BarSize
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from services.marketdata import candle_store, sessions
from services.marketdata.domain import DAYS, WEEKS, CalendarChanged, ImportLinesInvalid
from services.marketdata.imports import Rules, check, slices
from services.marketdata.remaking import Remaker
from tests.examples import examples
from tests.marketdata.stand import (
    Feeder,
    announce,
    desk_of,
    next_of,
    select,
    stored_bars,
    stored_through,
    stored_ticks,
    tick_at,
    until,
)
from tests.marketdata.test_candles import page, pages
from tests.marketdata.test_corrections import Model, Trade, all_bars, batches_of
from tests.marketdata.test_imports import counts, file_of
from tests.marketdata.test_instruments import refused

ABC, XYZ = "HAND:ABC", "SIM:XYZ"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
QUARTER = timedelta(minutes=15)
ZONES = {
    "XNYS": "America/New_York",
    "CMES": "America/Chicago",
    "XTKS": "Asia/Tokyo",
    "XBOM": "Asia/Kolkata",
    "XLON": "Europe/London",
}
EVENING = {"CMES": timedelta(hours=7)}
"""So long before midnight sessions open."""


@cache
def session_dates(name: str) -> frozenset[date]:
    calendar = exchange_calendars.get_calendar(name, start="2023-01-01", end="2026-06-30")
    return frozenset(session.date() for session in calendar.sessions)


def local(name: str, day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(ZONES[name])).astimezone(UTC)


def day_of(name: str, time: datetime) -> date | None:
    """The date of the trading day: futures belong to tomorrow from the evening on, if there is a session then."""
    wall = time.astimezone(ZoneInfo(ZONES[name])).replace(tzinfo=None)
    for day in ((wall + EVENING.get(name, timedelta())).date(), wall.date()):
        if day in session_dates(name):
            return day
    return None


def begin_of(name: str, day: date) -> datetime:
    # On the wall: an hour that clocks leave out or repeat lies in between.
    evening = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(ZONES[name])) - EVENING.get(name, timedelta())
    return evening.astimezone(UTC)


def end_of(name: str, day: date) -> datetime:
    following = day + DAY
    return begin_of(name, following) if following in session_dates(name) else local(name, following)


def week_of(name: str, day: date) -> list[date]:
    monday = day - DAY * day.weekday()
    return [each for each in (monday + DAY * number for number in range(7)) if each in session_dates(name)]


@dataclass
class CalendarModel(Model):
    name: str = field(kw_only=True)

    def span(self, size: BarSize, time: datetime) -> tuple[datetime, datetime] | None:
        if size not in (DAYS, WEEKS):
            return super().span(size, time)
        day = day_of(self.name, time)
        if day is None:
            return None
        held = [day] if size == DAYS else week_of(self.name, day)
        return begin_of(self.name, held[0]), end_of(self.name, held[-1])


CASES = {
    "XNYS": [
        datetime(2025, 3, 6, tzinfo=UTC),  # clocks go forward on the Sunday
        datetime(2025, 10, 30, tzinfo=UTC),  # and back
        datetime(2024, 11, 27, tzinfo=UTC),  # Thanksgiving, and the early close after it
    ],
    "CMES": [datetime(2025, 3, 6, tzinfo=UTC), datetime(2025, 10, 30, tzinfo=UTC), datetime(2025, 4, 16, tzinfo=UTC)],
    "XTKS": [datetime(2024, 10, 31, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC)],
    "XBOM": [datetime(2025, 3, 12, tzinfo=UTC)],
}
EDGES = [0, 4, 5, 6, 14, 15, 18, 18.5, 20, 21, 22, 23, 24]
"""Hours of a UTC day at or near which days begin, sessions open, close or pause, somewhere."""


def trades_of(prices: st.SearchStrategy[int]) -> st.SearchStrategy[list[Trade]]:
    edges = st.builds(
        lambda day, hour, off: max(0, day * 86_400 + hour * 3_600 + off),
        st.integers(0, 8),
        st.sampled_from(EDGES),
        st.sampled_from([-1e-6, 0, 1, 899]),
    )
    return st.lists(
        st.builds(
            Trade,
            seconds=st.one_of(edges, st.integers(0, 8 * 86_400)),
            price=prices,
            quantity=st.integers(1, 9),
            name=st.sampled_from("abcdefgh"),
            backfill=st.sampled_from([False, False, True]),
        ),
        min_size=1,
        max_size=25,
    )


@pytest.mark.examples
@pytest.mark.parametrize("name", CASES)
async def test_ticks_in_any_order_make_the_trading_days_of_all_of_them_with_the_right_revisions(
    installation, redis, name
):
    ids = [f"SIM:A{number}" for number in range(200)]
    await announce(installation, *ids, calendar=name)
    unused = iter(ids)
    loop = asyncio.get_running_loop()

    async def play(start: datetime, trades: Sequence[Trade], cuts: Sequence[int]) -> None:
        instrument_id = next(unused)
        feeder, model = Feeder(redis, instrument_id), CalendarModel(start, name=name)
        bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(trades)}), len(trades)]
        for first, beyond in pairwise(bounds):
            await desk.store(*batches_of(feeder, trades[first:beyond], start))
            model.store(trades[first:beyond])
        assert await all_bars(installation, instrument_id) == model.bars
        assert len(await stored_ticks(installation, instrument_id)) == len(model.trades)
        for size in (DAYS, WEEKS):
            ends = dict(filter(None, (model.span(size, time) for time, *_ in model.trades)))
            async with desk._storer._database.transaction(snapshot=True) as rows:
                found = await candle_store.read_candles(rows, instrument_id, size, start=None, before=None, limit=100)
            assert {each.open_time: each.end_time or each.open_time + size.length for each in found.candles} == ends
            assert [each.closed for each in found.candles] == [
                ends[each.open_time] <= model.watermark for each in found.candles
            ]

    @examples(40, deadline=None)
    @given(st.sampled_from(CASES[name]), trades_of(st.integers(1, 9)), st.lists(st.integers(1, 24), max_size=8))
    def any_order(start, trades, cuts):
        asyncio.run_coroutine_threadsafe(play(start, trades, cuts), loop).result(30)

    async with desk_of(installation, redis) as desk:
        await asyncio.to_thread(any_order)


def quarters(start: datetime, end: datetime, every: timedelta = QUARTER) -> pl.DataFrame:
    """Bars round the clock, each unlike its neighbours."""
    times = pl.datetime_range(start, end, every, closed="left", eager=True)
    number = pl.int_range(len(times), eager=True)
    return pl.DataFrame(
        {
            "timestamp": times,
            "open": 100.0 + number % 97,
            "high": 200.0 + number % 89,
            "low": 50.0 - number % 41,
            "close": 100.0 + number % 83,
            "volume": 1.0 + number % 7,
        }
    )


def content_of(bars: pl.DataFrame) -> bytes:
    return bars.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%d %H:%M:%S")).write_csv().encode()


def in_days(name: str, bars: pl.DataFrame, size: BarSize):
    """What polars makes of the file alone."""
    days = pl.DataFrame({"day": sorted(session_dates(name))})
    wall = pl.col("timestamp").dt.convert_time_zone(ZONES[name])
    evening = EVENING.get(name, timedelta())
    bars = bars.with_columns(
        (wall.dt.replace_time_zone(None) + evening).dt.date().alias("first"), wall.dt.date().alias("second")
    )
    known = days["day"].implode()
    bars = bars.with_columns(
        pl.when(pl.col("first").is_in(known))
        .then("first")
        .when(pl.col("second").is_in(known))
        .then("second")
        .alias("day")
    ).drop_nulls("day")
    key = pl.col("day") if size == DAYS else pl.col("day").dt.truncate("1w")
    return (
        bars.group_by(key.alias("key"), maintain_order=True)
        .agg(
            pl.col("day").first(),
            pl.col("day").last().alias("last_day"),
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
        )
        .drop("key")
        .rows()
    )


def told(candle, size: BarSize):
    open_time = candle.open_time.ToDatetime(UTC)
    end_time = candle.end_time.ToDatetime(UTC) if candle.HasField("end_time") else open_time + size.length
    return (open_time, end_time, candle.open, candle.high, candle.low, candle.close, candle.volume)


def expected(name: str, bars: pl.DataFrame, size: BarSize):
    return [
        (begin_of(name, day), end_of(name, last if size == DAYS else week_of(name, last)[-1]), *values)
        for day, last, *values in in_days(name, bars, size)
    ]


async def candles_of(caller, instrument_id: str, size: BarSize, page_size: int = 5000):
    start = timestamp(datetime(2000, 1, 1, tzinfo=UTC))
    found = await pages(caller, instrument_id, bar_size=size.name, start_time=start, page_size=page_size)
    return [candle for each in found for candle in each]


@pytest.mark.parametrize("name", ZONES)
async def test_days_and_weeks_of_imported_quarters_equal_what_polars_makes_of_them(caller, name):
    # From a Monday on, over both changes of the clock, holidays and an early close.
    bars = quarters(datetime(2024, 10, 14, tzinfo=UTC) - DAY, datetime(2025, 4, 16, 13, tzinfo=UTC))
    await caller.put(ABC, calendar=name)
    await caller.load(ABC, content_of(bars), bar_size="15m")
    end = bars["timestamp"][-1] + QUARTER
    for size in (DAYS, WEEKS):
        found = await candles_of(caller, ABC, size)
        wanted = expected(name, bars, size)
        assert [told(candle, size) for candle in found] == wanted
        assert [candle.closed for candle in found] == [row[1] <= end for row in wanted]
        # A page at a time, either way, though bars are of different lengths.
        assert await candles_of(caller, ABC, size, page_size=7) == found
        backwards = await pages(caller, ABC, bar_size=size.name, page_size=7)
        assert [candle for each in reversed(backwards) for candle in each] == found
    # What is shorter is round the clock, as ever.
    assert len(await candles_of(caller, ABC, BAR_SIZES["4h"])) == -(-len(bars) // 16)


async def test_hours_make_days_where_days_begin_at_whole_hours_and_only_quarters_where_not(caller):
    hours = quarters(datetime(2025, 3, 3, tzinfo=UTC), datetime(2025, 3, 15, tzinfo=UTC), HOUR)
    for instrument_id, name in ((ABC, "XNYS"), ("HAND:BOM", "XBOM")):
        await caller.put(instrument_id, calendar=name)
        await caller.load(instrument_id, content_of(hours), bar_size="1h")
    assert [told(candle, DAYS) for candle in await candles_of(caller, ABC, DAYS)] == expected("XNYS", hours, DAYS)
    assert await candles_of(caller, "HAND:BOM", DAYS) == []


async def told_by(stream):
    """The next candles of a stream; a message that only says how far the market has come has none."""
    while not (candles := (await next_of(stream)).candles):
        pass
    return candles


async def test_a_stream_closes_a_day_at_its_end_and_not_at_midnight_in_utc(installation, caller, redis):
    await announce(installation, XYZ, calendar="XNYS")
    feeder = Feeder(redis, XYZ)
    friday = datetime(2025, 3, 7, 20, tzinfo=UTC)
    await feeder.append([tick_at(friday, 10.0)])
    await stored_through(installation, feeder)
    days, weeks = (caller.candles(XYZ, bar_size=size.name) for size in (DAYS, WEEKS))
    for stream in (days, weeks):
        (forming,) = await told_by(stream)
        assert not forming.closed

    async def market_time(time: datetime) -> None:
        await feeder.append([], market_time=time)
        await stored_through(installation, feeder)

    await market_time(datetime(2025, 3, 8, tzinfo=UTC))
    assert [candle.closed for candle in (await page(caller, XYZ, bar_size="1d")).candles] == [False]
    await feeder.append([tick_at(datetime(2025, 3, 8, 0, 30, tzinfo=UTC), 11.0)])  # after hours, of Friday still
    assert [(each.close, each.closed, each.revision) for each in await told_by(days)] == [(11, False, 1)]
    await market_time(datetime(2025, 3, 8, 4, 59, 59, tzinfo=UTC))
    assert [candle.closed for candle in (await page(caller, XYZ, bar_size="1d")).candles] == [False]
    await market_time(datetime(2025, 3, 8, 5, tzinfo=UTC))
    for stream, size in ((days, DAYS), (weeks, WEEKS)):
        (closed,) = await told_by(stream)
        if not closed.closed:  # the week as it was with the tick of the evening
            (closed,) = await told_by(stream)
        assert (closed.close, closed.closed, closed.revision) == (11, True, 1)
        assert told(closed, size)[1] == datetime(2025, 3, 8, 5, tzinfo=UTC)
    # Saturday's belongs to no day; Monday's to the next, which begins an hour earlier in UTC.
    await feeder.append([tick_at(datetime(2025, 3, 8, 12, tzinfo=UTC), 500.0)])
    await feeder.append([tick_at(datetime(2025, 3, 10, 4, tzinfo=UTC), 12.0)])
    (monday,) = await told_by(days)
    assert (monday.open_time.ToDatetime(UTC), monday.high) == (datetime(2025, 3, 10, 4, tzinfo=UTC), 12)
    # A late tick corrects the closed day, once more told.
    await feeder.append([tick_at(friday, 9.0)])
    (corrected,) = await told_by(days)
    assert (corrected.low, corrected.closed, corrected.revision) == (9, True, 2)


async def test_a_stream_that_resumes_is_told_each_day_and_week_that_has_closed_since(installation, caller, redis):
    await announce(installation, XYZ, calendar="CMES")
    feeder = Feeder(redis, XYZ)
    # From Sunday's evening on, with a tick at the last second of each of five days; Friday's ends at midnight.
    ends = [end_of("CMES", date(2025, 3, 3) + DAY * number) for number in range(5)]
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(begin_of("CMES", date(2025, 3, 3)), 1.0)]))
        cursors = {size: (await next_of(caller.candles(XYZ, bar_size=size.name))).cursor for size in (DAYS, WEEKS)}
        for number, end in enumerate(ends):
            await desk.store(feeder.batch([tick_at(end - timedelta(seconds=1), 2.0 + number)]))
            for size in (DAYS, WEEKS):
                closed = []
                for time in (end - timedelta(seconds=1), end):
                    await desk.store(feeder.batch([], market_time=time))
                    message = await next_of(caller.candles(XYZ, bar_size=size.name, after_cursor=cursors[size]))
                    cursors[size] = message.cursor
                    closed += [candle.close for candle in message.candles if candle.closed]
                assert closed == ([2.0 + number] if size == DAYS or number == 4 else []), (size, end)


NOW = datetime(2026, 3, 2, tzinfo=UTC)
NO_BARS = pl.DataFrame(schema={"open_time": pl.Datetime("us", "UTC")})


def read(name: str, size: BarSize, *timestamps: str, now: datetime = NOW) -> list[datetime]:
    rules = Rules(size, now, calendar=sessions.load(name, now.date()))
    file = BytesIO(file_of(*(f"{each},10,12,9,11,5" for each in timestamps)))
    check(file, rules)
    return sorted(time for bars in slices(file, rules) for time in bars["open_time"])


@pytest.mark.parametrize(
    ("name", "written", "day"),
    [
        ("XNYS", "2025-03-07 00:00:00", "2025-03-07"),  # the date
        ("XNYS", "2025-03-07 05:00:00", "2025-03-07"),  # the begin, at midnight there
        ("XNYS", "2025-03-10 04:00:00", "2025-03-10"),  # and in summer
        ("XNYS", "2025-03-10 13:30:00", "2025-03-10"),  # the open
        ("XNYS", "2024-11-29 18:00:00", "2024-11-29"),  # the early close
        ("CMES", "2025-03-10 00:00:00", "2025-03-10"),
        ("CMES", "2025-03-09 22:00:00", "2025-03-10"),  # the open, on Sunday's evening
        ("XTKS", "2024-11-05 00:00:00", "2024-11-05"),  # both the date and the open
        ("XTKS", "2024-11-04 15:00:00", "2024-11-05"),  # the begin
        ("XLON", "2025-07-01 00:00:00", "2025-07-01"),
        ("XLON", "2025-06-30 23:00:00", "2025-07-01"),
    ],
)
def test_a_daily_bar_is_named_by_its_date_or_by_a_moment_of_its_day(name, written, day):
    assert read(name, DAYS, written) == [begin_of(name, date.fromisoformat(day))]


@pytest.mark.parametrize(
    ("written", "monday"),
    [
        ("2025-01-06 00:00:00", "2025-01-06"),
        ("2025-01-20 00:00:00", "2025-01-21"),  # a holiday, but the week's Monday
        ("2025-01-21 00:00:00", "2025-01-21"),
        ("2025-01-10 00:00:00", "2025-01-06"),
        ("2025-01-06 14:30:00", "2025-01-06"),
    ],
)
def test_a_weekly_bar_is_named_by_a_day_of_its_week(written, monday):
    assert read("XNYS", WEEKS, written) == [begin_of("XNYS", date.fromisoformat(monday))]


@pytest.mark.parametrize(
    ("size", "line", "why"),
    [
        (DAYS, "2024-11-28 00:00:00", "timestamp is neither"),  # Thanksgiving
        (DAYS, "2025-03-08 00:00:00", "timestamp is neither"),  # Saturday's date, though Friday evening there
        (DAYS, "2025-03-08 14:30:00", "timestamp is neither"),
        (DAYS, "1960-03-08 00:00:00", "timestamp is neither"),
        (DAYS, "2025-03-06 14:30:00", "repeats the timestamp of line 2"),
        (DAYS, "x", "timestamp is not a time"),
        (DAYS, "2026-03-02 00:00:00", "the bar has not ended yet"),
        (WEEKS, "2025-03-08 00:00:00", "timestamp is neither"),
        (WEEKS, "2026-03-02 00:00:00", "the bar has not ended yet"),
    ],
)
def test_a_daily_bar_that_has_no_place_is_refused_by_its_line(size, line, why):
    with pytest.raises(ImportLinesInvalid) as caught:
        read("XNYS", size, "2025-03-06 00:00:00", line, "2025-02-20 00:00:00")
    ((named, reason),) = caught.value.violations.items()
    assert named == "line 3"
    assert reason.startswith(why)


def test_a_day_has_ended_when_it_has_there():
    friday_ends = datetime(2025, 3, 8, 5, tzinfo=UTC)
    assert read("XNYS", DAYS, "2025-03-07 00:00:00", now=friday_ends)
    with pytest.raises(ImportLinesInvalid, match="the bar has not ended yet"):
        read("XNYS", DAYS, "2025-03-07 00:00:00", now=friday_ends - timedelta(seconds=1))


async def test_imported_days_make_weeks_and_are_closed(installation, caller):
    await caller.put(ABC, calendar="XNYS")
    dates = [date(2025, 1, 13) + DAY * number for number in (0, 1, 2, 3, 4, 8, 9)]
    lines = [f"{day} 00:00:00,10,{20 + number},9,11,5" for number, day in enumerate(dates)]
    assert counts(await caller.load(ABC, file_of(*lines), bar_size="1d")) == (7, 7, 0, 0)
    assert counts(await caller.load(ABC, file_of(*lines), bar_size="1d")) == (7, 0, 0, 7)
    days = await candles_of(caller, ABC, DAYS)
    assert [candle.open_time.ToDatetime(UTC) for candle in days] == [begin_of("XNYS", day) for day in dates]
    assert all(candle.closed and candle.revision == 1 for candle in days)
    weeks = await candles_of(caller, ABC, WEEKS)
    assert [(*told(week, WEEKS)[:4], week.closed) for week in weeks] == [
        (begin_of("XNYS", date(2025, 1, 13)), end_of("XNYS", date(2025, 1, 17)), 10, 24, True),
        (begin_of("XNYS", date(2025, 1, 21)), end_of("XNYS", date(2025, 1, 24)), 10, 26, False),
    ]
    # Hours of the same days change none of them.
    await caller.load(ABC, file_of("2025-01-13 15:00:00,10,900,9,11,5"), bar_size="1h")
    assert await candles_of(caller, ABC, DAYS) == days


async def test_days_and_weeks_are_made_anew_with_another_calendar_and_back(installation, caller):
    bars = quarters(datetime(2024, 11, 11, tzinfo=UTC), datetime(2025, 1, 16, tzinfo=UTC))
    await caller.put(ABC)
    await caller.load(ABC, content_of(bars), bar_size="15m")
    # Of a Sunday and of a Tuesday after the quarters' end, imported at their own size.
    await caller.load(ABC, file_of("2025-01-19 00:00:00,1,1,1,1,1", "2025-01-21 00:00:00,2,2,2,2,2"), bar_size="1d")
    # Four hours make days in UTC alone.
    await caller.load(ABC, file_of("2024-11-01 08:00:00,3,3,3,3,3"), bar_size="4h")
    before = {size: await stored_bars(installation, ABC, size) for size in ("15m", "1h", "4h", "1d", "1w")}
    stream = caller.candles(ABC, bar_size="1d")
    await next_of(stream)

    async def follows(name: str) -> None:
        await caller.put(ABC, calendar=name)
        await until(lambda: select(installation, "SELECT FROM series WHERE calendar = $1", name))

    for name in ("XNYS", "CMES", "XLON"):
        await follows(name)
        assert (await next_of(stream)).candles
        tuesday = (begin_of(name, date(2025, 1, 21)), end_of(name, date(2025, 1, 21)), 2, 2, 2, 2, 2)
        sunday = (datetime(2025, 1, 19, tzinfo=UTC), datetime(2025, 1, 20, tzinfo=UTC), 1, 1, 1, 1, 1)
        found = [told(candle, DAYS) for candle in await candles_of(caller, ABC, DAYS)]
        assert found == [*expected(name, bars, DAYS), sunday, tuesday], name
        weeks = [told(candle, WEEKS) for candle in await candles_of(caller, ABC, WEEKS)]
        assert weeks[:-1] == expected(name, bars, WEEKS), name
        assert weeks[-1][2:] == (2, 2, 2, 2, 2)
    await follows("")
    for size, rows in before.items():
        after = await stored_bars(installation, ABC, size)
        values = ("open_time", "end_time", *candle_store.VALUES.split(", "), "imported")
        assert [[row[name] for name in values] for row in after] == [[row[name] for name in values] for row in rows]


async def test_imported_days_of_dates_without_a_session_are_their_own_with_every_calendar_and_after_it(
    installation, caller
):
    await caller.put(ABC)
    # Two weekends, and Thanksgiving.
    dates = [date(2024, 11, 20) + DAY * number for number in range(14)]
    lines = file_of(*(f"{day} 00:00:00,10,12,9,11,{day.day}" for day in dates))
    weeks = file_of(*(f"{dates[0] - DAY * days} 00:00:00,10,12,9,11,{days}" for days in (2, 373)))
    await caller.load(ABC, lines, bar_size="1d")
    await caller.load(ABC, weeks, bar_size="1w")
    before = {size: await stored_bars(installation, ABC, size) for size in ("1d", "1w")}
    values = ("open_time", "end_time", "volume", "imported")
    # From one to the other, and each way back to none.
    for name in ("XNYS", "CMES", "XTKS", "", "XNYS", "XLON", "CMES", "XBOM", ""):
        await caller.put(ABC, calendar=name)
        await until(partial(select, installation, "SELECT FROM series WHERE calendar = $1", name))
        volumes = [row["volume"] for row in await stored_bars(installation, ABC, "1d")]
        assert volumes == [day.day for day in dates], name
    for size, rows in before.items():
        after = await stored_bars(installation, ABC, size)
        assert [[row[name] for name in values] for row in after] == [[row[name] for name in values] for row in rows]


def times_set_aside(instrument_id: str) -> float:
    name = "tradeloom_remaking_set_aside_total"
    return REGISTRY.get_sample_value(name, {"instrument_id": instrument_id}) or 0.0


async def test_an_instrument_whose_days_cannot_be_made_anew_holds_up_no_other_and_is_tried_again(installation, caller):
    days = file_of("2025-01-06 00:00:00,10,12,9,11,5")
    ids = ["HAND:AAA", "HAND:BBB"]
    for instrument_id in ids:
        await caller.put(instrument_id)
        await caller.load(instrument_id, days, bar_size="1d")
    await select(
        installation,
        "ALTER TABLE market_data_ohlcv_1h_1w ADD CONSTRAINT refused "
        "CHECK (instrument_id <> 'HAND:AAA' OR end_time IS NULL OR open_time = '2025-01-06Z') NOT VALID",
    )

    async def followed() -> list[str]:
        found = await select(
            installation, "SELECT instrument_id FROM series WHERE calendar <> '' ORDER BY instrument_id"
        )
        return [row["instrument_id"] for row in found]

    times_before = times_set_aside(ids[0])
    await select(installation, "UPDATE instruments SET calendar = 'XTKS'")

    async def was_tried_again() -> bool:
        return times_set_aside(ids[0]) >= times_before + 2

    await until(was_tried_again)
    assert await followed() == ids[1:]
    await select(installation, "ALTER TABLE market_data_ohlcv_1h_1w DROP CONSTRAINT refused")

    async def is_done() -> bool:
        return await followed() == ids

    await until(is_done)
    assert times_set_aside(ids[1]) == 0


async def test_a_day_that_opens_at_the_same_moment_has_a_higher_revision_only_if_its_values_differ(installation, redis):
    # In winter a day in London is one in UTC; a week is shorter by the weekend.
    await announce(installation, XYZ)
    feeder = Feeder(redis, XYZ)
    monday = datetime(2025, 1, 6, tzinfo=UTC)
    async with (
        desk_of(installation, redis) as desk,
        open_database(installation.url("marketdata_worker"), 2) as database,
    ):
        times = [monday, monday + 5 * DAY, monday + 7 * DAY, monday + 14 * DAY]
        await desk.store(feeder.batch([tick_at(time, price) for price, time in enumerate(times, 1)]))
        await announce(installation, XYZ, calendar="XLON")
        assert await Remaker(database).turn()
        assert not await Remaker(database).turn()
        days, weeks = [await stored_bars(installation, XYZ, size.name) for size in (DAYS, WEEKS)]
        # Saturday's is gone.
        assert [(row["open_time"], row["revision"]) for row in days] == [
            (time, 1) for time in times if time != times[1]
        ]
        assert [(row["high"], row["revision"], row["end_time"]) for row in weeks] == [
            (1, 2, monday + 5 * DAY),
            (3, 1, monday + 12 * DAY),
            (4, 1, monday + 19 * DAY),
        ]
        # Storing goes on with the calendar that it has looked for since.
        await desk.store(feeder.batch([tick_at(monday + 5 * DAY, 9.0), tick_at(monday + HOUR, 8.0)]))
    assert [(row["high"], row["revision"]) for row in await stored_bars(installation, XYZ, "1w")] == [
        (8, 3),
        (3, 1),
        (4, 1),
    ]


async def test_nothing_is_stored_by_a_calendar_that_is_not_followed_any_more(installation, redis):
    await announce(installation, XYZ)
    feeder = Feeder(redis, XYZ)
    batch = feeder.batch([tick_at(datetime(2025, 1, 7, 2, tzinfo=UTC), 1.0)])
    async with (
        desk_of(installation, redis) as desk,
        open_database(installation.url("marketdata_worker"), 2) as database,
    ):
        store = desk._storer._store

        async def after_another(entries) -> None:
            await announce(installation, XYZ, calendar="XNYS")
            await Remaker(database).turn()
            await store(entries)

        desk._storer._store = after_another  # type: ignore[method-assign]
        desk._storer._look_at = 1e9
        await desk.store(batch)
        assert await stored_ticks(installation, XYZ) == []
        assert desk._storer._look_at == 0.0
        desk._storer._store = store  # type: ignore[method-assign]
        await desk.store(batch)
        (bar,) = await stored_bars(installation, XYZ, "1d")
        assert bar["open_time"] == datetime(2025, 1, 6, 5, tzinfo=UTC)
        async with database.transaction() as rows:
            with pytest.raises(CalendarChanged):
                await candle_store.import_bars(rows, XYZ, DAYS, NO_BARS, None)


async def test_ticks_are_stored_without_days_while_their_calendar_is_not_known(installation, redis, monkeypatch):
    await announce(installation, XYZ, calendar="XNYS")

    today = datetime.now(UTC).date()
    monkeypatch.setattr(sessions, "_unknown", OrderedDict({sessions.key_of("XNYS", today): None}))
    feeder = Feeder(redis, XYZ)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(datetime(2025, 1, 7, 15, tzinfo=UTC), 1.0)]))
    assert [len(await stored_bars(installation, XYZ, size)) for size in ("1s", "4h", "1d", "1w")] == [1, 1, 0, 0]


@pytest.mark.parametrize(("name", "trade_count"), [("XNYS", 2), ("XBOM", 1)])
async def test_a_day_stays_as_it_is_once_what_makes_it_is_dropped_and_hours_are_kept_for_ever(
    installation, redis, name, trade_count
):
    await announce(installation, XYZ, calendar=name)
    feeder, time = Feeder(redis, XYZ), datetime(2025, 3, 12, 6, tzinfo=UTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(time, 1.0)]))
        await select(
            installation,
            "UPDATE dropped SET until_time = '2026-01-01Z' WHERE parent <> 'market_data_ticks'",
        )
        await desk.store(feeder.batch([tick_at(time + HOUR, 2.0)]))
    (day,) = await stored_bars(installation, XYZ, "1d")
    assert day["trade_count"] == trade_count
    assert [row["trade_count"] for row in await stored_bars(installation, XYZ, "1h")] == [1, 1]


async def test_a_database_whose_instruments_had_calendars_before_its_days_did_is_made_anew(installation, caller):
    bars = quarters(datetime(2025, 3, 3, tzinfo=UTC), datetime(2025, 3, 22, tzinfo=UTC))
    await caller.put(ABC)
    await caller.load(ABC, content_of(bars), bar_size="15m")
    # As the migration finds it.
    await select(installation, "UPDATE instruments SET calendar = 'XNYS', time_zone = 'America/New_York'")
    await until(lambda: select(installation, "SELECT FROM series WHERE calendar = 'XNYS'"))
    for size in (DAYS, WEEKS):
        assert [told(each, size) for each in await candles_of(caller, ABC, size)] == expected("XNYS", bars, size)


def test_days_and_weeks_are_never_longer_than_what_changes_are_looked_for_in():
    for name in ZONES:
        calendar = sessions.load(name, NOW.date())
        for size in (DAYS, WEEKS):
            begins, ends = sessions.spans(calendar, size)
            longest = size.length + candle_store.CALENDAR_BAR_LONGER_MAX
            assert sessions.moment((ends - begins).max()) - sessions.moment(0) <= longest


async def test_an_import_of_a_date_without_a_session_imports_nothing(installation, caller):
    await caller.put(ABC, calendar="XNYS")
    lines = file_of("2024-11-27 00:00:00,10,12,9,11,5", "2024-11-28 00:00:00,10,12,9,11,5")
    assert await refused(caller.load(ABC, lines, bar_size="1d")) == "IMPORT_LINES_INVALID"
    assert await stored_bars(installation, ABC, "1d") == []
