"""`tradeloom migrate`: bring the database to the newest revision, or begin it anew."""

import asyncio
from typing import Annotated

import typer

from libs.cli.options import DataDir
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.schema import kept, migrate_stopped, reset_stopped
from libs.stack.state import AlreadyRunning

app = typer.Typer(add_completion=False)


@app.command()
def migrate(
    data_dir: DataDir = None,
    reset: Annotated[bool, typer.Option("--reset", help="Drop everything first. Asks.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: Annotated[
        str, typer.Option(help="The name of the database to empty; --yes needs it where DATABASE_URL is set.")
    ] = "",
    redis: Annotated[
        str, typer.Option(help="The address of the Redis to empty; --yes needs it where REDIS_URL is set.")
    ] = "",
) -> None:
    """Migrate the database of a stack that is not running (`up` migrates by itself)."""
    folder = DataFolder.at(data_dir)
    if reset:
        what = asyncio.run(kept(folder))
        if database and database != what.database:
            raise StackError(f"the database is called {what.database}, not {database}; nothing was emptied")
        if redis and redis != what.own_redis:
            raise StackError(f"REDIS_URL points at {what.own_redis or 'nothing'}, not at {redis}; nothing was emptied")
        needed = [f"--database {what.database}"] if what.own_database and not database else []
        needed += [f"--redis {what.own_redis}"] if what.own_redis and not redis else []
        if yes and needed:
            raise StackError(
                f"--yes alone empties no server of your own; add {' '.join(needed)} to empty {' and '.join(what.places)}"
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
