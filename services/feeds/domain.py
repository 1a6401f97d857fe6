"""Feeds, and what they bring: instruments, ticks and books.

Times of ticks and books are nanoseconds since 1970, their prices and quantities doubles.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from libs.bar_sizes import BAR_SIZES
from libs.errors import Exhausted, Invalid, NotAllowed, NotFound, Unavailable
from libs.margin import FUNDING_INTERVAL_SECONDS, Perpetual
from libs.native import PERPETUAL


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
    is_trading: bool = True
    perpetual: Perpetual | None = None
    """The terms of a linear perpetual future, where they are known."""

    @property
    def instrument_id(self) -> str:
        return f"{self.venue}:{self.symbol}"


class Tick(NamedTuple):
    """One trade at a venue."""

    time_ns: int
    price: float
    quantity: float
    aggressor: Aggressor | None
    """None where the venue does not say."""
    trade_id: str


class BookLevel(NamedTuple):
    price: float
    quantity: float


class Mark(NamedTuple):
    """What a perpetual future is valued at."""

    time_ns: int
    mark_price: float
    index_price: float
    predicted_funding_rate: float
    next_funding_ns: int


class Settlement(NamedTuple):
    """What funding of a perpetual future was settled at."""

    instrument_id: str
    funding_ns: int
    rate: Decimal
    mark_price: Decimal


class Book(NamedTuple):
    """The best of an order book at one moment, best first on both sides."""

    time_ns: int
    bids: tuple[BookLevel, ...]
    asks: tuple[BookLevel, ...]
    tells_time: bool = False
    """Whether no tick at or before its time will still come; venues tell books and trades apart from each other."""
    mark: Mark | None = None
    """Where what is traded is a simulated perpetual future, and the book tells the time; venues tell marks by themselves."""


class Moment(NamedTuple):
    """How far a market's time has come while nothing traded: no tick at or before it will still come."""

    time_ns: int


class Missed(NamedTuple):
    """Trades between two others that could not be brought before the second of them.

    Ids are empty, and times 0, where they are not known.
    """

    after_trade_id: str
    before_trade_id: str
    start_ns: int
    end_ns: int


class Backfilled(NamedTuple):
    """Ticks brought after they had been missed, BATCH_TICKS_MAX at most; `filled` tells of the last that all are there."""

    ticks: tuple[Tick, ...]
    filled: Missed | None

    @property
    def time_ns(self) -> int:
        return self.ticks[-1].time_ns if self.ticks else 0


class Bar(NamedTuple):
    """What was traded within some time, as a venue counts it."""

    open_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    trade_count: int
    """0 where the venue does not say."""


SECOND_NS = 1_000_000_000
MINUTE_NS, HOUR_NS, DAY_NS = 60 * SECOND_NS, 3_600 * SECOND_NS, 86_400 * SECOND_NS
INSTRUMENT_BYTES_MIN = 256 * 1024
"""Of Redis, for an instrument that runs: several of the largest batches, and minutes of a market of one trade a second."""
HISTORY_BAR_SIZE = BAR_SIZES["1m"]
"""Of what a feed brings by itself."""

Event = Tick | Book | Moment | Mark | Missed | Backfilled
"""What a line tells, in its order."""


@dataclass(frozen=True, slots=True)
class SimulatedSource:
    """The simulated market: the same seed makes the same market."""

    seed: int
    trades_per_second: float
    funding_interval_seconds: int = FUNDING_INTERVAL_SECONDS


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file of recorded trades, and what they are of."""

    file: str
    instrument: Instrument


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """Files played as one market. Speed 1 plays in real time, 0 as fast as the readers can take it."""

    files: tuple[RecordedFile, ...]
    speed: float

    @property
    def instruments(self) -> list[Instrument]:
        """What they are of, each once, as its first file says."""
        found: dict[str, Instrument] = {}
        for each in self.files:
            found.setdefault(each.instrument.instrument_id, each.instrument)
        return list(found.values())

    def files_of(self, instrument_id: str) -> list[str]:
        return [each.file for each in self.files if each.instrument.instrument_id == instrument_id]


def segment_of(venue: str, symbol: str) -> str:
    """Where at a venue an instrument is traded: its spot market is named as the venue, its perpetual futures with the suffix.

    They are asked at other addresses, and count requests apart from each other.
    """
    return f"{venue}{PERPETUAL}" if symbol.endswith(PERPETUAL) else venue


@dataclass(frozen=True, slots=True)
class ExchangeSource:
    """What a venue's own servers tell of some of its instruments of one segment, with or without their books."""

    venue: str
    symbols: tuple[str, ...]
    has_book: bool
    history_days: int = 0
    """Of bars, and of settlements of funding, that are brought from before its start; 0: it brings no bars by itself."""

    @property
    def segment(self) -> str:
        return segment_of(self.venue, self.symbols[0])


