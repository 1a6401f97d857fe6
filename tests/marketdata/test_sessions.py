"""When exchanges trade: trading days over changes of the clock, known sessions, and what is told of them."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from tradeloom.feeds.v1 import events_pb2
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, TickBatch

from libs.errors import Invalid
from libs.mesh.wire import time_from_proto, timestamp
from libs.store.database import open_database
from libs.store.outbox import Fact
from services.marketdata import calendar_process, sessions, storing
from services.marketdata.calendar_process import CalendarProcess, ReaderFailed
from services.marketdata.consumers import apply_feeds_facts
from services.marketdata.sessions import (
    AGAIN_SECONDS,
    Calendar,
    UnknownCalendar,
    day_numbers,
    days,
    load,
    make_calendar,
    market_state,
    moment,
    nanoseconds,
    session_range,
    sessions_of,
    trading_day,
    trading_week,
)
from services.marketdata.storing import THREAD_BYTES
from tests.auth.people import wait_of
from tests.marketdata.stand import (
    BTC,
    ETH,
    WAIT_SECONDS,
    Feeder,
    announce,
    desk_of,
    instrument,
    select,
    stored_bars,
    stored_through,
    stored_ticks,
    tick_at,
    until,
)
from tests.marketdata.test_candles import page
from tests.marketdata.test_imports import counts, file_of
from tests.marketdata.test_instruments import find, reason_of
from tests.marketdata.test_storing import storer_of

TODAY = date(2026, 3, 2)
EXCHANGES = ("XNYS", "XLON", "XTKS", "CMES")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

exchanges = st.sampled_from(EXCHANGES)
times = st.timedeltas(timedelta(), timedelta(days=29 * 365)).map(lambda since: datetime(1998, 1, 1, tzinfo=UTC) + since)


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def of(name: str) -> Calendar:
    return load(name, TODAY)


def session_of(name: str, day: str) -> sessions.Session | None:
    calendar = of(name)
    places = np.flatnonzero(calendar.dates == np.datetime64(day))
    return sessions_of(calendar, range(places[0], places[0] + 1))[0] if len(places) else None


@given(exchanges, times)
def test_a_moment_is_in_its_day_and_in_no_other(name, time):
    calendar = of(name)
    ns = nanoseconds(time)
    holding = np.flatnonzero((calendar.day_begins <= ns) & (ns < calendar.day_ends))
    day = trading_day(calendar, time)
    assert len(holding) == (day is not None)
    if day:
        assert day == (moment(calendar.day_begins[holding[0]]), moment(calendar.day_ends[holding[0]]))
        begin, end = day
        assert begin <= time < end
        week = trading_week(calendar, time)
        assert week
        assert week[0] <= begin < end <= week[1]


@pytest.mark.parametrize("name", EXCHANGES)
def test_days_are_half_open_in_order_and_hold_their_sessions(name):
    calendar = of(name)
    assert (calendar.day_ends[:-1] <= calendar.day_begins[1:]).all()
    assert (calendar.day_begins <= calendar.opens).all()
    assert (calendar.closes <= calendar.day_ends).all()
    numbers = np.arange(len(calendar.dates))
    assert (day_numbers(calendar, calendar.day_begins) == numbers).all()
    assert (day_numbers(calendar, calendar.day_ends - 1) == numbers).all()
    follows = calendar.day_ends[:-1] == calendar.day_begins[1:]
    assert (day_numbers(calendar, calendar.day_ends[:-1]) == np.where(follows, numbers[1:], -1)).all()
    assert day_numbers(calendar, calendar.day_begins[:1] - 1) == day_numbers(calendar, calendar.day_ends[-1:]) == -1


@given(exchanges, st.lists(times, min_size=1, max_size=20))
def test_many_moments_at_once_are_each_as_alone(name, moments):
    calendar = of(name)
    numbers = day_numbers(calendar, np.array([nanoseconds(time) for time in moments]))
    for number, time in zip(numbers, moments, strict=True):
        alone = trading_day(calendar, time)
        assert alone == (
            None if number < 0 else (moment(calendar.day_begins[number]), moment(calendar.day_ends[number]))
        )


@given(exchanges, times, st.timedeltas(timedelta(), timedelta(days=30)))
def test_days_of_a_span_are_those_with_a_moment_in_it(name, start, length):
    calendar, end = of(name), start + length
    expected = [
        (moment(begin), moment(ends))
        for begin, ends in zip(calendar.day_begins, calendar.day_ends, strict=True)
        if moment(begin) < end and start < moment(ends)
    ]
    # Nothing has a moment in a span without length.
    assert days(calendar, start, end) == (expected if length else [])


@given(st.sampled_from(["XNYS", "XLON", "XTKS"]), times)
def test_where_sessions_are_within_a_date_the_day_is_the_local_date(name, time):
    calendar = of(name)
    if day := trading_day(calendar, time):
        zone = ZoneInfo(calendar.time_zone)
        local = time.astimezone(zone).date()
        assert day == (sessions.local_midnight(local, zone), sessions.local_midnight(local + DAY, zone))
        assert np.datetime64(local) in calendar.dates


def every_day(zone: str, first: date, count: int) -> Calendar:
    """An exchange that trades from nine to five, also on Sundays, when clocks are changed."""
    dates = [first + number * DAY for number in range(count)]

    def hour(hours: int) -> np.ndarray:
        local = [datetime(day.year, day.month, day.day, hours, tzinfo=ZoneInfo(zone)) for day in dates]
        return np.array([nanoseconds(time.astimezone(UTC)) for time in local])

    return make_calendar(
        name="EVER",
        time_zone=zone,
        first_date=dates[0],
        last_date=dates[-1],
        dates=np.array(dates, dtype="datetime64[D]"),
        opens=hour(9),
        closes=hour(17),
        break_starts=hour(9),
        break_ends=hour(9),
        closes_early=np.zeros(count, dtype=bool),
    )


@pytest.mark.parametrize(
    ("zone", "short", "long"),
    [
        ("America/New_York", "2025-03-09", "2025-11-02"),
        ("Europe/London", "2025-03-30", "2025-10-26"),
        ("Asia/Tokyo", None, None),
        ("America/Sao_Paulo", "2018-11-04", "2018-02-17"),  # at midnight, so that one day has no such hour
    ],
)
def test_days_are_as_long_as_the_clock_makes_them(zone, short, long):
    for year in (2018, 2025):
        calendar = every_day(zone, date(year, 1, 1), 365)
        lengths = (calendar.day_ends - calendar.day_begins) / (HOUR // timedelta(microseconds=1) * 1_000)
        unusual = {str(day): length for day, length in zip(calendar.dates, lengths, strict=True) if length != 24}
        assert set(unusual.values()) <= {23.0, 25.0}
        for day, length in ((short, 23.0), (long, 25.0)):
            if day and day.startswith(str(year)):
                assert unusual[day] == length
        assert not (zone == "Asia/Tokyo" and unusual)
        assert (calendar.day_ends[:-1] == calendar.day_begins[1:]).all()


def test_sessions_keep_their_local_hours_when_clocks_change():
    for day, opens, closes in [
        ("2025-03-07", "14:30", "21:00"),
        ("2025-03-10", "13:30", "20:00"),
        ("2025-10-31", "13:30", "20:00"),
        ("2025-11-03", "14:30", "21:00"),
    ]:
        session = session_of("XNYS", day)
        assert session
        assert (session.open, session.close) == (at(f"{day}T{opens}"), at(f"{day}T{closes}"))
        assert trading_day(of("XNYS"), session.open) == (
            at(f"{day}T00:00", "America/New_York"),
            at(f"{day}T00:00", "America/New_York") + DAY,
        )
    for day, opens in [
        ("2025-03-28", "08:00"),
        ("2025-03-31", "07:00"),
        ("2025-10-24", "07:00"),
        ("2025-10-27", "08:00"),
    ]:
        session = session_of("XLON", day)
        assert session
        assert session.open == at(f"{day}T{opens}")


def test_sessions_that_are_known():
    thanksgiving, after = session_of("XNYS", "2024-11-28"), session_of("XNYS", "2024-11-29")
    assert thanksgiving is None
    assert after
    assert (after.closes_early, after.close) == (True, at("2024-11-29T13:00", "America/New_York"))
    assert session_of("XNYS", "2024-07-04") is None
    eve = session_of("XNYS", "2024-07-03")
    assert eve
    assert eve.closes_early
    usual = session_of("XNYS", "2024-07-05")
    assert usual
    assert not usual.closes_early
    tokyo = session_of("XTKS", "2024-11-05")
    assert tokyo
    assert tokyo.breaks == [(at("2024-11-05T11:30", "Asia/Tokyo"), at("2024-11-05T12:30", "Asia/Tokyo"))]
    nasdaq = session_of("XNAS", "2024-11-29")
    assert nasdaq == after


def test_a_day_of_futures_begins_on_the_evening_before_and_ends_where_the_next_begins():
    chicago = "America/Chicago"
    for begins, ends, time in [
        ("2025-01-05T17:00", "2025-01-06T17:00", "2025-01-05T17:00"),  # Monday's, from Sunday on
        ("2025-01-06T17:00", "2025-01-07T17:00", "2025-01-07T16:59"),
        ("2025-01-09T17:00", "2025-01-11T00:00", "2025-01-10T23:59"),  # Friday's ends with Friday
        ("2025-03-09T17:00", "2025-03-10T17:00", "2025-03-10T01:00"),  # clocks changed that Sunday morning
    ]:
        assert trading_day(of("CMES"), at(time, chicago)) == (at(begins, chicago), at(ends, chicago))
    assert trading_day(of("CMES"), at("2025-01-11T00:00", chicago)) is None
    assert trading_day(of("CMES"), at("2025-01-05T16:59", chicago)) is None
    assert trading_week(of("CMES"), at("2025-01-08T12:00", chicago)) == (
        at("2025-01-05T17:00", chicago),
        at("2025-01-11T00:00", chicago),
    )


def test_a_week_is_the_sessions_of_an_iso_week():
    york = "America/New_York"
    # New Year's Day was a Wednesday; the week before it was that of Christmas.
    assert trading_week(of("XNYS"), at("2025-01-02T12:00", york)) == (
        at("2024-12-30T00:00", york),
        at("2025-01-04T00:00", york),
    )
    # Monday was a holiday.
    assert trading_week(of("XNYS"), at("2025-01-24T12:00", york)) == (
        at("2025-01-21T00:00", york),
        at("2025-01-25T00:00", york),
    )
    assert trading_week(of("XNYS"), at("2025-01-20T12:00", york)) is None


@given(st.sampled_from(["XNYS", "XTKS", "CMES"]), times)
def test_a_market_is_open_in_sessions_and_out_of_breaks(name, now):
    calendar, state = of(name), market_state(of(name), now)
    within = sessions_of(calendar, session_range(calendar, now, now + timedelta(microseconds=1)))
    in_break = any(start <= now < end for session in within for start, end in session.breaks)
    assert state
    assert state.is_open == (bool(within) and not in_break)
    assert state.next_open
    assert state.next_close
    assert now < state.next_open
    assert now < state.next_close
    assert (state.next_close < state.next_open) == state.is_open
    before_it_changes = min(state.next_open, state.next_close) - timedelta(microseconds=1)
    before, after = (
        market_state(calendar, time) for time in (before_it_changes, min(state.next_open, state.next_close))
    )
    assert before
    assert after
    assert before.is_open == state.is_open != after.is_open


def test_futures_that_simply_go_on_are_not_opened_anew():
    # From session to session at 17:00 the market trades on.
    state = market_state(of("CMES"), at("2025-02-04T12:00"))
    assert state
    assert (state.is_open, state.next_close) == (True, at("2025-02-07T17:00", "America/Chicago"))


def test_there_is_room_for_every_exchange_that_is_known_and_what_is_none_is_not_known():
    import exchange_calendars

    names = [
        name for name in exchange_calendars.get_calendar_names() if len(name) == 4 and name not in sessions.NOT_MICS
    ]
    assert {"XNYS", "XNAS", "XLON", "XTKS", "XETR", "ASEX", "XTAE", "CMES"} <= set(names)
    # Whoever asks for one after the other has none loaded again.
    assert len(names) <= sessions.CALENDARS_MAX
    for name in ("NYSE", "24/7", "us_futures", "ZZZZ", "", "xnys"):
        with pytest.raises(UnknownCalendar):
            of(name)


@pytest.mark.parametrize(
    # Those that take some seconds each are long.
    "name",
    ["ASEX", "XSHG", "XNAS", *(pytest.param(name, marks=pytest.mark.long) for name in ("XTAE", "XBOM"))],
)
def test_an_exchange_is_covered_as_far_as_its_calendar_goes(name):
    calendar = of(name)
    assert sessions.COVERED_FROM <= calendar.first_date < calendar.last_date <= date(2027, 3, 31)
    assert (calendar.closes <= calendar.day_ends).all()


def test_a_reader_that_has_ended_is_started_again_and_one_that_hangs_is_given_up(monkeypatch):
    process = CalendarProcess()
    ended = [process.read("XNYS", date(2027, 3, 31))]
    assert process._process
    first = process._process.pid
    process._process.kill()
    ended.append(process.read("XNYS", date(2027, 3, 31)))
    assert process._process.pid != first
    assert (ended[0].dates == ended[1].dates).all()
    assert process.read("ZZZZ", date(2027, 3, 31)) is None
    process._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(calendar_process, "READ_SECONDS", 0.05)
    with pytest.raises(ReaderFailed):
        process.read("XNYS", date(2027, 3, 31))
    assert process._process is None


def test_a_reader_ends_with_who_started_it_and_when_nobody_asks():
    command = [sys.executable, "-m", "services.marketdata.calendar_reader"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as left:
        assert left.stdin
        left.stdin.close()
        assert left.wait(WAIT_SECONDS) == 0
    idle = "from services.marketdata import calendar_reader; calendar_reader.IDLE_SECONDS = 0.1; calendar_reader.main()"
    with subprocess.Popen([sys.executable, "-c", idle], stdin=subprocess.PIPE) as forgotten:
        assert forgotten.wait(WAIT_SECONDS) == 0


def test_calendars_are_held_only_so_many(monkeypatch):
    monkeypatch.setattr(sessions, "CALENDARS_MAX", 2)
    monkeypatch.setattr(sessions, "_loaded", type(sessions._loaded)())
    first = of("XNYS")
    assert of("XNYS") is first
    of("XLON")
    assert of("XNYS") is first
    of("XAMS")
    assert [name for name, _ in sessions._loaded] == ["XNYS", "XAMS"]
    # A month later it reaches a month further.
    assert load("XNYS", date(2026, 4, 1)).last_date == date(2027, 4, 30)


@dataclass
class Gate:
    """Calendars are read while it is open, unless they are broken, and those that began to be are counted."""

    is_open: threading.Event = field(default_factory=threading.Event)
    broken: set[str] = field(default_factory=set)
    reads: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    """Closed, and nothing is loaded yet. Each calendar of NAMES is New York's, so that none takes long to be read."""
    gate, new_york = Gate(), of("XNYS")

    def behind_the_gate(name: str, _last_date: date) -> Calendar | None:
        gate.reads[name] += 1
        gate.is_open.wait()
        if name in gate.broken:
            raise ZeroDivisionError(name)
        return replace(new_york, name=name) if name in NAMES else None

    monkeypatch.setattr(sessions._process, "read", behind_the_gate)
    monkeypatch.setattr(sessions, "_loaded", type(sessions._loaded)())
    monkeypatch.setattr(sessions, "_unknown", type(sessions._unknown)())
    monkeypatch.setattr(sessions, "_failed", {})
    yield gate
    gate.is_open.set()
    # Whatever still waits to be loaded is of this test.
    wait(list(sessions._loads.values()))


