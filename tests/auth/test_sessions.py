"""Sessions: tokens that rotate, a stolen one that gives itself away, and an end that everybody hears of."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import asyncpg
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc, events_pb2

from libs.ids import uuid7
from libs.mesh.channel import MESSAGE_BYTES_MAX
from libs.mesh.sessions import Sessions
from libs.sealing import Unsealable
from libs.store.background import end
from libs.store.database import open_database
from services.auth import domain
from services.auth.domain import REPEAT_SECONDS, Session, User
from services.auth.keys import KeyBox, Signer, StoredKey, grant_of_session
from services.auth.revocations import REVOKED_PER_MESSAGE_MAX, Revocations
from tests.auth.people import PASSWORD, Person, carrying, reason_of, registered, signed_in, stub_of
from tests.mesh import DATA_KEY, MINT, Installation, Served, sign_in

HEARTBEAT_SECONDS = 0.02


def refresh(auth: Served, refresh_token: str, request_id: str = ""):
    return stub_of(auth).Refresh(auth_pb2.RefreshRequest(request_id=request_id, refresh_token=refresh_token))


async def me_of(auth: Served, session) -> str:
    return await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session)))


async def until_ended(auth: Served, session, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while await me_of(auth, session) != "SESSION_REVOKED":
            await asyncio.sleep(0.02)


async def test_a_refresh_gives_a_new_pair_of_the_same_session(auth):
    session = await signed_in(auth)
    first = await refresh(auth, session.refresh_token)
    second = await refresh(auth, first.refresh_token)
    assert first.session_id == second.session_id == session.session_id
    assert len({session.refresh_token, first.refresh_token, second.refresh_token}) == 3
    assert await me_of(auth, second) == ""


async def test_a_spent_token_ends_the_session_and_all_its_tokens(auth):
    person = await registered(auth)
    session, other = await signed_in(auth, person), await signed_in(auth, person)
    newest = await refresh(auth, session.refresh_token)
    assert await reason_of(refresh(auth, session.refresh_token)) == "REFRESH_TOKEN_REUSED"
    assert await reason_of(refresh(auth, newest.refresh_token)) == "REFRESH_TOKEN_INVALID"
    await until_ended(auth, newest)
    assert await me_of(auth, other) == ""


async def test_a_lost_answer_may_be_asked_for_again_and_only_one_pair_stays_valid(auth):
    session = await signed_in(auth)
    lost = await refresh(auth, session.refresh_token, "r")
    found = await refresh(auth, session.refresh_token, "r")
    again = await refresh(auth, session.refresh_token, "r")
    for replaced in (lost, found):
        assert await reason_of(refresh(auth, replaced.refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert await reason_of(refresh(auth, again.refresh_token)) == ""
    # Somebody has used the answer, so whoever repeats now is another.
    assert await reason_of(refresh(auth, session.refresh_token, "r")) == "REFRESH_TOKEN_REUSED"


async def test_an_answer_lost_in_an_outage_of_hours_is_given_again(auth, bare_installation):
    session = await signed_in(auth)
    await refresh(auth, session.refresh_token, "r")
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.refresh_tokens SET spent_time = spent_time - interval '12 hours'")
    again = await refresh(auth, session.refresh_token, "r")
    assert again.session_id == session.session_id
    assert await me_of(auth, again) == ""
    assert await reason_of(refresh(auth, again.refresh_token, "s")) == ""


async def test_a_repeat_under_another_request_id_or_too_late_is_a_theft(auth, bare_installation):
    first, second = await signed_in(auth), await signed_in(auth)
    await refresh(auth, first.refresh_token, "a")
    assert await reason_of(refresh(auth, first.refresh_token, "b")) == "REFRESH_TOKEN_REUSED"
    await refresh(auth, second.refresh_token, "c")
    async with bare_installation.connect() as rows:
        await rows.execute(
            "UPDATE auth.refresh_tokens SET spent_time = spent_time - make_interval(secs => $1)", REPEAT_SECONDS + 1
        )
    assert await reason_of(refresh(auth, second.refresh_token, "c")) == "REFRESH_TOKEN_REUSED"


async def test_another_token_under_the_same_request_id_is_refused_and_stays_valid(auth):
    session = await signed_in(auth)
    second = await refresh(auth, session.refresh_token, "r")
    assert await reason_of(refresh(auth, second.refresh_token, "r")) == "REQUEST_ID_REUSED"
    assert await reason_of(refresh(auth, second.refresh_token, "s")) == ""


async def test_of_two_refreshes_at_once_with_one_token_no_two_pairs_stay_valid(auth):
    session = await signed_in(auth)
    answers = await asyncio.gather(
        *(refresh(auth, session.refresh_token, "r") for _ in range(4)), return_exceptions=True
    )
    pairs = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(pairs) == 4
    reasons = [await reason_of(refresh(auth, pair.refresh_token)) for pair in pairs]
    assert sorted(reasons) == ["", *["REFRESH_TOKEN_INVALID"] * 3]


async def test_unknown_and_expired_refresh_tokens_are_refused(auth, bare_installation):
    session = await signed_in(auth)
    assert await reason_of(refresh(auth, "unknown")) == "REFRESH_TOKEN_INVALID"
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.refresh_tokens SET expire_time = now()")
    assert await reason_of(refresh(auth, session.refresh_token)) == "REFRESH_TOKEN_INVALID"


async def test_a_session_that_is_refreshed_all_the_time_ends_all_the_same(bare_installation):
    async with (
        bare_installation.serve("auth", refresh_token_days="30", session_days_max="90") as auth,
        bare_installation.connect() as rows,
    ):
        session = await signed_in(auth)
        await rows.execute("UPDATE auth.sessions SET create_time = now() - interval '80 days'")
        later = await refresh(auth, session.refresh_token)
        left = later.refresh_expire_time.ToDatetime(UTC) - datetime.now(UTC)
        assert timedelta(days=9) < left <= timedelta(days=10), "not thirty"
        # As if the tenth day had come; the token's own time says it was good for a moment more.
        await rows.execute("UPDATE auth.sessions SET create_time = now() - interval '90 days'")
        assert await reason_of(refresh(auth, later.refresh_token)) == "REFRESH_TOKEN_INVALID"


async def test_one_session_too_many_ends_the_one_that_was_idle_for_longest(auth, monkeypatch):
    monkeypatch.setattr(domain, "SESSIONS_MAX", 3)
    person, other = await registered(auth), await signed_in(auth)
    first, second, third = [await signed_in(auth, person) for _ in range(3)]
    await refresh(auth, first.refresh_token)
    await signed_in(auth, person)
    await until_ended(auth, second, 2)
    assert [await me_of(auth, one) for one in (first, third, other)] == ["", "", ""]
    assert await reason_of(refresh(auth, second.refresh_token)) == "REFRESH_TOKEN_INVALID"
    listed = await stub_of(auth).ListSessions(auth_pb2.ListSessionsRequest(), metadata=carrying(first))
    assert len(listed.sessions) == 3


async def test_a_logout_ends_this_session_and_no_other(auth):
    person = await registered(auth)
    session, other = await signed_in(auth, person), await signed_in(auth, person)
    request = auth_pb2.LogoutRequest(request_id="out")
    await stub_of(auth).Logout(request, metadata=carrying(session))
    await until_ended(auth, session, 2)
    assert await reason_of(refresh(auth, session.refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert await reason_of(stub_of(auth).Logout(request, metadata=carrying(session))) == "SESSION_REVOKED"
    # The same request_id would else seem to end the other session too.
    assert await reason_of(stub_of(auth).Logout(request, metadata=carrying(other))) == "REQUEST_ID_REUSED"
    assert await me_of(auth, other) == ""


async def test_one_of_ones_own_sessions_is_revoked_and_nobody_elses(auth):
    person, stranger = await registered(auth), await signed_in(auth)
    session, lost = await signed_in(auth, person), await signed_in(auth, person)

    def revoke(session_id: str):
        request = auth_pb2.RevokeSessionRequest(session_id=session_id)
        return stub_of(auth).RevokeSession(request, metadata=carrying(session))

    assert await reason_of(revoke(stranger.session_id)) == "SESSION_NOT_FOUND"
    await revoke(lost.session_id)
    await until_ended(auth, lost, 2)
    assert await reason_of(refresh(auth, lost.refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert [await me_of(auth, one) for one in (session, stranger)] == ["", ""]
    listed = await stub_of(auth).ListSessions(auth_pb2.ListSessionsRequest(), metadata=carrying(session))
    assert [one.session_id for one in listed.sessions] == [session.session_id]


async def test_a_repeated_logout_is_the_first_one(auth, bare_installation):
    """The repeat comes before anybody has heard of the end."""
    async with bare_installation.serve("auth", revocation_poll_seconds="3") as slow:
        session = await signed_in(slow)
        request = auth_pb2.LogoutRequest(request_id="out")
        calls = [stub_of(slow).Logout(request, metadata=carrying(session)) for _ in range(3)]
        assert set(await asyncio.gather(*map(reason_of, calls))) <= {"", "SESSION_REVOKED"}
        await until_ended(auth, session)
        async with bare_installation.connect() as rows:
            kinds = await rows.fetch("SELECT kind FROM auth.outbox WHERE kind LIKE '%SessionEnded'")
    assert len(kinds) == 1


async def test_two_replicas_agree_on_keys_sessions_and_ends(auth, bare_installation):
    async with bare_installation.serve("auth") as replica:
        session = await signed_in(auth)
        assert await me_of(replica, session) == ""
        newer = await refresh(replica, session.refresh_token)
        started = time.monotonic()
        await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=carrying(newer))
        await until_ended(replica, newer)
        assert time.monotonic() - started < 5
        keys = [await stub_of(one).GetJwks(auth_pb2.GetJwksRequest()) for one in (auth, replica)]
    assert keys[0] == keys[1]


async def test_a_new_reader_hears_of_sessions_that_ended_before_first(auth):
    session = await signed_in(auth)
    await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=carrying(session))
    await until_ended(auth, session)
    stub = auth.stub(auth_pb2_grpc.RevocationServiceStub, "orders")
    stream = stub.StreamRevocations(auth_pb2.StreamRevocationsRequest())
    snapshot, heartbeat = await stream.read(), await stream.read()
    assert snapshot.snapshot
    assert [one.session_id for one in snapshot.sessions] == [session.session_id]
    assert not heartbeat.snapshot
    assert not heartbeat.sessions
    assert 1 < heartbeat.time.ToNanoseconds() / 1e9 - snapshot.time.ToNanoseconds() / 1e9 < 4
    stream.cancel()


async def test_a_clock_that_is_set_forward_takes_no_ended_session_out_of_the_news(auth, bare_installation):
    session, other = await signed_in(auth), await signed_in(auth)
    await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=carrying(session))
    await until_ended(auth, session)
    async with bare_installation.connect() as rows:
        # As the database sees it when its clock is ahead.
        await rows.execute("UPDATE auth.revocations SET expire_time = now()")
    await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=carrying(other))
    await until_ended(auth, other)
    stream = auth.stub(auth_pb2_grpc.RevocationServiceStub, "orders").StreamRevocations(
        auth_pb2.StreamRevocationsRequest()
    )
    assert {one.session_id for one in (await stream.read()).sessions} == {session.session_id, other.session_id}
    stream.cancel()


async def test_more_ended_sessions_than_one_message_holds_come_in_several(auth, bare_installation):
    """In one they would be too long for a reader, who would never be ready."""
    count = 2 * REVOKED_PER_MESSAGE_MAX + 1
    person = await registered(auth)
    async with bare_installation.connect() as rows:
        await rows.execute(
            """
            INSERT INTO auth.revocations (subject, user_id, expire_time)
            SELECT gen_random_uuid(), $1, now() + interval '15 minutes' FROM generate_series(1, $2)
            """,
            person.user_id,
            count,
        )
    async with bare_installation.serve("auth", revocation_heartbeat_seconds="0.1") as restarted:
        stream = restarted.stub(auth_pb2_grpc.RevocationServiceStub, "orders").StreamRevocations(
            auth_pb2.StreamRevocationsRequest()
        )
        parts = [await stream.read()]
        while not parts[-1].HasField("time"):
            parts.append(await stream.read())
        heartbeat = await stream.read()
        stream.cancel()
    assert [len(part.sessions) for part in parts] == [REVOKED_PER_MESSAGE_MAX, REVOKED_PER_MESSAGE_MAX, 1]
    assert len({ended.session_id for part in parts for ended in part.sessions}) == count
    assert all(part.snapshot for part in parts)
    assert max(part.ByteSize() for part in parts) < MESSAGE_BYTES_MAX / 4
    assert heartbeat.HasField("time")
    assert not heartbeat.snapshot
    assert not heartbeat.sessions


async def test_readers_that_leave_just_as_a_heartbeat_is_due_hold_up_no_news(bare_installation):
    """One that left so took a lock with it once: from then on all writes of the installation were refused."""
    async with open_database(bare_installation.url("auth_worker"), 1) as worker:
        revocations = Revocations(worker, Sessions(10, 10), poll_seconds=0.001, heartbeat_seconds=HEARTBEAT_SECONDS)

        async def read() -> None:
            async for _ in revocations.stream():
                pass

        for turns in range(24):
            readers = [asyncio.create_task(read()) for _ in range(5)]
            await asyncio.sleep(HEARTBEAT_SECONDS * 0.9)
            # All heartbeats are due in one turn of the loop, as on a busy machine; each round one leaves a turn later.
            time.sleep(HEARTBEAT_SECONDS * 0.2)
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            readers[turns % 5].cancel()
            async with asyncio.timeout(5):
                await asyncio.gather(readers[turns % 5], return_exceptions=True)
                revocations.look_now()
                await revocations.follow()
            await end(readers)


async def test_nothing_is_vouched_for_while_the_database_is_not_read(bare_installation):
    async with bare_installation.serve("auth", revocation_heartbeat_seconds="0.1") as auth:
        stub = auth.stub(auth_pb2_grpc.RevocationServiceStub, "orders")
        stream = stub.StreamRevocations(auth_pb2.StreamRevocationsRequest())
        await stream.read()
        async with bare_installation.connect() as rows:
            await rows.execute("BEGIN; LOCK TABLE auth.revocations IN ACCESS EXCLUSIVE MODE")
            # Heartbeats come ten times a second until what was read is a second old.
            async with asyncio.timeout(8):
                while (await asyncio.wait([reading := asyncio.ensure_future(stream.read())], timeout=1))[0]:
                    pass
            fresh = stub.StreamRevocations(auth_pb2.StreamRevocationsRequest())
            snapshot = asyncio.ensure_future(fresh.read())
            assert not (await asyncio.wait([snapshot], timeout=0.5))[0]
            await rows.execute("COMMIT")
        assert (await snapshot).snapshot
        assert not (await reading).snapshot
        fresh.cancel()
        stream.cancel()


async def test_what_auth_tells_of_a_person_is_in_order_and_without_a_gap(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    await asyncio.gather(*(signed_in(auth, person) for _ in range(5)))
    newer = await refresh(auth, session.refresh_token)
    await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=carrying(newer))
    async with bare_installation.connect() as rows:
        told = await rows.fetch("SELECT * FROM auth.outbox WHERE key = $1 ORDER BY sequence", person.user_id)
    assert [row["sequence"] for row in told] == list(range(1, 9))
    assert {str(row["user_id"]) for row in told} == {person.user_id}
    kinds = [row["kind"].rpartition(".")[2] for row in told]
    assert kinds == ["UserRegistered", *["SessionOpened"] * 6, "SessionEnded"]
    ended = events_pb2.SessionEnded.FromString(told[-1]["payload"])
    assert (ended.session_id, ended.cause) == (session.session_id, "logout")


async def test_nobody_reads_or_writes_what_belongs_to_another(auth, bare_installation):
    ada, bob = await registered(auth), await registered(auth)
    for person in (ada, bob):
        await signed_in(auth, person)
        await stub_of(auth).Login(auth_pb2.LoginRequest(request_id="l", email=person.email, password=PASSWORD))
    tables = ("users", "user_roles", "sessions", "refresh_tokens", "request_keys")
    async with bare_installation.connect("auth_rpc") as rows:
        for users, seen in (("", set()), (ada.user_id, {ada.user_id})):
            await rows.execute("SELECT set_config('app.user_ids', $1, false)", users)
            for table in tables:
                found = await rows.fetch(f"SELECT DISTINCT user_id FROM {table}")
                assert {str(row["user_id"]) for row in found} == seen, table
        assert await rows.execute("UPDATE users SET full_name = 'x' WHERE user_id = $1", bob.user_id) == "UPDATE 0"
        assert await rows.execute("UPDATE sessions SET end_time = now() WHERE user_id = $1", bob.user_id) == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await rows.execute("INSERT INTO user_roles VALUES ($1, 'admin')", bob.user_id)


async def test_every_table_of_a_person_is_behind_row_security(bare_installation):
    async with bare_installation.connect() as rows:
        bare = await rows.fetch(
            """
            SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
            WHERE relnamespace = 'auth'::regnamespace AND relkind = 'r' AND attname = 'user_id'
            AND NOT (relrowsecurity AND relforcerowsecurity)
            """
        )
        bypassing = await rows.fetch("SELECT 1 FROM pg_roles WHERE rolname LIKE 'auth%' AND (rolbypassrls OR rolsuper)")
    assert not bare
    assert not bypassing


async def test_signing_keys_are_sealed_at_rest_and_bound_to_their_name(auth, bare_installation):
    async with bare_installation.connect() as rows:
        row = await rows.fetchrow("SELECT * FROM auth.signing_keys WHERE purpose = 'access'")
    stored = StoredKey(**row)
    assert MINT.private_key.private_bytes_raw() not in stored.sealed_private_key
    assert KeyBox(DATA_KEY).open(stored) is not None
    with pytest.raises(Unsealable):
        KeyBox(b"A" * 32).open(stored)
    with pytest.raises(Unsealable):
        KeyBox(DATA_KEY).open(StoredKey(**{**dict(row), "key_id": "another"}))
    # Who only writes the database puts no public key of their own beside it.
    foreign = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(Unsealable):
        Signer(KeyBox(DATA_KEY), 900).use([StoredKey(**{**dict(row), "public_key": foreign})])


async def test_the_public_keys_have_the_form_of_rfc_8037(auth):
    keys = (await stub_of(auth).GetJwks(auth_pb2.GetJwksRequest())).keys
    assert [(key.kty, key.crv, key.use, key.alg) for key in keys] == [("OKP", "Ed25519", "sig", "EdDSA")]
    as_json = {"kty": "OKP", "crv": "Ed25519", "x": keys[0].x, "kid": keys[0].kid, "use": "sig", "alg": "EdDSA"}
    session = await signed_in(auth)
    jwt.decode(session.access_token, jwt.PyJWK(as_json), algorithms=["EdDSA"], audience="tradeloom")


async def test_two_replicas_that_start_at_once_make_one_first_key_and_one_first_admin(bare_installation):
    async with bare_installation.connect() as rows:
        await rows.execute("DELETE FROM auth.signing_keys")
        admin = {"admin_email": "admin@tradeloom.local", "admin_password": "a password of the first"}
        async with AsyncExitStack() as stack:
            both = await asyncio.gather(
                *(stack.enter_async_context(bare_installation.serve("auth", **admin)) for _ in range(2))
            )
            keys = [(await stub_of(one).GetJwks(auth_pb2.GetJwksRequest())).keys[0].kid for one in both]
            login = auth_pb2.LoginRequest(email=admin["admin_email"], password=admin["admin_password"])
            assert set((await stub_of(both[0]).Login(login)).user.roles) == {"user", "operator", "admin"}
        assert keys[0] == keys[1]
        assert await rows.fetchval("SELECT count(*) FROM auth.users") == 1
        purposes = await rows.fetch("SELECT purpose FROM auth.signing_keys ORDER BY purpose")
        assert [row["purpose"] for row in purposes] == ["access", "audit"]


async def test_a_clock_behind_the_first_key_does_not_keep_anybody_out(bare_installation):
    """As in a second replica, or after a step back: the only key's time seems not to have come."""
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.signing_keys SET sign_time = now() + interval '1 hour'")
    async with bare_installation.serve("auth") as auth:
        assert await me_of(auth, await signed_in(auth)) == ""


