"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from services.feeds.domain import (
    DAY_NS,
    HISTORY_BAR_SIZE,
    NOTHING_PLAYED,
    Backfill,
    BackfillUnavailable,
    ExchangeSource,
    Feed,
    FeedState,
    InstrumentTaken,
    Missed,
    RecordingTooOld,
    ReplaySource,
    SimulatedSource,
    Source,
    TooManyBackfills,
    TooManyFeeds,
    TooManyInstruments,
    backfill_of,
    history_of,
    ns_of,
)
from services.feeds.sources.characters import CHARACTERS
from services.feeds.venues import bar_sizes_of, do_ids_follow

RUNNING_BACKFILLS_MAX = 100
"""Of one instrument; they are brought one after the other."""
BARS_ORDERED_MAX = 10_000_000
"""In one order: minutes of 19 years, or seconds of 115 days."""


class Feeds(Protocol):
    """Where feeds live, in one transaction."""

    async def count_running(self) -> int: ...
    async def count_brought(self) -> int: ...
    async def add(self, feed: Feed) -> None: ...
    async def bring(self, feed_id: UUID, instrument_ids: Sequence[str], position: int | None) -> str | None: ...
    async def market_time_ns(self, instrument_id: str) -> int: ...
    async def add_instruments(self, feed_id: UUID, instrument_ids: Sequence[str]) -> None: ...
    async def locked(self, feed_id: UUID) -> Feed: ...
    async def end(self, feed_id: UUID, state: FeedState, failure: str = "") -> None: ...
    async def brings(self, instrument_id: str) -> Feed | None: ...
    async def count_running_backfills(self, instrument_id: str) -> int: ...
    async def add_backfill(self, backfill: Backfill) -> None: ...
    async def add_history(self, backfill: Backfill) -> None: ...


@dataclass(frozen=True, slots=True)
class StartFeed:
    """Adds a running feed, and orders the bars from before it.

    Raises InstrumentTaken, RecordingTooOld, TooManyFeeds, or TooManyInstruments.
    """

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    running_feeds_max: int
    instruments_max: int

    async def __call__(self, feeds: Feeds, source: Source, first_times_ns: Mapping[str, int] | None = None) -> Feed:
        """The times are those of the files' first trades, by instrument.

        What was told since they were noted is looked at when playing starts.
        """
        match source:
            case SimulatedSource():
                instrument_ids, position = sorted(CHARACTERS), NOTHING_PLAYED
            case ReplaySource():
                instrument_ids, position = sorted(each.instrument_id for each in source.instruments), 0
            case ExchangeSource():
                instrument_ids, position = sorted(f"{source.venue}:{symbol}" for symbol in source.symbols), None
        feed = Feed(feed_id=self.next_id(), source=source, instrument_ids=tuple(instrument_ids), create_time=self.now())
        await feeds.add(feed)
        taken = await feeds.bring(feed.feed_id, feed.instrument_ids, position)
        if taken is not None:
            raise InstrumentTaken(f"another running feed brings {taken}", instrument_id=taken)
        if isinstance(source, ReplaySource):
            for instrument_id, first_time_ns in sorted((first_times_ns or {}).items()):
                market_time_ns = await feeds.market_time_ns(instrument_id)
                if first_time_ns <= market_time_ns:
                    raise RecordingTooOld(source, instrument_id, first_time_ns, market_time_ns)
        if await feeds.count_running() > self.running_feeds_max:
            raise TooManyFeeds("too many feeds run", running_feeds_max=self.running_feeds_max)
        if await feeds.count_brought() > self.instruments_max:
            raise TooManyInstruments("running feeds bring too many instruments", instruments_max=self.instruments_max)
        if isinstance(source, ExchangeSource) and source.history_days:
            await self._order_history(feeds, feed, source)
        return feed

    async def _order_history(self, feeds: Feeds, feed: Feed, source: ExchangeSource) -> None:
        """Up to the minute of the start: which minutes the ticks do not have whole is known once they come."""
        if HISTORY_BAR_SIZE.name not in await asyncio.to_thread(bar_sizes_of, source.segment):
            return
        start_ns = ns_of(feed.create_time)
        last_ns = start_ns - HISTORY_BAR_SIZE.length_ns
        for instrument_id in feed.instrument_ids:
            first_ns = start_ns - source.history_days * DAY_NS
            await feeds.add_history(history_of(self.next_id(), instrument_id, first_ns, last_ns, feed.create_time))


