"""Bars out of ticks: aligned to the clock and half-open, so that a tick of the bar's end belongs to the next one.

These are bars of the ticks at hand alone; the store joins them to what it has (candle_store.merge_bars). Open and close are
the prices of the first and last tick by (time, sequence), whatever the order of arrival. A bar without a trade does not exist.
"""

from typing import NamedTuple

import numpy as np

from services.marketdata.columns import SECOND_NS, Flags, Floats, Integers, Ticks


class Bars(NamedTuple):
    """Bars of one instrument and size in columns, oldest first; first and last are the ticks of open and close."""

    open_seconds: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    trade_count: Integers
    first_time_ns: Integers
    first_sequence: Integers
    last_time_ns: Integers
    last_sequence: Integers

    @property
    def number(self) -> int:
        return len(self.open_seconds)

    def where(self, wanted: Flags) -> "Bars":
        """Those of the bars."""
        return Bars._make(column[wanted] for column in self)


def bars_of(ticks: Ticks, seconds: int) -> Bars:
    """The bars of these ticks, which are one at least; each is so many seconds long."""
    # By time, and ticks of one moment by their sequences, in which they come.
    order = np.lexsort((ticks.sequence, ticks.time_ns))
    time_ns, sequence = ticks.time_ns[order], ticks.sequence[order]
    price, quantity = ticks.price[order], ticks.quantity[order]
    opens = time_ns // (seconds * SECOND_NS)
    first = np.flatnonzero(np.diff(opens, prepend=opens[0] - 1))
    last = np.append(first[1:], len(opens)) - 1
    return Bars(
        open_seconds=opens[first] * seconds,
        open=price[first],
        high=np.maximum.reduceat(price, first),
        low=np.minimum.reduceat(price, first),
        close=price[last],
        volume=np.add.reduceat(quantity, first),
        trade_count=last - first + 1,
        first_time_ns=time_ns[first],
        first_sequence=sequence[first],
        last_time_ns=time_ns[last],
        last_sequence=sequence[last],
    )
