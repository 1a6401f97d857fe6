"""How far a resting limit is from being served at its price, where the source shows a book."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.market import Market
from libs.matching.orders import Book, Fill, Level, Print, Side
from tests.examples import examples
from tests.libs.matching.making import BUY, SELL, book, order, prints, short

AROUND = ([(100, 6), (99, 4), (97, 3)], [(102, 5), (103, 5)])


def resting(*orders, at=AROUND) -> Market:
    market = Market(has_book=True, orders=orders)
    assert market.on_book(book(0, *at)) == []
    return market


def ahead(market: Market, order_id: str) -> int | None:
    found = market.find(order_id)
    assert found is not None
    return found.ahead_lots


@pytest.mark.parametrize(
    ("side", "limit", "lots"),
    [(BUY, 100, 6), (BUY, 101, 0), (BUY, 98, 0), (BUY, 97, 3), (BUY, 96, None), (SELL, 103, 5), (SELL, 104, None)],
)
def test_what_the_book_shows_at_its_price_is_ahead_of_an_order_that_comes_to_rest(side: Side, limit: int, lots):
    assert ahead(resting(order("a", side, 2, limit)), "a") == lots


def test_a_print_at_the_limit_fills_it_with_what_is_left_after_those_ahead():
    market = resting(order("a", BUY, 5, 100))
    assert prints(market, (1, 100, 4)) == []
    assert prints(market, (2, 100, 4)) == [("a", 100, 2, "maker")]
    assert prints(market, (3, 100, 1)) == [("a", 100, 1, "maker")]


def test_less_shown_moves_it_up_and_more_shown_does_not_move_it_back():
    market = resting(order("a", BUY, 5, 100))
    market.on_book(book(1, [(100, 2)], [(102, 5)]))
    market.on_book(book(2, [(100, 9)], [(102, 5)]))
    assert ahead(market, "a") == 2
    market.on_book(book(3, [(99, 9)], [(102, 5)]))
    assert ahead(market, "a") == 0


def test_what_printed_and_what_is_shown_less_for_it_counts_once():
    market = resting(order("a", BUY, 5, 100))
    assert prints(market, (1, 100, 2)) == []
    market.on_book(book(2, [(100, 4)], [(102, 5)]))
    assert ahead(market, "a") == 4


def test_out_of_view_only_a_print_beyond_the_limit_fills_it():
    market = resting(order("a", BUY, 5, 96))
    assert prints(market, (1, 96, 9)) == []
    market.on_book(book(2, [(97, 1), (96, 7)], [(102, 5)]))
    market.on_book(book(3, [(101, 1)], [(102, 5)]))
    assert prints(market, (4, 96, 3), (5, 96, 5)) == [("a", 96, 1, "maker")]


def test_those_that_rest_behind_another_of_ours_get_what_it_leaves():
    market = Market(has_book=True, orders=[order("a", BUY, 2, 100), order("b", BUY, 9, 100, active=1)])
    market.on_book(book(0, *AROUND))
    market.on_book(book(1, [(100, 8)], [(102, 5)]))
    assert prints(market, (2, 100, 11)) == [("a", 100, 2, "maker"), ("b", 100, 1, "maker")]


def test_a_print_that_went_through_better_orders_leaves_less_for_those_at_its_price():
    market = resting(order("better", BUY, 3, 101), order("at", BUY, 9, 100))
    assert prints(market, (1, 100, 10)) == [("better", 101, 3, "maker"), ("at", 100, 1, "maker")]


def test_what_was_filled_in_part_while_it_rested_has_nothing_ahead_of_it():
    market = resting(order("a", BUY, 5, 100))
    assert prints(market, (1, 99, 2)) == [("a", 100, 2, "maker")]
    assert ahead(market, "a") == 0


def test_what_took_on_entering_queues_with_the_rest():
    market = Market(has_book=True, orders=[order("a", BUY, 5, 102)])
    assert short(market.on_book(book(0, [(102, 4), (101, 1)], [(102, 3)]))) == [("a", 102, 3, "taker")]
    assert ahead(market, "a") == 4


# The same rules a second time, for one order alone, as one would read them to somebody.


@dataclass
class Place:
    left: int
    ahead: int | None = None
    rests: bool = False


def expected_fills(side: Side, limit: int, lots: int, moments: list[Print | Book]) -> list[tuple[int, int]]:
    """(time, lots) of each fill while the order rests."""
    place, fills = Place(lots), []

    def is_better(price: int, than: int) -> bool:
        return price > than if side is BUY else price < than

    for moment in moments:
        if not place.left:
            break
        served, own = 0, ()
        if isinstance(moment, Print):
            if place.rests and is_better(limit, moment.price_ticks):
                served = moment.quantity_lots
            elif place.rests and moment.price_ticks == limit and place.ahead is not None:
                served = max(0, moment.quantity_lots - place.ahead)
                place.ahead = max(0, place.ahead - moment.quantity_lots)
        else:
            own, other = (moment.bids, moment.asks) if side is BUY else (moment.asks, moment.bids)
            reached = sum(level.quantity_lots for level in other if not is_better(level.price_ticks, than=limit))
            if place.rests:
                served = reached
            else:
                place.left -= min(place.left, reached)
                place.rests = True
        if served := min(served, place.left):
            place.left -= served
            place.ahead = 0
            fills.append((moment.time_ns, served))
        if own and not is_better(own[-1].price_ticks, limit):
            shown = sum(level.quantity_lots for level in own if level.price_ticks == limit)
            place.ahead = shown if place.ahead is None else min(place.ahead, shown)
    return fills


sizes = st.integers(min_value=0, max_value=6)


@st.composite
def moments(draw: st.DrawFn) -> list[Print | Book]:
    made: list[Print | Book] = []
    for time_ns in range(draw(st.integers(min_value=2, max_value=20))):
        middle = draw(st.integers(min_value=97, max_value=103))
        if draw(st.booleans()):
            made.append(Print(time_ns, middle, draw(sizes)))
        else:
            bids = tuple(Level(middle - 1 - step, draw(sizes)) for step in range(draw(st.integers(0, 4))))
            asks = tuple(Level(middle + 1 + step, draw(sizes)) for step in range(draw(st.integers(0, 4))))
            made.append(Book(time_ns, bids, asks))
    return made


@pytest.mark.examples
@examples(250)
@given(
    st.sampled_from(list(Side)),
    st.integers(min_value=97, max_value=103),
    st.integers(min_value=1, max_value=15),
    moments(),
)
def test_an_order_is_served_as_the_rules_of_the_queue_say(side, limit, lots, moments):
    market = Market(has_book=True, orders=[order("a", side, lots, limit)])
    fills = [
        (found.time_ns, found.quantity_lots)
        for moment in moments
        for found in (market.on_book(moment) if isinstance(moment, Book) else market.on_print(moment))
        if isinstance(found, Fill) and found.maker
    ]
    assert fills == expected_fills(side, limit, lots, moments)
