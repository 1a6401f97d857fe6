"""`tradeloom candles`: the bars of a running stack. Those that were imported by mistake are deleted here."""

import asyncio
from typing import Annotated, Any

import grpc
import typer
from grpc import aio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs.cli.client import CALL_SECONDS, FAILURES_MAX, edge_channel, sign_in_admin
from libs.cli.options import STOPPED_EXIT_CODE, DataDir, running_stack, time_of
from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.stack.errors import StackError
from libs.stack.state import Snapshot
from libs.store.background import Backoff

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Delete bars that were imported by mistake.")

PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAUTHENTICATED)
"""What is over when one calls again, with a new session."""

Request = marketdata_pb2.DeleteCandlesRequest
Response = marketdata_pb2.DeleteCandlesResponse


@app.callback()
def every_command() -> None:
    """Does nothing; without it Typer would take the only command's name for an argument."""


@app.command()
def delete(
    instrument: Annotated[str, typer.Argument(help="Whose bars, such as SIM:BTCUSDT.")],
    bar_size: Annotated[str, typer.Option(help="How long the imported bars are: 1s, 1m, 5m, 15m, 1h, 4h, 1d or 1w.")],
    start: Annotated[str, typer.Option(help="The first opening, such as 2024-01-31 or 2024-01-31T10:00Z.")],
    end: Annotated[str, typer.Option(help="Bars that open before it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete bars that operators imported; what ticks make of their times stands there again, and longer bars follow.

    Times are in UTC unless they have an offset. Bars of ticks stay, and so do those of a venue's record.
    """
    request = Request(
        request_id=str(uuid7()),
        instrument_id=instrument.upper(),
        bar_size=bar_size,
        start_time=timestamp(time_of(start, "--start")),
        end_time=timestamp(time_of(end, "--end")),
    )
    snapshot = running_stack(data_dir)
    console = Console(highlight=False, soft_wrap=True)
    deleting = Deleting(snapshot, request, console)
    try:
        count = asyncio.run(deleting.count())
        if not count:
            console.print("no imported bars are there")
            return
        console.print(f"{count} imported bars of {bar_size} would be deleted")
        if not yes and not typer.confirm("Delete them?"):
            raise typer.Exit(1)
        done = asyncio.run(deleting(count))
    except aio.AioRpcError as error:
        raise StackError(f"{error.details()}; {deleting.so_far}") from error
    except KeyboardInterrupt:
        console.print(f"stopped; {deleting.so_far}")
        raise typer.Exit(STOPPED_EXIT_CODE) from None
    console.print(f"deleted    {done.deleted_count}")
    console.print(f"remade     {done.remade_count} of them, of ticks or shorter bars")


class Deleting:
    """One deletion, called for until it has ended, however often the connection is lost."""

    def __init__(self, snapshot: Snapshot, request: Request, console: Console) -> None:
        self._snapshot, self._request, self._console = snapshot, request, console
        self._reached = Response()

    @property
    def so_far(self) -> str:
        """For people, where it has not ended."""
        count = self._reached.deleted_count
        return f"{count} bars were deleted, the same command deletes the rest" if count else "nothing was deleted"

    async def count(self) -> int:
        """How many bars would go."""
        asked = Request(validate_only=True)
        asked.MergeFrom(self._request)
        async with edge_channel(self._snapshot) as channel:
            market: Any = marketdata_pb2_grpc.MarketDataServiceStub(channel)
            session = await sign_in_admin(channel, self._snapshot)
            return (await market.DeleteCandles(asked, metadata=session, timeout=CALL_SECONDS)).deleted_count

    async def __call__(self, count: int) -> Response:
        columns = (
            TextColumn("deleting"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console, backoff, session = self._console, Backoff(), ()
        async with edge_channel(self._snapshot) as channel:
            market: Any = marketdata_pb2_grpc.MarketDataServiceStub(channel)
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("", total=count)
                while not self._reached.done:
                    try:
                        session = session or await sign_in_admin(channel, self._snapshot)
                        self._reached = await market.DeleteCandles(
                            self._request, metadata=session, timeout=CALL_SECONDS
                        )
                    except aio.AioRpcError as error:
                        if error.code() not in PASSING or backoff.failures >= FAILURES_MAX:
                            raise
                        session = ()
                        await asyncio.sleep(backoff.next_seconds())
                    else:
                        backoff.reset()
                        progress.update(task, completed=self._reached.deleted_count)
        return self._reached
