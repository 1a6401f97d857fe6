"""A stream is woken by what happened in its account, whenever that was told."""

import asyncio

from redis.asyncio import Redis

from libs.ids import uuid7
from libs.store.relay import keys_of
from services.orders.hub import Hub
from tests.orders.stand import WAIT_SECONDS


async def tell(redis: Redis, *keys: str) -> None:
    await redis.xadd(keys_of("orders"), {"k": "\0".join(keys)})


async def test_what_happens_between_two_reads_is_heard_by_those_whom_it_concerns(redis: Redis):
    first, second, third = str(uuid7()), str(uuid7()), str(uuid7())
    hub = Hub(redis)
    async with hub.listening(first) as first_woken, hub.listening(second) as second_woken:
        async with asyncio.timeout(WAIT_SECONDS):
            while not first_woken.is_set():
                # It hears only what comes once it listens, so it is told again until it does.
                following = asyncio.create_task(hub.follow())
                while not following.done():
                    await tell(redis, first)
                    await asyncio.sleep(0.01)
                await following
        assert not second_woken.is_set()
        first_woken.clear()
        await tell(redis, third)
        await tell(redis, third, f"live/{second}")
        await hub.follow()
        assert second_woken.is_set()
        assert not first_woken.is_set()
