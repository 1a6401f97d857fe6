"""Where comparisons with venues live, what they found, and the orders there that are not ours."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.errors import Exhausted
from libs.store.database import Connection
from services.execution.domain import LiveAccount
from services.execution.live.comparison import Cause, Found
from services.execution.venues.port import VenueOrder

KEPT_MAX = 1_000
"""Of one account's."""
KEPT_DAYS = 90
PURGE_ROWS = 1_000
TURNS = "reconciliation"
REQUESTED_SECONDS_MIN = 10.0
"""Between two that an account's owner asks for: each asks of the venue what all accounts share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    reconciliation_id: UUID
    account_id: UUID
    cause: Cause
    state: str
    create_time: datetime
    end_time: datetime | None
    order_count: int
    fill_count: int
    asset_count: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalOrder:
    external_order_id: UUID
    user_id: UUID
    account_id: UUID
    venue_order_id: str
    client_order_id: str
    instrument_id: str
    side: str
    quantity: Decimal
    filled_quantity: Decimal
    limit_price: Decimal | None
    stop_price: Decimal | None
    state: str
    order_id: UUID | None
    find_time: datetime


RECONCILIATION = ", ".join(Reconciliation.__dataclass_fields__)
EXTERNAL_ORDER = ", ".join(ExternalOrder.__dataclass_fields__)


async def request(rows: Connection, reconciliation_id: UUID, account_id: UUID, user_id: UUID) -> Reconciliation:
    row = await rows.fetchrow(
        f"""
        INSERT INTO reconciliations (reconciliation_id, user_id, account_id, cause, state)
        VALUES ($1, $2, $3, 'requested', 'requested') RETURNING {RECONCILIATION}
        """,
        reconciliation_id,
        user_id,
        account_id,
    )
    return reconciliation_from(row)


async def take_turn(rows: Connection, account_id: UUID) -> None:
    """For one request at its owner's wish. Raises Exhausted where one was made a moment ago."""
    await rows.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"reconciliations/{account_id}")
    left = await rows.fetchval(
        """
        SELECT extract(epoch FROM create_time + make_interval(secs => $2) - now()) FROM reconciliations
        WHERE account_id = $1 AND cause = 'requested' ORDER BY reconciliation_id DESC LIMIT 1
        """,
        account_id,
        REQUESTED_SECONDS_MIN,
    )
    if left is not None and left > 0:
        raise Exhausted(
            "the account was compared with its venue a moment ago", retry_after_seconds=float(left), limit=TURNS
        )


async def finish(rows: Connection, account: LiveAccount, found: Found) -> None:
    """Writes what was found; what is kept no more goes."""
    await rows.execute(
        """
        INSERT INTO reconciliations AS kept (reconciliation_id, user_id, account_id, cause, state, create_time, end_time,
          order_count, fill_count, asset_count, difference_count, problem)
        VALUES ($1, $2, $3, $4, $5, $6, now(), $7, $8, $9, $10, $11)
        ON CONFLICT (reconciliation_id) DO UPDATE SET state = excluded.state, end_time = excluded.end_time,
          order_count = excluded.order_count, fill_count = excluded.fill_count, asset_count = excluded.asset_count,
          difference_count = excluded.difference_count, problem = excluded.problem
        """,
        found.reconciliation_id,
        account.user_id,
        account.account_id,
        found.cause.value,
        "failed" if found.problem else "done",
        found.begin_time,
        found.order_count,
        found.fill_count,
        found.asset_count,
        len(found.differences),
        found.problem,
    )
    numbered = list(enumerate(found.differences, 1))
    columns: list[list[Any]] = [
        [getattr(difference, name) for _, difference in numbered]
        for name in ("order_id", "venue_order_id", "subject", "ours", "venues", "explanation")
    ]
    await rows.execute(
        """
        INSERT INTO differences (reconciliation_id, user_id, number, kind, order_id, venue_order_id, subject, ours, venues,
          explanation)
        SELECT $1, $2, * FROM unnest($3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
          $10::text[])
        """,
        found.reconciliation_id,
        account.user_id,
        [number for number, _ in numbered],
        [difference.kind.value for _, difference in numbered],
        *columns,
    )
    await _purge(rows, account.account_id, found.reconciliation_id)


async def _purge(rows: Connection, account_id: UUID, reconciliation_id: UUID) -> None:
    """Those that came around and found nothing before this one, those too many, and those too old; none that is asked for."""
    await rows.execute(
        """
        DELETE FROM reconciliations WHERE reconciliation_id IN (
          SELECT reconciliation_id FROM (
            SELECT reconciliation_id, cause, difference_count, create_time,
              row_number() OVER (ORDER BY reconciliation_id DESC) AS number
            FROM reconciliations WHERE account_id = $1 AND state <> 'requested') AS kept
          WHERE reconciliation_id <> $2 AND ((cause = 'periodic' AND difference_count = 0) OR number > $3
            OR create_time < now() - make_interval(days => $4))
          LIMIT $5)
        """,
        account_id,
        reconciliation_id,
        KEPT_MAX,
        KEPT_DAYS,
        PURGE_ROWS,
    )


