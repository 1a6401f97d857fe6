"""Where deletions of imported bars live: which bars are meant, and how many of them are gone.

The worker role forgets everybody's that are old, and sees and changes else those of the transaction's user.
"""

from dataclasses import replace

from libs.errors import RequestIdReused
from libs.store.database import Connection
from services.marketdata.domain import Deletion

KEPT_DAYS = 30
"""As answers to other requests are kept."""


async def begun(rows: Connection, wanted: Deletion) -> Deletion:
    """The deletion as it stands, which begins with this if it has not begun. Raises RequestIdReused."""
    await rows.execute(
        """
        INSERT INTO deletions (
          user_id, request_id, digest, instrument_id, bar_size, start_time, end_time, import_number)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
        """,
        wanted.user_id,
        wanted.request_id,
        wanted.digest,
        wanted.instrument_id,
        wanted.size.name,
        wanted.start,
        wanted.end,
        wanted.import_number,
    )
    found = await find(rows, wanted)
    assert found
    return found


async def find(rows: Connection, wanted: Deletion) -> Deletion | None:
    """Raises RequestIdReused."""
    row = await rows.fetchrow(
        """
        SELECT digest, import_number, deleted_count, remade_count, done_time IS NOT NULL AS is_done
        FROM deletions WHERE user_id = $1 AND request_id = $2
        """,
        wanted.user_id,
        wanted.request_id,
    )
    if row is None:
        return None
    if row["digest"] != wanted.digest:
        raise RequestIdReused("the request_id was used before for other bars", request_id=wanted.request_id)
    return replace(wanted, **dict(row))


async def advance(rows: Connection, deletion: Deletion, *, deleted: int, remade: int, is_done: bool) -> Deletion:
    """Goes with the bars that were deleted. Whoever changes it holds the row lock of the series."""
    await rows.execute(
        """
        UPDATE deletions SET deleted_count = deleted_count + $3, remade_count = remade_count + $4,
          done_time = CASE WHEN $5 THEN now() END
        WHERE user_id = $1 AND request_id = $2
        """,
        deletion.user_id,
        deletion.request_id,
        deleted,
        remade,
        is_done,
    )
    return replace(
        deletion,
        deleted_count=deletion.deleted_count + deleted,
        remade_count=deletion.remade_count + remade,
        is_done=is_done,
    )


async def forget_old(rows: Connection) -> None:
    """Deletes what is known of deletions that began long ago, whoever's they were."""
    await rows.execute("DELETE FROM deletions WHERE create_time < now() - make_interval(days => $1)", KEPT_DAYS)
