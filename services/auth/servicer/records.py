"""What was recorded about people, and which of their sessions have ended."""

from uuid import UUID

from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.audit import Checkpoint, Event
from libs.mesh import identity, pages
from services.auth import audit_store, wire
from services.auth.revocations import Revocations
from services.auth.servicer.desk import Desk

PAGE_EVENTS = 50


class RecordMethods:
    _desk: Desk

    async def ListOwnAuditEvents(self, request, context):
        found = await page_of_events(self._desk, identity.current().user_id, request)
        return wire.events_to_proto(auth_pb2.ListOwnAuditEventsResponse(), *found)

    async def GetAuditKeys(self, request, context):
        return auth_pb2.GetAuditKeysResponse(keys=map(wire.key_to_proto, self._desk.signer.audit_keys))


async def page_of_events(desk: Desk, user_id: UUID, request) -> tuple[list[Event], str, Checkpoint]:
    """A page of somebody's chain, the token of the next, and the chain's end as it was signed: all as of one moment."""
    after, size = pages.number_after(request.page_token), pages.size_of(request.page_size, PAGE_EVENTS)
    async with desk.database.transaction(user_id, snapshot=True) as rows:
        end = await audit_store.end_of(rows, user_id)
        found = await audit_store.list_events(rows, user_id, after, size + 1, newest_first=request.newest_first)
    page = found[:size]
    token = pages.token_after(page[-1].sequence) if len(found) > size else ""
    return page, token, end if end.sequence else desk.signer.sign_end(end)


class RevocationServicer(auth_pb2_grpc.RevocationServiceServicer):
    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations

    async def StreamRevocations(self, request, context):
        async for news in self._revocations.stream():
            yield news
