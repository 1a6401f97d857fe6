"""What marketdata tells the other services."""

from tradeloom.marketdata.v1 import events_pb2

from libs.store.outbox import Fact
from services.marketdata import wire
from services.marketdata.domain import Instrument


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
