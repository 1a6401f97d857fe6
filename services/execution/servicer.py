"""Speaks the execution API: reads the request, asks the store, writes the response."""

from collections.abc import Mapping

from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc

from libs.store.database import Database
from services.execution import store, wire
from services.execution.domain import VenueCard, find_venue


class ExecutionServicer(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, database: Database, venues: Mapping[str, VenueCard]) -> None:
        """Database is of the worker role: what a venue carries is counted over all users."""
        self._database, self._venues = database, venues

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

    async def _count_open(self) -> dict[str, int]:
        async with self._database.transaction() as rows:
            return await store.count_open(rows)
