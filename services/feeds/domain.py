"""What a source brings: instruments, ticks and books. Times are nanoseconds since 1970, prices and quantities doubles."""

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import NamedTuple


class AssetClass(Enum):
    CRYPTO = "crypto"
    EQUITY = "equity"
    FOREX = "forex"
    PERPETUAL = "perpetual"


class Aggressor(Enum):
    """Which side of a trade took."""

    BUYER = "buyer"
    SELLER = "seller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    venue: str
    symbol: str
    description: str
    asset_class: AssetClass
    base_asset: str
    quote_asset: str
    tick_size: Decimal
    lot_size: Decimal
    minimum_notional: Decimal
    maker_fee_rate: Decimal
    taker_fee_rate: Decimal
    has_book: bool

    @property
    def instrument_id(self) -> str:
        return f"{self.venue}:{self.symbol}"


class Tick(NamedTuple):
    """One trade at a venue."""

    time_ns: int
    price: float
    quantity: float
    aggressor: Aggressor
    trade_id: str


class BookLevel(NamedTuple):
    price: float
    quantity: float


class Book(NamedTuple):
    """The best of an order book at one moment, best first on both sides."""

    time_ns: int
    bids: tuple[BookLevel, ...]
    asks: tuple[BookLevel, ...]
