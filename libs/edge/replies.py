"""What Envoy itself answers when it refuses: the same shape and reasons as any service's refusal."""

import base64
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from tradeloom.type.v1 import error_reason_pb2

DOMAIN = "edge.tradeloom"
RETRY_SECONDS = 1
REASON_PREFIX = "ERROR_REASON_"
CONNECT_HEADER = "x-tradeloom-connect"
"""Remembers that a request came as Connect: the filter that turns it into gRPC leaves no other sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One kind of refusal."""

    status: int
    """What Envoy meant to answer."""
    code: int
    answered: int
    """The HTTP status that REST callers get."""
    message: str = ""
    """Envoy's own words if empty."""
    reason: "error_reason_pb2.ErrorReason.ValueType" = error_reason_pb2.ERROR_REASON_UNSPECIFIED
    metadata: dict[str, str] = field(default_factory=dict)
    retry: bool = False
    flags: tuple[str, ...] = ()
    """Only with one of these of Envoy's response flags."""


TOKEN = {
    "code": code_pb2.UNAUTHENTICATED,
    "answered": 401,
    "message": "the access token is missing, malformed, expired or not ours",
    "reason": error_reason_pb2.ERROR_REASON_TOKEN_INVALID,
}
REASONED = (
    Reply(status=401, **TOKEN),
    Reply(status=403, **TOKEN),  # a token for another audience
    Reply(
        status=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        answered=429,
        message="too many calls",
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMITED,
        metadata={"limit": "edge"},
        retry=True,
    ),
    Reply(
        status=503,
        code=code_pb2.UNAVAILABLE,
        answered=503,
        message="the service cannot be reached; nothing was changed",
        reason=error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "service"},
        retry=True,
        # No healthy process, no connection, or too many calls waiting: the request was never sent. After a
        # reset it may have been, so that gets no reason that would promise otherwise.
        flags=("UH", "UF", "UO"),
    ),
)
PLAIN = (
    Reply(status=400, code=code_pb2.INVALID_ARGUMENT, answered=400),
    Reply(status=404, code=code_pb2.UNIMPLEMENTED, answered=404),
    Reply(status=408, code=code_pb2.DEADLINE_EXCEEDED, answered=408),
    Reply(status=413, code=code_pb2.RESOURCE_EXHAUSTED, answered=413),
    Reply(status=415, code=code_pb2.INVALID_ARGUMENT, answered=415),
    Reply(status=503, code=code_pb2.UNAVAILABLE, answered=503),
    Reply(status=504, code=code_pb2.DEADLINE_EXCEEDED, answered=504),
)


def local_replies() -> dict[str, Any]:
    """The first that fits is taken."""
    return {
        "mappers": [
            *(for_connect(reply) for reply in (*REASONED, *PLAIN)),
            *(for_grpc(reply) for reply in REASONED),
            *(for_rest(reply) for reply in (*REASONED, *PLAIN)),
        ]
    }


def for_connect(reply: Reply) -> dict[str, Any]:
    """The error of Connect's unary calls; its streams go by the HTTP status."""
    values = [packed(one) for one in details(reply)]
    body = {
        "code": code_pb2.Code.Name(reply.code).lower(),
        "message": "%LOCAL_REPLY_BODY%",
        "details": [
            {"type": one.TypeName(), "value": base64.b64encode(one.value).decode().rstrip("=")} for one in values
        ],
    }
    connect = header(CONNECT_HEADER, {"present_match": True}, inverted=False)
    return {**shaped(reply, body), "filter": condition(reply, connect)}


def for_grpc(reply: Reply) -> dict[str, Any]:
    """Also for gRPC-Web, which its filter has turned into gRPC by then."""
    status = status_pb2.Status(code=reply.code, message=reply.message, details=[packed(one) for one in details(reply)])
    details_bin = {"key": "grpc-status-details-bin", "value": base64.b64encode(status.SerializeToString()).decode()}
    grpc = header("content-type", {"string_match": {"prefix": "application/grpc"}}, inverted=False)
    transcoded = header("x-envoy-original-path", {"present_match": True}, inverted=True)
    return {
        "filter": condition(reply, grpc, transcoded),
        "status_code": reply.answered,
        "body": {"inline_string": reply.message},
        "headers_to_add": [{"header": details_bin}],
    }


def for_rest(reply: Reply) -> dict[str, Any]:
    """A google.rpc.Status as JSON, as the transcoder makes it of a service's refusal."""
    body = {
        "code": reply.code,
        "message": "%LOCAL_REPLY_BODY%",
        "details": [dict(MessageToDict(packed(one), preserving_proto_field_name=True)) for one in details(reply)],
    }
    # Behind the transcoder a REST request looks like gRPC, but remembers its path.
    grpc = header("content-type", {"string_match": {"prefix": "application/grpc"}}, inverted=True)
    transcoded = header("x-envoy-original-path", {"present_match": True}, inverted=False)
    rest = {"or_filter": {"filters": [grpc, transcoded]}}
    return {**shaped(reply, body), "filter": condition(reply, rest)}


def shaped(reply: Reply, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "status_code": reply.answered,
        **({"body": {"inline_string": reply.message}} if reply.message else {}),
        "body_format_override": {"json_format": body},
    }


def details(reply: Reply) -> list[Message]:
    found: list[Message] = []
    if reply.reason:
        reason = error_reason_pb2.ErrorReason.Name(reply.reason).removeprefix(REASON_PREFIX)
        found.append(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=reply.metadata))
    if reply.retry:
        found.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_SECONDS)))
    return found


def packed(message: Message) -> any_pb2.Any:
    found = any_pb2.Any()
    found.Pack(message)
    return found


def condition(reply: Reply, *spoken: dict[str, Any]) -> dict[str, Any]:
    status = {"op": "EQ", "value": {"default_value": reply.status, "runtime_key": f"edge.reply_{reply.status}"}}
    filters = [{"status_code_filter": {"comparison": status}}, *spoken]
    if reply.flags:
        filters.append({"response_flag_filter": {"flags": list(reply.flags)}})
    return {"and_filter": {"filters": filters}}


def header(name: str, match: dict[str, Any], *, inverted: bool) -> dict[str, Any]:
    missing = {} if "present_match" in match else {"treat_missing_header_as_empty": True}
    return {"header_filter": {"header": {"name": name, **match, **missing, "invert_match": inverted}}}
