"""What is not stored of a market is written down, listed, and marked when it was brought after all."""

from datetime import UTC, timedelta
from typing import Any

import pytest
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import GAP_KIND_LOST, GAP_KIND_MISSED, MissedTrades

from libs.mesh.wire import timestamp
from tests.marketdata.stand import BTC, ETH, START, Feeder, announce, desk_of, next_of, select, tick_at
from tests.marketdata.test_instruments import refused
from tests.mesh import sign_in

SECOND = timedelta(seconds=1)


def missed(after: str, before: str, start: float, end: float) -> MissedTrades:
    return MissedTrades(
        after_trade_id=after,
        before_trade_id=before,
        start_time=timestamp(START + start * SECOND),
        end_time=timestamp(START + end * SECOND),
    )


async def gaps(caller, **more: Any):
    return await caller.ask("ListGaps", marketdata_pb2.ListGapsRequest(**more))


def told(answer):
    return [(gap.after_trade_id, gap.before_trade_id) for gap in answer.gaps]


async def test_what_a_feed_missed_is_listed_until_it_is_filled(installation, caller, redis):
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(START, 10.0, 1.0, "a")]))
        await desk.store(
            feeder.batch([tick_at(START + 9 * SECOND, 11.0, 1.0, "e")], missed=missed("a", "e", 0, 9)),
            feeder.batch([tick_at(START + 20 * SECOND, 11.0, 1.0, "i")], missed=missed("e", "i", 9, 20)),
            other.batch([tick_at(START + 9 * SECOND, 11.0, 1.0, "e")], missed=missed("a", "e", 0, 9)),
        )
        answer = await gaps(caller, instrument_id=BTC)
        assert told(answer) == [("a", "e"), ("e", "i")]
        gap = answer.gaps[0]
        assert (gap.instrument_id, gap.kind, gap.start_time.ToDatetime(UTC)) == (BTC, GAP_KIND_MISSED, START)
        assert (gap.end_time.ToDatetime(UTC), gap.after_sequence) == (START + 9 * SECOND, 0)
        assert gap.HasField("found_time")
        assert not gap.HasField("filled_time")
        brought = [tick_at(START + SECOND, 10.5, 1.0, "b")]
        await desk.store(feeder.batch(brought, backfill=True, filled=missed("a", "d", 0, 8)))
        assert len((await gaps(caller, instrument_id=BTC)).gaps) == 2  # not all of it
        await desk.store(feeder.batch([], backfill=True, filled=missed("", "", 0, 9)))
    assert told(await gaps(caller, instrument_id=BTC)) == [("e", "i")]
    everything = await gaps(caller, instrument_id=BTC, include_filled=True)
    assert [gap.HasField("filled_time") for gap in everything.gaps] == [True, False]
    assert len((await gaps(caller)).gaps) == 2


async def test_gaps_come_by_the_page_in_the_order_they_were_found(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        for number in range(5):
            await desk.store(feeder.batch([], book=START, missed=missed(f"{number}", "", number, number + 1)))
    first = await gaps(caller, page_size=2)
    second = await gaps(caller, page_size=2, page_token=first.next_page_token)
    third = await gaps(caller, page_size=2, page_token=second.next_page_token)
    assert [gap.after_trade_id for page in (first, second, third) for gap in page.gaps] == list("01234")
    assert third.next_page_token == ""
    assert await refused(gaps(caller, page_token="x")) == "PAGE_TOKEN_INVALID"


async def test_every_user_may_ask_and_nobody_else(installation, caller):
    caller.metadata = sign_in(roles=["user"])
    assert list((await gaps(caller)).gaps) == []
    with pytest.raises(Exception, match="UNAUTHENTICATED"):
        await caller.stub.ListGaps(marketdata_pb2.ListGapsRequest(), metadata=(), timeout=10)


async def test_what_was_lost_before_it_was_stored_is_listed_with_the_trades_around_it(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)

    def batch(name: str, seconds: float):
        return feeder.batch([tick_at(START + seconds * SECOND, 10.0, 1.0, name)])

    async with desk_of(installation, redis) as desk:
        batch("never seen", 0)
        first = [batch("a", 1), feeder.batch([], book=START)]
        batch("lost", 2)
        second = batch("c", 3)
        batch("lost", 4)
        batch("lost too", 5)
        third = feeder.batch([], book=START)
        await desk.store(*first, second, third, batch("g", 6))
        await desk.store(feeder.batch([tick_at(START + 2 * SECOND, 10.0)], backfill=True, filled=missed("", "", 1, 3)))
    open_gaps = (await gaps(caller)).gaps
    assert [(gap.kind, gap.after_trade_id, gap.before_trade_id) for gap in open_gaps] == [(GAP_KIND_LOST, "c", "g")]
    assert [(gap.after_sequence, gap.before_sequence) for gap in open_gaps] == [(5, 8)]
    everything = (await gaps(caller, include_filled=True)).gaps
    assert [(gap.after_trade_id, gap.before_trade_id, gap.after_sequence) for gap in everything] == [
        ("a", "c", 3),
        ("c", "g", 5),
    ]
    spans = await select(installation, "SELECT after_sequence, sequence FROM coverage ORDER BY after_sequence")
    assert [tuple(span) for span in spans] == [(1, 3), (4, 5), (7, feeder.sequence)]


async def test_who_reads_up_what_is_stored_sees_what_was_fetched_later_as_such(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    stream = caller.ticks(BTC)
    await next_of(stream)
    live = [tick_at(START + 2 * SECOND, 12.0), tick_at(START + 3 * SECOND, 13.0)]
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch(live), feeder.batch([tick_at(START, 10.0)], backfill=True), feeder.batch(live))
    stream = caller.ticks(BTC, after=[f"{BTC}@1-0"])
    await next_of(stream)
    batches = list((await next_of(stream)).batches)
    assert [(len(batch.ticks), batch.backfill) for batch in batches] == [(2, False), (1, True), (2, False)]


async def test_numbered_trades_fill_every_gap_within_their_numbers_whatever_the_times(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(START, 10.0, 1.0, "9")]))
        await desk.store(
            feeder.batch([tick_at(START + 9 * SECOND, 11.0, 1.0, "100")], missed=missed("9", "100", 0, 9)),
            feeder.batch([tick_at(START + 20 * SECOND, 11.0, 1.0, "120")], missed=missed("100", "120", 9, 20)),
        )
        await desk.store(feeder.batch([], backfill=True, filled=missed("8", "100", 0, 1)))
        assert told(await gaps(caller, instrument_id=BTC)) == [("100", "120")]
