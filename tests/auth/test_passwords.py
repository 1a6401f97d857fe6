"""Passwords: changed by who knows them, reset by who reads the mail, and both end what they must end."""

import asyncio
from hashlib import sha256

import pytest
from argon2 import PasswordHasher
from tradeloom.auth.v1 import auth_pb2, events_pb2

from services.auth import domain, passwords, reset_requests
from services.auth.domain import FREE_FAILURES, FREE_FAILURES_OF_ACCOUNT
from tests.auth.people import (
    PASSWORD,
    Person,
    carrying,
    enrolled,
    letter_to,
    letters,
    reason_of,
    registered,
    seen_from,
    signed_in,
    stub_of,
    told_of,
)

NEW = "coffee and cake at five"


@pytest.fixture
async def auth(bare_installation):
    async with bare_installation.serve("auth", sign_in_per_second="1000", failed_logins_told_seconds="0.5") as served:
        yield served


def change(auth, session, current: str = PASSWORD, new: str = NEW, request_id: str = ""):
    request = auth_pb2.ChangePasswordRequest(request_id=request_id, current_password=current, new_password=new)
    return stub_of(auth).ChangePassword(request, metadata=carrying(session))


def login(auth, person: Person, password: str = PASSWORD, address: str = "198.51.100.1"):
    request = auth_pb2.LoginRequest(email=person.email, password=password)
    return stub_of(auth).Login(request, metadata=seen_from(address))


def ask_reset(auth, email: str):
    return stub_of(auth).RequestPasswordReset(auth_pb2.RequestPasswordResetRequest(email=email))


def reset(auth, token: str, new: str = NEW, request_id: str = "", address: str = "198.51.100.1"):
    request = auth_pb2.ResetPasswordRequest(request_id=request_id, token=token, new_password=new)
    return stub_of(auth).ResetPassword(request, metadata=seen_from(address))


async def me_of(auth, session) -> str:
    return await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session)))


async def until_ended(auth, session) -> None:
    async with asyncio.timeout(5):
        while await me_of(auth, session) != "SESSION_REVOKED":
            await asyncio.sleep(0.02)


async def test_a_change_ends_the_other_sessions_and_keeps_this_one(auth, bare_installation):
    person = await registered(auth)
    session, *others = [await signed_in(auth, person) for _ in range(3)]
    changed = await change(auth, session)
    assert changed.ended_session_count == 2
    for other in others:
        await until_ended(auth, other)
    assert await me_of(auth, session) == ""
    assert await reason_of(login(auth, person)) == "CREDENTIALS_INVALID"
    assert await reason_of(login(auth, person, NEW)) == ""
    assert (await letter_to(bare_installation.mails, person.email, "password was changed")).text


