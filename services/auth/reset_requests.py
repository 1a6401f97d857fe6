"""Requests for a new password: kept alike for everybody, and answered by a worker, so that asking tells nothing."""

from uuid import UUID

from libs.store.database import Connection

AGAIN_SECONDS = 60
"""Sooner after one request for an address another changes nothing: nobody's mailbox is flooded."""
AT_ONCE_MAX = 50


async def add(rows: Connection, email: str) -> None:
    await rows.execute(
        """
        INSERT INTO reset_requests AS kept (email) VALUES ($1)
        ON CONFLICT (email) DO UPDATE SET create_time = now(), done = false
        WHERE kept.done AND kept.create_time < now() - make_interval(secs => $2)
        """,
        email,
        AGAIN_SECONDS,
    )


async def undone(rows: Connection) -> list[tuple[str, UUID | None]]:
    """The addresses asked for, oldest first, and who is registered with each; for the worker role."""
    found = await rows.fetch(
        """
        SELECT email, user_of_email(email) AS user_id FROM reset_requests WHERE NOT done ORDER BY create_time LIMIT $1
        """,
        AT_ONCE_MAX,
    )
    return [(row["email"], row["user_id"]) for row in found]


async def settle(rows: Connection, email: str) -> bool:
    """Whether it was to be done, and is done with this transaction: of two replicas one does it."""
    return bool(
        await rows.fetchval("UPDATE reset_requests SET done = true WHERE email = $1 AND NOT done RETURNING true", email)
    )
