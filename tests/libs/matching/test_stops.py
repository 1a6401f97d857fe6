"""Stops, trailing stops and take-profits: what reaches them, and when what they become may trade."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.market import Market
from libs.matching.orders import Order, Print, Side, Trail, Trigger, Triggered
from tests.examples import examples
from tests.libs.matching.making import BUY, SELL, STOP, TAKE_PROFIT, book, order, prints, short, stop


@pytest.mark.parametrize(
    ("side", "trigger", "short_of", "at", "through"),
    [
        (BUY, STOP, 99, 100, 101),
        (SELL, STOP, 101, 100, 99),
        (BUY, TAKE_PROFIT, 101, 100, 99),
        (SELL, TAKE_PROFIT, 99, 100, 101),
    ],
)
def test_a_stop_is_reached_by_a_print_at_or_through_it(
    side: Side, trigger: Trigger, short_of: int, at: int, through: int
):
    market = Market(has_book=True, orders=[stop("a", side, 5, 100, trigger=trigger)])
    assert prints(market, (1, short_of, 9)) == []
    again = Market(has_book=True, orders=market.orders())
    assert prints(market, (2, at, 9)) == [("a", "triggered", 100)]
    assert prints(again, (2, through, 9)) == [("a", "triggered", 100)]
    assert prints(again, (3, through, 9)) == []


def test_with_a_book_a_reached_stop_enters_at_the_first_book_at_or_after_the_print_and_the_latency():
    market = Market(has_book=True, latency_ns=5, orders=[stop("a", SELL, 3, 100)])
    assert prints(market, (10, 99, 9)) == [("a", "triggered", 100)]
    assert market.on_book(book(14, [(98, 9)], [])) == []
    assert short(market.on_book(book(15, [(97, 2), (96, 9)], []))) == [("a", 97, 2, "taker"), ("a", 96, 1, "taker")]


def test_without_a_book_a_reached_stop_enters_at_the_first_later_print_and_never_at_the_one_that_reached_it():
    at_once = Market(has_book=False, orders=[stop("a", SELL, 3, 100)])
    assert prints(at_once, (10, 99, 9)) == [("a", "triggered", 100)]
    assert prints(at_once, (10, 98, 2)) == [("a", 98, 2, "taker")]
    later = Market(has_book=False, latency_ns=5, orders=[stop("a", SELL, 3, 100)])
    assert prints(later, (10, 99, 9), (14, 98, 9), (15, 97, 9)) == [("a", "triggered", 100), ("a", 97, 3, "taker")]


def test_prints_before_the_market_time_of_a_stop_do_not_reach_it():
    market = Market(has_book=True, orders=[stop("a", SELL, 3, 100, active=5)])
    assert prints(market, (4, 90, 9)) == []
    assert prints(market, (5, 100, 9)) == [("a", "triggered", 100)]


def test_a_stop_limit_rests_where_it_cannot_trade():
    market = Market(has_book=True, orders=[stop("a", SELL, 3, 100, limit=99)])
    assert prints(market, (1, 100, 1)) == [("a", "triggered", 100)]
    assert short(market.on_book(book(2, [(98, 9)], [(99, 4), (100, 9)]))) == []
    assert prints(market, (3, 100, 2)) == [("a", 99, 2, "maker")]


def test_a_reached_stop_sells_no_lower_than_its_protection():
    market = Market(has_book=True, orders=[stop("a", SELL, 3, 100, protection_ticks=97)])
    assert prints(market, (1, 100, 1)) == [("a", "triggered", 100)]
    assert short(market.on_book(book(2, [(97, 2), (96, 9)], []))) == [("a", 97, 2, "taker"), ("a", "ioc", 1)]
    without = Market(has_book=False, orders=[stop("a", SELL, 3, 100, protection_ticks=97)])
    told = [("a", "triggered", 100), ("a", 97, 1, "taker"), ("a", "protection_price", 2)]
    assert prints(without, (1, 100, 1), (2, 97, 1), (3, 96, 9)) == told


def test_stops_reached_by_one_print_are_told_from_the_nearest_on():
    orders = [
        stop("far", SELL, 1, 98),
        stop("near", SELL, 1, 99),
        stop("b", BUY, 1, 97),
        stop("a", BUY, 1, 96),
    ]
    market = Market(has_book=True, orders=orders)
    assert [told[0] for told in prints(market, (1, 97, 1))] == ["a", "b", "near", "far"]


def test_a_print_is_shared_before_it_reaches_stops():
    orders = [order("resting", BUY, 2, 101, entered=True), stop("stop", SELL, 2, 100)]
    market = Market(has_book=True, orders=orders)
    assert prints(market, (1, 100, 9)) == [("resting", 101, 2, "maker"), ("stop", "triggered", 100)]


@pytest.mark.parametrize(
    ("side", "begins", "trail", "path", "reached"),
    [
        (SELL, 95, Trail(ticks=5), [100, 102, 98, 104, 100, 99], 99),
        (BUY, 105, Trail(ticks=5), [100, 98, 102, 96, 100, 101], 101),
        # 1.5 % of 1010 is 15.15: rounded away from the market.
        (SELL, 980, Trail(basis_points=150), [1000, 1010, 995, 994], 994),
        (BUY, 1020, Trail(basis_points=150), [1000, 990, 1004, 1005], 1005),
    ],
)
def test_a_trailing_stop_follows_the_best_print_and_never_goes_back(side, begins, trail, path, reached):
    market = Market(has_book=True, orders=[stop("a", side, 1, begins, trail=trail)])
    for time_ns, price in enumerate(path[:-1]):
        assert market.on_print(Print(time_ns, price, 1)) == []
    assert prints(market, (99, path[-1], 1)) == [("a", "triggered", reached)]


def test_an_order_needs_all_that_its_stop_needs():
    wrong: list[dict[str, Any]] = [
        {"trigger": STOP},
        {"stop_ticks": 5},
        {"trigger": TAKE_PROFIT, "stop_ticks": 5, "trail": Trail(ticks=1)},
        {"trigger": STOP, "stop_ticks": 5, "trail": Trail()},
        {"trigger": STOP, "stop_ticks": 5, "trail": Trail(ticks=1, basis_points=1)},
        {"trigger": STOP, "stop_ticks": 5, "trail": Trail(basis_points=10_000)},
    ]
    for values in wrong:
        with pytest.raises(ValueError, match="order a"):
            order("a", BUY, 1, **values)


# The same rules a second time, as one would read them to somebody: looked at order by order and print by print.

paths = st.lists(st.integers(min_value=60, max_value=140), min_size=1, max_size=30)
trails = st.one_of(
    st.integers(min_value=1, max_value=12).map(lambda ticks: Trail(ticks=ticks)),
    st.integers(min_value=1, max_value=1_500).map(lambda basis_points: Trail(basis_points=basis_points)),
)


@dataclass
class Watched:
    stop: int
    reached_at: int | None = None


def watched(placed: Order, path: list[int]) -> Watched:
    """Where an order's stop stands after a path of prints, and which print reached it."""
    kept = Watched(placed.stop_ticks or 0)
    waits_above = (placed.side is BUY) == (placed.trigger is STOP)
    for time_ns, price in enumerate(path):
        if time_ns < placed.active_time_ns:
            continue
        if price >= kept.stop if waits_above else price <= kept.stop:
            kept.reached_at = time_ns
            break
        if placed.trail is not None:
            basis_points = placed.trail.basis_points
            distance = Fraction(price * basis_points, 10_000) if basis_points is not None else placed.trail.ticks or 0
            if placed.side is SELL:
                kept.stop = max(kept.stop, math.floor(price - distance))
            else:
                kept.stop = min(kept.stop, math.ceil(price + distance))
    return kept


