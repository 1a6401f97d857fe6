"""Margin accounts over the wire: what they trade, what backs it, what funding they pay, and what is liquidated."""

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.marketdata.v1 import events_pb2 as marketdata_events
from tradeloom.marketdata.v1 import perpetuals_pb2
from tradeloom.orders.v1 import events_pb2, margin_pb2, orders_pb2, risk_pb2

from libs.ids import uuid7
from libs.mesh.wire import time_from_proto, timestamp
from libs.store.database import Database
from services.orders import equity_store, margin_store, margin_use_cases, margin_watch, store, use_cases
from services.orders.margin_funding import Settlement
from services.orders.margin_store import MarginStore
from services.orders.margin_watch import Funding
from services.orders.market import Market
from services.orders.store import AccountStore
from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.margins import PERP
from tests.orders.stand import (
    WAIT_SECONDS,
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    limit,
    quote,
    reason,
    refusal,
    select,
    trader,
    until,
    worker_of,
)
from tests.orders.test_live_trading import Live, enable, live_trader, opening
from tests.users.stand import Told

NAME = PERP.instrument_id
AT_BINANCE = replace(PERP, instrument_id="BINANCE:BTCUSDT-PERP")
MARGIN = orders_pb2.ACCOUNT_KIND_MARGIN


@pytest.fixture
async def orders(installation: Installation) -> AsyncIterator[Served]:
    async with stand.served(installation, PERP, AT_BINANCE, stand.BTC, quote_age_seconds_max="600") as service:
        yield service


async def mark(redis: Redis, price: float) -> None:
    """The market trades, and is valued, at the price."""
    now = timestamp(datetime.now(UTC))
    valued = perpetuals_pb2.Mark(time=now, mark_price=price)
    await quote(redis, instrument_id=NAME, bid_price=price, ask_price=price, last_price=price, mark=valued)


def perp(account_id: str, quantity: str, price: str = "50000", *, buys: bool = True, **more: Any) -> Any:
    return limit(account_id, buys=buys, instrument_id=NAME, quantity=quantity, limit_price=price, **more)


async def sent(anna: Trader, redis: Redis, request: orders_pb2.PlaceOrderRequest) -> orders_pb2.Order:
    """Placed as soon as the service has read the newest mark price."""

    async def placed() -> orders_pb2.Order | None:
        try:
            return (await anna.send(request)).order
        except stand.aio.AioRpcError as error:
            assert "mark price" in str(error.details()), error
            return None

    return await until(placed)


async def trade(anna: Trader, venue: Venue, redis: Redis, quantity: str, price: str, **more: Any) -> None:
    """Trades so much, whole; a negative quantity sells."""
    buys, size = not quantity.startswith("-"), quantity.lstrip("-")
    order = await sent(anna, redis, perp(anna.account_id, size, price, buys=buys))
    fee, time = more.get("fee", 0), more.get("time")
    told = filled(order, size, price, fee=fee)
    if time is not None:
        told.time.FromDatetime(time)  # type: ignore[attr-defined]
    await venue.tell(anna, accepted(order), told)

    async def has_traded() -> bool:
        return (await anna.order(order.order_id)).state == orders_pb2.ORDER_STATE_FILLED

    await until(has_traded)


async def ledger(installation: Installation, anna: Trader) -> list[tuple[str, str, Decimal]]:
    """The account's own entries: what they were, of which asset, how much; each transaction sums to zero."""
    found = await select(
        installation,
        "SELECT transaction_id, kind, book, asset, amount FROM ledger_entries WHERE account_id = $1 ORDER BY entry_id",
        UUID(anna.account_id),
    )
    sums: dict[tuple[UUID, str], Decimal] = defaultdict(Decimal)
    for row in found:
        sums[row["transaction_id"], row["asset"]] += row["amount"]
    assert set(sums.values()) == {Decimal(0)}
    return [(row["kind"], row["asset"], row["amount"]) for row in found if row["book"] == "account"]


async def payments(anna: Trader, **more: Any) -> list[margin_pb2.FundingPayment]:
    request = margin_pb2.ListFundingPaymentsRequest(account_id=anna.account_id, **more)
    found = await anna.margins.ListFundingPayments(request, metadata=anna.metadata, timeout=WAIT_SECONDS)
    return list(found.payments)


