"""What people, sessions and refresh tokens are, and what may happen to them. No I/O here."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from libs.errors import AlreadyExists, Exhausted, Invalid, Unauthenticated

# A lost answer to Refresh may be asked for again so long after the token was spent.
REPEAT_SECONDS = 30
# So many failures cost nothing; from then on each doubles the wait.
FREE_FAILURES = 5
LOGIN_DELAY_SECONDS_MAX = 900


class EmailTaken(AlreadyExists):
    reason = "EMAIL_TAKEN"


class PasswordTooCommon(Invalid):
    reason = "PASSWORD_TOO_COMMON"


class CredentialsInvalid(Unauthenticated):
    """E-mail and password do not belong together; which of the two is wrong is never said."""

    reason = "CREDENTIALS_INVALID"


class LoginDelayed(Exhausted):
    reason = "LOGIN_DELAYED"


class RefreshTokenInvalid(Unauthenticated):
    reason = "REFRESH_TOKEN_INVALID"


class RefreshTokenReused(Unauthenticated):
    reason = "REFRESH_TOKEN_REUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    user_id: UUID
    email: str
    full_name: str
    roles: frozenset[str]
    email_verified: bool
    create_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    session_id: UUID
    user_id: UUID
    address: str
    create_time: datetime
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshToken:
    """One link in a session's chain; only its hash is kept."""

    token_hash: bytes
    session_id: UUID
    user_id: UUID
    expire_time: datetime
    spent_time: datetime | None = None
    spent_request_id: str = ""
    successor_hash: bytes | None = None
    successor_spent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Failed logins in a row, of one account from one address."""

    count: int
    last_time: datetime


class Refreshed(Enum):
    """What presenting a refresh token means."""

    ROTATE = "rotate"
    REPEAT = "repeat"
    REUSE = "reuse"


def normalized(email: str) -> str:
    """Addresses are compared without regard to case."""
    return email.strip().lower()


def judge_refresh(token: RefreshToken, session: Session, *, request_id: str, now: datetime) -> Refreshed:
    """Decides what a presented token means.

    A spent token is proof that two parties hold it, unless its owner only repeats a request whose answer was lost:
    the same request_id, soon after, and nobody has used the answer.
    """
    if session.end_time is not None or token.expire_time <= now:
        raise RefreshTokenInvalid("the refresh token is not valid; sign in again")
    if token.spent_time is None:
        return Refreshed.ROTATE
    repeated = request_id and request_id == token.spent_request_id
    if repeated and not token.successor_spent and now - token.spent_time <= timedelta(seconds=REPEAT_SECONDS):
        return Refreshed.REPEAT
    return Refreshed.REUSE


def delay(failures: Failures) -> timedelta:
    """How long after the last failure the next attempt may come: 1, 2, 4 … seconds, up to 15 minutes."""
    if failures.count < FREE_FAILURES:
        return timedelta(0)
    doublings = min(failures.count - FREE_FAILURES, LOGIN_DELAY_SECONDS_MAX.bit_length())
    return timedelta(seconds=min(2**doublings, LOGIN_DELAY_SECONDS_MAX))


def admit_attempt(failures: Failures, now: datetime) -> None:
    """Raises LoginDelayed while the wait lasts."""
    wait = failures.last_time + delay(failures) - now
    if wait > timedelta(0):
        seconds = wait.total_seconds()
        raise LoginDelayed("too many failed attempts; try again later", retry_after_seconds=seconds)
