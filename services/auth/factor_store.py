"""Where second factors live, and tokens that work once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.store.database import Connection
from services.auth import events
from services.auth.domain import OneTimeToken, Purpose, Totp
from services.auth.store import IdentityStore


@dataclass(frozen=True, slots=True)
class FactorStore:
    """One transaction's view; it sees the users that the transaction names."""

    identities: IdentityStore

    @property
    def rows(self) -> Connection:
        return self.identities.rows

    async def find_totp(self, user_id: UUID) -> Totp | None:
        row = await self.rows.fetchrow(
            "SELECT sealed_secret, enable_time, last_step FROM mfa_totp WHERE user_id = $1", user_id
        )
        return row and Totp(**row)

    async def put_totp(self, user_id: UUID, sealed_secret: bytes) -> None:
        """In place of one that was never enabled."""
        await self.rows.execute(
            """
            INSERT INTO mfa_totp (user_id, sealed_secret) VALUES ($1, $2)
            ON CONFLICT (user_id) DO UPDATE SET sealed_secret = excluded.sealed_secret, last_step = 0
            WHERE mfa_totp.enable_time IS NULL
            """,
            user_id,
            sealed_secret,
        )

    async def enable_totp(self, user_id: UUID, now: datetime) -> None:
        await self.rows.execute("UPDATE mfa_totp SET enable_time = $2 WHERE user_id = $1", user_id, now)
        await self.identities.tell(user_id, events.totp_enabled())

    async def delete_totp(self, user_id: UUID, *, admin_user_id: UUID | None = None, note: str = "") -> None:
        """With who took it away, if not its owner, and why."""
        await self.rows.execute("DELETE FROM mfa_totp WHERE user_id = $1", user_id)
        await self.rows.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
        await self.identities.tell(user_id, events.totp_disabled(admin_user_id, note))

    async def use_step(self, user_id: UUID, step: int) -> None:
        await self.rows.execute("UPDATE mfa_totp SET last_step = $2 WHERE user_id = $1", user_id, step)

    async def put_recovery_codes(self, user_id: UUID, hashes: Sequence[bytes]) -> None:
        await self.rows.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
        await self.rows.execute(
            "INSERT INTO recovery_codes (user_id, code_hash) SELECT $1, unnest($2::bytea[])", user_id, list(hashes)
        )
        await self.identities.tell(user_id, events.recovery_codes_regenerated())

    async def use_recovery_code(self, user_id: UUID, code_hash: bytes) -> int | None:
        """How many are left; None if there was no such code."""
        used = await self.rows.fetchval(
            "DELETE FROM recovery_codes WHERE user_id = $1 AND code_hash = $2 RETURNING true", user_id, code_hash
        )
        if not used:
            return None
        left = await self.count_recovery_codes(user_id)
        await self.identities.tell(user_id, events.recovery_code_used(left))
        return left

    async def count_recovery_codes(self, user_id: UUID) -> int:
        return await self.rows.fetchval("SELECT count(*) FROM recovery_codes WHERE user_id = $1", user_id) or 0

    async def add_token(self, token: OneTimeToken) -> None:
        """An earlier link to verify the address is void from now on.

        Challenges and links for a new password stand side by side: anybody may ask for these, and would void the owner's.
        """
        if token.purpose is Purpose.VERIFY_EMAIL:
            await self.rows.execute(
                "DELETE FROM one_time_tokens WHERE user_id = $1 AND purpose = $2 AND spent_time IS NULL",
                token.user_id,
                token.purpose.value,
            )
        await self.rows.execute(
            "INSERT INTO one_time_tokens (token_hash, user_id, purpose, expire_time) VALUES ($1, $2, $3, $4)",
            token.token_hash,
            token.user_id,
            token.purpose.value,
            token.expire_time,
        )

    async def try_token(self, token_hash: bytes, now: datetime) -> int | None:
        """Counts an attempt to answer a challenge: how many there were; None if it is void, expired or answered."""
        return await self.rows.fetchval(
            """
            UPDATE one_time_tokens SET attempt_count = attempt_count + 1
            WHERE token_hash = $1 AND spent_time IS NULL AND expire_time > $2 RETURNING attempt_count
            """,
            token_hash,
            now,
        )

    async def spend_token(self, token_hash: bytes, purpose: Purpose, now: datetime) -> bool:
        """Whether it was good until now; it is kept, so that a repeat of the request is recognised."""
        spent = await self.rows.fetchval(
            """
            UPDATE one_time_tokens SET spent_time = $3
            WHERE token_hash = $1 AND purpose = $2 AND spent_time IS NULL AND expire_time > $3 RETURNING true
            """,
            token_hash,
            purpose.value,
            now,
        )
        return bool(spent)

    async def tell_failure(self, user_id: UUID, address: str) -> None:
        await self.identities.tell(user_id, events.second_factor_failed(address))


async def owner_of(rows: Connection, token_hash: bytes, purpose: Purpose) -> UUID | None:
    """Whose token this is: asked before anyone's identity is known."""
    return await rows.fetchval("SELECT owner_of_one_time_token($1, $2)", token_hash, purpose.value)
