"""The paper venue: simulated fills against the market as it happens.

Instruments are divided into partitions, each leased by one replica. For every instrument with open orders the holder
follows its ticks and matches in memory; orders, fills, the facts told of them and the place in the ticks are committed
in one transaction, conditional on the lease. So memory is never ahead of the tables for long: when a commit fails, or
the lease is lost, the partition is read again from the tables and goes on after the committed place.

An order meets the market from its own market time on, also when it arrives later: what happened in between is read
again from the feed, for it and those that came with it. Cancels and changes take effect after all that the feed
held when they were taken in. Ticks that the feed no longer keeps are a gap, which is counted, logged and passed over.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client import Counter
from redis.asyncio import Redis

from libs.bus import feed
from libs.bus.feed import Cursor, Entry
from libs.store import leases
from libs.store.background import Backoff, running
from libs.store.database import Database
from libs.store.leases import Lease, LeaseLost
from libs.store.outbox import PARTITIONS, partition_of
from libs.store.shares import Share, sharing
from services.execution import domain, store, wire
from services.execution.domain import (
    PAPER,
    CancelRejected,
    Event,
    Filled,
    Instrument,
    Order,
    OrderType,
    Rejected,
    Release,
    Replacement,
    ReplaceRejected,
    TimeInForce,
    VenueCard,
)
from services.execution.venues.paper_market import Changes, Model, Moment, PaperMarket

CARD = VenueCard(
    venue=PAPER,
    description="Simulated fills against the live, simulated or replayed market",
    order_types=(
        OrderType.MARKET,
        OrderType.LIMIT,
        OrderType.STOP,
        OrderType.STOP_LIMIT,
        OrderType.TRAILING_STOP,
        OrderType.TAKE_PROFIT,
    ),
    times_in_force=tuple(TimeInForce),
)
POLL_SECONDS = 0.1  # how often the tables are asked for what other replicas wrote; what this one wrote wakes it
READ_SECONDS = 0.1  # how long the feed is waited for, and so how soon another instrument is followed too
LOOK_SECONDS = 1.0  # how often followed instruments, and orders of unknown ones, are looked at
PENDING_BATCHES_MAX = 500  # read ahead of one instrument's matching
BATCHES_AT_ONCE_MAX = 200  # of one instrument, in one transaction
BATCHES_BETWEEN_PAUSES = 8  # so that leases are renewed and probes answered while thousands of ticks are matched
LOOK_BACK_BATCHES_FIRST = 16  # twice as many with every further look
LOOK_BACK_BATCHES_AT_ONCE = 512
LOOK_BACK_BATCHES_MAX = 20_000

GAPS = Counter("tradeloom_paper_tick_gaps", "Times the paper venue missed ticks the feed no longer kept.")
FILLS = Counter("tradeloom_paper_fills", "Fills the paper venue has committed.")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRules:
    """What an operator may turn; see settings."""

    patience_seconds: float
    orders_at_once_max: int
    cursor_seconds: float
    model: Model


@dataclass(slots=True)
class Follower:
    """One instrument while it has open orders. What is pending was read and is not matched yet."""

    market: PaperMarket
    cursor: Cursor
    waiting_since: float
    """When market data or orders last came; as committed_at, on the event loop's clock."""
    committed_at: float
    pending: list[Entry] = field(default_factory=list)

    @property
    def read_cursor(self) -> Cursor:
        return self.pending[-1].cursor if self.pending else self.cursor

    def put(self, entry: Entry) -> None:
        """Keeps an entry for matching, without what is here already."""
        last = self.read_cursor
        if (entry.cursor.epoch, entry.cursor.sequence) > (last.epoch, last.sequence):
            self.pending.append(feed.after(entry, last))


