"""What every method of auth has at hand."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from grpc import aio

from libs.mesh import identity
from libs.mesh.identity import address_of
from libs.mesh.requests import answer_once, first_answer, key_of
from libs.mesh.sessions import refusal_of
from libs.store.database import Connection, Database
from services.auth import domain, store, use_cases, wire
from services.auth.domain import Counted, Session, User
from services.auth.factor_store import FactorStore
from services.auth.key_store import KeyStore
from services.auth.keys import AccessToken, Grant, KeyBox, Signer
from services.auth.mails import Outgoing
from services.auth.passwords import Passwords
from services.auth.revocations import Revocations
from services.auth.rotation import Rotation
from services.auth.store import AttemptStore, IdentityStore
from services.auth.use_cases import Caller

USER_AGENT_CHARACTERS_MAX = 200

Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    database: Database
    passwords: Passwords
    box: KeyBox
    signer: Signer
    revocations: Revocations
    outgoing: Outgoing
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    digest_key: bytes
    register: use_cases.Registration
    open_session: use_cases.OpenSession
    refresh_session: use_cases.RefreshSession
    prove_factor: use_cases.ProveFactor
    set_up_factor: use_cases.SetUpFactor
    change_password: use_cases.ChangePassword
    make_token: use_cases.MakeToken
    create_api_key: use_cases.CreateApiKey
    administer: use_cases.Administer
    rotation: Rotation

    def identities(self, rows: Connection) -> IdentityStore:
        return IdentityStore(rows, self.signer.access_token_seconds)

    def factors(self, rows: Connection) -> FactorStore:
        return FactorStore(self.identities(rows))

    def api_keys(self, rows: Connection) -> KeyStore:
        return KeyStore(self.identities(rows))

    def sign(self, grant: Grant) -> AccessToken:
        return self.signer.sign(grant, self.now())

    async def answer_once(
        self,
        request: Message,
        response_type: type[Response],
        work: Callable[[Connection], Awaitable[Response]],
        *,
        user_id: UUID | None = None,
        also: tuple[UUID, ...] = (),
        digest_key: bytes | None = None,
    ) -> Response:
        """As libs.mesh.requests.answer_once, for the caller unless another user is named; without a request_id, once more.

        The work is done while nobody else changes what belongs to these users.
        """
        user_id = user_id or identity.current().user_id

        async def locked(rows: Connection) -> Response:
            await store.lock_users(rows, {user_id, *also})
            await self._refuse_revoked(rows)
            return await work(rows)

        if not request.request_id:  # type: ignore[attr-defined] (every mutating request has one; a test proves it)
            async with self.database.transaction(user_id, *also) as rows:
                return await locked(rows)
        key = key_of(request, user_id=user_id, digest_key=self.digest_key if digest_key is None else digest_key)
        return await answer_once(self.database, key, response_type, locked, also=also)

    async def answer_once_with_user(
        self,
        request: Message,
        response_type: type[Response],
        work: Callable[[Connection], Awaitable[User]],
        *,
        user_id: UUID | None = None,
        also: tuple[UUID, ...] = (),
    ) -> Response:
        """As answer_once, where a person is the answer: kept without name and address, which a repeat is told as they are.

        A purge of the person need not look for what was answered to others.
        """
        found: list[User] = []

        async def working(rows: Connection) -> Response:
            found[:] = [await work(rows)]
            return response_type(user=wire.user_to_proto(replace(found[0], email="", full_name="")))

        response: Any = await self.answer_once(request, response_type, working, user_id=user_id, also=also)
        if not found:
            known = UUID(response.user.user_id)
            async with self.database.transaction(known) as rows:
                found += filter(None, [await self.identities(rows).find_user(known)])
        response.user.email, response.user.full_name = found[0].email, found[0].full_name
        return response

    async def _refuse_revoked(self, rows: Connection) -> None:
        """Who held the lock may have signed out whoever waited for it, or taken their rights away.

        Raises SessionRevoked or TokenOutdated.
        """
        caller = identity.current_or_none()
        if caller is None or caller.session_id is None:
            return
        ended, generation = await self.identities(rows).find_revoked(caller.user_id, caller.session_id)
        if refusal := refusal_of(caller, ended=ended, generation=generation):
            raise refusal

    async def first_answer(
        self, rows: Connection, request: Message, response_type: type[Response], user_id: UUID
    ) -> Response | None:
        """What the same request was answered before; so a repeat is not judged anew."""
        if not request.request_id:  # type: ignore[attr-defined] (as above)
            return None
        return await first_answer(rows, key_of(request, user_id=user_id, digest_key=self.digest_key), response_type)

    async def admit(self, counted: list[Counted]) -> None:
        """Counts an attempt, by itself: it stays counted whatever becomes of it."""
        async with self.database.transaction() as rows:
            await use_cases.admit(AttemptStore(rows), counted)

    async def forget_failures(self, rows: Connection, counted: list[Counted]) -> None:
        await AttemptStore(rows).forget([one.subject for one in counted])

    async def check_password(self, user_id: UUID, password: str, address: str) -> str:
        """The caller's own, asked for once more: its hash, for still_right().

        Raises CredentialsInvalid, and LoginDelayed as Login does.
        """
        counted = use_cases.counted_password(identity.current())
        async with self.database.transaction(user_id) as rows:
            password_hash = await self.identities(rows).find_password(user_id)
        with self.passwords.place(known=True) as place:
            await self.admit(counted)
            if password_hash is None or not await place.verify(password_hash, password):
                async with self.database.transaction(user_id) as rows:
                    await self.identities(rows).note_failed_login(user_id, address)
                raise domain.CredentialsInvalid("the password is wrong")
        async with self.database.transaction() as rows:
            await self.forget_failures(rows, counted)
        return password_hash

    async def still_right(self, rows: Connection, user_id: UUID, password: str, verified: str | None) -> None:
        """Raises CredentialsInvalid if the person has another password by now than the one that was verified.

        Verifying takes long and locks nothing. Whoever signs in with the old password while its owner changes it must
        not be in afterwards. Another hash may also be of the same password, made anew with more work.
        """
        now_kept = await self.identities(rows).find_password(user_id)
        if now_kept == verified:
            return
        with self.passwords.place(known=True) as place:
            if not await place.verify(now_kept, password):
                raise use_cases.refuse_credentials()

    async def own_user(self, rows: Connection) -> User:
        """The caller, who may have been suspended or purged a moment ago."""
        return domain.active(await self.identities(rows).find_user(identity.current().user_id))

    async def own_session(self, rows: Connection) -> Session:
        """The caller's present session; none has who came with an API key or by way of a service."""
        session_id = identity.current().session_id
        session = await self.identities(rows).find_session(session_id) if session_id else None
        if session is None or session.end_time is not None:
            raise domain.SessionNotFound("the caller has no session", session_id=session_id or "")
        return session


def caller_of(context: aio.ServicerContext) -> Caller:
    given = dict(context.invocation_metadata() or ()).get("user-agent", "")
    text = given.decode(errors="replace") if isinstance(given, bytes) else given
    printable = "".join(letter for letter in text if letter.isprintable())
    return Caller(address=address_of(context), user_agent=printable[:USER_AGENT_CHARACTERS_MAX])
