"""Applies what the services tell: everything about a person goes into their audit chain."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from google.protobuf import message_factory
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import MessageToJson
from tradeloom.orders.v1 import events_pb2 as orders_events_pb2
from tradeloom.orders.v1 import orders_pb2

from libs.store.database import Connection
from libs.store.outbox import Fact
from libs.words import WORDS
from services.auth import audit_store
from services.auth.audit_store import Happening

AUDITED = tuple(word for word in ("auth", "users", "billing", "orders") if word in WORDS)
"""Whose facts are recorded, but those of nobody; of orders only decisions."""
ORDER_CHANGED = orders_events_pb2.OrderChanged.DESCRIPTOR.full_name
NO_DECISIONS = frozenset({orders_pb2.ORDER_EVENT_KIND_WORKING, orders_pb2.ORDER_EVENT_KIND_FILLED})
"""What a venue does with an order is the orders' own record."""


@dataclass(frozen=True, slots=True)
class Record:
    """Records what one service told."""

    source: str

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
            await audit_store.append(rows, happenings)


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
