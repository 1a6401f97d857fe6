import asyncio
from uuid import uuid4

import asyncpg
import pytest

from libs.errors import NotAllowed, RequestIdReused
from libs.store import requests
from libs.store.requests import RequestKey, add, claim, find, once, record

ANNA, BERT = uuid4(), uuid4()


def key(request_id="1", *, user_id=ANNA, digest=b"d") -> RequestKey:
    return RequestKey(user_id, "/orders/PlaceOrder", request_id, digest)


async def count(database, *user_ids) -> int:
    async with database.transaction(*user_ids) as rows:
        return await rows.fetchval("SELECT count(*) FROM notes")


async def note(rows) -> bytes:
    await rows.execute("INSERT INTO notes (user_id) VALUES ($1)", ANNA)
    return b"answer"


async def test_the_same_request_id_gets_the_first_answer_and_has_one_effect(database):
    assert await once(database, key(), note) == b"answer"
    assert await once(database, key(), note) == b"answer"
    assert await count(database, ANNA) == 1


async def test_another_body_under_the_same_request_id_is_refused(database):
    await once(database, key(), note)
    with pytest.raises(RequestIdReused):
        await once(database, key(digest=b"other"), note)
    assert await count(database, ANNA) == 1


async def test_request_ids_of_two_users_do_not_meet(database):
    await once(database, key(), note)

    async def berts(rows) -> bytes:
        return b"bert's"

    assert await once(database, key(user_id=BERT, digest=b"other"), berts) == b"bert's"


async def test_a_racing_duplicate_waits_and_reads_the_first_answer(database):
    working, proceed = asyncio.Event(), asyncio.Event()

    async def slow(rows) -> bytes:
        working.set()
        await proceed.wait()
        return await note(rows)

    first = asyncio.create_task(once(database, key(), slow))
    await working.wait()
    second = asyncio.create_task(once(database, key(), note))
    await waiting_for_a_lock(database)
    assert not second.done()
    proceed.set()
    assert await asyncio.gather(first, second) == [b"answer", b"answer"]
    assert await count(database, ANNA) == 1


async def test_a_racing_duplicate_does_the_work_if_the_first_was_rolled_back(database):
    working, proceed = asyncio.Event(), asyncio.Event()

    async def failing(rows) -> bytes:
        working.set()
        await proceed.wait()
        raise ZeroDivisionError

    first = asyncio.create_task(once(database, key(), failing))
    await working.wait()
    second = asyncio.create_task(once(database, key(), note))
    await waiting_for_a_lock(database)
    proceed.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await second == b"answer"


async def test_ten_at_once_have_one_effect(database):
    assert await asyncio.gather(*(once(database, key(), note) for _ in range(10))) == [b"answer"] * 10
    assert await count(database, ANNA) == 1


async def test_a_refusal_records_nothing(database):
    async def refuse(rows) -> bytes:
        raise NotAllowed("no")

    with pytest.raises(NotAllowed):
        await once(database, key(), refuse)
    assert await once(database, key(digest=b"other"), note) == b"answer"


async def test_a_batch_claims_what_is_new_answers_what_is_known_and_marks_what_differs(database):
    await once(database, key("known"), note)
    await once(database, key("differs"), note)
    batch = [key("known"), key("differs", digest=b"other"), key("new"), key("new"), key("new", digest=b"x")]
    async with database.transaction(ANNA) as rows:
        before = await claim(rows, batch)
        assert before[key("known")] == b"answer"
        assert isinstance(before[key("differs", digest=b"other")], RequestIdReused)
        assert isinstance(before[key("new", digest=b"x")], RequestIdReused)
        assert key("new") not in before
        await record(rows, {key("new"): b"fresh"})
    async with database.transaction(ANNA) as rows:
        assert await claim(rows, [key("new")]) == {key("new"): b"fresh"}


async def test_a_hundred_keys_of_many_users_are_one_statement_each(database):
    keys = [key(str(number), user_id=uuid4()) for number in range(100)]
    queries = []
    async with database.transaction(*(each.user_id for each in keys)) as rows:
        await claim(rows, [])  # a connection's first statements also learn the types of their parameters
        await record(rows, {})
        rows._con.add_query_logger(queries.append)
        assert await claim(rows, keys) == {}
        await record(rows, dict.fromkeys(keys, b"a"))
        rows._con.remove_query_logger(queries.append)
    assert len(queries) == 2


async def test_batches_that_share_keys_in_opposite_order_do_not_deadlock(database):
    keys = [key(str(number)) for number in range(50)]

    async def batch(ordered) -> int:
        async with database.transaction(ANNA) as rows:
            new = set(ordered) - (await claim(rows, ordered)).keys()
            await record(rows, dict.fromkeys(new, b"a"))
            return len(new)

    counts = await asyncio.gather(*(batch(keys if turn % 2 else keys[::-1]) for turn in range(8)))
    assert sorted(counts) == [0] * 7 + [50]


async def test_a_key_claimed_and_never_recorded_is_a_defect_not_a_second_effect(database):
    async with database.transaction(ANNA) as rows:
        await claim(rows, [key()])
    with pytest.raises(RuntimeError, match="never recorded"):
        await once(database, key(), note)
    assert await count(database, ANNA) == 0


async def test_only_keys_older_than_thirty_days_are_purged(database, worker, sample):
    for request_id in ("old", "young"):
        await once(database, key(request_id), note)
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute("""
        UPDATE sample.request_keys
        SET create_time = now() - CASE request_id WHEN 'old' THEN interval '31 days' ELSE interval '29 days' END
    """)
    assert await requests.purge(worker) == 1
    assert await superuser.fetchval("SELECT request_id FROM sample.request_keys") == "young"
    await superuser.close()
    async with worker.transaction() as rows:
        assert await rows.execute("DELETE FROM request_keys") == "DELETE 0"  # row security: not even by mistake


async def test_find_tells_what_was_answered_and_claims_nothing(database):
    await once(database, key("known"), note)
    await once(database, key("differs"), note)
    async with database.transaction(ANNA) as rows:
        before = await find(rows, [key("known"), key("differs", digest=b"other"), key("new")])
        assert before.keys() == {key("known"), key("differs", digest=b"other")}
        assert before[key("known")] == b"answer"
        assert isinstance(before[key("differs", digest=b"other")], RequestIdReused)
        await add(rows, {key("new"): b"fresh"})
    assert await once(database, key("new"), note) == b"fresh"


async def test_adding_a_key_that_another_used_since_is_an_error(database):
    await once(database, key(), note)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with database.transaction(ANNA) as rows:
            await add(rows, {key(): b"second"})


async def test_a_look_up_does_not_read_all_that_its_user_ever_asked(database, sample):
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(
        "INSERT INTO sample.request_keys SELECT $1, 'method', n::text, 'd', 'a' FROM generate_series(1, 20000) AS n",
        ANNA,
    )
    await superuser.execute("ANALYZE sample.request_keys")
    async with database.transaction(ANNA) as rows:
        asked = [key(f"new-{number}") for number in range(100)]
        await find(rows, asked)
        await claim(rows, asked)
        await record(rows, dict.fromkeys(asked, b"a"))
        read = await rows.fetchval(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'request_keys'"
        )
    assert 0 < read < 1_000
    await superuser.close()


async def waiting_for_a_lock(database) -> None:
    """Return once a transaction of this database really waits for another."""
    async with asyncio.timeout(5):
        while True:
            async with database.transaction() as rows:
                if await rows.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    return
