"""Looking at one's open sessions, and ending them."""

from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.mesh import identity, pages
from libs.store.database import Connection
from services.auth import domain, wire
from services.auth.servicer.desk import Desk

PAGE_SESSIONS = 50


class SessionMethods:
    _desk: Desk

    async def ListSessions(self, request, context):
        desk, caller = self._desk, identity.current()
        before, size = pages.uuid_after(request.page_token), pages.size_of(request.page_size, PAGE_SESSIONS)
        async with desk.database.transaction(caller.user_id) as rows:
            found = await desk.identities(rows).list_sessions(caller.user_id, before, desk.now(), size + 1)
        page = found[:size]
        return auth_pb2.ListSessionsResponse(
            sessions=[wire.session_to_proto(one, current=one.session_id == caller.session_id) for one in page],
            next_page_token=pages.token_after(str(page[-1].session_id)) if len(found) > size else "",
        )

    async def RevokeSession(self, request, context):
        desk, user_id, session_id = self._desk, identity.current().user_id, UUID(request.session_id)

        async def work(rows: Connection) -> auth_pb2.RevokeSessionResponse:
            identities = desk.identities(rows)
            if await identities.find_session(session_id) is None:
                raise domain.SessionNotFound("no such session", session_id=session_id)
            await identities.end_session(session_id, user_id, cause="revoked", now=desk.now())
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.RevokeSessionResponse()

        return await desk.answer_once(request, auth_pb2.RevokeSessionResponse, work)
