"""Fixtures that any test may use: one real Postgres and one real Valkey per run, fresh data per test."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from libs.bus.connection import open_redis
from libs.store.database import Database, open_database
from tests import mesh, servers
from tests.mesh import Installation, ServedProcess
from tests.sample import Sample, drop_sample, make_sample, make_template
from tests.servers import PostgresServer, ValkeyServer
from tests.stack import Stack, stack_in

numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the run is divided among processes: a file's tests stay together, and so do all that use the one stack."""
    for item in items:
        uses_stack = "stack" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("stack" if uses_stack else item.path.as_posix()))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def valkey(valkey_server: ValkeyServer) -> AsyncIterator[ValkeyServer]:
    """The run's Valkey, empty; a test may kill and start it."""
    async with open_redis(valkey_server.url) as redis:
        await redis.flushall()
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
    await drop_sample(postgres, name)


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
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole mesh, one for the run: what people start with `tradeloom up`."""
    with stack_in(tmp_path_factory.mktemp("stack")) as running:
        yield running


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
    """One auth for the whole run, on a database of its own."""
    with mesh.shared_auth(postgres, valkey_server.url, pki, tmp_path_factory.mktemp("auth")) as process:
        yield process


@pytest.fixture
async def bare_installation(
    postgres: PostgresServer, mesh_template: None, valkey: ValkeyServer, pki: Path, tmp_path: Path
) -> AsyncIterator[Installation]:
    """A fresh database of every service, an empty Valkey, certificates; no auth runs yet."""
    name = f"mesh_{next(numbers)}"
    await mesh.make_database(postgres, name)
    yield Installation(postgres, name, valkey.url, pki, tmp_path)
    await mesh.drop_database(postgres, name)


@pytest.fixture
def installation(bare_installation: Installation, shared_auth: ServedProcess) -> Installation:
    """The same, and the run's auth, which every service served in it follows."""
    return mesh.with_auth(bare_installation, shared_auth.served)
