"""What users asks the other services, always for a user whom it names."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
from buf.validate import validate_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.policy.v1 import policy_pb2

from libs.errors import Exhausted
from libs.mesh.contract import Method, methods, without_secrets
from libs.mesh.identity import for_user
from services.users import domain, wire
from services.users.domain import Check

PAGES_MAX = 1_000_000
ACCOUNTS = "/tradeloom.orders.v1.PortfolioService/ListAccounts"


class Accounts:
    """What orders knows of accounts."""

    def __init__(self, channel: aio.Channel) -> None:
        self._orders = orders_pb2_grpc.PortfolioServiceStub(channel)

    async def check(self, user_id: UUID, account_id: UUID) -> None:
        """Raises AccountNotFound unless it is the user's."""
        request = orders_pb2.GetPortfolioRequest(account_id=str(account_id))
        try:
            await self._orders.GetPortfolio(request, metadata=for_user(user_id))
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise domain.AccountNotFound("no such account", account_id=account_id) from None
            raise


class Venues:
    """What venues say of keys, through execution."""

    def __init__(self, channel: aio.Channel) -> None:
        self._execution = execution_pb2_grpc.ExecutionServiceStub(channel)

    async def check(self, user_id: UUID, credential_id: UUID, *, venue: str, request_id: str) -> tuple[Check, int]:
        """The venue's answer, and the revision of the credential that it is about. Raises VenueUnavailable, Exhausted."""
        request = execution_pb2.CheckBrokerCredentialRequest(request_id=request_id, credential_id=str(credential_id))
        try:
            answer = await self._execution.CheckBrokerCredential(request, metadata=for_user(user_id))
        except aio.AioRpcError as error:
            reason, retry_seconds = told_by(error)
            if reason == "CREDENTIAL_NOT_FOUND":
                raise domain.no_credential(credential_id) from None
            if reason == "VENUE_UNAVAILABLE":
                raise domain.VenueUnavailable(
                    "the venue does not answer now", retry_after_seconds=retry_seconds, venue=venue
                ) from None
            if reason == "RATE_LIMITED":
                raise Exhausted(
                    "too many credentials are tested at once",
                    retry_after_seconds=retry_seconds,
                    limit="credential check",
                ) from None
            raise
        return wire.check_from_proto(answer), answer.revision


def told_by(error: aio.AioRpcError) -> tuple[str, float]:
    """The reason of another service's refusal, and after how many seconds it asks to come back."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] (an error of aio has what it asks of a call)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        _ = detail.Unpack(info) or detail.Unpack(retry)
    return info.reason, retry.retry_delay.ToTimedelta().total_seconds() or 1.0


def personal_methods() -> list[Method]:
    """Every method of the contract that says what is kept of a person.

    The contract decides: a method that people may call to look, and that lets users call it for them. So what a service
    adds is exported without a change here.
    """
    return [
        method
        for method in methods().values()
        if method.policy.access == policy_pb2.ACCESS_USER
        and "users" in method.policy.services
        and method.reads_only
        and not method.server_streams
    ]


@dataclass(frozen=True, slots=True)
class PersonalData:
    """What the other services keep of a person; channels by word."""

    channels: Mapping[str, aio.Channel]

    async def documents(self, user_id: UUID) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Each answer, by the name of its file. Raises whatever a service answers: nothing is left out."""
        accounts: list[str] = []
        asked = sorted(personal_methods(), key=lambda method: method.path != ACCOUNTS)
        for method in asked:
            by_account = "account_id" in method.descriptor.input_type.fields_by_name
            for account_id in accounts if by_account else [""]:
                page = 0
                async for answer in self._pages(method, user_id, account_id):
                    page += 1
                    if method.path == ACCOUNTS:
                        accounts += [account.account_id for account in answer.accounts]  # type: ignore[attr-defined]
                    name = "-".join(part for part in (method.name, account_id, f"{page:06}") if part)
                    yield f"{method.word}/{name}.json", document(answer)

    async def _pages(self, method: Method, user_id: UUID, account_id: str) -> AsyncIterator[Message]:
        request_type, answer_type = (
            GetMessageClass(kind) for kind in (method.descriptor.input_type, method.descriptor.output_type)
        )
        call = self.channels[method.word].unary_unary(
            method.path, request_serializer=request_type.SerializeToString, response_deserializer=answer_type.FromString
        )
        fields = method.descriptor.input_type.fields_by_name
        request: Any = request_type()
        if account_id:
            request.account_id = account_id
        if "page_size" in fields:
            request.page_size = fields["page_size"].GetOptions().Extensions[validate_pb2.field].int32.lte
        for _ in range(PAGES_MAX):
            answer: Any = await call(request, metadata=for_user(user_id))
            yield answer
            token = answer.next_page_token if "page_token" in fields else ""
            if not token:
                return
            request.page_token = token
        raise RuntimeError(f"{method.path} has more than {PAGES_MAX} pages")


def document(message: Message) -> dict[str, Any]:
    without_secrets(message)
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
