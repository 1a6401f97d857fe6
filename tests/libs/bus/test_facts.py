"""The whole way of a fact: outbox, relay, stream, reader; and what is lost and repeated along it."""

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from libs.bus.facts import FactReader, reading
from libs.store import leases, outbox, relay
from libs.store.database import Database, open_database
from libs.store.leases import LeaseLost
from libs.store.outbox import PARTITIONS, Fact, partition_of
from libs.store.shares import Share

SOURCE = "orders"
ANNA = uuid4()


def fact(key: str, sequence: int, user_id=ANNA) -> Fact:
    return Fact(key=key, sequence=sequence, user_id=user_id, kind="test", payload=f"{key}/{sequence}".encode())


async def tell(database: Database, key: str, *sequences: int) -> None:
    async with database.transaction(ANNA) as rows:
        await outbox.add(rows, [fact(key, sequence) for sequence in sequences])


class Notes:
    """A reader's effects: each fact applied becomes a note, so repeats and losses can be counted."""

    def __init__(self) -> None:
        self.applied: dict[str, list[int]] = defaultdict(list)
        self.fail_on: set[str] = set()
        self.attempts: dict[str, int] = defaultdict(int)

    async def apply(self, rows, told) -> None:
        for each in told:
            self.attempts[each.key] += 1
            await rows.execute("INSERT INTO notes (user_id, text) VALUES ($1, $2)", each.user_id, each.payload.decode())
            if each.key in self.fail_on:
                raise ZeroDivisionError(each.key)

    @staticmethod
    async def of(sample) -> dict[str, list[int]]:
        superuser = await asyncpg.connect(sample.superuser_url)
        found = await superuser.fetch("SELECT text FROM sample.notes ORDER BY note_id")
        await superuser.close()
        notes = defaultdict(list)
        for row in found:
            key, sequence = row["text"].split("/")
            notes[key].append(int(sequence))
        return dict(notes)


async def until(sample, expected: dict[str, list[int]], seconds: float = 20) -> None:
    """Wait until exactly expected was applied, or fail showing what was."""
    notes = {}
    try:
        async with asyncio.timeout(seconds):
            while (notes := await Notes.of(sample)) != expected:
                await asyncio.sleep(0.05)
    except TimeoutError:
        assert notes == expected


def keys_of_different_partitions(count: int) -> list[str]:
    found: dict[int, str] = {}
    for number in range(1000):
        found.setdefault(partition_of(f"key-{number}"), f"key-{number}")
    return list(found.values())[:count]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@asynccontextmanager
async def one_relay(worker, redis):
    """A relay without its loop, so that a test decides when it does what."""
    async with leases.holding(worker, f"relay/{SOURCE}") as lease:
        tenure = relay._Relay(worker, redis, SOURCE, lease, asyncio.Event())
        async with worker.transaction() as rows:
            await tenure._find_tails(rows)
        yield tenure


async def test_facts_are_applied_once_each_in_the_order_of_their_key(database, worker, redis, sample, notes):
    keys = keys_of_different_partitions(5)
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        for sequence in range(1, 21):
            await asyncio.gather(*(tell(database, key, sequence) for key in keys))
        await until(sample, {key: list(range(1, 21)) for key in keys})


