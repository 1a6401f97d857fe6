"""Order books through the real port: snapshots, changes, checksums that a reader verifies, resuming, slow readers."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import Book, BookLevel, BookUpdate, StreamOrderBookResponse

from libs.bus import feed
from libs.bus.feed import Cursor
from libs.mesh.wire import timestamp
from services.marketdata import book_hub, books
from services.marketdata.book_hub import BookReader, reading_books
from services.marketdata.book_stream import BookStreams
from services.marketdata.books import state_from
from services.marketdata.hub import reading_ticks
from tests.marketdata.stand import BTC, ETH, START, WAIT_SECONDS, Feeder, announce, next_of, served, tick_at, until
from tests.marketdata.test_instruments import reason_of, refused

Side = Mapping[float, float]

prices = st.integers(1, 40).map(lambda number: number / 7)
sides = st.dictionaries(prices, st.floats(0.001, 1e9), max_size=20)


def ieee754(number: float) -> bytes:
    """A double's eight bytes, the lowest first, found by its definition and not by the machine's own form."""
    if number == 0:
        return bytes(8)
    exponent = 0
    while number >= 2:
        number, exponent = number / 2, exponent + 1
    while number < 1:
        number, exponent = number * 2, exponent - 1
    bits = (exponent + 1023) << 52 | int((number - 1) * 2**52)
    return bytes(bits >> 8 * place & 255 for place in range(8))


def crc32(content: bytes) -> int:
    """Bit by bit, as the contract states it."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


class ReadersBook:
    """A book as a client keeps it, that knows no more than the contract says."""

    def __init__(self) -> None:
        self.bids: dict[float, float] = {}
        self.asks: dict[float, float] = {}
        self.cursor: str | None = None
        self.updates = 0

    def apply(self, update: BookUpdate) -> None:
        if update.snapshot:
            self.bids, self.asks = {}, {}
            assert update.previous_cursor == ""
        else:
            assert update.previous_cursor == self.cursor
        for side, levels in ((self.bids, update.bids), (self.asks, update.asks)):
            for level in levels:
                if level.quantity:
                    side[level.price] = level.quantity
                else:
                    del side[level.price]
        self.cursor, self.updates = update.cursor, self.updates + 1
        assert self.checksum == update.checksum

    @property
    def checksum(self) -> int:
        levels = [*sorted(self.bids.items(), reverse=True), *sorted(self.asks.items())]
        content = bytes([len(self.bids), len(self.asks)])
        return crc32(content + b"".join(ieee754(number) for level in levels for number in level))

    def is_like(self, book: Book) -> bool:
        return self.bids == dict(pairs(book.bids)) and self.asks == dict(pairs(book.asks))


def pairs(levels: Sequence[BookLevel]) -> list[tuple[float, float]]:
    return [(level.price, level.quantity) for level in levels]


def book_of(bids: Side, asks: Side, seconds: float = 0) -> Book:
    return Book(
        time=timestamp(START + timedelta(seconds=seconds)),
        bids=[BookLevel(price=price, quantity=bids[price]) for price in sorted(bids, reverse=True)],
        asks=[BookLevel(price=price, quantity=asks[price]) for price in sorted(asks)],
    )


def some_book(chance: random.Random, number: int) -> Book:
    """The market moves; most levels stay, some come, go or have another quantity."""
    middle = 10_000 + number % 50
    bids = {(middle - step) / 100: chance.randint(1, 3) / 10 for step in range(1, chance.randint(15, 21))}
    asks = {(middle + step) / 100: chance.randint(1, 3) / 10 for step in range(1, chance.randint(15, 21))}
    return book_of(bids, asks, number)


class Books:
    """A feed of books, with ticks between them."""

    def __init__(self, redis: Any, instrument_id: str = BTC) -> None:
        self.feeder = Feeder(redis, instrument_id)
        self.chance = random.Random(7)
        self.sent: list[Book] = []

    async def send(self, count: int = 1) -> str:
        for _ in range(count):
            book = some_book(self.chance, len(self.sent))
            batch = self.feeder.batch([tick_at(START, 100.0)], book=START)
            batch.book.CopyFrom(book)
            await self.feeder.send([batch])
            self.sent.append(book)
        return self.feeder.cursor


