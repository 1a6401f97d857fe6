import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.market import Market
from libs.matching.orders import Book, Canceled, Cause, Fill, Level, Order, Outcome, Print, Side
from tests.examples import examples
from tests.libs.matching.making import BUY, FOK, GTC, IOC, SELL, book, order, short


def test_a_market_order_walks_the_book_best_price_first():
    market = Market(has_book=True, orders=[order("a", BUY, 5)])
    assert short(market.on_book(book(1, [(99, 9)], [(101, 2), (102, 2), (104, 9)]))) == [
        ("a", 101, 2, "taker"),
        ("a", 102, 2, "taker"),
        ("a", 104, 1, "taker"),
    ]
    assert market.orders() == ()


def test_a_market_order_larger_than_the_book_is_canceled_for_its_rest():
    market = Market(has_book=True, orders=[order("a", SELL, 5)])
    assert short(market.on_book(book(1, [(99, 2), (98, 1)], [(101, 9)]))) == [
        ("a", 99, 2, "taker"),
        ("a", 98, 1, "taker"),
        ("a", "ioc", 2),
    ]


def test_fill_or_kill_takes_all_of_it_or_nothing():
    thin, thick = book(1, [], [(101, 2), (103, 9)]), book(2, [], [(101, 2), (102, 9)])
    market = Market(has_book=True, orders=[order("a", BUY, 5, 102, FOK), order("b", BUY, 5, 102, FOK, active=2)])
    assert short(market.on_book(thin)) == [("a", "fok", 5)]
    assert short(market.on_book(thick)) == [("b", 101, 2, "taker"), ("b", 102, 3, "taker")]


def test_a_marketable_limit_takes_up_to_its_limit_and_rests_with_what_is_left():
    market = Market(has_book=True, orders=[order("a", BUY, 5, 102)])
    assert short(market.on_book(book(1, [], [(101, 2), (103, 9)]))) == [("a", 101, 2, "taker")]
    assert [(left.remaining_lots, left.entered) for left in market.orders()] == [(3, True)]


def test_an_order_meets_nothing_before_its_market_time():
    market = Market(has_book=True, orders=[order("a", BUY, 1, active=10)])
    assert market.on_book(book(9, [], [(101, 2)])) == []
    assert short(market.on_book(book(10, [], [(102, 2)]))) == [("a", 102, 1, "taker")]


def test_what_one_order_took_from_a_book_is_gone_for_the_next():
    market = Market(has_book=True, orders=[order("b", BUY, 2), order("a", BUY, 2)])
    assert short(market.on_book(book(1, [], [(101, 3), (102, 9)]))) == [
        ("a", 101, 2, "taker"),
        ("b", 101, 1, "taker"),
        ("b", 102, 1, "taker"),
    ]


def resting(*orders: Order) -> Market:
    market = Market(has_book=True, orders=orders)
    assert market.on_book(book(0, [], [])) == []
    return market


@pytest.mark.parametrize(("side", "at", "through"), [(BUY, 100, 99), (SELL, 100, 101)])
def test_a_resting_limit_fills_at_its_price_only_when_the_market_trades_through_it(side: Side, at: int, through: int):
    market = resting(order("a", side, 5, 100))
    assert market.on_print(Print(1, at, 9)) == []
    assert short(market.on_print(Print(2, through, 9))) == [("a", 100, 5, "maker")]


def test_a_resting_limit_fills_when_the_book_reaches_it():
    market = resting(order("a", BUY, 5, 100))
    assert market.on_book(book(1, [], [(101, 3)])) == []
    assert short(market.on_book(book(2, [], [(99, 2), (100, 1), (101, 9)]))) == [("a", 100, 3, "maker")]


def test_a_print_is_shared_by_price_then_time_then_id():
    market = resting(
        order("d", BUY, 2, 100), order("c", BUY, 2, 101), order("b", BUY, 2, 100), order("a", BUY, 2, 100, active=-1)
    )
    assert short(market.on_print(Print(1, 99, 5))) == [
        ("c", 101, 2, "maker"),
        ("a", 100, 2, "maker"),
        ("b", 100, 1, "maker"),
    ]
    assert [(left.order_id, left.remaining_lots) for left in market.orders()] == [("b", 1), ("d", 2)]


def test_resting_orders_meet_a_book_before_those_that_enter_at_it():
    market = resting(order("old", BUY, 2, 100))
    market.submit(order("new", BUY, 2))
    assert short(market.on_book(book(1, [], [(100, 3)]))) == [
        ("old", 100, 2, "maker"),
        ("new", 100, 1, "taker"),
        ("new", "ioc", 1),
    ]


