"""What the service does, one per intention.

Each works on a store that is bound to one transaction, in which nobody else changes what belongs to the person.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from libs.mesh.identity import Identity, network_of
from libs.mesh.quotas import check_quota
from services.auth import domain, totp
from services.auth.domain import (
    ApiKey,
    CodeInvalid,
    Counted,
    CredentialsInvalid,
    Failures,
    OneTimeToken,
    Purpose,
    Refreshed,
    RefreshToken,
    Scope,
    Session,
    Totp,
    User,
    UserState,
)

TOKEN_BYTES = 32
KEY_PREFIX = "tlk_"
KEY_NAME_BYTES = 4
QUOTA_OF_KEYS = "api_keys"


class Identities(Protocol):
    """Where people and their sessions live, in one transaction."""

    async def add_user(self, user: User, password_hash: str) -> bool: ...
    async def find_user(self, user_id: UUID) -> User | None: ...
    async def set_password(self, user_id: UUID, password_hash: str, cause: str) -> None: ...
    async def set_roles(self, user: User, roles: frozenset[str], admin_user_id: UUID) -> None: ...
    async def set_state(self, user: User, state: UserState, note: str, admin_user_id: UUID) -> None: ...
    async def others_who_administer(self, user_id: UUID) -> int: ...
    async def outdate_tokens(self, user_id: UUID, now: datetime) -> None: ...
    async def add_session(self, session: Session) -> None: ...
    async def end_session(self, session_id: UUID, user_id: UUID, *, cause: str, now: datetime) -> None: ...
    async def end_sessions(self, user_id: UUID, *, but: UUID | None, cause: str, now: datetime) -> int: ...
    async def end_idlest_sessions(self, user_id: UUID, *, kept: int, cause: str, now: datetime) -> None: ...
    async def note_network(self, user_id: UUID, network: str) -> bool: ...
    async def add_refresh_token(self, token: RefreshToken) -> None: ...
    async def spend(self, spent: RefreshToken, successor: RefreshToken, *, request_id: str, now: datetime) -> None: ...
    async def replace_successor(self, spent: RefreshToken, successor: RefreshToken) -> None: ...
    async def extend_session(self, session_id: UUID, *, expire_time: datetime, now: datetime) -> None: ...


class Factors(Protocol):
    """Where second factors and tokens that work once live, in one transaction."""

    async def find_totp(self, user_id: UUID) -> Totp | None: ...
    async def put_totp(self, user_id: UUID, sealed_secret: bytes) -> None: ...
    async def enable_totp(self, user_id: UUID, now: datetime) -> None: ...
    async def delete_totp(self, user_id: UUID, *, admin_user_id: UUID | None = None, note: str = "") -> None: ...
    async def use_step(self, user_id: UUID, step: int) -> None: ...
    async def put_recovery_codes(self, user_id: UUID, hashes: Sequence[bytes]) -> None: ...
    async def use_recovery_code(self, user_id: UUID, code_hash: bytes) -> int | None: ...
    async def add_token(self, token: OneTimeToken) -> None: ...


class ApiKeys(Protocol):
    async def add(self, key: ApiKey, secret_hash: bytes) -> None: ...
    async def count_in_force(self, user_id: UUID, now: datetime) -> int: ...


class Secrets(Protocol):
    """Seals what must be read again, and hashes what must only be recognised."""

    def seal_bytes(self, purpose: str, context: str, raw: bytes) -> bytes: ...
    def open_bytes(self, purpose: str, context: str, sealed: bytes) -> bytes: ...
    def derived(self, purpose: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """Adds a person; raises EmailTaken."""

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
        email_verified: bool = False,
    ) -> User:
        user = User(
            user_id=user_id,
            email=domain.normalized(email),
            full_name=full_name,
            roles=roles,
            email_verified=email_verified,
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
    from_elsewhere: bool = False
    """Opened from where the person had not signed in before, though from other places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """From where and with what somebody signs in."""

    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Opens a session for somebody who has proved who they are."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    refresh_token_days: int
    session_days_max: int

    async def __call__(
        self, identities: Identities, user: User, caller: Caller, *, second_factor: bool = False
    ) -> Opened:
        now = self.now()
        await identities.end_idlest_sessions(user.user_id, kept=domain.SESSIONS_MAX - 1, cause="too_many", now=now)
        expire_time = domain.expiry_of(now, now, idle_days=self.refresh_token_days, days_max=self.session_days_max)
        session = Session(
            session_id=self.next_id(),
            user_id=user.user_id,
            address=caller.address,
            user_agent=caller.user_agent,
            create_time=now,
            refresh_time=now,
            expire_time=expire_time,
            second_factor_time=now if second_factor else None,
        )
        text, token = new_refresh_token(session, expire_time)
        await identities.add_session(session)
        await identities.add_refresh_token(token)
        from_elsewhere = await identities.note_network(user.user_id, network_of(caller.address))
        return Opened(
            user=user,
            session=session,
            refresh_token=text,
            refresh_expire_time=expire_time,
            from_elsewhere=from_elsewhere,
        )


