"""Which path goes to which service, with which time-outs, retries and need of a token."""

import json
from collections.abc import Iterable
from typing import Any

from google.rpc import code_pb2
from tradeloom.policy.v1 import policy_pb2

from libs.edge import contract
from libs.edge.clusters import ADMIN, REFLECTION, probe
from libs.edge.contract import Method, Rest
from libs.edge.envoy import seconds, typed
from libs.edge.replies import CONNECT_HEADER
from libs.edge.target import Target

JWKS_PATH = "/.well-known/jwks.json"
CORS_MAX_AGE_SECONDS = 7200
RETRY_BASE_SECONDS = 0.025
RETRY_MAX_SECONDS = 0.25
RETRIES = 2
REQUEST_BUFFER_BYTES = 4 * 1024 * 1024
"""What may be kept of a request to send it again, and what a JSON request may hold: gRPC's own limit of a message."""
RESPONSE_BUFFER_BYTES = 16 * 1024 * 1024
"""A whole JSON answer: several times the size of the 4 MiB message it is made from."""

# The service never saw the request, by the rules of TCP and HTTP/2: sending it again sends it once.
NEVER_SEEN = "connect-failure,refused-stream,reset-before-request"
# Reading twice changes nothing, so a read is also sent again when a process says it is unavailable.
READ_AGAIN = f"{NEVER_SEEN},unavailable"

JWT = "envoy.filters.http.jwt_authn"
TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
CORS = "envoy.filters.http.cors"

# Services believe it from us alone, so it is always what we saw, never what we were told.
ADDRESS_SEEN = {
    "header": {"key": "x-envoy-external-address", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}

JSON = {
    "header": {"key": "content-type", "value": "application/json"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}

# Tokens and what is personal are in answers: nobody keeps them, and no browser takes one for a page. The dashboard's files
# say themselves how long they keep.
UNKEPT = [
    {"header": {"key": key, "value": value}, "append_action": "ADD_IF_ABSENT"}
    for key, value in (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))
]

BUFFER = "envoy.filters.http.buffer"

# The transcoder does not count what it keeps of a body, so bodies are counted before it. And whoever has shown no token
# must send his request to its end before he takes any of a service's room: he could leave thousands open.
WHOLE_BODY = {
    BUFFER: typed(
        "extensions.filters.http.buffer.v3.BufferPerRoute",
        buffer={"max_request_bytes": REQUEST_BUFFER_BYTES},
    )
}
NO_TOKEN = {JWT: typed("extensions.filters.http.jwt_authn.v3.PerRouteConfig", disabled=True)}
NO_JSON = {TRANSCODER: typed("extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder", proto_descriptor="")}
METADATA = "tradeloom"
SIGN_IN = {"limit": "sign_in"}
"""What a route says of itself to the rate limit."""


def edge_routes(target: Target) -> list[dict[str, Any]]:
    """Of the one port for everything."""
    methods = [method for method in contract.methods() if method.routed and method.word in target.addresses]
    return [
        unknown_codec(),
        *(grpc_route(target, method) for method in methods),
        nothing({"prefix": "/tradeloom."}),
        *rest_routes(target, methods),
        *meta_routes(target),
        plain({"path": "/health"}, ADMIN, rewrite="/ready"),
        *web_routes(target),
    ]


def alias_routes(target: Target, word: str) -> list[dict[str, Any]]:
    """Of the port that answered this service's REST paths in the earlier system."""
    methods = [method for method in contract.methods() if method.routed and method.word == word]
    return [
        plain({"path": "/health"}, probe(word)),
        *(grpc_route(target, method) for method in methods),
        *rest_routes(target, methods),
        *web_routes(target, everything=word == "web"),
        *([] if word == "web" else [nothing({"prefix": "/"})]),
    ]


def absent_routes(target: Target, word: str) -> list[dict[str, Any]]:
    """Of the port of a service that is not built yet: scripts that ask for its health go on, and learn the truth."""
    why = f"{word} is not part of this installation yet"
    health = {"status": "absent", "service": word, "message": why}
    refusal = {"code": code_pb2.UNIMPLEMENTED, "message": why, "details": []}
    return [
        said({"path": "/health"}, 200, health),
        *web_routes(target, everything=False),
        said({"prefix": "/"}, 404, refusal),
    ]


def said(match: dict[str, Any], status: int, content: dict[str, Any]) -> dict[str, Any]:
    """Answered here, in JSON."""
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": json.dumps(content)}},
        "response_headers_to_add": [JSON],
    }