NAMES = ("XNYS", "XLON", "XAMS", "XASX", "XBRU", "XCSE", "XDUB", "XHEL", "XLIS", "XOSL", "XSTO", "XTSE")


async def test_calendars_that_take_long_hold_up_nobody_who_needs_a_thread(gate):
    now = datetime.now(UTC)
    asked = [asyncio.create_task(sessions.known(name, now, "calendar")) for name in NAMES]
    await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.to_thread(lambda: None)
        told = StreamTicksResponse(batches=[TickBatch(ticks=[tick_at(now, 1.0, trade_id="1" * THREAD_BYTES)])])
        assert (await storing.decoded(told.SerializeToString())).ticks.number == 1
    gate.is_open.set()
    assert [calendar.name for calendar in await asyncio.gather(*asked)] == list(NAMES)


async def test_a_calendar_is_loaded_once_for_all_who_wait_whoever_of_them_leaves(gate):
    now = datetime.now(UTC)
    asked = [asyncio.create_task(sessions.known("XNYS", now, "calendar")) for _ in range(5)]
    await asyncio.sleep(0)
    asked.pop(0).cancel()
    await asyncio.sleep(0)
    gate.is_open.set()
    first, *others = await asyncio.gather(*asked)
    assert all(calendar is first for calendar in others)
    assert gate.reads == {"XNYS": 1}


