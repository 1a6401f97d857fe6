"""Bars out of ticks: aligned to the clock and half-open, so that a tick of the bar's end belongs to the next one.

These are bars of the ticks at hand alone; the store joins them to what it has (candle_store.merge_bars). Open and close are
the prices of the first and last tick by (time, place, sequence), whatever the order of arrival: the place is the number that the
venue gave the trade, as a trade that was fetched later has a higher sequence than those that came live. Where ids are no
numbers it is the sequence. A bar without a trade does not exist.
"""

from typing import NamedTuple

import numpy as np

from services.marketdata.columns import SECOND_NS, Flags, Floats, Integers, Ticks

NUMBER_DIGITS_MAX = 18
"""Of a trade's id: so many are less than what 64 bits hold."""


class Bars(NamedTuple):
    """Bars of one instrument and size in columns, oldest first; first and last are the ticks of open and close.

    `first_sequence` and `last_sequence` are no sequences but places among ticks of one moment, as places_of() gives them: the
    trade's number at its venue where its id is a number, else its sequence. They have the names of the database's columns,
    which held sequences once and of bars from before still do; a new name would stop replicas of the release before.
    """

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
    if (np.diff(ticks.time_ns) <= 0).any():
        order = np.lexsort((ticks.sequence, places_of(ticks), ticks.time_ns))
        ticks = Ticks._make(column[order] for column in ticks)
    time_ns, price, quantity = ticks.time_ns, ticks.price, ticks.quantity
    opens = time_ns // (seconds * SECOND_NS)
    first = np.flatnonzero(np.diff(opens, prepend=opens[0] - 1))
    last = np.append(first[1:], len(opens)) - 1
    # The ids of the others are not looked into: to read them takes as long as all else here.
    first_place, last_place = (places_of(Ticks._make(column[at] for column in ticks)) for at in (first, last))
    return Bars(
        open_seconds=opens[first] * seconds,
        open=price[first],
        high=np.maximum.reduceat(price, first),
        low=np.minimum.reduceat(price, first),
        close=price[last],
        volume=np.add.reduceat(quantity, first),
        trade_count=last - first + 1,
        first_time_ns=time_ns[first],
        first_sequence=first_place,
        last_time_ns=time_ns[last],
        last_sequence=last_place,
    )


def places_of(ticks: Ticks) -> Integers:
    """Among ticks of one moment. As PLACE of tick_store says it."""
    digits = ticks.trade_id.view(np.uint8).reshape(ticks.number, -1) - ord("0")
    if digits.shape[1] <= NUMBER_DIGITS_MAX and (digits <= 9).all():
        # All are numbers of one length.
        return digits.astype(np.int64) @ 10 ** np.arange(digits.shape[1])[::-1]
    is_number = np.char.isdigit(ticks.trade_id) & (np.char.str_len(ticks.trade_id) <= NUMBER_DIGITS_MAX)
    places = ticks.sequence.copy()
    places[is_number] = ticks.trade_id[is_number].astype(np.int64)
    return places
