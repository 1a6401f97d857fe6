"""With real money no order is lost and none is sent twice, whatever befalls us, the exchange, or what it says."""

from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from libs.store.leases import LEASE_SECONDS
from tests.faults.proof.chaos import FAULTS, Chaos, Fault, step_faults
from tests.faults.proof.exchange import BinanceVenue
from tests.faults.proof.exchange_faults import exchange_faults
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
SHORT = Size(replicas=1, people=3, lanes=2, stop_seconds=LEASE_SECONDS + 0.5, waited_for_leases=0.0)


def live(at: LiveStand) -> Trading:
    async def complete(evidence: Evidence, load: Load) -> Evidence:
        known = {each.name: getattr(evidence, each.name) for each in fields(Evidence)}
        return LiveEvidence(**known, reconciled=await reconcile(at.stand, load))

    return Trading(
        partial(LivePerson, at=at),
        LIVE_STEPS,
        faults_of(at),
        partial(BinanceVenue, at.exchange),
        LIVE_PROMISES,
        complete,
    )


def faults_of(at: LiveStand) -> dict[str, Fault]:
    return {
        **step_faults(LIVE_STEPS),
        **FAULTS,
        "kill users": partial(Chaos.kill, word="users"),
        **exchange_faults(at.exchange),
    }


@pytest.mark.timeout(300)
async def test_no_live_order_is_lost_and_none_is_sent_twice(
    installation: Installation, tmp_path: Path, record_property
):
    async with standing_live(installation, tmp_path, SHORT.replicas) as at:
        await prove(at.stand, live(at), SHORT, IN_SHORT, record_property)
