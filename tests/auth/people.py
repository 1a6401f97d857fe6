"""People who register and sign in, for auth's tests."""

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.ids import uuid7
from tests.mesh import Metadata, Served, bearer

PASSWORD = "tea and biscuits at four"


@dataclass(frozen=True)
class Person:
    user_id: str
    email: str
    password: str = PASSWORD


def stub_of(auth: Served, caller: str = "edge") -> Any:
    return auth.stub(auth_pb2_grpc.AuthServiceStub, caller)


async def registered(auth: Served, email: str = "") -> Person:
    email = email or f"{uuid7()}@example.com"
    answer = await stub_of(auth).Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD, full_name="Ada"))
    return Person(answer.user.user_id, email)


async def signed_in(auth: Served, person: Person | None = None) -> auth_pb2.LoginResponse:
    person = person or await registered(auth)
    return await stub_of(auth).Login(auth_pb2.LoginRequest(email=person.email, password=person.password))


def seen_from(address: str) -> Metadata:
    """What the edge says of the caller."""
    return (("x-envoy-external-address", address),)


def carrying(session: Any) -> Metadata:
    return bearer(session.access_token)


async def reason_of(call: Any) -> str:
    """Why a call is refused; "" where it is not."""
    try:
        await call
    except aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert status and status.details[0].Unpack(info), error
        assert error.code() is not grpc.StatusCode.INTERNAL, error
        return info.reason
    return ""


async def wait_of(call: Any) -> float:
    """How long a refusal says to wait, in seconds."""
    try:
        await call
    except aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        found = error_details_pb2.RetryInfo()
        assert status and any(packed.Unpack(found) for packed in status.details), error
        return found.retry_delay.ToTimedelta().total_seconds()
    raise AssertionError("not refused")
