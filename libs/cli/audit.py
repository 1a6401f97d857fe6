"""`tradeloom audit`: take out what was recorded about a person, and prove that an export is untouched."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO
from uuid import UUID

import typer
from google.protobuf.json_format import MessageToDict
from grpc import aio
from rich.console import Console
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs import audit as chains
from libs.audit import Checkpoint, Event, Tampered
from libs.cli.client import CALL_SECONDS, Metadata, edge_channel, sign_in_admin
from libs.cli.options import DataDir, running_stack
from libs.mesh.wire import time_from_proto
from libs.stack.errors import StackError
from libs.stack.state import Snapshot

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Export audit records, and prove an export untouched."
)

PAGE_EVENTS = 1_000


@app.command()
def export(
    person: Annotated[str, typer.Argument(help="The e-mail address or the id of the person.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A new file; the terminal unless said.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write everything that was recorded about a person, with the proof, as lines of JSON."""
    snapshot = running_stack(data_dir)
    if output is None:
        asyncio.run(write_export(snapshot, person, sys.stdout))
        return
    try:
        file = output.open("x", encoding="utf-8")
    except OSError as error:
        raise StackError(f"{output} cannot be written: {error.strerror}") from error
    try:
        with file:
            asyncio.run(write_export(snapshot, person, file))
    except BaseException:
        # Half an export proves nothing.
        output.unlink()
        raise


@app.command()
def keys(data_dir: DataDir = None) -> None:
    """Print the public keys that sign the records: keep them elsewhere, for `verify --keys`."""
    try:
        found = asyncio.run(read_keys(running_stack(data_dir)))
    except aio.AioRpcError as error:
        raise StackError(f"the keys could not be read: {error.details()}") from error
    print(json.dumps({"keys": found}, indent=1))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="What `export` has written.")],
    keys: Annotated[
        Path | None, typer.Option("--keys", help="The keys that are trusted, as `tradeloom audit keys` prints them.")
    ] = None,
) -> None:
    """Prove an export untouched, without asking anybody; exit with 1 if it is not."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        trusted = None if keys is None else json.loads(keys.read_text())["keys"]
        with file.open(encoding="utf-8") as lines:
            proved = chains.verify_export(lines, trusted)
    except Tampered as error:
        raise StackError(f"{file} is not what was recorded: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackError(f"it cannot be read: {error}") from error
    console.print(f"untouched  {proved.record_count} records of {proved.user_id}", markup=False)
    if proved.emptied_count:
        console.print(f"emptied    {proved.emptied_count} of them by the purge of personal data")
    console.print(f"signed by  {proved.key_id}", markup=False)
    if keys is None:
        console.print("The key is the export's own: compare it with `tradeloom audit keys`, or give --keys.")


async def write_export(snapshot: Snapshot, person: str, file: TextIO) -> None:
    """Page by page; the end that is signed is the one of the last page, up to which all records were read by then."""
    try:
        async with edge_channel(snapshot) as channel:
            admin = await sign_in_admin(channel, snapshot)
            stub = auth_pb2_grpc.AdminServiceStub(channel)
            user_id = await find_person(stub, admin, person)
            print(chains.head_line(user_id, await read_keys_through(channel)), file=file)
            token, kept_count = "", 0
            while True:
                request = auth_pb2.ListAuditEventsRequest(user_id=str(user_id), page_size=PAGE_EVENTS, page_token=token)
                page = await stub.ListAuditEvents(request, metadata=admin, timeout=CALL_SECONDS)
                for event in map(event_from_proto, page.events):
                    kept_count += not event.is_emptied
                    if kept_count and (event.source, event.kind) == chains.PURGE:
                        # Before the page it began with, records were not emptied yet: that proves nothing.
                        raise StackError(f"{person} was purged while the records were read; export them again")
                    print(chains.record_line(event), file=file)
                token = page.next_page_token
                if not token:
                    break
    except aio.AioRpcError as error:
        raise StackError(f"the records could not be read: {error.details()}") from error
    end = page.checkpoint
    checkpoint = Checkpoint(user_id=user_id, sequence=end.sequence, hash=end.hash, signature=end.signature)
    print(chains.end_line(checkpoint), file=file)


async def find_person(stub: Any, admin: Metadata, person: str) -> UUID:
    try:
        return UUID(person)
    except ValueError:
        request = auth_pb2.ListUsersRequest(query=person, page_size=2)
        found = (await stub.ListUsers(request, metadata=admin, timeout=CALL_SECONDS)).users
    exact = [user for user in found if user.email == person.lower()]
    if not exact:
        raise StackError(f"nobody is registered as {person}")
    return UUID(exact[0].user_id)


async def read_keys(snapshot: Snapshot) -> Sequence[Mapping[str, str]]:
    async with edge_channel(snapshot) as channel:
        return await read_keys_through(channel)


async def read_keys_through(channel: aio.Channel) -> Sequence[Mapping[str, str]]:
    request = auth_pb2.GetAuditKeysRequest()
    answer = await auth_pb2_grpc.AuthServiceStub(channel).GetAuditKeys(request, timeout=CALL_SECONDS)
    return [MessageToDict(key) for key in answer.keys]


def event_from_proto(event: auth_pb2.AuditEvent) -> Event:
    return Event(
        sequence=event.sequence,
        time=time_from_proto(event.time),
        source=event.source,
        kind=event.kind,
        detail=event.detail,
        salt=event.salt,
        digest=event.digest,
        hash=event.hash,
    )
