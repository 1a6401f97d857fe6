"""The one way services connect to Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from libs.errors import Unavailable

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0  # above every BLOCK of ours
RETRIES = 1  # at once, for a connection that Redis closed; callers know how long to go on


class RedisUnavailable(Unavailable):
    """Redis does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, dependency="redis")


@asynccontextmanager
async def open_redis(url: str, connections_max: int = 50) -> AsyncIterator[Redis]:
    """Clients of Redis at redis://user:password@host:port; answers are bytes. Connects when first used."""
    redis = Redis.from_url(
        url,
        max_connections=connections_max,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), RETRIES),
    )
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