async def test_whoever_asks_for_one_calendar_too_many_is_told_when_to_come_back(caller, gate):
    waiting = [asyncio.create_task(ask(caller, calendar=name)) for name in NAMES[: sessions.WAITING_MAX]]
    await until(lambda: _is(len(sessions._loads) == sessions.WAITING_MAX))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(caller, calendar=NAMES[-1])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "RATE_LIMITED"
    assert await wait_of(ask(caller, calendar=NAMES[-1])) == sessions.RETRY_SECONDS
    # What is waited for already, or no calendar, costs nothing more; and who stores or puts waits with the others.
    waiting.append(asyncio.create_task(ask(caller, calendar=NAMES[0])))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(caller, calendar="nyse")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stored = asyncio.create_task(sessions.of_series({BTC: NAMES[-1]}, datetime.now(UTC)))
    gate.is_open.set()
    assert [found.calendar for found in await asyncio.gather(*waiting)] == [*NAMES[: sessions.WAITING_MAX], NAMES[0]]
    assert (await stored).keys() == {BTC}
    assert (await ask(caller, calendar=NAMES[-1])).calendar == NAMES[-1]


async def _is(holds: bool) -> bool:
    return holds


async def test_storing_waits_for_no_calendar_but_an_instruments_first(installation, redis, gate, monkeypatch):
    await announce(installation, BTC, ETH)
    for table in ("instruments", "series"):
        await select(installation, f"UPDATE {table} SET calendar = 'XNYS' WHERE instrument_id = '{ETH}'")
    feeders = [Feeder(redis, instrument_id) for instrument_id in (BTC, ETH)]

    async def both(time: str) -> None:
        for feeder in feeders:
            await feeder.append([tick_at(at(time), 1.0)])

    async with storer_of(installation, redis):
        await both("2026-03-02T15:00")
        await until(lambda: _is(gate.reads["XNYS"] == 1))
        await stored_through(installation, feeders[0])
        assert await stored_ticks(installation, ETH) == []
        gate.is_open.set()
        await stored_through(installation, feeders[1])
        # A month later the last one goes on, until there is another.
        gate.is_open.clear()
        key_of = sessions.key_of
        monkeypatch.setattr(sessions, "key_of", lambda name, today: key_of(name, today + 40 * DAY))
        await until(lambda: _is(gate.reads["XNYS"] == 2))
        await both("2026-03-03T15:00")
        for feeder in feeders:
            await stored_through(installation, feeder)
    assert len(await stored_bars(installation, ETH, "1d")) == 2


