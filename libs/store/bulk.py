"""Writing many rows in one statement: columns as arrays, unnested by the server; and several statements in one."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from libs.store.database import Connection


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


class Together:
    """Writes that nobody reads before the commit, collected and sent in one round trip instead of one for each.

    They see the rows as they are when sent, not each other's: no row may be written by two of them.
    """

    def __init__(self, rows: Connection) -> None:
        self._rows = rows
        self._statements: list[str] = []
        self._arguments: list[Any] = []

    async def execute(self, statement: str, *arguments: Any) -> None:
        """Collects one INSERT, UPDATE or DELETE, as Connection.execute would have run it."""
        self._statements.append(statement)
        self._arguments += arguments

    def after_commit(self, callback: Callable[[], None]) -> None:
        self._rows.after_commit(callback)

    async def send(self) -> None:
        """Runs what was collected; an error is of the whole."""
        statements, arguments = tuple(self._statements), self._arguments
        self._statements, self._arguments = [], []
        if statements:
            await self._rows.execute(together(statements), *arguments)


@functools.lru_cache(maxsize=64)
def together(statements: tuple[str, ...]) -> str:
    """One statement that does what these do, with their parameters numbered on."""
    parts: list[str] = []
    before = 0
    for number, statement in enumerate(statements):
        used = [int(parameter) for parameter in re.findall(r"\$(\d+)", statement)]
        shift = before
        numbered = re.sub(r"\$(\d+)", lambda found, shift=shift: f"${int(found[1]) + shift}", statement)
        parts.append(f"part_{number} AS ({numbered})")
        before += max(used, default=0)
    # What changes data runs to its end whether it is asked for or not.
    return f"WITH {', '.join(parts)} SELECT"
