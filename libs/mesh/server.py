"""Starts any service and stops it without dropping a call."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server
from tradeloom.policy.v1 import policy_pb2

from libs import loading
from libs.errors import Unavailable
from libs.mesh import reflection
from libs.mesh.around import Concern, Registrar
from libs.mesh.channel import KEEPALIVE_MILLISECONDS, MESSAGE_BYTES_MAX, keepalive, open_channel
from libs.mesh.concerns import Concerns, check
from libs.mesh.contract import methods, services
from libs.mesh.identity import Verifier
from libs.mesh.limits import Limiter
from libs.mesh.readiness import Check, Health, Readiness, probes, telling
from libs.mesh.revocations import following_auth
from libs.mesh.sessions import Sessions
from libs.mesh.settings import LogFormat, ServiceSettings
from libs.mesh.tls import server_credentials
from libs.telemetry import logs, traces

log = structlog.get_logger(__name__)

CONCURRENT_STREAMS_MAX = 4_000
# After so long a connection takes no new calls, and its peer opens another: who has lost their certificate's right, because
# it has expired or its authority is trusted no more, is out then, whatever they hold open.
CONNECTION_SECONDS_MAX = 3_600.0
# And calls and streams of before may go on for so long.
CONNECTION_GRACE_SECONDS = 3_600.0


def aging(
    seconds: float = CONNECTION_SECONDS_MAX, grace_seconds: float = CONNECTION_GRACE_SECONDS
) -> list[tuple[str, int]]:
    return [
        ("grpc.max_connection_age_ms", int(seconds * 1_000)),
        ("grpc.max_connection_age_grace_ms", int(grace_seconds * 1_000)),
    ]


SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
    *keepalive(),
    *aging(),
    # Clients may ping half as often again as they are told to.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MILLISECONDS // 2),
    ("grpc.http2.max_ping_strikes", 0),
]

Register = Callable[[Any], None]
"""Adds a servicer to what it is given: `partial(add_OrderServiceServicer_to_server, OrderServicer(...))`."""


class Draining(Unavailable):
    """The process is stopping; another one, or its successor, goes on."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the runtime gives a service."""

    settings: ServiceSettings
    verifier: Verifier
    sessions: Sessions

    async def check_auth(self) -> None:
        """Raises until callers can be told apart: keys are known and the ended sessions were heard of.

        From then on an auth that is away takes nobody out of service: reads go on, and writes are refused one by one.
        """
        self.verifier.check()
        self.sessions.check_known()

    def channel(self, word: str, address: str) -> aio.Channel:
        """A channel to another service, under this one's certificate."""
        return open_channel(address, word, tls_folder=self.settings.tls_folder, caller=self.settings.word)


@dataclass(frozen=True, slots=True)
class Service:
    """What a service gives the runtime: its servicers, and how to ask its dependencies.

    Without any of checks it cannot work; what is watched is only told (see libs.mesh.readiness). Concerns of its own
    stand around each of its calls within those of all services.
    """

    registers: Sequence[Register]
    checks: Mapping[str, Check] = field(default_factory=dict)
    watched: Mapping[str, Check] = field(default_factory=dict)
    concerns: Sequence[Concern] = ()


S = TypeVar("S", bound=ServiceSettings)
Open = Callable[[S, Mesh], AbstractAsyncContextManager[Service]]


def run(settings_type: type[S], open_service: Open[S]) -> None:
    """Runs a service until SIGTERM or SIGINT; the process leaves with 0 after draining."""
    loading.end()
    settings = settings_type()  # type: ignore[call-arg] (its values come from the environment)
    logs.set_up(settings.word, as_json=settings.log_format is LogFormat.JSON)
    traces.set_up(settings.word, settings.otlp_endpoint, settings.trace_sample_ratio)
    if sys.platform == "win32":
        asyncio.run(until_stopped(settings, open_service))
    else:
        import uvloop  # not to be had on Windows

        uvloop.run(until_stopped(settings, open_service))


async def until_stopped(settings: S, open_service: Open[S]) -> None:
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    async with serving(settings, open_service):
        log.info("serving", mesh_port=settings.mesh_port, probe_port=settings.probe_port)
        await stopping.wait()
        log.info("draining")
    log.info("stopped")


@asynccontextmanager
async def serving(settings: S, open_service: Open[S]) -> AsyncIterator[None]:
    """Serves while the block runs; then tells balancers, ends streams, lets calls finish, and closes in reverse."""
    mesh = Mesh(settings, Verifier(), Sessions(settings.streams_max, settings.streams_per_caller_max))
    async with AsyncExitStack() as stack:
        if settings.word != "auth":
            to_auth = partial(mesh.channel, "auth", settings.auth_service_url)
            await stack.enter_async_context(following_auth(to_auth, mesh.verifier, mesh.sessions))
        service = await stack.enter_async_context(open_service(settings, mesh))
        server, healthy = build_server(settings, mesh, service)
        credentials = server_credentials(settings.tls_folder, settings.word)
        server.add_secure_port(f"{settings.listen_host}:{settings.mesh_port}", credentials)
        await server.start()
        readiness = Readiness({**service.checks, "auth": mesh.check_auth}, service.watched)
        await stack.enter_async_context(telling(readiness, healthy))
        await stack.enter_async_context(probes(settings.word, readiness, settings.listen_host, settings.probe_port))
        try:
            yield
        finally:
            readiness.draining = True
            await healthy.enter_graceful_shutdown()
            await asyncio.sleep(settings.drain_notice_seconds)
            mesh.sessions.end_all_streams(
                Draining("the service is stopping; resume by cursor", dependency=settings.word)
            )
            healthy.end_watches()
            await server.stop(settings.drain_seconds)


def build_server(settings: ServiceSettings, mesh: Mesh, service: Service) -> tuple[aio.Server, Health]:
    server = aio.server(options=SERVER_OPTIONS)
    concerns = Concerns(settings.word, mesh.verifier, mesh.sessions, limiters(settings))
    around = (*concerns.in_order(), *service.concerns)
    registrar = Registrar(server, methods(settings.word) | reflection.METHODS, around, check)
    # Any service answers for the whole contract, since the edge can ask only one of them.
    whole = reflection.Reflection([*(descriptor.full_name for descriptor in services()), HEALTH])
    for register in (*service.registers, partial(add_ServerReflectionServicer_to_server, whole)):
        register(registrar)
    healthy = Health(registrar.names)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    return server, healthy


def limiters(settings: ServiceSettings) -> dict[int, Limiter]:
    return {
        policy_pb2.LIMIT_SIGN_IN: Limiter("sign_in", settings.sign_in_per_second),
        policy_pb2.LIMIT_WRITE: Limiter("write", settings.writes_per_second),
        policy_pb2.LIMIT_READ: Limiter("read", settings.reads_per_second),
        policy_pb2.LIMIT_STREAM: Limiter("stream", settings.streams_per_second),
        policy_pb2.LIMIT_PAYMENT: Limiter("payment", settings.payments_per_second),
    }
