"""What may happen to an order at a venue, and what a change or a release makes of it."""

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.matching.orders import Side
from services.execution import domain
from services.execution.domain import (
    OPEN,
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Expired,
    Filled,
    IllegalMove,
    Order,
    OrderType,
    Rejected,
    Release,
    Replaced,
    Replacement,
    ReplaceRejected,
    State,
    TimeInForce,
    Triggered,
    Unknown,
)

CHANGE = Replacement(client_order_id="c2", quantity=Decimal(8))
EVENTS: list[Event] = [
    Accepted(venue_order_id="v1", time_ns=1),
    Filled(
        venue_fill_id="f1",
        price=Decimal(100),
        quantity=Decimal(1),
        fee=Decimal(0),
        fee_asset="USDT",
        maker=True,
        time_ns=1,
    ),
    Triggered(stop_price=Decimal(95), time_ns=7),
    Canceled(cause="user", time_ns=1),
    Expired(time_ns=1),
    Rejected(reason="post_only", time_ns=1),
    CancelRejected(reason="done", time_ns=1),
    Replaced(replacement=CHANGE, venue_order_id="v2", time_ns=1),
    ReplaceRejected(client_order_id="c2", reason="done", time_ns=1),
    Unknown(reason="timeout", time_ns=1),
]
BECOMES = {
    "intended": "Accepted working, Canceled canceled, Rejected rejected",
    "sending": "Accepted working, Rejected rejected, Unknown unknown",
    "unknown": "Accepted working, Filled working, Canceled canceled, Expired expired, Rejected rejected",
    "working": (
        "Filled working, Triggered working, Canceled canceled, Expired expired, Rejected rejected, Replaced working, "
        "ReplaceRejected working"
    ),
    "filled": "CancelRejected filled, ReplaceRejected filled",
    **{
        done: f"Filled {done}, CancelRejected {done}, ReplaceRejected {done}"
        for done in ("canceled", "rejected", "expired")
    },
}


def order(**changed: Any) -> Order:
    values: dict[str, Any] = {
        "order_id": UUID(int=1),
        "user_id": uuid4(),
        "account_id": uuid4(),
        "venue": "PAPER",
        "instrument_id": "SIM:BTCUSDT",
        "side": Side.SELL,
        "order_type": OrderType.STOP,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal(5),
        "worst_price": Decimal(90),
        "stop_price": Decimal(95),
        "active_time_ns": 1,
        "client_order_id": "c1",
        "state": State.WORKING,
        **changed,
    }
    return Order(**values)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_moves_an_order_as_the_table_says_or_is_a_defect(state: State, event: Event):
    becomes = dict(move.split() for move in BECOMES[state.value].split(", "))
    before = order(state=state)
    if (expected := becomes.get(type(event).__name__)) is None:
        with pytest.raises(IllegalMove):
            domain.apply(before, event)
    else:
        assert domain.apply(before, event).state is State(expected)


def test_the_last_fill_ends_an_order_and_more_than_it_wants_is_a_defect():
    fill = EVENTS[1]
    assert isinstance(fill, Filled)
    assert domain.apply(order(filled_quantity=Decimal(4)), fill).state is State.FILLED
    with pytest.raises(IllegalMove):
        domain.apply(order(filled_quantity=Decimal("4.5")), fill)


def test_an_event_leaves_what_it_says_in_the_order():
    accepted = domain.apply(order(state=State.INTENDED), EVENTS[0])
    assert accepted.venue_order_id == "v1"
    triggered = domain.apply(accepted, EVENTS[2])
    assert (triggered.trigger_time_ns, triggered.rests) == (7, False)
    replaced = domain.apply(accepted, EVENTS[7])
    assert (replaced.client_order_id, replaced.venue_order_id, replaced.quantity) == ("c2", "v2", Decimal(8))


def test_a_moved_stop_moves_its_protection_with_it_and_never_further_away():
    moved = domain.changed(order(), Replacement(client_order_id="c2", stop_price=Decimal(190)))
    assert (moved.stop_price, moved.worst_price) == (Decimal(190), Decimal(180))
    third = domain.changed(order(stop_price=Decimal(93)), Replacement(client_order_id="c2", stop_price=Decimal(100)))
    assert third.worst_price == Decimal("96.774193548387096775")
    limited = order(order_type=OrderType.STOP_LIMIT)
    assert domain.changed(limited, Replacement(client_order_id="c2", stop_price=Decimal(190))).worst_price == Decimal(
        90
    )


@pytest.mark.parametrize(
    ("before", "change", "why"),
    [
        ({"filled_quantity": Decimal(2)}, {"quantity": Decimal(2)}, "2 has traded already"),
        ({}, {"limit_price": Decimal(90)}, "no limit price"),
        ({"order_type": OrderType.LIMIT}, {"stop_price": Decimal(90)}, "no stop price"),
        ({"trigger_time_ns": 5}, {"stop_price": Decimal(90)}, "reached already"),
        ({}, {"trail_amount": Decimal(1)}, "does not trail"),
    ],
)
def test_a_change_that_does_not_fit_says_why(before: dict[str, Any], change: dict[str, Any], why: str):
    with pytest.raises(ValueError, match=why):
        domain.changed(order(**before), Replacement(client_order_id="c2", **change))


def leg(**changed: Any) -> Order:
    """One that was released for 5 of 8."""
    return order(released_quantity=Decimal(5), held_back=Decimal(3), **changed)


def release(held_back: int | None, *, is_last: bool = False, group_filled: int = 0) -> Release:
    return Release(
        held_back=None if held_back is None else Decimal(held_back), is_last=is_last, group_filled=Decimal(group_filled)
    )


def test_a_release_adds_to_what_the_venue_may_trade_less_what_the_group_has_traded():
    more = domain.released(leg(), release(1, group_filled=2))
    assert (more.released_quantity, more.held_back, more.quantity) == (Decimal(7), Decimal(1), Decimal(5))
    assert domain.released(more, release(1)) == more
    assert domain.released(more, release(2)) == more


def test_a_filled_leg_works_again_and_one_that_ended_otherwise_does_not():
    filled = leg(state=State.FILLED, filled_quantity=Decimal(5))
    again = domain.released(filled, release(1))
    assert (again.state, again.remaining) == (State.WORKING, Decimal(2))
    assert domain.released(filled, release(None, is_last=True)) == filled
    for state in set(State) - OPEN - {State.FILLED}:
        ended = replace(filled, state=state)
        assert domain.released(ended, release(1)) == ended


def test_the_last_word_holds_nothing_back():
    last = domain.released(leg(), release(None, is_last=True))
    assert (last.held_back, last.quantity, last.released_quantity) == (0, Decimal(5), Decimal(5))


def test_what_the_others_of_a_group_trade_never_leaves_less_than_has_traded():
    assert domain.less(order(filled_quantity=Decimal(3)), Decimal(1)).quantity == Decimal(4)
    assert domain.less(order(filled_quantity=Decimal(3)), Decimal(4)).quantity == Decimal(3)
