"""What the venues beyond the network take natively: facts of each, alike for who accepts an order and for who sends it.

What a venue has no such order for is refused, or waits here for its price and is sent as what it becomes then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from enum import Enum
from typing import Any

from libs.money import ZERO, is_multiple

PERPETUAL = "-PERP"
"""Ends the id of a perpetual future, so that it is another instrument than what it is a future of."""


class OrderType(Enum):
    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"
    TRAILING_STOP = "trailing_stop"
    TAKE_PROFIT = "take_profit"
    """One that becomes a market order."""
    TAKE_PROFIT_LIMIT = "take_profit_limit"


class TimeInForce(Enum):
    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"
    DAY = "day"
    GTD = "gtd"


AS_LIMIT: Mapping[OrderType, OrderType] = {
    OrderType.MARKET: OrderType.LIMIT,
    OrderType.STOP: OrderType.STOP_LIMIT,
    OrderType.TAKE_PROFIT: OrderType.TAKE_PROFIT_LIMIT,
}
"""What an order is at a venue that knows no protection price: it must not cost more than was set aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """What one venue takes natively."""

    venue: str
    takes: frozenset[tuple[OrderType, TimeInForce]]
    post_only: bool
    trails_by_amount: bool
    trails_by_fraction: bool
    trail_fraction_max: Decimal = Decimal(1)
    trail_fraction_step: Decimal | None = None
    """It trails by a whole number of these, and by one at least; None where it trails by any fraction."""
    changes: frozenset[OrderType] = frozenset()
    """Orders of these types that rest there can be changed."""
    changes_traded: bool = False
    """Also once they have traded in part."""

    def lacks(
        self,
        order_type: OrderType,
        time_in_force: TimeInForce,
        *,
        post_only: bool = False,
        trail_amount: Decimal | None = None,
        trail_fraction: Decimal | None = None,
    ) -> str:
        """What the venue has none of, in words, where it does not take such an order; empty if it does."""
        if (order_type, time_in_force) not in self.takes:
            return f"{order_type.value} orders that are {time_in_force.value}"
        if post_only and not (
            self.post_only and order_type is OrderType.LIMIT and time_in_force is not TimeInForce.IOC
        ):
            return "such orders that may only rest"
        if trail_amount is not None and not self.trails_by_amount:
            return "stops that trail by an amount"
        if trail_fraction is not None and not self._trails_by(trail_fraction):
            return "stops that trail by such a fraction"
        return ""

    def changes_no(self, order_type: OrderType, *, has_traded: bool) -> str:
        """Of what the venue changes none, in words, where it does not change such an order; empty if it does."""
        if order_type not in self.changes:
            return f"{order_type.value} orders"
        return "order that has traded" if has_traded and not self.changes_traded else ""

    def _trails_by(self, fraction: Decimal) -> bool:
        step = self.trail_fraction_step
        fits = step is None or is_multiple(fraction, step)
        return self.trails_by_fraction and fits and ZERO < fraction <= self.trail_fraction_max

    @property
    def facts(self) -> dict[str, Any]:
        """All of this by name, for what tells more of a venue."""
        return {field.name: getattr(self, field.name) for field in fields(Native)}


def at_venue(
    order_type: OrderType, time_in_force: TimeInForce, *, is_bounded: bool, expires: bool
) -> tuple[OrderType, TimeInForce]:
    """As what a venue is sent an order that takes no price beyond a bound, and that ends at a time of its own."""
    order_type = AS_LIMIT.get(order_type, order_type) if is_bounded else order_type
    if time_in_force is TimeInForce.DAY and expires:
        time_in_force = TimeInForce.GTD
    return order_type, time_in_force


GTC, IOC, FOK, GTD = TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTD
BASIS_POINT = Decimal("0.0001")
RESTING = tuple(order_type for order_type in OrderType if order_type is not OrderType.MARKET)

BINANCE = Native(
    venue="BINANCE",
    takes=frozenset(
        {
            (OrderType.MARKET, IOC),
            (OrderType.LIMIT, GTC),
            (OrderType.LIMIT, IOC),
            (OrderType.LIMIT, FOK),
            (OrderType.STOP, GTC),
            (OrderType.STOP_LIMIT, GTC),
            (OrderType.TRAILING_STOP, GTC),
            (OrderType.TAKE_PROFIT, GTC),
            (OrderType.TAKE_PROFIT_LIMIT, GTC),
        }
    ),
    post_only=True,
    trails_by_amount=False,
    trails_by_fraction=True,
    trail_fraction_max=Decimal("0.2"),
    trail_fraction_step=BASIS_POINT,
    # By another order in its place: as much again could trade before the cancel.
    changes=frozenset(RESTING),
)
BINANCE_PERPETUALS = Native(
    venue="BINANCE",
    takes=frozenset(
        {
            (OrderType.MARKET, IOC),
            (OrderType.LIMIT, IOC),
            (OrderType.LIMIT, FOK),
            *((order_type, GTC) for order_type in RESTING),
        }
    ),
    post_only=True,
    trails_by_amount=False,
    trails_by_fraction=True,
    trail_fraction_max=Decimal("0.1"),
    trail_fraction_step=10 * BASIS_POINT,
    changes=frozenset({OrderType.LIMIT}),
    changes_traded=True,
)
KRAKEN = Native(
    venue="KRAKEN",
    takes=frozenset(
        {(OrderType.MARKET, IOC), (OrderType.LIMIT, IOC), *((order_type, GTC) for order_type in RESTING)}
        | {(order_type, GTD) for order_type in RESTING}
    ),
    post_only=True,
    trails_by_amount=True,
    trails_by_fraction=True,
    changes=frozenset(RESTING) - {OrderType.TRAILING_STOP},
    changes_traded=True,
)
KNOWN: Mapping[tuple[str, bool], Native] = {
    ("BINANCE", False): BINANCE,
    ("BINANCE", True): BINANCE_PERPETUALS,
    ("KRAKEN", False): KRAKEN,
}


def of(venue: str, *, perpetuals: bool = False) -> Native:
    """Of the venue, in its spot market or with its perpetual futures."""
    return KNOWN.get((venue, perpetuals)) or usual(venue)


def usual(venue: str) -> Native:
    """What every venue has: all that is known of one that was not looked into."""
    return Native(
        venue=venue,
        takes=frozenset({(OrderType.MARKET, IOC), (OrderType.LIMIT, GTC), (OrderType.LIMIT, IOC)}),
        post_only=False,
        trails_by_amount=False,
        trails_by_fraction=False,
    )
