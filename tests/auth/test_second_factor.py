"""The second factor: nothing counts until it is proved, everything works once, and whoever guesses is held up."""

import asyncio
import base64
import time
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import jwt
import pytest
from tradeloom.auth.v1 import auth_pb2

from libs.ids import uuid7
from services.auth import domain, totp
from services.auth.domain import (
    CHALLENGE_ATTEMPTS_MAX,
    FREE_FAILURES,
    FREE_FAILURES_OF_ACCOUNT,
    RECOVERY_CODE_COUNT,
    Session,
)
from services.auth.use_cases import new_refresh_token
from tests.auth.people import (
    PASSWORD,
    Enrolled,
    carrying,
    enrolled,
    letter_to,
    reason_of,
    registered,
    seen_from,
    signed_in,
    stub_of,
)
from tests.authenticator import Authenticator, hotp
from tests.mesh import Served, bearer

NOW = datetime.now(UTC)
SESSION = Session(session_id=uuid7(), user_id=uuid7(), address="", create_time=NOW)
# RFC 6238, appendix B: SHA-1, the key "12345678901234567890", eight digits.
RFC_KEY = b"12345678901234567890"
RFC_CODES = {
    59: "94287082",
    1111111109: "07081804",
    1111111111: "14050471",
    1234567890: "89005924",
    2000000000: "69279037",
    20000000000: "65353130",
}


def login(auth: Served, who: Enrolled, address: str = "198.51.100.1"):
    request = auth_pb2.LoginRequest(email=who.person.email, password=PASSWORD)
    return stub_of(auth).Login(request, metadata=seen_from(address))


def verify(
    auth: Served,
    challenge: str,
    code: str = "",
    recovery_code: str = "",
    request_id: str = "",
    address: str = "198.51.100.1",
):
    request = auth_pb2.VerifyTotpRequest(
        request_id=request_id, challenge=challenge, code=code, recovery_code=recovery_code
    )
    return stub_of(auth).VerifyTotp(request, metadata=seen_from(address))


def claims_of(token: str) -> dict:
    return jwt.decode(token, options={"verify_signature": False})