async def test_a_change_needs_the_present_password_and_a_good_new_one(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    assert await reason_of(change(auth, session, "wrong")) == "CREDENTIALS_INVALID"
    assert await reason_of(change(auth, session, new="short")) == "INVALID_FIELDS"
    common = next(one for one in sorted(passwords.COMMON) if len(one) >= 12)
    assert await reason_of(change(auth, session, new=common.upper())) == "PASSWORD_TOO_COMMON"


async def test_no_change_and_no_link_sets_a_password_of_the_persons_own_words(auth, bare_installation):
    person = await registered(auth, "countess@lovelace.example")
    session, own = await signed_in(auth, person), "Ada Lovelace 1815"
    assert await reason_of(change(auth, session, new=own)) == "PASSWORD_TOO_COMMON"
    await ask_reset(auth, person.email)
    letter = await letter_to(bare_installation.mails, person.email, "new password")
    assert await reason_of(reset(auth, letter.token, own)) == "PASSWORD_TOO_COMMON"
    assert await reason_of(reset(auth, letter.token)) == "", "the link was not used up"


@pytest.mark.parametrize(
    "password", ["x" * 255 + "y", " spaces around them ", "MiXeD case throughout", "пароль 🔑 из слов"]
)
async def test_a_password_counts_exactly_as_it_was_typed(auth, password):
    person = Person("", "exact@example.com", password)
    register = auth_pb2.RegisterRequest(email=person.email, password=password)
    await stub_of(auth).Register(register)
    for other in {password[:-1], password.strip(), password.swapcase()} - {password}:
        assert await reason_of(login(auth, person, other)) == "CREDENTIALS_INVALID"
    assert await reason_of(login(auth, person, password)) == ""


async def test_guessing_the_password_within_a_session_is_held_up(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    for _ in range(FREE_FAILURES):
        assert await reason_of(change(auth, session, "wrong")) == "CREDENTIALS_INVALID"
    assert await reason_of(change(auth, session)) == "LOGIN_DELAYED"
    # Signing in has a count of its own.
    assert await reason_of(login(auth, person)) == ""


async def test_wrong_passwords_within_a_session_are_recorded_as_failed_logins_are(auth):
    who = await enrolled(auth)
    session = who.session
    assert await reason_of(change(auth, session, "wrong")) == "CREDENTIALS_INVALID"
    setting_up = auth_pb2.SetupTotpRequest(password="wrong")
    assert await reason_of(stub_of(auth).SetupTotp(setting_up, metadata=who.metadata)) == "CREDENTIALS_INVALID"
    disabling = auth_pb2.DisableTotpRequest(password="wrong", code=who.next_code())
    elsewhere = who.metadata + seen_from("203.0.113.66")
    assert await reason_of(stub_of(auth).DisableTotp(disabling, metadata=elsewhere)) == "CREDENTIALS_INVALID"
    failed = await told_of(auth, who.metadata, "LoginFailed", lambda found: found["failure_count"], 3)
    assert failed[-1]["address"] == "203.0.113.66"


async def test_who_has_a_second_factor_must_have_proved_it_freshly(auth, bare_installation):
    who = await enrolled(auth)
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.sessions SET second_factor_time = now() - interval '6 minutes'")
    stale = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=who.session.refresh_token))
    assert await reason_of(change(auth, stale)) == "STEP_UP_REQUIRED"
    stepped = await stub_of(auth).StepUp(auth_pb2.StepUpRequest(code=who.next_code()), metadata=carrying(stale))
    stale.access_token = stepped.access_token
    assert await reason_of(change(auth, stale)) == ""


