"""Venues, as ccxt speaks to them: instruments, trades and books as they come, and what is on record."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from libs.bar_sizes import BAR_SIZES, BarSize
from libs.bus.budget import Budget, Use
from libs.margin import FUNDING_INTERVAL_SECONDS, Perpetual
from libs.native import PERPETUAL
from libs.venues import below, limits_from, retry_seconds
from services.feeds.domain import (
    EPOCH_START,
    Aggressor,
    AssetClass,
    Bar,
    Book,
    BookLevel,
    Clock,
    Instrument,
    Mark,
    Settlement,
    Tick,
    VenueNotFound,
    clock,
)

PAGE_TRADES = 1_000
"""Asked for at once; also what venues give at most."""
PAGE_BARS = 1_000
"""The same of bars; Kraken gives 720."""
BOOK_LEVELS = 20
REQUEST_SECONDS = 10.0
BUDGET_WAIT_SECONDS = 60.0
"""Data waits for the venue's budget so long; then the request has failed."""
KEEPALIVE_SECONDS = 5.0
"""A connection that answered none of two pings is dead."""
TRADES_HELD = 10_000
"""Of one instrument, between two turns of the event loop."""
CLOSE_SECONDS = 5.0
NUMBERS_MAX = 10**18
"""What a precision, a limit, a price or a quantity may be; anything else is not understood."""
MICROSECOND_NS, MILLISECOND_NS = 1_000, 1_000_000
UNSURE_NS = 1_000 * MILLISECOND_NS
"""The time of a trade in the stream is this near to the one on record."""
LEVERAGE_MAX_USUAL = Decimal(20)
"""Of perpetual futures whose venue tells only those who have a key what they may be levered: it is what Binance lets everybody."""
PAGE_SETTLEMENTS = 500
"""Of funding, asked for at once: of a future that is settled every eight hours those of five months."""
BEHIND_NS = 2_000 * MILLISECOND_NS
"""The time by a venue's clock may be so much later than we take it for: some tell whole seconds."""
AHEAD_NS = 5_000 * MILLISECOND_NS
"""A trade that is dated later than this after the venue's time was not made then."""
ROUND_TRIP_NS_MAX = 1_000 * MILLISECOND_NS
CLOCK_TRIES = 3
"""A venue that takes longer to say what time it is is asked again so often: in half a round trip lies all that is not known."""
DOUBT_NS = 5_000 * MILLISECOND_NS
"""At most so often a venue is asked what time it is because its trades are dated later."""
TRADE_ID_MAX = 64
UNTRUE_LOG_SECONDS = 60.0
"""So seldom is it logged that a venue tells of trades that cannot be; each is counted."""

TROUBLE_CHARACTERS_MAX = 200
ASSET = re.compile(r"[A-Z0-9._-]{1,16}", re.ASCII)
SYMBOL = re.compile(r"[A-Z0-9._-]{2,32}", re.ASCII)


Told = Mapping[str, Any]
"""What a venue told, with what ccxt made of it around."""


@dataclass(frozen=True, slots=True)
class PerpetualManner:
    """What a venue says of perpetual futures in words of its own: ccxt leaves it out, or makes floats of it."""

    mark_of: Callable[[Told], Mark]
    """Of what its stream of marks tells. Raises for what is none."""
    settlement_of: Callable[[Told], tuple[int, Decimal, Decimal]]
    """When funding was settled, in nanoseconds, the rate and the mark price, as exactly as it is told. Raises for what is none."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a segment of a venue is spoken to, and what its trade ids say."""

    ccxt_id: str
    ids_follow: bool = False
    """Whether an instrument's trades are numbered one by one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    """Of requests that are dearer than ccxt knows, by their path."""
    rest_paths: Mapping[str, str] = field(default_factory=dict)
    """Where those that feeds ask lie below its address, for who sets another one."""
    stream_paths: Mapping[str, str] = field(default_factory=dict)
    by_id: bool = False
    """Whether trades are asked for by the id to begin with; otherwise by time."""
    since: tuple[str, int] | None = None
    """The venue's own parameter for the time to begin at, and its unit in nanoseconds; without it, ccxt's way is taken."""
    time_ns_of: Callable[[Mapping[str, Any]], int] = lambda trade: trade["timestamp"] * MILLISECOND_NS
    """When a trade was made."""
    book_levels: int | None = None
    """How many of a book's levels are asked for; without it, as many as the venue tells unasked."""
    is_told: Callable[[Mapping[str, Any]], bool] = lambda _: True
    """Whether the venue's streams know a market by the name that ccxt has for it."""
    other_bars: frozenset[str] = frozenset()
    """Sizes of which the venue's bars open at other times than those of others, or of which it has none though ccxt knows them."""
    count_at: int | None = None
    """Where in a bar, as the venue tells it, the number of its trades stands; without it, nowhere."""
    pause_seconds: float = 1.0
    """How long the venue is left alone where it was asked too much, and does not say until when."""
    too_much: str = ""
    """Words in which it says so that ccxt does not know."""
    perpetual: PerpetualManner | None = None
    """None where spot markets are asked for."""

    def has(self, market: Told) -> bool:
        """Whether a market of ccxt's is one that can be brought."""
        is_of_kind = market.get("swap") and market.get("linear") if self.perpetual else market.get("spot")
        return bool(is_of_kind) and self.is_told(market)


