import asyncio
from uuid import uuid4

import asyncpg
import pytest

from libs.store.database import Connection, Database, DatabaseUnavailable, StillLocked, open_database, plain_url
from tests.sample import Sample
from tests.servers import free_port

ANNA, BERT, CARL = uuid4(), uuid4(), uuid4()


async def write(database: Database, *user_ids, of=None) -> None:
    async with database.transaction(*user_ids) as rows:
        for user_id in of or user_ids:
            await rows.execute("INSERT INTO notes (user_id, text) VALUES ($1, 'x')", user_id)


async def seen(rows: Connection) -> set:
    return {row["user_id"] for row in await rows.fetch("SELECT user_id FROM notes")}


async def test_a_transaction_sees_only_the_rows_of_its_users(database):
    await write(database, ANNA, BERT, CARL)
    async with database.transaction(ANNA) as rows:
        assert await seen(rows) == {ANNA}
    async with database.transaction(ANNA, CARL) as rows:
        assert await seen(rows) == {ANNA, CARL}


async def test_without_users_nothing_is_visible_even_on_a_connection_that_had_users(sample: Sample):
    async with open_database(sample.rpc_url, connections_max=1) as database:
        await write(database, ANNA)
        async with database.transaction() as rows:
            assert await seen(rows) == set()


async def test_another_users_row_cannot_be_written_changed_or_deleted(database):
    await write(database, ANNA)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await write(database, BERT, of=[ANNA])
    async with database.transaction(BERT) as rows:
        assert await rows.execute("UPDATE notes SET text = 'stolen'") == "UPDATE 0"
        assert await rows.execute("DELETE FROM notes") == "DELETE 0"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.transaction(ANNA) as rows:
            await rows.execute("UPDATE notes SET user_id = $1", BERT)


async def test_the_policy_uses_the_index_on_user_id(database, sample: Sample):
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute(
        "INSERT INTO sample.notes (user_id, text) SELECT gen_random_uuid(), 'x' FROM generate_series(1, 20000)"
    )
    await superuser.execute("ANALYZE sample.notes")
    await superuser.close()
    async with database.transaction(ANNA, BERT) as rows:
        plan = "\n".join(row[0] for row in await rows.fetch("EXPLAIN SELECT * FROM notes"))
    assert "notes_user_id" in plan
    assert "Index Cond: (user_id = ANY" in plan


async def test_an_exception_rolls_back(database):
    with pytest.raises(ZeroDivisionError):
        async with database.transaction(ANNA) as rows:
            await rows.execute("INSERT INTO notes (user_id) VALUES ($1)", ANNA)
            raise ZeroDivisionError
    async with database.transaction(ANNA) as rows:
        assert await seen(rows) == set()


async def write_and_be_cancelled_while_waiting(database: Database) -> None:
    inside = asyncio.Event()

    async def slow() -> None:
        async with database.transaction(ANNA) as rows:
            await rows.execute("INSERT INTO notes (user_id) VALUES ($1)", ANNA)
            inside.set()
            await rows.execute("SELECT pg_sleep(20)")

    task = asyncio.create_task(slow())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_is_usable(sample: Sample):
    async with open_database(sample.rpc_url, connections_max=1) as database:
        await write_and_be_cancelled_while_waiting(database)
        async with database.transaction(ANNA) as rows:
            assert await seen(rows) == set()