async def test_a_fact_that_commits_late_under_an_early_id_is_not_lost(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        async with database.transaction(ANNA) as slow:
            await outbox.add(slow, [fact("slow", 1)])  # takes the earlier outbox_id
            await tell(database, "fast", 1)
            await until(sample, {"fast": [1]})
        await until(sample, {"fast": [1], "slow": [1]})


async def test_a_commit_wakes_the_relay_of_its_process_at_once(database, worker, redis, monkeypatch):
    monkeypatch.setattr(relay, "POLL_SECONDS", 60.0)
    async with relay.relay(worker, redis, SOURCE):
        await tell(database, "key", 1)
        stream = relay.stream_of(SOURCE, partition_of("key"))
        async with asyncio.timeout(10):
            while not await redis.exists(stream):
                await asyncio.sleep(0.01)
            await tell(database, "key", 2)
            while await redis.xlen(stream) < 2:
                await asyncio.sleep(0.01)


async def test_what_a_relay_killed_before_marking_sends_again_is_dropped(
    database, worker, redis, sample, notes, monkeypatch
):
    await tell(database, "key", 1, 2, 3)

    async def killed(rows, lease) -> None:
        raise asyncio.CancelledError

    async with one_relay(worker, redis) as tenure:
        with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
            patch.setattr(relay, "fence", killed)
            await tenure._publish()
    stream = relay.stream_of(SOURCE, partition_of("key"))
    assert await redis.xlen(stream) == 3
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await tell(database, "key", 4)
        await until(sample, {"key": [1, 2, 3, 4]})
    assert await redis.xlen(stream) == 7


async def test_an_outdated_relay_marks_nothing(database, worker, redis, sample):
    async with one_relay(worker, redis) as old:
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("UPDATE sample.leases SET expire_time = clock_timestamp()")
        async with worker.transaction() as rows:
            assert await leases.acquire(rows, "new", [f"relay/{SOURCE}"])
        await tell(database, "key", 1)
        with pytest.raises(LeaseLost):
            await old._publish()
        assert await superuser.fetchval("SELECT count(*) FROM sample.outbox WHERE stream_epoch IS NULL") == 1
        await superuser.close()


async def test_two_relays_lose_and_repeat_nothing(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE), relay.relay(worker, redis, SOURCE):
        async with reading(worker, redis, SOURCE, notes.apply):
            for sequence in range(1, 31):
                await tell(database, "key", sequence)
            await until(sample, {"key": list(range(1, 31))})
    assert await redis.xlen(relay.stream_of(SOURCE, partition_of("key"))) == 30


async def test_what_redis_lost_before_it_was_read_is_published_again(database, worker, redis, sample, notes):
    keys = keys_of_different_partitions(3)
    async with relay.relay(worker, redis, SOURCE):
        for key in keys:
            await tell(database, key, 1, 2, 3)
        async with asyncio.timeout(10):
            while await redis.dbsize() < len(keys):
                await asyncio.sleep(0.02)
        await redis.flushall()
        async with reading(worker, redis, SOURCE, notes.apply):
            await until(sample, {key: [1, 2, 3] for key in keys})


async def test_a_redis_that_restarts_empty_costs_nothing(database, worker, redis, sample, notes, valkey):
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await tell(database, "key", 1, 2)
        await until(sample, {"key": [1, 2]})
        valkey.kill()
        await tell(database, "key", 3, 4)
        valkey.start()
        await tell(database, "key", 5)
        await until(sample, {"key": [1, 2, 3, 4, 5]}, seconds=40)


async def test_a_reader_that_was_away_finds_what_redis_lost_meanwhile(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE):
        async with reading(worker, redis, SOURCE, notes.apply):
            await tell(database, "key", 1)
            await until(sample, {"key": [1]})
        await tell(database, "key", 2, 3)
        stream = relay.stream_of(SOURCE, partition_of("key"))
        async with asyncio.timeout(10):
            while await redis.xlen(stream) < 3:
                await asyncio.sleep(0.02)
        await redis.flushall()
        async with asyncio.timeout(10):
            while not await redis.xlen(stream):
                await asyncio.sleep(0.02)  # the relay says that something was there
        async with reading(worker, redis, SOURCE, notes.apply):
            await until(sample, {"key": [1, 2, 3]})


async def test_an_entry_missing_in_the_middle_is_asked_for(database, worker, redis, sample, notes):
    async with one_relay(worker, redis) as tenure:
        await tell(database, "key", 1, 2, 3)
        await tenure._publish()
    stream = relay.stream_of(SOURCE, partition_of("key"))
    entries = await redis.xrange(stream)
    await redis.xdel(stream, entries[1][0])
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await until(sample, {"key": [1, 2, 3]})


async def test_a_gap_in_a_keys_sequence_is_asked_for_by_key(database, worker, redis, sample, notes):
    """Even where the stream itself looks whole, nothing is applied out of order."""
    await tell(database, "key", 1, 2, 3)
    superuser = await asyncpg.connect(sample.superuser_url)
    # As if the second had been published where this Redis never was.
    await superuser.execute("UPDATE sample.outbox SET stream_epoch = 0, stream_counter = 0 WHERE sequence = 2")
    await superuser.close()
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await until(sample, {"key": [1, 2, 3]})


async def test_a_new_reader_starts_a_key_with_the_oldest_fact_kept(database, worker, redis, sample, notes):
    await tell(database, "key", *range(1, 11))
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute("DELETE FROM sample.outbox WHERE sequence < 8")
    await superuser.close()
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await until(sample, {"key": [8, 9, 10]})


async def test_a_failure_rolls_back_is_tried_again_and_holds_up_no_other_partition(
    database, worker, redis, sample, notes
):
    bad, good = keys_of_different_partitions(2)
    notes.fail_on.add(bad)
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply) as reader:
        await tell(database, bad, 1, 2)
        await tell(database, good, 1)
        await until(sample, {good: [1]})
        async with asyncio.timeout(10):
            while notes.attempts[bad] < 3:
                await asyncio.sleep(0.05)
        assert "ZeroDivisionError" in reader.troubles[partition_of(bad)]
        assert await Notes.of(sample) == {good: [1]}
        await tell(database, good, 2)
        notes.fail_on.clear()
        await until(sample, {good: [1, 2], bad: [1, 2]})
        assert reader.troubles == {}


