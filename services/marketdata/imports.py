"""Reads a file of bars of one size: finds every row that is wrong, and then gives its bars slice by slice.

That the bars are as long as is said is looked at too: hours open where minutes do, and would be taken for them. A file that
tells when its bars close has told; of others, all bars stand multiples of a longer time apart.

A row's time is that at which a bar of the size opens; of an instrument with a calendar, that of a day or week is its date at
midnight or a moment within it (sessions.places_named).

Whatever the file's length, only some of its rows are in memory; beside them eight bytes for each row, which tell whether a time
comes twice. All of it is work for a thread.
"""

import math
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import IO

import numpy as np
import polars as pl

from libs.bar_sizes import EPOCH, MICROSECOND, SECOND, BarSize
from libs.errors import Invalid
from services.marketdata import sessions
from services.marketdata.columns import Integers
from services.marketdata.domain import CALENDAR_SIZES, ImportLinesInvalid, ImportMalformed
from services.marketdata.layouts import CLOSE_TIME, CLOSED, DAY_MICROSECONDS, Block, Layout, blocks
from services.marketdata.sessions import Calendar
from services.marketdata.unpacking import unpacked_well
from services.marketdata.values import COUNT_MAX, NUMBERS, wrong_value

ROWS_MAX = 40_000_000
"""Each takes eight bytes of memory while the file is checked."""
SLICE_ROWS = 20_000
"""Bars that are stored in one transaction."""
NAMED_LINES_MAX = 40
"""As many as fit into a status whatever is wrong with them."""
APART_BY_CHANCE_MAX = 0.01
"""How likely it may be that bars of a market in which few minutes have a trade look like longer ones."""
APART_BARS_MIN = 3
DISTANCES_AT_ONCE = 1_000_000
UNITS = (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
STORED = ("open_time", *NUMBERS, "trade_count")


@dataclass(frozen=True, slots=True)
class Rules:
    """A bar must open where bars of its size do, have ended before now, and not be older than bars of its size are kept.

    Of a sparse market all of them may stand multiples of a longer time apart. Prices are above zero unless their market's may
    fall below.
    """

    size: BarSize
    now: datetime
    kept_from: datetime = EPOCH
    calendar: Calendar | None = None
    is_sparse: bool = False
    above_zero: bool = True

    @property
    def follows_calendar(self) -> bool:
        return self.calendar is not None and self.size in CALENDAR_SIZES


@dataclass(frozen=True, slots=True)
class Checked:
    """A file in which nothing is wrong."""

    layout: str
    row_count: int
    first: datetime
    last: datetime


@dataclass(slots=True)
class Wrong:
    """The first wrong rows by their places, and how many there are."""

    named: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def add(self, place: str, found: pl.DataFrame) -> None:
        self.count += found.height
        for line, why in found.head(NAMED_LINES_MAX - len(self.named)).iter_rows():
            self.named[f"{place} {line}"] = why

    def refusal(self) -> Invalid:
        first, why = next(iter(self.named.items()))
        return ImportLinesInvalid(
            self.named,
            f"{self.count} {'line is' if self.count == 1 else 'lines are'} wrong, the first is {first}: {why}",
            line=first.rpartition(" ")[2],
            wrong_lines=self.count,
        )


@dataclass(slots=True)
class Scanned:
    """What a file says, read to its end."""

    wrong: Wrong = field(default_factory=Wrong)
    times: "array[int]" = field(default_factory=lambda: array("q"))
    """Of each row that has one, unless repeats are looked for."""
    layout: str = ""
    row_count: int = 0
    closing_count: int = 0
    """Rows that tell when their bar closes."""
    shortest: timedelta | None = None
    """Of those bars."""

    def look_at_close_times(self, rows: pl.DataFrame) -> None:
        lengths = (rows[CLOSE_TIME] - rows["open_time"]).drop_nulls()
        self.closing_count += lengths.len()
        shortest = lengths.min()
        if isinstance(shortest, timedelta):
            self.shortest = min(shortest, self.shortest or shortest)


class Repeats:
    """Times that come more than once, and where each came first as far as the file was read."""

    def __init__(self, times: Integers) -> None:
        self._times = times
        self._lines = np.zeros(len(times), np.int64)
        self._places = np.zeros(len(times), np.int32)
        self._names: list[str] = []

    def of(self, block: Block, bars: pl.DataFrame) -> pl.Series:
        """For each bar of a block whose time was there before, where that was."""
        times = bars["open_time"].to_physical()
        known = times.fill_null(-1).to_numpy()
        at = np.searchsorted(self._times, known).clip(max=len(self._times) - 1)
        (rows,) = np.nonzero((self._times[at] == known) & times.is_not_null().to_numpy())
        at = at[rows]
        if block.place not in self._names:
            self._names.append(block.place)
        first_at, first_rows = np.unique(at, return_index=True)
        is_new = self._lines[first_at] == 0
        lines = block.rows["line"].to_numpy()
        self._lines[first_at[is_new]] = lines[rows[first_rows[is_new]]]
        self._places[first_at[is_new]] = self._names.index(block.place)
        is_first = np.zeros(len(rows), np.bool_)
        is_first[first_rows[is_new]] = True
        rows, at = rows[~is_first], at[~is_first]
        where = pl.DataFrame(
            {"row": rows, "place": pl.Series(self._names).gather(self._places[at]), "line": self._lines[at]}
        ).select(pl.col("row").cast(pl.Int64), pl.format("{} {}", "place", "line").alias("where"))
        every = pl.DataFrame({"row": pl.int_range(block.rows.height, eager=True)})
        return every.join(where, on="row", how="left", maintain_order="left")["where"]


def check(file: IO[bytes], rules: Rules, told: Callable[[int], None] = lambda _: None) -> Checked:
    """Reads the whole file; told is given the number of rows that were checked so far.

    Raises ImportMalformed if it is no file of bars, and ImportLinesInvalid with the number of wrong lines and the first forty
    of them by their numbers, counted from 1 with the header.
    """
    with readable():
        found = scan(file, rules, None, told)
        if not found.times:
            raise found.wrong.refusal() if found.wrong.count else ImportMalformed({"file": "has no bars"})
        check_close_times(found, rules)
        sorted_times = np.frombuffer(found.times, np.int64)
        sorted_times.sort()
        repeated = np.unique(sorted_times[1:][sorted_times[1:] == sorted_times[:-1]])
        row_count = len(sorted_times)
        if len(repeated):
            # Once more, now that it is known which to look for.
            del sorted_times, found
            raise scan(file, rules, Repeats(repeated), told).wrong.refusal()
        if found.wrong.count:
            raise found.wrong.refusal()
        check_distances(found, sorted_times, rules)
        # Only now: a wrong row may say a year that no datetime has.
        first, last = (EPOCH + int(each) * MICROSECOND for each in (sorted_times[0], sorted_times[-1]))
    return Checked(found.layout, row_count, first, last)


def check_close_times(found: Scanned, rules: Rules) -> None:
    """Raises ImportMalformed if all bars of the file close later than is said."""
    if not rules.follows_calendar and found.shortest is not None and found.shortest > rules.size.length:
        length = -(-found.shortest // SECOND) * SECOND
        raise ImportMalformed(
            {"header.bar_size": f"is {rules.size.name}, and by their close times the bars are {spoken(length)} long"}
        )


def check_distances(found: Scanned, sorted_times: Integers, rules: Rules) -> None:
    """Raises ImportMalformed if the bars of the file, whose close times say nothing, stand as longer ones do."""
    size = rules.size
    tells_length = not rules.follows_calendar and found.closing_count == found.row_count
    if tells_length or rules.is_sparse or len(sorted_times) < APART_BARS_MIN:
        return
    common = common_distance(sorted_times, size, in_days=rules.follows_calendar)
    multiple = common // (size.length // MICROSECOND)
    if multiple > 1 and (len(sorted_times) - 1) * math.log(multiple) >= -math.log(APART_BY_CHANCE_MAX):
        raise ImportMalformed(
            {
                "header.bar_size": f"is {size.name}, and all bars stand {spoken(common * MICROSECOND)} or multiples of it apart: "
                "give their true size, or say that the market is sparse"
            }
        )


def common_distance(sorted_times: Integers, size: BarSize, *, in_days: bool) -> int:
    """The longest time, in microseconds, of which all distances are multiples; of the size at least, as far as it is of interest."""
    common = 0
    for start in range(0, len(sorted_times) - 1, DISTANCES_AT_ONCE):
        some = sorted_times[start : start + DISTANCES_AT_ONCE + 1]
        # A trading day opens at another time of the day when the clock is changed.
        distances = np.diff(some // DAY_MICROSECONDS * DAY_MICROSECONDS if in_days else some)
        common = math.gcd(common, int(np.gcd.reduce(distances)))
        if common <= size.length // MICROSECOND and common:
            break
    return common


def spoken(length: timedelta) -> str:
    """As sizes are called."""
    seconds = length // SECOND
    return next((f"{seconds // unit}{name}" for name, unit in UNITS if seconds % unit == 0), f"{seconds}s")


def scan(file: IO[bytes], rules: Rules, repeats: Repeats | None, told: Callable[[int], None]) -> Scanned:
    found = Scanned()
    for block in blocks(file):
        found.layout = block.layout.name
        found.row_count += block.rows.height
        if found.row_count > ROWS_MAX:
            raise ImportMalformed({"file": f"has more than {ROWS_MAX} rows; split it by time"})
        rows = placed(block.rows, rules)
        repeated = repeats.of(block, rows) if repeats else pl.repeat(None, rows.height, dtype=pl.String, eager=True)
        rows = rows.with_columns(repeated.alias("repeated"))
        wrong = rows.select("line", wrongs(rules, block.layout)).filter(pl.col("wrong").is_not_null())
        found.wrong.add(block.place, wrong)
        if repeats is None:
            found.times.frombytes(rows["open_time"].drop_nulls().to_physical().to_numpy().tobytes())
            if block.layout.has_close_times:
                found.look_at_close_times(rows)
        told(found.row_count)
    return found


def placed(rows: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """The rows with the open_time at which each bar is stored, which is null where none opens, and their end_time."""
    time, size = pl.col("open_time"), rules.size
    rows = rows.with_columns(time.is_null().alias("has_no_time"))
    if rules.calendar is None or not rules.follows_calendar:
        opens_there = time == time.dt.truncate(size.name)
        return rows.with_columns(pl.when(opens_there).then(time)).with_columns((time + size.length).alias("end_time"))
    timestamps = rows["open_time"].fill_null(EPOCH).dt.epoch("ns").to_numpy()
    places = sessions.places_named(rules.calendar, size, timestamps)
    opens, ends = (pl.lit(pl.Series(each[places])) for each in sessions.spans(rules.calendar, size))
    is_named = ~pl.col("has_no_time") & pl.lit(pl.Series(places >= 0))
    return rows.with_columns(
        pl.when(is_named)
        .then(pl.from_epoch(each, "ns").dt.cast_time_unit("us").dt.replace_time_zone("UTC"))
        .alias(name)
        for name, each in (("open_time", opens), ("end_time", ends))
    )


def wrongs(rules: Rules, layout: Layout) -> pl.Expr:
    """What is wrong with a row, the first thing found; null where nothing is."""
    size = rules.size
    nowhere = f"timestamp is not where a bar of {size.name} opens"
    if (calendar := rules.calendar) is not None and rules.follows_calendar:
        nowhere = (
            f"timestamp is neither the date of a session of {calendar.name} nor within its trading day; "
            f"{sessions.covers(calendar)}"
        )
    value = wrong_value(above_zero=rules.above_zero)
    count = pl.col("trade_count")
    checks: list[tuple[pl.Expr, pl.Expr]] = [
        (pl.col("problem").is_not_null(), pl.col("problem")),
        (pl.col("has_no_time"), pl.lit("timestamp is not a time such as 2021-12-31 23:01:00")),
        (pl.col("open_time").is_null(), pl.lit(nowhere)),
        (pl.col("open_time") < EPOCH, pl.lit("timestamp is before 1970")),
        (pl.col("end_time") > rules.now, pl.lit("the bar has not ended yet")),
        (pl.col("open_time") < rules.kept_from, pl.lit(f"the bar is older than bars of {size.name} are kept")),
        *((pl.col(name).is_null(), pl.lit(f"{name} is not a number")) for name in NUMBERS),
        (value.is_not_null(), value),
        (pl.col("repeated").is_not_null(), pl.format("repeats the timestamp of {}", "repeated")),
    ]
    if layout.has_close_times and not rules.follows_calendar:
        is_longer = pl.col(CLOSE_TIME) - pl.col("open_time") > size.length
        checks.append((is_longer, pl.lit(f"close_time is after the end of a bar of {size.name}")))
    if layout.says_closed:
        checks += [
            (pl.col(CLOSED).is_null(), pl.lit("closed is neither true nor false")),
            (~pl.col(CLOSED), pl.lit("the bar was still forming when the file was written: leave it out")),
        ]
    if layout.is_counted:
        is_whole = count.is_not_null() & count.is_between(0, COUNT_MAX) & (count == count.floor())
        checks.append((~is_whole, pl.lit("the number of trades is not a whole number")))
    found = pl.lit(None, dtype=pl.String)
    for is_wrong, why in reversed(checks):
        found = pl.when(is_wrong).then(why).otherwise(found)
    return found.alias("wrong")


def slices(
    file: IO[bytes], rules: Rules, after: int = 0, told: Callable[[int], None] = lambda _: None
) -> Iterator[pl.DataFrame]:
    """The bars of a file in which nothing is wrong, beyond the first `after`, in its order; trade_count where the file has it."""
    waiting: list[pl.DataFrame] = []
    count = 0
    with readable():
        for block in blocks(file):
            told(0)
            rows = placed(block.rows, rules)
            rows = rows.select(name for name in STORED if name in rows.columns)
            skipped = min(after, rows.height)
            after -= skipped
            waiting.append(rows.slice(skipped))
            count += rows.height - skipped
            while count >= SLICE_ROWS:
                together = pl.concat(waiting)
                yield stored(together.head(SLICE_ROWS))
                waiting, count = [together.slice(SLICE_ROWS)], count - SLICE_ROWS
    if count:
        yield stored(pl.concat(waiting))


def stored(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("trade_count").cast(pl.Int64)) if "trade_count" in rows.columns else rows


@contextmanager
def readable() -> Iterator[None]:
    """Raises ImportMalformed for whatever is wrong with the form of a file."""
    try:
        with unpacked_well():
            yield
    # What polars did not foresee is no Exception; a table that it cannot read is only the file's own fault.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, struct.error, IndexError) as error:
        raise ImportMalformed({"file": f"is not readable: {str(error)[:200]}"}) from error
