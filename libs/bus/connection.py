"""The one way services connect to Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError

from libs.errors import Unavailable

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0  # above every BLOCK of ours
# What a connection tells Redis of its client; made for each, it would look through all installed packages.
DRIVER = DriverInfo()
RETRIES = 1  # at once, for a connection that Redis closed; callers know how long to go on


class RedisUnavailable(Unavailable):
    """Redis does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, dependency="redis")


class _Cancellable(Connection):
    """Does not lose a cancellation: before Python 3.12, asyncio.wait_for, which redis sends within, may swallow it."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        asked_before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        if task and task.cancelling() > asked_before:
            # An answer is on its way that nobody will read.
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError


class _CancellableTls(_Cancellable, SSLConnection):
    pass


@asynccontextmanager
async def open_redis(url: str, connections_max: int = 50) -> AsyncIterator[Redis]:
    """A client of Redis at redis://user:password@host:port; answers are bytes. Connects when first used.

    Who finds all connections in use waits for one as long as for an answer.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), RETRIES),
        driver_info=DRIVER,
    )
    redis = Redis.from_pool(pool)
    pool.connection_class = _CancellableTls if issubclass(pool.connection_class, SSLConnection) else _Cancellable
    try:
        yield redis
    finally:
        await redis.aclose()


async def check(redis: Redis) -> None:
    """Raise RedisUnavailable unless Redis answers."""
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        raise RedisUnavailable(f"no answer from Redis: {type(error).__name__}") from error
