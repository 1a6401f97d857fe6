"""Whether a service can do its work now: its dependencies asked once a second, the answers served to probes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue]
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

log = structlog.get_logger(__name__)

CHECK_INTERVAL_SECONDS = 1.0
CHECK_INTERVAL_AT_START_SECONDS = 0.05
CHECK_TIMEOUT_SECONDS = 2.0

WELL = Gauge("tradeloom_dependency_well", "1 while a dependency answers and all goes on, else 0.", ["dependency"])

Check = Callable[[], Awaitable[None]]
"""Returns when the dependency answers; raises with the reason when not."""


class Health(health.HealthServicer):
    """gRPC health of these names, whose watches can be ended: an open one would hold up a drain until its last second."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        # The library's serves from the first moment, before anybody has asked the dependencies.
        self.names = ("", *names)
        self._server_status = dict.fromkeys(self.names, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._ending = False
        self._changed = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext) -> None:
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        told = None
        while True:
            changed = self._changed
            status = self._server_status.get(request.service, unknown)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            elif self._ending:
                return
            else:
                await changed.wait()

    async def _set(self, service: str, status: int) -> None:
        await super()._set(service, status)
        self._wake()

    def end_watches(self) -> None:
        """Ends every watch once it has told what there is to tell."""
        self._ending = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Readiness:
    """The last answer of each dependency; ready when all of checks are well and the process is not draining.

    What is watched is told with them and takes nobody out of service: what ails one key or one partition ails every
    replica alike, and to refuse all the others would help nobody.
    """

    def __init__(self, checks: Mapping[str, Check], watched: Mapping[str, Check] | None = None) -> None:
        self._needed = frozenset(checks)
        self._checks = {**checks, **(watched or {})}
        self.results: dict[str, str] = dict.fromkeys(self._checks, "not asked yet")
        self.draining = False

    @property
    def ready(self) -> bool:
        return not self.draining and all(self.results[name] == "ok" for name in self._needed)

    @property
    def status(self) -> str:
        if not self.ready:
            return "unhealthy"
        return "healthy" if all(result == "ok" for result in self.results.values()) else "degraded"

    async def ask(self) -> None:
        results = await asyncio.gather(*(self._ask(name) for name in self._checks))
        for (name, before), result in zip(list(self.results.items()), results, strict=True):
            if before not in (result, "not asked yet"):
                log.warning("a dependency changed", dependency=name, result=result)
            self.results[name] = result
            WELL.labels(name).set(result == "ok")

    async def _ask(self, name: str) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._checks[name]()
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_SECONDS:g} s"
        # Whatever a driver raises is the reason, also a CancelledError where nobody cancels: it would end all asking.
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
                raise
            return f"{type(error).__name__}: {error}"[:200]
        return "ok"


@asynccontextmanager
async def telling(readiness: Readiness, servicer: Health) -> AsyncIterator[None]:
    """Asks the dependencies while the block runs, and sets gRPC health of every name by the answers."""

    async def tell() -> None:
        told: bool | None = None
        while True:
            await readiness.ask()
            if readiness.draining:
                return
            if readiness.ready is not told:
                told = readiness.ready
                status = health_pb2.HealthCheckResponse.SERVING if told else health_pb2.HealthCheckResponse.NOT_SERVING
                for name in servicer.names:
                    await servicer.set(name, status)
            await asyncio.sleep(CHECK_INTERVAL_SECONDS if told else CHECK_INTERVAL_AT_START_SECONDS)

    task = asyncio.create_task(tell(), name="readiness")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def probes(word: str, readiness: Readiness, host: str, port: int) -> AsyncIterator[None]:
    """Serves /health (ready to work), /live (the event loop turns) and /metrics in plain HTTP."""

    async def answer_health(_: web.Request) -> web.Response:
        body = {"status": readiness.status, "service": word, "checks": readiness.results}
        return web.json_response(body, status=200 if readiness.ready else 503)

    async def answer_live(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "service": word})

    async def answer_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/health", answer_health)
    app.router.add_get("/live", answer_live)
    app.router.add_get("/metrics", answer_metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
        yield
    finally:
        await runner.cleanup()
