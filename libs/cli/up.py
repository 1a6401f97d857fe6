"""`tradeloom up`: start the stack and keep it running."""

import asyncio
import signal
from typing import Annotated

import psutil
import typer
from rich.console import Console

from libs.cli.detached import refuse_another, start, stop, wait_healthy, wait_stopped
from libs.cli.display import Display, table_of, where_of
from libs.cli.options import DataDir, Port
from libs.stack.folder import DataFolder
from libs.stack.options import Options
from libs.stack.state import HEALTHY, AlreadyRunning, Snapshot, running

app = typer.Typer(add_completion=False)


@app.command()
def up(
    data_dir: DataDir = None,
    only: Annotated[str, typer.Option(help="Only these services, with commas between: auth,orders")] = "",
    port: Port = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when healthy, and leave it running.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the roles on the server of DATABASE_URL from another data folder.")
    ] = False,
    began: Annotated[
        float, typer.Option(hidden=True, help="When the command was given, in seconds since the epoch.")
    ] = 0,
) -> None:
    """Start everything and keep it running; a second time, say what runs where."""
    folder = DataFolder.at(data_dir)
    options = Options(
        folder=folder,
        only=[word for word in only.split(",") if word],
        port=port,
        take_over=take_over,
        began=began or own_start(),
    )
    console = Console()
    wait_stopped(folder)
    snapshot = running(folder)
    if snapshot and (snapshot.state == HEALTHY or not detach):
        say_running(console, options, snapshot)
    elif detach:
        healthy = wait_healthy(folder) if snapshot else started(options)
        refuse_another(folder, healthy, options.port, options.only)
        say_healthy(console, healthy)
    else:
        asyncio.run(stay(console, options))


def started(options: Options) -> Snapshot:
    """A stack that outlives this command once it is healthy; who interrupts it before wants none."""
    supervisor = start(options)
    try:
        return wait_healthy(options.folder, supervisor)
    except KeyboardInterrupt:
        stop(supervisor)
        raise


def own_start() -> float:
    """When this process began, before it had imported anything."""
    return psutil.Process().create_time()


async def stay(console: Console, options: Options) -> None:
    # Late: the whole stack takes a moment to import, for which the command that only starts a supervisor need not wait.
    from libs.stack.run import Run

    display = Display(console)
    run = Run(options, display)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, run.stop)
    try:
        await run()
    except AlreadyRunning as already:
        say_running(console, options, already.snapshot)
    finally:
        display.end()


def say_running(console: Console, options: Options, snapshot: Snapshot | None) -> None:
    """Raises StackError when it is another stack than the one asked for."""
    folder = options.folder
    if snapshot is None or not snapshot.ports:
        console.print(f"another `tradeloom up` is starting in {folder.path}", highlight=False, soft_wrap=True)
        return
    refuse_another(folder, snapshot, options.port, options.only)
    said = "running" if snapshot.state == HEALTHY else snapshot.state
    console.print(f"{said} already, in {folder.path}", highlight=False, soft_wrap=True)
    console.print(table_of(snapshot))
    for line in where_of(snapshot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def say_healthy(console: Console, snapshot: Snapshot) -> None:
    console.print(table_of(snapshot))
    console.print(f"healthy after {snapshot.healthy_seconds:.1f} s; stop it with `tradeloom down`", highlight=False)
    for line in where_of(snapshot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