def jwks_routes(target: Target) -> list[dict[str, Any]]:
    """Where Envoy's own token filter asks for the keys."""
    methods = [method for method in contract.methods() if any(rest.template == JWKS_PATH for rest in method.rests)]
    return [*(grpc_route(target, method) for method in methods), *rest_routes(target, methods)]


def probe_routes() -> list[dict[str, Any]]:
    return [
        plain({"path": "/health"}, ADMIN, rewrite="/ready"),
        plain({"path": "/live"}, ADMIN, rewrite="/ready"),
        plain({"path": "/metrics"}, ADMIN, rewrite="/stats/prometheus"),
    ]


def grpc_route(target: Target, method: Method) -> dict[str, Any]:
    return {"name": method.path, "match": {"path": method.path}, **way(target, method)}


def rest_routes(target: Target, methods: Iterable[Method]) -> list[dict[str, Any]]:
    """REST paths before transcoding, fixed ones first; then a refusal for all else below the same first segments."""
    pairs = sorted(
        ((rest, method) for method in methods for rest in method.rests),
        key=lambda pair: (bool(pair[0].variables), pair[0].precedence, pair[0].verb),
    )
    routes: list[dict[str, Any]] = []
    for rest, method in pairs:
        route = {"name": method.path, "match": rest_match(rest), **way(target, method)}
        if rest.body:
            route["typed_per_filter_config"] = {**route.get("typed_per_filter_config", {}), **WHOLE_BODY}
        routes.append(route)
    for first in sorted({rest.template.split("/")[1] for rest, _ in pairs}):
        routes += [nothing({"path": f"/{first}"}), nothing({"prefix": f"/{first}/"})]
    return routes


def rest_match(rest: Rest) -> dict[str, Any]:
    # A preflight asks with OPTIONS and must find the route of what it asks about.
    verbs = {"safe_regex": {"regex": f"{rest.verb}|OPTIONS"}}
    path = {"path": rest.template} if rest.path_regex is None else {"safe_regex": {"regex": rest.path_regex}}
    return {**path, "headers": [{"name": ":method", "string_match": verbs}]}


def way(target: Target, method: Method) -> dict[str, Any]:
    """How a call of this method travels."""
    route: dict[str, Any] = {"cluster": method.word, "retry_policy": retry_policy(method)}
    if method.server_streaming:
        route["timeout"] = "0s"
        route["idle_timeout"] = seconds(target.stream_idle_seconds)
    else:
        # An upload is worked on in silence when all of it is there, so it may be silent as long as it may last.
        whole = target.import_timeout_seconds if method.client_streaming else target.unary_timeout_seconds
        silent = target.import_timeout_seconds if method.client_streaming else target.request_idle_seconds
        route["timeout"] = seconds(whole)
        route["idle_timeout"] = seconds(silent)
        # A caller's own deadline, where it is shorter, holds here too.
        route["max_stream_duration"] = {**from_beginning(target, whole), "grpc_timeout_header_max": seconds(whole)}
    found: dict[str, Any] = {"route": route}
    if method.policy.limit == policy_pb2.LIMIT_SIGN_IN:
        found["metadata"] = {"filter_metadata": {METADATA: SIGN_IN}}
    if method.public:
        found["typed_per_filter_config"] = NO_TOKEN if method.client_streaming else {**NO_TOKEN, **WHOLE_BODY}
    return found


def from_beginning(target: Target, timeout: float) -> dict[str, Any]:
    """The limit besides a time-out, which counts from the end of the request, and that nobody need ever send."""
    return {"max_stream_duration": seconds(timeout + target.request_idle_seconds)}


