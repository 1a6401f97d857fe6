"""Where people, sessions and keys live."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.auth import events
from services.auth.domain import Failures, RefreshToken, Session, User
from services.auth.keys import StoredKey

# Failed logins older than this are forgotten.
FAILURES_KEPT = timedelta(days=1)
TOLD_AT_ONCE_MAX = 500
PURGE_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class IdentityStore:
    """One transaction's view; it sees the users that the transaction names."""

    rows: Connection
    access_token_seconds: int

    async def add_user(self, user: User, password_hash: str) -> bool:
        """Whether the address was free."""
        inserted = await self.rows.fetchval(
            """
            INSERT INTO users (user_id, email, full_name, password_hash, email_verified, create_time)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (email) DO NOTHING RETURNING user_id
            """,
            user.user_id,
            user.email,
            user.full_name,
            password_hash,
            user.email_verified,
            user.create_time,
        )
        if inserted is None:
            return False
        await self.rows.executemany(
            "INSERT INTO user_roles (user_id, role) VALUES ($1, $2)",
            [(user.user_id, role) for role in sorted(user.roles)],
        )
        await self._tell(user.user_id, events.registered(user))
        return True

    async def find_user(self, user_id: UUID) -> User | None:
        row = await self.rows.fetchrow(
            """
            SELECT user_id, email, full_name, email_verified, create_time,
                   ARRAY(SELECT role FROM user_roles WHERE user_roles.user_id = users.user_id) AS roles
            FROM users WHERE user_id = $1 AND state = 'active'
            """,
            user_id,
        )
        return row and User(**{**row, "roles": frozenset(row["roles"])})

    async def add_session(self, session: Session) -> None:
        await self.rows.execute(
            "INSERT INTO sessions (session_id, user_id, address, create_time) VALUES ($1, $2, $3, $4)",
            session.session_id,
            session.user_id,
            session.address,
            session.create_time,
        )
        await self._tell(session.user_id, events.session_opened(session))

    async def find_session(self, session_id: UUID) -> Session | None:
        """The session, locked: two refreshes of one session take turns."""
        row = await self.rows.fetchrow(
            "SELECT session_id, user_id, address, create_time, end_time FROM sessions WHERE session_id = $1 FOR UPDATE",
            session_id,
        )
        return row and Session(**row)

    async def end_session(self, session_id: UUID, user_id: UUID, *, cause: str, now: datetime) -> None:
        """Ends it; its tokens may live until access_expire_time, so long everyone must know. Ending twice changes nothing."""
        expire_time = now + timedelta(seconds=self.access_token_seconds)
        ended = await self.rows.fetchval(
            """
            UPDATE sessions SET end_time = $2, end_cause = $3, access_expire_time = $4
            WHERE session_id = $1 AND end_time IS NULL RETURNING session_id
            """,
            session_id,
            now,
            cause,
            expire_time,
        )
        if ended is not None:
            await self._tell(user_id, events.session_ended(session_id, cause, expire_time))

    async def find_refresh_token(self, token_hash: bytes) -> RefreshToken | None:
        row = await self.rows.fetchrow(
            """
            SELECT token.token_hash, token.session_id, token.user_id, token.expire_time, token.spent_time,
                   token.spent_request_id, token.successor_hash, successor.spent_time IS NOT NULL AS successor_spent
            FROM refresh_tokens AS token LEFT JOIN refresh_tokens AS successor ON successor.token_hash = token.successor_hash
            WHERE token.token_hash = $1
            """,
            token_hash,
        )
        return row and RefreshToken(**row)

    async def add_refresh_token(self, token: RefreshToken) -> None:
        await self.rows.execute(
            "INSERT INTO refresh_tokens (token_hash, session_id, user_id, expire_time) VALUES ($1, $2, $3, $4)",
            token.token_hash,
            token.session_id,
            token.user_id,
            token.expire_time,
        )

    async def spend(self, spent: RefreshToken, successor: RefreshToken, *, request_id: str, now: datetime) -> None:
        await self.add_refresh_token(successor)
        await self.rows.execute(
            "UPDATE refresh_tokens SET spent_time = $2, spent_request_id = $3, successor_hash = $4 WHERE token_hash = $1",
            spent.token_hash,
            now,
            request_id,
            successor.token_hash,
        )

    async def replace_successor(self, spent: RefreshToken, successor: RefreshToken) -> None:
        await self.add_refresh_token(successor)
        await self.rows.execute(
            "UPDATE refresh_tokens SET successor_hash = $2 WHERE token_hash = $1",
            spent.token_hash,
            successor.token_hash,
        )
        await self.rows.execute("DELETE FROM refresh_tokens WHERE token_hash = $1", spent.successor_hash)

    async def note_failed_login(self, user_id: UUID, address: str) -> None:
        """Takes as long for somebody who does not exist."""
        await self.rows.execute(
            """
            INSERT INTO failed_logins AS kept (user_id, address) VALUES ($1, $2)
            ON CONFLICT (user_id) DO UPDATE SET
              address = excluded.address, failure_count = kept.failure_count + 1, last_failure_time = now()
            """,
            user_id,
            address,
        )

    async def tell_failed_logins(self, user_id: UUID) -> None:
        """Tells of all that were noted as one fact, and forgets them; for the worker role."""
        noted = await self.rows.fetchrow(
            """
            DELETE FROM failed_logins WHERE user_id = $1
            RETURNING address, failure_count, first_failure_time, last_failure_time
            """,
            user_id,
        )
        if noted and await self.rows.fetchval("SELECT true FROM users WHERE user_id = $1", user_id):
            await self._tell(user_id, events.login_failed(**noted))

    async def _tell(self, user_id: UUID, told: tuple[str, bytes]) -> None:
        # The user's row is locked from here to the commit, so that the sequence has no gaps.
        sequence = await self.rows.fetchval(
            "UPDATE users SET fact_sequence = fact_sequence + 1 WHERE user_id = $1 RETURNING fact_sequence", user_id
        )
        if sequence is None:
            return  # Nobody the transaction may see.
        kind, payload = told
        fact = Fact(key=str(user_id), sequence=sequence, user_id=user_id, kind=kind, payload=payload)
        await outbox.add(self.rows, [fact])


