"""What the columns of a file are: by their names, or, where a vendor writes none, by their number.

Text is read in blocks of lines, tables in blocks of rows. Each block has the same columns: the line or row number, what
is wrong with the form of the line if anything is, the time, the prices, the volume, and perhaps the number of trades, the
time at which the bar closes and whether it was closed.
"""

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import polars as pl

from services.marketdata import arrow, parquet
from services.marketdata.domain import ImportMalformed
from services.marketdata.unpacking import GZIP, ZIP, Budget, Member, Rest, members
from services.marketdata.values import NUMBERS, PRICES

BLOCK_BYTES = 1024 * 1024
"""Of text, read at once."""
BLOCK_ROWS = 20_000
"""Of tables, read at once."""
LINE_BYTES_MAX = 64 * 1024

TIMES = ("open_time", "timestamp", "time", "datetime", "unix", "unix_timestamp", "date")
"""The first of them that a file has is the time at which a bar opens."""
DATE = "date"
"""The day of a time that is a clock's."""
VOLUMES = ("volume", "vol", "tickvol")
"""The first of them. MetaTrader's ticks are the volume where it knows no other."""
TRADE_COUNTS = ("trade_count", "trades", "number_of_trades", "count", "tradecount")
CLOSE_TIME = "close_time"
CLOSED = "closed"
"""Whether the bar had ended when the file was written."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
SEPARATORS = ",;\t"
BINANCE = ("open_time", *NUMBERS, "close_time", "quote_volume", "count", "", "", "")
KRAKEN = ("time", *NUMBERS, "trades")
TRADINGVIEW = ("time", *PRICES)
"""Indices and currencies come without a volume."""
LIKE_VOLUMES = ("vol", "qty", "quantity", "amount", "turnover", "size")
"""Parts of names that others give a volume: a file with one is not taken to have none."""
CRYPTO_DATA_DOWNLOAD = ("unix", "date", "symbol", *PRICES)
"""Then come the volumes, in the asset and in the quote."""
KNOWN = (
    "name time (or date and time), open, high, low, close and volume, as TradingView, MetaTrader and CryptoDataDownload do, "
    "or be without names the 12 columns of Binance or the 7 of Kraken"
)
ADDRESS = re.compile(r"\s*https?://[^\s,;]*\s*")
"""Of whom the file is from, in a line before the header."""
BEGINS_BYTES = 512
"""Read first, to know what the rest is."""
TAR_PLACE, TAR = 257, b"ustar"
FOREIGN: Mapping[bytes, str] = {
    GZIP: "is packed twice; unpack it once",
    **dict.fromkeys(ZIP, "is packed twice; unpack it once"),
    b"\xfd7zXZ\0": "is packed by xz; pack it by gzip or zip, or not at all",
    b"BZh91AY&SY": "is packed by bzip2; pack it by gzip or zip, or not at all",
    b"(\xb5/\xfd": "is packed by zstd; pack it by gzip or zip, or not at all",
    b"7z\xbc\xaf\x27\x1c": "is packed by 7-Zip; pack it by gzip or zip, or not at all",
    b"Rar!\x1a\x07": "is packed by RAR; pack it by gzip or zip, or not at all",
    b"\xd0\xcf\x11\xe0": "is a workbook, as of Excel; save its sheet as CSV",
    b"SQLite format 3\0": "is a database of SQLite; write its bars as CSV",
    b"%PDF": "is a PDF; write its bars as CSV",
    b"\xff\xfe\0\0": "is text in UTF-32; save it as UTF-8",
    b"\0\0\xfe\xff": "is text in UTF-32; save it as UTF-8",
}
"""What else people have, by its first bytes, and what to do with it."""
FOREIGN_TEXT: Mapping[bytes, str] = {
    **dict.fromkeys(
        (b"<!doctype", b"<html", b"<?xml"), "is a page of the web or XML, and no bars; fetch the file itself"
    ),
    **dict.fromkeys((b"{", b"["), "is JSON; write its bars as CSV"),
}
UTF_8, UTF_16 = codecs.BOM_UTF8, (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NO_TEXT = "\N{REPLACEMENT CHARACTER}"
TIME_TYPES = (pl.Datetime, pl.Date, pl.String)
"""Of a table's column, beside numbers."""
TIME_CHARACTERS_MAX = 64
"""A text of a table may be longer than any line, and stand in every row."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S%.f"
UTC_TIME = pl.Datetime("us", "UTC")
DAY_MICROSECONDS = 86_400_000_000
DAYS_MAX = 10_000_000
"""Of a table's dates, either way of 1970: those beyond are wrong as these are, and have no number of microseconds."""
WITH_OFFSET = (
    r"^(?P<date>\d{4}-\d{2}-\d{2}|\d{4}\.\d{2}\.\d{2}|\d{4}/\d{2}/\d{2})"
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
    names = names_of(columns)
    wanted = spellings(names)
    if any(names.count(spelling) != 1 for spelling in wanted.values()):
        return None
    places = {name: names.index(spelling) for name, spelling in wanted.items()}
    if counts := [each for each in TRADE_COUNTS if names.count(each) == 1]:
        places["trade_count"] = names.index(counts[0])
    return places | {each: names.index(each) for each in (CLOSE_TIME, CLOSED) if names.count(each) == 1}


def names_of(columns: Sequence[str]) -> list[str]:
    """As they are compared: vendors write them in capitals, quotes or angle brackets."""
    names = [name.strip().strip('"').strip().strip("<>").lower().replace(" ", "_") for name in columns]
    is_volume_of_asset = tuple(names[:7]) == CRYPTO_DATA_DOWNLOAD and names[7:8] and names[7].startswith("volume_")
    return [*names[:7], "volume", *names[8:]] if is_volume_of_asset else names


def spellings(names: Sequence[str]) -> dict[str, str]:
    """How the columns that must be there are called; empty for one that is not."""
    wanted: dict[str, Sequence[str]] = {"timestamp": TIMES, **{name: (name,) for name in PRICES}, "volume": VOLUMES}
    return {name: next((each for each in usual if each in names), "") for name, usual in wanted.items()}


def unknown(columns: Sequence[str]) -> str:
    """What a header must be, and why this one is not."""
    names = names_of(columns)
    wanted = spellings(names)
    missing = ["time" if name == "timestamp" else name for name, spelling in wanted.items() if not spelling]
    if len(missing) == len(wanted) and all(name[:1].isdecimal() for name in names[:5]):
        return f"must {KNOWN}; it has {len(names)} columns and no names: write them into a line before it"
    twice = [spelling for spelling in wanted.values() if names.count(spelling) > 1]
    why = [f"no {', '.join(missing)}"] if missing else []
    why += [f"{', '.join(twice)} more than once"] if twice else []
    return f"must {KNOWN}; it names {' and '.join(why)}"


def layout_of(line: str, place: str, *, is_member: bool = False) -> Layout:
    """The layout of a CSV that begins with this line, perhaps one of several. Raises ImportMalformed."""
    if NO_TEXT in line:
        raise ImportMalformed({place: "is not in UTF-8, perhaps in Latin-1; save the file as UTF-8"})
    separator = max(SEPARATORS, key=line.count)
    fields = split(line, separator)
    lower = [field.strip().lower() for field in fields]
    if places := named(fields):
        names = names_of(fields)
        if names[places["timestamp"]] == "time" and names.count(DATE) == 1:
            places[DATE] = names.index(DATE)
        vendor = ""
        if "close_time" in lower or "close time" in lower:
            vendor = " of Binance"
        elif tuple(lower[:5]) == TRADINGVIEW:
            vendor = " of TradingView"
        elif "<tickvol>" in lower:
            vendor = " of MetaTrader"
        elif tuple(lower[:7]) == CRYPTO_DATA_DOWNLOAD:
            vendor = " of CryptoDataDownload"
        return Layout(f"CSV{vendor}", places, len(fields), separator)
    if tuple(lower[:5]) == TRADINGVIEW and not any(part in name for part in LIKE_VOLUMES for name in lower):
        places = {"timestamp": 0, **{name: place for place, name in enumerate(PRICES, 1)}}
        return Layout("CSV of TradingView without volume", places, len(fields), separator)
    for name, columns in (("CSV of Binance", BINANCE), ("CSV of Kraken", KRAKEN)):
        if len(fields) == len(columns) and fields[0].strip().isdecimal() and (places := named(columns)):
            return Layout(name, places, len(columns), separator, has_names=False)
    aside = "; if it has no bars, leave it out of the zip" if is_member else ""
    raise ImportMalformed({place: f"{unknown(fields)}{aside}"})


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
    first: Layout | None = None
    for member in members(file):
        for block in member_blocks(member):
            first = first or block.layout
            if (first.name, first.is_counted) != (block.layout.name, block.layout.is_counted):
                raise ImportMalformed({member.name: f"is {block.layout.name}, and the members before it {first.name}"})
            name = f"{first.name}, {member.packing}" if member.packing else first.name
            yield replace(block, layout=replace(block.layout, name=name))


def member_blocks(member: Member) -> Iterator[Block]:
    begins = member.content.read(BEGINS_BYTES)
    stream: Any = Rest(begins, member.content)
    if begins.startswith(arrow.CONTINUES):
        return table_blocks(member, "Arrow stream", arrow.batches_of_stream(stream, member.budget, check_types))
    if begins.startswith((parquet.MAGIC, arrow.FILE_MAGIC)):
        name = "Parquet" if begins.startswith(parquet.MAGIC) else "Arrow file"
        if member.plain is None:
            raise ImportMalformed(
                {member.name or "file": f"is {name}, which is compressed by itself: send it unpacked"}
            )
        batches = parquet_batches(member.plain) if name == "Parquet" else file_batches(member.plain, member.budget)
        return table_blocks(member, name, batches)
    if why := why_foreign(begins):
        raise ImportMalformed({member.name or "file": why})
    return text_blocks(member, Utf16(stream) if begins.startswith(UTF_16) else stream)


def why_foreign(begins: bytes) -> str:
    """Why a file that begins so has no bars that can be read, and what to do; empty if it may have."""
    if begins[TAR_PLACE:].startswith(TAR):
        return "is a tar; pack its files in a zip"
    text = begins.removeprefix(UTF_8).lstrip().lower()
    for found, foreign in ((begins, FOREIGN), (text, FOREIGN_TEXT)):
        if why := next((why for magic, why in foreign.items() if found.startswith(magic)), ""):
            return why
    if b"\0" in begins and not begins.startswith(UTF_16):
        return "has zero bytes and so is no text in UTF-8, perhaps UTF-16 without its mark; save it as CSV in UTF-8"
    return ""


class Utf16:
    """A stream of text in UTF-16, read as UTF-8. What is no text becomes a mark that makes its line wrong."""

    def __init__(self, stream: Rest) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-16")("replace")

    def read(self, count: int) -> bytes:
        while piece := self._stream.read(count):
            if text := self._decoder.decode(piece):
                return text.encode()
        return self._decoder.decode(b"", final=True).encode()


def text_blocks(member: Member, stream: Any) -> Iterator[Block]:
    place = f"{member.name} line" if member.name else "line"
    layout = None
    for first, lines in lines_of(stream, place):
        if first == 1:
            lines[0] = lines[0].removeprefix("\ufeff")
        begin = 0
        if layout is None:
            begin = next((number for number, line in enumerate(lines) if not is_before_header(line)), -1)
            if begin < 0:
                continue
            layout = layout_of(lines[begin], f"{place} {first + begin}", is_member=bool(member.name))
            begin += layout.has_names
        yield Block(place, layout, rows_of(lines[begin:], first + begin, layout))


def is_before_header(line: str) -> bool:
    return not line.strip() or ADDRESS.fullmatch(line) is not None


def lines_of(stream: Any, place: str) -> Iterator[tuple[int, list[str]]]:
    """Lines without their ends, some at a time, each time with the number of the first.

    Where no line ends as on Unix or Windows, they end as on old Macs.
    """
    first, rest, end = 1, b"", b""
    while piece := stream.read(BLOCK_BYTES):
        end = end or next((each for each in (b"\n", b"\r") if each in piece), b"")
        whole, found, after = piece.rpartition(end) if end else (b"", b"", piece)
        if found:
            lines = text_of(rest + whole, end)
            yield first, lines
            first, rest = first + len(lines), after
        else:
            rest += piece
        if len(rest) > LINE_BYTES_MAX:
            raise ImportMalformed({f"{place} {first}": f"is longer than {LINE_BYTES_MAX >> 10} KiB"})
    if rest:
        yield first, text_of(rest, end or b"\n")


def text_of(lines: bytes, end: bytes) -> list[str]:
    """A byte that is no text makes its own line wrong, not the whole file unreadable."""
    return lines.decode("utf-8", "replace").split(end.decode())


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
            **values_of({"volume": pl.repeat(0.0, text.height, eager=True)} | wanted, times),
        }
    )


