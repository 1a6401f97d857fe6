"""What is recorded of one live account: every change in one transaction, under the account's lease, with the facts told of it.

Nothing of an order is kept in memory. Each transaction reads the order with its row locked, so what the stream tells, what a
command is answered and what the record says may come at once and in any order.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from uuid import UUID

from google.protobuf.message import Message

from libs.store import leases
from libs.store.database import Connection, Database
from libs.store.leases import Lease
from services.execution import domain, events
from services.execution import store as common
from services.execution.domain import Funding, LiveAccount, Order, Position, Replacement, State, Unknown
from services.execution.live import news, projections, store
from services.execution.live.news import Change, News, Standing, Walk
from services.execution.venues.port import Card, Replacing, VenueFill

INSTRUMENT_SECONDS = 1.0
"""So long an order waits at a time for its instrument to become known here."""
LATE = "it could not be sent in time"
CHANGE_SECONDS = 30
"""A change that could not be sent for so long is rejected."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What news was about, and what it changed; order is None where it is about none of ours."""

    order: Order | None
    was: State | None = None
    new_fills: int = 0
    is_short: bool = False

    @property
    def is_new(self) -> bool:
        return bool(self.new_fills) or (self.order is not None and self.order.state is not self.was)


@dataclass(slots=True)
class Booked:
    """What came of a page of fills."""

    ours: list[tuple[UUID, VenueFill]] = field(default_factory=list)
    """Those that were not known, with their orders."""
    external: list[VenueFill] = field(default_factory=list)
    waits: bool = False
    """Whether it has to be read again, as it is not clear yet whose some of it is."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an account has: how much of each asset, and each position that is not flat."""

    balances: Mapping[str, Decimal]
    positions: Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class Records:
    """database is of the worker role."""

    database: Database
    lease: Lease
    account: LiveAccount
    card: Card

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Raises LeaseLost if another may hold the account by now; until the commit nobody can take it over."""
        async with self.database.transaction(self.account.user_id) as rows:
            await leases.fence(rows, self.lease)
            yield rows

    async def find(self, order_id: UUID) -> Standing | None:
        """As it stands now. It may change at any time."""
        async with self.database.transaction(self.account.user_id) as rows:
            return await store.lock_standing(rows, order_id)

    # What the venue says.

    async def learn(self, said: News) -> Learned:
        async with self.transaction() as rows:
            account_id = self.account.account_id
            order_id = await store.order_id_of(rows, account_id, said.client_order_id, said.venue_order_id)
            return Learned(None) if order_id is None else await self._learn(rows, order_id, said)

    async def _learn(self, rows: Connection, order_id: UUID, said: News) -> Learned:
        standing = await store.lock_standing(rows, order_id, [fill.venue_fill_id for fill in said.fills])
        if standing is None:
            return Learned(None)
        walk = news.follow(standing, said, self.card.replacing)
        await store.save_walk(rows, standing.order, walk)
        return Learned(walk.order, standing.order.state, len(walk.fills), walk.is_short)

    async def book(self, fills: Sequence[VenueFill], cursor: str) -> Booked:
        """Records fills as they are on record at the venue, and that they were read up to the cursor."""
        booked = Booked()
        account_id = self.account.account_id
        async with self.transaction() as rows:
            known = await store.known_fills(rows, account_id, [fill.venue_fill_id for fill in fills])
            new = [fill for fill in fills if fill.venue_fill_id not in known]
            unclear = await store.has_unnamed(rows, account_id, {fill.instrument_id for fill in new})
            by_order: defaultdict[UUID, list[VenueFill]] = defaultdict(list)
            strangers: list[VenueFill] = []
            for fill in new:
                order_id = await store.order_id_of(rows, account_id, fill.client_order_id, fill.venue_order_id)
                if fill.instrument_id in unclear and not (order_id and fill.client_order_id):
                    booked.waits = True
                elif order_id:
                    by_order[order_id].append(fill)
                else:
                    strangers.append(fill)
            await store.lock_orders(rows, list(by_order))
            for order_id in sorted(by_order):
                of_order = by_order[order_id]
                await self._learn(rows, order_id, News.of_fills(of_order))
                booked.ours += [(order_id, fill) for fill in of_order]
            await self._add_external(rows, strangers, booked)
            if not booked.waits:
                await store.put_cursor(rows, account_id, cursor)
        return booked

    async def _add_external(self, rows: Connection, fills: Sequence[VenueFill], booked: Booked) -> None:
        """Those from before the account was opened are in what it opened with."""
        books = await store.find_books(rows, self.account.account_id, lock=True)
        told: list[Message] = []
        for fill in fills:
            if books.open_time is None or common.time_from_ns(fill.time_ns) <= books.open_time:
                continue
            amounts = await store.add_external_fill(rows, self.account, fill)
            booked.external.append(fill)
            positions: dict[str, Position] = {}
            if self.card.perpetuals:
                held = await store.find_positions(rows, self.account.account_id)
                positions[fill.instrument_id] = held.get(fill.instrument_id, store.FLAT)
            if amounts or positions:
                told.append(events.adjusted(amounts, positions, "external_fill", "", fill.time_ns))
        await self.tell(rows, told)

    async def tell(self, rows: Connection, messages: Sequence[Message]) -> None:
        account = self.account
        await common.tell_messages(rows, [(account.account_id, account.user_id, message) for message in messages])

    # Sending.

    async def begin(self, order_id: UUID, unfit: str) -> Order | None:
        """Moves an order from INTENDED to SENDING, after which it is sent once; None where it is not to be sent now.

        unfit is why only what reduces is, empty where anything may be.
        """
        async with self.transaction() as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing is None or standing.order.state is not State.INTENDED:
                return None
            order = standing.order
            if standing.cancel_asked:
                await store.save_walk(rows, order, news.canceled_unsent(standing, standing.now_ns))
                return None
            if order.venue != self.account.venue:
                elsewhere = f"the account is at {self.account.venue}"
                await store.save_walk(rows, order, news.rejected(standing, elsewhere, standing.now_ns))
                return None
            leave = await projections.find_leave(rows, order)
            if objection := self._objection(order, leave, unfit):
                await store.save_walk(rows, order, news.rejected(standing, objection, standing.now_ns, not_sent=True))
                return None
            if refused := self.card.refusal(news.ticket_of(order)):
                await store.save_walk(rows, order, news.rejected(standing, refused.words, standing.now_ns))
                return None
            if not await common.find_instruments(rows, [order.instrument_id]):
                await store.put_back(rows, order_id, INSTRUMENT_SECONDS)
                return None
            sending = replace(order, state=State.SENDING, send_time=leave.now)
            await store.save_order(rows, sending)
            await store.name_order(rows, sending, sending.client_order_id)
            return sending

    def _objection(self, order: Order, leave: projections.Leave, unfit: str) -> str:
        """Why it may not be sent now, and may be another time."""
        if projections.is_late(order, leave):
            return LATE
        return projections.objection(order, leave, self.account, unfit)

    async def put_back(self, order_id: UUID, seconds: float) -> None:
        """The venue certainly did not take the order, and will another time."""
        async with self.transaction() as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing and standing.order.state is State.SENDING:
                await store.put_back(rows, order_id, seconds)

    async def lose_answer(self, order_id: UUID, why: str) -> None:
        """Whether the venue has the order is not known, from now on if it was not before."""
        async with self.transaction() as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing is None or standing.order.state is not State.SENDING:
                return
            walk = Walk(standing.order)
            walk.apply(Unknown(reason=why, time_ns=standing.now_ns))
            walk.order = replace(walk.order, send_time=common.time_from_ns(standing.now_ns), reason=why)
            await store.save_walk(rows, standing.order, walk)

    async def refuse(self, order_id: UUID, reason: str, *, stop_reached: bool = False) -> None:
        """The venue certainly does not have the order."""
        await self._apply(
            order_id, lambda standing: news.rejected(standing, reason, standing.now_ns, stop_reached=stop_reached)
        )

    async def take_back_unsent(self, order_id: UUID) -> None:
        await self._apply(order_id, lambda standing: news.canceled_unsent(standing, standing.now_ns))

    async def _apply(self, order_id: UUID, make: Callable[[Standing], Walk]) -> None:
        async with self.transaction() as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing is not None:
                await store.save_walk(rows, standing.order, make(standing))

    # Changing.

    async def begin_change(self, order_id: UUID, unfit: str) -> tuple[Order, Order, Change] | None:
        """The order as it is, as it is to be, and the change, which is sent once after this; None where none is to be."""
        async with self.transaction() as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing is None or not standing.changes or standing.sent_change:
                return None
            order, change = standing.order, standing.changes[0]
            if order.is_open and order.state is not State.WORKING:
                return None
            objection, changed = await self._change_objection(rows, standing, change.replacement, unfit)
            if objection:
                walk = news.change_rejected(standing, change.client_order_id, objection, standing.now_ns)
                await store.save_walk(rows, order, walk)
                return None
            await store.mark_change_sent(rows, order_id, change.client_order_id)
            if self.card.replacing is Replacing.NEW_ORDER:
                await store.name_order(rows, order, change.client_order_id)
            return order, changed, change

    async def _change_objection(
        self, rows: Connection, standing: Standing, replacement: Replacement, unfit: str
    ) -> tuple[str, Order]:
        order = standing.order
        if not order.is_open:
            return f"the order is {order.state.value}", order
        if self.card.replacing is Replacing.NOT_NATIVE:
            return f"{self.card.venue} replaces no orders", order
        leave = await projections.find_leave(rows, order)
        if await store.is_old_change(rows, order.order_id, replacement.client_order_id, CHANGE_SECONDS):
            return LATE, order
        if objection := projections.objection(order, leave, self.account, unfit):
            return objection, order
        instruments = await common.find_instruments(rows, [order.instrument_id])
        try:
            changed = domain.changed(order, replacement)
        except ValueError as error:
            return str(error), order
        # What was sent had an instrument; only what was adopted may have come without.
        instrument = instruments.get(order.instrument_id)
        return "", domain.on_grid(changed, instrument.tick_size) if instrument else changed

    async def put_back_change(self, order_id: UUID, client_order_id: str, seconds: float) -> None:
        async with self.transaction() as rows:
            await store.put_back_change(rows, order_id, client_order_id, seconds)

    async def lose_change(self, order_id: UUID, client_order_id: str) -> None:
        """Whether the venue has changed the order is not known; from now on."""
        async with self.transaction() as rows:
            await store.mark_change_sent(rows, order_id, client_order_id)

    async def refuse_change(self, order_id: UUID, client_order_id: str, reason: str) -> None:
        await self._apply(
            order_id, lambda standing: news.change_rejected(standing, client_order_id, reason, standing.now_ns)
        )

    async def amend(self, order_id: UUID, client_order_id: str) -> None:
        await self._apply(order_id, lambda standing: news.amended(standing, client_order_id, standing.now_ns))

    # Funding.

    async def fund(self, entries: Sequence[Funding], cursor: str) -> int:
        """Tells what is new of the venue's record of funding, and that it was read up to the cursor; how much was new.

        What was settled before the account was opened is in what it opened with.
        """
        async with self.transaction() as rows:
            account_id = self.account.account_id
            books = await store.find_books(rows, account_id, lock=True)
            if books.open_time is None:
                return 0
            known = await store.known_funding(rows, account_id, [entry.venue_id for entry in entries])
            new = [
                entry
                for entry in entries
                if entry.venue_id not in known and common.time_from_ns(entry.time_ns) > books.open_time
            ]
            if new:
                await store.add_funding(rows, self.account, new)
                await self.tell(rows, [events.funded(entry) for entry in new])
            if cursor != books.funding_cursor:
                await store.put_funding_cursor(rows, account_id, cursor)
            return len(new)

    # What the account holds.

    async def connect(self, held: Held, asked: store.Books, time_ns: int) -> bool:
        """Records what the venue told that there is, unless a fill came in since asked was read; whether it did."""
        async with self.transaction() as rows:
            books = await store.find_books(rows, self.account.account_id, lock=True)
            if books.fill_count != asked.fill_count:
                return False
            if books.connect_count >= asked.confirm_count:
                return True
            await store.put_balances(rows, self.account, held.balances)
            await store.put_positions(rows, self.account, held.positions)
            await store.connect(rows, self.account, asked.confirm_count)
            await self.tell(rows, [events.connected(held.balances, held.positions, time_ns)])
            return True

    async def books(self) -> tuple[store.Books, Held]:
        """The account's row, and what is expected at the venue."""
        async with self.database.transaction(self.account.user_id, snapshot=True) as rows:
            return await store.find_books(rows, self.account.account_id), await self.held(rows)

    async def held(self, rows: Connection) -> Held:
        account_id = self.account.account_id
        return Held(await store.find_balances(rows, account_id), await store.find_positions(rows, account_id))


async def give_up_late(database: Database, count_max: int) -> int:
    """Rejects orders that nobody has sent in time, of whatever account; how many there were. Its row lock keeps out who would send it.

    For those whose account nobody carries, as its key is gone.
    """
    async with database.reading() as rows:
        late = await store.find_late(rows, count_max)
    for order_id, user_id in late:
        async with database.transaction(user_id) as rows:
            standing = await store.lock_standing(rows, order_id)
            if standing is None or standing.order.state is not State.INTENDED:
                continue
            if standing.cancel_asked:
                walk = news.canceled_unsent(standing, standing.now_ns)
            else:
                walk = news.rejected(standing, LATE, standing.now_ns, not_sent=True)
            await store.save_walk(rows, standing.order, walk)
    return len(late)
