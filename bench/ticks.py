"""How many ticks the marketdata service hands out for its CPU, and how soon, beside the naive way and the ceiling."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from grpc import aio
from redis.asyncio import Redis
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from bench.baselines import CEILING, LISTENERS, NAIVE, PACED, TURN
from bench.batches import (
    BATCH_TICKS,
    FIRST_EPOCH,
    FIRST_SEQUENCE,
    PACED_ID,
    PACED_SECONDS,
    PACED_TICKS,
    PACED_TICKS_PER_SECOND,
    at_pace,
    ready_made,
    stamp_of,
    stamped,
)
from bench.load import MILLISECONDS, Load
from bench.rounds import Form, Measure, Report, Values, alternate, histogram, series
from bench.stack import Stack, cpu_seconds
from libs.bus import feed
from libs.bus.connection import open_redis
from libs.bus.feed import Batch, Cursor
from libs.cli.client import CALL_SECONDS, Metadata
from libs.ids import uuid7

STREAM = "/tradeloom.marketdata.v1.MarketDataService/StreamTicks"
CONNECTIONS = 8
"""Subscribers share them: each has streams of its own."""
OPENED_AT_ONCE = 25
"""Streams: what a thousand ask of Redis and Postgres as they open is no part of what is measured, and waits in turn."""
APPENDED_AT_ONCE = 4
"""Batches in one round trip of the feeder."""
AHEAD_BATCHES = 8
"""So far the feeder runs ahead of the slowest subscriber, however many there are: about what one message may hold."""
STALLED_BATCHES = 1_000
"""So much waits for the stalled subscriber already when the others come: megabytes, and less than ends its stream."""
RESUMED_TICKS = 180_000
"""What the resuming subscriber has missed: an hour of 50 a second. Redis keeps at most 100,000 of them."""
RESUMED_PAGES = 45
"""Thirty out of Postgres, the others out of Redis; then it resumes from the beginning again, and is not done before the others."""
SMALL_BYTES = 1_000
"""No page is so small, and whatever else a stream brings is: pages are not decoded, which would hold up the others' client."""
WARM_SECONDS = 0.3
TAKEN_SECONDS_MAX = 30.0
STORED_SECONDS_MAX = 300.0
POLL_SECONDS = 0.02
STEADY_FACTOR = 2
"""Rare latencies take so much longer to show than rates."""
OTHER_ROUNDS_MAX = 3
"""Where the number of subscribers is not the one whose ratios carry no number."""
CPU_SECONDS_MIN = 0.01
"""The kernel counts in steps of it."""
MICROSECONDS = 1_000_000
NANOSECONDS = 1_000_000_000
PLAIN_ID = "BENCH:LIVE"
"""Put by hand: its ticks are passed on and not stored."""
STORED_ID = "FILE:BENCH"
"""Announced by feeds: its ticks are passed on and stored."""
START_SECONDS = 60.0


Beside = Callable[[], AbstractAsyncContextManager[None]]
"""What goes on while something else is measured."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many listen."""

    counts: Sequence[int]
    headline: int
    """The count whose ratios carry no number in their names."""
    users: int
    """Among whom the subscribers are spread: one user may have only so many streams."""
    steady: int
    """Subscribers of the steady feed."""


FULL_SIZE = Size(counts=(1, 10, 100, 1_000), headline=100, users=20, steady=50)
SHORT_SIZE = Size(counts=(1, 4, 10), headline=10, users=2, steady=10)


@dataclass(frozen=True, slots=True)
class Side:
    """Where subscribers go: their method, over which connections, and whose CPU it costs."""

    path: str
    channels: Sequence[aio.Channel]
    pid: int


