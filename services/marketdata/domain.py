"""What an instrument and a candle are, how long bars can be, and why something is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from libs.bar_sizes import BAR_SIZES, BarSize
from libs.errors import AlreadyExists, Conflict, Exhausted, Invalid, NotAllowed, NotFound
from libs.margin import Perpetual, usual_tiers
from libs.money import ZERO

UTC_ZONE = "UTC"


class AssetClass(Enum):
    CRYPTO = "crypto"
    EQUITY = "equity"
    FOREX = "forex"
    PERPETUAL = "perpetual"


class InstrumentState(Enum):
    TRADING = "trading"
    HALTED = "halted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """Something that can be traded; `has_feed` says whether a feed brings it."""

    instrument_id: str
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
    state: InstrumentState
    has_feed: bool
    update_time: datetime | None = None
    calendar: str = ""
    """The MIC of the exchange in whose sessions it trades; none if it trades round the clock."""
    time_zone: str = UTC_ZONE
    perpetual: Perpetual | None = None
    """The terms of a perpetual future, where they are known."""

    @property
    def venue(self) -> str:
        return self.instrument_id.partition(":")[0]

    @property
    def symbol(self) -> str:
        return self.instrument_id.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentFilter:
    """What an instrument must be; whatever is empty may be anything."""

    venue: str = ""
    asset_classes: frozenset[AssetClass] = frozenset()
    base_asset: str = ""
    quote_asset: str = ""
    states: frozenset[InstrumentState] = frozenset()


def put_by_hand(instrument: Instrument, existing: Instrument | None) -> Instrument:
    """What is to be stored where somebody puts this instrument by hand; raises Invalid or InstrumentHasFeed."""
    if existing is not None and existing.has_feed:
        instrument = _with_tiers_put(instrument, existing)
    violations = {
        f"instrument.{name}": "must be above zero"
        for name in ("tick_size", "lot_size")
        if getattr(instrument, name) <= ZERO
    }
    violations |= {
        f"instrument.{name}": "must not be below zero"
        for name in ("minimum_notional", "taker_fee_rate")
        if getattr(instrument, name) < ZERO
    }
    violations |= {f"instrument.{field}": what for field, what in perpetual_violations(instrument).items()}
    if violations:
        raise Invalid(violations)
    return instrument


def _with_tiers_put(instrument: Instrument, existing: Instrument) -> Instrument:
    """One that a feed brings, with what is put of its terms: of it only what its feed does not tell can be put."""
    terms, told = instrument.perpetual, existing.perpetual
    if terms is None or told is None or not (told.tiers_put or told.margin_tiers == usual_tiers(told.leverage_max)):
        raise InstrumentHasFeed(
            "a feed brings this instrument, so it cannot be put by hand", instrument_id=instrument.instrument_id
        )
    put = replace(
        existing,
        perpetual=replace(
            told, leverage_max=terms.leverage_max, margin_tiers=terms.margin_tiers, tiers_put=terms.tiers_put
        ),
    )
    of_service = {name: getattr(existing, name) for name in ("state", "has_feed", "update_time", "time_zone")}
    if replace(instrument, **of_service) != put:
        raise InstrumentHasFeed(
            "a feed brings this instrument: of its terms leverage_max and margin_tiers can be put, and all else must be as it is",
            instrument_id=instrument.instrument_id,
        )
    return put


def as_announced(instrument: Instrument, existing: Instrument | None) -> Instrument:
    """What is to be stored of an instrument whose feed tells no tiers: those that were put stay."""
    terms, put = instrument.perpetual, existing.perpetual if existing is not None else None
    if terms is None or put is None or not put.tiers_put:
        return instrument
    kept = replace(terms, leverage_max=put.leverage_max, margin_tiers=put.margin_tiers, tiers_put=True)
    return replace(instrument, perpetual=kept)


def perpetual_violations(instrument: Instrument) -> dict[str, str]:
    """What is wrong with the terms of a perpetual future, by field; nothing if nothing is, or there are none."""
    if instrument.perpetual is None:
        return {}
    if instrument.asset_class is not AssetClass.PERPETUAL:
        return {"perpetual": "must be unset: the instrument is no perpetual future"}
    found = instrument.perpetual.violations(instrument.quote_asset)
    return {f"perpetual.{field}": what for field, what in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FundingRate:
    """A settlement of funding: the rate of the interval that ended, and the mark price then."""

    instrument_id: str
    funding_time: datetime
    rate: Decimal
    mark_price: Decimal


BAR_SIZE_USUAL = "1m"
QUARTERS, HOURS, DAYS, WEEKS = (BAR_SIZES[name] for name in ("15m", "1h", "1d", "1w"))
CALENDAR_SIZES = (DAYS, WEEKS)
"""The sizes of which an exchange's calendar says when a bar begins and ends."""


