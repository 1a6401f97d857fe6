"""What users tells the other services: the kind and the serialized message of each fact. None holds a secret."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.message import Message
from tradeloom.users.v1 import events_pb2

from libs.mesh.wire import timestamp
from services.users.domain import Check, Credential, Deletion, Export, Purpose

Told = tuple[str, bytes]


def profile_updated(fields: Sequence[str]) -> Told:
    return fact_of(events_pb2.ProfileUpdated(fields=fields))


def preferences_updated(fields: Sequence[str]) -> Told:
    return fact_of(events_pb2.PreferencesUpdated(fields=fields))


def credential_put(credential: Credential) -> Told:
    return fact_of(
        events_pb2.BrokerCredentialPut(
            credential_id=str(credential.credential_id),
            account_id=str(credential.account_id),
            venue=credential.venue,
            label=credential.label,
            revision=credential.revision,
        )
    )


def credential_deleted(credential: Credential) -> Told:
    return fact_of(
        events_pb2.BrokerCredentialDeleted(
            credential_id=str(credential.credential_id),
            account_id=str(credential.account_id),
            venue=credential.venue,
        )
    )


def credential_tested(credential: Credential, check: Check) -> Told:
    return fact_of(
        events_pb2.BrokerCredentialTested(
            credential_id=str(credential.credential_id),
            state=credential.state.value,
            problem=check.problem.value if check.problem else "",
            can_read=check.can_read,
            can_trade=check.can_trade,
            can_withdraw=check.can_withdraw,
        )
    )


def credential_leased(
    credential_id: UUID, purpose: Purpose, *, service: str, request_id: str, expire_time: datetime
) -> Told:
    return fact_of(
        events_pb2.BrokerCredentialLeased(
            credential_id=str(credential_id),
            purpose=purpose.value,
            service=service,
            request_id=request_id,
            expire_time=timestamp(expire_time),
        )
    )


def exported(export: Export) -> Told:
    return fact_of(events_pb2.PersonalDataExported(export_id=str(export.export_id), size_bytes=export.size_bytes))


def deletion_scheduled(deletion: Deletion) -> Told:
    return fact_of(events_pb2.DeletionScheduled(purge_time=timestamp(deletion.purge_time)))


def deletion_cancelled() -> Told:
    return fact_of(events_pb2.DeletionCancelled())


def user_purged(user_id: UUID) -> Told:
    return fact_of(events_pb2.UserPurged(user_id=str(user_id)))


def fact_of(message: Message) -> Told:
    return message.DESCRIPTOR.full_name, message.SerializeToString()
