"""Signing in: what a wrong password costs, whom it costs, and what it tells."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from threading import Event

import grpc
import jwt
import pytest
from argon2 import PasswordHasher
from tradeloom.auth.v1 import auth_pb2, events_pb2

from services.auth import domain, passwords
from services.auth.domain import (
    FREE_FAILURES,
    FREE_FAILURES_OF_ACCOUNT,
    LOGIN_DELAY_SECONDS_MAX,
    Failures,
    LoginDelayed,
)
from services.auth.passwords import Passwords, Place
from tests.auth.people import (
    PASSWORD,
    Person,
    carrying,
    letter_to,
    letters,
    reason_of,
    registered,
    seen_from,
    signed_in,
    stub_of,
    wait_of,
)

NOW = datetime.now(UTC)


def attempt(auth, person: Person, password: str = "wrong", address: str = "198.51.100.1"):
    request = auth_pb2.LoginRequest(email=person.email, password=password)
    return stub_of(auth).Login(request, metadata=seen_from(address))


@pytest.fixture
async def auth(bare_installation):
    """Hashes fast enough for many attempts; an account's failures are told soon."""
    async with bare_installation.serve("auth", sign_in_per_second="1000", failed_logins_told_seconds="0.5") as served:
        yield served


async def test_a_session_names_its_owner_and_its_tokens_are_believed(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    assert (session.token_type, session.expires_in, session.user.user_id) == ("Bearer", 900, person.user_id)
    claims = jwt.decode(session.access_token, options={"verify_signature": False})
    assert (claims["sub"], claims["sid"]) == (person.user_id, session.session_id)
    assert 899 < claims["exp"] - claims["iat"] <= 900
    me = await stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session))
    assert me.user == session.user


async def test_an_unknown_address_and_a_wrong_password_are_refused_alike(auth):
    known, unknown = await registered(auth), Person("", "nobody@example.com")
    seen = []
    for person in (known, unknown):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attempt(auth, person)
        seen.append((caught.value.code(), caught.value.details(), caught.value.trailing_metadata()))
    assert seen[0] == seen[1]
    assert seen[0][0] is grpc.StatusCode.UNAUTHENTICATED


async def test_an_unknown_address_costs_the_same_work(auth, bare_installation, monkeypatch):
    """The same hashes and the same writes: compared by what is done, for a clock would only be lucky."""
    hashed: list[str] = []
    verify = Place._verify
    monkeypatch.setattr(Place, "_verify", lambda *given: hashed.append(given[1]) or verify(*given))
    known = await registered(auth)
    async with bare_installation.connect() as rows:
        work = []
        for person in (known, Person("", "nobody@example.com")):
            before = len(hashed)
            assert await reason_of(attempt(auth, person)) == "CREDENTIALS_INVALID"
            parameters = hashed[-1].split("$")[:4]
            written = await rows.fetch("SELECT user_id, address, failure_count FROM auth.failed_logins")
            work.append((len(hashed) - before, parameters, len(written), [row["failure_count"] for row in written]))
            async with asyncio.timeout(10):
                while await rows.fetchval("SELECT count(*) FROM auth.failed_logins"):
                    await asyncio.sleep(0.02)
    assert work[0] == work[1]
    assert work[0][0] == 1


def test_each_failure_after_the_free_ones_doubles_the_wait_up_to_a_bound():
    waits = [domain.delay(Failures(count=count, last_time=NOW)).total_seconds() for count in range(30)]
    assert waits[: FREE_FAILURES + 4] == [0] * FREE_FAILURES + [1, 2, 4, 8]
    assert max(waits) == waits[-1] == LOGIN_DELAY_SECONDS_MAX
    failures = Failures(count=FREE_FAILURES + 1, last_time=NOW)
    with pytest.raises(LoginDelayed) as caught:
        domain.admit_attempt([(failures, FREE_FAILURES)], NOW + timedelta(seconds=0.5))
    assert caught.value.retry_after_seconds == 1.5
    domain.admit_attempt([(failures, FREE_FAILURES)], NOW + timedelta(seconds=2))