async def find_requested(rows: Connection, account_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Of each account the oldest that is asked for; for the worker role."""
    found = await rows.fetch(
        """
        SELECT DISTINCT ON (account_id) account_id, reconciliation_id FROM reconciliations
        WHERE account_id = ANY($1) AND state = 'requested' ORDER BY account_id, reconciliation_id
        """,
        list(account_ids),
    )
    return {row["account_id"]: row["reconciliation_id"] for row in found}


async def find(rows: Connection, reconciliation_id: UUID) -> Reconciliation | None:
    row = await rows.fetchrow(
        f"SELECT {RECONCILIATION} FROM reconciliations WHERE reconciliation_id = $1", reconciliation_id
    )
    return reconciliation_from(row) if row else None


async def list_of(rows: Connection, account_id: UUID, before: UUID | None, limit: int) -> list[Reconciliation]:
    """The newest first."""
    found = await rows.fetch(
        f"""
        SELECT {RECONCILIATION} FROM reconciliations WHERE account_id = $1 AND ($2::uuid IS NULL OR reconciliation_id < $2)
        ORDER BY reconciliation_id DESC LIMIT $3
        """,
        account_id,
        before,
        limit,
    )
    return [reconciliation_from(row) for row in found]


async def find_differences(rows: Connection, reconciliation_ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """By reconciliation, as rows."""
    found = await rows.fetch(
        """
        SELECT reconciliation_id, kind, order_id, venue_order_id, subject, ours, venues, explanation FROM differences
        WHERE reconciliation_id = ANY($1) ORDER BY reconciliation_id, number
        """,
        list(reconciliation_ids),
    )
    differences: dict[UUID, list[Any]] = {reconciliation_id: [] for reconciliation_id in reconciliation_ids}
    for row in found:
        differences[row["reconciliation_id"]].append(row)
    return differences


def reconciliation_from(row: Any) -> Reconciliation:
    return Reconciliation(**{**row, "cause": Cause(row["cause"])})


# Orders that are not ours.


async def put_external(rows: Connection, account: LiveAccount, external_order_id: UUID, found: VenueOrder) -> bool:
    """As the venue has it; whether it was not known before. One that was done and is open again was not."""
    is_new: Any = await rows.fetchval(
        """
        INSERT INTO external_orders AS kept (external_order_id, user_id, account_id, venue_order_id, client_order_id,
          instrument_id, side, quantity, filled_quantity, limit_price, stop_price, state)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'found')
        ON CONFLICT (account_id, venue_order_id) DO UPDATE SET quantity = excluded.quantity,
          filled_quantity = excluded.filled_quantity, limit_price = excluded.limit_price, stop_price = excluded.stop_price,
          state = CASE kept.state WHEN 'done' THEN 'found' ELSE kept.state END
        RETURNING external_order_id = $1
        """,
        external_order_id,
        account.user_id,
        account.account_id,
        found.venue_order_id,
        found.client_order_id,
        found.instrument_id,
        found.side.value,
        found.quantity,
        found.filled_quantity,
        found.limit_price,
        found.stop_price,
    )
    return is_new


async def end_externals(rows: Connection, account_id: UUID, open_ids: Collection[str]) -> None:
    """Those that are not open at the venue any more, whoever was to decide about them."""
    await rows.execute(
        """
        UPDATE external_orders SET state = 'done' WHERE account_id = $1 AND state IN ('found', 'adopting', 'ignored')
        AND venue_order_id <> ALL($2)
        """,
        account_id,
        list(open_ids),
    )


async def find_adopting(rows: Connection, account_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Of each account one order that is to be adopted; for the worker role."""
    found = await rows.fetch(
        """
        SELECT DISTINCT ON (account_id) account_id, external_order_id FROM external_orders
        WHERE account_id = ANY($1) AND state = 'adopting' ORDER BY account_id, external_order_id
        """,
        list(account_ids),
    )
    return {row["account_id"]: row["external_order_id"] for row in found}


async def find_external(rows: Connection, external_order_id: UUID, *, lock: bool = False) -> ExternalOrder | None:
    row = await rows.fetchrow(
        f"SELECT {EXTERNAL_ORDER} FROM external_orders WHERE external_order_id = $1 {'FOR UPDATE' if lock else ''}",
        external_order_id,
    )
    return ExternalOrder(**row) if row else None


async def list_external(
    rows: Connection, account_id: UUID, after: UUID | None, limit: int, *, include_decided: bool
) -> list[ExternalOrder]:
    """The oldest first."""
    found = await rows.fetch(
        f"""
        SELECT {EXTERNAL_ORDER} FROM external_orders WHERE account_id = $1 AND ($2::uuid IS NULL OR external_order_id > $2)
        AND ($3 OR state IN ('found', 'adopting')) ORDER BY external_order_id LIMIT $4
        """,
        account_id,
        after,
        include_decided,
        limit,
    )
    return [ExternalOrder(**row) for row in found]


async def put_external_state(
    rows: Connection, external_order_id: UUID, state: str, order_id: UUID | None = None
) -> ExternalOrder:
    row: Any = await rows.fetchrow(
        f"""
        UPDATE external_orders SET state = $2, order_id = coalesce($3, order_id) WHERE external_order_id = $1
        RETURNING {EXTERNAL_ORDER}
        """,
        external_order_id,
        state,
        order_id,
    )
    return ExternalOrder(**row)
