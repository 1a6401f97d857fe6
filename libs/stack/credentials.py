"""The secrets of one data folder, made once and kept in files only their owner can read.

Every secret made here begins with DEVELOPMENT_MARK, so that a process told it is in production can refuse it.
"""

import base64
import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from libs.development import DEVELOPMENT_MARK
from libs.stack.processes import write_whole

ADMIN_EMAIL = "admin@tradeloom.local"
READER = "trading"
READER_PASSWORD = "trading"  # noqa: S105 (fixed by design: read-only, on loopback, embedded stack only)

SUPERUSER = "postgres"
OWNER = "tradeloom"
SEALING = ("auth", "users")
"""The services that keep something sealed, each under keys of its own."""
DEMO = "auth.demo"


def rpc_role(word: str) -> str:
    return f"{word}_rpc"


def worker_role(word: str) -> str:
    return f"{word}_worker"


class Credentials:
    """The folder's secrets by name (`postgres.orders_rpc`, `valkey.orders`); a name asked for the first time gets one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "secrets.json"
        self.admin_password_file = folder / "admin-password"
        self._folder = folder
        self._values: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def make(self, words: Iterable[str]) -> None:
        """Make what is missing; on disk before anything can use it."""
        names = [f"postgres.{SUPERUSER}", f"postgres.{OWNER}", "valkey.stack", "auth.admin", DEMO]
        for word in words:
            names += [f"postgres.{rpc_role(word)}", f"postgres.{worker_role(word)}", f"valkey.{word}"]
        missing = [name for name in names if name not in self._values]
        for name in missing:
            self._values[name] = new_password()
        if missing:
            write_whole(self._file, json.dumps(self._values, indent=1))
        if not self.admin_password_file.exists():
            write_whole(self.admin_password_file, self["auth.admin"] + "\n")
        for word in SEALING:
            if not (file := self.keys_file(word)).exists():
                write_whole(file, new_entry() + "\n")

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def keys_file(self, word: str) -> Path:
        """Of the key-encryption keys of one of SEALING."""
        return self._folder / f"{word}-keys"

    def postgres(self, role: str) -> str:
        return self[f"postgres.{role}"]

    def valkey(self, user: str) -> str:
        return self[f"valkey.{user}"]


def new_password() -> str:
    return DEVELOPMENT_MARK + secrets.token_hex(20)


def new_key() -> str:
    """32 bytes in base64."""
    return base64.b64encode(base64.b64decode(DEVELOPMENT_MARK) + secrets.token_bytes(29)).decode()


def new_entry() -> str:
    """A key for a file of key-encryption keys, called by when it was made."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}:{new_key()}"
