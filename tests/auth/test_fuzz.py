"""Every method of auth, called with whatever can be made: it answers or refuses, and never breaks, hangs or tells of itself.

One message of three is meant: by the rules beside their fields, with secrets that are alive, from a caller who may call. So
each method is reached and does its work. In the others each field is so, or left out, or hostile, and anybody calls.
"""

import asyncio
import functools
import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc import aio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tradeloom.auth.v1 import auth_pb2
from tradeloom.policy.v1 import policy_pb2

from libs.ids import uuid7
from libs.mesh import pages
from libs.mesh.contract import Method, methods
from services.auth import passwords, totp
from services.auth.keys import KeyBox
from services.auth.servicer import AdminServicer, AuthServicer
from services.auth.use_cases import hash_of
from tests.auth.people import PASSWORD, admin_of, registered, stub_of
from tests.authenticator import Authenticator
from tests.mesh import DATA_KEY, MINT, Metadata, bearer, sign_in

EXAMPLES = 10
MEANT = (True, False, False)
"""Of the messages that each method gets in an example, which are."""
ANSWER_SECONDS = 15
BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
GIVEN_AWAY = ("Traceback", 'File "', "asyncpg", "SELECT ", "INSERT ", "/services/", "0x7f")
NEW_PASSWORD = "coffee and cake at five"

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]), st.integers(min_value=-(2**31), max_value=2**31 - 1)
)
LONG_NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 253402300799, 253402300800, -62135596800, -62135596801, 2**63 - 1, -(2**63)]), NUMBERS
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "",
            "\0",
            "a\0b",
            "' OR 1=1 --",
            "{}",
            "../../etc/passwd",
            "٣٤٥٦٧٨",
            "𝟛" * 6,
            "0" * 300,
            "é" * 254,
            "x@example.com",
            "X@EXAMPLE.COM",
            '"a b"@example.com',
            "00000000-0000-0000-0000-000000000000",
            "{00000000-0000-0000-0000-000000000000}",
            "203.0.113.0/24",
            "::/0",
            "0.0.0.0/0",
            "1" * 64,
            "admin",
            PASSWORD,
            "W10",
            "bnVsbA",
            "WzFd",
            "WyJ4Il0",
            "123456",
        ]
    ),
)
KINDS = FieldDescriptor
METHODS = [method for method in methods("auth").values() if not method.server_streams]
WITHOUT_A_FACTOR = {"SetupTotp", "EnableTotp"}
"""What only those can do who have no second factor yet; everybody else in the world of a call has one."""


@dataclass(frozen=True)
class Someone:
    """A person of one call's own: whatever it ends, others go on. All that a request can name of theirs is alive."""

    user_id: UUID
    email: str
    enrolled: bool
    app: Authenticator
    sealed_secret: bytes
    session_id: UUID
    api_key_id: UUID
    refresh_token: str
    challenge: str
    link: str
    reset_link: str
    key_secret: str
    recovery_code: str

    def metadata(self, *roles: str) -> Metadata:
        factor: dict[str, Any] = {"mfa": True, "mfa_time": int(time.time())} if self.enrolled else {}
        claims = {"sid": str(self.session_id), "roles": ["user", *roles], "quotas": {"api_keys": 100}, **factor}
        return sign_in(self.user_id, **claims)

    def alive(self, method: Method, other: "Someone") -> Mapping[str, Sequence[str]]:
        """By the name of a field, what it takes; for administrators of another person."""
        return {
            "email": [f"{uuid7()}@example.com" if method.name == "Register" else self.email],
            "password": [PASSWORD],
            "current_password": [PASSWORD],
            "new_password": [NEW_PASSWORD],
            "refresh_token": [self.refresh_token],
            "challenge": [self.challenge],
            "token": [self.link if method.name == "VerifyEmail" else self.reset_link],
            "secret": [self.key_secret],
            "code": [self.app.code()],
            "recovery_code": [self.recovery_code],
            "session_id": [str(self.session_id)],
            "api_key_id": [str(self.api_key_id)],
            "user_id": [str(other.user_id)],
            "account_ids": [str(uuid7()), str(uuid7())],
            "allowed_networks": ["203.0.113.0/24", "2001:db8::/48", "127.0.0.1"],
            "page_token": ["", page_token_of(method)],
        }