def retry_policy(method: Method) -> dict[str, Any]:
    return {
        "retry_on": READ_AGAIN if method.read_only else NEVER_SEEN,
        "num_retries": RETRIES,
        "retry_back_off": {
            "base_interval": seconds(RETRY_BASE_SECONDS),
            "max_interval": seconds(RETRY_MAX_SECONDS),
        },
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def meta_routes(target: Target) -> list[dict[str, Any]]:
    """Reflection and health of gRPC. Any service describes the whole contract, so auth answers for all."""
    # A time-out would count from the end of the request, which nobody need ever send; this one counts from its beginning.
    limit = {"max_stream_duration": seconds(target.reflection_seconds)}
    reflection = {"cluster": REFLECTION, "timeout": "0s", "max_stream_duration": limit}
    unary = target.unary_timeout_seconds
    health = {"cluster": "auth", "timeout": seconds(unary), "max_stream_duration": from_beginning(target, unary)}
    open_to_all = {**NO_TOKEN, **NO_JSON}
    return [
        {"match": {"prefix": "/grpc.reflection."}, "route": reflection, "typed_per_filter_config": open_to_all},
        {
            "match": {"path": "/grpc.health.v1.Health/Check"},
            "route": health,
            "typed_per_filter_config": {**open_to_all, **WHOLE_BODY},
        },
    ]


def web_routes(target: Target, *, everything: bool = True) -> list[dict[str, Any]]:
    """The dashboard's files and the documentation, which need no token."""
    if "web" not in target.addresses:
        return []
    paths = [{"prefix": "/"}] if everything else [{"path": "/docs"}, {"prefix": "/docs/"}]
    return [plain(path, "web") for path in paths]


def plain(match: dict[str, Any], cluster: str, *, rewrite: str | None = None) -> dict[str, Any]:
    """Plain HTTP, without token and transcoding."""
    route: dict[str, Any] = {"cluster": cluster}
    if rewrite is not None:
        route["regex_rewrite"] = {"pattern": {"regex": "^.*$"}, "substitution": rewrite}
    return {"match": match, "route": route, "typed_per_filter_config": {**NO_TOKEN, **NO_JSON}}


def nothing(match: dict[str, Any]) -> dict[str, Any]:
    """Answered here: 404, and UNIMPLEMENTED to gRPC."""
    return {
        "match": match,
        "direct_response": {"status": 404, "body": {"inline_string": "the contract has no such method and path"}},
        "typed_per_filter_config": {**NO_TOKEN, **NO_JSON},
    }


def inner_host(name: str, routes: list[dict[str, Any]]) -> dict[str, Any]:
    """Of listeners that no page and no caller of the API reaches."""
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def unknown_codec() -> dict[str, Any]:
    """Connect's and gRPC's JSON codecs: Python's servers speak protobuf only, JSON callers have the REST paths."""
    codec = {"safe_regex": {"regex": r"application/(connect\+|grpc\+)?json.*"}}
    return {
        "match": {"prefix": "/tradeloom.", "headers": [{"name": "content-type", "string_match": codec}]},
        "direct_response": {"status": 415, "body": {"inline_string": "use the protobuf codec, or the REST paths"}},
        "typed_per_filter_config": {**NO_TOKEN, **NO_JSON},
    }


def cors_policy(target: Target) -> dict[str, Any]:
    return {
        CORS: typed(
            "extensions.filters.http.cors.v3.CorsPolicy",
            allow_origin_string_match=[{"safe_regex": {"regex": regex}} for regex in target.allowed_origin_regexes],
            allow_methods="GET,POST,PUT,PATCH,DELETE,OPTIONS",
            allow_headers=(
                "authorization,content-type,x-grpc-web,x-user-agent,grpc-timeout,"
                "connect-protocol-version,connect-timeout-ms,x-request-id"
            ),
            expose_headers="grpc-status,grpc-message,grpc-status-details-bin,x-request-id",
            max_age=str(CORS_MAX_AGE_SECONDS),
        )
    }


def virtual_host(target: Target, name: str, routes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "virtual_hosts": [
            {
                "name": name,
                "domains": ["*"],
                "routes": routes,
                "typed_per_filter_config": cors_policy(target),
                "request_body_buffer_limit": REQUEST_BUFFER_BYTES,
                "request_headers_to_add": [ADDRESS_SEEN],
                "request_headers_to_remove": [CONNECT_HEADER],
                "response_headers_to_add": UNKEPT,
            }
        ],
    }
