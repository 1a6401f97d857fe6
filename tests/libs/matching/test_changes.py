"""What ends or changes an order besides the market: expiry, post-only, a replacement, its group; and what slippage costs."""

import pytest

from libs.matching.market import Market
from libs.matching.orders import Order, Replacement, Side, Trail
from tests.libs.matching.making import BUY, FOK, SELL, book, order, prints, short, stop

AROUND = ([(100, 6), (99, 4)], [(102, 5)])


def resting(*orders: Order, **how: int) -> Market:
    market = Market(has_book=True, orders=orders, **how)
    assert market.on_book(book(0, *AROUND)) == []
    return market


def placed(market: Market, order_id: str) -> Order:
    found = market.find(order_id)
    assert found is not None
    return found


# Expiry.


def test_an_order_expires_at_its_time_before_the_moment_that_shows_it_can_fill_it():
    market = resting(order("a", BUY, 2, 100, expire_time_ns=10), order("b", BUY, 2, 100, expire_time_ns=11))
    assert prints(market, (10, 90, 9)) == [("a", "expired", 2, 10), ("b", 100, 2, "maker")]
    late = resting(order("a", BUY, 2, 100, expire_time_ns=10))
    assert short(late.on_book(book(15, [], [(99, 9)]))) == [("a", "expired", 2, 10)]


def test_an_expired_stop_is_not_reached_and_a_reached_one_still_expires():
    market = Market(has_book=True, latency_ns=5, orders=[stop("a", SELL, 1, 100, limit=99, expire_time_ns=10)])
    again = Market(has_book=True, latency_ns=5, orders=market.orders())
    assert prints(market, (10, 99, 1)) == [("a", "expired", 1, 10)]
    assert prints(again, (9, 99, 1)) == [("a", "triggered", 100)]
    assert short(again.on_book(book(14, [(100, 9)], []))) == [("a", "expired", 1, 10)]


# Post-only.


def test_a_post_only_order_that_would_take_is_rejected_and_one_that_rests_is_maker():
    orders = [order("takes", BUY, 2, 102, post_only=True), order("rests", BUY, 2, 101, post_only=True)]
    market = Market(has_book=True, orders=orders)
    assert short(market.on_book(book(0, *AROUND))) == [("takes", "post_only", 2)]
    assert prints(market, (1, 101, 2)) == [("rests", 101, 2, "maker")]


def test_without_a_book_the_first_print_tells_whether_a_post_only_order_would_take():
    orders = [order("takes", SELL, 2, 99, post_only=True), order("rests", SELL, 2, 100, post_only=True)]
    market = Market(has_book=False, orders=orders)
    assert prints(market, (0, 100, 9), (1, 101, 9)) == [("takes", "post_only", 2), ("rests", 100, 2, "maker")]


def test_only_an_order_that_rests_can_be_post_only():
    with pytest.raises(ValueError, match="post-only"):
        order("a", BUY, 1, 100, FOK, post_only=True)


# Slippage.


@pytest.mark.parametrize(("side", "paid"), [(BUY, 10_051), (SELL, 9_949)])
def test_what_takes_pays_slippage_rounded_up_to_a_tick(side: Side, paid: int):
    market = Market(has_book=True, slippage_basis_points=51, orders=[order("a", side, 1)])
    assert short(market.on_book(book(0, [(10_000, 9)], [(10_000, 9)]))) == [("a", paid, 1, "taker")]


def test_slippage_goes_no_further_than_the_limit_or_the_protection_and_makers_pay_none():
    orders = [
        order("limit", BUY, 1, 10_010),
        order("protected", SELL, 1, protection_ticks=9_990),
        order("maker", BUY, 1, 9_000),
    ]
    market = Market(has_book=True, slippage_basis_points=100, orders=orders)
    assert short(market.on_book(book(0, [(10_000, 9)], [(10_000, 9)]))) == [
        ("limit", 10_010, 1, "taker"),
        ("protected", 9_990, 1, "taker"),
    ]
    assert prints(market, (1, 8_000, 1)) == [("maker", 9_000, 1, "maker")]


def test_slippage_never_sells_for_nothing():
    market = Market(has_book=False, slippage_basis_points=5_000, orders=[order("a", SELL, 1)])
    assert prints(market, (0, 1, 1)) == [("a", 1, 1, "taker")]


# Replacement.


def test_a_smaller_quantity_keeps_the_place_in_the_queue_and_anything_else_loses_it():
    for change, keeps in (
        (Replacement(quantity_lots=4), True),
        (Replacement(quantity_lots=5, limit_ticks=100), True),
        (Replacement(quantity_lots=6), False),
        (Replacement(quantity_lots=4, limit_ticks=99), False),
    ):
        market = resting(order("a", BUY, 5, 100))
        before = placed(market, "a")
        after = market.replace("a", change, 7)
        assert after == placed(market, "a")
        assert after.entered is keeps
        assert (after.ahead_lots, after.active_time_ns) == ((before.ahead_lots, 0) if keeps else (None, 7))


def test_a_quantity_includes_what_has_traded():
    market = resting(order("a", BUY, 5, 100))
    assert prints(market, (1, 99, 2)) == [("a", 100, 2, "maker")]
    assert market.replace("a", Replacement(quantity_lots=3), 2).remaining_lots == 1
    with pytest.raises(ValueError, match="traded already"):
        market.replace("a", Replacement(quantity_lots=2), 3)
    assert placed(market, "a").remaining_lots == 1


