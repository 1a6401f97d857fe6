"""What an operator may turn: where the keys are, and that production takes none that were made for development."""

import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from libs.development import DEVELOPMENT_MARK
from libs.mesh.sealing import open_keys
from libs.sealing import FileKeys, LocalKeys, VaultTransit
from libs.stack.credentials import new_entry
from services.users.settings import Settings
from tests.mesh import KEY_ENCRYPTION_KEY

STRONG = f"k1:{KEY_ENCRYPTION_KEY}"


def settings(**given: Any) -> Settings:
    return Settings.model_validate({"mesh_port": 0, "probe_port": 0, "tls_folder": "/", **given})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key_encryption_keys": STRONG, "vault_url": "https://vault", "vault_token": "t"},
        {"key_encryption_keys": STRONG, "key_encryption_keys_file": "/keys"},
        {"vault_url": "https://vault"},
        {"key_encryption_keys": "k1:short"},
    ],
    ids=str,
)
def test_it_does_not_start_without_one_place_for_its_keys(given: dict[str, str]):
    with pytest.raises(ValidationError, match="USERS_|k1"):
        settings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"key_encryption_keys": new_entry()},
        {"key_encryption_keys": f"{STRONG},{new_entry()}"},
        {"vault_url": "http://vault:8200", "vault_token": "t"},
        {"vault_url": "https://vault", "vault_token": "changeme"},
    ],
    ids=["made", "made beside another", "not encrypted", "well known"],
)
def test_production_refuses_what_is_for_development(given: dict[str, str]):
    with pytest.raises(ValidationError, match="production|development"):
        settings(environment="production", **given)
    settings(environment="development", **given)


async def test_production_refuses_a_file_with_a_key_for_development(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"{STRONG}\n{new_entry()}\n")
    with pytest.raises(ValueError, match="development"):
        async with open_keys(settings(environment="production", key_encryption_keys_file=file)):
            pass


def test_a_wrong_key_is_not_shown():
    secret = base64.b64encode(b"x" * 31).decode()
    with pytest.raises(ValidationError) as caught:
        settings(key_encryption_keys=f"k1:{secret}")
    assert secret not in str(caught.value)
    assert DEVELOPMENT_MARK not in str(caught.value)


async def test_the_keys_are_where_the_settings_say(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(STRONG)
    for given, kind in [
        ({"key_encryption_keys": STRONG}, LocalKeys),
        ({"key_encryption_keys_file": file}, FileKeys),
        ({"vault_url": "https://vault", "vault_token": "t"}, VaultTransit),
    ]:
        async with open_keys(settings(**given)) as keys:
            assert type(keys) is kind
