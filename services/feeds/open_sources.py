"""Sources opened for playing: they find their position again in what was appended, and make lines from there on."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus.feed import Cursor
from services.feeds import wire
from services.feeds.domain import Instrument, Place, ReplaySource, Source
from services.feeds.lines import Line, ReplayLine, SimulatedLine
from services.feeds.sources.replay import Recording, read_recording
from services.feeds.sources.simulated import CHARACTERS, SimulatedMarket

CATCH_UP_SECONDS = 60
"""A simulated market that stood still for longer was closed: it goes on at its last price, without the time between."""


class OpenSource(Protocol):
    @property
    def instruments(self) -> Sequence[Instrument]: ...

    def position_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> int:
        """The position after a batch that was appended at a place."""
        ...

    def resumed(self, places: Sequence[Place], now_ns: int) -> list[Place]:
        """The places as playing starts: with the offset it starts under."""
        ...

    def line(self, place: Place, previous: Cursor, quote: marketdata_pb2.Quote, now_ns: int) -> Line:
        """The events of one instrument after its place."""
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

    def resumed(self, places: Sequence[Place], now_ns: int) -> list[Place]:
        """All under one offset, so that the instruments stay in step."""
        newest = max(places, key=lambda place: place.position)
        offset_ns = newest.offset_ns
        if now_ns - (newest.position + offset_ns) > CATCH_UP_SECONDS * 1_000_000_000:
            # Whole microseconds, which is what databases keep.
            offset_ns = (now_ns - newest.position) // 1_000 * 1_000
        return [replace(place, offset_ns=offset_ns) for place in places]

    def line(self, place: Place, previous: Cursor, quote: marketdata_pb2.Quote, now_ns: int) -> Line:
        events = self._market.events_after(place.instrument_id, place.position, place.offset_ns)
        return SimulatedLine(events, previous, place, quote)


class OpenReplay:
    def __init__(self, source: ReplaySource, recording: Recording) -> None:
        self._speed, self._recording = source.speed, recording
        self.instruments = [source.instrument]

    def position_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> int:
        return place.position + len(batch.ticks)

    def resumed(self, places: Sequence[Place], now_ns: int) -> list[Place]:
        return list(places)

    def line(self, place: Place, previous: Cursor, quote: marketdata_pb2.Quote, now_ns: int) -> Line:
        events = self._recording.ticks_after(place.position)
        return ReplayLine(events, previous, place, quote, speed=self._speed, start_ns=now_ns)
