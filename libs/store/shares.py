"""Dividing leases evenly among the replicas that want them."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from libs.store import leases
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import HELD, Lease

TURN_SECONDS = 2.0  # how often a member renews, looks for free leases and gives up what is above its part
FORGET_SECONDS = 3600  # when the row of a member that is gone may go


class Share:
    """What this member holds of its group, by name. Work done under a lease must still be fenced."""

    def __init__(self, database: Database, group: str) -> None:
        self._database = database
        self._prefix = f"{group}/"
        self._members = f"{group}/member/"
        self._owner = leases.new_owner()
        self._membership: Lease | None = None
        self._good_until = asyncio.get_running_loop().time() + leases.LEASE_SECONDS
        self._may_take_at = 0.0
        self._held: dict[str, Lease] = {}
        self._surplus: dict[str, Lease] = {}

    @property
    def is_renewed(self) -> bool:
        return asyncio.get_running_loop().time() < self._good_until

    @property
    def held(self) -> dict[str, Lease]:
        """The leases held, by the name they were asked for; none when renewing has failed for too long."""
        return dict(self._held) if self.is_renewed else {}

    async def turn(self, names: Collection[str], busy: Collection[str] = ()) -> dict[str, Lease]:
        """Renew all in one statement, then take or give until our part of names is fair; what is held then, as Postgres says.

        names may be others than the last time. What is above our part, or of names no more, is held no longer, but no other
        gets it while it is busy: it is given in the first turn that finds it so no more. Who goes by what turns return works
        on while Postgres is away, until another has provably taken over: its every effect must be fenced, wherever it is.
        """
        asked_at = asyncio.get_running_loop().time()
        if not self.is_renewed:
            # Who was away itself, as with Postgres, lets the others say first that they live.
            self._may_take_at = asked_at + TURN_SECONDS
        async with self._database.transaction() as rows:
            await self._renew(rows)
        self._good_until = asked_at + leases.LEASE_SECONDS
        # Kept apart from the renewal, which does not wait for the disk: a new epoch must be durable.
        async with self._database.transaction() as rows:
            membership = self._membership or await self._join(rows)
            mine = self._held | self._surplus
            wanted = [name for name in mine if name in names]
            part = await self._part(rows, names, len(wanted))
            held = {name: mine[name] for name in wanted[:part]}
            above = {name: lease for name, lease in mine.items() if name not in held}
            surplus = {name: lease for name, lease in above.items() if name in busy}
            if given := [lease for name, lease in above.items() if name not in busy]:
                await leases.release(rows, given)
            if asked_at >= self._may_take_at:
                held |= await self._take(rows, names, part - len(held))
        # Only now: an epoch that was not committed may be given to another.
        self._membership, self._held, self._surplus = membership, held, surplus
        return dict(held)

    async def leave(self) -> None:
        mine = self._all()
        self._membership, self._held, self._surplus = None, {}, {}
        await leases.let_go(self._database, mine)

    def _all(self) -> list[Lease]:
        return [*self._held.values(), *self._surplus.values(), *([self._membership] if self._membership else [])]

    async def _renew(self, rows: Connection) -> None:
        kept = set(await leases.renew(rows, self._all()))
        self._membership = self._membership if self._membership in kept else None
        self._held = {name: lease for name, lease in self._held.items() if lease in kept}
        self._surplus = {name: lease for name, lease in self._surplus.items() if lease in kept}

    async def _join(self, rows: Connection) -> Lease | None:
        await self._tidy(rows)
        taken = await leases.acquire(rows, self._owner, [self._members + self._owner])
        return taken[0] if taken else None

    async def _part(self, rows: Connection, names: Collection[str], mine: int) -> int:
        found = await rows.fetch(
            f"""
            SELECT owner, count(*) FILTER (WHERE name = ANY ($3)) AS held FROM leases
            WHERE {HELD} AND (starts_with(name, $2) OR name = ANY ($3))
            GROUP BY owner HAVING bool_or(starts_with(name, $2))
            """,
            leases.life(),
            self._members,
            self._rows_of(names),
        )
        return part_of(self._owner, {row["owner"]: row["held"] for row in found} | {self._owner: mine}, len(names))

    async def _take(self, rows: Connection, names: Collection[str], count: int) -> dict[str, Lease]:
        if count <= 0:
            return {}
        free = await rows.fetch(
            f"""
            SELECT name FROM unnest($2::text[]) AS name LEFT JOIN leases USING (name)
            WHERE ({HELD}) IS NOT TRUE ORDER BY random() LIMIT $3
            """,
            leases.life(),
            self._rows_of(names),
            count,
        )
        taken = await leases.acquire(rows, self._owner, [row["name"] for row in free])
        return {lease.name.removeprefix(self._prefix): lease for lease in taken}

    async def _tidy(self, rows: Connection) -> None:
        await rows.execute(
            "DELETE FROM leases WHERE starts_with(name, $1) AND expire_time < now() - make_interval(secs => $2)",
            self._members,
            FORGET_SECONDS,
        )

    def _rows_of(self, names: Collection[str]) -> list[str]:
        return [self._prefix + name for name in names]


def part_of(owner: str, held: Mapping[str, int], count: int) -> int:
    """How many of count names a member is to hold, by how many each member holds.

    An n-th, and where that leaves some over, one more of them: first whoever holds more already, so that the fewest move.
    """
    each, over = divmod(count, len(held))
    first = sorted(held, key=lambda member: (held[member] <= each, member))[:over]
    return each + (owner in first)


@asynccontextmanager
async def sharing(database: Database, group: str, names: Collection[str]) -> AsyncIterator[Share]:
    """Take part in the group during the block: with n members each holds an n-th of names.

    What a dead member held is taken over when it expires, after LEASE_SECONDS. database is of the worker role.
    """
    share = Share(database, group)

    async def take_turns() -> None:
        await share.turn(names)
        await asyncio.sleep(TURN_SECONDS)

    try:
        async with running(f"sharing {group}", take_turns):
            yield share
    finally:
        await share.leave()
