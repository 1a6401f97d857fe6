"""The runner: has every running feed played by one replica, whatever becomes of the others, and each replica play its part."""

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
from redis.asyncio import Redis

from libs.bus import feed as streams
from libs.bus.feed import Outdated
from libs.store.background import Backoff, end, running
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import LEASE_SECONDS, Lease, LeaseLost, fence
from libs.store.shares import Share
from services.feeds.clients import MarketData
from services.feeds.domain import Clock, Feed, FeedState, RecordingTooOld, ReplayFileInvalid, VenueNotFound, clock
from services.feeds.feeder import Feeder
from services.feeds.open_sources import Sources
from services.feeds.room import Room
from services.feeds.store import FeedStore

LOOK_SECONDS = 0.5
"""How often a replica also renews what it holds, and takes or gives up what makes its part fair."""
PREPARE_SECONDS = LEASE_SECONDS / 2
"""So long looking waits for what a new feed needs."""
FAILURE_CHARACTERS_MAX = 2_000

log = structlog.get_logger(__name__)


@dataclass
class Tended:
    """A feed that is played here under a lease, until it ends or is ended."""

    lease: Lease
    task: asyncio.Task[None]
    ending: asyncio.Task[None] | None = None


class Runner:
    """Plays this replica's part of the running feeds. Every replica runs one.

    A feed that is to move is ended here before its lease is given; the replica that gets it goes on as after a death. Every
    replica that renews its leases counts, also one that cannot reach a venue: it tries its part of that venue's feeds again
    and again, and no other gets them before it ends.
    """

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
        self._share = Share(database, "feed")
        self._woken = asyncio.Event()
        self._running: set[UUID] = set()
        self._tending: dict[UUID, Tended] = {}
        self._ended: set[UUID] = set()  # and what they brought is not let go yet

    def look(self) -> None:
        """Has the runner see at once what was started or stopped."""
        self._woken.set()

    async def run(self) -> None:
        async with running("room", self._room.run), running("letting go of ended feeds", self._let_go):
            await self._run()

    async def _run(self) -> None:
        has_database = True
        try:
            while True:
                self._woken.clear()
                try:
                    await self._look()
                except DatabaseUnavailable as error:
                    # What is played goes on until another takes it: Redis takes nothing from who was succeeded. What nobody
                    # can store meanwhile waits there, as far as the room of its instrument goes, and beyond is told as a gap.
                    if has_database:
                        log.warning("feeds are not looked after", feeds=len(self._tending), cause=str(error))
                    has_database = False
                else:
                    if not has_database:
                        log.info("feeds are looked after again", feeds=len(self._tending))
                    has_database = True
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            self._settle({})
            await asyncio.gather(*(tended.ending for tended in self._tending.values() if tended.ending))
            self._tending.clear()
            await self._share.leave()

    async def _look(self) -> None:
        async with self._database.reading() as rows:
            running = await FeedStore(rows).running()
            new = [await FeedStore(rows).find(feed_id) for feed_id in running - self._running]
        self._ended |= self._running - running
        self._running = running
        await self._prepare([feed for feed in new if feed is not None])
        self._tending = {feed_id: tended for feed_id, tended in self._tending.items() if not tended.task.done()}
        held = await self._share.turn([str(feed_id) for feed_id in running], busy=[str(each) for each in self._tending])
        self._settle({UUID(name): lease for name, lease in held.items()})

    async def _prepare(self, feeds: Collection[Feed]) -> None:
        """Does beforehand what takes long, so that a replica takes over at once whatever becomes its part.

        What takes longer still goes on beside, for the leases are to be renewed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(PREPARE_SECONDS):
                for feed in feeds:
                    try:
                        await self._sources.prepare(feed.source)
                    except Exception:
                        log.exception("a feed is not prepared", feed_id=str(feed.feed_id))

    def _settle(self, held: Mapping[UUID, Lease]) -> None:
        """Begins to tend the feeds whose leases are held, and ends those whose are not."""
        for feed_id, tended in self._tending.items():
            if held.get(feed_id) != tended.lease and tended.ending is None:
                # Beside, as the leases of the others are to be renewed however long it takes.
                tended.ending = asyncio.create_task(end([tended.task]), name=f"end of feed {feed_id}")
                tended.ending.add_done_callback(lambda _: self.look())
        for feed_id in held.keys() - self._tending.keys():
            task = asyncio.create_task(self._tend(feed_id, held[feed_id]), name=f"feed {feed_id}")
            self._tending[feed_id] = Tended(held[feed_id], task)

    async def _let_go(self) -> None:
        """Has Redis forget early what ended replays brought, once it is stored and unless another feed brings it by now."""
        for feed_id in self._ended - self._tending.keys():
            async with self._database.transaction() as rows:
                left = await FeedStore(rows).left_by_replay(feed_id)
                forgotten = [await streams.end(self._redis, instrument_id) for instrument_id in left]
            if all(forgotten):
                self._ended.remove(feed_id)
        await asyncio.sleep(LOOK_SECONDS)

    async def _tend(self, feed_id: UUID, lease: Lease) -> None:
        """Plays a feed as often as it takes, until it ends or this task is cancelled."""
        backoff = Backoff()
        while True:
            started_at = time.monotonic()
            try:
                feeder = Feeder(
                    self._database, self._redis, lease, self._sources, self._marketdata, self._now, self._room
                )
                try:
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
