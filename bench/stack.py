"""The stack that benches measure: as `tradeloom up` starts it, in a folder of its own, and users in it."""

import asyncio
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from bench import disk
from libs.cli.client import CALL_SECONDS, Metadata, sign_in, sign_in_admin
from libs.ids import uuid7
from libs.mesh.channel import open_channel, open_edge_channel
from libs.stack.credentials import OWNER, Credentials
from libs.stack.folder import DataFolder
from libs.stack.ports import HOST, any_free
from libs.stack.postgres import PostgresServer
from libs.stack.probes import http_ok
from libs.stack.processes import child_environment
from libs.stack.services import Surroundings, service_environment
from libs.stack.state import Snapshot, running
from libs.stack.valkey import ValkeyServer
from libs.words import WORDS

OPERATOR = "operator"
UP_SECONDS = 200.0
DOWN_SECONDS = 60.0
STOP_SECONDS = 15.0
READY_SECONDS = 60.0
POLL_SECONDS = 0.02
LIFTED = {
    "READS_PER_SECOND": "1000000",
    "WRITES_PER_SECOND": "1000000",
    "SIGN_IN_PER_SECOND": "1000000",
    "ORDERS_OPEN_ORDERS_MAX": "100000000",
    "ORDERS_ORDERS_PER_SECOND_MAX": "1000000",
}
"""Allowances of one user that a handful of users would exhaust. What is measured is set as in production."""


async def tradeloom(*arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs `tradeloom …` on the stack of a folder, to its end also when cancelled: what it starts can then be stopped."""
    command = asyncio.create_task(asyncio.to_thread(run_tradeloom, *arguments, folder=folder, environment=environment))
    try:
        await asyncio.shield(command)
    except asyncio.CancelledError:
        await asyncio.wait([command])
        raise


def run_tradeloom(*arguments: str, folder: Path, environment: Mapping[str, str] | None) -> None:
    inherited = child_environment(environment)
    for own in ("DATABASE_URL", "REDIS_URL"):  # nothing is measured in somebody's own database
        inherited.pop(own, None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "libs.cli", *arguments, "--data-dir", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        env=inherited,
    )
    if done.returncode:
        raise RuntimeError(f"tradeloom {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """On a disk, so that commits are as durable as that disk is."""
    folder = Path(tempfile.mkdtemp(prefix="tradeloom-bench-", dir=disk.folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Beside:
    """A process beside the stack's, with the port of its mutual TLS."""

    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, seen by somebody who may read its data folder."""

    folder: DataFolder
    snapshot: Snapshot
    credentials: Credentials
    channels: list[aio.Channel] = field(default_factory=list)

    @property
    def postgres(self) -> PostgresServer:
        return PostgresServer(self.snapshot.ports["postgres"], self.credentials.postgres("postgres"))

    def redis_url(self, word: str) -> str:
        return ValkeyServer(self.snapshot.ports["valkey"], self._redis_passwords()).url(word)

    def pid(self, name: str) -> int:
        """Of a process that the stack runs; a service's name is its word."""
        [pid] = [status.pid for status in self.snapshot.processes if status.name == name]
        if pid is None:
            raise RuntimeError(f"{name} does not run")
        return pid

    def edge(self) -> aio.Channel:
        """A channel of its own through the edge, as people's programs have."""
        return self._kept(open_edge_channel(f"{HOST}:{self.snapshot.ports['edge']}"))

    def direct(self, word: str, port: int | None = None) -> aio.Channel:
        """A channel of its own to a service's mutual-TLS port, under the operator's certificate."""
        address = f"{HOST}:{port or self.snapshot.ports[f'{word}.mesh']}"
        return self._kept(open_channel(address, word, tls_folder=self.folder.tls, caller=OPERATOR))

    def environment(self, word: str) -> dict[str, str]:
        """What a service of this stack is started with."""
        around = Surroundings(
            folder=self.folder,
            credentials=self.credentials,
            ports=self.snapshot.ports,
            words=list(WORDS),
            owner_url=self.postgres.url(OWNER, self.credentials.postgres(OWNER)),
            redis_urls={each: self.redis_url(each) for each in WORDS},
        )
        return child_environment(service_environment(word, around))

    async def users(self, count: int) -> list[Metadata]:
        """New users, signed in: what goes along with their calls."""
        auth = auth_pb2_grpc.AuthServiceStub(self.edge())

        async def one() -> Metadata:
            email, password = f"bench-{uuid7()}@tradeloom.local", secrets.token_urlsafe(24)
            request = auth_pb2.RegisterRequest(email=email, password=password, full_name="Bench")
            await auth.Register(request, timeout=CALL_SECONDS)
            return await sign_in(self.edge(), email, password)

        return [await one() for _ in range(count)]

    async def admin(self) -> Metadata:
        return await sign_in_admin(self.edge(), self.snapshot)

    @asynccontextmanager
    async def process(self, *command: str, environment: Mapping[str, str], ready_port: int) -> AsyncIterator[int]:
        """Another process beside the stack's, as soon as it answers; its pid. Stopped afterwards."""
        log = self.folder.logs / f"bench-{ready_port}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 (starting takes a moment in which nothing else is to run)
                [sys.executable, "-P", "-m", *command], stdout=output, stderr=output, env=dict(environment)
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await http_ok(ready_port):
                    if process.poll() is not None:
                        raise RuntimeError(f"{' '.join(command)} ended:\n{log.read_text()[-4000:]}")
                    await asyncio.sleep(POLL_SECONDS)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, STOP_SECONDS)

    @asynccontextmanager
    async def service(self, word: str) -> AsyncIterator[int]:
        """A service that the stack was told to leave out."""
        probe_port = self.snapshot.ports[f"{word}.probe"]
        async with self.process(f"services.{word}", environment=self.environment(word), ready_port=probe_port) as pid:
            yield pid

    @asynccontextmanager
    async def baselines(
        self, database_url: str = "", environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Beside]:
        """The baselines' process, started like a service. All channels end before it does."""
        port, probe_port = any_free(), any_free()
        settings = self.environment("orders") | {
            "MESH_PORT": str(port),
            "PROBE_PORT": str(probe_port),
            "DATABASE_URL": database_url,
            **(environment or {}),
        }
        async with self.process("bench.baselines", environment=settings, ready_port=probe_port) as pid:
            try:
                yield Beside(pid, port)
            finally:
                await self.close()

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        self.channels.clear()

    def _kept(self, channel: aio.Channel) -> aio.Channel:
        self.channels.append(channel)
        return channel

    def _redis_passwords(self) -> dict[str, str]:
        return {word: self.credentials.valkey(word) for word in WORDS}