async def test_a_calendar_that_fails_to_load_holds_up_its_instruments_alone_and_is_tried_again(
    installation, redis, gate, monkeypatch, caplog
):
    await announce(installation, BTC, ETH)
    await select(installation, f"UPDATE series SET calendar = 'XNYS' WHERE instrument_id = '{ETH}'")
    feeders = [Feeder(redis, instrument_id) for instrument_id in (BTC, ETH)]
    for feeder in feeders:
        await feeder.append([tick_at(at("2026-03-02T15:00"), 1.0)])
    gate.broken.add("XNYS")
    gate.is_open.set()
    with capture_logs() as logged:
        async with storer_of(installation, redis) as storer:
            await stored_through(installation, feeders[0])
            # However often it is looked for meanwhile.
            for _ in range(3):
                storer._look_at = 0.0
                await until(lambda: _is(storer._look_at > 0))
            with pytest.raises(ZeroDivisionError):
                await sessions.known("XNYS", datetime.now(UTC), "calendar")
            assert gate.reads == {"XNYS": 1}
            assert await stored_ticks(installation, ETH) == []
            gate.broken.clear()
            monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: monotonic() + AGAIN_SECONDS))
            await stored_through(installation, feeders[1])
    assert [(each["event"], each["calendar"]) for each in logged] == [("a calendar failed to load", "XNYS")]
    # Storing itself never failed.
    assert not caplog.records
    assert len(await stored_bars(installation, ETH, "1d")) == 1


