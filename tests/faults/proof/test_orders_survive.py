"""No order is lost and none is sent twice, whatever dies, stands still or is lost on an order's way."""

import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.store.leases import LEASE_SECONDS
from tests.faults.proof import steps
from tests.faults.proof.chaos import FAULTS, Chaos
from tests.faults.proof.load import Load, loading
from tests.faults.proof.stand import connected, standing
from tests.faults.proof.steps import STEPS
from tests.faults.proof.venue import PAPER_FAULTS, PaperVenue
from tests.faults.proof.verify import AT_ANY_MOMENT, Evidence, broken, drained, shown_of, verify
from tests.mesh import Installation

SEED = "TRADELOOM_FAULTS_SEED"
"""An environment variable: the seed of a run that is to be repeated."""
ALL = {**FAULTS, **PAPER_FAULTS}
STEP_TIMES, STOP_TIMES, OTHER_TIMES = 20, 8, 23
"""How often each fault is in the long form."""
IN_SHORT = (
    "before the order's commit",
    "after the order's commit, before the answer",
    "before the intent",
    "after the intent",
    "after the send, before the reply",
    "after the fill",
    "kill the relay of orders",
    "stop execution and continue it",
    "lose Redis",
    "kill Postgres",
)
SHORT = {"replicas": 1, "people": 6, "lanes": 2, "stop_seconds": LEASE_SECONDS + 0.5, "waited_for_leases": 0.0}
LONG = {"replicas": 2, "people": 8, "lanes": 4, "stop_seconds": 30.0, "waited_for_leases": 0.25}


@pytest.mark.timeout(300)
async def test_no_order_is_lost_and_none_is_sent_twice(installation: Installation, tmp_path: Path, record_property):
    await prove(installation, tmp_path, record_property, IN_SHORT, **SHORT)


@pytest.mark.long
@pytest.mark.timeout(5_400)
async def test_no_order_is_lost_by_five_hundred_faults(installation: Installation, tmp_path: Path, record_property):
    names = [name for name, times in times_of_all().items() for _ in range(times)]
    assert len(names) >= 500
    await prove(installation, tmp_path, record_property, names, **LONG)


def times_of_all() -> dict[str, int]:
    named = {step.name for step in STEPS}
    return {
        name: STEP_TIMES if name in named else STOP_TIMES if name.startswith("stop ") else OTHER_TIMES for name in ALL
    }


async def prove(
    installation: Installation,
    folder: Path,
    record_property: Callable[[str, object], None],
    names: Iterable[str],
    *,
    replicas: int,
    people: int,
    lanes: int,
    stop_seconds: float,
    waited_for_leases: float,
) -> None:
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    print(f"{SEED}={seed}")
    plan = list(names)
    random.Random(seed).shuffle(plan)
    async with standing(installation, folder, replicas) as stand:
        superuser = await connected(stand.installation)
        await steps.prepare(superuser)
        await superuser.close()
        async with loading(stand.doors, people, seed) as load:
            chaos = Chaos(stand, ALL, random.Random(f"{seed} chaos"), load.check, stop_seconds, waited_for_leases)
            await chaos.run(iter(plan), lanes)
            await load.end()
            rows = await connected(stand.installation)
            followed = {person.account_id: person.events for person in load.people}
            async with rows.transaction(isolation="repeatable_read"):
                before = Evidence(rows, load.journal, PaperVenue(rows), followed, {})
                assert broken(await verify(before, AT_ANY_MOMENT)) == {}
            await load.settle()
            left = await drained(rows, load)
            evidence = replace(before, shown=await shown_of(stand.doors, load))
            findings = await verify(evidence)
            await rows.close()
        report = told_of(seed, chaos, load, {name: finding.looked_at for name, finding in findings.items()})
    record_property("said", report)
    assert left == {}
    assert broken(findings) == {}
    assert chaos.injected == Counter(plan)
    assert_loaded(load, len(plan))


def assert_loaded(load: Load, faults: int) -> None:
    """A run that lost its load proves nothing."""
    journal = load.journal
    assert len(journal.acknowledged) >= 5 * faults
    assert journal.unanswered
    assert journal.repeats
    assert journal.reused
    assert journal.cancels
    assert all(person.known for person in load.people)


def told_of(seed: int, chaos: Chaos, load: Load, looked_at: dict[str, int]) -> str:
    journal = load.journal
    counts = {
        "processes started again that began without a server": chaos.stand.started_again,
        "orders acknowledged": len(journal.acknowledged),
        "orders asked for once and given up": len(journal.given_up),
        **{f"refused: {reason}": count for reason, count in sorted(journal.refusals.items())},
        "repeated after an answer": journal.repeats,
        "tried again without an answer": journal.unanswered,
        "refused for a reused request_id": journal.reused,
        "cancels": len(journal.cancels),
        "fills": sum(event.HasField("execution") for person in load.people for event in person.events),
        "events": sum(len(person.events) for person in load.people),
    }
    return "\n".join(
        [
            f"{SEED}={seed}",
            f"{chaos.injected.total():7} faults:",
            *(f"{count:9} {name}" for name, count in sorted(chaos.injected.items())),
            *(f"{count:7} {name}" for name, count in counts.items()),
            f"{journal.outage_seconds():7.1f} seconds at most in which no order was acknowledged",
            "looked at:",
            *(f"{count:7} {name}" for name, count in looked_at.items()),
        ]
    )
