"""Where Envoy sends calls, and when it thinks a receiver is well."""

from typing import Any

from libs.edge import secrets
from libs.edge.envoy import seconds, socket_address, typed
from libs.edge.target import LOOPBACK, Address, Target

CONNECT_SECONDS = 1.0
HEALTH_CHECK_SECONDS = 2.0
UNHEALTHY_CHECK_SECONDS = 0.5
"""A service that comes back is noticed so soon."""
CONNECTION_BUFFER_BYTES = 1024 * 1024
STREAM_WINDOW_BYTES = 256 * 1024
"""Small, so that a slow reader's backlog lies in the service, which conflates it, not here."""
CONNECTION_WINDOW_BYTES = 4 * 1024 * 1024
KEEPALIVE_SECONDS = 30.0
KEEPALIVE_TIMEOUT_SECONDS = 10.0
CONNECTIONS_MAX = 256
PENDING_REQUESTS_MAX = 1024
REQUESTS_MAX = 4096
"""Calls and open streams to one service at once; above it callers get UNAVAILABLE."""
REFLECTIONS_MAX = 64
"""The same for reflection. It needs no token, so it has room of its own and never takes that of people's calls."""
RETRIES_MAX = 64
FAILURES_BEFORE_EJECTION = 5
EJECTION_SECONDS = 5.0
EJECTED_PERCENT_MAX = 50

JWKS = "jwks"
"""Leads back into this Envoy, to its probe port, where the keys are to be had in plain HTTP."""
REFLECTION = "reflection"
"""Leads to auth like the cluster `auth`."""
ADMIN = "admin"
"""Leads to this Envoy's own administration."""


def clusters(target: Target) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for word, address in target.addresses.items():
        found.append(web_cluster(target, address) if word == "web" else grpc_cluster(target, word, word, address))
        found.append(plain_cluster(target, probe(word), address.host, address.probe_port))
    found.append(grpc_cluster(target, REFLECTION, "auth", target.addresses["auth"], requests_max=REFLECTIONS_MAX))
    found.append(own_cluster(JWKS, target.probe_port))
    found.append(own_cluster(ADMIN, target.admin_port))
    return found


def probe(word: str) -> str:
    return f"{word}_probe"


def grpc_cluster(
    target: Target, name: str, word: str, address: Address, *, requests_max: int = REQUESTS_MAX
) -> dict[str, Any]:
    options = {
        "connection_keepalive": {
            "interval": seconds(KEEPALIVE_SECONDS),
            "timeout": seconds(KEEPALIVE_TIMEOUT_SECONDS),
        },
        "initial_stream_window_size": STREAM_WINDOW_BYTES,
        "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
    }
    return {
        **plain_cluster(target, name, address.host, address.mesh_port, requests_max=requests_max),
        "typed_extension_protocol_options": http_options(
            explicit_http_config={"http2_protocol_options": options},
        ),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": mutual_tls(target, word)},
        "health_checks": [{**health_check(), "grpc_health_check": {}}],
    }


def web_cluster(target: Target, address: Address) -> dict[str, Any]:
    """The dashboard's files: plain HTTP, asked for its health where every service answers it."""
    cluster = plain_cluster(target, "web", address.host, address.mesh_port)
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["health_check_config"] = {"port_value": address.probe_port}
    return {**cluster, "health_checks": [{**health_check(), "http_health_check": {"path": "/health"}}]}


def plain_cluster(
    target: Target, name: str, host: str, port: int, *, requests_max: int = REQUESTS_MAX
) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STRICT_DNS" if target.by_name else "STATIC",
        "connect_timeout": seconds(CONNECT_SECONDS),
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": assignment(name, socket_address(host, port)),
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": CONNECTIONS_MAX,
                    "max_pending_requests": PENDING_REQUESTS_MAX,
                    "max_requests": requests_max,
                    "max_retries": RETRIES_MAX,
                }
            ]
        },
        "outlier_detection": {
            # A bug that fails one caller's calls must not take a whole process from the others: only
            # processes that cannot be reached or say themselves that they are unavailable are left out.
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": FAILURES_BEFORE_EJECTION,
            "consecutive_gateway_failure": FAILURES_BEFORE_EJECTION,
            "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": seconds(EJECTION_SECONDS),
            "base_ejection_time": seconds(EJECTION_SECONDS),
            "max_ejection_percent": EJECTED_PERCENT_MAX,
        },
    }


def own_cluster(name: str, port: int) -> dict[str, Any]:
    """A port of this Envoy itself, on loopback."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(CONNECT_SECONDS),
        "load_assignment": assignment(name, socket_address(LOOPBACK, port)),
    }


def assignment(name: str, address: dict[str, Any]) -> dict[str, Any]:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def health_check() -> dict[str, Any]:
    return {
        "timeout": seconds(CONNECT_SECONDS),
        "interval": seconds(HEALTH_CHECK_SECONDS),
        "no_traffic_interval": seconds(HEALTH_CHECK_SECONDS),
        "unhealthy_interval": seconds(UNHEALTHY_CHECK_SECONDS),
        "no_traffic_healthy_interval": seconds(HEALTH_CHECK_SECONDS),
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }


def http_options(**fields: Any) -> dict[str, Any]:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: typed("extensions.upstreams.http.v3.HttpProtocolOptions", **fields)}


def mutual_tls(target: Target, word: str) -> dict[str, Any]:
    """We show the edge's certificate and take only the one of this very service."""
    return typed(
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=word,
        common_tls_context={
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            **secrets.identity(target),
            **secrets.trusted(target, peer=f"spiffe://tradeloom/svc/{word}"),
        },
    )
