"""Corporate actions: what is known when, and candles adjusted for it, against examples reckoned by hand."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import prod
from uuid import uuid4

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import (
    ADJUSTMENT_RAW,
    ADJUSTMENT_SPLITS,
    ADJUSTMENT_SPLITS_AND_DIVIDENDS,
)

from libs.ids import uuid7
from libs.mesh.pages import token_after
from libs.mesh.wire import time_from_proto, timestamp
from services.marketdata import domain
from services.marketdata.adjustments import Close, Columns, factors_of, multiplied
from services.marketdata.domain import CashDividend, DividendNotBelowClose, Split
from tests.marketdata.stand import Feeder, announce, desk_of, select, stored_bars, tick_at
from tests.marketdata.test_calendar_bars import begin_of
from tests.marketdata.test_candles import page, pages
from tests.marketdata.test_imports import file_of
from tests.marketdata.test_instruments import reason_of, refused
from tests.mesh import sign_in

AAPL, ABC = "HAND:AAPL", "HAND:ABC"
ADJUSTMENTS = {"splits": ADJUSTMENT_SPLITS, "all": ADJUSTMENT_SPLITS_AND_DIVIDENDS}
DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def split(new: str, old: str = "1"):
    return {"split": {"new_shares": {"value": new}, "old_shares": {"value": old}}}


def dividend(amount: str, currency: str = "USD"):
    return {"cash_dividend": {"amount": {"value": amount}, "currency": currency}}


def action_of(what, ex_date: str, instrument_id: str = AAPL, known: str = "") -> marketdata_pb2.CorporateAction:
    known_time = timestamp(at(known)) if known else None
    return marketdata_pb2.CorporateAction(instrument_id=instrument_id, ex_date=ex_date, known_time=known_time, **what)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def put(caller, action, request_id: str = "", replaced: str = ""):
    request = marketdata_pb2.PutCorporateActionRequest(
        request_id=request_id or str(uuid7()), action=action, replaced_action_id=replaced
    )
    return (await caller.ask("PutCorporateAction", request)).action


async def withdraw(caller, action_id: str, request_id: str = ""):
    request = marketdata_pb2.WithdrawCorporateActionRequest(request_id=request_id or str(uuid7()), action_id=action_id)
    return (await caller.ask("WithdrawCorporateAction", request)).action


async def listed(caller, instrument_id: str = AAPL, **more):
    request = marketdata_pb2.ListCorporateActionsRequest(instrument_id=instrument_id, **more)
    return await caller.ask("ListCorporateActions", request)


async def why(call) -> str:
    """What a refusal says of which field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.details() or ""


async def load_days(caller, instrument_id: str, days: dict[str, tuple[float, ...]]) -> None:
    """Each day's open, high, low, close and volume."""
    lines = [f"{day} 00:00:00,{','.join(map(str, values))}" for day, values in days.items()]
    await caller.load(instrument_id, file_of(*lines), bar_size="1d")


APPLE = {
    "2020-08-27": (508.0, 512.0, 496.0, 500.0, 100.0),
    "2020-08-28": (504.0, 508.0, 498.0, 500.0, 200.0),
    "2020-08-31": (127.0, 131.0, 126.0, 129.0, 1000.0),
    "2020-09-01": (132.0, 134.0, 130.0, 134.0, 800.0),
}
"""Two days before the split of 4 for 1, and two after it; prices are made up."""


async def apple(caller) -> None:
    await caller.put(AAPL, calendar="XNAS", quote_asset="USD")
    await load_days(caller, AAPL, APPLE)


def values_of(candles):
    return [(each.open, each.high, each.low, each.close, each.volume) for each in candles]


async def candles(caller, instrument_id: str = AAPL, adjustment=ADJUSTMENT_RAW, bar_size: str = "1d", **more):
    found = await page(caller, instrument_id, bar_size=bar_size, adjustment=adjustment, **more)
    return values_of(found.candles)


async def test_prices_before_a_split_are_divided_and_volumes_multiplied(installation, caller):
    await apple(caller)
    stored = await stored_bars(installation, AAPL, "1d")
    await put(caller, action_of(split("4"), "2020-08-31"))
    assert await candles(caller, adjustment=ADJUSTMENT_SPLITS) == [
        (127, 128, 124, 125, 400),
        (126, 127, 124.5, 125, 800),
        (127, 131, 126, 129, 1000),
        (132, 134, 130, 134, 800),
    ]
    # Raw is as it was traded, whether asked for or not.
    assert await candles(caller) == await candles(caller, adjustment=0) == list(APPLE.values())
    assert await stored_bars(installation, AAPL, "1d") == stored


