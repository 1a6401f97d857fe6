"""Live ticks through the real port: acknowledgement, resuming over every seam, slow readers, quiet streams."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest

from libs.bus import feed
from libs.bus.feed import Cursor
from libs.errors import CursorInvalid
from services.marketdata import history
from services.marketdata.history import History
from services.marketdata.hub import reading_ticks
from services.marketdata.tick_stream import TickStreams, cursors_from
from tests.marketdata.stand import (
    BTC,
    ETH,
    START,
    WAIT_SECONDS,
    Feeder,
    announce,
    assert_follow_on,
    next_of,
    served,
    stored_through,
    tick_at,
    ticks_of,
    ticks_until,
    until,
)
from tests.marketdata.test_instruments import reason_of


def ticks(count: int, start: int = 0):
    return [tick_at(START + timedelta(milliseconds=start + number), 100 + number % 7) for number in range(count)]


async def feed_many(feeder: Feeder, batches: int, size: int = 5) -> None:
    await feeder.send([feeder.batch(ticks(size, start=feeder.sequence)) for _ in range(batches)])


async def test_a_stream_begins_with_quotes_and_cursors_and_goes_on_from_there(installation, caller, redis):
    await announce(installation, BTC, ETH)
    feeder = Feeder(redis)
    await feed_many(feeder, 3)
    before = feeder.cursor
    stream = caller.ticks(BTC, ETH)
    first = (await next_of(stream)).acknowledgement
    assert list(first.cursors) == [before, f"{ETH}@0-0"]
    assert [quote.cursor for quote in first.quotes] == [before]
    assert first.heartbeat_seconds == 5
    other = Feeder(redis, ETH)
    await feed_many(feeder, 2)
    await feed_many(other, 1)
    got = await ticks_until(stream, other.cursor)
    assert ticks_of([batch for batch in got if batch.instrument_id == ETH]) == other.sent_ticks
    await feed_many(feeder, 1)
    got += await ticks_until(stream, feeder.cursor)
    live = [batch for batch in got if batch.instrument_id == BTC]
    assert live == feeder.sent[3:]
    assert_follow_on(live, before)


async def test_an_unknown_instrument_and_a_strange_cursor_have_their_reasons(installation, caller):
    await announce(installation, BTC)
    for after, ids, reason in [
        ((), ["SIM:NONE"], "INSTRUMENT_NOT_FOUND"),
        (("nonsense",), [BTC], "CURSOR_INVALID"),
        ((f"{ETH}@1-1",), [BTC], "CURSOR_INVALID"),
        ((f"{BTC}@1-1", f"{BTC}@1-2"), [BTC], "CURSOR_INVALID"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await next_of(caller.ticks(*ids, after=after))
        assert reason_of(caught.value) == reason


async def test_a_stream_resumes_after_a_restart_without_a_gap_or_a_repeat(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with served(installation) as caller:
        stream = caller.ticks(BTC)
        await next_of(stream)
        await feed_many(feeder, 4)
        got = await ticks_until(stream, feeder.cursor)
    await feed_many(feeder, 3)
    feeder.epoch = 2  # another feeder took over meanwhile
    await feed_many(feeder, 3)
    async with served(installation) as caller:
        stream = caller.ticks(BTC, after=[got[-1].cursor])
        assert list((await next_of(stream)).acknowledgement.cursors) == [got[-1].cursor]
        got += await ticks_until(stream, feeder.cursor)
        await feed_many(feeder, 2)
        got += await ticks_until(stream, feeder.cursor)
    assert got == feeder.sent


async def test_two_hundred_instruments_are_followed_and_resumed_by_one_stream_and_not_one_more(installation, redis):
    names = [f"SIM:M{number}" for number in range(200)]
    await announce(installation, *names)
    feeders = {name: Feeder(redis, name) for name in names}

    async def feed_all() -> None:
        for feeder in feeders.values():
            await feed_many(feeder, 2)

    async def read_all(stream: Any, after: Sequence[str]) -> None:
        """Up to the newest of each, from where it was before."""
        reached, left = dict(zip(names, after, strict=True)), {feeder.cursor for feeder in feeders.values()}
        async with asyncio.timeout(WAIT_SECONDS):
            while left:
                for batch in (await anext(aiter(stream))).batches:
                    assert batch.previous_cursor == reached[batch.instrument_id]
                    reached[batch.instrument_id] = batch.cursor
                    left.discard(batch.cursor)

    await feed_all()
    async with served(installation) as caller:
        stream = caller.ticks(*names)
        first = (await next_of(stream)).acknowledgement
        assert list(first.cursors) == [feeder.cursor for feeder in feeders.values()]
        assert len(first.quotes) == 200
        await feed_all()
        await read_all(stream, first.cursors)
        cursors = [feeder.cursor for feeder in feeders.values()]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await next_of(caller.ticks(*names, "SIM:ONEMORE"))
        assert reason_of(refused.value) == "INVALID_FIELDS"
    await feed_all()
    async with served(installation) as caller:
        stream = caller.ticks(*names, after=cursors)
        await next_of(stream)
        await feed_all()
        await read_all(stream, cursors)


def test_every_wrong_cursor_of_a_request_is_named():
    with pytest.raises(CursorInvalid) as refused:
        cursors_from(["nonsense", f"{BTC}@1-1", f"{ETH}@1-1", f"{BTC}@1-2"], [BTC])
    assert refused.value.violations == {
        "after_cursors[0]": "is not a cursor of this stream",
        "after_cursors[2]": "is of an instrument that is not asked for",
        "after_cursors[3]": "is the second of its instrument",
    }


async def test_a_cursor_inside_a_batch_brings_the_rest_of_it(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.append(ticks(10))
    await feed_many(feeder, 1)
    cursor = f"{BTC}@1-7"
    stream = caller.ticks(BTC, after=[cursor])
    await next_of(stream)
    got = await ticks_until(stream, feeder.cursor)
    assert got[0].first_sequence == 8
    assert ticks_of(got) == feeder.sent_ticks[7:]
    assert_follow_on(got, cursor)


@pytest.mark.parametrize("page_ticks", [history.PAGE_TICKS, 37])
async def test_beyond_redis_a_stream_resumes_from_postgres_and_joins_the_live_feed(
    installation, caller, redis, monkeypatch, page_ticks
):
    monkeypatch.setattr(history, "PAGE_TICKS", page_ticks)
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feed_many(feeder, 40, size=30)
    await feeder.append([], book=START)  # takes a sequence and is not stored
    await feed_many(feeder, 40, size=30)
    await stored_through(installation, feeder)
    await redis.xtrim(f"ticks:{BTC}", minid=feeder.sent[70].cursor.split("@")[1], approximate=False)
    cursor = f"{BTC}@1-17"
    stream = caller.ticks(BTC, after=[cursor])
    await next_of(stream)
    got = await ticks_until(stream, feeder.cursor)
    await feed_many(feeder, 3)
    got += await ticks_until(stream, feeder.cursor)
    assert ticks_of(got) == feeder.sent_ticks[17:]
    assert_follow_on(got, cursor)
    assert len(got[0].ticks) == min(page_ticks, 500)


async def test_who_catches_up_waits_between_pages_and_live_readers_do_not(installation, redis, monkeypatch):
    monkeypatch.setattr(history, "BYTES_PER_SECOND_MAX", 1)  # a page takes minutes
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feed_many(feeder, 20)
    async with streams_of(installation, redis, reader_bytes_max=1_000_000) as streams:
        late = streams.stream([BTC], {BTC: Cursor(BTC, 0, 0)}, conflate=False)
        live = streams.stream([BTC], {}, conflate=False)
        for stream in (late, live):
            await anext(stream)
        page = feed_batches(await anext(late))
        assert page == [batch.cursor for batch in feeder.sent[: len(page)]] != [batch.cursor for batch in feeder.sent]
        waiting = asyncio.ensure_future(anext(late))
        taking = await joined(streams, live, BTC)
        for _ in range(50):
            await feed_many(feeder, 1)
            assert feed_batches(await asyncio.wait_for(taking, WAIT_SECONDS)) == [feeder.cursor]
            taking = asyncio.create_task(anext(live))
        assert not waiting.done()
        for task in (waiting, taking):
            task.cancel()
        await asyncio.gather(waiting, taking, return_exceptions=True)
        for stream in (late, live):
            await stream.aclose()


async def test_what_is_stored_nowhere_is_announced_as_a_gap(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feed_many(feeder, 5)
    early = f"{BTC}@1-5"
    await redis.xtrim(f"ticks:{BTC}", maxlen=2, approximate=False)
    async with served(installation) as caller:
        stream = caller.ticks(BTC, after=[early])
        await next_of(stream)
        gap = (await next_of(stream)).gap
        assert (gap.instrument_id, gap.after_cursor, gap.resume_cursor) == (BTC, early, f"{BTC}@1-15")
        assert await ticks_until(stream, feeder.cursor) == feeder.sent[3:]
        # After Redis has lost everything, too: what comes next begins after a gap.
        await stored_through(installation, feeder)
        await redis.delete(f"ticks:{BTC}")
        feeder.epoch, feeder.sequence = 2, feeder.sequence + 10
        await feeder.append(ticks(3))
        gap = (await next_of(stream)).gap
        assert gap.resume_cursor.endswith(f"-{feeder.sequence - 3}")
        assert (await next_of(stream)).batches[0] == feeder.sent[-1]


async def test_a_cursor_that_no_feed_has_reached_does_not_wait_for_ever(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feed_many(feeder, 2)
    stream = caller.ticks(BTC, after=[f"{BTC}@9-999"])
    honest = caller.ticks(BTC, after=[f"{BTC}@0-5"])
    await next_of(stream)
    await next_of(honest)
    assert (await next_of(stream)).gap.resume_cursor == feeder.cursor
    assert ticks_of(await ticks_until(honest, feeder.cursor)) == feeder.sent_ticks[5:]
    await feed_many(feeder, 1)
    for each in (stream, honest):
        assert (await ticks_until(each, feeder.cursor)) == feeder.sent[-1:]


async def test_a_quiet_stream_gets_heartbeats_with_its_cursors(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with served(installation, stream_heartbeat_seconds="0.2") as caller:
        stream = caller.ticks(BTC)
        await next_of(stream)
        for _ in range(2):
            assert list((await next_of(stream)).heartbeat.cursors) == [f"{BTC}@0-0"]
        await feed_many(feeder, 1)
        await ticks_until(stream, feeder.cursor)
        started = time.monotonic()
        beat = (await next_of(stream)).heartbeat
        assert list(beat.cursors) == [feeder.cursor]
        assert time.monotonic() - started < WAIT_SECONDS / 2


@asynccontextmanager
async def streams_of(installation, redis, **more):
    """The streams without a port, where a test can choose not to take what is offered."""
    from libs.store.database import open_database

    async with open_database(installation.url("marketdata_rpc"), 2) as database, reading_ticks(redis) as hub:
        usual = {"heartbeat_seconds": 30.0, "reader_bytes_max": 2_000, "message_bytes": 1_000}
        yield TickStreams(hub, History(database, redis, message_bytes=1_000), redis, **usual | more)


async def joined(streams: TickStreams, stream, *instrument_ids: str) -> asyncio.Task:
    """Waits until the stream has joined the live feed; its next message, which nobody takes but this task."""
    taking = asyncio.create_task(anext(stream))

    async def attached() -> bool:
        return all(instrument_id in streams._hub._channels for instrument_id in instrument_ids)

    await until(attached)
    return taking


async def test_a_slow_reader_is_conflated_and_told_while_a_fast_one_gets_everything(installation, redis):
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    async with streams_of(installation, redis) as streams:
        slow = streams.stream([BTC, ETH], {}, conflate=True)
        fast = streams.stream([BTC], {}, conflate=False)
        await anext(slow)
        await anext(fast)
        taking = await joined(streams, slow, BTC, ETH)
        got: Any = b""
        for _ in range(100):
            await feed_many(feeder, 1)
            await feed_many(other, 1)
            while feed_batches(got)[-1:] != [feeder.cursor]:
                got += await asyncio.wait_for(anext(fast), WAIT_SECONDS)
        assert feed_batches(got) == [batch.cursor for batch in feeder.sent]

        seen: dict[str, list] = {BTC: [], ETH: []}
        skipped = {BTC: 0, ETH: 0}
        ends = {BTC: feeder.cursor, ETH: other.cursor}
        told = 0
        message = await taking
        while True:
            if isinstance(message, bytes):
                for batch in batches_of(message):
                    seen[batch.instrument_id].append(batch.cursor)
            else:
                conflation = message.conflation
                told += 1
                last = seen[conflation.instrument_id][-1:] or [f"{conflation.instrument_id}@0-0"]
                assert [conflation.after_cursor] == last
                skipped[conflation.instrument_id] += conflation.skipped_batches
            if all(seen[key][-1:] == [end] for key, end in ends.items()):
                break
            message = await asyncio.wait_for(anext(slow), WAIT_SECONDS)
        assert told
        for instrument_id, cursors in seen.items():
            assert len(cursors) + skipped[instrument_id] == 100
        await slow.aclose()
        await fast.aclose()


async def test_a_conflated_reader_has_the_newest_live_tick_whatever_came_after_it(installation, redis):
    await announce(installation, BTC, ETH)
    booked, filled = Feeder(redis), Feeder(redis, ETH)
    async with streams_of(installation, redis) as streams:
        slow = streams.stream([BTC, ETH], {}, conflate=True)
        await anext(slow)
        taking = await joined(streams, slow, BTC, ETH)
        for feeder in (booked, filled):
            await feed_many(feeder, 50)
            await feeder.append([tick_at(START + timedelta(hours=1), 777.0)])
        for second in range(3):
            await booked.append([], book=START + timedelta(hours=1, seconds=second))
        await filled.append([], book=START + timedelta(hours=1))
        await filled.append(ticks(3), backfill=True)

        async def offered() -> bool:
            return all(
                str(streams._hub._channels[each.instrument_id].position) == each.cursor for each in (booked, filled)
            )

        await until(offered)
        got, told = {BTC: [], ETH: []}, {BTC: 0, ETH: 0}
        is_told: set[str] = set()
        last, ends = {BTC: f"{BTC}@0-0", ETH: f"{ETH}@0-0"}, {BTC: booked.cursor, ETH: filled.cursor}
        message = await taking
        while True:
            if isinstance(message, bytes):
                for batch in batches_of(message):
                    if batch.instrument_id not in is_told:
                        assert batch.previous_cursor == last[batch.instrument_id]
                    is_told.discard(batch.instrument_id)
                    got[batch.instrument_id].append(batch)
                    last[batch.instrument_id] = batch.cursor
            else:
                assert message.conflation.after_cursor == last[message.conflation.instrument_id]
                told[message.conflation.instrument_id] += message.conflation.skipped_batches
                is_told.add(message.conflation.instrument_id)
            if last == ends:
                break
            message = await asyncio.wait_for(anext(slow), WAIT_SECONDS)
        for instrument_id, batches in got.items():
            assert [tick.price for tick in ticks_of(batches)][-1] == 777.0
            assert not any(batch.backfill for batch in batches)
            with_ticks = [batch for batch in batches if batch.ticks or batch.HasField("book")]
            assert len(with_ticks) + told[instrument_id] == {BTC: 54, ETH: 53}[instrument_id]
        assert got[BTC][-1].HasField("book")
        await slow.aclose()


def batches_of(message: Any):
    from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse

    return StreamTicksResponse.FromString(message).batches


def feed_batches(message: Any) -> list[str]:
    return [batch.cursor for batch in batches_of(message)]


async def test_a_slow_reader_without_conflation_is_ended_and_resumes_by_cursor(installation, redis):
    from services.marketdata.domain import ReaderTooSlow

    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with streams_of(installation, redis) as streams:
        slow = streams.stream([BTC], {}, conflate=False)
        await anext(slow)
        taking = await joined(streams, slow, BTC)
        await feed_many(feeder, 1)
        got = feed_batches(await taking)
        fast = streams.stream([BTC], {BTC: Cursor(BTC, 1, 5)}, conflate=False)
        await anext(fast)
        beside: Any = b""
        for _ in range(50):
            await feed_many(feeder, 1)
            while feed_batches(beside)[-1:] != [feeder.cursor]:
                beside += await asyncio.wait_for(anext(fast), WAIT_SECONDS)
        with pytest.raises(ReaderTooSlow):
            while True:
                got += feed_batches(await asyncio.wait_for(anext(slow), WAIT_SECONDS))
        resumed = streams.stream([BTC], {BTC: feed.parse_cursor(got[-1])}, conflate=False)
        await anext(resumed)
        while got[-1] != feeder.cursor:
            got += feed_batches(await asyncio.wait_for(anext(resumed), WAIT_SECONDS))
        assert got == [batch.cursor for batch in feeder.sent]
        for stream in (fast, resumed):
            await stream.aclose()


async def test_readers_join_and_leave_at_any_moment_and_each_misses_nothing(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feed_many(feeder, 2)
    end = f"{BTC}@1-{152 * 5}"

    async def write() -> None:
        for _ in range(150):
            await feed_many(feeder, 1)

    async def read(streams: TickStreams, number: int) -> list[str]:
        cursor = Cursor(BTC, 0, 0)
        got: list[str] = []
        while got[-1:] != [end]:
            stream = streams.stream([BTC], {BTC: cursor}, conflate=False)
            await anext(stream)
            for _ in range(number):
                got += feed_batches(await asyncio.wait_for(anext(stream), WAIT_SECONDS))
                if got[-1] == end:
                    break
            cursor = feed.parse_cursor(got[-1])
            await stream.aclose()
        return got

    async with streams_of(installation, redis, reader_bytes_max=1_000_000) as streams, asyncio.TaskGroup() as group:
        group.create_task(write())
        reading = [group.create_task(read(streams, number)) for number in range(1, 8)]
    # Only now: a reader may have a batch before the feeder's append has returned.
    for task in reading:
        assert task.result() == [batch.cursor for batch in feeder.sent]
