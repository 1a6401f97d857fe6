"""Margin accounts: positions, what closing them has made, funding, and what the venue does by itself."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import pytest
from tradeloom.execution.v1 import events_pb2

from services.execution.live import store
from services.execution.live.records import Records
from tests.execution.live_stand import LiveStand, eventually
from tests.execution.stand import limit, stop, until
from tests.venues import faults
from tests.venues.binance_futures_market import Market
from tests.venues.binance_futures_orders import Account

PERP = "BINANCE:BTCUSDT-PERP"


def account_of(live: LiveStand) -> Account:
    assert isinstance(live.venue.account, Account)
    return live.venue.account


def market_of(live: LiveStand) -> Market:
    assert isinstance(live.venue.market, Market)
    return live.venue.market


def now_milliseconds() -> int:
    return time.time_ns() // 1_000_000


async def by_hand(live: LiveStand, **of: Any) -> None:
    """As its owner does on the venue's own page."""
    async with live.venue.opened() as port:
        await port.submit(live.venue.market_ticket(**of))


async def told(live: LiveStand, kind: type) -> list[Any]:
    return [message for message in await live.stand.told(live.trader) if isinstance(message, kind)]


async def held(live: LiveStand) -> tuple[Decimal | None, Decimal | None]:
    """What is expected of the wallet and of the position."""
    everything = live.stand.everything
    return (
        await everything.fetchval("SELECT total FROM venue_balances WHERE asset = 'USDT'"),
        await everything.fetchval("SELECT quantity FROM venue_positions WHERE instrument_id = $1", PERP),
    )


async def test_the_wallet_and_the_position_follow_each_fill_exactly(at_futures: LiveStand):
    live = at_futures
    async with live.connected(reconcile_seconds=0.3):
        await live.buy("0.5")
        await live.wait_until_told("filled 0.5 at 30010")
        await live.buy("0.8", side=limit("SELL", 1, 1)["side"])
        await live.wait_until_told("filled 0.8 at 29990")
        refused = await live.buy("0.2", side=limit("SELL", 1, 1)["side"], reduce_only=True)
        await live.wait_for_state(refused, "rejected")

        async def is_so() -> bool:
            return await held(live) == (live.venue.account.balances["USDT"].free, Decimal("-0.3"))

        await until(is_so)
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    profits = [fill.realized_profit.value for fill in await told(live, events_pb2.VenueFilled)]
    assert [Decimal(profit) for profit in profits] == [0, -10]
    story = await live.story()
    assert "rejected: ReduceOnly Order is rejected." in story
    assert not [one for one in story if one.startswith("adjusted")]


async def test_a_position_from_before_is_what_it_opens_with(at_futures: LiveStand, monkeypatch: pytest.MonkeyPatch):
    """Once funding that may be in the wallet is on record."""
    live = at_futures
    await by_hand(live, quantity=Decimal(2))
    monkeypatch.setattr("services.execution.live.funding.SETTLE_SECONDS", 3_600.0)
    await live.confirm()
    async with live.replica(reconcile_seconds=0.3) as carried:
        await eventually(lambda: "funding is being settled" in str(carried.troubles))
        assert await live.story() == []
        monkeypatch.setattr("services.execution.live.funding.SETTLE_SECONDS", 0.0)
        wallet = live.venue.account.balances["USDT"].free
        await live.wait_until_told(f"connected: USDT {wallet.normalize():f}; {PERP} 2 at 30010")
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    assert len(await live.story()) == 1


async def test_what_was_traded_by_hand_and_what_binance_takes_off_is_told_with_the_position(at_futures: LiveStand):
    live = at_futures
    async with live.connected(reconcile_seconds=0.3):
        # In what was never traded from here, and never rested where it could be seen.
        await by_hand(live, quantity=Decimal(1))
        await live.wait_for(f"adjusted: USDT -30.01; {PERP} 1 at 30010 as external_fill")
        market_of(live).close_out(account_of(live))
        await live.wait_for(
            f"adjusted: USDT -30.01; {PERP} 1 at 30010 as external_fill",
            f"adjusted: USDT -49.99; {PERP} 0 at 0 as external_fill",
        )
        await live.stand.wait_for_count(2, "differences")
    explained = await live.stand.everything.fetch(
        "SELECT explanation FROM differences WHERE kind = 'fill_external' ORDER BY reconciliation_id, number"
    )
    assert [row["explanation"] for row in explained] == [
        "its order was not sent from here; what the account holds follows it",
        "Binance liquidates a position with it; what the account holds follows it",
    ]


