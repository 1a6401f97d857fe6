"""What goes into the matching of one instrument and what comes out: whole ticks, whole lots, nanoseconds since 1970."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class TimeInForce(Enum):
    """What becomes of what cannot trade on entering; an order that ends at a time of its own is GTC with that time."""

    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"


class Trigger(Enum):
    """Which way the last price has to go to reach an order's stop."""

    STOP = "stop"
    """To the stop or a worse price: up for what buys, down for what sells."""
    TAKE_PROFIT = "take_profit"
    """To the stop or a better price: down for what buys, up for what sells."""


class Trail(NamedTuple):
    """How far a stop follows behind the best print: one of the two, above zero."""

    ticks: int | None = None
    basis_points: int | None = None
    """Of a percent of that print, so below 10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    order_id: str
    side: Side
    time_in_force: TimeInForce
    remaining_lots: int
    limit_ticks: int | None
    """The worst price accepted; None is a market order, which never rests in a book."""
    active_time_ns: int
    """The market time of its decision plus the modelled latency: nothing before it can fill or trigger the order. Once
    the stop was reached, or the order was replaced and lost its place, when it may enter."""
    entered: bool = False
    """Whether the market has met it: from then on a limit order rests, and a stop is watched."""
    traded_lots: int = 0
    protection_ticks: int | None = None
    """The worst price a market order accepts; None accepts any."""
    expire_time_ns: int | None = None
    post_only: bool = False
    """Whether it is rejected where it would take on entering."""
    trigger: Trigger | None = None
    stop_ticks: int | None = None
    """What a print has to reach before the order enters; of a trailing stop, where it stands now."""
    trail: Trail | None = None
    trigger_time_ns: int | None = None
    """Market time of the print that reached the stop."""
    ahead_lots: int | None = None
    """What is served before it of those that rest at its price; None where that is not known."""
    group: str | None = None
    """Orders of one group share a quantity: what one of them trades is taken off the others."""

    def __post_init__(self) -> None:
        if self.remaining_lots <= 0:
            raise ValueError(f"order {self.order_id} has nothing left to trade")
        if self.limit_ticks is None and self.time_in_force is TimeInForce.GTC:
            raise ValueError(f"market order {self.order_id} cannot be good till canceled")
        if (self.trigger is None) is not (self.stop_ticks is None):
            raise ValueError(f"order {self.order_id} needs both a trigger and a stop, or none")
        if self.trail is not None and (self.trigger is not Trigger.STOP or not _is_distance(self.trail)):
            raise ValueError(f"order {self.order_id} trails by {self.trail}")
        if self.post_only and (self.limit_ticks is None or self.time_in_force is not TimeInForce.GTC):
            raise ValueError(f"order {self.order_id} cannot be post-only, for it does not rest")

    @property
    def waits_for_stop(self) -> bool:
        return self.trigger is not None and self.trigger_time_ns is None

    @property
    def worst_ticks(self) -> int | None:
        """The worst price accepted, by limit or protection; None accepts any."""
        return self.limit_ticks if self.limit_ticks is not None else self.protection_ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A change of an order; what is None stays as it is."""

    quantity_lots: int | None = None
    """What has traded included."""
    limit_ticks: int | None = None
    protection_ticks: int | None = None
    stop_ticks: int | None = None
    trail: Trail | None = None


class Print(NamedTuple):
    """One trade of the market."""

    time_ns: int
    price_ticks: int
    quantity_lots: int


class Level(NamedTuple):
    price_ticks: int
    quantity_lots: int


class Book(NamedTuple):
    """What rests at one moment, best price first on both sides."""

    time_ns: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    order_id: str
    price_ticks: int
    quantity_lots: int
    remaining_lots: int
    """What the order still wants after this fill; with the order's id it names the fill."""
    maker: bool
    """Whether the order rested and was met."""
    time_ns: int


class Cause(Enum):
    """Why the market ended an order. The values are the causes a venue names."""

    IOC = "ioc"
    FOK = "fok"
    PROTECTION = "protection_price"
    """The market went beyond what a market order accepts."""
    GROUP = "group"
    """The others of its group have traded all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    order_id: str
    cause: Cause
    remaining_lots: int
    """What it still wanted; nothing where its group has traded it."""
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The order is post-only and would have taken."""

    order_id: str
    remaining_lots: int
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    order_id: str
    remaining_lots: int
    time_ns: int
    """When it was to expire, not when that was noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    order_id: str
    stop_ticks: int
    """Where the stop stood."""
    time_ns: int


Outcome = Fill | Canceled | Rejected | Expired | Triggered


def _is_distance(trail: Trail) -> bool:
    if trail.basis_points is None:
        return trail.ticks is not None and trail.ticks > 0
    return trail.ticks is None and 0 < trail.basis_points < 10_000
