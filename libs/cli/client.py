"""Speaking to a running stack through its one port, as people's programs do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.mesh.channel import open_edge_channel
from libs.stack.credentials import ADMIN_EMAIL
from libs.stack.ports import HOST
from libs.stack.state import Snapshot

CALL_SECONDS = 15.0

Metadata = tuple[tuple[str, str], ...]


@asynccontextmanager
async def edge_channel(snapshot: Snapshot) -> AsyncIterator[aio.Channel]:
    async with open_edge_channel(f"{HOST}:{snapshot.ports['edge']}") as channel:
        yield channel


async def sign_in(channel: aio.Channel, email: str, password: str) -> Metadata:
    """Opens a session; what it returns goes along with every call. The token is shown to nobody."""
    request = auth_pb2.LoginRequest(email=email, password=password)
    session = await auth_pb2_grpc.AuthServiceStub(channel).Login(request, timeout=CALL_SECONDS)
    return (("authorization", f"Bearer {session.access_token}"),)


async def sign_in_admin(channel: aio.Channel, snapshot: Snapshot) -> Metadata:
    """As the administrator whom the stack made for itself; needs the right to read its data folder."""
    password = Path(snapshot.admin_password_file).read_text().strip()  # noqa: ASYNC240 (one small local file)
    return await sign_in(channel, ADMIN_EMAIL, password)
