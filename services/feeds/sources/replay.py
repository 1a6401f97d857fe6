"""Recorded trades, played back from files in the order in which they happened.

A file is Parquet or CSV in one of the LAYOUTS, told by its columns; others than those named are ignored. Times are in
milliseconds since 1970, or in microseconds where their size says so, or as the layout says. Trades are ordered by timestamp; those of one millisecond by id where all ids are whole
numbers, otherwise as the file has them. The place of a trade in this order is the position a replay is resumed at.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import polars as pl

from services.feeds.domain import Aggressor, ReplayFileInvalid, ReplaySource, Tick

FILE_BYTES_MAX = 1 << 30
TRADES_MAX = 20_000_000
NAMED_LINES_MAX = 100
"""So many wrong lines are told by number; the rest is counted."""
TIMESTAMP_MAX_MILLISECONDS = 9_223_372_036_854
"""The year 2262, where 64 bits of nanoseconds end."""
SLICE_TRADES = 10_000
"""Trades that are made into ticks at a time."""

ID_BYTES_MAX = 64
"""In UTF-8; what a tick takes in memory, and on its way, is bounded."""

NUMBER = re.compile(rb"[0-9]+(\.[0-9]+)?")
COLUMNS = ("timestamp", "id", "side", "price", "amount")
_RULES = {
    "timestamp": f"must be whole milliseconds since 1970, above 0 and at most {TIMESTAMP_MAX_MILLISECONDS}",
    "id": f"repeats the id of an earlier line, or has more than {ID_BYTES_MAX} bytes",
    "side": "must be buy or sell, or whether the buyer is the maker must be true or false",
    "price": "must be a finite number above zero",
    "amount": "must be a finite number above zero",
}


MICROSECONDS_FROM = 10**14
"""As milliseconds this were the year 5138: such times are microseconds, which Binance's files have since 2025."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names the columns that hold what every recording has; empty where there is none of it."""

    timestamp: str
    id: str
    price: str
    amount: str
    side: str = ""
    buyer_is_maker: str = ""
    in_seconds: bool = False

    @property
    def names(self) -> list[str]:
        names = (self.timestamp, self.id, self.side, self.buyer_is_maker, self.price, self.amount)
        return [name for name in names if name]


BINANCE_TRADES = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match")
BINANCE_AGGREGATES = (
    *("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker"),
    "is_best_match",
)
KRAKEN_TRADES = ("kraken_time", "price", "volume")
LAYOUTS = (
    Layout("timestamp", "id", "price", "amount", side="side"),
    Layout("timestamp", "trade_id", "price", "quantity", buyer_is_maker="buyer_maker"),
    Layout("time", "id", "price", "qty", buyer_is_maker="is_buyer_maker"),
    Layout("transact_time", "agg_trade_id", "price", "quantity", buyer_is_maker="is_buyer_maker"),
    Layout("kraken_time", "", "price", "volume", in_seconds=True),
)
HEADERLESS = {len(names): names for names in (KRAKEN_TRADES, BINANCE_TRADES, BINANCE_AGGREGATES)}
"""The columns of files without a header, by how many there are."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The trades of one file, in the order of their replay."""

    trades: pl.DataFrame

    def __len__(self) -> int:
        return self.trades.height

    @property
    def first_time_ns(self) -> int:
        return self.trades["timestamp"][0] * 1_000_000

    def ticks_after(self, position: int) -> Iterator[Tick]:
        """The ticks that follow the first `position` trades."""
        for start in range(position, len(self), SLICE_TRADES):
            rows = self.trades.slice(start, SLICE_TRADES)
            for milliseconds, trade_id, is_buyer, price, amount in rows.iter_rows():
                yield Tick(milliseconds * 1_000_000, price, amount, AGGRESSORS[is_buyer], trade_id)


AGGRESSORS = {True: Aggressor.BUYER, False: Aggressor.SELLER, None: None}


