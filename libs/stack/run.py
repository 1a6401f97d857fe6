"""One run of the stack, from the command to healthy, and down again.

lock the folder -> stop what a killed run left -> ports
├── certificates ──────────────────────── Envoy ─┐
├── Valkey ───────────┐                          ├── healthy ... until told to stop
└── Postgres -> database -> migrations -> services ┘
services drain -> Envoy -> Valkey -> Postgres
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from libs.stack.credentials import OWNER, Credentials, rpc_role, worker_role
from libs.stack.envoy import edge_reaches, envoy_process
from libs.stack.errors import StackError
from libs.stack.logs import Log
from libs.stack.options import Options
from libs.stack.pki import make_certificates
from libs.stack.ports import Ports, choose_ports
from libs.stack.postgres import START_SECONDS as POSTGRES_START_SECONDS
from libs.stack.postgres import (
    PostgresServer,
    let_roles_in,
    make_cluster,
    make_database,
    postgres_process,
    roles_to_let_in,
)
from libs.stack.processes import Owned
from libs.stack.schema import check_database, migrate
from libs.stack.services import Surroundings, installed_words, service_process
from libs.stack.state import HEALTHY, STOPPING, Snapshot, locked
from libs.stack.supervisor import LEFT_BEHIND_SECONDS, State, Status, Supervisor, clear_left_behind
from libs.stack.urls import plain_database_url
from libs.stack.valkey import OPERATOR, ValkeyServer, valkey_process
from libs.stack.valkey import START_SECONDS as VALKEY_START_SECONDS
from libs.words import WORDS

REACH_POLL_SECONDS = 0.05
RENEWAL_SECONDS = 1800.0
"""Between two looks at the certificates: half of what a new authority waits before it signs."""
SERVER_DEATHS_MAX = 3
"""Postgres or Valkey dying this often before it ever worked ends the start: waiting longer would not help."""


class Run:
    """The stack of one data folder, while it is up. `tell` hears every change, with the event in words."""

    def __init__(self, options: Options, tell: Callable[[Snapshot, str], None]) -> None:
        self._options = options
        self._folder = options.folder
        self._tell = tell
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        me = Owned.of(os.getpid())
        assert me is not None
        self.snapshot = Snapshot(supervisor=me, start_time=datetime.now(UTC))
        self._credentials = Credentials(self._folder.secrets)
        self._ports = Ports()
        self._supervisor: Supervisor | None = None

    def stop(self) -> None:
        """Come down; said twice, without waiting for anything to drain."""
        if self._stopping.is_set() and self._supervisor is not None:
            self._supervisor.kill_all()
        self._stopping.set()

    async def __call__(self) -> None:
        """From start to stop. Raises StackError when it cannot start, AlreadyRunning when it has."""
        async with locked(self._folder):
            log = Log(self._folder.log("supervisor"))
            self._log = log
            try:
                await self._live()
            finally:
                self._ports.release()
                log.close()

    async def _live(self) -> None:
        self._say("starting")
        for name in await clear_left_behind(self._folder.run, stop_seconds=LEFT_BEHIND_SECONDS):
            self._say(f"stopped {name}, left by a run that was killed")
        async with Supervisor(logs=self._folder.logs, run=self._folder.run, changed=self._changed) as supervisor:
            self._supervisor = supervisor
            starting = asyncio.create_task(self._start(supervisor))
            renewing = asyncio.create_task(self._renew_certificates())
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    await stopping
            finally:
                stopping.cancel()
                starting.cancel()
                renewing.cancel()
                await asyncio.wait((starting, renewing))
                self.snapshot.state = STOPPING
                self._say("stopping")
                words = [status.name for status in supervisor.statuses if status.name in WORDS]
                for names in (words, ["envoy"], ["valkey"], ["postgres"]):
                    await supervisor.stop(*names)
        self._say("stopped")

    async def _start(self, supervisor: Supervisor) -> None:
        words = self.snapshot.words = installed_words(self._options.only)
        with self._phase("secrets"):
            self._credentials.make(WORDS)
            self._refuse_in_production()
        self.snapshot.admin_password_file = str(self._credentials.admin_password_file)
        earlier = Snapshot.read(self._folder)
        self.snapshot.ports = choose_ports(self._ports, self._options.port, earlier.ports if earlier else {})
        try:
            async with asyncio.TaskGroup() as together:
                database = together.create_task(self._start_database(supervisor))
                cache = together.create_task(self._start_valkey(supervisor, words))
                together.create_task(self._start_edge(supervisor))
                together.create_task(self._start_services(supervisor, words, database, cache))
        except BaseExceptionGroup as group:
            # They fail alone or because of each other; the first says why.
            raise group.exceptions[0] from None
        with self._phase("readiness"):
            await self._all_ready(supervisor)
        with self._phase("reach"):
            while not await edge_reaches(self.snapshot.ports["edge.admin"], words):  # noqa: ASYNC110 (Envoy only answers)
                await asyncio.sleep(REACH_POLL_SECONDS)
        self.snapshot.healthy_seconds = round(time.time() - self._options.began, 2)
        self.snapshot.state = HEALTHY
        self._say(f"healthy after {self.snapshot.healthy_seconds:.1f} s")

    async def _start_services(
        self,
        supervisor: Supervisor,
        words: Sequence[str],
        database: asyncio.Task[str],
        cache: asyncio.Task[Mapping[str, str]],
    ) -> None:
        around = Surroundings(
            folder=self._folder,
            credentials=self._credentials,
            ports=self.snapshot.ports,
            words=words,
            owner_url=await database,
            redis_urls=await cache,
        )
        for word in words:
            supervisor.start(service_process(word, around))

    async def _all_ready(self, supervisor: Supervisor) -> None:
        """However long it takes: who waits for us has a limit of his own, and sees what is not ready."""
        while any(status.state is not State.READY for status in supervisor.statuses):
            self._moved.clear()
            await self._moved.wait()

    def _refuse_in_production(self) -> None:
        """What this stack makes for itself is for development: the data folder's secrets, the reader's password."""
        if os.environ.get("ENVIRONMENT") == "production":
            raise StackError(f"ENVIRONMENT=production refuses development secrets in {self._folder.secrets}")

    async def _start_database(self, supervisor: Supervisor) -> str:
        """The owner's URL, once the schemas are there and the services' roles may log in."""
        passwords = role_passwords(self._credentials)
        if own := os.environ.get("DATABASE_URL"):
            self.snapshot.embedded_database = False
            owner_url = plain_database_url(own)
            await check_database(owner_url)
            passwords = await roles_to_let_in(owner_url, passwords, take_over=self._options.take_over)
        else:
            owner_url = await self._start_postgres(supervisor)
        with self._phase("migrations"):
            await migrate(owner_url, self._folder)
            await let_roles_in(owner_url, passwords)
        return owner_url

    async def _start_postgres(self, supervisor: Supervisor) -> str:
        server = PostgresServer(self.snapshot.ports["postgres"], self._credentials.postgres("postgres"))
        with self._phase("cluster"):
            home = await make_cluster(self._folder.postgres, server.superuser_password)
        with self._phase("postgres"):
            supervisor.start(postgres_process(home, server.port))
            await supervisor.wait_ready("postgres", seconds=POSTGRES_START_SECONDS, deaths_max=SERVER_DEATHS_MAX)
            await make_database(server, self._credentials.postgres(OWNER), list(WORDS))
        return server.url(OWNER, self._credentials.postgres(OWNER))

    async def _start_valkey(self, supervisor: Supervisor, words: Sequence[str]) -> Mapping[str, str]:
        """Each word's URL. On a server of somebody else's all share the one that was given."""
        if own := os.environ.get("REDIS_URL"):
            return dict.fromkeys(words, own)
        passwords = {user: self._credentials.valkey(user) for user in (*WORDS, OPERATOR)}
        server = ValkeyServer(self.snapshot.ports["valkey"], passwords)
        with self._phase("valkey"):
            supervisor.start(valkey_process(self._folder.valkey, server, log=self._folder.log("valkey")))
            await supervisor.wait_ready("valkey", seconds=VALKEY_START_SECONDS, deaths_max=SERVER_DEATHS_MAX)
        return {word: server.url(word) for word in words}

    async def _start_edge(self, supervisor: Supervisor) -> None:
        with self._phase("certificates"):
            await self._make_certificates()
        with self._phase("edge"):
            supervisor.start(await envoy_process(self._folder, self.snapshot.ports))

    async def _make_certificates(self) -> list[str]:
        """The words that have a new one."""
        names = [*WORDS, "edge", "operator"]
        return await asyncio.to_thread(make_certificates, self._folder.tls, self._folder.secrets / "ca.key", names)

    async def _renew_certificates(self) -> None:
        """For a stack that is up for longer than a certificate lasts; who uses them follows by himself."""
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            try:
                if made := await self._make_certificates():
                    self._say(f"renewed the certificates of {', '.join(made)}")
            except OSError as error:
                self._say(f"cannot renew certificates, and will try again: {error}")

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.time()
        yield
        self.snapshot.phases[name] = [round(moment - self._options.began, 3) for moment in (began, time.time())]

    def _changed(self, status: Status, event: str) -> None:
        self._say(f"{status.name}: {event}")
        self._moved.set()

    def _say(self, event: str) -> None:
        if self._supervisor is not None:
            self.snapshot.processes = self._supervisor.statuses
        if self.snapshot.ports:
            with suppress(OSError):  # a full disk must not end what runs well
                self.snapshot.write(self._folder)
        self._log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {event}\n".encode())
        with suppress(OSError):  # nor the end of whoever read our output
            self._tell(self.snapshot, event)


def role_passwords(credentials: Credentials) -> dict[str, str]:
    return {role: credentials.postgres(role) for word in WORDS for role in (rpc_role(word), worker_role(word))}
