"""The bucket of a venue, drawn from by several at once, on the real Valkey."""

import asyncio
import time

import pytest

from libs.bus.budget import Budget, BudgetSpent, Limits, Use

LIMITS = Limits(capacity=10.0, units_per_second=200.0)
SLOW = Limits(capacity=10.0, units_per_second=0.5)


def budget(redis, limits: Limits = LIMITS, address: str = "here") -> Budget:
    return Budget(redis, "BINANCE", address, limits)


async def fill(redis, limits: Limits) -> Budget:
    """A bucket that is full, by the fields that it keeps."""
    await redis.hset("budget:BINANCE:here", mapping={"available": limits.capacity, "at": round(time.time() * 1000)})
    return budget(redis, limits)


async def test_all_who_ask_from_one_address_together_get_no_more_than_the_rate(redis):
    askers = [budget(redis) for _ in range(4)]
    taken = 0
    stop_at = time.monotonic() + 1.0
    started = time.monotonic()

    async def ask(one: Budget) -> None:
        nonlocal taken
        while time.monotonic() < stop_at:
            await one.take(1.0, Use.DATA, wait_seconds_max=5.0)
            taken += 1

    await asyncio.gather(*(ask(one) for one in askers))
    seconds = time.monotonic() - started
    # It began with what is left to others, so nothing but what flowed in could be taken.
    assert taken <= LIMITS.units_per_second * seconds
    assert taken >= LIMITS.units_per_second * seconds * 0.3
    assert (await budget(redis).state()).spent[Use.DATA] == taken


async def test_a_bucket_begins_with_nothing_for_data_and_other_addresses_have_their_own(redis):
    with pytest.raises(BudgetSpent) as caught:
        await budget(redis, SLOW).take(1.0, Use.DATA, wait_seconds_max=0.5)
    assert caught.value.retry_after_seconds == pytest.approx(2.0, abs=0.2)
    for _ in range(4):
        await budget(redis, SLOW).take(1.0, Use.CANCEL, wait_seconds_max=0.0)
    with pytest.raises(BudgetSpent):
        await budget(redis, SLOW).take(1.0, Use.CANCEL, wait_seconds_max=0.5)
    assert (await budget(redis, SLOW, "elsewhere").state()).available == pytest.approx(4.0)
    await budget(redis, SLOW, "elsewhere").take(4.0, Use.CANCEL, wait_seconds_max=0.0)


async def test_data_leaves_room_for_orders_and_orders_for_cancels(redis):
    one = await fill(redis, SLOW)
    for _ in range(6):
        await one.take(1.0, Use.DATA, wait_seconds_max=0.0)
    with pytest.raises(BudgetSpent):
        await one.take(1.0, Use.DATA, wait_seconds_max=0.0)
    for _ in range(3):
        await one.take(1.0, Use.ORDER, wait_seconds_max=0.0)
    with pytest.raises(BudgetSpent):
        await one.take(1.0, Use.ORDER, wait_seconds_max=0.0)
    await one.take(1.0, Use.CANCEL, wait_seconds_max=0.0)
    with pytest.raises(BudgetSpent):
        await one.take(1.0, Use.CANCEL, wait_seconds_max=0.0)
    state = await one.state()
    assert dict(state.spent) == {Use.DATA: 6.0, Use.ORDER: 3.0, Use.CANCEL: 1.0}
    assert state.available < 1.0


async def test_a_venue_that_wants_to_be_left_alone_is_by_everybody_and_no_shorter_than_it_said(redis):
    one, other = await fill(redis, SLOW), budget(redis, SLOW)
    await one.block(30.0)
    await other.block(1.0)
    assert 29.0 < (await other.state()).blocked_seconds <= 30.0
    with pytest.raises(BudgetSpent) as caught:
        await other.take(1.0, Use.CANCEL, wait_seconds_max=5.0)
    assert caught.value.retry_after_seconds == pytest.approx(30.0, abs=1.0)


async def test_who_waits_takes_what_flows_in_and_a_cost_above_all_there_is_takes_a_full_share(redis):
    one = budget(redis)
    started = time.monotonic()
    await one.take(5.0, Use.DATA, wait_seconds_max=1.0)
    assert time.monotonic() - started >= 5.0 / LIMITS.units_per_second * 0.8
    await one.take(1_000.0, Use.DATA, wait_seconds_max=1.0)
    assert (await one.state()).spent[Use.DATA] == pytest.approx(11.0)
