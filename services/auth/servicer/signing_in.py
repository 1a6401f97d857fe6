"""Registering, signing in in one step or two, refreshing and signing out."""

from contextlib import ExitStack
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.errors import RequestIdReused
from libs.mesh import identity
from libs.mesh.identity import network_of
from libs.mesh.requests import key_of, recorded
from libs.store import requests
from libs.store.database import Connection
from services.auth import domain, factor_store, store, use_cases, wire
from services.auth.domain import CHALLENGE_SECONDS, VERIFY_LINK_SECONDS, Counted, Purpose, User
from services.auth.keys import AccessToken, grant_of_session
from services.auth.mails import Kind
from services.auth.servicer.desk import Desk, caller_of
from services.auth.store import AttemptStore
from services.auth.use_cases import Caller, Opened

ROLES_OF_A_PERSON = frozenset({"user"})


class SigningInMethods:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def Register(self, request, context):
        desk = self._desk
        desk.passwords.refuse_common(request.password, email=request.email, full_name=request.full_name)
        password_hash = await desk.passwords.hash(request.password)
        user_id = desk.next_id()

        async def work(rows: Connection) -> User:
            user = await desk.register(
                desk.identities(rows),
                user_id=user_id,
                email=request.email,
                full_name=request.full_name,
                password_hash=password_hash,
                roles=ROLES_OF_A_PERSON,
            )
            token, _ = await desk.make_token(desk.factors(rows), user_id, Purpose.VERIFY_EMAIL, VERIFY_LINK_SECONDS)
            await desk.outgoing.add(rows, user_id, Kind.VERIFY_EMAIL, user.email, token=token)
            return user

        if not request.request_id:
            async with desk.database.transaction(user_id) as rows:
                return auth_pb2.RegisterResponse(user=wire.user_to_proto(await work(rows)))
        # Nobody is known yet, so the request_id counts for the address alone: strangers do not share theirs.
        nobody = use_cases.nobody_of(request.email)
        return await desk.answer_once_with_user(
            request, auth_pb2.RegisterResponse, work, user_id=nobody, also=(user_id,)
        )

    async def Login(self, request, context):
        desk, caller = self._desk, caller_of(context)
        with ExitStack() as stack:
            async with desk.database.transaction() as rows:
                found = await store.find_login(rows, domain.normalized(request.email), network_of(caller.address))
                # Whoever it is, from here on the same work is done, and takes the same time.
                user_id, password_hash, is_known = found or (use_cases.nobody_of(request.email), None, False)
                counted = use_cases.counted_login(request.email, caller.address, is_known=is_known)
                place = stack.enter_context(desk.passwords.place(known=is_known))
                await use_cases.admit(AttemptStore(rows), counted)
            if not await place.verify(password_hash, request.password):
                async with desk.database.transaction(user_id) as rows:
                    await desk.identities(rows).note_failed_login(user_id, caller.address)
                raise use_cases.refuse_credentials()
            # By itself, for a repeat does no other work: the password was right, so it was no failure.
            async with desk.database.transaction() as rows:
                subjects = [one.subject for one in counted]
                await AttemptStore(rows).forget(subjects[:2], take_back=subjects[2:])
            renewed = await place.renewed(password_hash, request.password)

        async def work(rows: Connection) -> auth_pb2.LoginResponse:
            identities = desk.identities(rows)
            user = domain.active(await identities.find_user(user_id))
            await desk.still_right(rows, user_id, request.password, password_hash)
            if renewed:
                await identities.renew_hash(user_id, renewed)
            if user.totp_enabled:
                challenge, expire_time = await desk.make_token(
                    desk.factors(rows), user_id, Purpose.CHALLENGE, CHALLENGE_SECONDS
                )
                return wire.challenge_to_proto(challenge, expire_time)
            opened = await self._open_session(rows, user, caller)
            return wire.login_to_proto(opened, self._access_token(opened))

        return await desk.answer_once(request, auth_pb2.LoginResponse, work, user_id=user_id)

    async def VerifyTotp(self, request, context):
        desk, caller = self._desk, caller_of(context)
        token_hash = use_cases.hash_of(request.challenge)
        admitted = await self._admit_challenge(request, token_hash, caller)
        if isinstance(admitted, auth_pb2.VerifyTotpResponse):
            return admitted
        user_id, counted = admitted

        async def work(rows: Connection) -> auth_pb2.VerifyTotpResponse:
            identities, factors = desk.identities(rows), desk.factors(rows)
            if not await factors.spend_token(token_hash, Purpose.CHALLENGE, desk.now()):
                raise domain.ChallengeInvalid("the challenge is not valid; sign in again")
            user = domain.active(await identities.find_user(user_id))
            await desk.prove_factor(factors, user_id, request.code, request.recovery_code)
            await desk.forget_failures(rows, counted)
            opened = await self._open_session(rows, user, caller, second_factor=True)
            left = await factors.count_recovery_codes(user_id)
            return wire.verified_to_proto(opened, self._access_token(opened), recovery_codes_left=left)

        try:
            return await desk.answer_once(request, auth_pb2.VerifyTotpResponse, work, user_id=user_id)
        except domain.CodeInvalid:
            async with desk.database.transaction(user_id) as rows:
                await desk.factors(rows).tell_failure(user_id, caller.address)
            raise

    async def _admit_challenge(
        self, request: auth_pb2.VerifyTotpRequest, token_hash: bytes, caller: Caller
    ) -> tuple[UUID, list[Counted]] | auth_pb2.VerifyTotpResponse:
        """Whose challenge it is, and by what this attempt was counted; or the first answer of a repeat.

        Raises ChallengeInvalid.
        """
        desk = self._desk
        async with desk.database.transaction() as rows:
            user_id = await factor_store.owner_of(rows, token_hash, Purpose.CHALLENGE)
        if user_id is None:
            raise domain.ChallengeInvalid("the challenge is not valid; sign in again")
        async with desk.database.transaction(user_id) as rows:
            if answer := await desk.first_answer(rows, request, auth_pb2.VerifyTotpResponse, user_id):
                return answer
            count = await desk.factors(rows).try_token(token_hash, desk.now())
            is_known = await desk.identities(rows).is_known_network(user_id, network_of(caller.address))
            counted = use_cases.counted_challenge(user_id, caller.address, is_known=is_known)
            await use_cases.admit(AttemptStore(rows), counted)
        if count is None or count > domain.CHALLENGE_ATTEMPTS_MAX:
            raise domain.ChallengeInvalid("the challenge is not valid; sign in again")
        return user_id, counted

    async def _open_session(
        self, rows: Connection, user: User, caller: Caller, *, second_factor: bool = False
    ) -> Opened:
        """And tells the owner by mail, if it is from where they have not signed in before."""
        desk = self._desk
        opened = await desk.open_session(desk.identities(rows), user, caller, second_factor=second_factor)
        if opened.from_elsewhere:
            await desk.outgoing.add(rows, user.user_id, Kind.SIGNED_IN_ELSEWHERE, user.email, name=caller.address)
        return opened

    async def Refresh(self, request, context):
        desk = self._desk
        token_hash = use_cases.hash_of(request.refresh_token)
        async with desk.database.transaction() as rows:
            user_id = await store.find_token_owner(rows, token_hash)
        if user_id is None:
            raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
        async with desk.database.transaction(user_id) as rows:
            identities = desk.identities(rows)
            await self._refuse_other_body(rows, request, user_id)
            # Two refreshes of one session take turns.
            await store.lock_users(rows, [user_id])
            token = await identities.find_refresh_token(token_hash)
            session = await identities.find_session(token.session_id) if token else None
            if token is None or session is None:
                raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
            opened = await desk.refresh_session(identities, token, session, request.request_id)
        # Refused only now: the end of the session must be committed, not rolled back with the refusal.
        if opened is None:
            desk.revocations.look_now()
            raise domain.RefreshTokenReused("the refresh token was used before; its session has been ended")
        return wire.refresh_to_proto(opened, self._access_token(opened))

    async def Logout(self, request, context):
        desk, caller = self._desk, identity.current()

        async def work(rows: Connection) -> auth_pb2.LogoutResponse:
            if caller.session_id is not None:
                await desk.identities(rows).end_session(
                    caller.session_id, caller.user_id, cause="logout", now=desk.now()
                )
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.LogoutResponse()

        # Of this session: the same request_id does not end another one of the same person.
        digest_key = caller.session_id.bytes if caller.session_id else b""
        return await desk.answer_once(request, auth_pb2.LogoutResponse, work, digest_key=digest_key)

    async def GetMe(self, request, context):
        async with self._desk.database.transaction(identity.current().user_id) as rows:
            return auth_pb2.GetMeResponse(user=wire.user_to_proto(await self._desk.own_user(rows)))

    async def GetJwks(self, request, context):
        return auth_pb2.GetJwksResponse(keys=map(wire.key_to_proto, self._desk.signer.keys))

    def _access_token(self, opened: Opened) -> AccessToken:
        return self._desk.sign(grant_of_session(opened.user, opened.session))

    async def _refuse_other_body(self, rows: Connection, request: auth_pb2.RefreshRequest, user_id: UUID) -> None:
        """A repeat is judged by the token itself, so only the request_id's body is held against the first one."""
        if not request.request_id:
            return
        key = key_of(request, user_id=user_id, digest_key=self._desk.digest_key)
        answer = (await requests.claim(rows, [key])).get(key)
        if isinstance(answer, RequestIdReused):
            raise answer
        if answer is None:
            await requests.record(rows, {key: recorded(auth_pb2.RefreshResponse())})
