"""The key-encryption key over everything that auth seals is replaced, and nobody notices."""

import asyncio
from pathlib import Path

import pytest
from tradeloom.auth.v1 import auth_pb2

from libs.sealing import FileKeys, KeysUnavailable, Sealer
from libs.store.database import open_database
from services.auth.data_key import DataKeyLost, open_data_key, rewrap
from tests.auth.people import enrolled, reason_of, signed_in, stub_of
from tests.mesh import DATA_KEY, KEY_ENCRYPTION_KEYS, Installation
from tests.rewraps import new_key, run, write

QUICK = {"sign_in_per_second": "1000"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As the database is at first."""
    path = tmp_path / "keys"
    write(path, KEY_ENCRYPTION_KEYS)
    return path


def serve(installation: Installation, file: Path):
    return installation.serve("auth", key_encryption_keys="", key_encryption_keys_file=str(file), **QUICK)


async def kept(installation: Installation) -> list[tuple[str, bytes]]:
    async with installation.connect() as superuser:
        found = await superuser.fetch("SELECT key_id, wrapped_key FROM auth.data_keys")
    return [tuple(row) for row in found]


async def test_a_key_replaced_while_auth_serves_keeps_sessions_factors_and_recovery_codes(
    bare_installation: Installation, file: Path
):
    async with serve(bare_installation, file) as auth:
        who = await enrolled(auth)
        new = f"new:{new_key()}"
        write(file, new, KEY_ENCRYPTION_KEYS)
        done = (0, "1 data keys were put under new; none is left under another key")
        assert await run(bare_installation, "auth", file) == done
        assert await run(bare_installation, "auth", file) == (0, done[1].replace("1", "0"))
        write(file, new)
        assert await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=who.metadata)) == ""
    # And a process that knows the new key alone.
    async with serve(bare_installation, file) as auth:
        assert await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=who.metadata)) == ""
        for proof in ({"code": who.next_code()}, {"recovery_code": who.recovery_codes[0]}):
            challenge = (await signed_in(auth, who.person)).challenge
            proved = await stub_of(auth).VerifyTotp(auth_pb2.VerifyTotpRequest(challenge=challenge, **proof))
            assert proved.access_token


async def test_a_rewrap_without_the_old_key_changes_nothing_and_says_so(bare_installation: Installation, file: Path):
    before = await kept(bare_installation)
    write(file, f"new:{new_key()}")
    code, output = await run(bare_installation, "auth", file)
    assert code == 1
    assert output == (
        "0 data keys were put under new, 1 could not be opened; left are 1 under tests:"
        " keep those keys, and run this again"
    )
    assert await kept(bare_installation) == before
    async with open_database(bare_installation.url("auth_rpc"), 1) as database:
        with pytest.raises(KeysUnavailable):
            await open_data_key(database, Sealer(FileKeys(file, allow_development=False)))


async def test_two_rewraps_at_once_leave_one_readable_key(bare_installation: Installation, file: Path):
    write(file, f"new:{new_key()}", KEY_ENCRYPTION_KEYS)
    sealer = Sealer(FileKeys(file, allow_development=False))
    async with (
        open_database(bare_installation.url("auth_worker"), 2) as worker,
        open_database(bare_installation.url("auth_rpc"), 2) as database,
    ):
        outcomes = await asyncio.gather(rewrap(worker, sealer), rewrap(worker, sealer))
        assert sum(outcome.rewrapped for outcome in outcomes) == 1
        assert [outcome.left for outcome in outcomes] == [{}, {}]
        assert await open_data_key(database, sealer) == DATA_KEY


async def test_replicas_that_start_first_together_agree_on_one_data_key(bare_installation: Installation, file: Path):
    sealer = Sealer(FileKeys(file, allow_development=False))
    async with bare_installation.connect() as superuser:
        await superuser.execute("TRUNCATE auth.data_keys, auth.signing_keys")
    async with open_database(bare_installation.url("auth_rpc"), 8) as database:
        opened = await asyncio.gather(*[open_data_key(database, sealer) for _ in range(8)])
        assert len(set(opened)) == 1
        assert opened[0] != DATA_KEY
        assert len(await kept(bare_installation)) == 1


async def test_no_second_data_key_is_made_where_signing_keys_rest_under_another(
    bare_installation: Installation, file: Path
):
    async with bare_installation.connect() as superuser:
        await superuser.execute("TRUNCATE auth.data_keys")
    async with open_database(bare_installation.url("auth_rpc"), 1) as database:
        with pytest.raises(DataKeyLost):
            await open_data_key(database, Sealer(FileKeys(file, allow_development=False)))
    assert await kept(bare_installation) == []


async def test_only_the_worker_replaces_it_and_nobody_takes_it_away(bare_installation: Installation):
    for role, statement in {
        "auth_rpc": "UPDATE auth.data_keys SET wrapped_key = ''",
        "auth_worker": "DELETE FROM auth.data_keys",
        "users_rpc": "SELECT wrapped_key FROM auth.data_keys",
    }.items():
        async with bare_installation.connect(role) as connection:
            with pytest.raises(Exception, match="permission denied"):
                await connection.execute(statement)
