"""Sources opened for playing: they find their position again in what was appended, and make lines from there on."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tradeloom.marketdata.v1 import marketdata_pb2

from services.feeds import wire
from services.feeds.domain import Instant, Instrument, Place, RecordingTooOld, ReplaySource, Source
from services.feeds.lines import CATCH_UP_SECONDS, SECOND_NS, Line, ReplayLine, SimulatedLine
from services.feeds.sources.replay import Recording, read_recording
from services.feeds.sources.simulated import CHARACTERS, SimulatedMarket


class OpenSource(Protocol):
    @property
    def instruments(self) -> Sequence[Instrument]: ...

    def position_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> int:
        """The position after a batch that was appended at a place."""
        ...

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        """The events after each place, none of them before the market time reached there. Raises RecordingTooOld."""
        ...


async def open_source(source: Source, replay_folder: Path | None) -> OpenSource:
    """Raises ReplayFileInvalid."""
    if isinstance(source, ReplaySource):
        return OpenReplay(source, await asyncio.to_thread(read_recording, replay_folder, source.file))
    return OpenSimulation(SimulatedMarket(source.seed, source.trades_per_second))


class OpenSimulation:
    def __init__(self, market: SimulatedMarket) -> None:
        self._market = market
        self.instruments = [character.instrument for character in CHARACTERS.values()]

    def position_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> int:
        return wire.time_from_batch(batch) - place.offset_ns

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        offset_ns, lead_ns = fitted(places, now.wall_ns)
        return [
            SimulatedLine(
                self._market.events_after(place.instrument_id, place.position, offset_ns),
                replace(place, offset_ns=offset_ns),
                quotes[place.instrument_id],
                lead_ns=lead_ns,
            )
            for place in places
        ]


def fitted(places: Sequence[Place], wall_ns: int) -> tuple[int, int]:
    """The offset under which all instruments go on, so that they stay in step, and how far market time leads the wall's."""
    newest = max(places, key=lambda place: place.position)
    told_ns = max(place.market_time_ns for place in places)
    offset_ns = newest.offset_ns
    market_ns = newest.position + offset_ns
    if wall_ns - market_ns > CATCH_UP_SECONDS * SECOND_NS or market_ns < told_ns:
        # Up to whole microseconds, which is what databases keep.
        offset_ns = -((newest.position - max(wall_ns, told_ns)) // 1_000 * 1_000)
        market_ns = newest.position + offset_ns
    return offset_ns, max(0, market_ns - wall_ns)


class OpenReplay:
    def __init__(self, source: ReplaySource, recording: Recording) -> None:
        self._source, self._recording = source, recording
        self.instruments = [source.instrument]

    def position_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> int:
        return place.position + len(batch.ticks)

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        (place,) = places
        first_ns = self._recording.first_time_ns
        if place.position == 0 and first_ns <= place.market_time_ns:
            raise RecordingTooOld(self._source, first_ns, place.market_time_ns)
        events, quote = self._recording.ticks_after(place.position), quotes[place.instrument_id]
        return [ReplayLine(events, place, quote, speed=self._source.speed, start=now)]
