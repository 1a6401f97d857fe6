"""Whatever dies between a venue and its readers: no reader has a gap or a repeat that it is not told of, and all is stored.

The offline Binance through feeds and marketdata, each a process of its own, on real Postgres and Valkey; one of them is
killed in the midst of trading, and a reader resumes by cursor as clients do.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs.ids import uuid7
from tests import mesh, sample
from tests.mesh import Installation, Metadata, Served, ServedProcess, sign_in
from tests.servers import PostgresProcess, ValkeyServer, copy_database, own_postgres
from tests.venues import faults
from tests.venues.binance import Binance, binance
from tests.venues.binance_market import Market

BTC = "BINANCE:BTCUSDT"
RATE = 30.0
WAIT_SECONDS = 60.0
RETRY_SECONDS = 0.1
RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@dataclass
class Reader:
    """Reads ticks as a client does: over every break it resumes by cursor."""

    marketdata: Served
    cursor: str = ""
    batches: list[marketdata_pb2.TickBatch] = field(default_factory=list)
    gaps: list[marketdata_pb2.TicksGap] = field(default_factory=list)

    async def read(self) -> None:
        session = sign_in()
        while True:
            request = marketdata_pb2.StreamTicksRequest(
                instrument_ids=[BTC], after_cursors=[self.cursor] if self.cursor else []
            )
            stub = self.marketdata.stub(marketdata_pb2_grpc.MarketDataServiceStub)
            try:
                async for message in stub.StreamTicks(request, metadata=session):
                    self._take(message)
            except aio.AioRpcError as error:
                assert error.code() in RESUMABLE, error
            await asyncio.sleep(RETRY_SECONDS)

    def _take(self, message: marketdata_pb2.StreamTicksResponse) -> None:
        if message.HasField("acknowledgement") and not self.cursor:
            [self.cursor] = message.acknowledgement.cursors
        if message.HasField("gap"):
            assert message.gap.after_cursor == self.cursor
            self.gaps.append(message.gap)
            self.cursor = message.gap.resume_cursor
        for batch in message.batches:
            # Nothing between what the reader had and this, and nothing of it again; an epoch alone may have changed.
            assert sequence_of(batch.previous_cursor) == sequence_of(self.cursor)
            assert batch.first_sequence == sequence_of(self.cursor) + 1
            self.batches.append(batch)
            self.cursor = batch.cursor

    @property
    def live_ids(self) -> list[int]:
        return [int(tick.trade_id) for batch in self.batches if not batch.backfill for tick in batch.ticks]

    @property
    def late_ids(self) -> list[int]:
        return [int(tick.trade_id) for batch in self.batches if batch.backfill for tick in batch.ticks]

    @property
    def missed_ids(self) -> list[int]:
        """Of the trades that live batches said were missed."""
        bounds = [batch.missed for batch in self.batches if batch.HasField("missed")]
        return [at for each in bounds for at in range(int(each.after_trade_id) + 1, int(each.before_trade_id))]


def sequence_of(cursor: str) -> int:
    return int(cursor.rpartition("-")[2])


@dataclass
class Stand:
    """A venue, the two services, what they stand on, and a reader."""

    venue: Binance
    market: Market
    feeds: ServedProcess
    marketdata: ServedProcess
    installation: Installation
    reader: Reader
    reading: asyncio.Task[None]

    async def stored(self) -> list[tuple[int, float, float, int, int]]:
        """Every stored tick by id: with price, quantity, milliseconds and who took."""
        async with self.installation.connect() as rows:
            found = await rows.fetch(
                """
                SELECT trade_id::bigint AS id, price, quantity, (extract(epoch FROM time) * 1000)::bigint AS at, aggressor
                FROM marketdata.market_data_ticks WHERE instrument_id = $1 ORDER BY 1, sequence
                """,
                BTC,
            )
        return [tuple(row) for row in found]  # type: ignore[misc]

    def traded(self, first_id: int) -> list[tuple[int, float, float, int, int]]:
        return [
            (one.aggregate_id, float(one.price), float(one.quantity), one.time, 2 if one.buyer_is_maker else 1)
            for one in self.market.aggregates
            if one.aggregate_id >= first_id
        ]

    async def sees(self, count: int) -> None:
        """Waits until the reader has seen so many more ticks."""
        seen = len(self.reader.live_ids)
        await self.until(lambda: len(self.reader.live_ids) >= seen + count)

    async def until(self, holds: Callable[[], bool]) -> None:
        async def is_so() -> bool:
            if self.reading.done():
                self.reading.result()  # says what was wrong
            return holds()

        await until(is_so)

    async def has_all(self) -> bool:
        """Whether what is stored is what was traded, and the reader has had all of it."""
        stored = await self.stored()
        if not stored or stored != self.traded(stored[0][0]):
            return False
        seen = {*self.reader.live_ids, *self.reader.late_ids}
        return bool(seen) and max(seen) == stored[-1][0]


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = WAIT_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


async def is_served(process: ServedProcess) -> bool:
    try:
        return (await process.served.probe())[0] == 200
    except OSError:
        return False


async def is_known(marketdata: Served) -> bool:
    request = marketdata_pb2.GetInstrumentRequest(instrument_id=BTC)
    try:
        await marketdata.stub(marketdata_pb2_grpc.MarketDataServiceStub).GetInstrument(request, metadata=sign_in())
    except aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error
        return False
    return True


async def is_started(feeds: Served, request: feeds_pb2.StartFeedRequest, operator: Metadata) -> bool:
    try:
        await feeds.stub(feeds_pb2_grpc.FeedServiceStub).StartFeed(request, metadata=operator)
    except aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return False
    return True


@asynccontextmanager
async def standing(installation: Installation) -> AsyncIterator[Stand]:
    async with binance() as venue:
        market = venue.list_market("BTC", "USDT")
        addresses = {"binance_url": venue.url, "binance_stream_url": venue.streams_url, "simulated": "0"}
        with (
            installation.start("marketdata", store_interval_seconds="0.3") as marketdata,
            installation.start("feeds", market_data_url=marketdata.served.address, **addresses) as feeds,
        ):
            for process in (feeds, marketdata):
                await until(lambda process=process: is_served(process))
            request = feeds_pb2.StartFeedRequest(
                request_id=str(uuid7()),
                exchange=feeds_pb2.ExchangeSource(venue="BINANCE", symbols=["BTCUSDT"], has_book=True),
            )
            operator = sign_in(roles=["user", "operator"])
            # A first call waits until the venue's markets are loaded, and is repeated by who has a deadline.
            await until(lambda: is_started(feeds.served, request, operator))
            await until(lambda: is_known(marketdata.served))
            reader = Reader(marketdata.served)
            reading = asyncio.create_task(reader.read())
            stand = Stand(venue, market, feeds, marketdata, installation, reader, reading)
            try:
                async with venue.trading("BTCUSDT", RATE, seed=1):
                    await stand.sees(40)
                    yield stand
                    await stand.sees(40)
                await until(stand.has_all)
                await stand.until(lambda: True)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await feeds.served.close()
                await marketdata.served.close()


def assert_seamless(reader: Reader) -> None:
    """Every trade from the first one seen, once and in order, and nothing was missed on the way."""
    assert not reader.gaps
    assert not reader.missed_ids
    assert not reader.late_ids
    assert all(later == earlier + 1 for earlier, later in pairwise(reader.live_ids))


def assert_told(reader: Reader, lost: Collection[int] = ()) -> None:
    """What is not in its place among the live trades was said to be missed, or lost, and came later."""
    seen = reader.live_ids
    assert seen == sorted(set(seen))
    between = set(range(seen[0], seen[-1] + 1)) - set(seen)
    assert between <= {*reader.missed_ids, *lost}
    assert between <= set(reader.late_ids)


async def lost_ids(installation: Installation, gap: marketdata_pb2.TicksGap) -> set[int]:
    """The trades whose numbers were lost: between the last that is stored before the gap and the first after it."""
    async with installation.connect() as rows:
        around = await rows.fetchrow(
            """
            SELECT max(trade_id::bigint) FILTER (WHERE sequence <= $2) AS last,
              min(trade_id::bigint) FILTER (WHERE sequence > $3) AS first
            FROM marketdata.market_data_ticks WHERE instrument_id = $1 AND NOT backfill
            """,
            *(gap.instrument_id, sequence_of(gap.after_cursor), sequence_of(gap.resume_cursor)),
        )
    assert around
    return set(range(around["last"] + 1, around["first"]))


async def test_killed_feeds_are_taken_up_again_without_a_seam(installation):
    async with standing(installation) as stand:
        stand.feeds.kill()
        stand.feeds.start()
    assert_seamless(stand.reader)


async def test_killed_marketdata_is_taken_up_again_without_a_seam(installation):
    async with standing(installation) as stand:
        stand.marketdata.kill()
        stand.marketdata.start()
        await until(lambda: is_served(stand.marketdata))
    assert_seamless(stand.reader)


async def test_a_killed_redis_that_lost_everything_is_filled_again_without_a_seam(installation, valkey: ValkeyServer):
    async with standing(installation) as stand:
        valkey.kill()
        valkey.start()
    assert_seamless(stand.reader)


async def test_redis_and_feeds_killed_at_once_leave_a_gap_with_its_bounds_and_all_is_stored_once(
    installation, valkey: ValkeyServer
):
    async with standing(installation) as stand:
        stand.feeds.kill()
        valkey.kill()
        valkey.start()
        stand.feeds.start()
    [gap] = stand.reader.gaps
    assert sequence_of(gap.resume_cursor) > sequence_of(gap.after_cursor) + 100_000
    assert_told(stand.reader, await lost_ids(installation, gap))
    async with installation.connect() as rows:
        # What was lost between feed and storage was written down, and marked when it had come.
        lost = await rows.fetch("SELECT filled_time FROM marketdata.gaps WHERE instrument_id = $1", BTC)
    assert lost
    assert all(row["filled_time"] for row in lost)


@pytest.fixture
def mortal_postgres(tmp_path: Path) -> Iterator[PostgresProcess]:
    """One that may be killed."""
    with own_postgres(tmp_path) as running:
        sample.make_template(running.server)
        mesh.make_template(running.server)
        yield running


async def test_a_killed_postgres_holds_up_no_reader_and_has_everything_afterwards(
    installation, mortal_postgres: PostgresProcess
):
    await copy_database(mortal_postgres.server, mesh.TEMPLATE, "mesh_faults")
    async with standing(replace(installation, postgres=mortal_postgres.server, database="mesh_faults")) as stand:
        mortal_postgres.kill()
        # More than twice as long as a lease is good for.
        await stand.sees(round(RATE * 15))
        mortal_postgres.start()
    assert_seamless(stand.reader)
    assert len({batch.epoch for batch in stand.reader.batches}) == 1


MISHAPS: dict[str, Callable[[Binance], Any]] = {
    "disconnect": lambda venue: venue.faults.messages.append(faults.disconnect(stream="aggTrade", close_frame=False)),
    "duplicate": lambda venue: venue.faults.messages.append(faults.duplicate(10, stream="aggTrade")),
    "out of order": lambda venue: venue.faults.messages.append(faults.out_of_order(3, stream="aggTrade")),
    "missing": lambda venue: venue.faults.messages.append(faults.missing(5, stream="aggTrade")),
    "malformed": lambda venue: venue.faults.messages.append(faults.malformed(stream="aggTrade")),
    "slow record": lambda venue: (
        venue.faults.requests.append(faults.slow(2.0, path="aggTrades")),
        venue.faults.messages.append(faults.missing(5, stream="aggTrade")),
    ),
    "server error": lambda venue: (
        venue.faults.requests.append(faults.server_error(path="aggTrades")),
        venue.faults.messages.append(faults.missing(5, stream="aggTrade")),
    ),
}


# In short these stand in tests/feeds/test_exchange.py, without marketdata.
@pytest.mark.long
@pytest.mark.parametrize("mishap", MISHAPS)
async def test_whatever_befalls_the_venues_stream_readers_have_no_seam(installation, mishap):
    async with standing(installation) as stand:
        MISHAPS[mishap](stand.venue)
        await stand.sees(30)
        assert not (stand.venue.faults.messages or stand.venue.faults.requests)
    assert_seamless(stand.reader)


@pytest.mark.long
async def test_a_venue_that_goes_silent_while_it_answers_pings_is_noticed_and_left_for_a_new_connection(installation):
    async with standing(installation) as stand:
        stand.venue.faults.messages.append(faults.silence(stream="aggTrade"))
        traded = len(stand.market.aggregates)
        await stand.until(lambda: len(stand.market.aggregates) > traded + 60)
        # The record was asked, and told what the stream did not.
        await stand.sees(60)
        stand.venue.faults.messages.clear()
    assert_seamless(stand.reader)


@pytest.mark.long
async def test_too_many_requests_are_answered_by_waiting_and_what_was_missed_meanwhile_comes_late(installation):
    async with standing(installation) as stand:
        stand.venue.faults.requests.append(faults.too_many(7, path="aggTrades"))
        stand.venue.faults.messages.append(faults.missing(5, stream="aggTrade"))
        await stand.until(lambda: len(stand.reader.missed_ids) == 5)
        await stand.until(lambda: len(stand.reader.late_ids) == 5)
    assert not stand.reader.gaps
    assert_told(stand.reader)
