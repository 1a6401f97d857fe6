"""Speaks the auth API: each method reads the request, calls one use case, writes the response. A file for each concern."""

from tradeloom.auth.v1 import auth_pb2_grpc

from services.auth.servicer.admin import AdminServicer
from services.auth.servicer.api_keys import ApiKeyMethods
from services.auth.servicer.passwords import PasswordMethods
from services.auth.servicer.records import RecordMethods, RevocationServicer
from services.auth.servicer.second_factor import SecondFactorMethods
from services.auth.servicer.sessions import SessionMethods
from services.auth.servicer.signing_in import SigningInMethods

__all__ = ["AdminServicer", "AuthServicer", "RevocationServicer"]


class AuthServicer(
    SigningInMethods,
    SecondFactorMethods,
    PasswordMethods,
    SessionMethods,
    ApiKeyMethods,
    RecordMethods,
    auth_pb2_grpc.AuthServiceServicer,
):
    """All methods of AuthService."""