@dataclass(slots=True)
class Partition:
    """One leased partition. When anything goes wrong in it, it is thrown away and read anew."""

    number: int
    lease: Lease
    followers: dict[str, Follower] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wanted of orders that were taken in before, each as it was last committed."""

    releases: Sequence[tuple[Order, Release]] = ()
    replaces: Sequence[tuple[Order, Replacement]] = ()
    cancels: Sequence[Order] = ()

    def __bool__(self) -> bool:
        return bool(self.releases or self.replaces or self.cancels)

    @property
    def orders(self) -> list[Order]:
        return [order for order, _ in (*self.releases, *self.replaces)] + list(self.cancels)

    def of(self, instrument_id: str) -> "Wishes":
        """Those of one instrument's orders."""
        return Wishes(
            [(order, release) for order, release in self.releases if order.instrument_id == instrument_id],
            [(order, replacement) for order, replacement in self.replaces if order.instrument_id == instrument_id],
            [order for order in self.cancels if order.instrument_id == instrument_id],
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What the tables asked for in one turn, by instrument; strays are orders whose instrument stayed unknown."""

    orders: Mapping[str, Sequence[Order]] = field(default_factory=dict)
    wishes: Mapping[str, Wishes] = field(default_factory=dict)
    strays: Mapping[str, Sequence[Order]] = field(default_factory=dict)
    instruments: Mapping[str, Instrument] = field(default_factory=dict)

    def names_of(self, partition: int) -> set[str]:
        """The instruments of one partition that are asked for."""
        return {name for name in (*self.orders, *self.wishes, *self.strays) if partition_of(name) == partition}


NO_WISHES = Wishes()


class PaperVenue:
    def __init__(self, database: Database, redis: Redis, share: Share, rules: PaperRules) -> None:
        self._database, self._redis, self._share, self._rules = database, redis, share, rules
        self._partitions: dict[int, Partition] = {}
        self._backoffs: defaultdict[int, Backoff] = defaultdict(Backoff)
        self._resume_at: dict[int, float] = {}
        self.troubles: dict[int, str] = {}
        """Why a partition's orders wait, for those that fail at present."""
        self._woken = asyncio.Event()
        self._ask_at = 0.0
        self._look_at = 0.0

    def wake(self) -> None:
        """New requests have just been committed in this process."""
        self._ask_at = 0.0
        self._woken.set()

    async def read(self) -> None:
        """Reads on in the ticks of every instrument that is followed."""
        followers = {
            instrument_id: follower
            for partition in self._partitions.values()
            for instrument_id, follower in partition.followers.items()
            if len(follower.pending) < PENDING_BATCHES_MAX
        }
        if not followers:
            await asyncio.sleep(READ_SECONDS)
            return
        cursors = {instrument_id: follower.read_cursor for instrument_id, follower in followers.items()}
        entries = await feed.read(self._redis, cursors, block_seconds=READ_SECONDS)
        for entry in entries:
            followers[entry.cursor.instrument_id].put(entry)
        if entries:
            self._woken.set()

    async def work(self) -> None:
        """One turn: takes in what is asked for, lets the market go on, and commits what came of it."""
        self._woken.clear()
        await self._follow()
        asked = await self._ask()
        await asyncio.gather(*(self._turn(partition, asked) for partition in self._partitions.values()))
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()

    async def _follow(self) -> None:
        """Starts with partitions newly held, from what is stored; stops with those that are not held any more."""
        held = {int(name): lease for name, lease in self._share.held.items()}
        self._partitions = {n: p for n, p in self._partitions.items() if held.get(n) == p.lease}
        self.troubles = {n: trouble for n, trouble in self.troubles.items() if n in held}
        for number in held.keys() - self._partitions.keys():
            if self._now() >= self._resume_at.get(number, 0.0):
                self._partitions[number] = await self._load(number, held[number])

    async def _load(self, number: int, lease: Lease) -> Partition:
        async with self._database.transaction() as rows:
            orders = by_instrument(await store.find_working(rows, PAPER, number))
            instruments = await store.find_instruments(rows, orders)
            cursors = await store.find_cursors(rows, orders)
        now = self._now()
        followers = {
            instrument_id: Follower(
                PaperMarket(instruments[instrument_id], self._rules.model, orders[instrument_id]),
                cursors[instrument_id],
                now,
                now,
            )
            for instrument_id in orders
        }
        return Partition(number, lease, followers)

    async def _ask(self) -> Asked:
        """What is wanted of the partitions held; nothing until it is time to ask again."""
        now = self._now()
        if now < self._ask_at or not self._partitions:
            return Asked()
        self._ask_at = now + POLL_SECONDS
        held, count_max = list(self._partitions), self._rules.orders_at_once_max
        async with self._database.reading() as rows:
            requests = await store.find_requests(rows, PAPER, held, count_max)
            wishes = Wishes(requests.releases, requests.replaces, requests.cancels)
            named = {order.instrument_id for order in wishes.orders}
            wanted = named | {order.instrument_id for order in requests.orders}
            strays: Sequence[Order] = ()
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                wanted |= {name for partition in self._partitions.values() for name in partition.followers}
                patience = timedelta(seconds=self._rules.patience_seconds)
                strays = await store.find_strays(rows, PAPER, held, patience, count_max)
            instruments = await store.find_instruments(rows, wanted) if wanted else {}
        if count_max in map(len, (requests.orders, requests.releases, requests.replaces, requests.cancels)):
            self.wake()
        return Asked(
            by_instrument(requests.orders),
            {instrument_id: wishes.of(instrument_id) for instrument_id in named},
            by_instrument(strays),
            instruments,
        )

    async def _turn(self, partition: Partition, asked: Asked) -> None:
        try:
            for instrument_id, follower in partition.followers.items():
                if asked.instruments.get(instrument_id, follower.market.instrument) != follower.market.instrument:
                    self._drop(partition)
                    return
            for instrument_id in sorted(asked.names_of(partition.number) | partition.followers.keys()):
                if strays := asked.strays.get(instrument_id):
                    await self._refuse(partition, strays)
                else:
                    await self._step(partition, instrument_id, asked)
            self.troubles.pop(partition.number, None)
        except LeaseLost as error:
            log.info("paper orders of partition %d are left to another replica: %s", partition.number, error)
            self._drop(partition, POLL_SECONDS)
        except Exception as error:
            self.troubles[partition.number] = f"{type(error).__name__}: {error}"
            seconds = self._backoffs[partition.number].next_seconds()
            log.exception("paper orders of partition %d are read anew in %.1f s", partition.number, seconds)
            self._drop(partition, seconds)

    def _drop(self, partition: Partition, pause_seconds: float = 0.0) -> None:
        self._partitions.pop(partition.number, None)
        self._resume_at[partition.number] = self._now() + pause_seconds
        self.wake()

    async def _step(self, partition: Partition, instrument_id: str, asked: Asked) -> None:
        """One instrument's turn: new orders meet their history, the market goes on, then wishes and impatience.

        Releases come first: what the others of a group have traded is as it was read, and what released them is of the past.
        """
        orders, wishes = asked.orders.get(instrument_id, ()), asked.wishes.get(instrument_id, NO_WISHES)
        now = self._now()
        follower = partition.followers.get(instrument_id)
        if follower is None and not orders and not (wishes.releases and instrument_id in asked.instruments):
            await self._answer(partition, wishes)
            return
        if follower is None:
            start = Cursor(instrument_id, 0, 0)
            market = PaperMarket(asked.instruments[instrument_id], self._rules.model)
            follower = Follower(market, start, now, now)
        market, is_new = follower.market, instrument_id not in partition.followers
        for order, release in wishes.releases:
            market.release(order, release)
        if orders or is_new:
            await self._accept(follower, orders, is_new=is_new)
            follower.waiting_since = now
        behind = False
        if (wishes.replaces or wishes.cancels) and not market.is_empty:
            # Neither must overtake what had already happened to the order when it was asked for.
            entries = await feed.read(self._redis, {instrument_id: follower.read_cursor}, block_seconds=0.0)
            behind = len(entries) == feed.READ_BATCHES
            for entry in entries:
                follower.put(entry)
        came_on = await self._match(follower)
        if came_on:
            follower.waiting_since = now
        answered = Wishes(releases=wishes.releases) if behind or follower.pending else wishes
        for order, replacement in answered.replaces:
            market.replace(order, replacement)
        for order in answered.cancels:
            market.cancel(order)
        if now - follower.waiting_since >= self._rules.patience_seconds:
            for order in market.impatient():
                market.give_up(order)
        if market.has_news or answered or (came_on and now - follower.committed_at >= self._rules.cursor_seconds):
            await self._commit(partition, market.take(), answered, follower.cursor)
            follower.committed_at = now
        if market.is_empty:
            partition.followers.pop(instrument_id, None)
        else:
            partition.followers[instrument_id] = follower
        if behind or follower.pending:
            self.wake()

    async def _accept(self, follower: Follower, orders: Sequence[Order], *, is_new: bool) -> None:
        since_ns = min((order.active_time_ns for order in orders if order.active_time_ns), default=None)
        history, newest = await self._look_back(follower, since_ns, is_new=is_new)
        if is_new and newest is not None:
            follower.cursor = newest
        # Decided on no market time: only what comes from now on can fill them.
        follower.market.accept([order for order in orders if not order.active_time_ns], ())
        follower.market.accept([order for order in orders if order.active_time_ns], history)

    async def _look_back(
        self, follower: Follower, since_ns: int | None, *, is_new: bool
    ) -> tuple[list[Moment], Cursor | None]:
        """What the market did from since_ns up to the follower's cursor (to the newest entry, for a new one).

        Returns it with the newest entry's cursor.
        """
        instrument_id, grid = follower.cursor.instrument_id, follower.market.instrument.grid
        # Up to and with the cursor: before the sequence after it.
        before = None if is_new else Cursor(instrument_id, follower.cursor.epoch, follower.cursor.sequence + 1)
        newest: Cursor | None = None
        newest_first: list[list[Moment]] = []
        page_batches = LOOK_BACK_BATCHES_FIRST
        while len(newest_first) < LOOK_BACK_BATCHES_MAX:
            page = await feed.read_back(self._redis, instrument_id, before, count=page_batches)
            if page and newest is None:
                newest = page[0].cursor
            if since_ns is None:
                return [], newest
            for entry in page:
                moments = list(wire.moments_from_bytes(entry.response, grid))
                if moments and all(moment.time_ns < since_ns for moment in moments):
                    return flattened(newest_first), newest
                newest_first.append(moments)
            if len(page) < page_batches:
                if page and page[-1].first_sequence > 1:
                    self._note_gap(instrument_id, "an order is older than what the feed keeps")
                return flattened(newest_first), newest
            before = page[-1].cursor
            page_batches = min(2 * page_batches, LOOK_BACK_BATCHES_AT_ONCE)
        self._note_gap(instrument_id, "an order is older than what is looked through")
        return flattened(newest_first), newest

    async def _match(self, follower: Follower) -> bool:
        """Lets the market go through what was read, a bounded part of it at a time; whether there was anything."""
        entries = follower.pending[:BATCHES_AT_ONCE_MAX]
        grid = follower.market.instrument.grid
        for number, entry in enumerate(entries, 1):
            if entry.first_sequence > follower.cursor.sequence + 1 and follower.cursor.sequence:
                self._note_gap(follower.cursor.instrument_id, f"nothing between {follower.cursor} and {entry.cursor}")
            follower.market.pass_through(wire.moments_from_bytes(entry.response, grid))
            follower.cursor = entry.cursor
            if number % BATCHES_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
        del follower.pending[: len(entries)]
        return bool(entries)

    async def _refuse(self, partition: Partition, strays: Sequence[Order]) -> None:
        refusal = "the instrument is not known here"
        events: list[tuple[Order, Event]] = []
        for order in strays:
            event = Rejected(reason=refusal, time_ns=order.active_time_ns)
            events.append((domain.apply(order, event), event))
        changes = Changes([order for order, _ in events], events)
        await self._commit(partition, changes, Wishes(cancels=strays), None)

    async def _answer(self, partition: Partition, wishes: Wishes) -> None:
        """Answers what is wanted of orders that are all done, for none of the instrument's is open."""
        events: list[tuple[Order, Event]] = []
        for order, replacement in wishes.replaces:
            reason = f"the order is {order.state.value}"
            event = ReplaceRejected(
                client_order_id=replacement.client_order_id, reason=reason, time_ns=order.active_time_ns
            )
            events.append((domain.apply(order, event), event))
        for order in wishes.cancels:
            event = CancelRejected(reason=f"the order is {order.state.value}", time_ns=order.active_time_ns)
            events.append((domain.apply(order, event), event))
        await self._commit(partition, Changes((), events), wishes, None)

    async def _commit(self, partition: Partition, changes: Changes, answered: Wishes, cursor: Cursor | None) -> None:
        touched = (*changes.orders, *(order for order, _ in changes.events), *answered.orders)
        async with self._database.transaction(*{order.user_id for order in touched}) as rows:
            await leases.fence(rows, partition.lease)
            await store.answer_releases(rows, [(order.order_id, asked) for order, asked in answered.releases])
            await store.answer_replaces(
                rows, [(order.order_id, asked.client_order_id) for order, asked in answered.replaces]
            )
            await store.answer_cancels(rows, [order.order_id for order in answered.cancels])
            await store.save_orders(rows, changes.orders)
            await store.add_fills(rows, changes.events)
            if cursor is not None:
                await store.put_cursor(rows, cursor)
            await store.tell(rows, changes.events)
        self._backoffs[partition.number].reset()
        FILLS.inc(sum(isinstance(event, Filled) for _, event in changes.events))

    def _note_gap(self, instrument_id: str, what: str) -> None:
        GAPS.inc()
        log.warning("ticks of %s are missing for paper orders: %s", instrument_id, what)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def by_instrument(orders: Sequence[Order]) -> dict[str, list[Order]]:
    found: defaultdict[str, list[Order]] = defaultdict(list)
    for order in orders:
        found[order.instrument_id].append(order)
    return dict(found)


def flattened(newest_first: Sequence[list[Moment]]) -> list[Moment]:
    """The moments in the order they happened."""
    return [moment for moments in reversed(newest_first) for moment in moments]


@asynccontextmanager
async def trading(database: Database, redis: Redis, rules: PaperRules) -> AsyncIterator[PaperVenue]:
    """Takes part in running the paper venue during the block. database is of the worker role."""
    async with sharing(database, "paper", [str(number) for number in range(PARTITIONS)]) as share:
        venue = PaperVenue(database, redis, share, rules)
        async with running("reading ticks for paper orders", venue.read), running("paper orders", venue.work):
            yield venue
