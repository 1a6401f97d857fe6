"""What a person sees of a run: a table that follows it on a terminal, plain lines elsewhere."""

from datetime import UTC, datetime, timedelta

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from libs.stack.ports import moved_ports
from libs.stack.state import HEALTHY, STOPPING, Snapshot
from libs.stack.supervisor import State, Status
from libs.words import WORDS

COLOURS = {
    State.READY: "green",
    State.STARTING: "cyan",
    State.WAITING: "yellow",
    State.UNREADY: "yellow",
    State.STOPPING: "cyan",
    State.STOPPED: "dim",
}


def table_of(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("process", "pid", "state", "restarts", "ports", "up", "memory"):
        table.add_column(
            name, justify="right" if name in ("pid", "restarts", "up", "memory") else "left", no_wrap=name != "state"
        )
    for status in snapshot.processes:
        table.add_row(
            status.name,
            str(status.pid or "-"),
            f"[{COLOURS[status.state]}]{state_of(status)}[/]",
            str(status.restarts),
            " ".join(f"{use} {port}" for use, port in status.ports.items()),
            duration(datetime.now(UTC) - status.start_time) if status.start_time and status.pid else "-",
            memory_of(status.pid) if status.pid else "-",
        )
    return table


def state_of(status: Status) -> str:
    if status.state is State.WAITING and status.next_start_seconds is not None:
        return f"waiting {status.next_start_seconds:.1f} s: {status.exit}"
    return status.state.value


def memory_of(pid: int) -> str:
    """Of the process and what it started, as the sum of their own parts."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            details = process.memory_full_info()
            total += getattr(details, "pss", details.uss)
    except psutil.Error:
        return "-"
    return f"{total / 1024**2:.0f} MB"


def duration(long: timedelta) -> str:
    seconds = int(long.total_seconds())
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def where_of(snapshot: Snapshot) -> list[str]:
    """Where to find what runs, line by line."""
    lines = [f"edge      {snapshot.edge_url}   (gRPC, gRPC-Web, Connect and REST)"]
    if snapshot.embedded_database:
        lines.append(f"database  psql -h 127.0.0.1 -p {snapshot.ports['postgres']} -U trading trading   (read-only)")
    lines.append(f"admin     admin@tradeloom.local, password in {snapshot.admin_password_file}")
    moved = [f"{use.split('.')[0]} {port}" for use, port in moved_ports(snapshot.ports).items() if is_for_people(use)]
    if moved:
        lines.append(f"          the usual ports were taken; instead: {', '.join(moved)}")
    return lines


def is_for_people(use: str) -> bool:
    """The other ports are spoken to by the stack alone; `status --json` has them all."""
    word, _, kind = use.partition(".")
    return use in ("edge", "postgres", "valkey") or (word in WORDS and kind in ("alias", "also"))


class Display:
    """Shows a run until it is healthy, then only what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._said_where = False

    def __call__(self, snapshot: Snapshot, event: str) -> None:
        if self._console.is_terminal and snapshot.state not in (HEALTHY, STOPPING):
            self._follow(snapshot)
        else:
            self.end()
            if snapshot.state == HEALTHY and not self._said_where:
                self._console.print(table_of(snapshot))
            self._line(event)
        if snapshot.state == HEALTHY and not self._said_where:
            self._said_where = True
            for line in where_of(snapshot):
                self._line(line)

    def _follow(self, snapshot: Snapshot) -> None:
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(table_of(snapshot), refresh=True)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
