from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.marketdata.v1.marketdata_pb2 import (
    Book,
    StreamTicksResponse,
    Tick,
    TickBatch,
)

from libs.bus import feed
from libs.bus.feed import (
    Batch,
    Cursor,
    Lost,
    Outdated,
    after,
    append,
    newest,
    parse_cursor,
    quotes,
    read,
    read_back,
    set_stored,
)
from libs.errors import CursorInvalid

BTC, ETH = "SIM:BTCUSDT", "SIM:ETHUSDT"


def batch(first: int, last: int, *, epoch: int = 1, of: str = BTC, quote: bytes = b"quote") -> Batch:
    ticks = TickBatch(
        instrument_id=of,
        epoch=epoch,
        first_sequence=first,
        ticks=[Tick(price=float(sequence)) for sequence in range(first, last + 1)],
        previous_cursor=str(Cursor(of, epoch, first - 1)),
        cursor=str(Cursor(of, epoch, last)),
    )
    return Batch(Cursor(of, epoch, last), first, StreamTicksResponse(batches=[ticks]).SerializeToString(), quote)


async def read_all(redis, cursor: Cursor) -> list[feed.Entry]:
    return await read(redis, {cursor.instrument_id: cursor}, block_seconds=0.05)


def prices(*entries: feed.Entry) -> list[float]:
    joined = StreamTicksResponse.FromString(b"".join(entry.response for entry in entries))
    return [tick.price for each in joined.batches for tick in each.ticks]


async def test_batches_are_read_as_they_were_appended_and_their_bytes_concatenate(redis):
    sent = [batch(1, 3), batch(4, 4), batch(1, 2, of=ETH)]
    await append(redis, sent)
    start = {instrument_id: Cursor(instrument_id, 0, 0) for instrument_id in (BTC, ETH)}
    entries = await read(redis, start, block_seconds=1)
    assert {entry.response for entry in entries} == {each.response for each in sent}
    assert prices(*(entry for entry in entries if entry.cursor.instrument_id == BTC)) == [1, 2, 3, 4]
    assert await newest(redis, [BTC, ETH, "SIM:NONE"]) == {BTC: Cursor(BTC, 1, 4), ETH: Cursor(ETH, 1, 2)}


async def test_a_replaced_feeder_is_refused_and_does_not_touch_the_quote(redis):
    await append(redis, [batch(1, 3, epoch=1)])
    await append(redis, [batch(4, 5, epoch=2, quote=b"new")])
    with pytest.raises(Outdated):
        await append(redis, [batch(4, 9, epoch=1, quote=b"old")])
    assert await quotes(redis, [BTC, ETH]) == {BTC: b"new"}
    assert prices(*await read_all(redis, Cursor(BTC, 0, 0))) == [1, 2, 3, 4, 5]


async def test_appending_the_same_batch_again_is_refused(redis):
    await append(redis, [batch(1, 3)])
    with pytest.raises(Outdated):
        await append(redis, [batch(1, 3)])


async def test_a_batch_is_not_appended_where_what_it_comes_after_was_lost(redis):
    first, second = batch(1, 3), replace(batch(4, 6), after=Cursor(BTC, 1, 3))
    await append(redis, [first, second])
    await redis.flushall()
    with pytest.raises(Lost):
        await append(redis, [replace(batch(7, 9), after=Cursor(BTC, 1, 6)), batch(1, 1, of=ETH)])
    assert await newest(redis, [BTC, ETH]) == {ETH: Cursor(ETH, 1, 1)}
    await append(redis, [first, second])
    await append(redis, [replace(batch(7, 9), after=Cursor(BTC, 1, 6))])
    assert prices(*await read_all(redis, Cursor(BTC, 0, 0))) == list(range(1, 10))


async def test_batches_are_appended_in_order_also_by_a_redis_that_has_forgotten_the_script(redis):
    await append(redis, [batch(1, 3)])
    await redis.script_flush()
    await append(redis, [batch(4, 4), batch(1, 2, of=ETH), replace(batch(5, 6), after=Cursor(BTC, 1, 4))])
    assert prices(*await read_all(redis, Cursor(BTC, 0, 0))) == [1, 2, 3, 4, 5, 6]
    assert await newest(redis, [ETH]) == {ETH: Cursor(ETH, 1, 2)}


