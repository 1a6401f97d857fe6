"""When exchanges trade, and which trading day and week a moment belongs to.

- The trading day of a session begins at local midnight of the session's date or at the session's open, whichever is
  earlier: futures open the evening before. It ends where the next day begins or at the local midnight after the session's
  date, whichever is earlier. Days are half-open, and none overlaps another.
- A moment outside every day, as on a weekend or a holiday, belongs to none.
- A week is the sessions of one ISO week, by their dates: from the begin of its first day to the end of its last.
- Of an instrument that trades in them, a bar of a day is a trading day and a bar of a week a trading week.
- What a calendar covers has an end. Moments beyond it belong to no day: ticks make all bars there but days and weeks.

Times are nanoseconds since 1970 in arrays, and aware datetimes elsewhere. What trades round the clock has no calendar.
"""

import asyncio
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeVar
from zoneinfo import ZoneInfo

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Gauge

from libs.bar_sizes import EPOCH, BarSize
from libs.errors import Exhausted, Invalid
from services.marketdata.calendar_process import CalendarProcess
from services.marketdata.domain import DAYS, Instrument, MarketState, Session

ENDS = Gauge(
    "tradeloom_calendar_end_seconds",
    "When the day ends, since 1970, to which a calendar in use is known.",
    ["calendar"],
)

log = structlog.get_logger(__name__)

COVERED_FROM = date(1990, 1, 1)
COVERED_AHEAD = timedelta(days=366)
ENDS_SOON = timedelta(days=92)
"""So long before a calendar ends it is said, and again each month, as it is loaded anew."""
CALENDARS_MAX = 96
"""Held at once, of 0.8 MB each: more than the 75 names that are known, so that who asks for many has none loaded again."""
UNKNOWN_MAX = 1_000
"""Names held at once of which none is known, of some hundred bytes each."""
WAITING_MAX = 4
"""Calendars that may wait to be loaded, the one that is being loaded among them, when callers ask for one more."""
RETRY_SECONDS = 2.0
"""What two calendars take, about."""
AGAIN_SECONDS = 10.0
"""So long one that failed to load for no known reason is not loaded again, for whoever asks."""
NOT_MICS = frozenset({"CBOT", "HKEX", "NYSE", "TASE"})
"""Nicknames that look like one."""
MICROSECOND_NS = 1_000
DAY_NS = 86_400 * 1_000_000_000
MONDAY_AHEAD = 3
"""So many days before 1970 began, a Thursday, there was a Monday."""
DAY = timedelta(days=1)

Nanoseconds = NDArray[np.int64]
T = TypeVar("T")


class UnknownCalendar(Exception):
    """No calendar is known by this name."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Calendar:
    """An exchange's sessions, one place in each array for each, in their order."""

    name: str
    time_zone: str
    first_date: date
    """It is known from the start of this day in its zone …"""
    last_date: date
    """… to the end of this one."""
    dates: NDArray[np.datetime64]
    opens: Nanoseconds
    closes: Nanoseconds
    break_starts: Nanoseconds
    """Equal to break_ends in a session without a break."""
    break_ends: Nanoseconds
    closes_early: NDArray[np.bool_]
    day_begins: Nanoseconds
    day_ends: Nanoseconds
    week_begins: Nanoseconds
    """Of the week that the session is in."""
    week_ends: Nanoseconds
    trading_starts: Nanoseconds
    """When it begins to trade: with a session, after a break; not where it simply goes on."""
    trading_ends: Nanoseconds


Day = tuple[datetime, datetime]
"""Its begin and its end, which is excluded."""


def trading_day(calendar: Calendar, time: datetime) -> Day | None:
    """The day that the moment belongs to."""
    at = int(day_numbers(calendar, np.array([nanoseconds(time)]))[0])
    return None if at < 0 else (moment(calendar.day_begins[at]), moment(calendar.day_ends[at]))


