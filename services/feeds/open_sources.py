"""Sources opened for playing: they find their position again in what was appended, and make lines from there on."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus.budget import Budget
from services.feeds import wire
from services.feeds.domain import (
    HISTORY_BAR_SIZE,
    NOTHING_PLAYED,
    SECOND_NS,
    Clock,
    ExchangeSource,
    Instant,
    Instrument,
    Place,
    RecordingTooOld,
    ReplaySource,
    Settlement,
    SimulatedSource,
    Source,
    SymbolsNotFound,
    VenueNotFound,
    VenueUnavailable,
    clock,
)
from services.feeds.exchange import Desk, OpenExchange
from services.feeds.lines import CATCH_UP_SECONDS, Line, Pace, SimulatedLine
from services.feeds.sources.replay import Recording, read_recordings
from services.feeds.sources.simulated import SimulatedMarket
from services.feeds.venues import Addresses, Venue, VenueTrouble, bar_sizes_of, budget_of, connected, manner_of

LOOK_SECONDS = 20.0
"""A venue that is to be brought has so long to say what it lists."""


class OpenSource(Protocol):
    @property
    def is_live(self) -> bool:
        """Whether what it told cannot be made again with the numbers it had."""
        ...

    @property
    def woken(self) -> asyncio.Event:
        """Set when something is to be told before the lines said that it would be."""
        ...

    @property
    def instruments(self) -> Sequence[Instrument]:
        """What it brings, as far as that is known beforehand."""
        ...

    def place_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> Place:
        """The place, with the source's position after a batch that was appended there."""
        ...

    def settlements(self, before: Place, after: Place) -> Sequence[Settlement]:
        """What funding was settled at between two places of one instrument, in the order of time."""
        ...

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        """The events after each place, none of them before the market time reached there. Raises RecordingTooOld."""
        ...

    def running(self, desk: Desk) -> AbstractAsyncContextManager[None]:
        """What has to go on while its lines are played."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Opens sources. Venues are asked at the addresses given by segment, or where ccxt knows them."""

    redis: Redis
    replay_folder: Path | None = None
    addresses: Mapping[str, Addresses] = field(default_factory=dict)
    from_address: str = ""
    now: Clock = clock

    async def open(self, source: Source) -> OpenSource:
        """Raises ReplayFileInvalid or VenueNotFound."""
        match source:
            case ReplaySource():
                return OpenReplay(source, await asyncio.to_thread(read_recordings, self.replay_folder, source))
            case ExchangeSource():
                manner = await asyncio.to_thread(manner_of, source.segment)
                sizes = await asyncio.to_thread(bar_sizes_of, source.segment)
                return OpenExchange(
                    source,
                    partial(self.connected, source.segment),
                    ids_follow=manner.ids_follow,
                    has_history=source.history_days > 0 and HISTORY_BAR_SIZE.name in sizes,
                )
            case SimulatedSource(seed, trades_per_second, funding_interval_seconds):
                return OpenSimulation(SimulatedMarket(seed, trades_per_second, funding_interval_seconds))

    async def prepare(self, source: Source) -> None:
        """Has ready what it takes to play a source; that it cannot be played is told when it is opened."""
        if isinstance(source, ExchangeSource):
            with suppress(VenueNotFound):
                await asyncio.to_thread(manner_of, source.segment)

    async def look_at(self, source: Source) -> dict[str, int]:
        """The times of the first trades in files, by instrument; none for other sources.

        Raises ReplayFileInvalid, VenueNotFound, VenueUnavailable or SymbolsNotFound for what could not be played.
        """
        match source:
            case ReplaySource():
                recordings = await asyncio.to_thread(read_recordings, self.replay_folder, source)
                return {instrument_id: each.first_time_ns for instrument_id, each in recordings.items()}
            case ExchangeSource(venue, symbols):
                try:
                    async with asyncio.timeout(LOOK_SECONDS), self.connected(source.segment) as asked:
                        listed = await asked.load()
                except (VenueTrouble, TimeoutError) as error:
                    raise VenueUnavailable(f"{venue} does not say what it lists: {error}", venue=venue) from error
                where = "on its spot market" if source.segment == venue else "among its perpetual futures"
                unknown = {
                    f"exchange.symbols[{number}]": f"{venue} lists no {symbol} {where}"
                    for number, symbol in enumerate(symbols)
                    if symbol not in listed
                }
                if unknown:
                    raise SymbolsNotFound(unknown, venue=venue)
        return {}

    async def budget_of(self, segment: str) -> Budget:
        """What may be asked of a segment of a venue from here. Raises VenueNotFound."""
        return await asyncio.to_thread(budget_of, segment, self.redis, self.from_address)

    def connected(self, segment: str) -> AbstractAsyncContextManager[Venue]:
        """The segment of a venue, to be asked during the block. Raises VenueNotFound."""
        return connected(segment, self.addresses.get(segment, Addresses()), self.redis, self.from_address, self.now)


class Planned:
    """A source that knows everything before it is due."""

    is_live = False

    def __init__(self) -> None:
        self.woken = asyncio.Event()

    def settlements(self, before: Place, after: Place) -> Sequence[Settlement]:
        return ()

    def running(self, desk: Desk) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class OpenSimulation(Planned):
    def __init__(self, market: SimulatedMarket) -> None:
        super().__init__()
        self._market = market
        self.instruments = market.instruments

    def place_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> Place:
        return replace(place, position=wire.time_from_batch(batch) - place.offset_ns)

    def settlements(self, before: Place, after: Place) -> Sequence[Settlement]:
        """Simulated time has come from one to the other under the first one's offset."""
        return list(self._market.settlements(before.instrument_id, before.position, after.position, before.offset_ns))

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        # What joins a market that runs begins where that is.
        newest = max(place.position for place in places)
        places = [replace(each, position=newest) if each.position == NOTHING_PLAYED else each for each in places]
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


class OpenReplay(Planned):
    def __init__(self, source: ReplaySource, recordings: Mapping[str, Recording]) -> None:
        super().__init__()
        self._source, self._recordings = source, recordings
        self.instruments = source.instruments

    def place_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> Place:
        return replace(place, position=place.position + len(batch.ticks))

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        pace = Pace(self._source.speed, now)
        for place in places:
            first_ns = self._recordings[place.instrument_id].first_time_ns
            if place.position == 0 and first_ns <= place.market_time_ns:
                raise RecordingTooOld(self._source, place.instrument_id, first_ns, place.market_time_ns)
            pace.add(
                self._recordings[place.instrument_id].ticks_after(place.position), place, quotes[place.instrument_id]
            )
        return pace.lines
