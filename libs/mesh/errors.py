"""Gives each refusal its status code and its rich details."""

import math

import asyncpg
import redis.exceptions
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from libs import errors
from libs.mesh.contract import error_reasons

COMMON_DOMAIN = "tradeloom"
# A status travels in trailers, base64, and clients refuse trailers above 8 KiB.
MESSAGE_CHARACTERS_MAX = 512
METADATA_CHARACTERS_MAX = 256
VIOLATIONS_BYTES_MAX = 4096
VIOLATION_CHARACTERS_MAX = 256


class Defect(errors.Refusal):
    """An error nobody foresaw; its text never leaves the process."""

    reason = "INTERNAL"


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
    Defect: StatusCode.INTERNAL,
}
# What a driver raises when its server is away, restarting or full; (exception, dependency). Of asyncpg's InterfaceError
# only libs.store.database can tell whether a connection was lost or a statement is wrong.
AWAY: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.PostgresConnectionError, "postgres"),
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


# How another service says "not now"; any other status of its is a defect of the asker.
AWAY_CODES = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED)


def code_of(refusal: errors.Refusal) -> StatusCode:
    return next(code for kind, code in CODES.items() if isinstance(refusal, kind))


def away(error: BaseException) -> errors.Unavailable | None:
    """The refusal for an error that means "not now"; None for a defect."""
    if isinstance(error, aio.AioRpcError) and error.code() in AWAY_CODES:
        return errors.Unavailable("a service that this one asks does not answer; retry", dependency="mesh")
    for kind, dependency in AWAY:
        if isinstance(error, kind):
            return errors.Unavailable(
                f"{dependency} does not answer; retry with the same request_id", dependency=dependency
            )
    return None


def to_status(refusal: errors.Refusal, word: str) -> status_pb2.Status:
    domain = COMMON_DOMAIN if refusal.reason in error_reasons("type") else f"{word}.{COMMON_DOMAIN}"
    metadata = {name: shortened(value, METADATA_CHARACTERS_MAX) for name, value in refusal.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refusal.reason, domain=domain, metadata=metadata)]
    message = shortened(str(refusal), MESSAGE_CHARACTERS_MAX)
    if isinstance(refusal, errors.Invalid):
        details.append(bad_request(refusal))
    if isinstance(refusal, (errors.Exhausted, errors.Unavailable)) and refusal.retry_after_seconds is not None:
        delay = Duration()
        # Rounded up: who comes back then is not too early.
        delay.FromMilliseconds(math.ceil(refusal.retry_after_seconds * 1e3))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(refusal, errors.Exhausted):
        subject = refusal.metadata.get("quota", refusal.reason)
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return status_pb2.Status(code=code_of(refusal).value[0], message=message, details=packed)


def bad_request(refusal: errors.Invalid) -> error_details_pb2.BadRequest:
    """Every violation; of hundreds as many as fit, and how many more there are."""
    found = error_details_pb2.BadRequest()
    for field, description in refusal.violations.items():
        if found.ByteSize() > VIOLATIONS_BYTES_MAX:
            more = len(refusal.violations) - len(found.field_violations)
            found.field_violations.add(description=f"and {more} more", reason=refusal.reason)
            break
        found.field_violations.add(
            field=shortened(field, VIOLATION_CHARACTERS_MAX),
            description=shortened(description, VIOLATION_CHARACTERS_MAX),
            reason=refusal.reason,
        )
    return found


def shortened(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"
