"""No order is lost and none is sent twice, whatever dies, stands still or is lost on an order's way."""

from itertools import chain
from pathlib import Path

import pytest

from libs.store.leases import LEASE_SECONDS
from tests.faults.proof.chaos import FAULTS, step_faults
from tests.faults.proof.load import Person
from tests.faults.proof.run import Size, Trading, one_of_each, prove, times_each
from tests.faults.proof.stand import standing
from tests.faults.proof.steps import STEPS
from tests.faults.proof.venue import PAPER_FAULTS, PaperVenue
from tests.mesh import Installation

ALL = {**step_faults(STEPS), **FAULTS, **PAPER_FAULTS}
PAPER = Trading(Person, STEPS, ALL, PaperVenue)
PARTS = 4
STEP_TIMES, STOP_TIMES, OTHER_TIMES = 5, 2, 4
"""How often each fault is in a part of the long form; each part has its own stand and its own seed."""
IN_SHORT = (
    ("before the order's commit", "after the order's commit, before the answer"),
    ("before a change is taken up", "after a change is taken up, before the answer"),
    ("before the intent", "after the intent"),
    ("before the send", "after the send, before the reply"),
    ("before the fill", "after the fill", "before a fill is booked", "after a fill is booked"),
    ("before a cancel is answered", "before a change is answered", "after a change is answered"),
    (
        "orders: after a fact was sent, before it is marked",
        "execution: after a fact was sent, before it is marked",
        "kill the relay of orders",
        "kill the relay of execution",
        "repeat what orders told",
        "the venue repeats what it told",
    ),
    (
        "stop orders and continue it",
        "stop execution and continue it",
        "kill orders",
        "kill execution",
        "the venue is cut off",
    ),
    ("lose Redis",),
    ("kill Postgres", "restart Postgres"),
)
"""The short form has one of each."""
SHORT = Size(replicas=1, people=6, lanes=2, stop_seconds=LEASE_SECONDS + 0.5, waited_for_leases=0.0)
LONG = Size(replicas=2, people=8, lanes=4, stop_seconds=30.0, waited_for_leases=0.25)


def test_nothing_is_left_out_of_the_short_form_for_good():
    assert sorted(chain.from_iterable(IN_SHORT)) == sorted(ALL)


@pytest.mark.timeout(600)
async def test_no_order_is_lost_and_none_is_sent_twice(installation: Installation, tmp_path: Path, record_property):
    async with standing(installation, tmp_path, SHORT.replicas) as stand:
        await prove(stand, PAPER, SHORT, one_of_each(IN_SHORT), record_property)


def test_the_long_form_has_five_hundred_faults():
    assert PARTS * len(part_of_long()) >= 500


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
async def test_no_order_is_lost_by_hundreds_of_faults(
    installation: Installation, tmp_path: Path, record_property, part: int
):
    async with standing(installation, tmp_path, LONG.replicas) as stand:
        await prove(stand, PAPER, LONG, lambda _: part_of_long(), record_property)


def part_of_long() -> list[str]:
    return times_each(ALL, STEPS, STEP_TIMES, STOP_TIMES, OTHER_TIMES)
