"""How many ticks a second the marketdata service hands to its subscribers, beside the naive way and beside the ceiling."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from grpc import aio
from redis.asyncio import Redis
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from bench.baselines import CEILING, NAIVE
from bench.batches import BATCH_TICKS, FIRST_SEQUENCE, ready_made
from bench.rounds import Form, Report, Values, alternate, series
from bench.stack import Stack
from libs.bus import feed
from libs.bus.connection import open_redis
from libs.bus.feed import Batch
from libs.cli.client import CALL_SECONDS, Metadata
from libs.ids import uuid7

STREAM = "/tradeloom.marketdata.v1.MarketDataService/StreamTicks"
SUBSCRIBERS = 8
APPENDED_AT_ONCE = 20
"""As many as a feeder appends in one round trip."""
AHEAD_BATCHES = 200
"""So far the feeder runs ahead of the slowest subscriber: always more than is taken, never so much that one is too slow."""
WARM_SECONDS = 0.3
TAKEN_SECONDS_MAX = 30.0
STORED_SECONDS_MAX = 300.0
POLL_SECONDS = 0.02
PLAIN_ID = "BENCH:LIVE"
"""Put by hand: its ticks are passed on and not stored."""
STORED_ID = "FILE:BENCH"
"""Announced by feeds: its ticks are passed on and stored."""
START_SECONDS = 30.0


class Subscribers:
    """Readers of one stream each, every one on a connection of its own; they count and keep nothing.

    With batch_bytes, what is not whole batches may be a heartbeat and nothing else: no gap, nothing left out.
    """

    def __init__(
        self, channels: Sequence[aio.Channel], path: str, request: bytes, session: Metadata, batch_bytes: int = 1
    ) -> None:
        self._batch_bytes = batch_bytes
        self._calls = [channel.unary_stream(path)(request, metadata=session) for channel in channels]
        self.bytes = [0] * len(channels)
        self.messages = [0] * len(channels)
        self.woken = asyncio.Event()
        self.listening = 0

    async def read(self) -> None:
        """Until cancelled. The first message of each is the acknowledgement, or no different from the others."""
        async with asyncio.TaskGroup() as together:
            for number in range(len(self._calls)):
                together.create_task(self._read(number))

    async def _read(self, number: int) -> None:
        call, woken, taken, batch_bytes = self._calls[number], self.woken, self.bytes, self._batch_bytes
        try:
            async for message in call:
                self.messages[number] += 1
                if self.messages[number] == 1:
                    self.listening += 1
                elif len(message) % batch_bytes:
                    told = marketdata_pb2.StreamTicksResponse.FromString(message)
                    if not told.HasField("heartbeat"):
                        raise RuntimeError(f"a stream of whole batches brought {told}")
                else:
                    taken[number] += len(message)
                    woken.set()
            raise RuntimeError(f"a stream ended: {await call.code()} {await call.details()}")
        finally:
            call.cancel()


@asynccontextmanager
async def reading(subscribers: Subscribers) -> AsyncIterator[None]:
    task = asyncio.create_task(subscribers.read())
    try:
        async with asyncio.timeout(START_SECONDS):
            while subscribers.listening < len(subscribers.bytes):
                if task.done():
                    task.result()
                await asyncio.sleep(POLL_SECONDS)
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def rate(ticks: Callable[[], float], seconds: float) -> Values:
    """Ticks a second that all subscribers together were handed."""
    await asyncio.sleep(min(WARM_SECONDS, seconds))
    before, began = ticks(), time.perf_counter()
    await asyncio.sleep(seconds)
    return {"ticks": (ticks() - before) / (time.perf_counter() - began)}


class Feeder:
    """Appends ready-made batches to the feed as fast as the subscribers take them."""

    def __init__(self, redis: Redis, instrument_id: str, epoch: int) -> None:
        self._redis, self._instrument_id, self._epoch = redis, instrument_id, epoch
        self._sequence = FIRST_SEQUENCE - 1
        self._appended = 0
        [batch] = self._next(1)
        self.batch_bytes = len(batch.response)

    def _next(self, count: int) -> list[Batch]:
        """Made here and now: only the two cursors of a batch are encoded anew, its ticks are copied."""
        return list(ready_made(self._instrument_id, self._epoch, count, self._sequence))

    async def append(self, count: int) -> None:
        batches = self._next(count)
        await feed.append(self._redis, batches)
        self._sequence = batches[-1].cursor.sequence
        self._appended += count

    @asynccontextmanager
    async def feeding(self, subscribers: Subscribers) -> AsyncIterator[None]:
        """Feeds during the block, and returns when every subscriber has everything, once."""
        self._appended = 0
        stopping = asyncio.Event()
        task = asyncio.create_task(self._feed(subscribers, stopping))
        try:
            yield
            stopping.set()
            subscribers.woken.set()
            await task
            async with asyncio.timeout(TAKEN_SECONDS_MAX):
                while min(subscribers.bytes) < self._appended * self.batch_bytes:  # noqa: ASYNC110 (over in a moment)
                    await asyncio.sleep(POLL_SECONDS)
            if max(subscribers.bytes) > self._appended * self.batch_bytes:
                raise RuntimeError("a subscriber was sent more than was appended")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _feed(self, subscribers: Subscribers, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            if self._appended - min(subscribers.bytes) // self.batch_bytes >= AHEAD_BATCHES:
                subscribers.woken.clear()
                await subscribers.woken.wait()
                continue
            await self.append(APPENDED_AT_ONCE)

    def ticks(self, subscribers: Subscribers) -> float:
        return sum(subscribers.bytes) / self.batch_bytes * BATCH_TICKS

    async def stored(self) -> float:
        """Seconds until the marketdata service has stored what was appended."""
        began = time.perf_counter()
        while True:
            found = (await feed.stored(self._redis, [self._instrument_id])).get(self._instrument_id)
            if found and found.sequence >= self._sequence:
                return time.perf_counter() - began
            if time.perf_counter() - began > STORED_SECONDS_MAX:
                raise RuntimeError(f"the ticks were not stored within {STORED_SECONDS_MAX:g} s")
            await asyncio.sleep(POLL_SECONDS)


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("ticks", form)
    [session] = await stack.users(1)
    await put_plain(stack)
    await announce_stored(stack)
    async with stack.baselines() as port, open_redis(stack.redis_url("feeds")) as redis:
        channels = {
            "baselines": [stack.direct("orders", port) for _ in range(SUBSCRIBERS)],
            "service": [stack.direct("marketdata") for _ in range(SUBSCRIBERS)],
        }
        feeders = {
            instrument_id: Feeder(redis, instrument_id, await next_epoch(redis, instrument_id))
            for instrument_id in (PLAIN_ID, STORED_ID)
        }

        for feeder in feeders.values():
            # The step from the instrument's own sequences to the bench's is before what is measured.
            await feeder.append(1)

        async def service(instrument_id: str) -> Values:
            request = marketdata_pb2.StreamTicksRequest(instrument_ids=[instrument_id]).SerializeToString()
            feeder = feeders[instrument_id]
            subscribers = Subscribers(channels["service"], STREAM, request, session, feeder.batch_bytes)
            async with reading(subscribers), feeder.feeding(subscribers):
                values = await rate(lambda: feeder.ticks(subscribers), form.seconds)
            # Whatever is left to store is not to burden the next side.
            return {**values, "store_seconds": await feeder.stored() if instrument_id == STORED_ID else 0.0}

        async def baseline(path: str, ticks_in: Callable[[Subscribers], float]) -> Values:
            request = marketdata_pb2.StreamTicksRequest(instrument_ids=[PLAIN_ID]).SerializeToString()
            subscribers = Subscribers(channels["baselines"], path, request, session)
            async with reading(subscribers):
                return await rate(lambda: ticks_in(subscribers), form.seconds)

        measured = await alternate(
            {
                "naive": partial(baseline, NAIVE, lambda subscribers: sum(subscribers.messages)),
                "service": partial(service, PLAIN_ID),
                "ceiling": partial(baseline, CEILING, lambda subscribers: sum(subscribers.messages) * BATCH_TICKS),
                "storing": partial(service, STORED_ID),
            },
            form.rounds,
        )
    for name, subject, baseline_name in (
        ("fanout_vs_naive", "service", "naive"),
        ("fanout_vs_ceiling", "service", "ceiling"),
        ("storing_vs_naive", "storing", "naive"),
        ("storing_vs_ceiling", "storing", "ceiling"),
    ):
        report.compare(
            name,
            f"{SUBSCRIBERS} subscribers{', while all is stored too' if subject == 'storing' else ''}",
            subject=series(measured[subject], "ticks"),
            baseline=series(measured[baseline_name], "ticks"),
            unit="ticks/s",
            of=baseline_name,
        )
    for name, values in measured.items():
        report.note(f"{name}_ticks", series(values, "ticks"))
    report.note("store_seconds_after", series(measured["storing"], "store_seconds"))
    report.limits = (
        "The client takes as much of the cores as the server; the service's side also runs Valkey and the feeder."
    )
    return report


async def next_epoch(redis: Redis, instrument_id: str) -> int:
    """Above all that came before: of the instrument's feed, and of earlier runs on this stack."""
    newest = await feed.newest(redis, [instrument_id])
    return newest[instrument_id].epoch + 1_000 if instrument_id in newest else 1_000


