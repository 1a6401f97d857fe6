"""Where people and their sessions live, what they failed at, and the keys that sign."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from libs.mesh.sessions import Outdated
from libs.sealing import WrappedKey
from libs.store import outbox
from libs.store.database import Connection, see_also
from libs.store.outbox import Fact
from services.auth import events
from services.auth.domain import Failures, Purpose, RefreshToken, Session, User, UserState
from services.auth.keys import StoredKey
from services.auth.use_cases import nobody_of

# Failed attempts older than this are forgotten.
FAILURES_KEPT = timedelta(days=1)
READS_TOLD = timedelta(minutes=10)
TOLD_AT_ONCE_MAX = 500
PURGE_ROWS = 5_000
# Between two administrators who take each other's role away; any number of our own.
ADMINS_LOCK = 0x61646D696E73
# The worker may read and delete only what is so old, where a person's rows are concerned.
OLD = {
    "refresh_tokens": "expire_time < now() - interval '1 day'",
    # And whatever is left of its tokens, which expired no later.
    "sessions": "expire_time < now() - interval '2 days'",
    "api_keys": "least(revoke_time, expire_time) < now() - interval '90 days'",
    "one_time_tokens": "expire_time < now() - interval '1 day'",
    "revocations": "expire_time < now() - interval '1 day'",
    "known_networks": "last_time < now() - interval '90 days'",
    "record_reads": "read_time < now() - interval '1 day'",
    "reset_requests": "create_time < now() - interval '1 day'",
}
# What a purge leaves nothing of. revocations stay until what they refuse has expired, and the outbox for its week.
PERSONAL = (
    "refresh_tokens",
    "sessions",
    "key_refusals",
    "api_keys",
    "recovery_codes",
    "mfa_totp",
    "one_time_tokens",
    "known_networks",
    "mails",
    "failed_logins",
    "record_reads",
    "entitlements",
    "user_roles",
    "request_keys",
)

USER = """
    SELECT users.user_id, email, full_name, email_verified, create_time, state, token_generation,
      ARRAY(SELECT role FROM user_roles WHERE user_roles.user_id = users.user_id) AS roles,
      EXISTS (SELECT FROM mfa_totp WHERE mfa_totp.user_id = users.user_id AND enable_time IS NOT NULL) AS totp_enabled,
      coalesce(own.capabilities, usual.capabilities, '{}') AS capabilities,
      coalesce(own.quotas, usual.quotas, '{}') AS quotas
    FROM users LEFT JOIN entitlements AS own ON own.user_id = users.user_id LEFT JOIN default_entitlements AS usual ON true
    WHERE users.user_id = $1
    """
SESSION = """
    SELECT session_id, user_id, address, user_agent, create_time, refresh_time, expire_time, second_factor_time, end_time
    FROM sessions
    """


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
        await self.tell(user.user_id, events.registered(user))
        return True

    async def find_user(self, user_id: UUID) -> User | None:
        """In whichever state."""
        row = await self.rows.fetchrow(USER, user_id)
        return row and user_from(row)

    async def find_password(self, user_id: UUID) -> str | None:
        return await self.rows.fetchval("SELECT password_hash FROM users WHERE user_id = $1", user_id)

    async def renew_hash(self, user_id: UUID, password_hash: str) -> None:
        """The same password, hashed as is done now."""
        await self.rows.execute("UPDATE users SET password_hash = $2 WHERE user_id = $1", user_id, password_hash)

    async def set_password(self, user_id: UUID, password_hash: str, cause: str) -> None:
        """Also makes links that reset it, and challenges that rest on it, void."""
        await self.renew_hash(user_id, password_hash)
        await self.rows.execute(
            "DELETE FROM one_time_tokens WHERE user_id = $1 AND purpose = ANY ($2) AND spent_time IS NULL",
            user_id,
            [Purpose.CHALLENGE.value, Purpose.RESET_PASSWORD.value],
        )
        await self.tell(user_id, events.password_changed(cause))

    async def verify_email(self, user: User) -> None:
        await self.rows.execute("UPDATE users SET email_verified = true WHERE user_id = $1", user.user_id)
        await self.tell(user.user_id, events.email_verified(user.email))

    async def set_roles(self, user: User, roles: frozenset[str], admin_user_id: UUID) -> None:
        await self.rows.execute(
            "DELETE FROM user_roles WHERE user_id = $1 AND role <> ALL ($2)", user.user_id, list(roles)
        )
        await self.rows.execute(
            "INSERT INTO user_roles (user_id, role) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING",
            user.user_id,
            sorted(roles),
        )
        await self.tell(user.user_id, events.roles_changed(roles, user.roles, admin_user_id))

    async def set_state(self, user: User, state: UserState, note: str, admin_user_id: UUID) -> None:
        await self.rows.execute("UPDATE users SET state = $2 WHERE user_id = $1", user.user_id, state.value)
        await self.tell(user.user_id, events.state_changed(state, note, admin_user_id))

    async def others_who_administer(self, user_id: UUID) -> int:
        """Who asks at the same time waits until this transaction ends."""
        await self.rows.execute("SELECT pg_advisory_xact_lock($1)", ADMINS_LOCK)
        return await self.rows.fetchval("SELECT others_who_administer($1)", user_id) or 0

    async def outdate_tokens(self, user_id: UUID, now: datetime) -> None:
        """All access tokens until now are refused everywhere, and their streams end.

        No clock decides which those are: a token says the generation that its maker read under the person's lock.
        """
        generation = await self.rows.fetchval(
            "UPDATE users SET token_generation = token_generation + 1 WHERE user_id = $1 RETURNING token_generation",
            user_id,
        )
        if generation is not None:
            expire_time = now + timedelta(seconds=self.access_token_seconds)
            await self._revoke(user_id, user_id, expire_time, generation=generation)

    async def revoke(self, subject: UUID, user_id: UUID, now: datetime) -> datetime:
        """Refuses everywhere what was issued to this session or API key; until when somebody may still try it."""
        expire_time = now + timedelta(seconds=self.access_token_seconds)
        await self._revoke(subject, user_id, expire_time)
        return expire_time

    async def find_revoked(self, user_id: UUID, subject: UUID) -> tuple[bool, int | None]:
        """Whether this session or API key has ended, and the generation of the user's tokens that count."""
        found = await self.rows.fetch(
            "SELECT generation FROM revocations WHERE user_id = $1 AND subject = ANY ($2)", user_id, [subject, user_id]
        )
        generations = [row["generation"] for row in found]
        return None in generations, next((one for one in generations if one is not None), None)

    async def _revoke(
        self, subject: UUID, user_id: UUID, expire_time: datetime, *, generation: int | None = None
    ) -> None:
        await self.rows.execute(
            """
            INSERT INTO revocations (subject, user_id, generation, expire_time) VALUES ($1, $2, $3, $4)
            ON CONFLICT (user_id, subject) DO UPDATE SET
              generation = excluded.generation, expire_time = excluded.expire_time, mark = pg_current_xact_id()
            """,
            subject,
            user_id,
            generation,
            expire_time,
        )

    async def add_session(self, session: Session) -> None:
        await self.rows.execute(
            """
            INSERT INTO sessions (session_id, user_id, address, user_agent, create_time, refresh_time, expire_time,
                                  second_factor_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            session.session_id,
            session.user_id,
            session.address,
            session.user_agent,
            session.create_time,
            session.refresh_time,
            session.expire_time,
            session.second_factor_time,
        )
        await self.tell(session.user_id, events.session_opened(session))

    async def find_session(self, session_id: UUID) -> Session | None:
        row = await self.rows.fetchrow(f"{SESSION} WHERE session_id = $1", session_id)
        return row and Session(**row)

    async def list_sessions(self, user_id: UUID, before: UUID | None, now: datetime, limit: int) -> list[Session]:
        """Open ones, newest first."""
        found = await self.rows.fetch(
            f"""
            {SESSION} WHERE user_id = $1 AND end_time IS NULL AND expire_time > $3 AND ($2::uuid IS NULL OR session_id < $2)
            ORDER BY session_id DESC LIMIT $4
            """,
            user_id,
            before,
            now,
            limit,
        )
        return [Session(**row) for row in found]

    async def extend_session(self, session_id: UUID, *, expire_time: datetime, now: datetime) -> None:
        await self.rows.execute(
            "UPDATE sessions SET refresh_time = $2, expire_time = $3 WHERE session_id = $1",
            session_id,
            now,
            expire_time,
        )

    async def note_second_factor(self, session_id: UUID, now: datetime) -> None:
        await self.rows.execute("UPDATE sessions SET second_factor_time = $2 WHERE session_id = $1", session_id, now)

    async def end_session(self, session_id: UUID, user_id: UUID, *, cause: str, now: datetime) -> None:
        """Ending twice changes nothing."""
        ended = await self.rows.fetchval(
            """
            UPDATE sessions SET end_time = $2, end_cause = $3
            WHERE session_id = $1 AND user_id = $4 AND end_time IS NULL RETURNING session_id
            """,
            session_id,
            now,
            cause,
            user_id,
        )
        if ended is not None:
            await self._tell_ended(session_id, user_id, cause, now)

    async def end_sessions(self, user_id: UUID, *, but: UUID | None, cause: str, now: datetime) -> int:
        """All of the user's open sessions but one; how many."""
        ended = await self.rows.fetch(
            """
            UPDATE sessions SET end_time = $2, end_cause = $3
            WHERE user_id = $1 AND end_time IS NULL AND session_id IS DISTINCT FROM $4 RETURNING session_id, expire_time
            """,
            user_id,
            now,
            cause,
            but,
        )
        # Of what nobody could use any more, there is nothing to tell.
        open_ones = [row["session_id"] for row in ended if row["expire_time"] > now]
        for session_id in open_ones:
            await self._tell_ended(session_id, user_id, cause, now)
        return len(open_ones)

    async def end_idlest_sessions(self, user_id: UUID, *, kept: int, cause: str, now: datetime) -> None:
        """Of the user's open sessions all but so many that were refreshed last."""
        found = await self.rows.fetch(
            """
            SELECT session_id FROM sessions WHERE user_id = $1 AND end_time IS NULL AND expire_time > $2
            ORDER BY refresh_time DESC, session_id DESC OFFSET $3
            """,
            user_id,
            now,
            kept,
        )
        for row in found:
            await self.end_session(row["session_id"], user_id, cause=cause, now=now)

    async def _tell_ended(self, session_id: UUID, user_id: UUID, cause: str, now: datetime) -> None:
        # Its access tokens may live until then; so long everyone must know.
        expire_time = await self.revoke(session_id, user_id, now)
        await self.tell(user_id, events.session_ended(session_id, cause, expire_time))

    async def is_known_network(self, user_id: UUID, network: str) -> bool:
        """Whether the person has signed in from there before."""
        found = await self.rows.fetchval(
            "SELECT true FROM known_networks WHERE user_id = $1 AND network = $2", user_id, network
        )
        return found is not None

    async def note_network(self, user_id: UUID, network: str) -> bool:
        """Whether it is a new one, while others are known: the count is of those before."""
        is_elsewhere = await self.rows.fetchval(
            """
            WITH noted AS (
              INSERT INTO known_networks (user_id, network) VALUES ($1, $2)
              ON CONFLICT (user_id, network) DO UPDATE SET last_time = now())
            SELECT count(*) > 0 AND count(*) FILTER (WHERE network = $2) = 0 FROM known_networks WHERE user_id = $1
            """,
            user_id,
            network,
        )
        return bool(is_elsewhere)

    async def purge(self, user_id: UUID, now: datetime) -> None:
        """Leaves the id, and that there was somebody; for the worker role. Whatever was issued is refused."""
        await lock_users(self.rows, [user_id])
        await self.outdate_tokens(user_id, now)
        await self._forget_answers_before_registering(user_id)
        for table in PERSONAL:
            await self.rows.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
        await self.rows.execute(
            """
            UPDATE users SET email = 'purged:' || user_id, full_name = '', password_hash = '', email_verified = false,
              state = 'purged'
            WHERE user_id = $1
            """,
            user_id,
        )

    async def _forget_answers_before_registering(self, user_id: UUID) -> None:
        """What was kept for whoever used the address when nobody was known by it yet."""
        if email := await email_of(self.rows, user_id):
            nobody = nobody_of(email)
            await see_also(self.rows, nobody)
            await self.rows.execute("DELETE FROM request_keys WHERE user_id = $1", nobody)

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
            await self.tell(user_id, events.login_failed(**noted))

    async def note_read(self, user_id: UUID, admin_user_id: UUID) -> None:
        """An administrator reads what was recorded about somebody; told of at most so often as READS_TOLD says."""
        is_news = await self.rows.fetchval(
            """
            INSERT INTO record_reads AS kept (user_id, admin_user_id) VALUES ($1, $2)
            ON CONFLICT (user_id, admin_user_id) DO UPDATE SET read_time = now()
            WHERE kept.read_time <= now() - $3::interval RETURNING true
            """,
            user_id,
            admin_user_id,
            READS_TOLD,
        )
        if is_news:
            await self.tell(user_id, events.audit_records_read(admin_user_id))

    async def tell(self, user_id: UUID, told: tuple[str, bytes]) -> None:
        """One fact about the user, after all that were told of them before."""
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

    async def find(self, subjects: Sequence[bytes]) -> tuple[Mapping[bytes, Failures], datetime]:
        """The failures in a row of each, locked until the transaction ends, and the time by the database's clock."""
        await self._lock(subjects)
        found = await self.rows.fetch(
            """
            INSERT INTO login_attempts AS kept (subject, failure_count, last_failure_time)
            SELECT subject, 0, clock_timestamp() FROM unnest($1::bytea[]) AS subject
            ON CONFLICT (subject) DO UPDATE SET subject = kept.subject
            RETURNING subject, failure_count, last_failure_time, clock_timestamp() AS now
            """,
            list(subjects),
        )
        now: datetime = max(row["now"] for row in found)
        return {
            row["subject"]: Failures(
                count=0 if now - row["last_failure_time"] > FAILURES_KEPT else row["failure_count"],
                last_time=row["last_failure_time"],
            )
            for row in found
        }, now

    async def count(self, subjects: Sequence[bytes], now: datetime) -> None:
        """One more failure of each."""
        await self.rows.execute(
            """
            UPDATE login_attempts SET last_failure_time = $2,
              failure_count = CASE WHEN $2 - last_failure_time > $3::interval THEN 1 ELSE failure_count + 1 END
            WHERE subject = ANY ($1)
            """,
            list(subjects),
            now,
            FAILURES_KEPT,
        )

    async def forget(self, subjects: Sequence[bytes], *, take_back: Sequence[bytes] = ()) -> None:
        """Those end their row of failures; of take_back only this attempt is undone, what others failed at stays."""
        await self._lock([*subjects, *take_back])
        await self.rows.execute("DELETE FROM login_attempts WHERE subject = ANY ($1)", list(subjects))
        await self.rows.execute(
            "UPDATE login_attempts SET failure_count = greatest(failure_count - 1, 0) WHERE subject = ANY ($1)",
            list(take_back),
        )

    async def _lock(self, subjects: Sequence[bytes]) -> None:
        """In one order, so that two attempts cannot hold each other up for ever.

        Not the rows themselves: one that is deleted while others wait for it is no lock that they get in order.
        """
        keys = sorted(int.from_bytes(subject[:8], "big", signed=True) for subject in subjects)
        await self.rows.execute("SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key", keys)


def user_from(row: Mapping[str, Any]) -> User:
    return User(
        **{
            **row,
            "roles": frozenset(row["roles"]),
            "state": UserState(row["state"]),
            "capabilities": frozenset(row["capabilities"]),
            "quotas": {name: int(most) for name, most in json.loads(row["quotas"]).items()},
        }
    )


async def lock_users(rows: Connection, user_ids: Iterable[UUID]) -> None:
    """A person's row is the lock of all that is theirs: whoever changes any of it takes it first, in the order of ids."""
    await rows.execute("SELECT FROM users WHERE user_id = ANY ($1) ORDER BY user_id FOR NO KEY UPDATE", list(user_ids))


async def due_failures(rows: Connection, seconds: float) -> list[UUID]:
    """Whose failed logins or refused API keys were first noted so long ago, the oldest first; for the worker role."""
    found = await rows.fetch(
        """
        SELECT user_id FROM (
          SELECT user_id, first_failure_time AS time FROM failed_logins
          UNION ALL SELECT user_id, first_refusal_time FROM key_refusals) AS noted
        WHERE time <= now() - make_interval(secs => $1) GROUP BY user_id ORDER BY min(time) LIMIT $2
        """,
        seconds,
        TOLD_AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def purge(rows: Connection) -> None:
    """Forgets what is old, PURGE_ROWS of each at most; for the worker role."""
    await rows.execute(
        """
        DELETE FROM login_attempts WHERE subject IN (
          SELECT subject FROM login_attempts WHERE last_failure_time < now() - $1::interval LIMIT $2)
        """,
        FAILURES_KEPT,
        PURGE_ROWS,
    )
    for table, old in OLD.items():
        await rows.execute(
            f"DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} WHERE {old} LIMIT $1)", PURGE_ROWS
        )


async def find_login(rows: Connection, email: str, network: str) -> tuple[UUID, str, bool] | None:
    """Who signs in with this address, the password's hash, and whether they have from there before.

    Asked before anyone's identity is known.
    """
    row = await rows.fetchrow("SELECT user_id, password_hash, is_known FROM login_of($1, $2)", email, network)
    return (row["user_id"], row["password_hash"], row["is_known"]) if row else None


async def find_token_owner(rows: Connection, token_hash: bytes) -> UUID | None:
    """Whose refresh token this is: asked before anyone's identity is known."""
    return await rows.fetchval("SELECT owner_of_refresh_token($1)", token_hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """Ended sessions and API keys, with when their last token expires, and whose tokens are outdated."""

    ended: dict[UUID, datetime]
    outdated: dict[UUID, Outdated]


async def revoked_since(rows: Connection, mark: str) -> tuple[Revoked, str]:
    """What was revoked and may still be presented, and the mark to ask from next time; for the worker role.

    With the mark of the time before only what may have been committed since, whatever clocks say meanwhile.
    """
    # Before the rows are looked at: what commits in between is found twice, not missed.
    next_mark = str(await rows.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    condition = "mark >= $1::text::xid8" if mark else "$1 = '' AND expire_time > now() - interval '1 hour'"
    found = await rows.fetch(f"SELECT subject, generation, expire_time FROM revocations WHERE {condition}", mark)
    return Revoked(
        ended={row["subject"]: row["expire_time"] for row in found if row["generation"] is None},
        outdated={
            row["subject"]: Outdated(row["generation"], row["expire_time"])
            for row in found
            if row["generation"] is not None
        },
    ), next_mark


async def purged_among(rows: Connection, user_ids: Iterable[UUID]) -> set[UUID]:
    found = await rows.fetch("SELECT user_id FROM users WHERE user_id = ANY ($1) AND state = 'purged'", list(user_ids))
    return {row["user_id"] for row in found}


async def email_of(rows: Connection, user_id: UUID) -> str | None:
    return await rows.fetchval("SELECT email FROM users WHERE user_id = $1 AND state <> 'purged'", user_id)


async def put_entitlements(
    rows: Connection, user_id: UUID, plan: str, capabilities: Iterable[str], quotas: Mapping[str, int]
) -> None:
    """What a person's own plan allows; for the worker role. Their next access token says so."""
    await rows.execute(
        """
        INSERT INTO entitlements (user_id, plan, capabilities, quotas) VALUES ($1, $2, $3, $4)
        ON CONFLICT (user_id) DO UPDATE SET
          plan = excluded.plan, capabilities = excluded.capabilities, quotas = excluded.quotas
        """,
        user_id,
        plan,
        list(capabilities),
        json.dumps(dict(quotas)),
    )


async def forget_entitlements(rows: Connection, user_id: UUID) -> None:
    """The person has what everybody has."""
    await rows.execute("DELETE FROM entitlements WHERE user_id = $1", user_id)


async def put_default_entitlements(
    rows: Connection, plan: str, capabilities: Iterable[str], quotas: Mapping[str, int]
) -> None:
    await rows.execute(
        """
        INSERT INTO default_entitlements (plan, capabilities, quotas) VALUES ($1, $2, $3)
        ON CONFLICT (only_one) DO UPDATE SET
          plan = excluded.plan, capabilities = excluded.capabilities, quotas = excluded.quotas
        """,
        plan,
        list(capabilities),
        json.dumps(dict(quotas)),
    )


async def list_users(
    rows: Connection,
    *,
    after: tuple[datetime, UUID] | None,
    query: str,
    role: str,
    states: Sequence[UserState],
    limit: int,
) -> list[User]:
    """In the order they registered; for administrators, whom the contract lets see everybody."""
    found = await rows.fetch(
        "SELECT * FROM list_users($1, $2, $3, $4, $5, $6)",
        *(after or (None, None)),
        query,
        role,
        [state.value for state in states],
        limit,
    )
    return [User(**{**row, "roles": frozenset(row["roles"]), "state": UserState(row["state"])}) for row in found]


async def data_key(rows: Connection) -> WrappedKey | None:
    row = await rows.fetchrow("SELECT key_id, wrapped_key FROM data_keys")
    return row and WrappedKey(**row)


async def add_data_key(rows: Connection, key: WrappedKey) -> None:
    await rows.execute("INSERT INTO data_keys (key_id, wrapped_key) VALUES ($1, $2)", key.key_id, key.wrapped_key)


async def replace_data_key(rows: Connection, old: WrappedKey, new: WrappedKey) -> int:
    """How many were still as old: none, if somebody else was faster. For the worker role."""
    found = await rows.fetch(
        "UPDATE data_keys SET key_id = $2, wrapped_key = $3 WHERE wrapped_key = $1 RETURNING true",
        old.wrapped_key,
        new.key_id,
        new.wrapped_key,
    )
    return len(found)


async def signing_keys(rows: Connection) -> tuple[StoredKey, ...]:
    """Every key whose tokens may still be unexpired, and all that ever proved audit chains."""
    found: Sequence = await rows.fetch(
        """
        SELECT key_id, public_key, sealed_private_key, sign_time, verify_until, purpose FROM signing_keys
        WHERE verify_until IS NULL OR verify_until > now() ORDER BY sign_time
        """
    )
    return tuple(StoredKey(**row) for row in found)


async def clock(rows: Connection) -> datetime:
    [row] = await rows.fetch("SELECT clock_timestamp() AS now")
    return row["now"]


async def lock_signing_keys(rows: Connection) -> None:
    """Of two replicas only one changes them at a time."""
    await rows.execute("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE")


async def add_signing_key(rows: Connection, key: StoredKey) -> None:
    await rows.execute(
        """
        INSERT INTO signing_keys (key_id, public_key, sealed_private_key, sign_time, purpose)
        VALUES ($1, $2, $3, $4, $5)
        """,
        key.key_id,
        key.public_key,
        key.sealed_private_key,
        key.sign_time,
        key.purpose,
    )


async def retire_signing_keys(rows: Connection, key_ids: Sequence[str], verify_until: datetime) -> None:
    """From then on nobody believes what they signed."""
    await rows.execute(
        "UPDATE signing_keys SET verify_until = $2 WHERE key_id = ANY ($1) AND verify_until IS NULL",
        list(key_ids),
        verify_until,
    )
