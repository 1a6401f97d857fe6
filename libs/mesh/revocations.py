"""Follows auth: its public keys, and the sessions it ends."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.mesh.identity import Keys, Verifier
from libs.mesh.sessions import Sessions

log = structlog.get_logger(__name__)

KEYS_REFRESH_SECONDS = 60.0
# auth sends a heartbeat every two seconds; a stream that is silent for longer is opened anew.
SILENCE_SECONDS_MAX = 4.0
RETRY_SECONDS = 0.25


@asynccontextmanager
async def following_auth(channel: aio.Channel, verifier: Verifier, sessions: Sessions) -> AsyncIterator[None]:
    """Keeps the verifier's keys and the news of ended sessions fresh while the block runs."""
    tasks = [
        asyncio.create_task(follow_keys(auth_pb2_grpc.AuthServiceStub(channel), verifier), name="auth keys"),
        asyncio.create_task(follow_sessions(auth_pb2_grpc.RevocationServiceStub(channel), sessions), name="sessions"),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def follow_keys(auth: auth_pb2_grpc.AuthServiceStub, verifier: Verifier) -> None:
    # A key is published two of these periods before it signs, so a token's key is always known.
    while True:
        try:
            response = await auth.GetJwks(auth_pb2.GetJwksRequest(), wait_for_ready=True)
            verifier.use(public_keys(response))
        except aio.AioRpcError as error:
            log.info("auth does not answer yet", code=error.code().name)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            await asyncio.sleep(KEYS_REFRESH_SECONDS)


async def follow_sessions(auth: auth_pb2_grpc.RevocationServiceStub, sessions: Sessions) -> None:
    cursor = ""
    while True:
        stream = auth.StreamRevocations(auth_pb2.StreamRevocationsRequest(after_cursor=cursor), wait_for_ready=True)
        try:
            while True:
                news = await asyncio.wait_for(stream.read(), SILENCE_SECONDS_MAX)
                if not isinstance(news, auth_pb2.StreamRevocationsResponse):
                    break  # The end: auth is stopping.
                take(news, sessions)
                cursor = news.cursor
        except (aio.AioRpcError, TimeoutError) as error:
            log.info("news of ended sessions was interrupted", error=type(error).__name__)
        finally:
            stream.cancel()
        await asyncio.sleep(RETRY_SECONDS)


def take(news: auth_pb2.StreamRevocationsResponse, sessions: Sessions) -> None:
    if news.snapshot:
        sessions.forget()
    for ended in news.sessions:
        sessions.end_session(UUID(ended.session_id), ended.expire_time.ToDatetime(UTC))
    for user in news.not_before:
        sessions.end_before(UUID(user.user_id), user.time.ToDatetime(UTC))
    sessions.refresh()


def public_keys(response: auth_pb2.GetJwksResponse) -> Keys:
    return {
        key.kid: Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key.x + "=" * (-len(key.x) % 4)))
        for key in response.keys
    }