def instrument(instrument_id: str) -> marketdata_pb2.Instrument:
    return marketdata_pb2.Instrument(
        instrument_id=instrument_id,
        description="Made by the bench",
        asset_class=marketdata_pb2.ASSET_CLASS_CRYPTO,
        base_asset="BENCH",
        quote_asset="USDT",
        tick_size=decimal_pb2.Decimal(value="0.01"),
        lot_size=decimal_pb2.Decimal(value="0.00001"),
        minimum_notional=decimal_pb2.Decimal(value="1"),
        maker_fee_rate=decimal_pb2.Decimal(value="0.001"),
        taker_fee_rate=decimal_pb2.Decimal(value="0.001"),
    )


async def put_plain(stack: Stack) -> None:
    market = marketdata_pb2_grpc.MarketDataServiceStub(stack.edge())
    request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid7()), instrument=instrument(PLAIN_ID))
    await market.PutInstrument(request, metadata=await stack.admin(), timeout=CALL_SECONDS)


async def announce_stored(stack: Stack) -> None:
    """A recording of one trade, played to its end by feeds: what follows is appended by the bench, as its next feeder."""
    async with open_redis(stack.redis_url("feeds")) as redis:
        if await feed.stored(redis, [STORED_ID]):
            return  # for another bench on this stack
    file = "bench.csv"
    recording = "timestamp,id,side,price,amount\n1767571200000,1,buy,60000,1\n"
    await asyncio.to_thread((stack.folder.replays / file).write_text, recording)
    admin = await stack.admin()
    feeds = feeds_pb2_grpc.FeedServiceStub(stack.edge())
    source = feeds_pb2.ReplaySource(files=[feeds_pb2.RecordedFile(file=file, instrument=instrument(STORED_ID))])
    await feeds.StartFeed(
        feeds_pb2.StartFeedRequest(request_id=str(uuid7()), replay=source), metadata=admin, timeout=CALL_SECONDS
    )
    async with asyncio.timeout(START_SECONDS), open_redis(stack.redis_url("feeds")) as redis:
        while not await feed.stored(redis, [STORED_ID]):  # noqa: ASYNC110 (Redis only answers)
            await asyncio.sleep(POLL_SECONDS)