async def test_one_refused_instrument_does_not_hold_up_the_others_of_its_round_trip(redis):
    await append(redis, [batch(1, 3, epoch=2)])
    with pytest.raises(Outdated):
        await append(redis, [batch(4, 4, epoch=1), batch(1, 1, of=ETH)])
    assert await newest(redis, [ETH]) == {ETH: Cursor(ETH, 1, 1)}


async def test_a_cursor_inside_a_batch_resumes_with_the_next_tick(redis):
    await append(redis, [batch(1, 10), batch(11, 12)])
    cursor = Cursor(BTC, 1, 4)
    first, second = await read_all(redis, cursor)
    cut = after(first, cursor)
    assert prices(cut, after(second, cursor)) == [5, 6, 7, 8, 9, 10, 11, 12]
    [batch_cut] = StreamTicksResponse.FromString(cut.response).batches
    assert (batch_cut.first_sequence, batch_cut.previous_cursor, batch_cut.cursor) == (
        5,
        "SIM:BTCUSDT@1-4",
        "SIM:BTCUSDT@1-10",
    )
    assert after(second, cursor) is second


async def test_what_was_missed_before_a_batch_is_told_with_its_first_tick_only(redis):
    whole = batch(1, 4)
    response = StreamTicksResponse.FromString(whole.response)
    response.batches[0].missed.before_trade_id = "5"
    await append(redis, [replace(whole, response=response.SerializeToString())])
    [entry] = await read_all(redis, Cursor(BTC, 0, 0))
    for skipped, is_told in ((0, True), (1, False)):
        [rest] = StreamTicksResponse.FromString(after(entry, Cursor(BTC, 1, skipped)).response).batches
        assert rest.HasField("missed") is is_told


def test_a_batch_is_cut_also_between_what_comes_after_its_ticks():
    ticks = TickBatch(
        first_sequence=1,
        ticks=[Tick(price=1), Tick(price=2)],
        book=Book(time=Timestamp(seconds=5)),
        market_time=Timestamp(seconds=6),
    )
    whole = feed.Entry(Cursor(BTC, 1, 4), 1, StreamTicksResponse(batches=[ticks]).SerializeToString())

    def left(sequence: int):
        [cut] = StreamTicksResponse.FromString(after(whole, Cursor(BTC, 1, sequence)).response).batches
        return len(cut.ticks), *(cut.HasField(name) for name in ("book", "market_time")), cut.first_sequence

    assert [left(sequence) for sequence in range(4)] == [
        (2, True, True, 1),
        (1, True, True, 2),
        (0, True, True, 3),
        (0, False, True, 4),
    ]


async def test_a_batch_that_a_reader_has_brings_it_nothing_when_it_is_made_again_but_takes_it_to_the_new_epoch(redis):
    await append(redis, [batch(1, 3, epoch=2), batch(4, 6, epoch=2), batch(7, 9, epoch=2)])
    cursor, told = Cursor(BTC, 1, 5), []
    for entry in await read_all(redis, cursor):
        rest = after(entry, cursor)
        assert rest.first_sequence == cursor.sequence + 1
        told += prices(rest)
        cursor = rest.cursor
    assert (told, cursor) == ([6, 7, 8, 9], Cursor(BTC, 2, 9))


async def test_a_cursor_of_an_earlier_epoch_resumes_across_the_change_of_feeder(redis):
    await append(redis, [batch(1, 3, epoch=1)])
    await append(redis, [batch(4, 6, epoch=2)])
    entries = await read_all(redis, Cursor(BTC, 1, 2))
    assert prices(*(after(entry, Cursor(BTC, 1, 2)) for entry in entries)) == [3, 4, 5, 6]


async def test_batches_are_read_back_from_a_cursor_newest_first(redis):
    assert await read_back(redis, BTC, None, count=2) == []
    await append(redis, [batch(1, 3), batch(4, 5), batch(6, 6, epoch=2)])
    assert [entry.cursor.sequence for entry in await read_back(redis, BTC, None, count=2)] == [6, 5]
    (oldest,) = await read_back(redis, BTC, Cursor(BTC, 1, 5), count=2)
    assert (oldest.cursor, oldest.first_sequence, prices(oldest)) == (Cursor(BTC, 1, 3), 1, [1, 2, 3])