@asynccontextmanager
async def stack_of(only: str) -> AsyncIterator[Stack]:
    """A stack of these services, healthy, in a temporary folder."""
    with temporary_folder() as path:
        try:
            await tradeloom("up", "--detach", "--port", "0", "--only", only, folder=path, environment=LIFTED)
            stack = stack_in(path)
            try:
                yield stack
            finally:
                await stack.close()
        finally:
            await tradeloom("down", folder=path)


def stack_in(path: Path) -> Stack:
    folder = DataFolder.at(path)
    snapshot = running(folder)
    if snapshot is None:
        raise RuntimeError(f"no stack runs in {path}")
    return Stack(folder, snapshot, Credentials(folder.secrets))


def cpu_seconds(pid: int) -> float:
    """What the process has had of the cores so far, in its own code and in the kernel's for it."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def memory_megabytes(stack: Stack) -> dict[str, float]:
    """Proportional memory by process with all it started: what is shared counts once over its sharers."""
    found = {"supervisor": pss_megabytes(psutil.Process(stack.snapshot.supervisor.pid))}
    for status in stack.snapshot.processes:
        if status.pid is not None:
            process = psutil.Process(status.pid)
            found[status.name] = sum(map(pss_megabytes, [process, *process.children(recursive=True)]))
    return found


def pss_megabytes(process: psutil.Process) -> float:
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        return process.memory_info().rss / 2**20
    [pss] = [line for line in rollup.read_text().splitlines() if line.startswith("Pss:")]
    return int(pss.split()[1]) / 1024