def bar_size(name: str) -> BarSize:
    """The size of this name, one minute without one; the contract's rules let only known names through."""
    return BAR_SIZES[name or BAR_SIZE_USUAL]


class Candle(NamedTuple):
    """A bar as it is told. Its revision rises whenever its values change after it had closed.

    A tuple, since thousands are made for a page: a frozen dataclass takes six times as long.
    """

    open_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    trade_count: int
    revision: int
    closed: bool
    end_time: datetime | None = None
    """Where it is not the open_time and the size's length."""


class GapKind(Enum):
    MISSED = "missed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is not stored of a market: missed at the venue, or lost on the way here, which takes sequences.

    Trades and times are of what is stored on either side, as far as that is known.
    """

    gap_id: UUID
    instrument_id: str
    kind: GapKind
    after_trade_id: str = ""
    before_trade_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    after_sequence: int | None = None
    before_sequence: int | None = None
    found_time: datetime | None = None
    filled_time: datetime | None = None


class Adjustment(Enum):
    """What of corporate actions prices and volumes are adjusted for."""

    RAW = "raw"
    SPLITS = "splits"
    SPLITS_AND_DIVIDENDS = "splits and dividends"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """So many new shares for so many old ones."""

    new_shares: Decimal
    old_shares: Decimal

    @property
    def ratio(self) -> float:
        return float(self.new_shares) / float(self.old_shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class CashDividend:
    """What is paid for each share; with a split of the same date, for each new one."""

    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CorporateAction:
    """Something that changes what a share is worth from its ex date on; known from one time until it is withdrawn."""

    action_id: UUID
    instrument_id: str
    ex_date: date
    what: Split | CashDividend
    known_time: datetime
    withdrawn_time: datetime | None = None
    put_number: int = 0


CORPORATE_ACTIONS_MAX = 2_000
"""Of one instrument, with those that were withdrawn."""


def check_action(action: CorporateAction, instrument: Instrument, now: datetime) -> None:
    """Whether it can be so, whatever else is known; raises Invalid."""
    violations: dict[str, str] = {}
    match action.what:
        case Split(new_shares=new_shares, old_shares=old_shares):
            numbers = {"split.new_shares": new_shares, "split.old_shares": old_shares}
            if new_shares == old_shares:
                violations["action.split.new_shares"] = "must not be as many as old_shares"
        case CashDividend(amount=amount, currency=currency):
            numbers = {"cash_dividend.amount": amount}
            if currency != instrument.quote_asset:
                violations["action.cash_dividend.currency"] = f"must be {instrument.quote_asset}, the quote asset"
    violations |= {f"action.{name}": "must be above zero" for name, value in numbers.items() if value <= ZERO}
    if action.known_time > now:
        violations["action.known_time"] = "must not be in the future"
    if violations:
        raise Invalid(violations)


class ImportState(Enum):
    RECEIVING = "receiving"
    CHECKING = "checking"
    STORING = "storing"
    DONE = "done"
    REFUSED = "refused"

    @property
    def has_ended(self) -> bool:
        return self in (ImportState.DONE, ImportState.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRefusal:
    """Why an import was refused, as it is kept until somebody asks."""

    reason: str
    message: str
    violations: Mapping[str, str]
    wrong_line_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A file of bars of somebody's, and how far it has come."""

    import_id: UUID
    user_id: UUID
    request_id: str
    digest: bytes
    """Of its header: another under the same request_id is refused."""
    instrument_id: str
    bar_size: str
    state: ImportState
    size_bytes: int
    sha256: bytes
    is_sparse: bool = False
    held_bytes: int = 0
    calendar: str = ""
    """Of the instrument, as it was checked."""
    layout: str = ""
    checked_count: int = 0
    read_count: int = 0
    stored_count: int = 0
    inserted_count: int = 0
    changed_count: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    refusal: ImportRefusal | None = None
    create_time: datetime | None = None

    @property
    def so_far(self) -> str:
        """What of it is imported, for people."""
        if not self.stored_count:
            return "nothing was imported"
        return f"{self.stored_count} of {self.read_count} bars were imported before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Which imported bars an operator deletes, and how far that has come."""

    user_id: UUID
    request_id: str
    digest: bytes
    """Of the request: another under the same request_id is refused."""
    instrument_id: str
    size: BarSize
    start: datetime
    end: datetime
    import_number: int = 0
    """Of the series, when it began: whatever is imported since is not meant."""
    deleted_count: int = 0
    remade_count: int = 0
    is_done: bool = False