async def test_repeating_a_change_changes_nothing_more(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    first = await change(auth, session, request_id="c")
    newer = await signed_in(auth, Person(person.user_id, person.email, NEW))
    assert await change(auth, session, request_id="c") == first
    assert await me_of(auth, newer) == ""
    assert await reason_of(change(auth, session, new="another one of twelve", request_id="c")) == "REQUEST_ID_REUSED"
    async with bare_installation.connect() as rows:
        assert await rows.fetchval("SELECT count(*) FROM auth.outbox WHERE kind LIKE '%PasswordChanged'") == 1


async def test_a_link_sets_a_new_password_once_and_ends_all_sessions(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    await ask_reset(auth, person.email.upper())
    letter = await letter_to(bare_installation.mails, person.email, "new password")
    assert await reason_of(reset(auth, letter.token, "too short")) == "INVALID_FIELDS"
    first = await reset(auth, letter.token, request_id="r")
    assert await reset(auth, letter.token, request_id="r") == first
    assert await reason_of(reset(auth, letter.token)) == "LINK_INVALID"
    await until_ended(auth, session)
    assert await reason_of(login(auth, person)) == "CREDENTIALS_INVALID"
    assert (await login(auth, person, NEW)).user.email_verified, "who read the mail owns the address"
    async with bare_installation.connect() as rows:
        told = await rows.fetchval("SELECT payload FROM auth.outbox WHERE kind LIKE '%PasswordChanged'")
    assert events_pb2.PasswordChanged.FromString(told).cause == "reset"


async def test_a_reset_leaves_the_second_factor_on(auth, bare_installation):
    who = await enrolled(auth)
    mail = await letter_to(bare_installation.mails, who.person.email, "Verify")
    await stub_of(auth).VerifyEmail(auth_pb2.VerifyEmailRequest(token=mail.token))
    await ask_reset(auth, who.person.email)
    letter = await letter_to(bare_installation.mails, who.person.email, "new password")
    await reset(auth, letter.token)
    assert (await login(auth, who.person, NEW)).challenge


async def test_who_proves_an_address_that_another_registered_leaves_that_one_no_key_and_no_factor(
    auth, bare_installation
):
    """Registered with somebody else's address, in the hope that its owner will one day use the account."""
    who = await enrolled(auth)
    made = await stub_of(auth).CreateApiKey(
        auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE), metadata=who.metadata
    )
    exchange = auth_pb2.ExchangeApiKeyRequest(secret=made.secret)
    token = await stub_of(auth).ExchangeApiKey(exchange)
    await ask_reset(auth, who.person.email)
    await reset(auth, (await letter_to(bare_installation.mails, who.person.email, "new password")).token)
    await until_ended(auth, token)
    assert await reason_of(stub_of(auth).ExchangeApiKey(exchange)) == "API_KEY_INVALID"
    owner = await login(auth, who.person, NEW)
    assert owner.access_token, "the other's second factor keeps nobody out"
    assert not owner.user.totp_enabled


async def test_a_reset_by_who_had_proved_the_address_leaves_their_keys(auth, bare_installation):
    who = await enrolled(auth)
    mail = await letter_to(bare_installation.mails, who.person.email, "Verify")
    await stub_of(auth).VerifyEmail(auth_pb2.VerifyEmailRequest(token=mail.token))
    made = await stub_of(auth).CreateApiKey(
        auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE), metadata=who.metadata
    )
    await ask_reset(auth, who.person.email)
    await reset(auth, (await letter_to(bare_installation.mails, who.person.email, "new password")).token)
    assert await reason_of(stub_of(auth).ExchangeApiKey(auth_pb2.ExchangeApiKeyRequest(secret=made.secret))) == ""
    assert (await login(auth, who.person, NEW)).challenge, "and their second factor"


async def until_reset_requests_are_done(rows) -> None:
    async with asyncio.timeout(10):
        while await rows.fetchval("SELECT count(*) FROM auth.reset_requests WHERE sealed IS NOT NULL"):
            await asyncio.sleep(0.02)


async def test_asking_for_a_link_is_answered_alike_and_leaves_the_same_whoever_asks(auth, bare_installation):
    person = await registered(auth)
    async with bare_installation.connect() as rows:
        seen = []
        for email in (person.email, "nobody@example.com"):
            answer = await ask_reset(auth, email)
            await until_reset_requests_are_done(rows)
            written = await rows.fetch("SELECT sealed, request_count FROM auth.reset_requests ORDER BY create_time")
            seen.append((answer.SerializeToString(), dict(written[-1])))
    assert len(written) == 2
    assert seen[0] == seen[1] == (b"", {"sealed": None, "request_count": 1})
    await letter_to(bare_installation.mails, person.email, "new password")
    assert letters(bare_installation.mails, "nobody@example.com") == []


async def test_no_address_that_was_asked_for_can_be_read_or_tried_in_the_table(auth, bare_installation):
    async with bare_installation.connect() as superuser, bare_installation.connect("auth_rpc") as rpc:
        # Nobody answers it, so that it stays as it was written.
        await superuser.execute("REVOKE UPDATE (sealed) ON auth.reset_requests FROM auth_worker")
        request = auth_pb2.RequestPasswordResetRequest(request_id="r", email="ada@example.com")
        await stub_of(auth).RequestPasswordReset(request)
        [row] = await superuser.fetch("SELECT each::text, user_id, sealed FROM auth.reset_requests AS each")
        assert row["sealed"]
        assert b"ada" not in row["sealed"]
        for told in (b"ada@example.com", b"login|ada@example.com"):
            assert row["user_id"].bytes not in {sha256(told).digest()[:16], sha256(told).digest()[16:]}
        assert await superuser.fetchval("SELECT user_id FROM auth.request_keys") == row["user_id"]
        assert not await rpc.fetch("SELECT * FROM auth.reset_requests")


