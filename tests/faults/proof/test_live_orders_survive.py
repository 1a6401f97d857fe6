"""With real money no order is lost and none is sent twice, whatever befalls us, the exchange, or what it says."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from libs.store.leases import LEASE_SECONDS
from tests.faults.proof import steps
from tests.faults.proof.chaos import FAULTS, Chaos, Fault, step_faults
from tests.faults.proof.exchange import BinanceVenue
from tests.faults.proof.exchange_faults import (
    EXCHANGE_FAULTS,
    OF_CANCELS_AND_RECORDS,
    OF_CHANGES,
    OF_CONNECTIONS,
    OF_ORDERS,
    exchange_faults,
)
from tests.faults.proof.live import LivePerson, LiveStand, reconcile, standing_live
from tests.faults.proof.load import Load
from tests.faults.proof.run import Size, Trading, one_of_each, prove, times_each
from tests.faults.proof.steps import LIVE_STEPS
from tests.faults.proof.verify import Evidence
from tests.faults.proof.verify_live import LIVE_PROMISES, LiveEvidence
from tests.mesh import Installation

OURS: Mapping[str, Fault] = {
    **step_faults(LIVE_STEPS),
    **FAULTS,
    "kill users": partial(Chaos.kill, word="users"),
}
ALL = (*OURS, *EXCHANGE_FAULTS)
IN_SHORT: Sequence[Sequence[str]] = (
    [step.name for step in steps.OF_ORDERS],
    (
        "before the intent",
        "after the intent",
        "before an order is marked as sent",
        "after an order is marked as sent, before it is",
        "after the send, before the reply",
    ),
    (
        "before a change is marked as sent",
        "after a change is marked as sent, before it is",
        "after a change is sent, before the reply",
        "before a change is answered",
        "after a change is answered",
    ),
    (
        "before an outcome",
        "after an outcome",
        "before the fill",
        "after the fill",
        "after a cancel is sent, before the reply",
        "before a cancel is answered",
        "after a cancel is answered",
    ),
    (
        "kill orders",
        "kill execution",
        "kill users",
        "kill the relay of orders",
        "kill the relay of execution",
        "repeat what orders told",
        "execution: after a fact was sent, before it is marked",
    ),
    ("stop orders and continue it", "stop execution and continue it", "lose Redis"),
    ("kill Postgres", "restart Postgres"),
    list(OF_CONNECTIONS),
    list(OF_ORDERS),
    [*OF_CHANGES, *OF_CANCELS_AND_RECORDS],
)
"""The short form has one of each."""
PARTS = 4
STEP_TIMES, STOP_TIMES, OTHER_TIMES = 2, 1, 1
"""How often each fault is in a part of the long form; each part has its own stand and its own seed."""
REACHED_TIMES = 1
"""So many orders for each fault come to the exchange at least; others are canceled before they are sent."""
SHORT = Size(replicas=1, people=3, lanes=3, stop_seconds=LEASE_SECONDS + 0.5, waited_for_leases=0.0, orders_each=3)
LONG = Size(replicas=2, people=6, lanes=4, stop_seconds=30.0, waited_for_leases=0.25, orders_each=3)


Tell = Callable[[str, object], None]


def live(at: LiveStand) -> Trading:
    async def complete(evidence: Evidence, load: Load) -> Evidence:
        known = {each.name: getattr(evidence, each.name) for each in fields(Evidence)}
        return LiveEvidence(**known, reconciled=await reconcile(at.stand, load))

    return Trading(
        partial(LivePerson, at=at),
        LIVE_STEPS,
        {**OURS, **exchange_faults(at.exchange)},
        partial(BinanceVenue, at.exchange),
        LIVE_PROMISES,
        complete,
    )


async def prove_live(
    installation: Installation,
    folder: Path,
    size: Size,
    names: Callable[[random.Random], list[str]],
    tell: Tell,
) -> None:
    async with standing_live(installation, folder, size.replicas) as at:
        injected = await prove(at.stand, live(at), size, names, tell)
        assert len(at.exchange.arrivals()) >= REACHED_TIMES * injected


def test_nothing_is_left_out_of_the_short_form_for_good():
    assert sorted(chain.from_iterable(IN_SHORT)) == sorted(ALL)


@pytest.mark.timeout(600)
async def test_no_live_order_is_lost_and_none_is_sent_twice(
    installation: Installation, tmp_path: Path, record_property: Tell
):
    await prove_live(installation, tmp_path, SHORT, one_of_each(IN_SHORT), record_property)


def test_the_long_form_has_hundreds_of_faults():
    assert PARTS * len(part_of_long()) >= 350


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
async def test_no_live_order_is_lost_by_hundreds_of_faults(
    installation: Installation, tmp_path: Path, record_property: Tell, part: int
):
    await prove_live(installation, tmp_path, LONG, lambda _: part_of_long(), record_property)


def part_of_long() -> list[str]:
    return times_each(ALL, LIVE_STEPS, STEP_TIMES, STOP_TIMES, OTHER_TIMES)
