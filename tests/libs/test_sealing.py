"""What is sealed opens where it stands and nowhere else, under keys that can be replaced, wherever they are kept."""

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from libs import sealing
from libs.sealing import (
    FileKeys,
    KeyEncryption,
    KeysUnavailable,
    LocalKeys,
    Sealed,
    Sealer,
    Unsealable,
    WrappedKey,
    context_of,
    keys_from,
    open_vault,
)
from libs.stack.credentials import new_entry
from libs.stack.pki import make_certificates

OLD, NEW = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
CONTEXT = context_of("tests", "row 1")
TOKEN = "hvs.a-token-of-the-tests"


def local(*entries: str) -> LocalKeys:
    return LocalKeys(keys_from(",".join(entries), allow_development=False))


@dataclass
class Vault:
    """A Transit engine on loopback that really encrypts, and refuses as Vault does."""

    keys: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    """Versions, the oldest first."""
    status: int = 0
    body: bytes | None = None
    silent: bool = False
    redirect: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def encrypt(self, request: web.Request) -> web.Response:
        body = await request.json()
        nonce, version = os.urandom(12), len(self.keys)
        plaintext, associated = (base64.b64decode(body[name]) for name in ("plaintext", "associated_data"))
        sealed = nonce + AESGCM(self.keys[-1]).encrypt(nonce, plaintext, associated)
        ciphertext = f"vault:v{version}:{base64.b64encode(sealed).decode()}"
        return web.json_response({"data": {"ciphertext": ciphertext, "key_version": version}})

    async def decrypt(self, request: web.Request) -> web.Response:
        body = await request.json()
        _, version, encoded = body["ciphertext"].split(":")
        sealed = base64.b64decode(encoded)
        try:
            key = AESGCM(self.keys[int(version[1:]) - 1])
            plaintext = key.decrypt(sealed[:12], sealed[12:], base64.b64decode(body["associated_data"]))
        except InvalidTag:
            return web.json_response({"errors": ["cipher: message authentication failed"]}, status=400)
        return web.json_response({"data": {"plaintext": base64.b64encode(plaintext).decode()}})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append({"path": request.path, "token": request.headers.get("X-Vault-Token", "")})
        if self.silent:
            await asyncio.Event().wait()
        if self.redirect:
            raise web.HTTPTemporaryRedirect(self.redirect)
        if self.status or self.body is not None:
            return web.Response(status=self.status or 200, body=self.body or b'{"errors": []}')
        if request.headers.get("X-Vault-Token") != TOKEN:
            return web.json_response({"errors": ["permission denied"]}, status=403)
        work = {"/v1/transit/encrypt/tests": self.encrypt, "/v1/transit/decrypt/tests": self.decrypt}
        return await work[request.path](request)


