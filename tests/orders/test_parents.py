"""What parent orders do next: their schedules to the last lot, and whatever befalls them."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Invalid, Refusal
from libs.money import ZERO
from services.orders import life
from services.orders.domain import IllegalMove, Kind, Side, State, Switch
from services.orders.domain import Scope as Whose
from services.orders.parents import (
    CATCH_UP_TIMES,
    LIVE,
    MOVES,
    RETRY_MAX,
    SLICES_MAX,
    ParentMove,
    ParentState,
    moved,
    twap_target,
)
from tests.examples import examples
from tests.orders.accounts import BTC, NOW, QUOTE, fill_of
from tests.orders.parent_desk import Desk, OneMarket, dca, iceberg, total, twap

STALE = replace(QUOTE, age_seconds=60.0)


async def test_a_twap_divides_its_quantity_to_the_last_lot():
    desk = twap("1.000", seconds=70, interval=10)
    assert desk.parent.slices == 7
    await desk.steps()
    for _ in range(7):
        await desk.fill()
        await desk.later(10)
    assert desk.quantities == ["0.142", "0.143", "0.143", "0.143", "0.143", "0.143", "0.143"]
    assert total(desk.children) == 1
    assert (desk.parent.state, desk.parent.filled_quantity, desk.parent.open_children) == (ParentState.COMPLETED, 1, 0)
    assert [child.create_time for child in desk.children] == [NOW + timedelta(seconds=10) * n for n in range(7)]


async def test_what_a_twap_has_missed_is_made_up_by_twice_its_share_and_never_by_a_burst():
    desk = twap("1.000", seconds=100, interval=10)
    await desk.steps()
    await desk.fill()
    # Nobody is there for three slices.
    await desk.later(40)
    await desk.fill()
    for _ in range(5):
        await desk.later(10)
        await desk.fill()
    assert [child.slice_number for child in desk.children] == [1, 5, 6, 7, 8, 9, 10]
    assert desk.quantities == ["0.100", "0.200", "0.200", "0.200", "0.100", "0.100", "0.100"]
    assert [(skip.first_slice, skip.last_slice, skip.reason) for skip in desk.skips] == [(2, 4, "MISSED")]
    assert (desk.parent.skipped_slices, desk.parent.filled_quantity) == (3, 1)
    await desk.later(1)
    assert desk.parent.state is ParentState.COMPLETED


async def test_a_twap_whose_time_is_over_places_nothing_more():
    desk = twap("1.000", seconds=100, interval=10)
    await desk.steps()
    await desk.fill()
    await desk.later(100)
    assert len(desk.children) == 1
    assert (desk.parent.state, desk.parent.reason) == (ParentState.EXPIRED, "UNFILLED")
    assert [(skip.first_slice, skip.last_slice) for skip in desk.skips] == [(2, 10)]


async def test_a_twap_goes_on_with_what_a_canceled_child_has_left():
    desk = twap("0.300", seconds=30, interval=10, price="100")
    await desk.steps()
    await desk.fill(Decimal("0.05"))
    await desk.end(Kind.CANCELED)
    await desk.later(10)
    assert desk.quantities == ["0.100", "0.150"]


async def test_a_refused_slice_is_tried_again_until_the_next_one_begins():
    desk = twap("1.000", seconds=100, interval=10)
    desk.market.quoted = STALE
    await desk.steps()
    assert (desk.parent.refusal_reason, desk.parent.due_time) == ("NO_FRESH_PRICE", NOW + timedelta(seconds=1))
    await desk.later(1)
    assert desk.parent.due_time == NOW + timedelta(seconds=2)
    desk.market.quoted = QUOTE
    await desk.later(1)
    assert desk.quantities == ["0.100"]
    assert desk.parent.due_time == NOW + timedelta(seconds=10)
    await desk.fill()
    desk.market.quoted = STALE
    await desk.later(10)
    desk.market.quoted = QUOTE
    await desk.later(8)
    assert [(skip.first_slice, skip.last_slice, skip.reason) for skip in desk.skips] == [(2, 2, "NO_FRESH_PRICE")]
    assert desk.quantities == ["0.100", "0.200"]


@pytest.mark.parametrize("make", [lambda: twap("1.000", seconds=100, interval=10), lambda: iceberg("1", "0.1")])
async def test_a_kill_switch_pauses_a_parent_and_lifting_it_lets_it_go_on(make: Any):
    desk: Desk = make()
    desk.state.switches = [(Whose.GLOBAL, None, Switch.HALT)]
    await desk.steps()
    assert (desk.children, desk.parent.refusal_reason) == ([], "TRADING_HALTED")
    assert desk.parent.state is ParentState.ACTIVE
    desk.state.switches = []
    await desk.later(1)
    assert desk.quantities == ["0.100"] or desk.quantities == ["0.1"]


async def test_an_iceberg_shows_one_part_at_a_time_until_all_has_traded():
    desk = iceberg("1.000", "0.300")
    for number, quantity in enumerate(("0.300", "0.300", "0.300", "0.100"), 1):
        await desk.steps()
        assert [(child.slice_number, f"{child.quantity:f}") for child in desk.open] == [(number, quantity)]
        await desk.fill(Decimal("0.05"))
        await desk.steps()
        assert len(desk.open) == 1, "a part of the part is not enough"
        assert desk.parent.due_time is None
        await desk.fill()
    await desk.steps()
    assert total(desk.children) == 1
    assert desk.parent.state is ParentState.COMPLETED


@pytest.mark.parametrize(
    ("kind", "state", "reason"),
    [
        (Kind.CANCELED, ParentState.CANCELED, "CHILD_CANCELED"),
        (Kind.REJECTED, ParentState.FAILED, "CHILD_REJECTED"),
        (Kind.EXPIRED, ParentState.FAILED, "CHILD_EXPIRED"),
    ],
)
async def test_an_iceberg_ends_with_a_child_that_does(kind: Kind, state: ParentState, reason: str):
    desk = iceberg("1.000", "0.300")
    await desk.steps()
    await desk.end(kind)
    await desk.steps()
    assert (desk.parent.state, desk.parent.reason, len(desk.children)) == (state, reason, 1)
    await desk.later(10_000)
    assert len(desk.children) == 1


async def test_an_iceberg_that_is_refused_tries_again_less_and_less_often():
    desk = iceberg("1.000", "0.300", balance="1")
    tries = []
    for _ in range(20):
        tries.append((desk.now - NOW).total_seconds())
        await desk.steps()
        assert desk.parent.refusal_reason == "INSUFFICIENT_BALANCE"
        assert desk.parent.due_time is not None
        desk.now = desk.parent.due_time
    assert tries[:6] == [0, 1, 2, 4, 8, 16]
    assert tries[-1] - tries[-2] == RETRY_MAX.total_seconds()


async def test_a_purchase_is_for_what_its_amount_buys_at_that_moment():
    desk = dca(amount="50")
    await desk.steps()
    await desk.fill()
    desk.market.quoted = replace(QUOTE, ask=Decimal("60.00"))
    await desk.later(60)
    await desk.fill()
    desk.market.quoted = replace(QUOTE, ask=Decimal(90_000), bid=Decimal(89_999), last=Decimal(90_000))
    await desk.later(60)
    assert desk.quantities == ["0.499", "0.833"]
    assert desk.parent.refusal_reason == "NOTIONAL_TOO_SMALL"
    await desk.later(60)
    assert (desk.parent.state, desk.parent.skipped_slices) == (ParentState.COMPLETED, 1)


async def test_a_purchase_that_is_missed_is_skipped_and_never_doubled():
    desk = dca(quantity="0.1", purchases=5)
    desk.market.quoted = STALE
    await desk.steps()
    await desk.later(59)
    desk.market.quoted = QUOTE
    await desk.later(1)
    await desk.fill()
    await desk.later(180)
    assert [child.slice_number for child in desk.children] == [2, 5]
    assert desk.quantities == ["0.1", "0.1"]
    assert [(skip.first_slice, skip.last_slice, skip.reason) for skip in desk.skips] == [
        (1, 1, "NO_FRESH_PRICE"),
        (3, 4, "MISSED"),
    ]
    await desk.end(Kind.CANCELED)
    await desk.steps()
    assert (desk.parent.state, desk.parent.skipped_slices) == (ParentState.COMPLETED, 3)


async def test_a_fill_that_comes_after_its_child_was_canceled_leaves_less_to_place():
    desk = twap("0.300", seconds=30, interval=10)
    await desk.steps()
    first = desk.open[0]
    await desk.end(Kind.CANCELED)
    await desk.later(10)
    assert desk.quantities == ["0.100", "0.200"]
    await desk.tell(lambda state: fill_late(state, first))
    await desk.fill()
    await desk.later(10)
    assert desk.quantities == ["0.100", "0.200"]
    assert (desk.parent.state, desk.parent.filled_quantity) == (ParentState.COMPLETED, Decimal("0.3"))


def fill_late(state: Any, child: Any) -> None:
    late = state.orders[child.order_id]
    life.apply_fill(state, late, fill_of(late, "0.1", fill_id="late"), BTC, execution_id=late.order_id, now=NOW)


REFUSED = [
    (lambda: twap("1.0005", seconds=100, interval=10), "QUANTITY_OFF_LOT", ["twap.quantity"]),
    (lambda: twap("1", seconds=100, interval=10, price="100.001"), "PRICE_OFF_TICK", ["twap.limit_price"]),
    (lambda: twap("0.009", seconds=100, interval=10), "PARENT_ORDER_INVALID", ["twap.quantity"]),
    (lambda: twap("0.05", seconds=100, interval=10), "NOTIONAL_TOO_SMALL", []),
    (lambda: twap("1", seconds=0, interval=10), "PARENT_ORDER_INVALID", ["twap.end_time"]),
    (lambda: twap("1000", seconds=SLICES_MAX + 1, interval=1), "PARENT_ORDER_INVALID", ["twap.interval_seconds"]),
    (lambda: twap("1", seconds=400_000_000, interval=31_622_400), "PARENT_ORDER_INVALID", ["twap.end_time"]),
    (
        lambda: twap("1", seconds=100, interval=1, start_time=NOW + timedelta(days=3_661)),
        "PARENT_ORDER_INVALID",
        ["twap.start_time"],
    ),
    (lambda: iceberg("1", "0.0005"), "QUANTITY_OFF_LOT", ["iceberg.display_quantity"]),
    (lambda: iceberg("1", "0.009"), "NOTIONAL_TOO_SMALL", []),
    (lambda: iceberg("0.601", "0.3"), "NOTIONAL_TOO_SMALL", []),
    (lambda: iceberg("1001", "0.1"), "PARENT_ORDER_INVALID", ["iceberg.display_quantity"]),
    (lambda: dca(amount="0.01"), "PARENT_ORDER_INVALID", ["dca.amount"]),
    (lambda: dca(amount="0.5"), "NOTIONAL_TOO_SMALL", []),
    (lambda: dca(quantity="0.1", purchases=6_000_000), "PARENT_ORDER_INVALID", ["dca.purchases"]),
    (
        lambda: dca(quantity="0.1", purchases=SLICES_MAX, slice_interval=timedelta(days=366)),
        "PARENT_ORDER_INVALID",
        ["dca.purchases"],
    ),
    (lambda: dca(quantity="0.1", market=OneMarket(quoted=None)), "NO_FRESH_PRICE", []),
]


@pytest.mark.parametrize(("make", "reason", "fields"), REFUSED)
def test_what_could_never_be_placed_is_refused_before_anything_begins(make: Any, reason: str, fields: list[str]):
    with pytest.raises(Refusal) as refused:
        make()
    assert refused.value.reason == reason
    assert (list(refused.value.violations) if isinstance(refused.value, Invalid) else []) == fields


def test_what_is_done_stays_so_and_canceling_leads_to_no_new_child():
    parent = twap("1", seconds=100, interval=10).parent
    for state in ParentState:
        for move in ParentMove:
            if (state, move) in MOVES:
                assert state in LIVE
                continue
            with pytest.raises(IllegalMove):
                moved(replace(parent, state=state), move, NOW)
    assert {after for (before, _), after in MOVES.items() if before is ParentState.CANCELING} == {
        ParentState.CANCELED,
        ParentState.COMPLETED,
    }


@given(lots=st.integers(1, 10**7), slices=st.integers(1, SLICES_MAX), number=st.integers(0, SLICES_MAX - 1))
def test_a_twaps_shares_are_even_whole_lots_and_exactly_its_quantity(lots: int, slices: int, number: int):
    parent = replace(twap("100", seconds=10, interval=10).parent, quantity=lots * BTC.lot_size, slices=slices)
    assert (twap_target(parent, 0, BTC), twap_target(parent, slices, BTC)) == (0, parent.quantity)
    number %= slices
    share = (twap_target(parent, number + 1, BTC) - twap_target(parent, number, BTC)) / BTC.lot_size
    assert share in (lots // slices, lots // slices + 1)


HAPPENINGS = st.one_of(
    st.tuples(st.just("later"), st.floats(0, 40)),
    st.tuples(st.just("step"), st.one_of(st.none(), st.integers(0, 6))),
    st.tuples(st.just("fill"), st.one_of(st.none(), st.integers(1, 200))),
    st.tuples(st.just("end"), st.sampled_from([Kind.CANCELED, Kind.REJECTED, Kind.EXPIRED, Kind.UNKNOWN])),
    st.tuples(st.just("quoted"), st.booleans()),
    st.tuples(st.just("cancel"), st.none()),
)
DESKS = st.one_of(
    st.builds(
        lambda lots, slices: twap(f"{lots * slices}e-3", seconds=10 * slices, interval=10),
        st.integers(10, 200),
        st.integers(1, 8),
    ),
    st.builds(lambda lots, times: iceberg(f"{lots * times}e-3", f"{lots}e-3"), st.integers(10, 99), st.integers(1, 9)),
    st.builds(lambda lots, times: dca(quantity=f"{lots}e-3", purchases=times), st.integers(10, 99), st.integers(1, 9)),
)


@pytest.mark.examples
@examples(150, deadline=None)
@given(desk=DESKS, happenings=st.lists(HAPPENINGS, max_size=40))
def test_whatever_happens_children_never_exceed_their_parent_and_no_slice_has_two(
    desk: Desk, happenings: list[tuple[str, Any]]
):
    asyncio.run(befall(desk, happenings))


async def befall(desk: Desk, happenings: list[tuple[str, Any]]) -> None:
    was_canceled_with = None
    for what, how in happenings:
        match what:
            case "later":
                desk.now += timedelta(seconds=how)
            case "step":
                await desk.step(how)
            case "fill":
                await desk.fill(None if how is None else how * BTC.lot_size)
            case "end" if how is Kind.UNKNOWN:
                pass
            case "end":
                await desk.end(how)
            case "quoted":
                desk.market.quoted = QUOTE if how else STALE
            case "cancel":
                if desk.parent.state is ParentState.ACTIVE:
                    was_canceled_with = len(desk.children)
                    desk.parent = moved(desk.parent, ParentMove.CANCEL_REQUESTED, desk.now)
        check(desk, was_canceled_with)
    # All that is still to come, comes: a parent ends, with exactly what it says.
    desk.market.quoted = QUOTE
    for _ in range(60):
        await desk.later(60)
        if desk.parent.state is ParentState.CANCELING:
            await desk.end(Kind.CANCELED)
        await desk.fill()
        check(desk, was_canceled_with)
    assert desk.parent.state not in LIVE
    if desk.parent.state is ParentState.COMPLETED and desk.parent.quantity is not None:
        assert desk.parent.filled_quantity == desk.parent.quantity


def check(desk: Desk, was_canceled_with: int | None) -> None:
    parent, children = desk.parent, desk.children
    traded = sum((child.filled_quantity for child in children), ZERO)
    assert parent.filled_quantity == traded
    assert parent.working_quantity == sum((child.open_quantity for child in children), ZERO)
    assert parent.open_children == len(desk.open)
    numbers = [child.slice_number for child in children]
    assert len(set(numbers)) == len(numbers) <= parent.slices
    if parent.quantity is not None:
        assert parent.committed <= parent.quantity
    if parent.kind.value == "iceberg":
        assert len(desk.open) <= 1
    if parent.kind.value == "twap":
        assert parent.quantity is not None
        largest = -(-parent.quantity // (BTC.lot_size * parent.slices)) * BTC.lot_size
        assert all(child.quantity <= CATCH_UP_TIMES * largest for child in children)
    if was_canceled_with is not None:
        assert len(children) == was_canceled_with
    # A slice is over with once, by a child, by a skip, or because nothing was left to place.
    skipped = [n for skip in desk.skips for n in range(skip.first_slice, skip.last_slice + 1)]
    assert len(skipped) == len(set(skipped)) == parent.skipped_slices
    assert not set(skipped) & set(numbers)


async def test_a_step_that_is_killed_at_any_point_and_done_again_places_the_same_child():
    whole = twap("1.000", seconds=100, interval=10)
    await whole.steps()
    for dies_after in range(12):
        desk = twap("1.000", seconds=100, interval=10)
        await desk.step(dies_after)
        await desk.steps()
        assert (desk.quantities, desk.parent.slice_number) == (whole.quantities, 1), dies_after


async def test_an_iceberg_that_is_looked_at_while_a_part_is_open_places_nothing_beside_it():
    desk = iceberg("1.000", "0.300")
    await desk.steps()
    desk.parent = replace(desk.parent, due_time=desk.now)
    assert await desk.step()
    assert (len(desk.children), desk.parent.due_time) == (1, None)


def test_a_twap_sells_as_it_buys():
    desk = twap("0.2", seconds=20, interval=10, side=Side.SELL)
    asyncio.run(desk.steps())
    assert [(child.side, child.state) for child in desk.children] == [(Side.SELL, State.PENDING_NEW)]
