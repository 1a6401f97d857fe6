"""Where people's rows live."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from asyncpg import Record

from libs.sealing import Sealed, WrappedKey
from libs.store import outbox
from libs.store.bulk import plain
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.users import events
from services.users.domain import (
    Check,
    Credential,
    CredentialState,
    Deletion,
    DeletionState,
    Export,
    ExportState,
    OrderType,
    Preferences,
    Problem,
    Profile,
    Progress,
    Purpose,
    Step,
    Theme,
    UserDeleted,
)

PROFILE_COLUMNS = [field.name for field in fields(Profile)]
PREFERENCE_COLUMNS = [field.name for field in fields(Preferences)]
EXPORT_COLUMNS = ", ".join(field.name for field in fields(Export))
DELETION_COLUMNS = ", ".join(field.name for field in fields(Deletion))
CHECK_COLUMNS = ("can_read", "can_trade", "can_withdraw", "problem", "check_time")
CREDENTIAL_COLUMNS = [field.name for field in fields(Credential) if field.name != "check"]
SEALED_COLUMNS = ("key_id", "wrapped_key", "ciphertext")
# In an order in which no row is missed by another.
PERSONAL_TABLES = (
    "deletions",
    "personal_data_parts",
    "personal_data_exports",
    "user_broker_credentials",
    "onboarding_progress",
    "user_preferences",
    "profiles",
    "request_keys",
)


@dataclass(frozen=True, slots=True)
class PersonStore:
    """One transaction's view of one person; `locked` makes it."""

    rows: Connection
    user_id: UUID

    async def profile(self) -> Profile:
        return await find_profile(self.rows, self.user_id)

    async def save_profile(self, profile: Profile, paths: Sequence[str]) -> None:
        await self._upsert("profiles", PROFILE_COLUMNS, profile)
        await self.tell(events.profile_updated(paths))

    async def preferences(self) -> Preferences:
        return await find_preferences(self.rows, self.user_id)

    async def save_preferences(self, preferences: Preferences, paths: Sequence[str]) -> None:
        await self._upsert("user_preferences", PREFERENCE_COLUMNS, preferences)
        await self.tell(events.preferences_updated(paths))

    async def _upsert(self, table: str, columns: Sequence[str], thing: Any) -> None:
        named = [column for column in columns if column != "user_id"]
        values = ", ".join(f"${number}" for number in range(2, len(named) + 2))
        changes = ", ".join(f"{column} = excluded.{column}" for column in named)
        await self.rows.execute(
            f"""
            INSERT INTO {table} (user_id, {", ".join(named)}) VALUES ($1, {values})
            ON CONFLICT (user_id) DO UPDATE SET {changes}
            """,
            self.user_id,
            *(plain(getattr(thing, column)) for column in named),
        )

    async def progress(self) -> list[Progress]:
        return await list_progress(self.rows, self.user_id)

    async def complete(self, step: Step, now: datetime, *, proved: bool) -> None:
        await complete_steps(self.rows, [(self.user_id, step, now)], proved=proved)

    async def untick(self) -> None:
        await self.rows.execute("DELETE FROM onboarding_progress WHERE user_id = $1 AND NOT proved", self.user_id)

    async def deletion(self) -> Deletion | None:
        return await find_deletion(self.rows, self.user_id)

    async def save_deletion(self, deletion: Deletion) -> None:
        await self.rows.execute(
            f"""
            INSERT INTO deletions ({DELETION_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (user_id) DO UPDATE SET state = excluded.state, schedule_time = excluded.schedule_time,
              purge_time = excluded.purge_time, export_id = excluded.export_id, export_is_last = excluded.export_is_last
            """,
            *(plain(getattr(deletion, field.name)) for field in fields(Deletion)),
        )
        scheduled = deletion.state is DeletionState.SCHEDULED
        await self.tell(events.deletion_scheduled(deletion) if scheduled else events.deletion_cancelled())

    async def exports(self) -> list[Export]:
        return await list_exports(self.rows, self.user_id, before=None, limit=1000)

    async def add_export(self, export: Export) -> None:
        await self.rows.execute(
            "INSERT INTO personal_data_exports (export_id, user_id, state, create_time) VALUES ($1, $2, $3, $4)",
            export.export_id,
            export.user_id,
            export.state.value,
            export.create_time,
        )

    async def drop_export(self, export: Export) -> None:
        await delete_export(self.rows, export.export_id)

    async def credentials(self) -> list[Credential]:
        return await list_credentials(self.rows, self.user_id, after=UUID(int=0), limit=1000)

    async def put_credential(self, credential: Credential, sealed: Sealed) -> None:
        columns = [*CREDENTIAL_COLUMNS, *SEALED_COLUMNS]
        values = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        # What the venue said was of the key before.
        changes = [f"{column} = excluded.{column}" for column in columns] + [f"{name} = NULL" for name in CHECK_COLUMNS]
        await self.rows.execute(
            f"""
            INSERT INTO user_broker_credentials ({", ".join(columns)}) VALUES ({values})
            ON CONFLICT (credential_id) DO UPDATE SET {", ".join(changes)}
            """,
            *(plain(getattr(credential, column)) for column in CREDENTIAL_COLUMNS),
            sealed.key.key_id,
            sealed.key.wrapped_key,
            sealed.ciphertext,
        )
        await self.tell(events.credential_put(credential))

    async def save_check(self, credential: Credential) -> None:
        check = credential.check
        assert check is not None
        await self.rows.execute(
            """
            UPDATE user_broker_credentials
            SET state = $2, can_read = $3, can_trade = $4, can_withdraw = $5, problem = $6, check_time = $7
            WHERE credential_id = $1
            """,
            credential.credential_id,
            credential.state.value,
            check.can_read,
            check.can_trade,
            check.can_withdraw,
            plain(check.problem),
            check.check_time,
        )
        await self.tell(events.credential_tested(credential, check))

    async def delete_credential(self, credential: Credential) -> None:
        await self.rows.execute(
            "DELETE FROM user_broker_credentials WHERE credential_id = $1", credential.credential_id
        )
        await self.tell(events.credential_deleted(credential))

    async def sealed(self, credential_id: UUID) -> Sealed:
        row = await self.rows.fetchrow(
            f"SELECT {', '.join(SEALED_COLUMNS)} FROM user_broker_credentials WHERE credential_id = $1", credential_id
        )
        assert row is not None
        return sealed_from(row)

    async def tell_lease(
        self, credential_id: UUID, purpose: Purpose, *, service: str, request_id: str, expire_time: datetime
    ) -> None:
        await self.tell(
            events.credential_leased(
                credential_id, purpose, service=service, request_id=request_id, expire_time=expire_time
            )
        )

    async def tell(self, told: tuple[str, bytes]) -> None:
        """Tells it if this transaction commits; the person is locked, so the sequence has no gaps."""
        sequence = await self.rows.fetchval(
            "UPDATE people SET fact_sequence = fact_sequence + 1 WHERE user_id = $1 RETURNING fact_sequence",
            self.user_id,
        )
        assert sequence is not None
        kind, payload = told
        fact = Fact(key=str(self.user_id), sequence=sequence, user_id=self.user_id, kind=kind, payload=payload)
        await outbox.add(self.rows, [fact])


