"""Trades put in order: whatever comes late, twice, in another order or not at all, each is told once, in the venue's order."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, StreamTicksResponse, TickBatch

from libs.ids import uuid7
from services.feeds import exchange, live
from services.feeds.domain import (
    Aggressor,
    Backfill,
    Backfilled,
    BackfillState,
    ExchangeSource,
    Instant,
    Missed,
    Moment,
    Place,
    Tick,
    backfill_of,
)
from services.feeds.exchange import Channel, OpenExchange
from services.feeds.feeder import SEQUENCE_MAX
from services.feeds.live import IDS_KNOWN_MAX, DistinctIds, FollowingIds, LiveLine
from services.feeds.venues import VenueTrouble

FIRST = 100


def trade(number: int) -> Tick:
    return Tick(number * 1_000, float(number), 1.0, Aggressor.BUYER, str(number))


def numbers(trades: list[Tick]) -> list[int]:
    return [int(each.trade_id) for each in trades]


ids = st.integers(FIRST, FIRST + 30)
messages = st.lists(st.lists(ids, max_size=5), max_size=30)


@given(messages)
def test_what_is_in_order_is_told_at_once_and_the_rest_waits(pushed):
    one = FollowingIds(str(FIRST - 1))
    told: list[int] = []
    came: set[int] = set()
    for message in pushed:
        told += numbers(one.add(map(trade, message), 0))
        came.update(message)
        expected = FIRST
        while expected in came:
            expected += 1
        assert told == list(range(FIRST, expected))
        assert (one.hole is not None) == any(number >= expected for number in came)
        if one.hole is not None:
            assert int(one.hole.after_id) == expected - 1
            assert int(one.hole.before.trade_id) == min(number for number in came if number > expected)
    assert one.repeat_count == sum(map(len, pushed)) - len(came)


@given(messages, st.integers(1, 7), st.sets(ids))
def test_with_the_record_every_trade_that_there_is_is_told_once_and_in_order(pushed, page, skipped):
    """The record has every id but those that the venue has never given."""
    record = [number for number in range(FIRST, FIRST + 31) if number not in skipped]
    one = FollowingIds(str(FIRST - 1))
    told: list[int] = []
    for message in pushed:
        told += numbers(one.add((trade(number) for number in message if number not in skipped), 0))
        while one.hole is not None:
            after = [number for number in record if number > int(one.last_id)][:page]
            told += numbers(one.fill(map(trade, after), 0))
    assert told == [number for number in record if number <= max(told, default=0)]


@given(messages)
def test_what_is_passed_over_is_exactly_what_is_told_as_missed(pushed):
    one = FollowingIds(str(FIRST - 1))
    told: list[int] = []
    missed: set[int] = set()
    for message in pushed:
        told += numbers(one.add(map(trade, message), 0))
        while one.hole is not None:
            bounds = one.hole.missed
            missed.update(range(int(bounds.after_trade_id) + 1, int(bounds.before_trade_id)))
            told += numbers(one.pass_over())
    assert told == sorted(set(told))
    assert missed.isdisjoint(told)
    assert set(told) | missed == set(range(FIRST, max([*told, FIRST - 1]) + 1))


def test_a_market_that_was_never_heard_begins_with_the_first_of_what_comes():
    one = FollowingIds("")
    assert numbers(one.add([trade(7), trade(5)], 0)) == [5]
    assert one.hole is not None
    assert numbers(one.add([trade(6)], 0)) == [6, 7]


@given(messages)
def test_ids_that_only_tell_trades_apart_are_told_once_in_the_order_they_came(pushed):
    one = DistinctIds("")
    told = [number for message in pushed for number in numbers(one.add(map(trade, message), 0))]
    assert told == list(dict.fromkeys(number for message in pushed for number in message))


def test_of_trades_without_ids_all_that_come_are_told_and_of_the_record_those_later_than_the_last():
    one = DistinctIds("", 1_000)
    unnamed = [trade(number)._replace(trade_id="") for number in (1, 1, 2, 2)]
    assert one.add(unnamed, 0) == unnamed
    assert one.fill(unnamed, 0) == []
    later = [trade(number)._replace(trade_id="") for number in (2, 3, 3)]
    assert one.fill(later, 0) == later[1:]


def test_of_ids_that_only_tell_trades_apart_so_many_are_known_again():
    one = DistinctIds("")
    one.add(map(trade, range(IDS_KNOWN_MAX + 1)), 0)
    assert numbers(one.add([trade(0), trade(IDS_KNOWN_MAX)], 0)) == [0]


@pytest.mark.parametrize(("ids", "is_astray"), [((5, 6, 7), True), ((5, 6), False), ((5, 6, 101, 7), False)])
def test_ids_that_begin_anew_from_below_are_seen_by_the_times_of_their_trades(ids, is_astray):
    one = FollowingIds("100", 100_000)
    for number in ids:
        one.add([trade(number)._replace(time_ns=2_000_000_000 if number < 100 else 101_000)], 0)
    assert one.is_astray is is_astray
    assert one.repeat_count == sum(number < 100 for number in ids)


@given(messages)
def test_trades_that_come_late_or_again_are_never_taken_for_such_that_begin_anew(pushed):
    one = FollowingIds(str(FIRST - 1), (FIRST - 1) * 1_000)
    for message in pushed:
        one.add(map(trade, message), 0)
    assert not one.is_astray


NOW = Instant(0, 0)


def line() -> LiveLine:
    place = Place(
        instrument_id="BINANCE:BTCUSDT",
        epoch=3,
        position_epoch=2,
        sequence=10,
        position=0,
        offset_ns=0,
        market_time_ns=0,
    )
    return LiveLine(place, Quote(), lambda: None)


def told_by(one: LiveLine) -> list[TickBatch]:
    return [
        batch for cut in one.cut(NOW, SEQUENCE_MAX) for batch in StreamTicksResponse.FromString(cut.response).batches
    ]


def test_what_was_missed_is_told_with_the_tick_after_it_and_with_nothing_before():
    one = line()
    one.offer([trade(1), Missed("1", "5", 1_000, 5_000), Moment(4_500), trade(5), trade(6)])
    before, moment, after = told_by(one)
    assert [before.HasField("missed"), moment.HasField("missed"), after.HasField("missed")] == [False, False, True]
    assert [tick.trade_id for tick in after.ticks] == ["5", "6"]
    assert (after.missed.after_trade_id, after.missed.before_trade_id) == ("1", "5")
    assert [(one.first_sequence, one.cursor.rpartition("@")[2]) for one in (before, moment, after)] == [
        (11, "3-11"),
        (12, "3-12"),
        (13, "3-14"),
    ]


async def test_a_backfill_waits_for_what_is_live_and_is_told_when_the_stream_has_it():
    one = line()
    one.offer([trade(8)])
    telling = asyncio.ensure_future(one.tell_backfill(Backfilled((trade(3), trade(4)), None)))
    await asyncio.sleep(0)
    live, late = told_by(one)
    assert ([tick.trade_id for tick in live.ticks], live.backfill) == (["8"], False)
    assert ([tick.trade_id for tick in late.ticks], late.backfill) == (["3", "4"], True)
    assert not telling.done()
    one.acknowledge()
    await telling
    assert (one.place().trade_id, one.place().position, one.done.tick_count) == ("8", 8_000, 3)
    assert told_by(one) == []


async def test_a_batch_that_only_says_that_all_was_brought_takes_a_number_too():
    one = line()
    bounds = Missed("1", "5", 1_000, 5_000)
    telling = asyncio.ensure_future(one.tell_backfill(Backfilled((), bounds)))
    await asyncio.sleep(0)
    [said] = told_by(one)
    one.acknowledge()
    await telling
    one.offer([trade(8)])
    [after] = told_by(one)
    assert (said.first_sequence, said.filled.before_trade_id, after.first_sequence) == (11, "5", 12)
    assert after.previous_cursor == said.cursor


class Record:
    """A venue that has trades up to 110 on record, and tells them when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def newest_trade(self, symbol: str) -> Tick | None:
        return trade(110)

    async def trades_after(self, symbol: str, trade_id: str, time_ns: int) -> list[Tick]:
        self.asked.set()
        await self.let.wait()
        return [trade(number) for number in range(int(trade_id) + 1, 111)]


