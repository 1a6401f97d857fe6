"""Dividing leases evenly among the replicas that want them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from libs.store import leases
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import HELD, Lease

TURN_SECONDS = 2.0  # how often a member renews, looks for free leases and gives up what is above its share
FORGET_SECONDS = 3600  # when the row of a member that is gone may go


class Share:
    """What this member holds of its group: `held`, by name. Work done under a lease must still be fenced."""

    def __init__(self, database: Database, group: str, names: Sequence[str]) -> None:
        self._database = database
        self._members = f"{group}/member/"
        self._names = {f"{group}/{name}": name for name in names}
        self._owner = leases.new_owner()
        self._membership: Lease | None = None
        self._good_until = asyncio.get_running_loop().time() + leases.LEASE_SECONDS
        self._held: dict[str, Lease] = {}

    @property
    def is_renewed(self) -> bool:
        return asyncio.get_running_loop().time() < self._good_until

    @property
    def held(self) -> dict[str, Lease]:
        """The leases held, by the name they were asked for; none when renewing has failed for too long."""
        if not self.is_renewed:
            return {}
        return {self._names[name]: lease for name, lease in self._held.items()}

    async def turn(self) -> None:
        """Renew all in one statement, then take or give until our part is fair."""
        asked_at = asyncio.get_running_loop().time()
        async with self._database.transaction() as rows:
            mine = await leases.renew(rows, [*self._held.values(), *([self._membership] if self._membership else [])])
            self._membership = next((lease for lease in mine if lease == self._membership), None)
            self._held = {lease.name: lease for lease in mine if lease != self._membership}
        self._good_until = asked_at + leases.LEASE_SECONDS
        # Kept apart from the renewal, which does not wait for the disk: a new epoch must be durable.
        async with self._database.transaction() as rows:
            await self._even_out(rows)

    async def leave(self) -> None:
        mine = [*self._held.values(), *([self._membership] if self._membership else [])]
        self._held, self._membership = {}, None
        await leases.let_go(self._database, mine)

    async def _even_out(self, rows: Connection) -> None:
        if self._membership is None:
            taken = await leases.acquire(rows, self._owner, [self._members + self._owner])
            self._membership = taken[0] if taken else None
        members = await rows.fetchval(
            f"SELECT count(*) FROM leases WHERE {HELD} AND starts_with(name, $2)", leases.life(), self._members
        )
        fair = -(-len(self._names) // max(1, members or 0))
        surplus = list(self._held.values())[fair:]
        if surplus:
            self._held = dict(list(self._held.items())[:fair])
            await leases.release(rows, surplus)
        wanted = fair - len(self._held)
        if wanted > 0:
            free = await rows.fetch(
                f"""
                SELECT name FROM unnest($2::text[]) AS name LEFT JOIN leases USING (name)
                WHERE ({HELD}) IS NOT TRUE ORDER BY random() LIMIT $3
                """,
                leases.life(),
                list(self._names),
                wanted,
            )
            for lease in await leases.acquire(rows, self._owner, [row["name"] for row in free]):
                self._held[lease.name] = lease
        await rows.execute(
            "DELETE FROM leases WHERE starts_with(name, $1) AND expire_time < now() - make_interval(secs => $2)",
            self._members,
            FORGET_SECONDS,
        )


@asynccontextmanager
async def sharing(database: Database, group: str, names: Sequence[str]) -> AsyncIterator[Share]:
    """Take part in the group during the block: with n members each holds about an n-th of names.

    What a dead member held is taken over when it expires, after LEASE_SECONDS. database is of the worker role.
    """
    share = Share(database, group, names)

    async def take_turns() -> None:
        await share.turn()
        await asyncio.sleep(TURN_SECONDS)

    try:
        async with running(f"sharing {group}", take_turns):
            yield share
    finally:
        await share.leave()