def stream_of(caller: Any, *instrument_ids: str, after: Sequence[str] = ()) -> Any:
    request = marketdata_pb2.StreamOrderBookRequest(instrument_ids=instrument_ids, after_cursors=after)
    return caller.stub.StreamOrderBook(request, metadata=caller.metadata, timeout=60)


async def read_until(stream: Any, book: ReadersBook, cursor: str) -> list[BookUpdate]:
    """Applies what the stream brings, up to a cursor."""
    got: list[BookUpdate] = []
    while book.cursor != cursor:
        message = await next_of(stream)
        assert message.updates, message
        for update in message.updates:
            book.apply(update)
            got.append(update)
    return got


@given(sides, sides, sides, sides)
def test_what_changes_between_two_books_takes_a_reader_from_one_to_the_other(bids, asks, next_bids, next_asks):
    before = state_from(book_of(bids, asks), Cursor(BTC, 1, 1))
    after = state_from(book_of(next_bids, next_asks), Cursor(BTC, 1, 2))
    reader = ReadersBook()
    for message in (books.snapshot(before), books.update(before, after)):
        (update,) = StreamOrderBookResponse.FromString(message).updates
        reader.apply(update)
    assert reader.is_like(book_of(next_bids, next_asks))
    for levels, old, new in ((update.bids, bids, next_bids), (update.asks, asks, next_asks)):
        assert {level.price for level in levels} == {price for price in old | new if old.get(price) != new.get(price)}


def test_the_checksum_is_what_the_contract_states():
    assert crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32
    assert ieee754(0.1) == bytes.fromhex("9a9999999999b93f")
    assert books.checksum({}, {}) == crc32(bytes(2))
    assert books.checksum({1.5: 2.0}, {}) != books.checksum({}, {1.5: 2.0})


async def test_a_reader_verifies_every_checksum_of_a_long_stream(installation, caller, redis):
    await announce(installation, BTC, ETH)
    feed_of_books, other = Books(redis), Books(redis, ETH)
    before = await feed_of_books.send(3)
    stream = stream_of(caller, BTC, ETH)
    first = (await next_of(stream)).acknowledgement
    assert (list(first.cursors), first.heartbeat_seconds) == ([before, f"{ETH}@0-0"], 5)
    reader, beside = ReadersBook(), ReadersBook()
    (snapshot,) = await read_until(stream, reader, before)
    assert snapshot.snapshot
    assert snapshot.time == feed_of_books.sent[-1].time
    end = await feed_of_books.send(300)
    got = await read_until(stream, reader, end)
    assert len(got) == 300
    assert not any(update.snapshot for update in got)
    assert sum(len(update.bids) + len(update.asks) for update in got) < 300 * 34
    assert reader.is_like(feed_of_books.sent[-1])
    # One that had no book begins with a whole one.
    end = await other.send(2)
    await read_until(stream, beside, end)
    assert (beside.updates, beside.is_like(other.sent[-1])) == (2, True)


async def test_the_newest_book_is_told_as_deep_as_asked(installation, caller, redis):
    asked = marketdata_pb2.GetOrderBookRequest(instrument_id=BTC)
    assert await refused(caller.ask("GetOrderBook", asked)) == "INSTRUMENT_NOT_FOUND"
    await announce(installation, BTC)
    assert await refused(caller.ask("GetOrderBook", asked)) == "NO_BOOK"
    feed_of_books = Books(redis)
    cursor = await feed_of_books.send(2)
    # What follows has no book: the newest is looked for before it.
    for _ in range(40):
        await feed_of_books.feeder.append([tick_at(START, 100.0)])
    stream = stream_of(caller, BTC)
    for is_streamed in (False, True):
        if is_streamed:
            await next_of(stream)
            await next_of(stream)
        found = await caller.ask("GetOrderBook", asked)
        assert (found.cursor, found.book) == (cursor, feed_of_books.sent[-1])
        asked.depth = 3
        found = await caller.ask("GetOrderBook", asked)
        assert pairs(found.book.bids) == pairs(feed_of_books.sent[-1].bids[:3])
        assert pairs(found.book.asks) == pairs(feed_of_books.sent[-1].asks[:3])
        reader = ReadersBook()
        reader.bids, reader.asks = dict(pairs(found.book.bids)), dict(pairs(found.book.asks))
        assert reader.checksum == found.checksum
        asked.depth = 0
    asked.depth = 21
    assert await refused(caller.ask("GetOrderBook", asked)) == "INVALID_FIELDS"
    await caller.put("HAND:X", has_book=False)
    asked = marketdata_pb2.GetOrderBookRequest(instrument_id="HAND:X")
    assert await refused(caller.ask("GetOrderBook", asked)) == "NO_BOOK"


