"""The verifier itself: whatever is broken, it says so, and of that promise alone; and of nothing it says that nothing is kept."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from tradeloom.orders.v1 import orders_pb2

from tests.faults.proof.load import Journal, Load, loading
from tests.faults.proof.run import assert_loaded
from tests.faults.proof.stand import Doors, announce, connected, going_on, market_of, until
from tests.faults.proof.venue import PaperVenue, Venue, VenueFill, VenueOrder
from tests.faults.proof.verify import PROMISES, Evidence, broken, drained, shown_of, verify
from tests.mesh import Installation

LOAD_SECONDS = 30.0
FILLED = "(SELECT order_id FROM orders.trading_orders WHERE state = 'filled' AND order_id = ANY($1::uuid[]) LIMIT 1)"
"""One that was acknowledged."""
REPLACED = orders_pb2.ORDER_EVENT_KIND_REPLACED

# What is done to the database, and the one promise that it breaks.
BROKEN_ROWS = {
    "UPDATE orders.trading_orders SET time_in_force = CASE time_in_force WHEN 'fok' THEN 'ioc' ELSE 'fok' END "
    f"WHERE order_id = {FILLED}": "acknowledged orders exist",
    "DELETE FROM orders.request_keys WHERE request_id = (SELECT min(request_id) FROM orders.request_keys "
    "WHERE method LIKE '%PlaceOrder')": "one order for each request",
    f"UPDATE execution.venue_orders SET state = 'canceled' WHERE order_id = {FILLED}": "states agree",
    f"UPDATE execution.venue_fills SET venue_fill_id = 'another' WHERE venue_fill_id = (SELECT min(venue_fill_id) "
    f"FROM execution.venue_fills WHERE order_id = {FILLED})": "fills are the venues",
    f"UPDATE orders.trading_orders SET filled_notional = filled_notional + 0.01 WHERE order_id = {FILLED}": (
        "filled quantities are sums of fills"
    ),
    "UPDATE orders.positions SET quantity = quantity + 0.001": "positions are sums of fills",
    "DELETE FROM orders.ledger_entries WHERE entry_id = (SELECT max(entry_id) FROM orders.ledger_entries "
    "WHERE book = 'venue')": "ledger sums to zero",
    "UPDATE orders.balances SET total = total + 0.000000000000000001": "balances are the ledgers and the venues",
    "UPDATE orders.balances SET reserved = reserved + 0.000000000000000001": "reserved is what open orders may cost",
    "UPDATE orders.accounts SET open_orders = open_orders + 1": "open orders are counted",
    "DELETE FROM orders.order_events WHERE account_sequence = 2": "stories are complete and in order",
    f"UPDATE orders.trading_orders SET reason = 'none' WHERE order_id = {FILLED}": "stories end where orders stand",
    "UPDATE orders.fact_positions SET sequence = sequence - 1": "facts are complete and applied",
    f"INSERT INTO execution.venue_cancels (order_id, user_id, venue, partition) SELECT order_id, user_id, venue, partition "
    f"FROM execution.venue_orders WHERE order_id = {FILLED}": "nothing is underway",
}


def otherwise(order: VenueOrder) -> VenueOrder:
    """For more than it is."""
    assert order.terms
    return replace(order, terms=(order.terms[0] + 1, order.terms[1]))


# What is said of a venue's orders, and the one promise that would be broken by it.
LIES: Sequence[tuple[str, Callable[[Sequence[VenueOrder]], Sequence[VenueOrder]]]] = (
    ("orders reach the venue once", lambda orders: [*orders, orders[0]]),
    ("orders reach the venue once", lambda orders: [*orders, replace(orders[0], order_id=uuid4())]),
    ("orders are for the same at the venue", lambda orders: [otherwise(orders[0]), *orders[1:]]),
    ("orders are for the same at the venue", lambda orders: [replace(orders[0], is_twice=True), *orders[1:]]),
)


@dataclass(frozen=True)
class Lying:
    """A venue that knows of other orders than it does."""

    venue: Venue
    lie: Callable[[Sequence[VenueOrder]], Sequence[VenueOrder]]

    async def orders(self) -> Sequence[VenueOrder]:
        return self.lie(await self.venue.orders())

    async def fills(self) -> Sequence[VenueFill]:
        return await self.venue.fills()

    async def unsent(self) -> Collection[UUID]:
        return await self.venue.unsent()

    async def moved(self) -> Any:
        return await self.venue.moved()


@asynccontextmanager
async def settled(installation: Installation) -> AsyncIterator[Evidence]:
    """What is found after a while of trading in which nothing befell anybody."""
    await announce(installation, market := market_of("SIM"))
    async with (
        going_on(market, installation),
        installation.serve("orders", stream_heartbeat_seconds="1") as orders,
        installation.serve("execution"),
        loading(doors := Doors([orders], market), 2, 1) as load,
    ):
        await until(lambda: has_traded(load), "people have traded", LOAD_SECONDS)
        await load.end()
        await load.settle()
        rows = await connected(installation)
        assert await drained(rows, load) == {}
        followed = {person.account_id: person.events for person in load.people}
        yield Evidence(rows, load.journal, PaperVenue(rows), followed, await shown_of(doors, load))
        await rows.close()


def has_traded(load: Load) -> bool:
    load.check()
    traded = [person for person in load.people if any(event.HasField("execution") for event in person.events)]
    is_changed = any(event.kind == REPLACED for person in load.people for event in person.events)
    has_placed = len(load.journal.acknowledged) > 30 and bool(load.journal.cancels)
    return len(traded) == len(load.people) and has_placed and is_changed


async def found_after(evidence: Evidence, statement: str) -> dict[str, list[str]]:
    """What is broken once a statement was carried out; afterwards it was not."""
    orders = [order.order_id for order in evidence.journal.acknowledged.values()]
    begun = evidence.rows.transaction()
    await begun.start()
    try:
        done = await evidence.rows.execute(statement, *([orders] if "$1" in statement else []))
        assert not done.endswith(" 0"), f"{statement} changed nothing"
        return broken(await verify(evidence))
    finally:
        await begun.rollback()


async def test_each_promise_that_is_broken_is_told_and_no_other(installation: Installation):
    async with settled(installation) as evidence:
        assert broken(await verify(evidence)) == {}
        told: set[str] = set()
        for statement, promise in BROKEN_ROWS.items():
            assert list(await found_after(evidence, statement)) == [promise], statement
            told.add(promise)

        for promise, lie in LIES:
            lied = replace(evidence, venue=Lying(evidence.venue, lie))
            told.update(found := broken(await verify(lied)))
            assert list(found) == [promise]

        # A change that nobody asked for, and one that was never asked of the venue.
        journal = evidence.journal
        [request_id, order] = next(iter(journal.taken_up.items()))
        unasked = type(order).FromString(order.SerializeToString())
        unasked.replacement.client_order_id = str(uuid4())
        for taken_up in ({}, {**journal.taken_up, request_id: unasked}):
            found = broken(await verify(replace(evidence, journal=replace(journal, taken_up=taken_up))))
            told.update(found)
            assert list(found) == ["changes are made once or refused"]

        account_id, shown = next(iter(evidence.shown.items()))
        portfolio = type(shown.portfolio).FromString(shown.portfolio.SerializeToString())
        portfolio.balances[0].total.value = str(Decimal(portfolio.balances[0].total.value) + Decimal("1e-18"))
        altered = {**evidence.shown, account_id: replace(shown, portfolio=portfolio)}
        told.update(found := broken(await verify(replace(evidence, shown=altered))))
        assert list(found) == ["portfolios are what the stories tell"]
        assert told == {promise.__name__.replace("_", " ") for promise in PROMISES}

        # What was told to whoever followed all the time, and to nobody later.
        missed = {**evidence.followed, account_id: evidence.followed[account_id][:-1]}
        assert list(broken(await verify(replace(evidence, followed=missed)))) == ["stories are complete and in order"]

        lost = next(iter(evidence.journal.acknowledged.values())).order_id
        fallen = f"DELETE FROM orders.trading_orders WHERE order_id = '{lost}'"
        assert {"acknowledged orders exist", "orders reach the venue once"} < (
            await found_after(evidence, fallen)
        ).keys()
        again = f"""
            INSERT INTO orders.trading_orders SELECT (jsonb_populate_record(one, '{{"order_id": "{uuid4()}"}}')).*
            FROM orders.trading_orders AS one WHERE order_id = '{lost}'
            """
        assert {"one order for each request", "orders reach the venue once"} < (
            await found_after(evidence, again)
        ).keys()


async def test_of_nothing_no_promise_is_kept(installation: Installation):
    async with installation.connect() as rows:
        found = broken(await verify(Evidence(rows, Journal(), PaperVenue(rows), {}, {})))
    assert found.keys() == {promise.__name__.replace("_", " ") for promise in PROMISES}


def test_a_run_without_a_load_fails():
    with pytest.raises(AssertionError):
        assert_loaded(Load(Journal(), []), 1)
