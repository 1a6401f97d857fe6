"""Follows what feeds tell: the instruments they bring."""

from collections.abc import Sequence

from tradeloom.feeds.v1 import events_pb2

from libs.store.database import Connection
from libs.store.outbox import Fact
from services.marketdata import store, wire


async def apply_feeds_facts(rows: Connection, facts: Sequence[Fact]) -> None:
    """Stores announced instruments; one that somebody had put by hand is the feed's from then on."""
    for fact in facts:
        if fact.kind == events_pb2.InstrumentAnnounced.DESCRIPTOR.full_name:
            announced = events_pb2.InstrumentAnnounced.FromString(fact.payload)
            await store.put_instrument(rows, wire.announced_instrument_from_proto(announced.instrument))
