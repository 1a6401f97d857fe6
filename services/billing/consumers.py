"""Applies what the other services tell: how much of a quota is used, and who is gone.

Each function runs in the transaction that moves the reader's position, so that every use counts once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from uuid import UUID

import structlog
from tradeloom.auth.v1 import events_pb2 as auth_events
from tradeloom.type.v1 import usage_pb2
from tradeloom.users.v1 import events_pb2 as users_events

from libs.mesh.wire import time_from_proto
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.billing import store

API_KEYS = "api_keys"
KEY_FACTS = {
    message.DESCRIPTOR.full_name: message for message in (auth_events.ApiKeyCreated, auth_events.ApiKeyRevoked)
}
USAGE_COUNTED = usage_pb2.UsageCounted.DESCRIPTOR.full_name
USER_PURGED = users_events.UserPurged.DESCRIPTOR.full_name
QUOTA_CHARACTERS_MAX = 64
ADDED_MAX = 1_000_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApplyFacts:
    """Of whatever service: UsageCounted means the same wherever it comes from."""

    now: Callable[[], datetime]

    async def __call__(self, rows: Connection, facts: Sequence[Fact]) -> None:
        added: Counter[tuple[UUID, str, date]] = Counter()
        current: dict[tuple[UUID, str, None], int] = {}
        gone: set[UUID] = set()
        for fact in facts:
            if fact.user_id is None:
                continue
            if fact.kind in KEY_FACTS:
                told = KEY_FACTS[fact.kind].FromString(fact.payload)
                current[fact.user_id, API_KEYS, None] = told.api_key_count
            elif fact.kind == USAGE_COUNTED:
                count(fact, fact.user_id, added, current)
            elif fact.kind == USER_PURGED:
                gone.add(fact.user_id)
        if gone:
            await store.ask_to_purge(rows, list(gone), self.now())
        await store.add_usage(rows, added)
        await store.set_usage(rows, current)


def count(
    fact: Fact, user_id: UUID, added: Counter[tuple[UUID, str, date]], current: dict[tuple[UUID, str, None], int]
) -> None:
    told = usage_pb2.UsageCounted.FromString(fact.payload)
    kind = told.WhichOneof("count")
    amount = getattr(told, kind) if kind else -1
    if not 0 < len(told.quota) <= QUOTA_CHARACTERS_MAX or not 0 <= amount <= ADDED_MAX:
        # Whoever told it is wrong for ever; the facts after it are not to wait.
        log.error("a usage that nobody can have", key=fact.key, sequence=fact.sequence, quota=told.quota[:64])
        return
    if kind == "current":
        current[user_id, told.quota, None] = amount
    else:
        time = time_from_proto(told.time) if told.HasField("time") else fact.time
        added[user_id, told.quota, (time or datetime.now(UTC)).date()] += amount
