"""Reads the ledger."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from libs.store.database import Connection

ENTRY_FIELDS = "entry_id, transaction_id, kind, book, asset, amount, order_id, execution_id, deployment_id, time, cause, reconciliation_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    entry_id: int
    transaction_id: UUID
    kind: str
    book: str
    asset: str
    amount: Decimal
    order_id: UUID | None
    execution_id: UUID | None
    deployment_id: UUID | None
    time: datetime
    cause: str
    reconciliation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What is unset leaves nothing out."""

    asset: str = ""
    order_id: UUID | None = None
    deployment_id: UUID | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


async def list_entries(
    rows: Connection, account_id: UUID, only: Filter, *, before: int | None, limit: int
) -> list[LedgerEntry]:
    """Newest first."""
    found = await rows.fetch(
        f"""
        SELECT {ENTRY_FIELDS} FROM ledger_entries
        WHERE account_id = $1 AND ($2::bigint IS NULL OR entry_id < $2) AND ($3 = '' OR asset = $3)
          AND ($4::uuid IS NULL OR order_id = $4) AND ($5::uuid IS NULL OR deployment_id = $5)
          AND ($6::timestamptz IS NULL OR time >= $6) AND ($7::timestamptz IS NULL OR time < $7)
        ORDER BY entry_id DESC LIMIT $8
        """,
        account_id,
        before,
        only.asset,
        only.order_id,
        only.deployment_id,
        only.start_time,
        only.end_time,
        limit,
    )
    return [LedgerEntry(**row) for row in found]
