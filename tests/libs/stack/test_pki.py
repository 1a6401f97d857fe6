import shutil
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from libs.mesh.certificates import newest
from libs.stack import pki
from libs.stack.pki import (
    AUTHORITY_LIFE,
    AUTHORITY_RENEW_BEFORE,
    CHANGE_OVER,
    LEAF_LIFE,
    leaf_is_good,
    make_certificates,
    read_authorities,
)

WORDS = ["orders", "edge", "operator"]


@pytest.fixture
def make(tmp_path):
    return lambda now=None, words=WORDS: make_certificates(tmp_path, tmp_path / "ca.key", words, now)


def leaf(tmp_path, word):
    return x509.load_pem_x509_certificate((tmp_path / f"{word}.pem").read_bytes())


def test_each_word_has_a_certificate_with_its_spiffe_name(tmp_path, make):
    assert make() == WORDS
    names = leaf(tmp_path, "orders").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://tradeloom/svc/orders"]


def test_a_good_certificate_is_kept_and_a_new_word_gets_one(make):
    make()
    assert make() == []
    assert make(words=[*WORDS, "feeds"]) == ["feeds"]


def test_a_certificate_is_made_anew_seven_days_before_its_end(make):
    now = datetime.now(UTC)
    make(now)
    assert make(now + LEAF_LIFE - timedelta(days=8)) == []
    assert make(now + LEAF_LIFE - timedelta(days=6)) == WORDS


def test_with_a_new_authority_every_certificate_is_made_anew(tmp_path, make):
    now = datetime.now(UTC)
    make(now)
    assert make(now + AUTHORITY_LIFE - timedelta(days=6)) == WORDS
    (tmp_path / "ca.key").unlink()
    assert make(now + AUTHORITY_LIFE) == WORDS


def test_a_key_cut_short_by_a_crash_is_made_anew(tmp_path, make):
    make()
    (tmp_path / "orders.key").write_text("-----BEGIN")
    assert make() == ["orders"]


def test_keys_are_read_by_their_owner_only(tmp_path, make):
    make()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*.key")} == {0o600}


def test_two_leaves_of_the_authority_trust_each_other(tmp_path, make):
    make()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    for context, word in ((server, "orders"), (client, "edge")):
        context.load_cert_chain(tmp_path / f"{word}.pem", tmp_path / f"{word}.key")
        context.load_verify_locations(tmp_path / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert "('URI', 'spiffe://tradeloom/svc/edge')" in str(other.getpeercert())


def authorities(tmp_path):
    return x509.load_pem_x509_certificates((tmp_path / "ca.pem").read_bytes())


def test_a_new_authority_is_trusted_before_it_signs_and_the_one_before_until_its_end(tmp_path, make):
    now = datetime.now(UTC)
    make(now)
    (first,) = authorities(tmp_path)
    soon = now + AUTHORITY_LIFE - AUTHORITY_RENEW_BEFORE + timedelta(minutes=1)
    assert make(soon) == WORDS
    _, second = authorities(tmp_path)
    leaf(tmp_path, "orders").verify_directly_issued_by(first)
    assert make(soon + CHANGE_OVER - timedelta(minutes=1)) == []
    assert make(soon + CHANGE_OVER) == WORDS
    leaf(tmp_path, "orders").verify_directly_issued_by(second)
    assert authorities(tmp_path) == [first, second]
    assert make(now + AUTHORITY_LIFE) == []
    assert authorities(tmp_path) == [second]


def test_one_killed_while_it_wrote_leaves_what_was_there(tmp_path, make, monkeypatch):
    """Killed after each of its steps: what is read is whole, and the next run makes what is missing and clears up."""
    make()
    before = (tmp_path / "orders.pem").read_text()
    steps = 0
    while True:
        left = steps

        def killing(work):
            def step(*arguments, **named):
                nonlocal left
                if not left:
                    raise KeyboardInterrupt
                left -= 1
                return work(*arguments, **named)

            return step

        with monkeypatch.context() as patched:
            patched.setattr(pki, "write_whole", killing(pki.write_whole))
            patched.setattr(Path, "replace", killing(Path.replace))
            patched.setattr(shutil, "rmtree", killing(shutil.rmtree))
            with suppress(KeyboardInterrupt):
                make(datetime.now(UTC) + LEAF_LIFE)
        assert leaf_is_good(
            {file.name: file.read_text() for file in newest(tmp_path).iterdir()},
            "orders",
            read_authorities(tmp_path, tmp_path / "ca.key", datetime.now(UTC))[-1],
            datetime.now(UTC),
        )
        if left:
            break
        steps += 1
    assert steps > len(WORDS)
    assert (tmp_path / "orders.pem").read_text() != before
    assert make(datetime.now(UTC) + LEAF_LIFE) == []
    assert [file for file in tmp_path.iterdir() if file.name.startswith("..") and not file.is_symlink()] == [
        newest(tmp_path)
    ]
    assert {file.name for file in tmp_path.glob("[!.]*.pem")} == {"ca.pem", *(f"{word}.pem" for word in WORDS)}
