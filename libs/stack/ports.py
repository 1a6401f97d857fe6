"""Ports on loopback: the standard ones, others where those are taken."""

import socket
from collections.abc import Iterable

import psutil

from libs.stack.errors import StackError

HOST = "127.0.0.1"


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
    """Gives out each port once."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def take(self, *preferred: int) -> int:
        """The first preferred port that is free, or any other."""
        for port in preferred:
            if port not in self._given and is_free(port):
                self._given.add(port)
                return port
        while (port := any_free()) in self._given:
            pass
        self._given.add(port)
        return port

    def insist(self, port: int, flag: str) -> int:
        """Take this port and no other; raises StackError naming who holds it."""
        if port in self._given or not is_free(port):
            raise StackError(f"port {port} is held by {holder(port)}; stop it, or choose another port with {flag}")
        self._given.add(port)
        return port


def any_free() -> int:
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


def describe(pids: Iterable[int | None]) -> str:
    for pid in pids:
        if pid is None:
            continue
        try:
            process = psutil.Process(pid)
            return f"{process.name()} (pid {pid}: {' '.join(process.cmdline())[:80]})"
        except psutil.Error:
            continue
    return "a process of another user"