class Subscribers:
    """Readers of one stream each, spread over connections and users; they count and keep nothing.

    With batch_bytes, what is not whole batches may be a heartbeat and nothing else: no gap, nothing left out.
    """

    def __init__(
        self, side: Side, count: int, sessions: Sequence[Metadata], instrument_id: str, batch_bytes: int = 1
    ) -> None:
        self._batch_bytes = batch_bytes
        self._request = request_of(instrument_id)
        self._methods = [channel.unary_stream(side.path) for channel in side.channels]
        turn = ((TURN, str(uuid7())), (LISTENERS, str(count)))
        self._metadata = [(*session, *turn) for session in sessions]
        self.bytes = [0] * count
        self.messages = [0] * count
        self.woken = asyncio.Event()
        self.listening = 0
        self._opening = asyncio.Semaphore(OPENED_AT_ONCE)

    async def read(self) -> None:
        """Until cancelled. The first message of each is the acknowledgement, or stands for one."""
        async with asyncio.TaskGroup() as together:
            for number in range(len(self.bytes)):
                await self._opening.acquire()
                together.create_task(self._read(number))

    async def _read(self, number: int) -> None:
        method, metadata = self._methods[number % len(self._methods)], self._metadata[number % len(self._metadata)]
        call, batch_bytes = method(self._request, metadata=metadata), self._batch_bytes
        try:
            async for message in call:
                self.messages[number] += 1
                if self.messages[number] == 1:
                    self.listening += 1
                    self._opening.release()
                elif len(message) % batch_bytes:
                    told = marketdata_pb2.StreamTicksResponse.FromString(message)
                    if not told.HasField("heartbeat"):
                        raise RuntimeError(f"a stream of whole batches brought {told}")
                else:
                    self.take(number, message)
            raise RuntimeError(f"a stream ended: {await call.code()} {await call.details()}")
        finally:
            call.cancel()

    def take(self, number: int, message: bytes) -> None:
        self.bytes[number] += len(message)
        self.woken.set()


class Timed(Subscribers):
    """Keeps how long each batch was on its way, from the feed's stamp."""

    def __init__(
        self, side: Side, count: int, sessions: Sequence[Metadata], instrument_id: str, batch_bytes: int
    ) -> None:
        super().__init__(side, count, sessions, instrument_id, batch_bytes)
        self.latencies_seconds: list[float] = []

    def start_anew(self) -> None:
        """Forgets what was before what is measured."""
        self.latencies_seconds.clear()
        self.bytes, self.messages = [0] * len(self.bytes), [1] * len(self.messages)

    def take(self, number: int, message: bytes) -> None:
        now = time.monotonic_ns()
        for end in range(self._batch_bytes, len(message) + 1, self._batch_bytes):
            self.latencies_seconds.append((now - stamp_of(message, end)) / NANOSECONDS)
        super().take(number, message)


def request_of(instrument_id: str) -> bytes:
    return marketdata_pb2.StreamTicksRequest(instrument_ids=[instrument_id]).SerializeToString()


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


def costs(ticks: float, messages: float, cpu: float) -> Values:
    """What the server's CPU brought."""
    cpu = max(cpu, CPU_SECONDS_MIN)
    return {
        "ticks": ticks / cpu,
        "messages": messages / cpu,
        "message_microseconds": cpu / messages * MICROSECONDS,
        "ticks_per_message": ticks / messages,
    }


class Feeder:
    """Appends ready-made batches to the feed as fast as the subscribers take them."""

    def __init__(self, redis: Redis, instrument_id: str, epoch: int, batch_ticks: int = BATCH_TICKS) -> None:
        self._redis, self.instrument_id, self._epoch, self.batch_ticks = redis, instrument_id, epoch, batch_ticks
        self._sequence = FIRST_SEQUENCE - 1
        self._appended = 0
        [batch] = self._next(1)
        self.batch_bytes = len(batch.response)

    def _next(self, count: int) -> list[Batch]:
        """Made and stamped here and now: only the two cursors of a batch are encoded anew, its ticks are copied."""
        made = ready_made(self.instrument_id, self._epoch, count, self._sequence, self.batch_ticks)
        return [replace(batch, response=stamped(batch.response)) for batch in made]

    @property
    def cursor(self) -> str:
        return str(Cursor(self.instrument_id, self._epoch, self._sequence))

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
        task = asyncio.create_task(self._feed(subscribers, stopping.is_set))
        try:
            yield
            stopping.set()
            subscribers.woken.set()
            await task
            await self._taken(subscribers)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def pace(self, subscribers: Timed, seconds: float) -> None:
        """Feeds a batch at a time at a steady pace, and returns when every subscriber has everything, once."""
        self._appended = 0
        subscribers.start_anew()
        async for _ in at_pace(time.monotonic() + seconds):
            await self.append(1)
        await self._taken(subscribers)

    async def deliver(self, subscribers: Subscribers, ticks: int) -> None:
        """Feeds so many ticks as fast as they are taken, and returns when every subscriber has everything, once."""
        self._appended = 0
        await self._feed(subscribers, lambda: self._appended * self.batch_ticks >= ticks)
        await self._taken(subscribers)

    async def _taken(self, subscribers: Subscribers) -> None:
        async with asyncio.timeout(TAKEN_SECONDS_MAX):
            while min(subscribers.bytes) < self._appended * self.batch_bytes:  # noqa: ASYNC110 (over in a moment)
                await asyncio.sleep(POLL_SECONDS)
        if max(subscribers.bytes) > self._appended * self.batch_bytes:
            raise RuntimeError("a subscriber was sent more than was appended")

    async def _feed(self, subscribers: Subscribers, is_over: Callable[[], bool]) -> None:
        while not is_over():
            if self._appended - min(subscribers.bytes) // self.batch_bytes >= AHEAD_BATCHES:
                subscribers.woken.clear()
                await subscribers.woken.wait()
                continue
            await self.append(APPENDED_AT_ONCE)

    def ticks(self, subscribers: Subscribers) -> float:
        return sum(subscribers.bytes) / self.batch_bytes * self.batch_ticks

    async def stored(self) -> float:
        """Seconds until the marketdata service has stored what was appended."""
        began = time.perf_counter()
        while True:
            found = (await feed.stored(self._redis, [self.instrument_id])).get(self.instrument_id)
            if found and found.sequence >= self._sequence:
                return time.perf_counter() - began
            if time.perf_counter() - began > STORED_SECONDS_MAX:
                raise RuntimeError(f"the ticks were not stored within {STORED_SECONDS_MAX:g} s")
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def stalled(side: Side, session: Metadata, feeder: Feeder) -> AsyncIterator[None]:
    """One more subscriber, on a connection of its own, that takes the acknowledgement and nothing of all that follows."""
    call = side.channels[-1].unary_stream(side.path)(request_of(feeder.instrument_id), metadata=session)
    try:
        await call.read()
        for _ in range(0, STALLED_BATCHES, APPENDED_AT_ONCE):
            await feeder.append(APPENDED_AT_ONCE)
        yield
        if call.done():
            raise RuntimeError(f"the stalled stream ended: {await call.code()} {await call.details()}")
    finally:
        call.cancel()


