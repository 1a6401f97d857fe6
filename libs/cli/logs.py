"""`tradeloom logs`: what the processes said."""

import time
from pathlib import Path
from typing import Annotated

import typer

from libs.cli.options import DataDir
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.logs import older

app = typer.Typer(add_completion=False)

LINES_DEFAULT = 40
LINES_MAX = 100_000
POLL_SECONDS = 0.2


@app.command()
def logs(
    name: Annotated[
        str, typer.Argument(help="A service, postgres, valkey, envoy, migrations or supervisor.")
    ] = "supervisor",
    data_dir: DataDir = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, max=LINES_MAX)] = LINES_DEFAULT,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep showing what comes.")] = False,
) -> None:
    """Show the last lines of one process's log."""
    folder = DataFolder.at(data_dir)
    file = folder.log(name)
    if not file.exists():
        there = ", ".join(sorted(log.stem for log in folder.logs.glob("*.log")))
        raise StackError(f"{name} has no log in {folder.logs}; there are: {there or 'none'}")
    size = show_last(file, lines)
    if follow:
        keep_showing(file, size)


def show_last(file: Path, lines: int) -> int:
    """How much of the file was there to show, in bytes."""
    data = file.read_bytes()
    before = older(file)
    text = (before.read_bytes() if before.exists() else b"") + data
    last = text.decode(errors="replace").splitlines()[-lines:] if lines else []
    for line in last:
        print(line)
    return len(data)


def keep_showing(file: Path, size: int) -> None:
    while True:
        if file.stat().st_size < size:  # begun anew
            size = 0
        with file.open("rb") as stream:
            stream.seek(size)
            data = stream.read()
        size += len(data)
        print(data.decode(errors="replace"), end="", flush=True)
        time.sleep(POLL_SECONDS)