async def test_what_was_asked_of_the_record_before_something_was_let_go_is_asked_again(monkeypatch):
    (source, channel), record = listening(), Record()
    source._tell(channel, channel.trades.add([trade(101), trade(102), trade(103)], 0))
    asking = asyncio.ensure_future(source._fetch(record, "BTCUSDT", channel))
    await record.asked.wait()
    monkeypatch.setattr(live, "EVENTS_WAITING_MAX", 3)
    source._tell(channel, channel.trades.add([trade(104)], 0))
    record.let.set()
    assert await asking == 0
    assert channel.is_unsure
    assert await source._fetch(record, "BTCUSDT", channel) == 10
    assert [tick.trade_id for batch in told_by(channel.line) for tick in batch.ticks] == [
        str(number) for number in range(101, 111)
    ]


class Desk:
    """Holds up who orders a backfill, and keeps what is noted."""

    def __init__(self, backfill: Backfill | None = None) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self.backfill = backfill

    async def order_backfill(self, instrument_id: str, missed: Missed) -> None:
        self.asked.set()
        await self.let.wait()

    async def next_backfill(self, now_ns: int | None) -> Backfill | None:
        return self.backfill if self.backfill and self.backfill.state is BackfillState.RUNNING else None

    async def note_backfill(self, backfill: Backfill) -> None:
        self.backfill = backfill


