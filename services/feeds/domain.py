"""Feeds, and what they bring: instruments, ticks and books.

Times of ticks and books are nanoseconds since 1970, their prices and quantities doubles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from libs.errors import Exhausted, Invalid, NotAllowed, NotFound


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


@dataclass(frozen=True, slots=True)
class SimulatedSource:
    """The simulated market: the same seed makes the same market."""

    seed: int
    trades_per_second: float


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """A file of recorded trades. Speed 1 plays in real time, 0 as fast as the readers can take it."""

    file: str
    instrument: Instrument
    speed: float


Source = SimulatedSource | ReplaySource


class FeedState(Enum):
    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One source of ticks and what it brings. The count and the market time are at most a second behind."""

    feed_id: UUID
    source: Source
    instrument_ids: tuple[str, ...]
    state: FeedState = FeedState.RUNNING
    failure: str = ""
    tick_count: int = 0
    market_time: datetime | None = None
    create_time: datetime


EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING_PLAYED = -1
"""The position of a source of which nothing was played yet, where positions are simulated times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far the stream of an instrument has come, as it was last noted.

    The newest epoch granted is `epoch`; what else is noted held under `position_epoch`. Position is the source's own
    measure of what was played: simulated nanoseconds, or the number of trades of a file.
    """

    instrument_id: str
    epoch: int
    position_epoch: int
    sequence: int
    position: int
    offset_ns: int
    """Market time less simulated time; 0 for files."""
    market_time_ns: int
    """The newest that was told, by whichever feed. It never goes back."""


class Instant(NamedTuple):
    """One moment on two clocks: the wall's, which may be set, and a steady one, which stands while a machine sleeps."""

    wall_ns: int
    steady_ns: int


class FeedNotFound(NotFound):
    """No feed has this id."""

    reason = "FEED_NOT_FOUND"


class InstrumentTaken(NotAllowed):
    """Another running feed brings this instrument."""

    reason = "INSTRUMENT_TAKEN"


class TooManyFeeds(Exhausted):
    """As many feeds run as may at once."""

    reason = "TOO_MANY_FEEDS"


class RecordingTooOld(NotAllowed):
    """The file's first trade is not after the instrument's market time, which never goes back."""

    reason = "RECORDING_TOO_OLD"

    def __init__(self, source: ReplaySource, first_time_ns: int, market_time_ns: int) -> None:
        instrument_id = source.instrument.instrument_id
        first, reached = time_of(first_time_ns).isoformat(), time_of(market_time_ns).isoformat()
        super().__init__(
            f"{source.file} begins at {first}, and {instrument_id} has come to {reached}: play it as another instrument",
            instrument_id=instrument_id,
            first_trade_time=first,
            market_time=reached,
        )


def time_of(time_ns: int) -> datetime:
    return EPOCH_START + timedelta(microseconds=time_ns // 1_000)


class ReplayFileInvalid(Invalid):
    """The file is not in the replay folder, or is not a file of trades; `problems` says what is wrong where."""

    reason = "REPLAY_FILE_INVALID"

    def __init__(self, file: str, problems: Mapping[str, str]) -> None:
        super().__init__({f"replay.file {where}".rstrip(): problem for where, problem in problems.items()}, file=file)