@pytest.mark.parametrize(("moment", "code"), RFC_CODES.items())
def test_the_tests_authenticator_is_what_the_rfc_describes(moment: int, code: str) -> None:
    assert hotp(RFC_KEY, moment // 30, digits=8) == code


def test_the_service_and_an_independent_implementation_agree_on_ten_thousand_codes() -> None:
    from datetime import UTC, datetime

    for number in range(100):
        secret = totp.new_secret()
        app = Authenticator(totp.otpauth_uri(secret, "ada@example.com"))
        for offset in range(100):
            moment = 1_700_000_000 + number * 977 + offset * 30
            code = hotp(app._key, moment // 30)
            assert totp.step_of(secret, code, datetime.fromtimestamp(moment, UTC), after=0) is not None


async def test_setting_up_gives_a_secret_its_uri_and_an_image_and_enables_nothing(auth):
    person = await registered(auth)
    session = await signed_in(auth, person)
    made = await stub_of(auth).SetupTotp(auth_pb2.SetupTotpRequest(), metadata=carrying(session))
    app = Authenticator(made.otpauth_uri)
    assert (app.label, app.issuer) == (f"Tradeloom:{person.email}", "Tradeloom")
    assert f"secret={made.secret}" in made.otpauth_uri
    assert ET.fromstring(made.qr_svg).tag == "{http://www.w3.org/2000/svg}svg"
    again = await signed_in(auth, person)
    assert again.access_token
    assert not again.user.totp_enabled
    wrong = auth_pb2.EnableTotpRequest(code="000000" if app.code() != "000000" else "111111")
    assert await reason_of(stub_of(auth).EnableTotp(wrong, metadata=carrying(session))) == "CODE_INVALID"


async def test_setting_up_needs_the_password_unless_its_owner_has_just_signed_in(auth, bare_installation):
    """Or a stolen token would shut its owner out for good."""
    session = await signed_in(auth)

    def set_up(password: str = "", request_id: str = ""):
        request = auth_pb2.SetupTotpRequest(password=password, request_id=request_id)
        return stub_of(auth).SetupTotp(request, metadata=carrying(session))

    assert await reason_of(set_up()) == ""
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.sessions SET create_time = now() - interval '6 minutes'")
    assert await reason_of(set_up()) == "PASSWORD_REQUIRED"
    assert await reason_of(set_up("a wrong password")) == "CREDENTIALS_INVALID"
    made = await set_up(PASSWORD, request_id="s")
    code = Authenticator(made.otpauth_uri).code()
    assert await set_up(PASSWORD, request_id="s") == auth_pb2.SetupTotpResponse()
    enable = auth_pb2.EnableTotpRequest(code=code)
    assert await reason_of(stub_of(auth).EnableTotp(enable, metadata=carrying(session))) == ""


async def test_setting_up_anew_makes_the_first_secret_void(auth):
    session = await signed_in(auth)
    apps = [
        Authenticator(
            (await stub_of(auth).SetupTotp(auth_pb2.SetupTotpRequest(), metadata=carrying(session))).otpauth_uri
        )
        for _ in range(2)
    ]
    for app, reason in zip(apps, ("CODE_INVALID", ""), strict=True):
        request = auth_pb2.EnableTotpRequest(code=app.code())
        assert await reason_of(stub_of(auth).EnableTotp(request, metadata=carrying(session))) == reason


async def test_enabling_without_a_secret_and_proving_without_a_factor_are_refused(auth):
    session = await signed_in(auth)
    for call in (
        stub_of(auth).EnableTotp(auth_pb2.EnableTotpRequest(code="123456"), metadata=carrying(session)),
        stub_of(auth).StepUp(auth_pb2.StepUpRequest(code="123456"), metadata=carrying(session)),
        stub_of(auth).RegenerateRecoveryCodes(
            auth_pb2.RegenerateRecoveryCodesRequest(code="123456"), metadata=carrying(session)
        ),
    ):
        assert await reason_of(call) == "TOTP_NOT_ENABLED"


async def test_a_login_then_takes_two_steps(auth):
    who = await enrolled(auth)
    asked = await login(auth, who)
    assert (asked.access_token, asked.refresh_token, asked.session_id) == ("", "", "")
    assert 0 < asked.challenge_expire_time.ToSeconds() - time.time() <= domain.CHALLENGE_SECONDS
    opened = await verify(auth, asked.challenge, who.next_code())
    assert opened.user.user_id == who.person.user_id
    assert opened.user.totp_enabled
    assert opened.recovery_codes_left == RECOVERY_CODE_COUNT
    claims = claims_of(opened.access_token)
    assert claims["mfa"] is True
    assert abs(claims["mfa_time"] - time.time()) < 5
    refreshed = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=opened.refresh_token))
    # Fresh for as long as it was, and no longer.
    assert claims_of(refreshed.access_token)["mfa_time"] == claims["mfa_time"]


async def test_a_code_works_once_also_twice_at_once(auth):
    who = await enrolled(auth)
    code = who.next_code()
    challenges = [(await login(auth, who)).challenge for _ in range(3)]
    answers = await asyncio.gather(*(reason_of(verify(auth, challenge, code)) for challenge in challenges))
    assert sorted(answers) == ["", "CODE_INVALID", "CODE_INVALID"]
    late = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, late, code)) == "CODE_INVALID"


async def test_a_challenge_opens_one_session_and_a_repeat_shows_no_token_again(auth):
    who = await enrolled(auth)
    challenge, code = (await login(auth, who)).challenge, who.next_code()
    first = await verify(auth, challenge, code, request_id="v")
    again = await verify(auth, challenge, code, request_id="v")
    assert (again.session_id, again.access_token, again.refresh_token) == (first.session_id, "", "")
    assert await reason_of(verify(auth, challenge, recovery_code=who.recovery_codes[0])) == "CHALLENGE_INVALID"
    assert await reason_of(verify(auth, challenge, "123456", request_id="v")) == "REQUEST_ID_REUSED"


async def test_after_five_wrong_codes_a_challenge_is_void_and_the_next_code_must_wait(auth, bare_installation):
    who = await enrolled(auth)
    challenge = (await login(auth, who)).challenge
    for _ in range(CHALLENGE_ATTEMPTS_MAX):
        assert await reason_of(verify(auth, challenge, "000000")) == "CODE_INVALID"
    assert CHALLENGE_ATTEMPTS_MAX == FREE_FAILURES, FREE_FAILURES_OF_ACCOUNT
    # Another challenge does not give other attempts.
    other = (await login(auth, who)).challenge
    code = who.next_code()
    assert await reason_of(verify(auth, other, code)) == "LOGIN_DELAYED"
    async with bare_installation.connect() as rows:
        await rows.execute("DELETE FROM auth.login_attempts")
        assert await reason_of(verify(auth, challenge, code)) == "CHALLENGE_INVALID"
        assert await reason_of(verify(auth, other, code)) == ""
        told = await rows.fetchval("SELECT count(*) FROM auth.outbox WHERE kind LIKE '%SecondFactorFailed'")
    assert told == CHALLENGE_ATTEMPTS_MAX


