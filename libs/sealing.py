"""Envelope encryption: what is secret at rest is sealed under a key of its own, and only that key under a shared one.

Each secret gets a fresh data key, AES-256-GCM, and is bound by its associated data to the row it stands in: moved to
another one it opens no more. The data key is stored beside it, wrapped by a key-encryption key that the database never
sees. So a key-encryption key is replaced by wrapping the data keys anew; no secret is touched, and none is opened.
"""

import base64
import binascii
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs.development import is_development_secret
from libs.errors import Unavailable

log = structlog.get_logger(__name__)

KEY_BYTES = 32
NONCE_BYTES = 12
KEYS_MAX = 20
KEY_ID_CHARACTERS_MAX = 64
VAULT_SECONDS = 3.0
VAULT_RESPONSE_BYTES_MAX = 64 * 1024


class KeysUnavailable(Unavailable):
    """Who keeps the key-encryption key does not answer, or does not have it yet."""

    def __init__(self, message: str) -> None:
        super().__init__(message, dependency="key encryption")


class Unsealable(Exception):
    """It was changed, belongs to another row, or was wrapped by another key: nobody will ever open it."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it rests, and the id of the key that wrapped it."""

    key_id: str
    wrapped_key: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as it rests."""

    key: WrappedKey
    ciphertext: bytes


class KeyEncryption(Protocol):
    """Who keeps key-encryption keys, such as a KMS. Each method raises KeysUnavailable where that does not answer."""

    async def newest(self) -> str:
        """The id of the key that wraps now."""
        ...

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey: ...

    async def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Raises Unsealable unless it was wrapped in this context."""
        ...


def context_of(purpose: str, *parts: object) -> bytes:
    """What a secret is bound to: what it is for, and the row it stands in."""
    return json.dumps([purpose, *map(str, parts)]).encode()


@dataclass(frozen=True, slots=True)
class Sealer:
    keys: KeyEncryption

    async def seal(self, secret: bytes, context: bytes) -> Sealed:
        data_key = AESGCM.generate_key(KEY_BYTES * 8)
        return Sealed(await self.keys.wrap(data_key, context), encrypted(data_key, secret, context))

    async def open(self, sealed: Sealed, context: bytes) -> bytes:
        return decrypted(await self.keys.unwrap(sealed.key, context), sealed.ciphertext, context)

    async def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """The same data key under the newest key-encryption key; what it sealed stays as it is."""
        return await self.keys.wrap(await self.keys.unwrap(wrapped, context), context)


def encrypted(key: bytes, secret: bytes, context: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, context)


