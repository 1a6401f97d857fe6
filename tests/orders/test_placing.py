"""Which orders are accepted, what they cost at their worst, and which of a group's are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from libs.errors import Refusal
from libs.ids import uuid7
from services.orders import books, life, placing, replacing
from services.orders.domain import (
    AccountState,
    Execution,
    GroupKind,
    GroupRole,
    Kind,
    Order,
    OrderType,
    Quote,
    Replacement,
    Side,
    State,
    Ticket,
    TimeInForce,
    Trail,
)
from tests.orders.accounts import (
    BTC,
    LIMITS,
    NOW,
    QUOTE,
    account_with,
    apply_fill,
    as_it_is,
    fill_of,
    live_account_with,
    place,
    ticket,
    weighing,
)

D = Decimal
STALE = replace(QUOTE, age_seconds=60.0)
PAST = Quote(bid=None, ask=None, last=D(100), market_time=datetime(2020, 5, 4, 10, 0, tzinfo=UTC), age_seconds=0.1)


def of_type(order_type: OrderType, side: Side = Side.BUY, **other: Any) -> Ticket:
    return ticket(side, "1", other.pop("price", None), order_type=order_type, **other)


def refused(state: AccountState, asked: Ticket, **other: Any) -> Refusal:
    before = as_it_is(state)
    with pytest.raises(Refusal) as found:
        place(state, asked, **other)
    assert state == before
    return found.value


@pytest.mark.parametrize(
    ("asked", "stop_price", "protection_price", "reserved"),
    [
        # A stop that buys at 110 takes no more than 5 % beyond it.
        (of_type(OrderType.STOP, stop_price=D(110)), D(110), D("115.5"), D("115.5") * D("1.001")),
        (of_type(OrderType.STOP_LIMIT, stop_price=D(110), price="112"), D(110), None, D(112) * D("1.001")),
        (of_type(OrderType.TAKE_PROFIT, stop_price=D(90)), D(90), D("94.5"), D("94.5") * D("1.001")),
        (of_type(OrderType.TAKE_PROFIT, stop_price=D(90), price="91"), D(90), None, D(91) * D("1.001")),
        (of_type(OrderType.STOP, Side.SELL, stop_price=D(90)), D(90), D("85.5"), D(1)),
        # Its stop only falls from where it begins: 100 and 5.
        (of_type(OrderType.TRAILING_STOP, trail=Trail(amount=D(5))), D(105), D("110.25"), D("110.25") * D("1.001")),
        (of_type(OrderType.TRAILING_STOP, Side.SELL, trail=Trail(amount=D(5))), D(95), None, D(1)),
        # 100 and 1.37 % of it, onto the grid of cents away from the price.
        (of_type(OrderType.TRAILING_STOP, trail=Trail(percent=D("1.37"))), D("101.37"), D("106.43"), None),
    ],
)
def test_an_order_sets_aside_its_worst(
    asked: Ticket, stop_price: Decimal | None, protection_price: Decimal | None, reserved: Decimal | None
):
    state = account_with(USDT="1000", BTC="2")
    order = place(state, asked)
    assert (order.stop_price, order.protection_price) == (stop_price, protection_price)
    assert reserved is None or order.reserved == reserved
    assert state.balance(order.reserved_asset).reserved == order.reserved


def test_where_a_trailing_stop_begins_is_rounded_away_from_the_price():
    odd = replace(QUOTE, last=D("100.013"))
    for side, begins in ((Side.BUY, D("101.52")), (Side.SELL, D("98.51"))):
        order = place(
            account_with(USDT="1000", BTC="2"),
            of_type(OrderType.TRAILING_STOP, side, trail=Trail(percent=D("1.5"))),
            quote=odd,
        )
        assert order.stop_price == begins


@pytest.mark.parametrize(
    ("asked", "quote", "reason"),
    [
        (of_type(OrderType.STOP, stop_price=D(100)), QUOTE, "STOP_WOULD_TRIGGER"),
        (of_type(OrderType.STOP, Side.SELL, stop_price=D(100)), QUOTE, "STOP_WOULD_TRIGGER"),
        (of_type(OrderType.STOP_LIMIT, stop_price=D(99), price="120"), QUOTE, "STOP_WOULD_TRIGGER"),
        (of_type(OrderType.TAKE_PROFIT, stop_price=D(101)), QUOTE, "STOP_WOULD_TRIGGER"),
        (of_type(OrderType.TAKE_PROFIT, Side.SELL, stop_price=D(99)), QUOTE, "STOP_WOULD_TRIGGER"),
        # Nothing is known of where the price is.
        (of_type(OrderType.STOP, stop_price=D(100)), STALE, ""),
        (of_type(OrderType.STOP, stop_price=D(100)), None, ""),
        (of_type(OrderType.TRAILING_STOP, trail=Trail(amount=D(5))), STALE, "NO_FRESH_PRICE"),
        (of_type(OrderType.TRAILING_STOP, Side.SELL, trail=Trail(amount=D(5))), None, ""),
        (of_type(OrderType.STOP, stop_price=D("110.001")), QUOTE, "STOP_OFF_TICK"),
        (of_type(OrderType.TRAILING_STOP, trail=Trail(amount=D("5.001"))), QUOTE, "STOP_OFF_TICK"),
        (of_type(OrderType.TRAILING_STOP, Side.SELL, trail=Trail(amount=D(100))), QUOTE, "INVALID_FIELDS"),
    ],
)
def test_a_stop_is_refused_only_for_what_is_known(asked: Ticket, quote: Quote | None, reason: str):
    state = account_with(USDT="1000", BTC="2")
    if reason:
        assert refused(state, asked, quote=quote).reason == reason
    else:
        assert place(state, asked, quote=quote).state is State.PENDING_NEW


@pytest.mark.parametrize(
    ("zone", "market_time", "ends"),
    [
        ("UTC", datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 1, 1, 3, tzinfo=UTC), datetime(2026, 1, 1, 5, tzinfo=UTC)),
        # The night in which the clocks go forward.
        ("America/New_York", datetime(2026, 3, 8, 15, tzinfo=UTC), datetime(2026, 3, 9, 4, tzinfo=UTC)),
        ("Asia/Tokyo", datetime(2020, 5, 4, 16, tzinfo=UTC), datetime(2020, 5, 5, 15, tzinfo=UTC)),
    ],
)
def test_a_day_ends_at_midnight_where_the_instrument_is_traded(zone: str, market_time: datetime, ends: datetime):
    order = place(
        account_with(USDT="1000"),
        ticket(time_in_force=TimeInForce.DAY),
        instrument=replace(BTC, time_zone=zone),
        quote=replace(QUOTE, market_time=market_time),
    )
    assert order.expire_time == ends


def test_what_expires_is_measured_by_the_time_of_the_market():
    good = ticket(time_in_force=TimeInForce.GTD, expire_time=PAST.market_time + timedelta(seconds=1))
    assert place(account_with(USDT="1000"), good, quote=PAST).expire_time == good.expire_time
    late = replace(good, expire_time=PAST.market_time + timedelta(milliseconds=999))
    assert refused(account_with(USDT="1000"), late, quote=PAST).reason == "EXPIRE_TIME_PAST"
    # Without a quote, and for real money, by ours.
    assert refused(account_with(USDT="1000"), good, quote=None).reason == "EXPIRE_TIME_PAST"
    live = live_account_with(USDT="1000")
    good = replace(good, order_type=OrderType.STOP, limit_price=None, stop_price=D(110))
    assert refused(live, good, quote=PAST).reason == "EXPIRE_TIME_PAST"
    before_midnight = replace(QUOTE, market_time=datetime(2026, 1, 1, 23, 59, 59, 500_000, tzinfo=UTC))
    day = ticket(time_in_force=TimeInForce.DAY)
    assert refused(account_with(USDT="1000"), day, quote=before_midnight).reason == "EXPIRE_TIME_PAST"


def test_what_a_venue_has_not_and_nothing_here_can_stand_for_is_refused_for_real_money():
    live = live_account_with(USDT="1000", BTC="2")
    gone = NOW + timedelta(days=1)
    ends = ticket(time_in_force=TimeInForce.GTD, expire_time=gone)
    told = refused(live, ends)
    assert (told.reason, told.metadata) == ("NOT_TAKEN_BY_VENUE", {"venue": "SIM", "order_type": "LIMIT"})
    assert refused(live, ticket(post_only=True)).reason == "NOT_TAKEN_BY_VENUE"
    # As a limit order it would have to end at the venue; as a market order it ends at once.
    stop_limit = of_type(OrderType.STOP_LIMIT, price="120", stop_price=D(110), time_in_force=TimeInForce.DAY)
    assert refused(live, stop_limit).reason == "NOT_TAKEN_BY_VENUE"
    with pytest.raises(Refusal) as found:
        group(live, GroupKind.OCO, ticket(Side.SELL, price="110"), replace(ends, side=Side.SELL))
    assert found.value.reason == "NOT_TAKEN_BY_VENUE"
    stop = of_type(OrderType.STOP, stop_price=D(110), time_in_force=TimeInForce.DAY)
    assert place(live, stop).state is State.HELD


# Only reducing


def holding(quantity: str) -> AccountState:
    """An account that has bought so much, or sold it short of what it began with."""
    state = account_with(USDT="10000", BTC="50")
    side = Side.BUY if D(quantity) > 0 else Side.SELL
    trade = Execution(
        execution_id=uuid4(),
        order_id=uuid4(),
        user_id=uuid4(),
        account_id=uuid4(),
        instrument_id=BTC.instrument_id,
        side=side,
        price=D(100),
        quantity=abs(D(quantity)),
        fee=D(0),
        fee_asset="USDT",
        maker=False,
        venue_fill_id="before",
        time=NOW,
    )
    books.book(state, trade, BTC, fee_worth=D(0), now=NOW)
    return state


def less(quantity: str, side: Side = Side.SELL, **other: Any) -> Ticket:
    return ticket(side, quantity, "110" if side is Side.SELL else "90", reduce_only=True, **other)


def test_what_only_reduces_is_for_no_more_than_the_position_less_what_others_reduce():
    state = holding("2")
    assert refused(state, less("0.1", Side.BUY)).metadata == {"quantity": "0.1", "reducible": "0"}
    assert refused(state, less("2.1")).reason == "NOT_REDUCING"
    place(state, less("1.5"))
    assert refused(state, less("0.6")).metadata == {"quantity": "0.6", "reducible": "0.5"}
    place(state, less("0.5"))
    assert refused(state, less("0.01")).reason == "NOT_REDUCING"
    place(state, ticket(Side.SELL, "3", "110"))  # what may do more is not asked
    assert place(holding("-2"), less("2", Side.BUY)).reduce_only


def test_what_would_no_longer_reduce_is_canceled_the_newest_first_with_the_trade_that_makes_it_so():
    state = holding("2")
    first, second, third = (place(state, less(quantity)) for quantity in ("0.5", "0.5", "0.5"))
    other = place(state, ticket(Side.SELL, "1", "100"))
    apply_fill(state, other, fill_of(other, "0.5", "100"))
    assert [state.orders[each.order_id].state for each in (first, second, third)] == [State.PENDING_NEW] * 3
    apply_fill(state, state.orders[other.order_id], fill_of(other, "0.5", "100", fill_id="f2"))
    assert [state.orders[each.order_id].state for each in (first, second, third)] == [
        State.PENDING_NEW,
        State.PENDING_NEW,
        State.PENDING_CANCEL,
    ]
    # Their own trades take nothing from anybody.
    apply_fill(state, state.orders[first.order_id], fill_of(first, "0.5", "110", fill_id="f3"))
    assert state.orders[second.order_id].state is State.PENDING_NEW
    assert [event.kind for event in state.events][-3:] == [Kind.FILLED, Kind.CANCEL_REQUESTED, Kind.FILLED]


def test_two_legs_that_only_reduce_share_what_they_reduce():
    state = holding("1")
    group(state, GroupKind.OCO, less("1"), replace(less("1"), limit_price=D(120)))
    assert refused(state, less("0.01")).reason == "NOT_REDUCING"


# Groups


def group(state: AccountState, kind: GroupKind, *tickets: Ticket) -> list[Order]:
    return placing.place_group(
        state,
        kind,
        tickets,
        instrument=BTC,
        quote=QUOTE,
        limits=LIMITS,
        weighing=weighing(state),
        group_id=uuid7(),
        next_id=uuid7,
        now=NOW,
    )


STOP_OUT = ticket(Side.SELL, "1", None, order_type=OrderType.STOP, stop_price=D(90))
TAKE_OUT = ticket(Side.SELL, "1", "110")


def test_two_legs_set_aside_the_more_of_both_and_the_one_that_stays_what_it_needs():
    state = account_with(USDT="1000")
    cheap = ticket(Side.BUY, "1", "90")
    dear = ticket(Side.BUY, "1", None, order_type=OrderType.STOP, stop_price=D(110))
    one, other = group(state, GroupKind.OCO, cheap, dear)
    assert (one.group_role, other.group_role) == (GroupRole.LEG, GroupRole.LEG)
    assert state.balance("USDT").reserved == D("115.5") * D("1.001")
    life.apply_ended(state, other, Kind.CANCELED, "user", NOW)
    assert state.balance("USDT").reserved == D(90) * D("1.001")
    assert state.orders[one.order_id].state is State.PENDING_NEW


def test_what_one_leg_trades_is_taken_off_the_other_and_reduced_to_nothing_it_waits_for_the_venue():
    state = account_with(BTC="1")
    one, other = group(state, GroupKind.OCO, TAKE_OUT, STOP_OUT)
    assert state.balance("BTC").reserved == 1
    apply_fill(state, one, fill_of(one, "0.4", "110"))
    other = state.orders[other.order_id]
    assert (other.quantity, other.state) == (D("0.6"), State.PENDING_NEW)
    apply_fill(state, state.orders[one.order_id], fill_of(one, "0.6", "110", fill_id="f2"))
    other = state.orders[other.order_id]
    assert (other.quantity, other.state, other.reserved) == (0, State.PENDING_NEW, 0)
    life.apply_ended(state, other, Kind.CANCELED, "group", NOW)
    assert state.orders[other.order_id].reason == "group"
    assert state.account.open_orders == 0


def test_a_bracket_waits_is_released_as_it_is_entered_and_leaves_once():
    state = account_with(USDT="1000")
    entry, take, stop = group(state, GroupKind.BRACKET, ticket(quantity="1"), TAKE_OUT, STOP_OUT)
    assert [each.state for each in (entry, take, stop)] == [State.PENDING_NEW, State.HELD, State.HELD]
    assert state.balance("BTC").reserved == 0
    told = replace(fill_of(entry, "0.3"), time=NOW + timedelta(seconds=5))
    apply_fill(state, entry, told)
    take, stop = state.orders[take.order_id], state.orders[stop.order_id]
    for leg in (take, stop):
        assert (leg.state, leg.released_quantity, leg.market_time) == (State.PENDING_NEW, D("0.3"), told.time)
    assert [event.kind for event in state.events][-3:] == [Kind.FILLED, Kind.RELEASED, Kind.RELEASED]
    assert state.balance("BTC").reserved == D("0.3")
    # All that was released leaves; then more is entered, and released.
    apply_fill(state, take, fill_of(take, "0.3", "110", fill_id="f2"))
    assert state.orders[stop.order_id].at_venue == 0
    apply_fill(state, state.orders[entry.order_id], fill_of(entry, "0.7", fill_id="f3"))
    take, stop = state.orders[take.order_id], state.orders[stop.order_id]
    assert (take.at_venue, stop.at_venue, stop.quantity, stop.released_quantity) == (
        D("0.7"),
        D("0.7"),
        D("0.7"),
        D("0.7"),
    )
    assert state.balance("BTC").reserved == D("0.7")


def test_an_entry_that_ends_leaves_its_legs_for_what_it_has_traded():
    state = account_with(USDT="1000")
    entry, take, stop = group(state, GroupKind.BRACKET, ticket(quantity="1"), TAKE_OUT, STOP_OUT)
    entry = apply_fill(state, entry, fill_of(entry, "0.3"))
    life.apply_ended(state, entry, Kind.EXPIRED, "gtd", NOW)
    for leg in (state.orders[take.order_id], state.orders[stop.order_id]):
        assert (leg.state, leg.quantity) == (State.PENDING_NEW, D("0.3"))
    assert [event.kind for event in state.events][-3:] == [Kind.EXPIRED, Kind.REDUCED, Kind.REDUCED]


@pytest.mark.parametrize("kind", [GroupKind.BRACKET, GroupKind.OTO])
def test_what_waits_for_an_entry_that_never_trades_is_canceled_with_it(kind: GroupKind):
    state = account_with(USDT="1000")
    entry, *others = group(state, kind, ticket(quantity="2"), TAKE_OUT, STOP_OUT)
    life.apply_ended(state, entry, Kind.REJECTED, "no", NOW)
    for other in others:
        found = state.orders[other.order_id]
        assert (found.state, found.reason) == (State.CANCELED, "group")
    assert state.balance("USDT").reserved == state.account.open_orders == 0


def test_one_triggers_the_other_when_all_of_it_has_traded():
    state = account_with(USDT="1000")
    entry, other = group(state, GroupKind.OTO, ticket(quantity="1"), TAKE_OUT)
    entry = apply_fill(state, entry, fill_of(entry, "0.4"))
    assert state.orders[other.order_id].state is State.HELD
    # What was bought for it is not sold twice.
    assert refused(state, ticket(Side.SELL, "0.4", "110")).reason == "INSUFFICIENT_BALANCE"
    apply_fill(state, entry, fill_of(entry, "0.6", fill_id="f2"))
    found = state.orders[other.order_id]
    assert (found.state, found.group_role) == (State.PENDING_NEW, GroupRole.TRIGGERED)
    assert (found.released_quantity, found.reserved) == (1, 1)


def test_what_is_held_is_canceled_and_changed_here_and_at_once():
    state = account_with(USDT="1000")
    _, take, stop = group(state, GroupKind.BRACKET, ticket(quantity="1"), TAKE_OUT, STOP_OUT)
    life.request_cancel(state, take, NOW)
    assert state.orders[take.order_id].state is State.CANCELED
    change = Replacement(client_order_id=uuid4(), stop_price=D(85))
    asked: dict[str, Any] = {
        "instrument": BTC,
        "quote": QUOTE,
        "limits": LIMITS,
        "weighing": weighing(state),
        "now": NOW,
    }
    changed = replacing.replace_order(state, stop, change, **asked)
    assert (changed.state, changed.stop_price, changed.protection_price) == (State.HELD, 85, D("80.75"))
    assert changed.client_order_id == stop.order_id


@pytest.mark.parametrize(
    ("kind", "tickets", "fields"),
    [
        (GroupKind.OCO, [TAKE_OUT], {"orders"}),
        (GroupKind.OCO, [TAKE_OUT, STOP_OUT, STOP_OUT], {"orders"}),
        (GroupKind.OCO, [TAKE_OUT, ticket(Side.BUY, "1", "90")], {"orders[1].side"}),
        (GroupKind.OCO, [TAKE_OUT, replace(STOP_OUT, quantity=D(2))], {"orders[1].quantity"}),
        (
            GroupKind.OCO,
            [TAKE_OUT, ticket(Side.SELL, "1", None, TimeInForce.IOC)],
            {"orders[1].order_type", "orders[1].time_in_force"},
        ),
        (GroupKind.BRACKET, [ticket(), TAKE_OUT], {"orders"}),
        (GroupKind.BRACKET, [ticket(), TAKE_OUT, ticket(price="90")], {"orders[2].side"}),
        (GroupKind.BRACKET, [ticket(quantity="0.5"), TAKE_OUT, STOP_OUT], {"orders[1].quantity", "orders[2].quantity"}),
        (GroupKind.OTO, [ticket(), TAKE_OUT, STOP_OUT], {"orders"}),
        (
            GroupKind.OTO,
            [TAKE_OUT, of_type(OrderType.TRAILING_STOP, trail=Trail(amount=D(5)))],
            {"orders[1].order_type"},
        ),
    ],
)
def test_orders_that_do_not_depend_on_each_other_are_no_group(kind: GroupKind, tickets: list[Ticket], fields: set[str]):
    state = account_with(USDT="1000", BTC="5")
    before = as_it_is(state)
    with pytest.raises(Refusal) as found:
        group(state, kind, *tickets)
    assert (found.value.reason, found.value.metadata) == ("GROUP_INVALID", {"kind": kind.name})
    assert set(getattr(found.value, "violations", {})) == fields
    assert state == before


def test_of_a_group_in_which_one_is_refused_none_is_placed():
    state = account_with(USDT="1000")
    before = as_it_is(state)
    with pytest.raises(Refusal) as found:
        group(state, GroupKind.BRACKET, ticket(quantity="1"), TAKE_OUT, replace(STOP_OUT, stop_price=D("90.001")))
    assert found.value.reason == "STOP_OFF_TICK"
    assert set(getattr(found.value, "violations", {})) == {"orders[2].stop_price"}
    assert state == before


# Changes


def working(state: AccountState, asked: Ticket) -> Order:
    return life.apply_working(state, place(state, asked), NOW)


def change(state: AccountState, order: Order, **values: Any) -> Order:
    asked = Replacement(client_order_id=uuid4(), **values)
    return replacing.replace_order(
        state, order, asked, instrument=BTC, quote=QUOTE, limits=LIMITS, weighing=weighing(state), now=NOW
    )


@pytest.mark.parametrize("takes", [True, False])
def test_a_change_under_way_sets_aside_the_more_of_both(takes: bool):
    state = account_with(USDT="1000")
    order = change(state, working(state, ticket(quantity="1")), quantity=D(3), limit_price=D(90))
    assert (order.state, order.quantity) == (State.PENDING_REPLACE, 1)
    assert state.balance("USDT").reserved == D(270) * D("1.001")
    assert order.replacement is not None
    name = str(order.replacement.client_order_id)
    if takes:
        order = life.apply_replaced(state, order, name, NOW)
        assert (order.state, order.quantity, order.limit_price) == (State.NEW, 3, 90)
        assert str(order.client_order_id) == name
        assert state.balance("USDT").reserved == D(270) * D("1.001")
    else:
        order = life.apply_replace_rejected(state, order, name, "too late", NOW)
        assert (order.state, order.quantity, order.reason) == (State.NEW, 1, "too late")
        assert order.client_order_id == order.order_id
        assert state.balance("USDT").reserved == D(100) * D("1.001")


@pytest.mark.parametrize(
    ("asked", "values", "reason"),
    [
        (ticket(), {"quantity": D("0.5")}, "REPLACEMENT_INVALID"),  # that much has traded
        (ticket(), {"stop_price": D(110)}, "REPLACEMENT_INVALID"),
        (ticket(), {"trail": Trail(amount=D(1))}, "REPLACEMENT_INVALID"),
        (of_type(OrderType.STOP, stop_price=D(110)), {"limit_price": D(110)}, "REPLACEMENT_INVALID"),
        (of_type(OrderType.TRAILING_STOP, trail=Trail(amount=D(5))), {"stop_price": D(110)}, "REPLACEMENT_INVALID"),
        (ticket(), {"limit_price": D("99.999")}, "PRICE_OFF_TICK"),
        (ticket(), {"quantity": D("2.0001")}, "QUANTITY_OFF_LOT"),
        (of_type(OrderType.STOP, stop_price=D(110)), {"stop_price": D(100)}, "STOP_WOULD_TRIGGER"),
        (ticket(), {"quantity": D(10)}, "INSUFFICIENT_BALANCE"),
        (ticket(), {"limit_price": D("0.01")}, "NOTIONAL_TOO_SMALL"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(asked: Ticket, values: dict[str, Any], reason: str):
    state = account_with(USDT="200")
    order = working(state, asked)
    order = apply_fill(state, order, fill_of(order, "0.5"))
    before = as_it_is(state)
    with pytest.raises(Refusal) as found:
        change(state, order, **values)
    assert found.value.reason == reason
    assert state == before


def test_what_the_venue_has_not_taken_yet_or_is_done_cannot_be_changed():
    state = account_with(USDT="1000")
    order = place(state, ticket())
    for kind in (None, Kind.CANCELED):
        if kind:
            order = life.apply_ended(state, order, kind, "user", NOW)
        with pytest.raises(Refusal) as found:
            change(state, order, limit_price=D(99))
        assert found.value.reason == "NOT_REPLACEABLE"


# Fees


@pytest.mark.parametrize(
    ("fee_asset", "fee_price", "worth"),
    [("USDT", None, D("0.5")), ("BTC", None, D(50)), ("BNB", D(300), D(150)), ("BNB", None, D(0))],
)
def test_a_fee_counts_in_the_quote_asset_and_is_paid_in_its_own(
    fee_asset: str, fee_price: Decimal | None, worth: Decimal
):
    state = account_with(USDT="1000", BNB="5")
    order = place(state, ticket(quantity="2"))
    told = replace(fill_of(order, "2", fee="0.5"), fee_asset=fee_asset)
    order = life.apply_fill(state, order, told, BTC, execution_id=uuid4(), now=NOW, fee_price=fee_price)
    assert order.fees == state.positions[BTC.instrument_id].fees == worth
    assert [
        entry.amount for entry in state.transactions[-1].entries if entry.book == "fees" and entry.asset == fee_asset
    ] == [D("0.5")]
