"""A service of the mesh that does what a test tells it, behind everything the runtime puts around a service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from libs.mesh.contract import services
from libs.mesh.server import Mesh, Service
from libs.mesh.settings import ServiceSettings
from tests.mesh import MINT, Installation, Served

Work = Callable[..., Any]
"""A coroutine function for a unary method, an async generator function for a stream, both of (request, context)."""


class OrdersSettings(ServiceSettings):
    word = "orders"


class AuthSettings(ServiceSettings):
    word = "auth"


def settings_of(word: str) -> type[ServiceSettings]:
    return type("Settings", (ServiceSettings,), {"word": word, "__annotations__": {}})


async def answer_empty(request: Any, context: aio.ServicerContext) -> None:
    """The default of unary methods; None stands for the method's empty response."""


async def answer_for_ever(request: Any, context: aio.ServicerContext) -> AsyncIterator[bytes]:
    """The default of streams: one empty message, then silence."""
    yield b""
    await asyncio.Event().wait()


def registering(word: str, works: Mapping[str, Work]) -> Callable[[Any], None]:
    """Adds every method of the word's contract; works by the method's name."""

    def register(registrar: Any) -> None:
        for service in services(word):
            handlers = {method.name: handler_of(method, works.get(method.name)) for method in service.methods}
            registrar.add_registered_method_handlers(service.full_name, handlers)

    return register


def handler_of(method: Any, work: Work | None) -> grpc.RpcMethodHandler:
    asked, answered = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))

    async def unary(request: Any, context: aio.ServicerContext) -> Any:
        return await (work or answer_empty)(request, context) or answered()

    behavior = (work or answer_for_ever) if method.server_streaming else unary
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(behavior, asked.FromString, answered.SerializeToString)


@asynccontextmanager
async def serving_works(
    installation: Installation,
    word: str = "orders",
    *,
    checks: Mapping[str, Callable[[], Awaitable[None]]] | None = None,
    watched: Mapping[str, Callable[[], Awaitable[None]]] | None = None,
    meshes: list[Mesh] | None = None,
    settings: Mapping[str, str] | None = None,
    **works: Work,
) -> AsyncIterator[Served]:
    """The service of this word, doing these works; what the runtime gives it is put into meshes."""

    @asynccontextmanager
    async def open_service(_: ServiceSettings, mesh: Mesh) -> AsyncIterator[Service]:
        if meshes is not None:
            meshes.append(mesh)
        if word == "auth":
            # Nobody tells auth who ended a session: it knows.
            mesh.verifier.use({MINT.stored.key_id: MINT.private_key.public_key()})
            mesh.sessions.refresh()
        yield Service(registers=[registering(word, works)], checks=checks or {}, watched=watched or {})

    async with installation.serve_open(settings_of(word), open_service, **(settings or {})) as served:
        yield served


def refused(caught: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """The code of a refusal, and what its details say of the reason."""
    error = caught.value
    return error.code(), detail(error, error_details_pb2.ErrorInfo)


def status_of(error: aio.AioRpcError) -> status_pb2.Status:
    status = rpc_status.from_call(error)  # type: ignore[arg-type] (an error of aio has what it asks of a call)
    assert status is not None, error
    return status


def detail(error: aio.AioRpcError, kind: Any) -> Any:
    """The first detail of this kind; an assertion fails where there is none."""
    for packed in status_of(error).details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.DESCRIPTOR.name} in {status_of(error)}")
