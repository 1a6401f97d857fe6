"""Work whose order does not matter, shared by the replicas through a Redis consumer group.

Delivered at least once: work must bear being repeated. A job that fails, or whose consumer died, is tried again by
whoever finds it idle, DELIVERIES_MAX times in all, then kept in the stream `<stream>:dead` for a person to look at.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from libs.errors import Exhausted
from libs.store.background import running
from libs.store.leases import new_owner

BATCH_JOBS = 16
BLOCK_SECONDS = 1.0
IDLE_SECONDS = 30.0  # above the longest a job may take: WORK_SECONDS
WORK_SECONDS = 20.0
DELIVERIES_MAX = 5
STREAM_JOBS_MAX = 100_000  # that wait or are being done; beyond, put() refuses
FULL_RETRY_SECONDS = 5.0
DEAD_JOBS_MAX = 10_000

log = logging.getLogger(__name__)


# KEYS: stream. ARGV: payload, STREAM_JOBS_MAX. What is done is deleted, so the length is what is not; trimming would
# drop the oldest undone. 0 if it is full.
_PUT = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'j', ARGV[1])
return 1
"""


class QueueFull(Exhausted):
    """As many jobs wait as may."""


async def put(redis: Redis, stream: str, payload: bytes) -> None:
    """Leave a job for whichever replica is free; QueueFull if STREAM_JOBS_MAX are not done."""
    asked: Any = redis.eval(_PUT, 1, stream, payload, STREAM_JOBS_MAX)
    if not await asked:
        raise QueueFull(
            f"{STREAM_JOBS_MAX} jobs of {stream} are not done",
            retry_after_seconds=FULL_RETRY_SECONDS,
            limit=stream,
            jobs_max=STREAM_JOBS_MAX,
        )


class Group:
    """One consumer of the group that works through stream."""

    def __init__(
        self,
        redis: Redis,
        stream: str,
        group: str,
        work: Callable[[bytes], Awaitable[None]],
        *,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._redis = redis
        self._stream = stream
        self._group = group
        self._work = work
        self._idle_milliseconds = round(idle_seconds * 1000)
        self._consumer = new_owner()
        self._claim_from: bytes | str = "0-0"

    async def step(self) -> None:
        """Take over what is idle, then what is new, and do it."""
        try:
            idle = await self._claim_idle()
            new: Any = await self._redis.xreadgroup(
                self._group,
                self._consumer,
                {self._stream: ">"},
                count=BATCH_JOBS,
                block=1 if idle else round(BLOCK_SECONDS * 1000),
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self._create()  # at the first start, and when Redis has lost everything
            return
        jobs = idle + [job for _, entries in new or () for job in entries]
        await asyncio.gather(*(self._do(job_id, fields[b"j"]) for job_id, fields in jobs))

    async def _create(self) -> None:
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another replica was faster
                raise

    async def _claim_idle(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        self._claim_from, claimed, *_ = await self._redis.xautoclaim(
            self._stream, self._group, self._consumer, self._idle_milliseconds, self._claim_from, count=BATCH_JOBS
        )
        if not claimed:
            return []
        pending: list[Any] = await self._redis.xpending_range(
            self._stream, self._group, claimed[0][0], claimed[-1][0], count=len(claimed), consumername=self._consumer
        )
        deliveries = {entry["message_id"]: entry["times_delivered"] for entry in pending}
        alive = []
        for job_id, fields in claimed:
            if deliveries.get(job_id, 0) > DELIVERIES_MAX:
                await self._bury(job_id, fields[b"j"])
            else:
                alive.append((job_id, fields))
        return alive

    async def _bury(self, job_id: bytes, payload: bytes) -> None:
        log.error("job %s of %s failed %d times and is laid aside", job_id.decode(), self._stream, DELIVERIES_MAX)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xadd(f"{self._stream}:dead", {"j": payload, "id": job_id}, maxlen=DEAD_JOBS_MAX, approximate=True)
        pipeline.xack(self._stream, self._group, job_id)
        pipeline.xdel(self._stream, job_id)
        await pipeline.execute()

    async def _do(self, job_id: bytes, payload: bytes) -> None:
        try:
            async with asyncio.timeout(WORK_SECONDS):
                await self._work(payload)
        except Exception:
            log.exception("job %s of %s failed; it is tried again when idle", job_id.decode(), self._stream)
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xack(self._stream, self._group, job_id)
        pipeline.xdel(self._stream, job_id)
        await pipeline.execute()


@asynccontextmanager
async def working(
    redis: Redis,
    stream: str,
    group: str,
    work: Callable[[bytes], Awaitable[None]],
    *,
    idle_seconds: float = IDLE_SECONDS,
) -> AsyncIterator[None]:
    """Do the jobs of stream during the block."""
    consumer = Group(redis, stream, group, work, idle_seconds=idle_seconds)
    async with running(f"{group} on {stream}", consumer.step):
        yield