@dataclass(frozen=True, slots=True)
class AttemptStore:
    rows: Connection

    async def find(self, subject: bytes) -> tuple[Failures, datetime]:
        """The failures in a row, locked until the transaction ends, and the time by the database's clock."""
        row = await self.rows.fetchrow(
            """
            INSERT INTO login_attempts AS kept (subject, failure_count, last_failure_time)
            VALUES ($1, 0, clock_timestamp()) ON CONFLICT (subject) DO UPDATE SET subject = kept.subject
            RETURNING failure_count, last_failure_time, clock_timestamp() AS now
            """,
            subject,
        )
        assert row
        count = 0 if row["now"] - row["last_failure_time"] > FAILURES_KEPT else row["failure_count"]
        return Failures(count=count, last_time=row["last_failure_time"]), row["now"]

    async def set(self, subject: bytes, failures: Failures) -> None:
        await self.rows.execute(
            "UPDATE login_attempts SET failure_count = $2, last_failure_time = $3 WHERE subject = $1",
            subject,
            failures.count,
            failures.last_time,
        )

    async def forget(self, subject: bytes) -> None:
        await self.rows.execute("DELETE FROM login_attempts WHERE subject = $1", subject)


async def due_failed_logins(rows: Connection, seconds: float) -> list[UUID]:
    """Whose failed logins were first noted so long ago, the oldest first; for the worker role."""
    found = await rows.fetch(
        """
        SELECT user_id FROM failed_logins WHERE first_failure_time <= now() - make_interval(secs => $1)
        ORDER BY first_failure_time LIMIT $2
        """,
        seconds,
        TOLD_AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def purge(rows: Connection) -> None:
    """Forgets old failures and tokens that expired long ago, PURGE_ROWS of each at most; for the worker role."""
    await rows.execute(
        """
        DELETE FROM login_attempts WHERE subject IN (
          SELECT subject FROM login_attempts WHERE last_failure_time < now() - $1::interval LIMIT $2)
        """,
        FAILURES_KEPT,
        PURGE_ROWS,
    )
    await rows.execute(
        """
        DELETE FROM refresh_tokens WHERE token_hash IN (
          SELECT token_hash FROM refresh_tokens WHERE expire_time < now() - interval '1 day' LIMIT $1)
        """,
        PURGE_ROWS,
    )


async def find_login(rows: Connection, email: str) -> tuple[UUID, str] | None:
    """Who signs in with this address, and the password's hash: asked before anyone's identity is known."""
    row = await rows.fetchrow("SELECT user_id, password_hash FROM login_of($1)", email)
    return (row["user_id"], row["password_hash"]) if row else None


async def find_token_owner(rows: Connection, token_hash: bytes) -> UUID | None:
    """Whose refresh token this is: asked before anyone's identity is known."""
    return await rows.fetchval("SELECT owner_of_refresh_token($1)", token_hash)


async def ended_sessions(rows: Connection) -> dict[UUID, datetime]:
    """Sessions that have ended and whose access tokens may still be unexpired; for the worker role."""
    found = await rows.fetch("SELECT session_id, access_expire_time FROM sessions WHERE access_expire_time > now()")
    return {row["session_id"]: row["access_expire_time"] for row in found}


async def signing_keys(rows: Connection) -> tuple[StoredKey, ...]:
    """Every key whose tokens may still be unexpired."""
    found: Sequence = await rows.fetch(
        """
        SELECT key_id, public_key, sealed_private_key, sign_time, verify_until FROM signing_keys
        WHERE verify_until IS NULL OR verify_until > now() ORDER BY sign_time
        """
    )
    return tuple(StoredKey(**row) for row in found)


async def add_first_key(rows: Connection, key: StoredKey) -> None:
    """Adds the installation's first key, which signs at once; of two replicas only one adds."""
    await rows.execute("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE")
    await rows.execute(
        """
        INSERT INTO signing_keys (key_id, public_key, sealed_private_key, sign_time)
        SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM signing_keys)
        """,
        key.key_id,
        key.public_key,
        key.sealed_private_key,
        key.sign_time,
    )
