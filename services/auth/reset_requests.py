"""Requests for a new password: kept alike for everybody, and answered by a worker, so that asking tells nothing."""

import hmac
from dataclasses import dataclass
from uuid import UUID

from libs.store.database import Connection
from services.auth.keys import KeyBox

AGAIN_SECONDS = 60
"""Sooner after one request for an address another changes nothing; each that is taken doubles the pause ..."""
AGAIN_SECONDS_MAX = 7_200
"""... up to this one: whoever asks without end causes a dozen mails a day, and an owner never waits for longer."""
AT_ONCE_MAX = 50
PURPOSE = "reset-requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Somebody typed this address in; user_id is who is registered with it, if anybody is."""

    stand_in: UUID
    email: str
    user_id: UUID | None


def stand_in(box: KeyBox, email: str) -> UUID:
    """What an address is known by here, whoever has it: without the key nobody tries addresses."""
    return UUID(bytes=hmac.digest(box.derived(PURPOSE), email.encode(), "sha256")[:16])


async def add(rows: Connection, box: KeyBox, email: str) -> None:
    subject = stand_in(box, email)
    await rows.execute(
        """
        INSERT INTO reset_requests AS kept (user_id, sealed) VALUES ($1, $2)
        ON CONFLICT (user_id) DO UPDATE SET
          sealed = excluded.sealed, request_count = kept.request_count + 1, create_time = now()
        WHERE kept.sealed IS NULL AND kept.create_time < now() - make_interval(
          secs => least($3::float * 2 ^ least(kept.request_count - 1, 30), $4::float))
        """,
        subject,
        box.seal_bytes(PURPOSE, str(subject), email.encode()),
        AGAIN_SECONDS,
        AGAIN_SECONDS_MAX,
    )


async def undone(rows: Connection, box: KeyBox) -> list[Asked]:
    """What was asked for, oldest first; for the worker role."""
    found = await rows.fetch(
        "SELECT user_id, sealed FROM reset_requests WHERE sealed IS NOT NULL ORDER BY create_time LIMIT $1", AT_ONCE_MAX
    )
    emails = {row["user_id"]: box.open_bytes(PURPOSE, str(row["user_id"]), row["sealed"]).decode() for row in found}
    return [
        Asked(stand_in=subject, email=email, user_id=await rows.fetchval("SELECT user_of_email($1)", email))
        for subject, email in emails.items()
    ]


async def settle(rows: Connection, asked: Asked) -> bool:
    """Whether it was to be done, and is done with this transaction: of two replicas one does it. The address goes."""
    return bool(
        await rows.fetchval(
            "UPDATE reset_requests SET sealed = NULL WHERE user_id = $1 AND sealed IS NOT NULL RETURNING true",
            asked.stand_in,
        )
    )
