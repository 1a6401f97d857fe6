"""Speaking to a running stack through its one port, as people's programs do."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from getpass import getpass
from pathlib import Path

from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.mesh.channel import open_edge_channel
from libs.stack.credentials import ADMIN_EMAIL
from libs.stack.errors import StackError
from libs.stack.ports import HOST
from libs.stack.state import Snapshot

CALL_SECONDS = 15.0
FAILURES_MAX = 8
"""Calls one after the other that bring nothing forward."""

Metadata = tuple[tuple[str, str], ...]


@asynccontextmanager
async def edge_channel(snapshot: Snapshot) -> AsyncIterator[aio.Channel]:
    async with open_edge_channel(f"{HOST}:{snapshot.ports['edge']}") as channel:
        yield channel


async def sign_in(channel: aio.Channel, email: str, password: str) -> Metadata:
    """Opens a session; what it returns goes along with every call. The token is shown to nobody."""
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    session = await stub.Login(auth_pb2.LoginRequest(email=email, password=password), timeout=CALL_SECONDS)
    token = session.access_token
    if session.challenge:
        request = auth_pb2.VerifyTotpRequest(challenge=session.challenge, code=ask_code(email))
        token = (await stub.VerifyTotp(request, timeout=CALL_SECONDS)).access_token
    return (("authorization", f"Bearer {token}"),)


def ask_code(email: str) -> str:
    if not sys.stdin.isatty():
        raise StackError(f"{email} has a second factor: run this where its code can be typed")
    return getpass(f"Code of the authenticator app for {email}: ", sys.stderr)


async def sign_in_admin(channel: aio.Channel, snapshot: Snapshot) -> Metadata:
    """As the administrator whom the stack made for itself; needs the right to read its data folder."""
    password = Path(snapshot.admin_password_file).read_text().strip()  # noqa: ASYNC240 (one small local file)
    return await sign_in(channel, ADMIN_EMAIL, password)