@asynccontextmanager
async def vault_served(context: ssl.SSLContext | None = None) -> AsyncIterator[Vault]:
    vault = Vault()
    app = web.Application()
    app.router.add_post("/{path:.*}", vault.handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        vault.url = f"{'https' if context else 'http'}://localhost:{runner.addresses[0][1]}"
        yield vault
    finally:
        await runner.cleanup()


@pytest.fixture
async def vault() -> AsyncIterator[Vault]:
    async with vault_served() as served:
        yield served


@pytest.fixture(params=["local", "file", "vault"])
async def keys(request: pytest.FixtureRequest, tmp_path: Path, vault: Vault) -> AsyncIterator[KeyEncryption]:
    """Each of those who keep key-encryption keys: what follows holds for all."""
    if request.param == "local":
        yield local(f"new:{NEW}", f"old:{OLD}")
    elif request.param == "file":
        (tmp_path / "keys").write_text(f"new:{NEW}\nold:{OLD}\n")
        yield FileKeys(tmp_path / "keys", allow_development=False)
    else:
        async with open_vault(url=vault.url, token=TOKEN, key_name="tests") as opened:
            yield opened


async def test_what_is_sealed_opens_in_its_own_context_only(keys: KeyEncryption):
    sealer = Sealer(keys)
    sealed = await sealer.seal(b"a secret", CONTEXT)
    assert await sealer.open(sealed, CONTEXT) == b"a secret"
    assert sealed.key.key_id == await keys.newest()
    assert b"a secret" not in sealed.ciphertext + sealed.key.wrapped_key
    for elsewhere in (b"", context_of("tests", "row 2"), context_of("others", "row 1")):
        with pytest.raises(Unsealable):
            await sealer.open(sealed, elsewhere)


async def test_each_secret_has_a_data_key_of_its_own(keys: KeyEncryption):
    sealer = Sealer(keys)
    first, second = await sealer.seal(b"same", CONTEXT), await sealer.seal(b"same", CONTEXT)
    assert first.ciphertext != second.ciphertext
    data_keys = [await keys.unwrap(each.key, CONTEXT) for each in (first, second)]
    assert len({*data_keys}) == 2
    assert {len(key) for key in data_keys} == {32}
    with pytest.raises(Unsealable):
        await sealer.open(Sealed(second.key, first.ciphertext), CONTEXT)


async def test_one_changed_bit_anywhere_is_noticed(keys: KeyEncryption):
    sealer = Sealer(keys)
    sealed = await sealer.seal(b"a secret", CONTEXT)
    for position in range(len(sealed.ciphertext)):
        changed = bytearray(sealed.ciphertext)
        changed[position] ^= 1
        with pytest.raises(Unsealable):
            await sealer.open(replace(sealed, ciphertext=bytes(changed)), CONTEXT)
    with pytest.raises(Unsealable):
        await sealer.open(replace(sealed, ciphertext=sealed.ciphertext[:5]), CONTEXT)


async def test_a_wrapped_key_that_was_changed_is_noticed():
    keys = local(f"new:{NEW}")
    sealed = await Sealer(keys).seal(b"a secret", CONTEXT)
    for position in range(len(sealed.key.wrapped_key)):
        changed = bytearray(sealed.key.wrapped_key)
        changed[position] ^= 1
        with pytest.raises(Unsealable):
            await keys.unwrap(WrappedKey("new", bytes(changed)), CONTEXT)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_no_two_rows_have_the_same_context(first: list[str], second: list[str]):
    assert (context_of("tests", *first) == context_of("tests", *second)) == (first == second)


async def test_a_key_is_replaced_without_touching_what_was_sealed():
    before = Sealer(local(f"old:{OLD}"))
    sealed = await before.seal(b"a secret", CONTEXT)
    between = Sealer(local(f"new:{NEW}", f"old:{OLD}"))
    assert await between.open(sealed, CONTEXT) == b"a secret"
    rewrapped = replace(sealed, key=await between.rewrap(sealed.key, CONTEXT))
    assert (sealed.key.key_id, rewrapped.key.key_id) == ("old", "new")
    after = Sealer(local(f"new:{NEW}"))
    assert await after.open(rewrapped, CONTEXT) == b"a secret"
    with pytest.raises(KeysUnavailable):
        await after.open(sealed, CONTEXT)


async def test_a_version_of_vaults_key_is_replaced_in_the_same_way(vault: Vault):
    async with open_vault(url=vault.url, token=TOKEN, key_name="tests") as keys:
        sealer = Sealer(keys)
        sealed = await sealer.seal(b"a secret", CONTEXT)
        vault.keys.append(os.urandom(32))
        assert (sealed.key.key_id, await keys.newest()) == ("vault/tests/v1", "vault/tests/v2")
        rewrapped = await sealer.rewrap(sealed.key, CONTEXT)
        assert rewrapped.key_id == "vault/tests/v2"
        vault.keys[0] = os.urandom(32)
        assert await sealer.open(replace(sealed, key=rewrapped), CONTEXT) == b"a secret"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "from 1 to"),
        ("nothing", "number 1 is not of the form"),
        (f"a:{NEW} b", "number 2 is not of the form"),
        (f":{NEW}:x", "key  is not"),
        ("short:" + base64.b64encode(b"x" * 31).decode(), "key short is not the base64 of 32 bytes"),
        ("odd:" + NEW[:-2], "key odd is not"),
        (f"twice:{NEW},twice:{OLD}", "two key-encryption keys are called twice"),
        ("mine:" + base64.b64encode(base64.b64decode("devl") + b"x" * 29).decode(), "mine was made for development"),
        (",".join(f"{number}:{NEW}" for number in range(21)), "not 21"),
    ],
    ids=lambda given: given[:12],
)
def test_wrong_keys_are_refused_by_name_and_never_shown(text: str, why: str):
    with pytest.raises(ValueError, match=why) as caught:
        keys_from(text, allow_development=False)
    assert NEW not in str(caught.value)


def test_a_key_for_development_serves_development():
    assert len(keys_from(new_entry(), allow_development=True)) == 1


