"""A stack whose supervisor does not end with the command that started it: starting one, and waiting for any."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.logs import tail
from libs.stack.options import Options
from libs.stack.processes import child_environment
from libs.stack.services import installed_words
from libs.stack.state import HEALTHY, STOPPING, Snapshot, in_use, running
from libs.stack.supervisor import State

HEALTHY_SECONDS_MAX = 180.0
"""How long a stack is waited for that starts."""
STOPPED_SECONDS_MAX = 60.0
"""How long one is waited for that stops."""
POLL_SECONDS = 0.05
COMPLAINT_LINES_MAX = 30

Supervisor = subprocess.Popen[bytes]


def start(options: Options) -> Supervisor:
    """A supervisor of its own session; where another turns out to run, it ends by itself.

    Whatever interrupts this process from here on is a KeyboardInterrupt: who started it is to stop it.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    options.folder.make()
    with complaints_of(options.folder).open("wb") as complaints:
        return subprocess.Popen(
            command_of(options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env=child_environment(),
            start_new_session=True,
        )


def command_of(options: Options) -> list[str]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "libs.cli",
        "up",
        "--data-dir",
        str(options.folder.path),
        "--began",
        str(options.began),
    ]
    if options.only:
        command += ["--only", ",".join(options.only)]
    if options.port is not None:
        command += ["--port", str(options.port)]
    if options.take_over:
        command.append("--take-over")
    return command


def complaints_of(folder: DataFolder) -> Path:
    return folder.logs / "supervisor.err"


def wait_healthy(folder: DataFolder, started: Supervisor | None = None) -> Snapshot:
    """The stack that runs there, once all of it works: the one started, or another that was there first.

    Raises StackError when there is none any more, and when it takes too long.
    """
    until = time.monotonic() + HEALTHY_SECONDS_MAX
    while time.monotonic() < until:
        snapshot = running(folder)
        if snapshot and snapshot.state == HEALTHY:
            return snapshot
        # Between its lock and its first word a stack is in use, but does not say so yet.
        if snapshot is None and (started is None or started.poll() is not None) and not in_use(folder):
            said = tail(complaints_of(folder), lines_max=COMPLAINT_LINES_MAX) if started else ""
            raise StackError(f"the stack did not start:\n{said}" if said else "the stack has been stopped")
        time.sleep(POLL_SECONDS)
    snapshot = running(folder)
    waiting = [status.name for status in snapshot.processes if status.state is not State.READY] if snapshot else []
    raise StackError(
        f"not healthy after {HEALTHY_SECONDS_MAX:.0f} s, and still trying: {', '.join(waiting) or 'the databases'}; "
        "see `tradeloom status` and `tradeloom logs`"
    )


def refuse_another(folder: DataFolder, snapshot: Snapshot, port: int | None, only: Sequence[str] = ()) -> None:
    """Raises StackError where the edge of the stack that runs has another port, or others than these services run.

    Nothing said, and port 0, are content with any.
    """
    if port and port != snapshot.ports["edge"]:
        runs = f"on port {snapshot.ports['edge']}, not {port}"
    elif only and installed_words(only) != snapshot.words:
        runs = f"with {', '.join(snapshot.words)}, not {', '.join(only)}"
    else:
        return
    raise StackError(f"a stack runs in {folder.path} already, {runs}; stop it first with `tradeloom down`")


def wait_stopped(folder: DataFolder) -> None:
    """Returns when no stack is stopping there; raises StackError when that takes too long."""
    until = time.monotonic() + STOPPED_SECONDS_MAX
    while (snapshot := running(folder)) and snapshot.state == STOPPING:
        if time.monotonic() >= until:
            raise StackError(f"process {snapshot.supervisor.pid} is still stopping after {STOPPED_SECONDS_MAX:.0f} s")
        time.sleep(POLL_SECONDS)


def stop(started: Supervisor) -> None:
    """Takes down the stack of this supervisor; one that has ended already is no error."""
    started.terminate()
    try:
        started.wait(STOPPED_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise StackError(f"process {started.pid} is still stopping after {STOPPED_SECONDS_MAX:.0f} s") from None
