"""The values every service translates: decimals, which are text on the wire, and times."""

from datetime import UTC, datetime
from decimal import Decimal

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.type.v1 import decimal_pb2

from libs.errors import Invalid
from libs.money import plain

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_SECONDS = 86_400
LENGTH_DELIMITED = 2  # protobuf's wire type of messages


def decimal_to_proto(value: Decimal | None) -> decimal_pb2.Decimal | None:
    """None stays unset."""
    return None if value is None else decimal_pb2.Decimal(value=plain(value))


def decimal_from_proto(message: decimal_pb2.Decimal) -> Decimal:
    """The contract's rules have checked the text."""
    return Decimal(message.value)


def timestamp(time: datetime | None) -> Timestamp | None:
    """None stays unset. The time must be aware; it has microseconds."""
    if time is None:
        return None
    # FromDatetime goes by the calendar, and takes six times as long.
    since = time - EPOCH
    return Timestamp(seconds=since.days * DAY_SECONDS + since.seconds, nanos=since.microseconds * 1_000)


def time_from_proto(message: Timestamp) -> datetime:
    return message.ToDatetime(UTC)


def time_asked(request: Message, field: str) -> datetime | None:
    """The time in a field of a request, None where it is unset. Raises Invalid for what no calendar has."""
    if not request.HasField(field):
        return None
    try:
        return time_from_proto(getattr(request, field))
    except ValueError:
        raise Invalid({field: "must be between the years 1 and 9999"}) from None


def embedded(field_number: int, message: bytes) -> bytes:
    """A message's field that holds a message, as it stands in its bytes: what was serialized once goes into several."""
    return varint(field_number << 3 | LENGTH_DELIMITED) + varint(len(message)) + message


def varint(value: int) -> bytes:
    """Protobuf's form of a whole number that is not negative."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