async def test_a_file_of_keys_is_read_anew_when_it_changes(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"old:{OLD}\n")
    sealer = Sealer(FileKeys(file, allow_development=False))
    sealed = await sealer.seal(b"a secret", CONTEXT)
    draft = tmp_path / "draft"
    draft.write_text(f"new:{NEW}\nold:{OLD}\n")
    draft.replace(file)
    assert await sealer.keys.newest() == "new"
    assert await sealer.open(sealed, CONTEXT) == b"a secret"
    # One that is wrong, or away, changes nothing.
    draft.write_text("nothing that is a key")
    draft.replace(file)
    assert await sealer.open(sealed, CONTEXT) == b"a secret"
    file.unlink()
    assert await sealer.keys.newest() == "new"
    draft.write_text(f"new:{NEW}\n")
    draft.replace(file)
    with pytest.raises(KeysUnavailable, match="old"):
        await sealer.open(sealed, CONTEXT)


def test_a_service_does_not_start_with_a_wrong_file_of_keys(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        FileKeys(tmp_path / "keys", allow_development=True)
    (tmp_path / "keys").write_text(new_entry())
    with pytest.raises(ValueError, match="development"):
        FileKeys(tmp_path / "keys", allow_development=False)


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 503},  # sealed
        {"status": 429},
        {"status": 403},
        {"status": 404},
        {"status": 500},
        {"body": b"<html>"},
        {"body": b"[]"},
        {"body": b'{"data": 1}'},
        {"body": b'{"data": {}}'},
        {"body": b'{"data": {"ciphertext": "?", "plaintext": "?"}}'},
        {"body": b"x" * (sealing.VAULT_RESPONSE_BYTES_MAX + 1)},
        {"redirect": "/elsewhere"},
    ],
    ids=str,
)
async def test_a_vault_in_trouble_is_unavailable_and_whoever_asks_may_come_back(vault: Vault, trouble: dict[str, Any]):
    async with open_vault(url=vault.url, token=TOKEN, key_name="tests") as keys:
        sealer = Sealer(keys)
        sealed = await sealer.seal(b"a secret", CONTEXT)
        for name, value in trouble.items():
            setattr(vault, name, value)
        for doing in (sealer.seal(b"x", CONTEXT), sealer.open(sealed, CONTEXT), keys.newest()):
            with pytest.raises(KeysUnavailable) as caught:
                await doing
            assert caught.value.metadata == {"dependency": "key encryption"}
            assert TOKEN not in str(caught.value)
        assert {each["path"] for each in vault.asked} == {"/v1/transit/encrypt/tests", "/v1/transit/decrypt/tests"}
        vault.status, vault.body, vault.redirect = 0, None, ""
        assert await sealer.open(sealed, CONTEXT) == b"a secret"


async def test_a_vault_that_is_silent_or_away_is_not_waited_for(vault: Vault, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sealing, "VAULT_SECONDS", 0.2)
    vault.silent = True
    async with open_vault(url=vault.url, token=TOKEN, key_name="tests") as keys:
        with pytest.raises(KeysUnavailable, match="Timeout"):
            await keys.newest()
    async with open_vault(url="http://127.0.0.1:1", token=TOKEN, key_name="tests") as keys:
        with pytest.raises(KeysUnavailable):
            await keys.newest()


async def test_vaults_certificate_is_verified(tmp_path: Path):
    make_certificates(tmp_path, tmp_path / "authority.key", ["vault"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "vault.pem", tmp_path / "vault.key")
    async with vault_served(context) as vault:
        async with open_vault(url=vault.url, token=TOKEN, key_name="tests") as keys:
            with pytest.raises(KeysUnavailable, match="Certificate"):
                await keys.newest()
        assert vault.asked == [], "the token went nowhere"
        authority = tmp_path / "ca.pem"
        async with open_vault(url=vault.url, token=TOKEN, key_name="tests", authority=authority) as keys:
            assert await keys.newest() == "vault/tests/v1"
        other = tmp_path / "other"
        other.mkdir()
        make_certificates(other, other / "authority.key", ["vault"])
        async with open_vault(url=vault.url, token=TOKEN, key_name="tests", authority=other / "ca.pem") as keys:
            with pytest.raises(KeysUnavailable, match="Certificate"):
                await keys.newest()


def test_what_is_kept_is_plain_json_and_bytes():
    assert json.loads(CONTEXT) == ["tests", "row 1"]
