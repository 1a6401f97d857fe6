"""`tradeloom health`: whether everything works, for people and for scripts."""

import asyncio

import typer
from rich.console import Console
from rich.table import Table

from libs.cli.options import DataDir, running_stack
from libs.stack.probes import http_get
from libs.stack.state import Snapshot
from libs.stack.supervisor import State, Status

app = typer.Typer(add_completion=False)

ANSWER_CHARACTERS_MAX = 200


@app.command()
def health(data_dir: DataDir = None) -> None:
    """Ask every process; exit with 1 unless all of them work."""
    snapshot = running_stack(data_dir)
    answers = asyncio.run(ask_all(snapshot))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("process", "health", "answer"):
        table.add_column(column)
    for name, (well, answer) in answers.items():
        table.add_row(name, "[green]ok[/]" if well else "[red]no[/]", " ".join(answer.split())[:ANSWER_CHARACTERS_MAX])
    Console().print(table)
    if not answers or not all(well for well, _ in answers.values()):
        raise typer.Exit(1)


async def ask_all(snapshot: Snapshot) -> dict[str, tuple[bool, str]]:
    answers = await asyncio.gather(*(ask(status) for status in snapshot.processes))
    return {status.name: answer for status, answer in zip(snapshot.processes, answers, strict=True)}


async def ask(status: Status) -> tuple[bool, str]:
    """A service is asked itself; for a server the supervisor's latest word counts, at most 2 seconds old."""
    if "probe" in status.ports:
        code, answer = await http_get(status.ports["probe"], "/health")
        return code == 200, answer.strip()
    if "admin" in status.ports:
        code, answer = await http_get(status.ports["admin"], "/ready")
        return code == 200, answer.strip()
    return status.state is State.READY, status.exit if status.state is not State.READY else "answers"
