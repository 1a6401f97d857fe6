"""Funding of a venue's perpetual futures: what was settled is told from the venue's own record, each settlement once and in order.

How far it was told is known from what was told: the newest announcement says it, and is written in the transaction that tells the
others. So nothing is lost or repeated by whoever goes on, after whatever end. The record is asked when the venue's marks say that a
settlement was due, and at times anyway.
"""

import asyncio
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from libs.store.background import Backoff
from libs.store.database import DatabaseUnavailable
from services.feeds.domain import Mark, Settlement
from services.feeds.venues import PAGE_SETTLEMENTS, Venue, VenueTrouble

LOOK_SECONDS = 0.5
SETTLE_SECONDS = 2.0
"""So long after a settlement was due it is asked for: venues take a moment to have it on record."""
AGAIN_SECONDS_FIRST = 2.0
AGAIN_SECONDS_MAX = 300.0
"""So long after it was not there, or the venue did not say, it is asked for again."""
ASK_SECONDS = 600.0
"""At least so often the record is asked, whatever marks say."""

log = structlog.get_logger(__name__)


class Desk(Protocol):
    """Where settlements are left, and how far they were is known."""

    async def funding_told_ns(self, instrument_id: str, traded_ns: int) -> int:
        """When the last settlement was that was announced; where none is known, up to when none is wanted.

        The last trade of an earlier feed was at that time; 0 if there was none.
        """
        ...

    async def announce_funding(self, settled: Sequence[Settlement]) -> None:
        """Tells the others what funding was settled at, whole or not at all."""
        ...


@dataclass(slots=True)
class Settling:
    """One instrument's settlements. What ends in `_at` is the event loop's time."""

    instrument_id: str
    traded_ns: int
    told_ns: int | None = None
    """None before it is known."""
    next_ns: int = 0
    """When the venue says that it settles next; 0 before it says so."""
    due_ns: int = 0
    """The last time at which it should have settled."""
    ask_at: float = 0.0
    again: Backoff = field(default_factory=lambda: Backoff(AGAIN_SECONDS_FIRST, AGAIN_SECONDS_MAX))


class Funding:
    """The settlements of one feed's instruments, over one connection after the other."""

    def __init__(self, desk: Desk, traded_ns: Mapping[str, tuple[str, int]]) -> None:
        """By symbol: the instrument, and when its last trade was that was told, or 0."""
        self._desk = desk
        self._settling = {symbol: Settling(*each) for symbol, each in traded_ns.items()}
        self._loop = asyncio.get_running_loop()

    def hear(self, symbol: str, mark: Mark) -> None:
        """Has a settlement asked for that was due by this mark."""
        settling = self._settling[symbol]
        if 0 < settling.next_ns <= mark.time_ns and settling.due_ns < settling.next_ns:
            settling.due_ns = settling.next_ns
            settling.again.reset()
            settling.ask_at = min(settling.ask_at, self._loop.time() + SETTLE_SECONDS)
        settling.next_ns = mark.next_funding_ns

    async def run(self, venue: Venue, announced: Container[str]) -> None:
        """Brings what was settled of those that are announced: of others nobody would know whose it is."""
        while True:
            for symbol, settling in self._settling.items():
                if symbol in announced and settling.ask_at <= self._loop.time():
                    await self._bring(venue, symbol, settling)
            await asyncio.sleep(LOOK_SECONDS)

    async def _bring(self, venue: Venue, symbol: str, settling: Settling) -> None:
        """One page of the record, and when the next is to be asked for."""
        try:
            if settling.told_ns is None:
                settling.told_ns = await self._desk.funding_told_ns(settling.instrument_id, settling.traded_ns)
            told_ns = settling.told_ns
            page = await venue.settlements_after(symbol, told_ns)
            if page:
                # Where this does not come to its end, it may have been told all the same.
                settling.told_ns = None
                await self._desk.announce_funding(page)
                settling.told_ns = told_ns = page[-1].funding_ns
        except (VenueTrouble, DatabaseUnavailable) as error:
            seconds = settling.again.next_seconds()
            settling.ask_at = self._loop.time() + seconds
            log.warning(
                "funding is asked for again", instrument_id=settling.instrument_id, cause=str(error), seconds=seconds
            )
            return
        if len(page) >= PAGE_SETTLEMENTS:
            return
        if told_ns < settling.due_ns:
            settling.ask_at = self._loop.time() + settling.again.next_seconds()
            return
        settling.again.reset()
        settling.ask_at = self._loop.time() + ASK_SECONDS
