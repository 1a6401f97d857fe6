"""Reading another service's facts: each applied once, in the order of its key, together with the reader's position.

Partitions are divided among the replicas by leases and read independently of each other. A batch is one transaction:
fence, drop what was applied before, apply, write the positions. What the streams have lost is asked for from the teller
(see libs.store.relay), and a position never moves past it; what the teller keeps no more is a trouble that a person has
to settle, by bringing the state up to date and fact_positions with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any
from uuid import UUID

from prometheus_client import Gauge
from redis.asyncio import Redis
from tradeloom.type.v1 import fact_pb2

from libs.errors import Unavailable
from libs.store.background import Backoff, end, running
from libs.store.database import Connection, Database
from libs.store.leases import LEASE_SECONDS, Lease, fence
from libs.store.outbox import PARTITIONS, Fact, partition_of
from libs.store.relay import NOTHING, REQUESTS_MAX, StreamId, id_from, id_text, newest_ids, requests_of, stream_of
from libs.store.shares import Share, sharing

BATCH_FACTS = 200  # of one partition, in one transaction
BLOCK_SECONDS = 1.0
IDLE_SECONDS = 0.1  # while no partition is held, or all are pausing after a failure
SLOW_SECONDS = 0.05  # that the others wait for a partition at most
APPLY_SECONDS = 5.0  # below LEASE_SECONDS: as long as a batch lasts, nobody can take its partition over
ASK_AGAIN_SECONDS = 2.0
ASK_AGAIN_SECONDS_MAX = 60.0  # for a key whose next fact does not come
PAUSE_SECONDS_MAX = 30.0
MISSING_MAX = REQUESTS_MAX * PARTITIONS  # keys looked at in one sweep
# A stream that ends before what was read of it for so long is no loss that the teller's relay is about to mend: above a
# relay's longest pause together with the takeover from a dead one.
PUT_BACK_SECONDS = 3 * LEASE_SECONDS

LAG_SECONDS = Gauge(
    "tradeloom_facts_lag_seconds", "For how long the slowest partition held has not caught up.", ["source"]
)
TROUBLES = Gauge("tradeloom_facts_troubles", "Partitions and keys that do not advance at present.", ["source"])

Apply = Callable[[Connection, Sequence[Fact]], Awaitable[None]]

log = logging.getLogger(__name__)


class FactsStuck(Unavailable):
    """Another service's facts are not applied."""


@dataclass(slots=True)
class Partition:
    """One leased partition: position is what is committed; reading is ahead of it only while something is missing."""

    number: int
    lease: Lease
    position: StreamId
    reading: StreamId
    batch_facts: int = BATCH_FACTS
    resume_at: float = 0.0
    ask_at: float = 0.0
    trouble: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(seconds_max=PAUSE_SECONDS_MAX))
    taking: asyncio.Task[None] | None = None
    newest: StreamId = NOTHING
    """What was the newest at newest_at, and is not reached yet."""
    newest_at: float | None = None
    short_at: float | None = None
    """When the stream was first seen to end before position; None once it is known to go on from there."""

    @property
    def is_busy(self) -> bool:
        return self.taking is not None and not self.taking.done()

    def lag_seconds(self, newest: StreamId, now: float) -> float:
        """For how long what was the newest then has not been reached."""
        if self.newest_at is None or self.position >= self.newest:
            self.newest, self.newest_at = newest, now
        return 0.0 if self.position >= self.newest else now - self.newest_at


@dataclass(slots=True)
class Asking:
    """A key whose next fact is missing, and when to ask for it again."""

    sequence: int
    ask_at: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(ASK_AGAIN_SECONDS, ASK_AGAIN_SECONDS_MAX))


