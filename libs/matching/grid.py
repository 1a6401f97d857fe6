"""Between what people write and what the matching counts: prices in whole ticks, quantities in whole lots."""

import math
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from libs import money
from libs.matching.orders import Book, Level, Print

COUNT_MAX = 2**63 - 1
"""Ticks and lots fit into 64 bits, so that columns and other languages hold them too."""
_LOT_TOLERANCE = 1e-6
"""A float quantity this close below a whole lot is that lot."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The tick and lot size of one instrument."""

    tick_size: Decimal
    lot_size: Decimal

    def __post_init__(self) -> None:
        if self.tick_size <= 0 or self.lot_size <= 0:
            raise ValueError("tick size and lot size must be above zero")

    def price_ticks(self, price: Decimal) -> int:
        """Raises ValueError for a price that is not a whole number of ticks."""
        return _count(price, self.tick_size)

    def quantity_lots(self, quantity: Decimal) -> int:
        """Raises ValueError for a quantity that is not a whole number of lots."""
        return _count(quantity, self.lot_size)

    def price(self, price_ticks: int) -> Decimal:
        return money.multiply(self.tick_size, Decimal(price_ticks))

    def quantity(self, quantity_lots: int) -> Decimal:
        return money.multiply(self.lot_size, Decimal(quantity_lots))

    def trade(self, time_ns: int, price: float, quantity: float) -> Print:
        """A print of the market.

        A price between ticks goes to the nearest, which never makes it look through a limit that it was not through;
        a part of a lot is left out.
        """
        return Print(time_ns, round(price / float(self.tick_size)), _whole_lots(quantity, float(self.lot_size)))

    def book(self, time_ns: int, bids: list[tuple[float, float]], asks: list[tuple[float, float]]) -> Book:
        """A book made of (price, quantity), best first on both sides.

        Prices between ticks go away from the other side, so that an order never gets a better one than was offered.
        """
        tick, lot = float(self.tick_size), float(self.lot_size)
        return Book(
            time_ns,
            tuple(Level(math.floor(_snapped(price / tick)), _whole_lots(quantity, lot)) for price, quantity in bids),
            tuple(Level(math.ceil(_snapped(price / tick)), _whole_lots(quantity, lot)) for price, quantity in asks),
        )


def fee(price: Decimal, quantity: Decimal, rate: Decimal) -> Decimal:
    """The venue's fee in the quote asset, rounded up at the 18th digit after the point where it has more."""
    exact = money.multiply(money.multiply(price, quantity), rate)
    return exact.quantize(money.SCALE, rounding=ROUND_UP, context=money.CONTEXT)


def _count(value: Decimal, step: Decimal) -> int:
    count, rest = money.CONTEXT.divmod(value, step)
    if rest:
        raise ValueError(f"{value} is not a multiple of {step}")
    if abs(count) > COUNT_MAX:
        raise ValueError(f"{value} is more than {COUNT_MAX} steps of {step}")
    return int(count)


def _whole_lots(quantity: float, lot_size: float) -> int:
    return math.floor(quantity / lot_size + _LOT_TOLERANCE)


def _snapped(ticks: float) -> float:
    """A whole number where float division only just missed it."""
    nearest = round(ticks)
    return nearest if abs(ticks - nearest) < _LOT_TOLERANCE else ticks
