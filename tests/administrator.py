"""Somebody who administers a stack: with a second factor, without which nobody changes what others may do."""

import time
from typing import Any
from uuid import uuid4

import grpc
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from tests.authenticator import Authenticator
from tests.stack import Stack

PASSWORD = "a password of an administrator"
FRESH_SECONDS = 240.0
"""A proved code counts for five minutes."""


class Administrator:
    """Made administrator by the stack's first one, who stays without a factor: the stack's own commands sign in as them."""

    def __init__(self, stack: Stack) -> None:
        self._stub: Any = auth_pb2_grpc.AuthServiceStub(
            channel := grpc.insecure_channel(stack.edge, options=[("grpc.enable_http_proxy", 0)])
        )
        admins: Any = auth_pb2_grpc.AdminServiceStub(channel)
        first = self._sign_in(*stack.admin)
        _, enabled = self._enrol(first.access_token)
        email = f"{uuid4()}@example.com"
        asked = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
        user_id = self._stub.Register(asked).user.user_id
        roles = auth_pb2.SetUserRolesRequest(user_id=user_id, roles=["operator", "admin"])
        admins.SetUserRoles(roles, metadata=bearer(enabled.access_token))
        leaving = auth_pb2.DisableTotpRequest(password=stack.admin[1], recovery_code=enabled.recovery_codes[0])
        self._stub.DisableTotp(leaving, metadata=bearer(enabled.access_token))
        session = self._sign_in(email, PASSWORD)
        self._app, enabled = self._enrol(session.access_token)
        self._token, self._refresh_token, self._proved = enabled.access_token, session.refresh_token, time.monotonic()

    @property
    def token(self) -> str:
        """With a fresh second factor."""
        if time.monotonic() - self._proved > FRESH_SECONDS:
            refreshed = self._stub.Refresh(auth_pb2.RefreshRequest(refresh_token=self._refresh_token))
            self._refresh_token = refreshed.refresh_token
            code = auth_pb2.StepUpRequest(code=self._app.unused_code())
            self._token = self._stub.StepUp(code, metadata=bearer(refreshed.access_token)).access_token
            self._proved = time.monotonic()
        return self._token

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return bearer(self.token)

    def _sign_in(self, email: str, password: str) -> Any:
        return self._stub.Login(auth_pb2.LoginRequest(email=email, password=password))

    def _enrol(self, token: str) -> tuple[Authenticator, Any]:
        made = self._stub.SetupTotp(auth_pb2.SetupTotpRequest(), metadata=bearer(token))
        app = Authenticator(made.otpauth_uri)
        enabling = auth_pb2.EnableTotpRequest(code=app.unused_code())
        return app, self._stub.EnableTotp(enabling, metadata=bearer(token))


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]
