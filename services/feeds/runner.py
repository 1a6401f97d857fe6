"""The runner: has every running feed played by one replica, whatever becomes of the others."""

import asyncio
import time
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.bus import feed as streams
from libs.bus.feed import Outdated
from libs.store.background import Backoff, running
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import LeaseLost, fence, holding
from services.feeds.clients import MarketData
from services.feeds.domain import Clock, FeedState, RecordingTooOld, ReplayFileInvalid, VenueNotFound, clock
from services.feeds.feeder import Feeder
from services.feeds.open_sources import Sources
from services.feeds.room import Room
from services.feeds.store import FeedStore

LOOK_SECONDS = 0.5
FAILURE_CHARACTERS_MAX = 2_000

log = structlog.get_logger(__name__)


class Runner:
    """Tends every running feed: waits for its lease, then plays it. Every replica runs one."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        sources: Sources,
        marketdata: MarketData,
        now: Clock = clock,
        room: Room | None = None,
    ) -> None:
        """`database` is of the worker role, with a connection for each feed that runs at once and a few more."""
        self._database, self._redis, self._sources, self._now = database, redis, sources, now
        self._marketdata, self._room = marketdata, room or Room(database, redis)
        self._woken = asyncio.Event()
        self._tending: dict[UUID, asyncio.Task[None]] = {}
        self._ended: set[UUID] = set()  # and what they brought is not let go yet

    def look(self) -> None:
        """Has the runner see at once what was started or stopped."""
        self._woken.set()

    async def run(self) -> None:
        async with running("room", self._room.run):
            await self._run()

    async def _run(self) -> None:
        try:
            while True:
                self._woken.clear()
                try:
                    await self._look()
                except DatabaseUnavailable as error:
                    # What is played goes on until another takes it.
                    log.warning("feeds are not looked after", cause=str(error))
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            await self._settle(set())

    async def _look(self) -> None:
        async with self._database.transaction() as rows:
            running = await FeedStore(rows).running()
        self._ended |= self._tending.keys() - running
        await self._settle(running)
        await self._let_go()

    async def _settle(self, running: set[UUID]) -> None:
        """Begins to tend the feeds that run, and leaves those that do not."""
        ended = {feed_id: task for feed_id, task in self._tending.items() if feed_id not in running or task.done()}
        for task in ended.values():
            task.cancel()
        await asyncio.gather(*ended.values(), return_exceptions=True)
        for feed_id in ended:
            del self._tending[feed_id]
        for feed_id in running - self._tending.keys():
            self._tending[feed_id] = asyncio.create_task(self._tend(feed_id), name=f"feed {feed_id}")

    async def _let_go(self) -> None:
        """Has Redis forget early what ended replays brought, once it is stored and unless another feed brings it by now."""
        for feed_id in list(self._ended):
            try:
                async with self._database.transaction() as rows:
                    left = await FeedStore(rows).left_by_replay(feed_id)
                    forgotten = [await streams.end(self._redis, instrument_id) for instrument_id in left]
            except RedisError:
                log.exception("a replay is forgotten later", feed_id=str(feed_id))
                return
            if all(forgotten):
                self._ended.remove(feed_id)

    async def _prepare(self, feed_id: UUID) -> None:
        """Does beforehand what takes long, so that a replica that stands by takes over at once."""
        async with self._database.transaction() as rows:
            feed = await FeedStore(rows).find(feed_id)
        if feed is not None:
            await self._sources.prepare(feed.source)

    async def _tend(self, feed_id: UUID) -> None:
        """Plays a feed as often as it takes, until it ends or this task is cancelled."""
        backoff = Backoff()
        while True:
            started_at = time.monotonic()
            try:
                await self._prepare(feed_id)
                # Without Postgres it goes on: Redis takes nothing from who was succeeded. What nobody can store meanwhile waits
                # there, as far as the room of its instrument goes, and beyond is told as a gap.
                async with holding(self._database, f"feed/{feed_id}", until_taken=True) as lease:
                    try:
                        feeder = Feeder(
                            self._database, self._redis, lease, self._sources, self._marketdata, self._now, self._room
                        )
                        await feeder.play(feed_id)
                    except (ReplayFileInvalid, RecordingTooOld, VenueNotFound) as error:
                        async with self._database.transaction() as rows:
                            await fence(rows, lease)
                            await FeedStore(rows).end(feed_id, FeedState.FAILED, str(error)[:FAILURE_CHARACTERS_MAX])
            except (LeaseLost, Outdated) as error:
                log.warning("another process has taken the feed", feed_id=str(feed_id), cause=str(error))
            except Exception:
                log.exception("playing failed", feed_id=str(feed_id))
            else:
                return
            backoff.went_well_for(time.monotonic() - started_at)
            await asyncio.sleep(backoff.next_seconds())
