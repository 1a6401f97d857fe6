"""Where parent orders live."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncpg import Record

from libs.store.bulk import Bulk, Together, plain
from libs.store.database import Connection
from services.orders.domain import AccountState, Side, State
from services.orders.parents import Parent, ParentKind, ParentState, Skip

DUE_SEEN_MAX = 10_000
"""Of parents that are due so many are seen at once, and divided fairly: more than one person may have."""
SKIPS_SHOWN = 100
COUNTED = ("open_children", "working_quantity", "filled_quantity", "filled_notional", "fees")
"""What children's changes count, and nobody else writes."""
PARENT_FIELDS = [field.name for field in fields(Parent)]
WRITTEN = [name for name in PARENT_FIELDS if name not in COUNTED]
# What a step may change.
CHANGES = (
    "state",
    "reason",
    "slice_number",
    "due_time",
    "skipped_slices",
    "refused_slice",
    "refusal_reason",
    "refusal_message",
    "refusal_time",
    "update_time",
)
SELECT = f"SELECT {', '.join(PARENT_FIELDS)} FROM parent_orders"
# Literally as in the index of them, so that it is used.
LIVE_STATES = "('active', 'canceling')"
OPEN_STATES = "('held', 'pending_new', 'new', 'partially_filled', 'pending_cancel', 'pending_replace', 'unknown')"
# Who waits for no time waits for the children, and so does who is canceling.
COUNT_PROGRESS = f"""
    UPDATE parent_orders AS kept SET open_children = kept.open_children + more.open_children,
      working_quantity = kept.working_quantity + more.working_quantity,
      filled_quantity = kept.filled_quantity + more.filled_quantity,
      filled_notional = kept.filled_notional + more.filled_notional, fees = kept.fees + more.fees,
      update_time = more.time,
      due_time = CASE
        WHEN more.has_ended AND kept.state IN {LIVE_STATES} AND (kept.due_time IS NULL OR kept.state = 'canceling')
        THEN more.time ELSE kept.due_time END
    FROM unnest($1::uuid[], $2::integer[], $3::numeric[], $4::numeric[], $5::numeric[], $6::numeric[], $7::boolean[],
                $8::timestamptz[])
      AS more (parent_order_id, open_children, working_quantity, filled_quantity, filled_notional, fees, has_ended, time)
    WHERE kept.parent_order_id = more.parent_order_id
    """
SKIP_COLUMNS = {
    "parent_order_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "first_slice": "integer",
    "last_slice": "integer",
    "reason": "text",
    "message": "text",
    "time": "timestamptz",
}
INSERT_SKIPS = Bulk("parent_order_skips", SKIP_COLUMNS)


@dataclass(frozen=True, slots=True)
class Due:
    """A parent that is to be looked at."""

    parent_order_id: UUID
    user_id: UUID
    account_id: UUID
    instrument_id: str
    due_time: datetime


@dataclass(frozen=True, slots=True)
class SkipRow:
    parent: Parent
    skip: Skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parent if name in ("parent_order_id", "user_id", "account_id") else self.skip, name)


@dataclass(frozen=True, slots=True)
class ParentStore:
    """One transaction's view of parent orders. What it writes is written under their account's lock."""

    rows: Connection

    async def add(self, parent: Parent) -> None:
        values = [plain(getattr(parent, name)) for name in WRITTEN]
        places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        await self.rows.execute(f"INSERT INTO parent_orders ({', '.join(WRITTEN)}) VALUES ({places})", *values)

    async def find(self, parent_order_id: UUID) -> Parent | None:
        return await find(self.rows, parent_order_id)

    async def put(self, parent: Parent) -> None:
        """Writes what a step has changed; what its children have done is written with them."""
        changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(CHANGES, 2))
        values = [plain(getattr(parent, name)) for name in CHANGES]
        await self.rows.execute(
            f"UPDATE parent_orders SET {changes} WHERE parent_order_id = $1", parent.parent_order_id, *values
        )

    async def add_skips(self, parent: Parent, skips: Sequence[Skip]) -> None:
        if skips:
            rows = [SkipRow(parent, skip) for skip in skips]
            await self.rows.execute(INSERT_SKIPS.statement, *INSERT_SKIPS.arguments(rows))

    async def count_live(self, account_id: UUID, user_id: UUID) -> int:
        """How many are under way in an account."""
        count = await self.rows.fetchval(
            f"SELECT count(*) FROM parent_orders WHERE user_id = $2 AND account_id = $1 AND state IN {LIVE_STATES}",
            account_id,
            user_id,
        )
        return count or 0

    async def last_child(self, parent_order_id: UUID) -> tuple[State, datetime] | None:
        """What its newest child is, and when that last changed."""
        row = await self.rows.fetchrow(
            """
            SELECT state, update_time FROM trading_orders WHERE parent_order_id = $1 ORDER BY slice_number DESC LIMIT 1
            """,
            parent_order_id,
        )
        return (State(row["state"]), row["update_time"]) if row else None

    async def open_children(self, parent: Parent) -> list[UUID]:
        """Among the open orders of its account, which are few."""
        found = await self.rows.fetch(
            f"SELECT order_id FROM trading_orders WHERE account_id = $1 AND parent_order_id = $2 AND state IN {OPEN_STATES}",
            parent.account_id,
            parent.parent_order_id,
        )
        return [row["order_id"] for row in found]


