"""The data folder: everything a run keeps, and the lock that lets only one run use it.

lock          held by the supervisor; whoever holds it owns the rest
stack.json    what runs where, for status, health, psql and demo
envoy.json    the edge's configuration, made at each start
edge/         through which the edge follows its certificate
secrets/      made once
tls/          certificates; what services read as TLS_FOLDER
run/          one file per process we started: its pid and when it began
logs/         one log per process
postgres/  valkey/
mails/        what would have been sent, where there is no mail server
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_FOLDER = Path(".tradeloom")
FOLDER_VARIABLE = "TRADELOOM_DATA_DIR"


@dataclass(frozen=True, slots=True)
class DataFolder:
    path: Path

    @classmethod
    def at(cls, path: Path | None = None) -> Self:
        """The folder given, else the one the environment names, else `.tradeloom` here. Nothing is made yet."""
        return cls((path or Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)).expanduser().absolute())

    def make(self) -> None:
        for folder in (
            self.path,
            self.secrets,
            self.tls,
            self.edge,
            self.run,
            self.logs,
            self.postgres,
            self.valkey,
            self.replays,
        ):
            make_private(folder)

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def state(self) -> Path:
        return self.path / "stack.json"

    @property
    def envoy(self) -> Path:
        return self.path / "envoy.json"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def tls(self) -> Path:
        return self.path / "tls"

    @property
    def edge(self) -> Path:
        return self.path / "edge"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def valkey(self) -> Path:
        return self.path / "valkey"

    @property
    def replays(self) -> Path:
        """Where an operator puts recorded trades, for feeds to play."""
        return self.path / "replays"

    @property
    def mails(self) -> Path:
        """Made by auth with the first mail."""
        return self.path / "mails"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


class FolderInUse(Exception):
    """Another supervisor holds the folder."""


class FolderLock:
    """Held while the context is open; the kernel lets go of it when its holder dies, however it dies."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._folder.make()
        self._descriptor = os.open(self._folder.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise FolderInUse(self._folder.path) from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
