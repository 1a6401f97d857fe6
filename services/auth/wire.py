"""Translates between the auth API and the auth domain."""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.audit import Checkpoint, Event
from libs.mesh.sessions import Outdated
from libs.mesh.wire import time_from_proto, timestamp
from services.auth.domain import ApiKey, Scope, Session, User, UserState
from services.auth.keys import AccessToken, StoredKey
from services.auth.use_cases import KeyWish, Opened

TOKEN_TYPE = "Bearer"  # noqa: S105 (the scheme's name)
STATES = {
    UserState.ACTIVE: auth_pb2.USER_STATE_ACTIVE,
    UserState.SUSPENDED: auth_pb2.USER_STATE_SUSPENDED,
    UserState.PURGED: auth_pb2.USER_STATE_PURGED,
}
STATES_FROM_PROTO = {value: state for state, value in STATES.items()}
SCOPES = {Scope.READ: auth_pb2.API_KEY_SCOPE_READ, Scope.TRADE: auth_pb2.API_KEY_SCOPE_TRADE}
SCOPES_FROM_PROTO = {value: scope for scope, value in SCOPES.items()}

Events = TypeVar("Events", auth_pb2.ListAuditEventsResponse, auth_pb2.ListOwnAuditEventsResponse)


def user_to_proto(user: User) -> auth_pb2.User:
    return auth_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        full_name=user.full_name,
        roles=sorted(user.roles),
        email_verified=user.email_verified,
        create_time=timestamp(user.create_time),
        totp_enabled=user.totp_enabled,
        state=STATES[user.state],
    )


def login_to_proto(opened: Opened, token: AccessToken) -> auth_pb2.LoginResponse:
    return auth_pb2.LoginResponse(
        access_token=token.text,
        refresh_token=opened.refresh_token,
        token_type=TOKEN_TYPE,
        expires_in=token.expires_in,
        refresh_expire_time=timestamp(opened.refresh_expire_time),
        session_id=str(opened.session.session_id),
        user=user_to_proto(opened.user),
    )


def challenge_to_proto(challenge: str, expire_time: datetime) -> auth_pb2.LoginResponse:
    return auth_pb2.LoginResponse(challenge=challenge, challenge_expire_time=timestamp(expire_time))


def verified_to_proto(opened: Opened, token: AccessToken, *, recovery_codes_left: int) -> auth_pb2.VerifyTotpResponse:
    return auth_pb2.VerifyTotpResponse(
        access_token=token.text,
        refresh_token=opened.refresh_token,
        token_type=TOKEN_TYPE,
        expires_in=token.expires_in,
        refresh_expire_time=timestamp(opened.refresh_expire_time),
        session_id=str(opened.session.session_id),
        user=user_to_proto(opened.user),
        recovery_codes_left=recovery_codes_left,
    )


def session_to_proto(session: Session, *, current: bool) -> auth_pb2.Session:
    return auth_pb2.Session(
        session_id=str(session.session_id),
        address=session.address,
        user_agent=session.user_agent,
        create_time=timestamp(session.create_time),
        refresh_time=timestamp(session.refresh_time),
        expire_time=timestamp(session.expire_time),
        current=current,
    )


def api_key_to_proto(key: ApiKey) -> auth_pb2.ApiKey:
    return auth_pb2.ApiKey(
        api_key_id=str(key.api_key_id),
        name=key.name,
        prefix=key.prefix,
        scope=SCOPES[key.scope],
        account_ids=map(str, key.account_ids),
        allowed_networks=key.allowed_networks,
        create_time=timestamp(key.create_time),
        expire_time=timestamp(key.expire_time),
        last_used_time=timestamp(key.last_used_time),
        last_used_address=key.last_used_address,
        revoke_time=timestamp(key.revoke_time),
    )


def wish_from_proto(request: auth_pb2.CreateApiKeyRequest) -> KeyWish:
    return KeyWish(
        name=request.name,
        scope=SCOPES_FROM_PROTO[request.scope],
        account_ids=[UUID(account_id) for account_id in request.account_ids],
        allowed_networks=list(request.allowed_networks),
        expire_time=time_from_proto(request.expire_time) if request.HasField("expire_time") else None,
    )


def events_to_proto(response: Events, events: Sequence[Event], next_page_token: str, end: Checkpoint) -> Events:
    response.events.extend(map(event_to_proto, events))
    response.next_page_token = next_page_token
    response.checkpoint.CopyFrom(
        auth_pb2.AuditCheckpoint(
            user_id=str(end.user_id), sequence=end.sequence, hash=end.hash, signature=end.signature
        )
    )
    return response


def event_to_proto(event: Event) -> auth_pb2.AuditEvent:
    return auth_pb2.AuditEvent(
        sequence=event.sequence,
        time=timestamp(event.time),
        source=event.source,
        kind=event.kind,
        detail=event.detail,
        salt=event.salt,
        digest=event.digest,
        hash=event.hash,
    )


def refresh_to_proto(opened: Opened, token: AccessToken) -> auth_pb2.RefreshResponse:
    return auth_pb2.RefreshResponse(
        access_token=token.text,
        refresh_token=opened.refresh_token,
        token_type=TOKEN_TYPE,
        expires_in=token.expires_in,
        refresh_expire_time=timestamp(opened.refresh_expire_time),
        session_id=str(opened.session.session_id),
    )


def key_to_proto(key: StoredKey) -> auth_pb2.JsonWebKey:
    x = base64.urlsafe_b64encode(key.public_key).decode().rstrip("=")
    return auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=key.key_id, use="sig", alg="EdDSA")


def revocations_to_proto(
    ended: Mapping[UUID, datetime],
    outdated: Mapping[UUID, Outdated],
    *,
    cursor: int,
    snapshot: bool,
    now: datetime | None,
) -> auth_pb2.StreamRevocationsResponse:
    return auth_pb2.StreamRevocationsResponse(
        sessions=[
            auth_pb2.RevokedSession(session_id=str(key), expire_time=timestamp(until)) for key, until in ended.items()
        ],
        outdated=[
            auth_pb2.Outdated(user_id=str(key), generation=one.generation, expire_time=timestamp(one.expire_time))
            for key, one in outdated.items()
        ],
        cursor=str(cursor),
        snapshot=snapshot,
        time=timestamp(now) if now else None,
    )