async def test_a_week_that_holds_an_ex_date_is_made_of_its_adjusted_days(installation, caller):
    await apple(caller)
    # Of the week after the split's Monday nothing has to be told apart; here the ex date is in the midst of one.
    await put(caller, action_of(split("4"), "2020-08-28"))
    assert await candles(caller, bar_size="1w") == [
        (508, 512, 496, 500, 300),
        (127, 134, 126, 134, 1800),
    ]
    assert await candles(caller, bar_size="1w", adjustment=ADJUSTMENT_SPLITS) == [
        (127, 508, 124, 500, 600),
        (127, 134, 126, 134, 1800),
    ]


@pytest.mark.parametrize(
    ("name", "ex_time", "hours"),
    [
        ("XNYS", "2025-01-07T05:00:00", [(100, 125, 100, 125, 8), (100, 120, 100, 120, 2)]),
        # Here the ex date begins in the midst of an hour as well.
        ("XBOM", "2025-01-06T18:30:00", [(100, 100, 100, 100, 4), (125, 125, 100, 120, 6)]),
    ],
)
async def test_a_bar_of_hours_that_holds_an_ex_date_is_made_of_what_is_shorter(
    installation, caller, redis, name, ex_time, hours
):
    await announce(installation, "SIM:X", calendar=name)
    async with desk_of(installation, redis) as desk:
        minutes = ((-31, 400.0), (-1, 500.0), (0, 100.0), (20, 120.0))
        ticks = [tick_at(at(ex_time) + timedelta(minutes=minute), price) for minute, price in minutes]
        await desk.store(Feeder(redis, "SIM:X").batch(ticks))
    await put(caller, action_of(split("4"), "2025-01-07", "SIM:X"))
    assert await candles(caller, "SIM:X", bar_size="4h") == [(400, 500, 100, 120, 4)]
    assert await candles(caller, "SIM:X", ADJUSTMENT_SPLITS, "4h") == [(100, 125, 100, 120, 10)]
    assert await candles(caller, "SIM:X", ADJUSTMENT_SPLITS, "1h") == hours


async def test_a_week_whose_days_do_not_make_it_up_is_refused(caller):
    await caller.put(ABC, calendar="XNYS")
    await caller.load(ABC, file_of("2025-01-06 00:00:00,10,12,8,9,5", "2025-01-13 00:00:00,9,9,9,9,5"), bar_size="1w")
    await put(caller, action_of(split("2"), "2025-01-08", ABC))
    assert await refused(candles(caller, ABC, ADJUSTMENT_SPLITS, "1w")) == "BAR_SPANS_EX_DATE"
    after = await candles(caller, ABC, ADJUSTMENT_SPLITS, "1w", start_time=timestamp(at("2025-01-12")))
    assert after == [(9, 9, 9, 9, 5)]
    # Days that make it up say what is of before; some of them are not enough.
    days = {"2025-01-06": (10, 12, 8, 11, 2), "2025-01-10": (8, 9, 8, 9, 2), "2025-01-07": (11, 11, 11, 11, 1)}
    await load_days(caller, ABC, dict(list(days.items())[:2]))
    assert await refused(candles(caller, ABC, ADJUSTMENT_SPLITS, "1w")) == "BAR_SPANS_EX_DATE"
    await load_days(caller, ABC, days)
    assert (await candles(caller, ABC, ADJUSTMENT_SPLITS, "1w"))[0] == (5, 9, 4, 9, 8)


