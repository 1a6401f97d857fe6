"""Where API keys live."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from libs.mesh.identity import network_of
from libs.store.database import Connection
from services.auth import events
from services.auth.domain import ApiKey, Scope
from services.auth.store import IdentityStore

USE_NOTED = timedelta(minutes=1)
"""To this a key's last use is noted, so that a busy key does not write all the time."""
USE_TOLD = timedelta(days=1)
"""So long after a first use was told of, the next one is told of as the first."""
NETWORKS_TOLD_MAX = 20
"""From so many networks a key's use is told of meanwhile; a key that wanders does not flood its owner's records."""
KEYS_KEPT_MAX = 200
"""Of one person; beyond it the oldest that are not in force go."""

KEY = """
    SELECT api_key_id, user_id, name, prefix, scope, account_ids, allowed_networks, create_time, expire_time,
           last_used_time, last_used_address, revoke_time, told_time, told_networks
    FROM api_keys
    """


@dataclass(frozen=True, slots=True)
class KeyStore:
    """One transaction's view; it sees the users that the transaction names."""

    identities: IdentityStore

    @property
    def rows(self) -> Connection:
        return self.identities.rows

    async def add(self, key: ApiKey, secret_hash: bytes) -> None:
        await self.rows.execute(
            """
            INSERT INTO api_keys (api_key_id, user_id, name, prefix, secret_hash, scope, account_ids, allowed_networks,
                                  create_time, expire_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            """,
            key.api_key_id,
            key.user_id,
            key.name,
            key.prefix,
            secret_hash,
            key.scope.value,
            list(key.account_ids),
            list(key.allowed_networks),
            key.create_time,
            key.expire_time,
        )
        await self.rows.execute(
            """
            DELETE FROM api_keys WHERE user_id = $1 AND api_key_id IN (
              SELECT api_key_id FROM api_keys WHERE user_id = $1 AND (revoke_time IS NOT NULL OR expire_time <= $2)
              ORDER BY api_key_id DESC OFFSET $3)
            """,
            key.user_id,
            key.create_time,
            KEYS_KEPT_MAX,
        )
        count = await self.count_in_force(key.user_id, key.create_time)
        await self.identities.tell(key.user_id, events.api_key_created(key, count))

    async def find(self, user_id: UUID, api_key_id: UUID) -> ApiKey | None:
        row = await self.rows.fetchrow(f"{KEY} WHERE user_id = $1 AND api_key_id = $2", user_id, api_key_id)
        return row and key_from(row)

    async def find_by_secret(self, secret_hash: bytes) -> ApiKey | None:
        row = await self.rows.fetchrow(f"{KEY} WHERE secret_hash = $1", secret_hash)
        return row and key_from(row)

    async def list_keys(self, user_id: UUID, before: UUID | None, limit: int) -> list[ApiKey]:
        """Newest first."""
        found = await self.rows.fetch(
            f"""
            {KEY} WHERE user_id = $1 AND ($2::uuid IS NULL OR api_key_id < $2) ORDER BY api_key_id DESC LIMIT $3
            """,
            user_id,
            before,
            limit,
        )
        return [key_from(row) for row in found]

    async def count_in_force(self, user_id: UUID, now: datetime) -> int:
        count = await self.rows.fetchval(
            """
            SELECT count(*) FROM api_keys
            WHERE user_id = $1 AND revoke_time IS NULL AND (expire_time IS NULL OR expire_time > $2)
            """,
            user_id,
            now,
        )
        return count or 0

    async def revoke(self, key: ApiKey, *, cause: str, now: datetime) -> ApiKey:
        """Revoking twice changes nothing."""
        if key.revoke_time is not None:
            return key
        await self.rows.execute("UPDATE api_keys SET revoke_time = $2 WHERE api_key_id = $1", key.api_key_id, now)
        await self.identities.revoke(key.api_key_id, key.user_id, now)
        count = await self.count_in_force(key.user_id, now)
        await self.identities.tell(key.user_id, events.api_key_revoked(key.api_key_id, cause, count))
        return replace(key, revoke_time=now)

    async def revoke_all(self, user_id: UUID, *, cause: str, now: datetime) -> None:
        found = await self.rows.fetch(f"{KEY} WHERE user_id = $1 AND revoke_time IS NULL ORDER BY api_key_id", user_id)
        for row in found:
            await self.revoke(key_from(row), cause=cause, now=now)

    async def note_use(self, key: ApiKey, address: str, now: datetime) -> None:
        """At most once a minute, and at once from another address; told of as USE_TOLD says."""
        await self._tell_use(key, address, now)
        if key.last_used_time and now - key.last_used_time < USE_NOTED and key.last_used_address == address:
            return
        await self.rows.execute(
            "UPDATE api_keys SET last_used_time = $2, last_used_address = $3 WHERE api_key_id = $1",
            key.api_key_id,
            now,
            address,
        )

    async def _tell_use(self, key: ApiKey, address: str, now: datetime) -> None:
        network = network_of(address)
        is_first = key.told_time is None or now - key.told_time >= USE_TOLD
        told = () if is_first else key.told_networks
        if network in told or len(told) >= NETWORKS_TOLD_MAX:
            return
        await self.rows.execute(
            "UPDATE api_keys SET told_time = $2, told_networks = $3 WHERE api_key_id = $1",
            key.api_key_id,
            now if is_first else key.told_time,
            [*told, network],
        )
        await self.identities.tell(key.user_id, events.api_key_used(key, address))

    async def note_refusal(self, secret_hash: bytes, address: str, reason: str) -> None:
        """Whoever was refused has the secret: its owner is told, at intervals."""
        await self.rows.execute(
            """
            INSERT INTO key_refusals AS kept (api_key_id, user_id, address, reason)
            SELECT api_key_id, user_id, $2, $3 FROM api_keys WHERE secret_hash = $1
            ON CONFLICT (api_key_id) DO UPDATE SET
              address = excluded.address, reason = excluded.reason, refusal_count = kept.refusal_count + 1,
              last_refusal_time = now()
            """,
            secret_hash,
            address,
            reason,
        )

    async def tell_refusals(self, user_id: UUID) -> None:
        """One fact for each key, and forgets them; for the worker role."""
        noted = await self.rows.fetch(
            """
            DELETE FROM key_refusals WHERE user_id = $1
            RETURNING api_key_id, address, reason, refusal_count, first_refusal_time, last_refusal_time
            """,
            user_id,
        )
        for row in noted:
            await self.identities.tell(user_id, events.api_key_refused(**row))


def key_from(row: Mapping[str, Any]) -> ApiKey:
    return ApiKey(
        **{
            **row,
            "scope": Scope(row["scope"]),
            "account_ids": tuple(row["account_ids"]),
            "allowed_networks": tuple(row["allowed_networks"]),
            "told_networks": tuple(row["told_networks"]),
        }
    )


async def owner_of_secret(rows: Connection, secret_hash: bytes) -> UUID | None:
    """Whose key this is: asked before anyone's identity is known."""
    return await rows.fetchval("SELECT owner_of_api_key($1)", secret_hash)