async def write_progress(writes: Together, states: Sequence[AccountState]) -> None:
    """Counts what children have become, in the transaction in which they did, under the locks of their accounts."""
    found = [(state, parent_order_id) for state in states for parent_order_id in state.progress]
    if found:
        made = [state.progress[parent_order_id] for state, parent_order_id in found]
        counts = [[getattr(progress, name) for progress in made] for name in (*COUNTED, "has_ended")]
        ids, times = [each[1] for each in found], [each[0].events[-1].time for each in found]
        await writes.execute(COUNT_PROGRESS, ids, *counts, times)


async def find(rows: Connection, parent_order_id: UUID) -> Parent | None:
    row = await rows.fetchrow(f"{SELECT} WHERE parent_order_id = $1", parent_order_id)
    return parent_from(row) if row else None


async def account_of_parent(rows: Connection, parent_order_id: UUID) -> UUID | None:
    return await rows.fetchval("SELECT account_id FROM parent_orders WHERE parent_order_id = $1", parent_order_id)


async def list_parents(
    rows: Connection, account_id: UUID, states: Collection[ParentState], *, before: UUID | None, limit: int
) -> list[Parent]:
    """Newest first."""
    found = await rows.fetch(
        f"""
        {SELECT} WHERE account_id = $1 AND ($2::text[] = '{{}}' OR state = ANY($2))
          AND ($3::uuid IS NULL OR parent_order_id < $3)
        ORDER BY parent_order_id DESC LIMIT $4
        """,
        account_id,
        [state.value for state in states],
        before,
        limit,
    )
    return [parent_from(row) for row in found]


async def skips_of(rows: Connection, parent_order_id: UUID) -> list[Skip]:
    """The newest."""
    found = await rows.fetch(
        """
        SELECT first_slice, last_slice, reason, message, time FROM parent_order_skips WHERE parent_order_id = $1
        ORDER BY first_slice DESC LIMIT $2
        """,
        parent_order_id,
        SKIPS_SHOWN,
    )
    return [Skip(**row) for row in found]


async def active_parents(
    rows: Connection, user_id: UUID, limit: int, *, account_id: UUID | None, deployment_id: UUID | None
) -> list[tuple[UUID, UUID]]:
    """Accounts and parent orders of which nobody has asked for a cancel."""
    found = await rows.fetch(
        f"""
        SELECT account_id, parent_order_id FROM parent_orders
        WHERE user_id = $1 AND state IN {LIVE_STATES} AND state = 'active'
          AND ($3::uuid IS NULL OR account_id = $3) AND ($4::uuid IS NULL OR deployment_id = $4)
        ORDER BY parent_order_id LIMIT $2
        """,
        user_id,
        limit,
        account_id,
        deployment_id,
    )
    return [(row["account_id"], row["parent_order_id"]) for row in found]


async def cancel_parents(
    rows: Connection,
    states: Mapping[UUID, AccountState],
    now: datetime,
    *,
    parent_order_ids: Iterable[UUID] | None = None,
    instrument_id: str | None = None,
    side: Side | None = None,
    deployment_id: UUID | None = None,
) -> list[UUID]:
    """Has the active parents of locked accounts place nothing more, all or those that are named; their ids.

    Their children are canceled as other orders are, and the worker ends them when these are done.
    """
    found = await rows.fetch(
        f"""
        UPDATE parent_orders SET state = 'canceling', due_time = $3, update_time = $3
        WHERE user_id = ANY($1) AND account_id = ANY($2) AND state IN {LIVE_STATES} AND state = 'active'
          AND ($4::uuid[] IS NULL OR parent_order_id = ANY($4)) AND ($5::text IS NULL OR instrument_id = $5)
          AND ($6::text IS NULL OR side = $6) AND ($7::uuid IS NULL OR deployment_id = $7)
        RETURNING parent_order_id
        """,
        [state.account.user_id for state in states.values()],
        list(states),
        now,
        None if parent_order_ids is None else list(parent_order_ids),
        instrument_id,
        side.value if side is not None else None,
        deployment_id,
    )
    return sorted(row["parent_order_id"] for row in found)


# What the worker does.


async def due_parents(rows: Connection, until: datetime, limit: int) -> list[Due]:
    """Those that are due by then, one of each person's in turn, whose has waited longest first."""
    found = await rows.fetch(
        """
        SELECT parent_order_id, user_id, account_id, instrument_id, due_time FROM (
          SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY due_time) AS turn FROM (
            SELECT parent_order_id, user_id, account_id, instrument_id, due_time FROM parent_orders
            WHERE due_time <= $1 ORDER BY due_time LIMIT $2) AS due) AS seen
        ORDER BY turn, due_time LIMIT $3
        """,
        until,
        DUE_SEEN_MAX,
        limit,
    )
    return [Due(**row) for row in found]


async def put_off(rows: Connection, parent_order_id: UUID, until: datetime) -> None:
    """Has a parent that cannot be stepped wait, so that it holds up nobody else's."""
    await rows.execute("UPDATE parent_orders SET due_time = $2 WHERE parent_order_id = $1", parent_order_id, until)


def parent_from(row: Record) -> Parent:
    return Parent(
        **{
            **row,
            "kind": ParentKind(row["kind"]),
            "side": Side(row["side"]),
            "state": ParentState(row["state"]),
        }
    )
