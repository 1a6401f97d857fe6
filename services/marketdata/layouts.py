"""What the columns of a file are: by their names, or, where a vendor writes none, by their number.

Text is read in blocks of lines, tables in blocks of rows. Each block has the same columns: the line or row number, what
is wrong with the form of the line if anything is, the time, the prices, the volume, and perhaps the number of trades, the
time at which the bar closes and whether it was closed.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import polars as pl

from services.marketdata import arrow, parquet
from services.marketdata.domain import ImportMalformed
from services.marketdata.unpacking import Budget, Member, members
from services.marketdata.values import NUMBERS, PRICES

BLOCK_BYTES = 1024 * 1024
"""Of text, read at once."""
BLOCK_ROWS = 20_000
"""Of tables, read at once."""
LINE_BYTES_MAX = 64 * 1024

TIMES = ("open_time", "timestamp", "time", "datetime", "date")
"""The first of them that a file has is the time at which a bar opens."""
VOLUMES = ("volume", "vol")
TRADE_COUNTS = ("trade_count", "trades", "number_of_trades", "count")
CLOSE_TIME = "close_time"
CLOSED = "closed"
"""Whether the bar had ended when the file was written."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
SEPARATORS = ",;\t"
BINANCE = ("open_time", *NUMBERS, "close_time", "quote_volume", "count", "", "", "")
KRAKEN = ("time", *NUMBERS, "trades")
KNOWN = (
    "name time, open, high, low, close and volume, as TradingView does, "
    "or be without names the 12 columns of Binance or the 7 of Kraken"
)
TIME_TYPES = (pl.Datetime, pl.Date, pl.String)
"""Of a table's column, beside numbers."""
TIME_CHARACTERS_MAX = 64
"""A text of a table may be longer than any line, and stand in every row."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S%.f"
UTC_TIME = pl.Datetime("us", "UTC")
WITH_OFFSET = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<time>\d{2}:\d{2})(?P<seconds>:\d{2}(?:\.\d+)?)? ?"
    r"(?P<offset>Z|UTC|[+-](?:(?:0\d|1[0-3])(?::?[0-5]\d)?|14(?::?00)?))?)?$"
)
EPOCHS: Sequence[tuple[float, int, int]] = ((1e11, 1_000_000, 1), (1e14, 1_000, 1), (1e17, 1, 1), (1e20, 1, 1_000))
"""Below each magnitude, by what a number is multiplied and divided to be microseconds: seconds, ms, µs and ns."""
EPOCH_MIN = 1e8
"""A smaller number, such as 20240131, is no time: as seconds it would be before March 1973."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns a file has: the place of each that is wanted."""

    name: str
    places: dict[str, int]
    field_count: int
    separator: str = ""
    has_names: bool = True

    @property
    def is_counted(self) -> bool:
        return "trade_count" in self.places

    @property
    def has_close_times(self) -> bool:
        return CLOSE_TIME in self.places

    @property
    def says_closed(self) -> bool:
        return CLOSED in self.places


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a file, which are lines or rows of a member, as `place` says."""

    place: str
    layout: Layout
    rows: pl.DataFrame


def named(columns: Sequence[str]) -> dict[str, int] | None:
    """The places of the columns that are wanted, by their names; None if one is missing or comes twice."""
    names = [name.strip().strip('"').strip().lower().replace(" ", "_") for name in columns]
    wanted: dict[str, Sequence[str]] = {"timestamp": TIMES, **{name: (name,) for name in PRICES}, "volume": VOLUMES}
    places: dict[str, int] = {}
    for name, spellings in wanted.items():
        spelling = next((each for each in spellings if each in names), "")
        if names.count(spelling) != 1:
            return None
        places[name] = names.index(spelling)
    if counts := [each for each in TRADE_COUNTS if names.count(each) == 1]:
        places["trade_count"] = names.index(counts[0])
    return places | {each: names.index(each) for each in (CLOSE_TIME, CLOSED) if names.count(each) == 1}


def layout_of(line: str, place: str) -> Layout:
    """The layout of a CSV that begins with this line. Raises ImportMalformed."""
    separator = max(SEPARATORS, key=line.count)
    fields = split(line, separator)
    if places := named(fields):
        lower = [field.strip().lower() for field in fields]
        vendor = ""
        if "close_time" in lower or "close time" in lower:
            vendor = " of Binance"
        elif lower[:5] == ["time", *PRICES]:
            vendor = " of TradingView"
        return Layout(f"CSV{vendor}", places, len(fields), separator)
    for name, columns in (("CSV of Binance", BINANCE), ("CSV of Kraken", KRAKEN)):
        if len(fields) == len(columns) and fields[0].strip().isdecimal() and (places := named(columns)):
            return Layout(name, places, len(columns), separator, has_names=False)
    raise ImportMalformed({place: f"must {KNOWN}"})


def split(line: str, separator: str) -> list[str]:
    """The fields of a line; one whose quotes do not end is one field."""
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [""])
    except csv.Error:
        return [line]


def blocks(file: IO[bytes]) -> Iterator[Block]:
    """All rows of a file, in its order, some at a time. Raises ImportMalformed."""
    packing, found = members(file)
    first: Layout | None = None
    for member in found:
        for block in member_blocks(member):
            first = first or block.layout
            if (first.name, first.is_counted) != (block.layout.name, block.layout.is_counted):
                raise ImportMalformed({member.name: f"is {block.layout.name}, and the members before it {first.name}"})
            name = f"{first.name}, {packing}" if packing else first.name
            yield replace(block, layout=replace(block.layout, name=name))


def member_blocks(member: Member) -> Iterator[Block]:
    begins = member.content.read(8)
    stream = Rest(begins, member.content)
    if begins.startswith(arrow.CONTINUES):
        return table_blocks(member, "Arrow stream", arrow.batches_of_stream(stream, member.budget, check_types))  # type: ignore[arg-type]
    if begins.startswith((parquet.MAGIC, arrow.FILE_MAGIC)):
        name = "Parquet" if begins.startswith(parquet.MAGIC) else "Arrow file"
        if member.plain is None:
            raise ImportMalformed(
                {member.name or "file": f"is {name}, which is compressed by itself: send it unpacked"}
            )
        batches = parquet_batches(member.plain) if name == "Parquet" else file_batches(member.plain, member.budget)
        return table_blocks(member, name, batches)
    return text_blocks(member, stream)


class Rest:
    """A stream of which the first bytes were read already."""

    def __init__(self, begins: bytes, content: Any) -> None:
        self._begins, self._content = begins, content

    def read(self, count: int) -> bytes:
        if not self._begins:
            return self._content.read(count)
        taken, self._begins = self._begins[:count], self._begins[count:]
        return taken if len(taken) == count else taken + self._content.read(count - len(taken))


def text_blocks(member: Member, stream: Rest) -> Iterator[Block]:
    place = f"{member.name} line" if member.name else "line"
    layout = None
    for first, lines in lines_of(stream, place):
        if first == 1:
            lines[0] = lines[0].removeprefix("\ufeff")
        begin = 0
        if layout is None:
            begin = next((number for number, line in enumerate(lines) if line.strip()), -1)
            if begin < 0:
                continue
            layout = layout_of(lines[begin], f"{place} {first + begin}")
            begin += layout.has_names
        yield Block(place, layout, rows_of(lines[begin:], first + begin, layout))


def lines_of(stream: Rest, place: str) -> Iterator[tuple[int, list[str]]]:
    """Lines without their ends, some at a time, each time with the number of the first."""
    first, rest = 1, b""
    while piece := stream.read(BLOCK_BYTES):
        whole, newline, after = piece.rpartition(b"\n")
        if newline:
            lines = text_of(rest + whole)
            yield first, lines
            first, rest = first + len(lines), after
        else:
            rest += piece
        if len(rest) > LINE_BYTES_MAX:
            raise ImportMalformed({f"{place} {first}": f"is longer than {LINE_BYTES_MAX >> 10} KiB"})
    if rest:
        yield first, text_of(rest)


def text_of(lines: bytes) -> list[str]:
    """A byte that is no text makes its own line wrong, not the whole file unreadable."""
    return lines.decode("utf-8", "replace").split("\n")


def rows_of(lines: list[str], first: int, layout: Layout) -> pl.DataFrame:
    text = pl.DataFrame({"text": pl.Series(lines, dtype=pl.String)}).with_row_index("line", offset=first)
    text = text.with_columns(pl.col("line").cast(pl.Int64), pl.col("text").str.strip_chars_end("\r "))
    text = text.filter(pl.col("text") != "")
    if any('"' in line for line in lines):
        fields = pl.Series([split(line, layout.separator) for line in text["text"]], dtype=pl.List(pl.String))
    else:
        fields = text["text"].str.split(layout.separator)
    found = fields.list.len()
    wanted = {name: fields.list.get(place, null_on_oob=True).str.strip_chars() for name, place in layout.places.items()}
    misses = found != layout.field_count
    against = "the header" if layout.has_names else "this layout"
    return pl.DataFrame(
        {
            "line": text["line"],
            "problem": pl.select(
                pl.when(misses).then(pl.format(f"has {{}} fields, {against} {layout.field_count}", found))
            ).to_series(),
            **values_of(wanted, times),
        }
    )


def values_of(columns: Mapping[str, pl.Series], times_of: Callable[[pl.Series], pl.Series]) -> dict[str, pl.Series]:
    """What a row says; null where it is not what it must be."""
    found: dict[str, pl.Series] = {}
    for name, column in columns.items():
        if name == "timestamp":
            found["open_time"] = times_of(column)
        elif name == CLOSE_TIME:
            found[name] = times_of(column)
        else:
            found[name] = flags(column) if name == CLOSED else column.cast(pl.Float64, strict=False)
    return found


def flags(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Boolean:
        return column
    text = column.cast(pl.String, strict=False).str.to_lowercase()
    return text.replace_strict(FLAGS, default=None, return_dtype=pl.Boolean)


def parquet_batches(file: IO[bytes]) -> Iterator[pl.DataFrame]:
    file.seek(0)
    lazy = pl.scan_parquet(file)
    schema = lazy.collect_schema()
    check_types(schema)
    wanted = wanted_columns(schema.names())
    parquet.check_unpacked_bytes(file, wanted)
    row_count = lazy.select(pl.len()).collect().item()
    for start in range(0, row_count, BLOCK_ROWS):
        yield lazy.select(wanted).slice(start, BLOCK_ROWS).collect()


def file_batches(file: IO[bytes], budget: Budget) -> Iterator[pl.DataFrame]:
    """As many batches at once as make a block; each is read once."""
    row_counts = arrow.row_counts_of_file(file, budget)
    file.seek(0)
    lazy = pl.scan_ipc(file)
    schema = lazy.collect_schema()
    check_types(schema)
    lazy = lazy.select(wanted_columns(schema.names()))
    start = together = 0
    for number, row_count in enumerate(row_counts, 1):
        together += row_count
        if together >= BLOCK_ROWS or number == len(row_counts):
            yield lazy.slice(start, together).collect()
            start, together = start + together, 0


def wanted_columns(names: Sequence[str]) -> list[str]:
    places = named(names)
    if places is None:
        raise ImportMalformed({"columns": f"must {KNOWN}"})
    return [names[place] for place in places.values()]


def check_types(schema: pl.Schema) -> None:
    """Raises ImportMalformed if a column of a table cannot be what its name says."""
    names = schema.names()
    for wanted, column in zip(named(names) or {}, wanted_columns(names), strict=True):
        found = schema[column]
        if wanted in ("timestamp", CLOSE_TIME):
            fits, what = found.is_integer() or found.is_float() or found.base_type() in TIME_TYPES, "times"
        elif wanted == CLOSED:
            fits, what = found == pl.Boolean or found.is_integer(), "true or false"
        else:
            fits, what = found.is_numeric(), "numbers"
        if not fits:
            raise ImportMalformed({f"column {column}": f"must be {what}, and is of the type {str(found)[:100]}"})


def table_blocks(member: Member, name: str, batches: Iterator[pl.DataFrame]) -> Iterator[Block]:
    place = f"{member.name} row" if member.name else "row"
    first = 1
    for batch in batches:
        columns = wanted_columns(batch.columns)
        places = named(columns) or {}
        layout = Layout(name, places, len(columns))
        for rows in batch.select(columns).iter_slices(BLOCK_ROWS):
            by_name = {wanted: rows.to_series(place) for wanted, place in places.items()}
            yield Block(
                place,
                layout,
                pl.DataFrame(
                    {
                        "line": pl.int_range(first, first + rows.height, eager=True),
                        "problem": pl.repeat(None, rows.height, dtype=pl.String, eager=True),
                        **values_of(by_name, native_times),
                    }
                ),
            )
            first += rows.height


def native_times(column: pl.Series) -> pl.Series:
    """A time without a zone is in UTC."""
    if isinstance(column.dtype, pl.Datetime):
        zoned = column.dt.replace_time_zone("UTC") if column.dtype.time_zone is None else column
        return zoned.dt.convert_time_zone("UTC").cast(UTC_TIME)
    if column.dtype == pl.Date:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if column.dtype.is_integer():
        return from_epoch(column.cast(pl.Int64, strict=False))
    if column.dtype.is_float():
        return from_epoch(column.cast(pl.Float64))
    return times(column.cast(pl.String, strict=False).str.slice(0, TIME_CHARACTERS_MAX))


def times(text: pl.Series) -> pl.Series:
    """The moments that texts say, in the spellings that are usual; null for those that say none."""
    usual = text.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    found = usual.str.to_datetime(TIME_FORMAT, strict=False, time_unit="us", time_zone="UTC")
    for reading in (whole_numbers, numbers, with_offset):
        if not found.null_count():
            break
        found = found.zip_with(found.is_not_null(), reading(text))
    return found


def whole_numbers(text: pl.Series) -> pl.Series:
    return from_epoch(text.cast(pl.Int64, strict=False))


def numbers(text: pl.Series) -> pl.Series:
    return from_epoch(text.cast(pl.Float64, strict=False))


def from_epoch(number: pl.Series) -> pl.Series:
    microseconds = pl.lit(None, dtype=pl.Int64)
    value = pl.col("number")
    for below, times_so, divided_by in reversed(EPOCHS):
        scaled = value * times_so if number.dtype == pl.Float64 else value // divided_by * times_so
        scaled = scaled / divided_by if number.dtype == pl.Float64 else scaled
        microseconds = pl.when(value < below).then(scaled.round().cast(pl.Int64, strict=False)).otherwise(microseconds)
    is_time = value.is_finite() & (value >= EPOCH_MIN) if number.dtype == pl.Float64 else value >= EPOCH_MIN
    found = pl.when(is_time).then(microseconds).cast(UTC_TIME)
    return pl.DataFrame({"number": number}).select(found.alias("time")).to_series()


def with_offset(text: pl.Series) -> pl.Series:
    parts = pl.DataFrame({"text": text}).select(pl.col("text").str.extract_groups(WITH_OFFSET)).unnest("text")
    offset = pl.col("offset").fill_null("Z").str.replace(r"^(Z|UTC)$", "+0000").str.replace(":", "", literal=True)
    parts = parts.with_columns(offset.str.pad_end(5, "0").alias("offset"))
    at = pl.concat_str(
        pl.col("date"), pl.lit(" "), pl.col("time").fill_null("00:00"), pl.col("seconds").fill_null(":00")
    ).str.to_datetime(TIME_FORMAT, strict=False, time_unit="us", time_zone="UTC")
    minutes = pl.col("offset").str.slice(1, 2).cast(pl.Int64) * 60 + pl.col("offset").str.slice(3, 2).cast(pl.Int64)
    sign = pl.when(pl.col("offset").str.starts_with("-")).then(-1).otherwise(1)
    return parts.select((at - pl.duration(minutes=sign * minutes)).alias("time")).to_series()