async def test_a_week_that_was_imported_otherwise_is_made_of_its_days_where_these_are_complete(caller):
    await caller.put(ABC, calendar="XNYS")
    # Monday the twentieth was a holiday.
    days = {f"2025-01-{day}": (day + 0.0, day + 2.0, day - 1.0, day + 1.0, 2.0) for day in (21, 22, 23, 24)}
    await load_days(caller, ABC, days)
    vendors = (21.0, 26.01, 20.0, 25.0, 9.0)
    lines = [f"2025-01-{day} 00:00:00,{','.join(map(str, vendors))}" for day in (13, 21, 27)]
    await caller.load(ABC, file_of(*lines), bar_size="1w")
    await put(caller, action_of(split("2"), "2025-01-23", ABC))
    before = (10.5, 13.005, 10, 12.5, 18)
    assert await candles(caller, ABC, ADJUSTMENT_SPLITS, "1w") == [before, (10.5, 26, 10, 25, 12), vendors]
    assert await candles(caller, ABC, bar_size="1w") == [vendors] * 3
    # Nothing tells which part of a week without days is from before; pages without it do not need it.
    await put(caller, action_of(split("2"), "2025-01-15", ABC))
    assert await refused(candles(caller, ABC, ADJUSTMENT_SPLITS, "1w")) == "BAR_SPANS_EX_DATE"
    since = timestamp(at("2025-01-20"))
    assert len(await candles(caller, ABC, ADJUSTMENT_SPLITS, "1w", start_time=since)) == 2


async def test_dividends_as_yahoo_reckons_them(caller):
    """The example of its help, with a split on the day before the ex date of a dividend."""
    await caller.put(ABC, calendar="XNAS", quote_asset="USD")
    closes = {"2003-02-13": 46.99, "2003-02-14": 48.30, "2003-02-18": 24.96, "2003-02-19": 24.53}
    await load_days(caller, ABC, {day: (close,) * 4 + (1,) for day, close in closes.items()})
    await put(caller, action_of(split("2"), "2003-02-18", ABC))
    await put(caller, action_of(dividend("0.08"), "2003-02-19", ABC))
    adjusted = await candles(caller, ABC, ADJUSTMENT_SPLITS_AND_DIVIDENDS)
    assert [round(close, 2) for _, _, _, close, _ in adjusted] == [23.42, 24.07, 24.88, 24.53]
    assert [volume for *_, volume in adjusted] == [2, 2, 1, 1]
    assert [close for _, _, _, close, _ in await candles(caller, ABC, ADJUSTMENT_SPLITS)] == [
        23.495,
        24.15,
        24.96,
        24.53,
    ]


async def test_dividends_of_one_date_are_added_and_are_of_the_new_shares_of_a_split_of_that_date(caller):
    await apple(caller)
    for amount in ("1", "1.5"):
        await put(caller, action_of(dividend(amount), "2020-08-31"))
    # The close before was 500, of four of the new shares: 125. So 1 - 2.5 / 125 = 0.98.
    await put(caller, action_of(split("4"), "2020-08-31"))
    await put(caller, action_of(dividend("1.34"), "2020-09-01"))  # after a close of 129: 0.98961...
    factor = 1 - 1.34 / 129
    found = await candles(caller, adjustment=ADJUSTMENT_SPLITS_AND_DIVIDENDS)
    assert [close for _, _, _, close, _ in found] == pytest.approx([125 * 0.98 * factor] * 2 + [129 * factor, 134])
    assert [volume for *_, volume in found] == [400, 800, 1000, 800]
    # Without a bar before it, a dividend adjusts nothing.
    await put(caller, action_of(dividend("400"), "2019-08-30"))
    assert await candles(caller, adjustment=ADJUSTMENT_SPLITS_AND_DIVIDENDS) == found


async def test_what_was_known_at_a_moment_can_be_asked_again(installation, caller):
    await apple(caller)
    wrong = await put(caller, action_of(split("7"), "2020-08-31", known="2020-09-10T20:00:00"))
    right = await put(
        caller, action_of(split("4"), "2020-08-31", known="2020-09-11T08:00:00"), replaced=wrong.action_id
    )
    paid = await put(caller, action_of(dividend("5"), "2020-08-28", known="2020-09-12T00:00:00"))

    async def close(as_of: str, adjustment=ADJUSTMENT_SPLITS) -> float:
        as_of_time = timestamp(at(as_of))
        return (await candles(caller, adjustment=adjustment, as_of_time=as_of_time))[0][3]

    assert await close("2020-09-10T19:59:59.999999") == 500
    assert await close("2020-09-10T20:00:00") == pytest.approx(500 / 7)
    assert await close("2020-09-11T07:59:59.999999") == pytest.approx(500 / 7)
    assert await close("2020-09-11T08:00:00") == 125
    assert await close("2020-09-11T23:59:59", ADJUSTMENT_SPLITS_AND_DIVIDENDS) == 125
    assert await close("2020-09-12T00:00:00", ADJUSTMENT_SPLITS_AND_DIVIDENDS) == pytest.approx(125 * 0.99)
    before = datetime.now(UTC)
    gone = await withdraw(caller, right.action_id)
    assert time_from_proto(gone.withdrawn_time) >= before
    assert (await candles(caller, adjustment=ADJUSTMENT_SPLITS))[0][3] == 500
    assert await close("2020-09-13T00:00:00") == 125
    # Withdrawn again it stays as it is.
    assert await withdraw(caller, right.action_id) == gone
    assert [each.action_id for each in (await listed(caller)).actions] == [paid.action_id]
    for as_of, known in (
        ("2020-09-10T21:00:00", [wrong]),
        ("2020-09-11T09:00:00", [right]),
        ("2020-09-01T00:00:00", []),
    ):
        found = (await listed(caller, as_of_time=timestamp(at(as_of)))).actions
        assert [each.action_id for each in found] == [each.action_id for each in known]
        # That they were withdrawn later was not known then.
        assert not any(each.HasField("withdrawn_time") for each in found)
    every = []
    token = ""
    while token or not every:
        found = await listed(caller, include_withdrawn=True, page_size=2, page_token=token)
        every += [each.action_id for each in found.actions]
        token = found.next_page_token
    assert every == [wrong.action_id, right.action_id, paid.action_id]


