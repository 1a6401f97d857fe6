"""`tradeloom timescale`: have TimescaleDB keep the market's record, where the database's server has it."""

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console

from libs.cli.options import DataDir, running_stack
from libs.stack import timescale
from libs.stack.credentials import OWNER, SUPERUSER, Credentials
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.postgres import PostgresServer
from libs.stack.timescale import FULL_LICENSE, Table, Timescale
from libs.stack.urls import plain_database_url

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Have TimescaleDB keep ticks and bars, or see whether it does."
)
console = Console(highlight=False, soft_wrap=True, markup=False)


@app.command()
def status(data_dir: DataDir = None) -> None:
    """Show whether the database has TimescaleDB, and how each table is kept. Counts every row."""
    asyncio.run(show(owner_url(data_dir)))


@app.command()
def enable(
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Turn the tables of ticks and bars into hypertables, keeping every row; repeat it if it was interrupted.

    While a table is copied it is read as ever, but nothing is written to it: do it in a quiet hour.
    """
    url = owner_url(data_dir)
    asyncio.run(preview(url) if dry_run else convert(url))


async def show(url: str) -> None:
    async with timescale.connected(url) as rows:
        console.print(said_of(await timescale.read_timescale(rows)))
        for table in await timescale.read_tables(rows):
            console.print(kept(table))


async def preview(url: str) -> None:
    async with timescale.connected(url) as rows:
        found = await timescale.read_timescale(rows)
        timescale.check_present(found)
        console.print(said_of(found))
        for table in await timescale.read_tables(rows):
            what = "nothing to do" if table.is_hypertable else f"{table.rows:,} rows would be copied into a hypertable"
            console.print(f"{table.name}: {what}")


async def convert(url: str) -> None:
    async with timescale.connected(url) as rows:
        async for line in timescale.enable(rows):
            console.print(line)
        console.print(said_of(await timescale.read_timescale(rows)))


def owner_url(data_dir: DataDir) -> str:
    """Of the database that DATABASE_URL names, or of the running stack."""
    if own := os.environ.get("DATABASE_URL"):
        return plain_database_url(own)
    snapshot = running_stack(data_dir)
    if not snapshot.embedded_database:
        raise StackError("the stack runs on a database of your own; set DATABASE_URL as for `tradeloom up`")
    credentials = Credentials(DataFolder.at(data_dir).secrets)
    server = PostgresServer(snapshot.ports["postgres"], credentials.postgres(SUPERUSER))
    return server.url(OWNER, credentials.postgres(OWNER))


def said_of(found: Timescale) -> str:
    if found.version is None:
        return f"TimescaleDB: not in this database{f': {found.lacks}' if found.lacks else ''}"
    if found.license != FULL_LICENSE:
        return f"TimescaleDB {found.version} under the licence {found.license}, which has no compression"
    return f"TimescaleDB {found.version} under the licence {found.license}, with compression"


def kept(table: Table) -> str:
    if not table.is_hypertable:
        return f"{table.name}: {table.rows:,} rows in {table.parts:,} parts"
    compressed = "not compressed" if table.compressed is None else f"{table.compressed:,} of them compressed"
    return f"{table.name}: {table.rows:,} rows in a hypertable of {table.parts:,} chunks, {compressed}"
