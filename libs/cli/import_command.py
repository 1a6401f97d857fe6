"""`tradeloom import`: files of bars into a running stack. A wrong row refuses its file before any of it is stored.

A command that was stopped goes on when it is given again: the request_id is made of the file and of what its bars are.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs import checksums
from libs.cli.client import CALL_SECONDS, FAILURES_MAX, Metadata, edge_channel, sign_in_admin
from libs.cli.options import STOPPED_EXIT_CODE, DataDir, running_stack
from libs.ids import uuid7
from libs.stack.errors import StackError
from libs.stack.state import Snapshot
from libs.store.background import Backoff

app = typer.Typer(add_completion=False)

CHUNK_BYTES = 512 * 1024
FILE_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""What the service takes; refused here before anything is sent."""
IMPORT_SECONDS = 900.0
"""For one call; then the next goes on."""
LOOK_SECONDS = 0.5
TELL_SECONDS = 10.0
"""Between lines that say how far a file is, where there is no terminal for a bar."""
REPEATS_MAX = 100
"""So often the same file is imported within the thirty days for which its import is known."""
PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAUTHENTICATED,
    # What grpc.aio makes of a call that was answered while it sent.
    grpc.StatusCode.INTERNAL,
)
"""What is over when one calls again, with a new session."""
TELLING = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED)
"""With these an import is refused that was whole, and its refusal says how much was stored before."""

CandleImport = marketdata_pb2.CandleImport
DESCRIPTIONS = {
    marketdata_pb2.IMPORT_STATE_RECEIVING: "sending",
    marketdata_pb2.IMPORT_STATE_CHECKING: "checking",
    marketdata_pb2.IMPORT_STATE_STORING: "storing",
}


