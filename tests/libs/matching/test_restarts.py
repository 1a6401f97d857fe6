"""Whatever orders there are and whatever happens to them: what holds at every step, and that a restart changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.market import Market
from libs.matching.orders import (
    Book,
    Fill,
    Level,
    Order,
    Outcome,
    Print,
    Replacement,
    Side,
    TimeInForce,
    Trail,
    Trigger,
)
from tests.examples import examples
from tests.libs.matching.making import BUY, FOK, GTC, IOC, SELL, order

ticks = st.integers(min_value=94, max_value=106)
sizes = st.integers(min_value=0, max_value=9)
times = st.integers(min_value=0, max_value=20)
trails = st.integers(1, 5).map(lambda ticks: Trail(ticks=ticks)) | st.integers(1, 400).map(
    lambda basis_points: Trail(basis_points=basis_points)
)


@dataclass(frozen=True)
class Submit:
    order: Order


@dataclass(frozen=True)
class Cancel:
    order_id: str


@dataclass(frozen=True)
class Change:
    order_id: str
    change: Replacement


Step = Print | Book | Submit | Cancel | Change


@st.composite
def some_orders(draw: st.DrawFn, order_id: str) -> Order:
    limit = draw(st.none() | ticks)
    trigger = draw(st.none() | st.sampled_from(list(Trigger)))
    forces: list[TimeInForce] = [IOC, FOK] if limit is None else [GTC] if trigger else [GTC, IOC, FOK]
    force = draw(st.sampled_from(forces))
    return order(
        order_id,
        draw(st.sampled_from(list(Side))),
        draw(st.integers(1, 12)),
        limit,
        force,
        active=draw(times),
        protection_ticks=draw(st.none() | ticks) if limit is None else None,
        expire_time_ns=draw(st.none() | times),
        post_only=force is GTC and draw(st.booleans()),
        trigger=trigger,
        stop_ticks=draw(ticks) if trigger else None,
        trail=draw(st.none() | trails) if trigger is Trigger.STOP else None,
        group=draw(st.sampled_from([None, None, "g", "h"])),
    )


replacements = st.builds(
    Replacement,
    quantity_lots=st.none() | st.integers(1, 12),
    limit_ticks=st.none() | ticks,
    stop_ticks=st.none() | ticks,
    trail=st.none() | trails,
)


@st.composite
def lives(draw: st.DrawFn) -> tuple[bool, list[Step]]:
    has_book = draw(st.booleans())
    steps: list[Step] = []
    placed = 0
    for time_ns in range(draw(st.integers(3, 20))):
        for _ in range(draw(st.integers(0, 2))):
            steps.append(Submit(draw(some_orders(f"o{placed}"))))
            placed += 1
        if placed and draw(st.integers(0, 3)) == 0:
            order_id = f"o{draw(st.integers(0, placed - 1))}"
            steps.append(Change(order_id, draw(replacements)) if draw(st.booleans()) else Cancel(order_id))
        middle = draw(ticks)
        if has_book and draw(st.booleans()):
            bids = tuple(Level(middle - 1 - step, draw(sizes)) for step in range(draw(st.integers(0, 3))))
            asks = tuple(Level(middle + 1 + step, draw(sizes)) for step in range(draw(st.integers(0, 3))))
            steps.append(Book(time_ns, bids, asks))
        else:
            steps.append(Print(time_ns, middle, draw(sizes)))
    return has_book, steps


def play(
    has_book: bool,
    steps: list[Step],
    look: Callable[[Market, Step, list[Outcome]], None] = lambda *_: None,
    restarts: frozenset[int] = frozenset(),
) -> tuple[list[list[Outcome] | str], Market]:
    """What each step gave; before a step in `restarts` the market is made anew of the orders it said had changed."""
    market, stored = Market(has_book=has_book, latency_ns=2, slippage_basis_points=60), {}
    told: list[list[Outcome] | str] = []
    now = 0
    for index, step in enumerate(steps):
        if index in restarts:
            stored |= {each.order_id: each for each in market.take_changed()}
            stored = {order_id: each for order_id, each in stored.items() if market.find(order_id)}
            market = Market(has_book=has_book, latency_ns=2, slippage_basis_points=60, orders=stored.values())
        outcomes: list[Outcome] = []
        match step:
            case Submit(order=placed):
                market.submit(placed)
                stored[placed.order_id] = placed
            case Cancel(order_id=order_id):
                market.cancel(order_id)
            case Change(order_id=order_id, change=change):
                try:
                    market.replace(order_id, change, now)
                except ValueError as error:
                    told.append(str(error))
                    continue
            case Print():
                now, outcomes = step.time_ns, market.on_print(step)
            case Book():
                now, outcomes = step.time_ns, market.on_book(step)
        told.append(outcomes)
        look(market, step, outcomes)
    return told, market


@pytest.mark.examples
@examples(200, deadline=None)
@given(lives(), st.frozensets(st.integers(min_value=0, max_value=60)))
def test_a_market_made_anew_of_its_orders_goes_on_as_the_old_one_would_have(life, restarts):
    has_book, steps = life
    told, market = play(has_book, steps)
    again, resumed = play(has_book, steps, restarts=restarts)
    assert again == told
    assert resumed.orders() == market.orders()


@pytest.mark.examples
@examples(150, deadline=None)
@given(lives())
def test_no_moment_gives_more_than_it_has_and_no_fill_is_worse_early_late_or_more_than_wanted(life):
    has_book, steps = life
    orders: dict[str, Order] = {}

    def look(market: Market, step: Step, outcomes: list[Outcome]) -> None:
        filled = {BUY: 0, SELL: 0}
        for found in outcomes:
            before = orders[found.order_id]
            if before.expire_time_ns is not None:
                assert found.time_ns <= before.expire_time_ns
            if isinstance(found, Fill):
                assert isinstance(step, (Print, Book))
                assert found.time_ns < (before.expire_time_ns or found.time_ns + 1)
                assert found.time_ns >= before.active_time_ns
                assert not before.waits_for_stop
                assert not (before.post_only and not found.maker)
                if before.worst_ticks is not None:
                    over = found.price_ticks - before.worst_ticks
                    assert (over if before.side is BUY else -over) <= 0
                filled[before.side] += found.quantity_lots
                assert (
                    0
                    < found.quantity_lots
                    <= before.remaining_lots
                    - sum(
                        other.quantity_lots
                        for other in outcomes[: outcomes.index(found)]
                        if isinstance(other, Fill)
                        and (
                            other.order_id == found.order_id or orders[other.order_id].group == before.group is not None
                        )
                    )
                )
        if isinstance(step, Print):
            assert max(filled.values()) <= step.quantity_lots
        elif isinstance(step, Book):
            assert filled[BUY] <= sum(level.quantity_lots for level in step.asks)
            assert filled[SELL] <= sum(level.quantity_lots for level in step.bids)
        orders.clear()
        orders.update({each.order_id: each for each in market.orders()})

    play(has_book, steps, look)


@pytest.mark.examples
@examples(100, deadline=None)
@given(lives())
def test_a_group_trades_no_more_than_its_largest_order_wanted(life):
    has_book, steps = life
    # A replacement to more is a wish for more, so it is left out here.
    steps = [step for step in steps if not isinstance(step, Change)]
    together = {step.order.order_id: step.order for step in steps if isinstance(step, Submit) and step.order.group}
    first = [Submit(each) for each in together.values()]
    steps = [*first, *(step for step in steps if not (isinstance(step, Submit) and step.order.group))]
    traded = {"g": 0, "h": 0}

    def look(_market: Market, _step: Step, outcomes: list[Outcome]) -> None:
        for found in outcomes:
            if isinstance(found, Fill) and found.order_id in together:
                traded[together[found.order_id].group or ""] += found.quantity_lots

    play(has_book, steps, look)
    for group, lots in traded.items():
        assert lots <= max((each.remaining_lots for each in together.values() if each.group == group), default=0)