def values_of(columns: Mapping[str, pl.Series], times_of: Callable[[pl.Series], pl.Series]) -> dict[str, pl.Series]:
    """What a row says; null where it is not what it must be."""
    found: dict[str, pl.Series] = {}
    for name, column in columns.items():
        if name == "timestamp":
            found["open_time"] = times_of(joined(columns[DATE], column) if DATE in columns else column)
        elif name == DATE:
            continue
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
        raise ImportMalformed({"columns": unknown(names)})
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
        days = column.to_physical().cast(pl.Int64).clip(-DAYS_MAX, DAYS_MAX)
        return (days * DAY_MICROSECONDS).cast(UTC_TIME)
    if column.dtype.is_integer():
        return from_epoch(column.cast(pl.Int64, strict=False))
    if column.dtype.is_float():
        return from_epoch(column.cast(pl.Float64))
    return times(column.cast(pl.String, strict=False).str.slice(0, TIME_CHARACTERS_MAX))


def joined(dates: pl.Series, clocks: pl.Series) -> pl.Series:
    """The texts of moments, of a day and a clock each; where the clock says a moment by itself, that alone."""
    date = pl.col("date").str.replace(r"^(\d{4})[./]?(\d{2})[./]?(\d{2})$", "$1-$2-$3")
    clock = (
        pl.col("clock")
        .str.replace(r"^(\d):", "0$1:")
        .str.replace(r"^(\d{2})(\d{2})(\d{2})$", "$1:$2:$3")
        .str.replace(r"^(\d{2}):?(\d{2})$", "$1:$2:00")
    )
    is_clock = clock.str.contains(r"^\d{2}:\d{2}")
    moment = pl.when(is_clock).then(pl.concat_str(date, pl.lit(" "), clock)).otherwise(pl.col("clock"))
    return pl.DataFrame({"date": dates, "clock": clocks}).select(moment.alias("time")).to_series()


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
        pl.col("date").str.replace_all("[./]", "-"),
        pl.lit(" "),
        pl.col("time").fill_null("00:00"),
        pl.col("seconds").fill_null(":00"),
    ).str.to_datetime(TIME_FORMAT, strict=False, time_unit="us", time_zone="UTC")
    minutes = pl.col("offset").str.slice(1, 2).cast(pl.Int64) * 60 + pl.col("offset").str.slice(3, 2).cast(pl.Int64)
    sign = pl.when(pl.col("offset").str.starts_with("-")).then(-1).otherwise(1)
    return parts.select((at - pl.duration(minutes=sign * minutes)).alias("time")).to_series()