def trading_week(calendar: Calendar, time: datetime) -> Day | None:
    """The week of the day that the moment belongs to."""
    at = int(day_numbers(calendar, np.array([nanoseconds(time)]))[0])
    return None if at < 0 else (moment(calendar.week_begins[at]), moment(calendar.week_ends[at]))


def days(calendar: Calendar, start: datetime, end: datetime) -> list[Day]:
    """The days that have a moment from start on and before end."""
    if end <= start:
        return []
    first = np.searchsorted(calendar.day_ends, nanoseconds(start), side="right")
    beyond = np.searchsorted(calendar.day_begins, nanoseconds(end), side="left")
    return [
        (moment(begin), moment(ends))
        for begin, ends in zip(calendar.day_begins[first:beyond], calendar.day_ends[first:beyond], strict=True)
    ]


def day_numbers(calendar: Calendar, times: Nanoseconds) -> NDArray[np.intp]:
    """For each moment the place of its day in the calendar's arrays; -1 for one that belongs to none."""
    numbers = np.searchsorted(calendar.day_begins, times, side="right") - 1
    # Before the first day the number is -1 already, and what the last one ends at is of no account.
    return np.where(times < calendar.day_ends[numbers], numbers, -1)


def spans(calendar: Calendar, size: BarSize) -> tuple[Nanoseconds, Nanoseconds]:
    """The begins and ends of the days or the weeks, one for each session."""
    if size == DAYS:
        return calendar.day_begins, calendar.day_ends
    return calendar.week_begins, calendar.week_ends


def spans_holding(calendar: Calendar, size: BarSize, times: Nanoseconds) -> tuple[Nanoseconds, Nanoseconds]:
    """The begins and ends of the days or weeks that hold the moments, each once and in their order."""
    numbers = day_numbers(calendar, times)
    begins, ends = (each[numbers[numbers >= 0]] for each in spans(calendar, size))
    begins, places = np.unique(begins, return_index=True)
    return begins, ends[places]


def places_named(calendar: Calendar, size: BarSize, timestamps: Nanoseconds) -> NDArray[np.intp]:
    """For each timestamp of a file the place of a session of the day or week that it names; -1 where it names none.

    At midnight in UTC it is a date, as most daily files write it: that of the session, and of a week also its Monday. At any
    other time it is a moment within, as the day's begin or, as TradingView writes it, the session's open.
    """
    dates = calendar.dates.astype("datetime64[D]").astype(np.int64)
    asked, time_of_day = np.divmod(timestamps, DAY_NS)
    places = np.minimum(np.searchsorted(dates, asked), len(dates) - 1)
    is_named = dates[places] == asked
    if size != DAYS:
        is_named |= (weeks_of(asked) == weeks_of(dates[places])) & (weeks_of(asked - 1) < weeks_of(asked))
    return np.where(time_of_day == 0, np.where(is_named, places, -1), day_numbers(calendar, timestamps))


def date_begins(calendar: Calendar | None, day: date) -> datetime:
    """When the date begins for who trades by the calendar: with its session's day, else that of the next; in UTC without one."""
    if calendar is None:
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    place = int(np.searchsorted(calendar.dates.astype("datetime64[D]"), np.datetime64(day)))
    if place == len(calendar.dates):
        return local_midnight(day, ZoneInfo(calendar.time_zone))
    return moment(calendar.day_begins[place])


def is_session(calendar: Calendar, day: date) -> bool:
    """Whether there is a session of this date."""
    return bool(np.isin(np.datetime64(day), calendar.dates.astype("datetime64[D]")))