async def test_whoever_looks_from_a_moment_sees_nothing_that_came_later(caller):
    await apple(caller)
    await put(caller, action_of(split("4"), "2020-08-31", known="2020-07-30T00:00:00"))
    raw = list(APPLE.values())
    adjusted = [(*(value / 4 for value in values[:4]), values[4] * 4) for values in raw[:2]]
    # A day ends at midnight in New York, four hours after it does in UTC.
    for as_of, expected in (
        ("2020-08-28T03:59:59", []),
        ("2020-08-28T04:00:00", raw[:1]),
        ("2020-08-30T12:00:00", raw[:2]),
        ("2020-08-31T03:59:59", raw[:2]),
        ("2020-08-31T04:00:00", adjusted),
        ("2020-09-01T04:00:00", [*adjusted, raw[2]]),
        ("2020-09-02T04:00:00", [*adjusted, *raw[2:]]),
    ):
        asked = {"bar_size": "1d", "adjustment": ADJUSTMENT_SPLITS, "as_of_time": timestamp(at(as_of))}
        assert values_of((await page(caller, AAPL, **asked)).candles) == expected, as_of
        backwards = await pages(caller, AAPL, page_size=1, **asked)
        assert values_of([candle for found in reversed(backwards) for candle in found]) == expected, as_of
        forwards = await pages(caller, AAPL, page_size=1, start_time=timestamp(at("2020-08-01")), **asked)
        assert values_of([candle for found in forwards for candle in found]) == expected, as_of


async def test_an_action_adjusts_nothing_until_the_market_reaches_its_ex_date(caller):
    await apple(caller)
    await put(caller, action_of(split("4"), "2020-09-03"))
    for adjustment in ADJUSTMENTS.values():
        assert await candles(caller, adjustment=adjustment) == list(APPLE.values())
    first = await page(caller, AAPL, bar_size="1d", adjustment=ADJUSTMENT_SPLITS, page_size=2)
    await load_days(caller, AAPL, {"2020-09-03": (33, 34, 32, 33, 1)})
    assert [close for _, _, _, close, _ in await candles(caller, adjustment=ADJUSTMENT_SPLITS)] == [
        *(values[3] / 4 for values in APPLE.values()),
        33,
    ]
    # A series that began before goes on as it began.
    second = await page(
        caller, AAPL, bar_size="1d", adjustment=ADJUSTMENT_SPLITS, page_size=2, page_token=first.next_page_token
    )
    assert values_of([*second.candles, *first.candles]) == list(APPLE.values())


