"""Deleting imported bars: what is left is what ticks and other imports make, whoever dies, repeats or reads meanwhile."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1.marketdata_pb2 import (
    ADJUSTMENT_SPLITS,
    Candle,
    CorporateAction,
    DeleteCandlesRequest,
    DeleteCandlesResponse,
    PutCandlesRequest,
    PutCorporateActionRequest,
    Split,
    StreamCandlesResponse,
)
from tradeloom.marketdata.v1.marketdata_pb2_grpc import MarketDataServiceStub
from tradeloom.type.v1.decimal_pb2 import Decimal

from libs.bar_sizes import BAR_SIZES
from libs.ids import uuid7
from libs.mesh.wire import timestamp
from services.marketdata import deleting
from tests.examples import examples
from tests.marketdata.stand import (
    BTC,
    START,
    Caller,
    Feeder,
    announce,
    desk_of,
    header_of,
    next_of,
    parts_of,
    select,
    served,
    stored_bars,
    tick_at,
    until,
)
from tests.marketdata.test_calendar_bars import begin_of, week_of
from tests.marketdata.test_candles import page
from tests.marketdata.test_corrections import all_bars
from tests.marketdata.test_import_replicas import FIRST, again, minutes, replicas
from tests.marketdata.test_imports import HAND, bar, file_of
from tests.marketdata.test_instruments import reason_of, refused
from tests.marketdata.test_retention import retention_of
from tests.mesh import Installation, sign_in

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ABC = "HAND:ABC"


def deletion(
    instrument_id: str, start: datetime, end: datetime, bar_size: str = "1m", request_id: str | None = None, **more: Any
) -> DeleteCandlesRequest:
    return DeleteCandlesRequest(
        request_id=request_id or str(uuid7()),
        instrument_id=instrument_id,
        bar_size=bar_size,
        start_time=timestamp(start),
        end_time=timestamp(end),
        **more,
    )


async def delete(caller: Caller, *wanted: Any, **more: Any) -> tuple[int, int]:
    """Repeats it until all are gone: how many bars went, and how many of them stand there again."""
    request = deletion(*wanted, **more)
    while not (answer := await caller.ask("DeleteCandles", request)).done:
        pass
    assert await caller.ask("DeleteCandles", request) == answer
    return answer.deleted_count, answer.remade_count


def info_of(error: Any) -> dict[str, str]:
    """The metadata of its reason."""
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    assert status
    assert any(detail.Unpack(info) for detail in status.details)
    return dict(info.metadata)


def lines(opens: Sequence[datetime], price: int = 50) -> bytes:
    return file_of(*(f"{time:%Y-%m-%d %H:%M:%S},{price},{price + 2},{price - 1},{price + 1},7" for time in opens))


async def values(installation: Installation, instrument_id: str) -> dict[tuple[str, datetime], tuple]:
    """Of all sizes, without revisions."""
    return {key: row[:-1] for key, row in (await all_bars(installation, instrument_id)).items()}


async def opens(installation: Installation, instrument_id: str, bar_size: str = "1m") -> list[int]:
    """In minutes since START."""
    return [(row["open_time"] - START) // MINUTE for row in await stored_bars(installation, instrument_id, bar_size)]


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (timedelta(0), MINUTE, [1, 2, 3]),
        (timedelta(microseconds=1), MINUTE, [0, 1, 2, 3]),
        (timedelta(0), MINUTE + timedelta(microseconds=1), [2, 3]),
        (MINUTE, 3 * MINUTE, [0, 3]),
        (-DAY, timedelta(0), [0, 1, 2, 3]),
        (3 * MINUTE, 365 * DAY, [0, 1, 2]),
        (-365 * DAY, 365 * DAY, []),
    ],
)
async def test_bars_go_that_open_at_the_start_or_after_it_and_before_the_end(installation, caller, start, end, left):
    await caller.put(HAND)
    await caller.load(HAND, file_of(*(bar(minute) for minute in range(4))))
    asked = deletion(HAND, START + start, START + end, validate_only=True)
    assert await caller.ask("DeleteCandles", asked) == DeleteCandlesResponse(deleted_count=4 - len(left))
    assert await opens(installation, HAND) == [0, 1, 2, 3]
    assert await delete(caller, HAND, START + start, START + end) == (4 - len(left), 0)
    assert await opens(installation, HAND) == left
    for size in list(BAR_SIZES)[2:]:
        assert [row["volume"] for row in await stored_bars(installation, HAND, size)] == [5 * len(left)] * bool(left)


@pytest.mark.examples
@pytest.mark.parametrize(
    ("second_kept_days", "sizes"),
    [("0", ["1s", "1m", "5m", "1h", "1d"]), pytest.param("30", ["1m", "5m", "1h", "1d"], marks=pytest.mark.long)],
)
async def test_what_is_left_is_as_if_the_deleted_bars_had_never_been_imported(
    installation, redis, monkeypatch, second_kept_days, sizes
):
    """Whatever was imported at whichever sizes over whichever ticks, and however few go at once; also without seconds."""
    ids = [f"SIM:D{number}" for number in range(100)]
    await announce(installation, *ids)
    unused, loop = iter(ids), asyncio.get_running_loop()

    async def play(
        ticks: list[int], imports: list[tuple[str, int]], span: tuple[int, int], size: str, at_once: tuple[int, int]
    ) -> None:
        monkeypatch.setattr(deleting, "BARS_AT_ONCE", at_once[0])
        monkeypatch.setattr(deleting, "TICKS_AT_ONCE", at_once[1])
        start, end = (START + each * MINUTE for each in span)
        one, other = next(unused), next(unused)
        for instrument_id in (one, other):
            batch = Feeder(redis, instrument_id).batch(
                [tick_at(START + MINUTE * at / 2, 10.0 + at % 7, trade_id=str(100 - at)) for at in sorted(ticks)]
            )
            await desk.store(batch)
        went = set()
        for number, (name, at) in enumerate(imports):
            time = START + at * MINUTE
            opened = time - (time - BAR_SIZES[name].origin) % BAR_SIZES[name].length
            is_deleted = name == size and start <= opened < end
            for instrument_id in (one,) if is_deleted else (one, other):
                await caller.load(instrument_id, lines([opened], 100 + number), bar_size=name)
            if is_deleted:
                went.add(opened)
        revisions = {row["open_time"]: row["revision"] for row in await stored_bars(installation, one, size)}
        deleted, remade = await delete(caller, one, start, end, size)
        assert deleted == len(went)
        assert await values(installation, one) == await values(installation, other)
        left = {row["open_time"]: row["revision"] for row in await stored_bars(installation, one, size)}
        assert remade == len(went & left.keys())
        assert all(left[time] == revisions[time] + 1 for time in went & left.keys())

    minute, some_sizes = st.integers(min_value=0, max_value=40), st.sampled_from(sizes)

    @examples(20, deadline=None)
    @given(
        st.lists(minute, min_size=1, max_size=8),
        st.lists(st.tuples(some_sizes, minute), min_size=1, max_size=4),
        st.tuples(st.integers(-700, 20), st.integers(21, 60)),
        some_sizes,
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
    )
    def any_deletion(ticks, imports, span, size, at_once):
        asyncio.run_coroutine_threadsafe(play(ticks, imports, span, size, at_once), loop).result(60)

    async with served(installation, second_kept_days=second_kept_days) as caller, desk_of(installation, redis) as desk:
        await asyncio.to_thread(any_deletion)


async def test_bars_of_ticks_and_of_a_venues_record_stay_and_without_a_feed_all_imported_ones_go(installation, redis):
    await announce(installation, BTC)
    async with installation.serve("marketdata") as service:
        caller, feeds = Caller(service.stub(MarketDataServiceStub)), service.stub(MarketDataServiceStub, caller="feeds")
        async with desk_of(installation, redis) as desk:
            await desk.store(Feeder(redis).batch([tick_at(START, 10.0)]))
        record = [
            Candle(open_time=timestamp(START + at * MINUTE), open=10, high=12, low=9, close=11, volume=5)
            for at in (1, 2)
        ]
        await feeds.PutCandles(PutCandlesRequest(instrument_id=BTC, bar_size="1m", candles=record))
        await caller.load(BTC, file_of(bar(2, 10.5), bar(3)))
        assert await delete(caller, BTC, START, START + HOUR) == (2, 0)
        assert await opens(installation, BTC) == [0, 1]
        # As bars are that were imported before anybody noted by whom.
        await caller.put(HAND)
        await caller.load(HAND, file_of(bar(0), bar(1)))
        await select(installation, "UPDATE market_data_ohlcv_1m SET by_operator = false WHERE instrument_id = $1", HAND)
        assert await delete(caller, HAND, START, START + HOUR) == (2, 0)
        assert await all_bars(installation, HAND) == {}


async def test_ticks_that_came_under_an_imported_bar_and_come_later_make_what_takes_its_place(
    installation, caller, redis
):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await caller.load(BTC, file_of(bar(0)))
        await desk.store(feeder.batch([tick_at(START + timedelta(seconds=each), 50.0 + each) for each in (9, 2, 5)]))
        assert [row["imported"] for row in await stored_bars(installation)] == [True]
        assert await delete(caller, BTC, START, START + MINUTE) == (1, 1)
        (made,) = await stored_bars(installation)
        assert [made[name] for name in ("open", "high", "low", "close", "volume", "trade_count", "revision")] == [
            *(52, 59, 52, 59, 3, 3, 2)
        ]
        assert not made["imported"]
        # Its first and last tick are known: others change it as they do any bar.
        await desk.store(feeder.batch([tick_at(START + timedelta(seconds=each), 70.0 + each) for each in (1, 30)]))
        (made,) = await stored_bars(installation)
        assert (made["open"], made["close"], made["trade_count"]) == (71, 100, 5)
        (hour,) = await stored_bars(installation, BTC, "1h")
        assert (hour["open"], hour["close"], hour["trade_count"]) == (71, 100, 5)


async def test_where_ticks_are_dropped_as_well_nothing_takes_the_place_and_longer_bars_of_dropped_ones_stay(
    installation, caller, redis
):
    await announce(installation, BTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(START, 50.0)]))
    await caller.load(BTC, file_of(bar(0), bar(1)))
    async with retention_of(installation, ticks=30) as turn:
        assert await turn()
    assert await delete(caller, BTC, START, START + MINUTE) == (1, 0)
    assert await opens(installation, BTC) == [1]
    async with retention_of(installation, minutes=30) as turn:
        assert await turn()
    assert await delete(caller, BTC, START, START + HOUR) == (0, 0)
    assert [row["volume"] for row in await stored_bars(installation, BTC, "5m")] == [5]


@pytest.mark.parametrize("calendar", ["XNYS", "CMES"])
async def test_days_and_weeks_of_a_calendar_follow_what_is_left(installation, caller, calendar):
    await caller.put(ABC, calendar=calendar)
    days = [date(2025, 1, 13) + each * DAY for each in (0, 1, 2, 3, 7, 8)]
    days = [day for day in days if day != date(2025, 1, 20)]
    begins = [begin_of(calendar, day) for day in days]
    hours = lines([begins[1] + HOUR, begins[4] + HOUR], 30)
    await caller.load(ABC, hours, bar_size="1h")
    await caller.load(ABC, file_of(*(f"{day} 00:00:00,10,{20 + day.day},9,11,5" for day in days)), bar_size="1d")
    assert [row["high"] for row in await stored_bars(installation, ABC, "1w")] == [36, 41]
    # The second day is what its hour makes, the first and third are gone; half-open where the fourth begins.
    assert await delete(caller, ABC, begins[0], begins[3], "1d") == (3, 1)
    found = await stored_bars(installation, ABC, "1d")
    assert [(row["open_time"], row["high"], row["revision"]) for row in found] == [
        (begins[1], 32, 3),
        (begins[3], 36, 1),
        (begins[4], 41, 1),
    ]
    assert [(row["open_time"], row["high"]) for row in await stored_bars(installation, ABC, "1w")] == [
        (begin_of(calendar, week_of(calendar, days[0])[0]), 36),
        (begin_of(calendar, week_of(calendar, days[4])[0]), 41),
    ]
    assert await delete(caller, ABC, begins[0], begins[4] + DAY, "1d") == (2, 1)
    assert await delete(caller, ABC, begins[0], begins[4] + DAY, "1h") == (2, 0)
    assert await all_bars(installation, ABC) == {}


async def test_a_day_without_a_session_goes_and_leaves_the_trading_day_around_it(installation, caller, monkeypatch):
    monkeypatch.setattr(deleting, "BARS_AT_ONCE", 1)
    days = [date(2024, 11, 27) + each * DAY for each in range(3)]
    thanksgiving = datetime(2024, 11, 28, tzinfo=UTC)
    for instrument_id in (HAND, ABC):
        await caller.put(instrument_id)
        content = file_of(*(f"{day} 00:00:00,10,12,9,11,{day.day}" for day in days))
        await caller.load(instrument_id, content, bar_size="1d")
        await caller.put(instrument_id, calendar="XNYS")
    await until(partial(select, installation, "SELECT FROM series WHERE calendar = 'XNYS' HAVING count(*) = 2"))
    assert await delete(caller, ABC, thanksgiving, thanksgiving + HOUR, "1d") == (1, 0)
    assert [row["volume"] for row in await stored_bars(installation, ABC, "1d")] == [27, 29]
    assert [row["volume"] for row in await stored_bars(installation, ABC, "1w")] == [56]
    # One after the other also where it opens before the day before it has ended.
    assert await delete(caller, HAND, thanksgiving - DAY, thanksgiving + 2 * DAY, "1d") == (3, 0)
    assert await all_bars(installation, HAND) == {}


class Follower:
    """What a reader holds who keeps to the contract: open_time in minutes since START, by it the close."""

    def __init__(self) -> None:
        self.held: dict[int, float] = {}
        self.revisions: dict[int, int] = {}
        self.cursor = ""

    def take(self, message: StreamCandlesResponse) -> None:
        self.cursor = message.cursor
        if message.HasField("deletion"):
            start, end = (
                (each.ToDatetime(UTC) - START) / MINUTE
                for each in (message.deletion.start_time, message.deletion.end_time)
            )
            for held in (self.held, self.revisions):
                for at in [at for at in held if start <= at < end]:
                    del held[at]
        for candle in message.candles:
            at = (candle.open_time.ToDatetime(UTC) - START) // MINUTE
            assert candle.revision >= self.revisions.get(at, 0)
            self.held[at], self.revisions[at] = candle.close, candle.revision

    async def until(self, stream: Any, held: Mapping[int, float]) -> None:
        async with asyncio.timeout(15):
            while self.held != held:
                self.take(await anext(aiter(stream)))


async def test_who_follows_learns_of_what_is_gone_and_what_is_others_live_and_resuming(
    installation, caller, redis, monkeypatch
):
    monkeypatch.setattr(deleting, "BARS_AT_ONCE", 3)
    monkeypatch.setattr("services.marketdata.candle_stream.CANDLES_MAX", 2)
    await announce(installation, BTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(START + at * MINUTE, 100.0 + at) for at in (1, 4, 6, 20)]))
    await caller.load(BTC, file_of(*(bar(at) for at in (0, 1, 2, 3, 5, 7, 8))))
    streams = {size: caller.candles(BTC, bar_size=size) for size in ("1m", "5m")}
    live = {size: Follower() for size in streams}
    later = {size: Follower() for size in streams}
    for size, stream in streams.items():
        first = await next_of(stream)
        live[size].take(first)
        later[size].take(first)
    assert live["1m"].held == {0: 11, 1: 11, 2: 11, 3: 11, 4: 104, 5: 11, 6: 106, 7: 11, 8: 11, 20: 120}
    assert await delete(caller, BTC, START, START + 6 * MINUTE) == (5, 1)
    left = {1: 101, 4: 104, 6: 106, 7: 11, 8: 11, 20: 120}
    fives = {0: 104, 5: 11, 20: 120}
    for follower in (live, later):
        again = (
            streams
            if follower is live
            else {size: caller.candles(BTC, bar_size=size, after_cursor=follower[size].cursor) for size in streams}
        )
        await follower["1m"].until(again["1m"], left)
        await follower["5m"].until(again["5m"], fives)
    assert live["1m"].revisions[1] == 3
    # A longer bar that is gone as well, and one that comes again after it was.
    assert await delete(caller, BTC, START, START + HOUR) == (2, 0)
    await live["1m"].until(streams["1m"], {1: 101, 4: 104, 6: 106, 20: 120})
    await live["5m"].until(streams["5m"], {0: 104, 5: 106, 20: 120})
    await caller.load(BTC, file_of(bar(12)))
    await live["5m"].until(streams["5m"], {0: 104, 5: 106, 10: 11, 20: 120})
    await delete(caller, BTC, START, START + HOUR)
    await live["5m"].until(streams["5m"], {0: 104, 5: 106, 20: 120})
    await caller.load(BTC, file_of(bar(12, 11.5)))
    await live["5m"].until(streams["5m"], {0: 104, 5: 106, 10: 11.5, 20: 120})
    resumed = caller.candles(BTC, after_cursor=later["1m"].cursor)
    await later["1m"].until(resumed, {1: 101, 4: 104, 6: 106, 12: 11.5, 20: 120})


async def test_a_repeat_ends_what_a_kill_between_two_transactions_has_left_and_another_replica_may_too(installation):
    content = minutes(60_000)
    request = deletion(HAND, FIRST, FIRST + 59_990 * MINUTE)
    async with replicas(installation, 2) as [(process, caller), (_, other)]:
        await caller.load(HAND, content)
        call = asyncio.ensure_future(caller.ask("DeleteCandles", request))
        await until(partial(select, installation, "SELECT FROM deletions WHERE deleted_count > 0"))
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        [stopped] = await select(
            installation,
            """
            SELECT deleted_count, done_time, (SELECT count(*) FROM market_data_ohlcv_1m) AS left FROM deletions
            """,
        )
        assert (stopped["deleted_count"], stopped["done_time"]) == (60_000 - stopped["left"], None)
        assert 10 < stopped["left"] < 60_000
        # Two at once, from either replica.
        successor = await again(process, caller)
        async with asyncio.timeout(60):
            while True:
                answers = await asyncio.gather(*(each.ask("DeleteCandles", request) for each in (successor, other)))
                if all(answer.done for answer in answers):
                    break
        assert list(answers) == [DeleteCandlesResponse(deleted_count=59_990, done=True)] * 2
        assert len(await stored_bars(installation, HAND)) == 10
        (day,) = await stored_bars(installation, HAND, "1d")
        assert day["volume"] == sum(number % 13 + 0.25 for number in range(59_990, 60_000))


async def test_it_waits_for_no_import_and_deletes_nothing_beside_one(installation, caller):
    await caller.put(HAND)
    content = file_of(bar(0), bar(1))
    await caller.load(HAND, content)
    header = header_of(HAND, file_of(bar(2)))
    # Of which bytes are missing, and nobody knows whether they come.
    await caller.stub.ImportCandles(parts_of(header, file_of(bar(2))[:60]), metadata=caller.metadata, timeout=60)
    assert await delete(caller, HAND, START, START + MINUTE) == (1, 0)
    for state in ("checking", "storing"):
        # As it stands while some other process works on it.
        await select(
            installation, "UPDATE imports SET state = $1, lane = 99 WHERE request_id = $2", state, header.request_id
        )
        for metadata, named in ((None, header.request_id), (sign_in(roles=["user", "operator"]), "")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.ask("DeleteCandles", deletion(HAND, START, START + HOUR), metadata)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason_of(caught.value) == "IMPORT_UNDER_WAY"
            assert info_of(caught.value) == {"instrument_id": HAND, "import_request_id": named}
    assert await opens(installation, HAND) == [1]
    assert not await select(installation, "SELECT FROM deletions WHERE done_time IS NULL")


async def test_what_was_imported_since_it_began_is_left(installation, caller, monkeypatch):
    await caller.put(HAND)
    content = file_of(*(bar(minute) for minute in range(6)))
    await caller.load(HAND, content)
    monkeypatch.setattr(deleting, "BARS_AT_ONCE", 2)
    monkeypatch.setattr(deleting, "ANSWER_SECONDS", 0.0)
    request = deletion(HAND, START, START + HOUR)
    assert await caller.ask("DeleteCandles", request) == DeleteCandlesResponse(deleted_count=2)
    # The right file, which says of some bars what the wrong one did.
    await caller.load(HAND, file_of(bar(4)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.ask("DeleteCandles", request)
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.ABORTED, "DELETION_OVERTAKEN")
    assert info_of(caught.value) == {"deleted_count": "2"}
    assert await opens(installation, HAND) == [2, 3, 4, 5]
    assert await delete(caller, HAND, START, START + 4 * MINUTE) == (2, 0)


async def test_it_is_for_operators_and_a_request_id_is_each_ones_own(installation, caller):
    await caller.put(HAND)
    await caller.load(HAND, file_of(bar(0), bar(1)))
    request = deletion(HAND, START, START + MINUTE, request_id="one")
    assert await refused(caller.ask("DeleteCandles", request, sign_in(roles=["user"]))) == "NOT_PERMITTED"
    assert await refused(caller.ask("DeleteCandles", deletion(ABC, START, START + MINUTE))) == "INSTRUMENT_NOT_FOUND"
    assert await refused(caller.ask("DeleteCandles", deletion(HAND, START, START))) == "INVALID_FIELDS"
    assert (await caller.ask("DeleteCandles", request)).deleted_count == 1
    other = deletion(HAND, START, START + HOUR, request_id="one")
    assert await refused(caller.ask("DeleteCandles", other)) == "REQUEST_ID_REUSED"
    theirs = sign_in(roles=["user", "operator"])
    assert (await caller.ask("DeleteCandles", other, theirs)).deleted_count == 1
    # What was imported again stays when it is repeated.
    await caller.load(HAND, file_of(bar(0)))
    assert (await caller.ask("DeleteCandles", request)) == DeleteCandlesResponse(deleted_count=1, done=True)
    assert await opens(installation, HAND) == [0]


async def test_an_adjusted_page_is_made_of_what_is_left(caller, installation):
    await caller.put(HAND)
    await caller.load(HAND, file_of(bar(0), bar(1)))
    action = CorporateAction(
        instrument_id=HAND,
        ex_date="2026-03-03",
        split=Split(new_shares=Decimal(value="2"), old_shares=Decimal(value="1")),
        known_time=timestamp(START),
    )
    await caller.ask("PutCorporateAction", PutCorporateActionRequest(request_id="split", action=action))
    await caller.load(HAND, file_of("2026-03-03 10:00:00,10,12,9,11,5"))
    for left in ([5.5, 5.5, 11], [5.5, 11]):
        adjusted = await page(caller, HAND, bar_size="1m", adjustment=ADJUSTMENT_SPLITS)
        assert [candle.close for candle in adjusted.candles] == left
        await delete(caller, HAND, START, START + MINUTE)


async def test_what_is_known_of_old_deletions_is_forgotten(installation):
    async with served(installation) as caller:
        await caller.put(HAND)
        for _ in range(2):
            await caller.load(HAND, file_of(bar(0)))
            await delete(caller, HAND, START, START + HOUR)
    old = "UPDATE deletions SET create_time = now() - interval '31 days' WHERE request_id = $1"
    await select(installation, old, (await select(installation, "SELECT min(request_id) FROM deletions"))[0][0])
    async with served(installation):
        await until(partial(select, installation, "SELECT FROM deletions HAVING count(*) = 1"))


async def test_the_worker_may_delete_bars_also_where_tables_become_hypertables(installation):
    granted = (
        "SELECT pg_get_functiondef('convert_to_hypertable'::regproc) LIKE '%ELSE '', UPDATE, DELETE'' END%' AS is_so"
    )
    assert (await select(installation, granted))[0]["is_so"]
