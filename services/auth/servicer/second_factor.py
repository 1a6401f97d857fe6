"""Setting a second factor up, proving it anew and giving it up."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from tradeloom.auth.v1 import auth_pb2

from libs.mesh import identity
from libs.mesh.wire import timestamp
from libs.store.database import Connection
from services.auth import domain, totp, use_cases, wire
from services.auth.keys import AccessToken, grant_of_session
from services.auth.mails import Kind
from services.auth.servicer.desk import Desk, Response, caller_of


class SecondFactorMethods:
    _desk: Desk

    async def SetupTotp(self, request, context):
        desk, user_id, address = self._desk, identity.current().user_id, caller_of(context).address
        made: list[str] = []
        verified = await desk.check_password(user_id, request.password, address) if request.password else None

        async def work(rows: Connection) -> auth_pb2.SetupTotpResponse:
            user = await desk.own_user(rows)
            if verified is None:
                domain.check_signed_in_lately(await desk.own_session(rows), desk.now())
            else:
                await desk.still_right(rows, user_id, request.password, verified)
            secret = await desk.set_up_factor.make(desk.factors(rows), user_id)
            made[:] = [totp.otpauth_uri(secret, user.email)]
            return auth_pb2.SetupTotpResponse(secret=secret, otpauth_uri=made[0])

        response = await desk.answer_once(request, auth_pb2.SetupTotpResponse, work)
        if made:
            # Drawing takes some milliseconds.
            response.qr_svg = await asyncio.to_thread(totp.qr_svg, made[0])
        return response

    async def EnableTotp(self, request, context):
        desk, user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.EnableTotpResponse:
            identities = desk.identities(rows)
            codes = await desk.set_up_factor.enable(identities, desk.factors(rows), user_id, request.code)
            token = await self._fresh_token(rows)
            user = await desk.own_user(rows)
            await desk.outgoing.add(rows, user_id, Kind.TOTP_ENABLED, user.email)
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.EnableTotpResponse(
                recovery_codes=codes,
                access_token=token.text,
                token_type=wire.TOKEN_TYPE,
                expires_in=token.expires_in,
            )

        return await self._proving(request, auth_pb2.EnableTotpResponse, work, context)

    async def StepUp(self, request, context):
        desk, user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.StepUpResponse:
            await desk.prove_factor(desk.factors(rows), user_id, request.code)
            token = await self._fresh_token(rows)
            return auth_pb2.StepUpResponse(
                access_token=token.text,
                token_type=wire.TOKEN_TYPE,
                expires_in=token.expires_in,
                fresh_until_time=timestamp(desk.now() + timedelta(seconds=domain.FRESH_FACTOR_SECONDS)),
            )

        return await self._proving(request, auth_pb2.StepUpResponse, work, context)

    async def DisableTotp(self, request, context):
        desk, user_id = self._desk, identity.current().user_id
        verified = await desk.check_password(user_id, request.password, caller_of(context).address)

        async def work(rows: Connection) -> auth_pb2.DisableTotpResponse:
            await desk.still_right(rows, user_id, request.password, verified)
            factors = desk.factors(rows)
            await desk.prove_factor(factors, user_id, request.code, request.recovery_code)
            await factors.delete_totp(user_id)
            # No token says any longer that there is one.
            await desk.identities(rows).outdate_tokens(user_id, desk.now())
            user = await desk.own_user(rows)
            await desk.outgoing.add(rows, user_id, Kind.TOTP_DISABLED, user.email)
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.DisableTotpResponse()

        return await self._proving(request, auth_pb2.DisableTotpResponse, work, context)

    async def RegenerateRecoveryCodes(self, request, context):
        desk, user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.RegenerateRecoveryCodesResponse:
            factors = desk.factors(rows)
            await desk.prove_factor(factors, user_id, request.code)
            codes = await desk.prove_factor.replace_recovery_codes(factors, user_id)
            return auth_pb2.RegenerateRecoveryCodesResponse(recovery_codes=codes)

        return await self._proving(request, auth_pb2.RegenerateRecoveryCodesResponse, work, context)

    async def _fresh_token(self, rows: Connection) -> AccessToken:
        """An access token of the caller's session, which has just proved its second factor."""
        desk, now = self._desk, self._desk.now()
        session = replace(await desk.own_session(rows), second_factor_time=now)
        await desk.identities(rows).note_second_factor(session.session_id, now)
        return desk.sign(grant_of_session(await desk.own_user(rows), session))

    async def _proving(self, request, response_type: type[Response], work, context) -> Response:
        """Does what a code allows, the attempt counted and a wrong code told."""
        desk, user_id = self._desk, identity.current().user_id
        counted = use_cases.counted_code(identity.current())
        async with desk.database.transaction(user_id) as rows:
            if answer := await desk.first_answer(rows, request, response_type, user_id):
                return answer
        await desk.admit(counted)

        async def proved(rows: Connection) -> Response:
            response = await work(rows)
            await desk.forget_failures(rows, counted)
            return response

        try:
            return await desk.answer_once(request, response_type, proved)
        except domain.CodeInvalid:
            async with desk.database.transaction(user_id) as rows:
                await desk.factors(rows).tell_failure(user_id, caller_of(context).address)
            raise
