"""Comparing a live account with its venue: its orders, its fills, what it holds, and what there is that is not ours.

The venue is right by definition. Whatever differs is told as if the venue had just said it, and written down with what it was
and what was made of it. What only looks like a difference, because something happened between two reads, is looked at again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import structlog

from libs.ids import uuid7
from libs.money import ZERO, plain
from services.execution import domain, events
from services.execution import store as common
from services.execution.domain import Order, Position, State
from services.execution.live import funding, reconciliation_store, store
from services.execution.live.comparison import Cause, Difference, Found, Kind
from services.execution.live.funding import FundingReader
from services.execution.live.news import News
from services.execution.live.records import Booked, Held
from services.execution.live.sending import Sending
from services.execution.venues.port import INSTRUMENTS_MAX, OrderState, VenueOrder, VenueRefused

LATE_SECONDS = 5.0
"""A fill that is on record for less long may only not have been told yet."""
AGAIN_SECONDS = 2.0
"""After so long what differs is asked for again: the record of a fill may come later than what it moved."""
HOLDING_TRIES = 5
FOLLOWED_MAX = 4 * INSTRUMENTS_MAX

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciling:
    """sending is of one account."""

    sending: Sending
    funding: FundingReader

    async def reconcile(self, cause: Cause, reconciliation_id: UUID | None = None) -> Found:
        """Compares, and records what came of it; also that the venue did not answer. Raises LeaseLost."""
        found = Found(reconciliation_id=reconciliation_id or uuid7(), cause=cause, begin_time=datetime.now(UTC))
        try:
            await self._orders(found)
            await self._fills(found)
            found.problem = await self.sending.look_whether_fit()
            if not found.problem:
                await self._holdings(found)
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
                            explanation=_whose(order),
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
        _note_external(found, booked)

    async def read_followed(self, also: Sequence[str] = ()) -> Booked:
        """The fills of every instrument in which the account was seen to trade, those of the last ones at least."""
        records = self.sending.records
        async with records.database.transaction(records.account.user_id) as rows:
            followed = await store.find_followed(rows, records.account.account_id, FOLLOWED_MAX)
        return await self.sending.read_fills(list(dict.fromkeys([*also, *followed])))

    # What the account holds.

    async def _holdings(self, found: Found) -> None:
        """Only what stays the same over two looks, with no fill and no funding in between, is a difference."""
        before: Holdings | None = None
        for number in range(HOLDING_TRIES):
            if number:
                await asyncio.sleep(AGAIN_SECONDS)
            looked = await self._look_at_holdings(found, is_read=number == 0)
            if looked is None:
                continue
            held, books, expected = looked
            if books.open_time is None and books.is_connected:
                return  # It was never confirmed.
            if not books.is_connected and held.positions and funding.is_settling(time.time()):
                # Else it would open with what funding took, and be told of that once more.
                found.problem = "funding is being settled: what the account holds is told in two minutes"
                return
            if not books.is_connected:
                await self._connect(found, held, books)
                return
            differing = differences_of(expected, held, is_settling=funding.is_settling(time.time()))
            if not differing or differing == before:
                if await self._adjust(found, held, books, expected, differing):
                    found.asset_count = len(expected.balances.keys() | held.balances.keys())
                    return
                differing = None
            before = differing

    async def _look_at_holdings(self, found: Found, *, is_read: bool) -> tuple[Held, store.Books, Held] | None:
        """What the venue holds, and what is expected there; None where fills came in between, or it is not clear whose one is.

        is_read says that the fills have just been read.
        """
        records, port = self.sending.records, self.sending.port
        if not is_read:
            booked = await self.read_followed()
            _note_external(found, booked)
            if booked.waits:
                return None
        before, _ = await records.books()
        balances, positions = await port.balances(), await port.positions()
        # Also where it was not known before that something is traded.
        booked = await self.read_followed(list(positions))
        _note_external(found, booked)
        await self.funding.read()
        after, expected = await records.books()
        if booked.waits or before.fill_count != after.fill_count:
            return None
        totals = {asset: balance.free + balance.locked for asset, balance in balances.items()}
        held = Held({asset: total for asset, total in totals.items() if total}, positions)
        return held, after, expected

    async def _connect(self, found: Found, held: Held, books: store.Books) -> None:
        if await self.sending.records.connect(held, books, time.time_ns()):
            found.asset_count = len(held.balances)
            log.info("a live account is connected", account_id=str(self.sending.records.account.account_id))

    async def _adjust(
        self, found: Found, held: Held, books: store.Books, expected: Held, differing: "Holdings"
    ) -> bool:
        """Tells what differs, and expects from then on what the venue holds; whether no fill came in between."""
        if not differing:
            return True
        records = self.sending.records
        async with records.transaction() as rows:
            now = await store.find_books(rows, records.account.account_id, lock=True)
            # Another comparison may have told it meanwhile.
            is_as_read = await records.held(rows) == expected
            if now.fill_count != books.fill_count or not is_as_read or not now.is_connected:
                return False
            if differing.balances:
                await store.put_balances(rows, records.account, held.balances)
            if differing.positions:
                await store.put_positions(rows, records.account, held.positions)
            message = events.adjusted(
                differing.balances,
                differing.positions,
                "unexplained",
                str(found.reconciliation_id),
                time.time_ns(),
            )
            await records.tell(rows, [message])
        for asset in sorted(differing.balances):
            found.add(
                Difference(
                    kind=Kind.BALANCE,
                    subject=asset,
                    ours=plain(expected.balances.get(asset, ZERO)),
                    venues=plain(held.balances.get(asset, ZERO)),
                    explanation="no trade explains it, as of what was deposited, withdrawn or earned; the venue counts",
                )
            )
        for instrument_id, position in sorted(differing.positions.items()):
            found.add(
                Difference(
                    kind=Kind.POSITION,
                    subject=instrument_id,
                    ours=plain(expected.positions.get(instrument_id, store.FLAT).quantity),
                    venues=plain(position.quantity),
                    explanation="no trade that the venue tells of explains it; the venue counts",
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


@dataclass(frozen=True, slots=True)
class Holdings:
    """By how much the venue has more of each asset than was expected, and each position that differs, as the venue has it."""

    balances: dict[str, Decimal]
    positions: dict[str, Position]

    def __bool__(self) -> bool:
        return bool(self.balances or self.positions)


def differences_of(expected: Held, held: Held, *, is_settling: bool = False) -> Holdings:
    """While funding is settled nothing is said of what is in the wallet of who holds perpetual futures."""
    positions = {
        instrument_id: held.positions.get(instrument_id, store.FLAT)
        for instrument_id in expected.positions.keys() | held.positions.keys()
        if expected.positions.get(instrument_id, store.FLAT).quantity
        != held.positions.get(instrument_id, store.FLAT).quantity
    }
    if is_settling and (expected.positions or held.positions):
        return Holdings({}, positions)
    assets = expected.balances.keys() | held.balances.keys()
    amounts = {asset: held.balances.get(asset, ZERO) - expected.balances.get(asset, ZERO) for asset in assets}
    return Holdings({asset: amount for asset, amount in amounts.items() if amount}, positions)


def _note_external(found: Found, booked: Booked) -> None:
    for fill in booked.external:
        found.add(
            Difference(
                kind=Kind.FILL_EXTERNAL,
                venue_order_id=fill.venue_order_id,
                subject=fill.venue_fill_id,
                venues=f"{plain(fill.quantity)} at {plain(fill.price)}",
                explanation=f"{fill.forced or 'its order was not sent from here'}; what the account holds follows it",
            )
        )


def _whose(order: VenueOrder) -> str:
    if order.forced:
        return f"{order.forced}; it may be adopted or ignored like one that its owner made"
    return "it was not sent from here; it waits for its owner to adopt or to ignore it"


def _differs(order: Order, there: VenueOrder) -> bool:
    return there.filled_quantity != order.filled_quantity + order.filled_before


def _in_short(state: str, filled_quantity: Decimal) -> str:
    return f"{state}, {plain(filled_quantity)} filled"
