"""With real money no order is lost and none is sent twice, whatever befalls us, the exchange, or what it says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from libs.store.leases import LEASE_SECONDS
from tests.faults.proof.chaos import FAULTS, Chaos, Fault, step_faults
from tests.faults.proof.exchange import BinanceVenue
from tests.faults.proof.exchange_faults import EXCHANGE_FAULTS, exchange_faults
from tests.faults.proof.live import LivePerson, LiveStand, reconcile, standing_live
from tests.faults.proof.load import Load
from tests.faults.proof.run import Size, Trading, prove
from tests.faults.proof.steps import LIVE_STEPS
from tests.faults.proof.verify import Evidence
from tests.faults.proof.verify_live import LIVE_PROMISES, LiveEvidence
from tests.mesh import Installation

IN_SHORT = (
    "after the intent",
    "after an order is marked as sent, before it is",
    "after the send, before the reply",
    "after an outcome",
    "after the fill",
    "stop execution and continue it",
    "kill Postgres",
    "the exchange is cut off",
    "an order's outcome is unknown, and it was not taken",
    "messages do not come",
)
OURS: Mapping[str, Fault] = {
    **step_faults(LIVE_STEPS),
    **FAULTS,
    "kill users": partial(Chaos.kill, word="users"),
}
ALL = (*OURS, *EXCHANGE_FAULTS)
STEP_TIMES, STOP_TIMES, OTHER_TIMES = 6, 3, 5
"""How often each fault is in the long form."""
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


async def prove_live(installation: Installation, folder: Path, size: Size, names: Sequence[str], tell: Tell) -> None:
    async with standing_live(installation, folder, size.replicas) as at:
        await prove(at.stand, live(at), size, names, tell)
        assert len(at.exchange.arrivals()) >= REACHED_TIMES * len(names)


@pytest.mark.timeout(300)
async def test_no_live_order_is_lost_and_none_is_sent_twice(
    installation: Installation, tmp_path: Path, record_property: Tell
):
    await prove_live(installation, tmp_path, SHORT, IN_SHORT, record_property)


@pytest.mark.long
@pytest.mark.timeout(5_400)
async def test_no_live_order_is_lost_by_hundreds_of_faults(
    installation: Installation, tmp_path: Path, record_property: Tell
):
    names = [name for name in ALL for _ in range(times_of(name))]
    assert len(names) >= 250
    await prove_live(installation, tmp_path, LONG, names, record_property)


def times_of(name: str) -> int:
    if name in {step.name for step in LIVE_STEPS}:
        return STEP_TIMES
    return STOP_TIMES if name.startswith("stop ") else OTHER_TIMES
