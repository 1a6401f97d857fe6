"""The relay: carries a service's outbox to Redis, in order, and again whatever Redis or a reader has lost.

Each partition is a stream `facts:<source>:<partition>`. An entry's id is `<epoch of the relay's lease>-<counter>`, so ids
rise whatever Redis forgets, and Redis itself refuses some of what an outdated relay sends. Its fields: `f`, the Fact; `p`, the id
before it, by which a reader sees that something is missing; `o`, where a key was asked for and what comes before this is
kept no more. An entry without `f` only carries `p`, or in `g` a key of which nothing is kept after what was asked for.
Readers ask for what they miss in `facts:<source>:replay`, by partition or by key.

Rows are published when they are unpublished, never because their id is greater than the last: commits are not in the
order of ids. One killed between sending and marking sends again; readers drop what they have. What goes out again takes
turns with what is new: a row that was published and is to be again has lost its stream_epoch and kept its counter.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from prometheus_client import Gauge
from redis.asyncio import Redis
from tradeloom.type.v1.fact_pb2 import Fact

from libs.errors import Unavailable
from libs.store import outbox
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import Lease, LeaseLost, fence, holding, release_beyond
from libs.store.outbox import PARTITIONS
from libs.store.requests import purging

BATCH_ROWS = 500
STREAM_ENTRIES_MAX = 2_000  # of one partition; what is trimmed by it is still in the outbox
KEYS_ENTRIES_MAX = 1_000  # batches whose keys are kept: who stood still for longer looks without being told
ENTRY_BYTES = 1_250  # of Redis's memory for one entry on average, above what our facts take
GATHER_SECONDS = 0.02  # from one batch to the next while there is more: what comes meanwhile leaves together
POLL_SECONDS = 0.2  # for what other processes of this service committed, and for readers' requests
WATCH_SECONDS = 1.0  # how often Redis is compared with what was published
TIDY_SECONDS = 60.0
TIDY_ROWS = 5_000
# No tidying for so long after the start and after a replay: whoever was away as well has yet to ask for what it lacks.
TIDY_AFTER_SECONDS = 300.0
REQUESTS_MAX = 1_000
UNPUBLISH_ROWS = 2_000  # in one transaction
# A batch in so many seconds goes out again: more would be trimmed before the slowest reader has come to it.
REPLAY_SECONDS = 0.1
MEASURE_SECONDS = 2.0
MEASURE_ROWS = 100_000
STUCK_SECONDS = 15.0  # that one and the same fact may wait until the service is no longer ready
INT64_MAX = 2**63 - 1

# What was never published, and what was and is to go out again. Each has an index of its own, in store_tables().
NEW = "stream_epoch IS NULL AND stream_counter IS NULL"
AGAIN = "stream_epoch IS NULL AND stream_counter IS NOT NULL"

WAITING = Gauge("tradeloom_outbox_waiting", f"Facts that were never published; {MEASURE_ROWS} means more.", ["source"])
WAITING_SECONDS = Gauge(
    "tradeloom_outbox_waiting_seconds", "Age of the oldest fact that was never published.", ["source"]
)

StreamId = tuple[int, int]
NOTHING: StreamId = (0, 0)

log = logging.getLogger(__name__)


class RelayStuck(Unavailable):
    """What the service does is told to nobody."""


def stream_of(source: str, partition: int) -> str:
    return f"facts:{source}:{partition}"


def keys_of(source: str) -> str:
    """What facts are about, a batch in an entry: for whoever only wants to hear that something happened."""
    return f"facts:{source}:keys"


def requests_of(source: str) -> str:
    return f"facts:{source}:replay"


def id_text(stream_id: StreamId) -> str:
    return f"{stream_id[0]}-{stream_id[1]}"


def id_from(text: bytes | str) -> StreamId:
    epoch, counter = (text.decode() if isinstance(text, bytes) else text).split("-")
    return int(epoch), int(counter)


async def newest_ids(redis: Redis, streams: Sequence[str]) -> list[StreamId]:
    """The newest id each stream ever had, in one round trip; NOTHING where there is no stream."""
    pipeline = redis.pipeline(transaction=False)
    for stream in streams:
        pipeline.xinfo_stream(stream)
    found: list[StreamId] = []
    for state in await pipeline.execute(raise_on_error=False):
        if isinstance(state, Exception) and "no such key" not in str(state):
            raise state
        found.append(NOTHING if isinstance(state, Exception) else id_from(state["last-generated-id"]))
    return found


class _OfPartition(NamedTuple):
    partition: int
    after: StreamId


class _OfKey(NamedTuple):
    key: str
    after: int


def _request_from(fields: Mapping[bytes, bytes]) -> _OfPartition | _OfKey | None:
    """What a reader asks for; None if it is no request: others may write there too."""
    try:
        if b"partition" in fields:
            partition, after = int(fields[b"partition"]), id_from(fields[b"after"])
            is_sound = 0 <= partition < PARTITIONS and min(after) >= 0 and max(after) <= INT64_MAX
            return _OfPartition(partition, after) if is_sound else None
        key, sequence = fields[b"key"].decode(), int(fields[b"after"])
    except (KeyError, ValueError):
        return None
    return _OfKey(key, sequence) if "\0" not in key and 0 <= sequence <= INT64_MAX else None


class Relay:
    """How the facts of source leave, whichever replica's relay carries them."""

    def __init__(self, database: Database, source: str) -> None:
        self._database = database
        self._source = source
        self._waiting: int | None = None
        self._since = 0.0
        self.trouble = ""
        """Why this process's own relay failed last; empty once it works."""

    async def check(self) -> None:
        """Raise RelayStuck if the same fact has been the next for STUCK_SECONDS.

        Then a service that went on would take on what nobody carries out. A long queue that moves is no reason.
        """
        if self._waiting is not None and (waited := time.monotonic() - self._since) >= STUCK_SECONDS:
            why = self.trouble or "the relay that holds the lease does not get on"
            raise RelayStuck(f"no fact has left for {waited:.0f} s: {why}", dependency="relay")

    async def measure(self) -> None:
        """See what waits, now."""
        async with self._database.reading() as rows:
            count: Any = await rows.fetchval(
                f"SELECT count(*) FROM (SELECT FROM outbox WHERE {NEW} LIMIT $1) AS waiting", MEASURE_ROWS
            )
            oldest = await rows.fetchrow(
                f"""
                SELECT outbox_id, extract(epoch FROM clock_timestamp() - create_time)::float8 AS seconds FROM outbox
                WHERE {NEW} ORDER BY outbox_id LIMIT 1
                """
            )
        WAITING.labels(self._source).set(count)
        WAITING_SECONDS.labels(self._source).set(max(0.0, oldest["seconds"]) if oldest else 0.0)
        waiting = oldest["outbox_id"] if oldest else None
        if waiting != self._waiting:
            self._waiting, self._since = waiting, time.monotonic()


