"""`tradeloom down`: stop the stack."""

import asyncio
import signal

import typer

from libs.cli.options import DataDir
from libs.stack import processes
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.state import AlreadyRunning, locked, running
from libs.stack.supervisor import LEFT_BEHIND_SECONDS, clear_left_behind

app = typer.Typer(add_completion=False)

DOWN_SECONDS = 60.0
"""Draining and stopping, one kind of process after the other."""


@app.command()
def down(data_dir: DataDir = None) -> None:
    """Stop everything: services drain first, the databases come last."""
    folder = DataFolder.at(data_dir)
    if not folder.path.exists():
        print("nothing runs here")
        return
    asyncio.run(come_down(folder))


async def come_down(folder: DataFolder) -> None:
    snapshot = running(folder)
    if snapshot is not None:
        snapshot.supervisor.send(signal.SIGTERM)
        if not await processes.gone([snapshot.supervisor], DOWN_SECONDS):
            raise StackError(f"process {snapshot.supervisor.pid} is still stopping after {DOWN_SECONDS:.0f} s")
        print("stopped")
        return
    try:
        async with locked(folder):
            left = await clear_left_behind(folder.run, stop_seconds=LEFT_BEHIND_SECONDS)
    except AlreadyRunning:
        raise StackError("another `tradeloom` works on this folder; try again in a moment") from None
    print(f"stopped what a killed run had left: {', '.join(left)}" if left else "nothing runs here")
