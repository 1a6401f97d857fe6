import asyncio

import asyncpg
import pytest

from libs.store import leases
from libs.store.leases import LeaseLost, acquire, fence, holding, new_owner, release, renew
from tests.libs.store.conftest import Away, expire, take


async def until_waiting(sample, count: int) -> None:
    """Wait until so many statements wait for another's lock."""
    superuser = await asyncpg.connect(sample.superuser_url)
    async with asyncio.timeout(10):
        while (
            await superuser.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            < count
        ):
            await asyncio.sleep(0.01)
    await superuser.close()


async def test_only_one_of_many_gets_a_lease(worker):
    taken = await asyncio.gather(*(take(worker, new_owner(), "feed") for _ in range(8)))
    assert sorted(len(each) for each in taken) == [0] * 7 + [1]


async def test_taking_over_raises_the_epoch_and_the_old_holders_fence_fails(worker, sample):
    [old] = await take(worker, "old", "feed")
    async with worker.transaction() as rows:
        await fence(rows, old)
    await expire(sample)
    [new] = await take(worker, "new", "feed")
    assert new.epoch == old.epoch + 1
    with pytest.raises(LeaseLost):
        async with worker.transaction() as rows:
            await fence(rows, old)
    async with worker.transaction() as rows:
        await fence(rows, new)
        assert await renew(rows, [old, new]) == [new]


async def test_of_several_leases_in_one_fence_each_has_to_be_the_newest(worker, sample):
    [feed], [gone] = await take(worker, "old", "feed"), await take(worker, "old", "gone")
    async with worker.transaction() as rows:
        await fence(rows, feed, gone)
    await expire(sample)
    await take(worker, "new", "gone")
    with pytest.raises(LeaseLost, match="gone"):
        async with worker.transaction() as rows:
            await fence(rows, feed, gone)


async def test_a_released_lease_is_free_at_once_and_its_epoch_goes_on_rising(worker):
    [first] = await take(worker, "first", "feed")
    async with worker.transaction() as rows:
        await release(rows, [first])
    [second] = await take(worker, "second", "feed")
    assert second.epoch == first.epoch + 1


async def test_nobody_takes_over_between_a_fence_and_its_commit(worker, sample):
    [old] = await take(worker, "old", "feed")
    async with worker.transaction() as rows:
        await fence(rows, old)
        await expire(sample)
        assert await take(worker, "thief", "feed") == []
    [new] = await take(worker, "thief", "feed")
    assert new.epoch == old.epoch + 1


async def test_a_fence_waits_for_a_takeover_under_way_and_then_fails(worker, sample):
    [old] = await take(worker, "old", "feed")
    await expire(sample)

    async def fenced() -> None:
        async with worker.transaction() as rows:
            await fence(rows, old)

    async with worker.transaction() as rows:
        assert await acquire(rows, "new", ["feed"])
        late = asyncio.create_task(fenced())
        await until_waiting(sample, 1)
    with pytest.raises(LeaseLost):
        await late


async def test_a_holder_renews_while_its_own_work_is_fenced(worker):
    [lease] = await take(worker, "holder", "feed")
    async with worker.transaction() as fenced:
        await fence(fenced, lease)
        async with worker.transaction() as rows:
            await rows.execute("SET LOCAL lock_timeout = '100ms'")
            assert await renew(rows, [lease]) == [lease]


async def test_a_lease_from_before_the_clock_was_set_back_is_free(worker, sample):
    alive, dead = sorted(await take(worker, "holder", "dead", "alive"), key=lambda lease: lease.name)
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(
        "UPDATE sample.leases SET expire_time = expire_time + interval '3 hours' WHERE name = 'dead'"
    )
    await superuser.close()
    [taken] = await take(worker, "thief", "dead", "alive")
    assert (taken.name, taken.epoch) == (dead.name, dead.epoch + 1)
    async with worker.transaction() as rows:
        assert await renew(rows, [dead, alive]) == [alive]
    assert await take(worker, "another", "dead", "alive") == []  # the thief's is good for as long as any


async def test_holding_waits_for_the_other_to_let_go(worker):
    order, started = [], asyncio.Event()

    async def hold(name: str, *, until: asyncio.Event) -> None:
        async with holding(worker, "feed"):
            order.append(name)
            started.set()
            await until.wait()
            order.append(f"{name} done")

    first_done, second_done = asyncio.Event(), asyncio.Event()
    second_done.set()
    first = asyncio.create_task(hold("first", until=first_done))
    await started.wait()
    second = asyncio.create_task(hold("second", until=second_done))
    await asyncio.sleep(leases.TRY_SECONDS * 1.5)
    assert order == ["first"]
    first_done.set()
    await asyncio.gather(first, second)
    assert order == ["first", "first done", "second", "second done"]


async def test_a_holder_that_lost_its_lease_is_cancelled(worker, sample):
    with pytest.raises(LeaseLost):
        async with holding(worker, "feed"):
            await expire(sample)
            assert await take(worker, "thief", "feed")
            await asyncio.sleep(leases.LEASE_SECONDS * 2)


async def test_a_holder_that_cannot_renew_is_cancelled_in_time(worker):
    database = Away(worker)
    with pytest.raises(LeaseLost):
        async with holding(database, "orders"):
            database.is_away = True
            await asyncio.sleep(leases.LEASE_SECONDS * 2)


async def test_a_holder_keeps_its_lease_beyond_its_life(worker):
    async with holding(worker, "feed") as lease:
        await asyncio.sleep(leases.LEASE_SECONDS + leases.RENEW_SECONDS)
        async with worker.transaction() as rows:
            await fence(rows, lease)
        assert await take(worker, "thief", "feed") == []
