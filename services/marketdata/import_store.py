"""Where imports live: whose file it is, its bytes until it has ended, and how far it was checked and stored.

The worker role reads everybody's rows, to find what is to be done, and changes those of the transaction's user.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.store.database import Connection, Database
from services.marketdata.domain import (
    Import,
    ImportCanceled,
    ImportMalformed,
    ImportOvertaken,
    ImportRefusal,
    ImportState,
    TooManyImports,
)

USER_UNFINISHED_MAX = 16
"""Imports of one user that have not ended."""
HELD_BYTES_MAX = 16 * 1024 * 1024 * 1024
"""Of all files whose imports have not ended; each call that sends at the same moment may pass it by its MiB."""
RESERVED_BYTES = 1024 * 1024
"""For each import that has begun, whatever it holds."""
RECEIVING_KEPT_HOURS = 24
"""Since the last bytes came."""
EMPTY_KEPT_MINUTES = 20
"""Where none came; above what one call may take."""
ENDED_KEPT_DAYS = 30
"""As answers to other requests are kept."""
CHUNKS_AT_ONCE = 16
"""Read or deleted in one statement; each is at most a MiB."""
FORGOTTEN_AT_ONCE = 20

COLUMNS = """
import_id, user_id, request_id, digest, instrument_id, bar_size, calendar, state, size_bytes, sha256, is_sparse, held_bytes, layout,
checked_count, read_count, stored_count, inserted_count, changed_count, start_time, end_time, refusal, create_time
"""
UNFINISHED = "(state IN ('receiving', 'checking', 'storing'))"
LATE = f"""(
state = 'receiving' AND update_time < now() - CASE
  WHEN held_bytes > 0 THEN interval '{RECEIVING_KEPT_HOURS} hours' ELSE interval '{EMPTY_KEPT_MINUTES} minutes' END)"""


class Ended(Exception):
    """Somebody has ended the import meanwhile."""


async def find(rows: Connection, user_id: UUID, request_id: str, *, for_update: bool = False) -> Import | None:
    """Of the user alone, whoever else's rows are seen."""
    lock = "FOR UPDATE" if for_update else ""
    row = await rows.fetchrow(
        f"SELECT {COLUMNS} FROM imports WHERE user_id = $1 AND request_id = $2 {lock}", user_id, request_id
    )
    return import_from(row) if row else None


async def get(rows: Connection, import_id: UUID) -> Import | None:
    row = await rows.fetchrow(f"SELECT {COLUMNS} FROM imports WHERE import_id = $1", import_id)
    return import_from(row) if row else None


async def lock_beginning(rows: Connection) -> None:
    """Of imports that begin at once, one waits for the other until its commit: so they are counted, and each begins once."""
    await rows.execute("SELECT pg_advisory_xact_lock(hashtext('marketdata.imports'))")


