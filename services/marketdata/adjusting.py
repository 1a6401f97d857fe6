"""Puts corporate actions, and adjusts bars for those that were known at a moment. Stored bars are never changed.

A bar that holds an ex date's begin, as a week does, is made of its shorter bars once these are adjusted: of days, of hours, or of
quarters where a date does not begin at a whole hour. These must make up the stored bar, or be complete: then they are taken in place
of one that was imported otherwise. Else nobody knows which of its prices are from before, and a page that holds it is refused.
All other bars need no shorter ones. What closes were is asked of the bars as they are now, whatever is known of actions.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import numpy as np

from libs.bar_sizes import EPOCH, SECOND, BarSize
from libs.errors import Invalid
from libs.store.database import Connection, Database
from services.marketdata import action_store, adjustments, candle_store, domain, sessions, store
from services.marketdata.action_store import Moment
from services.marketdata.adjustments import Columns, Factors
from services.marketdata.columns import SECOND_NS, Flags, Integers
from services.marketdata.domain import (
    DAYS,
    HOURS,
    QUARTERS,
    WEEKS,
    ActionNotFound,
    Adjustment,
    BarSpansExDate,
    CalendarChanged,
    Candle,
    CashDividend,
    CorporateAction,
    DividendNotBelowClose,
    Instrument,
    InstrumentNotFound,
    Split,
    SplitExists,
    TooManyActions,
)
from services.marketdata.parts import table_of
from services.marketdata.sessions import Calendar

VOLUME_TOLERANCE = 1e-9


async def calendar_of(database: Database, instrument_id: str, now: datetime) -> Calendar | None:
    """The calendar that the instrument's bars follow, as sessions.asked_for() gives it: with no transaction open."""
    async with database.transaction() as rows:
        await store.get_instrument(rows, instrument_id)
        name = (await candle_store.read_calendars(rows, [instrument_id]))[instrument_id]
    return await sessions.asked_for(name, now, "instrument.calendar") if name else None


async def require_calendar(rows: Connection, instrument_id: str, calendar: Calendar | None) -> None:
    """Raises CalendarChanged if the bars follow another one since it was loaded."""
    names = await candle_store.read_calendars(rows, [instrument_id])
    if names.get(instrument_id) != (calendar.name if calendar else ""):
        raise CalendarChanged("the instrument's calendar has changed meanwhile", instrument_id=instrument_id)


async def put_action(
    rows: Connection, action: CorporateAction, replaced_id: UUID | None, calendar: Calendar | None, now: datetime
) -> CorporateAction:
    """Stores the action, in place of the replaced one from its known_time on, and returns it as it stands."""
    instrument = await locked_instrument(rows, action.instrument_id)
    await require_calendar(rows, action.instrument_id, calendar)
    domain.check_action(action, instrument, now)
    if calendar is not None and not sessions.is_session(calendar, action.ex_date):
        raise Invalid({"action.ex_date": f"is no date of a session of {calendar.name}; {sessions.covers(calendar)}"})
    others = await action_store.every(rows, action.instrument_id)
    if len(others) >= domain.CORPORATE_ACTIONS_MAX:
        raise TooManyActions(
            f"the instrument has {domain.CORPORATE_ACTIONS_MAX} corporate actions, which are as many as it may have",
            limit=domain.CORPORATE_ACTIONS_MAX,
        )
    number = await action_store.newest_number(rows, action.instrument_id) + 1
    if replaced_id is not None:
        replaced = next((each for each in others if each.action_id == replaced_id), None)
        check_replaced(replaced_id, replaced, action)
        await action_store.withdraw(rows, replaced_id, action.known_time, number)
        others = [each for each in others if each.action_id != replaced_id]
        number += 1
    action = replace(action, put_number=number)
    overlapping = [each for each in others if each.withdrawn_time is None or each.withdrawn_time > action.known_time]
    check_split(action, overlapping)
    await check_dividends(rows, calendar, action, [each for each in others if each.withdrawn_time is None])
    await action_store.put(rows, action)
    return action


def check_replaced(replaced_id: UUID, replaced: CorporateAction | None, action: CorporateAction) -> None:
    if replaced is None:
        raise ActionNotFound("the instrument has no such corporate action", action_id=replaced_id)
    if replaced.withdrawn_time is not None:
        raise Invalid({"replaced_action_id": "is that of an action that was withdrawn already"})
    if action.known_time < replaced.known_time:
        raise Invalid({"action.known_time": "must not be before that of the replaced action"})


