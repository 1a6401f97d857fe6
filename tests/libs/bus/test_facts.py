"""The whole way of a fact: outbox, relay, stream, reader; and what is lost and repeated along it."""

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY
from redis.exceptions import ResponseError
from tradeloom.orders.v1.events_pb2 import OrderChanged

from libs.bus import facts
from libs.bus.facts import FactReader, FactsStuck, reading
from libs.store import background, leases, outbox, relay
from libs.store.database import Database, open_database
from libs.store.leases import Lease, LeaseLost
from libs.store.outbox import PARTITIONS, Fact, partition_of
from libs.store.relay import RelayStuck
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
        tenure = relay._Tenure(worker, redis, SOURCE, lease, asyncio.Event(), relay.Relay(worker, SOURCE))
        async with worker.transaction() as rows:
            await tenure._find_tails(rows)
        yield tenure


async def test_facts_are_applied_once_each_in_the_order_of_their_key(database, worker, redis, sample, notes):
    keys = keys_of_different_partitions(5)
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        for sequence in range(1, 21):
            await asyncio.gather(*(tell(database, key, sequence) for key in keys))
        await until(sample, {key: list(range(1, 21)) for key in keys})


async def test_what_a_batch_of_facts_is_about_is_told_in_one_entry(database, worker, redis):
    async with one_relay(worker, redis) as tenure:
        for sequence in (1, 3):
            await tell(database, "one", sequence, sequence + 1)
            await tell(database, "other", sequence)
            assert await tenure._publish() == 3
        assert await tenure._publish() == 0
    told = await redis.xrange(relay.keys_of(SOURCE))
    assert [fields for _, fields in told] == [{b"k": b"one\0other"}] * 2
    newest = max(await relay.newest_ids(redis, [relay.stream_of(SOURCE, number) for number in range(PARTITIONS)]))
    assert relay.id_from(told[-1][0]) == newest


async def test_facts_that_follow_each_other_are_applied_together_where_nobody_waits_for_them(
    database, worker, redis, sample, notes
):
    batches: list[int] = []

    async def apply(rows, told) -> None:
        batches.append(len(told))
        await notes.apply(rows, told)

    async with (
        relay.relay(worker, redis, SOURCE),
        reading(worker, redis, SOURCE, apply, gather_seconds=1.0),
    ):
        await tell(database, "key", 1)
        await until(sample, {"key": [1]})
        for sequence in range(2, 12):
            await tell(database, "key", sequence)
        await until(sample, {"key": list(range(1, 12))})
    # The first alone and at once; a machine that is slow may tell the rest in two.
    assert batches[0] == 1
    assert len(batches) <= 3


async def test_who_gathers_and_is_behind_reads_on_without_a_pause(database, worker, redis, sample, notes, monkeypatch):
    monkeypatch.setattr(facts, "BATCH_FACTS", 2)
    for sequence in range(1, 21):
        await tell(database, "key", sequence)
    async with (
        relay.relay(worker, redis, SOURCE),
        reading(worker, redis, SOURCE, notes.apply, gather_seconds=3_600.0),
    ):
        await until(sample, {"key": list(range(1, 21))})


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


async def test_a_failure_rolls_back_and_is_tried_again(database, worker, redis, sample, notes):
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


async def test_a_partition_that_waits_holds_up_no_other(database, worker, redis, sample, notes):
    slow, *others = keys_of_different_partitions(4)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def apply(rows, told) -> None:
        if told[0].key == slow:
            begun.set()
            await go_on.wait()
        await notes.apply(rows, told)

    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, apply):
        await tell(database, slow, 1)
        await begun.wait()
        for sequence in range(1, 6):
            for key in others:
                await tell(database, key, sequence)
            await until(sample, {key: list(range(1, sequence + 1)) for key in others})
        go_on.set()
        await until(sample, {slow: [1], **{key: [1, 2, 3, 4, 5] for key in others}})


async def test_a_batch_that_is_given_up_leaves_nothing_behind(database, worker, redis, sample, notes):
    begun = asyncio.Event()

    async def apply(rows, told) -> None:
        await notes.apply(rows, told)
        begun.set()
        await asyncio.Event().wait()

    async with relay.relay(worker, redis, SOURCE):
        async with reading(worker, redis, SOURCE, apply):
            await tell(database, "key", 1)
            await begun.wait()
        assert await Notes.of(sample) == {}
        async with reading(worker, redis, SOURCE, notes.apply):
            await until(sample, {"key": [1]})