async def test_an_unknown_an_expired_and_no_challenge_are_refused_alike(auth, bare_installation):
    who = await enrolled(auth)
    challenge = (await login(auth, who)).challenge
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.one_time_tokens SET expire_time = now() WHERE purpose = 'challenge'")
    for one in (challenge, "unknown"):
        assert await reason_of(verify(auth, one, who.app.code())) == "CHALLENGE_INVALID"


async def test_a_recovery_code_opens_a_session_once(auth):
    who = await enrolled(auth)
    assert len(set(who.recovery_codes)) == RECOVERY_CODE_COUNT
    typed = who.recovery_codes[0].upper().replace("-", " ")
    opened = await verify(auth, (await login(auth, who)).challenge, recovery_code=typed)
    assert opened.recovery_codes_left == RECOVERY_CODE_COUNT - 1
    challenge = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, challenge, recovery_code=who.recovery_codes[0])) == "CODE_INVALID"


async def test_what_is_handed_out_cannot_be_guessed(auth):
    """Each is as long as its random bits need, and comes out of the system's own source, whose every bit counts."""
    who = await enrolled(auth)
    key = auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_READ)
    made = await stub_of(auth).CreateApiKey(key, metadata=who.metadata)
    challenge = (await login(auth, who)).challenge
    for text in (who.session.refresh_token, challenge, made.secret.removeprefix(made.api_key.prefix + "_")):
        assert len(base64.urlsafe_b64decode(text + "=")) * 8 >= 256
    plain = [totp.plain_recovery_code(code) for code in who.recovery_codes]
    assert all(len(base64.b32decode(code.upper())) * 8 >= 112 for code in plain)
    many = 1_000
    for make in (totp.new_recovery_code, totp.new_secret, lambda: new_refresh_token(SESSION, NOW)[0]):
        texts = ["".join(filter(str.isalnum, make())) for _ in range(many)]
        # No two begin or end alike, as they would if part of them were fixed, counted or made of the time.
        assert len({text[:8] for text in texts}) == len({text[-8:] for text in texts}) == many


async def test_regenerated_recovery_codes_replace_all_others(auth):
    who = await enrolled(auth)
    request = auth_pb2.RegenerateRecoveryCodesRequest(code=who.next_code())
    fresh = await stub_of(auth).RegenerateRecoveryCodes(request, metadata=who.metadata)
    assert not set(fresh.recovery_codes) & set(who.recovery_codes)
    old, new = (await login(auth, who)).challenge, (await login(auth, who)).challenge
    assert await reason_of(verify(auth, old, recovery_code=who.recovery_codes[1])) == "CODE_INVALID"
    assert await reason_of(verify(auth, new, recovery_code=fresh.recovery_codes[1])) == ""


async def test_secrets_and_codes_are_of_no_use_to_who_reads_the_tables(auth, bare_installation):
    session = await signed_in(auth)
    made = await stub_of(auth).SetupTotp(auth_pb2.SetupTotpRequest(request_id="s"), metadata=carrying(session))
    app = Authenticator(made.otpauth_uri)
    enabled = await stub_of(auth).EnableTotp(
        auth_pb2.EnableTotpRequest(request_id="e", code=app.unused_code()), metadata=carrying(session)
    )
    secrets = [made.secret.encode(), app._key, *(code.encode() for code in enabled.recovery_codes)]
    secrets += [code.replace("-", "").encode() for code in enabled.recovery_codes]
    async with bare_installation.connect() as rows:
        tables = await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'auth'")
        for table in tables:
            for row in await rows.fetch(f"SELECT * FROM auth.{table['tablename']}"):
                for value in row.values():
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    assert not [secret for secret in secrets if secret in raw], table["tablename"]


