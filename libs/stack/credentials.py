"""The secrets of one data folder, made once and kept in files only their owner can read.

Every secret made here begins with the same four letters, so that a process told it is in production can refuse it.
"""

import base64
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from libs.stack.errors import StackError
from libs.stack.processes import write_whole

DEVELOPMENT_MARK = "devl"
"""Valid in base64, in URLs and in SQL; 232 random bits of a 256-bit key remain."""

WELL_KNOWN = frozenset(
    {"trading", "tradeloom", "postgres", "admin", "password", "secret", "changeme", "change-me", "dev"}
)

ADMIN_EMAIL = "admin@tradeloom.local"
READER = "trading"
READER_PASSWORD = "trading"  # noqa: S105 (fixed by design: read-only, on loopback, embedded stack only)

SUPERUSER = "postgres"
OWNER = "tradeloom"
KEY_ENCRYPTION_KEY = "auth.key_encryption_key"
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
        self._values: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def make(self, words: Iterable[str]) -> None:
        """Make what is missing; on disk before anything can use it."""
        names = [f"postgres.{SUPERUSER}", f"postgres.{OWNER}", "valkey.stack", KEY_ENCRYPTION_KEY, "auth.admin", DEMO]
        for word in words:
            names += [f"postgres.{rpc_role(word)}", f"postgres.{worker_role(word)}", f"valkey.{word}"]
        missing = [name for name in names if name not in self._values]
        for name in missing:
            self._values[name] = new_key() if name == KEY_ENCRYPTION_KEY else new_password()
        if missing:
            write_whole(self._file, json.dumps(self._values, indent=1))
        if not self.admin_password_file.exists():
            write_whole(self.admin_password_file, self["auth.admin"] + "\n")

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def postgres(self, role: str) -> str:
        return self[f"postgres.{role}"]

    def valkey(self, user: str) -> str:
        return self[f"valkey.{user}"]


def new_password() -> str:
    return DEVELOPMENT_MARK + secrets.token_hex(20)


def new_key() -> str:
    """32 bytes in base64."""
    return base64.b64encode(base64.b64decode(DEVELOPMENT_MARK) + secrets.token_bytes(29)).decode()


def development_secrets(values: Mapping[str, str]) -> list[str]:
    """The names of those values that are, or as URLs carry, a secret made for development or known to everybody."""
    return sorted(name for name, value in values.items() if is_development_secret(value))


def is_development_secret(value: str) -> bool:
    secret = value
    if "://" in value:
        password = urlsplit(value).password
        if password is None:
            return False
        secret = unquote(password)
    return secret.startswith(DEVELOPMENT_MARK) or secret.lower() in WELL_KNOWN


def refuse_development_secrets(environment: str, values: Mapping[str, str]) -> None:
    """Raises StackError, naming the settings, when a production environment holds development secrets."""
    if environment == "production" and (names := development_secrets(values)):
        raise StackError(f"ENVIRONMENT=production refuses development secrets in {', '.join(names)}")