@dataclass(frozen=True, slots=True)
class RefreshSession:
    """Exchanges a refresh token; None when the token was stolen and its session has just been ended for it."""

    now: Callable[[], datetime]
    refresh_token_days: int
    session_days_max: int

    async def __call__(
        self, identities: Identities, token: RefreshToken, session: Session, request_id: str
    ) -> Opened | None:
        now = self.now()
        meaning = domain.judge_refresh(token, session, request_id=request_id, now=now)
        if meaning is Refreshed.REUSE:
            await identities.end_session(session.session_id, session.user_id, cause="refresh_reuse", now=now)
            return None
        user = await identities.find_user(session.user_id)
        if user is None or user.state is not UserState.ACTIVE:
            raise domain.RefreshTokenInvalid("the refresh token is not valid; sign in again")
        expire_time = domain.expiry_of(
            session.create_time, now, idle_days=self.refresh_token_days, days_max=self.session_days_max
        )
        if expire_time <= now:
            raise domain.RefreshTokenInvalid("the session has lasted as long as one may; sign in again")
        text, successor = new_refresh_token(session, expire_time)
        if meaning is Refreshed.ROTATE:
            await identities.spend(token, successor, request_id=request_id, now=now)
        else:
            await identities.replace_successor(token, successor)
        await identities.extend_session(session.session_id, expire_time=expire_time, now=now)
        session = replace(session, refresh_time=now, expire_time=expire_time)
        return Opened(user=user, session=session, refresh_token=text, refresh_expire_time=expire_time)


@dataclass(frozen=True, slots=True)
class ProveFactor:
    """Holds a code, or a recovery code, against a person's second factor: each works once. Raises CodeInvalid."""

    vault: Secrets
    now: Callable[[], datetime]

    async def __call__(self, factors: Factors, user_id: UUID, code: str = "", recovery_code: str = "") -> None:
        factor = await factors.find_totp(user_id)
        if factor is None or factor.enable_time is None:
            raise domain.TotpNotEnabled("no second factor is enabled")
        if recovery_code:
            if await factors.use_recovery_code(user_id, self.hash_of_code(recovery_code)) is None:
                raise CodeInvalid("the recovery code is wrong, or was used before")
            return
        await self.use_code(factors, user_id, factor, code)

    async def use_code(self, factors: Factors, user_id: UUID, factor: Totp, code: str) -> None:
        """Of a secret that may not be enabled yet."""
        secret = self.vault.open_bytes("totp", str(user_id), factor.sealed_secret).decode()
        step = totp.step_of(secret, code, self.now(), after=factor.last_step)
        if step is None:
            raise CodeInvalid("the code is wrong, or was used before")
        await factors.use_step(user_id, step)

    async def replace_recovery_codes(self, factors: Factors, user_id: UUID) -> list[str]:
        codes = [totp.new_recovery_code() for _ in range(domain.RECOVERY_CODE_COUNT)]
        await factors.put_recovery_codes(user_id, [self.hash_of_code(code) for code in codes])
        return codes

    def hash_of_code(self, typed: str) -> bytes:
        """Its 120 random bits need no slow hash; the key keeps a stolen table from being of any use."""
        return hmac.digest(self.vault.derived("recovery-codes"), totp.plain_recovery_code(typed).encode(), "sha256")