def kraken_time_ns(trade: Mapping[str, Any]) -> int:
    """In microseconds: finer than the milliseconds of ccxt, and alike in the stream and on record, which has more digits."""
    told = trade["info"]
    if isinstance(told, list):
        return int(Decimal(told[2]) * 1_000_000) * MICROSECOND_NS
    return (datetime.fromisoformat(told["timestamp"]) - EPOCH_START) // timedelta(microseconds=1) * MICROSECOND_NS


def is_told_by_kraken(market: Mapping[str, Any]) -> bool:
    """Streams call assets as REST does but for two. Under a name that is ccxt's own they tell nothing, or of another market."""
    names = {"XBT": "BTC", "XDG": "DOGE"}
    return market["symbol"] == "/".join(names.get(name, name) for name in (market["wsId"] or "").split("/"))


def binance_mark(told: Told) -> Mark:
    """The rate is that of the funding to come, by what is known of its interval so far."""
    said = told["info"]
    return Mark(
        int(said["E"]) * MILLISECOND_NS,
        float(said["p"]),
        float(said["i"]),
        float(said["r"]),
        int(said["T"]) * MILLISECOND_NS,
    )


def binance_settlement(told: Told) -> tuple[int, Decimal, Decimal]:
    said = told["info"]
    return int(said["fundingTime"]) * MILLISECOND_NS, Decimal(said["fundingRate"]), Decimal(said["markPrice"])