async def add(rows: Connection, new: Import) -> None:
    """Raises TooManyImports. Holds the lock of lock_beginning."""
    own_count = await rows.fetchval(f"SELECT count(*) FROM imports WHERE {UNFINISHED} AND user_id = $1", new.user_id)
    assert own_count is not None
    if own_count >= USER_UNFINISHED_MAX:
        raise TooManyImports(f"{own_count} of your imports are unfinished", limit=USER_UNFINISHED_MAX)
    await check_room(rows, RESERVED_BYTES)
    await rows.execute(
        """
        INSERT INTO imports (import_id, user_id, request_id, digest, instrument_id, bar_size, state, size_bytes, sha256, is_sparse)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        new.import_id,
        new.user_id,
        new.request_id,
        new.digest,
        new.instrument_id,
        new.bar_size,
        new.state.value,
        new.size_bytes,
        new.sha256,
        new.is_sparse,
    )


async def check_room(rows: Connection, more_bytes: int) -> None:
    """Raises TooManyImports if so many bytes more cannot be held."""
    held_bytes = await rows.fetchval(
        f"SELECT coalesce(sum(held_bytes + $1), 0)::bigint FROM imports WHERE {UNFINISHED}", RESERVED_BYTES
    )
    assert held_bytes is not None
    if held_bytes + more_bytes > HELD_BYTES_MAX:
        raise TooManyImports(
            f"unfinished imports hold {held_bytes} bytes, and no more for now: what has come is kept, go on later",
            limit=HELD_BYTES_MAX,
        )


async def append(rows: Connection, receiving: Import, start_byte: int, content: bytes) -> None:
    """Keeps bytes of the file; with the last of them it is ready to be checked. Raises ImportOvertaken, TooManyImports."""
    await check_room(rows, len(content))
    done = await rows.execute(
        """
        UPDATE imports SET held_bytes = held_bytes + $3, update_time = now(),
          state = CASE WHEN held_bytes + $3 = size_bytes THEN 'checking' ELSE state END
        WHERE import_id = $1 AND state = 'receiving' AND held_bytes = $2 AND held_bytes + $3 <= size_bytes
        """,
        receiving.import_id,
        start_byte,
        len(content),
    )
    if done != "UPDATE 1":
        raise ImportOvertaken
    await rows.execute(
        "INSERT INTO import_chunks (import_id, start_byte, user_id, content) VALUES ($1, $2, $3, $4)",
        receiving.import_id,
        start_byte,
        receiving.user_id,
        content,
    )


async def chunks(database: Database, held: Import) -> AsyncIterator[bytes]:
    """The bytes of the file in their order, in short transactions. Raises Ended, as do all that tell how far it has come."""
    start_byte = 0
    while start_byte < held.size_bytes:
        async with database.transaction(held.user_id) as rows:
            found = await rows.fetch(
                """
                SELECT content FROM import_chunks WHERE import_id = $1 AND start_byte >= $2 ORDER BY start_byte LIMIT $3
                """,
                held.import_id,
                start_byte,
                CHUNKS_AT_ONCE,
            )
        if not found:
            raise Ended
        for row in found:
            start_byte += len(row["content"])
            yield row["content"]


async def take(rows: Connection, lane: int) -> Import | None:
    """The import that this lane is at, or else the oldest that nobody is at and is to be worked on."""
    row = await rows.fetchrow(
        f"""
        SELECT {COLUMNS} FROM imports WHERE state IN ('checking', 'storing') AND coalesce(lane, $1) = $1
        ORDER BY lane NULLS LAST, import_id LIMIT 1
        """,
        lane,
    )
    return import_from(row) if row else None


async def find_at_work(rows: Connection, instrument_id: str) -> Import | None:
    """One of the instrument that is checked or stored, whosever it is."""
    row = await rows.fetchrow(
        f"SELECT {COLUMNS} FROM imports WHERE state IN ('checking', 'storing') AND instrument_id = $1 LIMIT 1",
        instrument_id,
    )
    return import_from(row) if row else None


async def claim(rows: Connection, wanted: Import, lane: int, *, is_counted: bool) -> int | None:
    """How often it was begun since its last progress, now that it is this lane's; None if it is another's.

    What is begun again after trouble that is not the file's is not counted.
    """
    return await rows.fetchval(
        """
        UPDATE imports SET lane = $2, attempts = attempts + $3 WHERE import_id = $1 AND coalesce(lane, $2) = $2
        RETURNING attempts
        """,
        wanted.import_id,
        lane,
        int(is_counted),
    )


async def tell_checked(rows: Connection, checking: Import, checked_count: int) -> None:
    done = await rows.execute(
        "UPDATE imports SET checked_count = $2 WHERE import_id = $1 AND state = 'checking'",
        checking.import_id,
        checked_count,
    )
    expect_one(done)


async def begin_storing(
    rows: Connection, checking: Import, *, calendar: str, layout: str, read_count: int, start: datetime, end: datetime
) -> None:
    done = await rows.execute(
        """
        UPDATE imports SET state = 'storing', layout = $2, checked_count = $3, read_count = $3, start_time = $4, end_time = $5,
          calendar = $6
        WHERE import_id = $1 AND state = 'checking'
        """,
        checking.import_id,
        layout,
        read_count,
        start,
        end,
        calendar,
    )
    expect_one(done)


async def check_anew(rows: Connection, storing: Import) -> None:
    """What was stored of it stays."""
    done = await rows.execute(
        f"UPDATE imports SET state = 'checking' WHERE import_id = $1 AND {UNFINISHED}", storing.import_id
    )
    expect_one(done)


async def advance(rows: Connection, storing: Import, after: int, *, stored: int, inserted: int, changed: int) -> None:
    """Goes with the bars that were stored: so many, beyond those after which they come."""
    done = await rows.execute(
        """
        UPDATE imports SET stored_count = stored_count + $3, inserted_count = inserted_count + $4,
          changed_count = changed_count + $5, attempts = 0
        WHERE import_id = $1 AND stored_count = $2 AND state = 'storing'
        """,
        storing.import_id,
        after,
        stored,
        inserted,
        changed,
    )
    expect_one(done)


async def end(rows: Connection, ended: Import, state: ImportState, refusal: ImportRefusal | None = None) -> None:
    done = await rows.execute(
        f"UPDATE imports SET state = $2, refusal = $3, ended_time = now() WHERE import_id = $1 AND {UNFINISHED}",
        ended.import_id,
        state.value,
        json.dumps(asdict(refusal)) if refusal else None,
    )
    expect_one(done)


def expect_one(done: str) -> None:
    if done != "UPDATE 1":
        raise Ended


async def cancel(rows: Connection, user_id: UUID, request_id: str) -> Import | None:
    """The user's import, which has ended if it had not before: what of it is stored stays, and no more is."""
    found = await find(rows, user_id, request_id, for_update=True)
    if found is None or found.state.has_ended:
        return found
    refusal = ImportRefusal(reason=ImportCanceled.reason, message=f"was cancelled; {found.so_far}", violations={})
    await end(rows, found, ImportState.REFUSED, refusal)
    return await find(rows, user_id, request_id)


async def due_to_forget(rows: Connection) -> list[tuple[UUID, UUID]]:
    """Imports of which something is to be forgotten, each with its user."""
    found = await rows.fetch(
        f"""
        SELECT import_id, user_id FROM imports
        WHERE {LATE}
          OR NOT {UNFINISHED} AND (
            ended_time < now() - make_interval(days => $1)
            OR EXISTS (SELECT FROM import_chunks AS held WHERE held.import_id = imports.import_id))
        LIMIT $2
        """,
        ENDED_KEPT_DAYS,
        FORGOTTEN_AT_ONCE,
    )
    return [tuple(row) for row in found]


async def refuse_unfinished(rows: Connection, import_id: UUID) -> None:
    """Ends an import of which no more bytes came, if it is still so."""
    refusal = ImportRefusal(
        reason=ImportMalformed.reason,
        message=f"its bytes did not come within {RECEIVING_KEPT_HOURS} hours, or the first within {EMPTY_KEPT_MINUTES} minutes",
        violations={},
    )
    await rows.execute(
        f"UPDATE imports SET state = 'refused', refusal = $2, ended_time = now() WHERE import_id = $1 AND {LATE}",
        import_id,
        json.dumps(asdict(refusal)),
    )


async def forget_bytes(database: Database, user_id: UUID, import_id: UUID) -> None:
    """Deletes the bytes of an import that has ended, some at a time."""
    deleted = CHUNKS_AT_ONCE
    while deleted == CHUNKS_AT_ONCE:
        async with database.transaction(user_id) as rows:
            done = await rows.execute(
                f"""
                DELETE FROM import_chunks USING (
                  SELECT import_id, start_byte FROM import_chunks JOIN imports USING (import_id)
                  WHERE import_id = $1 AND NOT {UNFINISHED} ORDER BY start_byte LIMIT $2) AS old
                WHERE (import_chunks.import_id, import_chunks.start_byte) = (old.import_id, old.start_byte)
                """,
                import_id,
                CHUNKS_AT_ONCE,
            )
        deleted = int(done.split()[-1])


async def forget_old(rows: Connection, import_id: UUID) -> None:
    """Deletes an import that ended long ago."""
    await rows.execute(
        f"""
        DELETE FROM imports
        WHERE import_id = $1 AND NOT {UNFINISHED} AND ended_time < now() - make_interval(days => $2)
        """,
        import_id,
        ENDED_KEPT_DAYS,
    )


async def remove(rows: Connection, refused: Import) -> None:
    """A refusal leaves the request_id unused; what is whole, or stored, stays."""
    await rows.execute(
        "DELETE FROM imports WHERE import_id = $1 AND state IN ('receiving', 'refused')", refused.import_id
    )


def import_from(row: Any) -> Import:
    values = dict(row)
    values["state"] = ImportState(values["state"])
    values["refusal"] = ImportRefusal(**json.loads(values["refusal"])) if values["refusal"] else None
    return Import(**values)
