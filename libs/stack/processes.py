"""Which processes are ours, provably, and how to stop them.

A pid alone proves nothing: the system hands it out again. A pid with the moment its process began does.
"""

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

POLL_SECONDS = 0.02
KILL_WAIT_SECONDS = 5.0
"""How long the kernel gets to take a killed process away."""

PROXY_VARIABLES = frozenset(
    {"http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"}
)


@dataclass(frozen=True, slots=True)
class Owned:
    """A process we started: its pid, and a mark that no later process with this pid can have."""

    pid: int
    mark: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """None when there is no such process, or only its corpse."""
        mark = mark_of(pid)
        return cls(pid, mark) if mark else None

    @property
    def alive(self) -> bool:
        return mark_of(self.pid) == self.mark

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def mark_of(pid: int) -> str | None:
    """The boot and the clock tick in which the process began; None when it does not live."""
    try:
        if Path("/proc/self/stat").exists():
            # The name in parentheses may hold anything, so count from its end: state is the 3rd field, start the 22nd.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else f"{boot_id()}:{fields[19]}"
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except (OSError, psutil.Error):
        return None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def descendants(pid: int) -> list[Owned]:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [owned for child in children if (owned := Owned.of(child.pid))]


async def stop(owned: Owned, *, by: signal.Signals, seconds: float) -> bool:
    """Ask the process to end, then end it and what it started; False when it had to be killed."""
    family = descendants(owned.pid) if owned.alive else []
    owned.send(by)
    asked = await gone([owned], seconds)
    await kill([owned, *family])
    return asked


async def kill(all_owned: Iterable[Owned]) -> None:
    left = [owned for owned in all_owned if owned.alive]
    for owned in left:
        owned.send(signal.SIGKILL)
    await gone(left, KILL_WAIT_SECONDS)


async def gone(all_owned: Iterable[Owned], seconds: float) -> bool:
    """Wait until none of them lives; False when the time is up first."""
    left = list(all_owned)
    until = asyncio.get_running_loop().time() + seconds
    while left := [owned for owned in left if owned.alive]:
        if asyncio.get_running_loop().time() >= until:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without proxies (everything here is on loopback), with what a bare machine may lack."""
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
    return (
        {"PATH": os.defpath, "LANG": "C.UTF-8"} | inherited | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"} | dict(extra or {})
    )


def write_whole(file: Path, text: str, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace the file so that a reader, or a crash, sees the old text or the new one, never a part.

    What may be lost with the machine's power (not durable) is written faster.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    draft.replace(file)
