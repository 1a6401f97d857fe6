"""The ports Envoy answers on and what a request passes through on each."""

from typing import Any

from libs.edge import contract, routes
from libs.edge.clusters import JWKS, KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS, STREAM_WINDOW_BYTES
from libs.edge.envoy import seconds, socket_address, typed
from libs.edge.replies import CONNECT_HEADER, local_replies
from libs.edge.target import LOOPBACK, Target
from libs.tokens import AUDIENCE, CLOCK_SKEW_SECONDS, ISSUER

TOKENS_CACHED = 10_000
"""Tokens whose signature need not be checked again, in each worker."""
JWKS_FETCH_SECONDS = 2.0
JWKS_EARLY_SECONDS = 5.0
"""So long before it forgets the keys Envoy asks for them again."""
JWKS_RETRY_SECONDS = 0.5
"""How soon keys that could not be fetched are asked for again."""
JWKS_RETRIES = 3
ADDRESSES_MAX = 10_000
"""Callers' addresses counted at once; the least recently seen is forgotten."""

CONNECTION_BUFFER_BYTES = 1024 * 1024
CONNECTION_WINDOW_BYTES = 4 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 256
HEADERS_KIB_MAX = 32
HEADERS_COUNT_MAX = 100
HEADERS_SECONDS = 10.0
DRAIN_SECONDS = 5.0
"""How long a caller who was asked to go may begin further calls: by then he has heard it."""

# What only we, or the services among themselves, may say; a trace too, or outsiders would decide what is collected.
OWN_HEADERS = ("x-tradeloom-", "x-envoy-", "traceparent", "tracestate")
# Whoever has one address of the sixth version has all of its network's.
ADDRESS = {"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}


def listeners(target: Target) -> list[dict[str, Any]]:
    return [
        listener(target, "edge", target.listen_host, target.listen_port, routes.edge_routes(target)),
        *(alias(target, word, port) for word, ports in target.alias_ports.items() for port in ports),
        probes(target),
    ]


def listener(target: Target, name: str, host: str, port: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    hosts = routes.virtual_host(target, name, found)
    manager = connection_manager(target, name, hosts, api_filters(target))
    return {**bare_listener(name, manager), "address": socket_address(host, port)}


def alias(target: Target, word: str, port: int) -> dict[str, Any]:
    name = f"alias_{word}_{port}"
    if word in target.addresses:
        return listener(target, name, LOOPBACK, port, routes.alias_routes(target, word))
    hosts = routes.inner_host(name, routes.absent_routes(target, word))
    manager = connection_manager(target, name, hosts, [rate_limit(target), router()], replies=False)
    return {**bare_listener(name, manager), "address": socket_address(LOOPBACK, port)}


def probes(target: Target) -> dict[str, Any]:
    """Health and metrics; and the public keys, which Envoy's token filter fetches in plain HTTP from here itself."""
    hosts = routes.inner_host("probes", [*routes.probe_routes(), *routes.jwks_routes(target)])
    manager = connection_manager(target, "probes", hosts, [transcoder(target), router()], logged=False)
    return {
        **bare_listener("probes", manager),
        "address": socket_address(target.probe_host, target.probe_port),
        # Health and metrics must be had when callers have taken all connections.
        "ignore_global_conn_limit": True,
    }


def bare_listener(name: str, manager: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def connection_manager(
    target: Target,
    name: str,
    hosts: dict[str, Any],
    filters: list[dict[str, Any]],
    *,
    logged: bool = True,
    replies: bool = True,
) -> dict[str, Any]:
    return typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="AUTO",  # HTTP/1.1 for REST and browsers, HTTP/2 without TLS for gRPC, on one port
        use_remote_address=True,
        xff_num_trusted_hops=target.trusted_proxies,
        # Nobody is trusted for his address: x-envoy-retry-on and its like are obeyed from no caller.
        internal_address_config={"unix_sockets": False},
        normalize_path=True,
        merge_slashes=True,
        # A symbol such as BTC/USDT comes as BTC%2FUSDT in one segment of a REST path.
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        max_request_headers_kb=HEADERS_KIB_MAX,
        request_headers_timeout=seconds(HEADERS_SECONDS),
        stream_idle_timeout=seconds(target.request_idle_seconds),
        drain_timeout=seconds(DRAIN_SECONDS),
        common_http_protocol_options={
            "idle_timeout": seconds(target.connection_idle_seconds),
            "max_headers_count": HEADERS_COUNT_MAX,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        http2_protocol_options={
            "max_concurrent_streams": STREAMS_PER_CONNECTION_MAX,
            "initial_stream_window_size": STREAM_WINDOW_BYTES,
            "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
            "connection_keepalive": {
                "interval": seconds(KEEPALIVE_SECONDS),
                "timeout": seconds(KEEPALIVE_TIMEOUT_SECONDS),
            },
        },
        early_header_mutation_extensions=[
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": typed(
                    "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[
                        *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in OWN_HEADERS),
                        {"append": {"header": {"key": CONNECT_HEADER, "value": "%REQ(CONNECT-PROTOCOL-VERSION)%"}}},
                    ],
                ),
            }
        ],
        local_reply_config=local_replies() if replies else {},
        access_log=[access_log()] if logged else [],
        http_filters=filters,
        route_config=hosts,
    )