async def test_failures_delay_the_next_attempt_from_that_address_only(auth):
    person, neighbour = await registered(auth), await registered(auth)
    for _ in range(FREE_FAILURES):
        assert await reason_of(attempt(auth, person)) == "CREDENTIALS_INVALID"
    assert await reason_of(attempt(auth, person, PASSWORD)) == "LOGIN_DELAYED"
    assert await reason_of(attempt(auth, person, PASSWORD, "198.51.100.2")) == ""
    assert await reason_of(attempt(auth, neighbour, PASSWORD)) == ""


async def test_failures_are_counted_for_a_whole_ipv6_network(auth):
    person = await registered(auth)
    for number in range(FREE_FAILURES):
        assert await reason_of(attempt(auth, person, address=f"2001:db8::{number}")) == "CREDENTIALS_INVALID"
    assert await reason_of(attempt(auth, person, PASSWORD, "2001:db8::ffff")) == "LOGIN_DELAYED"
    assert await reason_of(attempt(auth, person, PASSWORD, "2001:db8:0:1::1")) == ""


async def test_who_comes_back_when_told_is_let_in_however_often_he_asked_too_early(auth):
    person = await registered(auth)
    for _ in range(FREE_FAILURES):
        await reason_of(attempt(auth, person))
    waits = [await wait_of(attempt(auth, person, PASSWORD)) for _ in range(5)]
    assert waits == sorted(waits, reverse=True)
    await asyncio.sleep(waits[-1])
    assert await reason_of(attempt(auth, person, PASSWORD)) == ""
    # The row of failures has ended with the right password.
    assert await reason_of(attempt(auth, person)) == "CREDENTIALS_INVALID"
    assert await reason_of(attempt(auth, person, PASSWORD)) == ""


async def test_many_attempts_at_once_gain_nothing(auth):
    person = await registered(auth)
    started = time.monotonic()
    reasons = await asyncio.gather(*(reason_of(attempt(auth, person)) for _ in range(30)))
    # After the free ones, one a second later, one two seconds after that, and so on.
    later = math.floor(math.log2(time.monotonic() - started + 1))
    assert FREE_FAILURES <= reasons.count("CREDENTIALS_INVALID") <= FREE_FAILURES + later
    assert set(reasons) == {"CREDENTIALS_INVALID", "LOGIN_DELAYED"}


async def test_repeating_a_login_is_no_failure_and_shows_no_token_again(auth):
    person = await registered(auth)
    request = auth_pb2.LoginRequest(request_id="l", email=person.email, password=PASSWORD)
    first = await stub_of(auth).Login(request)
    for _ in range(FREE_FAILURES + 2):
        again = await stub_of(auth).Login(request)
        assert (again.session_id, again.user) == (first.session_id, first.user)
        assert (again.access_token, again.refresh_token) == ("", "")
    request.email = person.email.upper()
    assert await reason_of(stub_of(auth).Login(request)) == "REQUEST_ID_REUSED"


async def test_a_flood_of_failures_is_told_as_a_trickle_of_facts(auth, bare_installation):
    person = await registered(auth)
    async with bare_installation.connect() as rows:
        started = time.monotonic()
        for number in range(FREE_FAILURES_OF_ACCOUNT):
            await reason_of(attempt(auth, person, address=f"198.51.100.{number}"))
        async with asyncio.timeout(10):
            while await rows.fetchval("SELECT count(*) FROM auth.failed_logins"):
                await asyncio.sleep(0.02)
        intervals = (time.monotonic() - started) / 0.5
        told = await rows.fetch(
            "SELECT sequence, kind, payload FROM auth.outbox WHERE key = $1 ORDER BY sequence", person.user_id
        )
    assert [row["sequence"] for row in told] == list(range(1, len(told) + 1))
    failed = [events_pb2.LoginFailed.FromString(row["payload"]) for row in told if row["kind"].endswith("LoginFailed")]
    assert sum(fact.failure_count for fact in failed) == FREE_FAILURES_OF_ACCOUNT
    assert len(failed) <= intervals + 1


def test_the_service_hashes_as_the_library_recommends(monkeypatch):
    monkeypatch.setattr(passwords, "PasswordHasher", PasswordHasher)
    hashed = Passwords(at_once_max=1, waiting_max=0)._nobody
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


