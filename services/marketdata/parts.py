"""The parts of the tables that are divided by time: which hold what, and up to when they are dropped.

Ticks and the shorter bars stand in parts of a day, a month or a year (with TimescaleDB in chunks of 1, 30 or 365 days, which
it makes by itself), and are dropped by whole parts. `dropped` says up to when
those of each table are gone, or will be at once. Whoever writes reads it first and keeps it from moving until the commit; so
nothing is written to a part that goes, and no bar is made of others that are not all there.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from libs.bar_sizes import BAR_SIZES, EPOCH, BarSize
from libs.store.database import Connection

TICKS = "market_data_ticks"
PARTS_OF_SIZES = {
    "1s": "market_data_ohlcv_1s",
    "1m": "market_data_ohlcv_1m",
    "5m": "market_data_ohlcv_5m_15m",
    "15m": "market_data_ohlcv_5m_15m",
}
LONG = "market_data_ohlcv_1h_1w"
"""The other sizes are few bars, and stand in one table."""
UNITS = {TICKS: "M", "market_data_ohlcv_1s": "D", "market_data_ohlcv_1m": "M", "market_data_ohlcv_5m_15m": "Y"}
"""What a part of each table holds, as numpy spells it: a day, a month, a year."""

Part = tuple[str, datetime]
"""A table and the start of one of its parts."""


def table_of(size: BarSize) -> str:
    """Where bars of this size stand. `market_data_ohlcv` has those of all sizes; with TimescaleDB it can only be read."""
    return PARTS_OF_SIZES.get(size.name, LONG)


def parts_of(parent: str, seconds: NDArray[np.int64]) -> set[Part]:
    """The parts that hold these moments, which are in seconds since 1970."""
    starts = np.unique(seconds.astype("datetime64[s]").astype(f"datetime64[{UNITS[parent]}]"))
    return {(parent, start.replace(tzinfo=UTC)) for start in starts.astype("datetime64[s]").tolist()}


async def ensure(rows: Connection, parts: Iterable[Part]) -> None:
    """Makes those that are missing."""
    for parent, start in sorted(parts):
        await rows.execute("SELECT ensure_part($1, $2)", parent, start)


async def read_dropped(rows: Connection, *, hold: bool = False) -> dict[str, datetime]:
    """Up to when the parts of each table are dropped; with hold, it stays so until the commit."""
    found = await rows.fetch(f"SELECT parent, until_time FROM dropped ORDER BY parent {'FOR SHARE' if hold else ''}")
    return {row["parent"]: row["until_time"] for row in found}


async def drop_before(rows: Connection, parent: str, moment: datetime) -> None:
    """Says that the parts before the one that holds the moment are dropped. Waits for those who write, and never goes back."""
    await rows.execute(
        """
        UPDATE dropped SET until_time = start
        FROM part_start($1, $2) AS start WHERE parent = $1 AND until_time < start
        """,
        parent,
        moment,
    )


async def to_drop(rows: Connection) -> list[tuple[str, str]]:
    """The parts that are there still, each with its table."""
    return [tuple(row) for row in await rows.fetch("SELECT parent, part FROM parts_to_drop()")]


async def drop(rows: Connection, part: str) -> None:
    await rows.execute("SELECT drop_part($1)", part)


def kept_from(dropped: Mapping[str, datetime]) -> dict[str, datetime]:
    """From when on each size is kept with all the longer ones: before it, a bar of this size makes no other."""
    kept: dict[str, datetime] = {}
    newest = EPOCH
    for name in reversed(list(BAR_SIZES)):
        newest = max(newest, dropped.get(PARTS_OF_SIZES.get(name, ""), EPOCH))
        kept[name] = newest
    return kept
