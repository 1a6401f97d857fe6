"""Puts personal data together: a durable job, one at a time in the whole installation, that begins anew when it dies."""

import asyncio
import hashlib
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from grpc import aio

from libs.errors import Refusal
from libs.sealing import Sealer
from libs.store.background import Backoff
from libs.store.database import Connection, Database
from libs.store.leases import Lease, LeaseLost, fence, holding
from services.users import domain, events, store, use_cases, wire
from services.users.clients import PersonalData, document
from services.users.domain import DeletionState, Export, ExportState, Grace

log = structlog.get_logger(__name__)

PART_BYTES = 1 << 20
POLL_SECONDS = 1.0
ATTEMPT_PAUSE_SECONDS_MAX = 600.0
EXPIRED_AT_ONCE = 20
LAST_AT_ONCE = 20
TROUBLE_CHARACTERS_MAX = 200
# What a zip can say of a time at the least; the true ones stand in the documents.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class Pipe:
    """What a zip is written to: it cannot go back, and hands on what has come."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._waiting += data
        self._digest.update(data)
        self.size_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """All is in memory."""

    def take(self, *, rest: bool) -> bytes | None:
        """The next part, once it is whole; with rest what is left."""
        if len(self._waiting) < PART_BYTES and not (rest and self._waiting):
            return None
        part = bytes(self._waiting[:PART_BYTES])
        del self._waiting[:PART_BYTES]
        return part

    @property
    def digest(self) -> bytes:
        return self._digest.digest()


@dataclass(frozen=True, slots=True)
class Exporting:
    """database is of the worker role."""

    database: Database
    sealer: Sealer
    personal_data: PersonalData
    start_export: use_cases.StartExport
    grace: Grace
    kept: timedelta
    now: Callable[[], datetime]
    attempt_pause_seconds: float

    async def __call__(self) -> None:
        """Works until another replica does: each has its turn when the one before it is gone."""
        async with holding(self.database, "personal data") as lease:
            while True:
                if not await self.step(lease):
                    await asyncio.sleep(POLL_SECONDS)

    async def step(self, lease: Lease) -> bool:
        """Makes the export that has waited longest, and drops what has expired; whether there was one."""
        await self._expire(lease)
        await self._begin_last(lease)
        async with self.database.reading() as rows:
            due = await store.due_export(rows)
        if due is None:
            return False
        export, attempts = due
        try:
            await self._make(export, lease)
        except LeaseLost:
            raise
        except Exception as error:
            # A service that is away comes back; of a defect an operator reads here and in the log.
            backoff = Backoff(self.attempt_pause_seconds, ATTEMPT_PAUSE_SECONDS_MAX)
            backoff.failures = attempts
            await self._note(export, trouble_of(error), backoff.next_seconds())
            if not isinstance(error, (Refusal, aio.AioRpcError)):
                log.exception("an export failed", export_id=str(export.export_id))
        return True

    async def _begin_last(self, lease: Lease) -> None:
        """Has all of whom is soon deleted put together once more: they may have traded on since they asked."""
        async with self.database.reading() as rows:
            due = await store.due_last_exports(rows, self.grace.last_export_ahead, LAST_AT_ONCE)
        for user_id in due:
            async with self.database.transaction(user_id) as rows:
                await fence(rows, lease)
                person = await store.locked(rows, user_id)
                deletion = await person.deletion()
                # Looked at again under the lock: the person may have stayed.
                if deletion and deletion.state is DeletionState.SCHEDULED and not deletion.export_is_last:
                    export = await self.start_export.start(person, await person.exports())
                    await store.wait_with_last_export(rows, user_id, export.export_id)

    async def _make(self, export: Export, lease: Lease) -> None:
        async with self.database.transaction(export.user_id) as rows:
            await fence(rows, lease)
            if not await store.begin_export(rows, export.export_id):
                return
        pipe, part_count, names = Pipe(), 0, []
        with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type] (all it needs)
            async for name, answer in self._documents(export.user_id):
                names.append(name)
                archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), as_json(answer), zipfile.ZIP_DEFLATED)
                part_count = await self._hand_on(pipe, export, part_count, lease, rest=False)
            about = {"user_id": str(export.user_id), "export_id": str(export.export_id), "documents": names}
            archive.writestr(zipfile.ZipInfo("contents.json", ZIP_TIME), as_json(about), zipfile.ZIP_DEFLATED)
        part_count = await self._hand_on(pipe, export, part_count, lease, rest=True)
        now = self.now()
        ready = replace(
            export,
            state=ExportState.READY,
            ready_time=now,
            expire_time=now + self.kept,
            part_count=part_count,
            size_bytes=pipe.size_bytes,
            digest=pipe.digest,
        )
        async with self.database.transaction(export.user_id) as rows:
            await fence(rows, lease)
            await self._finish(rows, ready)

    async def _documents(self, user_id: UUID) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for name, answer in (await self._own_documents(user_id)).items():
            yield f"users/{name}.json", answer
        async for name, answer in self.personal_data.documents(user_id):
            yield name, answer

    async def _own_documents(self, user_id: UUID) -> dict[str, dict[str, Any]]:
        async with self.database.transaction(user_id) as rows:
            deletion = await store.find_deletion(rows, user_id)
            found = {
                "profile": wire.profile_to_proto(await store.find_profile(rows, user_id)),
                "preferences": wire.preferences_to_proto(await store.find_preferences(rows, user_id)),
                "onboarding": wire.onboarding_to_proto(domain.onboarding(await store.list_progress(rows, user_id))),
                **({"deletion": wire.deletion_to_proto(deletion)} if deletion else {}),
            }
            credentials = await store.PersonStore(rows, user_id).credentials()
        documents = {name: document(message) for name, message in found.items()}
        kept = [document(wire.credential_to_proto(credential)) for credential in credentials]
        return {**documents, "broker_credentials": {"credentials": kept}}

    async def _hand_on(self, pipe: Pipe, export: Export, part_count: int, lease: Lease, *, rest: bool) -> int:
        """Seals and stores what is whole; how many parts there are then."""
        while (data := pipe.take(rest=rest)) is not None:
            context = use_cases.context_of_part(export.user_id, export.export_id, part_count)
            sealed = await self.sealer.seal(data, context)
            async with self.database.transaction(export.user_id) as rows:
                await fence(rows, lease)
                await store.add_part(rows, export, part_count, sealed)
            part_count += 1
        return part_count

    async def _finish(self, rows: Connection, ready: Export) -> None:
        if ready.user_id not in await store.lock_people(rows, [ready.user_id]):
            return
        person = store.PersonStore(rows, ready.user_id)
        await store.finish_export(rows, ready)
        await person.tell(events.exported(ready))
        deletion = await person.deletion()
        if deletion is None or deletion.state is not DeletionState.SCHEDULED or deletion.export_id != ready.export_id:
            return
        assert ready.ready_time is not None
        purge_time = domain.purge_time_after_export(deletion, ready.ready_time, self.grace)
        if purge_time != deletion.purge_time:
            await store.put_off(rows, deletion.user_id, purge_time)
            await person.tell(events.deletion_scheduled(replace(deletion, purge_time=purge_time)))

    async def _note(self, export: Export, trouble: str, pause_seconds: float) -> None:
        log.warning("an export waits", export_id=str(export.export_id), trouble=trouble)
        async with self.database.transaction(export.user_id) as rows:
            await store.note_attempt(rows, export.export_id, trouble, pause_seconds)

    async def _expire(self, lease: Lease) -> None:
        async with self.database.transaction() as rows:
            expired = await store.expired_exports(rows, EXPIRED_AT_ONCE)
        for export_id, user_id in expired:
            async with self.database.transaction(user_id) as rows:
                await fence(rows, lease)
                await store.delete_export(rows, export_id)


def trouble_of(error: Exception) -> str:
    """What an operator needs to know."""
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details() or ''}"[:TROUBLE_CHARACTERS_MAX]
    return f"{type(error).__name__}: {error}"[:TROUBLE_CHARACTERS_MAX]


def as_json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, indent=1, ensure_ascii=False).encode()
