"""Wraps the concerns around every call, whatever the shape of the RPC, once at registration."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from libs.errors import Refusal
from libs.mesh.contract import Method
from libs.mesh.identity import Identity, address_of, network_of, peer_of

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Call:
    """One RPC in progress; request is None when the client streams, and requests what it streams."""

    method: Method
    context: aio.ServicerContext
    request: Message | None
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    requests: AsyncIterator[Message] | None = None
    identity: Identity | None = None
    _peer: str | None = None
    _refusal: Refusal | None = None
    _stepping: asyncio.Task | None = None

    @property
    def peer(self) -> str:
        """The word of the service at the other end; "" without one."""
        if self._peer is None:
            self._peer = peer_of(self.context)
        return self._peer

    @property
    def caller(self) -> Hashable:
        """By whom calls and streams are counted: the user, else the service, else the network of somebody unknown."""
        if self.identity:
            return self.identity.user_id
        return self.peer if self.peer not in ("", "edge") else network_of(address_of(self.context))

    def end(self, refusal: Refusal) -> None:
        """Ends the stream with this refusal, at once: while it waits for a message, or for its reader to take one."""
        if self._refusal is None:
            self._refusal = refusal
            if self._stepping is not None:
                self._stepping.cancel()

    async def step(self, doing: Awaitable[T]) -> T:
        """One step of a stream: what doing gives; raises the refusal once the stream is to end."""
        self._stepping = asyncio.current_task()
        try:
            done = await doing
            # What was done may have swallowed the cancellation.
            if self._refusal is not None:
                raise self._refusal
        except asyncio.CancelledError:
            if self._refusal is None or self._stepping is None:
                raise
            self._stepping.uncancel()
            raise self._refusal from None
        else:
            return done
        finally:
            self._stepping = None


END = object()


Onward = Callable[[Call], Awaitable[Any]]
"""Goes on with a call, inwards, and returns its answer: None where that was written by itself."""


class Concern(Protocol):
    """Does what is its own before and after it goes on; or raises, and the call goes no further."""

    async def __call__(self, call: Call, onward: Onward) -> Any: ...


CheckMessage = Callable[[Message], None]

MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Registrar:
    """What `add_…Servicer_to_server` is given instead of the server."""

    def __init__(
        self, server: aio.Server, methods: dict[str, Method], concerns: Sequence[Concern], check: CheckMessage
    ) -> None:
        self._server, self._methods, self._concerns, self._check = server, methods, concerns, check
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The form below says the same."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        wrapped = {
            name: wrap(handler, self._methods[f"/{service}/{name}"], self._concerns, self._check)
            for name, handler in handlers.items()
        }
        # Not registered one by one: grpc.aio would wait anew for all of them with every call that comes.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self.names.append(service)


def wrap(handler: Any, method: Method, concerns: Sequence[Concern], check: CheckMessage) -> Any:
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            check(request)
            yield request

    def asked(call: Call) -> Any:
        return call.requests if handler.request_streaming else call.request

    async def answer(call: Call) -> Any:
        return await inner(asked(call), call.context)

    # It writes by itself: ended while it writes, it is still here to say why.
    async def stream(call: Call) -> None:
        async with aclosing(inner(asked(call), call.context)) as responses:
            while (response := await call.step(anext(responses, END))) is not END:
                try:
                    await call.step(call.context.write(response))
                except aio.InternalError as error:
                    # The reader has left: a write that waited for it hears of it before this task is cancelled.
                    raise asyncio.CancelledError from error

    onward: Onward = stream if handler.response_streaming else answer
    for concern in reversed(concerns):
        onward = partial(concern, onward=onward)

    async def behavior(request: Any, context: aio.ServicerContext) -> Any:
        metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        if handler.request_streaming:
            return await onward(Call(method, context, None, metadata, checked(request)))
        return await onward(Call(method, context, request, metadata))

    serialize = handler.response_serializer

    def serialized(response: Any) -> bytes:
        # A stream may hand on bytes that were serialized before: ticks pass through as they came.
        return response if type(response) is bytes else serialize(response)

    make = MAKERS[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, serialized)