async def test_trimming_keeps_what_is_not_stored_and_what_readers_may_resume(redis, monkeypatch):
    monkeypatch.setattr(feed, "RESUME_BATCHES", 50)
    await append(redis, [batch(number, number) for number in range(1, 401)])
    assert await redis.xlen(f"ticks:{BTC}") == 400  # nothing was ever stored
    await set_stored(redis, Cursor(BTC, 1, 300))
    await append(redis, [batch(number, number) for number in range(401, 405)])
    kept = await read_all(redis, Cursor(BTC, 0, 0))
    assert kept[0].cursor.sequence == 300
    await set_stored(redis, Cursor(BTC, 1, 404))
    await append(redis, [batch(number, number) for number in range(405, 505)])
    assert feed.RESUME_BATCHES <= await redis.xlen(f"ticks:{BTC}") < feed.RESUME_BATCHES + feed.TRIM_BATCHES


def sized(first: int, last: int, size: int) -> Batch:
    """A batch of about so many bytes, none of which repeat."""
    rest = max(0, size - len(batch(first, last).response))
    response = StreamTicksResponse.FromString(batch(first, last).response)
    response.batches[0].ticks[0].trade_id = "9" * rest
    return replace(batch(first, last), response=response.SerializeToString())


async def bytes_of(redis, of: str = BTC) -> int:
    return await redis.memory_usage(f"ticks:{of}", samples=0) or 0


