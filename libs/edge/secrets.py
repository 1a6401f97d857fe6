"""Our certificate and the authority that signs the services' ones, taken once or followed as they are renewed."""

from typing import Any

from libs.edge.envoy import typed
from libs.edge.target import Target

IDENTITY = "identity"
AUTHORITY = "authority"


def identity(target: Target) -> dict[str, Any]:
    """What we show."""
    if target.secrets_folder:
        return {"tls_certificate_sds_secret_configs": [followed(target, IDENTITY)]}
    return {"tls_certificates": [certificate(target)]}


def trusted(target: Target, peer: str) -> dict[str, Any]:
    """Whom we speak to: only a service of this very name, by our authority."""
    names = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]}
    if target.secrets_folder:
        return {
            "combined_validation_context": {
                "default_validation_context": names,
                "validation_context_sds_secret_config": followed(target, AUTHORITY),
            }
        }
    return {"validation_context": {**authority(target), **names}}


def certificate(target: Target) -> dict[str, Any]:
    return {
        "certificate_chain": {"filename": f"{target.tls_folder}/edge.pem"},
        "private_key": {"filename": f"{target.tls_folder}/edge.key"},
    }


def authority(target: Target) -> dict[str, Any]:
    return {"trusted_ca": {"filename": f"{target.tls_folder}/ca.pem"}}


def followed(target: Target, name: str) -> dict[str, Any]:
    source = {"path": f"{target.secrets_folder}/{name}.json"}
    return {"name": name, "sds_config": {"path_config_source": source, "resource_api_version": "V3"}}


def files(target: Target) -> dict[str, dict[str, Any]]:
    """What must lie in the secrets folder, by name of file. Kubernetes renews certificates by moving a link."""
    watched = {"watched_directory": {"path": target.tls_folder}}
    secrets = {
        IDENTITY: {"tls_certificate": {**certificate(target), **watched}},
        AUTHORITY: {"validation_context": {**authority(target), **watched}},
    }
    return {
        f"{name}.json": {"resources": [typed("extensions.transport_sockets.tls.v3.Secret", name=name, **secret)]}
        for name, secret in secrets.items()
    }
