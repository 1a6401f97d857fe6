"""Gives a stream up that has fallen silent: its heartbeats are what tells a quiet one from a dead one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from grpc import aio

from libs.errors import Unavailable

# Twice the ten seconds after which the contract promises a heartbeat.
SILENCE_SECONDS_MAX = 20.0

Response = TypeVar("Response")


class StreamSilent(Unavailable):
    """Neither a message nor a heartbeat came in time; resume by cursor."""


class StreamRetired(Unavailable):
    """The stream outlasted the time that a channel has under an earlier certificate; resume by cursor."""


@asynccontextmanager
async def watched(
    call: aio.UnaryStreamCall[Any, Response], silence_seconds_max: float = SILENCE_SECONDS_MAX
) -> AsyncIterator[AsyncIterator[Response]]:
    """The messages of a stream, which ends with the block; reading on raises StreamSilent when none came for so long."""
    try:
        async with aclosing(_messages(call, silence_seconds_max)) as messages:
            yield messages
    finally:
        call.cancel()


async def _messages(
    call: aio.UnaryStreamCall[Any, Response], silence_seconds_max: float
) -> AsyncGenerator[Response, None]:
    unread = aiter(call)
    while True:
        try:
            async with asyncio.timeout(silence_seconds_max):
                message = await anext(unread)
        except StopAsyncIteration:
            return
        except TimeoutError:
            silent = f"the stream was silent for {silence_seconds_max:g} s, without a heartbeat"
            raise StreamSilent(silent, dependency="mesh") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not call.cancelled() or (task and task.cancelling()):
                raise
            # Nobody cancelled the reader: its channel was closed, which must not look as if somebody had.
            raise StreamRetired("the stream's channel was closed; resume by cursor", dependency="mesh") from None
        yield message
