"""What the service does, one per intention. Each works on a person whose row is locked by its transaction."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from libs.errors import Unauthenticated
from libs.sealing import Sealed, Sealer, context_of
from services.users import domain
from services.users.domain import (
    Check,
    Credential,
    Deletion,
    DeletionState,
    Export,
    ExportState,
    Grace,
    Preferences,
    Profile,
    Progress,
    Purpose,
    Secrets,
    Step,
)


class Person(Protocol):
    """Where one person's rows live, in one transaction, locked. What is changed is told with it."""

    @property
    def user_id(self) -> UUID: ...

    async def profile(self) -> Profile: ...
    async def save_profile(self, profile: Profile, paths: Sequence[str]) -> None: ...
    async def preferences(self) -> Preferences: ...
    async def save_preferences(self, preferences: Preferences, paths: Sequence[str]) -> None: ...
    async def progress(self) -> list[Progress]: ...
    async def complete(self, step: Step, now: datetime, *, proved: bool) -> None: ...
    async def untick(self) -> None: ...
    async def deletion(self) -> Deletion | None: ...
    async def save_deletion(self, deletion: Deletion) -> None: ...
    async def exports(self) -> list[Export]: ...
    async def add_export(self, export: Export) -> None: ...
    async def drop_export(self, export: Export) -> None: ...
    async def credentials(self) -> list[Credential]: ...
    async def put_credential(self, credential: Credential, sealed: Sealed) -> None: ...
    async def save_check(self, credential: Credential) -> None: ...
    async def delete_credential(self, credential: Credential) -> None: ...
    async def sealed(self, credential_id: UUID) -> Sealed: ...
    async def tell_lease(
        self, credential_id: UUID, purpose: Purpose, *, service: str, request_id: str, expire_time: datetime
    ) -> None: ...


class Accounts(Protocol):
    """What orders knows of the caller's accounts."""

    async def check(self, user_id: UUID, account_id: UUID) -> None:
        """Raises AccountNotFound unless it is the user's."""
        ...


@dataclass(frozen=True, slots=True)
class UpdateProfile:
    now: Callable[[], datetime]

    async def __call__(self, person: Person, values: Mapping[str, Any], etag: str) -> Profile:
        profile = domain.changed(await person.profile(), values, etag=etag, now=self.now())
        await person.save_profile(profile, list(values))
        return profile


@dataclass(frozen=True, slots=True)
class UpdatePreferences:
    now: Callable[[], datetime]

    async def __call__(self, person: Person, paths: Sequence[str], values: Mapping[str, Any], etag: str) -> Preferences:
        preferences = domain.changed(await person.preferences(), values, etag=etag, now=self.now())
        await person.save_preferences(preferences, paths)
        return preferences


@dataclass(frozen=True, slots=True)
class TickStep:
    now: Callable[[], datetime]

    async def __call__(self, person: Person, step: Step) -> list[Progress]:
        domain.check_tick(step, await person.progress())
        await person.complete(step, self.now(), proved=False)
        return domain.onboarding(await person.progress())


async def reset_onboarding(person: Person) -> list[Progress]:
    await person.untick()
    return domain.onboarding(await person.progress())


