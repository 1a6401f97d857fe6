"""Migrations as an operator runs them: a process, a url, and what stands in the database afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

import migrations
from libs.store import revisions
from libs.store.database import open_database
from libs.store.revisions import RevisionUnknown, check_revision
from tests.servers import PASSWORD

FIRST = """
from migrations.shared import drop_store_tables, grant, own, run, store_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    run(
        *store_tables("{word}"),
        "CREATE TABLE things (thing_id uuid PRIMARY KEY, user_id uuid NOT NULL)",
        *own("{word}", "things", worker_reads_all=True),
        *grant("{word}", "things", rpc="SELECT, INSERT", worker="SELECT"),
    )


def downgrade() -> None:
    run("DROP TABLE things", *drop_store_tables())
"""
SECOND = """
from migrations.shared import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run("ALTER TABLE things ADD COLUMN name text")


def downgrade() -> None:
    run("ALTER TABLE things DROP COLUMN name")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for word in ("anvil", "bellows"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "0001_create_things.py").write_text(FIRST.format(word=word))
        (tmp_path / word / "0002_name_things.py").write_text(SECOND)
    return tmp_path


@pytest.fixture
def migrate(sample, folder):
    def run(*arguments: str, scheme: str = "postgresql") -> subprocess.CompletedProcess[str]:
        url = sample.superuser_url.replace("postgresql://postgres:", f"{scheme}://tradeloom:")
        program = "import sys, pathlib; from migrations.__main__ import main; "
        program += "main(*sys.argv[2:], folder=pathlib.Path(sys.argv[1]))"
        return subprocess.run(
            [sys.executable, "-c", program, str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MIGRATIONS_DATABASE_URL": url},
            timeout=60,
        )

    return run


async def test_all_services_are_migrated_in_one_process_and_again_without_effect(migrate, sample):
    for _ in range(2):
        done = migrate("all", "upgrade", "head")
        assert done.returncode == 0, done.stderr
    superuser = await asyncpg.connect(sample.superuser_url)
    for word in ("anvil", "bellows"):
        assert await superuser.fetchval(f"SELECT version_num FROM {word}.alembic_version") == "0002"
        forced = await superuser.fetch(
            """
            SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relrowsecurity AND relforcerowsecurity
            """,
            word,
        )
        assert {row["relname"] for row in forced} == {"request_keys", "outbox", "things"}
    await superuser.close()


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg2"])
def test_the_url_may_be_spelled_as_sqlalchemy_does(migrate, scheme):
    done = migrate("anvil", "upgrade", "head", scheme=scheme)
    assert done.returncode == 0, done.stderr


async def test_a_line_goes_up_down_and_up(migrate, sample):
    for arguments in (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head")):
        done = migrate("anvil", *arguments)
        assert done.returncode == 0, done.stderr
    superuser = await asyncpg.connect(sample.superuser_url)
    assert await superuser.fetchval("SELECT version_num FROM anvil.alembic_version") == "0002"
    await superuser.close()


async def test_the_roles_find_their_schema_and_cannot_log_in_by_themselves(migrate, sample):
    assert migrate("anvil", "upgrade", "head").returncode == 0
    superuser = await asyncpg.connect(sample.superuser_url)
    roles = await superuser.fetch(
        "SELECT rolname, rolconfig, rolcanlogin, rolbypassrls, rolsuper FROM pg_roles WHERE rolname LIKE 'anvil%' ORDER BY 1"
    )
    await superuser.execute(f"ALTER ROLE anvil_rpc LOGIN PASSWORD '{PASSWORD}'")
    assert [tuple(role.values()) for role in roles] == [
        (role, ["search_path=anvil"], False, False, False) for role in ("anvil_rpc", "anvil_worker")
    ]
    url = sample.superuser_url.replace("//postgres:", "//anvil_rpc:")
    async with open_database(url) as database, database.transaction() as rows:
        assert await rows.fetchval("SELECT count(*) FROM things") == 0
    await superuser.execute("ALTER ROLE anvil_rpc NOLOGIN")
    await superuser.close()


async def test_a_service_starts_only_at_a_revision_it_knows(migrate, sample, folder, monkeypatch):
    monkeypatch.setattr(revisions, "heads", lambda word: migrations.heads(word, folder))
    superuser = await asyncpg.connect(sample.superuser_url)

    async def check() -> None:
        async with open_database(sample.superuser_url) as database, database.transaction() as rows:
            await rows.execute("SET LOCAL search_path = anvil")
            await check_revision(rows, "anvil")

    with pytest.raises(RevisionUnknown, match="at no revision, this code knows 0002"):
        await check()
    migrate("anvil", "upgrade", "0001")
    with pytest.raises(RevisionUnknown, match="at 0001, this code knows 0002"):
        await check()
    migrate("anvil", "upgrade", "head")
    await check()
    (folder / "anvil" / "0002_name_things.py").unlink()
    with pytest.raises(RevisionUnknown, match="at 0002, this code knows 0001"):
        await check()
    await superuser.close()


def test_an_unknown_service_is_named(migrate):
    done = migrate("nobody", "upgrade", "head")
    assert done.returncode != 0
    assert "no service called nobody has tables; there are: anvil, bellows" in done.stderr
