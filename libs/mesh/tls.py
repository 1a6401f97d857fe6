"""Mutual TLS: each service has a certificate of its word, read anew when the file changes."""

from pathlib import Path
from typing import Any

import grpc


def files(folder: Path, word: str) -> tuple[bytes, bytes, bytes]:
    """The authority's certificate, the word's key and its certificate."""
    return (
        (folder / "ca.pem").read_bytes(),
        (folder / f"{word}.key").read_bytes(),
        (folder / f"{word}.pem").read_bytes(),
    )


def server_credentials(folder: Path, word: str) -> grpc.ServerCredentials:
    """Only callers with a certificate of the same authority connect; a renewed certificate needs no restart."""
    used = files(folder, word)

    def renewed() -> Any:
        # None means unchanged, which grpc's stubs do not know.
        nonlocal used
        current = files(folder, word)
        if current == used:
            return None
        used = current
        return configuration(current)

    return grpc.dynamic_ssl_server_credentials(configuration(used), renewed, require_client_authentication=True)


def configuration(current: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    authority, key, certificate = current
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


def channel_credentials(folder: Path, word: str) -> grpc.ChannelCredentials:
    authority, key, certificate = files(folder, word)
    return grpc.ssl_channel_credentials(authority, key, certificate)
