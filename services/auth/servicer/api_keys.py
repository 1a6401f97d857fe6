"""API keys: made, listed, revoked, and exchanged for access tokens."""

from ipaddress import ip_network
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.mesh import identity, pages
from libs.mesh.concerns import AddressNotAllowed
from libs.mesh.identity import is_within
from libs.store.database import Connection
from services.auth import domain, key_store, use_cases, wire
from services.auth.keys import grant_of_key
from services.auth.mails import Kind
from services.auth.servicer.desk import Desk, caller_of

PAGE_KEYS = 50


class ApiKeyMethods:
    _desk: Desk

    async def CreateApiKey(self, request, context):
        desk, user_id = self._desk, identity.current().user_id

        async def work(rows: Connection) -> auth_pb2.CreateApiKeyResponse:
            key, secret = await desk.create_api_key(
                desk.identities(rows), desk.api_keys(rows), user_id, wire.wish_from_proto(request)
            )
            user = await desk.own_user(rows)
            await desk.outgoing.add(rows, user_id, Kind.API_KEY_CREATED, user.email, name=key.name)
            return auth_pb2.CreateApiKeyResponse(api_key=wire.api_key_to_proto(key), secret=secret)

        return await desk.answer_once(request, auth_pb2.CreateApiKeyResponse, work)

    async def ListApiKeys(self, request, context):
        desk, user_id = self._desk, identity.current().user_id
        before, size = pages.uuid_after(request.page_token), pages.size_of(request.page_size, PAGE_KEYS)
        async with desk.database.transaction(user_id) as rows:
            found = await desk.api_keys(rows).list_keys(user_id, before, size + 1)
        page = found[:size]
        return auth_pb2.ListApiKeysResponse(
            api_keys=map(wire.api_key_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].api_key_id)) if len(found) > size else "",
        )

    async def RevokeApiKey(self, request, context):
        desk, user_id, api_key_id = self._desk, identity.current().user_id, UUID(request.api_key_id)

        async def work(rows: Connection) -> auth_pb2.RevokeApiKeyResponse:
            keys = desk.api_keys(rows)
            key = await keys.find(user_id, api_key_id)
            if key is None:
                raise domain.ApiKeyNotFound("no such API key", api_key_id=api_key_id)
            revoked = await keys.revoke(key, cause="revoked", now=desk.now())
            rows.after_commit(desk.revocations.look_now)
            return auth_pb2.RevokeApiKeyResponse(api_key=wire.api_key_to_proto(revoked))

        return await desk.answer_once(request, auth_pb2.RevokeApiKeyResponse, work)

    async def ExchangeApiKey(self, request, context):
        desk, address = self._desk, caller_of(context).address
        secret_hash = use_cases.hash_of(request.secret)
        async with desk.database.transaction() as rows:
            user_id = await key_store.owner_of_secret(rows, secret_hash)
        if user_id is None:
            raise domain.ApiKeyInvalid("the API key is not valid")

        async def work(rows: Connection) -> auth_pb2.ExchangeApiKeyResponse:
            keys, now = desk.api_keys(rows), desk.now()
            user = await desk.identities(rows).find_user(user_id)
            key, owner = domain.key_in_force(await keys.find_by_secret(secret_hash), user, now)
            if key.allowed_networks and not is_within(address, map(ip_network, key.allowed_networks)):
                raise AddressNotAllowed("the API key may not be used from this address", address=address)
            await keys.note_use(key, address, now)
            token = desk.sign(grant_of_key(owner, key))
            return auth_pb2.ExchangeApiKeyResponse(
                access_token=token.text,
                token_type=wire.TOKEN_TYPE,
                expires_in=token.expires_in,
                api_key_id=str(key.api_key_id),
            )

        try:
            return await desk.answer_once(request, auth_pb2.ExchangeApiKeyResponse, work, user_id=user_id)
        except (AddressNotAllowed, domain.ApiKeyInvalid) as refusal:
            reason = "address_not_allowed" if isinstance(refusal, AddressNotAllowed) else "not_in_force"
            async with desk.database.transaction(user_id) as rows:
                await desk.api_keys(rows).note_refusal(secret_hash, address, reason)
            raise