@st.composite
def stops(draw: st.DrawFn) -> list[Order]:
    placed: list[Order] = []
    for number in range(draw(st.integers(min_value=1, max_value=6))):
        trail = draw(st.none() | trails)
        placed.append(
            stop(
                f"o{number}",
                draw(st.sampled_from(list(Side))),
                1,
                draw(st.integers(min_value=70, max_value=130)),
                trigger=STOP if trail else draw(st.sampled_from(list(Trigger))),
                trail=trail,
                active=draw(st.integers(min_value=0, max_value=10)),
            )
        )
    return placed


@pytest.mark.examples
@examples(200)
@given(stops(), paths)
def test_every_stop_stands_and_is_reached_where_the_rules_say(placed, path):
    market = Market(has_book=True, orders=placed)
    reached: dict[str, tuple[int, int]] = {}
    for time_ns, price in enumerate(path):
        for outcome in market.on_print(Print(time_ns, price, 1)):
            assert isinstance(outcome, Triggered)
            reached[outcome.order_id] = (outcome.time_ns, outcome.stop_ticks)
    for each in placed:
        expected, left = watched(each, path), market.find(each.order_id)
        assert left is not None
        assert left.stop_ticks == expected.stop
        assert left.trigger_time_ns == expected.reached_at
        assert reached.get(each.order_id) == (
            None if expected.reached_at is None else (expected.reached_at, expected.stop)
        )