async def test_pages_of_adjusted_candles_are_one_series_though_actions_come_in_between(caller):
    await caller.put(ABC, calendar="XNYS", quote_asset="USD")
    days = [date(2025, 1, 2) + DAY * number for number in range(100)]
    sessions = [day for day in days if day.weekday() < 5 and str(day) not in ("2025-01-09", "2025-01-20", "2025-02-17")]
    await load_days(caller, ABC, {str(day): (100 + day.day, 150, 90, 100 + day.day, 7) for day in sessions})
    await put(caller, action_of(split("2"), "2025-02-03", ABC))
    await put(caller, action_of(dividend("3"), "2025-03-03", ABC))
    for adjustment in ADJUSTMENTS.values():
        for more in ({}, {"start_time": timestamp(at("2025-01-01"))}):
            whole = await candles(caller, ABC, adjustment, page_size=5000, **more)
            found, token = [], ""
            added = []
            while token or not found:
                answer = await page(
                    caller, ABC, bar_size="1d", adjustment=adjustment, page_size=9, page_token=token, **more
                )
                found.append(values_of(answer.candles))
                token = answer.next_page_token
                # Whatever is put or withdrawn now, also as if it had been known long ago, is none of this series.
                added.append(
                    await put(caller, action_of(dividend("1"), "2025-03-10", ABC, known="2025-01-01T00:00:00"))
                )
                if len(added) > 1:
                    await withdraw(caller, added[-2].action_id)
            assert [each for part in (found if more else found[::-1]) for each in part] == whole
            await withdraw(caller, added[-1].action_id)
    assert await refused(page(caller, ABC, adjustment=2, page_token=token_after("after", 1))) == "PAGE_TOKEN_INVALID"
    assert await refused(page(caller, ABC, page_token=token_after("after", 1, 1, 1))) == "PAGE_TOKEN_INVALID"
    assert (
        await refused(page(caller, ABC, adjustment=2, page_token=token_after("after", 1, "x", 1)))
        == "PAGE_TOKEN_INVALID"
    )
    assert len(await pages(caller, ABC, bar_size="1d", page_size=40)) == 2


async def test_of_an_instrument_without_a_calendar_an_ex_date_begins_in_utc(installation, caller, redis):
    await announce(installation, "SIM:X")
    async with desk_of(installation, redis) as desk:
        times = [at("2026-03-03T23:59:59.999999"), at("2026-03-04T00:00:00")]
        await desk.store(Feeder(redis, "SIM:X").batch([tick_at(time, 10.0) for time in times]))
    await put(caller, action_of(split("1", "5"), "2026-03-04", "SIM:X"))
    for size in ("1m", "5m", "1h", "4h", "1d"):
        found = await candles(caller, "SIM:X", ADJUSTMENT_SPLITS, size)
        assert [each[3:] for each in found] == [(50, 0.2), (10, 1)], size
    assert await candles(caller, "SIM:X", ADJUSTMENT_SPLITS, "1w") == [(50, 50, 10, 10, 1.2)]


async def test_with_a_calendar_an_ex_date_begins_with_its_trading_day(installation, caller, redis):
    await announce(installation, "SIM:F", calendar="CMES")
    begin = begin_of("CMES", date(2025, 3, 10))  # on Sunday's evening
    async with desk_of(installation, redis) as desk:
        times = [begin - timedelta(days=3), begin]
        await desk.store(Feeder(redis, "SIM:F").batch([tick_at(time, 10.0) for time in times]))
    await put(caller, action_of(split("2"), "2025-03-10", "SIM:F"))
    for size in ("1m", "1h", "1d", "1w"):
        assert [each[3:] for each in await candles(caller, "SIM:F", ADJUSTMENT_SPLITS, size)] == [(5, 2), (10, 1)], size