def test_a_batch_ends_before_a_lease_does():
    assert facts.APPLY_SECONDS < leases.LEASE_SECONDS


def test_a_reader_waits_for_a_relay_that_mends_longer_than_that_may_take():
    assert background.PAUSE_SECONDS_MAX + leases.LEASE_SECONDS + relay.WATCH_SECONDS < facts.PUT_BACK_SECONDS


@dataclass
class Believed:
    """The leases of one that stands still: it goes on believing in them."""

    held: dict[str, Lease]


async def all_partitions(worker) -> Any:
    names = [str(number) for number in range(PARTITIONS)]
    return Believed(await Share(worker, f"facts/{SOURCE}").turn(names))


async def test_a_reader_that_lost_its_lease_applies_nothing(database, worker, redis, sample, notes):
    async with relay.relay(worker, redis, SOURCE):
        believed = await all_partitions(worker)
        reader = FactReader(worker, redis, SOURCE, notes.apply)
        await reader.step(believed)
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("UPDATE sample.leases SET epoch = epoch + 1 WHERE name LIKE 'facts/%'")
        await superuser.close()
        await tell(database, "key", 1)
        async with asyncio.timeout(30):
            while not notes.attempts and not reader.troubles:
                await reader.step(believed)
        await reader.close()
        assert "LeaseLost" in reader.troubles[partition_of("key")]
        assert notes.attempts == {}


async def test_two_readers_split_the_partitions_and_the_survivor_reads_on(database, worker, redis, sample, notes):
    keys = keys_of_different_partitions(PARTITIONS)
    other = Notes()
    names = [str(number) for number in range(PARTITIONS)]
    async with relay.relay(worker, redis, SOURCE), open_database(sample.worker_url) as others:
        victim = Share(others, f"facts/{SOURCE}")
        dying = FactReader(others, redis, SOURCE, other.apply)
        await victim.turn(names)
        async with reading(worker, redis, SOURCE, notes.apply):
            async with asyncio.timeout(20):
                while len(victim.held) != PARTITIONS // 2:  # until the second has come and the first gave it half
                    await victim.turn(names)
                    await asyncio.sleep(0.1)
            for key in keys:
                await tell(database, key, 1)
            async with asyncio.timeout(20):
                while len(await Notes.of(sample)) < PARTITIONS:
                    await dying.step(victim)
            await dying.close()
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
        await superuser.execute("UPDATE sample.outbox SET stream_epoch = NULL, stream_counter = NULL")  # all again
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


@pytest.mark.parametrize("kept", [[], [3]])
async def test_what_is_forgotten_is_forgotten_by_redis_too_and_nobody_takes_that_for_a_loss(
    kept, database, worker, redis, sample, notes
):
    """Whether something is left in the stream or nothing, and whoever relays next."""
    stream = relay.stream_of(SOURCE, partition_of("key"))
    superuser = await asyncpg.connect(sample.superuser_url)
    reader, believed = FactReader(worker, redis, SOURCE, notes.apply), await all_partitions(worker)

    async def applied(*sequences: int) -> None:
        async with asyncio.timeout(10):
            while await Notes.of(sample) != {"key": list(sequences)}:
                await reader.step(believed)

    async def in_redis() -> list[int]:
        found = [fields[b"f"] for _, fields in await redis.xrange(stream)]
        return [facts._fact_from(serialized).sequence for serialized in found]

    async with one_relay(worker, redis) as tenure:
        await tell(database, "key", 1, 2, 3)
        await tenure._publish()
        await applied(1, 2, 3)
        newest = await redis.xinfo_stream(stream)
        await superuser.execute(
            "UPDATE sample.outbox SET create_time = now() - interval '8 days' WHERE sequence <> ALL($1)", kept
        )
        await tenure._tidy()
        assert await in_redis() == kept
        assert (await redis.xinfo_stream(stream))["last-generated-id"] == newest["last-generated-id"]
        await tenure._mend_losses()
        assert await in_redis() == kept
        await tell(database, "key", 4)
        await tenure._publish()
        await applied(1, 2, 3, 4)
    await superuser.execute("UPDATE sample.outbox SET create_time = now() - interval '8 days'")
    async with one_relay(worker, redis) as successor:
        await successor._tidy()
        assert await in_redis() == []
        await successor._mend_losses()
        await tell(database, "key", 5)
        await successor._publish()
        await applied(1, 2, 3, 4, 5)
        assert await in_redis() == [5]
    await reader._sweep(asyncio.get_running_loop().time())
    assert REGISTRY.get_sample_value("tradeloom_facts_lag_seconds", {"source": SOURCE}) == 0
    assert not await redis.exists(relay.requests_of(SOURCE)), "nobody asked for anything again"
    await reader.close()
    await superuser.close()


