"""What execution asks the other services: keys at venues, from users, for a user whom it names."""

from uuid import UUID

import grpc
from grpc import aio
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.mesh.identity import for_user
from services.execution import wire
from services.execution.domain import CredentialNotFound, LeasedKey


class Keys:
    """Leases keys. They are kept in memory only, and never logged."""

    def __init__(self, channel: aio.Channel) -> None:
        self._users = users_pb2_grpc.BrokerCredentialServiceStub(channel)

    async def lease_to_test(self, user_id: UUID, credential_id: UUID, request_id: str) -> LeasedKey:
        """Raises CredentialNotFound."""
        return await self._lease(user_id, credential_id, request_id, users_pb2.LEASE_PURPOSE_TEST)

    async def lease_to_trade(self, user_id: UUID, credential_id: UUID, request_id: str) -> LeasedKey:
        """Raises CredentialNotFound, also for a credential that its venue did not find usable."""
        return await self._lease(user_id, credential_id, request_id, users_pb2.LEASE_PURPOSE_TRADE)

    async def _lease(
        self, user_id: UUID, credential_id: UUID, request_id: str, purpose: users_pb2.LeasePurpose.ValueType
    ) -> LeasedKey:
        request = users_pb2.LeaseBrokerCredentialRequest(
            request_id=request_id, credential_id=str(credential_id), purpose=purpose
        )
        try:
            leased = await self._users.LeaseBrokerCredential(request, metadata=for_user(user_id))
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise CredentialNotFound("no such credential", credential_id=credential_id) from None
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise CredentialNotFound("no usable credential", credential_id=credential_id) from None
            raise
        return wire.key_from_proto(leased)