def check_split(action: CorporateAction, overlapping: Sequence[CorporateAction]) -> None:
    """At no moment are two splits of one date known, or shares would be split twice."""
    if isinstance(action.what, Split):
        for each in overlapping:
            if isinstance(each.what, Split) and each.ex_date == action.ex_date:
                raise SplitExists("another split of this date was known at that time", action_id=each.action_id)


async def check_dividends(
    rows: Connection, calendar: Calendar | None, action: CorporateAction, others: Sequence[CorporateAction]
) -> None:
    """Whether all dividends of the action's date are below the close before it."""
    concerned = [each for each in others if isinstance(each.what, Split) or each.ex_date == action.ex_date]
    try:
        await factors_of(rows, action.instrument_id, calendar, [*concerned, action])
    except DividendNotBelowClose as error:
        field = "action.split" if isinstance(action.what, Split) else "action.cash_dividend.amount"
        raise Invalid({field: f"is too much: {error}"}) from None


async def withdraw_action(rows: Connection, action_id: UUID, now: datetime) -> CorporateAction:
    """Withdraws it unless it is withdrawn already, and returns it as it stands. Raises ActionNotFound."""
    if (found := await action_store.find(rows, action_id)) is None:
        raise ActionNotFound("no corporate action has this id", action_id=action_id)
    await locked_instrument(rows, found.instrument_id)
    action = await action_store.find(rows, action_id)
    assert action
    if action.withdrawn_time is None:
        action = replace(action, withdrawn_time=max(now, action.known_time))
        number = await action_store.newest_number(rows, action.instrument_id) + 1
        await action_store.withdraw(rows, action_id, max(now, action.known_time), number)
    return action


async def locked_instrument(rows: Connection, instrument_id: str) -> Instrument:
    """Whoever puts or withdraws actions of it waits for the others."""
    if (instrument := await store.find_instrument(rows, instrument_id, for_update=True)) is None:
        raise InstrumentNotFound(instrument_id)
    return instrument


async def factors_for(
    rows: Connection,
    instrument_id: str,
    calendar: Calendar | None,
    adjustment: Adjustment,
    moment: Moment,
    reached: datetime,
) -> Factors:
    """The factors of what was known at the moment, and whose ex date the market had reached. Raises DividendNotBelowClose.

    A share that will be split tomorrow is worth today what it is sold for.
    """
    actions = [
        action
        for action in await action_store.list_actions(rows, instrument_id, moment)
        if sessions.date_begins(calendar, action.ex_date) <= reached
        and (adjustment is not Adjustment.SPLITS or isinstance(action.what, Split))
    ]
    return await factors_of(rows, instrument_id, calendar, actions)


