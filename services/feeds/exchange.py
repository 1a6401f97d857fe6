"""A venue's instruments, live: every trade once and in order, or told as missed; and fetched again where it was missed.

A trade that does not come when the one after it has is waited for a moment, as it may only be late, then fetched from the
venue's record, while what is newer waits. After PATIENCE_SECONDS the market goes on: what is missing is told as missed, and
brought later as backfill. After a reconnection, and where it has been quiet for long, the record is asked as well.

Ids are believed as far as the record bears them out: a trade beyond the newest on record is let go, and where a venue numbers
anew from below, the market goes on from the record, and what lies between is told as missed.

Where ids only tell trades apart, or there are none, holes cannot be seen. There the place at which a connection was lost is kept:
what the next one tells is held until the record has come to it, or patience is at its end and what lies between is told as missed.

All of an instrument's state that another replica needs is in its stream and its place: the id and the time of its last trade.

Minutes that the trades cannot have whole, as those before a feed's start, are brought as the venue's own bars, beside the stream.

What perpetual futures are valued at is told as the venue tells it, each second; where its stream falls silent it is asked for.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from prometheus_client import Counter
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bar_sizes import BAR_SIZES
from libs.store.background import Backoff, running
from libs.store.database import DatabaseUnavailable
from services.feeds.domain import (
    SECOND_NS,
    Backfill,
    Backfilled,
    BackfillState,
    Bar,
    BarsRefused,
    Book,
    Event,
    ExchangeSource,
    Instant,
    Instrument,
    Mark,
    MarketDataAway,
    Missed,
    Moment,
    Place,
    Settlement,
    Tick,
)
from services.feeds.funding import Desk as FundingDesk
from services.feeds.funding import Funding
from services.feeds.lines import BATCH_TICKS_MAX, Line
from services.feeds.live import TRADES_WAITING_MAX, Hole, LiveLine, Sequencer, sequencer_of
from services.feeds.venues import MILLISECOND_NS, PAGE_BARS, Known, UntrueTrade, Venue, VenueTrouble

LOOK_SECONDS = 0.1
LATE_SECONDS = 0.3
"""A trade may come so long after the one that follows it, before it is fetched."""
PATIENCE_SECONDS = 5.0
"""The market waits so long for what is missing."""
NEWEST_SECONDS = 2.0
"""And then so long to learn whether it can be missing at all."""
RETRY_SECONDS = 0.5
BOOK_SECONDS = 0.2
"""At most so often is a book told."""
MARK_QUIET_SECONDS = 10.0
"""Without a mark for so long it is asked for, and so often."""
QUIET_SECONDS = 10.0
QUIET_SECONDS_MAX = 60.0
"""Without a trade for so long the record is asked whether there was none; each time there was none, it may be longer."""
MOMENT_SECONDS = 1.0
MOMENT_LAG_SECONDS = 2.0
"""Without a trade for so long, market time goes on to so long before the last answered ping."""
SILENCE_SECONDS = 2.0
"""A trade on record that is older should have been told."""
REFRESH_SECONDS = 3_600.0
REFRESH_AGAIN_SECONDS_FIRST = 5.0
REFRESH_AGAIN_SECONDS_MAX = 300.0
"""So long after a venue did not say what it lists it is asked again."""
BACKFILL_LOOK_SECONDS = 1.0
BACKFILL_FAILURES_MAX = 6
SETTLE_SECONDS = 1.0
"""So long after its end a bar is asked for: then the venue has counted all of its trades."""
AWAY_SECONDS_FIRST = 1.0
AWAY_SECONDS_MAX = 30.0
"""So long bars wait for a marketdata that takes none, before the venue is asked for them again."""
LISTEN_SECONDS = 10.0
"""So long after a connection it may take until trades are told; the minute that holds the end of it is not whole either."""
RECONNECT_SECONDS_FIRST = 0.25
RECONNECT_SECONDS_MAX = 30.0

REPEATS = Counter("tradeloom_feed_repeats", "Trades that a venue told again.", ["instrument_id"])
MISSED = Counter("tradeloom_feed_missed", "Times that trades were told as missed.", ["instrument_id"])
MENDED = Counter("tradeloom_feed_mended", "Trades that were fetched since they had not come.", ["instrument_id"])
UNRECORDED = Counter(
    "tradeloom_feed_unrecorded", "Trades let go with ids beyond the newest on record.", ["instrument_id"]
)
RECONNECTIONS = Counter("tradeloom_feed_reconnections", "Connections to a venue that were lost.", ["venue"])

log = structlog.get_logger(__name__)


class Desk(FundingDesk, Protocol):
    """Where a source leaves what outlives it, and finds what others left."""

    async def announce(self, instruments: Sequence[Instrument]) -> None:
        """Tells the others what the venue says of its instruments now."""
        ...

    async def order_backfill(self, instrument_id: str, missed: Missed) -> None:
        """Has these trades brought some time."""
        ...

    async def order_history(self, starts_ns: Mapping[str, int | None], last_ns: int) -> None:
        """Has bars of instruments brought: from the one of a moment, or of the feed's start, to the one of another."""
        ...

    async def put_bars(self, instrument_id: str, bar_size: str, bars: Sequence[Bar]) -> None:
        """Has bars stored in place of those that are there. Raises MarketDataAway, BarsRefused."""
        ...

    async def next_backfill(self, now_ns: int | None) -> Backfill | None:
        """One that is to be done by now, of trades or of bars; of trades alone without a time."""
        ...

    async def note_backfill(self, backfill: Backfill) -> None:
        """Notes how far it has come."""
        ...