class Broken(Record):
    """Has a page to give, and no other."""

    def now_ns(self) -> int:
        return NOW.wall_ns

    async def trades_after(self, symbol: str, trade_id: str, time_ns: int) -> list[Tick]:
        if trade_id != "100":
            raise VenueTrouble("the record is out of order")
        return [trade(101), trade(102)]


def listening() -> tuple[OpenExchange, Channel]:
    source = OpenExchange(
        ExchangeSource("BINANCE", ("BTCUSDT",), has_book=False), nullcontext, ids_follow=True, has_history=False
    )
    place = replace(line().place(), trade_id="100", position=100_000)
    source.lines([place], {place.instrument_id: Quote()}, NOW)
    return source, source._channels["BTCUSDT"]


@pytest.mark.parametrize("comes", [True, False])
async def test_only_what_is_still_missing_once_its_backfill_is_ordered_is_told_as_missed(monkeypatch, comes):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 0.0)
    (source, channel), desk = listening(), Desk()
    source._tell(channel, channel.trades.add([trade(102)], 0))
    hole = channel.trades.hole
    assert hole
    filling = asyncio.ensure_future(source._fill(Record(), desk, "BTCUSDT", channel, hole))
    await desk.asked.wait()
    if comes:
        source._tell(channel, channel.trades.add([trade(101)], 0))
    desk.let.set()
    await filling
    source._tell(channel, channel.trades.add([trade(103)], 0))
    told = told_by(channel.line)
    assert any(batch.HasField("missed") for batch in told) is not comes
    assert [tick.trade_id for batch in told for tick in batch.ticks] == [*(["101"] if comes else []), "102", "103"]


async def test_a_backfill_that_the_record_breaks_off_is_given_up_with_what_was_brought(monkeypatch):
    monkeypatch.setattr(exchange, "RETRY_SECONDS", 0.001)
    ordered = backfill_of(uuid7(), "BINANCE:BTCUSDT", Missed("100", "110", 1, 2), datetime.now(UTC))
    (source, channel), desk = listening(), Desk(ordered)
    bringing = asyncio.ensure_future(source._bring_back(Broken(), desk))
    async with asyncio.timeout(10):
        while desk.backfill.state is BackfillState.RUNNING:
            told_by(channel.line)
            channel.line.acknowledge()
            await asyncio.sleep(0.001)
    bringing.cancel()
    assert (desk.backfill.state, desk.backfill.failure) == (BackfillState.FAILED, "the record is out of order")
    assert (desk.backfill.reached_trade_id, desk.backfill.tick_count) == ("102", 2)
