"""How the tests' venues are served: on a free port of loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

HOST = "127.0.0.1"


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
        for connection in list(self.runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()


@asynccontextmanager
async def serving(venue: Any) -> AsyncIterator[Site]:
    """The venue on a free port of loopback during the block; it is told which."""
    app = web.Application()
    app.add_routes(venue.routes())
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = Site(runner)
    try:
        await site.open()
        venue.port = runner.addresses[0][1]
        yield site
    finally:
        await runner.cleanup()