def decrypted(key: bytes, ciphertext: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise Unsealable("it was changed, or belongs elsewhere") from None


def keys_from(text: str, *, allow_development: bool) -> dict[str, bytes]:
    """Keys by id, newest first, out of entries `id:base64`, separated by commas or one a line.

    Raises ValueError, which names an entry by its id and never shows a key.
    """
    found: dict[str, bytes] = {}
    for number, entry in enumerate(text.replace(",", "\n").split(), 1):
        key_id, _, encoded = entry.partition(":")
        if not encoded or not key_id.isascii() or not key_id.isprintable() or len(key_id) > KEY_ID_CHARACTERS_MAX:
            raise ValueError(f"key-encryption key number {number} is not of the form id:base64")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(f"key-encryption key {key_id} is not the base64 of {KEY_BYTES} bytes")
        if key_id in found:
            raise ValueError(f"two key-encryption keys are called {key_id}")
        if not allow_development and is_development_secret(encoded):
            raise ValueError(f"key-encryption key {key_id} was made for development")
        found[key_id] = key
    if not 0 < len(found) <= KEYS_MAX:
        raise ValueError(f"there must be from 1 to {KEYS_MAX} key-encryption keys, not {len(found)}")
    return found


class LocalKeys:
    """Key-encryption keys in this process's memory, newest first."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys

    def current(self) -> dict[str, bytes]:
        return self._keys

    async def newest(self) -> str:
        return next(iter(self.current()))

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        key_id, key = next(iter(self.current().items()))
        return WrappedKey(key_id, encrypted(key, data_key, context))

    async def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        key = self.current().get(wrapped.key_id)
        if key is None:
            # Another replica may have been given it a moment earlier.
            raise KeysUnavailable(f"the key-encryption key {wrapped.key_id} is not known here")
        return decrypted(key, wrapped.wrapped_key, context)


class FileKeys(LocalKeys):
    """The same out of a file, which is read anew when it changes; one that is wrong then changes nothing."""

    def __init__(self, path: Path, *, allow_development: bool) -> None:
        self._path, self._allow_development = path, allow_development
        self._seen = self._look()
        super().__init__(self._read())

    def current(self) -> dict[str, bytes]:
        try:
            if (seen := self._look()) != self._seen:
                self._keys = self._read()
                self._seen = seen
                log.info("key-encryption keys were read anew", key_ids=list(self._keys))
        except (OSError, ValueError) as error:
            log.error("the file of key-encryption keys cannot be read; the earlier ones stay", error=str(error))  # noqa: TRY400 (its trace says no more)
        return self._keys

    def _look(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, bytes]:
        return keys_from(self._path.read_text(), allow_development=self._allow_development)


class VaultTransit:
    """HashiCorp Vault's Transit engine, or OpenBao's: the key-encryption key never leaves it.

    A version of its key counts as a key: `vault write -f transit/keys/<name>/rotate` makes a newer one.
    """

    def __init__(self, session: aiohttp.ClientSession, *, url: str, token: str, key_name: str, mount: str) -> None:
        self._session, self._token = session, token
        self._url, self._key_name = f"{url.rstrip('/')}/v1/{mount}", key_name

    async def newest(self) -> str:
        # Needs no right but to encrypt, and tells whether Vault works.
        return (await self.wrap(bytes(KEY_BYTES), context_of("newest"))).key_id

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        answer = await self._ask("encrypt", {"plaintext": encode(data_key), "associated_data": encode(context)})
        ciphertext = str(answer.get("ciphertext", ""))
        if not ciphertext.startswith("vault:v"):
            raise KeysUnavailable("Vault's answer has no ciphertext")
        return WrappedKey(self._key_id(ciphertext), ciphertext.encode())

    async def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        request = {"ciphertext": wrapped.wrapped_key.decode(), "associated_data": encode(context)}
        answer = await self._ask("decrypt", request)
        try:
            return base64.b64decode(str(answer["plaintext"]), validate=True)
        except (KeyError, binascii.Error):
            raise KeysUnavailable("Vault's answer has no plaintext") from None

    def _key_id(self, ciphertext: str) -> str:
        return f"vault/{self._key_name}/{ciphertext.split(':')[1]}"

    async def _ask(self, verb: str, request: dict[str, str]) -> dict[str, Any]:
        try:
            # Never to where a redirect points: the token travels along.
            async with self._session.post(
                f"{self._url}/{verb}/{self._key_name}",
                json=request,
                headers={"X-Vault-Token": self._token, "X-Vault-Request": "true"},
                allow_redirects=False,
            ) as response:
                status, body = response.status, bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > VAULT_RESPONSE_BYTES_MAX:
                        raise KeysUnavailable("Vault's answer is too long")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KeysUnavailable(f"Vault does not answer: {type(error).__name__}") from error
        if status == 400 and verb == "decrypt":
            raise Unsealable("Vault cannot open it: it was changed, or belongs elsewhere")
        if status != 200:
            # 400 to encrypt, 403, 404: an operator must look; until then it is as if Vault were away.
            log.error("Vault refuses", verb=verb, status=status)
            raise KeysUnavailable(f"Vault answers {status}")
        try:
            return dict(json.loads(body)["data"])
        except (ValueError, KeyError, TypeError):
            raise KeysUnavailable("Vault's answer is no JSON of its form") from None


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def open_vault(
    *, url: str, token: str, key_name: str, mount: str = "transit", authority: Path | None = None
) -> AsyncIterator[VaultTransit]:
    """Vault at url; authority signs its certificate, where that is not a public one."""
    context = ssl.create_default_context(cafile=authority)
    connector = aiohttp.TCPConnector(ssl=context)
    timeout = aiohttp.ClientTimeout(total=VAULT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield VaultTransit(session, url=url, token=token, key_name=key_name, mount=mount)
