"""What runs where: written by the supervisor into stack.json, read by everything else. It holds no secrets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from libs.stack.folder import DataFolder, FolderInUse, FolderLock
from libs.stack.processes import Owned, write_whole
from libs.stack.supervisor import State, Status

STARTING = "starting"
HEALTHY = "healthy"
STOPPING = "stopping"

LOCK_SECONDS = 2.0
"""How long another process may hold the folder just to look, or to die."""
LOCK_POLL_SECONDS = 0.05


@dataclass(slots=True, kw_only=True)
class Snapshot:
    supervisor: Owned
    start_time: datetime
    state: str = STARTING
    healthy_seconds: float | None = None
    """From the command to everything ready; None until then."""
    phases: dict[str, list[float]] = field(default_factory=dict)
    """By name: when it began and when it ended, in seconds after the command. They overlap."""
    words: list[str] = field(default_factory=list)
    """The services asked for, started or not."""
    ports: dict[str, int] = field(default_factory=dict)
    """By use: `edge`, `postgres`, `valkey`, `<word>.mesh`, `<word>.probe`, `<word>.alias`, `<word>.also`."""
    admin_password_file: str = ""
    embedded_database: bool = True
    processes: list[Status] = field(default_factory=list)

    @property
    def edge_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['edge']}"

    def write(self, folder: DataFolder) -> None:
        write_whole(folder.state, json.dumps(asdict(self), default=text_of, indent=1), durable=False)

    @classmethod
    def read(cls, folder: DataFolder) -> Self | None:
        """What the last supervisor said, alive or not; None when there was none."""
        try:
            fields: dict[str, Any] = json.loads(folder.state.read_text())
            return cls(
                **fields
                | {
                    "supervisor": Owned(**fields["supervisor"]),
                    "start_time": datetime.fromisoformat(fields["start_time"]),
                    "processes": [status_from(one) for one in fields["processes"]],
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def running(folder: DataFolder) -> Snapshot | None:
    """None unless a supervisor is alive in this folder."""
    snapshot = Snapshot.read(folder)
    return snapshot if snapshot and snapshot.supervisor.alive else None


def in_use(folder: DataFolder) -> bool:
    """Whether somebody has the folder: also before its first word, and after its last."""
    try:
        with FolderLock(folder):
            return False
    except FolderInUse:
        return True


def status_from(fields: dict[str, Any]) -> Status:
    began = fields["start_time"]
    return Status(
        **fields | {"state": State(fields["state"]), "start_time": datetime.fromisoformat(began) if began else None}
    )


def text_of(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value))


class AlreadyRunning(Exception):
    """The folder is in use by this stack."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        super().__init__("the stack is running already")
        self.snapshot = snapshot


@asynccontextmanager
async def locked(folder: DataFolder) -> AsyncIterator[None]:
    """The folder is ours alone; raises AlreadyRunning when a living supervisor has it."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with FolderLock(folder):
                yield
                return
        except FolderInUse:
            if time.monotonic() >= until:
                raise AlreadyRunning(running(folder)) from None
        await asyncio.sleep(LOCK_POLL_SECONDS)
