"""Speaks the users API: reads the request, calls one use case, writes the response."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.ids import uuid7
from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, first_answer, key_of
from libs.mesh.wire import timestamp
from libs.sealing import Sealer
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey
from services.users import domain, store, use_cases, wire
from services.users.clients import Accounts, Venues
from services.users.domain import ExportState
from services.users.store import PersonStore

USUAL_PAGE_SIZE = 50

Response = TypeVar("Response", bound=Message)


async def change(
    database: Database,
    key: RequestKey,
    response_type: type[Response],
    work: Callable[[PersonStore], Awaitable[Response]],
) -> Response:
    """Does the work on the caller, locked, once per request_id."""

    async def locked_work(rows: Connection) -> Response:
        return await work(await store.locked(rows, key.user_id))

    return await answer_once(database, key, response_type, locked_work)


async def earlier_answer(database: Database, key: RequestKey, response_type: type[Response]) -> Response | None:
    """The first answer to a repeat; for what is not to ask others again before it looks."""
    async with database.transaction(key.user_id) as rows:
        return await first_answer(rows, key, response_type)


class UserServicer(users_pb2_grpc.UserServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        sealer: Sealer,
        accounts: Accounts,
        update_profile: use_cases.UpdateProfile,
        update_preferences: use_cases.UpdatePreferences,
        tick_step: use_cases.TickStep,
        start_export: use_cases.StartExport,
        schedule_deletion: use_cases.ScheduleDeletion,
    ) -> None:
        self._database, self._sealer, self._accounts = database, sealer, accounts
        self._update_profile, self._update_preferences, self._tick_step = update_profile, update_preferences, tick_step
        self._start_export, self._schedule_deletion = start_export, schedule_deletion

    async def GetProfile(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            profile = await store.find_profile(rows, user_id)
        return users_pb2.GetProfileResponse(profile=wire.profile_to_proto(profile))

    async def UpdateProfile(self, request, context):
        values = wire.profile_changes(request)

        async def work(person: PersonStore) -> users_pb2.UpdateProfileResponse:
            profile = await self._update_profile(person, values, request.etag)
            return users_pb2.UpdateProfileResponse(profile=wire.profile_to_proto(profile))

        return await change(self._database, key_of(request), users_pb2.UpdateProfileResponse, work)

    async def GetPreferences(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            preferences = await store.find_preferences(rows, user_id)
        return users_pb2.GetPreferencesResponse(preferences=wire.preferences_to_proto(preferences))

    async def UpdatePreferences(self, request, context):
        paths, values = wire.preference_changes(request)
        if account_id := values.get("default_account_id"):
            await self._accounts.check(identity.current().user_id, account_id)

        async def work(person: PersonStore) -> users_pb2.UpdatePreferencesResponse:
            preferences = await self._update_preferences(person, paths, values, request.etag)
            return users_pb2.UpdatePreferencesResponse(preferences=wire.preferences_to_proto(preferences))

        return await change(self._database, key_of(request), users_pb2.UpdatePreferencesResponse, work)

    async def GetOnboarding(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            progress = await store.list_progress(rows, user_id)
        return users_pb2.GetOnboardingResponse(onboarding=wire.onboarding_to_proto(domain.onboarding(progress)))

    async def CompleteOnboardingStep(self, request, context):
        async def work(person: PersonStore) -> users_pb2.CompleteOnboardingStepResponse:
            steps = await self._tick_step(person, wire.STEPS[request.step])
            return users_pb2.CompleteOnboardingStepResponse(onboarding=wire.onboarding_to_proto(steps))

        return await change(self._database, key_of(request), users_pb2.CompleteOnboardingStepResponse, work)

    async def ResetOnboarding(self, request, context):
        async def work(person: PersonStore) -> users_pb2.ResetOnboardingResponse:
            steps = await use_cases.reset_onboarding(person)
            return users_pb2.ResetOnboardingResponse(onboarding=wire.onboarding_to_proto(steps))

        return await change(self._database, key_of(request), users_pb2.ResetOnboardingResponse, work)

    async def DeleteAccount(self, request, context):
        async def work(person: PersonStore) -> users_pb2.DeleteAccountResponse:
            deletion = await self._schedule_deletion(person, request.email)
            return users_pb2.DeleteAccountResponse(deletion=wire.deletion_to_proto(deletion))

        return await change(self._database, key_of(request), users_pb2.DeleteAccountResponse, work)

    async def GetDeletion(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            deletion = await store.find_deletion(rows, user_id)
        if deletion is None:
            raise domain.DeletionNotScheduled("no deletion is scheduled")
        return users_pb2.GetDeletionResponse(deletion=wire.deletion_to_proto(deletion))

    async def CancelDeletion(self, request, context):
        async def work(person: PersonStore) -> users_pb2.CancelDeletionResponse:
            deletion = await use_cases.cancel_deletion(person)
            return users_pb2.CancelDeletionResponse(deletion=wire.deletion_to_proto(deletion))

        return await change(self._database, key_of(request), users_pb2.CancelDeletionResponse, work)

    async def ExportPersonalData(self, request, context):
        async def work(person: PersonStore) -> users_pb2.ExportPersonalDataResponse:
            export = await self._start_export(person)
            return users_pb2.ExportPersonalDataResponse(export=wire.export_to_proto(export))

        return await change(self._database, key_of(request), users_pb2.ExportPersonalDataResponse, work)

    async def ListPersonalDataExports(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        user_id, before = identity.current().user_id, pages.uuid_after(request.page_token)
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            found = await store.list_exports(rows, user_id, before=before, limit=size + 1)
        page, more = found[:size], len(found) > size
        return users_pb2.ListPersonalDataExportsResponse(
            exports=map(wire.export_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].export_id)) if more else "",
        )

    async def DownloadPersonalData(self, request, context):
        user_id, export_id = identity.current().user_id, UUID(request.export_id)
        async with self._database.transaction(user_id) as rows:
            export = await store.find_export(rows, export_id)
            if export is None:
                raise domain.ExportNotFound("no such export", export_id=export_id)
            if export.state is not ExportState.READY:
                raise domain.ExportPending("the export is still being made", export_id=export_id)
            sealed = await store.find_part(rows, export_id, request.part)
        if sealed is None:
            raise domain.ExportPartNotFound("no such part", part=request.part, part_count=export.part_count)
        data = await self._sealer.open(sealed, use_cases.context_of_part(user_id, export_id, request.part))
        return users_pb2.DownloadPersonalDataResponse(data=data, part_count=export.part_count)


class BrokerCredentialServicer(users_pb2_grpc.BrokerCredentialServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        sealer: Sealer,
        venues: Venues,
        seal_credential: use_cases.SealCredential,
        put_credential: use_cases.PutCredential,
        lease_credential: use_cases.LeaseCredential,
        test_pause: timedelta,
    ) -> None:
        self._database, self._sealer, self._venues, self._test_pause = database, sealer, venues, test_pause
        self._seal_credential, self._put_credential, self._lease_credential = (
            seal_credential,
            put_credential,
            lease_credential,
        )

    async def PutBrokerCredential(self, request, context):
        # Without a key of its own: the digest holds the secret half, which nobody can guess.
        key = key_of(request)
        if answer := await earlier_answer(self._database, key, users_pb2.PutBrokerCredentialResponse):
            return answer
        credential_id = UUID(request.credential_id) if request.credential_id else None
        new_id, account_id = credential_id or uuid7(), UUID(request.account_id)
        sealed = await self._seal_credential(
            key.user_id, new_id, account_id=account_id, venue=request.venue, secrets=wire.secrets_from_proto(request)
        )

        async def work(person: PersonStore) -> users_pb2.PutBrokerCredentialResponse:
            credential = await self._put_credential(
                person,
                sealed,
                credential_id=credential_id,
                new_id=new_id,
                account_id=account_id,
                venue=request.venue,
                label=request.label,
                api_key=request.api_key,
            )
            return users_pb2.PutBrokerCredentialResponse(credential=wire.credential_to_proto(credential))

        return await change(self._database, key, users_pb2.PutBrokerCredentialResponse, work)

    async def ListBrokerCredentials(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        user_id, after = identity.current().user_id, pages.uuid_after(request.page_token) or UUID(int=0)
        async with self._database.transaction(user_id) as rows:
            await store.refuse_deleted(rows, user_id)
            found = await store.list_credentials(rows, user_id, after=after, limit=size + 1)
        page, more = found[:size], len(found) > size
        return users_pb2.ListBrokerCredentialsResponse(
            credentials=wire.credentials_to_proto(page),
            next_page_token=pages.token_after(str(page[-1].credential_id)) if more else "",
        )

    async def DeleteBrokerCredential(self, request, context):
        async def work(person: PersonStore) -> users_pb2.DeleteBrokerCredentialResponse:
            await use_cases.delete_credential(person, UUID(request.credential_id))
            return users_pb2.DeleteBrokerCredentialResponse()

        return await change(self._database, key_of(request), users_pb2.DeleteBrokerCredentialResponse, work)

    async def TestBrokerCredential(self, request, context):
        key, credential_id = key_of(request), UUID(request.credential_id)
        if answer := await earlier_answer(self._database, key, users_pb2.TestBrokerCredentialResponse):
            return answer
        async with self._database.transaction(key.user_id) as rows:
            person = await store.locked(rows, key.user_id)
            credential = await use_cases.find_credential(person, credential_id)
        domain.check_pause(credential, self._test_pause, datetime.now(UTC))
        check, revision = await self._venues.check(
            key.user_id, credential_id, venue=credential.venue, request_id=request.request_id
        )

        async def work(person: PersonStore) -> users_pb2.TestBrokerCredentialResponse:
            tested = await use_cases.note_check(person, credential_id, check, revision)
            return users_pb2.TestBrokerCredentialResponse(credential=wire.credential_to_proto(tested))

        return await change(self._database, key, users_pb2.TestBrokerCredentialResponse, work)

    async def LeaseBrokerCredential(self, request, context):
        try:
            user_id = identity.current().user_id
        except LookupError:
            raise use_cases.nobody_named() from None
        async with self._database.transaction(user_id) as rows:
            lease = await self._lease_credential(
                await store.locked(rows, user_id),
                UUID(request.credential_id),
                wire.PURPOSES[request.purpose],
                service=identity.peer_of(context),
                request_id=request.request_id,
            )
        # Only now: the lease is told, whatever becomes of this process.
        secrets = await use_cases.unseal(self._sealer, lease)
        return users_pb2.LeaseBrokerCredentialResponse(
            credential_id=request.credential_id,
            account_id=str(lease.credential.account_id),
            venue=lease.credential.venue,
            api_key=secrets.api_key,
            api_secret=secrets.api_secret,
            passphrase=secrets.passphrase,
            expire_time=timestamp(lease.expire_time),
            revision=lease.credential.revision,
        )