def page_token_of(method: Method) -> str:
    """As a page before would have told it."""
    if method.name == "ListUsers":
        return pages.token_after(datetime.now(UTC).isoformat(), str(uuid7()))
    return pages.token_after(1 if "Audit" in method.name else str(uuid7()))


def someone(box: KeyBox, *, enrolled: bool) -> Someone:
    user_id, email, secret = uuid7(), f"{uuid7()}@example.com", totp.new_secret()
    return Someone(
        user_id=user_id,
        email=email,
        enrolled=enrolled,
        app=Authenticator(totp.otpauth_uri(secret, email)),
        sealed_secret=box.seal_bytes("totp", str(user_id), secret.encode()),
        session_id=uuid7(),
        api_key_id=uuid7(),
        refresh_token=secrets.token_urlsafe(32),
        challenge=secrets.token_urlsafe(32),
        link=secrets.token_urlsafe(32),
        reset_link=secrets.token_urlsafe(32),
        key_secret=f"tlk_{secrets.token_urlsafe(32)}",
        recovery_code=totp.new_recovery_code(),
    )


async def settle_in(superuser: asyncpg.Connection, box: KeyBox, password_hash: str, people: Sequence[Someone]) -> None:
    """Written as the service would have, in a few statements: a thousand people who registered by calls take too long."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    code_key = box.derived("recovery-codes")
    tokens = [("challenge", "challenge"), ("verify_email", "link"), ("reset_password", "reset_link")]
    written: dict[str, list[tuple[Any, ...]]] = {
        "users (user_id, email, full_name, password_hash, create_time) VALUES ($1, $2, 'Ada', $3, now())": [
            (one.user_id, one.email, password_hash) for one in people
        ],
        "user_roles (user_id, role) VALUES ($1, 'user')": [(one.user_id,) for one in people],
        "sessions (session_id, user_id, address, create_time, expire_time) VALUES ($1, $2, '', now(), $3)": [
            (one.session_id, one.user_id, soon) for one in people
        ],
        "refresh_tokens (token_hash, session_id, user_id, expire_time) VALUES ($1, $2, $3, $4)": [
            (hash_of(one.refresh_token), one.session_id, one.user_id, soon) for one in people
        ],
        "mfa_totp (user_id, sealed_secret, enable_time) VALUES ($1, $2, $3)": [
            (one.user_id, one.sealed_secret, datetime.now(UTC) if one.enrolled else None) for one in people
        ],
        "recovery_codes (user_id, code_hash) VALUES ($1, $2)": [
            (one.user_id, hmac.digest(code_key, totp.plain_recovery_code(one.recovery_code).encode(), hashlib.sha256))
            for one in people
        ],
        "one_time_tokens (token_hash, user_id, purpose, expire_time) VALUES ($1, $2, $3, $4)": [
            (hash_of(getattr(one, name)), one.user_id, purpose, soon) for one in people for purpose, name in tokens
        ],
        """
        api_keys (api_key_id, user_id, name, prefix, secret_hash, scope, account_ids, allowed_networks, create_time)
        VALUES ($1, $2, 'robot', 'tlk_', $3, 'trade', '{}', '{}', now())
        """: [(one.api_key_id, one.user_id, hash_of(one.key_secret)) for one in people],
    }
    async with superuser.transaction():
        for statement, rows in written.items():
            await superuser.executemany(f"INSERT INTO auth.{statement}", rows)


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def fitting(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> st.SearchStrategy[Any]:
    """What the rules of a field, or of an item of one, let through."""
    if field.type == KINDS.TYPE_MESSAGE:
        assert field.message_type is not None
        assert field.message_type.full_name == "google.protobuf.Timestamp", field.full_name
        ahead = st.integers(min_value=3_600, max_value=10**9)
        return ahead.map(lambda seconds: {"seconds": int(time.time()) + seconds})
    if field.type == KINDS.TYPE_STRING:
        text = rules.string
        if getattr(text, "in"):
            return st.sampled_from(list(getattr(text, "in")))
        if text.uuid:
            return st.uuids().map(str)
        if text.email:
            return st.uuids().map(lambda some: f"{some}@example.com")
        most = text.max_len if text.HasField("max_len") else 40
        letters = st.characters(exclude_categories=["C"])
        return st.text(letters, min_size=text.min_len, max_size=min(most, text.min_len + 40))
    if field.type == KINDS.TYPE_ENUM:
        assert field.enum_type is not None
        defined = {value.number for value in field.enum_type.values}
        allowed = set(getattr(rules.enum, "in")) or defined
        return st.sampled_from(sorted(allowed - set(rules.enum.not_in)))
    if field.type == KINDS.TYPE_INT32:
        return st.integers(min_value=rules.int32.gte, max_value=rules.int32.lte)
    assert field.type == KINDS.TYPE_BOOL, field.full_name
    return st.booleans()


def hostile(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.type == KINDS.TYPE_MESSAGE:
        assert field.message_type is not None
        return any_of(field.message_type, depth + 1)
    if field.type == KINDS.TYPE_STRING:
        return TEXTS
    if field.type == KINDS.TYPE_BYTES:
        return st.binary(max_size=40)
    if field.type == KINDS.TYPE_BOOL:
        return st.booleans()
    if field.type in (KINDS.TYPE_INT64, KINDS.TYPE_SINT64, KINDS.TYPE_SFIXED64):
        return LONG_NUMBERS
    if field.type == KINDS.TYPE_ENUM:
        return st.one_of(st.integers(min_value=0, max_value=4), NUMBERS)
    assert field.type in (KINDS.TYPE_INT32, KINDS.TYPE_SINT32, KINDS.TYPE_SFIXED32), field.full_name
    return NUMBERS


def any_of(kind: Descriptor, depth: int) -> st.SearchStrategy[Message]:
    """Any message of this kind: each field left out or set."""
    assert depth < 4, kind.full_name
    fields = {
        field.name: st.lists(hostile(field, depth), max_size=3) if field.is_repeated else hostile(field, depth)
        for field in kind.fields
    }
    return st.fixed_dictionaries({}, optional=fields).map(
        lambda given_: message_factory.GetMessageClass(kind)(**given_)
    )


def meant(field: FieldDescriptor, alive: Mapping[str, Sequence[str]]) -> st.SearchStrategy[Any]:
    """Something alive where the field takes that, else anything that its rules let through."""
    known = alive.get(field.name)
    if not field.is_repeated:
        return st.sampled_from(known) if known else fitting(field, rules_of(field))
    rules = rules_of(field).repeated
    item = st.sampled_from(known) if known else fitting(field, rules.items)
    return st.lists(item, max_size=min(3, rules.max_items), unique=True)


@st.composite
def requests(draw: st.DrawFn, method: Method, alive: Mapping[str, Sequence[str]], *, is_meant: bool) -> Message:
    kind = method.descriptor.input_type
    fields: dict[str, Any] = {}
    for field in kind.fields:
        own = meant(field, alive)
        if is_meant:
            fields[field.name] = draw(own)
        elif draw(st.booleans()):
            bad = hostile(field, 0)
            fields[field.name] = draw(st.one_of(own, st.lists(bad, max_size=3) if field.is_repeated else bad))
    if is_meant and "recovery_code" in fields:
        # One of the two, by a rule over both.
        del fields[draw(st.sampled_from(["code", "recovery_code"]))]
    if is_meant and "expire_time" in fields and draw(st.booleans()):
        del fields["expire_time"]
    return message_factory.GetMessageClass(kind)(**fields)


def callers_of(one: Someone) -> dict[str, Metadata]:
    return {
        "nobody": (),
        "user": one.metadata(),
        "admin": one.metadata("admin"),
        "stranger": sign_in(mfa=True, mfa_time=2_000_000_000),
        "key": bearer(MINT.token(scopes=["read", "trade"], accounts=[], networks=["0.0.0.0/0"])),
        "broken": (("authorization", "Bearer no.token.atall"),),
    }


def caller_for(method: Method) -> str:
    """Who may call it."""
    by_access = {policy_pb2.ACCESS_PUBLIC: "nobody", policy_pb2.ACCESS_USER: "user", policy_pb2.ACCESS_ADMIN: "admin"}
    return by_access[method.policy.access]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The methods whose handlers were reached, beyond the door: policy, limits, rules."""
    names: set[str] = set()

    def noting(handler: Any, name: str) -> Any:
        @functools.wraps(handler)
        async def note(self: Any, request: Message, context: aio.ServicerContext) -> Message:
            names.add(name)
            return await handler(self, request, context)

        return note

    for servicer in (AuthServicer, AdminServicer):
        for name in {method.name for method in METHODS} & set(dir(servicer)):
            monkeypatch.setattr(servicer, name, noting(getattr(servicer, name), name))
    return names


