"""Where it is written down what is not stored of a market, and what was brought later."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.ids import uuid7
from libs.store.bulk import Bulk
from libs.store.database import Connection
from services.marketdata.domain import Gap, GapKind

INSERT = Bulk(
    "gaps",
    {
        "gap_id": "uuid",
        "instrument_id": "text",
        "kind": "text",
        "after_trade_id": "text",
        "before_trade_id": "text",
        "start_time": "timestamptz",
        "end_time": "timestamptz",
    },
)


async def add_missed(rows: Connection, gaps: Sequence[Gap]) -> None:
    await rows.execute(INSERT.statement, *INSERT.arguments(gaps))


async def add_lost(rows: Connection, instrument_id: str, after_sequence: int, before_sequence: int) -> None:
    """Writes down the loss of what lies between two sequences. The ticks on either side of it are stored before."""
    neighbour = """
    LEFT JOIN LATERAL (
      SELECT trade_id, time FROM market_data_ticks AS tick
      WHERE tick.instrument_id = $2 AND NOT backfill AND sequence {} ORDER BY sequence {} LIMIT 1) AS {} ON true
    """
    await rows.execute(
        f"""
        INSERT INTO gaps (gap_id, instrument_id, kind, after_trade_id, before_trade_id, start_time, end_time,
                          after_sequence, before_sequence)
        SELECT $1, $2, 'lost', coalesce(earlier.trade_id, ''), coalesce(later.trade_id, ''), earlier.time, later.time,
               lost.after_sequence, lost.before_sequence
        FROM (SELECT $3::bigint AS after_sequence, $4::bigint AS before_sequence) AS lost
        {neighbour.format("<= after_sequence", "DESC", "earlier")}
        {neighbour.format(">= before_sequence", "ASC", "later")}
        """,
        uuid7(),
        instrument_id,
        after_sequence,
        before_sequence,
    )


async def fill(rows: Connection, filled: Gap) -> None:
    """Marks the open gaps that lie within these bounds: by the numbers of trades where they are numbers, or by time."""
    await rows.execute(
        r"""
        UPDATE gaps SET filled_time = now()
        WHERE instrument_id = $1 AND filled_time IS NULL
        AND ((start_time >= $4 AND end_time <= $5)
             OR ($2 <> '' AND $3 <> '' AND after_trade_id = $2 AND before_trade_id = $3)
             OR CASE WHEN after_trade_id ~ '^\d+$' AND before_trade_id ~ '^\d+$'
                THEN after_trade_id::numeric >= $6::numeric AND before_trade_id::numeric <= $7::numeric ELSE false END)
        """,
        filled.instrument_id,
        filled.after_trade_id,
        filled.before_trade_id,
        filled.start_time,
        filled.end_time,
        number_of(filled.after_trade_id),
        number_of(filled.before_trade_id),
    )


def number_of(trade_id: str) -> Decimal | None:
    return Decimal(trade_id) if trade_id.isascii() and trade_id.isdigit() else None


async def list_gaps(
    rows: Connection, *, instrument_id: str, include_filled: bool, after: UUID | None, limit: int
) -> list[Gap]:
    """In the order they were found."""
    found = await rows.fetch(
        """
        SELECT * FROM gaps WHERE ($1 = '' OR instrument_id = $1) AND ($2 OR filled_time IS NULL)
        AND ($3::uuid IS NULL OR gap_id > $3) ORDER BY gap_id LIMIT $4
        """,
        instrument_id,
        include_filled,
        after,
        limit,
    )
    return [gap_from(row) for row in found]


def gap_from(row: Any) -> Gap:
    values: dict[str, Any] = dict(row)
    values["kind"] = GapKind(values["kind"])
    return Gap(**values)
