"""Ports on loopback: the standard ones, others where those are taken."""

import random
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Self

import psutil

from libs.stack.errors import StackError
from libs.words import EDGE_PORT, TABLE, WORDS

HOST = "127.0.0.1"
ANY_PORT = 0
OTHERS = range(28_100, 32_768)
"""Where other ports are looked for: above the standard ones, and below those that Linux gives to outgoing connections,
of which one might take a port between the choice and its server."""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: an old connection in TIME_WAIT does not hold the port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Ports:
    """Gives out each port once, and on Linux to one stack of the machine only, until this object or its process ends.

    Between the choice and the moment a server listens lie seconds, in which another stack would choose the same.
    """

    def __init__(self) -> None:
        self._claims: dict[int, socket.socket | None] = {}

    def take(self, *preferred: int) -> int:
        """The first preferred port that is free, or any other."""
        for port in preferred:
            if self._claim(port):
                return port
        while not self._claim(port := any_free()):
            pass
        return port

    def insist(self, port: int, flag: str) -> int:
        """Take this port and no other; raises StackError naming who holds it."""
        if not self._claim(port):
            raise StackError(f"port {port} is held by {holder(port)}; stop it, or choose another port with {flag}")
        return port

    def _claim(self, port: int) -> bool:
        if port in self._claims or not is_free(port):
            return False
        if sys.platform != "linux":
            self._claims[port] = None
            return True
        claim = socket.socket(socket.AF_UNIX)
        try:
            # A name without a file: it lives in the same network namespace as the port and ends with its holder.
            claim.bind(f"\0tradeloom/port/{port}")
        except OSError:
            claim.close()
            return False
        self._claims[port] = claim
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        for claim in self._claims.values():
            if claim is not None:
                claim.close()
        self._claims.clear()


def any_free() -> int:
    """One of OTHERS at random; where all of them are taken, what the system gives."""
    for port in random.sample(OTHERS, len(OTHERS)):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def holder(port: int) -> str:
    """Who listens there, in words."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        connections = []
    return describe(
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    )


def listens(pid: int, port: int) -> bool:
    """Whether this very process, or one it started, is the listener; True where the system does not tell."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        connections = [connection for process in family for connection in process.net_connections(kind="tcp")]
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        for connection in connections
    )


def describe(pids: Iterable[int | None]) -> str:
    for pid in pids:
        if pid is None:
            continue
        try:
            process = psutil.Process(pid)
            return f"{process.name()} (pid {pid}: {' '.join(process.cmdline())[:80]})"
        except psutil.Error:
            continue
    return "another stack that is starting, or a process of another user"


def standard_ports() -> dict[str, int]:
    """By use; also for services that are not started now, so that they are found when they are."""
    ports = {
        "edge": EDGE_PORT,
        "edge.admin": EDGE_PORT + 10_000,
        "edge.probe": EDGE_PORT + 20_000,
        "postgres": 5432,
        "valkey": 6379,
    }
    for word in WORDS.values():
        ports[f"{word.name}.mesh"] = word.mesh_port
        ports[f"{word.name}.probe"] = word.probe_port
    for word in TABLE:
        ports[f"{word.name}.alias"] = word.alias_port
        if word.also_port is not None:
            ports[f"{word.name}.also"] = word.also_port
    return ports


def choose_ports(ports: Ports, edge_port: int | None, earlier: Mapping[str, int]) -> dict[str, int]:
    """By use. What was asked for by number is taken or refused.

    A standard port that is taken gives way to the one of the last run, then to any. 0 asks for any, for everything:
    stacks side by side then do not compete for the standard ones.
    """
    chosen = {"edge": ports.insist(edge_port, "--port")} if edge_port else {}
    for use, port in standard_ports().items():
        if use not in chosen:
            preferred = [earlier[use]] if use in earlier else []
            chosen[use] = ports.take(*preferred) if edge_port == ANY_PORT else ports.take(port, *preferred)
    return chosen


def moved_ports(ports: Mapping[str, int]) -> dict[str, int]:
    """Those that are not the standard ones, by use."""
    standard = standard_ports()
    return {use: port for use, port in ports.items() if port != standard[use]}