def test_a_canceled_order_never_fills():
    market = resting(order("a", BUY, 2, 100))
    market.submit(order("b", BUY, 2, 100, active=5))
    assert [market.cancel(order_id) for order_id in ("a", "b", "a")] == [
        Order(
            order_id="a", side=BUY, time_in_force=GTC, remaining_lots=2, limit_ticks=100, active_time_ns=0, entered=True
        ),
        order("b", BUY, 2, 100, active=5),
        None,
    ]
    assert market.on_print(Print(9, 1, 9)) == []


def test_the_same_id_cannot_be_submitted_twice():
    market = resting(order("a", BUY, 2, 100))
    with pytest.raises(ValueError, match="already"):
        market.submit(order("a", BUY, 2, 100))


def test_a_market_order_cannot_be_good_till_canceled():
    with pytest.raises(ValueError, match="good till canceled"):
        order("a", BUY, 1, None, GTC)


def test_without_a_book_a_market_order_takes_prints_from_the_first_one_on_until_it_is_full():
    market = Market(has_book=False, orders=[order("a", BUY, 5, active=10)])
    assert market.on_print(Print(9, 100, 9)) == []
    assert short(market.on_print(Print(10, 101, 3))) == [("a", 101, 3, "taker")]
    assert short(market.on_print(Print(11, 102, 9))) == [("a", 102, 2, "taker")]


def test_without_a_book_the_first_print_decides_whether_a_limit_takes_or_rests():
    market = Market(has_book=False, orders=[order("takes", BUY, 3, 102), order("rests", BUY, 3, 101)])
    assert short(market.on_print(Print(1, 101, 2))) == [("takes", 101, 2, "taker")]
    assert short(market.on_print(Print(2, 100, 9))) == [("takes", 102, 1, "maker"), ("rests", 101, 3, "maker")]


def test_without_a_book_immediate_orders_are_decided_by_their_first_print_alone():
    market = Market(
        has_book=False,
        orders=[order("fok", BUY, 9, 102, FOK), order("ioc", BUY, 3, 102, IOC), order("far", BUY, 3, 101, IOC)],
    )
    assert short(market.on_print(Print(1, 101, 2))) == [
        ("fok", "fok", 9),
        ("ioc", 101, 2, "taker"),
        ("far", "ioc", 3),
        ("ioc", "ioc", 1),
    ]


def test_without_a_book_a_fill_or_kill_market_order_is_canceled_by_a_smaller_print():
    market = Market(has_book=False, orders=[order("a", SELL, 3, None, FOK)])
    assert short(market.on_print(Print(1, 101, 2))) == [("a", "fok", 3)]


# What holds for every market and every order.

ticks = st.integers(min_value=90, max_value=110)
lots = st.integers(min_value=0, max_value=12)
ladders = st.lists(lots, max_size=4)


@st.composite
def markets(draw: st.DrawFn):
    """Orders, the event each is submitted before, and a sequence of prints and books."""
    events: list[Print | Book] = []
    has_book = draw(st.booleans())
    for time_ns in range(draw(st.integers(min_value=1, max_value=14))):
        if has_book and draw(st.booleans()):
            best_bid = draw(ticks)
            best_ask = best_bid + draw(st.integers(min_value=1, max_value=4))
            events.append(
                Book(
                    time_ns,
                    tuple(Level(best_bid - step, size) for step, size in enumerate(draw(ladders))),
                    tuple(Level(best_ask + step, size) for step, size in enumerate(draw(ladders))),
                )
            )
        else:
            events.append(Print(time_ns, draw(ticks), draw(lots)))
    orders: list[tuple[int, Order]] = []
    for number in range(draw(st.integers(min_value=1, max_value=8))):
        limit = draw(st.one_of(st.none(), ticks))
        force = draw(st.sampled_from([IOC, FOK] if limit is None else [GTC, IOC, FOK]))
        placed = order(
            f"o{number}",
            draw(st.sampled_from(list(Side))),
            draw(st.integers(min_value=1, max_value=20)),
            limit,
            force,
            active=draw(st.integers(min_value=0, max_value=14)),
        )
        orders.append((draw(st.integers(min_value=0, max_value=len(events))), placed))
    return has_book, events, orders