async def test_a_stream_resumes_after_a_restart_and_brings_what_was_missed(installation, redis):
    await announce(installation, BTC)
    feed_of_books, reader = Books(redis), ReadersBook()
    middle = await feed_of_books.send(5)
    async with served(installation) as caller:
        stream = stream_of(caller, BTC)
        await next_of(stream)
        await read_until(stream, reader, middle)
    await feed_of_books.send(60)
    feed_of_books.feeder.epoch = 2  # another feeder took over meanwhile
    end = await feed_of_books.send(20)
    async with served(installation) as caller:
        stream = stream_of(caller, BTC, after=[middle])
        assert list((await next_of(stream)).acknowledgement.cursors) == [middle]
        got = await read_until(stream, reader, end)
        assert len(got) == 80
        assert not any(update.snapshot for update in got)
        # Beside it, from a cursor of ticks between two books, and from the newest.
        between = str(feed.Cursor(BTC, 2, feed.parse_cursor(end).sequence - 1))
        newer = await feed_of_books.send()
        for after, missed in ((between, [end, newer]), (end, [newer])):
            beside = stream_of(caller, BTC, after=[after])
            await next_of(beside)
            assert [update.cursor for update in (await next_of(beside)).updates] == missed
        end = newer
        await read_until(stream, reader, end)


async def test_what_is_no_longer_kept_is_announced_and_replaced_by_the_book_as_it_stands(
    installation, redis, monkeypatch
):
    monkeypatch.setattr(book_hub, "RECENT_UPDATES_MAX", 10)
    await announce(installation, BTC)
    feed_of_books = Books(redis)
    early = await feed_of_books.send(2)
    async with served(installation) as caller:
        stream, reader = stream_of(caller, BTC), ReadersBook()
        await next_of(stream)
        await read_until(stream, reader, early)
        end = await feed_of_books.send(40)
        await read_until(stream, reader, end)
        for after in (early, f"{BTC}@1-999999", f"{BTC}@9-4"):
            resumed, beside = stream_of(caller, BTC, after=[after]), ReadersBook()
            assert list((await next_of(resumed)).acknowledgement.cursors) == [after]
            gap = (await next_of(resumed)).gap
            assert (gap.instrument_id, gap.after_cursor, gap.resume_cursor) == (BTC, after, end)
            (snapshot,) = await read_until(resumed, beside, end)
            assert snapshot.snapshot
            end = await feed_of_books.send()
            await read_until(resumed, beside, end)


async def test_after_a_loss_in_redis_the_stream_goes_on_with_the_whole_book(installation, caller, redis):
    await announce(installation, BTC)
    feed_of_books, reader = Books(redis), ReadersBook()
    before = await feed_of_books.send(3)
    stream = stream_of(caller, BTC)
    await next_of(stream)
    await read_until(stream, reader, before)
    await redis.delete(f"ticks:{BTC}")
    feed_of_books.feeder.epoch, feed_of_books.feeder.sequence = 2, feed_of_books.feeder.sequence + 10
    end = await feed_of_books.send()
    gap = (await next_of(stream)).gap
    assert (gap.after_cursor, gap.resume_cursor) == (before, end)
    (snapshot,) = await read_until(stream, reader, end)
    assert snapshot.snapshot
    await read_until(stream, reader, await feed_of_books.send(3))
    assert reader.is_like(feed_of_books.sent[-1])


