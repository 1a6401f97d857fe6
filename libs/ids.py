"""Ids that sort by the time they were made: UUIDv7 of RFC 9562."""

import os
import threading
import time
from uuid import UUID

RANDOM_BITS = 74

_lock = threading.Lock()
_last = 0


def uuid7() -> UUID:
    """A new id: 48 bits of Unix milliseconds, then 74 random bits.

    Within a process each sorts after the one before it, also within one millisecond and when the clock is set back:
    what is listed by id is listed in the order it happened.
    """
    global _last  # noqa: PLW0603 (the order is the process's)
    random = int.from_bytes(os.urandom(10), "big") & ((1 << RANDOM_BITS) - 1)
    made = time.time_ns() // 1_000_000 << RANDOM_BITS | random
    with _lock:
        _last = made = max(made, _last + 1)
    milliseconds, random = made >> RANDOM_BITS, made & ((1 << RANDOM_BITS) - 1)
    high, low = random >> 62, random & ((1 << 62) - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