async def test_a_statement_that_does_not_hear_of_its_cancellation_holds_its_connection_for_no_longer_than_a_rollback(
    sample: Sample, monkeypatch
):
    async def unheard(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(asyncpg.Connection, "_cancel", unheard)
    monkeypatch.setattr("libs.store.database.ROLLBACK_SECONDS", 0.1)
    async with open_database(sample.rpc_url, connections_max=1) as database, asyncio.timeout(10):
        await write_and_be_cancelled_while_waiting(database)
        async with database.transaction(ANNA) as rows:
            assert await seen(rows) == set()


async def test_a_swallowed_error_does_not_pass_for_a_commit(database):
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        async with database.transaction(ANNA) as rows:
            await rows.execute("INSERT INTO notes (user_id) VALUES ($1)", ANNA)
            with pytest.raises(asyncpg.UndefinedTableError):
                await rows.execute("SELECT * FROM nowhere")


async def test_after_commit_runs_after_a_commit_only(database):
    calls = []
    async with database.transaction() as rows:
        rows.after_commit(lambda: calls.append("committed"))
        assert calls == []
    assert calls == ["committed"]
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as rows:
            rows.after_commit(lambda: calls.append("rolled back"))
            raise ZeroDivisionError
    async with database.transaction():
        pass
    assert calls == ["committed"]


async def test_a_transaction_takes_one_round_trip_to_begin_and_one_to_commit(sample: Sample):
    async with open_database(sample.rpc_url, connections_max=1) as database:
        queries = []
        async with database.transaction() as rows:
            await rows.execute("SELECT 1")
            raw = rows._con  # pyright: ignore[reportAttributeAccessIssue] - the pool's proxy wraps it
        raw.add_query_logger(queries.append)
        async with database.transaction(ANNA) as rows:
            pass
        assert [query.query.split(";")[0] for query in queries] == ["BEGIN", "COMMIT"]


async def test_what_only_reads_takes_one_round_trip_a_statement_and_sees_nobodys_rows_after_whoever_came_before(
    sample: Sample,
):
    async with open_database(sample.rpc_url, connections_max=1) as database:
        await write(database, ANNA)
        queries = []
        async with database.reading() as rows:
            raw = rows._con  # pyright: ignore[reportAttributeAccessIssue] - the pool's proxy wraps it
            raw.add_query_logger(queries.append)
            assert await seen(rows) == set()
        assert len(queries) == 1
        async with database.transaction(ANNA) as rows:
            assert await seen(rows) == {ANNA}


async def test_a_snapshot_sees_one_moment_and_writes_nothing(database):
    async with database.transaction(ANNA, snapshot=True) as rows:
        assert await seen(rows) == set()
        await write(database, ANNA)
        assert await seen(rows) == set()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await rows.execute("INSERT INTO notes (user_id) VALUES ($1)", ANNA)
        await rows.execute("ROLLBACK; BEGIN")
    async with database.transaction(ANNA, snapshot=True) as rows:
        assert await seen(rows) == {ANNA}


async def test_a_lock_is_waited_for_as_long_as_is_said_and_the_next_transaction_as_long_as_usual(sample: Sample):
    async with open_database(sample.rpc_url, connections_max=1) as database:
        await write(database, ANNA)
        superuser = await asyncpg.connect(sample.superuser_url)
        await superuser.execute("BEGIN; SELECT * FROM sample.notes FOR UPDATE")
        with pytest.raises(StillLocked):
            async with database.transaction(ANNA, lock_seconds=0.05) as rows:
                await rows.execute("UPDATE notes SET text = 'y'")
        await superuser.close()
        async with database.transaction(ANNA) as rows:
            assert await rows.fetchval("SHOW lock_timeout") == "5s"


async def connections_of(database: Database, count: int) -> int:
    """How many the pool has opened for so many transactions that begin at once."""

    async def ask() -> None:
        async with database.transaction() as rows:
            await rows.execute("SELECT 1")

    await asyncio.gather(*(ask() for _ in range(count)))
    return database._pool.get_size()


async def test_who_is_patient_uses_a_connection_that_is_given_back_and_who_is_not_opens_one_more(sample: Sample):
    async with open_database(sample.worker_url, 8, patient_seconds=30) as patient:
        assert await connections_of(patient, 8) == 1
    async with open_database(sample.worker_url, 8) as database:
        assert await connections_of(database, 8) == 8


async def test_patience_ends_and_no_more_are_opened_than_may_be(sample: Sample):
    async with open_database(sample.worker_url, 2, patient_seconds=0.01) as database:
        async with database.transaction(), database.transaction():
            assert database._pool.get_size() == 2
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), database.transaction():
                    pass
        await database.check()
        assert database._pool.get_size() == 2


async def test_who_is_cancelled_while_patient_keeps_nobody_else_waiting(sample: Sample):
    async with open_database(sample.worker_url, 8, patient_seconds=30) as database:
        async with database.transaction():
            first, second = asyncio.create_task(database.check()), asyncio.create_task(database.check())
            await asyncio.sleep(0)
            assert len(database._waiting) == 2
        first.cancel()  # in the very moment that it was woken
        await second
        assert database._pool.get_size() == 1
        assert not database._waiting


async def test_a_wrong_statement_is_no_outage(database):
    with pytest.raises(asyncpg.InterfaceError):
        async with database.transaction() as rows:
            await rows.execute("SELECT $1::int", 1, 2)
    await database.check()


@pytest.mark.parametrize("begin", [Database.transaction, Database.reading])
async def test_a_killed_connection_is_an_outage_and_the_next_transaction_works(database, sample: Sample, begin):
    superuser = await asyncpg.connect(sample.superuser_url)
    with pytest.raises(DatabaseUnavailable):
        async with begin(database) as rows:
            await superuser.execute("SELECT pg_terminate_backend($1)", rows.get_server_pid())
            await rows.execute("SELECT 1")
    await superuser.close()
    await database.check()


async def test_no_postgres_is_an_outage():
    with pytest.raises(DatabaseUnavailable):
        async with open_database(f"postgresql://a:b@127.0.0.1:{free_port()}/trading"):
            pass


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"])
def test_the_url_may_be_spelled_as_sqlalchemy_does(scheme):
    assert plain_url(f"{scheme}://u:p@h:1/d") == "postgresql://u:p@h:1/d"


async def test_what_postgres_says_of_its_own_types_is_asked_for_once_by_a_process(sample: Sample, monkeypatch):
    asked = []

    async def ask(connection: Connection, typeoids, timeout):
        asked.append({*typeoids})
        return await introspect(connection, typeoids, timeout)

    introspect = asyncpg.Connection._introspect_types
    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", ask)
    monkeypatch.setattr("libs.store.database._TYPES", {})
    ids = [ANNA, BERT]
    for _ in range(2):
        async with open_database(sample.rpc_url, connections_max=1) as database, database.transaction() as rows:
            found = await rows.fetchrow("SELECT $1::uuid[], $2::bytea[], '{{1,2},{3,4}}'::int8[]", ids, [b"\x00"])
            assert list(found or ()) == [ids, [b"\x00"], [[1, 2], [3, 4]]]
    assert len(asked) == 1


async def test_an_owners_types_are_asked_for_again_since_they_may_differ(sample: Sample):
    owner = await asyncpg.connect(sample.superuser_url)
    for value in ("(1,2)", "(anna,bert)"):
        kind = "int" if value == "(1,2)" else "text"
        await owner.execute(f"DROP TYPE IF EXISTS pair; CREATE TYPE pair AS (a {kind}, b {kind})")
        async with open_database(sample.superuser_url, connections_max=1) as database, database.transaction() as rows:
            found = await rows.fetchval("SELECT $1::text::pair", value)
        assert tuple(found) == ((1, 2) if kind == "int" else ("anna", "bert"))
    await owner.close()
