"""Recorded trades, played back from a file in the order in which they happened.

A file is Parquet or CSV with the columns timestamp (milliseconds since 1970), id, side ("buy" or "sell": who took), price
and amount; others are ignored. Trades are ordered by timestamp; those of one millisecond by id where all ids are whole
numbers, otherwise as the file has them. The place of a trade in this order is the position a replay is resumed at.
"""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import polars as pl

from services.feeds.domain import Aggressor, ReplayFileInvalid, Tick

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

COLUMNS = ("timestamp", "id", "side", "price", "amount")
_RULES = {
    "timestamp": f"must be whole milliseconds since 1970, above 0 and at most {TIMESTAMP_MAX_MILLISECONDS}",
    "id": f"repeats the id of an earlier line, or has more than {ID_BYTES_MAX} bytes",
    "side": "must be buy or sell",
    "price": "must be a finite number above zero",
    "amount": "must be a finite number above zero",
}


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
                yield Tick(
                    milliseconds * 1_000_000,
                    price,
                    amount,
                    Aggressor.BUYER if is_buyer else Aggressor.SELLER,
                    trade_id,
                )


def read_recording(folder: Path | None, file: str) -> Recording:
    """Reads a file of the replay folder. Raises ReplayFileInvalid, naming wrong lines by their number."""
    with _open_inside(folder, file) as opened:
        if os.fstat(opened.fileno()).st_size > FILE_BYTES_MAX:
            raise ReplayFileInvalid(file, {"": f"is larger than {FILE_BYTES_MAX} bytes"})
        match Path(file).suffix.lower():
            case ".parquet":
                return _recording(file, _read_parquet(file, opened), first_line=1)
            case ".csv":
                return _recording(file, _read_csv(file, opened), first_line=2)
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


def _read_parquet(file: str, opened: BinaryIO) -> pl.DataFrame:
    try:
        trades = pl.read_parquet(opened, use_pyarrow=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReplayFileInvalid(file, {"": "is not Parquet"}) from error
    return _chosen(file, trades)


def _read_csv(file: str, opened: BinaryIO) -> pl.DataFrame:
    """Reads every field as text; what the text means is looked at line by line afterwards."""
    data = opened.read()
    try:
        trades = pl.read_csv(data, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReplayFileInvalid(file, _unreadable_lines(data)) from error
    return _chosen(file, trades)


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


def _chosen(file: str, trades: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in COLUMNS if name not in trades.columns]:
        raise ReplayFileInvalid(file, {"": f"lacks the columns {', '.join(missing)}"})
    return trades.select(COLUMNS)


def _recording(file: str, raw: pl.DataFrame, first_line: int) -> Recording:
    """Gives the columns their types, refuses wrong lines by number, and orders the trades."""
    if not 0 < raw.height <= TRADES_MAX:
        raise ReplayFileInvalid(file, {"": f"has {raw.height} trades where 1 to {TRADES_MAX} can be played"})
    timestamp = pl.col("timestamp")
    if isinstance(raw.schema["timestamp"], pl.Datetime):
        timestamp = timestamp.dt.epoch("ms")
    try:
        trades = raw.select(
            timestamp.cast(pl.Int64, strict=False),
            pl.col("id").cast(pl.String).fill_null(""),
            pl.col("side").cast(pl.String).str.to_lowercase(),
            pl.col("price").cast(pl.Float64, strict=False),
            pl.col("amount").cast(pl.Float64, strict=False),
        )
    except pl.exceptions.PolarsError as error:
        raise ReplayFileInvalid(file, {"": f"has a column of another kind: {error}"}) from error
    repeated = (pl.col("id") != "") & ~pl.col("id").is_first_distinct()
    sound = {
        "timestamp": pl.col("timestamp").is_between(1, TIMESTAMP_MAX_MILLISECONDS),
        "id": ~repeated & (pl.col("id").str.len_bytes() <= ID_BYTES_MAX),
        "side": pl.col("side").is_in(["buy", "sell"]),
        "price": pl.col("price").is_finite() & (pl.col("price") > 0),
        "amount": pl.col("amount").is_finite() & (pl.col("amount") > 0),
    }
    checked = trades.select(rule.fill_null(value=False).alias(name) for name, rule in sound.items())
    if wrong := _wrong_lines(checked, first_line):
        raise ReplayFileInvalid(file, wrong)
    number = pl.col("id").cast(pl.Int64, strict=False)
    by_number = trades.select(number.is_not_null().all()).item()
    order = ["timestamp", number] if by_number else ["timestamp"]
    return Recording(
        trades.sort(order, maintain_order=True).select(
            "timestamp", "id", (pl.col("side") == "buy").alias("is_buyer"), "price", "amount"
        )
    )


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
