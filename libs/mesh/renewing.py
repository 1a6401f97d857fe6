"""A channel that outlives its certificate: new calls travel under the renewed one, and those under way end as they began."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from grpc import aio

from libs.mesh.certificates import Files
from libs.mesh.tls import Identity

log = structlog.get_logger(__name__)

# How long a renewed certificate may lie there unused.
LOOK_SECONDS = 10.0
# How long calls may go on that began under the certificate before: streams that are open then are ended.
RETIRED_SECONDS_MAX = 3600.0


class Connected:
    """A channel under one certificate, and its calls under way."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.calls: set[aio.Call] = set()

    def began(self, call: Any) -> None:
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)


class RenewingChannel(aio.Channel):
    """Looks for a renewed certificate when it is called; connects with it then."""

    def __init__(self, identity: Identity, connect: Callable[[Files], aio.Channel]) -> None:
        self._identity, self._connect = identity, connect
        self._newest = Connected(connect(identity.files))
        self._retiring: set[asyncio.Task[None]] = set()
        self._look_time = time.monotonic() + LOOK_SECONDS
        self._closed = False

    def newest(self) -> Connected:
        """What a new call travels on."""
        if time.monotonic() >= self._look_time and not self._closed:
            self._look_time = time.monotonic() + LOOK_SECONDS
            if found := self._identity.renewed():
                earlier, self._newest = self._newest, Connected(self._connect(found))
                task = asyncio.create_task(retire(earlier), name="a channel under an earlier certificate")
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
        return self._newest

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(self._newest.channel.close(grace), *self._retiring, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.newest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.newest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.newest().channel.channel_ready()

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._callable(lambda channel: channel.unary_unary(*arguments, **named))

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._callable(lambda channel: channel.unary_stream(*arguments, **named))

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._callable(lambda channel: channel.stream_unary(*arguments, **named))

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._callable(lambda channel: channel.stream_stream(*arguments, **named))

    def _callable(self, bind: Callable[[aio.Channel], Callable[..., Any]]) -> Callable[..., Any]:
        """What a stub keeps of one RPC, bound anew to each channel."""
        bound_to, begin = self._newest, bind(self._newest.channel)

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal bound_to, begin
            newest = self.newest()
            if newest is not bound_to:
                bound_to, begin = newest, bind(newest.channel)
            begun = begin(*arguments, **named)
            newest.began(begun)
            return begun

        return call


async def retire(earlier: Connected) -> None:
    """Closes the channel when its calls have ended, or have had their time."""
    try:
        async with asyncio.timeout(RETIRED_SECONDS_MAX):
            await asyncio.gather(*(call.code() for call in earlier.calls), return_exceptions=True)
    except TimeoutError:
        log.info("calls under an earlier certificate are ended", calls=len(earlier.calls))
    finally:
        await earlier.channel.close()
