"""What a comparison of a live account with its venue may find."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

DIFFERENCES_MAX = 1_000


class Cause(Enum):
    START = "start"
    RECONNECT = "reconnect"
    PERIODIC = "periodic"
    REQUESTED = "requested"


class Kind(Enum):
    ORDER_STATE = "order_state"
    FILL_MISSED = "fill_missed"
    ORDER_MISSING = "order_missing"
    ORDER_EXTERNAL = "order_external"
    FILL_EXTERNAL = "fill_external"
    BALANCE = "balance"
    POSITION = "position"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    kind: Kind
    order_id: str = ""
    venue_order_id: str = ""
    subject: str = ""
    ours: str = ""
    venues: str = ""
    explanation: str = ""


@dataclass(slots=True, kw_only=True)
class Found:
    """What a reconciliation has found so far."""

    reconciliation_id: UUID
    cause: Cause
    begin_time: datetime
    order_count: int = 0
    fill_count: int = 0
    asset_count: int = 0
    differences: list[Difference] = field(default_factory=list)
    problem: str = ""

    def add(self, difference: Difference) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)