def test_a_new_limit_takes_from_the_next_book_on_and_no_print_between_fills_it():
    market = resting(order("a", BUY, 2, 100))
    market.replace("a", Replacement(limit_ticks=102), 5)
    assert prints(market, (5, 90, 9)) == []
    assert short(market.on_book(book(6, *AROUND))) == [("a", 102, 2, "taker")]


def test_a_replaced_post_only_order_that_would_take_is_rejected():
    market = resting(order("a", BUY, 2, 100, post_only=True))
    market.replace("a", Replacement(limit_ticks=102), 5)
    assert short(market.on_book(book(6, *AROUND))) == [("a", "post_only", 2)]


def test_a_new_stop_or_trail_holds_from_the_next_print_on():
    market = Market(has_book=True, orders=[stop("a", SELL, 2, 95), stop("b", SELL, 2, 95, trail=Trail(ticks=5))])
    assert prints(market, (1, 100, 1)) == []
    market.replace("a", Replacement(stop_ticks=98, quantity_lots=9), 2)
    market.replace("b", Replacement(trail=Trail(ticks=2)), 2)
    assert prints(market, (2, 99, 1), (3, 98, 1), (4, 97, 1)) == [("a", "triggered", 98), ("b", "triggered", 97)]
    assert placed(market, "a").remaining_lots == 9


def test_a_change_that_does_not_fit_the_order_is_refused_and_changes_nothing():
    orders = [
        order("market", SELL, 2, active=9),
        order("limit", BUY, 2, 100),
        stop("stop", SELL, 2, 95),
        stop("reached", SELL, 2, 99, limit=98),
    ]
    market = Market(has_book=True, latency_ns=100, orders=orders)
    assert prints(market, (1, 99, 1)) == [("reached", "triggered", 99)]
    before = market.orders()
    for order_id, change, why in (
        ("market", Replacement(limit_ticks=100), "no limit price"),
        ("limit", Replacement(stop_ticks=90), "no stop price"),
        ("stop", Replacement(trail=Trail(ticks=1)), "does not trail"),
        ("reached", Replacement(stop_ticks=90), "no stop price"),
        ("nowhere", Replacement(quantity_lots=1), "done"),
        ("limit", Replacement(quantity_lots=0), "traded already"),
    ):
        with pytest.raises(ValueError, match=why):
            market.replace(order_id, change, 2)
    assert market.orders() == before


# Groups.


def legs(lots: int = 5) -> tuple[Order, Order]:
    """A take-profit that rests and a stop, for one position."""
    return order("profit", SELL, lots, 102, group="g"), stop("stop", SELL, lots, 98, group="g")


def test_what_one_leg_trades_is_taken_off_the_other_which_ends_with_nothing_left():
    market = resting(*legs())
    assert prints(market, (1, 103, 2)) == [("profit", 102, 2, "maker")]
    assert placed(market, "stop").remaining_lots == 3
    assert prints(market, (2, 103, 9)) == [("profit", 102, 3, "maker"), ("stop", "group", 0)]
    assert market.orders() == ()


def test_a_reached_stop_takes_off_the_profit_that_rests():
    market = resting(*legs())
    assert prints(market, (1, 98, 1)) == [("stop", "triggered", 98)]
    assert short(market.on_book(book(2, [(97, 2)], [(99, 5)]))) == [("stop", 97, 2, "taker"), ("stop", "ioc", 3)]
    assert placed(market, "profit").remaining_lots == 3


def test_legs_that_enter_at_one_moment_share_their_quantity():
    market = Market(has_book=True, orders=[order("a", BUY, 5, 102, group="g"), order("b", BUY, 5, 103, group="g")])
    assert short(market.on_book(book(0, [], [(101, 3), (102, 9)]))) == [
        ("a", 101, 3, "taker"),
        ("a", 102, 2, "taker"),
        ("b", "group", 0),
    ]
    market = resting(order("a", BUY, 5, 100, group="g"), order("b", BUY, 5, 101, group="g"))
    assert prints(market, (1, 99, 7)) == [("b", 101, 5, "maker"), ("a", "group", 0)]


def test_a_leg_that_ends_untraded_leaves_the_other_alone():
    market = resting(order("a", BUY, 5, 100, group="g", expire_time_ns=3), *legs())
    market.cancel("profit")
    assert prints(market, (3, 101, 1)) == [("a", "expired", 5, 3)]
    assert [(each.order_id, each.remaining_lots) for each in market.orders()] == [("stop", 5)]


def test_what_a_group_traded_elsewhere_is_taken_off_here():
    market = resting(*legs(), order("alone", SELL, 5, 102))
    assert short(market.take_off("g", 2, 1, but="stop")) == []
    assert [each.remaining_lots for each in market.orders()] == [5, 3, 5]
    assert short(market.take_off("g", 3, 1)) == [("profit", "group", 0)]
    assert [each.remaining_lots for each in market.orders()] == [5, 2]


def test_a_leg_that_is_for_more_now_goes_to_the_end_of_the_queue_or_waits_on_with_its_stop():
    market = resting(*legs())
    market.replace("profit", Replacement(quantity_lots=8), 1)
    market.replace("stop", Replacement(quantity_lots=8), 1)
    assert prints(market, (1, 103, 9)) == []
    market.on_book(book(2, [(100, 6)], [(102, 5)]))
    assert prints(market, (3, 103, 9)) == [("profit", 102, 8, "maker"), ("stop", "group", 0)]
