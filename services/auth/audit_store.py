"""Where the chains of audit events live."""

import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from libs import audit
from libs.audit import BEFORE_FIRST, SALT_BYTES, Checkpoint, Event, Tampered
from libs.store.bulk import Bulk
from libs.store.database import Connection
from services.auth.keys import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something to be recorded about a person."""

    user_id: UUID
    time: datetime
    source: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An event and whose it is."""

    user_id: UUID
    event: Event = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)


EVENTS = Bulk(
    "audit_events",
    {
        "user_id": "uuid",
        "sequence": "bigint",
        "time": "timestamptz",
        "source": "text",
        "kind": "text",
        "detail": "text",
        "salt": "bytea",
        "digest": "bytea",
        "hash": "bytea",
    },
)
ENDS = Bulk(
    "audit_chains",
    {"user_id": "uuid", "sequence": "bigint", "hash": "bytea", "signature": "text"},
    """
    ON CONFLICT (user_id) DO UPDATE SET
      sequence = excluded.sequence, hash = excluded.hash, signature = excluded.signature
    """,
)
BROKEN = Gauge("tradeloom_audit_chains_broken", "Chains of which this process found the end changed.")
LOST = Counter("tradeloom_audit_records_lost", "What was not recorded because the end of its chain was changed.")

log = structlog.get_logger(__name__)


class ChainsBroken(Exception):
    """Chains whose ends are not what was signed; says whose."""


class Chains:
    """Adds to the chains of people, and signs where each ends then: who only writes the database cannot forge an end.

    A chain whose end is not what was signed is left as it is, for whoever is to find out; others go on.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._broken: dict[UUID, str] = {}

    async def check(self) -> None:
        """Raises ChainsBroken."""
        if self._broken:
            user_id, why = next(iter(self._broken.items()))
            raise ChainsBroken(f"{len(self._broken)} are not continued, such as that of {user_id}: {why}")

    async def append(
        self,
        rows: Connection,
        happenings: Sequence[Happening],
        purged_among: Callable[[Connection, Iterable[UUID]], Awaitable[Collection[UUID]]],
    ) -> None:
        """Adds to each person's chain, in this order. A fixed number of statements, whatever the number of happenings.

        Of those who were purged only the proof is kept.
        """
        of_user: dict[UUID, list[Happening]] = defaultdict(list)
        for happening in happenings:
            of_user[happening.user_id].append(happening)
        ends = await _lock_ends(rows, sorted(of_user))
        # Asked only now: who held the chain may have purged.
        purged = await purged_among(rows, of_user)
        written: list[Row] = []
        signed: list[Checkpoint] = []
        for user_id, theirs in of_user.items():
            end = ends[user_id]
            if not self._is_sound(end, theirs):
                continue
            for happening in theirs:
                event, end = audit.next_event(
                    end,
                    time=happening.time,
                    source=happening.source,
                    kind=happening.kind,
                    detail=happening.detail,
                    salt=os.urandom(SALT_BYTES),
                )
                kept = replace(event, detail="", salt=b"") if user_id in purged else event
                written.append(Row(user_id=user_id, event=kept))
            signed.append(self._signer.sign_end(end))
        await rows.execute(EVENTS.statement, *EVENTS.arguments(written))
        await rows.execute(ENDS.statement, *ENDS.arguments(signed))

    def _is_sound(self, end: Checkpoint, happenings: Sequence[Happening]) -> bool:
        try:
            self._signer.check_end(end)
        except Tampered as error:
            self._broken[end.user_id] = str(error)
            LOST.inc(len(happenings))
            log.error(  # noqa: TRY400 (its trace says no more)
                "an audit chain was changed and is not continued",
                user_id=str(end.user_id),
                sequence=end.sequence,
                error=str(error),
                kinds=[happening.kind for happening in happenings],
            )
            is_sound = False
        else:
            self._broken.pop(end.user_id, None)
            is_sound = True
        BROKEN.set(len(self._broken))
        return is_sound


async def _lock_ends(rows: Connection, user_ids: Sequence[UUID]) -> dict[UUID, Checkpoint]:
    """Where the chains end; locked in the order of ids, so that two batches cannot hold each other up for ever."""
    found = await rows.fetch(
        """
        INSERT INTO audit_chains AS kept (user_id, sequence, hash)
        SELECT user_id, 0, $2 FROM unnest($1::uuid[]) AS user_id ORDER BY user_id
        ON CONFLICT (user_id) DO UPDATE SET sequence = kept.sequence RETURNING user_id, sequence, hash, signature
        """,
        user_ids,
        BEFORE_FIRST,
    )
    return {row["user_id"]: Checkpoint(**row) for row in found}


async def end_of(rows: Connection, user_id: UUID) -> Checkpoint:
    """As it was signed; of a chain without records, unsigned."""
    row = await rows.fetchrow(
        "SELECT user_id, sequence, hash, signature FROM audit_chains WHERE user_id = $1 AND sequence > 0", user_id
    )
    return Checkpoint(**row) if row else Checkpoint(user_id=user_id, sequence=0, hash=BEFORE_FIRST)


async def list_events(
    rows: Connection, user_id: UUID, after: int, limit: int, *, newest_first: bool = False
) -> list[Event]:
    """Beyond a sequence, or from the start where that is 0; oldest first, unless asked otherwise."""
    beyond = "< coalesce(nullif($2, 0), 9223372036854775807)" if newest_first else "> $2"
    order = "DESC" if newest_first else "ASC"
    found: Sequence[Mapping[str, Any]] = await rows.fetch(
        f"""
        SELECT sequence, time, source, kind, detail, salt, digest, hash FROM audit_events
        WHERE user_id = $1 AND sequence {beyond} ORDER BY sequence {order} LIMIT $3
        """,
        user_id,
        after,
        limit,
    )
    return [Event(**row) for row in found]


async def empty(rows: Connection, user_id: UUID) -> None:
    """Takes what is personal out of a chain, which stays as provable as it was; for the worker role."""
    await rows.execute(
        "UPDATE audit_events SET detail = '', salt = '' WHERE user_id = $1 AND (detail <> '' OR salt <> '')", user_id
    )
