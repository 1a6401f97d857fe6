"""Where ticks live: appended as they come, in spans of sequences without a gap, and read again by who resumes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, Tick, TickBatch

from libs.bar_sizes import EPOCH
from libs.bus.feed import Cursor
from libs.mesh.wire import timestamp
from libs.store.database import Connection
from services.marketdata import copying, tick_bytes
from services.marketdata.bars import NUMBER_DIGITS_MAX
from services.marketdata.columns import Flags, Texts, Ticks
from services.marketdata.copying import POSTGRES_EPOCH_SECONDS
from services.marketdata.tick_bytes import TickColumns
from services.marketdata.turns import in_pieces

BATCH_TICKS_MAX = 500
SENT = {
    "sequence": ("int8send", ">i8"),
    "epoch": ("int8send", ">i8"),
    "time": ("timestamptz_send", ">i8"),
    "price": ("float8send", ">f8"),
    "quantity": ("float8send", ">f8"),
    "aggressor": ("int2send", ">i2"),
    "backfill": ("boolsend", "?"),
}
"""How Postgres makes bytes of the columns that a page has, so that no object is made of a value, and their form."""
PIECE_TICKS = 100
"""Made in one turn of the event loop, in about a millisecond; a thread would hold the interpreter for five at a time."""
COLUMNS = {
    "instrument_id": "S",
    "sequence": ">i8",
    "epoch": ">i8",
    "time": ">i8",
    "price": ">f8",
    "quantity": ">f8",
    "aggressor": ">i2",
    "backfill": "u1",
    "trade_id": "S",
}
"""With the forms that COPY wants them in."""


@dataclass(frozen=True, slots=True)
class Span:
    """Everything after one sequence and up to the cursor is stored."""

    after_sequence: int
    until: Cursor


async def newest_spans(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, Span]:
    """The newest span of each instrument; those without any are left out."""
    found = await rows.fetch(
        """
        SELECT span.* FROM unnest($1::text[]) AS asked,
        LATERAL (SELECT * FROM coverage WHERE instrument_id = asked ORDER BY after_sequence DESC LIMIT 1) AS span
        """,
        instrument_ids,
    )
    return {row["instrument_id"]: span_from(row) for row in found}


async def span_beyond(rows: Connection, after: Cursor) -> Span | None:
    """The first span that has something after the cursor."""
    row = await rows.fetchrow(
        "SELECT * FROM coverage WHERE instrument_id = $1 AND sequence > $2 ORDER BY after_sequence LIMIT 1",
        after.instrument_id,
        after.sequence,
    )
    return span_from(row) if row else None


async def write_spans(rows: Connection, spans: Sequence[tuple[int | None, Cursor]]) -> None:
    """Stores how far spans reach: new ones, each after a sequence, and without one the newest of the instrument.

    Where that one begins is not the caller's to know: what was dropped of it has moved its beginning.
    """
    await rows.execute(
        """
        INSERT INTO coverage (instrument_id, after_sequence, epoch, sequence)
        SELECT instrument_id, coalesce(new.after_sequence, newest.after_sequence, 0), epoch, sequence
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (
          instrument_id, after_sequence, epoch, sequence)
        CROSS JOIN LATERAL (
          SELECT max(after_sequence) AS after_sequence FROM coverage WHERE coverage.instrument_id = new.instrument_id
        ) AS newest
        ON CONFLICT (instrument_id, after_sequence) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence
        """,
        [until.instrument_id for _, until in spans],
        [after_sequence for after_sequence, _ in spans],
        [until.epoch for _, until in spans],
        [until.sequence for _, until in spans],
    )


async def covered(rows: Connection) -> list[str]:
    """The instruments of which anything is stored."""
    return [row["instrument_id"] for row in await rows.fetch("SELECT DISTINCT instrument_id FROM coverage")]


async def uncover(rows: Connection, instrument_id: str, until: datetime) -> None:
    """Has coverage begin after the last tick that is older than `until`. The newest span stays: there storing goes on.

    A tick that came late lies among later ones: what is before it is told to be missing too, though some is still there.
    """
    await rows.execute("SELECT FROM series WHERE instrument_id = $1 FOR NO KEY UPDATE", instrument_id)
    newest = await rows.fetchval(
        "SELECT max(sequence) FROM market_data_ticks WHERE instrument_id = $1 AND time < $2", instrument_id, until
    )
    if newest is None:
        return
    await rows.execute(
        """
        DELETE FROM coverage WHERE instrument_id = $1 AND sequence <= $2
        AND after_sequence < (SELECT max(after_sequence) FROM coverage WHERE instrument_id = $1)
        """,
        instrument_id,
        newest,
    )
    await rows.execute(
        "UPDATE coverage SET after_sequence = least(sequence, $2) WHERE instrument_id = $1 AND after_sequence < $2",
        instrument_id,
        newest,
    )


def copy_rows(instrument_id: str, ticks: Ticks) -> bytes:
    """The ticks as COPY takes them. Rows of one form are encoded together: those whose trade ids are of one length."""
    lengths = np.char.str_len(ticks.trade_id)
    content = b""
    for length in sorted({*lengths.tolist()}):
        some = ticks.where(lengths == length)
        values = some._asdict() | {
            "instrument_id": instrument_id.encode(),
            "time": some.time_ns // 1_000 - POSTGRES_EPOCH_SECONDS * 1_000_000,
        }
        kinds = COLUMNS | {"instrument_id": f"S{len(instrument_id)}", "trade_id": f"S{length}"}
        content += copying.encoded(kinds, values, some.number)
    return content


async def write_ticks(rows: Connection, content: bytes) -> None:
    """Stores what copy_rows has encoded."""
    await copying.copy(rows, "market_data_ticks", [*COLUMNS], content)


async def are_stored(rows: Connection, instrument_id: str, ticks: Ticks) -> Flags:
    """Which of the ticks are there already, or before in these: those of one time with one trade id are one trade.

    Without an id, as many of one time are there as are stored with the same price, quantity and aggressor.
    """
    microseconds = (ticks.time_ns // 1_000).tolist()
    found = await rows.fetch(
        """
        SELECT (extract(epoch FROM time) * 1000000)::bigint AS microseconds, trade_id, price, quantity, aggressor
        FROM market_data_ticks
        WHERE instrument_id = $1 AND time = ANY($2::timestamptz[])
        """,
        instrument_id,
        [EPOCH + timedelta(microseconds=each) for each in set(microseconds)],
    )
    named = {(row["microseconds"], row["trade_id"].encode()) for row in found}
    unnamed = Counter(
        (row["microseconds"], row["price"], row["quantity"], row["aggressor"]) for row in found if not row["trade_id"]
    )
    stored = []
    columns = (ticks.trade_id, ticks.price, ticks.quantity, ticks.aggressor)
    for time, trade_id, *rest in zip(microseconds, *(column.tolist() for column in columns), strict=True):
        if trade_id:
            stored.append((time, trade_id) in named)
            named.add((time, trade_id))
        else:
            stored.append(unnamed[time, *rest] > 0)
            unnamed[time, *rest] -= 1
    return np.array(stored, np.bool_)


async def read_after(rows: Connection, after: Cursor, until: Cursor, limit: int) -> tuple[Ticks, Cursor]:
    """At most limit ticks after one cursor and up to another, by their sequences, and the cursor after them."""
    found = await rows.fetchrow(
        f"""
        SELECT {", ".join(f"string_agg({send}({name}), '') AS {name}" for name, (send, _) in SENT.items())},
          string_agg(int4send(octet_length(trade_id)), '') AS lengths, string_agg(textsend(trade_id), '') AS trade_id
        FROM (
          SELECT {", ".join(SENT)}, trade_id FROM market_data_ticks
          WHERE instrument_id = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4) AS page
        """,
        after.instrument_id,
        after.sequence,
        until.sequence,
        limit,
    )
    assert found
    columns = {name: np.frombuffer(found[name] or b"", kind) for name, (_, kind) in SENT.items()}
    time_ns = (columns.pop("time").astype(np.int64) + POSTGRES_EPOCH_SECONDS * 1_000_000) * 1_000
    trade_id = texts_from(found["trade_id"] or b"", np.frombuffer(found["lengths"] or b"", ">i4"))
    ticks = Ticks(time_ns=time_ns, trade_id=trade_id, **columns)
    if ticks.number == limit:
        until = Cursor(after.instrument_id, int(ticks.epoch[-1]), int(ticks.sequence[-1]))
    return ticks, until


def texts_from(content: bytes, lengths: NDArray[np.int32]) -> Texts:
    """The texts that stand one after the other."""
    width = max(1, int(lengths.max(initial=1)))
    texts = np.zeros((len(lengths), width), np.uint8)
    texts[np.arange(width) < lengths[:, np.newaxis]] = np.frombuffer(content, np.uint8)
    return texts.view(f"S{width}")[:, 0]


def message_of(ticks: Ticks, after: Cursor, until: Cursor) -> bytes:
    """What read_after has found, as the bytes of a StreamTicksResponse: in batches as a feed would send.

    Books are not stored. The sequences they took belong to the batch before them, so that cursors follow on each other.
    """
    if not ticks.number:
        return StreamTicksResponse(batches=[empty_batch(after, until)]).SerializeToString()
    content, ends = tick_bytes.written(
        TickColumns(ticks.time_ns, ticks.price, ticks.quantity, ticks.aggressor, ticks.trade_id)
    )
    content_ends = [0, *ends.tolist()]
    pieces: list[bytes] = []
    starts = starts_of_batches(ticks)
    for start, end in pairwise([*starts, ticks.number]):
        epoch = int(ticks.epoch[start])
        cursor = until if end == ticks.number else Cursor(after.instrument_id, epoch, int(ticks.sequence[end]) - 1)
        batch = TickBatch(
            instrument_id=after.instrument_id,
            epoch=epoch,
            first_sequence=int(ticks.sequence[start]),
            previous_cursor=str(after),
            cursor=str(cursor),
            backfill=bool(ticks.backfill[start]),
        ).SerializeToString()
        written = content[content_ends[start] : content_ends[end]]
        pieces += (tick_bytes.head_of_batch(len(batch) + len(written)), batch, written)
        after = cursor
    return b"".join(pieces)


def starts_of_batches(ticks: Ticks) -> list[int]:
    """Where the first tick of each batch is."""
    goes_on = (np.diff(ticks.sequence) == 1) & (np.diff(ticks.epoch) == 0) & ~np.diff(ticks.backfill)
    cuts = [0, *(np.flatnonzero(~goes_on) + 1).tolist(), ticks.number]
    return [at for start, end in pairwise(cuts) for at in range(start, end, BATCH_TICKS_MAX)]


PLACE = f"CASE WHEN trade_id ~ '^[0-9]{{1,{NUMBER_DIGITS_MAX}}}$' THEN trade_id::bigint ELSE sequence END"
"""Of a tick among those of one moment: the venue's number of the trade, where its ids are numbers."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a tick is in the order by which bars have their first and last; a time alone is before all of its ticks."""

    time: datetime
    place: int = -1
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class TickPage:
    """Some ticks as they are stored, oldest first, with the places of the first and the last; `more` remain beyond."""

    found: Sequence[Any]
    first: Moment | None
    last: Moment | None
    more: bool