async def test_a_relay_that_was_succeeded_trims_nothing_of_its_successors(database, worker, redis, sample):
    """It finds nothing published that is kept, because its successor has sent a fact and not marked it yet."""
    superuser = await asyncpg.connect(sample.superuser_url)
    async with one_relay(worker, redis) as old:
        await superuser.execute("UPDATE sample.leases SET expire_time = clock_timestamp()")
        async with one_relay(worker, redis) as successor:
            await tell(database, "key", 1)
            await successor._publish()
            await superuser.execute("UPDATE sample.outbox SET stream_epoch = NULL, stream_counter = NULL")
            await old._tidy()
    assert await redis.xlen(relay.stream_of(SOURCE, partition_of("key"))) == 1
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


async def test_a_reader_that_stays_ahead_of_the_streams_begins_anew_and_repeats_nothing(
    database, worker, redis, sample, notes, monkeypatch
):
    monkeypatch.setattr(facts, "ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(facts, "PUT_BACK_SECONDS", 0.3)
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


async def test_of_what_redis_lost_only_what_was_not_read_is_published_again(database, worker, redis, sample, notes):
    """As by a power cut: the newest entries are gone, and the reader looks before a relay says so."""
    stream = relay.stream_of(SOURCE, partition_of("key"))
    async with relay.relay(worker, redis, SOURCE):
        async with reading(worker, redis, SOURCE, notes.apply):
            await tell(database, "key", *range(1, 51))
            await until(sample, {"key": list(range(1, 51))})
        await tell(database, "key", 51, 52)
        async with asyncio.timeout(10):
            while await redis.xlen(stream) < 52:
                await asyncio.sleep(0.02)
    entries = await redis.xrange(stream)
    await redis.delete(stream)
    for stream_id, fields in entries[20:45]:  # what is older was trimmed
        await redis.xadd(stream, fields, id=stream_id)
    believed = await all_partitions(worker)
    reader = FactReader(worker, redis, SOURCE, notes.apply)
    await reader.step(believed)
    async with relay.relay(worker, redis, SOURCE), asyncio.timeout(20):
        while await Notes.of(sample) != {"key": list(range(1, 53))}:
            await reader.step(believed)
    await reader.close()
    superuser = await asyncpg.connect(sample.superuser_url)
    again = await superuser.fetch("SELECT sequence FROM sample.outbox WHERE stream_epoch IS NULL OR stream_epoch > 1")
    assert sorted(row["sequence"] for row in again) == [51, 52]
    await superuser.close()


async def test_a_history_that_soon_reaches_what_was_read_of_another_is_read_from_its_beginning(
    database, worker, redis, sample, notes
):
    """The teller's database and Redis were both put back; then so much was told that the stream is no longer short."""
    here, elsewhere = keys_of_different_partitions(2)
    beside = next(f"b-{n}" for n in range(1000) if partition_of(f"b-{n}") == partition_of(here))
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(
        "INSERT INTO sample.fact_readers (source, partition, stream_id) VALUES ($1, $2, '1-3')",
        SOURCE,
        partition_of(here),
    )
    await superuser.close()
    believed = await all_partitions(worker)
    reader = FactReader(worker, redis, SOURCE, notes.apply)
    async with one_relay(worker, redis) as tenure:
        await tell(database, here, 1)
        await tenure._publish()
        await reader.step(believed)
        for key, sequence in ((beside, 1), (elsewhere, 1), (here, 2)):
            await tell(database, key, sequence)
        await tenure._publish()
    told = {here: [1, 2], beside: [1], elsewhere: [1]}
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while await Notes.of(sample) != told:
                await reader.step(believed)
    await reader.close()
    assert await Notes.of(sample) == told


# Taking back stands still here, within its transaction, while the test holds the lock.
GATE = """
    CREATE FUNCTION sample.wait() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN new; END';
    CREATE TRIGGER wait BEFORE UPDATE ON sample.outbox FOR EACH ROW
    WHEN (new.stream_epoch IS NULL AND new.key = '{key}' AND new.sequence = {sequence}) EXECUTE FUNCTION sample.wait();
    SELECT pg_advisory_lock(1)
    """


async def test_a_large_replay_neither_ends_the_relays_lease_nor_delays_what_is_new(
    database, worker, redis, sample, monkeypatch
):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(relay, "UNPUBLISH_ROWS", 100)
    monkeypatch.setattr(relay, "BATCH_ROWS", 100)
    count = 500
    large, other, early, late = keys_of_different_partitions(4)
    of_large, of_early, of_late = (relay.stream_of(SOURCE, partition_of(key)) for key in (large, early, late))
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(GATE.format(key=large, sequence=150))

    async def unpublished() -> int:
        return await superuser.fetchval("SELECT count(*) FROM sample.outbox WHERE stream_epoch IS NULL")

    async with relay.relay(worker, redis, SOURCE), asyncio.timeout(60):
        await tell(database, large, *range(1, count + 1))
        async with database.transaction(ANNA) as slow:
            await outbox.add(slow, [fact(late, 1)])  # its outbox_id is below one of those that are taken back
            await tell(database, other, 1)
            while await unpublished():
                await asyncio.sleep(0.02)
            epoch = await superuser.fetchval("SELECT epoch FROM sample.leases")
            published, _ = (await redis.xrevrange(of_large, count=1))[0]
            async with redis.pipeline(transaction=True) as pipeline:
                for key in (other, large):
                    pipeline.xadd(relay.requests_of(SOURCE), {"partition": partition_of(key), "after": "0-0"})
                await pipeline.execute()
            while not await superuser.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            ):
                await asyncio.sleep(0.005)
            assert await unpublished() == 1 + relay.UNPUBLISH_ROWS, "all at once is too long for one transaction"
            for _ in range(2):  # the first may have been under way before
                renewed = await superuser.fetchval("SELECT expire_time FROM sample.leases")
                while not await superuser.fetchval("SELECT expire_time > $1 FROM sample.leases", renewed):
                    await asyncio.sleep(0.01)
            await tell(database, early, 1)
        await superuser.execute("SELECT pg_advisory_unlock(1)")
        while await unpublished():
            await asyncio.sleep(0.02)
        assert await superuser.fetchval("SELECT epoch FROM sample.leases") == epoch
        first, *again = await redis.xrange(of_large, min=b"(" + published)
        assert first[1] == {b"p": b"0-0"}, "a reader goes on from what it has"
        assert sum(b"f" in fields for _, fields in again) == count
        for stream in (of_early, of_late):
            [(stream_id, _)] = await redis.xrange(stream)
            assert relay.id_from(stream_id) < relay.id_from(again[0][0]), "what is new came after what went out again"
    await superuser.close()


