"""Changing a password, setting a lost one anew, and proving to own an address."""

from tradeloom.auth.v1 import auth_pb2

from libs.mesh import identity
from libs.mesh.identity import network_of
from libs.store.database import Connection
from services.auth import domain, factor_store, reset_requests, use_cases
from services.auth.domain import VERIFY_LINK_SECONDS, Purpose, User
from services.auth.mails import Kind
from services.auth.servicer.desk import Desk, caller_of


class PasswordMethods:
    _desk: Desk

    async def ChangePassword(self, request, context):
        desk, caller = self._desk, identity.current()
        async with desk.database.transaction(caller.user_id) as rows:
            if answer := await desk.first_answer(rows, request, auth_pb2.ChangePasswordResponse, caller.user_id):
                return answer
            self._refuse_common(request, await desk.own_user(rows))
        address = caller_of(context).address
        verified = await desk.check_password(caller.user_id, request.current_password, address)
        password_hash = await desk.passwords.hash(request.new_password, known=True)

        async def work(rows: Connection) -> auth_pb2.ChangePasswordResponse:
            user = await desk.own_user(rows)
            await desk.still_right(rows, user.user_id, request.current_password, verified)
            count = await desk.change_password(
                desk.identities(rows), user, password_hash, but=caller.session_id, cause="changed"
            )
            await desk.outgoing.add(rows, user.user_id, Kind.PASSWORD_CHANGED, user.email)
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.ChangePasswordResponse(ended_session_count=count)

        return await desk.answer_once(request, auth_pb2.ChangePasswordResponse, work)

    async def RequestPasswordReset(self, request, context):
        desk, email = self._desk, domain.normalized(request.email)

        async def work(rows: Connection) -> auth_pb2.RequestPasswordResetResponse:
            await reset_requests.add(rows, desk.box, email)
            return auth_pb2.RequestPasswordResetResponse()

        whoever = reset_requests.stand_in(desk.box, email)
        return await desk.answer_once(request, auth_pb2.RequestPasswordResetResponse, work, user_id=whoever)

    async def ResetPassword(self, request, context):
        desk, caller = self._desk, caller_of(context)
        token_hash = use_cases.hash_of(request.token)
        async with desk.database.transaction() as rows:
            user_id = await factor_store.owner_of(rows, token_hash, Purpose.RESET_PASSWORD)
        if user_id is None:
            raise refuse_link()
        async with desk.database.transaction(user_id) as rows:
            self._refuse_common(request, await desk.identities(rows).find_user(user_id))
        password_hash = await desk.passwords.hash(request.new_password, known=True)

        async def work(rows: Connection) -> auth_pb2.ResetPasswordResponse:
            identities = desk.identities(rows)
            user = await identities.find_user(user_id)
            spent = await desk.factors(rows).spend_token(token_hash, Purpose.RESET_PASSWORD, desk.now())
            if not spent or user is None or user.state is not domain.UserState.ACTIVE:
                raise refuse_link()
            await desk.change_password(identities, user, password_hash, but=None, cause="reset")
            # Who reads the mail owns the address, and signs in from here next, whatever others have tried meanwhile.
            if not user.email_verified:
                await identities.verify_email(user)
                # Whoever registered may have been somebody else: nothing that they set up lets in, or keeps out.
                await desk.api_keys(rows).revoke_all(user_id, cause="password_reset", now=desk.now())
                if user.totp_enabled:
                    await desk.factors(rows).delete_totp(user_id)
                    await identities.outdate_tokens(user_id, desk.now())
            await identities.note_network(user_id, network_of(caller.address))
            await desk.forget_failures(rows, use_cases.counted_login(user.email, caller.address, is_known=False)[:2])
            await desk.outgoing.add(rows, user_id, Kind.PASSWORD_CHANGED, user.email)
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.ResetPasswordResponse()

        return await desk.answer_once(request, auth_pb2.ResetPasswordResponse, work, user_id=user_id)

    def _refuse_common(
        self, request: auth_pb2.ChangePasswordRequest | auth_pb2.ResetPasswordRequest, user: User | None
    ) -> None:
        own = {"email": user.email, "full_name": user.full_name} if user else {}
        self._desk.passwords.refuse_common(request.new_password, "new_password", **own)

    async def RequestEmailVerification(self, request, context):
        desk, user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.RequestEmailVerificationResponse:
            user = await desk.own_user(rows)
            if user.email_verified:
                raise domain.EmailIsVerified("the address is verified already")
            token, _ = await desk.make_token(desk.factors(rows), user_id, Purpose.VERIFY_EMAIL, VERIFY_LINK_SECONDS)
            await desk.outgoing.add(rows, user_id, Kind.VERIFY_EMAIL, user.email, token=token)
            return auth_pb2.RequestEmailVerificationResponse()

        await desk.admit(use_cases.counted_mails(user_id))
        return await desk.answer_once(request, auth_pb2.RequestEmailVerificationResponse, work)

    async def VerifyEmail(self, request, context):
        desk = self._desk
        token_hash = use_cases.hash_of(request.token)
        async with desk.database.transaction() as rows:
            user_id = await factor_store.owner_of(rows, token_hash, Purpose.VERIFY_EMAIL)
        if user_id is None:
            raise refuse_link()

        async def work(rows: Connection) -> auth_pb2.VerifyEmailResponse:
            identities = desk.identities(rows)
            user = await identities.find_user(user_id)
            spent = await desk.factors(rows).spend_token(token_hash, Purpose.VERIFY_EMAIL, desk.now())
            if not spent or user is None or user.state is domain.UserState.PURGED:
                raise refuse_link()
            if not user.email_verified:
                await identities.verify_email(user)
            return auth_pb2.VerifyEmailResponse(email=user.email)

        return await desk.answer_once(request, auth_pb2.VerifyEmailResponse, work, user_id=user_id)


def refuse_link() -> domain.LinkInvalid:
    return domain.LinkInvalid({"token": "is unknown, expired or was used before; ask for another link"})
