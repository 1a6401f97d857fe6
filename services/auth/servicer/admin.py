"""What administrators do."""

from uuid import UUID

from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from libs.mesh import identity, pages
from libs.mesh.wire import timestamp
from libs.store.database import Connection
from services.auth import domain, events, store, wire
from services.auth.domain import User
from services.auth.mails import Kind
from services.auth.servicer.desk import Desk
from services.auth.servicer.records import page_of_events

PAGE_USERS = 50


class AdminServicer(auth_pb2_grpc.AdminServiceServicer):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ListUsers(self, request, context):
        size = pages.size_of(request.page_size, PAGE_USERS)
        async with self._desk.database.transaction() as rows:
            found = await store.list_users(
                rows,
                after=pages.time_and_uuid_after(request.page_token),
                query=request.query,
                role=request.role,
                states=[wire.STATES_FROM_PROTO[state] for state in request.states],
                limit=size + 1,
            )
        page = found[:size]
        return auth_pb2.ListUsersResponse(
            users=map(wire.user_to_proto, page),
            next_page_token=pages.token_after(page[-1].create_time.isoformat(), str(page[-1].user_id))
            if len(found) > size
            else "",
        )

    async def SetUserRoles(self, request, context):
        desk, admin_user_id, user_id = self._desk, identity.current().user_id, UUID(request.user_id)

        async def work(rows: Connection) -> User:
            user = await desk.administer.set_roles(
                desk.identities(rows), user_id, domain.roles_from(request.roles), admin_user_id
            )
            rows.after_commit(desk.revocations.look_now)
            return user

        return await desk.answer_once_with_user(request, auth_pb2.SetUserRolesResponse, work, also=(user_id,))

    async def SetUserState(self, request, context):
        desk, admin_user_id, user_id = self._desk, identity.current().user_id, UUID(request.user_id)

        async def work(rows: Connection) -> User:
            user = await desk.administer.set_state(
                desk.identities(rows), user_id, wire.STATES_FROM_PROTO[request.state], request.note, admin_user_id
            )
            rows.after_commit(desk.revocations.look_now)
            return user

        return await desk.answer_once_with_user(request, auth_pb2.SetUserStateResponse, work, also=(user_id,))

    async def ResetSecondFactor(self, request, context):
        desk, admin_user_id, user_id = self._desk, identity.current().user_id, UUID(request.user_id)

        async def work(rows: Connection) -> User:
            user = await desk.administer.reset_factor(
                desk.identities(rows), desk.factors(rows), user_id, request.note, admin_user_id
            )
            await desk.outgoing.add(rows, user_id, Kind.TOTP_TAKEN_AWAY, user.email)
            rows.after_commit(desk.revocations.look_now)
            return user

        return await desk.answer_once_with_user(request, auth_pb2.ResetSecondFactorResponse, work, also=(user_id,))

    async def ListAuditEvents(self, request, context):
        desk, admin_user_id, user_id = self._desk, identity.current().user_id, UUID(request.user_id)
        if user_id != admin_user_id:
            # Before the page is read, so that none is read without it.
            async with desk.database.transaction(user_id) as rows:
                await desk.identities(rows).note_read(user_id, admin_user_id)
        found = await page_of_events(desk, user_id, request)
        return wire.events_to_proto(auth_pb2.ListAuditEventsResponse(), *found)

    async def RotateSigningKey(self, request, context):
        desk, admin_user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.RotateSigningKeyResponse:
            key_id, sign_time = await desk.rotation.begin(rows)
            await desk.identities(rows).tell(admin_user_id, events.signing_key_rotated(key_id, sign_time))
            return auth_pb2.RotateSigningKeyResponse(key_id=key_id, sign_time=timestamp(sign_time))

        response = await desk.answer_once(request, auth_pb2.RotateSigningKeyResponse, work)
        await desk.rotation.follow()
        return response
