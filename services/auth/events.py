"""What auth tells the other services: the kind and the serialized message of each fact."""

from datetime import datetime
from uuid import UUID

from google.protobuf.message import Message
from tradeloom.auth.v1 import events_pb2

from libs.mesh.wire import timestamp
from services.auth.domain import Session, User


def registered(user: User) -> tuple[str, bytes]:
    return fact_of(events_pb2.UserRegistered(user_id=str(user.user_id), email=user.email, full_name=user.full_name))


def session_opened(session: Session) -> tuple[str, bytes]:
    return fact_of(events_pb2.SessionOpened(session_id=str(session.session_id), address=session.address))


def session_ended(session_id: UUID, cause: str, expire_time: datetime) -> tuple[str, bytes]:
    return fact_of(events_pb2.SessionEnded(session_id=str(session_id), cause=cause, expire_time=timestamp(expire_time)))


def login_failed(
    address: str, failure_count: int, first_failure_time: datetime, last_failure_time: datetime
) -> tuple[str, bytes]:
    return fact_of(
        events_pb2.LoginFailed(
            address=address,
            failure_count=failure_count,
            first_failure_time=timestamp(first_failure_time),
            last_failure_time=timestamp(last_failure_time),
        )
    )


def fact_of(message: Message) -> tuple[str, bytes]:
    return message.DESCRIPTOR.full_name, message.SerializeToString()