def play(has_book, events, orders, restarts: frozenset[int] = frozenset()):
    """Outcomes for each event; before an event in `restarts` the market is made anew of its orders."""
    market = Market(has_book=has_book)
    told: list[list[Outcome]] = []
    for index, event in enumerate(events):
        if index in restarts:
            market = Market(has_book=has_book, orders=market.orders())
        for before, placed in orders:
            if before == index:
                market.submit(placed)
        told.append(market.on_book(event) if isinstance(event, Book) else market.on_print(event))
    return told, market


@pytest.mark.examples
@examples(300)
@given(markets())
def test_no_fill_is_beyond_the_limit_and_no_order_trades_more_than_its_quantity(case):
    has_book, events, orders = case
    told, market = play(has_book, events, orders)
    placed = {each.order_id: each for before, each in orders if before < len(events)}
    left = {order_id: each.remaining_lots for order_id, each in placed.items()}
    for outcome in (found for event in told for found in event):
        wanted = placed[outcome.order_id]
        if isinstance(outcome, Fill):
            assert outcome.quantity_lots > 0
            if wanted.limit_ticks is not None:
                better = wanted.limit_ticks - outcome.price_ticks
                assert (better if wanted.side is BUY else -better) >= 0
            assert outcome.time_ns >= wanted.active_time_ns
            left[outcome.order_id] -= outcome.quantity_lots
            assert left[outcome.order_id] == outcome.remaining_lots
        else:
            assert isinstance(outcome, Canceled)
            assert left[outcome.order_id] == outcome.remaining_lots > 0
            left[outcome.order_id] = 0
    resting_lots = {each.order_id: each.remaining_lots for each in market.orders()}
    assert resting_lots == {order_id: remaining for order_id, remaining in left.items() if remaining}


@pytest.mark.examples
@examples(300)
@given(markets())
def test_no_event_gives_away_more_than_it_holds(case):
    has_book, events, orders = case
    told, _ = play(has_book, events, orders)
    sides = {each.order_id: each.side for _, each in orders}
    for event, outcomes in zip(events, told, strict=True):
        for side in Side:
            filled = [found for found in outcomes if isinstance(found, Fill) and sides[found.order_id] is side]
            if isinstance(event, Print):
                assert sum(found.quantity_lots for found in filled) <= event.quantity_lots
            else:
                offers = event.asks if side is BUY else event.bids
                assert sum(found.quantity_lots for found in filled) <= sum(level.quantity_lots for level in offers)
                for offer in offers:
                    taken = [f for f in filled if not f.maker and f.price_ticks == offer.price_ticks]
                    assert sum(f.quantity_lots for f in taken) <= offer.quantity_lots


@pytest.mark.examples
@examples(200)
@given(markets())
def test_a_fill_or_kill_order_trades_all_of_it_at_one_moment_or_nothing(case):
    has_book, events, orders = case
    told, _ = play(has_book, events, orders)
    for _, wanted in orders:
        if wanted.time_in_force is FOK:
            moments = [
                sum(
                    found.quantity_lots
                    for found in event
                    if isinstance(found, Fill) and found.order_id == wanted.order_id
                )
                for event in told
            ]
            assert [sold for sold in moments if sold] in ([], [wanted.remaining_lots])


@pytest.mark.examples
@examples(300)
@given(markets(), st.frozensets(st.integers(min_value=0, max_value=14)))
def test_stopping_anywhere_and_going_on_from_the_orders_gives_the_same_fills(case, restarts):
    has_book, events, orders = case
    told, market = play(has_book, events, orders)
    again, resumed = play(has_book, events, orders, restarts)
    assert again == told
    assert resumed.orders() == market.orders()


@pytest.mark.examples
@examples(200)
@given(markets(), st.randoms(use_true_random=False))
def test_the_order_of_submission_between_two_events_does_not_matter(case, random):
    has_book, events, orders = case
    told, _ = play(has_book, events, orders)
    shuffled = list(orders)
    random.shuffle(shuffled)
    assert play(has_book, events, shuffled)[0] == told


@pytest.mark.examples
@examples(200)
@given(markets())
def test_resting_orders_are_makers_at_their_own_limit(case):
    has_book, events, orders = case
    told, _ = play(has_book, events, orders)
    limits = {each.order_id: each.limit_ticks for _, each in orders}
    for outcome in (found for event in told for found in event):
        if isinstance(outcome, Fill) and outcome.maker:
            assert outcome.price_ticks == limits[outcome.order_id]
        if isinstance(outcome, Canceled):
            assert outcome.cause in (Cause.IOC, Cause.FOK)
