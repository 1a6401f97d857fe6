"""A stream is woken by what happened in its account, whenever that was told."""

import asyncio

from redis.asyncio import Redis
from tradeloom.type.v1 import fact_pb2

from libs.ids import uuid7
from libs.store.outbox import partition_of
from libs.store.relay import stream_of
from services.orders.hub import Hub
from tests.orders.stand import WAIT_SECONDS


async def tell(redis: Redis, account_id: str) -> None:
    fields = {"f": fact_pb2.Fact(key=account_id).SerializeToString()}
    await redis.xadd(stream_of("orders", partition_of(account_id)), fields)


async def test_what_happens_between_two_reads_of_a_silent_partition_is_heard(redis: Redis):
    first, second = str(uuid7()), str(uuid7())
    while partition_of(second) == partition_of(first):
        second = str(uuid7())
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
        await tell(redis, second)
        await tell(redis, first)
        await hub.follow()
        assert second_woken.is_set()