def read_recordings(folder: Path | None, source: ReplaySource) -> dict[str, Recording]:
    """Reads the files of a replay; the trades of each instrument, those of several files merged. Raises ReplayFileInvalid."""
    found: dict[str, Recording] = {}
    trades_left = TRADES_MAX
    for instrument in source.instruments:
        files = source.files_of(instrument.instrument_id)
        read = [read_recording(folder, file) for file in files]
        found[instrument.instrument_id] = read[0] if len(read) == 1 else _ordered(_once(read))
        trades_left -= len(found[instrument.instrument_id])
        if trades_left < 0:
            raise ReplayFileInvalid(
                files[-1], {"": f"makes the replay longer than the {TRADES_MAX} trades that can be played"}
            )
    return found


def _once(recordings: Sequence[Recording]) -> pl.DataFrame:
    """All their trades; what several have of one id, as in files that overlap, once."""
    trades = pl.concat([each.trades for each in recordings])
    return trades.filter((pl.col("id") == "") | pl.col("id").is_first_distinct())


def read_recording(folder: Path | None, file: str) -> Recording:
    """Reads a file of the replay folder. Raises ReplayFileInvalid, naming wrong lines by their number."""
    with _open_inside(folder, file) as opened:
        if os.fstat(opened.fileno()).st_size > FILE_BYTES_MAX:
            raise ReplayFileInvalid(file, {"": f"is larger than {FILE_BYTES_MAX} bytes"})
        match Path(file).suffix.lower():
            case ".parquet":
                return _recording(file, *_read_parquet(file, opened), first_line=1)
            case ".csv":
                trades, layout, has_header = _read_csv(file, opened)
                return _recording(file, trades, layout, first_line=2 if has_header else 1)
            case _:
                raise ReplayFileInvalid(file, {"": "must end in .parquet or .csv"})


def _open_inside(folder: Path | None, file: str) -> BinaryIO:
    """Opens a regular file that lies in the folder also after all links were followed."""
    if folder is None:
        raise ReplayFileInvalid(file, {"": "cannot be played: the operator has opened no replay folder"})
    missing = ReplayFileInvalid(file, {"": "is no file in the replay folder"})
    if "\0" in file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise missing
    try:
        root = folder.resolve(strict=True)
        path = (root / file).resolve(strict=True)
        if not path.is_relative_to(root):
            raise missing
        # The path holds no link any more; should one be put there now, it is not followed. A pipe would block: not asked.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:
        raise missing from error
    if not S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise missing
    return os.fdopen(handle, "rb")


