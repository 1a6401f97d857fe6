"""Lets a called service continue its caller's trace: interceptors of a channel, one for each shape of call."""

from collections.abc import Callable
from typing import Any

from grpc import aio

from libs.telemetry import traces

Continue = Callable[[Any, Any], Any]


def interceptors() -> list[aio.ClientInterceptor] | None:
    """None where no traces are collected, for an intercepted call takes longer."""
    return [UnaryUnary(), UnaryStream(), StreamUnary(), StreamStream()] if traces.are_collected() else None


def carrying(details: Any) -> Any:
    """The same call with the current trace beside its metadata, which stays the caller's own."""
    return details._replace(metadata=aio.Metadata(*(details.metadata or ()), *traces.carried()))


class UnaryUnary(aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Continue, client_call_details: Any, request: Any) -> Any:
        return await continuation(carrying(client_call_details), request)


class UnaryStream(aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Continue, client_call_details: Any, request: Any) -> Any:
        return await continuation(carrying(client_call_details), request)


class StreamUnary(aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Continue, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(carrying(client_call_details), request_iterator)


class StreamStream(aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Continue, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(carrying(client_call_details), request_iterator)