def access_log() -> dict[str, Any]:
    """One line of JSON for each request: neither its token nor its query, which may hold what is private."""
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "milliseconds": "%DURATION%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "host": "%UPSTREAM_HOST%",
        "address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    log = typed("extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": fields})
    return {"name": "envoy.access_loggers.stdout", "typed_config": log}


def api_filters(target: Target) -> list[dict[str, Any]]:
    """In this order refusals made here become right answers of each of the four protocols."""
    return [
        http_filter("cors", "cors.v3.Cors"),
        http_filter("grpc_web", "grpc_web.v3.GrpcWeb"),
        http_filter("connect_grpc_bridge", "connect_grpc_bridge.v3.FilterConfig"),
        token_filter(target),
        rate_limit(target),
        whole_body(),
        transcoder(target),
        router(),
    ]


def http_filter(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed(f"extensions.filters.http.{kind}", **fields)}


def router() -> dict[str, Any]:
    return http_filter("router", "router.v3.Router")


def token_filter(target: Target) -> dict[str, Any]:
    """Every request needs a token unless its route says otherwise: what is forgotten stays closed."""
    return http_filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        bypass_cors_preflight=True,
        providers={
            "auth": keys(target.jwks_refresh_seconds),
            # Envoy forgets keys that it cannot fetch again in time; these it forgets much later.
            "auth_before": keys(target.jwks_kept_seconds),
        },
        rules=[
            {
                "match": {"prefix": "/"},
                "requires": {
                    "requires_any": {"requirements": [{"provider_name": "auth"}, {"provider_name": "auth_before"}]}
                },
            }
        ],
    )


def keys(refresh_seconds: float) -> dict[str, Any]:
    """What verifies a token: auth's keys, asked for again and again."""
    return {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "require_expiration": True,
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
        # Services verify once more: a way around the edge gains nothing.
        "forward": True,
        # Only here: by default a query parameter would be taken too, and would be logged by others.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "jwt_cache_config": {"jwt_cache_size": TOKENS_CACHED},
        "remote_jwks": {
            "http_uri": {
                "uri": f"http://auth.tradeloom{routes.JWKS_PATH}",
                "cluster": JWKS,
                "timeout": seconds(JWKS_FETCH_SECONDS),
            },
            "cache_duration": seconds(refresh_seconds + JWKS_EARLY_SECONDS),
            # The port opens before auth does, and whoever comes early makes us ask at once.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": seconds(JWKS_RETRY_SECONDS)},
            "retry_policy": {"num_retries": JWKS_RETRIES},
        },
    }


def rate_limit(target: Target) -> dict[str, Any]:
    """One bucket for all, and one for each address on routes where people sign in."""
    everybody = {
        "max_tokens": target.requests_per_second,
        "tokens_per_fill": target.requests_per_second,
        "fill_interval": "1s",
    }
    one_address = {
        "max_tokens": target.sign_in_burst,
        "tokens_per_fill": target.sign_in_per_second,
        "fill_interval": "1s",
    }
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return http_filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        stat_prefix="edge",
        token_bucket=everybody,
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
        max_dynamic_descriptors=ADDRESSES_MAX,
        # Routes that do not say they are for signing in make no such pair, so only the one bucket counts them.
        rate_limits=[
            {
                "actions": [
                    {
                        "metadata": {
                            "descriptor_key": "limit",
                            "metadata_key": {"key": routes.METADATA, "path": [{"key": "limit"}]},
                            "source": "ROUTE_ENTRY",
                        }
                    },
                    ADDRESS,
                ]
            }
        ],
        descriptors=[
            {
                "entries": [{"key": "limit", "value": routes.SIGN_IN["limit"]}, *({"key": key} for key in ADDRESS)],
                "token_bucket": one_address,
            }
        ],
    )


def whole_body() -> dict[str, Any]:
    """Only on routes that ask for it: REST's with a body."""
    found = http_filter("buffer", "buffer.v3.Buffer", max_request_bytes=routes.REQUEST_BUFFER_BYTES)
    return {**found, "disabled": True}


def transcoder(target: Target) -> dict[str, Any]:
    found = [service.full_name for service in contract.services() if any_rest(service.full_name)]
    return http_filter(
        "grpc_json_transcoder",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=target.descriptors_file,
        services=found,
        convert_grpc_status=True,
        # `%3A` and `%2F` in an instrument's id are read as what they stand for.
        url_unescape_spec="ALL_CHARACTERS",
        query_param_unescape_plus=True,
        max_request_body_size=routes.REQUEST_BUFFER_BYTES,
        max_response_body_size=routes.RESPONSE_BUFFER_BYTES,
        print_options={
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
            "always_print_enums_as_ints": False,
            "stream_newline_delimited": True,
        },
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
    )


def any_rest(service: str) -> bool:
    return any(method.rests for method in contract.methods() if method.service == service)