MANNERS: Mapping[str, Manner] = {
    # Aggregate trades: what one taker took at one price is one trade. Their ids can be asked for without a key.
    "BINANCE": Manner(
        "binance",
        ids_follow=True,
        options={
            "defaultType": "spot",
            "fetchMarkets": {"types": ["spot"]},
            "watchTradesForSymbols": {"name": "aggTrade"},
        },
        rest_paths={"public": "/api/v3"},
        stream_paths={"spot": "/ws"},
        by_id=True,
        since=("startTime", MILLISECOND_NS),
        count_at=8,
    ),
    # USDⓈ-M, which are linear. Aggregate trades here too: what one taker took at one price within 100 ms.
    "BINANCE-PERP": Manner(
        "binanceusdm",
        ids_follow=True,
        # Of as many levels as ccxt asks for otherwise, the books of fifty would not be paid for within BUDGET_WAIT_SECONDS.
        options={"watchTradesForSymbols": {"name": "aggTrade"}, "watchOrderBookLimit": 500},
        # Both are not counted with the others: together they may be asked for 500 times in five minutes. With so much taken out of
        # the one bucket nobody comes to that, who takes all it holds and all it fills with in that time.
        costs={"fundingRate": 16.0, "fundingInfo": 16.0},
        rest_paths={"fapiPublic": "/fapi/v1"},
        stream_paths={"future": "/ws"},
        by_id=True,
        since=("startTime", MILLISECOND_NS),
        # It has no bars of a second.
        other_bars=frozenset({"1s"}),
        count_at=8,
        perpetual=PerpetualManner(binance_mark, binance_settlement),
    ),
    "KRAKEN": Manner(
        "kraken",
        ids_follow=True,
        rest_paths={"public": ""},
        stream_paths={"public": "", "publicV2": "/v2"},
        since=("since", 1),
        time_ns_of=kraken_time_ns,
        book_levels=25,
        is_told=is_told_by_kraken,
        # Its weeks begin on Thursdays.
        other_bars=frozenset({"1w"}),
        count_at=7,
        # It restricts for a few seconds, and for longer who goes on.
        pause_seconds=15.0,
        too_much="Throttled",
    ),
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a venue's two kinds of server are, instead of where ccxt knows them; empty: there."""

    rest: str = ""
    stream: str = ""


UNTRUE = Counter(
    "tradeloom_feed_untrue_trades", "Trades that cannot be as a venue told them, and were dropped.", ["venue", "reason"]
)

ASKED_NS: ContextVar[int] = ContextVar("asked_ns")
"""When the task's last request was let through to the venue, on the steady clock: before, it waited for the budget."""

log = structlog.get_logger(__name__)

T = TypeVar("T")
Watch = Callable[[Any], Awaitable[Any]]


class VenueTrouble(Exception):
    """The venue did not do what it was asked; another time it may."""


class Known(NamedTuple):
    """What a connection has learnt of its venue: ccxt's markets and currencies, its names by symbol and back, and the clock."""

    markets: Mapping[str, Any]
    currencies: Mapping[str, Any]
    names: Mapping[str, str]
    symbols: Mapping[str, str]
    ahead_ns: int


class UntrueTrade(VenueTrouble):
    """The next trade on record cannot be as it is told; later are those of its page that come after it."""

    def __init__(self, trade_id: int, later: Sequence[Tick]) -> None:
        super().__init__(f"trade {trade_id} cannot be as it is on record")
        self.later = later


class Untrue(Exception):
    """A trade cannot be as it is told: the reason is what of it cannot."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Page:
    """Of the record, the oldest first. At least one of its trades can be, unless it is empty."""

    trades: Sequence[Tick]
    untrue_ids: Sequence[int] = ()
    """Of those that cannot be as they are told, where ids follow."""
    is_full: bool = False

    @property
    def first_id(self) -> int:
        return min([int(self.trades[0].trade_id), *self.untrue_ids])

    @property
    def last_id(self) -> int:
        return max([int(self.trades[-1].trade_id), *self.untrue_ids])

    def is_before(self, trade_id: int) -> bool:
        """Whether it is full and does not go beyond an id."""
        return self.is_full and self.last_id <= trade_id

    def after(self, trade_id: int) -> list[Tick]:
        """The trades after an id, up to one that cannot be. Raises UntrueTrade if that is the first of them."""
        later = [trade for trade in self.trades if int(trade.trade_id) > trade_id]
        untrue_id = min((each for each in self.untrue_ids if each > trade_id), default=None)
        if untrue_id is None:
            return later
        before = [trade for trade in later if int(trade.trade_id) < untrue_id]
        if not before:
            raise UntrueTrade(untrue_id, later)
        return before


class Venue:
    """One connection to a segment of a venue, as `connected` opens it. Every question may end in VenueTrouble."""

    def __init__(self, segment: str, manner: Manner, ccxt: Any, exchange: Any, budget: Budget, now: Clock) -> None:
        self.segment, self.manner, self._now = segment, manner, now
        self.venue = segment.removesuffix(PERPETUAL)
        self._ccxt, self._exchange, self._budget = ccxt, exchange, budget
        self._names: dict[str, str] = {}
        """ccxt's, by symbol."""
        self._symbols: dict[str, str] = {}
        """And back."""
        self._ahead_ns = 0
        """Of the steady clock, so that nobody who sets the wall's changes the time here."""
        self._is_clock_known = self._is_clock_doubtful = False
        self._clock_asked_ns = 0
        self._pongs: dict[str, tuple[int, int]] = {}
        """By connection: the last one by ccxt's clock, which is the wall's, and when it was first seen, on the steady clock."""
        self._untrue_log_at = 0.0

    # What there is.

    async def load(self) -> dict[str, Instrument]:
        """The instruments of the segment, by symbol."""
        await self._ask_time()
        # By load_markets itself whatever is asked or listened to meanwhile would wait for it, and fail with it.
        markets = await self._ask(self._exchange.load_markets_helper(True))
        intervals = await self._funding_intervals() if self.manner.perpetual else {}
        found: dict[str, Instrument] = {}
        for market in sorted(markets.values(), key=lambda market: market["symbol"]):
            interval_seconds = intervals.get(market["symbol"], FUNDING_INTERVAL_SECONDS)
            instrument = instrument_of(self.venue, market, interval_seconds) if self.manner.has(market) else None
            if instrument is not None and instrument.symbol not in found:
                found[instrument.symbol] = instrument
                self._names[instrument.symbol] = market["symbol"]
                self._symbols[market["symbol"]] = instrument.symbol
        return found

    async def _funding_intervals(self) -> dict[str, int]:
        """In seconds, by ccxt's name, of those that are not settled in the usual one."""

        async def ask() -> dict[str, int]:
            told = await self._exchange.fetch_funding_intervals()
            return {
                name: self._exchange.parse_timeframe(each["interval"])
                for name, each in told.items()
                if each.get("interval")
            }

        return await self._ask(ask())

    @property
    def known(self) -> Known:
        markets, currencies = self._exchange.markets, self._exchange.currencies
        return Known(markets, currencies, self._names, self._symbols, self._ahead_ns)

    def know(self, known: Known) -> None:
        """Takes what an earlier connection knew, until it is asked for again."""
        self._exchange.set_markets(list(known.markets.values()), known.currencies)
        self._names, self._symbols = dict(known.names), dict(known.symbols)
        self._ahead_ns, self._is_clock_known = known.ahead_ns, True

    async def _ask_time(self) -> None:
        """Raises VenueTrouble if it takes the venue too long to say, unless it has said before. Who does not say has our time."""
        self._is_clock_doubtful, self._clock_asked_ns = False, self._now().steady_ns
        if not self._exchange.has["fetchTime"]:
            now = self._now()
            self._ahead_ns = now.wall_ns - now.steady_ns
            return
        for _ in range(CLOCK_TRIES):
            told = await self._ask(self._exchange.fetch_time())
            asked_ns, answered_ns = ASKED_NS.get(), self._now().steady_ns
            if answered_ns - asked_ns <= ROUND_TRIP_NS_MAX:
                self._ahead_ns = told * MILLISECOND_NS - (asked_ns + answered_ns) // 2
                self._is_clock_known = True
                return
            log.warning("a venue takes long to say what time it is", venue=self.venue)
        if not self._is_clock_known:
            raise VenueTrouble("it takes too long to say what time it is")

    # What comes.

    async def hear_trades(self, symbols: Sequence[str], wake: Callable[[], None]) -> None:
        """Has trades told from now on, and wakes whoever takes them; until VenueTrouble."""
        of_one, of_many = self._exchange.watch_trades, self._exchange.watch_trades_for_symbols
        await self._hear("Trades", of_one, of_many, symbols, wake)

    async def hear_books(self, symbols: Sequence[str]) -> None:
        """Has books told from now on; until VenueTrouble."""
        of_one = partial(self._exchange.watch_order_book, limit=self.manner.book_levels)
        of_many = partial(self._exchange.watch_order_book_for_symbols, limit=self.manner.book_levels)
        await self._hear("OrderBook", of_one, of_many, symbols, lambda: None)

    async def hear_marks(self, symbols: Sequence[str]) -> None:
        """Has told from now on what perpetual futures are valued at; until VenueTrouble."""
        await self._listen(self._exchange.watch_mark_prices, [self._names[symbol] for symbol in symbols], lambda: None)

    async def _hear(
        self, what: str, of_one: Watch, of_many: Watch, symbols: Sequence[str], wake: Callable[[], None]
    ) -> None:
        # What ccxt returns is one instrument's at a time, and leaves out what came together with it: so it only tells that
        # something came, and all of it is taken from where ccxt keeps it.
        names = [self._names[symbol] for symbol in symbols]
        if self._exchange.has[f"watch{what}ForSymbols"]:
            await self._listen(of_many, names, wake)
        async with asyncio.TaskGroup() as together:
            for name in names:
                together.create_task(self._listen(of_one, name, wake))

    async def _listen(self, watch: Watch, about: Any, wake: Callable[[], None]) -> None:
        while True:
            await self._ask(watch(about))
            wake()

    def take_trades(self) -> dict[str, list[Tick | None]]:
        """The trades told since the last time, by symbol; None for each that cannot be as it was told."""
        self._look_at_pongs()
        # Only what is listened to is held there: venues list thousands.
        held, self._exchange.trades = self._exchange.trades or {}, {}
        return {
            symbol: [self._tick(trade) for trade in trades]
            for name, trades in held.items()
            if (symbol := self._symbols.get(name))
        }

    def book(self, symbol: str) -> Book | None:
        """The best of the book as it now stands; None before it was told, or while a side of it is empty."""
        told = self._exchange.orderbooks.get(self._names[symbol])
        if not told or not told["bids"] or not told["asks"]:
            return None
        time_ns = (told["timestamp"] or 0) * MILLISECOND_NS or self.now_ns()
        return Book(time_ns, levels_of(told["bids"]), levels_of(told["asks"]))

    def mark(self, symbol: str) -> Mark | None:
        """What was told last; None before anything was, and where it cannot be."""
        if self.manner.perpetual is None:
            return None
        told = (self._exchange.tickers or {}).get(self._names[symbol])
        if told is None:
            return None
        try:
            return self._sound(self.manner.perpetual.mark_of(told))
        except (TypeError, ValueError, KeyError, OverflowError, Untrue):
            return None

    def _sound(self, mark: Mark) -> Mark:
        """Raises Untrue."""
        if not 0 < mark.time_ns <= self.now_ns() + AHEAD_NS:
            raise Untrue("time")
        if not (0 < mark.mark_price < NUMBERS_MAX and 0 < mark.index_price < NUMBERS_MAX):
            raise Untrue("price")
        if not (abs(mark.predicted_funding_rate) < 1 and mark.next_funding_ns > 0):
            raise Untrue("rate")
        return mark

    def now_ns(self) -> int:
        """The time by the venue's clock."""
        return self._now().steady_ns + self._ahead_ns

    @property
    def heard_ns(self) -> int:
        """When pings were answered last, by the venue's clock: what was told before has come. 0: never.

        It is as near as trades are taken often.
        """
        heard = [seen_ns for _, seen_ns in self._pongs.values()]
        return min(heard) + self._ahead_ns if heard and len(heard) == len(self._exchange.clients) else 0

    def _look_at_pongs(self) -> None:
        steady_ns = self._now().steady_ns
        for url, client in self._exchange.clients.items():
            known = self._pongs.get(url)
            if client.lastPong and (known is None or known[0] != client.lastPong):
                self._pongs[url] = client.lastPong, steady_ns

    # What is on record.

    async def trades_after(self, symbol: str, trade_id: str, time_ns: int) -> list[Tick]:
        """The next trades on record, the oldest first, PAGE_TRADES at most: after an id or, without one, from a time on.

        Where ids do not follow on each other, trades of that time may come again.
        """
        if self._is_clock_doubtful and self._now().steady_ns - self._clock_asked_ns > DOUBT_NS:
            # The venue's clock may have been set, or the machine have slept, and with it the steady clock.
            await self._ask_time()
        if trade_id and self.manner.by_id:
            page = await self._record(symbol, None, PAGE_TRADES, {"fromId": int(trade_id) + 1})
            return page.after(int(trade_id)) if self.manner.ids_follow else list(page.trades)
        page = await self._page_from(symbol, time_ns)
        if not self.manner.ids_follow:
            ids = [trade.trade_id for trade in page.trades]
            if trade_id and trade_id in ids:
                return list(page.trades[ids.index(trade_id) + 1 :])
            return [trade for trade in page.trades if trade.time_ns >= time_ns]
        if not trade_id:
            earlier = [int(trade.trade_id) for trade in page.trades if trade.time_ns < time_ns]
            return page.after(max(earlier, default=-1))
        if page.trades and page.first_id > int(trade_id) + 1:
            # Either there is no such id, or the time was not the one on record.
            page = await self._page_from(symbol, time_ns - UNSURE_NS)
        if page.trades and page.is_before(int(trade_id)):
            page = await self._page_beyond(symbol, int(trade_id), page.trades[-1].time_ns)
        return page.after(int(trade_id))

    async def newest_trade(self, symbol: str) -> Tick | None:
        found = await self._record(symbol, None, 1, {})
        return found.trades[-1] if found.trades else None

    async def _page_from(self, symbol: str, time_ns: int) -> Page:
        """The oldest trades on record from a time on, or from a little before."""
        if not self.manner.since:
            return await self._record(symbol, time_ns // MILLISECOND_NS, PAGE_TRADES, {})
        # Some take the time itself in, some begin after it; and a time in microseconds may have been rounded.
        name, unit_ns = self.manner.since
        since = max(0, time_ns - max(unit_ns, MICROSECOND_NS)) // unit_ns
        return await self._record(symbol, None, PAGE_TRADES, {name: since})

    async def _page_beyond(self, symbol: str, trade_id: int, low_ns: int) -> Page:
        """The page that goes beyond an id, of a record that can only be asked by time: from one before it, near or far."""
        high_ns, at_ns = self.now_ns() + BEHIND_NS, low_ns
        while high_ns - low_ns > MICROSECOND_NS:
            page = await self._page_from(symbol, at_ns)
            if at_ns > low_ns and (not page.trades or page.first_id > trade_id + 1):
                high_ns = at_ns
            elif not page.trades or not page.is_before(trade_id):
                return page
            elif (reached_ns := max(at_ns, page.trades[-1].time_ns)) > low_ns:
                low_ns = reached_ns
                if trade_id - page.last_id < PAGE_TRADES:
                    at_ns = low_ns
                    continue
            at_ns = (low_ns + high_ns) // 2
        raise VenueTrouble(f"more trades were made at once than can be asked for, after {trade_id}")

    async def _record(self, symbol: str, since: int | None, limit: int, more: Mapping[str, Any]) -> Page:
        async def ask() -> Page:
            found = await self._exchange.fetch_trades(self._names[symbol], since, limit, dict(more))
            told = [(trade, self._tick(trade)) for trade in found]
            ids_follow = self.manner.ids_follow
            # One of which not even the id is known cannot be told from others: then the page is none.
            untrue_ids = (
                sorted(int(id_of(trade, self.manner)) for trade, tick in told if not tick) if ids_follow else ()
            )
            ticks = [tick for _, tick in told if tick is not None]
            if found and not ticks:
                if untrue_ids:
                    raise UntrueTrade(untrue_ids[0], [])
                raise ValueError("no trade of a page can be as it is on record")
            ticks.sort(key=lambda tick: int(tick.trade_id) if ids_follow else tick.time_ns)
            return Page(ticks, untrue_ids, is_full=len(found) >= PAGE_TRADES)

        return await self._ask(ask())

    def _tick(self, trade: Mapping[str, Any]) -> Tick | None:
        try:
            return tick_of(trade, self.manner, self.now_ns() + AHEAD_NS)
        except Untrue as untrue:
            self._is_clock_doubtful = self._is_clock_doubtful or untrue.reason == "time"
            UNTRUE.labels(self.venue, untrue.reason).inc()
            if time.monotonic() >= self._untrue_log_at:
                self._untrue_log_at = time.monotonic() + UNTRUE_LOG_SECONDS
                log.warning(
                    "a trade cannot be as it is told",
                    venue=self.venue,
                    reason=untrue.reason,
                    told=repr(trade.get("info"))[:TROUBLE_CHARACTERS_MAX],
                )
            return None

    async def bars_from(self, symbol: str, size: BarSize, time_ns: int) -> list[Bar]:
        """The next bars on record that open from a time on, the oldest first; also such as have not ended.

        Where the record does not reach back so far it begins later, and after long without a bar there may be none.
        """

        async def ask() -> list[Bar]:
            since = time_ns // MILLISECOND_NS
            found = await self._exchange.fetch_ohlcv(self._names[symbol], size.name, since, PAGE_BARS)
            return sorted(bar for bar in map(bar_of, found) if bar.open_ns >= time_ns)

        return await self._ask(ask())

    async def ask_mark(self, symbol: str) -> Mark:
        """What a perpetual future is valued at now, where it is not told."""

        async def ask() -> Mark:
            told = await self._exchange.fetch_funding_rate(self._names[symbol])
            mark = Mark(
                told["timestamp"] * MILLISECOND_NS,
                float(told["markPrice"]),
                float(told["indexPrice"]),
                float(told["fundingRate"]),
                told["fundingTimestamp"] * MILLISECOND_NS,
            )
            return self._sound(mark)

        return await self._ask(ask())

    async def settlements_after(self, symbol: str, time_ns: int) -> list[Settlement]:
        """What funding was settled at next after a time, the oldest first, PAGE_SETTLEMENTS at most; all of them are exact."""
        manner = self.manner.perpetual
        assert manner is not None

        async def ask() -> list[Settlement]:
            since = time_ns // MILLISECOND_NS + 1
            found = await self._exchange.fetch_funding_rate_history(self._names[symbol], since, PAGE_SETTLEMENTS)
            told = sorted(map(manner.settlement_of, found))
            if wrong := [each for each in told if not is_settlement(*each, self.now_ns() + AHEAD_NS)]:
                raise ValueError(f"funding cannot have been settled so: {wrong[0]}")
            return [Settlement(f"{self.venue}:{symbol}", *each) for each in told]

        return await self._ask(ask())

    # How it goes wrong.

    async def _ask(self, asked: Awaitable[T]) -> T:
        """Makes one exception of the many ways in which venues fail, and ccxt in reading what they say."""
        try:
            return await asked
        except VenueTrouble:
            raise
        except Exception as error:
            if isinstance(error, (self._ccxt.DDoSProtection, self._ccxt.RateLimitExceeded)):
                # Whoever goes on asking is banned, and banned for longer.
                seconds = retry_seconds(self._exchange.last_response_headers, self.manner.pause_seconds)
                log.warning("a venue was asked too much", venue=self.venue, seconds=seconds)
                await self._budget.block(seconds)
            raise VenueTrouble(f"{type(error).__name__}: {str(error)[:TROUBLE_CHARACTERS_MAX]}") from error

    async def throttle(self, cost: float | None = None) -> None:
        """Asked by ccxt before each request."""
        await self._budget.take(cost or 1.0, Use.DATA, wait_seconds_max=BUDGET_WAIT_SECONDS)
        ASKED_NS.set(self._now().steady_ns)


@asynccontextmanager
async def connected(
    segment: str, addresses: Addresses, redis: Redis, from_address: str, now: Clock = clock
) -> AsyncIterator[Venue]:
    """A segment of a venue to be asked during the block. Raises VenueNotFound."""
    # A second, and 100 MB: for those who bring an exchange's data, and beside the loop.
    manner = await asyncio.to_thread(manner_of, segment)
    ccxt = import_module("ccxt")
    logging.getLogger("ccxt").setLevel(logging.WARNING)  # below, it writes down what it sends
    exchange = getattr(import_module("ccxt.pro"), manner.ccxt_id)(
        {
            "enableRateLimit": True,
            "timeout": round(REQUEST_SECONDS * 1000),
            "streaming": {"keepAlive": round(KEEPALIVE_SECONDS * 1000)},
            "options": {**manner.options, "tradesLimit": TRADES_HELD},
            "exceptions": {"broad": {manner.too_much: ccxt.DDoSProtection}} if manner.too_much else {},
            "urls": {
                "api": {
                    **below(addresses.rest, manner.rest_paths),
                    "ws": below(addresses.stream, manner.stream_paths),
                }
            },
        }
    )
    if exchange.precisionMode != ccxt.TICK_SIZE or not exchange.has["watchTrades"]:
        await exchange.close()
        raise VenueNotFound(segment)
    budget = Budget(redis, segment, from_address, limits_from(exchange.rateLimit, segment))
    opened = Venue(segment, manner, ccxt, exchange, budget, now)
    exchange.throttle = opened.throttle
    exchange.fetch = in_json(exchange.fetch)
    if manner.costs:
        cost_of = exchange.calculate_rate_limiter_cost
        exchange.calculate_rate_limiter_cost = lambda api, method, path, *about: (
            manner.costs.get(path) or cost_of(api, method, path, *about)
        )
    if manner.book_levels:
        # Of itself ccxt keeps as many levels as there were asks at first, and does not know of others that come to be the best.
        book = exchange.order_book
        exchange.order_book = lambda snapshot, _: book(snapshot, manner.book_levels)
    if (count_at := manner.count_at) is not None:
        # Of itself ccxt leaves it out.
        parse = exchange.parse_ohlcv
        exchange.parse_ohlcv = lambda bar, market=None: [*parse(bar, market), bar[count_at]]
    try:
        yield opened
    finally:
        async with asyncio.timeout(CLOSE_SECONDS):
            await exchange.close()


def in_json(fetch: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Of itself ccxt may take an answer that is no JSON for one in which nothing is."""

    async def fetched(*asked: Any, **more: Any) -> Any:
        answer = await fetch(*asked, **more)
        if not isinstance(answer, (dict, list)):
            raise ValueError("the answer is no JSON")  # noqa: TRY004 (it is the venue that is wrong)
        return answer

    return fetched


def budget_of(segment: str, redis: Redis, from_address: str) -> Budget:
    """What may be asked of a segment of a venue. Raises VenueNotFound; the first time it takes a second."""
    exchange = getattr(import_module("ccxt"), manner_of(segment).ccxt_id)()
    return Budget(redis, segment, from_address, limits_from(exchange.rateLimit, segment))


def bar_sizes_of(segment: str) -> list[str]:
    """The names of those sizes of ours of which the venue has bars of the segment on record, the shortest first.

    Raises VenueNotFound; the first time it takes a second.
    """
    manner = manner_of(segment)
    exchange = getattr(import_module("ccxt"), manner.ccxt_id)()
    told = (exchange.timeframes or {}) if exchange.has["fetchOHLCV"] else {}
    return [name for name in BAR_SIZES if name in told and name not in manner.other_bars]


def do_ids_follow(segment: str) -> bool:
    """Whether it is known that the trades of an instrument are numbered one by one there."""
    return segment in MANNERS and MANNERS[segment].ids_follow


def manner_of(segment: str) -> Manner:
    """How to speak to a segment of a venue; spot markets that are not proved are spoken to in the way that most understand.

    Raises VenueNotFound. The first time it takes a second, in which ccxt is imported.
    """
    ccxt = import_module("ccxt.pro")
    if segment in MANNERS:
        return MANNERS[segment]
    if segment.lower() not in ccxt.exchanges:
        raise VenueNotFound(segment)
    return Manner(segment.lower())


def instrument_of(
    venue: str, market: Told, funding_interval_seconds: int = FUNDING_INTERVAL_SECONDS
) -> Instrument | None:
    """None for what cannot be named or traded here, as without a tick size."""
    base, quote = market["base"], market["quote"]
    tick_size, lot_size = decimal_of(market["precision"]["price"]), decimal_of(market["precision"]["amount"])
    symbol, description, perpetual = f"{base}{quote}", f"{base} in {quote}", None
    if market.get("swap"):
        symbol, description = f"{market['id']}{PERPETUAL}", f"{base} in {quote}, perpetual future"
        perpetual = Perpetual(
            settle_asset=market["settle"],
            contract_size=decimal_of(market["contractSize"]) or Decimal(0),
            leverage_max=LEVERAGE_MAX_USUAL,
            margin_tiers=(),
            funding_interval_seconds=funding_interval_seconds,
        )
    if not (tick_size and lot_size and ASSET.fullmatch(base) and ASSET.fullmatch(quote) and SYMBOL.fullmatch(symbol)):
        return None
    if perpetual is not None and perpetual.violations(quote).keys() - {"margin_tiers"}:
        return None
    return Instrument(
        venue=venue,
        symbol=symbol,
        description=description,
        asset_class=AssetClass.PERPETUAL if perpetual else AssetClass.CRYPTO,
        base_asset=base,
        quote_asset=quote,
        tick_size=tick_size,
        lot_size=lot_size,
        minimum_notional=decimal_of((market["limits"].get("cost") or {}).get("min")) or Decimal(0),
        maker_fee_rate=decimal_of(market.get("maker")) or Decimal(0),
        taker_fee_rate=decimal_of(market.get("taker")) or Decimal(0),
        has_book=True,
        is_trading=market.get("active") is not False,
        perpetual=perpetual,
    )


def is_settlement(time_ns: int, rate: Decimal, mark_price: Decimal, latest_ns: int) -> bool:
    """Whether funding can have been settled so: nobody is to pay by what cannot be."""
    return 0 < time_ns <= latest_ns and rate.is_finite() and abs(rate) < 1 and 0 < mark_price < NUMBERS_MAX


def decimal_of(number: Any) -> Decimal | None:
    """What ccxt made a float of, as it was written; None for nothing, and for nonsense."""
    if number is None:
        return None
    found = Decimal(str(number))
    return found if found.is_finite() and 0 <= found < NUMBERS_MAX else None


def tick_of(trade: Mapping[str, Any], manner: Manner, latest_ns: int) -> Tick:
    """Raises Untrue for a trade that cannot be, as without a price, or after that time."""
    side = trade.get("side")
    trade_id = id_of(trade, manner)
    try:
        time_ns = manner.time_ns_of(trade)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise Untrue("time") from error
    if not 0 < time_ns <= latest_ns:
        raise Untrue("time")
    return Tick(
        time_ns,
        number_of(trade, "price", "price"),
        number_of(trade, "amount", "quantity"),
        {"buy": Aggressor.BUYER, "sell": Aggressor.SELLER}.get(side) if side else None,
        trade_id,
    )


def number_of(trade: Mapping[str, Any], name: str, reason: str) -> float:
    """A number above 0. Raises Untrue."""
    try:
        number = float(trade[name])
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise Untrue(reason) from error
    if not 0 < number < NUMBERS_MAX:
        raise Untrue(reason)
    return number


def id_of(trade: Mapping[str, Any], manner: Manner) -> str:
    """Raises Untrue for what is none. Only where ids follow each trade must have one."""
    trade_id = str(trade.get("id") or "")
    if not trade_id and not manner.ids_follow:
        return ""
    if not 0 < len(trade_id) <= TRADE_ID_MAX or not trade_id.isprintable():
        raise Untrue("id")
    if manner.ids_follow and not (trade_id.isascii() and trade_id.isdigit()):
        raise Untrue("id")
    return trade_id


def bar_of(told: Sequence[Any]) -> Bar:
    """Raises for a bar without a time, a price or a volume."""
    opened, *values = told[:6]
    first, high, low, last, volume = map(float, values)
    return Bar(int(opened) * MILLISECOND_NS, first, high, low, last, volume, int(told[6]) if len(told) > 6 else 0)


def levels_of(side: Sequence[Sequence[float]]) -> tuple[BookLevel, ...]:
    return tuple(BookLevel(float(level[0]), float(level[1])) for level in side[:BOOK_LEVELS])
