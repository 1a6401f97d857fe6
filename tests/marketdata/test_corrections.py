"""Ticks that come late, twice, or after they had been missed: the bars are those of all ticks there are, and no bar that was
closed changes without a higher revision."""

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from tradeloom.marketdata.v1.marketdata_pb2 import TickBatch

from libs.bar_sizes import BAR_SIZES, EPOCH, BarSize
from libs.mesh.wire import timestamp
from services.marketdata import candle_store
from tests.examples import examples
from tests.marketdata.stand import (
    BTC,
    START,
    Feeder,
    announce,
    desk_of,
    select,
    stored_bars,
    stored_ticks,
    tick_at,
)
from tests.marketdata.test_ticks import pages

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
VALUES = ("open", "high", "low", "close", "volume", "trade_count", "revision")


@dataclass(frozen=True)
class Trade:
    seconds: float
    price: int
    quantity: int
    name: str
    backfill: bool = False


@dataclass
class Model:
    """Bars as one would say what they are, slowly: of all trades there are, made anew after every transaction."""

    start: datetime = MONDAY
    trades: list[tuple[datetime, int, Trade]] = field(default_factory=list)
    known: set[tuple[datetime, str]] = field(default_factory=set)
    watermark: datetime = EPOCH
    bars: dict[tuple[str, datetime], tuple] = field(default_factory=dict)
    sequence: int = 0

    def span(self, size: BarSize, time: datetime) -> tuple[datetime, datetime] | None:
        """Begin and end of the bar that holds the moment, if one does."""
        begin = time - (time - size.origin) % size.length
        return begin, begin + size.length

    def store(self, trades: Sequence[Trade]) -> None:
        closed_until, watermark = self.watermark, self.watermark
        # What was fetched later is looked for among all that the same transaction brings as well.
        for trade in trades:
            self.sequence += 1
            time = self.start + timedelta(seconds=trade.seconds)
            if trade.backfill and (time, trade.name) in self.known:
                continue
            self.known.add((time, trade.name))
            self.trades.append((time, self.sequence, trade))
            if not trade.backfill:
                watermark = max(watermark, time)
        for size in BAR_SIZES.values():
            made: dict[tuple[datetime, datetime], list[tuple[datetime, int, Trade]]] = {}
            for each in sorted(self.trades, key=place_of):
                if span := self.span(size, each[0]):
                    made.setdefault(span, []).append(each)
            for (open_time, end_time), held in made.items():
                prices = [trade.price for *_, trade in held]
                volume = sum(trade.quantity for *_, trade in held)
                values = (prices[0], max(prices), min(prices), prices[-1], volume, len(held))
                before = self.bars.get((size.name, open_time))
                if before is None:
                    self.bars[size.name, open_time] = (*values, 1)
                elif before[:-1] != values:
                    was_closed = end_time <= closed_until
                    self.bars[size.name, open_time] = (*values, before[-1] + was_closed)
        self.watermark = watermark


def place_of(each: tuple[datetime, int, Trade]) -> tuple[datetime, int, int]:
    """Of one moment the venue's numbers count, and where there is none the order in which they came."""
    time, sequence, trade = each
    return time, int(trade.name) if trade.name.isdigit() else sequence, sequence


def batches_of(feeder: Feeder, trades: Sequence[Trade], start: datetime = MONDAY) -> list[TickBatch]:
    return [
        feeder.batch(
            [tick_at(start + timedelta(seconds=trade.seconds), trade.price, trade.quantity, trade.name)],
            backfill=trade.backfill,
        )
        for trade in trades
    ]


async def all_bars(installation, instrument_id: str):
    found = await select(installation, "SELECT * FROM market_data_ohlcv WHERE instrument_id = $1", instrument_id)
    return {(row["bar_size"], row["open_time"]): tuple(row[name] for name in VALUES) for row in found}


