"""Bars out of ticks: aligned to the clock, half-open, closed by market time.

- A tick of time t belongs to the bar that opens at t rounded down to the bar's size: the end is excluded.
- Market time is the newest time that a tick or the caller's `advance` has told. A bar closes when market time reaches its
  end plus the allowed lateness; arrival plays no part. A bar without a trade does not exist.
- Open and close are the prices of the first and last tick by (time, sequence), whatever the order of arrival.
- A late tick, one for a bar that is closed, corrects it and raises its revision by one, as long as the bar is among the
  newest KEPT_BARS; one for an older bar is counted in `too_late_count` and changes nothing.
"""

from collections.abc import Iterable
from typing import NamedTuple

MINUTE_NS = 60_000_000_000
TIME_MAX_NS = 2**63 - 1
KEPT_BARS = 1_440
"""Bars that are known at once, and so can still be corrected: a day of minutes."""


class Tick(NamedTuple):
    """One trade, with the place it has in its instrument's stream."""

    time_ns: int
    sequence: int
    price: float
    quantity: float


class Bar(NamedTuple):
    """A tuple, since one is made for every tick."""

    open_time_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    trade_count: int
    closed: bool
    revision: int
    """From 1; rises with every late tick that corrected the closed bar."""
    first: tuple[int, int]
    """Time and sequence of the tick that gave the open."""
    last: tuple[int, int]
    """Time and sequence of the tick that gave the close."""


class BarBuilder:
    """Builds the bars of one instrument as its ticks come.

    Bars, market time and `known_from_ns` are its whole state: a builder made of them goes on as this one would have.
    """

    def __init__(
        self,
        *,
        size_ns: int = MINUTE_NS,
        lateness_ns: int = 0,
        bars: Iterable[Bar] = (),
        market_time_ns: int = 0,
        known_from_ns: int = 0,
    ) -> None:
        self._size_ns = size_ns
        self._lateness_ns = lateness_ns
        self._bars = {bar.open_time_ns: bar for bar in bars}
        self._next_close_ns = self._earliest_close_ns()
        self.market_time_ns = market_time_ns
        self.known_from_ns = known_from_ns
        """Bars that opened before it are not known here, so no tick can change them."""
        self.too_late_count = 0

    def bars(self) -> list[Bar]:
        """The bars it knows, oldest first."""
        return [self._bars[open_time_ns] for open_time_ns in sorted(self._bars)]

    def add(self, ticks: Iterable[Tick]) -> list[Bar]:
        """Takes ticks in the order of their arrival; returns every bar that changed as it now stands, oldest first."""
        changed: dict[int, Bar] = {}
        for tick in ticks:
            open_time_ns = tick.time_ns - tick.time_ns % self._size_ns
            if open_time_ns < self.known_from_ns:
                self.too_late_count += 1
                continue
            bar = self._bars.get(open_time_ns)
            self._bars[open_time_ns] = changed[open_time_ns] = (
                self._begun(open_time_ns, tick) if bar is None else _joined(bar, tick)
            )
            if bar is None and len(self._bars) > KEPT_BARS:
                self._forget_oldest()
            self._pass(tick.time_ns, changed)
        return [changed[open_time_ns] for open_time_ns in sorted(changed)]

    def advance(self, market_time_ns: int) -> list[Bar]:
        """Tells how far market time has come without a trade; returns the bars that this closes, oldest first."""
        changed: dict[int, Bar] = {}
        self._pass(market_time_ns, changed)
        return [changed[open_time_ns] for open_time_ns in sorted(changed)]

    def _begun(self, open_time_ns: int, tick: Tick) -> Bar:
        closes_ns = open_time_ns + self._size_ns + self._lateness_ns
        closed = closes_ns <= self.market_time_ns
        if not closed:
            self._next_close_ns = min(self._next_close_ns, closes_ns)
        return Bar(
            open_time_ns=open_time_ns,
            open=tick.price,
            high=tick.price,
            low=tick.price,
            close=tick.price,
            volume=tick.quantity,
            trade_count=1,
            closed=closed,
            revision=1,
            first=(tick.time_ns, tick.sequence),
            last=(tick.time_ns, tick.sequence),
        )

    def _pass(self, market_time_ns: int, changed: dict[int, Bar]) -> None:
        """Lets market time come to a moment, which may close bars."""
        self.market_time_ns = max(self.market_time_ns, market_time_ns)
        if self.market_time_ns < self._next_close_ns:
            return
        for bar in [bar for bar in self._bars.values() if not bar.closed]:
            if bar.open_time_ns + self._size_ns + self._lateness_ns <= self.market_time_ns:
                self._bars[bar.open_time_ns] = changed[bar.open_time_ns] = bar._replace(closed=True)
        self._next_close_ns = self._earliest_close_ns()

    def _earliest_close_ns(self) -> int:
        """When the next bar is to be closed; the end of time if none is open."""
        ends = (bar.open_time_ns + self._size_ns + self._lateness_ns for bar in self._bars.values() if not bar.closed)
        return min(ends, default=TIME_MAX_NS)

    def _forget_oldest(self) -> None:
        oldest_ns = min(self._bars)
        del self._bars[oldest_ns]
        self.known_from_ns = oldest_ns + self._size_ns


def _joined(bar: Bar, tick: Tick) -> Bar:
    """The bar with one more trade."""
    moment = (tick.time_ns, tick.sequence)
    is_first, is_last = moment < bar.first, moment > bar.last
    return Bar(
        open_time_ns=bar.open_time_ns,
        open=tick.price if is_first else bar.open,
        high=max(bar.high, tick.price),
        low=min(bar.low, tick.price),
        close=tick.price if is_last else bar.close,
        volume=bar.volume + tick.quantity,
        trade_count=bar.trade_count + 1,
        closed=bar.closed,
        revision=bar.revision + 1 if bar.closed else bar.revision,
        first=moment if is_first else bar.first,
        last=moment if is_last else bar.last,
    )