async def locked(rows: Connection, user_id: UUID) -> PersonStore:
    """The person, until the transaction ends; known from now on. Raises UserDeleted."""
    if not await lock_people(rows, [user_id]):
        raise deleted()
    return PersonStore(rows, user_id)


async def lock_people(rows: Connection, user_ids: Iterable[UUID]) -> set[UUID]:
    """Locks them, in the order of their ids; those who were not deleted."""
    found = await rows.fetch(
        """
        INSERT INTO people (user_id) SELECT * FROM unnest($1::uuid[])
        ON CONFLICT (user_id) DO UPDATE SET user_id = excluded.user_id RETURNING user_id, purge_time
        """,
        sorted(set(user_ids)),
    )
    return {row["user_id"] for row in found if row["purge_time"] is None}


async def refuse_deleted(rows: Connection, user_id: UUID) -> None:
    if await rows.fetchval("SELECT purge_time FROM people WHERE user_id = $1", user_id):
        raise deleted()


def deleted() -> UserDeleted:
    return UserDeleted("the person was deleted for good")


async def find_profile(rows: Connection, user_id: UUID) -> Profile:
    row = await rows.fetchrow(f"SELECT {', '.join(PROFILE_COLUMNS)} FROM profiles WHERE user_id = $1", user_id)
    return Profile(**row) if row else Profile(user_id=user_id)


