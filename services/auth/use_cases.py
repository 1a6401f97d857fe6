"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from libs.mesh.identity import network_of
from services.auth import domain
from services.auth.domain import CredentialsInvalid, Failures, Refreshed, RefreshToken, Session, User

REFRESH_TOKEN_BYTES = 32


class Identities(Protocol):
    """Where people and their sessions live, in one transaction."""

    async def add_user(self, user: User, password_hash: str) -> bool: ...
    async def add_session(self, session: Session) -> None: ...
    async def end_session(self, session_id: UUID, user_id: UUID, *, cause: str, now: datetime) -> None: ...
    async def add_refresh_token(self, token: RefreshToken) -> None: ...
    async def spend(self, spent: RefreshToken, successor: RefreshToken, *, request_id: str, now: datetime) -> None: ...
    async def replace_successor(self, spent: RefreshToken, successor: RefreshToken) -> None: ...
    async def find_user(self, user_id: UUID) -> User | None: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """Adds a person; raises EmailTaken."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(
        self,
        identities: Identities,
        *,
        user_id: UUID,
        email: str,
        full_name: str,
        password_hash: str,
        roles: frozenset[str],
    ) -> User:
        user = User(
            user_id=user_id,
            email=domain.normalized(email),
            full_name=full_name,
            roles=roles,
            email_verified=False,
            create_time=self.now(),
        )
        if not await identities.add_user(user, password_hash):
            raise domain.EmailTaken("someone is registered with this e-mail address")
        return user


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session as its owner sees it, once: the refresh token is kept by nobody else."""

    user: User
    session: Session
    refresh_token: str
    refresh_expire_time: datetime


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Opens a session for somebody whose password was right."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    refresh_token_days: int

    async def __call__(self, identities: Identities, user: User, address: str) -> Opened:
        now = self.now()
        session = Session(session_id=self.next_id(), user_id=user.user_id, address=address, create_time=now)
        text, token = new_refresh_token(session, now + timedelta(days=self.refresh_token_days))
        await identities.add_session(session)
        await identities.add_refresh_token(token)
        return Opened(user=user, session=session, refresh_token=text, refresh_expire_time=token.expire_time)


@dataclass(frozen=True, slots=True)
class RefreshSession:
    """Exchanges a refresh token; None when the token was stolen and its session has just been ended for it."""

    now: Callable[[], datetime]
    refresh_token_days: int

    async def __call__(
        self, identities: Identities, token: RefreshToken, session: Session, request_id: str
    ) -> Opened | None:
        now = self.now()
        meaning = domain.judge_refresh(token, session, request_id=request_id, now=now)
        if meaning is Refreshed.REUSE:
            await identities.end_session(session.session_id, session.user_id, cause="refresh_reuse", now=now)
            return None
        user = await identities.find_user(session.user_id)
        if user is None:
            raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
        text, successor = new_refresh_token(session, now + timedelta(days=self.refresh_token_days))
        if meaning is Refreshed.ROTATE:
            await identities.spend(token, successor, request_id=request_id, now=now)
        else:
            await identities.replace_successor(token, successor)
        return Opened(user=user, session=session, refresh_token=text, refresh_expire_time=successor.expire_time)


class Attempts(Protocol):
    """Failed logins in a row, counted where every replica sees them."""

    async def find(self, subject: bytes) -> tuple[Failures, datetime]: ...
    async def set(self, subject: bytes, failures: Failures) -> None: ...


async def admit_login(attempts: Attempts, email: str, address: str) -> None:
    """Counts an attempt before it is judged, so that many at once gain nothing; raises LoginDelayed.

    What is refused is not counted: who comes back when told is let in.
    """
    subject = subject_of(email, address)
    failures, now = await attempts.find(subject)
    domain.admit_attempt(failures, now)
    await attempts.set(subject, Failures(count=failures.count + 1, last_time=now))


def subject_of(email: str, address: str) -> bytes:
    """What failed logins are counted by: the account as seen from one network."""
    return hashlib.sha256(f"{domain.normalized(email)}|{network_of(address)}".encode()).digest()


def nobody_of(email: str) -> UUID:
    """Stands for the person whom nobody knows by this address."""
    return UUID(bytes=hashlib.sha256(domain.normalized(email).encode()).digest()[:16])


def hash_of(token_text: str) -> bytes:
    """What is stored of a refresh token; its 256 random bits need no slow hash."""
    return hashlib.sha256(token_text.encode()).digest()


def new_refresh_token(session: Session, expire_time: datetime) -> tuple[str, RefreshToken]:
    text = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
    token = RefreshToken(
        token_hash=hash_of(text), session_id=session.session_id, user_id=session.user_id, expire_time=expire_time
    )
    return text, token


def refuse_credentials() -> CredentialsInvalid:
    return CredentialsInvalid("e-mail or password is wrong")
