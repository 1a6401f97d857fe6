"""The mesh as tests stand on it: any service for real, behind mutual TLS, on a database of its own.

`installation` (a fixture) is one fresh database with every schema, an empty Valkey, the certificates of every word, and
auth running in a process that all tests share. In it a test serves what it is about:

    async with installation.serve("orders", writes_per_second="3") as orders:
        stub = orders.stub(OrderServiceStub)                  # called with the edge's certificate
        await stub.PlaceOrder(request, metadata=sign_in(user_id))
"""

import asyncio
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
import asyncpg
import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.ids import uuid7
from libs.mesh.channel import open_channel
from libs.mesh.contract import methods
from libs.mesh.identity import ALGORITHM, AUDIENCE, ISSUER
from libs.mesh.server import Open, serving
from libs.mesh.settings import ServiceSettings
from libs.sealing import LocalKeys, keys_from
from libs.stack.pki import make_certificates
from libs.words import WORDS
from services.auth.data_key import CONTEXT
from services.auth.keys import AUDIT, KeyBox, StoredKey
from tests.servers import PASSWORD, PostgresServer, as_superuser, copy_database, free_port

TEMPLATE = "mesh_template"
KEY_ENCRYPTION_KEY = "dGVzdHMgdGVzdHMgdGVzdHMgdGVzdHMgdGVzdHMgdGU="
KEY_ENCRYPTION_KEYS = f"tests:{KEY_ENCRYPTION_KEY}"
DATA_KEY = b"the tests' data key, 32 bytes it"
QUOTAS = '{"api_keys": 3}'
"""What a person may have of each, as billing would tell auth."""
READY_SECONDS = 30.0
STOP_SECONDS = 15.0

Stub = TypeVar("Stub")
Metadata = tuple[tuple[str, str], ...]


class Mint:
    """Signs access tokens with the key that every auth of the tests has; each claim can be replaced, or left out by None."""

    def __init__(self) -> None:
        box = KeyBox(DATA_KEY)
        # In use for a while, and not so long that another were due.
        begun = datetime.now(UTC) - timedelta(days=1)
        self.stored: StoredKey = box.new(begun)
        self.private_key: Ed25519PrivateKey = box.open(self.stored)
        self.audit: StoredKey = box.new(begun, AUDIT)

    def token(self, user_id: UUID | None = None, *, seconds: float = 900, **claims: Any) -> str:
        """Lives at least so many seconds, and less than one more."""
        # A run may last longer than a token: late in it, one made early is refused, and a bad one only for its age.
        assert os.environ.get("PYTEST_CURRENT_TEST"), "make a token in the test that uses it, not where a file is read"
        now = datetime.now(UTC)
        usual = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id or uuid7()),
            "sid": str(uuid7()),
            "roles": ["user"],
            "scopes": ["account", "read", "trade"],
            "entitlements": [],
            "quotas": {},
            "email_verified": False,
            "mfa": False,
            "gen": 0,
            "iat": int(now.timestamp()),
            "exp": math.ceil((now + timedelta(seconds=seconds)).timestamp()),
        }
        given = {name: value for name, value in (usual | claims).items() if value is not None}
        return jwt.encode(given, self.private_key, algorithm=ALGORITHM, headers={"kid": self.stored.key_id})


MINT = Mint()


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def sign_in(user_id: UUID | None = None, **claims: Any) -> Metadata:
    """What a call carries for this user, or for somebody: a token that every service of the tests believes."""
    return bearer(MINT.token(user_id, **claims))