async def test_links_stand_side_by_side_and_the_first_that_is_used_voids_the_others(auth, bare_installation):
    """A stranger who asks again and again takes the owner no link."""
    person = await registered(auth)
    found = []
    async with bare_installation.connect() as rows:
        for count in range(1, 4):
            await ask_reset(auth, person.email)
            found.append(await letter_to(bare_installation.mails, person.email, "new password", count=count))
            await rows.execute("UPDATE auth.reset_requests SET create_time = now() - interval '1 day'")
    assert await reason_of(reset(auth, found[0].token)) == ""
    for letter in found[1:]:
        assert await reason_of(reset(auth, letter.token)) == "LINK_INVALID"


async def test_who_asks_for_links_without_end_causes_a_dozen_mails_a_day(auth, bare_installation):
    """And as few rows for an address that nobody has."""
    person = await registered(auth)
    pauses: list[int] = []
    async with bare_installation.connect() as rows:

        async def asked(email: str) -> int:
            await ask_reset(auth, email)
            await until_reset_requests_are_done(rows)
            return await rows.fetchval("SELECT max(request_count) FROM auth.reset_requests") or 0

        for email in (person.email, "nobody@example.com"):
            await rows.execute("DELETE FROM auth.reset_requests")
            pauses = []
            assert await asked(email) == 1
            for count in range(1, 12):
                pause = min(reset_requests.AGAIN_SECONDS * 2 ** (count - 1), reset_requests.AGAIN_SECONDS_MAX)
                for seconds, taken in ((pause - 1, count), (pause + 1, count + 1)):
                    await rows.execute(
                        "UPDATE auth.reset_requests SET create_time = now() - make_interval(secs => $1)", seconds
                    )
                    assert await asked(email) == taken, (email, count, seconds)
                pauses.append(pause)
    assert pauses[:3] == [60, 120, 240]
    assert 86_400 / pauses[-1] <= 12
    await letter_to(bare_installation.mails, person.email, "new password", count=12)
    assert len(letters(bare_installation.mails, person.email)) == 1 + 12


async def test_a_link_expires_and_is_void_after_a_change(auth, bare_installation):
    for make_void in ("UPDATE auth.one_time_tokens SET expire_time = now()", None):
        person = await registered(auth)
        await ask_reset(auth, person.email)
        letter = await letter_to(bare_installation.mails, person.email, "new password")
        if make_void:
            async with bare_installation.connect() as rows:
                await rows.execute(make_void)
        else:
            await change(auth, await signed_in(auth, person))
        assert await reason_of(reset(auth, letter.token)) == "LINK_INVALID"


async def test_an_owner_who_was_locked_out_everywhere_gets_in_by_mail(auth, bare_installation):
    """Somebody guesses from everywhere; the owner sits where they never signed in."""
    person = await registered(auth)
    for number in range(FREE_FAILURES_OF_ACCOUNT):
        assert await reason_of(login(auth, person, "wrong", f"203.0.113.{number}")) == "CREDENTIALS_INVALID"
    assert await reason_of(login(auth, person, address="198.51.100.77")) == "LOGIN_DELAYED"
    await ask_reset(auth, person.email)
    letter = await letter_to(bare_installation.mails, person.email, "new password")
    await reset(auth, letter.token, address="198.51.100.77")
    assert await reason_of(login(auth, person, NEW, "198.51.100.77")) == ""


