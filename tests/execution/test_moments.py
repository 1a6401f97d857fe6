"""What the paper venue takes from the market's stream."""

from decimal import Decimal

from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, Tick, TickBatch

from libs.matching.grid import Grid
from services.execution.wire import moments_from_bytes


def test_what_is_brought_after_it_was_missed_fills_nothing():
    live, late = (
        TickBatch(ticks=[Tick(price=100.0, quantity=1.0), Tick(price=price, quantity=2.0)], backfill=backfill)
        for price, backfill in ((101.0, False), (1.0, True))
    )
    grid = Grid(Decimal("0.01"), Decimal("0.01"))
    response = StreamTicksResponse(batches=[late, live, late]).SerializeToString()
    alone = StreamTicksResponse(batches=[live]).SerializeToString()
    assert list(moments_from_bytes(response, grid)) == list(moments_from_bytes(alone, grid))
    assert len(list(moments_from_bytes(alone, grid))) == 2
