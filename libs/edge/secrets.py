"""The edge's own certificate and the authorities that sign the services' ones, followed as they are renewed."""

from typing import Any

from libs.edge.envoy import typed
from libs.edge.target import Target

IDENTITY = "identity"
AUTHORITY = "authority"


def identity(target: Target) -> dict[str, Any]:
    """What we show."""
    return {"tls_certificate_sds_secret_configs": [followed(target, IDENTITY)]}


def trusted(target: Target, peer: str) -> dict[str, Any]:
    """Whom we speak to: only a service of this very name, by our authority."""
    return {
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]
            },
            "validation_context_sds_secret_config": followed(target, AUTHORITY),
        }
    }


def followed(target: Target, name: str) -> dict[str, Any]:
    source = {"path": f"{target.secrets_folder}/{name}.json"}
    return {"name": name, "sds_config": {"path_config_source": source, "resource_api_version": "V3"}}


def files(target: Target) -> dict[str, dict[str, Any]]:
    """What must lie in the secrets folder, by name of file. Certificates are renewed by moving a link."""
    watched = {"watched_directory": {"path": target.tls_folder}}
    certificate = {
        "certificate_chain": {"filename": f"{target.tls_folder}/edge.pem"},
        "private_key": {"filename": f"{target.tls_folder}/edge.key"},
        **watched,
    }
    authority = {"trusted_ca": {"filename": f"{target.tls_folder}/ca.pem"}, **watched}
    secrets = {IDENTITY: {"tls_certificate": certificate}, AUTHORITY: {"validation_context": authority}}
    return {
        f"{name}.json": {"resources": [typed("extensions.transport_sockets.tls.v3.Secret", name=name, **secret)]}
        for name, secret in secrets.items()
    }
