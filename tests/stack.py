"""The whole stack, as `tradeloom up` starts it: real Postgres, Valkey, Envoy and every service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.stack.credentials import ADMIN_EMAIL
from libs.stack.folder import DataFolder
from libs.stack.state import Snapshot

UP_SECONDS = 120
DOWN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Stack:
    folder: DataFolder

    @property
    def snapshot(self) -> Snapshot:
        found = Snapshot.read(self.folder)
        assert found is not None
        return found

    @property
    def edge(self) -> str:
        return f"127.0.0.1:{self.snapshot.ports['edge']}"

    @property
    def admin(self) -> tuple[str, str]:
        """E-mail and password of the generated administrator."""
        return ADMIN_EMAIL, Path(self.snapshot.admin_password_file).read_text().strip()

    @property
    def replays(self) -> Path:
        return self.folder.replays

    def log(self, name: str) -> str:
        return self.folder.log(name).read_text()

    def command(
        self, *arguments: str, seconds: float = UP_SECONDS, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `tradeloom …` on this stack."""
        return subprocess.run(
            [sys.executable, "-m", "libs.cli", *arguments, "--data-dir", str(self.folder.path)],
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, **(environment or {})},
        )


@contextmanager
def stack_in(folder: Path, **environment: str) -> Iterator[Stack]:
    """A stack of its own, up and healthy; taken down afterwards."""
    stack = Stack(DataFolder.at(folder))
    started = stack.command("up", "--detach", environment=environment)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield stack
    finally:
        down = stack.command("down", seconds=DOWN_SECONDS)
        assert down.returncode == 0, down.stdout + down.stderr
