import base64

import pytest

from libs.stack.credentials import (
    KEY_ENCRYPTION_KEY,
    Credentials,
    development_secrets,
    new_key,
    new_password,
    refuse_development_secrets,
)
from libs.stack.errors import StackError


def made(folder, *words):
    credentials = Credentials(folder)
    credentials.make(words)
    return credentials


def test_secrets_are_made_once_and_a_new_service_gets_its_own(tmp_path):
    first = made(tmp_path, "orders")
    second = made(tmp_path, "orders", "feeds")
    assert second.postgres("orders_rpc") == first.postgres("orders_rpc")
    assert second.valkey("feeds") != second.valkey("orders")
    assert second.admin_password_file.read_text() == first["auth.admin"] + "\n"


def test_only_their_owner_reads_secrets(tmp_path):
    made(tmp_path, "orders")
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_the_key_encryption_key_is_32_bytes_in_base64(tmp_path):
    key = made(tmp_path)[KEY_ENCRYPTION_KEY]
    assert len(base64.b64decode(key, validate=True)) == 32
    assert new_key() != new_key()


def test_production_refuses_what_was_made_for_development_and_names_it():
    settings = {
        "DATABASE_URL": f"postgresql://orders_rpc:{new_password()}@db/trading",
        "AUTH_KEY_ENCRYPTION_KEY": new_key(),
        "REDIS_URL": "redis://orders:changeme@redis:6379",
        "MIGRATIONS_DATABASE_URL": "postgresql://trading:trading@db/trading",
        "WORKER_DATABASE_URL": "postgresql://orders_worker:8Yt2pQ@db/trading",
        "AUTH_SERVICE_URL": "auth:18011",
        "OTLP_ENDPOINT": "http://collector:4318",
    }
    named = ["AUTH_KEY_ENCRYPTION_KEY", "DATABASE_URL", "MIGRATIONS_DATABASE_URL", "REDIS_URL"]
    assert development_secrets(settings) == named
    with pytest.raises(StackError, match=", ".join(named)):
        refuse_development_secrets("production", settings)
    refuse_development_secrets("development", settings)
