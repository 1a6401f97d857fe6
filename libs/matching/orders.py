"""What goes into the matching of one instrument and what comes out: whole ticks, whole lots, nanoseconds since 1970."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class TimeInForce(Enum):
    """The values are the causes a venue names when one of them ends an order."""

    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    order_id: str
    side: Side
    time_in_force: TimeInForce
    remaining_lots: int
    limit_ticks: int | None
    """The worst price accepted; None accepts any and never rests in a book."""
    active_time_ns: int
    """The market time of its decision plus the modelled latency: nothing before it can fill the order."""
    entered: bool = False
    """Whether the market has met it: from then on a limit order rests."""

    def __post_init__(self) -> None:
        if self.remaining_lots <= 0:
            raise ValueError(f"order {self.order_id} has nothing left to trade")
        if self.limit_ticks is None and self.time_in_force is TimeInForce.GTC:
            raise ValueError(f"market order {self.order_id} cannot be good till canceled")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    """The order's time in force demanded that the rest of it end."""

    order_id: str
    cause: TimeInForce
    remaining_lots: int
    time_ns: int


Outcome = Fill | Canceled