@asynccontextmanager
async def relay(database: Database, redis: Redis, source: str) -> AsyncIterator[Relay]:
    """Relay the outbox of source, and purge its request keys, during the block. database is of the worker role.

    Every replica runs one; the holder of a lease relays and the others stand by.
    """
    woken = asyncio.Event()
    told = Relay(database, source)

    async def work() -> None:
        try:
            async with holding(database, f"relay/{source}") as lease:
                await _Tenure(database, redis, source, lease, woken, told).work()
        except Exception as error:
            told.trouble = f"{type(error).__name__}: {error}"
            raise

    async def measure() -> None:
        await told.measure()
        await asyncio.sleep(MEASURE_SECONDS)

    outbox.wakers.add(woken.set)
    try:
        # Whoever has an outbox has request keys too: here no service can forget them.
        async with (
            running(f"relay of {source}", work),
            running(f"measuring the outbox of {source}", measure),
            purging(database),
        ):
            yield told
    finally:
        outbox.wakers.discard(woken.set)


class _Tenure:
    """One tenure of a relay: from taking the lease to losing it."""

    def __init__(
        self, database: Database, redis: Redis, source: str, lease: Lease, woken: asyncio.Event, told: Relay
    ) -> None:
        self._database = database
        self._redis = redis
        self._source = source
        self._lease = lease
        self._woken = woken
        self._told = told
        self._counter = 0
        self._tails: dict[int, StreamId] = {}
        self._asked_partitions: dict[int, StreamId] = {}
        self._asked_keys: dict[str, int] = {}
        self._is_replaying = True
        """Whether something may be there that is to go out again."""
        self._replay_at = 0.0
        self._tidy_at = time.monotonic() + TIDY_AFTER_SECONDS

    async def work(self) -> None:
        async with self._database.transaction() as rows:
            await self._find_tails(rows)
        await self._outrun_another_history()
        await self._trim()
        poll_at = watch_at = time.monotonic()
        while True:
            self._woken.clear()
            if time.monotonic() >= poll_at:
                await self._take_requests()
                poll_at = time.monotonic() + POLL_SECONDS
            gathered = asyncio.get_running_loop().time() + GATHER_SECONDS
            published = await self._publish()
            is_behind = published == BATCH_ROWS
            await self._replay()
            if time.monotonic() >= watch_at:
                await self._mend_losses()
                watch_at = time.monotonic() + WATCH_SECONDS
            self._told.trouble = ""
            if is_behind or self._asked_partitions:
                continue
            if time.monotonic() >= self._tidy_at:
                if await self._tidy() < TIDY_ROWS:
                    self._tidy_at = time.monotonic() + TIDY_SECONDS
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(REPLAY_SECONDS if self._asked_keys or self._is_replaying else POLL_SECONDS):
                    await self._woken.wait()
            if published:
                # A fact alone leaves at once; one that follows another waits for those that follow it.
                await asyncio.sleep(gathered - asyncio.get_running_loop().time())

    async def _find_tails(self, rows: Connection) -> None:
        newest = await rows.fetch(
            """
            SELECT number, stream_epoch, stream_counter FROM generate_series(0, $1 - 1) AS number,
            LATERAL (SELECT stream_epoch, stream_counter FROM outbox
                     WHERE partition = number AND stream_epoch IS NOT NULL
                     ORDER BY stream_epoch DESC, stream_counter DESC LIMIT 1) AS newest
            """,
            PARTITIONS,
        )
        self._tails = {row["number"]: (row["stream_epoch"], row["stream_counter"]) for row in newest}

    async def _outrun_another_history(self) -> None:
        """Start over with a higher epoch if Redis has ids beyond ours: Postgres was restored from an older copy."""
        newest = await self._newest_ids(range(PARTITIONS))
        if (epoch := max(newest)[0]) > self._lease.epoch:
            async with self._database.transaction() as rows:
                await release_beyond(rows, self._lease, epoch)
            raise LeaseLost(self._lease)

    async def _trim(self) -> None:
        """Hold the streams to their bound. A full Redis refuses an append before it trims, but never this."""
        pipeline = self._redis.pipeline(transaction=False)
        for partition in range(PARTITIONS):
            pipeline.xtrim(stream_of(self._source, partition), maxlen=STREAM_ENTRIES_MAX, approximate=True)
        await pipeline.execute()

    async def _publish(self) -> int:
        """Send the next rows that are new and mark them; how many there were."""
        return await self._publish_where(NEW)

    async def _publish_where(self, condition: str) -> int:
        async with self._database.reading() as rows:
            pending = await rows.fetch(
                f"""
                SELECT outbox_id, partition, key, sequence, user_id, kind, payload, create_time FROM outbox
                WHERE {condition} ORDER BY outbox_id LIMIT $1
                """,
                BATCH_ROWS,
            )
        if pending:
            entries = [(row["partition"], self._fields(row)) for row in pending]
            stream_ids = await self._send(entries, {row["key"]: None for row in pending})
            await self._mark([row["outbox_id"] for row in pending], stream_ids)
        return len(pending)

    async def _mark(self, outbox_ids: Sequence[int], stream_ids: Sequence[StreamId]) -> None:
        async with self._database.transaction() as rows:
            # Marks that are lost with the server have the facts leave once more, which their readers take for repeats.
            await rows.execute("SET LOCAL synchronous_commit = off")
            await fence(rows, self._lease)
            await rows.execute(
                """
                UPDATE outbox SET stream_epoch = $1, stream_counter = sent.counter
                FROM unnest($2::bigint[], $3::bigint[]) AS sent (outbox_id, counter)
                WHERE outbox.outbox_id = sent.outbox_id
                """,
                self._lease.epoch,
                outbox_ids,
                [counter for _, counter in stream_ids],
            )

    def _fields(self, row: Any) -> dict[str, bytes | str]:
        fact = Fact(
            source=self._source,
            key=row["key"],
            sequence=row["sequence"],
            user_id=str(row["user_id"] or ""),
            time=row["create_time"],
            kind=row["kind"],
            payload=row["payload"],
        )
        return {"f": fact.SerializeToString()}

    async def _send(
        self, entries: Sequence[tuple[int, dict[str, bytes | str]]], keys: Collection[str] = ()
    ) -> list[StreamId]:
        """Append the entries in order, and after them the keys they are about, in one round trip; the entries' ids.

        A refusal is raised after the others were sent.
        """
        pipeline = self._redis.pipeline(transaction=False)
        stream_ids: list[StreamId] = []
        tails = dict(self._tails)
        for partition, fields in entries:
            self._counter += 1
            stream_id = (self._lease.epoch, self._counter)
            pipeline.xadd(
                stream_of(self._source, partition),
                {**fields, "p": id_text(tails.get(partition, NOTHING))},
                id=id_text(stream_id),
                maxlen=STREAM_ENTRIES_MAX,
                approximate=True,
            )
            tails[partition] = stream_id
            stream_ids.append(stream_id)
        if keys:
            pipeline.xadd(
                keys_of(self._source),
                {"k": "\0".join(keys)},
                id=id_text(stream_ids[-1]),
                maxlen=KEYS_ENTRIES_MAX,
                approximate=True,
            )
        results = await pipeline.execute(raise_on_error=False)
        for (partition, _), stream_id, result in zip(entries, stream_ids, results, strict=False):
            if isinstance(result, Exception):
                raise result
            self._tails[partition] = stream_id
        if isinstance(results[-1], Exception):
            raise results[-1]
        return stream_ids

    async def _mend_losses(self) -> None:
        """Where Redis has less than was published, say so in the stream; readers ask for what they lack."""
        newest = await self._newest_ids(self._tails)
        if lost := [
            partition for partition, found in zip(self._tails, newest, strict=True) if found < self._tails[partition]
        ]:
            await self._send([(partition, {}) for partition in lost])

    async def _newest_ids(self, partitions: Iterable[int]) -> list[StreamId]:
        return await newest_ids(self._redis, [stream_of(self._source, partition) for partition in partitions])

    async def _take_requests(self) -> None:
        """Take in what readers miss. Who gets no answer asks again."""
        if len(self._asked_keys) >= REQUESTS_MAX:
            return
        requests: Any = await self._redis.xrange(requests_of(self._source), count=REQUESTS_MAX)
        if not requests:
            return
        await self._redis.xdel(requests_of(self._source), *(request_id for request_id, _ in requests))
        for _, fields in requests:
            request = _request_from(fields)
            if isinstance(request, _OfPartition):
                before = self._asked_partitions.get(request.partition, request.after)
                self._asked_partitions[request.partition] = min(before, request.after)
            elif isinstance(request, _OfKey):
                self._asked_keys[request.key] = min(self._asked_keys.get(request.key, request.after), request.after)
            else:
                log.warning("a request for facts of %s makes no sense: %s", self._source, fields)

    async def _replay(self) -> None:
        """One more slice of what is to go out again."""
        now = time.monotonic()
        if self._asked_partitions:
            await self._unpublish()
        if now < self._replay_at:
            return
        if self._asked_keys:
            self._replay_at = now + REPLAY_SECONDS
            await self._answer_keys()
        # What is taken back meanwhile would only be taken back again.
        if self._is_replaying and not self._asked_partitions:
            self._replay_at = now + REPLAY_SECONDS
            self._is_replaying = await self._publish_where(AGAIN) > 0
            if self._is_replaying:
                self._tidy_at = max(self._tidy_at, now + TIDY_AFTER_SECONDS)

    async def _unpublish(self) -> None:
        """Take back UNPUBLISH_ROWS of what was published after what a reader has.

        Once there is no more, an entry says where the reader goes on; from there it gets all of them. What is sent
        before, it gets again.
        """
        partition, (epoch, counter) = next(iter(self._asked_partitions.items()))
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            updated = await rows.execute(
                """
                UPDATE outbox SET stream_epoch = NULL
                FROM (SELECT outbox_id FROM outbox
                      WHERE partition = $1 AND stream_epoch IS NOT NULL
                      AND (stream_epoch, stream_counter) > ($2::bigint, $3::bigint)
                      ORDER BY stream_epoch, stream_counter LIMIT $4) AS slice
                WHERE outbox.outbox_id = slice.outbox_id
                """,
                partition,
                epoch,
                counter,
                UNPUBLISH_ROWS,
            )
        self._is_replaying = True
        if int(updated.split()[-1]) < UNPUBLISH_ROWS:
            self._tails[partition] = self._asked_partitions.pop(partition)
            await self._send([(partition, {})])

    async def _answer_keys(self) -> None:
        """Send a batch of what readers miss of some keys, all in its order, whether it was published before or not.

        So a reader has caught up in the end, however fast the key goes on. If what a reader wants is gone, that is said.
        """
        async with self._database.transaction() as rows:
            found = await rows.fetch(
                """
                SELECT asked.key AS asked_key, kept.* FROM unnest($1::text[], $2::bigint[])
                WITH ORDINALITY AS asked (key, after, place) LEFT JOIN LATERAL (
                  SELECT outbox_id, partition, key, sequence, user_id, kind, payload, create_time FROM outbox
                  WHERE key = asked.key AND sequence > asked.after ORDER BY sequence LIMIT $3 + 1) AS kept ON true
                ORDER BY asked.place, kept.sequence LIMIT $3 + 1
                """,
                list(self._asked_keys),
                list(self._asked_keys.values()),
                BATCH_ROWS,
            )
        entries: list[tuple[int, dict[str, bytes | str]]] = []
        reached: dict[str, int] = {}
        for row in found[:BATCH_ROWS]:
            key = str(row["asked_key"])
            before = reached.get(key, self._asked_keys[key])
            if row["outbox_id"] is None:
                entries.append((outbox.partition_of(key), {"g": key}))
                reached[key] = before
            else:
                is_gone = row["sequence"] > before + 1
                entries.append((row["partition"], {**self._fields(row), **({"o": "1"} if is_gone else {})}))
                reached[key] = row["sequence"]
        stream_ids = await self._send(entries)
        sent = [
            (row["outbox_id"], stream_id)
            for row, stream_id in zip(found, stream_ids, strict=False)
            if row["outbox_id"] is not None
        ]
        await self._mark([outbox_id for outbox_id, _ in sent], [stream_id for _, stream_id in sent])
        for key in reached:
            del self._asked_keys[key]
        if len(found) > BATCH_ROWS and (key := found[BATCH_ROWS]["asked_key"]) in reached:
            self._asked_keys[key] = reached[key]

    async def _tidy(self) -> int:
        """Forget published facts older than outbox.KEPT_DAYS, TIDY_ROWS at most, also in Redis; how many."""
        async with self._database.transaction() as rows:
            deleted = await rows.execute(
                """
                DELETE FROM outbox USING (SELECT outbox_id FROM outbox ORDER BY outbox_id LIMIT $1) AS first
                WHERE outbox.outbox_id = first.outbox_id AND stream_epoch IS NOT NULL
                AND create_time < now() - make_interval(days => $2)
                """,
                TIDY_ROWS,
                outbox.KEPT_DAYS,
            )
            oldest = await rows.fetch(
                """
                SELECT number, stream_epoch, stream_counter FROM generate_series(0, $1 - 1) AS number,
                LATERAL (SELECT stream_epoch, stream_counter FROM outbox
                         WHERE partition = number AND stream_epoch IS NOT NULL
                         ORDER BY stream_epoch, stream_counter LIMIT 1) AS oldest
                """,
                PARTITIONS,
            )
        kept = {row["number"]: (row["stream_epoch"], row["stream_counter"]) for row in oldest}
        await self._trim_before(kept)
        return int(deleted.split()[-1])

    async def _trim_before(self, kept: Mapping[int, StreamId]) -> None:
        """Have Redis forget what comes before what is kept, by partition; where nothing is, all that was sent so far.

        No loss to anybody: Redis remembers the newest id of a stream, an empty one too, and who has read up to it goes on
        from there. Never beyond what this tenure has sent: what a successor sends may not be marked as published yet.
        """
        unsent = (self._lease.epoch, self._counter + 1)
        pipeline = self._redis.pipeline(transaction=False)
        for partition in range(PARTITIONS):
            oldest = min(kept.get(partition, unsent), unsent)
            pipeline.xtrim(stream_of(self._source, partition), minid=id_text(oldest), approximate=False)
        await pipeline.execute()
