"""The simulated market: seeded, deterministic, with trades and a book.

What happens is a pure function of (seed, instrument, trades per second, simulated time), made a block of simulated time
at a time, and any block can be made without the ones before it. So a feed that was stopped goes on at the event after its
last one, by whichever process, and two processes make the same market.

How it is made:

- The level of the price is Brownian motion, refined by midpoint displacement from hashed normal numbers: random access
  to any second. Instruments of one group share a part of it, which correlates their returns. Far apart the level
  reverts to its base, so that prices stay in a sensible range for ever.
- Trades come in bursts: clusters whose members follow each other within fractions of a second and mostly on one side,
  more of them in busy blocks, which are also the volatile ones. Sizes are lognormal.
- Each trade pushes the price a little; the push decays. Buyers pay the ask and sellers get the bid of a spread that
  reverts to its mean, and large trades reach deeper levels: bid-ask bounce and impact come from that.
- The book has ten levels a side on the tick grid, whose sizes grow with depth and last a while at one price.
- A perpetual future follows the level of its spot market with a premium that wanders within PREMIUM_MAX. The spot level is its
  index, and index times premium its mark. Funding is settled by the average premium of the interval, weighted by time: a function of
  where the interval lies in simulated time, and so the same whoever settles it.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from libs.margin import FUNDING_INTERVAL_SECONDS, funding_rate
from services.feeds.domain import (
    SECOND_NS,
    Aggressor,
    Book,
    BookLevel,
    Instrument,
    Mark,
    Settlement,
    Tick,
)
from services.feeds.sources.characters import CHARACTERS, Character

TRADES_PER_SECOND = 5.0
BLOCK_SECONDS = 16
BOOK_INTERVAL_MILLISECONDS = 200
BOOK_LEVELS = 10

_BLOCK_NS = BLOCK_SECONDS * SECOND_NS
_BOOK_INTERVAL_NS = BOOK_INTERVAL_MILLISECONDS * 1_000_000
_BOOK_PHASE_NS = 500
"""Books stand between whole microseconds, where trades are, so that an event is found again by its time."""
_BOOKS_IN_BLOCK = _BLOCK_NS // _BOOK_INTERVAL_NS
_STEPS_IN_SECOND = 16
_BLOCK_STEPS = BLOCK_SECONDS * _STEPS_IN_SECOND
_SPAN_STEPS = 1 << 26
"""The level is tied to its stationary spread at the ends of spans of about 48 days, and refined to steps in between."""
_YEAR_SECONDS = 365 * 86_400

_CLUSTER_SIZE = 2.5
_CLUSTER_GAP_SECONDS = 0.12
_CLUSTER_SECONDS_MAX = 8.0
"""A cluster ends within the block after its own, so that two blocks' clusters make a block whole."""
_SIDE_PERSISTENCE = 0.85
_BUSY_DEVIATION = 0.5
_IMPACT_DECAY_SECONDS = 1.5
_SPREAD_DECAY_SECONDS = 4.0
_SPREAD_DEVIATION = 0.45
_SIZE_BUCKET_SECONDS = 3