edges = st.sampled_from([0, 1, 59, 60, 299, 300, 899, 900, 3_600, 14_400, 86_399, 86_400, 7 * 86_400 - 1, 7 * 86_400])
trade_lists = st.lists(
    st.builds(
        Trade,
        seconds=st.one_of(
            edges,
            edges.map(lambda seconds: seconds + 0.999999),
            st.integers(min_value=0, max_value=8_000).map(lambda half: half / 2),
        ),
        price=st.integers(min_value=1, max_value=9),
        quantity=st.integers(min_value=1, max_value=9),
        name=st.sampled_from("abcde123"),
        backfill=st.sampled_from([False, False, True]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.examples
@pytest.mark.parametrize("copied_bars_min", [1, candle_store.COPIED_BARS_MIN])
async def test_ticks_in_any_order_at_any_cut_make_the_bars_of_all_of_them_with_the_right_revisions(
    installation, redis, monkeypatch, copied_bars_min
):
    monkeypatch.setattr(candle_store, "COPIED_BARS_MIN", copied_bars_min)
    ids = [f"SIM:A{number}" for number in range(400)]
    await announce(installation, *ids)
    unused = iter(ids)
    loop = asyncio.get_running_loop()

    async def play(trades: Sequence[Trade], cuts: Sequence[int]) -> None:
        instrument_id = next(unused)
        feeder, model = Feeder(redis, instrument_id), Model()
        bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(trades)}), len(trades)]
        for start, end in pairwise(bounds):
            await desk.store(*batches_of(feeder, trades[start:end]))
            model.store(trades[start:end])
        assert await all_bars(installation, instrument_id) == model.bars
        assert len(await stored_ticks(installation, instrument_id)) == len(model.trades)

    @examples(80, deadline=None)
    @given(trade_lists, st.lists(st.integers(min_value=1, max_value=24), max_size=8))
    def any_order(trades, cuts):
        asyncio.run_coroutine_threadsafe(play(trades, cuts), loop).result(30)

    async with desk_of(installation, redis) as desk:
        await asyncio.to_thread(any_order)


@pytest.mark.examples
async def test_of_one_moment_the_venues_order_counts_whatever_was_fetched_later(installation, redis, caller):
    ids = [f"SIM:V{number}" for number in range(100)]
    await announce(installation, *ids)
    unused = iter(ids)
    loop = asyncio.get_running_loop()

    async def play(moments: Sequence[tuple[int, bool]]) -> None:
        instrument_id = next(unused)
        seconds = sorted(each for each, _ in moments)
        trades = [Trade(each, 1 + number % 97, 1, str(number)) for number, each in enumerate(seconds, start=95)]
        late = {str(number) for number, (_, is_late) in enumerate(moments, start=95) if is_late}
        live = [trade for trade in trades if trade.name not in late]
        fetched = [replace(trade, backfill=True) for trade in trades if trade.name in late]
        feeder = Feeder(redis, instrument_id)
        for some in (live, fetched):
            if some:
                await desk.store(*batches_of(feeder, some))
        for bar in await stored_bars(installation, instrument_id, "1s"):
            held = [trade.price for trade in trades if MONDAY + timedelta(seconds=trade.seconds) == bar["open_time"]]
            assert (bar["open"], bar["close"]) == (held[0], held[-1])
        for size in (1, 4):
            found = await pages(caller, instrument_id=instrument_id, start_time=timestamp(MONDAY), page_size=size)
            assert [trade_id for page in found for trade_id in page] == [trade.name for trade in trades]

    @examples(30, deadline=None)
    @given(st.lists(st.tuples(st.integers(min_value=0, max_value=2), st.booleans()), min_size=1, max_size=12))
    def any_moments(moments):
        asyncio.run_coroutine_threadsafe(play(moments), loop).result(30)

    async with desk_of(installation, redis) as desk:
        await play([(0, True), (0, False)])
        await play([(0, False), (0, True), (0, False)])
        await asyncio.to_thread(any_moments)