@dataclass(frozen=True, slots=True)
class StartExport:
    """Has everything put together; while that is being done, once."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, person: Person) -> Export:
        known = await person.exports()
        if len(known) >= domain.EXPORTS_MAX and not pending(known):
            raise domain.TooManyExports(
                "there are as many exports as are kept; one expires first", exports_max=domain.EXPORTS_MAX
            )
        return await self.start(person, known)

    async def start(self, person: Person, known: Sequence[Export]) -> Export:
        """The same where as many are kept as may be: then the oldest makes room."""
        if found := pending(known):
            return found
        if len(known) >= domain.EXPORTS_MAX:
            await person.drop_export(known[-1])
        export = Export(
            export_id=self.next_id(), user_id=person.user_id, state=ExportState.PENDING, create_time=self.now()
        )
        await person.add_export(export)
        return export


def pending(known: Sequence[Export]) -> Export | None:
    return next((export for export in known if export.state is ExportState.PENDING), None)


@dataclass(frozen=True, slots=True)
class ScheduleDeletion:
    """Schedules it and starts the export that comes first; one that is scheduled stays as it is.

    Where there is time to trade on, another export is made before the end.
    """

    start_export: StartExport
    now: Callable[[], datetime]
    grace: Grace

    async def __call__(self, person: Person, email: str) -> Deletion:
        profile = await person.profile()
        if not profile.email:
            raise domain.ProfilePending("auth has not told of the person yet", dependency="auth")
        if email.strip().lower() != profile.email:
            raise domain.ConfirmationMismatch({"email": "is not the caller's own"})
        known = await person.deletion()
        if known and known.state is DeletionState.SCHEDULED:
            return known
        now = self.now()
        export = await self.start_export.start(person, await person.exports())
        deletion = Deletion(
            user_id=person.user_id,
            state=DeletionState.SCHEDULED,
            schedule_time=now,
            purge_time=now + self.grace.period,
            export_id=export.export_id,
            export_is_last=self.grace.period <= self.grace.last_export_ahead,
        )
        await person.save_deletion(deletion)
        return deletion


async def cancel_deletion(person: Person) -> Deletion:
    known = await person.deletion()
    if known is None or known.state is not DeletionState.SCHEDULED:
        raise domain.DeletionNotScheduled("no deletion is scheduled")
    deletion = replace(known, state=DeletionState.CANCELED)
    await person.save_deletion(deletion)
    return deletion


@dataclass(frozen=True, slots=True)
class SealCredential:
    """Seals a key that may be put: for a venue that asks for one, and an account of the person's own.

    By itself, for other services and whoever keeps the key-encryption keys are asked: that is no work for a transaction.
    """

    accounts: Accounts
    sealer: Sealer

    async def __call__(
        self, user_id: UUID, credential_id: UUID, *, account_id: UUID, venue: str, secrets: Secrets
    ) -> Sealed:
        domain.check_venue(venue)
        await self.accounts.check(user_id, account_id)
        return await self.sealer.seal(
            json.dumps(asdict(secrets)).encode(), context_of_credential(user_id, credential_id)
        )


@dataclass(frozen=True, slots=True)
class PutCredential:
    now: Callable[[], datetime]

    async def __call__(
        self,
        person: Person,
        sealed: Sealed,
        *,
        credential_id: UUID | None,
        new_id: UUID,
        account_id: UUID,
        venue: str,
        label: str,
        api_key: str,
    ) -> Credential:
        now = self.now()
        credential = domain.put(
            await person.credentials(),
            credential_id=credential_id,
            new_id=new_id,
            user_id=person.user_id,
            account_id=account_id,
            venue=venue,
            label=label,
            api_key=api_key,
            now=now,
        )
        await person.put_credential(credential, sealed)
        await person.complete(Step.CONNECT_VENUE, now, proved=True)
        return credential


async def delete_credential(person: Person, credential_id: UUID) -> None:
    await person.delete_credential(await find_credential(person, credential_id))


async def note_check(person: Person, credential_id: UUID, check: Check, revision: int) -> Credential:
    credential = domain.judged(await find_credential(person, credential_id), check, revision=revision)
    await person.save_check(credential)
    return credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A key that was handed out and is still sealed."""

    credential: Credential
    sealed: Sealed
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class LeaseCredential:
    """Tells that a key is handed out; what it returns can be unsealed once that is committed."""

    now: Callable[[], datetime]
    period: timedelta = domain.LEASE

    async def __call__(
        self, person: Person, credential_id: UUID, purpose: Purpose, *, service: str, request_id: str
    ) -> Lease:
        credential = await find_credential(person, credential_id)
        domain.check_lease(credential, purpose)
        expire_time = self.now() + self.period
        await person.tell_lease(credential_id, purpose, service=service, request_id=request_id, expire_time=expire_time)
        return Lease(credential=credential, sealed=await person.sealed(credential_id), expire_time=expire_time)


async def unseal(sealer: Sealer, lease: Lease) -> Secrets:
    credential = lease.credential
    context = context_of_credential(credential.user_id, credential.credential_id)
    return Secrets(**json.loads(await sealer.open(lease.sealed, context)))


async def find_credential(person: Person, credential_id: UUID) -> Credential:
    found = next((one for one in await person.credentials() if one.credential_id == credential_id), None)
    if found is None:
        raise domain.no_credential(credential_id)
    return found


def context_of_credential(user_id: UUID, credential_id: UUID) -> bytes:
    return context_of("broker credential", user_id, credential_id)


def context_of_part(user_id: UUID, export_id: UUID, part: int) -> bytes:
    return context_of("personal data", user_id, export_id, part)


def nobody_named() -> Unauthenticated:
    return Unauthenticated("the call names no user")