@dataclass(frozen=True)
class Served:
    """A service that is being served; stubs come with the certificate of whoever is to call."""

    word: str
    mesh_port: int
    probe_port: int
    pki: Path
    channels: dict[str, aio.Channel] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh_port}"

    def channel(self, caller: str = "edge") -> aio.Channel:
        if caller not in self.channels:
            self.channels[caller] = open_channel(self.address, self.word, tls_folder=self.pki, caller=caller)
        return self.channels[caller]

    def stub(self, stub_type: Callable[[Any], Stub], caller: str = "edge") -> Stub:
        return stub_type(self.channel(caller))

    async def probe(self, path: str = "/health") -> tuple[int, str]:
        """The status and the body of a probe, such as "/metrics"."""
        url = f"http://127.0.0.1:{self.probe_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def until_health(self, wanted: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> None:
        """Returns once gRPC health says so."""
        async with asyncio.timeout(READY_SECONDS):
            while not await self._says(wanted):
                pass

    async def _says(self, wanted: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> bool:
        """Waits until it does; False if that was asked over a connection to a process that has been killed."""
        # Not known to the stubs.
        watch = health_pb2_grpc.HealthStub(self.channel()).Watch(  # pyright: ignore[reportAttributeAccessIssue]
            health_pb2.HealthCheckRequest(), wait_for_ready=True
        )
        try:
            async for answer in watch:
                if answer.status == wanted:
                    return True
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            watch.cancel()
        return False

    async def until_ready(self) -> None:
        await self.until_health(health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        for channel in self.channels.values():
            await channel.close()
        self.channels.clear()


@dataclass
class ServedProcess:
    """A service in a process of its own, that a test may kill and start again on the same ports."""

    served: Served
    environment: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def terminate(self) -> int:
        """Asks it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.served.word}"], stdout=log, stderr=log, env=self.environment
            )

    def logged(self) -> str:
        return self.log.read_text()


@dataclass(frozen=True)
class Installation:
    """One database with every schema, one Valkey, the certificates of every word, and the address of an auth."""

    postgres: PostgresServer
    database: str
    redis_url: str
    pki: Path
    logs: Path
    auth_address: str = ""

    @property
    def mails(self) -> Path:
        return self.logs / "mails"

    def url(self, role: str = "postgres") -> str:
        """The database as a role sees it: "orders_rpc", "orders_worker", "tradeloom", or the superuser."""
        return self.postgres.url(self.database, role)

    def values(self, word: str, **changes: str) -> dict[str, str]:
        """The settings of a service, by their names in lower case."""
        return {
            "mesh_port": str(free_port()),
            "probe_port": str(free_port()),
            "tls_folder": str(self.pki),
            "database_url": self.url(f"{word}_rpc"),
            "worker_database_url": self.url(f"{word}_worker"),
            "redis_url": self.redis_url,
            "auth_service_url": self.auth_address,
            "mail_folder": str(self.mails),
            "key_encryption_keys": KEY_ENCRYPTION_KEYS,
            "drain_seconds": "5",
            "log_format": "json",
            **changes,
        }

    @asynccontextmanager
    async def serve(self, word: str, **changes: str) -> AsyncIterator[Served]:
        """The service of this word in the test's own event loop, ready; changes are settings."""
        module = import_module(f"services.{word}.__main__")
        settings_type: type[ServiceSettings] = import_module(f"services.{word}.settings").Settings
        async with self.serve_open(settings_type, getattr(module, word), **changes) as served:
            yield served

    @asynccontextmanager
    async def serve_open(
        self, settings_type: type[ServiceSettings], open_service: Open[Any], **changes: str
    ) -> AsyncIterator[Served]:
        """Any service, such as one that a test has written."""
        values = self.values(settings_type.word, **changes)
        settings = given_alone(settings_type).model_validate(values)
        served = Served(settings.word, settings.mesh_port, settings.probe_port, self.pki)
        try:
            async with serving(settings, open_service):
                await served.until_ready()
                yield served
        finally:
            await served.close()

    @contextmanager
    def start(self, word: str, **changes: str) -> Iterator[ServedProcess]:
        """The service of this word in a process of its own; it is ready after `until_ready` or `wait_until_live`."""
        values = self.values(word, **changes)
        served = Served(word, int(values["mesh_port"]), int(values["probe_port"]), self.pki)
        given = {f"{word.upper()}_{name.upper()}": value for name, value in values.items()}
        log = self.logs / f"{word}-{served.mesh_port}.log"
        started = ServedProcess(served, {**os.environ, **given}, log, process=None)  # type: ignore[arg-type]
        started.start()
        try:
            yield started
        finally:
            if started.process.poll() is None:
                # A process that a test has stopped would not hear it.
                started.process.send_signal(signal.SIGCONT)
                started.kill()

    @asynccontextmanager
    async def connect(self, role: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
        """A plain connection, as the superuser unless a role is named."""
        connection = await asyncpg.connect(self.url(role))
        try:
            yield connection
        finally:
            await connection.close()


@functools.cache
def given_alone(settings_type: type[ServiceSettings]) -> type[ServiceSettings]:
    """The same settings, with the same rules, that do not look into the environment: a test gives all of them."""

    class Given(settings_type):
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, **_others: Any) -> Any:
            return (init_settings,)

    return Given


def make_pki(folder: Path) -> Path:
    """A certificate for every word that the contract or the stack knows."""
    named = {word for method in methods().values() for word in method.policy.services}
    make_certificates(folder, folder / "authority.key", sorted(named | set(WORDS) | {"edge", "operator"}))
    return folder


def make_template(server: PostgresServer) -> None:
    """Migrates, once per run, the database that each installation gets a copy of."""
    asyncio.run(as_superuser(server, f"CREATE DATABASE {TEMPLATE} OWNER tradeloom"))
    subprocess.run(
        [sys.executable, "-m", "migrations", "all", "upgrade", "head"],
        check=True,
        env={**os.environ, "MIGRATIONS_DATABASE_URL": server.url(TEMPLATE, "tradeloom")},
    )
    asyncio.run(_let_in(server))


async def _let_in(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url(TEMPLATE))
    roles = await connection.fetch(
        """
        SELECT rolname FROM pg_roles JOIN pg_namespace ON rolname IN (nspname || '_rpc', nspname || '_worker')
        """
    )
    for role in roles:
        await connection.execute(f"ALTER ROLE {role['rolname']} LOGIN PASSWORD '{PASSWORD}'")
    wrapped = await LocalKeys(keys_from(KEY_ENCRYPTION_KEYS, allow_development=False)).wrap(DATA_KEY, CONTEXT)
    await connection.execute(
        "INSERT INTO auth.data_keys (key_id, wrapped_key) VALUES ($1, $2)", wrapped.key_id, wrapped.wrapped_key
    )
    for key in (MINT.stored, MINT.audit):
        await connection.execute(
            """
            INSERT INTO auth.signing_keys (key_id, public_key, sealed_private_key, sign_time, purpose)
            VALUES ($1, $2, $3, $4, $5)
            """,
            key.key_id,
            key.public_key,
            key.sealed_private_key,
            key.sign_time,
            key.purpose,
        )
    await connection.execute(
        "INSERT INTO auth.default_entitlements (plan, capabilities, quotas) VALUES ('tests', '{}', $1)", QUOTAS
    )
    await connection.close()


@contextmanager
def shared_auth(server: PostgresServer, redis_url: str, pki: Path, logs: Path) -> Iterator[ServedProcess]:
    """An auth for all tests that need one and do not harm it."""
    asyncio.run(copy_database(server, TEMPLATE, "mesh_auth"))
    with Installation(server, "mesh_auth", redis_url, pki, logs).start("auth") as process:
        wait_until_live(process)
        yield process


def wait_until_live(process: ServedProcess) -> None:
    end = time.monotonic() + READY_SECONDS

    async def ask() -> bool:
        try:
            return (await process.served.probe())[0] == 200
        except aiohttp.ClientConnectionError:
            return False

    while not asyncio.run(ask()):
        if process.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.served.word} did not start: {process.logged()[-2000:]}")
        time.sleep(0.02)


def with_auth(installation: Installation, auth: Served) -> Installation:
    """The same installation with an auth of the test's own."""
    return replace(installation, auth_address=auth.address)
