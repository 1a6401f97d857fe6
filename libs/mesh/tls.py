"""Mutual TLS: each service has a certificate of its word, read anew when it is renewed."""

from pathlib import Path
from typing import Any

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from libs.mesh.certificates import Files, files

log = structlog.get_logger(__name__)


def check(found: Files) -> None:
    """Raises ValueError unless the key is the certificate's, and there is an authority."""
    authorities, key, certificate = found
    x509.load_pem_x509_certificates(authorities)
    leaf = x509.load_pem_x509_certificate(certificate)
    if load_pem_private_key(key, password=None).public_key() != leaf.public_key():
        raise ValueError("the key is not that of the certificate")


class Identity:
    """The files of one word as they were last fit for use."""

    def __init__(self, folder: Path, word: str) -> None:
        self._folder, self._word = folder, word
        self._told = ""
        self.files = files(folder, word)
        check(self.files)

    def renewed(self) -> Files | None:
        """The files, if they have changed; None while they have not, or what lies there cannot be used."""
        try:
            found = files(self._folder, self._word)
            if found == self.files:
                return None
            check(found)
        except (OSError, ValueError, TypeError) as error:
            # Anybody who connects makes us look, and need not fill the log.
            if (told := str(error)) != self._told:
                log.warning("a renewed certificate cannot be used; the one before is used on", error=told)
            self._told = told
            return None
        self._told = ""
        self.files = found
        return found


def server_credentials(folder: Path, word: str) -> grpc.ServerCredentials:
    """Only callers with a certificate of the same authorities connect; a renewed certificate needs no restart."""
    identity = Identity(folder, word)

    def renewed() -> Any:
        # None means unchanged, which grpc's stubs do not know.
        found = identity.renewed()
        return found and configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        configuration(identity.files), renewed, require_client_authentication=True
    )


def configuration(used: Files) -> grpc.ServerCertificateConfiguration:
    authorities, key, certificate = used
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authorities)


def channel_credentials(used: Files) -> grpc.ChannelCredentials:
    authorities, key, certificate = used
    return grpc.ssl_channel_credentials(authorities, key, certificate)