Source = SimulatedSource | ReplaySource | ExchangeSource


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
    measure of what was played: simulated nanoseconds, the number of trades of a file, or the time of a venue's last trade.
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
    trade_id: str = ""
    """The venue's id of the last trade; only where a venue's trades are brought."""
    redis_run: str = ""
    """Which run of Redis held the stream: a later one may have lost its end."""
    is_torn: bool = False
    """Whether it did, or may have: found when a feed is taken over, never noted."""


class BackfillState(Enum):
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """An order to bring trades of the past: those after one and before another, by id where ids are known, else by time.

    With a size it is bars: those that lie whole between the two times.
    """

    backfill_id: UUID
    instrument_id: str
    bounds: Missed
    state: BackfillState = BackfillState.RUNNING
    failure: str = ""
    reached_trade_id: str
    """What was brought so far goes up to here."""
    reached_ns: int
    """Of bars: the end of the last, or of what the venue has none of."""
    tick_count: int = 0
    create_time: datetime
    bar_size: str = ""
    bar_count: int = 0
    from_ns: int = 0
    """When the first bar opens that the venue told; 0 until one was."""
    due_ns: int = 0
    """No bar is to be asked for before; 0 for trades."""

    def wants(self, trade: Tick, *, ids_follow: bool) -> bool:
        """Whether a trade of the record after what was reached is within the bounds."""
        if ids_follow and self.bounds.before_trade_id:
            return int(trade.trade_id) < int(self.bounds.before_trade_id)
        return trade.time_ns < self.bounds.end_ns

    @property
    def has_all_ids(self) -> bool:
        """Whether no id is left between what was reached and the trade that ends it, where ids follow on each other."""
        before_id, reached_id = self.bounds.before_trade_id, self.reached_trade_id
        return bool(before_id and reached_id) and int(reached_id) + 1 >= int(before_id)

    def after(self, trades: Sequence[Tick], *, has_ended: bool) -> "Backfill":
        """As it stands once these have been brought."""
        return replace(
            self,
            state=BackfillState.FINISHED if has_ended else self.state,
            reached_trade_id=trades[-1].trade_id if trades else self.reached_trade_id,
            reached_ns=trades[-1].time_ns if trades else self.reached_ns,
            tick_count=self.tick_count + len(trades),
        )

    def after_bars(self, told: Sequence[Bar], bar_count: int, reached_ns: int, settle_ns: int) -> "Backfill":
        """As it stands once these were told and so many of them brought; a bar may be asked for `settle_ns` after its end."""
        next_end_ns = reached_ns + BAR_SIZES[self.bar_size].length_ns
        return replace(
            self,
            state=BackfillState.FINISHED if next_end_ns > self.bounds.end_ns else self.state,
            reached_ns=reached_ns,
            bar_count=self.bar_count + bar_count,
            from_ns=self.from_ns or (told[0].open_ns if told else 0),
            due_ns=next_end_ns + settle_ns,
        )