class FactReader:
    """One replica's part in reading the facts of source. apply runs inside the batch's transaction, of the facts' users.

    If apply raises, the batch is rolled back and tried again with a growing pause, fact by fact; its partition waits,
    the others go on.
    """

    def __init__(
        self, database: Database, redis: Redis, source: str, apply: Apply, gather_seconds: float = 0.0
    ) -> None:
        self._database = database
        self._redis = redis
        self._source = source
        self._apply = apply
        self._gather_seconds = gather_seconds
        self._read_at = 0.0
        self._partitions: dict[int, Partition] = {}
        self._sweep_at = 0.0
        self._asking: dict[str, Asking] = {}
        self._gone: dict[str, str] = {}
        self._taking: set[asyncio.Task[None]] = set()
        self.trouble = ""
        """Why reading itself does not go on; empty while it does."""

    @property
    def troubles(self) -> dict[int | str, str]:
        """Why a partition, a key, or all of the source does not advance, for those that fail at present."""
        partitions = {number: partition.trouble for number, partition in self._partitions.items() if partition.trouble}
        return {**({self._source: self.trouble} if self.trouble else {}), **partitions, **self._gone}

    async def check(self) -> None:
        """Raise FactsStuck if something does not advance."""
        if troubles := self.troubles:
            raise FactsStuck("; ".join(f"{name}: {trouble}" for name, trouble in troubles.items()), dependency="facts")

    async def close(self) -> None:
        """Give up what is being applied, and wait until it is cleaned up."""
        await end(self._taking)

    async def step(self, share: Share) -> None:
        """Read what is new in the partitions held, and apply it."""
        await self._follow(share.held)
        now = asyncio.get_running_loop().time()
        if now < self._read_at:
            await asyncio.sleep(self._read_at - now)
            return
        if now >= self._sweep_at:
            self._sweep_at = now + ASK_AGAIN_SECONDS
            await self._sweep(now)
        busy = [partition.taking for partition in self._partitions.values() if partition.taking and partition.is_busy]
        ready = {
            stream_of(self._source, partition.number).encode(): partition
            for partition in self._partitions.values()
            if now >= partition.resume_at and not partition.is_busy
        }
        if not ready:
            if busy:
                await asyncio.wait(busy, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(IDLE_SECONDS)
            return
        block_seconds = SLOW_SECONDS if busy else BLOCK_SECONDS
        resume_at = min(
            (p.resume_at for p in self._partitions.values() if p.resume_at > now), default=now + block_seconds
        )
        found: Any = await self._redis.xread(
            {stream: id_text(partition.reading) for stream, partition in ready.items()},
            count=BATCH_FACTS,
            block=max(1, round(min(block_seconds, resume_at - now) * 1000)),
        )
        if found and all(len(entries) < BATCH_FACTS for _, entries in found):
            # What is behind goes on at once: the streams keep what is new for so long and no longer.
            self._read_at = asyncio.get_running_loop().time() + self._gather_seconds
        # Usually all are done in a moment and read on together; one that is not is left to itself.
        if new := [self._begin(ready[stream], entries) for stream, entries in found or ()]:
            await asyncio.wait(new, timeout=SLOW_SECONDS)

    def _begin(self, partition: Partition, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> asyncio.Task[None]:
        partition.taking = asyncio.create_task(
            self._take(partition, entries), name=f"facts of {self._source}, partition {partition.number}"
        )
        self._taking.add(partition.taking)
        partition.taking.add_done_callback(self._taking.discard)
        return partition.taking

    async def _follow(self, held: dict[str, Lease]) -> None:
        """Start with partitions that are newly held, stop with those that are not."""
        leases = {int(name): lease for name, lease in held.items()}
        self._partitions = {n: p for n, p in self._partitions.items() if leases.get(n) == p.lease}
        if new := leases.keys() - self._partitions.keys():
            async with self._database.transaction() as rows:
                found = await rows.fetch(
                    "SELECT partition, stream_id FROM fact_readers WHERE source = $1", self._source
                )
            positions = {row["partition"]: id_from(row["stream_id"]) for row in found}
            for number in new:
                position = positions.get(number, NOTHING)
                self._partitions[number] = Partition(number, leases[number], position, reading=position)

    async def _take(self, partition: Partition, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Apply the entries that follow on one another from the position; ask for what is missing between."""
        if partition.short_at is not None:
            if id_from(entries[0][1][b"p"]) < partition.position:
                # A relay that mends goes on from position or after it; here others than were read lead up to it.
                self._begin_anew(partition)
                return
            partition.short_at = None
        following: list[dict[bytes, bytes]] = []
        position = partition.position
        for stream_id, fields in entries:
            partition.reading = id_from(stream_id)
            if id_from(fields[b"p"]) <= position:
                following.append(fields)
                position = partition.reading
                if len(following) == partition.batch_facts:
                    break
        try:
            if following:
                async with asyncio.timeout(APPLY_SECONDS):
                    await self._apply_batch(partition, following, position)
                partition.position = position
                partition.batch_facts = min(BATCH_FACTS, partition.batch_facts * 2)
                partition.backoff.reset()
                partition.trouble = ""
            if partition.reading > partition.position:
                await self._ask_for_partition(partition)
        except Exception as error:
            seconds = partition.backoff.next_seconds()
            log.exception("facts of %s, partition %d: again in %.1f s", self._source, partition.number, seconds)
            partition.trouble = f"{type(error).__name__}: {error}"
            partition.reading = partition.position
            partition.batch_facts = 1
            partition.resume_at = asyncio.get_running_loop().time() + seconds

    async def _apply_batch(self, partition: Partition, entries: list[dict[bytes, bytes]], position: StreamId) -> None:
        told = [(_fact_from(entry[b"f"]), b"o" in entry) for entry in entries if b"f" in entry]
        kept_no_more = {entry[b"g"].decode() for entry in entries if b"g" in entry}
        user_ids = {fact.user_id for fact, _ in told if fact.user_id}
        async with self._database.transaction(*user_ids) as rows:
            await fence(rows, partition.lease)
            found = await rows.fetch(
                "SELECT key, sequence, ahead FROM fact_positions WHERE source = $1 AND key = ANY($2)",
                self._source,
                list({fact.key for fact, _ in told} | kept_no_more),
            )
            sequences = {row["key"]: row["sequence"] for row in found}
            ahead = {row["key"]: row["ahead"] for row in found}
            gone = {key: f"what follows on {sequences[key]} is kept no more" for key in kept_no_more & sequences.keys()}
            new: list[Fact] = []
            for fact, is_oldest_kept in told:
                sequence = sequences.setdefault(fact.key, 0)
                # Of a key whose beginning is no longer kept, a reader that knows nothing of it starts with the oldest.
                if fact.sequence == sequence + 1 or (sequence == 0 and is_oldest_kept):
                    new.append(fact)
                    sequences[fact.key] = fact.sequence
                elif is_oldest_kept and fact.sequence > sequence:
                    gone[fact.key] = f"what follows on {sequence} is kept no more, the oldest kept is {fact.sequence}"
                ahead[fact.key] = max(fact.sequence, ahead.get(fact.key, 0))
            if new:
                await self._apply(rows, new)
            await self._write_positions(rows, sequences, ahead, partition.number, position)
        for key, sequence in sequences.items():
            if sequence >= ahead[key]:
                self._asking.pop(key, None)
                self._gone.pop(key, None)
            elif key in gone:
                if self._gone.get(key) != gone[key]:
                    log.error("facts of %s about %s cannot go on: %s", self._source, key, gone[key])
                self._gone[key] = gone[key]
            elif key not in self._asking:
                self._sweep_at = 0.0

    async def _write_positions(
        self, rows: Connection, sequences: dict[str, int], ahead: dict[str, int], number: int, position: StreamId
    ) -> None:
        await rows.execute(
            """
            WITH keys AS (
              INSERT INTO fact_positions AS kept (source, key, sequence, ahead)
              SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bigint[])
              ON CONFLICT (source, key) DO UPDATE SET sequence = excluded.sequence, ahead = excluded.ahead
              WHERE (kept.sequence, kept.ahead) <> (excluded.sequence, excluded.ahead))
            INSERT INTO fact_readers (source, partition, stream_id) VALUES ($1, $5, $6)
            ON CONFLICT (source, partition) DO UPDATE SET stream_id = excluded.stream_id
            """,
            self._source,
            list(sequences),
            list(sequences.values()),
            [ahead[key] for key in sequences],
            number,
            id_text(position),
        )

    async def _ask_for_partition(self, partition: Partition) -> None:
        now = asyncio.get_running_loop().time()
        if now >= partition.ask_at:
            partition.ask_at = now + ASK_AGAIN_SECONDS
            await self._ask({"partition": partition.number, "after": id_text(partition.position)})

    async def _sweep(self, now: float) -> None:
        """Ask again, until it comes, for what is missing; start over where the teller did."""
        partitions = list(self._partitions.values())
        newest = await newest_ids(self._redis, [stream_of(self._source, partition.number) for partition in partitions])
        lag_seconds = 0.0
        for partition, found in zip(partitions, newest, strict=True):
            lag_seconds = max(lag_seconds, partition.lag_seconds(found, now))
            if partition.is_busy:
                continue
            if NOTHING < found < partition.position:
                # Redis has lost its newest entries, as by a power cut: then the teller's relay soon says so, with an
                # entry after all it ever sent, and only what was not read is asked for. Or the teller's database was
                # put back as well: then its ids are those of another history, and may stay below position.
                if partition.short_at is None:
                    partition.short_at = now
                if now - partition.short_at >= PUT_BACK_SECONDS:
                    self._begin_anew(partition)
            elif partition.reading > partition.position:
                await self._ask_for_partition(partition)
        await self._ask_for_missing_keys(now)
        LAG_SECONDS.labels(self._source).set(lag_seconds)

    def _begin_anew(self, partition: Partition) -> None:
        """Read all that the teller keeps. What was applied is known by key, so that is safe; but it costs a replay."""
        log.warning("facts of %s, partition %d, begin anew", self._source, partition.number)
        partition.position = partition.reading = NOTHING
        partition.short_at = None

    async def _ask_for_missing_keys(self, now: float) -> None:
        async with self._database.reading() as rows:
            found = await rows.fetch(
                "SELECT key, sequence FROM fact_positions WHERE source = $1 AND ahead > sequence LIMIT $2",
                self._source,
                MISSING_MAX,
            )
        missing = {row["key"]: row["sequence"] for row in found if partition_of(row["key"]) in self._partitions}
        # Others are in other hands by now, or a person has settled them.
        self._gone = {key: trouble for key, trouble in self._gone.items() if key in missing}
        self._asking = {key: self._asking.get(key, Asking(sequence)) for key, sequence in missing.items()}
        due = [key for key, asking in self._asking.items() if now >= asking.ask_at]
        for key in due[:REQUESTS_MAX]:
            asking = self._asking[key]
            if missing[key] > asking.sequence:
                asking.backoff.reset()
            asking.sequence = missing[key]
            asking.ask_at = now + asking.backoff.next_seconds()
            log.warning("facts of %s about %s after %d are missing", self._source, key, missing[key])
            await self._ask({"key": key, "after": missing[key]})

    async def _ask(self, request: dict[str, str | int]) -> None:
        fields: Any = request
        await self._redis.xadd(requests_of(self._source), fields, maxlen=REQUESTS_MAX, approximate=True)


@asynccontextmanager
async def reading(
    database: Database, redis: Redis, source: str, apply: Apply, gather_seconds: float = 0.0
) -> AsyncIterator[FactReader]:
    """Apply the facts of source during the block. database is of the worker role.

    What comes within gather_seconds of what was read last is read together: for those who need not know at once, a
    transaction for many facts in place of one for each. Whoever is behind reads on without a pause.
    """
    reader = FactReader(database, redis, source, apply, gather_seconds)
    names = [str(number) for number in range(PARTITIONS)]
    async with sharing(database, f"facts/{source}", names) as share:

        async def work() -> None:
            try:
                await reader.step(share)
                reader.trouble = "" if share.is_renewed else "leases are not renewed"
            except Exception as error:
                reader.trouble = f"{type(error).__name__}: {error}"
                raise
            finally:
                TROUBLES.labels(source).set(len(reader.troubles))

        try:
            async with running(f"reading facts of {source}", work):
                yield reader
        finally:
            await reader.close()


def _fact_from(serialized: bytes) -> Fact:
    told = fact_pb2.Fact.FromString(serialized)
    return Fact(
        key=told.key,
        sequence=told.sequence,
        user_id=UUID(told.user_id) if told.user_id else None,
        kind=told.kind,
        payload=told.payload,
        time=told.time.ToDatetime(tzinfo=UTC),
    )
