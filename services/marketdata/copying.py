"""Rows as COPY takes them in its binary form, made of columns: nothing is done row by row."""

import functools
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.store.database import Connection

BEGINS, ENDS = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
POSTGRES_EPOCH_SECONDS = 946_684_800
"""Postgres counts from the year 2000."""


def encoded(kinds: Mapping[str, str], values: Mapping[str, Any], number: int) -> bytes:
    """So many rows of columns of these kinds, as numpy spells what COPY wants; a value may be one for all of them."""
    records = np.repeat(record(tuple(kinds.items())), number)
    for name, column in values.items():
        if name in (records.dtype.names or ()):  # a text without a letter takes no place
            records[name] = column
    return records.tobytes()


@functools.lru_cache(maxsize=1_024)
def record(kinds: tuple[tuple[str, str], ...]) -> NDArray[np.void]:
    """What all rows of a form have alike: the number of their columns, and each column's length before it."""
    sizes = {name: np.dtype(kind).itemsize for name, kind in kinds}
    names = [("columns", ">i2")]
    for name, kind in kinds:
        names += [(f"length of {name}", ">i4"), *([(name, kind)] if sizes[name] else [])]
    made = np.zeros(1, names)
    made["columns"] = len(kinds)
    for name, size in sizes.items():
        made[f"length of {name}"] = size
    return made


def row_bytes(kinds: Mapping[str, str]) -> int:
    """How long a row of these columns is."""
    return record(tuple(kinds.items())).dtype.itemsize


def decoded(kinds: Mapping[str, str], content: bytes) -> NDArray[np.void]:
    """Rows of these columns, none of which is null, as COPY gave them."""
    return np.frombuffer(content, record(tuple(kinds.items())).dtype)


async def copy(rows: Connection, table: str, columns: Sequence[str], content: bytes) -> None:
    """Stores rows that are encoded, one after the other."""
    await rows.copy_to_table(table, source=BytesIO(BEGINS + content + ENDS), format="binary", columns=[*columns])
