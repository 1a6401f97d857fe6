"""Comparing a live account with its venue: its orders, its fills, its balances, and what there is that is not ours.

The venue is right by definition. Whatever differs is told as if the venue had just said it, and written down with what it was
and what was made of it. What only looks like a difference, because something happened between two reads, is looked at again.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import structlog

from libs.ids import uuid7
from libs.money import ZERO, plain
from services.execution import domain, events
from services.execution import store as common
from services.execution.domain import Order, State
from services.execution.live import reconciliation_store, store
from services.execution.live.comparison import Cause, Difference, Found, Kind
from services.execution.live.news import News
from services.execution.live.records import Booked
from services.execution.live.sending import Sending
from services.execution.venues.port import INSTRUMENTS_MAX, OrderState, VenueOrder, VenueRefused

LATE_SECONDS = 5.0
"""A fill that is on record for less long may only not have been told yet."""
AGAIN_SECONDS = 2.0
"""After so long a balance that differs is asked for again: the record of a fill may come later than what it moved."""
BALANCE_TRIES = 5
FOLLOWED_MAX = 4 * INSTRUMENTS_MAX

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciling:
    """sending is of one account."""

    sending: Sending

    async def reconcile(self, cause: Cause, reconciliation_id: UUID | None = None) -> Found:
        """Compares, and records what came of it; also that the venue did not answer. Raises LeaseLost."""
        found = Found(reconciliation_id=reconciliation_id or uuid7(), cause=cause, begin_time=datetime.now(UTC))
        try:
            await self._orders(found)
            await self._fills(found)
            await self._balances(found)
        except (domain.VenueUnavailable, VenueRefused) as error:
            found.problem = str(error)
        await self._finish(found)
        return found

    # Orders.

    async def _orders(self, found: Found) -> None:
        records, account_id = self.sending.records, self.sending.records.account.account_id
        async with records.database.transaction(records.account.user_id) as rows:
            ours = await store.find_open(rows, account_id)
        at_venue = await self.sending.port.open_orders()
        open_there = {order.venue_order_id: order for order in at_venue}
        by_client_id = {order.client_order_id: order for order in at_venue if order.client_order_id}
        found.order_count = len(ours)
        for order in ours:
            there = open_there.get(order.venue_order_id) or by_client_id.get(order.client_order_id)
            if order.state is State.WORKING and (there is None or _differs(order, there)):
                await self._compare(found, order)
        for order in at_venue:
            await self._look_at(found, order)
        async with records.transaction() as rows:
            await reconciliation_store.end_externals(rows, account_id, list(open_there))

    async def _compare(self, found: Found, order: Order) -> None:
        """Of an order of which the venue has another state, or which is not open there any more."""
        port, records = self.sending.port, self.sending.records
        record = await port.order_by_client_id(order.client_order_id, order.instrument_id)
        standing = await records.find(order.order_id)
        if standing is None or standing.order != order or standing.sent_change:
            return  # It was told meanwhile.
        if record is None:
            difference = Difference(
                kind=Kind.ORDER_MISSING,
                order_id=str(order.order_id),
                venue_order_id=order.venue_order_id,
                ours=_in_short(order.state.value, order.filled_quantity),
                explanation="the venue has no record of it; it is left as it is, and asked for again",
            )
            found.add(difference)
            return
        learned = await records.learn(News.on_record(record))
        await self.sending.made_whole(learned)
        again = await records.find(order.order_id)
        now = again.order if again else order
        found.add(
            Difference(
                kind=Kind.ORDER_STATE,
                order_id=str(order.order_id),
                venue_order_id=record.venue_order_id,
                ours=_in_short(order.state.value, order.filled_quantity),
                venues=_in_short(record.state.value, record.filled_quantity - order.filled_before),
                explanation=f"the venue's record counts: it is {_in_short(now.state.value, now.filled_quantity)} now",
            )
        )

    async def _look_at(self, found: Found, order: VenueOrder) -> None:
        """One that is open at the venue: it may be ours and done here, or not ours."""
        records, port = self.sending.records, self.sending.port
        account = records.account
        async with records.transaction() as rows:
            order_id = await store.order_id_of(rows, account.account_id, order.client_order_id, order.venue_order_id)
            if order_id is None:
                if await reconciliation_store.put_external(rows, account, uuid7(), order):
                    found.add(
                        Difference(
                            kind=Kind.ORDER_EXTERNAL,
                            venue_order_id=order.venue_order_id,
                            venues=_in_short("working", order.filled_quantity),
                            explanation="it was not sent from here; it waits for its owner to adopt or to ignore it",
                        )
                    )
                return
            ours = await store.find_order(rows, order_id)
        if ours is None or ours.is_open:
            return
        # Nobody here wants it any more.
        current = await port.order_by_client_id(order.client_order_id, order.instrument_id)
        if current is None or current.state is not OrderState.WORKING:
            return
        await port.cancel(order.instrument_id, order.client_order_id, order.venue_order_id)
        found.add(
            Difference(
                kind=Kind.ORDER_STATE,
                order_id=str(order_id),
                venue_order_id=order.venue_order_id,
                ours=_in_short(ours.state.value, ours.filled_quantity),
                venues=_in_short("working", order.filled_quantity),
                explanation="it is done here: it was canceled at the venue, and what it traded is applied",
            )
        )

    # Fills.

    async def _fills(self, found: Found) -> None:
        began_ns = time.time_ns()
        booked = await self.read_followed()
        found.fill_count += len(booked.ours) + len(booked.external)
        for order_id, fill in booked.ours:
            if began_ns - fill.time_ns > LATE_SECONDS * common.SECOND_NS:
                found.add(
                    Difference(
                        kind=Kind.FILL_MISSED,
                        order_id=str(order_id),
                        venue_order_id=fill.venue_order_id,
                        subject=fill.venue_fill_id,
                        venues=f"{plain(fill.quantity)} at {plain(fill.price)}",
                        explanation="it was not told; it is applied",
                    )
                )
        for fill in booked.external:
            found.add(
                Difference(
                    kind=Kind.FILL_EXTERNAL,
                    venue_order_id=fill.venue_order_id,
                    subject=fill.venue_fill_id,
                    venues=f"{plain(fill.quantity)} at {plain(fill.price)}",
                    explanation="its order was not sent from here; the balances follow it",
                )
            )

    async def read_followed(self) -> Booked:
        """The fills of every instrument in which the account was seen to trade, those of the last ones at least."""
        records = self.sending.records
        async with records.database.transaction(records.account.user_id) as rows:
            followed = await store.find_followed(rows, records.account.account_id, FOLLOWED_MAX)
        return await self.sending.read_fills(followed)

    # Balances.

    async def _balances(self, found: Found) -> None:
        """Only what stays the same over two looks, with no fill in between, is a difference."""
        before: dict[str, Decimal] | None = None
        for number in range(BALANCE_TRIES):
            if number:
                await asyncio.sleep(AGAIN_SECONDS)
            looked = await self._look_at_balances(is_read=number == 0)
            if looked is None:
                continue
            totals, books, expected = looked
            if books.open_time is None and books.is_connected:
                return  # It was never confirmed.
            if not books.is_connected:
                await self._connect(found, totals, books)
                return
            differing = differences_of(expected, totals)
            if not differing or differing == before:
                if await self._adjust(found, totals, books, expected, differing):
                    found.asset_count = len(expected.keys() | totals.keys())
                    return
                differing = None
            before = differing

    async def _look_at_balances(
        self, *, is_read: bool
    ) -> tuple[dict[str, Decimal], store.Books, dict[str, Decimal]] | None:
        """What the venue holds, and what is expected there; None where fills came in between, or it is not clear whose one is.

        is_read says that the fills have just been read.
        """
        records, port = self.sending.records, self.sending.port
        if not is_read and (await self.read_followed()).waits:
            return None
        before, _ = await records.books()
        held = await port.balances()
        booked = await self.read_followed()
        after, expected = await records.books()
        if booked.waits or before.fill_count != after.fill_count:
            return None
        totals = {asset: balance.free + balance.locked for asset, balance in held.items()}
        return {asset: total for asset, total in totals.items() if total}, after, expected

    async def _connect(self, found: Found, totals: dict[str, Decimal], books: store.Books) -> None:
        if await self.sending.records.connect(totals, books, time.time_ns()):
            found.asset_count = len(totals)
            log.info("a live account is connected", account_id=str(self.sending.records.account.account_id))

    async def _adjust(
        self,
        found: Found,
        totals: dict[str, Decimal],
        books: store.Books,
        expected: dict[str, Decimal],
        differing: dict[str, Decimal],
    ) -> bool:
        """Tells what differs, and expects from then on what the venue holds; whether no fill came in between."""
        if not differing:
            return True
        records = self.sending.records
        async with records.transaction() as rows:
            now = await store.find_books(rows, records.account.account_id, lock=True)
            # Another comparison may have told it meanwhile.
            is_as_read = await store.find_balances(rows, records.account.account_id) == expected
            if now.fill_count != books.fill_count or not is_as_read or not now.is_connected:
                return False
            await store.put_balances(rows, records.account, totals)
            message = events.adjusted(differing, "unexplained", str(found.reconciliation_id), time.time_ns())
            await records.tell(rows, [message])
        for asset in sorted(differing):
            found.add(
                Difference(
                    kind=Kind.BALANCE,
                    subject=asset,
                    ours=plain(expected.get(asset, ZERO)),
                    venues=plain(totals.get(asset, ZERO)),
                    explanation="no trade explains it, as of what was deposited, withdrawn or earned; the venue counts",
                )
            )
        return True

    async def _finish(self, found: Found) -> None:
        records = self.sending.records
        if found.differences or found.problem:
            log.warning(
                "a live account was reconciled",
                account_id=str(records.account.account_id),
                cause=found.cause.value,
                differences=len(found.differences),
                problem=found.problem,
            )
        async with records.transaction() as rows:
            await reconciliation_store.finish(rows, records.account, found)


def differences_of(expected: dict[str, Decimal], totals: dict[str, Decimal]) -> dict[str, Decimal]:
    """By how much the venue has more of each asset than was expected."""
    amounts = {asset: totals.get(asset, ZERO) - expected.get(asset, ZERO) for asset in expected.keys() | totals.keys()}
    return {asset: amount for asset, amount in amounts.items() if amount}


def _differs(order: Order, there: VenueOrder) -> bool:
    return there.filled_quantity != order.filled_quantity + order.filled_before


def _in_short(state: str, filled_quantity: Decimal) -> str:
    return f"{state}, {plain(filled_quantity)} filled"
