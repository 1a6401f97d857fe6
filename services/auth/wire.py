"""Translates between the auth API and the auth domain."""

import base64
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.mesh.wire import timestamp
from services.auth.domain import User
from services.auth.keys import StoredKey
from services.auth.use_cases import Opened

TOKEN_TYPE = "Bearer"  # noqa: S105 (the scheme's name)


def user_to_proto(user: User) -> auth_pb2.User:
    return auth_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        full_name=user.full_name,
        roles=sorted(user.roles),
        email_verified=user.email_verified,
        create_time=timestamp(user.create_time),
    )


def login_to_proto(opened: Opened, access_token: str, access_token_seconds: int) -> auth_pb2.LoginResponse:
    return auth_pb2.LoginResponse(
        access_token=access_token,
        refresh_token=opened.refresh_token,
        token_type=TOKEN_TYPE,
        expires_in=access_token_seconds,
        refresh_expire_time=timestamp(opened.refresh_expire_time),
        session_id=str(opened.session.session_id),
        user=user_to_proto(opened.user),
    )


def refresh_to_proto(opened: Opened, access_token: str, access_token_seconds: int) -> auth_pb2.RefreshResponse:
    return auth_pb2.RefreshResponse(
        access_token=access_token,
        refresh_token=opened.refresh_token,
        token_type=TOKEN_TYPE,
        expires_in=access_token_seconds,
        refresh_expire_time=timestamp(opened.refresh_expire_time),
        session_id=str(opened.session.session_id),
    )


def key_to_proto(key: StoredKey) -> auth_pb2.JsonWebKey:
    x = base64.urlsafe_b64encode(key.public_key).decode().rstrip("=")
    return auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=key.key_id, use="sig", alg="EdDSA")


def revocations_to_proto(
    sessions: Mapping[UUID, datetime], *, cursor: int, snapshot: bool, now: datetime | None
) -> auth_pb2.StreamRevocationsResponse:
    return auth_pb2.StreamRevocationsResponse(
        sessions=[
            auth_pb2.RevokedSession(session_id=str(key), expire_time=timestamp(until))
            for key, until in sessions.items()
        ],
        cursor=str(cursor),
        snapshot=snapshot,
        time=timestamp(now) if now else None,
    )