async def test_giving_the_factor_up_needs_the_password_and_a_code(auth, bare_installation):
    who = await enrolled(auth)

    def disable(password: str = PASSWORD, code: str = "", recovery_code: str = ""):
        request = auth_pb2.DisableTotpRequest(password=password, code=code, recovery_code=recovery_code)
        return reason_of(stub_of(auth).DisableTotp(request, metadata=who.metadata))

    assert await disable("wrong", who.app.code()) == "CREDENTIALS_INVALID"
    assert await disable(code="000000") == "CODE_INVALID"
    assert await disable() == "INVALID_FIELDS"
    assert await disable(code="123456", recovery_code="x") == "INVALID_FIELDS"
    assert (await login(auth, who)).challenge
    assert await disable(code=who.next_code()) == ""
    assert (await login(auth, who)).access_token
    assert (await letter_to(bare_installation.mails, who.person.email, "disabled")).text


async def test_a_step_up_makes_the_factor_fresh_for_this_session_alone(auth, bare_installation):
    who = await enrolled(auth)
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.sessions SET second_factor_time = now() - interval '1 hour'")
    stale = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=who.session.refresh_token))
    create = auth_pb2.CreateApiKeyRequest(name="x", scope=auth_pb2.API_KEY_SCOPE_READ)
    assert await reason_of(stub_of(auth).CreateApiKey(create, metadata=carrying(stale))) == "STEP_UP_REQUIRED"
    code = who.next_code()
    fresh = await stub_of(auth).StepUp(auth_pb2.StepUpRequest(code=code), metadata=carrying(stale))
    assert 290 < fresh.fresh_until_time.ToSeconds() - time.time() <= 300
    assert await reason_of(stub_of(auth).CreateApiKey(create, metadata=bearer(fresh.access_token))) == ""
    assert await reason_of(stub_of(auth).CreateApiKey(create, metadata=carrying(stale))) == "STEP_UP_REQUIRED"
    again = auth_pb2.StepUpRequest(code=code)
    assert await reason_of(stub_of(auth).StepUp(again, metadata=carrying(stale))) == "CODE_INVALID"


async def test_enabling_outdates_the_tokens_that_do_not_say_so(auth):
    person = await registered(auth)
    other = await signed_in(auth, person)
    await enrolled(auth, person)
    async with asyncio.timeout(5):
        while await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(other))) == "":
            await asyncio.sleep(0.02)
    get_me = stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(other))
    assert await reason_of(get_me) == "TOKEN_OUTDATED"
    newer = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=other.refresh_token))
    assert claims_of(newer.access_token)["mfa"] is True
    assert await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(newer))) == ""


async def test_who_has_only_the_password_keeps_the_owner_neither_from_stepping_up_nor_from_signing_in(auth):
    who = await enrolled(auth)
    first = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, first, recovery_code=who.recovery_codes[1])) == "", "and is known from here"
    for _ in range(FREE_FAILURES):
        challenge = (await login(auth, who, "203.0.113.9")).challenge
        assert await reason_of(verify(auth, challenge, "000000", address="203.0.113.9")) == "CODE_INVALID"
    challenge = (await login(auth, who, "203.0.113.9")).challenge
    assert await reason_of(verify(auth, challenge, "000000", address="203.0.113.9")) == "LOGIN_DELAYED"
    step_up = stub_of(auth).StepUp(auth_pb2.StepUpRequest(code=who.next_code()), metadata=who.metadata)
    assert await reason_of(step_up) == ""
    # Where the owner has signed in before.
    challenge = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, challenge, recovery_code=who.recovery_codes[0])) == ""


async def test_guesses_of_codes_from_many_places_are_held_up_together(auth):
    who = await enrolled(auth)
    first = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, first, recovery_code=who.recovery_codes[0])) == ""
    reasons = []
    for number in range(FREE_FAILURES_OF_ACCOUNT + 1):
        address = f"203.0.113.{number}"
        challenge = (await login(auth, who, address)).challenge
        reasons.append(await reason_of(verify(auth, challenge, "000000", address=address)))
    assert reasons == ["CODE_INVALID"] * FREE_FAILURES_OF_ACCOUNT + ["LOGIN_DELAYED"]
    challenge = (await login(auth, who)).challenge
    assert await reason_of(verify(auth, challenge, who.next_code())) == ""


async def test_wrong_codes_within_a_session_are_held_up_too(auth):
    who = await enrolled(auth)
    for _ in range(FREE_FAILURES):
        step_up = stub_of(auth).StepUp(auth_pb2.StepUpRequest(code="000000"), metadata=who.metadata)
        assert await reason_of(step_up) == "CODE_INVALID"
    right = stub_of(auth).StepUp(auth_pb2.StepUpRequest(code=who.next_code()), metadata=who.metadata)
    assert await reason_of(right) == "LOGIN_DELAYED"