async def find_preferences(rows: Connection, user_id: UUID) -> Preferences:
    row = await rows.fetchrow(
        f"SELECT {', '.join(PREFERENCE_COLUMNS)} FROM user_preferences WHERE user_id = $1", user_id
    )
    if row is None:
        return Preferences()
    return Preferences(
        **{**row, "theme": Theme(row["theme"]), "default_order_type": OrderType(row["default_order_type"])}
    )


async def list_progress(rows: Connection, user_id: UUID) -> list[Progress]:
    found = await rows.fetch("SELECT step, complete_time, proved FROM onboarding_progress WHERE user_id = $1", user_id)
    return [Progress(**{**row, "step": Step(row["step"])}) for row in found]


async def complete_steps(rows: Connection, steps: Sequence[tuple[UUID, Step, datetime]], *, proved: bool) -> None:
    """Completes them; what was complete keeps its time, and what was ticked off may be proved later."""
    await rows.execute(
        """
        INSERT INTO onboarding_progress AS kept (user_id, step, complete_time, proved)
        SELECT *, $4 FROM unnest($1::uuid[], $2::text[], $3::timestamptz[])
        ON CONFLICT (user_id, step) DO UPDATE SET proved = true WHERE excluded.proved AND NOT kept.proved
        """,
        [user_id for user_id, _, _ in steps],
        [step.value for _, step, _ in steps],
        [time for _, _, time in steps],
        proved,
    )


async def proved_steps(rows: Connection, user_ids: Sequence[UUID]) -> set[tuple[UUID, Step]]:
    found = await rows.fetch(
        "SELECT user_id, step FROM onboarding_progress WHERE user_id = ANY($1::uuid[]) AND proved", user_ids
    )
    return {(row["user_id"], Step(row["step"])) for row in found}


async def register(rows: Connection, people: Mapping[UUID, tuple[str, str]]) -> None:
    """Writes what auth knows of people, their address and name; a name that they changed here stays."""
    await rows.execute(
        """
        INSERT INTO profiles AS kept (user_id, email, full_name)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])
        ON CONFLICT (user_id) DO UPDATE SET email = excluded.email,
          full_name = CASE WHEN kept.full_name = '' THEN excluded.full_name ELSE kept.full_name END
        """,
        list(people),
        [email for email, _ in people.values()],
        [full_name for _, full_name in people.values()],
    )


async def find_deletion(rows: Connection, user_id: UUID) -> Deletion | None:
    row = await rows.fetchrow(f"SELECT {DELETION_COLUMNS} FROM deletions WHERE user_id = $1", user_id)
    return Deletion(**{**row, "state": DeletionState(row["state"])}) if row else None


async def list_exports(rows: Connection, user_id: UUID, *, before: UUID | None, limit: int) -> list[Export]:
    """Newest first; those that have expired are there no more."""
    found = await rows.fetch(
        f"""
        SELECT {EXPORT_COLUMNS} FROM personal_data_exports
        WHERE user_id = $1 AND ($2::uuid IS NULL OR export_id < $2) ORDER BY export_id DESC LIMIT $3
        """,
        user_id,
        before,
        limit,
    )
    return [export_from(row) for row in found]


async def find_export(rows: Connection, export_id: UUID) -> Export | None:
    row = await rows.fetchrow(f"SELECT {EXPORT_COLUMNS} FROM personal_data_exports WHERE export_id = $1", export_id)
    return export_from(row) if row else None


async def find_part(rows: Connection, export_id: UUID, part: int) -> Sealed | None:
    row = await rows.fetchrow(
        f"SELECT {', '.join(SEALED_COLUMNS)} FROM personal_data_parts WHERE (export_id, part) = ($1, $2)",
        export_id,
        part,
    )
    return sealed_from(row) if row else None


async def list_credentials(rows: Connection, user_id: UUID, *, after: UUID, limit: int) -> list[Credential]:
    """In the order they were first put: their ids sort by that."""
    found = await rows.fetch(
        f"""
        SELECT {", ".join([*CREDENTIAL_COLUMNS, *CHECK_COLUMNS])} FROM user_broker_credentials
        WHERE user_id = $1 AND credential_id > $2 ORDER BY credential_id LIMIT $3
        """,
        user_id,
        after,
        limit,
    )
    return [credential_from(row) for row in found]