class Missed:
    """Ticks that are stored, for a subscriber that has missed them."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._after = ""
        self.pages = 0

    async def store(self) -> None:
        self._after = self._feeder.cursor
        for _ in range(0, RESUMED_TICKS, self._feeder.batch_ticks * APPENDED_AT_ONCE):
            await self._feeder.append(APPENDED_AT_ONCE)
        await self._feeder.stored()
        # What is stored is dropped from Redis only when more comes.
        await self._feeder.append(APPENDED_AT_ONCE)

    async def read(self, side: Side, session: Metadata) -> None:
        """Until cancelled, over and over."""
        request = marketdata_pb2.StreamTicksRequest(
            instrument_ids=[self._feeder.instrument_id], after_cursors=[self._after]
        ).SerializeToString()
        while True:
            call = side.channels[-1].unary_stream(side.path)(request, metadata=session)
            until = self.pages + RESUMED_PAGES
            try:
                async for message in call:
                    if len(message) > SMALL_BYTES:
                        self.pages += 1
                    elif (told := marketdata_pb2.StreamTicksResponse.FromString(message)).HasField("gap"):
                        raise RuntimeError(f"what was missed is not there: {told}")
                    if self.pages == until:
                        break
            finally:
                call.cancel()


@asynccontextmanager
async def resuming(side: Side, session: Metadata, missed: Missed) -> AsyncIterator[None]:
    """One more subscriber, on a connection of its own, that reads what it has missed for as long as the block takes."""
    pages, task = missed.pages, asyncio.create_task(missed.read(side, session))
    try:
        yield
        if task.done():
            task.result()
        if missed.pages == pages:
            raise RuntimeError("the resuming stream brought nothing")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Bench:
    """The sides, in one arrangement of processes."""

    def __init__(self, form: Form, sessions: Sequence[Metadata], feeders: Mapping[str, Feeder]) -> None:
        self._seconds, self._sessions, self._feeders = form.seconds, sessions, feeders
        self.latencies_milliseconds: dict[str, list[float]] = {}

    async def fed(self, side: Side, instrument_id: str, count: int) -> Values:
        """The service, from the first append until everybody has everything and, if it is, everything is stored."""
        feeder = self._feeders[instrument_id]
        subscribers = Subscribers(side, count, self._sessions, instrument_id, feeder.batch_bytes)
        async with reading(subscribers):
            before = cpu_seconds(side.pid)
            async with feeder.feeding(subscribers):
                await asyncio.sleep(self._seconds)
            store_seconds = await feeder.stored() if instrument_id == STORED_ID else 0.0
            cpu = cpu_seconds(side.pid) - before
        found = costs(feeder.ticks(subscribers), sum(subscribers.messages) - count, cpu)
        return {**found, "store_seconds": store_seconds}

    async def endless(self, side: Side, ticks_in_message: int, count: int) -> Values:
        """A baseline, which has always something to send."""
        subscribers = Subscribers(side, count, self._sessions, PLAIN_ID)
        async with reading(subscribers):
            await asyncio.sleep(min(WARM_SECONDS, self._seconds))
            before, cpu_before = sum(subscribers.messages), cpu_seconds(side.pid)
            await asyncio.sleep(self._seconds)
            messages, cpu = sum(subscribers.messages) - before, cpu_seconds(side.pid) - cpu_before
        return costs(messages * ticks_in_message, messages, cpu)

    async def steady(self, name: str, side: Side, count: int, beside: Beside = nullcontext) -> Values:
        """Latencies at a steady pace; that of the service's side is the feeder's, a baseline has its own."""
        feeder, seconds = self._feeders[PACED_ID], self._seconds * STEADY_FACTOR
        async with AsyncExitStack() as around:
            await around.enter_async_context(beside())
            subscribers = Timed(side, count, self._sessions, PACED_ID, feeder.batch_bytes)
            await around.enter_async_context(reading(subscribers))
            if side.path == STREAM:
                await feeder.pace(subscribers, min(WARM_SECONDS, seconds))
                before = cpu_seconds(side.pid)
                await feeder.pace(subscribers, seconds)
            else:
                await asyncio.sleep(min(WARM_SECONDS, seconds))
                subscribers.start_anew()
                before = cpu_seconds(side.pid)
                await asyncio.sleep(seconds)
            cpu = cpu_seconds(side.pid) - before
            load = Load(list(subscribers.latencies_seconds), seconds)
            messages = sum(subscribers.messages) - count
        self.latencies_milliseconds.setdefault(name, []).extend(each * MILLISECONDS for each in load.latencies_seconds)
        found = costs(load.count * PACED_TICKS, messages, cpu)
        return {**load.values(), "max": load.percentile_milliseconds(1.0), **found}


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("ticks", form)
    size = SHORT_SIZE if form.is_short else FULL_SIZE
    sessions = await stack.users(size.users)
    await put_by_hand(stack, PLAIN_ID)
    await put_by_hand(stack, PACED_ID)
    await announce_stored(stack)
    async with stack.baselines() as beside, open_redis(stack.redis_url("feeds")) as redis:
        to_baselines = [stack.direct("orders", beside.port) for _ in range(CONNECTIONS)]
        service = Side(STREAM, [stack.direct("marketdata") for _ in range(CONNECTIONS)], stack.pid("marketdata"))
        stalling, catching_up = (replace(service, channels=[stack.direct("marketdata")]) for _ in range(2))
        naive, ceiling, paced = (Side(path, to_baselines, beside.pid) for path in (NAIVE, CEILING, PACED))
        feeders = {
            instrument_id: Feeder(redis, instrument_id, await next_epoch(redis, instrument_id), batch_ticks)
            for instrument_id, batch_ticks in (
                (PLAIN_ID, BATCH_TICKS),
                (STORED_ID, BATCH_TICKS),
                (PACED_ID, PACED_TICKS),
            )
        }
        for feeder in feeders.values():
            # The step from the instrument's own sequences to the bench's is before what is measured.
            await feeder.append(1)
        measuring = Bench(form, sessions, feeders)
        fanout: dict[int, dict[str, list[Values]]] = {}
        for count in size.counts:
            sides: dict[str, Measure] = {
                "naive": partial(measuring.endless, naive, 1, count),
                "service": partial(measuring.fed, service, PLAIN_ID, count),
                "ceiling": partial(measuring.endless, ceiling, BATCH_TICKS, count),
            }
            if count == size.headline:
                sides["storing"] = partial(measuring.fed, service, STORED_ID, count)
            rounds = form.rounds if count == size.headline else min(form.rounds, OTHER_ROUNDS_MAX)
            fanout[count] = await alternate(sides, rounds)
        missed = Missed(feeders[STORED_ID])
        await missed.store()
        one_stalled = partial(stalled, stalling, sessions[0], feeders[PACED_ID])
        one_resuming = partial(resuming, catching_up, sessions[0], missed)
        steady = await alternate(
            {
                "ceiling": partial(measuring.steady, "ceiling", paced, size.steady),
                "service": partial(measuring.steady, "service", service, size.steady),
                "stalled": partial(measuring.steady, "stalled", service, size.steady, one_stalled),
                "resuming": partial(measuring.steady, "resuming", service, size.steady, one_resuming),
            },
            form.rounds,
        )
    tell_fanout(report, size, fanout)
    tell_steady(report, size, steady)
    report.draw(histogram("feed to client", measuring.latencies_milliseconds))
    report.limits = (
        "CPU is that of the server's process alone, to 10 ms. Latencies are of two busy cores that "
        "server, Valkey, feeder and clients share; the baseline has neither Valkey nor feeder."
    )
    return report


def tell_fanout(report: Report, size: Size, fanout: Mapping[int, Mapping[str, Sequence[Values]]]) -> None:
    for count, measured in fanout.items():
        told = [("fanout", "service", f"_{count}", "")]
        if count == size.headline:
            told += [("fanout", "service", "", ""), ("storing", "storing", "", ", while all is stored too")]
        for name, subject, suffix, also in told:
            for baseline in ("naive", "ceiling"):
                report.compare(
                    f"{name}_vs_{baseline}{suffix}",
                    f"{count:,} subscribers{also}",
                    subject=series(measured[subject], "ticks"),
                    baseline=series(measured[baseline], "ticks"),
                    unit="ticks/CPU s",
                    of=baseline,
                )
        for side, values in measured.items():
            report.note(f"{side}_ticks_{count}", series(values, "ticks"))
            report.note(f"{side}_messages_{count}", series(values, "messages"))
            report.note(f"{side}_ticks_per_message_{count}", series(values, "ticks_per_message"))
        cost = series(measured["service"], "message_microseconds")
        report.tell(
            f"cost_per_subscriber_{count}", f"{count:,} subscribers, one message to one of them", cost, "µs CPU"
        )
    few, many = size.counts[1], size.counts[-1]
    report.compare(
        "cost_growth",
        f"one message to one of {many:,} subscribers",
        subject=series(fanout[many]["service"], "message_microseconds"),
        baseline=series(fanout[few]["service"], "message_microseconds"),
        unit="µs CPU",
        of=f"of {few}",
    )
    report.note("store_seconds_after", series(fanout[size.headline]["storing"], "store_seconds"))


def tell_steady(report: Report, size: Size, steady: Mapping[str, Sequence[Values]]) -> None:
    for name, what, subject, baseline, of in (
        ("p99_vs_ceiling", "", "service", "ceiling", "bare"),
        ("stalled_vs_none", ", one more stalled", "stalled", "service", "none stalled"),
        ("resuming_vs_none", ", one more resuming", "resuming", "service", "none resuming"),
    ):
        report.compare(
            name,
            f"{PACED_TICKS_PER_SECOND:,} ticks/s to {size.steady}, p99{what}",
            subject=series(steady[subject], "p99"),
            baseline=series(steady[baseline], "p99"),
            unit="ms",
            of=of,
        )
    for side, values in steady.items():
        for name in ("p50", "p99", "max", "message_microseconds"):
            report.note(f"steady_{side}_{name}", series(values, name))
    # Each of them is sent one message for each batch, however few ticks are in it.
    holds = [messages * PACED_SECONDS for messages in series(steady["service"], "messages")]
    report.tell("steady_subscribers_per_core", "subscribers of such a feed that one core holds", holds, "")


async def next_epoch(redis: Redis, instrument_id: str) -> int:
    """Above all that came before: of the instrument's feed, and of earlier runs on this stack."""
    newest = await feed.newest(redis, [instrument_id])
    return newest[instrument_id].epoch + FIRST_EPOCH if instrument_id in newest else FIRST_EPOCH


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