async def complete_simulation(feeds: Feeds, instruments_max: int) -> None:
    """Has the running simulated market bring what it did not have when it was started; whoever takes it over begins with it.

    Raises TooManyInstruments.
    """
    found = next(filter(None, [await feeds.brings(each) for each in sorted(CHARACTERS)]), None)
    if found is None:
        return
    feed = await feeds.locked(found.feed_id)
    missing = [each for each in sorted(CHARACTERS) if each not in feed.instrument_ids]
    if feed.state is not FeedState.RUNNING or not isinstance(feed.source, SimulatedSource) or not missing:
        return
    if await feeds.bring(feed.feed_id, missing, NOTHING_PLAYED) is not None:
        return
    await feeds.add_instruments(feed.feed_id, missing)
    if await feeds.count_brought() > instruments_max:
        raise TooManyInstruments("running feeds bring too many instruments", instruments_max=instruments_max)


async def stop_feed(feeds: Feeds, feed_id: UUID) -> Feed:
    """Stops a feed, which may have ended already. Raises FeedNotFound."""
    await feeds.locked(feed_id)
    await feeds.end(feed_id, FeedState.STOPPED)
    return await feeds.locked(feed_id)


@dataclass(frozen=True, slots=True)
class OrderBackfill:
    """Orders trades of the past, or bars of a size.

    Raises BackfillUnavailable, TooManyBackfills, or Invalid for bounds and sizes that the venue has not.
    """

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, feeds: Feeds, instrument_id: str, bounds: Missed, bar_size: str = "") -> Backfill:
        feed = await feeds.brings(instrument_id)
        if feed is None or not isinstance(feed.source, ExchangeSource):
            raise BackfillUnavailable(
                f"no running feed brings {instrument_id} from a venue that has its trades on record",
                instrument_id=instrument_id,
            )
        if bar_size:
            await self._check_bars(feed.source.segment, bounds, bar_size)
        elif not do_ids_follow(feed.source.segment) and not (bounds.start_ns and bounds.end_ns):
            times = {"bounds.start_time": bounds.start_ns, "bounds.end_time": bounds.end_ns}
            raise Invalid(
                {field: "must be there: this venue does not number its trades" for field, at in times.items() if not at}
            )
        if await feeds.count_running_backfills(instrument_id) >= RUNNING_BACKFILLS_MAX:
            raise TooManyBackfills(
                "too many backfills of the instrument have not ended", running_backfills_max=RUNNING_BACKFILLS_MAX
            )
        backfill = backfill_of(self.next_id(), instrument_id, bounds, self.now(), bar_size=bar_size)
        await feeds.add_backfill(backfill)
        return backfill

    async def _check_bars(self, segment: str, bounds: Missed, bar_size: str) -> None:
        sizes = await asyncio.to_thread(bar_sizes_of, segment)
        if bar_size not in sizes:
            raise Invalid(
                {"bar_size": f"must be one of which {segment} has bars: {', '.join(sizes) or 'there is none'}"}
            )
        if bounds.start_ns < 0:
            raise Invalid({"bounds.start_time": "must not be before 1970"})
        if bounds.end_ns > ns_of(self.now()):
            raise Invalid({"bounds.end_time": "must not be in the future: bars are brought once they have ended"})
        size = BAR_SIZES[bar_size]
        count = (size.at_or_before(bounds.end_ns) - size.at_or_after(bounds.start_ns)) // size.length_ns
        if count < 1:
            raise Invalid({"bounds.end_time": f"must be so late that a bar of {bar_size} lies whole after start_time"})
        if count > BARS_ORDERED_MAX:
            raise Invalid({"bounds.start_time": f"must be so late that there are no more than {BARS_ORDERED_MAX} bars"})
