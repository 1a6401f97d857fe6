"""`tradeloom migrate`: bring the database to the newest revision, or begin it anew."""

import asyncio
from typing import Annotated

import typer

from libs.cli.options import DataDir
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.state import AlreadyRunning

app = typer.Typer()


@app.command()
def migrate(
    data_dir: DataDir = None,
    reset: Annotated[bool, typer.Option("--reset", help="Drop everything first. Asks.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: Annotated[
        str, typer.Option(help="The name of the database to empty; --yes needs it where DATABASE_URL is set.")
    ] = "",
) -> None:
    """Migrate the database of a stack that is not running (`up` migrates by itself)."""
    from libs.stack.schema import kept, migrate_stopped, reset_stopped

    folder = DataFolder.at(data_dir)
    if reset:
        what = asyncio.run(kept(folder))
        if database and database != what.database:
            raise StackError(f"the database is called {what.database}, not {database}; nothing was emptied")
        if yes and what.own_database and not database:
            raise StackError(
                f"--yes alone empties no database of your own; add --database {what.database} "
                f"to empty {' and '.join(what.places)}"
            )
        if not yes:
            typer.confirm(
                f"This deletes every user, order and price kept in {' and in '.join(what.places)}. Go on?", abort=True
            )
    try:
        if reset:
            asyncio.run(reset_stopped(folder))
        asyncio.run(migrate_stopped(folder))
    except AlreadyRunning:
        raise StackError("the stack is running; stop it first with `tradeloom down`") from None
    print("emptied and migrated" if reset else "migrated")