def test_the_newest_key_whose_time_has_come_signs_and_the_oldest_before_that():
    box, now = KeyBox(DATA_KEY), datetime.now(UTC)
    earliest, earlier, later = (box.new(now + timedelta(hours=hours)) for hours in (-2, -1, 1))
    signer = Signer(box, 900)
    user = User(user_id=uuid7(), email="", full_name="", roles=frozenset(), email_verified=False, create_time=now)
    session = Session(session_id=uuid7(), user_id=user.user_id, address="", create_time=now)
    signer.use((later, earliest, earlier))

    def signing(at: datetime) -> str:
        return jwt.get_unverified_header(signer.sign(grant_of_session(user, session), at).text)["kid"]

    assert signing(now - timedelta(hours=3)) == earliest.key_id
    assert signing(now) == earlier.key_id
    assert signing(now + timedelta(hours=2)) == later.key_id


async def test_a_suspended_person_can_neither_sign_in_nor_refresh(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.users SET state = 'suspended'")
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    assert await reason_of(stub_of(auth).Login(login)) == "CREDENTIALS_INVALID"
    assert await reason_of(refresh(auth, session.refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert await me_of(auth, session) == "CREDENTIALS_INVALID"


async def test_what_was_committed_before_a_kill_is_what_the_repeat_is_answered(bare_installation: Installation):
    """auth is stopped in the midst of committing, killed after the commit and before its answer, and started again."""
    register = auth_pb2.RegisterRequest(request_id="r", email="ada@example.com", password=PASSWORD)
    with bare_installation.start("auth") as process:
        auth = process.served
        await auth.until_ready()
        await killed_between_commit_and_answer(
            bare_installation, process, "users", lambda: stub_of(auth).Register(register)
        )
        person = (await stub_of(auth).Register(register)).user
        session = await signed_in(auth, Person(person.user_id, person.email))
        asked = auth_pb2.RefreshRequest(request_id="r", refresh_token=session.refresh_token)
        await killed_between_commit_and_answer(
            bare_installation, process, "refresh_tokens", lambda: stub_of(auth).Refresh(asked)
        )
        pair = await stub_of(auth).Refresh(asked)
        assert await reason_of(refresh(auth, pair.refresh_token)) == ""
        async with bare_installation.connect() as rows:
            assert await rows.fetchval("SELECT user_id::text FROM auth.users") == person.user_id
            told = await rows.fetch("SELECT sequence FROM auth.outbox ORDER BY sequence")
        assert [row["sequence"] for row in told] == [1, 2]
        assert process.terminate() == 0
        await auth.close()


async def killed_between_commit_and_answer(installation: Installation, process, table: str, start) -> None:
    async with installation.connect() as rows, installation.connect() as looking:
        await rows.execute(
            f"""
            CREATE OR REPLACE FUNCTION public.wait_for_it() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER wait_for_it AFTER INSERT ON auth.{table}
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait_for_it();
            SELECT pg_advisory_lock(7);
            """
        )
        count = await looking.fetchval(f"SELECT count(*) FROM auth.{table}")
        calling = asyncio.ensure_future(start())
        async with asyncio.timeout(10):
            while not await looking.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                assert not calling.done(), calling.exception()
                await asyncio.sleep(0.01)
        process.process.send_signal(signal.SIGSTOP)
        await rows.execute("SELECT pg_advisory_unlock(7)")
        async with asyncio.timeout(10):
            while await looking.fetchval(f"SELECT count(*) FROM auth.{table}") == count:
                await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(aio.AioRpcError):
            await calling
        await rows.execute(f"DROP TRIGGER wait_for_it ON auth.{table}")
    process.start()
    await process.served.until_ready()


async def test_a_minted_token_is_believed_by_every_auth(auth):
    """What the other services' tests rely on."""
    assert await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=sign_in())) == "CREDENTIALS_INVALID"
