"""`tradeloom import`: a file of bars into a running stack, all of it or nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs.cli.client import edge_channel, sign_in_admin
from libs.cli.options import DataDir, running_stack
from libs.ids import uuid7
from libs.stack.errors import StackError
from libs.stack.state import Snapshot

app = typer.Typer(add_completion=False)

CHUNK_BYTES = 512 * 1024
FILE_BYTES_MAX = 256 * 1024 * 1024
"""What the service takes; refused here before anything is sent."""
IMPORT_SECONDS = 600.0


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV with timestamp, open, high, low, close and volume.")],
    instrument: Annotated[str, typer.Option(help="Whose bars: an instrument that exists, such as SIM:BTCUSDT.")],
    bar_size: Annotated[str, typer.Option(help="How long its bars are: 1s, 1m, 5m, 15m, 1h, 4h, 1d or 1w.")] = "1m",
    data_dir: DataDir = None,
) -> None:
    """Import a file of bars; a timestamp is the bar's opening in UTC. Longer bars are made of them."""
    try:
        size = file.stat().st_size
        content = file.read_bytes() if size <= FILE_BYTES_MAX else b""
    except OSError as error:
        raise StackError(f"{file} cannot be read: {error.strerror}") from error
    if size > FILE_BYTES_MAX:
        raise StackError(f"{file} is larger than {FILE_BYTES_MAX >> 20} MiB; split it by time")
    snapshot = running_stack(data_dir)
    console = Console(highlight=False, soft_wrap=True)
    try:
        done = asyncio.run(send(snapshot, content, instrument.upper(), bar_size, console))
    except aio.AioRpcError as error:
        for line in wrong_lines(error):
            console.print(line, markup=False)
        raise StackError(f"nothing was imported: {error.details()}") from error
    first, last = done.start_time.ToDatetime(), done.end_time.ToDatetime()
    console.print(f"read       {done.read_count} bars, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC")
    console.print(f"inserted   {done.inserted_count}")
    console.print(f"changed    {done.changed_count}")
    console.print(f"unchanged  {done.unchanged_count}")


async def send(
    snapshot: Snapshot, content: bytes, instrument_id: str, bar_size: str, console: Console
) -> marketdata_pb2.ImportCandlesResponse:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    shown = console.is_terminal
    async with edge_channel(snapshot) as channel:
        admin = await sign_in_admin(channel, snapshot)
        market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
            sending = progress.add_task(f"importing into {instrument_id}", total=len(content))

            async def parts() -> AsyncIterator[marketdata_pb2.ImportCandlesRequest]:
                header = marketdata_pb2.ImportHeader(
                    request_id=str(uuid7()), instrument_id=instrument_id, bar_size=bar_size
                )
                yield marketdata_pb2.ImportCandlesRequest(header=header)
                for start in range(0, len(content), CHUNK_BYTES):
                    chunk = content[start : start + CHUNK_BYTES]
                    yield marketdata_pb2.ImportCandlesRequest(chunk=chunk)
                    progress.update(sending, advance=len(chunk))

            return await market.ImportCandles(parts(), metadata=admin, timeout=IMPORT_SECONDS)


def wrong_lines(error: Any) -> list[str]:
    """Every line that the refusal names, in the order of the file, and how many more there are."""
    status = rpc_status.from_call(error)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        _ = detail.Unpack(bad) or detail.Unpack(info)
    lines = [f"{violation.field}: {violation.description}" for violation in bad.field_violations if violation.field]
    more = int(info.metadata.get("wrong_lines", 0)) - len(lines)
    return [*lines, f"and {more} more lines"] if more > 0 else lines
