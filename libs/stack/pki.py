"""The stack's own certificate authority: one leaf per word, named `spiffe://tradeloom/svc/<word>`."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.stack.processes import write_whole

TRUST_DOMAIN = "tradeloom"
AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid this long before they are made: clocks differ."""


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def spiffe_id(word: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/svc/{word}"


def make_certificates(
    folder: Path, authority_key: Path, words: Iterable[str], now: datetime | None = None
) -> list[str]:
    """Bring `ca.pem`, `<word>.pem` and `<word>.key` in the folder up to date; the words whose leaf was made anew.

    A leaf is kept unless it ends within seven days, names another word, or has another authority or key.
    """
    now = now or datetime.now(UTC)
    authority = read_authority(folder, authority_key)
    if authority is None or authority.certificate.not_valid_after_utc - now < RENEW_BEFORE:
        authority = new_authority(folder, authority_key, now)
    made = []
    for word in words:
        if not leaf_is_good(folder, word, authority, now):
            new_leaf(folder, word, authority, now)
            made.append(word)
    return made


def read_authority(folder: Path, authority_key: Path) -> Authority | None:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key(authority_key.read_bytes(), password=None)
    except (OSError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return Authority(certificate, key)


def new_authority(folder: Path, authority_key: Path, now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = name_of("Tradeloom development CA")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_key(authority_key, key)
    write_certificate(folder / "ca.pem", certificate)
    return Authority(certificate, key)


def leaf_is_good(folder: Path, word: str, authority: Authority, now: datetime) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate((folder / f"{word}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{word}.key").read_bytes(), password=None)
        leaf.verify_directly_issued_by(authority.certificate)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and leaf.public_key() == key.public_key()
        and names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(word)]
        and leaf.not_valid_after_utc - now >= RENEW_BEFORE
    )


def new_leaf(folder: Path, word: str, authority: Authority, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(spiffe_id(word)),
        x509.DNSName(word),
        x509.DNSName("localhost"),
        x509.IPAddress(IPv4Address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name_of(word))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + LEAF_LIFE, authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    write_key(folder / f"{word}.key", key)
    write_certificate(folder / f"{word}.pem", certificate)


def name_of(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tradeloom"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_whole(file, pem.decode())


def write_certificate(file: Path, certificate: x509.Certificate) -> None:
    write_whole(file, certificate.public_bytes(serialization.Encoding.PEM).decode(), mode=0o644)
