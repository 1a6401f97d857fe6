import asyncio

import pytest
from redis.exceptions import ResponseError

from libs.bus import groups
from libs.bus.groups import DELIVERIES_MAX, Group, QueueFull, put, working


async def test_each_job_is_done_by_one_of_two_consumers(redis):
    done = []

    async def work(job: bytes) -> None:
        done.append(job)

    async with working(redis, "jobs", "workers", work), working(redis, "jobs", "workers", work):
        for number in range(100):
            await put(redis, "jobs", str(number).encode())
        async with asyncio.timeout(10):
            while len(done) < 100:
                await asyncio.sleep(0.01)
    assert sorted(done, key=int) == [str(number).encode() for number in range(100)]
    assert await redis.xlen("jobs") == 0


async def test_a_full_queue_refuses_and_loses_nothing_that_is_not_done(redis, monkeypatch):
    monkeypatch.setattr(groups, "STREAM_JOBS_MAX", 3)
    jobs = [b"1", b"2", b"3"]
    done, go_on = [], asyncio.Event()

    async def work(job: bytes) -> None:
        await go_on.wait()
        done.append(job)

    for job in jobs:
        await put(redis, "jobs", job)
    async with working(redis, "jobs", "workers", work), asyncio.timeout(10):
        while (await pending(redis)) < len(jobs):
            await asyncio.sleep(0.01)
        with pytest.raises(QueueFull) as caught:  # what is being done is not done yet
            await put(redis, "jobs", b"4")
        assert caught.value.metadata == {"limit": "jobs", "jobs_max": "3"}
        go_on.set()
        while await redis.xlen("jobs"):
            await asyncio.sleep(0.01)
        await put(redis, "jobs", b"5")
        while len(done) < 4:
            await asyncio.sleep(0.01)
    assert sorted(done) == [*jobs, b"5"]


async def test_many_who_put_at_once_fill_a_queue_and_no_more(redis, monkeypatch):
    monkeypatch.setattr(groups, "STREAM_JOBS_MAX", 10)
    outcomes = await asyncio.gather(*(put(redis, "jobs", b"x") for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 20
    assert await redis.xlen("jobs") == 10


async def pending(redis) -> int:
    try:
        return (await redis.xpending("jobs", "workers"))["pending"]
    except ResponseError:  # there is no group yet
        return 0


async def test_what_a_dead_consumer_left_is_taken_over(redis):
    done, started = [], asyncio.Event()

    async def hang(job: bytes) -> None:
        started.set()
        await asyncio.Event().wait()

    async def work(job: bytes) -> None:
        done.append(job)

    dead = Group(redis, "jobs", "workers", hang)
    await dead.step()  # creates the group
    await put(redis, "jobs", b"left")
    step = asyncio.create_task(dead.step())
    await started.wait()
    step.cancel()  # killed in the midst of the job
    async with working(redis, "jobs", "workers", work, idle_seconds=0.2), asyncio.timeout(10):
        while done != [b"left"]:
            await asyncio.sleep(0.01)
    assert (await redis.xpending("jobs", "workers"))["pending"] == 0


async def test_a_job_that_always_fails_is_laid_aside_and_the_others_are_done(redis):
    attempts, done = [], []

    async def work(job: bytes) -> None:
        if job == b"bad":
            attempts.append(job)
            raise ZeroDivisionError
        done.append(job)

    await put(redis, "jobs", b"bad")
    await put(redis, "jobs", b"good")
    async with working(redis, "jobs", "workers", work, idle_seconds=0.01), asyncio.timeout(20):
        while not await redis.xlen("jobs:dead"):
            await asyncio.sleep(0.02)
    assert len(attempts) == DELIVERIES_MAX
    assert done == [b"good"]
    [(_, laid_aside)] = await redis.xrange("jobs:dead")
    assert laid_aside[b"j"] == b"bad"
    assert (await redis.xpending("jobs", "workers"))["pending"] == 0


async def test_a_redis_that_lost_everything_gets_its_group_again(redis):
    done = []

    async def work(job: bytes) -> None:
        done.append(job)

    async with working(redis, "jobs", "workers", work), asyncio.timeout(10):
        await put(redis, "jobs", b"1")
        while done != [b"1"]:
            await asyncio.sleep(0.01)
        await redis.flushall()
        await put(redis, "jobs", b"2")
        while done != [b"1", b"2"]:
            await asyncio.sleep(0.01)


def test_a_job_may_not_last_until_another_takes_it():
    assert groups.WORK_SECONDS < groups.IDLE_SECONDS