@app.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(help="CSV (Binance, Kraken, TradingView, MetaTrader, or with named columns), Parquet or Arrow."),
    ],
    instrument: Annotated[str, typer.Option(help="Whose bars: an instrument that exists, such as SIM:BTCUSDT.")],
    bar_size: Annotated[str, typer.Option(help="How long its bars are: 1s, 1m, 5m, 15m, 1h, 4h, 1d or 1w.")],
    sparse: Annotated[
        bool, typer.Option("--sparse", help="The market trades so rarely that its bars look like longer ones.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End the imports of these files; what of them is stored stays.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Import files of bars, perhaps packed by gzip or zip; a time is the bar's opening, in UTC unless it has an offset.

    Longer bars are made of them. Stopped, it goes on when the same command is given again.
    """
    sizes = [size_of(path) for path in files]
    snapshot = running_stack(data_dir)
    console = Console(highlight=False, soft_wrap=True)
    wanted = marketdata_pb2.ImportHeader(instrument_id=instrument.upper(), bar_size=bar_size, is_sparse=sparse)
    try:
        failed = asyncio.run(send_all(snapshot, list(zip(files, sizes, strict=True)), wanted, console, cancel=cancel))
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on, and with --cancel ends it")
        raise typer.Exit(STOPPED_EXIT_CODE) from None
    if failed:
        raise StackError("; ".join(failed))


def size_of(path: Path) -> int:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise StackError(f"{path} is empty")
    if size > FILE_BYTES_MAX:
        raise StackError(f"{path} is larger than {FILE_BYTES_MAX >> 30} GiB; split it by time")
    return size


async def send_all(
    snapshot: Snapshot,
    files: Sequence[tuple[Path, int]],
    wanted: marketdata_pb2.ImportHeader,
    console: Console,
    *,
    cancel: bool,
) -> list[str]:
    """Why some were not imported, if they were not; wanted is what all files are of."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    failed: list[str] = []
    lines = (
        None if console.is_terminal else Lines(Console(stderr=True, highlight=False, soft_wrap=True), time.monotonic)
    )
    async with edge_channel(snapshot) as channel:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            for path, size in files:
                name = f"{path.name}: " if len(files) > 1 else ""
                if name:
                    console.print(f"file       {path}")
                sha256 = await asyncio.to_thread(digest_of, path)
                if not cancel and checksum_beside(path) not in (None, sha256):
                    failed.append(
                        f"{path.name} is not what {path.name}.CHECKSUM is of: fetch it again; nothing was imported"
                    )
                    continue
                header = marketdata_pb2.ImportHeader(size_bytes=size, sha256=sha256)
                header.MergeFrom(wanted)
                sending = Sending(snapshot, channel, path, header, progress, lines)
                try:
                    if cancel:
                        console.print(f"cancelled  {await sending.cancel()}")
                    else:
                        show(await sending(), console)
                except aio.AioRpcError as error:
                    for line in wrong_lines(error):
                        console.print(line, markup=False)
                    failed.append(f"{name}{error.details()}{await sending.so_far(error)}")
                except Refused as refused:
                    for line in refused.lines:
                        console.print(line, markup=False)
                    failed.append(f"{name}{refused}")
    return failed


def show(done: CandleImport, console: Console) -> None:
    first, last = done.start_time.ToDatetime(), done.end_time.ToDatetime()
    console.print(
        f"read       {done.read_count} bars, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, {done.layout}"
    )
    console.print(f"inserted   {done.inserted_count}")
    console.print(f"changed    {done.changed_count}")
    console.print(f"unchanged  {done.unchanged_count}")


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def checksum_beside(path: Path) -> bytes | None:
    """The SHA-256 that a vendor's file of the same name says the file has; None if there is none."""
    try:
        with path.with_name(f"{path.name}.CHECKSUM").open("rb") as file:
            return checksums.sums_of(file.read(checksums.BYTES_MAX)).get(path.name)
    except OSError:
        return None


class Lines:
    """What a bar would show, in lines: one when something else is done, and then at most one in TELL_SECONDS."""

    def __init__(self, console: Console, now: Callable[[], float]) -> None:
        self._console, self._now = console, now
        self._doing, self._told_at = "", 0.0

    def tell(self, doing: str, far: str = "") -> None:
        if doing == self._doing and self._now() < self._told_at + TELL_SECONDS:
            return
        self._doing, self._told_at = doing, self._now()
        self._console.print(f"{doing}{far}", markup=False)


class Refused(Exception):
    """The file is wrong, as was learnt by asking; lines name where."""

    def __init__(self, refusal: marketdata_pb2.ImportRefusal) -> None:
        super().__init__(refusal.message)
        violations = refusal.violations if refusal.wrong_line_count else ()
        named = [f"{each.field}: {each.description}" for each in violations]
        more = refusal.wrong_line_count - len(named)
        self.lines = [*named, f"and {more} more lines"] if more > 0 else named


@dataclass
class Sending:
    """One file on its way: sent from where it was, then followed to its end, however often the connection is lost."""

    snapshot: Snapshot
    channel: aio.Channel
    path: Path
    header: marketdata_pb2.ImportHeader
    progress: Progress
    lines: Lines | None
    """In place of the progress, where there is no terminal."""
    _session: Metadata = ()
    _is_sent: bool = False

    def __post_init__(self) -> None:
        self._market: Any = marketdata_pb2_grpc.MarketDataServiceStub(self.channel)
        self._shown = CandleImport()
        self._task = self.progress.add_task(f"{self.path.name}: reading", total=None)

    async def __call__(self) -> CandleImport:
        backoff, reached = Backoff(), (0, 0, 0)
        self._tell("reading", None, 0)
        try:
            while True:
                try:
                    return await self._follow()
                except aio.AioRpcError as error:
                    now = (self._shown.held_bytes, self._shown.checked_count, self._shown.stored_count)
                    if now > reached:
                        backoff.reset()
                        reached = now
                    if error.code() not in PASSING or backoff.failures >= FAILURES_MAX:
                        raise
                    self._session = ()
                    await asyncio.sleep(backoff.next_seconds())
        finally:
            self.progress.remove_task(self._task)

    async def cancel(self) -> str:
        """How far it had come."""
        self._session = await sign_in_admin(self.channel, self.snapshot)
        request = marketdata_pb2.CancelImportRequest(
            request_id=str(uuid7()), import_request_id=await self._request_id()
        )
        try:
            answer = await self._market.CancelImport(request, metadata=self._session, timeout=CALL_SECONDS)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return "nothing: no such import is under way"
            raise
        finally:
            self.progress.remove_task(self._task)
        return f"after {answer.candle_import.stored_count} bars that stay"

    async def so_far(self, error: aio.AioRpcError) -> str:
        """What of the file is imported although it failed, where the failure does not tell."""
        try:
            found = await self._ask(self.header.request_id) if self.header.request_id else None
        except aio.AioRpcError:
            return "; how much was imported is not known, the same command goes on"
        if found is not None and found.state == marketdata_pb2.IMPORT_STATE_REFUSED and error.code() in TELLING:
            return ""
        if found is not None and found.stored_count:
            return f"; {found.stored_count} of {found.read_count} bars were imported so far, the same command goes on"
        return "; nothing was imported"

    async def _follow(self) -> CandleImport:
        if not self._session:
            self._session = await sign_in_admin(self.channel, self.snapshot)
        if not self.header.request_id:
            self.header.request_id = await self._request_id()
        while True:
            found = await self._look()
            # A file that was refused before may be right by now: its last bar has ended.
            was_refused = found is not None and found.state == marketdata_pb2.IMPORT_STATE_REFUSED
            if (
                found is None
                or found.state == marketdata_pb2.IMPORT_STATE_RECEIVING
                or (was_refused and not self._is_sent)
            ):
                found = await self._send(found)
            if found.state == marketdata_pb2.IMPORT_STATE_DONE:
                return found
            if found.state == marketdata_pb2.IMPORT_STATE_REFUSED:
                raise Refused(found.refusal)
            await asyncio.sleep(LOOK_SECONDS)

    async def _request_id(self) -> str:
        """The same whenever this file is imported, until that has ended well: the next time is another import."""
        said = self.header.SerializeToString(deterministic=True)
        base = hashlib.sha256(said).hexdigest()[:32]
        for number in range(REPEATS_MAX):
            found = await self._ask(f"{base}-{number}")
            if found is None or found.state != marketdata_pb2.IMPORT_STATE_DONE:
                return f"{base}-{number}"
        raise StackError(f"{self.path} was imported {REPEATS_MAX} times in thirty days")

    async def _send(self, found: CandleImport | None) -> CandleImport:
        header = marketdata_pb2.ImportHeader()
        header.CopyFrom(self.header)
        if found is not None and found.state == marketdata_pb2.IMPORT_STATE_RECEIVING:
            header.start_byte = found.held_bytes

        async def parts() -> AsyncIterator[marketdata_pb2.ImportCandlesRequest]:
            self._is_sent = True
            yield marketdata_pb2.ImportCandlesRequest(header=header)
            with self.path.open("rb") as file:
                file.seek(header.start_byte)
                while chunk := file.read(CHUNK_BYTES):
                    yield marketdata_pb2.ImportCandlesRequest(chunk=chunk)

        call = asyncio.ensure_future(
            self._market.ImportCandles(parts(), metadata=self._session, timeout=IMPORT_SECONDS)
        )
        try:
            while not (await asyncio.wait([call], timeout=LOOK_SECONDS))[0]:
                await self._look()
            return (await call).candle_import
        finally:
            call.cancel()

    async def _look(self) -> CandleImport | None:
        found = await self._ask(self.header.request_id)
        if found is not None and (description := DESCRIPTIONS.get(found.state)):
            self._shown = found
            total, completed = {
                marketdata_pb2.IMPORT_STATE_RECEIVING: (found.size_bytes, found.held_bytes),
                marketdata_pb2.IMPORT_STATE_CHECKING: (None, found.checked_count),
                marketdata_pb2.IMPORT_STATE_STORING: (found.read_count, found.stored_count),
            }[found.state]
            self._tell(description, total, completed)
        return found

    def _tell(self, description: str, total: int | None, completed: int) -> None:
        """How much of a total is completed, or how many rows where nobody knows how many there are."""
        doing, rows = f"{self.path.name}: {description}", f" {completed} rows" if completed and total is None else ""
        self.progress.update(self._task, description=f"{doing}{rows}", total=total, completed=completed)
        if self.lines:
            self.lines.tell(doing, f" {completed * 100 // total} %" if total else rows)

    async def _ask(self, request_id: str) -> CandleImport | None:
        request = marketdata_pb2.GetImportRequest(request_id=request_id)
        try:
            answer = await self._market.GetImport(request, metadata=self._session, timeout=CALL_SECONDS)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return answer.candle_import


def wrong_lines(error: Any) -> list[str]:
    """Every line that the refusal names, in the order of the file, and how many more there are."""
    status = rpc_status.from_call(error)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        _ = detail.Unpack(bad) or detail.Unpack(info)
    if "wrong_lines" not in info.metadata:
        return []
    lines = [f"{violation.field}: {violation.description}" for violation in bad.field_violations if violation.field]
    more = int(info.metadata["wrong_lines"]) - len(lines)
    return [*lines, f"and {more} more lines"] if more > 0 else lines
