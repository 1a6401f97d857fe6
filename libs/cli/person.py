"""What commands share that are a person's own: whoever asks, which account, and what a refusal says."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from getpass import getpass
from typing import Annotated, Any
from uuid import UUID

import grpc
import typer
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.cli.client import CALL_SECONDS, Metadata, edge_channel, sign_in, sign_in_admin
from libs.ids import uuid7
from libs.stack.errors import StackError
from libs.stack.state import Snapshot
from libs.store.background import Backoff

API_KEY_VARIABLE = "TRADELOOM_API_KEY"
ACCOUNTS_MAX = 200
ATTEMPTS_MAX = 3
"""So often a call whose answer was lost is sent, each time as the same request."""
LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

Email = Annotated[
    str,
    typer.Option(
        "--email",
        envvar="TRADELOOM_EMAIL",
        help=f"Who asks; the password is asked for. Without it the API key in {API_KEY_VARIABLE}, or else the stack's admin.",
    ),
]
AccountArgument = Annotated[str, typer.Argument(help="Which account, by its name or its id.")]
RequestId = Annotated[
    str,
    typer.Option(
        help="Names the request, so that a repeat whose answer was lost does nothing twice; a new one unless said."
    ),
]


def new_request_id(given: str) -> str:
    return given or str(uuid7())


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is signed in at a running stack."""

    channel: aio.Channel
    metadata: Metadata

    async def ask(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """What is answered. A lost answer is asked for again, which the request's own id, or its only reading, allows."""
        backoff = Backoff()
        while True:
            try:
                return await method(request, metadata=self.metadata, timeout=CALL_SECONDS)
            except aio.AioRpcError as error:
                if error.code() not in LOST or backoff.failures + 1 >= ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(backoff.next_seconds())

    async def account_id(self, account: str) -> str:
        """Of the caller's accounts, by name or id; an id may be somebody else's, for operators."""
        if is_id(account):
            return account
        portfolios: Any = orders_pb2_grpc.PortfolioServiceStub(self.channel)
        request = orders_pb2.ListAccountsRequest(page_size=ACCOUNTS_MAX)
        listed = (await self.ask(portfolios.ListAccounts, request)).accounts
        found = [each.account_id for each in listed if each.name == account]
        match found:
            case [account_id]:
                return account_id
            case []:
                names = ", ".join(sorted(each.name for each in listed)) or "none"
                raise StackError(f"no account is named {account}; there are: {names}")
        raise StackError(f"{len(found)} accounts are named {account}; give the id of one of them: {', '.join(found)}")


def is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


@asynccontextmanager
async def calling(snapshot: Snapshot, email: str) -> AsyncIterator[Caller]:
    """Signed in as --email says; the token is shown to nobody."""
    async with edge_channel(snapshot) as channel:
        key = os.environ.get(API_KEY_VARIABLE, "")
        if email:
            metadata = await sign_in(channel, email, ask_password(email))
        elif key:
            stub: Any = auth_pb2_grpc.AuthServiceStub(channel)
            request = auth_pb2.ExchangeApiKeyRequest(secret=key)
            token = (await stub.ExchangeApiKey(request, timeout=CALL_SECONDS)).access_token
            metadata = (("authorization", f"Bearer {token}"),)
        else:
            metadata = await sign_in_admin(channel, snapshot)
        yield Caller(channel, metadata)


def ask_password(email: str) -> str:
    if not sys.stdin.isatty():
        raise StackError(
            f"the password of {email} is asked for on a terminal; for programs put a key into {API_KEY_VARIABLE}"
        )
    return getpass(f"Password of {email}: ", sys.stderr)


@contextmanager
def refusals(request_id: str = "") -> Iterator[None]:
    """A refused call ends the command with every field and reason that the refusal names."""
    try:
        yield
    except aio.AioRpcError as error:
        raise StackError(why(error, request_id)) from error


def why(error: Any, request_id: str = "") -> str:
    status = rpc_status.from_call(error)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        _ = detail.Unpack(bad) or detail.Unpack(info)
    lines = [f"{error.details()}{f' ({info.reason})' if info.reason else ''}"]
    lines += [f"  {each.field}: {each.description}" for each in bad.field_violations]
    if info.reason == "STEP_UP_REQUIRED":
        lines.append("  sign in with --email as somebody who has a second factor: its code is asked for")
    if request_id and error.code() in LOST:
        lines.append(
            f"  whether it was done is not known; the same with --request-id {request_id} tells, and does it once"
        )
    return "\n".join(lines)
