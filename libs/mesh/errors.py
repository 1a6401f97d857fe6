"""Gives each refusal its status code and its rich details."""

import asyncpg
import redis.exceptions
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from libs import errors
from libs.mesh.contract import error_reasons

COMMON_DOMAIN = "tradeloom"
CODES: dict[type[errors.Refusal], StatusCode] = {
    errors.Invalid: StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.Conflict: StatusCode.ABORTED,
    errors.NotAllowed: StatusCode.FAILED_PRECONDITION,
    errors.Exhausted: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
}
# What a driver raises when its server is away, restarting or full; (exception, dependency).
AWAY: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.PostgresConnectionError, "postgres"),
    (asyncpg.InterfaceError, "postgres"),
    (asyncpg.CannotConnectNowError, "postgres"),
    (asyncpg.AdminShutdownError, "postgres"),
    (asyncpg.CrashShutdownError, "postgres"),
    (asyncpg.TooManyConnectionsError, "postgres"),
    (asyncpg.LockNotAvailableError, "postgres"),
    (redis.exceptions.ConnectionError, "redis"),
    (redis.exceptions.TimeoutError, "redis"),
    (ConnectionError, "network"),
    (TimeoutError, "network"),
)


def code_of(refusal: errors.Refusal) -> StatusCode:
    return next(code for kind, code in CODES.items() if isinstance(refusal, kind))


def away(error: BaseException) -> errors.Unavailable | None:
    """The refusal for an error that means "not now"; None for a defect."""
    for kind, dependency in AWAY:
        if isinstance(error, kind):
            return errors.Unavailable(
                f"{dependency} does not answer; retry with the same request_id", dependency=dependency
            )
    return None


def to_status(refusal: errors.Refusal, word: str) -> status_pb2.Status:
    domain = COMMON_DOMAIN if refusal.reason in error_reasons("type") else f"{word}.{COMMON_DOMAIN}"
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=domain, metadata=refusal.metadata)
    details: list[Message] = [info]
    if isinstance(refusal, errors.Invalid):
        details.append(bad_request(refusal))
    if isinstance(refusal, (errors.Exhausted, errors.Unavailable)) and refusal.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(int(refusal.retry_after_seconds * 1e3))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(refusal, errors.Exhausted):
        violation = error_details_pb2.QuotaFailure.Violation(subject=refusal.reason, description=str(refusal))
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return status_pb2.Status(code=code_of(refusal).value[0], message=str(refusal), details=packed)


def bad_request(refusal: errors.Invalid) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    for field, description in refusal.violations.items():
        found.field_violations.add(field=field, description=description, reason=refusal.reason)
    return found
