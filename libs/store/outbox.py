"""The outbox: what a service tells the others, written in the transaction in which it became true.

The rows are the truth and stay KEPT_DAYS; libs.store.relay carries them to Redis, as often as it takes, and has Redis
forget them with the rows.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.store.bulk import Together
from libs.store.database import Connection

PARTITIONS = 16
KEPT_DAYS = 7

ADD = """
    INSERT INTO outbox (partition, key, sequence, user_id, kind, payload)
    SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::bytea[])
    """

# The relays of this process; a commit that told something wakes them.
wakers: set[Callable[[], None]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that happened, of which others read each once and in the order of sequence.

    key is what it is about (an account, an instrument); sequence rises by exactly one within it, from 1, counted by the
    teller under the lock of what key names. user_id is whose it is, None for nobody's. kind is the full name of the
    message in payload. time is set by the outbox.
    """

    key: str
    sequence: int
    user_id: UUID | None
    kind: str
    payload: bytes
    time: datetime | None = None


def partition_of(key: str) -> int:
    """Facts of one partition are read by one reader, in order."""
    return zlib.crc32(key.encode()) % PARTITIONS


async def add(rows: Connection | Together, facts: Sequence[Fact]) -> None:
    """Tell facts if and when this transaction commits. One statement, whatever their number."""
    if not facts:
        return
    await rows.execute(
        ADD,
        [partition_of(fact.key) for fact in facts],
        [fact.key for fact in facts],
        [fact.sequence for fact in facts],
        [fact.user_id for fact in facts],
        [fact.kind for fact in facts],
        [fact.payload for fact in facts],
    )
    rows.after_commit(wake)


def wake() -> None:
    """Have this process's relays look at once."""
    for waker in wakers:
        waker()
