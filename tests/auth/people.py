"""People who register and sign in, for auth's tests."""

import asyncio
import email
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email import policy
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.ids import uuid7
from tests.authenticator import Authenticator
from tests.mesh import Metadata, Served, bearer, sign_in

PASSWORD = "tea and biscuits at four"
MAIL_SECONDS = 10
RECORD_SECONDS = 10


@dataclass(frozen=True)
class Person:
    user_id: str
    email: str
    password: str = PASSWORD


@dataclass
class Enrolled:
    """Somebody with a second factor, in a session whose factor is fresh."""

    person: Person
    session: Any
    app: Authenticator
    recovery_codes: list[str]

    def next_code(self) -> str:
        """A code that was not used yet: there is one, after that of enabling, before a step must pass."""
        return self.app.unused_code()

    @property
    def metadata(self) -> Metadata:
        return bearer(self.session.access_token)


def stub_of(auth: Served, caller: str = "edge") -> Any:
    return auth.stub(auth_pb2_grpc.AuthServiceStub, caller)


def admin_of(auth: Served) -> Any:
    return auth.stub(auth_pb2_grpc.AdminServiceStub)


async def registered(auth: Served, email: str = "") -> Person:
    email = email or f"{uuid7()}@example.com"
    answer = await stub_of(auth).Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD, full_name="Ada"))
    return Person(answer.user.user_id, email)


async def signed_in(auth: Served, person: Person | None = None) -> auth_pb2.LoginResponse:
    person = person or await registered(auth)
    return await stub_of(auth).Login(auth_pb2.LoginRequest(email=person.email, password=person.password))


async def enrolled(auth: Served, person: Person | None = None) -> Enrolled:
    """Signed in, with a second factor that has just been enabled."""
    person = person or await registered(auth)
    session = await signed_in(auth, person)
    made = await stub_of(auth).SetupTotp(auth_pb2.SetupTotpRequest(), metadata=carrying(session))
    app = Authenticator(made.otpauth_uri)
    enabled = await stub_of(auth).EnableTotp(
        auth_pb2.EnableTotpRequest(code=app.unused_code()), metadata=carrying(session)
    )
    session.access_token = enabled.access_token
    return Enrolled(person, session, app, list(enabled.recovery_codes))


def seen_from(address: str) -> Metadata:
    """What the edge says of the caller."""
    return (("x-envoy-external-address", address),)


def carrying(session: Any) -> Metadata:
    return bearer(session.access_token)


def administering(user_id: str | None = None, **claims: Any) -> Metadata:
    """The token of an administrator who has just proved a second factor; of an enrolled one it is of generation 1."""
    from uuid import UUID

    proved = {"mfa": True, "mfa_time": int(time.time()), **claims}
    return sign_in(UUID(user_id) if user_id else None, roles=["user", "admin"], **proved)


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


async def recorded(auth: Served, metadata: Metadata, kind: str) -> list[dict[str, Any]]:
    """The details of the caller's records of a kind, oldest first."""
    request = auth_pb2.ListOwnAuditEventsRequest(page_size=1_000)
    events = (await stub_of(auth).ListOwnAuditEvents(request, metadata=metadata)).events
    return [json.loads(event.detail) for event in events if event.kind == f"tradeloom.auth.v1.{kind}"]


async def told_of(
    auth: Served, metadata: Metadata, kind: str, counted: Callable[[dict[str, Any]], int], count: int
) -> list[dict[str, Any]]:
    """These records, once what is counted in them makes so many; never more."""
    async with asyncio.timeout(RECORD_SECONDS):
        while sum(map(counted, found := await recorded(auth, metadata, kind))) < count:
            await asyncio.sleep(0.02)
    assert sum(map(counted, found)) == count
    return found


@dataclass(frozen=True)
class Letter:
    to: str
    subject: str
    text: str

    @property
    def token(self) -> str:
        """Out of its link."""
        found = re.search(r"https?://\S+/#/(verify-email|reset-password)/(\S+)", self.text)
        assert found, self.text
        return found[2]


def letters(folder: Path, to: str) -> list[Letter]:
    """The mails to somebody that lie in the folder, oldest first."""
    found = []
    for file in sorted(folder.glob("*.eml")):
        message = email.message_from_bytes(file.read_bytes(), policy=policy.default)
        body = message.get_body()
        assert body is not None
        found.append(Letter(message["To"], message["Subject"], body.get_content()))
    return [letter for letter in found if letter.to == to]


async def letter_to(folder: Path, to: str, subject: str, *, count: int = 1) -> Letter:
    """The newest mail with these words in its subject, once there are so many of them."""
    async with asyncio.timeout(MAIL_SECONDS):
        while len(found := [one for one in letters(folder, to) if subject in one.subject]) < count:
            await asyncio.sleep(0.02)
    return found[-1]
