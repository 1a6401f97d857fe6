"""Registering: each address once, each request_id once, and no password that is guessed first."""

import asyncio

import asyncpg
from tradeloom.auth.v1 import auth_pb2

from tests.auth.people import PASSWORD, reason_of, registered, stub_of


async def test_the_earlier_systems_body_without_a_request_id_registers(auth):
    request = auth_pb2.RegisterRequest(email="Demo@Example.com", password="SecurePass123!", full_name="Demo")
    user = (await stub_of(auth).Register(request)).user
    assert (user.email, user.full_name, list(user.roles)) == ("demo@example.com", "Demo", ["user"])
    assert not user.email_verified
    assert await reason_of(stub_of(auth).Register(request)) == "EMAIL_TAKEN"
    login = auth_pb2.LoginRequest(email="DEMO@example.COM", password="SecurePass123!")
    assert (await stub_of(auth).Login(login)).user == user


async def test_a_repeated_request_returns_the_first_answer(auth):
    request = auth_pb2.RegisterRequest(request_id="r", email="a@example.com", password=PASSWORD)
    first, second = await asyncio.gather(stub_of(auth).Register(request), stub_of(auth).Register(request))
    assert first == second == await stub_of(auth).Register(request)


async def test_an_answer_is_kept_without_name_and_address(auth, bare_installation):
    request = auth_pb2.RegisterRequest(request_id="r", email="a@example.com", password=PASSWORD, full_name="Ada")
    first = await stub_of(auth).Register(request)
    async with bare_installation.connect() as rows:
        kept = auth_pb2.RegisterResponse.FromString(await rows.fetchval("SELECT answer FROM auth.request_keys")).user
        assert (kept.user_id, kept.email, kept.full_name) == (first.user.user_id, "", "")
        await rows.execute("UPDATE auth.users SET email_verified = true")
    assert await stub_of(auth).Register(request) == first


async def test_another_body_under_the_same_request_id_is_refused(auth):
    request = auth_pb2.RegisterRequest(request_id="r", email="a@example.com", password=PASSWORD)
    await stub_of(auth).Register(request)
    for change in ({"email": "A@example.com"}, {"password": PASSWORD + "!"}, {"full_name": "Bob"}):
        other = auth_pb2.RegisterRequest()
        other.CopyFrom(request)
        for name, value in change.items():
            setattr(other, name, value)
        assert await reason_of(stub_of(auth).Register(other)) == "REQUEST_ID_REUSED"


async def test_strangers_who_choose_the_same_request_id_do_not_meet(auth):
    requests = [
        auth_pb2.RegisterRequest(request_id="1", email=f"{name}@example.com", password=PASSWORD) for name in "abc"
    ]
    answers = await asyncio.gather(*(stub_of(auth).Register(request) for request in requests))
    assert [answer.user.email for answer in answers] == [request.email for request in requests]
    assert len({answer.user.user_id for answer in answers}) == 3


async def test_a_refused_registration_leaves_its_request_id_unused(auth, bare_installation):
    await registered(auth, "ada@example.com")
    refused = auth_pb2.RegisterRequest(request_id="r", email="ada@example.com", password=PASSWORD)
    assert await reason_of(stub_of(auth).Register(refused)) == "EMAIL_TAKEN"
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.users SET email = 'elsewhere@example.com'")
    refused.full_name = "Ada"
    assert await reason_of(stub_of(auth).Register(refused)) == ""


async def test_an_address_is_taken_in_every_spelling_of_its_case(auth):
    await registered(auth, "ada@example.com")
    for email in ("ADA@example.com", "ada@EXAMPLE.com"):
        request = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
        assert await reason_of(stub_of(auth).Register(request)) == "EMAIL_TAKEN"


async def test_of_many_who_want_one_address_at_once_one_gets_it(auth):
    requests = [auth_pb2.RegisterRequest(email="one@example.com", password=PASSWORD) for _ in range(6)]
    reasons = await asyncio.gather(*(reason_of(stub_of(auth).Register(request)) for request in requests))
    assert sorted(reasons) == ["", *["EMAIL_TAKEN"] * 5]


async def test_common_and_short_passwords_are_refused(auth):
    for password, reason in (("password1234", "PASSWORD_TOO_COMMON"), ("PASSWORD1234", "PASSWORD_TOO_COMMON")):
        request = auth_pb2.RegisterRequest(email="a@example.com", password=password)
        assert await reason_of(stub_of(auth).Register(request)) == reason
    for email, password in (("a@example.com", "elevenchars"), ("no address", PASSWORD), ("a\0@example.com", PASSWORD)):
        request = auth_pb2.RegisterRequest(email=email, password=password)
        assert await reason_of(stub_of(auth).Register(request)) == "INVALID_FIELDS"


async def test_a_password_may_not_be_made_of_the_persons_own_words(auth):
    request = auth_pb2.RegisterRequest(
        email="ada@lovelace.example", password="Countess-Lovelace!", full_name="Countess"
    )
    assert await reason_of(stub_of(auth).Register(request)) == "PASSWORD_TOO_COMMON"
    request.password = PASSWORD
    assert await reason_of(stub_of(auth).Register(request)) == ""


async def test_nothing_secret_is_kept_or_logged(bare_installation):
    """Neither in any column of any table nor in a line of the log, although the service runs into defects."""
    with bare_installation.start("auth") as process:
        auth = process.served
        await auth.until_ready()
        request = auth_pb2.RegisterRequest(request_id="r", email="a@example.com", password=PASSWORD, full_name="Ada")
        await stub_of(auth).Register(request)
        login = auth_pb2.LoginRequest(request_id="l", email="a@example.com", password=PASSWORD)
        session = await stub_of(auth).Login(login)
        async with bare_installation.connect() as rows:
            await rows.execute("ALTER TABLE auth.login_attempts RENAME TO elsewhere")
            assert await defect_of(stub_of(auth).Login(login))
            await rows.execute("ALTER TABLE auth.elsewhere RENAME TO login_attempts")
            kept = await everything_in(rows)
        log = process.logged()
        await auth.close()
    assert "defect" in log
    for secret in (PASSWORD, session.access_token, session.refresh_token):
        assert secret not in log
        assert secret not in kept
        assert secret.encode().hex() not in kept


async def defect_of(call) -> str:
    from grpc import StatusCode, aio

    try:
        await call
    except aio.AioRpcError as error:
        assert error.code() is StatusCode.INTERNAL
        assert "login_attempts" not in str(error)
        return error.details() or ""
    return ""


async def everything_in(rows: asyncpg.Connection) -> str:
    tables = await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'auth'")
    texts = [
        str(await rows.fetchval(f"SELECT string_agg(each::text, ' ') FROM auth.{table['tablename']} AS each"))
        for table in tables
    ]
    assert len(texts) > 10
    return " ".join(texts)