async def put_by_hand(stack: Stack, instrument_id: str) -> None:
    market = marketdata_pb2_grpc.MarketDataServiceStub(stack.edge())
    request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid7()), instrument=instrument(instrument_id))
    await market.PutInstrument(request, metadata=await stack.admin(), timeout=CALL_SECONDS)


async def announce_stored(stack: Stack, instrument_ids: Sequence[str] = (STORED_ID,)) -> None:
    """Recordings of one trade, played to their end by feeds: what follows is appended by the bench, as its next feeder."""
    async with open_redis(stack.redis_url("feeds")) as redis:
        if await feed.stored(redis, instrument_ids):
            return  # for another bench on this stack
        file = "bench.csv"
        recording = "timestamp,id,side,price,amount\n1767571200000,1,buy,60000,1\n"
        await asyncio.to_thread((stack.folder.replays / file).write_text, recording)
        feeds = feeds_pb2_grpc.FeedServiceStub(stack.edge())
        files = [feeds_pb2.RecordedFile(file=file, instrument=instrument(each)) for each in instrument_ids]
        await feeds.StartFeed(
            feeds_pb2.StartFeedRequest(request_id=str(uuid7()), replay=feeds_pb2.ReplaySource(files=files)),
            metadata=await stack.admin(),
            timeout=CALL_SECONDS,
        )
        async with asyncio.timeout(START_SECONDS):
            while len(await feed.stored(redis, instrument_ids)) < len(instrument_ids):  # noqa: ASYNC110 (Redis only answers)
                await asyncio.sleep(POLL_SECONDS)