@pytest.mark.parametrize(
    "sizes", [(80,), (1_000,), (3_000,), (4_200,), (25_000,), (60_000,), (80, 60_000), (4_200, 90)]
)
async def test_a_stream_takes_no_more_memory_than_its_bound_whatever_its_batches_and_uses_most_of_it(redis, sizes):
    bound = 1024 * 1024
    count = 3 * bound // min(sizes) if len(sizes) == 1 else 4_000
    some = [sized(number, number, sizes[number * len(sizes) // (count + 1)]) for number in range(1, count + 1)]
    most = 0
    for start in range(0, count, 200):
        await append(redis, some[start : start + 200], bytes_max=bound)
        used = await bytes_of(redis)
        assert used <= bound
        most = max(most, used)
    # An entry of a few bytes is counted with all that it may take.
    assert most > bound * (0.25 if sizes[0] < 100 else 0.7)
    assert (await newest(redis, [BTC]))[BTC].sequence == count


async def test_at_the_memory_bound_what_is_stored_goes_before_anything_is_lost(redis):
    bound = 200_000
    await append(redis, [sized(number, number, 1_000) for number in range(1, 101)], bytes_max=bound)
    await set_stored(redis, Cursor(BTC, 1, 100))
    await append(redis, [sized(number, number, 1_000) for number in range(101, 201)], bytes_max=bound)
    kept = await read_all(redis, Cursor(BTC, 0, 0))
    # Far fewer than are kept for readers that resume elsewhere, but all that is not stored.
    assert 60 < kept[0].first_sequence <= 101
    assert len(await read_all(redis, Cursor(BTC, 1, 100))) == 100


async def test_at_the_memory_bound_a_gap_is_preferred_and_a_reader_sees_it(redis):
    bound = 200_000
    await set_stored(redis, Cursor(BTC, 1, 10))
    await append(redis, [sized(number, number, 1_000) for number in range(1, 401)], bytes_max=bound)
    cursor = Cursor(BTC, 1, 10)
    first, *_ = await read_all(redis, cursor)
    assert first.first_sequence > cursor.sequence + 1
    assert first.first_sequence < 400 - 0.9 * bound / (1_250 + feed.ENTRY_BYTES)
    assert (await newest(redis, [BTC]))[BTC].sequence == 400


async def test_a_bound_that_became_smaller_is_kept_to_step_by_step_by_appends_and_at_once_by_trimming(redis):
    many = [sized(number, number, 500) for number in range(1, 2_001)]
    for each in (BTC, ETH):
        await append(redis, [replace(one, cursor=replace(one.cursor, instrument_id=each)) for one in many])
    bound, before = 100_000, await redis.xlen(f"ticks:{BTC}")
    for number in range(2_001, 2_006):
        await append(redis, [sized(number, number, 60_000)], bytes_max=bound)
        length = await redis.xlen(f"ticks:{BTC}")
        # No append takes long, and none leaves more than there was.
        assert before - 2 * feed.TRIM_BATCHES <= length <= before - feed.TRIM_BATCHES + 1
        before = length
    await feed.trim(redis, [BTC, ETH, "SIM:NONE"], bound)
    assert [await bytes_of(redis, each) <= bound for each in (BTC, ETH)] == [True, True]
    assert await feed.count_held(redis, [BTC, ETH, "SIM:NONE"]) == 2
    assert (await newest(redis, [BTC, ETH])) == {BTC: Cursor(BTC, 1, 2_005), ETH: Cursor(ETH, 1, 2_000)}


async def test_a_batch_above_the_bound_is_appended_alone(redis):
    await append(redis, [batch(1, 1), sized(2, 2, 5_000), sized(3, 3, 5_000)], bytes_max=1_000)
    assert [entry.cursor.sequence for entry in await read_all(redis, Cursor(BTC, 0, 0))] == [3]


async def test_bytes_are_counted_on_across_feeders_and_from_entries_that_do_not_tell_them(redis):
    bound = 100_000
    for number in range(1, 51):  # as a release before told them
        await redis.xadd(f"ticks:{BTC}", {"b": sized(number, number, 1_000).response, "s": number}, id=f"1-{number}")
    await feed.shut_out(redis, {BTC: 2})
    for number in range(51, 301):
        await append(redis, [replace(sized(number, number, 1_000), cursor=Cursor(BTC, 2, number))], bytes_max=bound)
    assert 0.7 * bound < await bytes_of(redis) <= bound


async def test_large_batches_are_trimmed_by_their_ticks_when_they_are_stored(redis, monkeypatch):
    monkeypatch.setattr(feed, "RESUME_EVENTS", 1_000)
    monkeypatch.setattr(feed, "TRIM_EVENTS", 100)

    async def append_many(first: int, last: int) -> None:
        await append(redis, [batch(number, number + 49) for number in range(first, last, 50)])

    async def first_kept() -> int:
        return (await read_all(redis, Cursor(BTC, 0, 0)))[0].first_sequence

    await append_many(1, 2_000)
    assert await first_kept() == 1  # nothing was ever stored
    await set_stored(redis, Cursor(BTC, 1, 1_000))
    await append_many(2_001, 2_500)
    assert await first_kept() == 951  # what ends at the stored cursor is kept, for who resumes there
    await set_stored(redis, Cursor(BTC, 1, 2_500))
    await append_many(2_501, 2_600)
    assert 2_600 - 1_200 < await first_kept() <= 2_600 - 1_000


async def test_a_stream_that_nobody_appends_to_is_forgotten_in_the_end(redis):
    await append(redis, [batch(1, 3)])
    assert 0 < await redis.ttl(f"ticks:{BTC}") <= feed.IDLE_SECONDS


@pytest.mark.parametrize("text", ["SIM:BTCUSDT@7-1234", "SIM:BTC/USD.P-1_x".upper() + "@1-0"])
def test_a_cursor_reads_back_what_it_wrote(text):
    assert str(parse_cursor(text)) == text


@pytest.mark.parametrize(
    "text", ["", "7-1", "SIM:BTCUSDT@7", "SIM:BTCUSDT@-1-2", "SIM:BTCUSDT@1-2 ", "sim:btc@1-2", "X" * 999]
)
def test_any_other_text_is_no_cursor(text):
    with pytest.raises(CursorInvalid) as refused:
        parse_cursor(text, "after_cursors[0]")
    assert "after_cursors[0]" in refused.value.violations


async def test_what_has_ended_is_forgotten_early_only_once_it_is_stored(redis):
    async def seconds_left() -> list[int]:
        return [await redis.ttl(f"{kind}:{BTC}") for kind in ("ticks", "quote", "ticks-stored")]

    await append(redis, [Batch(Cursor(BTC, 1, 2), 1, b"batch", b"quote")])
    await set_stored(redis, Cursor(BTC, 1, 1))
    assert not await feed.end(redis, BTC)
    assert all(feed.ENDED_SECONDS < left <= feed.IDLE_SECONDS for left in await seconds_left())
    await set_stored(redis, Cursor(BTC, 1, 2))
    assert await feed.end(redis, BTC)
    assert all(0 < left <= feed.ENDED_SECONDS for left in await seconds_left())
    await append(redis, [Batch(Cursor(BTC, 2, 3), 3, b"batch", b"quote")])
    assert all(left > feed.ENDED_SECONDS for left in await seconds_left())
