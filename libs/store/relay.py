"""The relay: carries a service's outbox to Redis, in order, and again whatever Redis or a reader has lost.

Each partition is a stream `facts:<source>:<partition>`. An entry's id is `<epoch of the relay's lease>-<counter>`, so ids
rise whatever Redis forgets, and Redis itself refuses some of what an outdated relay sends. Its fields: `f`, the Fact; `p`, the id
before it, by which a reader sees that something is missing; `o`, where a key was asked for and this is the oldest kept. An
entry without `f` only carries `p`. Readers ask for what they miss in `facts:<source>:replay`, by partition or by key.

Rows are published when they are unpublished, never because their id is greater than the last: commits are not in the
order of ids. One killed between sending and marking sends again; readers drop what they have.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from tradeloom.type.v1.fact_pb2 import Fact

from libs.store import outbox
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import Lease, LeaseLost, fence, holding, release_beyond
from libs.store.outbox import PARTITIONS

BATCH_ROWS = 500
STREAM_ENTRIES_MAX = 100_000  # of one partition; what is trimmed is still in the outbox
POLL_SECONDS = 0.2  # for what other processes of this service committed, and for readers' requests
WATCH_SECONDS = 1.0  # how often Redis is compared with what was published
TIDY_SECONDS = 60.0
TIDY_ROWS = 5_000
REQUESTS_MAX = 1_000

StreamId = tuple[int, int]
NOTHING: StreamId = (0, 0)


def stream_of(source: str, partition: int) -> str:
    return f"facts:{source}:{partition}"


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


@asynccontextmanager
async def relay(database: Database, redis: Redis, source: str) -> AsyncIterator[None]:
    """Relay the outbox of source during the block. database is of the worker role.

    Every replica runs one; the holder of a lease works and the others stand by.
    """
    woken = asyncio.Event()

    async def work() -> None:
        async with holding(database, f"relay/{source}") as lease:
            await _Relay(database, redis, source, lease, woken).work()

    outbox.wakers.add(woken.set)
    try:
        async with running(f"relay of {source}", work):
            yield
    finally:
        outbox.wakers.discard(woken.set)


class _Relay:
    """One tenure of a relay: from taking the lease to losing it."""

    def __init__(self, database: Database, redis: Redis, source: str, lease: Lease, woken: asyncio.Event) -> None:
        self._database = database
        self._redis = redis
        self._source = source
        self._lease = lease
        self._woken = woken
        self._counter = 0
        self._tails: dict[int, StreamId] = {}
        self._oldest: dict[str, int | None] = {}

    async def work(self) -> None:
        async with self._database.transaction() as rows:
            await self._find_tails(rows)
        await self._outrun_another_history()
        poll_at = watch_at = tidy_at = time.monotonic()
        while True:
            self._woken.clear()
            if time.monotonic() >= poll_at:
                await self._answer_requests()
                poll_at = time.monotonic() + POLL_SECONDS
            if await self._publish() == BATCH_ROWS:
                continue
            if time.monotonic() >= watch_at:
                await self._mend_losses()
                watch_at = time.monotonic() + WATCH_SECONDS
            if time.monotonic() >= tidy_at:
                if await self._tidy() < TIDY_ROWS:
                    tidy_at = time.monotonic() + TIDY_SECONDS
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._woken.wait()

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

    async def _publish(self) -> int:
        """Send the next unpublished rows and mark them; how many there were."""
        async with self._database.transaction() as rows:
            pending = await rows.fetch(
                """
                SELECT outbox_id, partition, key, sequence, user_id, kind, payload, create_time FROM outbox
                WHERE stream_epoch IS NULL ORDER BY outbox_id LIMIT $1
                """,
                BATCH_ROWS,
            )
        if not pending:
            return 0
        stream_ids = await self._send([(row["partition"], self._fields(row)) for row in pending])
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            await rows.execute(
                """
                UPDATE outbox SET stream_epoch = $1, stream_counter = sent.counter
                FROM unnest($2::bigint[], $3::bigint[]) AS sent (outbox_id, counter)
                WHERE outbox.outbox_id = sent.outbox_id
                """,
                self._lease.epoch,
                [row["outbox_id"] for row in pending],
                [counter for _, counter in stream_ids],
            )
        return len(pending)

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
        fields: dict[str, bytes | str] = {"f": fact.SerializeToString()}
        if self._oldest.get(row["key"]) == row["sequence"]:
            del self._oldest[row["key"]]
            fields["o"] = "1"
        return fields

    async def _send(self, entries: list[tuple[int, dict[str, bytes | str]]]) -> list[StreamId]:
        """Append the entries in order, in one round trip; their ids. A refusal is raised after the others were sent."""
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
        results = await pipeline.execute(raise_on_error=False)
        for (partition, _), stream_id, result in zip(entries, stream_ids, results, strict=True):
            if isinstance(result, Exception):
                raise result
            self._tails[partition] = stream_id
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

    async def _answer_requests(self) -> None:
        """Have what readers miss published again, after an entry that says where it follows on."""
        requests: Any = await self._redis.xrange(requests_of(self._source), count=REQUESTS_MAX)
        if not requests:
            return
        partitions: dict[int, StreamId] = {}
        keys: dict[str, int] = {}
        for _, fields in requests:
            if b"partition" in fields:
                partition, after = int(fields[b"partition"]), id_from(fields[b"after"])
                partitions[partition] = min(after, partitions.get(partition, after))
            else:
                key, sequence = fields[b"key"].decode(), int(fields[b"after"])
                keys[key] = min(sequence, keys.get(key, sequence))
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            for partition, (epoch, counter) in partitions.items():
                await rows.execute(
                    """
                    UPDATE outbox SET stream_epoch = NULL
                    WHERE partition = $1 AND (stream_epoch, stream_counter) > ($2::bigint, $3::bigint)
                    """,
                    partition,
                    epoch,
                    counter,
                )
            for key, after in keys.items():
                self._oldest[key] = await rows.fetchval("SELECT min(sequence) FROM outbox WHERE key = $1", key)
                await rows.execute("UPDATE outbox SET stream_epoch = NULL WHERE key = $1 AND sequence > $2", key, after)
        self._tails.update(partitions)
        await self._send([(partition, {}) for partition in partitions])
        await self._redis.xdel(requests_of(self._source), *(request_id for request_id, _ in requests))

    async def _tidy(self) -> int:
        """Forget published facts older than outbox.KEPT_DAYS, TIDY_ROWS at most; how many."""
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
        return int(deleted.split()[-1])
