"""Reading a venue's record of funding to its end, so that each entry of a margin account is told once."""

import asyncio
import time
from dataclasses import dataclass, field

from services.execution import store as common
from services.execution.domain import VenueUnavailable
from services.execution.live.sending import Sending

ASK_SECONDS = 60.0
"""So often the record is read."""
HOUR_SECONDS = 3_600.0
"""Venues settle funding at whole hours, each contract at some of them."""
DELAY_SECONDS = 20.0
"""So long after such an hour it is asked what was settled then."""
SETTLE_SECONDS = 120.0
"""So long after such an hour what a wallet lost or got may be funding that is not on record yet."""
PAGES_MAX = 20
"""Read in one go; what is left is read the next time."""


@dataclass(slots=True)
class FundingReader:
    """sending is of one account. One at a time reads on from the cursor."""

    sending: Sending
    read_at: float = 0.0
    """When it was last begun, in seconds since 1970."""
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self) -> int:
        """How many entries were new. Raises VenueUnavailable, VenueRefused, LeaseLost."""
        records, port = self.sending.records, self.sending.port
        if not records.card.perpetuals:
            return 0
        async with self._reading:
            self.read_at = time.time()
            new = 0
            for _ in range(PAGES_MAX):
                books, _ = await records.books()
                if books.open_time is None:
                    return new
                begin_time_ns = int(books.open_time.timestamp()) * common.SECOND_NS
                page = await port.funding_since(books.funding_cursor, begin_time_ns)
                new += await records.fund(page.entries, page.cursor)
                if page.is_last:
                    break
            return new

    async def follow(self) -> None:
        """Reads whenever it is due, once; also where somebody else has read it meanwhile."""
        await asyncio.sleep(due_seconds(self.read_at, time.time()))
        if due_seconds(self.read_at, time.time()) > 0:
            return
        try:
            await self.read()
        except VenueUnavailable as error:
            await asyncio.sleep(error.retry_after_seconds or 1.0)


def due_seconds(read_at: float, now: float) -> float:
    """How long until the record is to be read again, after it was at that time."""
    due = read_at + ASK_SECONDS
    settled = now - now % HOUR_SECONDS + DELAY_SECONDS
    for hour in (settled, settled + HOUR_SECONDS):
        if read_at < hour:
            due = min(due, hour)
            break
    return max(0.0, due - now)


def is_settling(now: float) -> bool:
    """Whether funding may be in a wallet, and not on record."""
    return now % HOUR_SECONDS < SETTLE_SECONDS
