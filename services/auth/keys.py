"""The keys that sign access tokens, encrypted wherever they rest."""

import base64
import os
from dataclasses import dataclass
from datetime import datetime, timedelta

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.ids import uuid7
from libs.mesh.identity import ALGORITHM, AUDIENCE, ISSUER
from services.auth.domain import Session, User

NONCE_BYTES = 12
SCOPES_OF_A_PERSON = ("account", "read", "trade")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A signing key as it rests; it signs from sign_time on and verifies until verify_until (None: still in use)."""

    key_id: str
    public_key: bytes
    sealed_private_key: bytes
    sign_time: datetime
    verify_until: datetime | None = None


class KeyBox:
    """Seals and opens keys with the key-encryption key, each for its own purpose."""

    def __init__(self, key_encryption_key: str) -> None:
        self._master = base64.b64decode(key_encryption_key)

    def derived(self, purpose: str) -> bytes:
        return HKDF(hashes.SHA256(), 32, salt=None, info=f"tradeloom/auth/{purpose}".encode()).derive(self._master)

    def seal(self, private_key: Ed25519PrivateKey, key_id: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(self.derived("signing-keys")).encrypt(nonce, private_key.private_bytes_raw(), key_id.encode())
        return nonce + sealed

    def open(self, stored: StoredKey) -> Ed25519PrivateKey:
        nonce, sealed = stored.sealed_private_key[:NONCE_BYTES], stored.sealed_private_key[NONCE_BYTES:]
        raw = AESGCM(self.derived("signing-keys")).decrypt(nonce, sealed, stored.key_id.encode())
        return Ed25519PrivateKey.from_private_bytes(raw)

    def new(self, sign_time: datetime) -> StoredKey:
        private_key, key_id = Ed25519PrivateKey.generate(), str(uuid7())
        return StoredKey(
            key_id=key_id,
            public_key=private_key.public_key().public_bytes_raw(),
            sealed_private_key=self.seal(private_key, key_id),
            sign_time=sign_time,
        )


class Signer:
    """Signs access tokens with the newest key whose time has come."""

    def __init__(self, box: KeyBox, access_token_seconds: int) -> None:
        self._box, self.access_token_seconds = box, access_token_seconds
        self._opened: dict[str, Ed25519PrivateKey] = {}
        self.keys: tuple[StoredKey, ...] = ()

    def use(self, keys: tuple[StoredKey, ...]) -> None:
        self.keys = keys
        self._opened = {key.key_id: self._opened.get(key.key_id) or self._box.open(key) for key in keys}

    def _signing_key(self, now: datetime) -> StoredKey:
        """The oldest while this clock is behind all of them, as a replica's may be just after the installation."""
        by_time = sorted(self.keys, key=lambda key: key.sign_time)
        return next((key for key in reversed(by_time) if key.sign_time <= now), by_time[0])

    def public_keys(self) -> dict[str, Ed25519PublicKey]:
        return {key.key_id: Ed25519PublicKey.from_public_bytes(key.public_key) for key in self.keys}

    def sign(self, user: User, session: Session, now: datetime) -> str:
        signing = self._signing_key(now)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.user_id),
            "sid": str(session.session_id),
            "roles": sorted(user.roles),
            "scopes": SCOPES_OF_A_PERSON,
            "entitlements": [],
            "iat": int(now.timestamp()),
            "exp": int((now + timedelta(seconds=self.access_token_seconds)).timestamp()),
        }
        return jwt.encode(claims, self._opened[signing.key_id], algorithm=ALGORITHM, headers={"kid": signing.key_id})