# What the worker does: exports.


async def due_export(rows: Connection) -> tuple[Export, int] | None:
    """The export that has waited longest, and how often it was attempted."""
    row = await rows.fetchrow(
        f"""
        SELECT {EXPORT_COLUMNS}, attempt_count FROM personal_data_exports
        WHERE state = 'pending' AND attempt_time <= clock_timestamp() ORDER BY attempt_time LIMIT 1
        """
    )
    if row is None:
        return None
    return export_from({name: value for name, value in row.items() if name != "attempt_count"}), row["attempt_count"]


async def note_attempt(rows: Connection, export_id: UUID, trouble: str, pause_seconds: float) -> None:
    await rows.execute(
        """
        UPDATE personal_data_exports SET attempt_count = attempt_count + 1, trouble = $2,
          attempt_time = clock_timestamp() + make_interval(secs => $3)
        WHERE export_id = $1 AND state = 'pending'
        """,
        export_id,
        trouble,
        pause_seconds,
    )


async def begin_export(rows: Connection, export_id: UUID) -> bool:
    """Drops what an attempt before has left; whether the export still waits to be made."""
    await rows.execute("DELETE FROM personal_data_parts WHERE export_id = $1", export_id)
    return bool(
        await rows.fetchval(
            "SELECT true FROM personal_data_exports WHERE export_id = $1 AND state = 'pending' FOR UPDATE", export_id
        )
    )