async def test_what_is_only_lost_on_the_way_is_read_again(installation, redis):
    feed_of_books, reader = Books(redis), ReadersBook()
    await feed_of_books.send()
    async with streams_of(redis) as streams:
        stream = streams.stream([BTC], {})
        await taken(stream)
        reader.apply((await taken(stream)).updates[0])
        ticks = streams._hub._ticks
        del ticks._channels[BTC]
        end = await feed_of_books.send(5)
        streams._hub.lose(BTC)
        while reader.cursor != end:
            for update in (await taken(stream)).updates:
                assert not update.snapshot
                reader.apply(update)
        end = await feed_of_books.send()
        reader.apply((await taken(stream)).updates[0])
        assert (reader.cursor, reader.updates) == (end, 7)
        await stream.aclose()


async def test_a_book_that_was_fetched_later_changes_nothing(installation, caller, redis):
    await announce(installation, BTC)
    feed_of_books, reader = Books(redis), ReadersBook()
    before = await feed_of_books.send()
    stream = stream_of(caller, BTC)
    await next_of(stream)
    await read_until(stream, reader, before)
    late = feed_of_books.feeder.batch([], book=START)
    late.backfill = True
    await feed_of_books.feeder.send([late])
    end = await feed_of_books.send()
    assert len(await read_until(stream, reader, end)) == 1


