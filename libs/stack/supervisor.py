"""Keeps processes running: starts them, watches them, starts them again when they die, and stops them.

It knows nothing about what it supervises; a `Process` says all of it.

    WAITING -> STARTING -> READY <-> UNREADY        any of them -> STOPPING -> STOPPED
       ^                      |
       +----- it died --------+                     the wait doubles with each death that comes soon
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from libs.stack import processes
from libs.stack.errors import StackError
from libs.stack.logs import Log, tail
from libs.stack.ports import holder, is_free, listens
from libs.stack.processes import Owned, child_environment, write_whole

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 30.0
STABLE_SECONDS = 30.0
"""Having lived this long, a process is no longer counted as failing: its next wait is the first one again."""
STARTING_POLL_SECONDS = 0.05
READY_POLL_SECONDS = 2.0
LOG_READ_BYTES = 65_536
END_SECONDS = 5.0
"""How long a program that ran out of time may take to end."""
FAILURE_LINES_MAX = 20
LEFT_BEHIND_SECONDS = 10.0
"""How long processes of a killed run may take to end."""
FINAL_READS_MAX = 16
"""After a process ended: 1 MiB, many times what a pipe can hold."""

LAUNCHER = Path(__file__).with_name("launch.py")

Identity = Literal["self", "userns", "nobody"]


async def nothing_to_prepare() -> None:
    pass


def unheard(status: "Status", event: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What to run, how to know that it works, and how to end it."""

    name: str
    command: Sequence[str]
    ready: Callable[[], Awaitable[bool]]
    """Asks once; must answer within a few seconds and not raise."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""
    folder: Path | None = None
    """Its working folder; ours when None."""
    ports: Mapping[str, int] = field(default_factory=dict)
    identity: Identity = "self"
    prepare: Callable[[], Awaitable[None]] = nothing_to_prepare
    """Before each start: remove what a killed predecessor left."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    """How long it may take to end before it is killed."""
    death_signal: signal.Signals = signal.SIGKILL
    """What it gets from the kernel when the supervisor is killed."""


class State(StrEnum):
    WAITING = "waiting"
    """It died and will be started again."""
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """It lives, but says that it cannot work at present."""
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True)
class Status:
    """What became of a process so far."""

    name: str
    ports: Mapping[str, int]
    state: State = State.WAITING
    pid: int | None = None
    deaths: int = 0
    """Not asked for; each is followed by a restart, after a wait."""
    restarts: int = 0
    start_time: datetime | None = None
    ready_seconds: float | None = None
    """From its (last) start to its first readiness."""
    exit: str = ""
    """How it ended last, in words; empty while it never did."""
    next_start_seconds: float | None = None
    """The present wait before it is started again."""


class Supervisor:
    """Runs processes until told to stop.

    All methods belong to one event loop in the main thread: the kernel ends a child when the very thread that made it ends.
    """

    def __init__(self, *, logs: Path, run: Path, changed: Callable[[Status, str], None] = unheard) -> None:
        """`changed` hears of every change, with the event in words."""
        self._logs = logs
        self._run = run
        self._changed = changed
        self._kept: dict[str, Kept] = {}

    @property
    def statuses(self) -> list[Status]:
        return [kept.status for kept in self._kept.values()]

    def start(self, process: Process) -> None:
        """Start it now and keep it running; `wait_ready` tells when it works."""
        if process.name in self._kept:
            raise ValueError(f"{process.name} is supervised already")
        kept = Kept(
            process,
            log=self._logs / f"{process.name}.log",
            file=self._run / f"{process.name}.json",
            changed=self._changed,
        )
        self._kept[process.name] = kept
        kept.begin()

    async def wait_ready(self, name: str, *, seconds: float, deaths_max: int | None = None) -> None:
        """Raises StackError with the last lines of its log when it is not ready in time, or died that often."""
        kept = self._kept[name]
        until = asyncio.get_running_loop().time() + seconds
        while kept.status.state is not State.READY:
            if deaths_max is not None and kept.status.deaths >= deaths_max:
                raise StackError(f"{name} does not start ({kept.status.exit}):\n{tail(kept.log_file)}")
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                raise StackError(f"{name} is not ready after {seconds:.0f} s:\n{tail(kept.log_file)}")
            kept.moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await kept.moved.wait()

    async def stop(self, *names: str) -> None:
        """Stop these at the same time, and do not start them again; an unknown name is no error."""
        await asyncio.gather(*(self._kept[name].end() for name in names if name in self._kept))

    def kill_all(self) -> None:
        """For the impatient: no draining. `stop` then finds nothing left to wait for."""
        for kept in self._kept.values():
            if kept.status.pid is not None and (owned := Owned.of(kept.status.pid)):
                owned.send(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(*self._kept)


class Kept:
    """One process, kept running by one task."""

    def __init__(self, process: Process, *, log: Path, file: Path, changed: Callable[[Status, str], None]) -> None:
        self.process = process
        self.status = Status(process.name, process.ports)
        self.log_file = log
        self.moved = asyncio.Event()
        self._file = file
        self._tell = changed
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.process.name}")

    async def end(self) -> None:
        self._ending.set()
        if self._task is not None:
            await self._task

    def _move(self, state: State, event: str = "") -> None:
        self.status.state = state
        self.moved.set()
        self._tell(self.status, event or state.value)

    async def _keep(self) -> None:
        log = Log(self.log_file)
        wait_seconds = BACKOFF_FIRST_SECONDS
        try:
            while not self._ending.is_set():
                lived_seconds = await self._live(log)
                if self._ending.is_set():
                    break
                if lived_seconds >= STABLE_SECONDS:
                    wait_seconds = BACKOFF_FIRST_SECONDS
                self.status.deaths += 1
                self.status.next_start_seconds = wait_seconds
                self._move(State.WAITING, f"{self.status.exit}, starts again in {wait_seconds:.1f} s")
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_seconds):
                        await self._ending.wait()
                wait_seconds = min(2 * wait_seconds, BACKOFF_MAX_SECONDS)
                self.status.next_start_seconds = None
                self.status.restarts += 1
        finally:
            self.status.pid = None
            self._file.unlink(missing_ok=True)
            log.close()
            self._move(State.STOPPED)

    async def _live(self, log: Log) -> float:
        """One life of the process: how long it lasted, in seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self.process.prepare()
            output = Output(log)
            child = await self._spawn(output)
        except (OSError, StackError) as error:
            self.status.exit = f"cannot start: {error}"
            return loop.time() - began
        owned = Owned.of(child.pid)
        if owned is not None:
            with suppress(OSError):  # a full disk; the kernel ends the process with us all the same
                Record(owned, int(self.process.stop_signal)).write(self._file)
        self.status.pid = child.pid
        self.status.start_time = datetime.now(UTC)
        self.status.ready_seconds = None
        self._move(State.STARTING)

        watching = asyncio.create_task(self._watch(began))
        died = asyncio.create_task(child.wait())
        asked = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((died, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            asked.cancel()
            if not died.done():
                self._move(State.STOPPING)
                if owned is not None:
                    await processes.stop(owned, by=self.process.stop_signal, seconds=self.process.stop_seconds)
            code = await died
            output.close()
        self.status.exit = describe_exit(code)
        self.status.pid = None
        taken = [port for port in self.process.ports.values() if not is_free(port)]
        if taken and not self._ending.is_set():
            self.status.exit += f"; port {taken[0]} is held by {holder(taken[0])}"
        return loop.time() - began

    async def _spawn(self, output: "Output") -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *launcher_command(
                    self.process.command, identity=self.process.identity, death_signal=self.process.death_signal
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.writing,
                stderr=output.writing,
                cwd=self.process.folder,
                env=child_environment(self.process.environment),
                start_new_session=True,
            )
        except BaseException:
            output.close()
            raise
        finally:
            output.hand_over()

    async def _watch(self, began: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ready = await self.process.ready()
            if ready and self.status.ready_seconds is None:
                # A server that was there before may answer in its place.
                ready = all(listens(self.status.pid or 0, port) for port in self.process.ports.values())
            if ready and self.status.ready_seconds is None:
                self.status.ready_seconds = loop.time() - began
            if ready and self.status.state is not State.READY:
                self._move(State.READY)
            if not ready and self.status.state is State.READY:
                self._move(State.UNREADY)
            await asyncio.sleep(READY_POLL_SECONDS if ready else STARTING_POLL_SECONDS)


def launcher_command(
    command: Sequence[str], *, identity: Identity = "self", death_signal: signal.Signals = signal.SIGKILL
) -> list[str]:
    """The same command, bound to the life of this process."""
    return [
        sys.executable, "-I", "-S", str(LAUNCHER),
        "--parent", str(os.getpid()),
        "--death-signal", str(int(death_signal)),
        "--identity", identity,
        "--", *command,
    ]  # fmt: skip


async def run_to_end(
    command: Sequence[str], *, seconds: float, identity: Identity = "self", environment: Mapping[str, str] | None = None
) -> str:
    """What the program said. Raises StackError with the end of it when it fails or takes too long."""
    child = await asyncio.create_subprocess_exec(
        *launcher_command(command, identity=identity),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        env=child_environment(environment),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await child.communicate()
    except TimeoutError:
        raise StackError(f"{' '.join(command)} took more than {seconds:.0f} s") from None
    finally:
        if child.returncode is None and (owned := Owned.of(child.pid)):
            await processes.stop(owned, by=signal.SIGTERM, seconds=END_SECONDS)
    said = output.decode(errors="replace").strip()
    if child.returncode != 0:
        lines = "\n".join(said.splitlines()[-FAILURE_LINES_MAX:])
        raise StackError(f"{' '.join(command)} {describe_exit(child.returncode or 0)}:\n{lines}")
    return said


class Output:
    """A pipe from a process to its log. Not a file of its own: only a reader can bound the log without losing lines."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        asyncio.get_running_loop().add_reader(self._reading, self._copy)

    def hand_over(self) -> None:
        """The process has its own copy of the writing end by now."""
        os.close(self.writing)

    def close(self) -> None:
        """Take what is left; whoever else still holds the other end writes in vain."""
        for _ in range(FINAL_READS_MAX):
            if not self._copy():
                break
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)

    def _copy(self) -> bool:
        """False when there is nothing at present, or nothing any more."""
        try:
            data = os.read(self._reading, LOG_READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
        else:
            asyncio.get_running_loop().remove_reader(self._reading)
        return bool(data)


def describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with {code}"


@dataclass(frozen=True, slots=True)
class Record:
    """What `run/<name>.json` says: the process, and how it is to be asked to end."""

    owned: Owned
    stop_signal: int

    def write(self, file: Path) -> None:
        write_whole(file, json.dumps(asdict(self)), durable=False)  # a machine that lost power runs none of these

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """None when there is no such file or it was cut short by a crash."""
        try:
            fields = json.loads(file.read_text())
            return cls(Owned(**fields["owned"]), int(fields["stop_signal"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None


def left_behind(run: Path) -> dict[str, Record]:
    """Processes of an earlier run that still live, by name."""
    found = {file.stem: record for file in run.glob("*.json") if (record := Record.read(file))}
    return {name: record for name, record in found.items() if record.owned.alive}


async def clear_left_behind(run: Path, *, stop_seconds: float) -> list[str]:
    """Stop what an earlier, killed supervisor left; their names. Only for the holder of the folder's lock."""
    left = left_behind(run)
    await asyncio.gather(
        *(
            processes.stop(record.owned, by=signal.Signals(record.stop_signal), seconds=stop_seconds)
            for record in left.values()
        )
    )
    forget(run)
    return sorted(left)


def forget(run: Path) -> None:
    for file in run.glob("*.json"):
        file.unlink()
