"""Where corporate actions live. What was put stays; only that it was withdrawn is written beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.bar_sizes import EPOCH, SECOND
from libs.store.database import Connection
from services.marketdata.adjustments import Close
from services.marketdata.domain import DAYS, HOURS, WEEKS, CashDividend, CorporateAction, Split
from services.marketdata.parts import table_of

COLUMNS = """
action_id, instrument_id, kind, ex_date, new_shares, old_shares, amount, currency, known_time, withdrawn_time, put_number
"""
SPLIT, CASH_DIVIDEND = "split", "cash_dividend"

Moment = tuple[int, datetime | None]
"""Up to which number of an instrument's actions, and what was known at which time; without a time, all that is known now."""


async def newest_number(rows: Connection, instrument_id: str) -> int:
    """How often something was put or withdrawn."""
    row = await rows.fetchrow(
        "SELECT greatest(max(put_number), max(withdrawn_number)) AS newest FROM corporate_actions WHERE instrument_id = $1",
        instrument_id,
    )
    return (row and row["newest"]) or 0


async def every(rows: Connection, instrument_id: str) -> list[CorporateAction]:
    """All that were ever put, in that order."""
    found = await rows.fetch(
        f"SELECT {COLUMNS} FROM corporate_actions WHERE instrument_id = $1 ORDER BY put_number", instrument_id
    )
    return [action_from(row) for row in found]


async def list_actions(
    rows: Connection,
    instrument_id: str,
    moment: Moment,
    *,
    include_withdrawn: bool = False,
    after: int = 0,
    limit: int | None = None,
) -> list[CorporateAction]:
    """Those that were known at the moment, as they stood then, in the order in which they were put; `after` is a number."""
    number, as_of = moment
    found = await rows.fetch(
        f"""
        SELECT {COLUMNS} FROM corporate_actions
        WHERE instrument_id = $1 AND put_number > $4 AND put_number <= $2
        AND ($3::timestamptz IS NULL OR known_time <= $3)
        AND ($5 OR (withdrawn_number <= $2 AND ($3 IS NULL OR withdrawn_time <= $3)) IS NOT TRUE)
        ORDER BY put_number LIMIT $6
        """,
        instrument_id,
        number,
        as_of,
        after,
        include_withdrawn,
        limit,
    )
    actions = [action_from(row) for row in found]
    return [
        replace(each, withdrawn_time=None)
        if as_of is not None and each.withdrawn_time is not None and each.withdrawn_time > as_of
        else each
        for each in actions
    ]


async def find(rows: Connection, action_id: UUID) -> CorporateAction | None:
    row = await rows.fetchrow(f"SELECT {COLUMNS} FROM corporate_actions WHERE action_id = $1", action_id)
    return action_from(row) if row else None


async def put(rows: Connection, action: CorporateAction) -> None:
    """The instrument is locked, so that numbers are committed in their order."""
    what = action.what
    split = (what.new_shares, what.old_shares) if isinstance(what, Split) else (None, None)
    dividend = (what.amount, what.currency) if isinstance(what, CashDividend) else (None, None)
    await rows.execute(
        """
        INSERT INTO corporate_actions (
          action_id, instrument_id, kind, ex_date, new_shares, old_shares, amount, currency, known_time, put_number)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        action.action_id,
        action.instrument_id,
        SPLIT if isinstance(what, Split) else CASH_DIVIDEND,
        action.ex_date,
        *split,
        *dividend,
        action.known_time,
        action.put_number,
    )


async def withdraw(rows: Connection, action_id: UUID, time: datetime, number: int) -> None:
    """The instrument is locked, as for put()."""
    await rows.execute(
        "UPDATE corporate_actions SET withdrawn_time = $2, withdrawn_number = $3 WHERE action_id = $1",
        action_id,
        time,
        number,
    )


async def closes_before(rows: Connection, instrument_id: str, times: Sequence[datetime]) -> Mapping[int, Close]:
    """By each of the times, in seconds, the close of the last day before it; where there are no days, of the last bar.

    Bars that are kept for ever are looked at: those from an hour on.
    """
    others = " UNION ALL ".join(
        f"""
        (SELECT 1 AS turn, open_time, close, coalesce(end_time, open_time + interval '{size.seconds} s') AS end_time
         FROM {table_of(size)} WHERE instrument_id = $1 AND bar_size = '{size.name}'
         AND open_time < ex.time AND coalesce(end_time, open_time + interval '{size.seconds} s') <= ex.time
         ORDER BY open_time DESC LIMIT 1)
        """
        for size in (HOURS, WEEKS)
    )
    found = await rows.fetch(
        f"""
        SELECT ex.time, last.open_time, last.close FROM unnest($2::timestamptz[]) AS ex (time)
        CROSS JOIN LATERAL (
          (SELECT 0 AS turn, open_time, close, open_time AS end_time
           FROM {table_of(DAYS)} WHERE instrument_id = $1 AND bar_size = '{DAYS.name}' AND open_time < ex.time
           ORDER BY open_time DESC LIMIT 1)
          UNION ALL {others}
          ORDER BY turn, end_time DESC LIMIT 1) AS last
        """,
        instrument_id,
        times,
    )
    return {(row["time"] - EPOCH) // SECOND: Close((row["open_time"] - EPOCH) // SECOND, row["close"]) for row in found}


def action_from(row: Any) -> CorporateAction:
    if row["kind"] == SPLIT:
        what = Split(new_shares=row["new_shares"], old_shares=row["old_shares"])
    else:
        what = CashDividend(amount=row["amount"], currency=row["currency"])
    return CorporateAction(
        action_id=row["action_id"],
        instrument_id=row["instrument_id"],
        ex_date=row["ex_date"],
        what=what,
        known_time=row["known_time"],
        withdrawn_time=row["withdrawn_time"],
        put_number=row["put_number"],
    )