@dataclass(slots=True)
class Channel:
    """One instrument as it is listened to. What ends in `_at` is the event loop's time."""

    line: LiveLine
    trades: Sequencer
    begin_ns: int
    """From when on its trades are wanted, where none was told yet."""
    is_unsure: bool
    """Whether trades may have been told while nobody listened."""
    is_torn: bool
    """Whether Redis may have lost what came after the place: then trades after it may have been told already."""
    reached_ns: int
    """Market time that was offered, by trades and moments."""
    early: deque[Tick]
    """Told while it was held, which is for as long as it takes to ask the record."""
    is_heard: bool = False
    """Whether a trade came over this connection."""
    held_at: float = 0.0
    """When the first of the early ones came."""
    drop_count: int = 0
    """How often what waited was let go: what was asked of the record before then begins too late."""
    event_at: float = 0.0
    asked_at: float = 0.0
    """When it was last known that nothing is missing, or asked."""
    quiet_seconds: float = QUIET_SECONDS
    book_at: float = 0.0
    book: Book | None = None
    mark_ns: int = 0
    """When the last mark stood that was told."""
    marked_at: float = 0.0
    """When it was, or was last asked for."""
    mending: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether what is told now waits for what is on record."""
        return self.is_torn or self.trades.is_astray or (self.is_unsure and not self.trades.sees_holes)


class OpenExchange:
    """One feed's instruments of a venue."""

    is_live = True
    instruments: Sequence[Instrument] = ()
    """None is known before the venue was asked; then they are announced."""

    def __init__(
        self,
        source: ExchangeSource,
        connect: Callable[[], AbstractAsyncContextManager[Venue]],
        *,
        ids_follow: bool,
        has_history: bool,
    ) -> None:
        """With has_history the bars of minutes are brought that the trades have only in part."""
        self._source, self._connect, self._ids_follow, self._has_history = source, connect, ids_follow, has_history
        self.woken = asyncio.Event()
        self._announced: dict[str, Instrument] = {}
        self._channels: dict[str, Channel] = {}
        self._known: Known | None = None
        """None before the venue has said for the first time what it lists."""
        self._funding: Funding | None = None
        """None where spot markets are brought."""
        self._loop = asyncio.get_running_loop()

    def place_after(self, place: Place, batch: marketdata_pb2.TickBatch) -> Place:
        if batch.backfill or not batch.ticks:
            return place
        last = batch.ticks[-1]
        return replace(place, position=last.time.ToNanoseconds(), trade_id=last.trade_id)

    def settlements(self, before: Place, after: Place) -> Sequence[Settlement]:
        """None: they are told beside the lines, once the venue has them on record."""
        return ()

    def lines(
        self, places: Sequence[Place], quotes: Mapping[str, marketdata_pb2.Quote], now: Instant
    ) -> Sequence[Line]:
        self._channels = {
            place.instrument_id.partition(":")[2]: Channel(
                line=LiveLine(place, quotes[place.instrument_id], self.woken.set),
                trades=sequencer_of(self._ids_follow, place.trade_id, place.position),
                begin_ns=now.wall_ns,
                is_unsure=place.position > 0,
                is_torn=place.is_torn and place.position > 0,
                reached_ns=place.market_time_ns,
                early=deque(maxlen=TRADES_WAITING_MAX),
                asked_at=self._loop.time(),
                mark_ns=quotes[place.instrument_id].mark.time.ToNanoseconds(),
            )
            for place in places
        }
        return [channel.line for channel in self._channels.values()]

    @asynccontextmanager
    async def running(self, desk: Desk) -> AsyncIterator[None]:
        """Has the lines told during the block, over one connection after the other."""
        if self._source.segment != self._source.venue:
            lines = {symbol: channel.line for symbol, channel in self._channels.items()}
            self._funding = Funding(
                desk, {symbol: (line.instrument_id, line.cut_time_ns) for symbol, line in lines.items()}
            )

        async def work() -> None:
            await self._keep_connected(desk)

        async with running(f"listening to {self._source.venue}", work):
            yield

    async def _keep_connected(self, desk: Desk) -> None:
        backoff = Backoff(RECONNECT_SECONDS_FIRST, RECONNECT_SECONDS_MAX)
        while True:
            began_at = self._loop.time()
            try:
                async with self._connect() as venue:
                    await self._listen(venue, desk)
            except* VenueTrouble as troubles:
                seconds = self._loop.time() - began_at
                backoff.went_well_for(seconds)
                cause = str(first_of(troubles))
                log.warning("a connection was lost", venue=self._source.venue, cause=cause, after_seconds=seconds)
            RECONNECTIONS.labels(self._source.venue).inc()
            for channel in self._channels.values():
                channel.is_unsure, channel.is_heard = channel.trades.last_ns > 0, False
                # It is on record, after what was told last.
                channel.early.clear()
            await asyncio.sleep(backoff.next_seconds())

    async def _listen(self, venue: Venue, desk: Desk) -> None:
        """One connection, until VenueTrouble."""
        refresh_seconds = 0.0
        if self._known is None:
            await self._refresh(venue, desk)
            refresh_seconds = REFRESH_SECONDS
        else:
            venue.know(self._known)
        if self._has_history:
            await self._order_history(venue, desk)
        symbols = list(self._channels)
        async with asyncio.TaskGroup() as together:
            together.create_task(venue.hear_trades(symbols, lambda: self._take(venue)))
            if self._source.has_book:
                together.create_task(venue.hear_books(symbols))
            if self._funding is not None:
                together.create_task(venue.hear_marks(symbols))
                together.create_task(self._ask_marks(venue))
                together.create_task(self._funding.run(venue, self._announced))
            together.create_task(self._tend(venue, desk))
            together.create_task(self._keep_refreshed(venue, desk, refresh_seconds))
            together.create_task(self._bring_back(venue, desk))

    async def _order_history(self, venue: Venue, desk: Desk) -> None:
        """Has bars brought where nothing was told yet, or trades that were missed cannot be known by their ids."""
        starts_ns = {
            channel.line.instrument_id: channel.trades.last_ns or None
            for channel in self._channels.values()
            if not channel.trades.last_id or not self._ids_follow
        }
        if not starts_ns:
            return
        try:
            await desk.order_history(starts_ns, venue.now_ns() + round(LISTEN_SECONDS * SECOND_NS))
        except DatabaseUnavailable:
            # The market goes on without; they can be ordered by hand.
            log.exception("bars of the past were not ordered", venue=self._source.venue)

    async def _keep_refreshed(self, venue: Venue, desk: Desk, seconds: float) -> None:
        """Refreshes again and again, the first time after so long. A venue that cannot say what it lists may still tell trades."""
        backoff = Backoff(REFRESH_AGAIN_SECONDS_FIRST, REFRESH_AGAIN_SECONDS_MAX)
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._refresh(venue, desk)
            except VenueTrouble as trouble:
                seconds = backoff.next_seconds()
                log.warning("instruments are kept as they are", venue=venue.venue, cause=str(trouble), seconds=seconds)
            else:
                backoff.reset()
                seconds = REFRESH_SECONDS

    async def _refresh(self, venue: Venue, desk: Desk) -> None:
        """Announces what has changed of the instruments; one that the venue no longer lists is not traded."""
        listed = await venue.load()
        self._known = venue.known
        now = {
            symbol: replace(known, has_book=self._source.has_book, is_trading=known.is_trading and symbol in listed)
            for symbol in self._channels
            if (known := listed.get(symbol) or self._announced.get(symbol))
        }
        if changed := [each for symbol, each in now.items() if each != self._announced.get(symbol)]:
            try:
                await desk.announce(changed)
            except DatabaseUnavailable as error:
                log.warning("instruments are announced the next time", cause=str(error))
                return
        self._announced |= now

    # What the venue tells.

    def _take(self, venue: Venue) -> None:
        for symbol, told in venue.take_trades().items():
            if channel := self._channels.get(symbol):
                trades = [trade for trade in told if trade]
                if len(trades) < len(told):
                    # The record may know what could not be as it was told.
                    channel.is_unsure = channel.is_unsure or bool(channel.trades.last_id)
                channel.asked_at, channel.quiet_seconds = self._loop.time(), QUIET_SECONDS
                if not channel.is_heard:
                    # From here on all is told. What was traded before may have come after the record was asked.
                    channel.is_heard = True
                    channel.is_unsure |= channel.trades.last_ns > 0 and not channel.trades.sees_holes
                self._hear(channel, trades)

    def _hear(self, channel: Channel, trades: Sequence[Tick]) -> None:
        """Takes what the venue told now, or holds it."""
        if not channel.is_held:
            self._add(channel, trades)
            return
        if not channel.early:
            channel.held_at = self._loop.time()
        channel.early.extend(trades)

    def _add(self, channel: Channel, trades: Iterable[Tick]) -> None:
        repeats = channel.trades.repeat_count
        self._tell(channel, channel.trades.add(trades, time.monotonic_ns()))
        REPEATS.labels(channel.line.instrument_id).inc(channel.trades.repeat_count - repeats)

    def _tell(self, channel: Channel, trades: Sequence[Tick]) -> None:
        """Has trades told that are in order."""
        if not trades:
            return
        if channel.line.is_full:
            # Redis takes less than comes. What waits is let go, and fetched again after what was cut.
            dropped = [*channel.line.drop(), *trades]
            channel.trades.go_back(channel.line.cut_trade_id, channel.line.cut_time_ns, dropped)
            channel.is_unsure = True
            channel.drop_count += 1
            return
        self._offer(channel, trades, max(trade.time_ns for trade in trades))

    def _offer(self, channel: Channel, events: Sequence[Event], time_ns: int) -> None:
        channel.line.offer(events)
        channel.event_at = self._loop.time()
        channel.reached_ns = max(channel.reached_ns, time_ns)

    # What it does not tell.

    async def _tend(self, venue: Venue, desk: Desk) -> None:
        """Looks after every instrument: what is missing, how the book stands, how late it is."""
        async with asyncio.TaskGroup() as together:
            while True:
                self._take(venue)
                for symbol, channel in self._channels.items():
                    if channel.mending and channel.mending.done():
                        channel.mending = None
                    if channel.mending is None and (mend := self._mending(venue, desk, symbol, channel)):
                        channel.mending = together.create_task(mend)
                    if channel.mending is None and channel.trades.hole is None:
                        self._tell_book(venue, symbol, channel)
                        self._tell_moment(venue, channel)
                    if mark := venue.mark(symbol):
                        self._tell_mark(symbol, channel, mark)
                await asyncio.sleep(LOOK_SECONDS)

    def _mending(self, venue: Venue, desk: Desk, symbol: str, channel: Channel) -> Coroutine[None, None, None] | None:
        """What there is to do for an instrument now, if anything is."""
        hole = channel.trades.hole
        if channel.is_torn or channel.trades.is_astray:
            return self._begin_anew(venue, desk, symbol, channel)
        if hole is not None:
            waited_seconds = (time.monotonic_ns() - hole.since_ns) / SECOND_NS
            if waited_seconds > LATE_SECONDS or channel.trades.waiting_count > TRADES_WAITING_MAX:
                return self._fill(venue, desk, symbol, channel, hole)
        elif channel.is_unsure:
            if not channel.trades.sees_holes:
                return self._catch_up_with_held(venue, desk, symbol, channel)
            return self._catch_up(venue, symbol, channel)
        elif self._loop.time() - channel.asked_at > channel.quiet_seconds:
            return self._ask_quiet(venue, symbol, channel)
        return None

    async def _fill(self, venue: Venue, desk: Desk, symbol: str, channel: Channel, hole: Hole) -> None:
        """Brings what is missing from the record; or, once patience is at its end, tells that it is missed and goes on."""
        patience_seconds = PATIENCE_SECONDS - (time.monotonic_ns() - hole.since_ns) / SECOND_NS
        try:
            async with asyncio.timeout(max(0.0, patience_seconds)):
                while channel.trades.hole is not None and channel.trades.waiting_count <= TRADES_WAITING_MAX:
                    if not await self._fetch(venue, symbol, channel):
                        await asyncio.sleep(RETRY_SECONDS)
        except (TimeoutError, VenueTrouble) as error:
            if isinstance(error, VenueTrouble) and patience_seconds > RETRY_SECONDS:
                await asyncio.sleep(RETRY_SECONDS)
                return
        newest = await self._newest(venue, symbol)
        if (hole_left := channel.trades.hole) is not None and newest and self._is_later(hole_left.before, newest):
            # Whoever follows such an id takes all real trades for told. If the record is only late, they are fetched.
            count = channel.trades.drop_waiting()
            channel.is_unsure = True
            UNRECORDED.labels(channel.line.instrument_id).inc(count)
            log.warning(
                "trades beyond the record were let go",
                instrument_id=channel.line.instrument_id,
                count=count,
                first=hole_left.before.trade_id,
                newest=newest.trade_id,
            )
        elif hole_left is not None:
            await self._order(desk, channel, hole_left.missed)
            # It may have come after all while that was noted: only what is still missing is told so.
            if (hole_left := channel.trades.hole) is not None:
                self._miss(channel, hole_left.missed)
                self._tell(channel, channel.trades.pass_over())

    async def _newest(self, venue: Venue, symbol: str) -> Tick | None:
        """The newest trade on record; None where it does not say so soon."""
        try:
            async with asyncio.timeout(NEWEST_SECONDS):
                return await venue.newest_trade(symbol)
        except (TimeoutError, VenueTrouble):
            return None

    async def _catch_up(self, venue: Venue, symbol: str, channel: Channel) -> None:
        """Brings what was traded while nobody listened, up to the newest on record."""
        drop_count = channel.drop_count
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self._fetch(venue, symbol, channel):
                    pass
        except (TimeoutError, UntrueTrade):
            # It is still coming, or cannot be as it is told: the next trade makes a hole of the rest.
            pass
        except VenueTrouble as trouble:
            log.warning("the record is asked again", instrument_id=channel.line.instrument_id, cause=str(trouble))
            await asyncio.sleep(RETRY_SECONDS)
            return
        channel.is_unsure = channel.drop_count != drop_count

    async def _catch_up_with_held(self, venue: Venue, desk: Desk, symbol: str, channel: Channel) -> None:
        """The same where holes are not seen: up to the first trade that is held, or until patience with it is at its end."""
        drop_count, trouble = channel.drop_count, None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self._fetch(venue, symbol, channel):
                    pass
        except (TimeoutError, VenueTrouble) as error:
            trouble = error
            log.warning("the record is asked again", instrument_id=channel.line.instrument_id, cause=str(trouble))
        if channel.drop_count != drop_count:
            return
        first = channel.early[0] if channel.early else None
        if trouble is None and (first is None or channel.trades.has_told(first)):
            self._let_on(channel)
        elif first is None or self._loop.time() - channel.held_at < PATIENCE_SECONDS:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            missed = Missed(channel.trades.last_id, "", channel.trades.last_ns, first.time_ns + MILLISECOND_NS)
            await self._order(desk, channel, missed)
            self._miss(channel, missed)
            self._let_on(channel)

    def _let_on(self, channel: Channel) -> None:
        """Has told what was held, but for what the record had of it."""
        channel.is_unsure = False
        held = list(channel.early)
        channel.early.clear()
        self._tell(channel, channel.trades.fill(held, time.monotonic_ns()))

    async def _ask_quiet(self, venue: Venue, symbol: str, channel: Channel) -> None:
        """Asks the record of a market that is quiet. Raises VenueTrouble if it was not: then nobody tells us any more."""
        channel.asked_at = self._loop.time()
        channel.quiet_seconds = min(QUIET_SECONDS_MAX, channel.quiet_seconds * 2)
        last_before = channel.trades.last
        try:
            await self._fetch(venue, symbol, channel)
        except VenueTrouble as trouble:
            log.warning(
                "a quiet market could not be asked", instrument_id=channel.line.instrument_id, cause=str(trouble)
            )
            return
        last = channel.trades.last
        if last and last is not last_before and venue.now_ns() - last.time_ns > SILENCE_SECONDS * SECOND_NS:
            raise VenueTrouble(f"{channel.line.instrument_id} was traded, and it was not told")

    async def _fetch(self, venue: Venue, symbol: str, channel: Channel) -> int:
        """Takes a page of the record after the last trade; how many trades of it were new."""
        time_ns = channel.trades.last_ns or channel.begin_ns
        drop_count = channel.drop_count
        try:
            page = await venue.trades_after(symbol, channel.trades.last_id, time_ns)
        except UntrueTrade as untrue:
            # What comes after it waits, so that it is a hole like another: asked for again, and then missed.
            if channel.drop_count == drop_count:
                self._tell(channel, channel.trades.add(untrue.later, time.monotonic_ns()))
            raise
        if channel.drop_count != drop_count:
            return 0
        found = channel.trades.fill(page, time.monotonic_ns())
        MENDED.labels(channel.line.instrument_id).inc(len(found))
        self._tell(channel, found)
        return len(found)

    async def _begin_anew(self, venue: Venue, desk: Desk, symbol: str, channel: Channel) -> None:
        """Goes on at the newest trade on record. All after the place is brought as backfill, which is stored once."""
        try:
            newest = await venue.newest_trade(symbol)
        except VenueTrouble as trouble:
            log.warning("the record is asked again", instrument_id=channel.line.instrument_id, cause=str(trouble))
            await asyncio.sleep(RETRY_SECONDS)
            return
        trades, missed = channel.trades, None
        if newest is not None and self._is_below(newest, trades):
            log.warning(
                "a venue numbers its trades anew",
                instrument_id=channel.line.instrument_id,
                last=trades.last_id,
                newest=newest.trade_id,
            )
            # By their ids nothing would lie between.
            missed = Missed("", "", trades.last_ns, newest.time_ns + MILLISECOND_NS)
        elif newest is not None and channel.is_torn and (newest.trade_id != trades.last_id or not newest.trade_id):
            before_id = str(int(newest.trade_id) + 1) if self._ids_follow else ""
            missed = Missed(trades.last_id, before_id, trades.last_ns, newest.time_ns + MILLISECOND_NS)
        if newest is not None and missed is not None:
            await self._order(desk, channel, missed)
            self._miss(channel, missed)
            channel.trades = sequencer_of(self._ids_follow, newest.trade_id, newest.time_ns)
        elif trades.is_astray:
            # The record knows of no such thing, or not yet.
            await asyncio.sleep(RETRY_SECONDS)
            channel.trades = sequencer_of(self._ids_follow, trades.last_id, trades.last_ns)
            channel.is_unsure = True
        channel.is_torn = False
        # Those up to the newest are within what is brought.
        held = [trade for trade in channel.early if newest is None or self._is_later(trade, newest)]
        channel.early.clear()
        self._hear(channel, held)

    def _is_below(self, trade: Tick, trades: Sequencer) -> bool:
        """Whether a trade was made after the last one, and has a lower id."""
        is_lower = self._ids_follow and trades.last_id != "" and int(trade.trade_id) < int(trades.last_id)
        return is_lower and trade.time_ns > trades.last_ns

    def _is_later(self, trade: Tick, other: Tick) -> bool:
        if self._ids_follow:
            return int(trade.trade_id) > int(other.trade_id)
        return trade.time_ns > other.time_ns

    async def _order(self, desk: Desk, channel: Channel, missed: Missed) -> None:
        """Has what is missing brought later."""
        try:
            await desk.order_backfill(channel.line.instrument_id, missed)
        except DatabaseUnavailable:
            # It will stand among the gaps of marketdata all the same, and can be ordered from there.
            log.exception("a backfill was not ordered", instrument_id=channel.line.instrument_id)

    def _miss(self, channel: Channel, missed: Missed) -> None:
        """Has it told that trades are missing, with the next that is there."""
        instrument_id, after, before = channel.line.instrument_id, missed.after_trade_id, missed.before_trade_id
        log.warning("trades were missed", instrument_id=instrument_id, after=after, before=before)
        MISSED.labels(instrument_id).inc()
        channel.line.offer([missed])

    def _tell_book(self, venue: Venue, symbol: str, channel: Channel) -> None:
        if not self._source.has_book or self._loop.time() - channel.book_at < BOOK_SECONDS:
            return
        book = venue.book(symbol)
        before = channel.book
        if book is not None and (before is None or (book.bids, book.asks) != (before.bids, before.asks)):
            channel.book, channel.book_at = book, self._loop.time()
            # Not market time: trades come on another socket, and may be on their way or not come at all.
            channel.line.offer([book])

    def _tell_mark(self, symbol: str, channel: Channel, mark: Mark) -> None:
        """Also while trades are missing: who is liquidated by it does not wait for them."""
        if mark.time_ns <= channel.mark_ns or channel.line.is_full or self._funding is None:
            return
        channel.mark_ns, channel.marked_at = mark.time_ns, self._loop.time()
        channel.line.offer([mark])
        self._funding.hear(symbol, mark)

    async def _ask_marks(self, venue: Venue) -> None:
        """Asks for marks that are not told, until they are."""
        for channel in self._channels.values():
            channel.marked_at = self._loop.time()
        while True:
            for symbol, channel in self._channels.items():
                if self._loop.time() - channel.marked_at < MARK_QUIET_SECONDS:
                    continue
                channel.marked_at = self._loop.time()
                try:
                    self._tell_mark(symbol, channel, await venue.ask_mark(symbol))
                except VenueTrouble as trouble:
                    log.warning("a mark is not told", instrument_id=channel.line.instrument_id, cause=str(trouble))
            await asyncio.sleep(LOOK_SECONDS)

    def _tell_moment(self, venue: Venue, channel: Channel) -> None:
        """On a quiet market, time goes on as long as pings are answered."""
        if channel.is_unsure or channel.is_held or self._loop.time() - channel.event_at < MOMENT_SECONDS:
            return
        moment_ns = venue.heard_ns - round(MOMENT_LAG_SECONDS * SECOND_NS)
        if moment_ns > channel.reached_ns:
            self._offer(channel, [Moment(moment_ns)], moment_ns)

    # What was missed before.

    async def _bring_back(self, venue: Venue, desk: Desk) -> None:
        """Brings ordered backfills, one after the other."""
        failures, trouble, tried_id = 0, None, None
        away, bars_at = Backoff(AWAY_SECONDS_FIRST, AWAY_SECONDS_MAX), 0.0
        while True:
            try:
                backfill = await desk.next_backfill(past_ns(venue) if self._loop.time() >= bars_at else None)
                if backfill is None:
                    await asyncio.sleep(BACKFILL_LOOK_SECONDS)
                    continue
                if backfill.backfill_id != tried_id:
                    failures, tried_id = 0, backfill.backfill_id
                if failures < BACKFILL_FAILURES_MAX:
                    bring = self._bring_bars if backfill.bar_size else self._bring
                    trouble = await bring(venue, desk, backfill)
                    failures = failures + 1 if trouble else 0
                    if backfill.bar_size and not trouble:
                        away.reset()
                else:
                    await desk.note_backfill(replace(backfill, state=BackfillState.FAILED, failure=str(trouble)))
                    failures = 0
            except MarketDataAway as error:
                seconds = away.next_seconds()
                log.warning("bars wait for marketdata", venue=self._source.venue, cause=str(error), seconds=seconds)
                bars_at = self._loop.time() + seconds
            except DatabaseUnavailable as error:
                # The market goes on without: what was brought and not noted is brought again.
                log.warning("backfills wait for Postgres", cause=str(error))
                await asyncio.sleep(BACKFILL_LOOK_SECONDS)
            if 0 < failures < BACKFILL_FAILURES_MAX:
                await asyncio.sleep(RETRY_SECONDS * 2**failures)

    async def _bring(self, venue: Venue, desk: Desk, backfill: Backfill) -> VenueTrouble | None:
        """Brings one page after page, each noted once it is in the stream; what stopped it before its end, if anything did."""
        symbol = backfill.instrument_id.partition(":")[2]
        line = self._channels[symbol].line
        while backfill.state is BackfillState.RUNNING:
            try:
                page = await venue.trades_after(symbol, backfill.reached_trade_id, backfill.reached_ns)
            except VenueTrouble as trouble:
                return trouble
            wanted = [trade for trade in page if backfill.wants(trade, ids_follow=self._ids_follow)]
            if self._ids_follow and backfill.bounds.before_trade_id:
                is_last = len(wanted) < len(page) or backfill.after(wanted, has_ended=False).has_all_ids
                if not page and not is_last:
                    # There is such a trade, so this is not the end of what there is.
                    return VenueTrouble(f"the record ends before {backfill.bounds.before_trade_id}")
            else:
                is_last = len(wanted) < len(page) or not wanted or wanted[-1].trade_id == backfill.reached_trade_id
            chunks = [tuple(wanted[at : at + BATCH_TICKS_MAX]) for at in range(0, len(wanted), BATCH_TICKS_MAX)] or [()]
            for chunk in chunks[:-1]:
                await line.tell_backfill(Backfilled(chunk, None))
            await line.tell_backfill(Backfilled(chunks[-1], backfill.bounds if is_last else None))
            backfill = backfill.after(wanted, has_ended=is_last)
            await desk.note_backfill(backfill)
        return None

    async def _bring_bars(self, venue: Venue, desk: Desk, backfill: Backfill) -> VenueTrouble | BarsRefused | None:
        """Brings one page, noted once it is stored; what stopped it, if anything did. Raises MarketDataAway.

        Bars without trades are none: made of trades alone the longer bars are as the venue's own.
        """
        size, settle_ns = BAR_SIZES[backfill.bar_size], round(SETTLE_SECONDS * SECOND_NS)
        start_ns = backfill.reached_ns
        until_ns = min(backfill.bounds.end_ns, size.at_or_before(past_ns(venue) - settle_ns))
        try:
            page = await venue.bars_from(backfill.instrument_id.partition(":")[2], size, start_ns)
        except VenueTrouble as trouble:
            return trouble
        told = [bar for bar in page if bar.open_ns + size.length_ns <= until_ns]
        bars = [bar for bar in told if bar.trade_count or bar.volume]
        try:
            if bars:
                await desk.put_bars(backfill.instrument_id, size.name, bars)
        except BarsRefused as refusal:
            return refusal
        # A page that ends before may have been all that is given at once, and where it is empty nothing was traded for long.
        reached_ns = told[-1].open_ns + size.length_ns if told else start_ns + PAGE_BARS * size.length_ns
        if len(told) < len(page):
            reached_ns = until_ns
        reached_ns = max(start_ns, min(reached_ns, until_ns))
        await desk.note_backfill(backfill.after_bars(told, len(bars), reached_ns, settle_ns))
        return None


def past_ns(venue: Venue) -> int:
    """Up to when it is past by the venue's clock and by ours, which is that of who takes its bars."""
    return min(venue.now_ns(), time.time_ns())


def first_of(troubles: BaseExceptionGroup) -> BaseException:
    """The first of what went wrong at once."""
    found = troubles.exceptions[0]
    return first_of(found) if isinstance(found, BaseExceptionGroup) else found