async def test_a_name_of_no_calendar_is_looked_for_once_and_only_so_many_are_held(gate, monkeypatch):
    monkeypatch.setattr(sessions, "UNKNOWN_MAX", 2)
    gate.is_open.set()
    for name in ("ZZZZ", "ZZZZ", "YYYY", "ZZZZ", "WWWW", "ZZZZ"):
        with pytest.raises(Invalid):
            await sessions.known(name, datetime.now(UTC), "calendar")
    assert gate.reads == {"ZZZZ": 2, "YYYY": 1, "WWWW": 1}
    # However many they are, no calendar is forgotten for them.
    assert not sessions._loaded


def test_a_service_without_calendars_does_not_load_pandas():
    program = "import sys, services.marketdata.__main__; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def ask(caller, **more):
    return await caller.ask("ListSessions", marketdata_pb2.ListSessionsRequest(**more))


async def test_sessions_are_listed_with_their_breaks_and_early_closes(caller):
    found = await ask(
        caller,
        calendar="XNYS",
        start_time=timestamp(at("2024-11-27T12:00")),
        end_time=timestamp(at("2024-12-02T15:00")),
    )
    assert (found.calendar, found.time_zone, found.next_page_token) == ("XNYS", "America/New_York", "")
    assert [(session.date, session.closes_early) for session in found.sessions] == [
        ("2024-11-27", False),
        ("2024-11-29", True),
        ("2024-12-02", False),
    ]
    early = found.sessions[1]
    assert time_from_proto(early.open_time) == at("2024-11-29T09:30", "America/New_York")
    assert time_from_proto(early.close_time) == at("2024-11-29T13:00", "America/New_York")
    tokyo = await ask(caller, calendar="XTKS", page_size=1)
    (pause,) = tokyo.sessions[0].breaks
    assert time_from_proto(pause.end_time) - time_from_proto(pause.start_time) == HOUR
    now = datetime.now(UTC)
    assert time_from_proto(tokyo.sessions[0].close_time) > now
    state = market_state(load("XTKS", now.date()), now)
    assert state
    assert tokyo.market_state.is_open == state.is_open
    assert time_from_proto(tokyo.market_state.next_open_time) > now