async def test_a_tick_corrects_its_bars_however_late_it_comes(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(MONDAY, 10.0), tick_at(MONDAY + timedelta(days=200), 11.0)]))
        await desk.resume(BTC)
        await desk.store(feeder.batch([tick_at(MONDAY + timedelta(milliseconds=5), 99.0)]))
    for bar_size in BAR_SIZES:
        first, last = await stored_bars(installation, BTC, bar_size)
        assert (first["open"], first["high"], first["close"], first["trade_count"], first["revision"]) == (
            10,
            99,
            99,
            2,
            2,
        )
        assert (last["close"], last["trade_count"], last["revision"]) == (11, 1, 1)


async def test_ticks_that_are_older_than_what_is_kept_are_counted_and_not_stored(installation, redis):
    await announce(installation, BTC)

    def counted() -> float:
        return REGISTRY.get_sample_value("tradeloom_ticks_too_late_total", {"instrument_id": BTC}) or 0

    before = counted()
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await select(
            installation,
            "UPDATE dropped SET until_time = $1 WHERE parent = 'market_data_ticks'",
            datetime(2026, 3, 1, tzinfo=UTC),
        )
        with capture_logs() as logs:
            await desk.store(feeder.batch([tick_at(MONDAY - timedelta(days=2), 1.0), tick_at(MONDAY, 10.0)]))
    assert counted() == before + 1
    assert await stored_ticks(installation) == [(2, 10)]
    assert [row["trade_count"] for row in await stored_bars(installation, BTC, "1w")] == [1]
    assert [(each["instrument_id"], each["ticks"]) for each in logs] == [(BTC, 1)]


async def test_a_tick_of_which_seconds_are_kept_no_more_corrects_what_is_longer(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    second = timedelta(seconds=1)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(MONDAY + second, 10.0), tick_at(MONDAY + 30 * second, 20.0)]))
        for parent, until in (("market_data_ohlcv_1s", MONDAY + timedelta(days=1)), ("market_data_ohlcv_1m", MONDAY)):
            await select(installation, "UPDATE dropped SET until_time = $2 WHERE parent = $1", parent, until)
        await desk.store(feeder.batch([tick_at(MONDAY, 7.0), tick_at(MONDAY + 5 * second, 50.0)]))
        await desk.store(feeder.batch([tick_at(MONDAY + 31 * second, 8.0), tick_at(MONDAY - second, 3.0)]))
    assert [row["high"] for row in await stored_bars(installation, BTC, "1s")] == [10, 20]
    for bar_size in ("1m", "5m", "1d"):
        *_, bar = await stored_bars(installation, BTC, bar_size)
        values = tuple(bar[name] for name in VALUES[:-1])
        assert values == (7, 50, 7, 8, 5, 5), bar_size
    # Of the minute before neither seconds nor minutes are kept, but what is longer is.
    assert len(await stored_bars(installation, BTC, "1m")) == 1
    assert [row["low"] for row in await stored_bars(installation, BTC, "5m")] == [3, 7]
    assert [row["low"] for row in await stored_bars(installation, BTC, "1w")] == [3, 7]


