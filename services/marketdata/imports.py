"""Reads a file of bars of one size, and finds every line that is wrong.

The file is CSV in UTF-8. Its first line names the columns; timestamp, open, high, low, close and volume must be among them,
in any order, and others are passed over. Values are not quoted. A timestamp is the bar's open time in UTC, such as
"2021-12-31 23:01:00", "2021-12-31T23:01:00Z" or with a fraction, at which a bar of the size opens. Of an instrument with a
calendar, that of a day or week is its date at midnight or a moment within it (sessions.places_named). Bars may be in any
order; blank lines count as lines and hold no bar.
"""

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from libs.errors import Invalid
from services.marketdata import sessions
from services.marketdata.domain import (
    BAR_SIZE_USUAL,
    BAR_SIZES,
    CALENDAR_SIZES,
    EPOCH,
    BarSize,
    ImportLinesInvalid,
    ImportMalformed,
)
from services.marketdata.sessions import Calendar

FILE_BYTES_MAX = 256 * 1024 * 1024
NAMED_LINES_MAX = 40
"""As many as fit into a status whatever is wrong with them."""
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
NUMBERS = COLUMNS[1:]
NO_LINE_HAS_IT = "\x01"
"""As a separator it keeps every line whole."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S%.f"
UTC_SUFFIX = r"(Z|\+00:?00)$"


def read_bars(
    content: bytes,
    now: datetime,
    size: BarSize = BAR_SIZES[BAR_SIZE_USUAL],
    kept_from: datetime = EPOCH,
    calendar: Calendar | None = None,
) -> pl.DataFrame:
    """The file's bars by time: open_time, open, high, low, close, volume.

    A bar must have ended before now, and not be older than bars of its size are kept.

    Raises ImportMalformed if it is no such file, and ImportLinesInvalid with the number of wrong lines and the first
    forty of them by their numbers, counted from 1 with the header.
    """
    lines = whole_lines(content)
    names = header(lines)
    bars = (
        lines.slice(1)
        .filter(pl.col("text") != "")
        .with_columns(pl.col("text").str.split(",").alias("fields"))
        .with_columns(
            pl.col("fields").list.len().alias("field_count"),
            *(
                pl.col("fields").list.get(names.index(name), null_on_oob=True).str.strip_chars().alias(name)
                for name in COLUMNS
            ),
        )
        .with_columns(
            pl.col("timestamp")
            .str.replace("T", " ", literal=True)
            .str.replace(UTC_SUFFIX, "")
            .str.to_datetime(TIME_FORMAT, strict=False, time_unit="us", time_zone="UTC")
            .alias("open_time"),
            *(pl.col(name).cast(pl.Float64, strict=False) for name in NUMBERS),
        )
    )
    if bars.is_empty():
        raise ImportMalformed({"chunk": "has no bars"})
    bars = placed(bars, size, calendar)
    found = (
        bars.with_columns(wrong(len(names), size, now, kept_from, calendar))
        .filter(pl.col("wrong").is_not_null())
        .select("line", "wrong")
    )
    if not found.is_empty():
        raise lines_invalid(found)
    return bars.select("open_time", *NUMBERS).sort("open_time")


def placed(bars: pl.DataFrame, size: BarSize, calendar: Calendar | None) -> pl.DataFrame:
    """The bars with the open_time at which each is stored, which is null where none opens, and their end_time."""
    time = pl.col("open_time")
    bars = bars.with_columns(time.is_null().alias("has_no_time"))
    if calendar is None or size not in CALENDAR_SIZES:
        opens_there = time == time.dt.truncate(size.name)
        return bars.with_columns(pl.when(opens_there).then(time)).with_columns((time + size.length).alias("end_time"))
    timestamps = bars["open_time"].fill_null(EPOCH).dt.epoch("ns").to_numpy()
    places = sessions.places_named(calendar, size, timestamps)
    opens, ends = (pl.lit(pl.Series(each[places])) for each in sessions.spans(calendar, size))
    is_named = ~pl.col("has_no_time") & pl.lit(pl.Series(places >= 0))
    return bars.with_columns(
        pl.when(is_named)
        .then(pl.from_epoch(each, "ns").dt.cast_time_unit("us").dt.replace_time_zone("UTC"))
        .alias(name)
        for name, each in (("open_time", opens), ("end_time", ends))
    )


def whole_lines(content: bytes) -> pl.DataFrame:
    if not content.strip():
        raise ImportMalformed({"chunk": "the file is empty"})
    lines = pl.read_csv(
        content.removeprefix(b"\xef\xbb\xbf").replace(NO_LINE_HAS_IT.encode(), b"?"),
        separator=NO_LINE_HAS_IT,
        quote_char=None,
        has_header=False,
        new_columns=["text"],
        infer_schema=False,
        # A byte that is no text makes its own line wrong, not the whole file unreadable.
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
    )
    return lines.select(pl.col("text").fill_null("").str.strip_chars_end("\r ")).with_row_index("line", offset=1)


def header(lines: pl.DataFrame) -> list[str]:
    names = [name.strip().lower() for name in lines["text"][0].split(",")]
    missing = [name for name in COLUMNS if names.count(name) != 1]
    if missing:
        raise ImportMalformed({"line 1": f"must name each of these columns once: {', '.join(missing)}"})
    return names


def wrong(field_count: int, size: BarSize, now: datetime, kept_from: datetime, calendar: Calendar | None) -> pl.Expr:
    """What is wrong with a line, the first thing found; null where nothing is."""
    nowhere = f"timestamp is not where a bar of {size.name} opens"
    if calendar is not None and size in CALENDAR_SIZES:
        nowhere = f"timestamp is neither the date of a session of {calendar.name} nor within its trading day"
    low_of_two, high_of_two = pl.min_horizontal("open", "close"), pl.max_horizontal("open", "close")
    checks: list[tuple[pl.Expr, pl.Expr]] = [
        (
            pl.col("field_count") != field_count,
            pl.format(f"has {{}} fields, the header {field_count}", "field_count"),
        ),
        (pl.col("has_no_time"), pl.lit("timestamp is not a time such as 2021-12-31 23:01:00")),
        (pl.col("open_time").is_null(), pl.lit(nowhere)),
        (pl.col("open_time") < EPOCH, pl.lit("timestamp is before 1970")),
        (pl.col("end_time") > now, pl.lit("the bar has not ended yet")),
        (pl.col("open_time") < kept_from, pl.lit(f"the bar is older than bars of {size.name} are kept")),
        *((pl.col(name).is_null(), pl.lit(f"{name} is not a number")) for name in NUMBERS),
        *((~pl.col(name).is_finite(), pl.lit(f"{name} is not finite")) for name in NUMBERS),
        (pl.col("high") < pl.col("low"), pl.lit("high is below low")),
        (pl.col("high") < high_of_two, pl.lit("high is below open or close")),
        (pl.col("low") > low_of_two, pl.lit("low is above open or close")),
        (pl.col("volume") < 0, pl.lit("volume is negative")),
        (
            ~pl.col("open_time").is_first_distinct(),
            pl.format("repeats the timestamp of line {}", pl.col("line").first().over("open_time")),
        ),
    ]
    found = pl.lit(None, dtype=pl.String)
    for is_wrong, why in reversed(checks):
        found = pl.when(is_wrong).then(why).otherwise(found)
    return found.alias("wrong")


def lines_invalid(found: pl.DataFrame) -> Invalid:
    named: Mapping[str, str] = {f"line {line}": why for line, why in found.head(NAMED_LINES_MAX).iter_rows()}
    count = found.height
    first, why = found.row(0)
    return ImportLinesInvalid(
        named,
        f"{count} {'line is' if count == 1 else 'lines are'} wrong, the first is line {first}: {why}; nothing was imported",
        line=first,
        wrong_lines=count,
    )