async def test_an_unknown_instrument_and_a_strange_cursor_have_their_reasons(installation, caller):
    await announce(installation, BTC)
    for after, ids, reason in [
        ((), ["SIM:NONE"], "INSTRUMENT_NOT_FOUND"),
        (("nonsense",), [BTC], "CURSOR_INVALID"),
        ((f"{ETH}@1-1",), [BTC], "CURSOR_INVALID"),
        ((), [f"SIM:N{number}" for number in range(201)], "INVALID_FIELDS"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await next_of(stream_of(caller, *ids, after=after))
        assert reason_of(caught.value) == reason


async def test_a_quiet_stream_gets_heartbeats_with_its_cursors(installation, redis):
    await announce(installation, BTC, ETH)
    feed_of_books, reader = Books(redis), ReadersBook()
    async with served(installation, stream_heartbeat_seconds="0.2") as caller:
        stream = stream_of(caller, BTC, ETH)
        await next_of(stream)
        assert list((await next_of(stream)).heartbeat.cursors) == [f"{BTC}@0-0", f"{ETH}@0-0"]
        end = await feed_of_books.send(2)
        while (message := await next_of(stream)).HasField("heartbeat"):
            pass
        while not message.HasField("heartbeat"):
            for update in message.updates:
                reader.apply(update)
            message = await next_of(stream)
        assert list(message.heartbeat.cursors) == [end, f"{ETH}@0-0"]


@asynccontextmanager
async def streams_of(redis: Any, **more: Any) -> AsyncIterator[BookStreams]:
    """The streams of one process without the network between, so that a reader can be as slow as it likes."""
    async with reading_ticks(redis) as ticks, reading_books(ticks, redis) as hub:
        usual = {"heartbeat_seconds": 30.0, "reader_updates_max": 20, "message_bytes": 1_000}
        yield BookStreams(hub, **usual | more)


async def taken(stream: Any) -> Any:
    message = await asyncio.wait_for(anext(stream), WAIT_SECONDS)
    return StreamOrderBookResponse.FromString(message) if isinstance(message, bytes) else message


async def test_a_slow_reader_is_told_and_gets_the_whole_book_while_a_fast_one_gets_every_change(installation, redis):
    feed_of_books, other = Books(redis), Books(redis, ETH)
    await feed_of_books.send()
    await other.send()
    async with streams_of(redis) as streams:
        slow, fast = streams.stream([BTC, ETH], {}), streams.stream([BTC], {})
        readers = {BTC: ReadersBook(), ETH: ReadersBook()}
        quick = ReadersBook()
        for _ in range(3):
            for update in (await taken(slow)).updates:
                readers[update.instrument_id].apply(update)
        await taken(fast)
        quick.apply((await taken(fast)).updates[0])
        taking = asyncio.create_task(taken(slow))
        for _ in range(60):
            ends = {BTC: await feed_of_books.send(), ETH: await other.send()}
            while quick.cursor != ends[BTC]:
                for update in (await taken(fast)).updates:
                    quick.apply(update)
        assert quick.updates == 61

        seen, skipped = {BTC: 0, ETH: 0}, {BTC: 0, ETH: 0}
        announced: dict[str, str] = {}
        message = await taking
        while True:
            for update in message.updates:
                assert update.snapshot == (update.instrument_id in announced)
                if update.snapshot:
                    assert announced.pop(update.instrument_id) == update.cursor
                else:
                    seen[update.instrument_id] += 1
                readers[update.instrument_id].apply(update)
            if message.HasField("conflation"):
                told = message.conflation
                assert told.after_cursor == readers[told.instrument_id].cursor
                announced[told.instrument_id] = told.resume_cursor
                skipped[told.instrument_id] += told.skipped_updates
            if all(readers[each].cursor == end for each, end in ends.items()):
                break
            message = await taken(slow)
        assert all(skipped.values())
        for each, count in seen.items():
            assert count + skipped[each] == 60
        for stream in (slow, fast):
            await stream.aclose()


async def test_what_changed_is_derived_once_and_its_bytes_go_to_every_reader(installation, redis, monkeypatch):
    made: list[bytes] = []

    def counted(before: Any, after: Any, update: Any = books.update) -> bytes:
        made.append(update(before, after))
        return made[-1]

    monkeypatch.setattr(books, "update", counted)
    feed_of_books = Books(redis)
    await feed_of_books.send()
    async with streams_of(redis) as streams:
        readers = [streams.stream([BTC], {}) for _ in range(5)]
        snapshots = []
        for reader in readers:
            await anext(reader)
            snapshots.append(await anext(reader))
        assert all(snapshot is snapshots[0] for snapshot in snapshots)
        await feed_of_books.send()
        for reader in readers:
            assert await asyncio.wait_for(anext(reader), WAIT_SECONDS) == made[0]
        assert len(made) == 1
        for reader in readers:
            await reader.aclose()
        # Nobody reads any more: nothing is derived any more, and nothing kept.
        hub = streams._hub
        assert not hub._channels
        assert not hub._ticks._channels


async def test_readers_join_and_leave_at_any_moment_and_each_has_the_right_book(installation, redis):
    feed_of_books = Books(redis)
    await feed_of_books.send(2)
    count = 150

    async def write() -> None:
        await feed_of_books.send(count)

    async def read(streams: BookStreams, number: int) -> ReadersBook:
        reader = ReadersBook()
        updates = 0
        while reader.cursor != f"{BTC}@1-{2 * (2 + count)}":
            after = {BTC: feed.parse_cursor(reader.cursor)} if reader.cursor else {}
            stream = streams.stream([BTC], after)
            await anext(stream)
            for _ in range(number):
                message = await taken(stream)
                assert message.updates, message
                for update in message.updates:
                    assert not (update.snapshot and reader.cursor)
                    reader.apply(update)
                    updates += not update.snapshot
                if reader.cursor == f"{BTC}@1-{2 * (2 + count)}":
                    break
            await stream.aclose()
        return reader

    async with streams_of(redis, reader_updates_max=1_000) as streams, asyncio.TaskGroup() as group:
        group.create_task(write())
        reading = [group.create_task(read(streams, number)) for number in range(1, 8)]
    for task in reading:
        assert task.result().is_like(feed_of_books.sent[-1])


async def test_a_reader_that_waits_is_woken_by_what_it_lost():
    reader = BookReader(updates_max=5)
    waiting = asyncio.create_task(reader.wait())
    await asyncio.sleep(0)
    reader.lose(BTC, Cursor(BTC, 1, 1))
    await asyncio.wait_for(waiting, WAIT_SECONDS)
    assert reader.take_restarts()[BTC].is_gap


async def test_a_channel_whose_opening_failed_is_opened_anew(installation, redis, monkeypatch):
    feed_of_books = Books(redis)
    await feed_of_books.send()
    async with streams_of(redis) as streams:

        async def broken(*_: Any, **__: Any) -> Any:
            raise ConnectionError

        with monkeypatch.context() as patched:
            patched.setattr(feed, "read_back", broken)
            with pytest.raises(ConnectionError):
                await taken(streams.stream([BTC], {}))
        stream, reader = streams.stream([BTC], {}), ReadersBook()
        await taken(stream)
        reader.apply((await taken(stream)).updates[0])
        end = await feed_of_books.send()

        async def there() -> bool:
            reader.apply((await taken(stream)).updates[0])
            return reader.cursor == end

        assert await until(there)
        await stream.aclose()
