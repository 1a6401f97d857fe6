"""Speaks the execution API: reads the request, asks the store, writes the response."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc

from libs.errors import Unauthenticated
from libs.mesh import identity
from libs.store.database import Database
from services.execution import store, wire
from services.execution.clients import Keys
from services.execution.domain import VenueCard, find_venue
from services.execution.venues.credentials import Checkers


class ExecutionServicer(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, database: Database, venues: Mapping[str, VenueCard], keys: Keys, checkers: Checkers) -> None:
        """Database is of the worker role: what a venue carries is counted over all users."""
        self._database, self._venues = database, venues
        self._keys, self._checkers = keys, checkers

    async def ListVenues(self, request, context):
        counts = await self._count_open()
        cards = [self._venues[venue] for venue in sorted(self._venues)]
        return execution_pb2.ListVenuesResponse(
            venues=[wire.venue_to_proto(card, counts.get(card.venue, 0)) for card in cards]
        )

    async def GetVenue(self, request, context):
        card = find_venue(self._venues, request.venue)
        counts = await self._count_open()
        return execution_pb2.GetVenueResponse(venue=wire.venue_to_proto(card, counts.get(card.venue, 0)))

    async def CheckBrokerCredential(self, request, context):
        try:
            user_id = identity.current().user_id
        except LookupError:
            raise Unauthenticated("the call names no user") from None
        async with self._checkers.turn(user_id):
            key = await self._keys.lease_to_test(user_id, UUID(request.credential_id), request.request_id)
            rights = await self._checkers.check(key)
        return wire.rights_to_proto(rights, key.revision, datetime.now(UTC))

    async def _count_open(self) -> dict[str, int]:
        async with self._database.transaction() as rows:
            return await store.count_open(rows)
