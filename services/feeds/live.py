"""Live trades of one instrument: put in the venue's order, with what is missing between them known."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tradeloom.marketdata.v1 import marketdata_pb2

from services.feeds.domain import Backfilled, Event, Instant, Missed, Place, Tick
from services.feeds.lines import TIME_MAX_NS, Line

EVENTS_WAITING_MAX = 100_000
"""Told by the venue and not yet appended, as when Redis does not answer. Beyond, they are let go and fetched again."""
TRADES_WAITING_MAX = 20_000
"""Of one instrument, for one that is missing before them. Beyond, it is told as missed."""
IDS_KNOWN_MAX = 20_000
"""Of trades whose ids do not follow on each other: so many are known again."""
ASTRAY_TRADES = 3
ASTRAY_NS = 1_000_000_000
"""So many in a row with ids up to the last trade's, and so much later than it: they are not the trades that had these ids."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Trades that did not come: those after one and before another, the first known since a moment on the steady clock."""

    after: Tick | None
    """None where only its id is known."""
    after_id: str
    before: Tick
    since_ns: int

    @property
    def missed(self) -> Missed:
        return Missed(self.after_id, self.before.trade_id, self.after.time_ns if self.after else 0, self.before.time_ns)


class Sequencer(Protocol):
    """Puts an instrument's trades in order, whatever comes late, twice or not at all."""

    sees_holes: bool
    """Whether it is known when a trade is missing before another."""
    repeat_count: int
    """Trades that came again."""

    @property
    def last(self) -> Tick | None:
        """The last trade in order since it was made."""
        ...

    @property
    def last_id(self) -> str:
        """Its id, or that of the trade it began after; empty before the first."""
        ...

    @property
    def last_ns(self) -> int:
        """When that was; 0 where it is not known."""
        ...

    @property
    def is_astray(self) -> bool:
        """Whether the venue numbers anew, from below the last trade's id; or that one was none of its ids."""
        ...

    @property
    def waiting_count(self) -> int:
        """Trades that wait for one before them."""
        ...

    def add(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        """Takes what the venue pushed; returns what is in order now."""
        ...

    def fill(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        """Takes what the venue has on record after the last trade, the oldest first; returns what is in order now."""
        ...

    @property
    def hole(self) -> Hole | None:
        """What is missing, while later trades wait for it."""
        ...

    def has_told(self, trade: Tick) -> bool:
        """Whether it is one of those that were in order."""
        ...

    def pass_over(self) -> list[Tick]:
        """Goes on without what is missing; returns what is in order now."""
        ...

    def drop_waiting(self) -> int:
        """Lets go of the trades that wait; how many they were."""
        ...

    def go_back(self, last_id: str, last_ns: int, dropped: Iterable[Tick]) -> None:
        """Goes on after an earlier trade: those dropped have not been told, and nothing waits any more."""
        ...


class FollowingIds:
    """For venues that number an instrument's trades one by one."""

    sees_holes = True

    def __init__(self, last_id: str, last_ns: int = 0) -> None:
        self.last: Tick | None = None
        self.repeat_count = 0
        self._last = int(last_id) if last_id else None
        self._begin_ns = last_ns
        self._waiting: dict[int, Tick] = {}
        self._since_ns = 0
        self._astray_count = 0

    @property
    def last_id(self) -> str:
        return "" if self._last is None else str(self._last)

    @property
    def last_ns(self) -> int:
        return self.last.time_ns if self.last else self._begin_ns

    @property
    def is_astray(self) -> bool:
        return self._astray_count >= ASTRAY_TRADES

    def add(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        was_whole = not self._waiting
        for trade in trades:
            number = int(trade.trade_id)
            if (self._last is not None and number <= self._last) or number in self._waiting:
                self.repeat_count += 1
                if self._begins_anew(number, trade):
                    self._astray_count += 1
            else:
                self._waiting[number] = trade
        if self._last is None and self._waiting:
            self._last = min(self._waiting) - 1
        ready = self._in_order()
        if ready:
            self._astray_count = 0
        if was_whole:
            self._since_ns = now_ns
        return ready

    def fill(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        ready: list[Tick] = []
        for trade in trades:
            number = int(trade.trade_id)
            if self._last is not None and number <= self._last:
                continue
            # The venue's record is complete: what it does not have between two trades never was.
            self._waiting.pop(number, None)
            self._last, self.last = number, trade
            ready.append(trade)
        for number in [number for number in self._waiting if self._last is not None and number <= self._last]:
            del self._waiting[number]
        ready += self._in_order()
        self._since_ns = now_ns
        return ready

    @property
    def hole(self) -> Hole | None:
        if not self._waiting:
            return None
        return Hole(self.last, self.last_id, self._waiting[min(self._waiting)], self._since_ns)

    def has_told(self, trade: Tick) -> bool:
        return self._last is not None and int(trade.trade_id) <= self._last

    def pass_over(self) -> list[Tick]:
        self._last = min(self._waiting) - 1
        return self._in_order()

    def drop_waiting(self) -> int:
        count = len(self._waiting)
        self._waiting.clear()
        return count

    def go_back(self, last_id: str, last_ns: int, dropped: Iterable[Tick]) -> None:
        self._last, self.last = int(last_id) if last_id else None, None
        self._begin_ns = last_ns
        self._waiting.clear()

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def _begins_anew(self, number: int, trade: Tick) -> bool:
        """Whether a trade that is told again by its id is another one by its time."""
        is_known = self._last is not None and number <= self._last
        return is_known and 0 < self.last_ns < trade.time_ns - ASTRAY_NS

    def _in_order(self) -> list[Tick]:
        ready: list[Tick] = []
        while self._last is not None and (trade := self._waiting.pop(self._last + 1, None)):
            self._last += 1
            self.last = trade
            ready.append(trade)
        return ready


class DistinctIds:
    """For venues whose ids only tell trades apart: what is missing cannot be seen, but what comes again can.

    Without ids nothing tells trades apart, and all that come are told; of the record those later than the last.
    """

    sees_holes = False
    hole = None
    waiting_count = 0
    is_astray = False

    def __init__(self, last_id: str, last_ns: int = 0) -> None:
        self.last: Tick | None = None
        self.last_id, self.last_ns = last_id, last_ns
        self.repeat_count = 0
        self._known: OrderedDict[str, None] = OrderedDict.fromkeys([last_id] if last_id else [])

    def add(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        ready: list[Tick] = []
        for trade in trades:
            if trade.trade_id in self._known:
                self.repeat_count += 1
                continue
            if trade.trade_id:
                self._known[trade.trade_id] = None
            if len(self._known) > IDS_KNOWN_MAX:
                self._known.popitem(last=False)
            self.last, self.last_id, self.last_ns = trade, trade.trade_id, trade.time_ns
            ready.append(trade)
        return ready

    def fill(self, trades: Iterable[Tick], now_ns: int) -> list[Tick]:
        told_ns = self.last_ns
        return self.add((trade for trade in trades if trade.trade_id or trade.time_ns > told_ns), now_ns)

    def has_told(self, trade: Tick) -> bool:
        return trade.trade_id in self._known or trade.time_ns <= self.last_ns

    def pass_over(self) -> list[Tick]:
        return []

    def drop_waiting(self) -> int:
        return 0

    def go_back(self, last_id: str, last_ns: int, dropped: Iterable[Tick]) -> None:
        self.last, self.last_id, self.last_ns = None, last_id, last_ns
        for trade in dropped:
            self._known.pop(trade.trade_id, None)


def sequencer_of(ids_follow: bool, last_id: str, last_ns: int) -> Sequencer:
    return FollowingIds(last_id, last_ns) if ids_follow else DistinctIds(last_id, last_ns)


class LiveLine(Line):
    """Tells events as they are offered, and what was missed when nothing else waits.

    The position is the time of the last trade.
    """

    def __init__(self, place: Place, quote: marketdata_pb2.Quote, wake: Callable[[], None]) -> None:
        super().__init__(place, quote)
        self._wake = wake
        self._events: deque[Event] = deque()
        self._backfill: Backfilled | None = None
        self._is_backfill_cut = False
        self._backfill_told = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        return len(self._events) >= EVENTS_WAITING_MAX

    def offer(self, events: Sequence[Event]) -> None:
        """Has these told after all that was offered before."""
        if events:
            self._events.extend(events)
            self._wake()

    def drop(self) -> list[Tick]:
        """Lets go of all that was offered and not cut; returns the trades of it."""
        dropped, self._events = self._events, deque()
        return [event for event in dropped if isinstance(event, Tick)]

    async def tell_backfill(self, backfill: Backfilled) -> None:
        """Returns when the stream has it. One at a time."""
        self._backfill, self._is_backfill_cut = backfill, False
        self._backfill_told.clear()
        self._wake()
        try:
            await self._backfill_told.wait()
        finally:
            self._backfill = None

    @property
    def cut_trade_id(self) -> str:
        """The venue's id of the last trade that was cut; empty if none ever was."""
        return self._cut.trade_id

    @property
    def cut_time_ns(self) -> int:
        """When it happened; 0 if none ever was."""
        return self._cut.position

    def acknowledge(self) -> None:
        super().acknowledge()
        if self._is_backfill_cut:
            self._backfill_told.set()

    def wait_ns(self, now: Instant) -> int:
        return 0 if self._next() else TIME_MAX_NS

    def _due(self, now: Instant) -> Event | None:
        return self._next()

    def _take(self) -> None:
        if self._events:
            self._events.popleft()
        else:
            self._is_backfill_cut = True

    def _next(self) -> Event | None:
        if self._events:
            return self._events[0]
        return None if self._is_backfill_cut else self._backfill

    def _position_after(self, ticks: Sequence[Tick], time_ns: int) -> int:
        return ticks[-1].time_ns if ticks else self._cut.position