async def factors_of(
    rows: Connection, instrument_id: str, calendar: Calendar | None, actions: Sequence[CorporateAction]
) -> Factors:
    begins = {each.ex_date: sessions.date_begins(calendar, each.ex_date) for each in actions}
    dividends = {begins[each.ex_date] for each in actions if isinstance(each.what, CashDividend)}
    closes = await action_store.closes_before(rows, instrument_id, sorted(dividends)) if dividends else {}
    return adjustments.factors_of([((begins[each.ex_date] - EPOCH) // SECOND, each.what) for each in actions], closes)


async def adjusted(
    rows: Connection, instrument_id: str, calendar: Calendar | None, size: BarSize, bars: Columns, factors: Factors
) -> Columns:
    """The bars of a size, adjusted; rows is a snapshot in which they were read. Raises BarSpansExDate."""
    adjusted_bars = adjustments.multiplied(bars, factors)
    places = np.flatnonzero(adjustments.spanning(bars, factors))
    if not len(places):
        return adjusted_bars
    if size == WEEKS:
        piece_size = DAYS
    else:
        piece_size = QUARTERS if size == HOURS or (factors.ex_seconds % HOURS.seconds).any() else HOURS
    spanning = Columns._make(each[places] for each in bars)
    pieces, firsts = await read_pieces(rows, instrument_id, calendar, piece_size, spanning)
    made_up = adjustments.joined(adjustments.multiplied(pieces, factors), firsts)
    for name in ("open", "high", "low", "close", "volume"):
        getattr(adjusted_bars, name)[places] = getattr(made_up, name)
    return adjusted_bars


async def read_pieces(
    rows: Connection, instrument_id: str, calendar: Calendar | None, size: BarSize, bars: Columns
) -> tuple[Columns, Integers]:
    """The shorter bars of each of the bars, and where those of each begin."""
    opens, ends = (
        [EPOCH + SECOND * each for each in column.tolist()] for column in (bars.open_seconds, bars.end_seconds)
    )
    found = await rows.fetch(
        f"""
        SELECT place, extract(epoch FROM part.open_time)::bigint,
          extract(epoch FROM coalesce(part.end_time, part.open_time + $4::interval))::bigint, open, high, low, close, volume
        FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS whole (open_time, end_time, place)
        CROSS JOIN LATERAL (
          SELECT * FROM {table_of(size)}
          WHERE instrument_id = $1 AND bar_size = '{size.name}'
          AND open_time >= whole.open_time AND open_time < whole.end_time) AS part
        ORDER BY place, part.open_time
        """,
        instrument_id,
        opens,
        ends,
        size.length,
    )
    columns = [np.array(column) for column in zip(*found, strict=True)] if found else [np.array([])] * 8
    pieces = Columns(*columns[1:])
    numbers = columns[0].astype(np.int64) - 1
    are_there = np.bincount(numbers, minlength=len(opens)) > 0
    firsts = np.unique(numbers, return_index=True)[1]
    if are_there.all():
        whole = adjustments.joined(pieces, firsts)
        are_there = make_up(whole, bars) | are_complete(pieces.open_seconds, numbers, size, bars, calendar)
    if not are_there.all():
        open_time = opens[int(np.argmin(are_there))]
        raise BarSpansExDate(
            f"the bar of {open_time:%Y-%m-%d %H:%M} holds an ex date, and shorter bars neither make it up nor are complete",
            open_time=open_time.isoformat(),
        )
    return pieces, firsts


def are_complete(
    piece_seconds: Integers, numbers: Integers, size: BarSize, bars: Columns, calendar: Calendar | None
) -> Flags:
    """Which of the bars have all shorter ones that there can be; numbers are the places of the bars that the pieces are of."""
    counts = np.bincount(numbers, minlength=len(bars.open_seconds))
    if calendar is None or size != DAYS:
        return counts * size.seconds == bars.end_seconds - bars.open_seconds
    begins = calendar.day_begins // SECOND_NS
    sessions_held = np.searchsorted(begins, bars.end_seconds) - np.searchsorted(begins, bars.open_seconds)
    of_sessions = np.bincount(numbers[np.isin(piece_seconds, begins)], minlength=len(counts))
    return (counts == sessions_held) & (of_sessions == sessions_held)


def make_up(whole: Columns, bars: Columns) -> Flags:
    """Where the bars are alike; sums of volumes depend on the order of adding."""
    alike = np.isclose(whole.volume, bars.volume, rtol=VOLUME_TOLERANCE)
    for name in ("open", "high", "low", "close"):
        alike &= getattr(whole, name) == getattr(bars, name)
    return alike


async def adjusted_candles(
    rows: Connection,
    instrument_id: str,
    calendar: Calendar | None,
    size: BarSize,
    candles: Sequence[Candle],
    factors: Factors,
) -> list[Candle]:
    """As adjusted() does, with candles."""
    if not candles or not len(factors.ex_seconds):
        return list(candles)
    ends = [candle.end_time or candle.open_time + size.length for candle in candles]
    prices = (np.array([getattr(candle, name) for candle in candles]) for name in Columns._fields[2:])
    opens, ends = (
        np.array([(time - EPOCH) // SECOND for time in times]) for times in ([each.open_time for each in candles], ends)
    )
    bars = await adjusted(rows, instrument_id, calendar, size, Columns(opens, ends, *prices), factors)
    values = zip(*(column.tolist() for column in bars[2:]), strict=True)
    return [
        candle._replace(open=first, high=high, low=low, close=last, volume=volume)
        for candle, (first, high, low, last, volume) in zip(candles, values, strict=True)
    ]
