import base64

import pytest

from libs.development import is_development_secret
from libs.sealing import keys_from
from libs.stack.credentials import SEALING, Credentials, new_entry, new_key, new_password


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


def test_a_key_is_32_bytes_in_base64():
    assert len(base64.b64decode(new_key(), validate=True)) == 32
    assert new_key() != new_key()


@pytest.mark.parametrize("word", SEALING)
def test_a_first_key_is_made_once_and_its_file_is_left_to_whoever_rotates_it(tmp_path, word):
    file = made(tmp_path).keys_file(word)
    first = file.read_text()
    assert len(keys_from(first, allow_development=True)) == 1
    file.write_text(f"{new_entry()}\n{first}")
    assert made(tmp_path).keys_file(word).read_text().endswith(first)
    assert len(keys_from(file.read_text(), allow_development=True)) == 2


def test_what_is_made_here_is_known_to_be_for_development():
    assert is_development_secret(new_key())
    assert is_development_secret(new_password())
