"""`tradeloom psql`: look at the database, as a role that can only read."""

import os
from typing import Annotated

import typer

from libs.cli.options import DataDir, running_stack
from libs.stack.credentials import READER, READER_PASSWORD
from libs.stack.errors import StackError
from libs.stack.ports import HOST
from libs.stack.postgres import DATABASE, wheel
from libs.stack.urls import plain_database_url

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(
    arguments: typer.Context,
    data_dir: DataDir = None,
    command: Annotated[str | None, typer.Option("-c", "--command", help="Run this and leave.")] = None,
) -> None:
    """Open psql as the read-only role `trading`; what follows is handed to psql."""
    snapshot = running_stack(data_dir)
    if snapshot.embedded_database:
        database = f"host={HOST} port={snapshot.ports['postgres']} user={READER} dbname={DATABASE}"
        os.environ["PGPASSWORD"] = READER_PASSWORD
    else:
        if "DATABASE_URL" not in os.environ:
            raise StackError("the stack runs on a database of your own; set DATABASE_URL as for `tradeloom up`")
        database = plain_database_url(os.environ["DATABASE_URL"])
        os.environ["PGOPTIONS"] = "-c default_transaction_read_only=on"
    program = str(wheel() / "bin" / "psql")
    asked = ["-c", command] if command else []
    os.execv(program, [program, database, *asked, *arguments.args])  # noqa: S606 (this process becomes it)
