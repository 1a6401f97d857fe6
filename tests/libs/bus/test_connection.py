"""Connections to the real Valkey."""

import asyncio

from libs.bus.connection import open_redis


async def test_a_cancellation_is_never_lost_however_it_falls_together_with_a_command(valkey):
    async with open_redis(valkey.url) as redis:
        for turns in range(60):

            async def work() -> None:
                while True:
                    await redis.set("key", "value")

            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5)
            assert done, f"lost after {turns} turns of the loop"
            assert task.cancelled()
        assert await redis.get("key") == b"value"


async def test_who_finds_all_connections_in_use_waits_for_one(valkey):
    async with open_redis(valkey.url, connections_max=2) as redis:
        await redis.set("key", "value")
        answers = await asyncio.gather(*(redis.get("key") for _ in range(200)))
    assert answers == [b"value"] * 200
