"""Callers that each send the next call when the last was answered."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Call = Callable[[], Awaitable[object]]

WARM_SECONDS = 0.2
MILLISECONDS = 1_000


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers saw; a call counts when it was answered, however long after the end."""

    latencies_seconds: Sequence[float]
    seconds: float

    @property
    def count(self) -> int:
        return len(self.latencies_seconds)

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    def percentile_milliseconds(self, part: float) -> float:
        ordered = sorted(self.latencies_seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * MILLISECONDS

    def values(self) -> dict[str, float]:
        return {
            "p50": self.percentile_milliseconds(0.50),
            "p99": self.percentile_milliseconds(0.99),
            "throughput": self.per_second,
        }


async def drive(calls: Sequence[Call], seconds: float) -> Load:
    """One caller for each of the calls, for so long. A call that fails ends the bench."""
    latencies: list[float] = []
    clock = time.perf_counter
    began = clock()
    until = began + seconds

    async def caller(call: Call) -> None:
        while (started := clock()) < until:
            await call()
            latencies.append(clock() - started)

    async with asyncio.TaskGroup() as together:
        for call in calls:
            together.create_task(caller(call))
    return Load(latencies, clock() - began)


async def warmed(calls: Sequence[Call], seconds: float) -> Load:
    """The same after a moment in which connections, caches and prepared statements come to be.

    What is measured for less than that moment only shows that it works.
    """
    if seconds > WARM_SECONDS:
        await drive(calls, WARM_SECONDS)
    return await drive(calls, seconds)
