"""A run of the proof: people trade, faults befall what they trade on, everything drains, and every promise is looked at."""

import os
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg
from tradeloom.orders.v1 import orders_pb2

from tests.faults.proof import steps
from tests.faults.proof.chaos import Chaos, Fault
from tests.faults.proof.load import Journal, Load, Person, loading
from tests.faults.proof.stand import Doors, Stand, connected
from tests.faults.proof.steps import Step
from tests.faults.proof.venue import Venue
from tests.faults.proof.verify import AT_ANY_MOMENT, PROMISES, Evidence, Promise, broken, drained, shown_of, verify

SEED = "TRADELOOM_FAULTS_SEED"
"""An environment variable: the seed of a run that is to be repeated."""


@dataclass(frozen=True)
class Trading:
    """What people trade with, and what befalls it: paper, or real money at an exchange."""

    person: Callable[[Doors, Journal, random.Random], Person]
    steps: Sequence[Step]
    faults: Mapping[str, Fault]
    venue: Callable[[asyncpg.Connection], Venue]
    promises: Sequence[Promise] = PROMISES
    complete: Callable[[Evidence, Load], Awaitable[Evidence]] | None = None
    """Adds what is to be asked for once all has drained."""


@dataclass(frozen=True)
class Size:
    replicas: int
    people: int
    lanes: int
    stop_seconds: float
    waited_for_leases: float
    orders_each: int = 5
    """And changes, acknowledged for each fault at least: who are fewer, or slower, ask for fewer."""


def one_of_each(groups: Iterable[Sequence[str]]) -> Callable[[random.Random], list[str]]:
    """A short plan: of each group some seed chooses each, so that over many runs nothing is left out."""
    return lambda chance: [chance.choice(group) for group in groups]


def times_each(names: Iterable[str], of: Iterable[Step], steps: int, stops: int, others: int) -> list[str]:
    """A long plan: each step so many times, each process that stands still, which takes long, and whatever else there is."""
    named = {step.name for step in of}
    times = {name: steps if name in named else stops if name.startswith("stop ") else others for name in names}
    return [name for name in times for _ in range(times[name])]


async def prove(
    stand: Stand,
    trading: Trading,
    size: Size,
    names: Callable[[random.Random], list[str]],
    record_property: Callable[[str, object], None],
) -> int:
    """How many faults befell them."""
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    print(f"{SEED}={seed}")
    planning = random.Random(seed)
    plan = names(planning)
    planning.shuffle(plan)
    superuser = await connected(stand.installation)
    await steps.prepare(superuser, trading.steps)
    await superuser.close()
    async with loading(stand.doors, size.people, seed, trading.person) as load:
        chance = random.Random(f"{seed} chaos")
        chaos = Chaos(stand, trading.faults, chance, load.check, size.stop_seconds, size.waited_for_leases)
        await chaos.run(iter(plan), size.lanes)
        await load.end()
        rows = await connected(stand.installation)
        followed = {person.account_id: person.events for person in load.people}
        async with rows.transaction(isolation="repeatable_read"):
            before = Evidence(rows, load.journal, trading.venue(rows), followed, {})
            now_broken = broken(await verify(before, AT_ANY_MOMENT))
            assert not now_broken, now_broken
        await load.settle()
        left = await drained(rows, load)
        evidence = replace(before, shown=await shown_of(stand.doors, load))
        if trading.complete and not left:
            evidence = await trading.complete(evidence, load)
        findings = await verify(evidence, trading.promises)
        await rows.close()
    report = told_of(seed, chaos, load, {name: finding.looked_at for name, finding in findings.items()})
    record_property("said", report)
    assert not left, left
    assert not broken(findings), broken(findings)
    assert chaos.injected == Counter(plan), chaos.injected
    assert_loaded(load, size.orders_each * len(plan))
    return len(plan)


def assert_loaded(load: Load, orders: int) -> None:
    """A run that lost its load proves nothing."""
    journal = load.journal
    taken = len(journal.acknowledged) + len(journal.taken_up)
    assert taken >= orders, taken
    assert journal.unanswered
    assert journal.repeats
    assert journal.reused
    assert journal.cancels
    assert journal.taken_up
    assert all(person.known for person in load.people)


def told_of(seed: int, chaos: Chaos, load: Load, looked_at: dict[str, int]) -> str:
    journal = load.journal
    told = Counter(event.kind for person in load.people for event in person.events)
    counts = {
        "processes started again that began without a server": chaos.stand.started_again,
        "orders acknowledged": len(journal.acknowledged),
        "orders asked for once and given up": len(journal.given_up),
        **{f"refused: {reason}": count for reason, count in sorted(journal.refusals.items())},
        "repeated after an answer": journal.repeats,
        "tried again without an answer": journal.unanswered,
        "refused for a reused request_id": journal.reused,
        "cancels": len(journal.cancels),
        "changes taken up": len(journal.taken_up),
        "changes made": told[orders_pb2.ORDER_EVENT_KIND_REPLACED],
        "changes that the venue refused": told[orders_pb2.ORDER_EVENT_KIND_REPLACE_REJECTED],
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