async def test_what_is_new_is_found_without_reading_what_is_to_go_out_again(sample):
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(
        """
        INSERT INTO sample.outbox (partition, key, sequence, kind, payload, stream_counter)
        SELECT 0, 'key', number, 'test', '', number FROM generate_series(1, 5000) AS number;
        ANALYZE sample.outbox
        """
    )
    plan = await superuser.fetch(f"EXPLAIN SELECT * FROM sample.outbox WHERE {relay.NEW} ORDER BY outbox_id LIMIT 1")
    assert "using outbox_new " in "".join(row[0] for row in plan)
    await superuser.close()


async def test_a_new_reader_catches_up_while_others_get_what_is_new(
    database, worker, redis, sample, notes, monkeypatch
):
    """The order of a key holds although what goes out again takes turns with what is new."""
    monkeypatch.setattr(relay, "BATCH_ROWS", 50)
    monkeypatch.setattr(relay, "UNPUBLISH_ROWS", 50)
    keys = keys_of_different_partitions(4)
    async with relay.relay(worker, redis, SOURCE):
        for key in keys:
            await tell(database, key, *range(1, 301))
        async with asyncio.timeout(20):
            while sum([await redis.xlen(relay.stream_of(SOURCE, partition_of(key))) for key in keys]) < 1200:
                await asyncio.sleep(0.05)
        await redis.flushall()
        async with reading(worker, redis, SOURCE, notes.apply):
            for sequence in range(301, 341):
                for key in keys:
                    await tell(database, key, sequence)
            await until(sample, {key: list(range(1, 341)) for key in keys}, seconds=60)


