"""Applies what the other services tell: who registered and proved what from auth, who trades from orders."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from tradeloom.auth.v1 import events_pb2 as auth_events_pb2
from tradeloom.orders.v1 import events_pb2 as orders_events_pb2
from tradeloom.orders.v1 import orders_pb2

from libs.store.database import Connection
from libs.store.outbox import Fact
from services.users import store
from services.users.domain import Step

REGISTERED = auth_events_pb2.UserRegistered.DESCRIPTOR.full_name
PROOFS = {
    auth_events_pb2.EmailVerified.DESCRIPTOR.full_name: Step.VERIFY_EMAIL,
    auth_events_pb2.TotpEnabled.DESCRIPTOR.full_name: Step.ENABLE_TOTP,
}
GATHER_SECONDS = 0.5
"""Of orders' facts, which are many, before it is looked together who trades."""
ORDER_CHANGED = orders_events_pb2.OrderChanged.DESCRIPTOR.full_name


async def apply_auth(rows: Connection, facts: Sequence[Fact]) -> None:
    told = [(fact, fact.user_id) for fact in facts if fact.user_id and (fact.kind == REGISTERED or fact.kind in PROOFS)]
    if not told:
        return
    # Of those who were deleted a replay brings nothing back.
    people = await store.lock_people(rows, [user_id for _, user_id in told])
    registered: dict[UUID, tuple[str, str]] = {}
    for fact, user_id in told:
        if fact.kind == REGISTERED and user_id in people:
            message = auth_events_pb2.UserRegistered.FromString(fact.payload)
            registered[user_id] = (message.email, message.full_name)
    if registered:
        await store.register(rows, registered)
    await prove(rows, {(user_id, PROOFS[fact.kind]) for fact, user_id in told if fact.kind in PROOFS} & among(people))


async def apply_orders(rows: Connection, facts: Sequence[Fact]) -> None:
    shown: set[tuple[UUID, Step]] = set()
    for fact in facts:
        if fact.user_id and fact.kind == ORDER_CHANGED:
            shown.add((fact.user_id, Step.OPEN_ACCOUNT))
            kind = orders_events_pb2.OrderChanged.FromString(fact.payload).event.kind
            if kind == orders_pb2.ORDER_EVENT_KIND_FILLED:
                shown.add((fact.user_id, Step.FIRST_TRADE))
    if not shown:
        return
    # Nearly always nothing is new, and then nobody is locked.
    new = shown - await store.proved_steps(rows, [user_id for user_id, _ in shown])
    if new:
        await prove(rows, new & among(await store.lock_people(rows, [user_id for user_id, _ in new])))


def among(people: Iterable[UUID]) -> set[tuple[UUID, Step]]:
    return {(user_id, step) for user_id in people for step in Step}


async def prove(rows: Connection, steps: set[tuple[UUID, Step]]) -> None:
    if steps:
        now = datetime.now(UTC)
        await store.complete_steps(rows, [(user_id, step, now) for user_id, step in steps], proved=True)
