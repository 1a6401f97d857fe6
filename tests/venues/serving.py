"""What all of the tests' venues are: served on a free port of loopback, with markets that move and a script of faults."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aiohttp import web

from tests.venues.faults import Faults
from tests.venues.market import Market
from tests.venues.streams import Streams

HOST = "127.0.0.1"
CLOSING_TURNS = 3
"""Of the event loop: who was accepted in one turn is known to be connected in a later one."""

S = TypeVar("S", bound=Streams)


@dataclass
class Site:
    """A server that may be closed, and opened again on the same port."""

    runner: web.AppRunner
    listening: web.TCPSite | None = None

    async def open(self, port: int = 0) -> None:
        self.listening = web.TCPSite(self.runner, HOST, port, reuse_address=True)
        await self.listening.start()

    async def close(self) -> None:
        """Also what is connected."""
        assert self.listening is not None and self.runner.server is not None
        await self.listening.stop()
        for _ in range(CLOSING_TURNS):
            for connection in list(self.runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)


@dataclass(kw_only=True)
class Venue(ABC, Generic[S]):
    """faults are the script of what goes wrong."""

    faults: Faults = field(default_factory=Faults)
    asked: list[str] = field(default_factory=list)
    """The paths of all requests,"""
    asked_at: list[float] = field(default_factory=list)
    """and when each came."""
    port: int = 0
    site: Site | None = None
    streams: S = field(init=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def streams_url(self) -> str:
        return f"ws://{HOST}:{self.port}"

    @abstractmethod
    def market(self, symbol: str) -> Market: ...

    @abstractmethod
    def routes(self) -> list[web.RouteDef]: ...

    # What a test does.

    @asynccontextmanager
    async def trading(self, symbol: str, trades_per_second: float, seed: int = 0) -> AsyncIterator[Market]:
        """The market moves by itself during the block."""
        market = self.market(symbol)
        running = asyncio.ensure_future(market.run(trades_per_second, seed))
        try:
            yield market
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    def disconnect(self, stream: str = "", *, close_frame: bool = True) -> None:
        """Cuts the sockets that follow a stream whose name holds that text; all of them, without one."""
        self.streams.cut(stream, close_frame=close_frame)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Nobody is connected, and nobody can connect, during the block; afterwards on the same port."""
        assert self.site is not None
        await self.site.close()
        try:
            yield
        finally:
            await self.site.open(self.port)


@asynccontextmanager
async def serving(venue: Venue[S]) -> AsyncIterator[None]:
    """The venue on a free port of loopback during the block; it is told which."""
    app = web.Application()
    app.add_routes(venue.routes())
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = Site(runner)
    try:
        await site.open()
        venue.port, venue.site = runner.addresses[0][1], site
        yield
    finally:
        await runner.cleanup()