async def test_more_logins_at_once_than_can_wait_are_refused_and_the_others_served():
    release = Event()
    hasher = Passwords(at_once_max=1, waiting_max=2)

    async def served(*, known: bool) -> bool:
        with hasher.place(known=known) as place:
            return await place.run(release.wait)

    serving = [asyncio.ensure_future(served(known=False)) for _ in range(2)]
    await asyncio.sleep(0)
    # The last place is for somebody who is known.
    for _ in range(3):
        with pytest.raises(domain.Exhausted):
            await hasher.hash(PASSWORD)
    serving.append(asyncio.ensure_future(served(known=True)))
    await asyncio.sleep(0)
    with pytest.raises(domain.Exhausted):
        await hasher.hash(PASSWORD, known=True)
    release.set()
    assert await asyncio.gather(*serving) == [True] * 3
    with hasher.place() as place:
        assert await place.verify(await place.hash(PASSWORD), PASSWORD)
    assert hasher._count == 0


async def test_who_leaves_in_the_midst_of_a_login_does_not_make_room_for_more():
    begun, release = Event(), Event()

    def work() -> None:
        begun.set()
        release.wait(10)

    hasher = Passwords(at_once_max=1, waiting_max=0)

    async def leave_in_the_midst() -> None:
        with hasher.place() as place:
            await place.run(work)

    leaving = asyncio.create_task(leave_in_the_midst())
    await asyncio.to_thread(begun.wait, 10)
    leaving.cancel()
    with pytest.raises(domain.Exhausted):
        await hasher.hash(PASSWORD)
    release.set()


async def test_who_is_refused_for_the_many_others_has_not_failed(bare_installation):
    """Nor has to wait when they are gone."""
    one = {"password_hashes_at_once_max": "1", "password_hashes_waiting_max": "0", "sign_in_per_second": "1000"}
    async with bare_installation.serve("auth", **one) as auth:
        person = await registered(auth)
        begun, release = Event(), Event()

        def verify(*_: object) -> bool:
            begun.set()
            return release.wait(10)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Place, "_verify", verify)
            hashing = asyncio.create_task(reason_of(attempt(auth, Person("", "nobody@example.com"))))
            await asyncio.to_thread(begun.wait, 10)
            for _ in range(2 * FREE_FAILURES):
                assert await reason_of(attempt(auth, person, PASSWORD)) == "RATE_LIMITED"
            release.set()
            await hashing
        assert await reason_of(attempt(auth, person, PASSWORD)) == ""


async def test_a_sign_in_from_a_new_place_is_told_to_the_owner(auth, bare_installation):
    person = await registered(auth)
    for address in ("198.51.100.1", "198.51.100.1", "2001:db8::1", "2001:db8::ffff"):
        assert await reason_of(attempt(auth, person, PASSWORD, address)) == ""
    # Not the first of all, and once for each place; of IPv6 that is a network.
    mail = await letter_to(bare_installation.mails, person.email, "new place")
    assert "2001:db8::1" in mail.text
    assert await reason_of(attempt(auth, person, "wrong password", "203.0.113.9")) == "CREDENTIALS_INVALID"
    assert await reason_of(attempt(auth, person, PASSWORD, "203.0.113.9")) == ""
    second = await letter_to(bare_installation.mails, person.email, "new place", count=2)
    assert "203.0.113.9" in second.text
    assert len([one for one in letters(bare_installation.mails, person.email) if "new place" in one.subject]) == 2


async def test_hashing_does_not_hold_up_other_calls(auth, monkeypatch):
    session = await signed_in(auth)
    begun, release = Event(), Event()

    def verify(*_: object) -> bool:
        begun.set()
        return release.wait(10)

    monkeypatch.setattr(Place, "_verify", verify)
    hashing = asyncio.create_task(reason_of(attempt(auth, Person("", "nobody@example.com"))))
    await asyncio.to_thread(begun.wait, 10)
    await stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session))
    assert not hashing.done()
    release.set()
    assert await hashing == "CREDENTIALS_INVALID"


async def test_many_people_who_sign_in_at_once_from_one_place_do_not_hold_each_other_up(auth):
    """All are counted by the same network, and eight of them by the same account."""
    people = [await registered(auth) for _ in range(4)] + [await registered(auth)] * 8
    reasons = await asyncio.gather(*(reason_of(attempt(auth, person, PASSWORD)) for person in people * 4))
    # Before the account was forgotten again, some of those at once were counted as failures, as they might have been.
    assert set(reasons) <= {"", "LOGIN_DELAYED"}
    assert reasons.count("") >= 4 * 5