async def test_a_position_that_nothing_explains_is_set_right(at_futures: LiveStand):
    live = at_futures
    async with live.connected(reconcile_seconds=0.3):
        await live.buy("0.5")
        await live.wait_until_told("filled")
        position = account_of(live).positions["BTCUSDT"]
        position.quantity, position.entry_price = Decimal("0.75"), Decimal(30000)
        await live.wait_until_told("connected", f"adjusted: ; {PERP} 0.75 at 30000 as unexplained")
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    [found] = await live.stand.everything.fetch("SELECT kind, subject, ours, venues FROM differences")
    assert tuple(found) == ("position", PERP, "0.5", "0.75")
    [adjusted] = await told(live, events_pb2.VenueAdjusted)
    assert adjusted.reconciliation_id


@pytest.mark.parametrize("name", ["dual_side", "multi_assets"])
async def test_an_account_that_is_set_up_otherwise_is_not_connected_and_says_why(at_futures: LiveStand, name: str):
    live = at_futures
    setattr(account_of(live), name, True)
    await live.confirm()
    async with live.replica(reconcile_seconds=0.2) as carried:
        await eventually(lambda: "set its" in str(carried.troubles))
        await until(
            lambda: live.stand.everything.fetchval("SELECT count(*) > 1 FROM reconciliations WHERE state = 'failed'")
        )
        assert await live.story() == []
        setattr(account_of(live), name, False)
        await live.wait_for()
        await eventually(lambda: not carried.troubles)


async def test_of_an_account_that_is_set_up_otherwise_later_only_what_reduces_is_sent(at_futures: LiveStand):
    live = at_futures
    live.venue.market.trade("30000", "0.1")
    async with live.connected(reconcile_seconds=0.2) as carried:
        await live.buy()
        await live.wait_until_told("connected", "accepted", "filled 1 at 30010")
        account_of(live).margin_types["BTCUSDT"] = "ISOLATED"
        why = "the account at BINANCE has isolated margin for BTCUSDT: set it to cross margin"
        await eventually(lambda: why in str(carried.troubles))
        opening = await live.place()
        await live.wait_for_state(opening, "rejected")
        reducing = await live.place(**stop("SELL", 1, 29_500), reduce_only=True)
        await live.wait_for_state(reducing, "working")
        account_of(live).margin_types["BTCUSDT"] = "CROSSED"
        await eventually(lambda: not carried.troubles)
        again = await live.place()
        await live.wait_for_state(again, "working")
    [rejected] = await told(live, events_pb2.VenueRejected)
    assert (rejected.order_id, rejected.reason, rejected.not_sent) == (str(opening), why, True)
    assert live.sent_count(opening) == 0


async def test_a_stop_that_is_triggered_while_nothing_is_told_is_found_as_ours(at_futures: LiveStand):
    live = at_futures
    live.venue.market.trade("30000", "0.1")
    async with live.connected(reconcile_seconds=0.3):
        order_id = await live.place(**stop("SELL", 1, 29_500))
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.market.trade("29500", "0.1", buyer_is_maker=True)
        await live.wait_for("accepted", "filled 1 at 29990 as taker")
        await live.wait_for_state(order_id, "filled")
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    assert await live.stand.everything.fetchval("SELECT count(*) FROM external_fills") == 0


async def test_an_order_is_changed_in_place(at_futures: LiveStand):
    live = at_futures
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        change = await live.replace(order_id, quantity=2, limit_price=29_100)
        await live.wait_for("accepted", f"replaced: {change}")
        live.venue.market.trade("29100", "2", buyer_is_maker=True)
        await live.wait_for_state(order_id, "filled")
    assert live.sent_count(order_id) == 1


@pytest.mark.parametrize("done", [True, False], ids=["it was done", "it was not"])
async def test_a_change_whose_answer_is_lost_is_settled_by_the_record(at_futures: LiveStand, done: bool):
    live = at_futures
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        # Twice: over a connection that was kept it is sent again by itself.
        live.venue.fault(faults.broken(done=done, times=2, method="PUT", path="/fapi/v1/order"))
        change = await live.replace(order_id, limit_price=29_100)
        told = f"replaced: {change}" if done else f"replace rejected: {change}, it never reached the venue"
        await live.wait_for("accepted", told)
        [order] = account_of(live).orders
        assert order.price == (29_100 if done else 29_000)