@dataclass(frozen=True, slots=True)
class SetUpFactor:
    """Makes, enables and removes a second factor."""

    vault: Secrets
    prove: ProveFactor
    now: Callable[[], datetime]

    async def make(self, factors: Factors, user_id: UUID) -> str:
        """A new secret, which counts for nothing until enable()."""
        found = await factors.find_totp(user_id)
        if found is not None and found.enable_time is not None:
            raise domain.TotpIsEnabled("a second factor is enabled; disable it first")
        secret = totp.new_secret()
        await factors.put_totp(user_id, self.vault.seal_bytes("totp", str(user_id), secret.encode()))
        return secret

    async def enable(self, identities: Identities, factors: Factors, user_id: UUID, code: str) -> list[str]:
        """The recovery codes. Every access token is outdated, so that all new ones say that there is a factor."""
        found = await factors.find_totp(user_id)
        if found is None:
            raise domain.TotpNotEnabled("no second factor was set up")
        if found.enable_time is not None:
            raise domain.TotpIsEnabled("a second factor is enabled")
        now = self.now()
        await self.prove.use_code(factors, user_id, found, code)
        await factors.enable_totp(user_id, now)
        await identities.outdate_tokens(user_id, now)
        return await self.prove.replace_recovery_codes(factors, user_id)


@dataclass(frozen=True, slots=True)
class ChangePassword:
    """Sets another password: ends sessions, and makes links and challenges of before void."""

    now: Callable[[], datetime]

    async def __call__(
        self, identities: Identities, user: User, password_hash: str, *, but: UUID | None, cause: str
    ) -> int:
        await identities.set_password(user.user_id, password_hash, cause)
        return await identities.end_sessions(user.user_id, but=but, cause=f"password_{cause}", now=self.now())


