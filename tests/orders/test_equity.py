"""What an account is worth decides over its day, its peak and its locks: pure, without a service."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.orders.domain import Account, AccountKind, Lock, Mode, RiskLimits
from services.orders.equity import looked_at
from services.orders.risk import day_start

NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ACCOUNT = Account(
    account_id=UUID(int=1),
    user_id=UUID(int=2),
    name="",
    mode=Mode.PAPER,
    kind=AccountKind.CASH,
    create_time=NOW,
    valuation_asset="USDT",
)


def limits(**some: Any) -> RiskLimits:
    usual = {"open_orders_max": 9, "orders_per_second_max": 9, "price_collar_percent": Decimal(9)}
    return RiskLimits(**{**usual, **some})


def seen(account: Account, worth: int, now: datetime = NOW, **some: Any) -> tuple[Account, list[tuple[str, str]]]:
    found = looked_at(account, Decimal(worth), limits(**some), now)
    return found.account, [(event.kind, event.limit_name) for event in found.events]


def test_the_first_look_begins_the_day_and_the_peak():
    account, events = seen(ACCOUNT, 1_000)
    assert (account.day_start_time, account.day_start_equity, account.peak_equity) == (
        datetime(2026, 3, 2, tzinfo=UTC),
        1_000,
        1_000,
    )
    assert not events
    # From then on only the peak follows.
    later, _ = seen(account, 1_100, NOW + HOUR)
    assert later == replace(account, peak_equity=Decimal(1_100))
    assert seen(later, 900, NOW + HOUR)[0] == later


def test_a_loss_beyond_the_days_locks_once_and_the_next_day_lifts_it():
    account, _ = seen(ACCOUNT, 1_000, daily_loss_max=Decimal(50), day_start_hour=6)
    assert account.day_start_time == datetime(2026, 3, 2, 6, tzinfo=UTC)
    assert seen(account, 950, daily_loss_max=Decimal(50), day_start_hour=6) == (account, [])
    locked, events = seen(account, 949, daily_loss_max=Decimal(50), day_start_hour=6)
    assert (locked.locks, events) == ({Lock.DAILY_LOSS}, [("locked", "lock/daily_loss")])
    # That it is worth more again lifts nothing, and it is locked once.
    for worth in (949, 2_000):
        again, events = seen(locked, worth, NOW + HOUR, daily_loss_max=Decimal(50), day_start_hour=6)
        assert (again.locks, events) == ({Lock.DAILY_LOSS}, [])
    next_day, events = seen(locked, 900, NOW + DAY, daily_loss_max=Decimal(50), day_start_hour=6)
    assert (next_day.locks, next_day.day_start_equity) == (frozenset(), 900)
    assert events == [("lifted", "lock/daily_loss")]


def test_a_drawdown_locks_until_somebody_lifts_it():
    account, _ = seen(ACCOUNT, 1_000)
    risen, _ = seen(account, 2_000, drawdown_percent_max=Decimal(10))
    locked, events = seen(risen, 1_799, drawdown_percent_max=Decimal(10))
    assert (locked.locks, events) == ({Lock.DRAWDOWN}, [("locked", "lock/drawdown")])
    assert seen(locked, 3_000, NOW + 3 * DAY, drawdown_percent_max=Decimal(10))[0].locks == {Lock.DRAWDOWN}


def test_a_clock_that_is_set_back_begins_no_day_again():
    account, _ = seen(ACCOUNT, 1_000, NOW)
    assert seen(account, 500, NOW - 3 * DAY)[0] == account


@given(
    st.lists(st.tuples(st.integers(0, 4 * 24), st.integers(-10, 2_000)), min_size=1, max_size=30),
    st.integers(0, 23),
    st.integers(1, 500),
)
def test_whenever_it_is_looked_at_the_locks_are_those_of_a_model(looks, hour, loss):
    """A model that keeps all it has seen, and asks each time anew."""
    account, day, begun, was_locked = ACCOUNT, None, Decimal(0), False
    peak = None
    for hours, worth in sorted(looks, key=lambda look: look[0]):
        now = NOW + hours * HOUR
        if day != day_start(now, hour):
            day, begun, was_locked = day_start(now, hour), Decimal(worth), False
        peak = worth if peak is None else max(peak, worth)
        was_locked |= begun - worth > loss
        account, _ = seen(account, worth, now, daily_loss_max=Decimal(loss), day_start_hour=hour)
        assert (Lock.DAILY_LOSS in account.locks) == was_locked
        assert (account.day_start_time, account.day_start_equity, account.peak_equity) == (day, begun, peak)
