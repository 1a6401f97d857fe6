"""Commands of one live account, each sent once; and the venue's record, by which whatever was not answered is settled.

Each function does one step of one order and returns how long to wait before the next, None where none is needed: whoever calls
sees to it that two steps of one order are never done at once. A step that is cut off at any point is found in the tables by the
next: an order in SENDING that nobody is at work on becomes UNKNOWN, and only the venue's record makes it anything else.
"""

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

import structlog

from services.execution.domain import Order, State
from services.execution.live import news, store
from services.execution.live.news import Change, News, Standing
from services.execution.live.records import Booked, Learned, Records
from services.execution.venues.port import (
    INSTRUMENTS_MAX,
    Done,
    NotNow,
    OrderState,
    Outcome,
    Refused,
    Replacing,
    Unknown,
    VenueOrder,
    VenuePort,
)

COMMAND_SECONDS = 20.0
"""So long a command may take in all; a port gives up earlier."""
ASK_SECONDS_FIRST = 0.5
ASK_SECONDS_MAX = 30.0
"""So long after a record did not settle it, it is asked again."""
PAGES_MAX = 50
"""Of fills that are read in one go; what is left is read the next time."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sending:
    """records and port are of one account."""

    records: Records
    port: VenuePort
    seen_changes: set[tuple[UUID, str]] = field(default_factory=set)
    """Changes whose answer this process knows to be lost, or has sent."""
    asked_within: dict[UUID, float] = field(default_factory=dict)
    """Within so many seconds an order is asked for again however long it has waited: then nothing can arrive any more."""
    unfit: str | None = None
    """Why only what reduces is sent, as the venue was last asked how the account is set up; None before it ever was."""

    async def look_whether_fit(self) -> str:
        """Asks it now. Raises VenueUnavailable, VenueRefused."""
        self.unfit = await self.port.unfit()
        return self.unfit

    async def _unfit(self) -> str:
        return await self.look_whether_fit() if self.unfit is None else self.unfit

    # New orders.

    async def send(self, order_id: UUID) -> float | None:
        order = await self.records.begin(order_id, await self._unfit())
        if order is None:
            return None
        outcome = await self._bounded(self.port.submit(news.ticket_of(order)))
        match outcome:
            case Done():
                learned = await self.records.learn(News.placed(order.client_order_id, outcome, time.time_ns()))
                return await self.made_whole(learned)
            case Refused(words=words, code=code, stop_reached=stop_reached):
                await self.records.refuse(order_id, words or code, stop_reached=stop_reached)
            case NotNow(retry_after_seconds=seconds):
                await self.records.put_back(order_id, seconds)
            case Unknown(why=why):
                log.warning("it is not known whether an order was taken", order_id=str(order_id), why=why)
                await self.records.lose_answer(order_id, why)
                return 0.0
        return None

    async def settle(self, order_id: UUID) -> float | None:
        """Asks the venue's record about an order of which it is not known whether the venue has it, or all of its fills."""
        standing = await self.records.find(order_id)
        if standing is None or standing.order.state is State.INTENDED:
            return None
        order = standing.order
        if order.state is State.SENDING:
            await self.records.lose_answer(order_id, "it is not known whether it was sent")
            return 0.0
        # Looked at before the record is asked: what is taken later than that cannot be missing from it.
        valid_seconds = await self._valid_seconds(order.send_time)
        record = await self._record_of(order.client_order_id, order)
        if record is not None:
            return await self.made_whole(await self.records.learn(News.on_record(record)))
        await self.read_fills([order.instrument_id])
        again = await self.records.find(order_id)
        if again is None or again.order.state is not State.UNKNOWN:
            return None
        if valid_seconds <= 0:
            await self.records.refuse(order_id, "it never reached the venue")
            return None
        self.asked_within[order_id] = valid_seconds
        return ASK_SECONDS_FIRST

    async def _valid_seconds(self, send_time: datetime | None) -> float:
        """So long a request that was sent then may still be taken; not positive once it cannot be."""
        seconds = self.records.card.validity_seconds
        if send_time is None or math.isinf(seconds):
            return math.inf
        async with self.records.database.transaction() as rows:
            return await store.seconds_until(rows, send_time, seconds)

    async def _record_of(self, client_order_id: str, order: Order) -> VenueOrder | None:
        """Raises VenueUnavailable, VenueRefused."""
        record = await self.port.order_by_client_id(client_order_id, order.instrument_id)
        if record is not None:
            return record
        for found in await self.port.open_orders(order.instrument_id):
            by_venue = order.venue_order_id and found.venue_order_id == order.venue_order_id
            if found.client_order_id == client_order_id or (by_venue and client_order_id == order.client_order_id):
                return replace(found, client_order_id=client_order_id)
        return None

    async def made_whole(self, learned: Learned) -> float | None:
        """Where the venue has traded more of it than was told, its fills are read, and then it is asked again."""
        if learned.order is None or not learned.is_short:
            return None
        await self.read_fills([learned.order.instrument_id])
        record = await self._record_of(learned.order.client_order_id, learned.order)
        if record is None:
            return ASK_SECONDS_FIRST
        again = await self.records.learn(News.on_record(record))
        return ASK_SECONDS_FIRST if again.is_short else None

    async def read_fills(self, instrument_ids: list[str]) -> Booked:
        """Reads the venue's record of fills to its end, and what it has of these at least."""
        all_booked = Booked()
        books, _ = await self.records.books()
        cursor = books.fills_cursor
        for first in range(0, max(1, len(instrument_ids)), INSTRUMENTS_MAX):
            asked = instrument_ids[first : first + INSTRUMENTS_MAX]
            for _ in range(PAGES_MAX):
                page = await self.port.fills_since(cursor, asked)
                booked = await self.records.book(page.fills, page.cursor)
                all_booked.ours += booked.ours
                all_booked.external += booked.external
                all_booked.waits = all_booked.waits or booked.waits
                cursor = page.cursor
                if page.is_last or booked.waits:
                    break
            if all_booked.waits:
                break
        return all_booked

    # Cancels.

    async def cancel(self, order_id: UUID) -> float | None:
        standing = await self.records.find(order_id)
        if standing is None:
            return None
        order = standing.order
        if order.state is State.INTENDED or not order.is_open:
            await self.records.take_back_unsent(order_id)
            return None
        if order.state is State.SENDING:
            return await self.settle(order_id)
        outcome = await self._cancel_all(standing)
        if isinstance(outcome, NotNow):
            return outcome.retry_after_seconds
        if isinstance(outcome, Done) and outcome.order is not None:
            wait = await self.made_whole(await self.records.learn(News.on_record(outcome.order)))
        else:
            # Whatever it answered, its record says what became of the order.
            wait = await self._settle_by_record(standing)
        again = await self.records.find(order_id)
        return wait or (ASK_SECONDS_FIRST if again and again.cancel_asked else None)

    async def _cancel_all(self, standing: Standing) -> Outcome:
        """Also what may have taken its place."""
        order, change = standing.order, standing.sent_change
        if change and self.records.card.replacing is Replacing.NEW_ORDER:
            await self._bounded(self.port.cancel(order.instrument_id, change.client_order_id))
        return await self._bounded(self.port.cancel(order.instrument_id, order.client_order_id, order.venue_order_id))

    async def _settle_by_record(self, standing: Standing) -> float | None:
        if standing.sent_change:
            return await self._settle_change(standing, standing.sent_change)
        return await self.settle(standing.order.order_id)

    # Changes.

    async def change(self, order_id: UUID) -> float | None:
        standing = await self.records.find(order_id)
        if standing and (sent := standing.sent_change):
            if (order_id, sent.client_order_id) not in self.seen_changes:
                # Sent by another, who may have been at work on it until just now.
                await self.records.lose_change(order_id, sent.client_order_id)
                self.seen_changes.add((order_id, sent.client_order_id))
                return 0.0
            return await self._settle_change(standing, sent)
        begun = await self.records.begin_change(order_id, await self._unfit())
        if begun is None:
            return ASK_SECONDS_FIRST if standing and standing.order.is_open else None
        order, changed, change = begun
        self.seen_changes.add((order_id, change.client_order_id))
        keeps_id = self.records.card.replacing is Replacing.AMENDS
        ticket = news.ticket_of(changed, order.client_order_id if keeps_id else change.client_order_id)
        outcome = await self._bounded(self.port.replace(news.working_order(order), ticket))
        return await self._take_change(order, change, outcome)

    async def _take_change(self, order: Order, change: Change, outcome: Outcome) -> float | None:
        order_id, client_order_id = order.order_id, change.client_order_id
        match outcome:
            case Done() if self.records.card.replacing is Replacing.AMENDS:
                await self.records.amend(order_id, client_order_id)
            case Done():
                return await self.made_whole(
                    await self.records.learn(News.placed(client_order_id, outcome, time.time_ns()))
                )
            case Refused(words=words, code=code, ended=ended):
                await self.records.refuse_change(order_id, client_order_id, words or code)
                if ended is not None:
                    said = replace(News.on_record(ended), client_order_id=order.client_order_id, reason=words or code)
                    return await self.made_whole(await self.records.learn(said))
                # It may be done, or have traded; and whether it is as it was, its record says.
                return await self.settle(order_id)
            case NotNow(retry_after_seconds=seconds):
                await self.records.put_back_change(order_id, client_order_id, seconds)
            case Unknown():
                await self.records.lose_change(order_id, client_order_id)
                return 0.0
        return None

    async def _settle_change(self, standing: Standing, change: Change) -> float | None:
        """Asks the venue's record what became of a change whose answer was lost."""
        order = standing.order
        valid_seconds = await self._valid_seconds(change.send_time)
        is_past = valid_seconds <= 0
        if self.records.card.replacing is Replacing.NEW_ORDER:
            record = await self._record_of(change.client_order_id, order)
            if record is not None and record.state is not OrderState.REJECTED:
                return await self.made_whole(await self.records.learn(News.on_record(record)))
            is_past = is_past or record is not None
        old = await self._record_of(order.client_order_id, order)
        if old is not None and self.records.card.replacing is Replacing.AMENDS:
            if news.is_as_asked(change.replacement, old):
                await self.records.amend(order.order_id, change.client_order_id)
                return await self.made_whole(await self.records.learn(News.on_record(old)))
            is_past = is_past or old.state is not OrderState.WORKING
        if not is_past:
            self.asked_within[order.order_id] = valid_seconds
            return ASK_SECONDS_FIRST
        await self.records.refuse_change(order.order_id, change.client_order_id, "it never reached the venue")
        return None if old is None else await self.made_whole(await self.records.learn(News.on_record(old)))

    async def _bounded(self, command: Awaitable[Outcome]) -> Outcome:
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await command
        except TimeoutError:
            return Unknown(why=f"no answer within {COMMAND_SECONDS:g} s")
