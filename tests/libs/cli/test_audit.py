"""`tradeloom audit export`: what it writes proves something, or nothing is written."""

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tradeloom.auth.v1 import auth_pb2

from libs import audit as chains
from libs.audit import Event
from libs.cli import audit
from libs.mesh.wire import timestamp
from libs.stack.errors import StackError
from tests.libs.test_audit import KEY, USER, chain, fields, jwk


def page_of(events: Sequence[Event], token: str, **end: Any) -> auth_pb2.ListAuditEventsResponse:
    listed = [auth_pb2.AuditEvent(**fields(event) | {"time": timestamp(event.time)}) for event in events]
    return auth_pb2.ListAuditEventsResponse(
        events=listed, next_page_token=token, checkpoint=auth_pb2.AuditCheckpoint(**end)
    )


async def exported(monkeypatch: pytest.MonkeyPatch, pages: Sequence[auth_pb2.ListAuditEventsResponse]) -> list[str]:
    """What is written, where auth answers with these pages."""
    left = iter(pages)

    class Admin:
        def __init__(self, channel: object) -> None: ...

        async def ListAuditEvents(self, request: object, **_: object) -> auth_pb2.ListAuditEventsResponse:
            return next(left)

    @asynccontextmanager
    async def channel(_: object) -> AsyncIterator[None]:
        yield

    async def nothing(*_: object) -> tuple[()]:
        return ()

    async def keys(_: object) -> list[dict[str, str]]:
        return [jwk(KEY)]

    monkeypatch.setattr(audit, "edge_channel", channel)
    monkeypatch.setattr(audit, "sign_in_admin", nothing)
    monkeypatch.setattr(audit, "read_keys_through", keys)
    monkeypatch.setattr(audit.auth_pb2_grpc, "AdminServiceStub", Admin)
    file = io.StringIO()
    await audit.write_export(None, str(USER), file)  # type: ignore[arg-type] (nothing of the stack is asked)
    return file.getvalue().splitlines()


async def test_a_purge_between_two_pages_is_told_and_the_next_export_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = chain(5, purge=4)
    after, end = chain(5, purge=4, emptied=range(1, 6))
    checkpoint = {"sequence": 5, "hash": end.hash, "signature": chains.signed(end, KEY, "k")}
    with pytest.raises(StackError, match="was purged while the records were read"):
        await exported(monkeypatch, [page_of(before[:2], "more"), page_of(after[2:], "", **checkpoint)])
    lines = await exported(monkeypatch, [page_of(after[:2], "more"), page_of(after[2:], "", **checkpoint)])
    assert chains.verify_export(lines, [jwk(KEY)]).emptied_count == 5
