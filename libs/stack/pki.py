"""The stack's own certificate authority: one leaf per word, named `spiffe://tradeloom/svc/<word>`.

An authority that nears its end is followed by another. For a while both are trusted and the earlier one signs, until
every process has heard of the later one; so neither a leaf nor an authority is ever changed under a call.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.mesh.certificates import AUTHORITIES, NEWEST, newest
from libs.stack.processes import write_whole

AUTHORITY_LIFE = timedelta(days=3650)
AUTHORITY_RENEW_BEFORE = timedelta(days=30)
CHANGE_OVER = timedelta(hours=1)
"""How long a new authority is trusted before it signs: longer than anybody goes on with what he read before."""
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid this long before they are made: clocks differ."""

TRUST_DOMAIN = "tradeloom"
DRAFT = "..draft"
"""A link before it is moved to its place; one writer at a time, who holds the data folder."""
KEYS = re.compile("-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def lasts(self, now: datetime) -> timedelta:
        return self.certificate.not_valid_after_utc - now

    def age(self, now: datetime) -> timedelta:
        return now - self.certificate.not_valid_before_utc - CLOCK_SKEW


def spiffe_id(word: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/svc/{word}"


def make_certificates(
    folder: Path, authority_key: Path, words: Iterable[str], now: datetime | None = None
) -> list[str]:
    """Bring `ca.pem`, `<word>.pem` and `<word>.key` in the folder up to date; the words whose leaf was made anew.

    A leaf is kept unless it ends within seven days, names another word, or has another authority or key. All that is
    made anew appears in one moment.
    """
    now = now or datetime.now(UTC)
    authorities = read_authorities(folder, authority_key, now)
    if not authorities or authorities[-1].lasts(now) < AUTHORITY_RENEW_BEFORE:
        authorities.append(new_authority(now))
        write_whole(authority_key, "".join(pem_of_key(authority.key) for authority in authorities))
    signing = signing_authority(authorities, now)
    found = {
        file.name: file.read_text(errors="replace")
        for file in newest(folder).glob("*")
        if (folder / NEWEST).is_symlink()
    }
    wanted = found | {AUTHORITIES: "".join(pem_of(authority.certificate) for authority in authorities)}
    made = []
    for word in words:
        if not leaf_is_good(found, word, signing, now):
            wanted |= new_leaf(word, signing, now)
            made.append(word)
    if wanted != found:
        publish(folder, wanted)
    tidy(folder)
    return made


def read_authorities(folder: Path, authority_key: Path, now: datetime) -> list[Authority]:
    """Those that have not ended and whose key is there, the oldest first."""
    try:
        certificates = x509.load_pem_x509_certificates((folder / AUTHORITIES).read_bytes())
        keys = [
            serialization.load_pem_private_key(pem.encode(), password=None)
            for pem in KEYS.findall(authority_key.read_text())
        ]
    except (OSError, ValueError):
        return []
    found = [
        Authority(certificate, key)
        for certificate in certificates
        for key in keys
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
    ]
    return sorted(
        (authority for authority in found if authority.lasts(now) > timedelta()),
        key=lambda authority: authority.certificate.not_valid_before_utc,
    )


def signing_authority(authorities: Sequence[Authority], now: datetime) -> Authority:
    """The newest that everybody has heard of; the newest of all where those before it end too soon to sign anything."""
    heard_of = [authority for authority in authorities if authority.age(now) >= CHANGE_OVER] or authorities[:1]
    return heard_of[-1] if heard_of[-1].lasts(now) >= RENEW_BEFORE else authorities[-1]


def new_authority(now: datetime) -> Authority:
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
    return Authority(certificate, key)


def leaf_is_good(found: Mapping[str, str], word: str, authority: Authority, now: datetime) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(found[f"{word}.pem"].encode())
        key = serialization.load_pem_private_key(found[f"{word}.key"].encode(), password=None)
        leaf.verify_directly_issued_by(authority.certificate)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (KeyError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and leaf.public_key() == key.public_key()
        and names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(word)]
        and leaf.not_valid_after_utc - now >= RENEW_BEFORE
    )


def new_leaf(word: str, authority: Authority, now: datetime) -> dict[str, str]:
    """The key and the certificate, by name of file."""
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
    return {f"{word}.key": pem_of_key(key), f"{word}.pem": pem_of(certificate)}


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


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def publish(folder: Path, contents: Mapping[str, str]) -> None:
    """Has readers see all of this from one moment on, as the kubelet does it."""
    version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    for name, content in contents.items():
        write_whole(version / name, content, mode=0o600 if name.endswith(".key") else 0o644)
    point(folder / NEWEST, version.name)


def tidy(folder: Path) -> None:
    """Each file has its name in the folder, and what came before it, or was cut short by a crash, is gone."""
    version = newest(folder)
    for file in version.iterdir():
        point(folder / file.name, f"{NEWEST}/{file.name}")
    for other in folder.iterdir():
        if other.name.startswith("..") and other.name != version.name and not other.is_symlink():
            shutil.rmtree(other)


def point(link: Path, target: str) -> None:
    """Makes the link lead there, in one step."""
    if link.is_symlink() and link.readlink() == Path(target):
        return
    draft = link.with_name(DRAFT)
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