def backfill_of(
    backfill_id: UUID, instrument_id: str, bounds: Missed, now: datetime, *, bar_size: str = ""
) -> Backfill:
    """An order that nothing was brought of yet. The bounds of bars are made to be where bars open."""
    due_ns = 0
    if bar_size:
        size = BAR_SIZES[bar_size]
        bounds = Missed("", "", size.at_or_after(bounds.start_ns), size.at_or_before(bounds.end_ns))
        due_ns = bounds.start_ns + size.length_ns
    return Backfill(
        backfill_id=backfill_id,
        instrument_id=instrument_id,
        bounds=bounds,
        reached_trade_id=bounds.after_trade_id,
        reached_ns=bounds.start_ns,
        create_time=now,
        bar_size=bar_size,
        due_ns=due_ns,
    )


def history_of(backfill_id: UUID, instrument_id: str, start_ns: int, last_ns: int, now: datetime) -> Backfill:
    """An order of the bars that a feed brings by itself: from the one that holds a moment to the one that holds another."""
    size = HISTORY_BAR_SIZE
    bounds = Missed("", "", size.at_or_before(start_ns), size.at_or_before(last_ns) + size.length_ns)
    return backfill_of(backfill_id, instrument_id, bounds, now, bar_size=size.name)


class MarketDataAway(Exception):
    """Nobody takes bars now; some time somebody will."""


class BarsRefused(Exception):
    """marketdata takes what the venue tells for wrong."""


class Instant(NamedTuple):
    """One moment on two clocks: the wall's, which may be set, and a steady one, which stands while a machine sleeps."""

    wall_ns: int
    steady_ns: int


Clock = Callable[[], Instant]


def clock() -> Instant:
    """The machine's clocks."""
    return Instant(time.time_ns(), time.monotonic_ns())


class FeedNotFound(NotFound):
    """No feed has this id."""

    reason = "FEED_NOT_FOUND"


class InstrumentTaken(NotAllowed):
    """Another running feed brings this instrument."""

    reason = "INSTRUMENT_TAKEN"


class VenueNotFound(NotFound):
    """No venue of this name can be connected to."""

    reason = "VENUE_NOT_FOUND"

    def __init__(self, venue: str) -> None:
        super().__init__(f"there is no venue {venue} that tells its trades", venue=venue)


class BackfillUnavailable(NotAllowed):
    """No running feed brings the instrument from a venue that has its trades on record."""

    reason = "BACKFILL_UNAVAILABLE"


class TooManyBackfills(Exhausted):
    """As many backfills of the instrument wait as may."""

    reason = "TOO_MANY_BACKFILLS"


class SymbolsNotFound(Invalid):
    """The venue does not list some of the symbols; the violations name them."""

    reason = "SYMBOLS_NOT_FOUND"


class VenueUnavailable(Unavailable):
    """The venue does not say what it lists."""

    reason = "VENUE_UNAVAILABLE"


class TooManyFeeds(Exhausted):
    """As many feeds run as may at once."""

    reason = "TOO_MANY_FEEDS"


class TooManyInstruments(Exhausted):
    """Running feeds bring as many instruments as there is room for."""

    reason = "TOO_MANY_INSTRUMENTS"


class RecordingTooOld(NotAllowed):
    """The file's first trade is not after the instrument's market time, which never goes back."""

    reason = "RECORDING_TOO_OLD"

    def __init__(self, source: ReplaySource, instrument_id: str, first_time_ns: int, market_time_ns: int) -> None:
        first, reached = time_of(first_time_ns).isoformat(), time_of(market_time_ns).isoformat()
        files = ", ".join(source.files_of(instrument_id))
        super().__init__(
            f"{files} begins at {first}, and {instrument_id} has come to {reached}: play it as another instrument",
            instrument_id=instrument_id,
            first_trade_time=first,
            market_time=reached,
        )


def time_of(time_ns: int) -> datetime:
    return EPOCH_START + timedelta(microseconds=time_ns // 1_000)


def ns_of(time: datetime) -> int:
    return (time - EPOCH_START) // timedelta(microseconds=1) * 1_000


class ReplayFileInvalid(Invalid):
    """The file is not in the replay folder, or is not a file of trades; `problems` says what is wrong where."""

    reason = "REPLAY_FILE_INVALID"

    def __init__(self, file: str, problems: Mapping[str, str]) -> None:
        super().__init__(
            {f"replay.files[{file}] {where}".rstrip(): problem for where, problem in problems.items()}, file=file
        )