async def test_no_message_breaks_any_method_of_auth(bare_installation, entered: set[str]):
    box, password_hash = KeyBox(DATA_KEY), passwords.PasswordHasher().hash(PASSWORD)
    often = {"sign_in_per_second": "100000", "writes_per_second": "100000", "reads_per_second": "100000"}
    async with (
        bare_installation.serve("auth", failed_logins_told_seconds="0.5", **often) as auth,
        bare_installation.connect() as superuser,
    ):
        stubs = {"AuthService": stub_of(auth), "AdminService": admin_of(auth)}
        loop = asyncio.get_running_loop()
        answered: set[str] = set()
        refused: set[str] = set()

        async def call(method: Method, message: Message, metadata: Metadata) -> None:
            stub = stubs[method.path.split("/")[1].rpartition(".")[2]]
            try:
                await getattr(stub, method.name)(message, metadata=metadata, timeout=ANSWER_SECONDS)
            except aio.AioRpcError as error:
                told = f"{error.details()} {error.trailing_metadata()}"
                assert error.code() not in BROKEN, (method.name, message, error)
                assert not [word for word in GIVEN_AWAY if word in told], (method.name, message, told)
                refused.add(method.name)
            else:
                answered.add(method.name)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.data())
        def fuzz(data: st.DataObject) -> None:
            other = someone(box, enrolled=True)
            people, drawn = [other], []
            for method, is_meant in itertools.product(METHODS, MEANT):
                one = someone(box, enrolled=method.name not in WITHOUT_A_FACTOR)
                people.append(one)
                # Now and then with what is somebody else's, who is calling at the same time.
                named = one if is_meant else data.draw(st.sampled_from([one, people[1], other]))
                message = data.draw(requests(method, named.alive(method, other), is_meant=is_meant))
                callers = callers_of(one)
                caller = caller_for(method) if is_meant else data.draw(st.sampled_from(sorted(callers)))
                drawn.append((method, message, callers[caller]))

            async def call_all() -> None:
                await settle_in(superuser, box, password_hash, people)
                await asyncio.gather(*(call(*one) for one in drawn))

            asyncio.run_coroutine_threadsafe(call_all(), loop).result(ANSWER_SECONDS * 4)

        await asyncio.to_thread(fuzz)
        every = {method.name for method in METHODS}
        assert len(every) >= 29
        assert entered == every, "no message came past the door"
        assert answered == every, "no message was what the method takes"
        assert refused >= {"Login", "VerifyTotp", "CreateApiKey", "ListUsers", "ResetPassword", "ListAuditEvents"}
        # It is as well as before.
        me = await registered(auth)
        asked = await stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=sign_in(UUID(me.user_id)))
        assert asked.user.email == me.email
