"""What corporate actions make of the prices and volumes from before them.

- A split of n new shares for o old ones: what is before the ex date has its prices multiplied by o / n and its volume by n / o.
- Cash dividends of one ex date, d together: what is before it has its prices multiplied by 1 - d / c, where c is the last close
  before the ex date. So Yahoo Finance reckons its adjusted close, by CRSP's standards as it says ("What is the adjusted close?"
  in its help): 0.08 after a close of 24.96 make 1 - 0.08 / 24.96 = 0.9968. Across the ex date, adjusted prices return what a
  share does whose dividend buys more of it at c - d. Where shares were split after that close, on the ex date or before it, c
  is the close of as much as one new share.
- Of several ex dates the factors are multiplied: a bar has the product of all that come after its open.

The factors are made once for a request, of corporate actions and closes, and then applied to columns.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from libs.bar_sizes import EPOCH, SECOND
from services.marketdata.columns import Flags, Floats, Integers
from services.marketdata.domain import CashDividend, DividendNotBelowClose, Split


class Columns(NamedTuple):
    """Bars of one instrument in columns."""

    open_seconds: Integers
    end_seconds: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


class Factors(NamedTuple):
    """What prices and volumes are multiplied by: before the first ex date, then from each on; from the last on by 1."""

    ex_seconds: Integers
    """When the ex dates begin, in their order."""
    price: Floats
    volume: Floats


class Close(NamedTuple):
    """The last close before an ex date, and when its bar opened."""

    open_seconds: int
    price: float


def factors_of(actions: Sequence[tuple[int, Split | CashDividend]], closes: Mapping[int, Close]) -> Factors:
    """Of actions, each with the second at which its ex date begins, and the last closes before these.

    Where nothing is before a dividend it adjusts nothing. Raises DividendNotBelowClose.
    """
    ratios: dict[int, float] = {}
    amounts: dict[int, Decimal] = {}
    for ex_seconds, what in actions:
        if isinstance(what, Split):
            ratios[ex_seconds] = ratios.get(ex_seconds, 1.0) * what.ratio
        else:
            amounts[ex_seconds] = amounts.get(ex_seconds, Decimal()) + what.amount
    ex_seconds = np.array(sorted(ratios.keys() | amounts.keys()), dtype=np.int64)
    price, volume = np.ones(len(ex_seconds) + 1), np.ones(len(ex_seconds) + 1)
    for place, ex in reversed([*enumerate(ex_seconds.tolist())]):
        ratio = ratios.get(ex, 1.0)
        paid = 1.0
        if (close := closes.get(ex)) and ex in amounts:
            since = [each for when, each in ratios.items() if close.open_seconds < when <= ex]
            paid -= paid_part(ex, float(amounts[ex]), close.price / float(np.prod(since)))
        price[place] = price[place + 1] * paid / ratio
        volume[place] = volume[place + 1] * ratio
    return Factors(ex_seconds, price, volume)


def paid_part(ex_seconds: int, amount: float, close: float) -> float:
    """Which part of a share's worth a dividend is. Raises DividendNotBelowClose."""
    if amount >= close:
        ex_time = EPOCH + SECOND * ex_seconds
        raise DividendNotBelowClose(
            f"dividends of {amount:g} are not below the close {close:g} before {ex_time:%Y-%m-%d %H:%M}",
            ex_time=ex_time.isoformat(),
            close=close,
        )
    return amount / close


def multiplied(bars: Columns, factors: Factors) -> Columns:
    """The bars, each as if all of it were of the moment at which it opens."""
    places = np.searchsorted(factors.ex_seconds, bars.open_seconds, side="right")
    price, volume = factors.price[places], factors.volume[places]
    return bars._replace(
        open=bars.open * price,
        high=bars.high * price,
        low=bars.low * price,
        close=bars.close * price,
        volume=bars.volume * volume,
    )


def spanning(bars: Columns, factors: Factors) -> Flags:
    """Which bars hold an ex date's begin, and so are in part before and in part after it."""
    after_open = np.searchsorted(factors.ex_seconds, bars.open_seconds, side="right")
    before_end = np.searchsorted(factors.ex_seconds, bars.end_seconds, side="left")
    return after_open < before_end


def joined(pieces: Columns, firsts: Integers) -> Columns:
    """Bars out of consecutive pieces; firsts are the places at which the pieces of each begin."""
    lasts = np.append(firsts[1:], len(pieces.open_seconds)) - 1
    return Columns(
        open_seconds=pieces.open_seconds[firsts],
        end_seconds=pieces.end_seconds[lasts],
        open=pieces.open[firsts],
        high=np.maximum.reduceat(pieces.high, firsts),
        low=np.minimum.reduceat(pieces.low, firsts),
        close=pieces.close[lasts],
        volume=np.add.reduceat(pieces.volume, firsts),
    )
