"""Writing many rows in one statement: columns as arrays, unnested by the server."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any


class Bulk:
    """An INSERT of any number of rows; columns maps each name to its Postgres type.

    Rows come as objects with an attribute for each column; values of an Enum are written as their value.
    """

    def __init__(self, table: str, columns: dict[str, str], conflict: str = "") -> None:
        names = ", ".join(columns)
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(columns.values(), 1))
        self.statement = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {conflict}"
        self._getters = [attrgetter(name) for name in columns]

    def arguments(self, rows: Iterable[Any]) -> Sequence[list[Any]]:
        rows = list(rows)
        return [[plain(get(row)) for row in rows] for get in self._getters]


def plain(value: Any) -> Any:
    return getattr(value, "value", value)


def upsert(key: str, columns: Iterable[str]) -> str:
    """The ON CONFLICT clause that overwrites the other columns of a row that is there."""
    assignments = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return f"ON CONFLICT ({key}) DO UPDATE SET {assignments}"
