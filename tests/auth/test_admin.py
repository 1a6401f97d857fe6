"""Administration: who may, what it ends, and that somebody is always left who can."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc, events_pb2

from libs.ids import uuid7
from services.auth.domain import RECOVERY_CODE_COUNT, PasswordTooCommon
from tests.auth.people import (
    PASSWORD,
    Person,
    admin_of,
    administering,
    carrying,
    enrolled,
    letter_to,
    reason_of,
    registered,
    signed_in,
    stub_of,
)
from tests.authenticator import Authenticator
from tests.mesh import bearer, sign_in

ADMIN = {"admin_email": "admin@tradeloom.local", "admin_password": "a password of the first"}
ACTIVE, SUSPENDED = auth_pb2.USER_STATE_ACTIVE, auth_pb2.USER_STATE_SUSPENDED


@pytest.fixture
async def auth(bare_installation):
    async with bare_installation.serve("auth", **ADMIN) as served:
        yield served


FIRST = Person("", ADMIN["admin_email"], ADMIN["admin_password"])


async def first_admin(auth):
    """Their session, with a fresh second factor."""
    return (await enrolled(auth, FIRST)).session


async def test_the_first_administrator_has_no_common_password(bare_installation):
    with pytest.raises(PasswordTooCommon, match="AUTH_ADMIN_PASSWORD"):
        async with bare_installation.serve("auth", admin_email="a@example.com", admin_password="Administrator1"):
            pass


def set_state(auth, user_id: str, state, metadata=None, **fields):
    request = auth_pb2.SetUserStateRequest(user_id=user_id, state=state, **fields)
    return admin_of(auth).SetUserState(request, metadata=metadata or administering())


def set_roles(auth, user_id: str, *roles: str, metadata=None, **fields):
    request = auth_pb2.SetUserRolesRequest(user_id=user_id, roles=roles, **fields)
    return admin_of(auth).SetUserRoles(request, metadata=metadata or administering())


async def me_of(auth, session) -> str:
    return await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session)))


async def until(auth, session, reason: str) -> None:
    async with asyncio.timeout(5):
        while await me_of(auth, session) != reason:
            await asyncio.sleep(0.02)


def login(auth, person: Person):
    return stub_of(auth).Login(auth_pb2.LoginRequest(email=person.email, password=PASSWORD))


async def test_suspending_ends_sessions_refuses_keys_and_is_undone_without_loss(auth, bare_installation):
    who = await enrolled(auth)
    key = await stub_of(auth).CreateApiKey(
        auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE), metadata=who.metadata
    )
    exchange = auth_pb2.ExchangeApiKeyRequest(secret=key.secret)
    key_token = bearer((await stub_of(auth).ExchangeApiKey(exchange)).access_token)
    admin = await first_admin(auth)
    started = time.monotonic()
    suspended = await set_state(auth, who.person.user_id, SUSPENDED, carrying(admin), note="asked by the bank")
    assert suspended.user.state == SUSPENDED
    await until(auth, who.session, "SESSION_REVOKED")
    get_me = auth_pb2.GetMeRequest()
    assert await reason_of(stub_of(auth).GetMe(get_me, metadata=key_token)) == "TOKEN_OUTDATED"
    assert time.monotonic() - started < 5
    refresh = auth_pb2.RefreshRequest(refresh_token=who.session.refresh_token)
    assert await reason_of(stub_of(auth).Refresh(refresh)) == "REFRESH_TOKEN_INVALID"
    assert await reason_of(login(auth, who.person)) == "CREDENTIALS_INVALID"
    assert await reason_of(stub_of(auth).ExchangeApiKey(exchange)) == "API_KEY_INVALID"

    await set_state(auth, who.person.user_id, ACTIVE, carrying(admin))
    assert (await login(auth, who.person)).challenge
    fresh = bearer((await stub_of(auth).ExchangeApiKey(exchange)).access_token)
    assert await reason_of(stub_of(auth).GetMe(get_me, metadata=fresh)) == ""
    # What ended stays ended.
    assert await reason_of(stub_of(auth).Refresh(refresh)) == "REFRESH_TOKEN_INVALID"
    async with bare_installation.connect() as rows:
        told = await rows.fetch("SELECT payload FROM auth.outbox WHERE kind LIKE '%UserStateChanged' ORDER BY sequence")
    facts = [events_pb2.UserStateChanged.FromString(row["payload"]) for row in told]
    assert [(fact.state, fact.note) for fact in facts] == [("suspended", "asked by the bank"), ("active", "")]
    assert {fact.admin_user_id for fact in facts} == {admin.user.user_id}


async def test_roles_reach_the_tokens_and_those_of_before_are_refused(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    changed = await set_roles(auth, person.user_id, "operator")
    assert list(changed.user.roles) == ["operator", "user"]
    await until(auth, session, "TOKEN_OUTDATED")
    newer = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))
    assert await me_of(auth, newer) == ""
    claims = jwt.decode(newer.access_token, options={"verify_signature": False})
    assert claims["roles"] == ["operator", "user"]
    await set_roles(auth, person.user_id)
    await until(auth, newer, "TOKEN_OUTDATED")


async def test_a_token_made_in_the_same_second_as_the_change_and_after_it_is_good(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    for round_number in range(10):
        await set_roles(auth, person.user_id, *(["operator"] if round_number % 2 else []))
        session = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))
        assert await me_of(auth, session) == ""


@pytest.mark.parametrize("ahead", [3, -3, 4], ids=["ahead", "behind", "further ahead"])
async def test_no_clock_keeps_a_suspended_persons_tokens_good(auth, bare_installation, monkeypatch, ahead):
    """Also those that a replica made whose clock is not the one that suspends."""
    who = await enrolled(auth)
    made = await stub_of(auth).CreateApiKey(
        auth_pb2.CreateApiKeyRequest(request_id="k", name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE),
        metadata=who.metadata,
    )
    with monkeypatch.context() as patch:
        patch.setattr("services.auth.__main__.now", lambda: datetime.now(UTC) + timedelta(seconds=ahead))
        async with bare_installation.serve("auth", **ADMIN) as other:
            exchanged = await stub_of(other).ExchangeApiKey(auth_pb2.ExchangeApiKeyRequest(secret=made.secret))
    assert await me_of(auth, exchanged) == ""
    await set_state(auth, who.person.user_id, SUSPENDED, note="x")
    await until(auth, exchanged, "TOKEN_OUTDATED")
    # And when the person is back, only what was made since is good.
    await set_state(auth, who.person.user_id, ACTIVE, note="x")
    newer = await stub_of(auth).ExchangeApiKey(auth_pb2.ExchangeApiKeyRequest(secret=made.secret))
    assert await me_of(auth, newer) == ""
    assert await me_of(auth, exchanged) == "TOKEN_OUTDATED"


async def test_the_services_hear_which_of_a_persons_tokens_count(auth):
    """tests/libs/mesh/test_streams.py shows that they then end the streams."""
    person = await registered(auth)
    stream = auth.stub(auth_pb2_grpc.RevocationServiceStub, "orders").StreamRevocations(
        auth_pb2.StreamRevocationsRequest()
    )
    await stream.read()
    await set_roles(auth, person.user_id, "operator")
    while not (news := await stream.read()).outdated:
        pass
    stream.cancel()
    assert [(one.user_id, one.generation) for one in news.outdated] == [(person.user_id, 1)]
    assert abs(news.outdated[0].expire_time.ToNanoseconds() / 1e9 - time.time() - 900) < 5
    # Who comes later hears of it at once.
    late = auth.stub(auth_pb2_grpc.RevocationServiceStub, "feeds").StreamRevocations(
        auth_pb2.StreamRevocationsRequest()
    )
    assert (await late.read()).outdated == news.outdated
    late.cancel()


def reset_factor(auth, user_id: str, note: str = "showed a passport", metadata=None, request_id: str = ""):
    request = auth_pb2.ResetSecondFactorRequest(request_id=request_id, user_id=user_id, note=note)
    return admin_of(auth).ResetSecondFactor(request, metadata=metadata or administering())


async def test_a_lost_second_factor_is_taken_away_and_its_owner_hears_of_it(auth, bare_installation):
    who, other = await enrolled(auth), await enrolled(auth)
    admin = administering()
    answer = await reset_factor(auth, who.person.user_id, metadata=admin, request_id="r")
    assert not answer.user.totp_enabled
    assert await reset_factor(auth, who.person.user_id, metadata=admin, request_id="r") == answer
    assert await reason_of(reset_factor(auth, who.person.user_id)) == "TOTP_NOT_ENABLED"
    # What the factor had proved lasts no longer, and the password alone opens a session again.
    await until(auth, who.session, "SESSION_REVOKED")
    assert await reason_of(stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=who.session.refresh_token)))
    session = await signed_in(auth, who.person)
    assert session.access_token
    key = auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE)
    assert await reason_of(stub_of(auth).CreateApiKey(key, metadata=carrying(session))) == "STEP_UP_REQUIRED"
    assert (await letter_to(bare_installation.mails, who.person.email, "taken away")).text
    async with bare_installation.connect() as rows:
        told = await rows.fetch("SELECT user_id, payload FROM auth.outbox WHERE kind LIKE '%TotpDisabled'")
        assert await rows.fetchval("SELECT count(*) FROM auth.recovery_codes") == RECOVERY_CODE_COUNT
    [fact] = [events_pb2.TotpDisabled.FromString(row["payload"]) for row in told]
    assert fact.note == "showed a passport"
    assert fact.admin_user_id == jwt.decode(admin[0][1][7:], options={"verify_signature": False})["sub"]
    assert str(told[0]["user_id"]) == who.person.user_id
    # Nobody else's.
    assert (await signed_in(auth, other.person)).challenge


async def test_nobody_administers_without_a_fresh_second_factor(auth):
    """Also not who has none: nothing is let pass because nothing was set up."""
    person = await registered(auth)
    session = await signed_in(auth, FIRST)
    for token in (carrying(session), sign_in(roles=["admin"]), sign_in(roles=["admin"], mfa=True, mfa_time=1)):
        for call in (
            set_state(auth, person.user_id, SUSPENDED, metadata=token),
            set_roles(auth, person.user_id, "admin", metadata=token),
            reset_factor(auth, person.user_id, metadata=token),
            admin_of(auth).RotateSigningKey(auth_pb2.RotateSigningKeyRequest(), metadata=token),
        ):
            assert await reason_of(call) == "STEP_UP_REQUIRED"
    made = await stub_of(auth).SetupTotp(auth_pb2.SetupTotpRequest(), metadata=carrying(session))
    enabling = auth_pb2.EnableTotpRequest(code=Authenticator(made.otpauth_uri).unused_code())
    enabled = await stub_of(auth).EnableTotp(enabling, metadata=carrying(session))
    suspended = await set_state(auth, person.user_id, SUSPENDED, metadata=bearer(enabled.access_token))
    assert suspended.user.state == SUSPENDED


async def test_somebody_who_can_administer_is_always_left(auth):
    admin = await first_admin(auth)
    only = admin.user.user_id
    assert await reason_of(set_roles(auth, only, "user")) == "LAST_ADMIN"
    assert await reason_of(set_state(auth, only, SUSPENDED)) == "LAST_ADMIN"
    other = await registered(auth)
    await set_roles(auth, other.user_id, "admin")
    # Each takes the other's role at the same moment.
    both = await asyncio.gather(
        reason_of(set_roles(auth, only, "user")), reason_of(set_roles(auth, other.user_id, "user"))
    )
    assert sorted(both) == ["", "LAST_ADMIN"]


async def test_a_suspended_administrator_does_not_count(auth):
    admin, other = await first_admin(auth), await registered(auth)
    await set_roles(auth, other.user_id, "admin")
    await set_state(auth, other.user_id, SUSPENDED)
    assert await reason_of(set_roles(auth, admin.user.user_id, "user")) == "LAST_ADMIN"
    # Whoever cannot sign in may lose the role.
    assert await reason_of(set_roles(auth, other.user_id, "user")) == ""


async def test_nobody_but_administrators_may(auth):
    person = await registered(auth)
    for metadata in (sign_in(), sign_in(roles=["user", "operator"]), sign_in(roles=["admin"], scopes=["read"])):
        for call in (
            admin_of(auth).ListUsers(auth_pb2.ListUsersRequest(), metadata=metadata),
            admin_of(auth).ListAuditEvents(auth_pb2.ListAuditEventsRequest(user_id=person.user_id), metadata=metadata),
            admin_of(auth).RotateSigningKey(auth_pb2.RotateSigningKeyRequest(), metadata=metadata),
            set_roles(auth, person.user_id, "admin", metadata=metadata),
            set_state(auth, person.user_id, SUSPENDED, metadata),
        ):
            assert await reason_of(call) == "NOT_PERMITTED"


async def test_an_administrator_with_a_second_factor_must_have_proved_it_freshly(auth):
    person = await registered(auth)
    stale = sign_in(roles=["admin"], mfa=True, mfa_time=int(time.time()) - 301)
    assert await reason_of(set_state(auth, person.user_id, SUSPENDED, stale)) == "STEP_UP_REQUIRED"
    fresh = sign_in(roles=["admin"], mfa=True, mfa_time=int(time.time()))
    assert await reason_of(set_state(auth, person.user_id, SUSPENDED, fresh)) == ""


async def test_what_names_nobody_or_makes_no_sense_is_refused(auth):
    person = await registered(auth)
    assert await reason_of(set_roles(auth, str(uuid7()), "admin")) == "USER_NOT_FOUND"
    assert await reason_of(set_state(auth, str(uuid7()), SUSPENDED)) == "USER_NOT_FOUND"
    assert await reason_of(set_roles(auth, person.user_id, "emperor")) == "INVALID_FIELDS"
    assert await reason_of(set_state(auth, person.user_id, auth_pb2.USER_STATE_PURGED)) == "INVALID_FIELDS"
    assert await reason_of(set_state(auth, "me", SUSPENDED)) == "INVALID_FIELDS"


async def test_repeating_a_request_changes_nothing_more(auth, bare_installation):
    person = await registered(auth)
    me = administering(str(uuid7()))
    first = await set_roles(auth, person.user_id, "operator", metadata=me, request_id="r")
    await set_roles(auth, person.user_id, "user", metadata=me)
    assert await set_roles(auth, person.user_id, "operator", metadata=me, request_id="r") == first
    async with bare_installation.connect() as rows:
        roles = await rows.fetch("SELECT role FROM auth.user_roles WHERE user_id = $1", person.user_id)
    assert [row["role"] for row in roles] == ["user"]


async def test_people_are_found_by_words_role_and_state_and_come_in_pages(auth):
    people = [await registered(auth, f"person{number}@example.com") for number in range(5)]
    await set_roles(auth, people[1].user_id, "operator")
    await set_state(auth, people[2].user_id, SUSPENDED)

    async def found(**fields) -> list[str]:
        emails, token = [], ""
        while True:
            request = auth_pb2.ListUsersRequest(page_size=2, page_token=token, **fields)
            page = await admin_of(auth).ListUsers(request, metadata=administering())
            emails += [user.email for user in page.users]
            token = page.next_page_token
            if not token:
                return emails

    everybody = [ADMIN["admin_email"], *(person.email for person in people)]
    assert await found() == everybody
    assert await found(query="PERSON3") == [people[3].email]
    assert await found(query="%") == []
    assert await found(role="operator") == [ADMIN["admin_email"], people[1].email]
    assert await found(states=[SUSPENDED]) == [people[2].email]
    assert await found(states=[ACTIVE], role="admin") == [ADMIN["admin_email"]]
    bad = auth_pb2.ListUsersRequest(page_token="WyJ4IiwgInkiXQ")
    assert await reason_of(admin_of(auth).ListUsers(bad, metadata=administering())) == "PAGE_TOKEN_INVALID"
