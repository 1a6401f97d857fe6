"""Where ticks live: appended as they come, in spans of sequences without a gap, and read again by who resumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tradeloom.marketdata.v1.marketdata_pb2 import Tick, TickBatch

from libs.bus.feed import Cursor
from libs.mesh.wire import timestamp
from libs.store.database import Connection

BATCH_TICKS_MAX = 500
TICK_COLUMNS = ("instrument_id", "sequence", "epoch", "time", "price", "quantity", "aggressor", "trade_id")
TickRow = tuple[str, int, int, datetime, float, float, int, str]


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


async def write_spans(rows: Connection, spans: Sequence[Span]) -> None:
    """Stores spans that are new, or reach further than they did."""
    await rows.execute(
        """
        INSERT INTO coverage (instrument_id, after_sequence, epoch, sequence)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
        ON CONFLICT (instrument_id, after_sequence) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence
        """,
        [span.until.instrument_id for span in spans],
        [span.after_sequence for span in spans],
        [span.until.epoch for span in spans],
        [span.until.sequence for span in spans],
    )


async def write_ticks(rows: Connection, ticks: Sequence[TickRow]) -> None:
    if ticks:
        await rows.copy_records_to_table("market_data_ticks", records=ticks, columns=TICK_COLUMNS)


async def read_batches(rows: Connection, after: Cursor, until: Cursor, limit: int) -> tuple[list[TickBatch], Cursor]:
    """At most limit ticks after one cursor and up to another, in batches as a feed would send, and the cursor after them.

    Books are not stored. The sequences they took belong to the batch before them, so that cursors follow on each other.
    """
    found = await rows.fetch(
        """
        SELECT sequence, epoch, time, price, quantity, aggressor, trade_id FROM market_data_ticks
        WHERE instrument_id = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4
        """,
        after.instrument_id,
        after.sequence,
        until.sequence,
        limit,
    )
    if len(found) == limit:
        until = Cursor(after.instrument_id, found[-1]["epoch"], found[-1]["sequence"])
    runs = runs_of(found)
    if not runs:
        return [empty_batch(after, until)], until
    batches: list[TickBatch] = []
    for number, run in enumerate(runs):
        follows = runs[number + 1][0]["sequence"] - 1 if number + 1 < len(runs) else until.sequence
        epoch = run[-1]["epoch"] if number + 1 < len(runs) else until.epoch
        cursor = Cursor(after.instrument_id, epoch, follows)
        batches.append(batch_from(run, after, cursor))
        after = cursor
    return batches, until


def runs_of(found: Sequence[Any]) -> list[list[Any]]:
    """Ticks whose sequences follow on each other, of one epoch, as many as a batch holds."""
    runs: list[list[Any]] = []
    for row in found:
        if runs and (last := runs[-1][-1]):
            follows = row["sequence"] == last["sequence"] + 1 and row["epoch"] == last["epoch"]
            if follows and len(runs[-1]) < BATCH_TICKS_MAX:
                runs[-1].append(row)
                continue
        runs.append([row])
    return runs


def batch_from(run: Sequence[Any], after: Cursor, cursor: Cursor) -> TickBatch:
    return TickBatch(
        instrument_id=cursor.instrument_id,
        epoch=run[0]["epoch"],
        first_sequence=run[0]["sequence"],
        ticks=[
            Tick(
                time=timestamp(row["time"]),
                price=row["price"],
                quantity=row["quantity"],
                aggressor=row["aggressor"],
                trade_id=row["trade_id"],
            )
            for row in run
        ],
        previous_cursor=str(after),
        cursor=str(cursor),
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
