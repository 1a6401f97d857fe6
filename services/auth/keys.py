"""The keys that sign access tokens and audit chains, and what else is encrypted wherever it rests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs import audit
from libs.audit import BEFORE_FIRST, Checkpoint, Tampered
from libs.ids import uuid7
from libs.mesh.identity import ALGORITHM, AUDIENCE, ISSUER
from libs.sealing import Unsealable, decrypted, encrypted
from services.auth.domain import ApiKey, Session, User

SCOPES_OF_A_PERSON = ("account", "read", "trade")
ROLES_OF_A_KEY = frozenset({"user"})
ACCESS, AUDIT = "access", "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A signing key as it rests; it signs from sign_time on and verifies until verify_until (None: still in use)."""

    key_id: str
    public_key: bytes
    sealed_private_key: bytes
    sign_time: datetime
    verify_until: datetime | None = None
    purpose: str = ACCESS


class KeyBox:
    """Seals and opens with keys derived from the data key, one for each purpose."""

    def __init__(self, data_key: bytes) -> None:
        self._data_key = data_key

    def derived(self, purpose: str) -> bytes:
        return HKDF(hashes.SHA256(), 32, salt=None, info=f"tradeloom/auth/{purpose}".encode()).derive(self._data_key)

    def seal_bytes(self, purpose: str, context: str, raw: bytes) -> bytes:
        """Context is what it belongs to: sealed for one, it opens for no other."""
        return encrypted(self.derived(purpose), raw, context.encode())

    def open_bytes(self, purpose: str, context: str, sealed: bytes) -> bytes:
        """Raises Unsealable for what was not sealed so."""
        return decrypted(self.derived(purpose), sealed, context.encode())

    def seal(self, private_key: Ed25519PrivateKey, key_id: str) -> bytes:
        return self.seal_bytes("signing-keys", key_id, private_key.private_bytes_raw())

    def open(self, stored: StoredKey) -> Ed25519PrivateKey:
        raw = self.open_bytes("signing-keys", stored.key_id, stored.sealed_private_key)
        return Ed25519PrivateKey.from_private_bytes(raw)

    def new(self, sign_time: datetime, purpose: str = ACCESS) -> StoredKey:
        private_key, key_id = Ed25519PrivateKey.generate(), str(uuid7())
        return StoredKey(
            key_id=key_id,
            public_key=private_key.public_key().public_bytes_raw(),
            sealed_private_key=self.seal(private_key, key_id),
            sign_time=sign_time,
            purpose=purpose,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an access token says: who it is, out of which session or API key, and what it may do."""

    user: User
    source_id: UUID
    roles: frozenset[str]
    scopes: Sequence[str]
    second_factor_time: datetime | None = None
    account_ids: Sequence[UUID] = ()
    networks: Sequence[str] = ()
    expire_time: datetime | None = None
    """When the session or the API key is over; its tokens then are, too."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    text: str
    expires_in: int
    """Seconds."""


def grant_of_session(user: User, session: Session) -> Grant:
    return Grant(
        user=user,
        source_id=session.session_id,
        roles=user.roles,
        scopes=SCOPES_OF_A_PERSON,
        second_factor_time=session.second_factor_time,
        expire_time=session.expire_time,
    )


def grant_of_key(user: User, key: ApiKey) -> Grant:
    """An API key never has a person's further roles, nor the scope to manage identity."""
    return Grant(
        user=user,
        source_id=key.api_key_id,
        roles=ROLES_OF_A_KEY & user.roles,
        scopes=key.scope.scopes,
        account_ids=key.account_ids,
        networks=key.allowed_networks,
        expire_time=key.expire_time,
    )


class Signer:
    """Signs access tokens with the newest key whose time has come, and the ends of audit chains with theirs."""

    def __init__(self, box: KeyBox, access_token_seconds: int) -> None:
        self._box, self.access_token_seconds = box, access_token_seconds
        self._opened: dict[str, Ed25519PrivateKey] = {}
        self.keys: tuple[StoredKey, ...] = ()
        self.audit_keys: tuple[StoredKey, ...] = ()
        self._audit_public_keys: dict[str, Ed25519PublicKey] = {}

    def use(self, keys: Sequence[StoredKey]) -> None:
        """Raises Unsealable where a public key is not that of its private key: who only writes the database has none."""
        opened = {key.key_id: self._opened.get(key.key_id) or self._box.open(key) for key in keys}
        for key in keys:
            if opened[key.key_id].public_key().public_bytes_raw() != key.public_key:
                raise Unsealable(f"the public key of {key.key_id} was changed")
        self._opened = opened
        self.keys = tuple(key for key in keys if key.purpose == ACCESS)
        self.audit_keys = tuple(key for key in keys if key.purpose == AUDIT)
        self._audit_public_keys = public_keys(self.audit_keys)

    def _signing_key(self, now: datetime) -> StoredKey:
        """The oldest while this clock is behind all of them, as a replica's may be just after the installation."""
        by_time = sorted(self.keys, key=lambda key: key.sign_time)
        return next((key for key in reversed(by_time) if key.sign_time <= now), by_time[0])

    def public_keys(self) -> dict[str, Ed25519PublicKey]:
        return public_keys(self.keys)

    def audit_key(self) -> tuple[Ed25519PrivateKey, str]:
        """The newest, and its id."""
        newest = max(self.audit_keys, key=lambda key: key.sign_time)
        return self._opened[newest.key_id], newest.key_id

    def sign_end(self, end: Checkpoint) -> Checkpoint:
        return replace(end, signature=audit.signed(end, *self.audit_key()))

    def check_end(self, end: Checkpoint) -> None:
        """Raises Tampered unless one of the keys has signed it; where nothing was recorded there is nothing to sign."""
        if not end.signature:
            if (end.sequence, end.hash) == (0, BEFORE_FIRST):
                return
            raise Tampered("its end is not signed")
        audit.check_signature(end, self._audit_public_keys)

    def sign(self, grant: Grant, now: datetime) -> AccessToken:
        signing, user = self._signing_key(now), grant.user
        expire_time = now + timedelta(seconds=self.access_token_seconds)
        if grant.expire_time is not None:
            expire_time = min(expire_time, grant.expire_time)
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.user_id),
            "sid": str(grant.source_id),
            "roles": sorted(grant.roles),
            "scopes": list(grant.scopes),
            "entitlements": sorted(user.capabilities),
            "quotas": dict(user.quotas),
            "email_verified": user.email_verified,
            "mfa": user.totp_enabled,
            "gen": user.token_generation,
            "iat": int(now.timestamp()),
            "exp": int(expire_time.timestamp()),
        }
        if grant.second_factor_time is not None:
            claims["mfa_time"] = int(grant.second_factor_time.astimezone(UTC).timestamp())
        if grant.account_ids:
            claims["accounts"] = [str(account_id) for account_id in grant.account_ids]
        if grant.networks:
            claims["networks"] = list(grant.networks)
        text = jwt.encode(claims, self._opened[signing.key_id], algorithm=ALGORITHM, headers={"kid": signing.key_id})
        return AccessToken(text, max(0, int((expire_time - now).total_seconds())))


def public_keys(keys: Sequence[StoredKey]) -> dict[str, Ed25519PublicKey]:
    return {key.key_id: Ed25519PublicKey.from_public_bytes(key.public_key) for key in keys}
