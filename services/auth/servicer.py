"""Speaks the auth API: reads the request, calls one use case, writes the response."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.errors import RequestIdReused
from libs.mesh import identity
from libs.mesh.requests import answer_once, key_of, recorded
from libs.store import requests
from libs.store.database import Connection, Database
from services.auth import domain, store, use_cases, wire
from services.auth.keys import Signer
from services.auth.passwords import Passwords
from services.auth.revocations import Revocations
from services.auth.store import AttemptStore, IdentityStore

ROLES_OF_A_PERSON = frozenset({"user"})


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        passwords: Passwords,
        signer: Signer,
        revocations: Revocations,
        register: use_cases.Registration,
        open_session: use_cases.OpenSession,
        refresh_session: use_cases.RefreshSession,
        next_id: Callable[[], UUID],
        digest_key: bytes,
    ) -> None:
        self._database, self._passwords, self._signer, self._revocations = database, passwords, signer, revocations
        self._register, self._open_session, self._refresh_session = register, open_session, refresh_session
        self._next_id, self._digest_key = next_id, digest_key

    async def Register(self, request, context):
        self._passwords.refuse_common(request.password)
        password_hash = await self._passwords.hash(request.password)
        user_id = self._next_id()

        async def work(rows: Connection) -> auth_pb2.RegisterResponse:
            user = await self._register(
                self._identities(rows),
                user_id=user_id,
                email=request.email,
                full_name=request.full_name,
                password_hash=password_hash,
                roles=ROLES_OF_A_PERSON,
            )
            return auth_pb2.RegisterResponse(user=wire.user_to_proto(user))

        if not request.request_id:
            async with self._database.transaction(user_id) as rows:
                return await work(rows)
        # Nobody is known yet, so the request_id counts for the address alone: strangers do not share theirs.
        key = key_of(request, user_id=use_cases.nobody_of(request.email), digest_key=self._digest_key)
        return await answer_once(self._database, key, auth_pb2.RegisterResponse, work, also=(user_id,))

    async def Login(self, request, context):
        address = identity.address_of(context)
        async with self._database.transaction() as rows:
            await use_cases.admit_login(AttemptStore(rows), request.email, address)
            found = await store.find_login(rows, domain.normalized(request.email))
        # Whoever it is, from here on the same work is done, and takes the same time.
        user_id, password_hash = found or (use_cases.nobody_of(request.email), None)
        if not await self._passwords.verify(password_hash, request.password):
            async with self._database.transaction(user_id) as rows:
                await self._identities(rows).note_failed_login(user_id, address)
            raise use_cases.refuse_credentials()
        # By itself, for a repeat does no other work: the password was right, so it was no failure.
        async with self._database.transaction() as rows:
            await AttemptStore(rows).forget(use_cases.subject_of(request.email, address))

        async def work(rows: Connection) -> auth_pb2.LoginResponse:
            identities = self._identities(rows)
            user = await identities.find_user(user_id)
            if user is None:
                raise use_cases.refuse_credentials()
            opened = await self._open_session(identities, user, address)
            return wire.login_to_proto(opened, self._access_token(opened), self._signer.access_token_seconds)

        if not request.request_id:
            async with self._database.transaction(user_id) as rows:
                return await work(rows)
        key = key_of(request, user_id=user_id, digest_key=self._digest_key)
        return await answer_once(self._database, key, auth_pb2.LoginResponse, work)

    async def Refresh(self, request, context):
        token_hash = use_cases.hash_of(request.refresh_token)
        async with self._database.transaction() as rows:
            user_id = await store.find_token_owner(rows, token_hash)
        if user_id is None:
            raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
        async with self._database.transaction(user_id) as rows:
            identities = self._identities(rows)
            await self._refuse_other_body(rows, request, user_id)
            token = await identities.find_refresh_token(token_hash)
            session = await identities.find_session(token.session_id) if token else None
            # Read again under the session's lock: another refresh may just have spent it.
            token = await identities.find_refresh_token(token_hash)
            if token is None or session is None:
                raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
            opened = await self._refresh_session(identities, token, session, request.request_id)
        # Refused only now: the end of the session must be committed, not rolled back with the refusal.
        if opened is None:
            self._revocations.look_now()
            raise domain.RefreshTokenReused("the refresh token was used before; its session has been ended")
        return wire.refresh_to_proto(opened, self._access_token(opened), self._signer.access_token_seconds)

    async def Logout(self, request, context):
        caller = identity.current()

        async def work(rows: Connection) -> auth_pb2.LogoutResponse:
            if caller.session_id is not None:
                await self._identities(rows).end_session(
                    caller.session_id, caller.user_id, cause="logout", now=datetime.now(UTC)
                )
            rows.after_commit(self._revocations.look_now)
            return auth_pb2.LogoutResponse()

        if not request.request_id:
            async with self._database.transaction(caller.user_id) as rows:
                return await work(rows)
        # Of this session: the same request_id does not end another one of the same person.
        key = key_of(request, digest_key=caller.session_id.bytes if caller.session_id else b"")
        return await answer_once(self._database, key, auth_pb2.LogoutResponse, work)

    async def GetMe(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            user = await self._identities(rows).find_user(user_id)
        if user is None:
            raise use_cases.refuse_credentials()
        return auth_pb2.GetMeResponse(user=wire.user_to_proto(user))

    async def GetJwks(self, request, context):
        return auth_pb2.GetJwksResponse(keys=map(wire.key_to_proto, self._signer.keys))

    def _identities(self, rows: Connection) -> IdentityStore:
        return IdentityStore(rows, self._signer.access_token_seconds)

    def _access_token(self, opened: use_cases.Opened) -> str:
        return self._signer.sign(opened.user, opened.session, datetime.now(UTC))

    async def _refuse_other_body(self, rows: Connection, request: auth_pb2.RefreshRequest, user_id: UUID) -> None:
        """A repeat is judged by the token itself, so only the request_id's body is held against the first one."""
        if not request.request_id:
            return
        key = key_of(request, user_id=user_id, digest_key=self._digest_key)
        answer = (await requests.claim(rows, [key])).get(key)
        if isinstance(answer, RequestIdReused):
            raise answer
        if answer is None:
            await requests.record(rows, {key: recorded(auth_pb2.RefreshResponse())})


class RevocationServicer(auth_pb2_grpc.RevocationServiceServicer):
    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations

    async def StreamRevocations(self, request, context):
        async for news in self._revocations.stream():
            yield news