@pytest.mark.parametrize(
    ("what", "ex_date", "more", "field", "reason"),
    [
        (split("0"), "2020-08-31", {}, "action.split.new_shares must be above zero", "INVALID_FIELDS"),
        (split("4", "-1"), "2020-08-31", {}, "action.split.old_shares must be above zero", "INVALID_FIELDS"),
        (split("2", "2.0"), "2020-08-31", {}, "action.split.new_shares must not be as many", "INVALID_FIELDS"),
        (split("x"), "2020-08-31", {}, "action.split.new_shares", "INVALID_FIELDS"),
        (dividend("0"), "2020-08-31", {}, "action.cash_dividend.amount must be above zero", "INVALID_FIELDS"),
        (dividend("-1"), "2020-08-31", {}, "action.cash_dividend.amount must be above zero", "INVALID_FIELDS"),
        (dividend("500"), "2020-08-31", {}, "action.cash_dividend.amount is too much", "INVALID_FIELDS"),
        (dividend("1", "EUR"), "2020-08-31", {}, "action.cash_dividend.currency must be USD", "INVALID_FIELDS"),
        (dividend("1"), "2020-08-30", {}, "action.ex_date is no date of a session of XNAS", "INVALID_FIELDS"),
        (dividend("1"), "2020-02-30", {}, "action.ex_date is no date such as", "INVALID_FIELDS"),
        (dividend("1"), "today", {}, "action.ex_date", "INVALID_FIELDS"),
        ({}, "2020-08-31", {}, "action.what", "INVALID_FIELDS"),
        (dividend("1"), "2020-08-31", {"known": "9000-01-01T00:00:00"}, "action.known_time", "INVALID_FIELDS"),
        (dividend("1"), "2020-08-31", {"instrument_id": "HAND:NONE"}, "HAND:NONE", "INSTRUMENT_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(caller, what, ex_date, more, field, reason):
    await apple(caller)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(caller, action_of(what, ex_date, **more))
    assert field in (caught.value.details() or "")
    assert reason_of(caught.value) == reason
    assert not (await listed(caller, include_withdrawn=True)).actions


async def test_one_date_has_one_split_at_any_time(caller):
    await apple(caller)
    first = await put(caller, action_of(split("4"), "2020-08-31", known="2020-07-30T00:00:00"))
    assert await refused(put(caller, action_of(split("5"), "2020-08-31"))) == "SPLIT_EXISTS"
    await put(caller, action_of(split("3"), "2020-09-01"))
    gone = await withdraw(caller, first.action_id)
    # Known at the same time as the first one was, shares would have been split twice then.
    assert (
        await refused(put(caller, action_of(split("5"), "2020-08-31", known="2020-08-01T00:00:00"))) == "SPLIT_EXISTS"
    )
    second = await put(caller, action_of(split("5"), "2020-08-31"))
    assert time_from_proto(second.known_time) >= time_from_proto(gone.withdrawn_time)


async def test_of_those_who_put_a_split_of_one_date_at_once_one_does_and_numbers_follow_on(installation, caller):
    await apple(caller)
    puts = [put(caller, action_of(split(new), "2020-08-31")) for new in ("2", "3", "4", "5")]
    puts += [put(caller, action_of(dividend(amount), "2020-08-31")) for amount in ("1", "2", "3")]
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert [reason_of(each) for each in done if isinstance(each, Exception)] == ["SPLIT_EXISTS"] * 3
    found = await select(installation, "SELECT put_number FROM corporate_actions ORDER BY 1")
    assert [row["put_number"] for row in found] == [1, 2, 3, 4]


async def test_only_what_stands_can_be_replaced_and_not_before_it_was_known(caller):
    await apple(caller)
    first = await put(caller, action_of(split("4"), "2020-08-31", known="2020-07-30T00:00:00"))
    early = action_of(split("5"), "2020-08-31", known="2020-07-29T00:00:00")
    assert "action.known_time must not be before" in await why(put(caller, early, replaced=first.action_id))
    later = action_of(split("5"), "2020-08-31")
    assert await refused(put(caller, later, replaced=str(uuid4()))) == "CORPORATE_ACTION_NOT_FOUND"
    second = await put(caller, later, replaced=first.action_id)
    assert "replaced_action_id" in await why(put(caller, later, replaced=first.action_id))
    assert [each.action_id for each in (await listed(caller)).actions] == [second.action_id]
    assert await refused(withdraw(caller, str(uuid4()))) == "CORPORATE_ACTION_NOT_FOUND"


async def test_a_repeated_request_puts_and_withdraws_once(installation, caller):
    await apple(caller)
    action = action_of(split("4"), "2020-08-31")
    first = await put(caller, action, request_id="one")
    assert await put(caller, action, request_id="one") == first
    assert await refused(put(caller, action_of(split("5"), "2020-08-31"), request_id="one")) == "REQUEST_ID_REUSED"
    gone = await withdraw(caller, first.action_id, request_id="two")
    assert await withdraw(caller, first.action_id, request_id="two") == gone
    numbers = await select(installation, "SELECT put_number, withdrawn_number FROM corporate_actions")
    assert [tuple(row) for row in numbers] == [(1, 2)]


async def test_an_instrument_has_so_many_actions_at_most(caller, monkeypatch):
    monkeypatch.setattr(domain, "CORPORATE_ACTIONS_MAX", 2)
    await apple(caller)
    for amount in ("1", "2"):
        gone = await put(caller, action_of(dividend(amount), "2020-08-31"))
        await withdraw(caller, gone.action_id)
    assert await refused(put(caller, action_of(dividend("3"), "2020-08-31"))) == "TOO_MANY_CORPORATE_ACTIONS"


async def test_a_dividend_that_bars_which_came_later_do_not_allow_is_refused_when_it_is_asked_for(caller):
    await caller.put(AAPL, calendar="XNAS", quote_asset="USD")
    await put(caller, action_of(dividend("500"), "2020-08-31"))
    await load_days(caller, AAPL, APPLE)
    assert await refused(candles(caller, adjustment=ADJUSTMENT_SPLITS_AND_DIVIDENDS)) == "DIVIDEND_NOT_BELOW_CLOSE"
    assert await candles(caller, adjustment=ADJUSTMENT_SPLITS) == list(APPLE.values())


async def test_an_as_of_time_needs_an_adjustment_and_is_not_in_the_future(caller):
    await apple(caller)
    past, future = timestamp(at("2020-01-01")), timestamp(datetime.now(UTC) + DAY)
    for adjustment in (0, ADJUSTMENT_RAW):
        assert "as_of_time" in await why(page(caller, AAPL, adjustment=adjustment, as_of_time=past))
    assert "as_of_time" in await why(page(caller, AAPL, adjustment=ADJUSTMENT_SPLITS, as_of_time=future))
    assert "as_of_time" in await why(listed(caller, as_of_time=future))
    assert await refused(listed(caller, "HAND:NONE")) == "INSTRUMENT_NOT_FOUND"


async def test_only_operators_put_and_withdraw(caller):
    await apple(caller)
    action = await put(caller, action_of(dividend("1"), "2020-08-31"))
    caller.metadata = sign_in()
    assert await refused(put(caller, action_of(dividend("1"), "2020-08-31"))) == "NOT_PERMITTED"
    assert await refused(withdraw(caller, action.action_id)) == "NOT_PERMITTED"
    assert len((await listed(caller)).actions) == 1


prices = st.integers(100, 100_000).map(lambda cents: cents / 100)
days = st.lists(
    st.tuples(
        prices,
        st.sampled_from(["1", "2", "0.5", "1.5", "7"]),
        st.integers(0, 90).map(lambda percent: percent / 100),
    ),
    min_size=2,
    max_size=12,
)


@given(days)
def test_adjusted_prices_return_what_shares_do_whose_dividends_buy_more_of_them(series):
    """Of whoever holds a share from the first close on, and spends each dividend at the close before less the dividend."""
    actions: list[tuple[int, Split | CashDividend]] = []
    closes = {}
    shares = [1.0]
    for day, (_, ratio, part) in list(enumerate(series))[1:]:
        before = series[day - 1][0]
        paid = Decimal(str(round(before / float(ratio) * part, 6)))
        actions.append((day, Split(new_shares=Decimal(ratio), old_shares=Decimal(1))))
        if paid:
            actions.append((day, CashDividend(amount=paid, currency="USD")))
        closes[day] = Close(day - 1, before)
        held = shares[-1] * float(ratio)
        shares.append(held + held * float(paid) / (before / float(ratio) - float(paid)))
    close = np.array([price for price, *_ in series])
    opens = np.arange(len(series))
    bars = Columns(opens, opens + 1, close, close, close, close, np.ones(len(series)))
    adjusted = multiplied(bars, factors_of(actions, closes))
    worth = close * np.array(shares)
    assert adjusted.close / adjusted.close[-1] == pytest.approx(worth / worth[-1])
    assert adjusted.close[-1] == close[-1]
    splits = [float(ratio) for _, ratio, _ in series]
    assert adjusted.volume == pytest.approx([prod(splits[day + 1 :]) for day in range(len(series))])


def test_a_close_from_before_an_earlier_split_is_that_of_as_much_as_a_new_share():
    # Nothing was traded between the split of 4 for 1 and the dividend: 500 was the close of four.
    actions = [
        (10, Split(new_shares=Decimal(4), old_shares=Decimal(1))),
        (20, CashDividend(amount=Decimal(25), currency="USD")),
    ]
    factors = factors_of(actions, {20: Close(5, 500.0)})
    assert factors.price.tolist() == pytest.approx([0.25 * 0.8, 0.8, 1])
    with pytest.raises(DividendNotBelowClose):
        factors_of([*actions[:1], (20, CashDividend(amount=Decimal(125), currency="USD"))], {20: Close(5, 500.0)})
