"""Follows what feeds tell: the instruments they bring, and what funding was settled at."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from tradeloom.feeds.v1 import events_pb2

from libs.errors import Invalid
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.marketdata import domain, funding_store, sessions, store, wire

log = structlog.get_logger(__name__)


async def apply_feeds_facts(rows: Connection, facts: Sequence[Fact]) -> None:
    for fact in facts:
        if fact.kind == events_pb2.InstrumentAnnounced.DESCRIPTOR.full_name:
            await put_announced(rows, events_pb2.InstrumentAnnounced.FromString(fact.payload))
        elif fact.kind == events_pb2.FundingAnnounced.DESCRIPTOR.full_name:
            announced = events_pb2.FundingAnnounced.FromString(fact.payload)
            settled = wire.funding_rate_from_proto(announced.funding_rate)
            if not await funding_store.settle(rows, settled):
                log.info("funding is settled already", instrument_id=settled.instrument_id, time=settled.funding_time)


async def put_announced(rows: Connection, announced: events_pb2.InstrumentAnnounced) -> None:
    """Stores an announced instrument; one that somebody had put by hand is the feed's from then on, but for what it does not tell."""
    instrument = wire.announced_instrument_from_proto(announced.instrument)
    if not wire.tells_tiers(announced.instrument):
        existing = await store.find_instrument(rows, instrument.instrument_id, for_update=True)
        instrument = domain.as_announced(instrument, existing)
    try:
        instrument = await sessions.zoned(instrument, datetime.now(UTC))
    except Invalid:
        # Its ticks come all the same, whenever they do.
        log.warning("a calendar is not known", instrument_id=instrument.instrument_id, calendar=instrument.calendar)
        instrument = replace(instrument, calendar="")
    if violations := domain.perpetual_violations(instrument):
        # Nobody is to work out margin by them.
        log.warning("the terms of a perpetual are wrong", instrument_id=instrument.instrument_id, violations=violations)
        instrument = replace(instrument, perpetual=None)
    await store.put_instrument(rows, instrument)
