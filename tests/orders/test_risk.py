"""What limits, locks and switches refuse, and what they let pass: pure, without a service."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Exhausted
from services.orders import risk
from services.orders.domain import Exposure, Lock, Rate, RiskLimits, Scope, Side, Switch
from services.orders.risk import Proposal, Standing

NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
BUY, SELL = Side.BUY, Side.SELL
USUAL: dict[str, Any] = {
    "open_orders_max": 3,
    "orders_per_second_max": 5,
    "price_collar_percent": Decimal(10),
}


def limits(**set_limits: Any) -> RiskLimits:
    return RiskLimits(**{**USUAL, **set_limits})


def standing(**where: Any) -> Standing:
    return Standing(**{"open_orders": 0, "rate": Rate(), "short_sales": True, **where})


def proposal(side: Side = BUY, quantity: str = "1", price: str = "100", **more: Any) -> Proposal:
    worst_price = Decimal(price)
    asked = {"limit_price": worst_price, "reference_price": Decimal(100), **more}
    return Proposal(side=side, quantity=Decimal(quantity), worst_price=worst_price, **asked)


def exposure(position: str = "0", buys: str = "0", sells: str = "0") -> Exposure:
    return Exposure(position=Decimal(position), open_buys=Decimal(buys), open_sells=Decimal(sells))


def refused(
    bounds: RiskLimits, where: Standing, held: Exposure, order: Proposal, now: datetime = NOW
) -> list[dict[str, str]]:
    """Limit, value and bound of every refusal."""
    return [refusal.metadata for refusal in risk.refusals(bounds, where, held, order, now)]


def told(limit: str, value: str, bound: str) -> dict[str, str]:
    return {"limit": limit, "value": value, "bound": bound}


def test_what_is_within_every_limit_is_taken():
    bounds = limits(
        order_quantity_max=Decimal(1),
        order_notional_max=Decimal(100),
        position_quantity_max=Decimal(1),
        position_notional_max=Decimal(100),
        fat_finger_percent=Decimal(10),
        daily_loss_max=Decimal(50),
        drawdown_percent_max=Decimal(5),
    )
    where = standing(
        open_orders=2, equity=Decimal(1_000), day_start_equity=Decimal(1_050), peak_equity=Decimal("1052.63")
    )
    assert refused(bounds, where, exposure(), proposal()) == []
    kept = list(risk.margins(bounds, where, exposure(), proposal()))
    # One for each rule, in their order, and each at its very bound or below.
    assert [margin.limit for margin in kept] == [
        "open_orders_max",
        "order_quantity_max",
        "order_notional_max",
        "position_quantity_max",
        "position_notional_max",
        "price_collar_percent",
        "fat_finger_percent",
        "daily_loss_max",
        "drawdown_percent_max",
    ]
    assert {margin.limit: margin.value for margin in kept}["daily_loss_max"] == 50


@pytest.mark.parametrize(
    ("bounds", "where", "held", "order", "expected"),
    [
        ({}, {"open_orders": 3}, exposure(), proposal(), told("open_orders_max", "4", "3")),
        ({"order_quantity_max": Decimal("0.9")}, {}, exposure(), proposal(), told("order_quantity_max", "1", "0.9")),
        ({"order_notional_max": Decimal(99)}, {}, exposure(), proposal(), told("order_notional_max", "100", "99")),
        (
            {"position_quantity_max": Decimal(3)},
            {},
            exposure("1", buys="1.5"),
            proposal(),
            told("position_quantity_max", "3.5", "3"),
        ),
        (
            {"position_quantity_max": Decimal(3)},
            {},
            exposure("-1", sells="1.5"),
            proposal(SELL),
            told("position_quantity_max", "3.5", "3"),
        ),
        # Counted at its worst price or the market's, whichever is higher.
        (
            {"position_notional_max": Decimal(209)},
            {},
            exposure("1"),
            proposal(price="105"),
            told("position_notional_max", "210", "209"),
        ),
        (
            {"position_notional_max": Decimal(199)},
            {},
            exposure("-1"),
            proposal(SELL, price="95"),
            told("position_notional_max", "200", "199"),
        ),
        (
            {"position_notional_max": Decimal(219)},
            {},
            exposure("-1"),
            proposal(SELL, price="110"),
            told("position_notional_max", "220", "219"),
        ),
        ({}, {}, exposure(), proposal(price="110.01"), told("price_collar_percent", "10.01", "10")),
        ({}, {}, exposure(), proposal(SELL, price="89.99"), told("price_collar_percent", "10.01", "10")),
        (
            {"fat_finger_percent": Decimal(9)},
            {"equity": Decimal(1_000)},
            exposure(),
            proposal(),
            told("fat_finger_percent", "10", "9"),
        ),
        (
            {"fat_finger_percent": Decimal(9)},
            {"equity": Decimal(-1)},
            exposure(),
            proposal(),
            told("fat_finger_percent", "100", "0"),
        ),
        (
            {"daily_loss_max": Decimal(50)},
            {"equity": Decimal(949), "day_start_equity": Decimal(1_000)},
            exposure(),
            proposal(),
            told("daily_loss_max", "51", "50"),
        ),
        (
            {"drawdown_percent_max": Decimal(5)},
            {"equity": Decimal(949), "peak_equity": Decimal(1_000)},
            exposure(),
            proposal(),
            told("drawdown_percent_max", "5.1", "5"),
        ),
    ],
    ids=lambda value: value["limit"] if isinstance(value, dict) and "limit" in value else None,
)
def test_what_is_beyond_a_limit_is_refused_with_limit_value_and_bound(bounds, where, held, order, expected):
    assert refused(limits(**bounds), standing(**where), held, order) == [expected]


def test_a_limit_that_rests_far_from_the_market_is_no_slip_of_the_finger():
    assert refused(limits(), standing(), exposure(), proposal(price="10")) == []
    assert refused(limits(), standing(), exposure(), proposal(SELL, price="1000")) == []
    # Without a price to compare with, and where the order takes the market's, there is no collar.
    assert refused(limits(), standing(), exposure(), proposal(price="500", reference_price=None)) == []
    assert refused(limits(), standing(), exposure(), proposal(price="500", limit_price=None)) == []


LOSING = {"equity": Decimal(1), "day_start_equity": Decimal(1_000), "peak_equity": Decimal(1_000)}
LOCKED = {"locks": frozenset(Lock), "switches": [(Scope.USER, Switch.REDUCE_ONLY)]}
TIGHT = {
    "position_quantity_max": Decimal("0.1"),
    "position_notional_max": Decimal("0.1"),
    "fat_finger_percent": Decimal("0.1"),
    "daily_loss_max": Decimal(1),
    "drawdown_percent_max": Decimal(1),
}


@pytest.mark.parametrize(
    ("held", "order", "where"),
    [
        (exposure("2", sells="1"), proposal(SELL), {}),
        (exposure("-2", buys="1"), proposal(BUY), {}),
        # In an account that sells only what it has, every sale reduces.
        (exposure(), proposal(SELL), {"short_sales": False}),
    ],
)
def test_what_only_reduces_passes_losses_locks_and_switches(held, order, where):
    assert refused(limits(**TIGHT), standing(**LOSING, **LOCKED, **where), held, order) == []


@pytest.mark.parametrize(
    ("held", "order"),
    [
        (exposure("2", sells="1.5"), proposal(SELL)),
        (exposure("2"), proposal(BUY)),
        (exposure("-2", buys="1.5"), proposal(BUY)),
        (exposure(), proposal(SELL)),
    ],
)
def test_what_would_turn_or_grow_the_position_does_not(held, order):
    names = [each["limit"] for each in refused(limits(**TIGHT), standing(**LOSING, **LOCKED), held, order)]
    assert names == [
        "kill_switch/user",
        "lock/daily_loss",
        "lock/drawdown",
        "position_quantity_max",
        "position_notional_max",
        "fat_finger_percent",
        "daily_loss_max",
        "drawdown_percent_max",
    ]


def test_a_switch_that_halts_lets_nothing_pass():
    where = standing(switches=[(Scope.GLOBAL, Switch.HALT), (Scope.DEPLOYMENT, Switch.REDUCE_ONLY)])
    assert [each["limit"] for each in refused(limits(), where, exposure("2"), proposal(SELL))] == ["kill_switch/global"]
    assert risk.worst(switch for _, switch in where.switches) is Switch.HALT
    assert risk.worst([]) is Switch.OFF


def test_orders_come_as_fast_as_they_may_and_no_faster():
    bounds, rate, taken = limits(), Rate(), []
    # A tenth of a second apart: the five that are allowed at once, and from then on as many as drain.
    for tenth in range(31):
        now = NOW + timedelta(seconds=tenth / 10)
        found = list(risk.refusals(bounds, standing(rate=rate), exposure(), proposal(), now))
        if found:
            [refusal] = found
            assert isinstance(refusal, Exhausted)
            assert refusal.metadata["limit"] == "orders_per_second_max"
            assert refusal.retry_after_seconds == pytest.approx(0.1)
        else:
            rate = rate.at(now, bounds.orders_per_second_max)
            rate = Rate(level=rate.level + 1, time=now)
            taken.append(tenth)
    assert taken[:9] == list(range(9))
    assert taken[9:] == list(range(10, 31, 2))


def test_a_clock_that_is_set_back_holds_nobody_up_for_longer():
    full = Rate(level=Decimal(5), time=NOW)
    back = full.at(NOW - timedelta(days=400), 5)
    assert back == Rate(level=Decimal(5), time=NOW - timedelta(days=400))
    assert back.at(back.time + timedelta(seconds=1), 5).level == 0
    assert full.at(NOW + timedelta(days=4_000), 5).level == 0


def test_a_change_of_an_order_counts_what_it_adds():
    bounds = limits(open_orders_max=1, position_quantity_max=Decimal(3))
    where, held = standing(open_orders=1), exposure("1", buys="1")
    assert refused(bounds, where, held, proposal(quantity="2", replaced_quantity=Decimal(1), orders=0)) == []
    assert refused(bounds, where, held, proposal(quantity="2.1", replaced_quantity=Decimal(1), orders=0)) == [
        told("position_quantity_max", "3.1", "3")
    ]


amounts = st.decimals(min_value=0, max_value=100, places=2)
signed = st.decimals(min_value=-100, max_value=100, places=2)


@given(signed, amounts, amounts, st.sampled_from(Side), amounts.filter(bool))
def test_what_reduces_never_leaves_more_at_risk_and_never_turns_the_position(position, buys, sells, side, quantity):
    held = Exposure(position=position, open_buys=buys, open_sells=sells)
    order = proposal(side, str(quantity))
    if not risk.reduces(standing(), held, order):
        return
    # Whatever part of what is open on that side trades, in whatever order.
    open_there = buys if side is BUY else sells
    for traded in (quantity, open_there + quantity, quantity / 2):
        after = position + (traded if side is BUY else -traded)
        assert abs(after) <= abs(position)
        assert after * position >= 0


@given(
    st.integers(0, 6),
    st.decimals(min_value=1, max_value=200, places=1),
    signed,
    st.sampled_from(Side),
    amounts.filter(bool),
    st.decimals(min_value=-50, max_value=2_000, places=1),
)
def test_a_refusal_is_a_margin_that_is_not_kept_and_no_other(count, price, position, side, quantity, equity):
    bounds = limits(
        order_quantity_max=Decimal(50),
        order_notional_max=Decimal(5_000),
        position_quantity_max=Decimal(80),
        position_notional_max=Decimal(9_000),
        fat_finger_percent=Decimal(300),
        daily_loss_max=Decimal(100),
        drawdown_percent_max=Decimal(20),
    )
    where = standing(open_orders=count, equity=equity, day_start_equity=Decimal(1_000), peak_equity=Decimal(1_200))
    held, order = Exposure(position=position), proposal(side, str(quantity), str(price))
    beyond = [margin.limit for margin in risk.margins(bounds, where, held, order) if not margin.is_kept]
    assert [each["limit"] for each in refused(bounds, where, held, order)] == beyond


@pytest.mark.parametrize(
    ("now", "hour", "start"),
    [
        ("2026-03-02T10:00:00Z", 0, "2026-03-02T00:00:00Z"),
        ("2026-03-02T10:00:00Z", 10, "2026-03-02T10:00:00Z"),
        ("2026-03-02T09:59:59.999999Z", 10, "2026-03-01T10:00:00Z"),
        ("2026-01-01T00:00:00Z", 23, "2025-12-31T23:00:00Z"),
        ("2026-03-02T01:00:00+02:00", 22, "2026-03-01T22:00:00Z"),
    ],
)
def test_a_day_begins_at_its_hour_in_utc(now, hour, start):
    assert risk.day_start(datetime.fromisoformat(now), hour) == datetime.fromisoformat(start)