async def add_part(rows: Connection, export: Export, part: int, sealed: Sealed) -> None:
    await rows.execute(
        """
        INSERT INTO personal_data_parts (export_id, part, user_id, key_id, wrapped_key, ciphertext)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        export.export_id,
        part,
        export.user_id,
        sealed.key.key_id,
        sealed.key.wrapped_key,
        sealed.ciphertext,
    )


async def finish_export(rows: Connection, export: Export) -> None:
    await rows.execute(
        """
        UPDATE personal_data_exports SET state = $2, ready_time = $3, expire_time = $4, part_count = $5, size_bytes = $6,
          digest = $7, trouble = ''
        WHERE export_id = $1
        """,
        export.export_id,
        export.state.value,
        export.ready_time,
        export.expire_time,
        export.part_count,
        export.size_bytes,
        export.digest,
    )


async def due_last_exports(rows: Connection, ahead: timedelta, limit: int) -> list[UUID]:
    """Whose deletion is so near that all is put together once more."""
    found = await rows.fetch(
        """
        SELECT user_id FROM deletions
        WHERE state = 'scheduled' AND NOT export_is_last AND purge_time <= clock_timestamp() + $1::interval
        ORDER BY purge_time LIMIT $2
        """,
        ahead,
        limit,
    )
    return [row["user_id"] for row in found]


async def wait_with_last_export(rows: Connection, user_id: UUID, export_id: UUID) -> None:
    await rows.execute(
        "UPDATE deletions SET export_id = $2, export_is_last = true WHERE user_id = $1", user_id, export_id
    )


async def expired_exports(rows: Connection, limit: int) -> list[tuple[UUID, UUID]]:
    """Whose time is over, but for those that a scheduled deletion waits with: the export, and whose it is."""
    found = await rows.fetch(
        """
        SELECT export_id, user_id FROM personal_data_exports AS export
        WHERE expire_time <= clock_timestamp() AND NOT EXISTS (
          SELECT FROM deletions WHERE deletions.export_id = export.export_id AND deletions.state = 'scheduled')
        ORDER BY expire_time LIMIT $1
        """,
        limit,
    )
    return [(row["export_id"], row["user_id"]) for row in found]


async def delete_export(rows: Connection, export_id: UUID) -> None:
    await rows.execute("DELETE FROM personal_data_parts WHERE export_id = $1", export_id)
    await rows.execute("DELETE FROM personal_data_exports WHERE export_id = $1", export_id)


# What the worker does: purges.

DUE = """
    state = 'scheduled' AND purge_time <= clock_timestamp() AND export_is_last AND EXISTS (
      SELECT FROM personal_data_exports AS export WHERE export.export_id = deletions.export_id AND export.state = 'ready')
    """


async def due_deletions(rows: Connection, limit: int) -> list[UUID]:
    found = await rows.fetch(f"SELECT user_id FROM deletions WHERE {DUE} ORDER BY purge_time LIMIT $1", limit)
    return [row["user_id"] for row in found]


async def put_off(rows: Connection, user_id: UUID, purge_time: datetime) -> None:
    await rows.execute("UPDATE deletions SET purge_time = $2 WHERE user_id = $1", user_id, purge_time)


async def purge(rows: Connection, user_id: UUID) -> bool:
    """Deletes all of a person whose time has come, and tells it; whether it had."""
    if not await lock_people(rows, [user_id]):
        return False
    # Looked at again under the lock: the person may have stayed.
    if not await rows.fetchval(f"SELECT true FROM deletions WHERE user_id = $1 AND {DUE}", user_id):
        return False
    for table in PERSONAL_TABLES:
        await rows.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
    await rows.execute("UPDATE people SET purge_time = clock_timestamp() WHERE user_id = $1", user_id)
    await PersonStore(rows, user_id).tell(events.user_purged(user_id))
    return True


# What a rewrap does.


@dataclass(frozen=True, slots=True)
class WrappedRow:
    """A sealed secret's wrapped key, and where it stands: the values of its table's primary key."""

    key: tuple[Any, ...]
    user_id: UUID
    wrapped: WrappedKey


PRIMARY_KEYS: Mapping[str, Mapping[str, str]] = {
    "user_broker_credentials": {"credential_id": "uuid"},
    "personal_data_parts": {"export_id": "uuid", "part": "integer"},
}
"""Where sealed secrets stand: the columns that name a row, with their types."""


async def other_than(
    rows: Connection, table: str, newest: str, after: tuple[Any, ...] | None, limit: int
) -> list[WrappedRow]:
    """Rows after a key, in order, whose data key is under another key-encryption key than the newest."""
    columns = list(PRIMARY_KEYS[table])
    named = ", ".join(columns)
    beyond = ", ".join(f"${number}::{kind}" for number, kind in enumerate(PRIMARY_KEYS[table].values(), 3))
    found = await rows.fetch(
        f"""
        SELECT {named}, user_id, key_id, wrapped_key FROM {table}
        WHERE key_id <> $1 {f"AND ({named}) > ({beyond})" if after else ""} ORDER BY {named} LIMIT $2
        """,
        newest,
        limit,
        *(after or ()),
    )
    return [
        WrappedRow(
            tuple(row[column] for column in columns), row["user_id"], WrappedKey(row["key_id"], row["wrapped_key"])
        )
        for row in found
    ]


async def replace_wrapped(rows: Connection, table: str, row: WrappedRow, wrapped: WrappedKey) -> bool:
    """Whether the row still had the key that was wrapped anew: another rewrap, or a new secret, may have been faster."""
    columns = PRIMARY_KEYS[table]
    where = " AND ".join(f"{column} = ${number}" for number, column in enumerate(columns, 4))
    done = await rows.execute(
        f"UPDATE {table} SET key_id = $1, wrapped_key = $2 WHERE wrapped_key = $3 AND {where}",
        wrapped.key_id,
        wrapped.wrapped_key,
        row.wrapped.wrapped_key,
        *row.key,
    )
    return done == "UPDATE 1"


async def count_by_key(rows: Connection) -> dict[str, int]:
    """How many secrets are under each key-encryption key."""
    tables = " UNION ALL ".join(f"SELECT key_id FROM {table}" for table in PRIMARY_KEYS)
    found = await rows.fetch(f"SELECT key_id, count(*) FROM ({tables}) AS sealed GROUP BY key_id ORDER BY key_id")
    return {row["key_id"]: row["count"] for row in found}


def sealed_from(row: Record) -> Sealed:
    return Sealed(WrappedKey(row["key_id"], row["wrapped_key"]), row["ciphertext"])


def export_from(row: Mapping[str, Any]) -> Export:
    return Export(**{**row, "state": ExportState(row["state"])})


def credential_from(row: Record) -> Credential:
    check = None
    if row["check_time"] is not None:
        said = {name: row[name] for name in CHECK_COLUMNS}
        check = Check(**{**said, "problem": Problem(said["problem"]) if said["problem"] else None})
    return Credential(
        **{**{name: row[name] for name in CREDENTIAL_COLUMNS}, "state": CredentialState(row["state"]), "check": check}
    )
