"""Orders of a live account reach their venue once, and whatever becomes of them there is told."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import pytest
from tradeloom.execution.v1 import events_pb2
from tradeloom.users.v1 import events_pb2 as users_events

from tests.execution.live_fixtures import VALIDITY_SECONDS, pause_long
from tests.execution.live_stand import LiveStand, eventually, late_trade
from tests.execution.stand import stop
from tests.execution.venue_stand import BINANCE
from tests.venues import faults


async def test_an_order_rests_trades_in_part_and_is_canceled(live: LiveStand):
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        await live.wait_for("accepted", "filled 0.4 at 29000 as maker")
        await live.cancel(order_id)
        await live.wait_for("accepted", "filled 0.4 at 29000 as maker", "canceled: user")
    assert live.sent_count(order_id) == 1


async def test_an_order_that_takes_is_filled(live: LiveStand):
    async with live.connected():
        order_id = await live.buy("0.5")
        await live.wait_for("accepted", "filled 0.5 at 30010 as taker")
        await live.wait_for_state(order_id, "filled")
    assert live.sent_count(order_id) == 1


def order_path(live: LiveStand) -> dict[str, Any]:
    return {"method": "POST", "path": live.venue.kind.submit_path}


async def test_an_order_whose_answer_is_lost_is_found_on_record_and_not_sent_again(live: LiveStand):
    async with live.connected():
        # The stream is silent, so that the record alone can tell.
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(faults.lost_answer(**order_path(live)))
        order_id = await live.place()
        await live.wait_for("unknown", "accepted")
        await live.wait_for_state(order_id, "working")
    assert live.sent_count(order_id) == 1


async def test_an_order_that_took_and_was_not_answered_has_its_fills_from_the_record(live: LiveStand):
    async with live.connected():
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(faults.lost_answer(**order_path(live)))
        order_id = await live.buy("0.5")
        await live.wait_for("unknown", "accepted", "filled 0.5 at 30010 as taker")
    assert live.sent_count(order_id) == 1


async def test_an_order_that_never_arrived_is_rejected_as_soon_as_it_cannot_arrive_any_more(
    live: LiveStand, monkeypatch: pytest.MonkeyPatch
):
    pause_long(monkeypatch)
    async with live.connected():
        live.venue.fault(faults.broken(**order_path(live)))
        began = time.monotonic()
        order_id = await live.place()
        await live.wait_for("unknown", "rejected: it never reached the venue")
        assert time.monotonic() - began >= VALIDITY_SECONDS
    assert live.sent_count(order_id) == 0


async def test_an_order_that_arrives_late_is_not_rejected_before(at_binance: LiveStand):
    """The venue takes it when its answer has long been given up."""
    live = at_binance
    async with live.connected():
        live.venue.fault(faults.slow(2.6, **order_path(live)))
        order_id = await live.place()
        await live.wait_for("unknown", "accepted")
    assert live.sent_count(order_id) == 1


async def test_the_venues_refusal_is_the_orders(live: LiveStand):
    async with live.connected():
        order_id = await live.place(quantity=40)
        await live.wait_for_state(order_id, "rejected")
        [_, told] = await live.story()
        assert told.startswith("rejected: ")
        assert "nsufficient" in told
    assert live.sent_count(order_id) == 0


async def test_what_the_venue_does_not_take_now_is_sent_when_it_does(at_binance: LiveStand):
    live = at_binance
    async with live.connected():
        live.venue.fault(faults.too_many(1, **order_path(live)))
        first = await live.place()
        await live.wait_for("accepted")
        live.venue.fault(
            faults.RequestFault(418, {"Retry-After": "1"}, '{"code":-1003,"msg":"banned"}', **order_path(live))
        )
        second = await live.place()
        await live.wait_for("accepted", "accepted")
    assert (live.sent_count(first), live.sent_count(second)) == (1, 1)


async def test_what_may_not_be_sent_is_rejected_right_before(at_binance: LiveStand):
    live = at_binance
    async with live.connected():
        rejected = []

        async def is_rejected(reason: str, **order: Any) -> None:
            order_id = await live.place(**order)
            await live.wait_for_state(order_id, "rejected")
            rejected.append(f"rejected: {reason}")
            assert live.sent_count(order_id) == 0

        await is_rejected("it could not be sent in time", send_seconds=-0.1)
        await live.enable(False)
        await is_rejected("trading with real money is disabled")
        await live.enable(True)
        await live.change(trading=False)
        await is_rejected("the account is stopped")
        await live.change(trading=True)
        # Each confirmation is answered by what there is.
        rejected.append(live.opening)
        await live.wait_for(*rejected)
        await live.switch("HALT")
        await is_rejected("a kill switch halts trading")
        await live.switch("OFF")
        await live.switch("REDUCE_ONLY", "USER", later_seconds=5)
        await is_rejected("a kill switch lets positions only be made smaller")
        await live.wait_for(*rejected)
        await live.place(reduce_only=True)
        await live.wait_for(*rejected, "accepted")
        await live.switch("REDUCE_ONLY", "USER", later_seconds=-5)
        await live.place()
        await live.wait_for(*rejected, "accepted", "accepted")


STOP = stop("SELL", 1, 29_900, protection_price="28405")


async def test_what_was_not_sent_in_time_is_sent_once_when_it_is_released_anew(at_binance: LiveStand):
    live = at_binance
    async with live.connected():
        order_id = await live.place(**STOP, send_seconds=-0.1)
        await live.wait_for_state(order_id, "rejected")
        # What was told of it before, told again, is no new release.
        await live.place(order_id=str(order_id), **STOP, send_seconds=-0.2)
        await live.place(order_id=str(order_id), **{**STOP, "quantity": "0.5"})
        await live.wait_for("rejected: it could not be sent in time", "accepted")
        [resting] = [order for order in live.venue.account.orders if order.client_order_id == str(order_id)]
        assert resting.quantity == Decimal("0.5")
        await live.place(order_id=str(order_id), **STOP, send_seconds=60)
        live.venue.market.trade("30000", "0.001")
        await live.place(**{**STOP, "stop_price": 30_500})
        await live.wait_for_state(order_id, "working")
        await live.stand.wait_for_count(1, "venue_orders", "state = 'rejected'")
    assert live.sent_count(order_id) == 1
    rejected = [one for one in await live.stand.told(live.trader) if isinstance(one, events_pb2.VenueRejected)]
    assert [(one.not_sent, one.stop_reached) for one in rejected] == [(True, False), (False, True)]


async def test_an_order_that_is_canceled_before_it_was_sent_never_is(at_binance: LiveStand):
    live = at_binance
    await live.confirm(credential=False)
    async with live.replica():
        order_id = await live.place()
        await live.wait_for_state(order_id, "intended")
        await live.cancel(order_id)
        await live.stand.wait_for_count(1, "venue_cancels")
        await live.change()
        await live.wait_until_told("connected", "canceled: user")
    assert live.sent_count(order_id) == 0


async def test_nothing_is_sent_with_a_key_that_was_not_confirmed(at_binance: LiveStand):
    live = at_binance
    async with live.connected() as carried:
        live.revision += 1
        await live.change()
        live.revision += 1
        order_id = await live.place(send_seconds=1.0)
        await live.wait_for_state(order_id, "rejected")
        # By the runner of the key before, or by the one of this key: that says so as soon as it runs.
        await eventually(lambda: "another key than was confirmed" in str(carried.troubles))
    assert live.sent_count(order_id) == 0


async def test_without_a_key_nothing_is_sent_and_what_waits_is_given_up_in_time(at_binance: LiveStand):
    """Within five seconds of when users tells that the key is gone; and of an account that nobody carries any more."""
    live = at_binance
    async with live.connected() as carried:
        live.has_key = False
        message = users_events.BrokerCredentialDeleted(credential_id=str(live.credential_id))
        await live.stand.tell_fact("users", str(live.trader.user_id), str(live.trader.user_id), [message])
        async with asyncio.timeout(5):
            while "no key" not in str(carried.troubles):
                await asyncio.sleep(0.02)
        first = await live.place(send_seconds=1.0)
        await live.wait_for_state(first, "rejected")
        await live.change(credential=False)
        await eventually(lambda: not carried.carried_ids)
        second = await live.place(send_seconds=1.0)
        await live.wait_for_state(second, "rejected")
    late = "rejected: it could not be sent in time"
    await live.wait_for(late, late)
    assert (live.sent_count(first), live.sent_count(second)) == (0, 0)


async def test_what_the_stream_tells_twice_or_late_is_applied_once(live: LiveStand):
    story = ["accepted", "filled 0.4 at 29000 as maker", "filled 0.6 at 29000 as maker"]
    async with live.connected():
        live.venue.venue.faults.messages.append(faults.duplicate(times=3, stream=""))
        order_id = await live.place()
        await live.wait_for_state(order_id, "working")
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        live.venue.market.trade("29000", "0.6", buyer_is_maker=True)
        await live.wait_for(*story)
        await live.wait_for_state(order_id, "filled")


async def test_a_fill_that_was_not_told_is_found_by_comparing(live: LiveStand):
    async with live.connected(reconcile_seconds=0.3):
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.market.trade("29000", "1", buyer_is_maker=True)
        await live.wait_for("accepted", "filled 1 at 29000 as maker")
        await live.wait_for_state(order_id, "filled")
        await live.stand.wait_for_count(1, "differences")
    found = await live.stand.everything.fetch("SELECT kind, ours, venues FROM differences")
    assert [tuple(row) for row in found] == [("order_state", "working, 0 filled", "filled, 1 filled")]


async def test_a_fill_that_is_told_after_the_end_is_booked_all_the_same(live: LiveStand):
    """Canceled by hand at the venue, which tells of that before it tells of what had traded."""
    async with live.connected():
        order_id = await live.place()
        await live.wait_for_state(order_id, "working")
        live.venue.venue.faults.messages.append(late_trade(live))
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        [order] = live.venue.account.orders
        live.venue.market.cancel(order, "by-hand")
        cause = "venue" if live.venue.kind is BINANCE else "User requested"
        await live.wait_for("accepted", f"canceled: {cause}", "filled 0.4 at 29000 as maker")
        [told] = await live.stand.everything.fetch("SELECT state, filled_quantity FROM venue_orders")
        assert tuple(told) == ("canceled", Decimal("0.4"))
        held = await live.stand.everything.fetchval("SELECT total FROM venue_balances WHERE asset = 'BTC'")
        assert held == sum(live.venue.account.balances["BTC"].__dict__.values())


async def test_a_cancel_that_comes_after_a_part_has_traded_ends_the_rest(live: LiveStand):
    """Nothing is told of the part: the answer to the cancel says that there is one, and the record which."""
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        await live.cancel(order_id)
        await live.wait_for("accepted", "filled 0.4 at 29000 as maker", "canceled: user")


async def test_a_cancel_that_comes_after_the_last_fill_is_rejected(live: LiveStand):
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.market.trade("29000", "1", buyer_is_maker=True)
        await live.cancel(order_id)
        await live.wait_for("accepted", "filled 1 at 29000 as maker", "cancel rejected: the order is filled")


async def test_a_cancel_whose_answer_is_lost_is_settled_by_the_record(live: LiveStand):
    method, path = live.venue.kind.cancel
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(faults.lost_answer(method=method, path=path))
        await live.cancel(order_id)
        await live.wait_for("accepted", "canceled: user")
