"""What auth tells the other services: the kind and the serialized message of each fact."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from google.protobuf.message import Message
from tradeloom.auth.v1 import events_pb2

from libs.mesh.wire import timestamp
from services.auth.domain import ApiKey, Session, User, UserState


def registered(user: User) -> tuple[str, bytes]:
    return fact_of(events_pb2.UserRegistered(user_id=str(user.user_id), email=user.email, full_name=user.full_name))


def session_opened(session: Session) -> tuple[str, bytes]:
    return fact_of(events_pb2.SessionOpened(session_id=str(session.session_id), address=session.address))


def session_ended(session_id: UUID, cause: str, expire_time: datetime) -> tuple[str, bytes]:
    return fact_of(events_pb2.SessionEnded(session_id=str(session_id), cause=cause, expire_time=timestamp(expire_time)))


def login_failed(
    address: str, failure_count: int, first_failure_time: datetime, last_failure_time: datetime
) -> tuple[str, bytes]:
    return fact_of(
        events_pb2.LoginFailed(
            address=address,
            failure_count=failure_count,
            first_failure_time=timestamp(first_failure_time),
            last_failure_time=timestamp(last_failure_time),
        )
    )


def email_verified(email: str) -> tuple[str, bytes]:
    return fact_of(events_pb2.EmailVerified(email=email))


def password_changed(cause: str) -> tuple[str, bytes]:
    return fact_of(events_pb2.PasswordChanged(cause=cause))


def totp_enabled() -> tuple[str, bytes]:
    return fact_of(events_pb2.TotpEnabled())


def totp_disabled(admin_user_id: UUID | None, note: str) -> tuple[str, bytes]:
    return fact_of(events_pb2.TotpDisabled(admin_user_id=str(admin_user_id or ""), note=note))


def second_factor_failed(address: str) -> tuple[str, bytes]:
    return fact_of(events_pb2.SecondFactorFailed(address=address))


def recovery_codes_regenerated() -> tuple[str, bytes]:
    return fact_of(events_pb2.RecoveryCodesRegenerated())


def recovery_code_used(left_count: int) -> tuple[str, bytes]:
    return fact_of(events_pb2.RecoveryCodeUsed(left_count=left_count))


def api_key_created(key: ApiKey, api_key_count: int) -> tuple[str, bytes]:
    return fact_of(
        events_pb2.ApiKeyCreated(
            api_key_id=str(key.api_key_id),
            prefix=key.prefix,
            scope=key.scope.value,
            account_ids=map(str, key.account_ids),
            api_key_count=api_key_count,
        )
    )


def api_key_revoked(api_key_id: UUID, cause: str, api_key_count: int) -> tuple[str, bytes]:
    return fact_of(events_pb2.ApiKeyRevoked(api_key_id=str(api_key_id), cause=cause, api_key_count=api_key_count))


def api_key_used(key: ApiKey, address: str) -> tuple[str, bytes]:
    return fact_of(events_pb2.ApiKeyUsed(api_key_id=str(key.api_key_id), address=address))


def api_key_refused(
    api_key_id: UUID,
    address: str,
    reason: str,
    refusal_count: int,
    first_refusal_time: datetime,
    last_refusal_time: datetime,
) -> tuple[str, bytes]:
    return fact_of(
        events_pb2.ApiKeyRefused(
            api_key_id=str(api_key_id),
            address=address,
            reason=reason,
            refusal_count=refusal_count,
            first_refusal_time=timestamp(first_refusal_time),
            last_refusal_time=timestamp(last_refusal_time),
        )
    )


def signing_key_rotated(key_id: str, sign_time: datetime) -> tuple[str, bytes]:
    return fact_of(events_pb2.SigningKeyRotated(key_id=key_id, sign_time=timestamp(sign_time)))


def audit_records_read(admin_user_id: UUID) -> tuple[str, bytes]:
    return fact_of(events_pb2.AuditRecordsRead(admin_user_id=str(admin_user_id)))


def roles_changed(roles: Iterable[str], previous_roles: Iterable[str], admin_user_id: UUID) -> tuple[str, bytes]:
    return fact_of(
        events_pb2.RolesChanged(
            roles=sorted(roles), previous_roles=sorted(previous_roles), admin_user_id=str(admin_user_id)
        )
    )


def state_changed(state: UserState, note: str, admin_user_id: UUID) -> tuple[str, bytes]:
    return fact_of(events_pb2.UserStateChanged(state=state.value, note=note, admin_user_id=str(admin_user_id)))


def fact_of(message: Message) -> tuple[str, bytes]:
    return message.DESCRIPTOR.full_name, message.SerializeToString()