async def set_leverage(anna: Trader, leverage: int, request_id: str = "") -> orders_pb2.Account:
    request = margin_pb2.SetLeverageRequest(
        request_id=request_id or str(uuid7()), account_id=anna.account_id, leverage=leverage
    )
    return (await anna.margins.SetLeverage(request, metadata=anna.metadata, timeout=WAIT_SECONDS)).account


async def risk_events(anna: Trader) -> list[risk_pb2.RiskEvent]:
    request = risk_pb2.ListRiskEventsRequest(account_id=anna.account_id)
    return list((await anna.risks.ListRiskEvents(request, metadata=anna.metadata, timeout=WAIT_SECONDS)).events)


async def test_a_position_is_opened_turned_and_closed_and_the_portfolio_shows_what_backs_it(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trader(orders, kind=MARGIN, leverage=5, USDT=10_000)
    assert (await anna.portfolio()).account.leverage == 5
    # Each kind of account trades its own.
    assert await reason(anna.place()) == "INSTRUMENT_NOT_FOR_ACCOUNT"
    cash = await trader(orders)
    assert await reason(cash.send(perp(cash.account_id, "0.1"))) == "INSTRUMENT_NOT_FOR_ACCOUNT"
    assert await reason(set_leverage(cash, 2)) == "ACCOUNT_NOT_MARGIN"
    # Without a mark price nothing is opened.
    refused = await refusal(anna.send(perp(anna.account_id, "0.1")))
    assert (refused.reason, refused.metadata) == (
        "NO_FRESH_PRICE",
        {"instrument_id": NAME, "age_seconds": "never"},
    )
    await mark(redis, 50_000.0)
    order = await sent(anna, redis, perp(anna.account_id, "0.5"))
    (standing,) = (await anna.portfolio()).margins
    assert (standing.asset, standing.reserved.value, standing.available.value) == ("USDT", "5012.5", "4987.5")
    refused = await refusal(anna.send(perp(anna.account_id, "0.5")))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_MARGIN")
    assert refused.metadata == {"asset": "USDT", "needed": "5012.5", "available": "4987.5"}
    # A leverage that would not back what is open is refused, and changes nothing; of 10 half is set aside.
    refused = await refusal(set_leverage(anna, 2))
    assert (refused.reason, refused.metadata["needed"]) == ("INSUFFICIENT_MARGIN", "12512.5")
    assert (await set_leverage(anna, 10, "once")).leverage == 10
    assert (await anna.portfolio()).margins[0].reserved.value == "2512.5"
    assert (await set_leverage(anna, 5)).leverage == 5
    assert (await set_leverage(anna, 10, "once")).leverage == 10  # the first answer again
    assert (await anna.portfolio()).account.leverage == 5
    preview = orders_pb2.PreviewOrderRequest(order=perp(anna.account_id, "0.1"))
    seen = await anna.orders.PreviewOrder(preview, metadata=anna.metadata)
    assert (seen.initial_margin.amount.value, seen.reserved.amount.value) == ("1000", "1002.5")
    assert not seen.HasField("liquidation_price")  # 0.1 is backed whole

    await venue.tell(anna, accepted(order), filled(order, "0.5", 50_000, fee="12.5"))

    async def is_held() -> orders_pb2.Position | None:
        found = (await anna.portfolio()).positions
        return found[0] if found else None

    position = await until(is_held)
    assert (position.quantity.value, position.mark_price.value, position.notional.value) == ("0.5", "50000", "25000")
    assert (position.initial_margin.value, position.maintenance_margin.value) == ("5000", "125")
    assert (position.liquidation_price.value, position.funding.value) == ("30175.9", "0")
    assert list((await anna.list_positions()).positions) == [position]
    portfolio = await anna.portfolio()
    (standing,) = portfolio.margins
    assert (standing.wallet_balance.value, standing.margin_balance.value) == ("9987.5", "9987.5")
    assert (standing.available.value, standing.margin_ratio.value) == ("4987.5", "0.01251565")
    assert [(each.asset, each.amount.value) for each in portfolio.equity] == [("USDT", "9987.5")]
    preview = orders_pb2.PreviewOrderRequest(order=perp(anna.account_id, "0.9", buys=False))
    seen = await anna.orders.PreviewOrder(preview, metadata=anna.metadata)
    # 0.4 of it opens; (9987.5 - 22.5 + 0.4 * 50000) / (0.4 * 0.005 + 0.4), down to the tick.
    assert (seen.initial_margin.amount.value, seen.liquidation_price.value) == ("4000", "74539.8")

    # What it is worth goes by the mark price, too.
    await mark(redis, 51_000.0)
    async with worker_of(installation) as worker:
        known = await known_market(worker, redis)
        async with worker.reading() as rows:
            watched = await equity_store.find_watched(rows, margin_store.FIRST, 10, only_limited=False)
    (own,) = [each for each in watched if str(each.account.account_id) == anna.account_id]
    worth = use_cases.equity_of(own.account, own.balances, own.positions, known, now())
    assert worth == Decimal("9987.5") + 500
    limits = risk_pb2.RiskLimits(fat_finger_percent=decimal("49.9"))
    bound = risk_pb2.SetRiskLimitsRequest(request_id="x", account_id=anna.account_id, limits=limits)
    await anna.risks.SetRiskLimits(bound, metadata=anna.metadata)
    # 5250 of 9987.5 and 500: limits go by it.
    assert await reason(anna.send(perp(anna.account_id, "0.105"))) == "RISK_LIMIT_REACHED"
    unbound = risk_pb2.SetRiskLimitsRequest(request_id="y", account_id=anna.account_id, limits=risk_pb2.RiskLimits())
    await anna.risks.SetRiskLimits(unbound, metadata=anna.metadata)
    await mark(redis, 50_000.0)

    await trade(anna, venue, redis, "-0.9", "50000", fee="22.5")
    (position,) = (await anna.portfolio()).positions
    assert (position.quantity.value, position.average_price.value) == ("-0.4", "50000")
    resting = await sent(anna, redis, perp(anna.account_id, "0.3", "45000", reduce_only=True))
    await venue.tell(anna, accepted(resting))
    closing = orders_pb2.ClosePositionRequest(request_id="close", account_id=anna.account_id, instrument_id=NAME)
    closed = (await anna.portfolios.ClosePosition(closing, metadata=anna.metadata)).order
    assert (closed.reduce_only, closed.liquidates) == (True, False)
    # What only reduces makes way for it, and what closes the position already does not.
    resting = await anna.order(resting.order_id)
    assert (resting.state, resting.reason) == (orders_pb2.ORDER_STATE_PENDING_CANCEL, "closing")
    closing.request_id = "again"
    assert await reason(anna.portfolios.ClosePosition(closing, metadata=anna.metadata)) == "NOT_REDUCING"
    await venue.tell(anna, canceled(resting), accepted(closed), filled(closed, "0.4", 49_000, fee="9.8"))

    async def is_flat() -> bool:
        return not (await anna.portfolio()).positions

    await until(is_flat)
    assert await ledger(installation, anna) == [
        ("opening", "USDT", Decimal(10_000)),
        ("fill", "USDT", Decimal("-12.5")),
        ("fill", "USDT", Decimal("-22.5")),
        ("fill", "USDT", Decimal(400)),
        ("fill", "USDT", Decimal("-9.8")),
    ]
    assert await anna.balances() == {"USDT": (Decimal("10355.2"), Decimal(0))}
    # Terms that are not known any more are kept, and nothing is traded by them.
    await stand.announce(installation, replace(PERP, perpetual=None, trading=False))
    async with worker_of(installation) as worker, worker.reading() as rows:
        assert (await store.instruments(rows))[NAME] == replace(PERP, trading=False)


def settled(funding_time: datetime, rate: str = "0.0001") -> Message:
    told = perpetuals_pb2.FundingRate(instrument_id=NAME, rate=decimal(rate), mark_price=decimal(50_000))
    told.funding_time.FromDatetime(funding_time)
    return marketdata_events.FundingSettled(funding_rate=told)


async def test_funding_is_paid_once_whatever_is_repeated_and_told_late(
    installation: Installation, orders: Served, redis: Redis, venue: Venue, monkeypatch: pytest.MonkeyPatch
):
    await mark(redis, 50_000.0)
    anna, bert = [await trader(orders, kind=MARGIN, leverage=5, USDT=10_000) for _ in range(2)]
    told = Told(redis)
    now = datetime.now(UTC).replace(microsecond=0)
    first, second = now - timedelta(hours=1), now + timedelta(hours=7)
    # One of two accounts a page: the rest follows.
    monkeypatch.setattr(margin_watch, "ACCOUNTS_AT_ONCE", 1)
    await trade(anna, venue, redis, "0.5", "50000", time=first - timedelta(seconds=1))
    await trade(bert, venue, redis, "-0.3", "50000", time=first - timedelta(seconds=1))
    # What trades at the time of the settlement comes after it.
    await trade(bert, venue, redis, "-0.1", "50000", time=first)
    await told.tell("marketdata", uuid7(), settled(first), settled(first), settled(second, "-0.0002"), key=NAME)

    async def paid(who: Trader, count: int) -> list[margin_pb2.FundingPayment]:
        return await until(lambda: enough(who, count))

    async def enough(who: Trader, count: int) -> list[margin_pb2.FundingPayment] | None:
        found = await payments(who)
        return found if len(found) == count else None

    later, earlier = await paid(anna, 2)
    assert (time_from_proto(earlier.funding_time), earlier.quantity.value, earlier.amount.value) == (
        first,
        "0.5",
        "-2.5",
    )
    assert (earlier.expected_amount.value, earlier.difference.value, earlier.asset) == ("-2.5", "0", "USDT")
    assert (time_from_proto(later.funding_time), later.rate.value, later.amount.value) == (second, "-0.0002", "5")
    later, earlier = await paid(bert, 2)
    assert (earlier.quantity.value, earlier.amount.value) == ("-0.3", "1.5")
    assert (later.quantity.value, later.amount.value) == ("-0.4", "-4")
    assert [each.amount.value for each in await payments(bert, page_size=1)] == ["-4"]
    assert [each.amount.value for each in await payments(bert, end_time=timestamp(second))] == ["1.5"]
    assert await payments(bert, instrument_id="SIM:OTHER") == []

    # A fill of before both settlements is told: both payments are corrected, each by one entry more.
    await trade(anna, venue, redis, "0.2", "50000", time=first - timedelta(minutes=1))
    later, earlier = await payments(anna)
    assert (earlier.quantity.value, earlier.amount.value) == ("0.7", "-3.5")
    assert (later.quantity.value, later.amount.value) == ("0.7", "7")
    corrected = [entry for entry in await ledger(installation, anna) if entry[0] == "funding"]
    assert corrected == [("funding", "USDT", Decimal(each)) for each in ("-2.5", "5", "-1", "2")]
    (position,) = (await anna.portfolio()).positions
    assert (position.funding.value, (await anna.portfolio()).margins[0].wallet_balance.value) == ("3.5", "10003.5")

    # All of it once more, as after a crash between any two of its transactions: nothing changes.
    await select(installation, "UPDATE funding_settlements SET done = false, after_account_id = gen_random_uuid()")
    await select(
        installation, "UPDATE funding_settlements SET after_account_id = '00000000-0000-0000-0000-000000000000'"
    )

    async def is_done() -> bool:
        return not await select(installation, "SELECT 1 FROM funding_settlements WHERE NOT done")

    await until(is_done)
    assert [entry for entry in await ledger(installation, anna) if entry[0] == "funding"] == corrected
    # Two at once: the account's lock puts one behind the other.
    async with worker_of(installation) as worker, worker.transaction(anna.user_id) as rows:
        settle = margin_use_cases.SettleFunding(lambda: now)
        again = Settlement(instrument_id=NAME, funding_time=first, rate=Decimal("0.0001"), mark_price=Decimal(50_000))
        ids = [UUID(anna.account_id)]
        assert await settle(AccountStore(rows), MarginStore(rows), again, ids) == 0
        assert not await margin_store.undone(rows, 10)
        assert await Funding(worker, settle).step(again) is False


async def test_used_up_margin_is_liquidated_once_and_what_is_below_zero_is_made_up_for(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    await mark(redis, 50_000.0)
    anna = await trader(orders, kind=MARGIN, leverage=50, USDT=1_000)
    await trade(anna, venue, redis, "0.9", "50000")
    opening_more = await sent(anna, redis, perp(anna.account_id, "0.05", "40000"))
    reducing = await sent(anna, redis, perp(anna.account_id, "0.5", "60000", buys=False, reduce_only=True))
    await venue.tell(anna, accepted(opening_more), accepted(reducing))
    switch = risk_pb2.SetKillSwitchRequest(
        request_id="x", account_id=anna.account_id, mode=risk_pb2.KILL_SWITCH_MODE_HALT
    )
    await anna.risks.SetKillSwitch(switch, metadata=anna.metadata)
    # (1000 - 0.9 * 50000) / (0.9 * 0.005 - 0.9)
    assert (await anna.portfolio()).positions[0].liquidation_price.value == "49134.6"
    await mark(redis, 49_134.7)

    async def kinds() -> list[int]:
        return [each.kind for each in await risk_events(anna)]

    # Near it, its owner is warned, and nothing is done.
    await until(lambda: is_among(risk_pb2.RISK_EVENT_KIND_MARGIN_WARNED, kinds))
    assert len((await anna.list_orders()).orders) == 3
    await mark(redis, 48_000.0)

    async def liquidating() -> orders_pb2.Order | None:
        return next((each for each in (await anna.list_orders()).orders if each.liquidates), None)

    order = await until(liquidating)
    assert (order.reason, order.reduce_only, order.order_type) == ("liquidation", True, orders_pb2.ORDER_TYPE_MARKET)
    assert (order.side, order.quantity.value) == (orders_pb2.ORDER_SIDE_SELL, "0.9")
    for other in (opening_more, reducing):
        assert (await anna.order(other.order_id)).state == orders_pb2.ORDER_STATE_PENDING_CANCEL
    assert (await anna.order(opening_more.order_id)).reason == "liquidation"
    assert (await anna.order(reducing.order_id)).reason == "excess"
    # Nobody has it canceled.
    assert await reason(anna.cancel(order.order_id)) == "ORDER_LIQUIDATES"
    canceling = orders_pb2.CancelAllOrdersRequest(request_id="x", account_id=anna.account_id)
    named = (await anna.orders.CancelAllOrders(canceling, metadata=anna.metadata)).order_ids
    assert list(named) == [opening_more.order_id, reducing.order_id]
    # Looked at again and again while it is under way, nothing more is placed.
    async with worker_of(installation) as worker:
        liquidate = margin_use_cases.Liquidate(await known_market(worker, redis), stand.accounts.LIMITS, uuid7, now)
        for _ in range(2):
            async with worker.transaction(anna.user_id) as rows:
                assert not (await liquidate(AccountStore(rows), UUID(anna.account_id))).orders
    # What cannot trade within its protection is tried again by another.
    first = order
    await venue.tell(anna, accepted(first), canceled(first, "protection_price"))

    async def another() -> orders_pb2.Order | None:
        found = await liquidating()
        return found if found and found.order_id != first.order_id else None

    order = await until(another)
    assert (await anna.order(first.order_id)).reason == "protection_price"
    # It trades beyond bankruptcy: 0.9 * -3000 and the fee.
    gone = (canceled(opening_more), canceled(reducing))
    await venue.tell(anna, *gone, accepted(order), filled(order, "0.9", 47_000, fee="21.15"))

    async def is_made_up_for() -> list[tuple[str, str, Decimal]] | None:
        found = await ledger(installation, anna)
        return found if found[-1][0] == "insurance" else None

    assert (await until(is_made_up_for))[1:] == [
        ("fill", "USDT", Decimal(-2_700)),
        ("fill", "USDT", Decimal("-21.15")),
        ("insurance", "USDT", Decimal("1721.15")),
    ]
    events = [each for each in await risk_events(anna) if each.kind == risk_pb2.RISK_EVENT_KIND_LIQUIDATED]
    assert [(each.limit, each.bound, each.instrument_id) for each in events] == [("margin_ratio/USDT", "1", NAME)] * 2
    portfolio = await anna.portfolio()
    assert (list(portfolio.positions), list(portfolio.margins)) == ([], [])
    assert len([each for each in (await anna.list_orders()).orders if each.liquidates]) == 2


async def is_among(kind: int, kinds: Any) -> bool:
    return kind in await kinds()


def now() -> datetime:
    return datetime.now(UTC)


async def known_market(worker: Database, redis: Redis) -> Market:
    found = Market()
    await found.read_instruments(worker)
    await found.read_quotes(redis)
    return found


async def test_a_live_margin_account_follows_its_venues_positions_and_funding(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    user = await trader(orders)
    refused = await refusal(user.portfolios.CreateAccount(opening(kind=MARGIN, venue="KRAKEN"), metadata=user.metadata))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ["venue"])
    anna = await live_margin_trader(orders, venue, Told(redis))
    await enable(orders)
    await anna.put()
    await anna.test()
    await anna.until_confirmed()
    held = execution_events.VenuePosition(
        instrument_id=AT_BINANCE.instrument_id, quantity=decimal("0.5"), average_price=decimal(50_000)
    )
    wallets = [execution_events.VenueBalance(asset="USDT", total=decimal(10_000))]
    at = timestamp(datetime.now(UTC))
    await venue.tell(anna.owner, execution_events.VenueConnected(balances=wallets, positions=[held], time=at))
    await anna.until_state(orders_pb2.LIVE_STATE_ON)
    facts = await select(
        installation, "SELECT payload FROM outbox WHERE key = $1 ORDER BY sequence", f"live/{anna.owner.account_id}"
    )
    assert events_pb2.LiveAccountChanged.FromString(facts[-1]["payload"]).kind == MARGIN
    (position,) = (await anna.owner.list_positions()).positions
    assert (position.quantity.value, position.average_price.value) == ("0.5", "50000")
    assert await ledger(installation, anna.owner) == [("opening", "USDT", Decimal(10_000))]
    funding_time = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    settlement = perpetuals_pb2.FundingRate(
        instrument_id=AT_BINANCE.instrument_id, rate=decimal("0.0001"), mark_price=decimal(50_000)
    )
    settlement.funding_time.FromDatetime(funding_time)
    told = Told(redis)
    await told.tell(
        "marketdata",
        uuid7(),
        marketdata_events.FundingSettled(funding_rate=settlement),
        key=AT_BINANCE.instrument_id,
    )

    async def expected() -> margin_pb2.FundingPayment | None:
        found = await payments(anna.owner)
        return found[0] if found else None

    payment = await until(expected)
    assert (payment.expected_amount.value, payment.HasField("amount")) == ("-2.5", False)

    def entered(venue_id: str, amount: str, time: datetime) -> Message:
        return execution_events.VenueFunded(
            instrument_id=AT_BINANCE.instrument_id,
            funding_time=timestamp(time),
            amount=decimal(amount),
            asset="USDT",
            venue_id=venue_id,
        )

    # Some milliseconds beside the settlement, as records of one venue differ.
    beside = timedelta(milliseconds=3)
    early_time = funding_time - timedelta(hours=1)
    funded, early = entered("17", "-2.49", funding_time - beside), entered("16", "0.5", early_time - beside)
    adjusted = execution_events.VenueAdjusted(
        cause="external_fill",
        time=at,
        positions=[
            execution_events.VenuePosition(
                instrument_id=AT_BINANCE.instrument_id, quantity=decimal("0.3"), average_price=decimal(50_000)
            )
        ],
    )
    # What the venue repeats is entered once.
    await venue.tell(anna.owner, funded, funded, early, adjusted)

    async def is_adjusted() -> bool:
        return (await anna.owner.list_positions()).positions[0].quantity.value == "0.3"

    await until(is_adjusted)
    payment, unexpected = await payments(anna.owner)
    assert (payment.amount.value, payment.difference.value) == ("-2.49", "0.01")
    assert (unexpected.amount.value, unexpected.HasField("expected_amount")) == ("0.5", False)
    # A settlement that is told after what its venue has entered of it is of the same payment.
    settlement.funding_time.FromDatetime(early_time)
    await told.tell(
        "marketdata", uuid7(), marketdata_events.FundingSettled(funding_rate=settlement), key=AT_BINANCE.instrument_id
    )

    async def is_of_settlement() -> bool:
        return all(each.HasField("expected_amount") for each in await payments(anna.owner))

    await until(is_of_settlement)
    payment, found = await payments(anna.owner)
    assert found.amount.value == "0.5"
    assert found.funding_time == settlement.funding_time
    assert await ledger(installation, anna.owner) == [
        ("opening", "USDT", Decimal(10_000)),
        ("funding", "USDT", Decimal("-2.49")),
        ("funding", "USDT", Decimal("0.5")),
    ]
    (event,) = await risk_events(anna.owner)
    assert (event.kind, event.value, event.bound) == (risk_pb2.RISK_EVENT_KIND_POSITION_SET, "0.3", "0.5")


async def live_margin_trader(served: Served, venue: Venue, users: Told) -> Live:
    made = await live_trader(served, venue, users)
    request = opening(kind=MARGIN, leverage=3)
    account = (await made.owner.portfolios.CreateAccount(request, metadata=made.owner.metadata)).account
    assert (account.kind, account.leverage) == (MARGIN, 3)
    return replace(made, owner=replace(made.owner, account_id=account.account_id))
