"""Every method of auth, called with whatever can be made: it answers or refuses, and never breaks, hangs or tells of itself."""

import asyncio
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc import aio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tradeloom.auth.v1 import auth_pb2

from libs.mesh.contract import Method, methods
from tests.auth.people import PASSWORD, admin_of, administering, enrolled, registered, signed_in, stub_of
from tests.mesh import MINT, bearer, sign_in

EXAMPLES = 40
ANSWER_SECONDS = 15
BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
GIVEN_AWAY = ("Traceback", 'File "', "asyncpg", "SELECT ", "INSERT ", "/services/", "0x7f")

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


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kinds = FieldDescriptor
    if field.type == kinds.TYPE_MESSAGE:
        assert field.message_type is not None
        return messages(field.message_type, depth + 1)
    if field.type == kinds.TYPE_STRING:
        return TEXTS
    if field.type == kinds.TYPE_BYTES:
        return st.binary(max_size=40)
    if field.type == kinds.TYPE_BOOL:
        return st.booleans()
    if field.type in (kinds.TYPE_INT64, kinds.TYPE_SINT64, kinds.TYPE_SFIXED64):
        return LONG_NUMBERS
    if field.type == kinds.TYPE_ENUM:
        return st.one_of(st.integers(min_value=0, max_value=4), NUMBERS)
    assert field.type in (kinds.TYPE_INT32, kinds.TYPE_SINT32, kinds.TYPE_SFIXED32), field.full_name
    return NUMBERS


def messages(kind: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Any message of this kind: each field left out or set."""
    assert depth < 4, kind.full_name
    fields = {
        field.name: st.lists(values(field, depth), max_size=3) if field.is_repeated else values(field, depth)
        for field in kind.fields
    }
    return st.fixed_dictionaries({}, optional=fields).map(
        lambda given_: message_factory.GetMessageClass(kind)(**given_)
    )


def asked_of(method: Method) -> st.SearchStrategy[Message]:
    return messages(method.descriptor.input_type)


METHODS = [method for method in methods("auth").values() if not method.server_streams]


async def test_no_message_breaks_any_method_of_auth(bare_installation):
    async with bare_installation.serve(
        "auth", sign_in_per_second="100000", writes_per_second="100000", failed_logins_told_seconds="0.5"
    ) as auth:
        # Real ids and secrets of somebody, so that not everything is refused at the door.
        who = await enrolled(auth)
        other = await registered(auth)
        session = await signed_in(auth, other)
        callers = {
            "nobody": (),
            "user": bearer(session.access_token),
            "enrolled": who.metadata,
            "admin": administering(who.person.user_id),
            "stranger": sign_in(mfa=True, mfa_time=2_000_000_000),
            "key": bearer(MINT.token(scopes=["read", "trade"], accounts=[], networks=["0.0.0.0/0"])),
            "broken": (("authorization", "Bearer no.token.atall"),),
        }
        known = st.sampled_from(
            [
                who.person.user_id,
                other.user_id,
                session.session_id,
                who.session.session_id,
                other.email,
                session.refresh_token,
                *who.recovery_codes[:2],
                who.app.code(),
            ]
        )
        stubs = {
            "AuthService": stub_of(auth),
            "AdminService": admin_of(auth),
        }
        loop = asyncio.get_running_loop()
        refused: set[str] = set()

        async def call(method: Method, message: Message, caller: str) -> None:
            stub = stubs[method.path.split("/")[1].rpartition(".")[2]]
            try:
                await getattr(stub, method.name)(message, metadata=callers[caller], timeout=ANSWER_SECONDS)
            except aio.AioRpcError as error:
                told = f"{error.details()} {error.trailing_metadata()}"
                assert error.code() not in BROKEN, (method.name, message, error)
                assert not [word for word in GIVEN_AWAY if word in told], (method.name, message, told)
                refused.add(method.name)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.data())
        def fuzz(data: st.DataObject) -> None:
            drawn = []
            for method in METHODS:
                message = data.draw(asked_of(method))
                # Something real in one of its texts.
                texts = [
                    field.name
                    for field in message.DESCRIPTOR.fields
                    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
                ]
                if texts and data.draw(st.booleans()):
                    setattr(message, data.draw(st.sampled_from(texts)), data.draw(known))
                drawn.append((method, message, data.draw(st.sampled_from(sorted(callers)))))

            async def call_all() -> None:
                await asyncio.gather(*(call(*one) for one in drawn))

            asyncio.run_coroutine_threadsafe(call_all(), loop).result(ANSWER_SECONDS * 4)

        await asyncio.to_thread(fuzz)
        assert len(METHODS) >= 29
        assert refused >= {"Login", "VerifyTotp", "CreateApiKey", "ListUsers", "ResetPassword", "ListAuditEvents"}
        # It is as well as before.
        me = await stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=sign_in_as(other.user_id))
        assert me.user.email == other.email


def sign_in_as(user_id: str):
    from uuid import UUID

    return sign_in(UUID(user_id))
