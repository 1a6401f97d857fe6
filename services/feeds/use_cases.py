"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.feeds.domain import (
    NOTHING_PLAYED,
    Feed,
    FeedState,
    InstrumentTaken,
    RecordingTooOld,
    ReplaySource,
    Source,
    TooManyFeeds,
)
from services.feeds.sources.simulated import CHARACTERS


class Feeds(Protocol):
    """Where feeds live, in one transaction."""

    async def count_running(self) -> int: ...
    async def add(self, feed: Feed) -> None: ...
    async def bring(self, feed_id: UUID, instrument_ids: Sequence[str], position: int) -> str | None: ...
    async def market_time_ns(self, instrument_id: str) -> int: ...
    async def locked(self, feed_id: UUID) -> Feed: ...
    async def end(self, feed_id: UUID, state: FeedState, failure: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class StartFeed:
    """Adds a running feed; raises InstrumentTaken, RecordingTooOld, or TooManyFeeds."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    running_feeds_max: int

    async def __call__(self, feeds: Feeds, source: Source, first_time_ns: int | None = None) -> Feed:
        """The time is that of a file's first trade; what was told since it was noted is looked at when playing starts."""
        replays = isinstance(source, ReplaySource)
        feed = Feed(
            feed_id=self.next_id(),
            source=source,
            instrument_ids=(source.instrument.instrument_id,) if replays else tuple(sorted(CHARACTERS)),
            create_time=self.now(),
        )
        await feeds.add(feed)
        taken = await feeds.bring(feed.feed_id, feed.instrument_ids, 0 if replays else NOTHING_PLAYED)
        if taken is not None:
            raise InstrumentTaken(f"another running feed brings {taken}", instrument_id=taken)
        if isinstance(source, ReplaySource) and first_time_ns is not None:
            market_time_ns = await feeds.market_time_ns(source.instrument.instrument_id)
            if first_time_ns <= market_time_ns:
                raise RecordingTooOld(source, first_time_ns, market_time_ns)
        if await feeds.count_running() > self.running_feeds_max:
            raise TooManyFeeds("too many feeds run", running_feeds_max=self.running_feeds_max)
        return feed


async def stop_feed(feeds: Feeds, feed_id: UUID) -> Feed:
    """Stops a feed, which may have ended already. Raises FeedNotFound."""
    await feeds.locked(feed_id)
    await feeds.end(feed_id, FeedState.STOPPED)
    return await feeds.locked(feed_id)
