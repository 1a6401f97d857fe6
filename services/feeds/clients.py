"""What feeds asks the other services: marketdata to keep bars of a venue's record."""

from collections.abc import Sequence

import grpc
from grpc import aio
from tradeloom.marketdata.v1 import marketdata_pb2_grpc

from services.feeds import wire
from services.feeds.domain import Bar, BarsRefused, MarketDataAway

REFUSAL_CHARACTERS_MAX = 500


class MarketData:
    def __init__(self, channel: aio.Channel) -> None:
        self._marketdata = marketdata_pb2_grpc.MarketDataServiceStub(channel)

    async def put_bars(self, instrument_id: str, bar_size: str, bars: Sequence[Bar]) -> None:
        """Returns once they are stored; doing it again changes nothing. Raises MarketDataAway, BarsRefused."""
        try:
            await self._marketdata.PutCandles(wire.bars_to_proto(instrument_id, bar_size, bars))
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise BarsRefused(
                    f"marketdata refuses what the venue tells: {error.details()}"[:REFUSAL_CHARACTERS_MAX]
                ) from None
            # Also where it has not heard yet that there is such an instrument.
            raise MarketDataAway(f"{error.code().name}: {error.details()}") from error
