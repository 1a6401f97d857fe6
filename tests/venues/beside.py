"""A Binance of the tests' own beside a whole stack: for other processes, on an event loop in a thread of its own."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

from tests.venues.binance import Binance, binance

WAIT_SECONDS = 20.0
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What of it a test touches it touches by `do`, on its own event loop."""

    binance: Binance
    loop: asyncio.AbstractEventLoop

    @property
    def environment(self) -> dict[str, str]:
        """Points a stack's services at it; they ask nothing of it before somebody has them."""
        url, streams_url = self.binance.url, self.binance.streams_url
        return {
            "EXECUTION_BINANCE_URL": url,
            "EXECUTION_BINANCE_ACCOUNT_STREAM_URL": streams_url,
            "FEEDS_BINANCE_URL": url,
            "FEEDS_BINANCE_STREAM_URL": streams_url,
        }

    def do(self, act: Callable[[Binance], Done]) -> Done:
        async def done() -> Done:
            return act(self.binance)

        return run(self.loop, done())


@contextmanager
def exchange_beside() -> Iterator[Exchange]:
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="exchange")
    thread.start()
    opened = binance()
    try:
        venue = run(loop, opened.__aenter__())
        try:
            yield Exchange(venue, loop)
        finally:
            run(loop, opened.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_SECONDS)
        loop.close()


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Done]) -> Done:
    return asyncio.run_coroutine_threadsafe(work, loop).result(WAIT_SECONDS)
