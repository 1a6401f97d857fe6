"""What people, sessions, keys and tokens are, and what may happen to them. No I/O here."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import ip_network
from uuid import UUID

from libs.errors import AlreadyExists, Exhausted, Forbidden, Invalid, NotAllowed, NotFound, Unauthenticated

# A lost answer to Refresh may be asked for again so long after the token was spent: through an outage, or a night with
# the lid closed. Who can has the token and the request_id, and so had what the owner has; and of two who do, the second
# finds the first one's answer void.
REPEAT_SECONDS = 86_400
# So many failures in a row cost nothing; from then on each doubles the wait: of an account from one network, of an
# account from all networks where its owner is not known, and of a network whatever the account.
FREE_FAILURES = 5
FREE_FAILURES_OF_ACCOUNT = 50
FREE_FAILURES_OF_NETWORK = 100
LOGIN_DELAY_SECONDS_MAX = 900
# A challenge is answered so soon, and wrongly so often at most.
CHALLENGE_SECONDS = 300
CHALLENGE_ATTEMPTS_MAX = 5
RESET_LINK_SECONDS = 1_800
VERIFY_LINK_SECONDS = 3 * 86_400
# For so long a proved code lets in where the contract asks for a fresh one (libs.mesh.concerns).
FRESH_FACTOR_SECONDS = 300
# For so long after signing in a second factor may be set up without the password.
SIGNED_IN_SECONDS = 300
RECOVERY_CODE_COUNT = 10
# Open at once of one person; one more ends the one that was not refreshed for longest.
SESSIONS_MAX = 100
LETTERS, LETTERS_AND_DIGITS = r"[^\W\d_]+", r"[^\W_]+"
ROLES = ("user", "operator", "admin")
# What a password may not consist of: the words of this place, and beside them the person's own.
CONTEXT_WORDS = frozenset({"tradeloom", "trading", "trader", "trade", "admin", "administrator", "operator"})
CONTEXT_CHARACTERS_MIN = 3
# So many digits and signs around one common word make no other password of it.
DECORATION_CHARACTERS_MAX = 10


class UserState(Enum):
    ACTIVE = "active"
    SUSPENDED = "suspended"
    PURGED = "purged"


class Purpose(Enum):
    """What a token that works once is for."""

    CHALLENGE = "challenge"
    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 (a name)


class Scope(Enum):
    """What an API key may do."""

    READ = "read"
    TRADE = "trade"

    @property
    def scopes(self) -> tuple[str, ...]:
        return ("read",) if self is Scope.READ else ("read", "trade")


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


class ChallengeInvalid(Unauthenticated):
    reason = "CHALLENGE_INVALID"


class CodeInvalid(Unauthenticated):
    reason = "CODE_INVALID"


class PasswordRequired(Forbidden):
    reason = "PASSWORD_REQUIRED"


class TotpIsEnabled(NotAllowed):
    reason = "TOTP_ENABLED"


class TotpNotEnabled(NotAllowed):
    reason = "TOTP_NOT_ENABLED"


class LinkInvalid(Invalid):
    reason = "LINK_INVALID"


class SessionNotFound(NotFound):
    reason = "SESSION_NOT_FOUND"


class ApiKeyNotFound(NotFound):
    reason = "API_KEY_NOT_FOUND"


class ApiKeyInvalid(Unauthenticated):
    reason = "API_KEY_INVALID"


class UserNotFound(NotFound):
    reason = "USER_NOT_FOUND"


class LastAdmin(NotAllowed):
    reason = "LAST_ADMIN"


class EmailIsVerified(NotAllowed):
    reason = "EMAIL_VERIFIED"


class UserIsPurged(NotAllowed):
    reason = "USER_PURGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    user_id: UUID
    email: str
    full_name: str
    roles: frozenset[str]
    email_verified: bool
    create_time: datetime
    totp_enabled: bool = False
    state: UserState = UserState.ACTIVE
    token_generation: int = 0
    """Access tokens of an earlier one are outdated."""
    capabilities: frozenset[str] = frozenset()
    quotas: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    session_id: UUID
    user_id: UUID
    address: str
    create_time: datetime
    user_agent: str = ""
    refresh_time: datetime | None = None
    expire_time: datetime | None = None
    second_factor_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    api_key_id: UUID
    user_id: UUID
    name: str
    prefix: str
    scope: Scope
    account_ids: tuple[UUID, ...]
    allowed_networks: tuple[str, ...]
    create_time: datetime
    expire_time: datetime | None
    last_used_time: datetime | None = None
    last_used_address: str = ""
    revoke_time: datetime | None = None
    told_time: datetime | None = None
    """When a first use was last told of; a day later one is again."""
    told_networks: tuple[str, ...] = ()
    """From where uses were told of since then."""

    def is_in_force(self, now: datetime) -> bool:
        return self.revoke_time is None and (self.expire_time is None or now < self.expire_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTimeToken:
    """Only its hash is kept."""

    token_hash: bytes
    user_id: UUID
    purpose: Purpose
    expire_time: datetime
    attempt_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Totp:
    """A second factor; its secret is enabled by a first code, and each time step lets in once."""

    sealed_secret: bytes
    enable_time: datetime | None
    last_step: int


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
    """Failed attempts in a row, of whatever they are counted by."""

    count: int
    last_time: datetime


@dataclass(frozen=True, slots=True)
class Counted:
    """What failed attempts are counted by, and how many in a row cost nothing."""

    subject: bytes
    free: int = FREE_FAILURES


class Refreshed(Enum):
    """What presenting a refresh token means."""

    ROTATE = "rotate"
    REPEAT = "repeat"
    REUSE = "reuse"


def normalized(email: str) -> str:
    """Addresses are compared without regard to case."""
    return email.strip().lower()


def expiry_of(session_begin: datetime, now: datetime, *, idle_days: int, days_max: int) -> datetime:
    """Until when a session goes on unless it is refreshed; never longer than days_max, however often it is."""
    return min(now + timedelta(days=idle_days), session_begin + timedelta(days=days_max))


def judge_refresh(token: RefreshToken, session: Session, *, request_id: str, now: datetime) -> Refreshed:
    """Decides what a presented token means.

    A spent token is proof that two parties hold it, unless its owner only repeats a request whose answer was lost:
    the same request_id, within a day, and nobody has used the answer.
    """
    if session.end_time is not None or token.expire_time <= now:
        raise RefreshTokenInvalid("the refresh token is not valid; sign in again")
    if token.spent_time is None:
        return Refreshed.ROTATE
    repeated = request_id and request_id == token.spent_request_id
    if repeated and not token.successor_spent and now - token.spent_time <= timedelta(seconds=REPEAT_SECONDS):
        return Refreshed.REPEAT
    return Refreshed.REUSE


def delay(failures: Failures, free: int = FREE_FAILURES) -> timedelta:
    """How long after the last failure the next attempt may come: 1, 2, 4 … seconds, up to 15 minutes."""
    if failures.count < free:
        return timedelta(0)
    doublings = min(failures.count - free, LOGIN_DELAY_SECONDS_MAX.bit_length())
    return timedelta(seconds=min(2**doublings, LOGIN_DELAY_SECONDS_MAX))


def admit_attempt(failures: Iterable[tuple[Failures, int]], now: datetime) -> None:
    """Raises LoginDelayed while the longest wait lasts; each of failures with how many are free."""
    wait = max((one.last_time + delay(one, free) - now for one, free in failures), default=timedelta(0))
    if wait > timedelta(0):
        seconds = wait.total_seconds()
        raise LoginDelayed("too many attempts; try again later", retry_after_seconds=seconds)


def networks_from(texts: Iterable[str]) -> tuple[str, ...]:
    """Networks in their usual notation, a single address as a network of its own; raises Invalid by position."""
    found, wrong = [], {}
    for position, text in enumerate(texts):
        try:
            found.append(str(ip_network(text.strip())))
        except ValueError:
            wrong[f"allowed_networks[{position}]"] = "is no network such as 203.0.113.0/24, and no address"
    if wrong:
        raise Invalid(wrong)
    return tuple(dict.fromkeys(found))


def words_of(email: str, full_name: str) -> frozenset[str]:
    """What whoever knows a person tries first."""
    found = re.findall(LETTERS_AND_DIGITS, f"{email} {full_name}".lower())
    return frozenset(word for word in found if len(word) >= CONTEXT_CHARACTERS_MIN)


def is_too_common(password: str, common: Collection[str], own_words: Collection[str] = ()) -> bool:
    """Whether it is a common password, or little else than one of them, or than words of this place and of the person.

    No kind of character is asked for: what decides is how little is left besides.
    """
    text = password.lower()
    if text in common:
        return True
    left = text
    for word in sorted(CONTEXT_WORDS | set(own_words), key=len, reverse=True):
        left = left.replace(word, " ")
    words = re.findall(LETTERS, left)
    decoration = sum(not letter.isalpha() and not letter.isspace() for letter in left)
    if len(words) > 1 or decoration > DECORATION_CHARACTERS_MAX:
        return False
    if words:
        return words[0] in common or (left != text and len(words[0]) < CONTEXT_CHARACTERS_MIN)
    return left != text


def check_signed_in_lately(session: Session, now: datetime) -> None:
    """Raises PasswordRequired where the session alone does not show that its owner sits there."""
    if now - session.create_time > timedelta(seconds=SIGNED_IN_SECONDS):
        raise PasswordRequired("the password is needed, for the session was not opened within the last five minutes")


def check_expiry(expire_time: datetime | None, now: datetime) -> None:
    if expire_time is not None and expire_time <= now:
        raise Invalid({"expire_time": "is not in the future"})


def roles_from(asked: Iterable[str]) -> frozenset[str]:
    """Everybody is a user."""
    return frozenset(asked) | {"user"}


def key_in_force(key: ApiKey | None, user: User | None, now: datetime) -> tuple[ApiKey, User]:
    """The key and its owner, if it may be exchanged now; why it may not is not said."""
    if key is None or user is None or user.state is not UserState.ACTIVE or not key.is_in_force(now):
        raise ApiKeyInvalid("the API key is not valid")
    return key, user


def active(user: User | None) -> User:
    """The user, if they may sign in; raises CredentialsInvalid."""
    if user is None or user.state is not UserState.ACTIVE:
        raise CredentialsInvalid("e-mail or password is wrong")
    return user
