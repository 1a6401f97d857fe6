"""What marketdata tells the other services."""

from tradeloom.marketdata.v1 import events_pb2

from libs.store.outbox import Fact
from services.marketdata import wire
from services.marketdata.domain import FundingRate, Instrument


def instrument_changed(instrument: Instrument, sequence: int) -> Fact:
    """An instrument as it now stands; nobody's, so everybody may know."""
    changed = events_pb2.InstrumentChanged(instrument=wire.instrument_to_proto(instrument))
    return Fact(
        key=instrument.instrument_id,
        sequence=sequence,
        user_id=None,
        kind=changed.DESCRIPTOR.full_name,
        payload=changed.SerializeToString(),
    )


def funding_settled(settled: FundingRate, sequence: int) -> Fact:
    """A settlement of funding; of nobody's positions, so everybody may know."""
    told = events_pb2.FundingSettled(funding_rate=wire.funding_rate_to_proto(settled))
    return Fact(
        key=settled.instrument_id,
        sequence=sequence,
        user_id=None,
        kind=told.DESCRIPTOR.full_name,
        payload=told.SerializeToString(),
    )
