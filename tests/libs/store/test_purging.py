"""Request keys are kept for 30 days and no longer, by every service that has them."""

import asyncio

import asyncpg
import pytest

from libs.ids import uuid7
from migrations import words
from tests.mesh import Installation

WAIT_SECONDS = 20.0
KEEPERS = words()

INSERT = """
    INSERT INTO {word}.request_keys (user_id, method, request_id, digest, answer, create_time)
    VALUES ($1, 'method', 'old', '', '', now() - interval '31 days'), ($1, 'method', 'young', '', '', now())
    """


async def left(superuser: asyncpg.Connection, word: str) -> list[str]:
    rows = await superuser.fetch(f"SELECT request_id FROM {word}.request_keys ORDER BY request_id")
    return [row["request_id"] for row in rows]


async def test_every_schema_with_request_keys_is_known_to_this_test(bare_installation: Installation):
    async with bare_installation.connect() as superuser:
        rows = await superuser.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'request_keys'")
    assert {row["schemaname"] for row in rows} == set(KEEPERS)


@pytest.mark.parametrize("word", KEEPERS)
async def test_a_running_service_forgets_old_request_keys(installation: Installation, word: str):
    async with installation.connect() as superuser:
        await superuser.execute(INSERT.format(word=word), uuid7())
        assert await left(superuser, word) == ["old", "young"]
        async with installation.serve(word, drain_seconds="0.2"), asyncio.timeout(WAIT_SECONDS):
            while "old" in await left(superuser, word):
                await asyncio.sleep(0.01)
        assert await left(superuser, word) == ["young"]