async def test_a_reader_that_lost_its_lease_applies_nothing(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE):
        share = Share(worker, f"facts/{SOURCE}", [str(number) for number in range(PARTITIONS)])
        await share.turn()
        reader = FactReader(worker, redis, SOURCE, notes.apply)
        await reader.step(share)
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("UPDATE sample.leases SET epoch = epoch + 1 WHERE name LIKE 'facts/%'")
        await superuser.close()
        await tell(database, "key", 1)
        while not notes.attempts and not reader.troubles:
            await reader.step(share)
        assert "LeaseLost" in reader.troubles[partition_of("key")]
        assert notes.attempts == {}


async def test_two_readers_split_the_partitions_and_the_survivor_reads_on(database, worker, redis, sample, notes):
    keys = keys_of_different_partitions(PARTITIONS)
    other = Notes()
    names = [str(number) for number in range(PARTITIONS)]
    async with relay.relay(worker, redis, SOURCE), open_database(sample.worker_url) as others:
        victim = Share(others, f"facts/{SOURCE}", names)
        dying = FactReader(others, redis, SOURCE, other.apply)
        await victim.turn()
        async with reading(worker, redis, SOURCE, notes.apply):
            async with asyncio.timeout(20):
                while len(victim.held) != PARTITIONS // 2:  # until the second has come and the first gave it half
                    await victim.turn()
                    await asyncio.sleep(0.1)
            for key in keys:
                await tell(database, key, 1)
            async with asyncio.timeout(20):
                while len(await Notes.of(sample)) < PARTITIONS:
                    await dying.step(victim)
            assert notes.attempts
            assert other.attempts
            # From here on the first does nothing any more, as if killed: its leases expire.
            for key in keys:
                await tell(database, key, 2)
            await until(sample, {key: [1, 2] for key in keys}, seconds=leases.LEASE_SECONDS * 3)


async def test_a_duplicate_never_moves_a_reader_and_each_fact_of_a_thousand_is_applied(
    database, worker, redis, sample, notes
):
    keys = [f"account-{number}" for number in range(50)]
    for key in keys:
        await tell(database, key, *range(1, 21))
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await until(sample, {key: list(range(1, 21)) for key in keys})
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("UPDATE sample.outbox SET stream_epoch = NULL")  # all again
        async with asyncio.timeout(20):
            while await superuser.fetchval("SELECT count(*) FROM sample.outbox WHERE stream_epoch IS NULL"):
                await asyncio.sleep(0.05)
        await superuser.close()
        await tell(database, keys[0], 21)
        await until(sample, {key: list(range(1, 22 if key == keys[0] else 21)) for key in keys})


async def test_published_facts_older_than_a_week_are_forgotten(database, worker, redis, sample):
    await tell(database, "key", 1, 2, 3)
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute("UPDATE sample.outbox SET create_time = now() - interval '8 days' WHERE sequence < 3")
    async with one_relay(worker, redis) as tenure:
        assert await tenure._tidy() == 0  # unpublished ones stay
        await tenure._publish()
        assert await tenure._tidy() == 2
    assert await superuser.fetchval("SELECT sequence FROM sample.outbox") == 3
    await superuser.close()


async def test_a_database_restored_from_an_older_copy_is_told_from_above_what_redis_has(
    database, worker, redis, sample, notes
):
    stream = relay.stream_of(SOURCE, partition_of("key"))
    await redis.xadd(stream, {"p": "0-0"}, id="900-1")  # of a history that Postgres no longer knows
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await tell(database, "key", 1, 2)
        await until(sample, {"key": [1, 2]})
    assert [stream_id.split(b"-")[0] for stream_id, _ in await redis.xrange(stream)] == [b"900", b"901", b"901"]


async def test_a_reader_ahead_of_the_streams_begins_anew_and_repeats_nothing(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE):
        async with reading(worker, redis, SOURCE, notes.apply):
            await tell(database, "key", 1)
            await until(sample, {"key": [1]})
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("UPDATE sample.fact_readers SET stream_id = '900-1'")
        await superuser.close()
        async with reading(worker, redis, SOURCE, notes.apply):
            await tell(database, "key", 2)
            await until(sample, {"key": [1, 2]})