def weeks_of(dates: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ISO weeks of dates; both are counted from 1970."""
    return (dates + MONDAY_AHEAD) // 7


def sessions_of(calendar: Calendar, places: range) -> list[Session]:
    found = []
    for at in places:
        pause = (moment(calendar.break_starts[at]), moment(calendar.break_ends[at]))
        found.append(
            Session(
                date=calendar.dates[at].item(),
                open=moment(calendar.opens[at]),
                close=moment(calendar.closes[at]),
                breaks=[pause] if pause[0] < pause[1] else [],
                closes_early=bool(calendar.closes_early[at]),
            )
        )
    return found


def session_range(calendar: Calendar, start: datetime, end: datetime, after: int = 0) -> range:
    """The places of the sessions that close after start, open before end, and are of a date after that day number."""
    first = np.searchsorted(calendar.closes, nanoseconds(start), side="right")
    following = np.searchsorted(calendar.dates.astype(np.int64), after, side="right")
    beyond = np.searchsorted(calendar.opens, nanoseconds(end), side="left")
    return range(int(max(first, following)), int(beyond))


def day_number(day: date) -> int:
    """Of a session's date, counted from 1970."""
    return (day - EPOCH.date()).days


def covered(calendar: Calendar) -> Day:
    """From when on it is known, and to when."""
    zone = ZoneInfo(calendar.time_zone)
    return local_midnight(calendar.first_date, zone), local_midnight(calendar.last_date + DAY, zone)


def covers(calendar: Calendar) -> str:
    return f"{calendar.name} covers {calendar.first_date} to {calendar.last_date}"


def asked_within(
    calendar: Calendar, start: datetime | None, end: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """From start to end, or from now to where the calendar ends; raises Invalid for what the calendar does not cover."""
    covered_from, covered_to = covered(calendar)
    violations = {
        name: f"is outside of what is known: {covers(calendar)}"
        for name, time in (("start_time", start or now), ("end_time", end))
        if time is not None and not covered_from <= time <= covered_to
    }
    if start is not None and end is not None and end <= start:
        violations.setdefault("end_time", "must be after start_time")
    if violations:
        raise Invalid(violations)
    return start or now, end or covered_to


def market_state(calendar: Calendar, now: datetime) -> MarketState | None:
    """None where the calendar does not tell, having ended."""
    if now >= covered(calendar)[1]:
        return None
    starts, ends = calendar.trading_starts, calendar.trading_ends
    following = int(np.searchsorted(starts, nanoseconds(now), side="right"))
    is_open = following > 0 and nanoseconds(now) < int(ends[following - 1])
    closing = following - 1 if is_open else following
    return MarketState(
        is_open,
        moment(starts[following]) if following < len(starts) else None,
        moment(ends[closing]) if closing < len(ends) else None,
    )


def make_calendar(
    *,
    name: str,
    time_zone: str,
    first_date: date,
    last_date: date,
    dates: NDArray[np.datetime64],
    opens: Nanoseconds,
    closes: Nanoseconds,
    break_starts: Nanoseconds,
    break_ends: Nanoseconds,
    closes_early: NDArray[np.bool_],
) -> Calendar:
    """A calendar of these sessions, with the days and weeks that follow from them."""
    zone = ZoneInfo(time_zone)
    midnights, next_midnights = (
        np.array([nanoseconds(local_midnight(day + later, zone)) for day in dates.tolist()], dtype=np.int64)
        for later in (timedelta(), DAY)
    )
    day_begins = np.minimum(midnights, opens)
    day_ends = np.minimum(next_midnights, np.append(day_begins[1:], np.iinfo(np.int64).max))
    weeks = weeks_of(dates.astype("datetime64[D]").astype(np.int64))
    _, firsts, numbers = np.unique(weeks, return_index=True, return_inverse=True)
    lasts = np.append(firsts[1:], len(weeks)) - 1
    has_break = break_starts < break_ends
    starts = np.sort(np.concatenate([opens, break_ends[has_break]]))
    ends = np.sort(np.concatenate([closes, break_starts[has_break]]))
    goes_on = starts[1:] == ends[:-1]
    return Calendar(
        name=name,
        time_zone=time_zone,
        first_date=first_date,
        last_date=last_date,
        dates=dates,
        opens=opens,
        closes=closes,
        break_starts=break_starts,
        break_ends=break_ends,
        closes_early=closes_early,
        day_begins=day_begins,
        day_ends=day_ends,
        week_begins=day_begins[firsts][numbers],
        week_ends=day_ends[lasts][numbers],
        trading_starts=starts[np.append(True, ~goes_on)],
        trading_ends=ends[np.append(~goes_on, True)],
    )


Key = tuple[str, date]
"""A calendar's name and the last day that is asked of it."""

_loaded: OrderedDict[Key, Calendar] = OrderedDict()
_unknown: OrderedDict[Key, None] = OrderedDict()
_holding = threading.Lock()
"""Around these two; never while a calendar is loaded."""
_process = CalendarProcess()
_loader = ThreadPoolExecutor(1, "calendars")
"""Of their own: no calendar takes a thread that storing needs, or whoever looks for an address."""
_loads: dict[Key, Future[Calendar]] = {}
"""What is being loaded or waits for it: one load for all who want the calendar."""
_failed: dict[Key, tuple[Future[Calendar], float]] = {}
"""What failed to load for no known reason, and when it may be loaded again."""


def key_of(name: str, today: date) -> Key:
    """With the end of a whole month, so that what is loaded serves for a while."""
    last_date = (today + COVERED_AHEAD).replace(day=1) + timedelta(days=31)
    return name, last_date.replace(day=1) - DAY


def held(name: str, today: date) -> Calendar | None:
    """The calendar, if it is loaded already. Raises UnknownCalendar if it is known to be none."""
    key = key_of(name, today)
    with _holding:
        if not re.fullmatch("[A-Z0-9]{4}", name) or name in NOT_MICS or key in _unknown:
            raise UnknownCalendar(name)
        if key in _loaded:
            _loaded.move_to_end(key)
        return _loaded.get(key)


def load(name: str, today: date) -> Calendar:
    """The calendar of the exchange with this MIC, from 1990 to a year from today as far as it is known.

    Takes some tenths of a second, for Korea's exchange some seconds, once a month. One of which the exchange has told no more
    ends earlier, also before today. Raises UnknownCalendar, ReaderFailed.
    """
    if (calendar := held(name, today)) is not None:
        return calendar
    key = key_of(name, today)
    calendar: Calendar | None = _process.read(name, key[1])
    if calendar is None:
        with _holding:
            hold(_unknown, key, None, UNKNOWN_MAX)
        raise UnknownCalendar(name)
    with _holding:
        hold(_loaded, key, calendar, CALENDARS_MAX)
    ENDS.labels(name).set(covered(calendar)[1].timestamp())
    if calendar.last_date - today < ENDS_SOON:
        log.warning(
            "a calendar ends, and there will be no days and weeks beyond; install a release that knows more of it",
            calendar=name,
            last_date=str(calendar.last_date),
        )
    return calendar


def hold(those: OrderedDict[Key, T], key: Key, value: T, number_max: int) -> None:
    those[key] = value
    if len(those) > number_max:
        those.popitem(last=False)


async def loaded(name: str, today: date) -> Calendar:
    """As load() does, beside the event loop."""
    if (calendar := held(name, today)) is not None:
        return calendar
    # Whoever leaves takes nothing from the others who wait.
    return await asyncio.shield(asyncio.wrap_future(loading(name, today)))


def loading(name: str, today: date) -> Future[Calendar]:
    """Has the calendar loaded, unless it is under way already or has just failed, for whoever does not wait for it."""
    key = key_of(name, today)
    if key in _failed and time.monotonic() < _failed[key][1]:
        return _failed[key][0]
    if (future := _loads.get(key)) is None:
        _failed.pop(key, None)
        future = _loads[key] = _loader.submit(load, name, today)
        future.add_done_callback(partial(_end, key))
    return future


def _end(key: Key, future: Future[Calendar]) -> None:
    if not isinstance(error := future.exception(), UnknownCalendar | None):
        log.error("a calendar failed to load", calendar=key[0], again_seconds=AGAIN_SECONDS, exc_info=error)
        _failed[key] = future, time.monotonic() + AGAIN_SECONDS
    del _loads[key]


async def known(name: str, now: datetime, field: str) -> Calendar:
    """As loaded() does; raises Invalid, naming the field."""
    try:
        return await loaded(name, now.date())
    except UnknownCalendar:
        raise Invalid({field: f"is no calendar that is known here: {name}"}) from None


async def asked_for(name: str, now: datetime, field: str) -> Calendar:
    """As known() does, for callers who may be anybody: raises Exhausted while too many calendars wait to be loaded."""
    with suppress(UnknownCalendar):
        is_new = held(name, now.date()) is None and key_of(name, now.date()) not in _loads
        if is_new and len(_loads) >= WAITING_MAX:
            raise Exhausted(
                "too many calendars are being loaded; retry", retry_after_seconds=RETRY_SECONDS, limit="calendars"
            )
    return await known(name, now, field)


async def of_series(calendars: Mapping[str, str], now: datetime) -> dict[str, Calendar | None]:
    """The calendars of these names, as loaded() gives them: None for none, nothing for what is not known."""
    found: dict[str, Calendar | None] = {"": None}
    for name in {*calendars.values()} - {""}:
        with suppress(UnknownCalendar):
            found[name] = await loaded(name, now.date())
    return {key: found[name] for key, name in calendars.items() if name in found}


async def known_or_none(name: str, now: datetime) -> Calendar | None:
    """As known() does; None for no name."""
    return await known(name, now, "instrument.calendar") if name else None


async def zoned(instrument: Instrument, now: datetime) -> Instrument:
    """The instrument with the time zone of its calendar; raises Invalid if that is not known."""
    if not instrument.calendar:
        return instrument
    calendar = await known(instrument.calendar, now, "instrument.calendar")
    return replace(instrument, time_zone=calendar.time_zone)


def read(name: str, *, last_date: date) -> Calendar:
    """The calendar, computed by rules and lists of holidays, in `calendar_reader`. Raises UnknownCalendar."""
    # Brings pandas: 40 MB and a third of a second that a service does without.
    from exchange_calendars.calendar_utils import global_calendar_dispatcher as calendars
    from exchange_calendars.errors import InvalidCalendarName

    try:
        # The class alone: asked for by name, a calendar is made in whole before it tells how far it goes, and is kept.
        kind = calendars._calendar_factories[calendars.resolve_alias(name)]  # noqa: SLF001
        earliest, latest = kind.bound_min(), kind.bound_max()
        first_date = max(COVERED_FROM, earliest.date()) if earliest is not None else COVERED_FROM
        last_date = min(last_date, latest.date()) if latest is not None else last_date
        found = kind(start=first_date, end=last_date)
    # The rules of some exchanges, such as those that keep the Orthodox Easter, cannot be evaluated by this release.
    except (InvalidCalendarName, NotImplementedError, ValueError) as error:
        raise UnknownCalendar(name) from error

    def times(column: str) -> NDArray[np.datetime64]:
        return found.schedule[column].dt.tz_convert(None).to_numpy().astype("datetime64[ns]")

    def or_open(breaks: NDArray[np.datetime64]) -> Nanoseconds:
        return np.where(np.isnat(breaks), times("open"), breaks).astype(np.int64)

    return make_calendar(
        name=name,
        time_zone=str(found.tz),
        first_date=first_date,
        last_date=last_date,
        dates=found.schedule.index.to_numpy().astype("datetime64[D]"),
        opens=times("open").astype(np.int64),
        closes=times("close").astype(np.int64),
        break_starts=or_open(times("break_start")),
        break_ends=or_open(times("break_end")),
        closes_early=found.schedule.index.isin(found.early_closes),
    )


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """When the day begins there; where clocks leave midnight out, the moment at which they do."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def nanoseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * MICROSECOND_NS


def moment(time_ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=int(time_ns) // MICROSECOND_NS)