PREMIUM_MAX = 0.0015
"""How far a perpetual future is from its index at most, as a fraction of it."""
FUNDING_SAMPLES = 480
"""The premium is looked at so often in an interval: once a minute in eight hours."""
FUNDING_INTEREST = Decimal("0.0001")
"""Of eight hours, as Binance has it."""
_PREMIUM_SECONDS, _PREMIUM_SECONDS_SHORT = 6 * 3_600, 600
_PREMIUM_USUAL, _PREMIUM_DEVIATION, _PREMIUM_DEVIATION_SHORT = 0.15, 0.5, 0.3

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades in the order of their times, which strictly rise; simulated nanoseconds, whole ticks and lots."""

    time_ns: _Integers
    price_ticks: _Integers
    quantity_lots: _Integers
    is_buyer: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Books:
    """Books at evenly spaced simulated times; one row each, one column per level, best first."""

    time_ns: _Integers
    bid_ticks: _Integers
    bid_lots: _Integers
    ask_ticks: _Integers
    ask_lots: _Integers


@dataclass(frozen=True, slots=True)
class SimulatedMarket:
    """One seed's market. Simulated time starts at 0 and has no end in practice (centuries fit)."""

    seed: int
    trades_per_second: float = TRADES_PER_SECOND
    funding_interval_seconds: int = FUNDING_INTERVAL_SECONDS

    @property
    def instruments(self) -> list[Instrument]:
        """All of them, each with its own terms in this market."""
        found = [character.instrument for character in CHARACTERS.values()]
        return [
            replace(each, perpetual=replace(each.perpetual, funding_interval_seconds=self.funding_interval_seconds))
            if each.perpetual
            else each
            for each in found
        ]

    def block(self, instrument_id: str, index: int) -> tuple[Trades, Books]:
        """What happens from `index` times BLOCK_SECONDS on, for BLOCK_SECONDS."""
        character = CHARACTERS[instrument_id]
        before = self._arrivals(character, index - 1)
        own = self._arrivals(character, index)
        start_ns = index * _BLOCK_NS
        time_ns = np.concatenate([before[0], own[0]])
        order = np.argsort(time_ns, kind="stable")
        time_ns = _strictly_rising(time_ns[order])
        sign = np.concatenate([before[1], own[1]])[order]
        lots = np.concatenate([before[2], own[2]])[order]
        kept = time_ns < start_ns + _BLOCK_NS
        time_ns, sign, lots = time_ns[kept], sign[kept], lots[kept]

        book_ns = start_ns + _BOOK_PHASE_NS + np.arange(_BOOKS_IN_BLOCK, dtype=np.int64) * _BOOK_INTERVAL_NS
        # The push and the spread remember a while, so they are followed from the block before on.
        moment_ns = np.concatenate([time_ns, book_ns])
        order = np.argsort(moment_ns, kind="stable")
        moment_ns = moment_ns[order]
        is_trade = order < len(time_ns)
        push = np.zeros(len(moment_ns))
        push[is_trade] = sign * character.impact_ticks * np.sqrt(np.minimum(lots / character.median_lots, 50.0))
        seconds = _seconds(moment_ns - (start_ns - _BLOCK_NS))
        pushed = _decaying_sum(seconds, push, _IMPACT_DECAY_SECONDS)
        stream = _stream(self.seed, instrument_id, "spread")
        shock = _normals(stream, moment_ns.astype(np.uint64))
        gap = np.diff(seconds, prepend=0.0)
        weight = np.sqrt(-np.expm1(-2 * gap / _SPREAD_DECAY_SECONDS))
        wide = _decaying_sum(seconds, shock * weight, _SPREAD_DECAY_SECONDS)

        now = moment_ns >= start_ns
        moment_ns, is_trade = moment_ns[now], is_trade[now]
        # A trade happens at the price that stood before its own push.
        middle = self._level_ticks(character, index, moment_ns) + pushed[now] - push[now]
        spread = np.maximum(1, np.rint(character.spread_ticks * np.exp(_SPREAD_DEVIATION * wide[now]))).astype(np.int64)
        bid = np.maximum(1, np.floor(middle - (spread - 1) / 2).astype(np.int64))
        ask = bid + spread

        count = int(np.count_nonzero(is_trade))
        lots, is_buyer = lots[len(lots) - count :], sign[len(sign) - count :] > 0
        depth = np.minimum(lots // max(1, int(character.level_lots)), BOOK_LEVELS - 1)
        price = np.where(is_buyer, ask[is_trade] + depth, np.maximum(1, bid[is_trade] - depth))
        trades = Trades(moment_ns[is_trade], price, lots, is_buyer)
        return trades, self._books(character, moment_ns[~is_trade], bid[~is_trade], ask[~is_trade])

    def events_after(self, instrument_id: str, simulated_ns: int, offset_ns: int) -> Iterator[Tick | Book]:
        """Ticks and books after a simulated time (-1 for all), for ever; their times are moved by `offset_ns`.

        The trade id is the tick's simulated time: with it the market is found again.
        """
        instrument = CHARACTERS[instrument_id].instrument
        ticks_per_unit, lots_per_unit = _per_unit(instrument.tick_size), _per_unit(instrument.lot_size)
        index = (simulated_ns + 1) // _BLOCK_NS
        while True:
            trades, books = self.block(instrument_id, index)
            marks = self._marks(CHARACTERS[instrument_id], index, books.time_ns, offset_ns)
            yield from _merged(trades, books, marks, simulated_ns, offset_ns, ticks_per_unit, lots_per_unit)
            index += 1

    def settlements(self, instrument_id: str, after_ns: int, until_ns: int, offset_ns: int) -> Iterator[Settlement]:
        """What funding was settled at after a simulated time and up to another; those of what is no perpetual are none.

        Market time is simulated time moved by `offset_ns`.
        """
        character = CHARACTERS[instrument_id]
        if not character.follows:
            return
        interval_ns = self.funding_interval_seconds * SECOND_NS
        funding_ns = ((after_ns + offset_ns) // interval_ns + 1) * interval_ns
        while funding_ns <= until_ns + offset_ns:
            at_ns = funding_ns - offset_ns
            [mark], _ = self._valued(character, at_ns // _BLOCK_NS, np.array([at_ns], np.int64))
            rate = self._funding_rate(character, at_ns - interval_ns, at_ns)
            yield Settlement(instrument_id, funding_ns, rate, int(mark) * character.instrument.tick_size)
            funding_ns += interval_ns

    def _marks(self, character: Character, index: int, time_ns: _Integers, offset_ns: int) -> list[Mark | None]:
        """What a perpetual future is valued at where its books tell the time, for each of a block's books."""
        found: list[Mark | None] = [None] * len(time_ns)
        if not character.follows:
            return found
        per_unit = _per_unit(character.instrument.tick_size)
        interval_ns = self.funding_interval_seconds * SECOND_NS
        marks, indices = self._valued(character, index, time_ns)
        for row, at_ns in enumerate(time_ns.tolist()):
            if _tells_time(at_ns):
                next_ns = ((at_ns + offset_ns) // interval_ns + 1) * interval_ns
                rate = self._funding_rate(character, next_ns - interval_ns - offset_ns, at_ns)
                price, of_index = int(marks[row]) / per_unit, int(indices[row]) / per_unit
                found[row] = Mark(at_ns + offset_ns, price, of_index, float(rate), next_ns)
        return found

    def _valued(self, character: Character, index: int, time_ns: _Integers) -> tuple[_Integers, _Integers]:
        """The mark and the index price of a perpetual future at moments of a block, in whole ticks."""
        level = self._level_ticks(CHARACTERS[character.follows], index, time_ns)
        mark = level * (1 + self._premium(character, time_ns))
        return np.rint(mark).astype(np.int64), np.rint(level).astype(np.int64)

    def _funding_rate(self, character: Character, begin_ns: int, now_ns: int) -> Decimal:
        """The rate of the interval that begins there, by what is known of it now; later premiums weigh more."""
        samples = np.arange(1, FUNDING_SAMPLES + 1, dtype=np.int64)
        time_ns = begin_ns + samples * (self.funding_interval_seconds * SECOND_NS) // FUNDING_SAMPLES
        known = (time_ns >= 0) & (time_ns <= now_ns)
        if known.any():
            premium = float(np.average(self._premium(character, time_ns[known]), weights=samples[known]))
        else:
            [premium] = self._premium(character, np.array([now_ns], np.int64)).tolist()
        return funding_rate(Decimal(f"{premium:.10f}"), FUNDING_INTEREST, self.funding_interval_seconds)

    def _premium(self, character: Character, time_ns: _Integers) -> _Floats:
        """How far a perpetual future is above its index at moments, as a fraction of it: slow moods and quick ones."""
        name, seconds = character.instrument.instrument_id, _seconds(time_ns)
        slow = _wandering(_stream(self.seed, name, "premium"), seconds / _PREMIUM_SECONDS)
        quick = _wandering(_stream(self.seed, name, "quick premium"), seconds / _PREMIUM_SECONDS_SHORT)
        mood = _PREMIUM_USUAL + _PREMIUM_DEVIATION * slow + _PREMIUM_DEVIATION_SHORT * quick
        return PREMIUM_MAX * np.tanh(mood)

    def _arrivals(self, character: Character, index: int) -> tuple[_Integers, _Integers, _Integers]:
        """Times, signs and sizes of the trades of all clusters that begin in a block."""
        if index < 0:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, nothing
        stream = _stream(self.seed, character.instrument.instrument_id, "arrivals")
        random = np.random.Generator(np.random.PCG64([stream, index]))
        busy = self._busy(character, index)
        clusters = int(random.poisson(self.trades_per_second * busy * BLOCK_SECONDS / _CLUSTER_SIZE))
        start_seconds = random.uniform(0, BLOCK_SECONDS, clusters)
        sizes = random.geometric(1 / _CLUSTER_SIZE, clusters)
        trend = self._trend(character, index)
        side = np.where(random.random(clusters) < 0.5 + 0.2 * math.tanh(trend), 1, -1)
        cluster = np.repeat(np.arange(clusters), sizes)
        count = len(cluster)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)[:clusters]
        gaps = random.exponential(_CLUSTER_GAP_SECONDS, count)
        gaps[first] = 0.0
        walked = np.cumsum(gaps)
        after_seconds = np.minimum(walked - walked[first][cluster], _CLUSTER_SECONDS_MAX)
        time_ns = index * _BLOCK_NS + ((start_seconds[cluster] + after_seconds) * 1e6).astype(np.int64) * 1_000
        against = random.random(count) > _SIDE_PERSISTENCE
        sign = np.where(against, -side[cluster], side[cluster]).astype(np.int64)
        lots = np.exp(random.normal(math.log(character.median_lots), character.size_deviation, count))
        lots = np.maximum(1, np.rint(np.minimum(lots, 12 * character.level_lots))).astype(np.int64)
        return time_ns, sign, lots

    def _busy(self, character: Character, index: int) -> float:
        """How much livelier than usual a block is; 1 on average."""
        stream = _stream(self.seed, character.instrument.instrument_id, "busy")
        own, before = _normals(stream, np.array([index + 1, index], np.uint64))
        mood = 0.8 * float(own) + 0.6 * float(before)
        return math.exp(_BUSY_DEVIATION * mood - _BUSY_DEVIATION**2 / 2)

    def _trend(self, character: Character, index: int) -> float:
        """The block's return in units of its usual size."""
        levels = self._levels(character, index)
        usual = character.yearly_volatility * math.sqrt(BLOCK_SECONDS / _YEAR_SECONDS)
        return (levels[-1] - levels[0]) / usual

    def _levels(self, character: Character, index: int) -> _Floats:
        """Logarithm of the price over its base at each step of a block, both ends included."""
        if character.follows:
            steps = np.arange(_BLOCK_STEPS + 1, dtype=np.int64)
            time_ns = index * _BLOCK_NS + steps * (SECOND_NS // _STEPS_IN_SECOND)
            return self._levels(CHARACTERS[character.follows], index) + np.log1p(self._premium(character, time_ns))
        own = _path(_stream(self.seed, character.instrument.instrument_id, "level"), index)
        group = _path(_stream(self.seed, character.group, "group"), index)
        share = character.group_share
        mixed = math.sqrt(1 - share) * own + math.sqrt(share) * group
        return character.yearly_volatility / math.sqrt(_YEAR_SECONDS) * mixed

    def _level_ticks(self, character: Character, index: int, moment_ns: _Integers) -> _Floats:
        """The price without spread and pushes at moments of a block, in ticks."""
        levels = self._levels(character, index)
        steps = _seconds(moment_ns - index * _BLOCK_NS) * _STEPS_IN_SECOND
        between = np.interp(steps, np.arange(_BLOCK_STEPS + 1), levels)
        return character.base_price * np.exp(between) / float(character.instrument.tick_size)

    def _books(self, character: Character, time_ns: _Integers, bid: _Integers, ask: _Integers) -> Books:
        """Ten levels a side around the best prices."""
        stream = _stream(self.seed, character.instrument.instrument_id, "book")
        step = max(1.0, character.spread_ticks / 4)
        depth = np.arange(BOOK_LEVELS)
        # Away from the best price a coarse grid is the more popular, as people like round prices.
        away = np.rint(depth * step).astype(np.int64)
        bid_ticks = np.maximum(1, bid[:, None] - away[None, :])
        ask_ticks = ask[:, None] + away[None, :]
        return Books(
            time_ns,
            bid_ticks,
            self._resting_lots(character, stream, time_ns, bid_ticks, depth),
            ask_ticks,
            self._resting_lots(character, stream ^ 1, time_ns, ask_ticks, depth),
        )

    def _resting_lots(
        self, character: Character, stream: int, time_ns: _Integers, price_ticks: _Integers, depth: _Integers
    ) -> _Integers:
        phase_seconds = price_ticks % _SIZE_BUCKET_SECONDS
        bucket = (time_ns[:, None] // 1_000_000_000 + phase_seconds) // _SIZE_BUCKET_SECONDS
        key = price_ticks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ bucket.astype(np.uint64)
        noise = _normals(stream, key)
        lots = character.level_lots * (0.5 + 0.25 * depth[None, :]) * np.exp(0.6 * noise)
        return np.maximum(1, np.rint(lots)).astype(np.int64)


def _merged(
    trades: Trades,
    books: Books,
    marks: Sequence[Mark | None],
    after_ns: int,
    offset_ns: int,
    ticks_per_unit: int,
    lots_per_unit: int,
) -> Iterator[Tick | Book]:
    """A block's trades and books in the order of their simulated times."""
    times = trades.time_ns.tolist()
    # Dividing by a power of ten gives the double nearest to the decimal, as if its text had been read.
    prices = (trades.price_ticks / ticks_per_unit).tolist()
    quantities = (trades.quantity_lots / lots_per_unit).tolist()
    buyers = trades.is_buyer.tolist()
    book_times = books.time_ns.tolist()
    bid_prices, bid_sizes = (books.bid_ticks / ticks_per_unit).tolist(), (books.bid_lots / lots_per_unit).tolist()
    ask_prices, ask_sizes = (books.ask_ticks / ticks_per_unit).tolist(), (books.ask_lots / lots_per_unit).tolist()
    place = bisect_right(times, after_ns)
    for row in range(bisect_right(book_times, after_ns), len(book_times)):
        end = bisect_right(times, book_times[row])
        for at in range(place, end):
            aggressor = Aggressor.BUYER if buyers[at] else Aggressor.SELLER
            yield Tick(times[at] + offset_ns, prices[at], quantities[at], aggressor, str(times[at]))
        place = end
        yield Book(
            book_times[row] + offset_ns,
            tuple(map(BookLevel, bid_prices[row], bid_sizes[row])),
            tuple(map(BookLevel, ask_prices[row], ask_sizes[row])),
            tells_time=_tells_time(book_times[row]),
            mark=marks[row],
        )


def _tells_time(book_ns: int) -> bool:
    """The first book of each second: often enough for bars to end where nothing trades."""
    return book_ns % SECOND_NS < _BOOK_INTERVAL_NS


def _per_unit(step: Decimal) -> int:
    return int(1 / step)


def _seconds(nanoseconds: _Integers) -> _Floats:
    return np.asarray(nanoseconds * 1e-9, np.float64)


def _strictly_rising(times: _Integers) -> _Integers:
    """Sorted whole microseconds, moved apart by single nanoseconds where they coincide."""
    place = np.arange(len(times), dtype=np.int64)
    return np.maximum.accumulate(times - place) + place


def _decaying_sum(seconds: _Floats, shocks: _Floats, decay_seconds: float) -> _Floats:
    """For each moment, the sum of all shocks up to it, each faded by exp(-age / decay). Moments within two blocks."""
    growth = np.exp(seconds / decay_seconds)
    return np.cumsum(shocks * growth) / growth


@lru_cache(maxsize=256)
def _stream(seed: int, name: str, purpose: str) -> int:
    """A 63-bit number for one purpose: another for every seed, name and purpose."""
    mixed = np.uint64(seed & (2**64 - 1))
    for letter in f"{name}/{purpose}".encode():
        mixed = _mix(np.array([mixed ^ np.uint64(letter)], np.uint64))[0]
    return int(mixed >> np.uint64(1))


def _mix(words: _Words) -> _Words:
    """The finalizer of SplitMix64: neighbours in, strangers out."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _normals(stream: int, keys: _Words) -> _Floats:
    """A standard normal number for each key, always the same one (Box and Muller over two hashes)."""
    first = _mix(_mix(keys) ^ np.uint64(stream))
    second = _mix(first)
    radius = np.sqrt(-2 * np.log(((first >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    return radius * np.cos((second >> np.uint64(11)) * (2 * math.pi * 2.0**-53))


def _wandering(stream: int, places: _Floats) -> _Floats:
    """Between standard normal numbers at whole places, straight from one to the next."""
    before = np.floor(places)
    low = before.astype(np.int64).astype(np.uint64)
    low_value, high_value = _normals(stream, low), _normals(stream, low + np.uint64(1))
    return low_value + (high_value - low_value) * (places - before)


@lru_cache(maxsize=128)
def _path(stream: int, index: int) -> _Floats:
    """Brownian motion of unit variance a second, at each step of a block, both ends included."""
    steps = np.arange(index * _BLOCK_STEPS, (index + 1) * _BLOCK_STEPS + 1, dtype=np.int64)
    low_value, high_value = (_tie(stream, steps // _SPAN_STEPS + end) for end in (0, 1))
    # One row for each halving: where the middle lies that it adds.
    spans = _SPAN_STEPS >> np.arange(_SPAN_STEPS.bit_length() - 1)[:, None]
    middles = steps // spans * spans + spans // 2
    # Between two points a span apart, the middle deviates from their mean by a quarter of the span's variance.
    deviations = np.sqrt(spans / 4 / _STEPS_IN_SECOND)
    shocks = deviations * _normals(stream, (middles.astype(np.uint64) << np.uint64(1)) | np.uint64(1))
    for middle, shock in zip(middles, shocks, strict=True):
        middle_value = (low_value + high_value) / 2 + shock
        above = steps >= middle
        low_value, high_value = np.where(above, middle_value, low_value), np.where(above, high_value, middle_value)
    return low_value


def _tie(stream: int, cell: _Integers) -> _Floats:
    """The level at the ends of the largest spans: independent, but 0 at the very start."""
    deviation = math.sqrt(_SPAN_STEPS / _STEPS_IN_SECOND / 2)
    return np.where(cell == 0, 0.0, deviation * _normals(stream, cell.astype(np.uint64) << np.uint64(1)))
