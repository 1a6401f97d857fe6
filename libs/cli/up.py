"""`tradeloom up`: start the stack and keep it running."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer
from rich.console import Console

from libs.cli.display import Display, table_of, where_of
from libs.cli.options import DataDir
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.logs import tail
from libs.stack.processes import child_environment
from libs.stack.state import HEALTHY, AlreadyRunning, Snapshot, running
from libs.stack.supervisor import State

if TYPE_CHECKING:
    from libs.stack.run import Options

app = typer.Typer()

HEALTHY_SECONDS_MAX = 180.0
"""How long `--detach` waits."""
POLL_SECONDS = 0.05


@app.command()
def up(
    data_dir: DataDir = None,
    only: Annotated[str, typer.Option(help="Only these services, with commas between: auth,orders")] = "",
    port: Annotated[
        int | None,
        typer.Option(
            help="The edge's port; 8080, or another if taken, unless said. 0: any, for everything.", min=0, max=65_535
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when healthy, and leave it running.")] = False,
    began: Annotated[
        float, typer.Option(hidden=True, help="When the command was given, in seconds since the epoch.")
    ] = 0,
) -> None:
    """Start everything and keep it running; a second time, say what runs where."""
    # Late here and elsewhere in this folder: the whole stack takes a moment to import, which `status` need not wait for.
    from libs.stack.run import Options

    folder = DataFolder.at(data_dir)
    options = Options(
        folder=folder, only=[word for word in only.split(",") if word], port=port, began=began or own_start()
    )
    console = Console()
    if snapshot := running(folder):
        say_running(console, folder, snapshot)
    elif detach:
        start_detached(console, options)
    else:
        asyncio.run(stay(console, options))


def own_start() -> float:
    """When this process began, before it had imported anything."""
    return psutil.Process().create_time()


async def stay(console: Console, options: "Options") -> None:
    from libs.stack.run import Run

    display = Display(console)
    run = Run(options, display)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, run.stop)
    try:
        await run()
    except AlreadyRunning as already:
        say_running(console, options.folder, already.snapshot)
    finally:
        display.end()


def say_running(console: Console, folder: DataFolder, snapshot: Snapshot | None) -> None:
    if snapshot is None or not snapshot.ports:
        console.print(f"another `tradeloom up` is starting in {folder.path}", highlight=False, soft_wrap=True)
        return
    console.print(f"running already, in {folder.path}", highlight=False, soft_wrap=True)
    console.print(table_of(snapshot))
    for line in where_of(snapshot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def start_detached(console: Console, options: "Options") -> None:
    """Start a supervisor of its own session, and return when all is healthy; raises StackError when it is not."""
    options.folder.make()
    complaints = options.folder.logs / "supervisor.err"
    with complaints.open("wb") as errors:
        supervisor = subprocess.Popen(
            detached_command(options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=child_environment(),
            start_new_session=True,
        )
    snapshot = wait_healthy(supervisor, options, complaints)
    console.print(table_of(snapshot))
    console.print(f"healthy after {snapshot.healthy_seconds:.1f} s; stop it with `tradeloom down`", highlight=False)
    for line in where_of(snapshot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def detached_command(options: "Options") -> list[str]:
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
    return command


def wait_healthy(supervisor: "subprocess.Popen[bytes]", options: "Options", complaints: Path) -> Snapshot:
    until = time.monotonic() + HEALTHY_SECONDS_MAX
    while time.monotonic() < until:
        snapshot = running(options.folder)
        if snapshot and snapshot.state == HEALTHY:
            return snapshot
        if supervisor.poll() is not None and snapshot is None:
            raise StackError(f"the stack did not start:\n{tail(complaints, lines_max=30)}")
        time.sleep(POLL_SECONDS)
    snapshot = running(options.folder)
    waiting = [status.name for status in snapshot.processes if status.state is not State.READY] if snapshot else []
    raise StackError(
        f"not healthy after {HEALTHY_SECONDS_MAX:.0f} s, and still trying: {', '.join(waiting) or 'the databases'}; "
        "see `tradeloom status` and `tradeloom logs`"
    )
