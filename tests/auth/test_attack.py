"""Attacks and accidents that an installation must come through: a flood of wrong passwords, and a database that dies."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc import StatusCode, aio
from tradeloom.auth.v1 import auth_pb2

from services.auth.domain import FREE_FAILURES_OF_ACCOUNT, LOGIN_DELAY_SECONDS_MAX
from services.auth.passwords import Place
from tests import mesh, sample, servers
from tests.auth.people import PASSWORD, Person, carrying, reason_of, registered, seen_from, signed_in, stub_of
from tests.mesh import Installation

AT_ONCE = 50
NETWORKS = 5_000
"""From which the guesses come: more than anybody could block one by one."""
RESTARTS = 6


def login(auth, person: Person, password: str, address: str):
    request = auth_pb2.LoginRequest(email=person.email, password=password)
    return stub_of(auth).Login(request, metadata=seen_from(address))


@pytest.mark.parametrize("wrong_passwords", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_thousands_of_wrong_passwords_lock_no_owner_out_and_cost_the_others_nothing(
    bare_installation, monkeypatch, wrong_passwords
):
    """What they cost is counted in hashes, the one dear thing about a login; a clock would only be lucky."""
    hashed: list[str] = []
    verify = Place._verify
    monkeypatch.setattr(Place, "_verify", lambda *given: hashed.append(given[2]) or verify(*given))
    async with bare_installation.serve("auth", sign_in_per_second="100000") as auth:
        owner, others = await registered(auth), [await registered(auth) for _ in range(5)]
        at_home = "198.51.100.1"
        session = await login(auth, owner, PASSWORD, at_home)
        guesses = iter(range(wrong_passwords))
        reasons: dict[str, int] = {}

        async def guessing() -> None:
            for number in guesses:
                address = f"203.{number % NETWORKS // 250}.{number % 250}.7"
                reason = await reason_of(login(auth, owner, f"guess {number}", address))
                reasons[reason] = reasons.get(reason, 0) + 1

        attack = asyncio.gather(*(guessing() for _ in range(AT_ONCE)))
        # Meanwhile the owner goes on, and signs in anew from where they have before; and so does everybody else.
        rounds = 0
        while not attack.done():
            rounds += 1
            session = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))
            get_me = stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session))
            assert (await get_me).user.user_id == owner.user_id
            assert await reason_of(login(auth, owner, PASSWORD, at_home)) == ""
            other = others[rounds % len(others)]
            assert await reason_of(login(auth, other, PASSWORD, f"198.51.100.{rounds % 200 + 2}")) == ""
        await attack
    assert sum(reasons.values()) == wrong_passwords
    assert set(reasons) == {"CREDENTIALS_INVALID", "LOGIN_DELAYED"}
    # The owner's own success ends a row of failures, so each of theirs gives the guessers another one, and no more.
    guessed = [password for password in hashed if password.startswith("guess ")]
    assert len(guessed) == reasons["CREDENTIALS_INVALID"]
    assert len(guessed) <= (FREE_FAILURES_OF_ACCOUNT + LOGIN_DELAY_SECONDS_MAX.bit_length()) * (rounds + 1)
    assert rounds > 5


@pytest.fixture
async def fragile(tmp_path: Path, valkey, pki: Path) -> AsyncIterator[tuple[Installation, servers.PostgresProcess]]:
    """An installation on a Postgres of its own, which may be killed."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    begun = await asyncio.to_thread(lambda: (context := servers.own_postgres(folder), context.__enter__()))
    context, running = begun
    try:
        await asyncio.to_thread(sample.make_template, running.server)
        await asyncio.to_thread(mesh.make_template, running.server)
        yield Installation(running.server, mesh.TEMPLATE, valkey.url, pki, tmp_path), running
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def refreshed(auth, refresh_token: str, request_id: str) -> auth_pb2.RefreshResponse:
    """As every client does: the same request again, until there is an answer."""
    request = auth_pb2.RefreshRequest(request_id=request_id, refresh_token=refresh_token)
    async with asyncio.timeout(25):
        while True:
            try:
                return await stub_of(auth).Refresh(request)
            except aio.AioRpcError as error:
                assert error.code() is StatusCode.UNAVAILABLE, error
                await asyncio.sleep(0.05)


async def test_a_database_that_dies_in_the_midst_of_a_refresh_leaves_one_session_with_one_token(fragile):
    installation, postgres = fragile
    chance = random.Random(7)
    async with installation.serve("auth", sign_in_per_second="1000") as auth:
        person = await registered(auth)
        session = await signed_in(auth, person)
        tokens = [session.refresh_token]
        for number in range(RESTARTS):
            asking = asyncio.create_task(refreshed(auth, tokens[-1], f"r{number}"))
            # Anywhere between before it has begun and after its answer.
            await asyncio.sleep(chance.uniform(0, 0.02))
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)
            answer = await asking
            tokens.append(answer.refresh_token)
            assert answer.session_id == session.session_id
            async with installation.connect() as rows:
                valid = await rows.fetch(
                    """
                    SELECT token_hash FROM auth.refresh_tokens JOIN auth.sessions USING (session_id)
                    WHERE spent_time IS NULL AND refresh_tokens.expire_time > now() AND end_time IS NULL
                    """
                )
            assert len(valid) == 1
        newest = await refreshed(auth, tokens[-1], "last")
        assert newest.session_id == session.session_id
        for spent in tokens[:-1]:
            request = auth_pb2.RefreshRequest(refresh_token=spent)
            # The first of them is a theft, and ends the session; from then on they are only invalid.
            assert await reason_of(stub_of(auth).Refresh(request)) in ("REFRESH_TOKEN_REUSED", "REFRESH_TOKEN_INVALID")
