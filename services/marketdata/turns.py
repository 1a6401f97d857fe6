"""Turns of the event loop: whoever has much to do goes on piece by piece, and readers of live ticks go first."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

BUSY_SECONDS = 0.0002
"""What one turn of the event loop takes when nobody else has anything to do is far below it."""


async def give_way(spent_seconds: float) -> None:
    """Lets readers of live ticks go first: while others are busy, the caller takes at most a third of the time."""
    started = time.perf_counter()
    await asyncio.sleep(0)
    if time.perf_counter() - started > BUSY_SECONDS:
        await asyncio.sleep(spent_seconds * 2)


async def in_pieces(items: Sequence[T], number: int) -> AsyncIterator[Sequence[T]]:
    """The items in their order, so many at once, giving way after what the caller does with them."""
    for start in range(0, len(items), number):
        started = time.perf_counter()
        yield items[start : start + number]
        await give_way(time.perf_counter() - started)
