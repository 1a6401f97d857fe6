"""The room that ticks may take: its shares, and what becomes of streams when they shrink."""

import tracemalloc

import pytest

from libs.bus import feed as streams
from libs.bus.feed import Batch, Cursor
from services.feeds.domain import ExchangeSource, ReplaySource
from services.feeds.room import EVENT_BYTES_MAX, Kept, Room
from services.feeds.store import FeedStore
from services.feeds.use_cases import stop_feed
from tests.feeds.conftest import batches_of, playing, until
from tests.feeds.test_feeder import TRADED, found, replay_of, replayed, start, write_trades

QUOTE = b"q" * 250


def batch_of(number: int, size: int, instrument_id: str) -> Batch:
    cursor = Cursor(instrument_id, 1, number)
    after = Cursor(instrument_id, 1, number - 1) if number > 1 else None
    return Batch(cursor, number, bytes(size), QUOTE + bytes(1), after)


def exchange(*symbols: str) -> ExchangeSource:
    return ExchangeSource("BINANCE", symbols, has_book=False)


async def fill(redis, instrument_id: str, room: Room) -> None:
    some = [batch_of(number, 20_000, instrument_id) for number in range(1, 201)]
    await streams.append(redis, some, bytes_max=room.stream_bytes)


async def bytes_in(redis) -> int:
    keys = [key async for key in redis.scan_iter("ticks:*")]
    return sum([await redis.memory_usage(key, samples=0) for key in keys])


async def test_all_instruments_share_the_room_and_those_that_fill_it_give_way_to_more(rpc, worker, redis):
    whole = 2_000_000
    first, second = (Room(worker, redis, ticks_bytes_max=whole, kept_bytes_max=500_000) for _ in range(2))
    feed = await start(rpc, exchange("A", "B"))
    for room in (first, second):
        await room.look()
        assert (room.stream_bytes, room.kept_bytes) == (whole // 2, 250_000)
    for each in ("BINANCE:A", "BINANCE:B"):
        await fill(redis, each, first)
    assert whole * 0.7 < await bytes_in(redis) <= whole
    # Another replica starts a feed; of these two nothing more comes.
    await start(rpc, exchange("C", "D"))
    await second.look()
    assert second.stream_bytes == whole // 4
    assert await bytes_in(redis) <= whole // 2
    for each in ("BINANCE:C", "BINANCE:D"):
        await fill(redis, each, second)
    assert whole * 0.7 < await bytes_in(redis) <= whole
    # What a stopped feed brought is kept for readers that resume, and so takes its share.
    async with rpc.transaction() as rows:
        await stop_feed(FeedStore(rows), feed.feed_id)
    await second.look()
    assert second.stream_bytes == whole // 4
    await start(rpc, exchange("E", "F", "G", "H"))
    await second.look()
    for each in "EFGH":
        await fill(redis, f"BINANCE:{each}", second)
    assert whole * 0.5 < await bytes_in(redis) <= whole
    await redis.delete("ticks:BINANCE:A", "ticks:BINANCE:B")
    await second.look()
    assert second.stream_bytes == whole // 6


@pytest.mark.parametrize("size", [100, 3_000, 40_000])
def test_what_is_kept_takes_no_more_memory_than_its_share_and_goes_when_it_is_stored(size: int):
    bound, kept = 2_000_000, Kept()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1, 4 * bound // (size + len(QUOTE))):
        kept.add(batch_of(number, size, "SIM:BTCUSDT"), bound)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert bound * 0.6 < used <= bound
    newest = kept.sequence(0)
    kept.keep_to(bound // 2)
    assert kept.bytes <= bound // 2
    kept.forget(newest - 3)
    assert [batch.cursor.sequence for batch in kept] == [newest - 2, newest - 1, newest]
    kept.forget(newest)
    assert (kept.bytes, kept.sequence(7)) == (0, 7)


async def test_a_replay_waits_for_those_who_store_before_it_loses_what_is_beyond_its_share(
    rpc, worker, redis, tmp_path
):
    count = 6_000
    source: ReplaySource = replay_of(write_trades(tmp_path, count), replayed(), 0)
    feed = await start(rpc, source)
    room = Room(worker, redis, ticks_bytes_max=256 * 1024, kept_bytes_max=256 * 1024)
    await room.look()
    told: list[str] = []

    async def has_ended() -> bool:
        """Stores what comes, as marketdata does: the next only after what was before it."""
        for batch in await batches_of(redis, TRADED):
            assert batch.first_sequence <= len(told) + 1
            told.extend(tick.trade_id for tick in batch.ticks[len(told) + 1 - batch.first_sequence :])
        assert await redis.memory_usage(f"ticks:{TRADED}", samples=0) or 0 <= 256 * 1024
        if told:
            await streams.set_stored(redis, (await streams.newest(redis, [TRADED]))[TRADED])
        return (await found(rpc, feed)).state.value == "finished"

    async with playing(worker, redis, tmp_path, room=room):
        await until(lambda: has_waited(redis, room))
        await until(has_ended)
    assert len(told) == len(set(told)) == count


async def has_waited(redis, room: Room) -> bool:
    """Nothing is stored yet, and it has come as far as it may."""
    batches = await batches_of(redis, TRADED)
    ticks = sum(len(batch.ticks) for batch in batches)
    assert not batches or batches[0].first_sequence == 1
    return ticks >= room.lead_bytes // EVENT_BYTES_MAX