async def test_sessions_come_in_pages_that_follow_on_each_other(caller):
    span = {"start_time": timestamp(at("2024-01-01T00:00")), "end_time": timestamp(at("2025-01-01T00:00"))}
    every = [session.date for session in (await ask(caller, calendar="XNYS", page_size=1000, **span)).sessions]
    assert len(every) == 252
    got: list[str] = []
    token = ""
    while token or not got:
        page = await ask(caller, calendar="XNYS", page_token=token, **span)
        got += [session.date for session in page.sessions]
        token = page.next_page_token
    assert got == every


async def test_an_instrument_trades_in_the_sessions_of_its_exchange_or_round_the_clock(installation, caller):
    put = (await caller.put("HAND:XYZ", calendar="XNAS", time_zone="is not asked")).instrument
    assert (put.calendar, put.time_zone) == ("XNAS", "America/New_York")
    assert (await find(caller, "HAND:XYZ")).time_zone == "America/New_York"
    assert (await ask(caller, instrument_id="HAND:XYZ", page_size=1)).calendar == "XNAS"
    await announce(installation, BTC)
    always = await ask(caller, instrument_id=BTC)
    assert (always.calendar, always.time_zone, always.market_state.is_open) == ("", "UTC", True)
    assert not always.sessions
    assert not always.market_state.HasField("next_close_time")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({}, "calendar"),
        ({"calendar": "XNYS", "instrument_id": BTC}, "calendar"),
        ({"calendar": "ZZZZ"}, "calendar"),
        ({"calendar": "xnys"}, "calendar"),
        ({"calendar": "XNYS", "start_time": timestamp(at("1989-12-31T00:00"))}, "start_time"),
        ({"calendar": "XTKS", "start_time": timestamp(at("1996-12-31T00:00"))}, "start_time"),
        ({"calendar": "XNYS", "end_time": timestamp(at("9999-12-31T00:00"))}, "end_time"),
        (
            {
                "calendar": "XNYS",
                "start_time": timestamp(at("2024-01-02T00:00")),
                "end_time": timestamp(at("2024-01-02T00:00")),
            },
            "end_time",
        ),
        ({"calendar": "XNYS", "page_token": "nonsense"}, "page_token"),
    ],
)
async def test_what_no_calendar_tells_is_refused_by_its_field(caller, wrong, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(caller, **wrong)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


ENDING = ("XSHG", "XBOM", "XSES")
"""Of these the release knows nothing beyond 2026."""


@pytest.fixture
def in_2027(monkeypatch) -> None:
    """As calendars are loaded then."""
    key_of = sessions.key_of
    monkeypatch.setattr(sessions, "_loaded", type(sessions._loaded)())
    monkeypatch.setattr(sessions, "key_of", lambda name, _: key_of(name, date(2027, 1, 4)))


def ends_at(name: str) -> float | None:
    return REGISTRY.get_sample_value("tradeloom_calendar_end_seconds", {"calendar": name})


@pytest.mark.parametrize("name", ENDING)
def test_a_calendar_that_has_ended_is_known_as_far_as_it_goes(name):
    calendar, now = load(name, date(2027, 1, 4)), datetime(2027, 1, 5, 5, tzinfo=UTC)
    assert calendar.last_date == date(2026, 12, 31)
    assert (trading_day(calendar, now), trading_week(calendar, now), market_state(calendar, now)) == (None, None, None)
    assert ends_at(name) == sessions.local_midnight(date(2027, 1, 1), ZoneInfo(calendar.time_zone)).timestamp()
    with pytest.raises(Invalid, match=f"{name} covers .* to 2026-12-31"):
        sessions.asked_within(calendar, None, None, now)


@pytest.mark.parametrize(("today", "is_said"), [("2026-09-30", False), ("2026-10-01", True), ("2027-02-01", True)])
def test_weeks_before_a_calendar_ends_it_is_said(today, is_said, monkeypatch):
    monkeypatch.setattr(sessions, "_loaded", type(sessions._loaded)())
    with capture_logs() as logged:
        load("XSHG", date.fromisoformat(today))
        load("XNYS", date.fromisoformat(today))
    assert [each["calendar"] for each in logged] == ["XSHG"] * is_said


async def test_what_is_before_the_end_of_a_calendar_goes_on_after_it(caller, in_2027):
    await caller.put("HAND:SHA", calendar="XSHG", quote_asset="CNY")
    assert counts(await caller.load("HAND:SHA", file_of("2020-08-27 00:00:00,8,12,8,10,5"), bar_size="1d")) == (
        1,
        1,
        0,
        0,
    )
    assert counts(await caller.load("HAND:SHA", file_of("2020-08-28 02:00:00,4,6,4,5,5"))) == (1, 1, 0, 0)
    adjusted = {"bar_size": "1d", "adjustment": marketdata_pb2.ADJUSTMENT_SPLITS}
    action = marketdata_pb2.CorporateAction(instrument_id="HAND:SHA", ex_date="2020-08-28")
    action.split.new_shares.value, action.split.old_shares.value = "2", "1"
    await caller.ask("PutCorporateAction", marketdata_pb2.PutCorporateActionRequest(request_id="1", action=action))
    assert [candle.close for candle in (await page(caller, "HAND:SHA", **adjusted)).candles] == [5, 5]
    late = caller.load("HAND:SHA", file_of("2027-01-04 00:00:00,8,12,8,10,5"), bar_size="1d")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await late
    assert "XSHG covers 1990-12-03 to 2026-12-31" in (caught.value.details() or "")


async def test_ticks_from_after_the_end_of_a_calendar_make_all_bars_but_days_and_weeks(installation, redis, in_2027):
    await announce(installation, BTC, calendar="XSHG")
    times = [at("2026-12-31T06:59"), at("2027-01-04T02:00")]
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(time, 1.0) for time in times]))
    assert len(await stored_ticks(installation)) == 2
    assert [len(await stored_bars(installation, BTC, size)) for size in ("1s", "4h", "1d", "1w")] == [2, 2, 1, 1]


async def test_an_unknown_exchange_is_refused_for_people_and_passed_over_for_feeds(installation, caller):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.put("HAND:XYZ", calendar="ZZZZ")
    assert "instrument.calendar" in (caught.value.details() or "")
    assert reason_of(caught.value) == "INVALID_FIELDS"
    for sequence, name in enumerate(("XNYS", "ZZZZ"), start=1):
        announced = instrument(BTC)
        announced.calendar = name
        payload = events_pb2.InstrumentAnnounced(instrument=announced).SerializeToString()
        kind = events_pb2.InstrumentAnnounced.DESCRIPTOR.full_name
        fact = Fact(key=BTC, sequence=sequence, user_id=None, kind=kind, payload=payload)
        async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
            await apply_feeds_facts(rows, [fact])
        found = await find(caller, BTC)
        assert (found.calendar, found.time_zone) == {"XNYS": ("XNYS", "America/New_York"), "ZZZZ": ("", "UTC")}[name]
