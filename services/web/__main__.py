"""Starts the file server: `python -m services.web`."""

import asyncio
import signal

import structlog
from aiohttp import web

from libs import loading
from libs.mesh.readiness import Readiness, probes
from libs.mesh.settings import LogFormat
from libs.telemetry import logs
from services.web.files import application
from services.web.settings import Settings

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Plain HTTP: only the edge is to reach it, and it keeps nothing that is secret."""
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    # It depends on nothing: without the page's files it still answers, and says how to make them.
    readiness = Readiness({})
    runner = web.AppRunner(
        application(settings.dist_folder, settings.openapi_folder),
        access_log=None,  # the edge keeps one
        handle_signals=False,
        shutdown_timeout=settings.drain_seconds,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.listen_host, settings.mesh_port).start()
        async with probes(settings.word, readiness, settings.listen_host, settings.probe_port):
            log.info("serving", mesh_port=settings.mesh_port, probe_port=settings.probe_port)
            await stopping.wait()
            log.info("draining")
            readiness.draining = True
            await asyncio.sleep(settings.drain_notice_seconds)
    finally:
        await runner.cleanup()
    log.info("stopped")


def main() -> None:
    loading.end()
    settings = Settings()  # type: ignore[call-arg] (its values come from the environment)
    logs.set_up(settings.word, as_json=settings.log_format is LogFormat.JSON)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