async def test_the_address_is_verified_by_the_link_of_the_first_mail(auth, bare_installation):
    person = await registered(auth)
    letter = await letter_to(bare_installation.mails, person.email, "Verify")
    session = await signed_in(auth, person)
    assert not session.user.email_verified
    verify = auth_pb2.VerifyEmailRequest(token=letter.token)
    assert (await stub_of(auth).VerifyEmail(verify)).email == person.email
    assert await reason_of(stub_of(auth).VerifyEmail(verify)) == "LINK_INVALID"
    assert (await signed_in(auth, person)).user.email_verified
    again = stub_of(auth).RequestEmailVerification(
        auth_pb2.RequestEmailVerificationRequest(), metadata=carrying(session)
    )
    assert await reason_of(again) == "EMAIL_VERIFIED"


async def test_another_verification_link_makes_the_first_void_and_nobody_is_flooded(auth, bare_installation):
    person = await registered(auth)
    first = await letter_to(bare_installation.mails, person.email, "Verify")
    session = await signed_in(auth, person)
    asked = [
        await reason_of(
            stub_of(auth).RequestEmailVerification(
                auth_pb2.RequestEmailVerificationRequest(), metadata=carrying(session)
            )
        )
        for _ in range(FREE_FAILURES + 1)
    ]
    assert asked == [""] * FREE_FAILURES + ["LOGIN_DELAYED"]
    newest = await letter_to(bare_installation.mails, person.email, "Verify", count=FREE_FAILURES + 1)
    for letter, reason in ((first, "LINK_INVALID"), (newest, "")):
        request = auth_pb2.VerifyEmailRequest(token=letter.token)
        assert await reason_of(stub_of(auth).VerifyEmail(request)) == reason


async def test_a_link_is_for_one_purpose(auth, bare_installation):
    person = await registered(auth)
    letter = await letter_to(bare_installation.mails, person.email, "Verify")
    assert await reason_of(reset(auth, letter.token)) == "LINK_INVALID"
    challenge = auth_pb2.VerifyTotpRequest(challenge=letter.token, code="123456")
    assert await reason_of(stub_of(auth).VerifyTotp(challenge)) == "CHALLENGE_INVALID"


async def test_a_hash_of_less_work_is_made_anew_at_the_next_login(auth, bare_installation, monkeypatch):
    person = await registered(auth)
    weaker = PasswordHasher(time_cost=1, memory_cost=16, parallelism=1).hash(PASSWORD)
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.users SET password_hash = $1", weaker)
        await signed_in(auth, person)
        renewed = await rows.fetchval("SELECT password_hash FROM auth.users")
        assert renewed != weaker
        await signed_in(auth, person)
        assert await rows.fetchval("SELECT password_hash FROM auth.users") == renewed


async def test_the_network_from_where_an_owner_signed_in_stays_open_while_others_guess(auth):
    person, at_home = await registered(auth), "198.51.100.9"
    assert await reason_of(login(auth, person, address=at_home)) == ""
    for number in range(FREE_FAILURES_OF_ACCOUNT):
        await reason_of(login(auth, person, "wrong", f"203.0.113.{number}"))
    assert await reason_of(login(auth, person, address="203.0.113.200")) == "LOGIN_DELAYED"
    assert await reason_of(login(auth, person, address=at_home)) == ""


async def test_who_tries_one_password_at_many_accounts_is_held_up_and_the_neighbours_at_home_are_not(auth):
    neighbour, address = await registered(auth), "198.51.100.10"
    assert await reason_of(login(auth, neighbour, address=address)) == ""
    for number in range(domain.FREE_FAILURES_OF_NETWORK):
        nobody = Person("", f"{number}@example.com")
        assert await reason_of(login(auth, nobody, address=address)) == "CREDENTIALS_INVALID"
    assert await reason_of(login(auth, Person("", "next@example.com"), address=address)) == "LOGIN_DELAYED"
    assert await reason_of(login(auth, await registered(auth), address=address)) == "LOGIN_DELAYED"
    assert await reason_of(login(auth, neighbour, address=address)) == ""
    assert await reason_of(login(auth, await registered(auth), address="198.51.100.11")) == ""