async def test_what_was_fetched_later_is_stored_once_and_passes_no_market_time(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)

    def tick(seconds: float, price: float, name: str):
        return tick_at(START + timedelta(seconds=seconds), price, 1.0, name)

    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick(0, 10, "a"), tick(30, 13, "d")]))
        later = [tick(0, 10, "a"), tick(10, 11, "b"), tick(10, 11, "b"), tick(70, 99, "e")]
        await desk.store(feeder.batch(later, backfill=True))
        await desk.store(feeder.batch(later, backfill=True))
        assert await stored_ticks(installation) == [(1, 10), (2, 13), (4, 11), (6, 99)]
        (series,) = await select(installation, "SELECT * FROM series")
        assert series["market_time"] == START + timedelta(seconds=30)
        first, second = await stored_bars(installation)
        assert [(bar["trade_count"], bar["revision"]) for bar in (first, second)] == [(3, 1), (1, 1)]
        # A quiet market closes its bars as well; a book does not.
        await desk.store(feeder.batch([], market_time=START + timedelta(seconds=60)))
        await desk.store(feeder.batch([tick(20, 12, "c")], backfill=True))
        await desk.store(feeder.batch([], book=START + timedelta(seconds=120), market_time=START))
        await desk.store(feeder.batch([tick(80, 98, "f")], backfill=True))
        await desk.store(
            feeder.batch([], book=START + timedelta(seconds=120), market_time=START + timedelta(seconds=120))
        )
        await desk.store(feeder.batch([tick(90, 97, "g")], backfill=True))
    first, second = await stored_bars(installation)
    assert [(bar["trade_count"], bar["revision"]) for bar in (first, second)] == [(4, 2), (3, 2)]
    assert await select(installation, "SELECT DISTINCT sequence FROM coverage") == [(feeder.sequence,)]


async def test_trades_without_ids_are_told_apart_by_what_they_say_and_stored_as_often_as_they_were_made(
    installation, redis
):
    await announce(installation, BTC)
    feeder = Feeder(redis)

    def tick(seconds: float, price: float):
        return tick_at(START + timedelta(seconds=seconds), price, 1.0, "")

    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick(0, 10), tick(0, 11)]))
        # The first is there, the others of its moment and of the next are not; twins are two.
        later = [tick(0, 10), tick(0, 12), tick(5, 13), tick(5, 14), tick(5, 14)]
        for _ in range(2):
            await desk.store(feeder.batch(later, backfill=True))
    assert sorted(price for _, price in await stored_ticks(installation)) == [10, 11, 12, 13, 14, 14]
    (bar,) = await stored_bars(installation)
    assert (bar["trade_count"], bar["volume"]) == (6, 6)


class Died(Exception):
    """The process is gone."""


class Dying:
    """A connection with which a process dies after so many statements."""

    def __init__(self, rows: Any, statements: int) -> None:
        self._rows, self.left = rows, statements

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._rows, name)
        if name not in ("execute", "fetch", "fetchval", "fetchrow", "copy_to_table"):
            return called

        async def and_die(*arguments: Any, **more: Any) -> Any:
            found = await called(*arguments, **more)
            self.left -= 1
            if self.left < 0:
                raise Died
            return found

        return and_die


async def test_no_bar_is_wrong_after_a_death_between_any_two_statements(installation, redis, monkeypatch):
    await announce(installation, BTC)
    feeder, model = Feeder(redis), Model()
    steps = [
        [Trade(0, 5, 1, "a"), Trade(61, 6, 1, "b"), Trade(7_200, 2, 1, "c")],
        [Trade(30, 9, 1, "d"), Trade(61, 6, 1, "b", backfill=True), Trade(62, 7, 1, "e", backfill=True)],
        [Trade(90_000, 4, 1, "f"), Trade(90_000 * 30, 4, 1, "g")],
    ]
    deaths = 0
    async with desk_of(installation, redis) as desk:
        transaction = desk._storer._database.transaction
        for trades in steps:
            batches = batches_of(feeder, trades)
            for statements in range(100):

                @asynccontextmanager
                async def dying(statements=statements, **more: Any):
                    async with transaction(**more) as rows:
                        yield Dying(rows, statements)

                with monkeypatch.context() as patch, suppress(Died):
                    patch.setattr(desk._storer._database, "transaction", dying)
                    await desk.store(*batches)
                    break
                deaths += 1
                assert await all_bars(installation, BTC) == model.bars
                await desk.resume(BTC)
            model.store(trades)
            assert await all_bars(installation, BTC) == model.bars
    assert deaths > 30
    assert len(await stored_ticks(installation)) == len(model.trades)