def _read_parquet(file: str, opened: BinaryIO) -> tuple[pl.DataFrame, Layout]:
    try:
        trades = pl.read_parquet(opened, use_pyarrow=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReplayFileInvalid(file, {"": "is not Parquet"}) from error
    return trades, _layout_of(file, trades.columns)


def _read_csv(file: str, opened: BinaryIO) -> tuple[pl.DataFrame, Layout, bool]:
    """Reads every field as text, and says whether the first line is a header.

    What the text means is looked at line by line afterwards.
    """
    data = opened.read()
    first = data[: data.find(b"\n")].removeprefix(b"\xef\xbb\xbf").strip().split(b",")
    names = HEADERLESS.get(len(first)) if NUMBER.fullmatch(first[0]) else None
    try:
        trades = pl.read_csv(data, infer_schema=False, has_header=names is None, new_columns=names)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReplayFileInvalid(file, _unreadable_lines(data)) from error
    return trades, _layout_of(file, trades.columns), names is None


def _layout_of(file: str, columns: Sequence[str]) -> Layout:
    for layout in LAYOUTS:
        if set(layout.names) <= set(columns):
            return layout
    lacking = min(([name for name in layout.names if name not in columns] for layout in LAYOUTS[:-1]), key=len)
    raise ReplayFileInvalid(file, {"": f"lacks the columns {', '.join(lacking)}"})


def _unreadable_lines(data: bytes) -> dict[str, str]:
    """Finds the lines of a CSV that have another number of fields than its header, or are no text."""
    wrong: dict[str, str] = {}
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        width = len(next(lines, []))
        for line in lines:
            if len(line) != width:
                wrong[f"line {lines.line_num}"] = f"has {len(line)} fields where the header has {width}"
            if len(wrong) == NAMED_LINES_MAX:
                break
    except (UnicodeDecodeError, csv.Error) as error:
        wrong[""] = f"is not CSV in UTF-8: {error}"
    return wrong or {"": "is not CSV with a header and at least one trade"}


def _recording(file: str, raw: pl.DataFrame, layout: Layout, first_line: int) -> Recording:
    """Gives the columns their types, refuses wrong lines by number, and orders the trades."""
    if not 0 < raw.height <= TRADES_MAX:
        raise ReplayFileInvalid(file, {"": f"has {raw.height} trades where 1 to {TRADES_MAX} can be played"})
    try:
        trades = raw.select(
            _milliseconds(raw, layout).alias("timestamp"),
            (pl.col(layout.id) if layout.id else pl.lit("")).cast(pl.String).fill_null("").alias("id"),
            _side(layout).alias("side"),
            pl.col(layout.price).cast(pl.Float64, strict=False).alias("price"),
            pl.col(layout.amount).cast(pl.Float64, strict=False).alias("amount"),
        )
    except pl.exceptions.PolarsError as error:
        raise ReplayFileInvalid(file, {"": f"has a column of another kind: {error}"}) from error
    repeated = (pl.col("id") != "") & ~pl.col("id").is_first_distinct()
    sound = {
        "timestamp": pl.col("timestamp").is_between(1, TIMESTAMP_MAX_MILLISECONDS),
        "id": ~repeated & (pl.col("id").str.len_bytes() <= ID_BYTES_MAX),
        "side": pl.col("side").is_in(["buy", "sell"]) if layout.side or layout.buyer_is_maker else pl.lit(value=True),
        "price": pl.col("price").is_finite() & (pl.col("price") > 0),
        "amount": pl.col("amount").is_finite() & (pl.col("amount") > 0),
    }
    checked = trades.select(rule.fill_null(value=False).alias(name) for name, rule in sound.items())
    if wrong := _wrong_lines(checked, first_line):
        raise ReplayFileInvalid(file, wrong)
    return _ordered(trades.select("timestamp", "id", (pl.col("side") == "buy").alias("is_buyer"), "price", "amount"))


def _milliseconds(raw: pl.DataFrame, layout: Layout) -> pl.Expr:
    timestamp = pl.col(layout.timestamp)
    if isinstance(raw.schema[layout.timestamp], pl.Datetime):
        return timestamp.dt.epoch("ms").cast(pl.Int64)
    if layout.in_seconds:
        return (timestamp.cast(pl.Float64, strict=False) * 1000).round().cast(pl.Int64, strict=False)
    whole = timestamp.cast(pl.Int64, strict=False)
    return pl.when(whole >= MICROSECONDS_FROM).then(whole // 1000).otherwise(whole)


def _side(layout: Layout) -> pl.Expr:
    if layout.buyer_is_maker:
        maker = pl.col(layout.buyer_is_maker).cast(pl.String).str.to_lowercase()
        return maker.replace_strict({"true": "sell", "false": "buy"}, default="neither", return_dtype=pl.String)
    return pl.col(layout.side).cast(pl.String).str.to_lowercase() if layout.side else pl.lit(None, pl.String)


def _ordered(trades: pl.DataFrame) -> Recording:
    number = pl.col("id").cast(pl.Int64, strict=False)
    by_number = trades.select(number.is_not_null().all()).item()
    order = ["timestamp", number] if by_number else ["timestamp"]
    return Recording(trades.sort(order, maintain_order=True))


def _wrong_lines(checked: pl.DataFrame, first_line: int) -> dict[str, str]:
    """The first hundred wrong lines, each with every rule it breaks, and how many more there are."""
    wrong = checked.with_row_index("line", offset=first_line).filter(~pl.all_horizontal(COLUMNS))
    told = {
        f"line {row['line']}": "; ".join(f"{name} {_RULES[name]}" for name in COLUMNS if not row[name])
        for row in wrong.head(NAMED_LINES_MAX).iter_rows(named=True)
    }
    if wrong.height > NAMED_LINES_MAX:
        told["lines"] = f"{wrong.height} are wrong; the first {NAMED_LINES_MAX} are named"
    return told