class ExportFormat(Enum):
    CSV = "csv"
    CSV_GZIP = "csv, gzip"
    PARQUET = "parquet"
    ARROW = "arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Which bars are wanted, and as what file."""

    instrument_id: str
    size: BarSize
    start: datetime | None
    end: datetime | None
    format: ExportFormat


@dataclass(frozen=True, slots=True)
class MarketState:
    """Whether a market trades, and when that next changes as far as is known."""

    is_open: bool
    next_open: datetime | None = None
    next_close: datetime | None = None


ALWAYS_OPEN = MarketState(is_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One time that an exchange trades; the end of each time is excluded."""

    date: date
    open: datetime
    close: datetime
    breaks: Sequence[tuple[datetime, datetime]]
    closes_early: bool


class InstrumentNotFound(NotFound):
    """No instrument has this id."""

    reason = "INSTRUMENT_NOT_FOUND"

    def __init__(self, instrument_id: str) -> None:
        super().__init__(f"no instrument is called {instrument_id}", instrument_id=instrument_id)


class InstrumentHasFeed(NotAllowed):
    """A feed says what this instrument is."""

    reason = "INSTRUMENT_HAS_FEED"


class NoQuote(NotFound):
    """The instrument has had no tick yet."""

    reason = "NO_QUOTE"


class NoBook(NotFound):
    """The instrument has no order book, or has had none yet."""

    reason = "NO_BOOK"


class ActionNotFound(NotFound):
    """No corporate action has this id."""

    reason = "CORPORATE_ACTION_NOT_FOUND"


class SplitExists(AlreadyExists):
    """Another split of the same date was known at the same time."""

    reason = "SPLIT_EXISTS"


class TooManyActions(Exhausted):
    """The instrument has as many corporate actions as it may have."""

    reason = "TOO_MANY_CORPORATE_ACTIONS"


class DividendNotBelowClose(NotAllowed):
    """The bars that are there now make a dividend as large as the price before it."""

    reason = "DIVIDEND_NOT_BELOW_CLOSE"


class BarSpansExDate(NotAllowed):
    """A bar holds prices from before and from after an ex date, and there are no shorter ones that tell which."""

    reason = "BAR_SPANS_EX_DATE"


class CalendarChanged(Conflict):
    """Another calendar says since when the instrument's days and weeks begin."""

    reason = "CALENDAR_CHANGED"


class ImportLinesInvalid(Invalid):
    """Lines of the file are wrong; the violations name the first of them."""

    reason = "IMPORT_LINES_INVALID"


class ImportMalformed(Invalid):
    """The import breaks its own form."""

    reason = "IMPORT_MALFORMED"


class ImportNotFound(NotFound):
    """The caller has no import under this request_id."""

    reason = "IMPORT_NOT_FOUND"

    def __init__(self, request_id: str) -> None:
        super().__init__("you have no import under this request_id", request_id=request_id)


class ImportCanceled(Conflict):
    """Its owner wants no more of it."""

    reason = "IMPORT_CANCELED"


class ImportUnderWay(NotAllowed):
    """A file of the instrument is being checked or stored."""

    reason = "IMPORT_UNDER_WAY"


class DeletionOvertaken(Conflict):
    """Something was imported into the instrument since the deletion began."""

    reason = "DELETION_OVERTAKEN"


class TooManyImports(Exhausted):
    """As many imports as may be are unfinished."""

    reason = "TOO_MANY_IMPORTS"


class TooManyExports(Exhausted):
    """As many exports as may be are under way here."""

    reason = "TOO_MANY_EXPORTS"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_seconds=5.0)


class ExportNotTaken(Conflict):
    """The reader stood still, and its file is there no more."""

    reason = "EXPORT_NOT_TAKEN"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the file was not taken for {seconds:g} seconds and was given up; begin the export anew")


class ImportOvertaken(Conflict):
    """Another call sends the same file."""

    reason = "IMPORT_OVERTAKEN"

    def __init__(self) -> None:
        super().__init__("another call sends the same file; ask how far it has come and call again")


class ReaderTooSlow(Exhausted):
    """The reader takes less than comes, and wants no conflation."""

    reason = "READER_TOO_SLOW"
