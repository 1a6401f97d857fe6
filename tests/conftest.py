"""Fixtures that any test may use: one real Postgres and one real Valkey per run, fresh data per test."""

import asyncio
import gc
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
import uvloop
from redis.asyncio import Redis

from libs.bus.connection import open_redis
from libs.store.database import Database, open_database
from tests import examples, mesh, page, recorded, servers
from tests.mesh import Installation, ServedProcess
from tests.sample import Sample, make_sample, make_template
from tests.servers import PostgresServer, ValkeyServer
from tests.stack import Stack, stack_in
from tests.venues.beside import Exchange, exchange_beside

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling

numbers = itertools.count(1)


TIMESCALE_PORT = "TRADELOOM_TEST_TIMESCALE_PORT"
"""Of a new Postgres on loopback that has TimescaleDB, to run on that one; see tests.timescale."""
SHARED_AUTH_REDIS = 1
"""The number of the shared auth's database of Valkey; the tests' is 0."""
SAID = "said"
STACK = "stack"
STACK_FOLDERS = ("tests/journeys/", "tests/faults/test_browser.py", "tests/faults/test_killed_services.py")
"""Whose tests share the one stack of a run."""
STACK_PLACE = 0.4
"""As a part of all files, where they come: enough is left to be done beside them."""
STACKS = ExitStack()
"""What is running, until the last of them has ended: a stack that stands idle takes a third of a core from the rest."""
ASYNCIO_FOLDERS = ("tests/libs/stack/", "tests/libs/cli/", "tests/web/")
"""What they test runs on asyncio's own event loop; the rest, the services, on uvloop."""


def pytest_configure(config: pytest.Config) -> None:
    examples.is_long = config.getoption("--long")
    # As in production: the usual form writes out the values of local variables, which held up an event loop for seconds.
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure([*structlog.get_config()["processors"][:-1], console])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms too, which `make test` leaves out")


def pytest_report_header() -> list[str]:
    """What this machine lacks, before anything is skipped for it."""
    lacks = [f"made up, since ../shared is not here: {name}" for name in recorded.absent()]
    if not recorded.BINANCE_SPOT.is_dir():
        lacks.append("skipped: payloads that Binance recorded, since ../shared is not here")
    if not page.found_chromium():
        lacks.append("skipped: the browser's journey, for which Chromium is missing")
    return lacks


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that production has there."""
    if item.nodeid.startswith(ASYNCIO_FOLDERS):
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    runs = {"long": config.getoption("--long"), "timescale": TIMESCALE_PORT in os.environ}
    for name in (name for name, is_run in runs.items() if not is_run):
        if left := [item for item in items if item.get_closest_marker(name)]:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]
    places = {name: place for place, name in enumerate(mixed([scope_of(item.nodeid) for item in items]))}
    items.sort(key=lambda item: places[scope_of(item.nodeid)])
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()) and not item.nodeid.startswith(STACK_FOLDERS):
            raise pytest.UsageError(f"{item.nodeid} uses the stack of {' and '.join(STACK_FOLDERS)}: put it there")


def scope_of(nodeid: str) -> str:
    """What stays together: a file, or all that use the one stack."""
    return STACK if nodeid.startswith(STACK_FOLDERS) else nodeid.partition("::")[0]


def mixed(scopes: Iterable[str]) -> list[str]:
    """From the front and the back of the alphabet by turns: some folders wait most of their time, and their neighbours too."""
    front = deque(sorted({*scopes} - {STACK}))
    turns = [front.pop() if number % 2 else front.popleft() for number in range(len(front))]
    turns.insert(int(len(turns) * STACK_PLACE), STACK)
    return turns


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collecting lets go of nothing: what it makes is looked through once, at its end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is there from now to the end is looked through no more: each look would hold up the services in this process."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """CI skips nothing."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to say of themselves, passed or not: their property "said"."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, text in report.user_properties:
            if name == SAID and report.when == "call":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(str(text))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "Scheduling":
    """Divides the run among processes: a file's tests stay together, and so do all that use the one stack.

    xdist's own marks for this are passed over by pytest 9.2 (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByStack(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByStack(config, log)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    if port := os.environ.get(TIMESCALE_PORT):
        yield PostgresServer(int(port))
        return
    with servers.quick_folder(tmp_path_factory.mktemp("postgres")) as folder, servers.postgres(folder) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def valkey(valkey_server: ValkeyServer) -> AsyncIterator[ValkeyServer]:
    """The run's Valkey, empty; a test may kill and start it."""
    async with open_redis(valkey_server.url) as redis:
        await redis.flushdb()
    yield valkey_server
    if valkey_server.process and valkey_server.process.poll() is not None:
        valkey_server.start()


@pytest.fixture
async def redis(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    async with open_redis(valkey.url) as client:
        yield client


@pytest.fixture(scope="session")
def sample_template(postgres: PostgresServer) -> None:
    make_template(postgres)


@pytest.fixture
async def sample(postgres: PostgresServer, sample_template: None) -> AsyncIterator[Sample]:
    """A fresh database of a service that has only what every service has."""
    name = f"sample_{next(numbers)}"
    yield await make_sample(postgres, name)
    await servers.drop_database(postgres, name)


@pytest.fixture
async def database(sample: Sample) -> AsyncIterator[Database]:
    """The sample's database as its rpc role."""
    async with open_database(sample.rpc_url) as opened:
        yield opened


@pytest.fixture
async def worker(sample: Sample) -> AsyncIterator[Database]:
    """The sample's database as its worker role."""
    async with open_database(sample.worker_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def exchange() -> Exchange:
    """The Binance that the stack would ask, as whoever trades there has prepared it."""
    return STACKS.enter_context(exchange_beside())


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, exchange: Exchange) -> Stack:
    """The whole mesh, one for the run: what people start with `tradeloom up`."""
    return STACKS.enter_context(stack_in(tmp_path_factory.mktemp("stack"), **exchange.environment))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or scope_of(item.nodeid) == STACK != scope_of(nextitem.nodeid):
        STACKS.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of every word, under one authority."""
    return mesh.make_pki(tmp_path_factory.mktemp("pki"))


# After the sample's, which makes the owner's role.
@pytest.fixture(scope="session")
def mesh_template(postgres: PostgresServer, sample_template: None) -> None:
    mesh.make_template(postgres)


@pytest.fixture(scope="session")
def shared_auth(
    postgres: PostgresServer,
    mesh_template: None,
    valkey_server: ValkeyServer,
    pki: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServedProcess]:
    """One auth for the whole run, on databases of its own: tests empty theirs, and tell facts as if they were auth."""
    redis_url = f"{valkey_server.url}/{SHARED_AUTH_REDIS}"
    with mesh.shared_auth(postgres, redis_url, pki, tmp_path_factory.mktemp("auth")) as process:
        yield process


@pytest.fixture
async def bare_installation(
    postgres: PostgresServer, mesh_template: None, valkey: ValkeyServer, pki: Path, tmp_path: Path
) -> AsyncIterator[Installation]:
    """A fresh database of every service, an empty Valkey, certificates; no auth runs yet."""
    name = f"mesh_{next(numbers)}"
    await servers.copy_database(postgres, mesh.TEMPLATE, name)
    yield Installation(postgres, name, valkey.url, pki, tmp_path)
    await servers.drop_database(postgres, name)


@pytest.fixture
def installation(bare_installation: Installation, shared_auth: ServedProcess) -> Installation:
    """The same, and the run's auth, which every service served in it follows."""
    return mesh.with_auth(bare_installation, shared_auth.served)
