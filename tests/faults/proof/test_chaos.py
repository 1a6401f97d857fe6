"""The faults themselves: one that does not take hold fails, and none has the ground taken from under it."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.proof.chaos import Chaos, Ground, NotInjected
from tests.faults.proof.market import Market
from tests.faults.proof.venue import stand_still


@dataclass(frozen=True)
class Standing:
    market: Market


async def test_a_fault_that_did_not_take_hold_fails():
    market = Market([])

    async def go_on_all_the_same() -> None:
        while True:
            market.brought += 1
            await asyncio.sleep(0)

    going_on = asyncio.create_task(go_on_all_the_same())
    stand: Any = Standing(market)
    with pytest.raises(NotInjected):
        await stand_still(Chaos(stand, {}, random.Random(), lambda: None, stop_seconds=0.1, waited_for_leases=0))
    going_on.cancel()
    assert market.going_on.is_set()


async def test_the_ground_gives_way_when_nobody_needs_it_any_more_and_before_others_do():
    ground, ready, story = Ground(), asyncio.Event(), []

    async def need(name: str) -> None:
        async with ground.stands():
            story.append(f"{name} begins")
            await ready.wait()
            story.append(f"{name} ends")

    async def take_away() -> None:
        async with ground.gives_way():
            story.append("away")

    async def begin(work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        for _ in range(10):
            await asyncio.sleep(0)
        return task

    tasks = [await begin(work) for work in (need("first"), take_away(), need("second"))]
    assert story == ["first begins"]
    ready.set()
    await asyncio.gather(*tasks)
    assert story == ["first begins", "first ends", "away", "second begins", "second ends"]


async def test_who_holds_up_others_gets_the_ground_as_long_as_it_stands():
    ground, ready = Ground(), asyncio.Event()

    async def need() -> None:
        async with ground.stands():
            await ready.wait()

    async def take_away() -> None:
        async with ground.gives_way():
            await ready.wait()

    needing = asyncio.create_task(need())
    await asyncio.sleep(0)
    taking = asyncio.create_task(take_away())
    await asyncio.sleep(0)
    async with asyncio.timeout(1.0), ground.stands(at_once=True):
        ready.set()
    ready.clear()
    async with asyncio.timeout(1.0):
        await needing
        while ground._needed or not ground._has_given_way:
            await asyncio.sleep(0)
    late = asyncio.ensure_future(anext(aiter_of(ground)))
    await asyncio.sleep(0)
    assert not late.done()
    ready.set()
    await asyncio.gather(taking, late)


async def aiter_of(ground: Ground) -> AsyncIterator[None]:
    async with ground.stands(at_once=True):
        yield
