"""Leases: a row in Postgres says who does a thing, under an epoch that rises with every change of hands.

The database's clock decides. A holder that stood still may believe in its lease for a while, so every effect is fenced:
in Postgres by fence(), in a Redis stream by ids that begin with the epoch.

A fence locks the row FOR KEY SHARE, which keeps out only who takes the lease over: he locks it FOR UPDATE. A renewal
changes no key, so it never waits for a fence of its own holder. Nobody waits for a row here: one that another has locked
is passed by.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from libs.store.background import running
from libs.store.database import Connection, Database, DatabaseUnavailable

LEASE_SECONDS = 6.0
RENEW_SECONDS = 2.0
TRY_SECONDS = 0.5  # how often a lease that another holds is asked for

# Held, of a row of leases. One that is good for longer than anybody may ask was written before the clock was set back;
# twice as long, so that a clock that is put right by some seconds takes nothing from the living.
HELD = "expire_time > clock_timestamp() AND expire_time <= clock_timestamp() + $1::interval * 2"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of owner to do what name says, until another has a higher epoch."""

    name: str
    owner: str
    epoch: int


class LeaseLost(Exception):
    """Another holds the lease by now, or may."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"{lease.name} is no longer held under epoch {lease.epoch}")


def new_owner() -> str:
    """A name for one holder in one process, never used twice."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def life() -> timedelta:
    """How long a lease is good for: the $1 of HELD."""
    return timedelta(seconds=LEASE_SECONDS)


async def acquire(rows: Connection, owner: str, names: Iterable[str]) -> list[Lease]:
    """Those of names that nobody holds, now held by owner under a new epoch. One statement.

    One that another transaction has locked, as by a fence, is left for another time.
    """
    taken = await rows.fetch(
        f"""
        WITH free AS (
          SELECT name FROM leases WHERE name = ANY($3::text[]) AND NOT ({HELD}) FOR UPDATE SKIP LOCKED),
        again AS (
          UPDATE leases AS held SET owner = $2, epoch = held.epoch + 1, expire_time = clock_timestamp() + $1
          FROM free WHERE held.name = free.name RETURNING held.name, held.epoch),
        first AS (
          INSERT INTO leases (name, owner, epoch, expire_time)
          SELECT name, $2, 1, clock_timestamp() + $1 FROM unnest($3::text[]) AS name
          WHERE NOT EXISTS (SELECT FROM leases AS known WHERE known.name = name.name)
          ON CONFLICT (name) DO NOTHING RETURNING name, epoch)
        SELECT name, epoch FROM again UNION ALL SELECT name, epoch FROM first
        """,
        life(),
        owner,
        sorted(set(names)),
    )
    return [Lease(row["name"], owner, row["epoch"]) for row in taken]


async def renew(rows: Connection, leases: Sequence[Lease]) -> list[Lease]:
    """Those of leases that are still held, now for LEASE_SECONDS more. One statement.

    A row that another has locked is as good as lost: only who takes a lease over does that. The commit does not wait for
    the disk: a renewal lost in a crash only lets another take over sooner.
    """
    await rows.execute("SET LOCAL synchronous_commit = off")
    kept = await rows.fetch(
        """
        WITH mine AS (
          SELECT name, epoch FROM leases JOIN unnest($2::text[], $3::bigint[]) AS mine (name, epoch) USING (name, epoch)
          FOR NO KEY UPDATE OF leases SKIP LOCKED)
        UPDATE leases AS held SET expire_time = clock_timestamp() + $1
        FROM mine WHERE (held.name, held.epoch) = (mine.name, mine.epoch) RETURNING held.name, held.epoch
        """,
        life(),
        [lease.name for lease in leases],
        [lease.epoch for lease in leases],
    )
    still = {(row["name"], row["epoch"]) for row in kept}
    return [lease for lease in leases if (lease.name, lease.epoch) in still]


async def release(rows: Connection, leases: Sequence[Lease]) -> None:
    """Let others have them at once. The rows stay, so that epochs go on rising."""
    await rows.execute(
        """
        UPDATE leases AS held SET expire_time = '-infinity'
        FROM unnest($1::text[], $2::bigint[]) AS mine (name, epoch)
        WHERE (held.name, held.epoch) = (mine.name, mine.epoch)
        """,
        [lease.name for lease in leases],
        [lease.epoch for lease in leases],
    )


async def release_beyond(rows: Connection, lease: Lease, epoch: int) -> None:
    """Release lease, its next epoch being above epoch: for one who finds traces of a later history than Postgres has."""
    await rows.execute(
        "UPDATE leases SET epoch = greatest(epoch, $1), expire_time = '-infinity' WHERE name = $2 AND epoch = $3",
        epoch,
        lease.name,
        lease.epoch,
    )


async def fence(rows: Connection, *leases: Lease) -> None:
    """Raise LeaseLost unless each lease is the newest; from here until the commit nobody can take one over."""
    found = await rows.fetch(
        "SELECT name, epoch FROM leases WHERE name = ANY($1) FOR KEY SHARE", [lease.name for lease in leases]
    )
    newest = {row["name"]: row["epoch"] for row in found}
    for lease in leases:
        if newest.get(lease.name) != lease.epoch:
            raise LeaseLost(lease)


@asynccontextmanager
async def holding(database: Database, name: str) -> AsyncIterator[Lease]:
    """Wait until the lease is ours, renew it during the block, release it afterwards.

    If it could not be renewed in time, the block is cancelled and LeaseLost raised. database is of the worker role.
    """
    loop = asyncio.get_running_loop()
    lease, asked_at = await _wait_for(database, name, new_owner())
    limit = asyncio.timeout_at(asked_at + LEASE_SECONDS)

    async def keep() -> None:
        await asyncio.sleep(RENEW_SECONDS)
        asked_at = loop.time()
        async with database.transaction() as rows:
            kept = await renew(rows, [lease])
        if not limit.expired():
            limit.reschedule(asked_at + LEASE_SECONDS if kept else asked_at)

    try:
        async with limit, running(f"renewing {name}", keep):
            yield lease
    except TimeoutError as error:
        if limit.expired():
            raise LeaseLost(lease) from error
        raise
    finally:
        await let_go(database, [lease])


async def let_go(database: Database, leases: Sequence[Lease]) -> None:
    """Release if Postgres answers; if it does not, the leases expire by themselves."""
    with suppress(DatabaseUnavailable):
        async with database.transaction() as rows:
            await release(rows, leases)


async def _wait_for(database: Database, name: str, owner: str) -> tuple[Lease, float]:
    while True:
        asked_at = asyncio.get_running_loop().time()
        async with database.transaction() as rows:
            taken = await acquire(rows, owner, [name])
        if taken:
            return taken[0], asked_at
        await asyncio.sleep(TRY_SECONDS)
