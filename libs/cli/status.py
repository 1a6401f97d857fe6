"""`tradeloom status`: what runs where."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from libs.cli.display import table_of, where_of
from libs.cli.options import DataDir, running_stack
from libs.stack.state import text_of

app = typer.Typer(add_completion=False)


@app.command()
def status(
    data_dir: DataDir = None, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Show every process: its state, restarts, ports, age and memory."""
    snapshot = running_stack(data_dir)
    if as_json:
        print(json.dumps(asdict(snapshot), default=text_of, indent=1))
        return
    console = Console()
    console.print(table_of(snapshot))
    console.print(f"{snapshot.state}, supervised by {snapshot.supervisor.pid}", highlight=False)
    for line in where_of(snapshot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
