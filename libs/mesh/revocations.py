"""Follows auth: its public keys, and the sessions it ends."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC
from functools import partial
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.mesh.identity import Keys, Verifier
from libs.mesh.sessions import Outdated, Sessions
from libs.mesh.watchdog import StreamRetired, StreamSilent, watched
from libs.store.background import running
from libs.tokens import KEYS_REFRESH_SECONDS

log = structlog.get_logger(__name__)

# auth sends a heartbeat every two seconds. Not twice that: a stream that is silent is opened anew before the news is stale.
SILENCE_SECONDS_MAX = 3.0
RETRY_SECONDS = 0.25


# A channel each time: what hangs in one is left behind with it.
OpenChannel = Callable[[], aio.Channel]


@asynccontextmanager
async def following_auth(open_channel: OpenChannel, verifier: Verifier, sessions: Sessions) -> AsyncIterator[None]:
    """Keeps the verifier's keys and the news of ended sessions fresh while the block runs."""
    async with (
        running("keys of auth", partial(follow_keys, open_channel, verifier)),
        running("news of ended sessions", partial(follow_sessions, open_channel, sessions)),
    ):
        yield


async def follow_keys(open_channel: OpenChannel, verifier: Verifier) -> None:
    """Asks for the keys, and returns when they are to be asked for again."""
    # A key is published for KEYS_LEAD_SECONDS before it signs, so a token's key is always known.
    pause_seconds = KEYS_REFRESH_SECONDS
    async with open_channel() as channel:
        try:
            response = await auth_pb2_grpc.AuthServiceStub(channel).GetJwks(
                auth_pb2.GetJwksRequest(), wait_for_ready=True
            )
            verifier.use(public_keys(response))
        except aio.AioRpcError as error:
            log.info("auth does not answer yet", code=error.code().name)
            pause_seconds = RETRY_SECONDS
    await asyncio.sleep(pause_seconds)


async def follow_sessions(open_channel: OpenChannel, sessions: Sessions) -> None:
    """Follows one stream to its end, and returns when another is to be opened."""
    async with open_channel() as channel:
        auth = auth_pb2_grpc.RevocationServiceStub(channel)
        stream = auth.StreamRevocations(auth_pb2.StreamRevocationsRequest(), wait_for_ready=True)
        try:
            async with watched(stream, SILENCE_SECONDS_MAX) as messages:
                async for news in messages:
                    take(news, sessions)
        except (aio.AioRpcError, StreamSilent, StreamRetired) as error:
            log.info("news of ended sessions was interrupted", error=type(error).__name__)
    await asyncio.sleep(RETRY_SECONDS)


def take(news: auth_pb2.StreamRevocationsResponse, sessions: Sessions) -> None:
    sessions.end(
        {UUID(ended.session_id): ended.expire_time.ToDatetime(UTC) for ended in news.sessions},
        {UUID(user.user_id): Outdated(user.generation, user.expire_time.ToDatetime(UTC)) for user in news.outdated},
    )
    # Without a time there is more to come at once.
    if news.HasField("time"):
        sessions.refresh()


def public_keys(response: auth_pb2.GetJwksResponse) -> Keys:
    return {
        key.kid: Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key.x + "=" * (-len(key.x) % 4)))
        for key in response.keys
    }
