"""Group commit: orders that arrive while a transaction is under way share the next one.

Alone, an order is placed at once; under load the cost of a commit is shared, and the answer still comes only after it.
An account that another transaction has locked for long holds up nobody else: its orders wait for it in a lane of its own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

import asyncpg

from libs.errors import Refusal, Unavailable
from libs.store.background import running
from libs.store.database import StillLocked
from services.orders.refusals import AccountLocked, TooBusy
from services.orders.use_cases import Placing


class Patience(Enum):
    """Whether a batch waits for an account that another transaction has locked."""

    # Longer than what others do with an account takes: waiting for that is cheapest together with the others.
    SOME = "some"
    # Not at all: a locked account is told by AccountLocked, and the rest of the batch is placed.
    NONE = "none"
    # As long as any transaction waits.
    MUCH = "much"


Place = Callable[[Sequence[Placing], Patience], Awaitable[list[bytes | Refusal]]]
"""Places a batch in one transaction of its own; StillLocked if its patience was not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Orders in one batch, and in one lane; orders on their way; and lanes that are worked on at once."""

    batch_max: int
    waiting_max: int
    locked_max: int


@dataclass(slots=True, eq=False)
class Waiting:
    placing: Placing
    done: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def lane(self) -> tuple[UUID, UUID]:
        """Of the user too: who names another's account does not get into its lane."""
        return self.placing.key.user_id, self.placing.ticket.account_id

    def answer(self, outcome: bytes | Exception) -> None:
        if self.done.done():
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class Batches:
    """One transaction at a time, with all that waits for it, up to a bound; and one for each locked account."""

    def __init__(self, place: Place, bounds: Bounds) -> None:
        self._place, self._bounds = place, bounds
        self._unanswered: set[Waiting] = set()
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._lanes: dict[tuple[UUID, UUID], deque[Waiting]] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._locked_at_once = asyncio.Semaphore(bounds.locked_max)
        self._stopping = False

    async def place(self, placing: Placing) -> bytes:
        """The serialized answer once the order is durable; raises the refusal.

        A caller that leaves before its batch begins places nothing.
        """
        if self._stopping:
            raise stopping()
        if len(self._unanswered) >= self._bounds.waiting_max:
            raise TooBusy("too many orders are being placed at once; retry", retry_after_seconds=0.5)
        waiting = Waiting(placing)
        self._unanswered.add(waiting)
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await waiting.done
        finally:
            self._unanswered.discard(waiting)

    async def place_all(self, placings: Sequence[Placing]) -> list[bytes | BaseException]:
        """The same for several, in as few batches as they fit in, and the outcome of each."""
        return await asyncio.gather(*(self.place(placing) for placing in placings), return_exceptions=True)

    async def work(self) -> None:
        """Places the next batch."""
        await self._arrived.wait()
        batch: list[Waiting] = []
        while self._waiting and len(batch) < self._bounds.batch_max:
            waiting = self._waiting.popleft()
            if waiting.lane in self._lanes:
                self._send_to_lane(waiting)
            elif not waiting.done.done():
                batch.append(waiting)
        if not self._waiting:
            self._arrived.clear()
        if batch:
            await self._settle(batch, Patience.SOME)

    async def _settle(self, batch: Sequence[Waiting], patience: Patience) -> None:
        try:
            outcomes = await self._place([waiting.placing for waiting in batch], patience)
            settled = list(zip(batch, outcomes, strict=True))
        except (asyncpg.UniqueViolationError, asyncpg.DataError) as error:
            # One of them met another transaction's request_id, or cannot be written: alone, it tells which.
            if len(batch) == 1:
                batch[0].answer(refusal_of(error))
                return
            for waiting in batch:
                await self._settle([waiting], patience)
        except Exception as error:  # noqa: BLE001 (each caller gets it, and its concerns say what it means)
            if isinstance(error, StillLocked) and patience is Patience.SOME:
                await self._settle(batch, Patience.NONE)
                return
            for waiting in batch:
                waiting.answer(error)
        else:
            for waiting, outcome in settled:
                if isinstance(outcome, AccountLocked):
                    self._send_to_lane(waiting)
                else:
                    waiting.answer(outcome)

    def _send_to_lane(self, waiting: Waiting) -> None:
        """Has it wait for its account, after those that already do."""
        lane = self._lanes.get(waiting.lane)
        if lane is None:
            lane = self._lanes[waiting.lane] = deque()
            follower = asyncio.create_task(self._follow(waiting.lane), name=f"placing in {waiting.lane[1]}")
            self._followers.add(follower)
            follower.add_done_callback(self._followers.discard)
        if len(lane) >= self._bounds.batch_max:
            waiting.answer(TooBusy("too many orders wait for this account; retry", retry_after_seconds=0.5))
        else:
            lane.append(waiting)

    async def _follow(self, name: tuple[UUID, UUID]) -> None:
        lane = self._lanes[name]
        async with self._locked_at_once:
            while lane:
                batch = [waiting for waiting in lane if not waiting.done.done()]
                lane.clear()
                if batch:
                    await self._settle(batch, Patience.MUCH)
            del self._lanes[name]

    async def stop(self) -> None:
        """Those that have no answer yet were not placed, or a repeat will tell."""
        self._stopping = True
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        for waiting in self._unanswered:
            waiting.answer(stopping())


def stopping() -> Unavailable:
    return Unavailable("the service is stopping; retry with the same request_id", dependency="orders")


def refusal_of(error: Exception) -> Exception:
    if isinstance(error, asyncpg.UniqueViolationError):
        return Unavailable(
            "the request_id is being used at this moment; retry", retry_after_seconds=0.05, dependency="orders"
        )
    return error


@asynccontextmanager
async def batching(place: Place, bounds: Bounds) -> AsyncIterator[Batches]:
    batches = Batches(place, bounds)
    try:
        async with running("placing orders", batches.work):
            yield batches
    finally:
        await batches.stop()
