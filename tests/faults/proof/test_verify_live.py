"""What the verifier makes of an exchange: an order that came twice, one that nobody placed, and books that differ."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tradeloom.execution.v1 import execution_pb2

from tests.faults.proof.exchange import BinanceVenue, Exchange
from tests.faults.proof.load import Journal
from tests.faults.proof.verify import Finding, orders_reach_the_venue_once
from tests.faults.proof.verify_live import LiveEvidence, comparisons_find_nothing, executions_books_are_the_venues
from tests.mesh import Installation
from tests.venues.binance import Arrival, Binance
from tests.venues.binance_orders import Side

ACCOUNT_ID = uuid4()


@pytest.fixture
async def rows(installation: Installation) -> AsyncIterator[asyncpg.Connection]:
    async with installation.connect() as rows:
        yield rows


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange(Binance())
    exchange.binance.list_market("BTC", "USDT", step=Decimal("0.001"))
    exchange.open(ACCOUNT_ID, "k" * 64)
    return exchange


def takes(exchange: Exchange, client_order_id: str) -> None:
    """As if it had been sent an order, far from any other."""
    market, account = exchange.binance.market("BTCUSDT"), exchange.accounts[ACCOUNT_ID]
    order = {"client_order_id": client_order_id, "side": Side.BUY, "type": "LIMIT", "time_in_force": "GTC"}
    market.place(market.order_of(account, **order, quantity=Decimal(1), price=Decimal(50)))
    exchange.binance.arrivals.append(Arrival(client_order_id))


def found_of(exchange: Exchange, rows: asyncpg.Connection, **reconciled: execution_pb2.Reconciliation) -> LiveEvidence:
    journal = Journal(opened={str(ACCOUNT_ID): uuid4()})
    return LiveEvidence(rows, journal, BinanceVenue(exchange, rows), {}, {}, reconciled)


async def test_orders_at_the_exchange_that_nobody_placed_or_that_came_twice_are_told(
    exchange: Exchange, rows: asyncpg.Connection
):
    order_id = uuid4()
    takes(exchange, str(order_id))
    [known] = await BinanceVenue(exchange, rows).orders()
    assert (known.order_id, known.arrivals, known.state) == (order_id, 1, "open")
    assert await wrong(orders_reach_the_venue_once(found_of(exchange, rows))) == [
        f"the venue has {order_id}, which nobody placed here"
    ]
    # Whether it was taken the second time or not.
    exchange.binance.arrivals.append(Arrival(str(order_id)))
    assert f"{order_id} reached the venue 2 times" in await wrong(orders_reach_the_venue_once(found_of(exchange, rows)))


async def test_an_order_that_was_turned_away_has_not_come(exchange: Exchange, rows: asyncpg.Connection):
    exchange.binance.arrivals.append(Arrival(str(uuid4()), turned_away=True))
    assert await BinanceVenue(exchange, rows).orders() == []
    exchange.binance.arrivals.append(Arrival(str(order_id := uuid4())))
    [known] = await BinanceVenue(exchange, rows).orders()
    assert (known.order_id, known.arrivals, known.state) == (order_id, 1, "rejected")


@pytest.mark.parametrize("is_taken_back", [True, False])
async def test_an_order_that_works_as_it_was_and_as_it_was_changed_at_once_is_told(
    exchange: Exchange, rows: asyncpg.Connection, is_taken_back: bool
):
    order_id, change = uuid4(), uuid4()
    # Of an order that is nowhere else.
    await rows.execute("SET session_replication_role = replica")
    insert = "INSERT INTO execution.venue_ids (account_id, client_order_id, order_id, user_id) VALUES ($1, $2, $3, $4)"
    for client_order_id in (order_id, change):
        await rows.execute(insert, ACCOUNT_ID, str(client_order_id), order_id, UUID(int=1))
    takes(exchange, str(order_id))
    if is_taken_back:
        exchange.binance.market("BTCUSDT").cancel(exchange.accounts[ACCOUNT_ID].orders[0], "")
    takes(exchange, str(change))
    [known] = await BinanceVenue(exchange, rows).orders()
    assert (known.order_id, known.terms, known.arrivals) == (order_id, (1, 50), 1)
    assert known.is_twice is not is_taken_back


async def test_what_the_exchange_holds_is_what_was_moved(exchange: Exchange, rows: asyncpg.Connection):
    takes(exchange, str(uuid4()))
    moved = await BinanceVenue(exchange, rows).moved()
    # Locked, and still there.
    assert set(moved.values()) == {Decimal(0)}
    exchange.accounts[ACCOUNT_ID].deposit("USDT", "0.00000001")
    assert (await BinanceVenue(exchange, rows).moved())[ACCOUNT_ID, "USDT"] == Decimal("0.00000001")


async def test_a_comparison_that_finds_something_or_was_not_made_is_told(exchange: Exchange, rows: asyncpg.Connection):
    done = execution_pb2.Reconciliation(asset_count=3)
    differing = execution_pb2.Reconciliation(asset_count=3, differences=[execution_pb2.Difference(subject="USDT")])
    failed = execution_pb2.Reconciliation(problem="the venue does not answer now")
    for reconciliation, is_kept in ((done, True), (differing, False), (failed, False)):
        evidence = found_of(exchange, rows, **{str(ACCOUNT_ID): reconciliation})
        assert (await comparisons_find_nothing(evidence)).is_kept is is_kept
    assert not (await comparisons_find_nothing(found_of(exchange, rows))).is_kept


async def test_books_that_differ_in_the_last_digit_are_told(exchange: Exchange, rows: asyncpg.Connection):
    insert = (
        "INSERT INTO execution.venue_balances (account_id, asset, user_id, total) VALUES ($1, 'USDT', $2, 0.00000001)"
    )
    await rows.execute(insert, ACCOUNT_ID, UUID(int=1))
    [told] = await wrong(executions_books_are_the_venues(found_of(exchange, rows)))
    assert "is None, expected 1E-8" in told


async def wrong(finding: Any) -> list[str]:
    found: Finding = await finding
    return found.wrong
