"""What is read of a person is found by an index, however many there are."""

import pytest
from redis.asyncio import Redis
from tradeloom.users.v1 import users_pb2

from libs.ids import uuid7
from libs.store.database import open_database
from services.users import store
from tests.users.stand import Person, Stand, Told, until


@pytest.fixture
async def ada(users: Stand, redis: Redis) -> Person:
    """Somebody with rows in every table."""
    person = users.person()
    await Told(redis).register(person)
    await person.change_profile(display_name="Ada")
    await person.change_preferences(locale="de")
    await person.put()
    request = users_pb2.DeleteAccountRequest(request_id=str(uuid7()), email="ada@example.com")
    await person.ask(person.api.DeleteAccount, request)

    async def is_exported() -> bool:
        return bool(await users.select("SELECT 1 FROM personal_data_parts"))

    await until(is_exported)
    return person


async def test_what_the_service_reads_of_a_person_uses_an_index_under_row_security(users: Stand, ada: Person):
    many = {
        "people": "gen_random_uuid()",
        "profiles": "gen_random_uuid(), '', ''",
        "onboarding_progress": "gen_random_uuid(), 'first_trade', now(), true",
        "personal_data_exports": "gen_random_uuid(), gen_random_uuid(), 'ready', now()",
        "user_broker_credentials": """
            gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'X', 'x', 'x', 'untested', now(), now(), 1,
            NULL, NULL, NULL, NULL, NULL, 'k', '', ''
            """,
        "deletions": "gen_random_uuid(), 'scheduled', now(), now() + interval '1 day', gen_random_uuid()",
    }
    async with users.installation.connect() as superuser:
        await superuser.execute("SET search_path = users")
        for table, values in many.items():
            await superuser.execute(f"INSERT INTO {table} SELECT {values} FROM generate_series(1, 20000)")
            await superuser.execute(f"ANALYZE {table}")
    async with open_database(users.installation.url("users_rpc"), 1) as database:
        async with database.transaction(ada.user_id) as rows:
            person = await store.locked(rows, ada.user_id)
            await store.refuse_deleted(rows, ada.user_id)
            await person.profile()
            await person.progress()
            await person.exports()
            await person.credentials()
            await person.deletion()
            found = await rows.fetch(
                "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = ANY($1)",
                list(many),
            )
    for row in found:
        assert row["seq_tup_read"] == 0, row
        assert row["idx_tup_fetch"] < 100, row
    assert {row["relname"] for row in found} == set(many)
