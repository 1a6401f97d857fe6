"""Request ids: the same request gets its first answer again, another under the same id is refused.

A key is claimed in the transaction that does the work and its answer recorded there too, so either both exist or
neither. A refusal rolls back and leaves the key unused.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from libs.errors import RequestIdReused
from libs.store.background import running
from libs.store.bulk import Together
from libs.store.database import Connection, Database

KEPT_DAYS = 30  # migrations.shared lets the worker role see, and delete, only what is older
PURGE_ROWS = 5_000
PURGE_SECONDS = 3600.0

# LIMIT keeps this a look-up by primary key for each; a plain join may start, because of the row security, from all
# keys that these users ever used.
FIND = """
    SELECT kept.* FROM unnest($1::uuid[], $2::text[], $3::text[]) AS asked (user_id, method, request_id),
    LATERAL (SELECT user_id, method, request_id, digest, answer FROM request_keys
             WHERE (user_id, method, request_id) = (asked.user_id, asked.method, asked.request_id) LIMIT 1) AS kept
    """
ADD = """
    INSERT INTO request_keys (user_id, method, request_id, digest, answer)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
    """


@dataclass(frozen=True, slots=True, order=True)
class RequestKey:
    """Who asks what under which id; digest is the hash of the canonical request without its id."""

    user_id: UUID
    method: str
    request_id: str
    digest: bytes


async def claim(rows: Connection, keys: Iterable[RequestKey]) -> dict[RequestKey, bytes | RequestIdReused]:
    """What is to be answered to those of keys that were used before; the others are now claimed by this transaction.

    One statement, whatever the number of keys. If another transaction has claimed a key and is not done, this waits for
    it: then reads its answer, or claims the key after its rollback. Of two keys that differ only in their digest, the
    first wins. Every claimed key must be recorded before the transaction commits.
    """
    first: dict[tuple[UUID, str, str], RequestKey] = {}
    answers: dict[RequestKey, bytes | RequestIdReused] = {}
    for key in keys:
        winner = first.setdefault((key.user_id, key.method, key.request_id), key)
        if winner.digest != key.digest:
            answers[key] = _reused(key)
    ordered = sorted(first.values())  # two group commits that share keys take them in one order and cannot deadlock
    # DO UPDATE, not DO NOTHING: only it returns the row that another transaction committed while this waited for it.
    found = await rows.fetch(
        """
        INSERT INTO request_keys AS kept (user_id, method, request_id, digest)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])
        ON CONFLICT (user_id, method, request_id) DO UPDATE SET digest = kept.digest
        RETURNING user_id, method, request_id, digest, answer, xmax = 0 AS is_new
        """,
        [key.user_id for key in ordered],
        [key.method for key in ordered],
        [key.request_id for key in ordered],
        [key.digest for key in ordered],
    )
    for row in found:
        key = first[row["user_id"], row["method"], row["request_id"]]
        if row["is_new"]:
            continue
        if row["digest"] != key.digest:
            answers[key] = _reused(key)
        elif row["answer"] is None:
            raise RuntimeError(f"{key.method} {key.request_id} was claimed and never recorded")
        else:
            answers[key] = row["answer"]
    return answers


async def record(rows: Connection, answers: Mapping[RequestKey, bytes]) -> None:
    """Keep the answers of keys that this transaction claimed. One statement, whatever their number."""
    # Each row conflicts, as it was claimed: a look-up by primary key. A plain UPDATE may start, because of the row
    # security, from all keys its users ever used.
    await rows.execute(
        """
        INSERT INTO request_keys (user_id, method, request_id, digest, answer)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
        ON CONFLICT (user_id, method, request_id) DO UPDATE SET answer = excluded.answer
        """,
        [key.user_id for key in answers],
        [key.method for key in answers],
        [key.request_id for key in answers],
        [key.digest for key in answers],
        list(answers.values()),
    )


async def find(rows: Connection, keys: Iterable[RequestKey]) -> dict[RequestKey, bytes | RequestIdReused]:
    """What is to be answered to those of keys that were used before, without claiming the others.

    For batches in which some are refused: what is refused must leave no claim. Call it under the lock that two equal
    requests share, and end with add().
    """
    asked = {(key.user_id, key.method, key.request_id): key for key in keys}
    found = await rows.fetch(
        FIND,
        [key.user_id for key in asked.values()],
        [key.method for key in asked.values()],
        [key.request_id for key in asked.values()],
    )
    kept = {(row["user_id"], row["method"], row["request_id"]): row for row in found}
    return {
        key: row["answer"] if row["digest"] == key.digest else _reused(key)
        for key in keys
        if (row := kept.get((key.user_id, key.method, key.request_id)))
    }


async def add(rows: Connection | Together, answers: Mapping[RequestKey, bytes]) -> None:
    """Keep the answers of keys that find() did not know. One statement, whatever their number.

    asyncpg.UniqueViolationError if another transaction has used one of them since: roll back and begin anew.
    """
    await rows.execute(
        ADD,
        [key.user_id for key in answers],
        [key.method for key in answers],
        [key.request_id for key in answers],
        [key.digest for key in answers],
        list(answers.values()),
    )


async def once(
    database: Database,
    key: RequestKey,
    work: Callable[[Connection], Awaitable[bytes]],
    *,
    also: Sequence[UUID] = (),
) -> bytes:
    """The first answer to key: of work, done now in one transaction, or of when it was done before.

    The transaction is of the key's user, and of those in also.

    Raises RequestIdReused, and whatever work raises; then nothing was changed.
    """
    async with database.transaction(key.user_id, *also) as rows:
        before = (await claim(rows, [key])).get(key)
        if isinstance(before, RequestIdReused):
            raise before
        if before is not None:
            return before
        answer = await work(rows)
        await record(rows, {key: answer})
        return answer


async def purge(database: Database) -> int:
    """Delete keys older than KEPT_DAYS, at most PURGE_ROWS; how many were deleted. For the worker role."""
    async with database.transaction() as rows:
        deleted = await rows.execute(
            """
            DELETE FROM request_keys WHERE (user_id, method, request_id) IN (
              SELECT user_id, method, request_id FROM request_keys
              WHERE create_time < now() - make_interval(days => $1) LIMIT $2)
            """,
            KEPT_DAYS,
            PURGE_ROWS,
        )
    return int(deleted.split()[-1])


@asynccontextmanager
async def purging(database: Database) -> AsyncIterator[None]:
    """Purge during the block, every PURGE_SECONDS. database is of the worker role."""

    async def work() -> None:
        if await purge(database) < PURGE_ROWS:
            await asyncio.sleep(PURGE_SECONDS)

    async with running("purging request keys", work):
        yield


def _reused(key: RequestKey) -> RequestIdReused:
    return RequestIdReused("the request_id was used before with another body", request_id=key.request_id)