@dataclass(frozen=True, slots=True)
class MakeToken:
    """Makes a token that works once: a challenge, or what a link in a mail carries."""

    now: Callable[[], datetime]

    async def __call__(self, factors: Factors, user_id: UUID, purpose: Purpose, seconds: int) -> tuple[str, datetime]:
        text = secrets.token_urlsafe(TOKEN_BYTES)
        expire_time = self.now() + timedelta(seconds=seconds)
        token = OneTimeToken(token_hash=hash_of(text), user_id=user_id, purpose=purpose, expire_time=expire_time)
        await factors.add_token(token)
        return text, expire_time


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWish:
    """What an API key is to be."""

    name: str
    scope: Scope
    account_ids: Sequence[UUID]
    allowed_networks: Sequence[str]
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class CreateApiKey:
    """Makes a key; its secret is returned and not kept. Raises QuotaExceeded."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, identities: Identities, keys: ApiKeys, user_id: UUID, wish: KeyWish) -> tuple[ApiKey, str]:
        now = self.now()
        domain.check_expiry(wish.expire_time, now)
        networks = domain.networks_from(wish.allowed_networks)
        domain.active(await identities.find_user(user_id))
        check_quota(QUOTA_OF_KEYS, await keys.count_in_force(user_id, now))
        prefix = KEY_PREFIX + secrets.token_hex(KEY_NAME_BYTES)
        secret = f"{prefix}_{secrets.token_urlsafe(TOKEN_BYTES)}"
        key = ApiKey(
            api_key_id=self.next_id(),
            user_id=user_id,
            name=wish.name,
            prefix=prefix,
            scope=wish.scope,
            account_ids=tuple(dict.fromkeys(wish.account_ids)),
            allowed_networks=networks,
            create_time=now,
            expire_time=wish.expire_time,
        )
        await keys.add(key, hash_of(secret))
        return key, secret


@dataclass(frozen=True, slots=True)
class Administer:
    """What administrators do to people."""

    now: Callable[[], datetime]

    async def set_roles(
        self, identities: Identities, user_id: UUID, roles: frozenset[str], admin_user_id: UUID
    ) -> User:
        user = await self._found(identities, user_id)
        if roles == user.roles:
            return user
        if "admin" in user.roles - roles:
            await self._keep_one(identities, user)
        await identities.set_roles(user, roles, admin_user_id)
        await identities.outdate_tokens(user_id, self.now())
        return replace(user, roles=roles)

    async def set_state(
        self, identities: Identities, user_id: UUID, state: UserState, note: str, admin_user_id: UUID
    ) -> User:
        user = await self._found(identities, user_id)
        if user.state is UserState.PURGED:
            raise domain.UserIsPurged("the person was deleted for good", user_id=user_id)
        if state is user.state:
            return user
        if state is UserState.SUSPENDED:
            if "admin" in user.roles:
                await self._keep_one(identities, user)
            now = self.now()
            await identities.end_sessions(user_id, but=None, cause="suspended", now=now)
            # Also what API keys were exchanged for.
            await identities.outdate_tokens(user_id, now)
        await identities.set_state(user, state, note, admin_user_id)
        return replace(user, state=state)

    async def reset_factor(
        self, identities: Identities, factors: Factors, user_id: UUID, note: str, admin_user_id: UUID
    ) -> User:
        """Nothing that was proved by the factor lasts."""
        user = await self._found(identities, user_id)
        if not user.totp_enabled:
            raise domain.TotpNotEnabled("the person has no second factor")
        now = self.now()
        await factors.delete_totp(user_id, admin_user_id=admin_user_id, note=note)
        await identities.end_sessions(user_id, but=None, cause="second_factor_reset", now=now)
        await identities.outdate_tokens(user_id, now)
        return replace(user, totp_enabled=False)

    async def _found(self, identities: Identities, user_id: UUID) -> User:
        user = await identities.find_user(user_id)
        if user is None:
            raise domain.UserNotFound("nobody has this id", user_id=user_id)
        return user

    async def _keep_one(self, identities: Identities, user: User) -> None:
        if user.state is UserState.ACTIVE and not await identities.others_who_administer(user.user_id):
            raise domain.LastAdmin("nobody who can sign in would be left to administer")


class Attempts(Protocol):
    """Failed attempts in a row, counted where every replica sees them."""

    async def find(self, subjects: Sequence[bytes]) -> tuple[Mapping[bytes, Failures], datetime]: ...
    async def count(self, subjects: Sequence[bytes], now: datetime) -> None: ...


async def admit(attempts: Attempts, counted: Sequence[Counted]) -> None:
    """Counts an attempt before it is judged, so that many at once gain nothing; raises LoginDelayed.

    What is refused is not counted: who comes back when told is let in.
    """
    subjects = [one.subject for one in counted]
    found, now = await attempts.find(subjects)
    domain.admit_attempt([(found[one.subject], one.free) for one in counted], now)
    await attempts.count(subjects, now)


def counted_login(email: str, address: str, *, is_known: bool) -> list[Counted]:
    """What a login is counted by.

    The account as seen from one network; and, unless its owner has signed in from there before, the account as a whole
    and the network as a whole. So whoever guesses from many places, or at many accounts, is held up, and the owner at
    home is not.
    """
    account, network = domain.normalized(email), network_of(address)
    pair = Counted(subject_of("login", account, network))
    if is_known:
        return [pair]
    return [
        pair,
        Counted(subject_of("account", account), domain.FREE_FAILURES_OF_ACCOUNT),
        Counted(subject_of("network", network), domain.FREE_FAILURES_OF_NETWORK),
    ]


def counted_challenge(user_id: UUID, address: str, *, is_known: bool) -> list[Counted]:
    """Codes in the second step of a login: as the first, for whoever tries knows the password, and may not be the owner."""
    pair = Counted(subject_of("challenge", str(user_id), network_of(address)))
    if is_known:
        return [pair]
    return [pair, Counted(subject_of("challenge", str(user_id)), domain.FREE_FAILURES_OF_ACCOUNT)]


def counted_code(caller: Identity) -> list[Counted]:
    """Codes within a session, by the session: who tries in another one holds up nobody here."""
    return [Counted(subject_of("code", str(caller.user_id), str(caller.session_id)))]


def counted_password(caller: Identity) -> list[Counted]:
    """The password asked for once more within a session, likewise."""
    return [Counted(subject_of("password", str(caller.user_id), str(caller.session_id)))]


def counted_mails(user_id: UUID) -> list[Counted]:
    """Mails that a person asks for: a stolen session floods nobody's mailbox."""
    return [Counted(subject_of("mails", str(user_id)))]


def subject_of(*parts: str) -> bytes:
    return hashlib.sha256("|".join(parts).encode()).digest()


def nobody_of(email: str) -> UUID:
    """Stands for the person whom nobody knows by this address."""
    return UUID(bytes=hashlib.sha256(domain.normalized(email).encode()).digest()[:16])


def hash_of(token_text: str) -> bytes:
    """What is stored of a token or key; its 256 random bits need no slow hash."""
    return hashlib.sha256(token_text.encode()).digest()


def new_refresh_token(session: Session, expire_time: datetime) -> tuple[str, RefreshToken]:
    text = secrets.token_urlsafe(TOKEN_BYTES)
    token = RefreshToken(
        token_hash=hash_of(text), session_id=session.session_id, user_id=session.user_id, expire_time=expire_time
    )
    return text, token


def refuse_credentials() -> CredentialsInvalid:
    return CredentialsInvalid("e-mail or password is wrong")