async def test_a_request_that_makes_no_sense_stops_nothing(database, worker, redis, sample, notes):
    for fields in (
        {"partition": 99, "after": "0-0"},
        {"partition": 1, "after": "x"},
        {"partition": 1, "after": f"{2**63}-0"},
        {"key": "a\0b", "after": 1},
        {"key": b"\xff", "after": 1},
        {"key": "key"},
        {"nothing": 1},
    ):
        await redis.xadd(relay.requests_of(SOURCE), fields)
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        async with asyncio.timeout(10):
            while await redis.xlen(relay.requests_of(SOURCE)):
                await asyncio.sleep(0.02)
        await tell(database, "key", 1)
        await until(sample, {"key": [1]})


async def stuck_at(reader: FactReader, key: str, text: str) -> None:
    """Wait until the reader says that key cannot go on, and why."""
    async with asyncio.timeout(10):
        while text not in reader.troubles.get(key, ""):
            await asyncio.sleep(0.02)


async def test_a_key_whose_next_fact_is_gone_is_told_and_never_applied_wrongly(
    database, worker, redis, sample, notes, caplog
):
    superuser = await asyncpg.connect(sample.superuser_url)
    stream = relay.stream_of(SOURCE, partition_of("key"))
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await tell(database, "key", 1, 2, 3, 4, 5)
        await until(sample, {"key": [1, 2, 3, 4, 5]})
    await tell(database, "key", 6, 7, 8, 9, 10, 11, 12)
    await superuser.execute("DELETE FROM sample.outbox WHERE sequence < 10")
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply) as reader:
        await stuck_at(reader, "key", "the oldest kept is 10")
        with pytest.raises(FactsStuck, match="key: what follows on 5 is kept no more"):
            await reader.check()
        length = await redis.xlen(stream)
        for sequence in range(13, 33):
            await tell(database, "key", sequence)
            async with asyncio.timeout(10):  # one by one, so that each is a batch
                while await superuser.fetchval("SELECT ahead FROM sample.fact_positions") < sequence:
                    await asyncio.sleep(0.02)
        # It is asked for once or twice meanwhile, each time with what follows, not with every batch.
        assert await redis.xlen(stream) - length < 20 + 3 * 23
        assert caplog.text.count("cannot go on") == 1
        assert await Notes.of(sample) == {"key": [1, 2, 3, 4, 5]}
        # A person has settled what 6 to 9 said.
        await superuser.execute("UPDATE sample.fact_positions SET sequence = 9")
        await until(sample, {"key": [1, 2, 3, 4, 5, *range(10, 33)]})
        assert reader.troubles == {}
    await superuser.close()


async def test_a_key_of_which_nothing_is_kept_any_more_is_told(database, worker, redis, sample, notes):
    superuser = await asyncpg.connect(sample.superuser_url)
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply):
        await tell(database, "key", 1)
        await until(sample, {"key": [1]})
    await superuser.execute("DELETE FROM sample.outbox")
    await superuser.execute("UPDATE sample.fact_positions SET ahead = 4")
    async with relay.relay(worker, redis, SOURCE), reading(worker, redis, SOURCE, notes.apply) as reader:
        await stuck_at(reader, "key", "what follows on 1 is kept no more")
        await tell(database, "key", 2, 3, 4)  # a teller put back to an older copy tells its own
        await until(sample, {"key": [1, 2, 3, 4]})
        assert reader.troubles == {}
    await superuser.close()


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_relay_forgets_nothing_before_readers_had_time_to_ask(
    is_old, database, worker, redis, sample, monkeypatch
):
    """After eight days without power, all the mesh starts at once."""
    superuser = await asyncpg.connect(sample.superuser_url)
    await tell(database, "key", 1, 2, 3)
    async with one_relay(worker, redis) as tenure:
        await tenure._publish()
    await superuser.execute("UPDATE sample.outbox SET create_time = now() - interval '8 days'")
    if is_old:
        monkeypatch.setattr(relay, "TIDY_AFTER_SECONDS", 0.0)
    async with relay.relay(worker, redis, SOURCE), asyncio.timeout(10):
        kept = 3
        for sequence in range(4, 24):  # each wakes the relay for a turn or two
            await tell(database, "key", sequence)
            while await superuser.fetchval("SELECT count(*) FROM sample.outbox WHERE stream_epoch IS NULL"):
                await asyncio.sleep(0.01)
            kept = await superuser.fetchval("SELECT count(*) FROM sample.outbox WHERE sequence <= 3")
            if not kept:
                break
    assert kept == (0 if is_old else 3)
    await superuser.close()


