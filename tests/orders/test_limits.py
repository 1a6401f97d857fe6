"""Limits, switches, locks, ledgers and worth through the service, as their owner sees them."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from tradeloom.orders.v1 import orders_pb2, risk_pb2

from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from services.orders import equity, equity_store, store
from tests.mesh import Installation, Served, sign_in
from tests.orders.stand import (
    BTC,
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    limit,
    market,
    quote,
    reason,
    refusal,
    resting,
    select,
    trader,
    until,
)
from tests.orders.test_orders_of_all_types import quoted, settled

HALT, REDUCE, OFF = (
    risk_pb2.KILL_SWITCH_MODE_HALT,
    risk_pb2.KILL_SWITCH_MODE_REDUCE_ONLY,
    risk_pb2.KILL_SWITCH_MODE_OFF,
)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equity, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(equity, "NOTE_SECONDS", 0.05)


async def bound(anna: Trader, **limits: Any) -> risk_pb2.SetRiskLimitsResponse:
    asked = risk_pb2.SetRiskLimitsRequest(
        request_id=str(uuid7()), account_id=anna.account_id, limits=risk_pb2.RiskLimits(**limits)
    )
    return await anna.risks.SetRiskLimits(asked, metadata=anna.metadata)


async def switch(anna: Trader, mode: Any, **more: Any) -> risk_pb2.KillSwitch:
    asked = risk_pb2.SetKillSwitchRequest(request_id=str(uuid7()), mode=mode, **more)
    return (await anna.risks.SetKillSwitch(asked, metadata=anna.metadata)).switch


async def standing(anna: Trader) -> risk_pb2.GetRiskLimitsResponse:
    asked = risk_pb2.GetRiskLimitsRequest(account_id=anna.account_id)
    return await anna.risks.GetRiskLimits(asked, metadata=anna.metadata)


async def happened(anna: Trader, **more: Any) -> list[tuple[int, str]]:
    """What limits, switches and locks did, oldest first."""
    asked = risk_pb2.ListRiskEventsRequest(account_id=anna.account_id, **more)
    found = (await anna.risks.ListRiskEvents(asked, metadata=anna.metadata)).events
    return [(event.kind, event.limit) for event in reversed(found)]


async def long(anna: Trader, venue: Venue, quantity: str = "1", **changed: Any) -> orders_pb2.Order:
    """A position of hers, bought at 100."""
    order = await anna.place(quantity=quantity, limit_price="100", **changed)
    await venue.tell(anna, accepted(order), filled(order, quantity, 100, fee="0.1"))
    return await settled(anna, order.order_id, orders_pb2.ORDER_STATE_FILLED)


async def test_limits_hold_from_their_setting_on_and_a_refusal_names_limit_value_and_bound(
    orders: Served, venue: Venue, redis: Redis
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    before = await standing(anna)
    assert (before.revision, before.limits) == (0, risk_pb2.RiskLimits())
    assert before.effective.open_orders_max == 1000
    order = await anna.place(quantity="1", limit_price="90")
    answer = await bound(anna, order_notional_max=decimal(89), open_orders_max=2)
    assert (answer.revision, answer.effective.open_orders_max) == (1, 2)
    refused = await refusal(anna.place(quantity="1", limit_price="90"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "RISK_LIMIT_REACHED")
    assert refused.metadata == {"limit": "order_notional_max", "value": "90", "bound": "89"}
    # What is open stays, and may not be made what would be refused.
    await venue.tell(anna, accepted(order))
    await settled(anna, order.order_id, orders_pb2.ORDER_STATE_NEW)
    change = orders_pb2.ReplaceOrderRequest(
        request_id="x", order_id=order.order_id, replacement=orders_pb2.Replacement(limit_price=decimal(91))
    )
    refused = await refusal(anna.orders.ReplaceOrder(change, metadata=anna.metadata))
    assert refused.metadata == {"limit": "order_notional_max", "value": "91", "bound": "89"}
    await anna.place(quantity="0.5", limit_price="90")
    refused = await refusal(anna.place(quantity="0.1", limit_price="90"))
    assert refused.reason == "TOO_MANY_OPEN_ORDERS"
    assert refused.metadata == {"limit": "open_orders_max", "value": "3", "bound": "2"}
    preview = orders_pb2.PreviewOrderRequest(order=limit(anna.account_id, quantity="1", limit_price="90"))
    told = await anna.orders.PreviewOrder(preview, metadata=anna.metadata)
    assert {each.limit: (each.value.value, each.bound.value) for each in told.margins} == {
        "open_orders_max": ("3", "2"),
        "order_notional_max": ("90", "89"),
        "price_collar_percent": ("0", "10"),
    }
    # One of a kind in a minute.
    await reason(anna.place(quantity="1", limit_price="90"))
    assert await happened(anna) == [
        (risk_pb2.RISK_EVENT_KIND_LIMITS_SET, "limits"),
        (risk_pb2.RISK_EVENT_KIND_REFUSED, "order_notional_max"),
        (risk_pb2.RISK_EVENT_KIND_REFUSED, "open_orders_max"),
    ]


async def test_limits_that_somebody_else_has_set_since_are_not_overwritten_unseen(orders: Served):
    anna = await trader(orders)
    await bound(anna, open_orders_max=5)
    asked = risk_pb2.SetRiskLimitsRequest(
        request_id="x", account_id=anna.account_id, limits=risk_pb2.RiskLimits(), expected_revision=0
    )
    refused = await refusal(anna.risks.SetRiskLimits(asked, metadata=anna.metadata))
    assert (refused.code, refused.reason, refused.metadata) == ("ABORTED", "LIMITS_CHANGED", {"revision": "1"})
    asked.expected_revision = 1
    assert (await anna.risks.SetRiskLimits(asked, metadata=anna.metadata)).revision == 2
    # A repeat is answered as it was.
    assert (await anna.risks.SetRiskLimits(asked, metadata=anna.metadata)).revision == 2
    assert (await standing(anna)).revision == 2


async def test_orders_come_no_faster_than_they_may(orders: Served, redis: Redis):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    await bound(anna, orders_per_second_max=2)
    placing = [limit(anna.account_id, quantity="0.1", limit_price="90") for _ in range(4)]
    asked = orders_pb2.PlaceOrdersRequest(orders=placing)
    outcomes = (await anna.orders.PlaceOrders(asked, metadata=anna.metadata)).outcomes
    assert [each.WhichOneof("outcome") for each in outcomes] == ["order", "order", "refusal", "refusal"]
    refused = await refusal(anna.place(quantity="0.1", limit_price="90"))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "ORDER_RATE_REACHED")
    assert refused.retry_seconds is not None
    assert 0 < refused.retry_seconds <= 0.5


async def test_what_is_open_counts_until_it_is_done(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    await bound(anna, position_quantity_max=decimal(2))
    await long(anna, venue)
    order = await resting(installation, venue, anna, quantity="1", limit_price="90")
    refused = await refusal(anna.place(quantity="0.1", limit_price="90"))
    assert refused.metadata == {"limit": "position_quantity_max", "value": "2.1", "bound": "2"}
    # A sale of what she has is always within it.
    sale = await anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="1", limit_price="110")
    await venue.tell(anna, filled(order, "0.4", 90), canceled(order), accepted(sale), canceled(sale))
    await settled(anna, order.order_id, orders_pb2.ORDER_STATE_CANCELED)
    await settled(anna, sale.order_id, orders_pb2.ORDER_STATE_CANCELED)
    await anna.place(quantity="0.6", limit_price="90")
    assert await reason(anna.place(quantity="0.1", limit_price="90")) == "RISK_LIMIT_REACHED"
    [row] = await select(installation, "SELECT open_buys, open_sells FROM exposures")
    assert (row["open_buys"], row["open_sells"]) == (Decimal("0.6"), 0)


async def test_switches_stop_at_once_and_cancel_what_they_hold_for(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    anna, bert = await trader(orders), await trader(orders)
    second = await trader(orders, user_id=anna.user_id)
    await quoted(orders, redis, anna)
    await long(anna, venue)
    mine = await resting(installation, venue, anna, quantity="0.1", limit_price="90")
    others = await resting(installation, venue, second, quantity="0.1", limit_price="90")
    await switch(anna, HALT, account_id=anna.account_id, reason="enough", cancel_open_orders=True)
    refused = await refusal(anna.place(quantity="0.1", limit_price="90"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "TRADING_HALTED")
    assert refused.metadata == {"limit": "kill_switch/account", "value": "HALT", "bound": "OFF"}
    assert (
        await reason(anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="1", limit_price="110")) == "TRADING_HALTED"
    )
    await settled(anna, mine.order_id, orders_pb2.ORDER_STATE_PENDING_CANCEL)
    await venue.tell(anna, canceled(mine))
    ended = await settled(anna, mine.order_id, orders_pb2.ORDER_STATE_CANCELED)
    assert ended.reason == "kill_switch/account"
    # Of the other account nothing is stopped, nor of another person.
    await second.place(quantity="0.1", limit_price="90")
    await bert.place(quantity="0.1", limit_price="90")
    assert (await second.order(others.order_id)).state == orders_pb2.ORDER_STATE_NEW
    await switch(anna, REDUCE, reason="careful")
    assert await reason(second.place(quantity="0.1", limit_price="90")) == "TRADING_HALTED"
    asked = risk_pb2.GetKillSwitchRequest(account_id=anna.account_id)
    found = await anna.risks.GetKillSwitch(asked, metadata=anna.metadata)
    assert found.mode == HALT
    assert sorted((each.mode, each.reason) for each in found.switches) == [(REDUCE, "careful"), (HALT, "enough")]
    await switch(anna, OFF, account_id=anna.account_id)
    # What makes smaller is let through.
    await anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="1", limit_price="110")
    await switch(anna, OFF)
    await anna.place(quantity="0.1", limit_price="90")


async def test_a_deployment_is_stopped_alone_and_its_trades_are_booked_beside_the_accounts(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    first, other = str(uuid7()), str(uuid7())
    await long(anna, venue, "1", deployment_id=first)
    await long(anna, venue, "2", deployment_id=other)
    order = await anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="1", limit_price="110", deployment_id=first)
    await venue.tell(anna, accepted(order), filled(order, "1", 110))
    await settled(anna, order.order_id, orders_pb2.ORDER_STATE_FILLED)
    rows = await select(installation, "SELECT deployment_id, quantity, realized_profit, fees FROM deployment_positions")
    assert {str(row["deployment_id"]): tuple(row)[1:] for row in rows} == {
        first: (0, 10, Decimal("0.1")),
        other: (2, 0, Decimal("0.1")),
    }
    [position] = (await anna.list_positions()).positions
    assert position.quantity.value == "2"
    asked = orders_pb2.ListLedgerEntriesRequest(account_id=anna.account_id, deployment_id=first)
    entries = (await anna.portfolios.ListLedgerEntries(asked, metadata=anna.metadata)).entries
    assert sum(
        Decimal(each.amount.value) for each in entries if (each.book, each.asset) == ("account", "USDT")
    ) == Decimal("9.9")
    await switch(anna, HALT, deployment_id=first)
    assert await reason(anna.place(quantity="0.1", limit_price="90", deployment_id=first)) == "TRADING_HALTED"
    await anna.place(quantity="0.1", limit_price="90", deployment_id=other)
    await anna.place(quantity="0.1", limit_price="90")


async def test_an_operator_stops_everybody_and_nobody_else_may_nor_let_go_on(
    orders: Served, installation: Installation, venue: Venue, redis: Redis
):
    anna, bert = await trader(orders), await trader(orders)
    await quoted(orders, redis, anna)
    resting_orders = [
        await resting(installation, venue, each, quantity="0.1", limit_price="90") for each in (anna, bert)
    ]
    asked = risk_pb2.SetGlobalKillSwitchRequest(
        request_id="x", mode=HALT, reason="the venue is mad", cancel_open_orders=True
    )
    assert await reason(anna.risks.SetGlobalKillSwitch(asked, metadata=anna.metadata)) == "NOT_PERMITTED"
    operator = sign_in(uuid7(), roles=["operator"], mfa_time=int(datetime.now(UTC).timestamp()))
    await anna.risks.SetGlobalKillSwitch(asked, metadata=operator)
    for person, order in zip((anna, bert), resting_orders, strict=True):
        refused = await refusal(person.place(quantity="0.1", limit_price="90"))
        assert refused.metadata["limit"] == "kill_switch/global"
        await settled(person, order.order_id, orders_pb2.ORDER_STATE_PENDING_CANCEL)
    asked = risk_pb2.SetGlobalKillSwitchRequest(
        request_id="y", user_id=str(anna.user_id), mode=HALT, reason="she asked for it"
    )
    await anna.risks.SetGlobalKillSwitch(asked, metadata=operator)
    asked = risk_pb2.SetGlobalKillSwitchRequest(request_id="z", mode=OFF, reason="well again")
    await anna.risks.SetGlobalKillSwitch(asked, metadata=operator)
    await bert.place(quantity="0.1", limit_price="90")
    # Her own switch is another one than the operator's.
    await switch(anna, OFF)
    assert await reason(anna.place(quantity="0.1", limit_price="90")) == "TRADING_HALTED"


async def test_one_persons_locked_account_holds_up_nobody_elses_cancels(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    anna, bert = await trader(orders), await trader(orders)
    await quoted(orders, redis, anna)
    hers, his = [await resting(installation, venue, each, quantity="0.1", limit_price="90") for each in (anna, bert)]
    operator = sign_in(uuid7(), roles=["operator"], mfa_time=int(datetime.now(UTC).timestamp()))
    asked = risk_pb2.SetGlobalKillSwitchRequest(request_id="x", mode=HALT, reason="stop", cancel_open_orders=True)
    async with open_database(installation.url("orders_worker"), 1) as worker:
        # She comes first, by her id.
        async with worker.transaction(anna.user_id) as rows:
            await rows.execute("SELECT FROM accounts WHERE user_id = $1 FOR UPDATE", anna.user_id)
            await anna.risks.SetGlobalKillSwitch(asked, metadata=operator)
            await settled(bert, his.order_id, orders_pb2.ORDER_STATE_PENDING_CANCEL)
            assert (await anna.order(hers.order_id)).state == orders_pb2.ORDER_STATE_NEW
    await settled(anna, hers.order_id, orders_pb2.ORDER_STATE_PENDING_CANCEL)


async def test_a_loss_locks_the_account_until_somebody_lifts_it(orders: Served, venue: Venue, redis: Redis):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    await long(anna, venue, "5")
    await bound(anna, daily_loss_max=decimal(20), drawdown_percent_max=decimal(50))

    async def begun() -> bool:
        return (await standing(anna)).standing.day_start_equity.value != ""

    await until(begun)
    await quote(redis, last_price=90.0, bid_price=90, ask_price=90.01)

    async def locked() -> bool:
        return list((await standing(anna)).standing.locks) == [risk_pb2.RISK_LOCK_DAILY_LOSS]

    await until(locked)
    # The price comes back, and the lock stays; what makes smaller passes.
    await quoted(orders, redis, anna) if False else await quote(
        redis, last_price=100.0, bid_price=99.99, ask_price=100.01
    )
    refused = await refusal(anna.place(quantity="0.1", limit_price="90"))
    assert refused.metadata["limit"] == "lock/daily_loss"
    await anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="1", limit_price="110")

    async def worth_again() -> bool:
        return Decimal((await standing(anna)).standing.equity.value or 0) > 990

    await until(worth_again)
    asked = risk_pb2.LiftRiskLocksRequest(request_id="x", account_id=anna.account_id)
    assert not (await anna.risks.LiftRiskLocks(asked, metadata=anna.metadata)).standing.locks
    await anna.place(quantity="0.1", limit_price="90")
    assert [each for each in await happened(anna) if each[1] == "lock/daily_loss"] == [
        (risk_pb2.RISK_EVENT_KIND_LOCKED, "lock/daily_loss"),
        (risk_pb2.RISK_EVENT_KIND_REFUSED, "lock/daily_loss"),
        (risk_pb2.RISK_EVENT_KIND_LIFTED, "lock/daily_loss"),
    ]


async def test_what_something_held_is_worth_is_not_known_without_its_price_and_then_nothing_more_is_risked(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    anna = await trader(orders, USDT=1000, BTC=1)
    await bound(anna, daily_loss_max=decimal(20))
    assert not (await standing(anna)).standing.HasField("equity")
    assert await reason(anna.place(quantity="0.1", limit_price="90")) == "NO_FRESH_PRICE"
    await anna.place(side=orders_pb2.ORDER_SIDE_SELL, quantity="0.1", limit_price="110")
    await quote(redis, last_price=100.0, bid_price=99.99, ask_price=100.01)

    async def known() -> bool:
        return (await standing(anna)).standing.equity.value == "1099.99"

    await until(known)
    await anna.place(quantity="0.1", limit_price="90")


async def test_a_position_is_closed_whole_or_in_part_and_no_further(orders: Served, venue: Venue, redis: Redis):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    await long(anna, venue, "2")

    async def close(**more: Any) -> orders_pb2.Order:
        asked = orders_pb2.ClosePositionRequest(
            request_id=str(uuid7()), account_id=anna.account_id, instrument_id=BTC.instrument_id, **more
        )
        return (await anna.portfolios.ClosePosition(asked, metadata=anna.metadata)).order

    part = await close(quantity=decimal("0.5"))
    assert (part.side, part.order_type, part.quantity.value, part.reduce_only) == (
        orders_pb2.ORDER_SIDE_SELL,
        orders_pb2.ORDER_TYPE_MARKET,
        "0.5",
        True,
    )
    # What it wants counts: no more than the rest can be closed beside it.
    assert (await refusal(close(quantity=decimal(2)))).metadata == {"quantity": "2", "reducible": "1.5"}
    await venue.tell(anna, accepted(part), filled(part, "0.5", 100))
    await settled(anna, part.order_id, orders_pb2.ORDER_STATE_FILLED)
    whole = await close(quantity=decimal(9))
    assert whole.quantity.value == "1.5"
    await venue.tell(anna, accepted(whole), filled(whole, "1.5", 100))
    await settled(anna, whole.order_id, orders_pb2.ORDER_STATE_FILLED)
    assert await reason(close()) == "NOT_REDUCING"


async def test_the_ledger_is_listed_to_the_last_digit_and_paged(orders: Served, venue: Venue, redis: Redis):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    order = await long(anna, venue, "0.5")
    entries: list[orders_pb2.LedgerEntry] = []
    token = ""
    while True:
        asked = orders_pb2.ListLedgerEntriesRequest(account_id=anna.account_id, page_size=3, page_token=token)
        page = await anna.portfolios.ListLedgerEntries(asked, metadata=anna.metadata)
        entries += page.entries
        if not (token := page.next_page_token):
            break
    assert [(each.kind, each.book, each.asset, each.amount.value) for each in reversed(entries)] == [
        ("opening", "account", "USDT", "1000"),
        ("opening", "opening", "USDT", "-1000"),
        ("fill", "account", "BTC", "0.5"),
        ("fill", "venue", "BTC", "-0.5"),
        ("fill", "account", "USDT", "-50"),
        ("fill", "venue", "USDT", "50"),
        ("fill", "account", "USDT", "-0.1"),
        ("fill", "fees", "USDT", "0.1"),
    ]
    asked = orders_pb2.ListLedgerEntriesRequest(account_id=anna.account_id, asset="BTC", order_id=order.order_id)
    found = (await anna.portfolios.ListLedgerEntries(asked, metadata=anna.metadata)).entries
    assert [each.amount.value for each in found] == ["-0.5", "0.5"]


async def test_a_portfolio_is_told_as_it_is_and_again_when_it_trades_or_prices_move(
    orders: Served, venue: Venue, redis: Redis
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    asked = orders_pb2.StreamPortfolioRequest(account_id=anna.account_id)
    stream = anna.portfolios.StreamPortfolio(asked, metadata=anna.metadata)

    async def told(worth: str) -> orders_pb2.StreamPortfolioResponse:
        async with asyncio.timeout(30):
            while True:
                message = await stream.read()
                if [each.amount.value for each in message.portfolio.equity] == [worth]:
                    return message

    first = await told("1000")
    assert (first.cursor, first.heartbeat_seconds) == ("0", 10)
    await long(anna, venue)
    traded = await told("999.89")
    assert [each.quantity.value for each in traded.portfolio.positions] == ["1"]
    assert int(traded.cursor) == traded.portfolio.revision > 0
    await quote(redis, last_price=110.0, bid_price=110, ask_price=110.01)
    assert (await told("1009.9")).cursor == traded.cursor
    stream.cancel()


async def test_worth_over_time_is_one_point_a_minute_hour_or_day_and_old_ones_are_thinned_out(
    installation: Installation, orders: Served
):
    anna = await trader(orders)
    # Of the days in which the service itself leaves every minute as it is.
    start = datetime.now(UTC).replace(hour=22, minute=30, second=0, microsecond=0) - timedelta(days=3)
    times = [start + timedelta(minutes=number) for number in range(180)]
    await select(
        installation,
        "INSERT INTO equity_points (account_id, user_id, time, equity) "
        "SELECT $1, $2, time, place FROM unnest($3::timestamptz[]) WITH ORDINALITY AS given (time, place)",
        UUID(anna.account_id),
        anna.user_id,
        times,
    )

    async def history(resolution: Any, **more: Any) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            asked = orders_pb2.GetEquityHistoryRequest(
                account_id=anna.account_id,
                resolution=resolution,
                page_token=token,
                end_time=timestamp(times[-1]),
                **more,
            )
            page = await anna.portfolios.GetEquityHistory(asked, metadata=anna.metadata)
            assert page.valuation_asset == "USDT"
            found += [int(each.equity.value) for each in page.points]
            if not (token := page.next_page_token):
                return found

    minutes = list(range(1, 180))
    assert await history(orders_pb2.EQUITY_RESOLUTION_MINUTE, page_size=50) == minutes
    assert await history(orders_pb2.EQUITY_RESOLUTION_MINUTE, start_time=times[100]) == minutes[100:]
    hours, days = [30, 90, 150, 179], [90, 179]
    assert await history(orders_pb2.EQUITY_RESOLUTION_HOUR, page_size=1) == hours
    assert await history(orders_pb2.EQUITY_RESOLUTION_DAY) == days
    async with open_database(installation.url("orders_worker"), 1) as worker:

        async def thin(bucket: str, before: datetime) -> None:
            more = True
            while more:
                async with worker.transaction() as rows:
                    more = await equity_store.thin(rows, bucket, before, timedelta(days=1))

        # Up to the begin of an hour, so that none is thinned before it is over.
        await thin("hour", times[100])
        assert await history(orders_pb2.EQUITY_RESOLUTION_MINUTE) == [30, 90, *range(91, 180)]
        await thin("hour", times[-1] + timedelta(hours=1))
        assert await history(orders_pb2.EQUITY_RESOLUTION_MINUTE) == hours[:3]
        await thin("day", times[-1] + timedelta(days=1))
        assert await history(orders_pb2.EQUITY_RESOLUTION_HOUR) == [90]


async def test_what_an_account_is_worth_is_noted_while_it_is_traded_in(installation: Installation, orders: Served):
    anna, bert = await trader(orders), await trader(orders)
    async with open_database(installation.url("orders_worker"), 2) as worker:
        async with worker.transaction(anna.user_id) as placing:
            await placing.execute("SELECT FROM accounts WHERE user_id = $1 FOR UPDATE", anna.user_id)
            async with worker.transaction(anna.user_id, bert.user_id, lock_seconds=0.5) as rows:
                accounts = [await store.find_account(rows, UUID(person.account_id)) for person in (anna, bert)]
                minute = datetime(2026, 1, 1, tzinfo=UTC)
                await equity_store.add_points(rows, [(each, minute, Decimal(7)) for each in accounts if each])
    found = await select(
        installation,
        "SELECT account_id, equity, equity_time FROM equity_points JOIN accounts USING (account_id) WHERE time = $1",
        minute,
    )
    assert {str(row["account_id"]): row["equity"] for row in found} == {anna.account_id: 7, bert.account_id: 7}
    assert {str(row["account_id"]) for row in found if row["equity_time"] == minute} <= {bert.account_id}


async def test_a_market_order_is_held_to_what_it_likely_costs(orders: Served, redis: Redis):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    await bound(anna, fat_finger_percent=decimal(10))
    refused = await refusal(anna.send(market(anna.account_id, quantity="1")))
    # At its worst: the ask and the protection beyond it, of a thousand.
    assert refused.metadata == {"limit": "fat_finger_percent", "value": "10.501", "bound": "10"}
    assert (await anna.send(market(anna.account_id, quantity="0.9"))).order.quantity.value == "0.9"
