"""The key-encryption key is replaced while the service runs: nothing is lost, and no lease waits."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from libs.mesh.sealing import Outcome, said
from libs.sealing import FileKeys, Sealer
from libs.store.database import open_database
from services.users import rewrapping
from services.users.rewrapping import Rewrapping
from tests.mesh import Installation
from tests.orders.stand import refusal
from tests.rewraps import COMMAND_SECONDS, command, new_key, run, write
from tests.users import stand
from tests.users.stand import BINANCE_SECRET, Stand


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def old(file: Path) -> str:
    """The entry under which everything is at first."""
    entry = f"old:{new_key()}"
    write(file, entry)
    return entry


@pytest.fixture
async def users(installation: Installation, file: Path, old: str) -> AsyncIterator[Stand]:
    async with stand.served(installation, key_encryption_keys="", key_encryption_keys_file=str(file)) as served:
        yield served


async def keys_in_use(users: Stand) -> dict[str, int]:
    found = await users.select("SELECT key_id, count(*) FROM user_broker_credentials GROUP BY key_id")
    return {row["key_id"]: row["count"] for row in found}


async def copies(users: Stand, file: Path, count: int) -> None:
    """More credentials, each of a person of its own and sealed for them, so that a rewrap takes a while."""
    sealer = Sealer(FileKeys(file, allow_development=True))
    rows = []
    for _ in range(count):
        user_id, credential_id = uuid4(), uuid4()
        sealed = await sealer.seal(b"x", rewrapping.use_cases.context_of_credential(user_id, credential_id))
        rows.append((credential_id, user_id, uuid4(), sealed.key.key_id, sealed.key.wrapped_key, sealed.ciphertext))
    async with users.installation.connect() as superuser:
        await superuser.executemany(
            """
            INSERT INTO users.user_broker_credentials
              (credential_id, user_id, account_id, venue, label, api_key_ending, state, create_time, update_time,
               revision, key_id, wrapped_key, ciphertext)
            VALUES ($1, $2, $3, 'BINANCE', 'x', 'xxxx', 'untested', now(), now(), 1, $4, $5, $6)
            """,
            rows,
        )


async def test_a_rewrap_puts_everything_under_the_newest_key_and_then_the_old_one_can_go(
    users: Stand, file: Path, old: str
):
    ada = users.person()
    put = await ada.put()
    new = f"new:{new_key()}"
    write(file, new, old)
    later = await ada.put()
    assert await keys_in_use(users) == {"old": 1, "new": 1}
    assert await run(users.installation, "users", file) == (
        0,
        "1 data keys were put under new; none is left under another key",
    )
    assert await run(users.installation, "users", file) == (
        0,
        "0 data keys were put under new; none is left under another key",
    )
    write(file, new)
    for credential in (put, later):
        assert (await ada.lease(credential.credential_id)).api_secret == BINANCE_SECRET
    assert await ada.credentials() == [put, later], "nothing of them changed"


async def test_without_a_rewrap_the_old_key_is_missed_and_comes_back_with_it(users: Stand, file: Path, old: str):
    ada = users.person()
    put = await ada.put()
    new = f"new:{new_key()}"
    write(file, new)
    assert (await refusal(ada.lease(put.credential_id))).code == "UNAVAILABLE"
    code, output = await run(users.installation, "users", file)
    assert code == 1
    assert output == (
        "0 data keys were put under new, 1 could not be opened; left are 1 under old: keep those keys, and run this again"
    )
    write(file, new, old)
    assert (await run(users.installation, "users", file))[0] == 0
    assert (await ada.lease(put.credential_id)).api_secret == BINANCE_SECRET


async def test_killed_in_the_midst_it_is_begun_again_while_leases_go_on(users: Stand, file: Path, old: str):
    people = [users.person() for _ in range(4)]
    puts = [await person.put() for person in people]
    await copies(users, file, 400)
    write(file, f"new:{new_key()}", old)
    leases, stopping = 0, asyncio.Event()

    async def lease_all_the_time() -> None:
        nonlocal leases
        while not stopping.is_set():
            for person, put in zip(people, puts, strict=True):
                assert (await person.lease(put.credential_id)).api_secret == BINANCE_SECRET
                leases += 1

    leasing = asyncio.create_task(lease_all_the_time())
    process = command(users.installation, "users", file)

    # A row that another session holds stops it when it has done a batch and not all.
    async with users.installation.connect() as superuser:
        await superuser.execute("BEGIN")
        await superuser.fetch(
            """
            SELECT 1 FROM users.user_broker_credentials WHERE credential_id = (
              SELECT credential_id FROM users.user_broker_credentials ORDER BY credential_id OFFSET 200 LIMIT 1)
            FOR UPDATE
            """
        )
        async with asyncio.timeout(COMMAND_SECONDS):
            while (await keys_in_use(users)).get("new", 0) < 200:
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=COMMAND_SECONDS)
        await superuser.execute("ROLLBACK")
    counts = await keys_in_use(users)
    assert counts["new"] == 200
    assert counts["old"] == 204
    before = leases
    code, output = await run(users.installation, "users", file)
    assert (code, output) == (0, "204 data keys were put under new; none is left under another key")
    assert leases > before > 0
    stopping.set()
    await leasing


async def test_two_at_once_do_no_harm(users: Stand, file: Path, old: str):
    ada = users.person()
    put = await ada.put()
    await copies(users, file, 300)
    write(file, f"new:{new_key()}", old)
    sealer = Sealer(FileKeys(file, allow_development=True))
    async with open_database(users.installation.url("users_worker"), 4) as worker:
        outcomes = await asyncio.gather(Rewrapping(worker, sealer)(), Rewrapping(worker, sealer)())
    assert sum(outcome.rewrapped for outcome in outcomes) == 301
    assert [(outcome.failed, outcome.left) for outcome in outcomes] == [(0, {}), (0, {})]
    assert (await ada.lease(put.credential_id)).api_secret == BINANCE_SECRET


async def test_a_key_put_while_its_row_was_rewrapped_stays(users: Stand, file: Path, old: str):
    ada = users.person()
    put = await ada.put()
    write(file, f"new:{new_key()}", old)

    class Meanwhile(Sealer):
        async def rewrap(self, wrapped, context):
            rewrapped = await super().rewrap(wrapped, context)
            await ada.put(put.account_id, credential_id=put.credential_id, api_secret="n" * 64)
            return rewrapped

    async with open_database(users.installation.url("users_worker"), 2) as worker:
        outcome = await Rewrapping(worker, Meanwhile(FileKeys(file, allow_development=True)))()
    assert outcome == Outcome(newest="new", rewrapped=0, failed=0, left={})
    assert (await ada.lease(put.credential_id)).api_secret == "n" * 64


def test_what_is_left_is_said_by_key():
    outcome = Outcome(newest="c", rewrapped=2, failed=0, left={"a": 1, "b": 3})
    assert said(outcome).endswith("left are 1 under a, 3 under b: keep those keys, and run this again")


async def test_the_role_that_rewraps_cannot_read_what_is_sealed(users: Stand):
    ada = users.person()
    await ada.put()
    async with users.installation.connect("users_worker") as worker:
        for table in ("user_broker_credentials", "personal_data_parts"):
            with pytest.raises(Exception, match="permission denied"):
                await worker.fetch(f"SELECT ciphertext FROM {table}")
