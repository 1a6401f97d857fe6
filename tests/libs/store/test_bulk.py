from uuid import uuid4

import asyncpg
import pytest

from libs.store import outbox, requests
from libs.store.bulk import Bulk, Together, together
from libs.store.outbox import Fact
from libs.store.requests import RequestKey

ANNA = uuid4()
NOTES = Bulk("notes", {"user_id": "uuid", "text": "text"})
KEY = RequestKey(ANNA, "/sample/Note", "1", b"d")


class Note:
    def __init__(self, text: str) -> None:
        self.user_id, self.text = ANNA, text


def fact(sequence: int) -> Fact:
    return Fact(key="a", sequence=sequence, user_id=ANNA, kind="Noted", payload=b"p")


async def counts(sample) -> tuple[int, ...]:
    """The rows of everybody, as only the superuser sees them."""
    superuser = await asyncpg.connect(sample.superuser_url)
    tables = ("notes", "outbox", "request_keys")
    found = [await superuser.fetchval(f"SELECT count(*) FROM sample.{table}") for table in tables]
    await superuser.close()
    return tuple(found)


async def test_what_was_collected_is_written_when_it_is_sent(database, sample):
    async with database.transaction(ANNA) as rows:
        writes = Together(rows)
        await writes.execute(NOTES.statement, *NOTES.arguments([Note("one"), Note("two")]))
        await outbox.add(writes, [fact(1), fact(2)])
        await requests.add(writes, {KEY: b"answer"})
        assert await rows.fetchval("SELECT count(*) FROM notes") == 0
        await writes.send()
        await writes.send()
    assert await counts(sample) == (2, 2, 1)


async def test_one_write_that_fails_undoes_all(database, sample):
    async with database.transaction(ANNA) as rows:
        await requests.add(rows, {KEY: b"answer"})
    with pytest.raises(asyncpg.UniqueViolationError):
        async with database.transaction(ANNA) as rows:
            writes = Together(rows)
            await writes.execute(NOTES.statement, *NOTES.arguments([Note("one")]))
            await requests.add(writes, {KEY: b"another"})
            await writes.send()
    assert await counts(sample) == (0, 0, 1)


async def test_whoever_waits_for_the_commit_is_woken_after_it(database):
    woken = []
    outbox.wakers.add(lambda: woken.append(True))
    try:
        async with database.transaction(ANNA) as rows:
            writes = Together(rows)
            await outbox.add(writes, [fact(1)])
            await writes.send()
            assert not woken
        assert woken
    finally:
        outbox.wakers.clear()


async def test_nothing_collected_sends_nothing(database):
    async with database.transaction(ANNA) as rows:
        await Together(rows).send()


def test_parameters_are_numbered_on_and_may_repeat():
    assert together(("A $2 $1 $1", "B $1", "C", "D $1")) == (
        "WITH part_0 AS (A $2 $1 $1), part_1 AS (B $3), part_2 AS (C), part_3 AS (D $4) SELECT"
    )
