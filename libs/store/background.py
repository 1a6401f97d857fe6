"""Work that goes on beside the requests, for as long as a process lives."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

PAUSE_SECONDS_FIRST = 0.1
PAUSE_SECONDS_MAX = 10.0
CANCEL_AGAIN_SECONDS = 5.0  # above what cleaning up takes

log = logging.getLogger(__name__)


class Backoff:
    """How long to pause after one more failure: doubling up to a bound, with chance so that many do not march in step."""

    def __init__(self, seconds_first: float = PAUSE_SECONDS_FIRST, seconds_max: float = PAUSE_SECONDS_MAX) -> None:
        self._seconds_first = seconds_first
        self._seconds_max = seconds_max
        self.failures = 0

    def next_seconds(self) -> float:
        seconds = min(self._seconds_max, self._seconds_first * 2 ** min(self.failures, 20))
        self.failures += 1
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def reset(self) -> None:
        self.failures = 0

    def went_well_for(self, seconds: float) -> None:
        """Work that went well for longer than the longest pause begins again with the shortest."""
        if seconds > self._seconds_max:
            self.reset()


@asynccontextmanager
async def running(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run work beside the block, again and again: after an exception with a growing pause, at once if it returns.

    Work that went well for longer than the longest pause begins again with the shortest.
    Leaving the block cancels it and waits until it has cleaned up.
    """
    task = asyncio.create_task(_for_ever(name, work), name=name)
    try:
        yield
    finally:
        await end([task])


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have cleaned up."""
    # A cancellation can be swallowed on its way, as by a wait that ends in the same moment; then it is said again.
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_SECONDS)


async def _for_ever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    backoff = Backoff()
    task = asyncio.current_task()
    while task and not task.cancelling():
        started_at = time.monotonic()
        try:
            await work()
            backoff.reset()
        # A library may raise CancelledError although nobody cancels, and this work must not end by that.
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise
            backoff.went_well_for(time.monotonic() - started_at)
            seconds = backoff.next_seconds()
            log.exception("%s failed; again in %.1f s", name, seconds)
            await asyncio.sleep(seconds)
        else:
            await asyncio.sleep(0)