# Funding.


async def test_funding_is_told_once_in_the_order_in_which_it_was_settled(
    at_futures: LiveStand, monkeypatch: pytest.MonkeyPatch
):
    live = at_futures
    market, account = market_of(live), account_of(live)
    async with live.connected(reconcile_seconds=0.2):
        await live.buy("0.5")
        await live.wait_until_told("filled")
        begin = now_milliseconds()
        # On record the later one first.
        market.fund(account, "0.0002", begin + 1)
        market.fund(account, "-0.0001", begin)
        story = ["accepted", "filled 0.5 at 30010 as taker", "funded: USDT 1.5005", "funded: USDT -3.001"]
        await live.wait_for(*story)
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
        assert (await held(live))[0] == account.balances["USDT"].free
    # Who carries it next reads some of the record again, also where nothing is to be compared for long.
    monkeypatch.setattr("services.execution.live.funding.ASK_SECONDS", 0.2)
    async with live.replica(reconcile_seconds=600):
        done = await live.stand.everything.fetchval("SELECT count(*) FROM reconciliations WHERE cause = 'start'")
        await live.stand.wait_for_count(done + 1, "reconciliations", "cause = 'start'")
        asked = live.venue.asked_count("/income")
        await eventually(lambda: live.venue.asked_count("/income") >= asked + 2)
        market.fund(account, "0.0001", begin + 2)
        await live.wait_for(*story, "funded: USDT -1.5005")
    last = (await told(live, events_pb2.VenueFunded))[-1]
    assert (last.instrument_id, last.funding_time.ToMilliseconds()) == (PERP, begin + 2)
    assert last.venue_id.startswith("BTCUSDT-")


@pytest.mark.parametrize("is_committed", [False, True])
async def test_killed_before_or_after_the_commit_funding_is_told_once(
    at_futures: LiveStand, monkeypatch: pytest.MonkeyPatch, is_committed: bool
):
    live = at_futures
    reached = asyncio.Event()

    async def stand_still() -> None:
        reached.set()
        await asyncio.Event().wait()

    fund, put_cursor = Records.fund, store.put_funding_cursor

    async def killed_after(self: Records, entries: Any, cursor: str) -> int:
        count = await fund(self, entries, cursor)
        if count:
            await stand_still()
        return count

    async def killed_within(rows: Any, account_id: Any, cursor: str) -> None:
        await put_cursor(rows, account_id, cursor)
        if await rows.fetchval("SELECT count(*) FROM venue_funding WHERE account_id = $1", account_id):
            await stand_still()

    async with live.connected(reconcile_seconds=0.2):
        await live.buy("0.5")
        await live.wait_until_told("filled")
        with monkeypatch.context() as patched:
            if is_committed:
                patched.setattr(Records, "fund", killed_after)
            else:
                patched.setattr(store, "put_funding_cursor", killed_within)
            market_of(live).fund(account_of(live), "0.0001", now_milliseconds())
            async with asyncio.timeout(10):
                await reached.wait()
    funded = ["funded: USDT -1.5005"]
    assert (await live.story())[3:] == (funded if is_committed else [])
    async with live.replica(reconcile_seconds=0.2):
        await live.wait_for("accepted", "filled 0.5 at 30010 as taker", *funded)
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    assert len(await live.story()) == 4


async def test_what_funding_took_before_it_is_on_record_is_not_told_as_unexplained(
    at_futures: LiveStand, monkeypatch: pytest.MonkeyPatch
):
    live = at_futures
    monkeypatch.setattr("services.execution.live.funding.SETTLE_SECONDS", 3_600.0)
    account = account_of(live)
    async with live.connected(reconcile_seconds=0.2):
        await live.buy("0.5")
        await live.wait_until_told("filled")
        market_of(live).fund(account, "0.0001", now_milliseconds())
        entry = account.income.pop()
        looks = live.venue.asked_count("/balance")
        await eventually(lambda: live.venue.asked_count("/balance") >= looks + 4)
        account.income.append(entry)
        await live.wait_for("accepted", "filled 0.5 at 30010 as taker", "funded: USDT -1.5005")
        monkeypatch.setattr("services.execution.live.funding.SETTLE_SECONDS", 0.0)
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
        assert (await held(live))[0] == account.balances["USDT"].free