async def read_ticks(
    rows: Connection, instrument_id: str, *, after: Moment | None, before: Moment | None, backwards: bool, limit: int
) -> TickPage:
    """At most limit ticks strictly between two places: the first of them or, backwards, the last."""
    order = "DESC" if backwards else "ASC"
    found = await rows.fetch(
        f"""
        SELECT time, {PLACE} AS place, sequence, price, quantity, aggressor, trade_id FROM market_data_ticks
        WHERE instrument_id = $1
        AND time >= coalesce($2::timestamptz, '-infinity') AND time <= coalesce($5::timestamptz, 'infinity')
        AND ($2::timestamptz IS NULL OR (time, {PLACE}, sequence) > ($2, $3::bigint, $4::bigint))
        AND ($5::timestamptz IS NULL OR (time, {PLACE}, sequence) < ($5, $6::bigint, $7::bigint))
        ORDER BY time {order}, place {order}, sequence {order} LIMIT $8
        """,
        instrument_id,
        *((after.time, after.place, after.sequence) if after else (None, None, None)),
        *((before.time, before.place, before.sequence) if before else (None, None, None)),
        limit + 1,
    )
    kept = found[:limit][::-1] if backwards else found[:limit]
    ends = [Moment(row["time"], row["place"], row["sequence"]) for row in (*kept[:1], *kept[-1:])]
    return TickPage(kept, ends[0] if ends else None, ends[-1] if ends else None, len(found) > limit)


async def ticks_of(found: Sequence[Any]) -> list[Tick]:
    """What read_ticks has found."""
    ticks: list[Tick] = []
    async for piece in in_pieces(found, PIECE_TICKS):
        ticks += map(tick_from, piece)
    return ticks


def tick_from(row: Any) -> Tick:
    return Tick(
        time=timestamp(row["time"]),
        price=row["price"],
        quantity=row["quantity"],
        aggressor=row["aggressor"],
        trade_id=row["trade_id"],
    )


def empty_batch(after: Cursor, cursor: Cursor) -> TickBatch:
    """Where only books were: takes the reader from one cursor to the next."""
    return TickBatch(
        instrument_id=cursor.instrument_id,
        epoch=cursor.epoch,
        first_sequence=after.sequence + 1,
        previous_cursor=str(after),
        cursor=str(cursor),
    )


def span_from(row: Any) -> Span:
    return Span(row["after_sequence"], Cursor(row["instrument_id"], row["epoch"], row["sequence"]))
