"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.feeds.domain import NOTHING_PLAYED, Feed, FeedState, InstrumentTaken, ReplaySource, Source
from services.feeds.sources.simulated import CHARACTERS


class Feeds(Protocol):
    """Where feeds live, in one transaction."""

    async def add(self, feed: Feed) -> None: ...
    async def bring(self, feed_id: UUID, instrument_ids: Sequence[str], position: int) -> str | None: ...
    async def locked(self, feed_id: UUID) -> Feed: ...
    async def end(self, feed_id: UUID, state: FeedState, failure: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class StartFeed:
    """Adds a running feed; raises InstrumentTaken."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, feeds: Feeds, source: Source) -> Feed:
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
        return feed


async def stop_feed(feeds: Feeds, feed_id: UUID) -> Feed:
    """Stops a feed, which may have ended already. Raises FeedNotFound."""
    await feeds.locked(feed_id)
    await feeds.end(feed_id, FeedState.STOPPED)
    return await feeds.locked(feed_id)
