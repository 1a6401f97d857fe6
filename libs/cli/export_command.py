"""`tradeloom export`: bars of a running stack into a file, which stands there whole or not at all."""

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from grpc import aio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs.cli.client import edge_channel, sign_in_admin
from libs.cli.options import STOPPED_EXIT_CODE, DataDir, running_stack, time_of
from libs.mesh.wire import timestamp
from libs.stack.errors import StackError
from libs.stack.state import Snapshot

app = typer.Typer(add_completion=False)

EXPORT_SECONDS = 3_600.0
FORMATS = {
    "csv": marketdata_pb2.EXPORT_FORMAT_CSV,
    "csv.gz": marketdata_pb2.EXPORT_FORMAT_CSV_GZIP,
    "parquet": marketdata_pb2.EXPORT_FORMAT_PARQUET,
    "arrow": marketdata_pb2.EXPORT_FORMAT_ARROW,
}


@app.command("export")
def export_file(
    instrument: Annotated[str, typer.Argument(help="Whose bars, such as SIM:BTCUSDT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; one that is there is replaced.")],
    bar_size: Annotated[str, typer.Option(help="How long its bars are: 1s, 1m, 5m, 15m, 1h, 4h, 1d or 1w.")] = "1m",
    start: Annotated[str, typer.Option(help="The first opening, such as 2024-01-31 or 2024-01-31T10:00Z.")] = "",
    end: Annotated[str, typer.Option(help="Bars that open before it; without it up to the newest closed one.")] = "",
    file_format: Annotated[
        str, typer.Option("--format", help="csv, csv.gz, parquet or arrow; by the file's name unless said.")
    ] = "",
    data_dir: DataDir = None,
) -> None:
    """Export closed bars into a file that `tradeloom import` takes again; times are in UTC unless they have an offset."""
    name = file_format or next((each for each in FORMATS if output.name.endswith(f".{each}")), "")
    if name not in FORMATS:
        raise StackError(f"the format is one of {', '.join(FORMATS)}")
    request = marketdata_pb2.ExportCandlesRequest(
        instrument_id=instrument.upper(),
        bar_size=bar_size,
        start_time=timestamp(time_of(start, "--start")),
        end_time=timestamp(time_of(end, "--end")),
        format=FORMATS[name],
    )
    snapshot = running_stack(data_dir)
    console = Console(highlight=False, soft_wrap=True)
    # Of its own: another export into the same file goes on beside it, and the last one stands.
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        bar_count = asyncio.run(fetch(snapshot, request, partial, console))
        partial.replace(output)
    except aio.AioRpcError as error:
        raise StackError(f"nothing was exported: {error.details()}") from error
    except OSError as error:
        raise StackError(f"{output} cannot be written: {error.strerror}") from error
    except KeyboardInterrupt:
        console.print("stopped; nothing was exported")
        raise typer.Exit(STOPPED_EXIT_CODE) from None
    finally:
        with suppress(OSError):
            partial.unlink()
    console.print(f"exported   {bar_count} bars into {output}")


async def fetch(snapshot: Snapshot, request: marketdata_pb2.ExportCandlesRequest, path: Path, console: Console) -> int:
    """Writes the file; how many bars are in it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    digest, message = hashlib.sha256(), marketdata_pb2.ExportCandlesResponse()
    async with edge_channel(snapshot) as channel:
        admin = await sign_in_admin(channel, snapshot)
        market: Any = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        with (
            path.open("wb") as file,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task("writing", total=None)
            received = 0
            async for message in market.ExportCandles(request, metadata=admin, timeout=EXPORT_SECONDS):
                digest.update(message.chunk)
                file.write(message.chunk)
                received += len(message.chunk)
                if message.size_bytes:
                    progress.update(task, description="receiving", total=message.size_bytes, completed=received)
                elif message.bar_count:
                    progress.update(task, total=message.bar_count, completed=message.written_count)
    if message.sha256 != digest.digest():
        raise StackError("bytes of the file are missing: export it again")
    return message.bar_count
