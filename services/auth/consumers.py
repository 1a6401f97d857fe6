"""Applies what the services tell: what a person may use, that one leaves, and everything about a person to their chain."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from uuid import UUID

from google.protobuf import message_factory
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import MessageToJson
from tradeloom.billing.v1 import events_pb2 as billing_events_pb2
from tradeloom.orders.v1 import events_pb2 as orders_events_pb2
from tradeloom.orders.v1 import orders_pb2
from tradeloom.users.v1 import events_pb2 as users_events_pb2

from libs.mesh.wire import time_from_proto
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.auth import audit_store, store
from services.auth.audit_store import Chains, Happening
from services.auth.mails import Kind, Outgoing
from services.auth.store import IdentityStore

AUDITED = ("auth", "users", "billing", "orders")
"""Whose facts are recorded, but those of nobody; of orders only decisions."""
GATHER_SECONDS = 0.5
"""Of orders' facts, before they are recorded together."""
ORDER_CHANGED = orders_events_pb2.OrderChanged.DESCRIPTOR.full_name
NO_DECISIONS = frozenset(
    {
        orders_pb2.ORDER_EVENT_KIND_WORKING,
        orders_pb2.ORDER_EVENT_KIND_TRIGGERED,
        orders_pb2.ORDER_EVENT_KIND_FILLED,
        orders_pb2.ORDER_EVENT_KIND_RELEASED,
        orders_pb2.ORDER_EVENT_KIND_REDUCED,
        orders_pb2.ORDER_EVENT_KIND_UNKNOWN,
        orders_pb2.ORDER_EVENT_KIND_RETURNED,
    }
)
"""What a venue does with an order, and what follows from that, is the orders' own record."""
ENTITLEMENTS_CHANGED = billing_events_pb2.EntitlementsChanged.DESCRIPTOR.full_name
DEFAULT_CHANGED = billing_events_pb2.DefaultEntitlementsChanged.DESCRIPTOR.full_name
DELETION_SCHEDULED = users_events_pb2.DeletionScheduled.DESCRIPTOR.full_name
DELETION_CANCELLED = users_events_pb2.DeletionCancelled.DESCRIPTOR.full_name
USER_PURGED = users_events_pb2.UserPurged.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class Follow:
    """Applies, then records, what one service told."""

    source: str
    chains: Chains
    access_token_seconds: int
    now: Callable[[], datetime]
    outgoing: Outgoing

    async def __call__(self, rows: Connection, facts: Sequence[Fact]) -> None:
        happenings = [
            Happening(
                user_id=fact.user_id,
                time=fact.time,
                source=self.source,
                kind=fact.kind,
                detail=detail_of(self.source, fact),
            )
            for fact in facts
            if fact.user_id is not None and fact.time is not None and is_recorded(fact)
        ]
        if happenings:
            await self.chains.append(rows, happenings, store.purged_among)
        # What is personal goes only after it was recorded: also what this very batch told.
        for fact in facts:
            await self._apply(rows, fact)

    async def _apply(self, rows: Connection, fact: Fact) -> None:
        if fact.kind == DEFAULT_CHANGED:
            told = billing_events_pb2.DefaultEntitlementsChanged.FromString(fact.payload)
            await store.put_default_entitlements(rows, told.plan, told.entitlements, told.quotas)
        elif fact.kind == ENTITLEMENTS_CHANGED and fact.user_id is not None:
            changed = billing_events_pb2.EntitlementsChanged.FromString(fact.payload)
            if changed.by_default:
                await store.forget_entitlements(rows, fact.user_id)
            else:
                await store.put_entitlements(rows, fact.user_id, changed.plan, changed.entitlements, changed.quotas)
        elif fact.kind == DELETION_SCHEDULED and fact.user_id is not None:
            scheduled = users_events_pb2.DeletionScheduled.FromString(fact.payload)
            purge_time = f"{time_from_proto(scheduled.purge_time):%d %B %Y, %H:%M} UTC"
            await self._mail(rows, fact.user_id, Kind.DELETION_SCHEDULED, purge_time)
        elif fact.kind == DELETION_CANCELLED and fact.user_id is not None:
            await self._mail(rows, fact.user_id, Kind.DELETION_CANCELLED)
        elif fact.kind == USER_PURGED and fact.user_id is not None:
            await IdentityStore(rows, self.access_token_seconds).purge(fact.user_id, self.now())
            await audit_store.empty(rows, fact.user_id)

    async def _mail(self, rows: Connection, user_id: UUID, kind: Kind, name: str = "") -> None:
        """On its way with the reader's position, so once for each fact; to nobody who is gone by now."""
        if email := await store.email_of(rows, user_id):
            await self.outgoing.add(rows, user_id, kind, email, name=name)


def is_recorded(fact: Fact) -> bool:
    if fact.kind != ORDER_CHANGED:
        return True
    return orders_events_pb2.OrderChanged.FromString(fact.payload).event.kind not in NO_DECISIONS


def detail_of(source: str, fact: Fact) -> str:
    """The fact as JSON, in the contract's names. One of a kind that is newer than this process is kept as it came."""
    import_module(f"tradeloom.{source}.v1.events_pb2")
    try:
        message_type = message_factory.GetMessageClass(Default().FindMessageTypeByName(fact.kind))
    except KeyError:
        return json.dumps({"payload": base64.b64encode(fact.payload).decode()})
    message = message_type.FromString(fact.payload)
    return MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