async def test_a_relay_holds_streams_to_their_bound_that_a_full_redis_would_not_trim(
    database, worker, redis, sample, monkeypatch
):
    """A full Redis refuses XADD with the trimming in it."""
    monkeypatch.setattr(relay, "STREAM_ENTRIES_MAX", 100)
    stream = relay.stream_of(SOURCE, partition_of("key"))
    for number in range(1, 1001):
        await redis.xadd(stream, {"p": "0-0", "f": b"x" * 20_000}, id=f"0-{number}")
    before = await redis.config_get("maxmemory", "maxmemory-policy")
    try:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] - 1_000_000)
        with pytest.raises(ResponseError, match="maxmemory"):
            await redis.xadd(stream, {"p": "0-0"}, maxlen=100)
        async with relay.relay(worker, redis, SOURCE):
            await tell(database, "key", 1)
            async with asyncio.timeout(20):
                while not (await redis.xrevrange(stream, count=1))[0][1].get(b"f", b"").startswith(b"\n"):
                    await asyncio.sleep(0.05)
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)


def filled(message: Any) -> Any:
    """The message with every field set, texts as long as an id; no fact holds lists."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            continue
        if field.message_type:
            filled(getattr(message, field.name))
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, "1234567.12345678" if field.name == "value" else str(ANNA))
        else:
            setattr(message, field.name, 1)
    return message


async def test_an_entry_takes_less_memory_than_the_bound_reckons_with(database, worker, redis, sample):
    """A large fact of ours, as the relay sends it, weighed by Redis itself."""
    change = filled(OrderChanged())
    async with database.transaction(ANNA) as rows:
        told = [
            Fact(
                key="key",
                sequence=n,
                user_id=ANNA,
                kind=change.DESCRIPTOR.full_name,
                payload=change.SerializeToString(),
            )
            for n in range(1, 501)
        ]
        await outbox.add(rows, told)
    async with one_relay(worker, redis) as tenure:
        await tenure._publish()
    stream = relay.stream_of(SOURCE, partition_of("key"))
    assert await redis.memory_usage(stream, samples=0) / await redis.xlen(stream) <= relay.ENTRY_BYTES


async def test_a_fact_that_cannot_be_applied_is_told_within_seconds(database, worker, redis, notes):
    notes.fail_on.add("bad")
    async with relay.relay(worker, redis, SOURCE) as told, reading(worker, redis, SOURCE, notes.apply) as reader:
        await reader.check()
        await tell(database, "bad", 1)
        async with asyncio.timeout(10):
            while not reader.troubles:
                await asyncio.sleep(0.02)
            with pytest.raises(FactsStuck, match="ZeroDivisionError"):
                await reader.check()
            while not gauge("tradeloom_facts_troubles") or not gauge("tradeloom_facts_lag_seconds"):
                await asyncio.sleep(0.05)
        await told.check()  # it has left, all the same


async def test_an_unreachable_redis_is_told_within_seconds_by_reader_and_relay(
    database, worker, redis, sample, notes, valkey, monkeypatch
):
    monkeypatch.setattr(relay, "STUCK_SECONDS", 2.0)
    monkeypatch.setattr(relay, "MEASURE_SECONDS", 0.2)
    async with relay.relay(worker, redis, SOURCE) as told, reading(worker, redis, SOURCE, notes.apply) as reader:
        await tell(database, "key", 1)
        await until(sample, {"key": [1]})
        valkey.kill()
        await tell(database, "key", 2)
        async with asyncio.timeout(20):
            while not reader.troubles:
                await asyncio.sleep(0.02)
            with pytest.raises(FactsStuck, match="Connection"):
                await reader.check()
            while not await is_stuck(told):
                await asyncio.sleep(0.05)
        assert "Connection" in told.trouble
        assert gauge("tradeloom_facts_troubles") == 1
        assert gauge("tradeloom_outbox_waiting") == 1
        assert gauge("tradeloom_outbox_waiting_seconds") > 1
        valkey.start()
        await until(sample, {"key": [1, 2]}, seconds=40)
        async with asyncio.timeout(20):
            while await is_stuck(told) or reader.troubles or gauge("tradeloom_outbox_waiting"):
                await asyncio.sleep(0.05)


async def is_stuck(told: relay.Relay) -> bool:
    try:
        await told.check()
    except RelayStuck:
        return True
    return False


def gauge(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"source": SOURCE}) or 0.0
