"""Sets an instrument aside that something cannot be done for, so that it holds up no other; it is tried again later by itself."""

import asyncio
from dataclasses import dataclass, field

from libs.store.background import Backoff

ASIDE_SECONDS_FIRST = 1.0
ASIDE_SECONDS_MAX = 60.0
"""So long an instrument is left alone at most, between the times that it is tried."""


@dataclass(slots=True)
class Aside:
    """An instrument for which it failed the last time."""

    backoff: Backoff = field(default_factory=lambda: Backoff(ASIDE_SECONDS_FIRST, ASIDE_SECONDS_MAX))
    try_at: float = 0.0
    """By the event loop's time."""

    def put_off(self) -> float:
        """Leaves it alone for a while, and says for how many seconds."""
        seconds = self.backoff.next_seconds()
        self.try_at = asyncio.get_running_loop().time() + seconds
        return seconds
