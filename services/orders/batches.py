"""Group commit: orders that arrive while a transaction is under way share the next one.

Alone, an order is placed at once; under load the cost of a commit is shared, and the answer still comes only after it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from libs.errors import Refusal, Unavailable
from services.orders.domain import TooBusy
from services.orders.use_cases import Placing

Place = Callable[[Sequence[Placing]], Awaitable[list[bytes | Refusal]]]
"""Places a batch in one transaction of its own."""


@dataclass(slots=True)
class Waiting:
    placing: Placing
    done: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches:
    """One transaction at a time, with all that waits for it, up to a bound."""

    def __init__(self, place: Place, batch_max: int, waiting_max: int) -> None:
        self._place, self._batch_max, self._waiting_max = place, batch_max, waiting_max
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()

    async def place(self, placing: Placing) -> bytes:
        """The serialized answer once the order is durable; raises the refusal.

        A caller that leaves before its batch begins places nothing.
        """
        if len(self._waiting) >= self._waiting_max:
            raise TooBusy("too many orders are being placed at once; retry", retry_after_seconds=0.5)
        waiting = Waiting(placing)
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.done

    async def work(self) -> None:
        """Places the next batch."""
        await self._arrived.wait()
        batch: list[Waiting] = []
        while self._waiting and len(batch) < self._batch_max:
            waiting = self._waiting.popleft()
            if not waiting.done.cancelled():
                batch.append(waiting)
        if not self._waiting:
            self._arrived.clear()
        if batch:
            await self._settle(batch)

    async def _settle(self, batch: Sequence[Waiting]) -> None:
        try:
            outcomes = await self._place([waiting.placing for waiting in batch])
        except (asyncpg.UniqueViolationError, asyncpg.DataError) as error:
            # One of them met another transaction's request_id, or cannot be written: alone, it tells which.
            if len(batch) == 1:
                answer(batch[0], refusal_of(error))
                return
            for waiting in batch:
                await self._settle([waiting])
        except Exception as error:  # noqa: BLE001 (each caller gets it, and its concerns say what it means)
            for waiting in batch:
                answer(waiting, error)
        except asyncio.CancelledError:
            for waiting in batch:
                answer(
                    waiting, Unavailable("the service is stopping; retry with the same request_id", dependency="orders")
                )
            raise
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                answer(waiting, outcome)

    def stop(self) -> None:
        """Those that still wait were not placed."""
        for waiting in self._waiting:
            answer(waiting, Unavailable("the service is stopping; retry with the same request_id", dependency="orders"))
        self._waiting.clear()


def refusal_of(error: Exception) -> Exception:
    if isinstance(error, asyncpg.UniqueViolationError):
        return Unavailable(
            "the request_id is being used at this moment; retry", retry_after_seconds=0.05, dependency="orders"
        )
    return error


def answer(waiting: Waiting, outcome: bytes | Exception) -> None:
    if waiting.done.done():
        return
    if isinstance(outcome, Exception):
        waiting.done.set_exception(outcome)
    else:
        waiting.done.set_result(outcome)


@asynccontextmanager
async def batching(place: Place, batch_max: int, waiting_max: int) -> AsyncIterator[Batches]:
    batches = Batches(place, batch_max, waiting_max)

    async def for_ever() -> None:
        while True:
            await batches.work()

    task = asyncio.create_task(for_ever(), name="placing orders")
    try:
        yield batches
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        batches.stop()
