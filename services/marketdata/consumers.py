"""Follows what feeds tell: the instruments they bring."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from tradeloom.feeds.v1 import events_pb2

from libs.errors import Invalid
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.marketdata import sessions, store, wire

log = structlog.get_logger(__name__)


async def apply_feeds_facts(rows: Connection, facts: Sequence[Fact]) -> None:
    """Stores announced instruments; one that somebody had put by hand is the feed's from then on."""
    for fact in facts:
        if fact.kind == events_pb2.InstrumentAnnounced.DESCRIPTOR.full_name:
            announced = events_pb2.InstrumentAnnounced.FromString(fact.payload)
            instrument = wire.announced_instrument_from_proto(announced.instrument)
            try:
                instrument = await sessions.zoned(instrument, datetime.now(UTC))
            except Invalid:
                # Its ticks come all the same, whenever they do.
                log.warning(
                    "a calendar is not known", instrument_id=instrument.instrument_id, calendar=instrument.calendar
                )
                instrument = replace(instrument, calendar="")
            await store.put_instrument(rows, instrument)
