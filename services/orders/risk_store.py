"""Where limits, switches and what came of them live."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.store import outbox
from libs.store.bulk import Bulk, Together
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.orders.domain import Account, KillSwitch, RiskEvent, Scope, Switch

SWITCHES_MAX = 1_000
"""So many of a user's are shown, the newest."""
EVENT_COLUMNS = {
    "risk_event_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "kind": "text",
    "limit_name": "text",
    "value": "text",
    "bound": "text",
    "instrument_id": "text",
    "time": "timestamptz",
}
EVENT_FIELDS = ", ".join(EVENT_COLUMNS)
INSERT_EVENTS = Bulk("risk_events", EVENT_COLUMNS)


async def find_limits(rows: Connection, account_ids: Sequence[UUID]) -> dict[UUID, dict[str, Decimal]]:
    """What was set, by account and the limits' names."""
    limits: dict[UUID, dict[str, Decimal]] = {account_id: {} for account_id in account_ids}
    for row in await rows.fetch(
        "SELECT account_id, limit_name, value FROM risk_limits WHERE account_id = ANY($1)", list(account_ids)
    ):
        limits[row["account_id"]][row["limit_name"]] = row["value"]
    return limits


async def put_limits(rows: Connection, account_id: UUID, user_id: UUID, limits: Mapping[str, Decimal]) -> int:
    """Sets them in place of those before; their revision. Call it under the account's lock."""
    await rows.execute("DELETE FROM risk_limits WHERE account_id = $1", account_id)
    await rows.execute(
        """
        INSERT INTO risk_limits (account_id, user_id, limit_name, value)
        SELECT $1, $2, * FROM unnest($3::text[], $4::numeric[])
        """,
        account_id,
        user_id,
        list(limits),
        list(limits.values()),
    )
    [row] = await rows.fetch(
        "UPDATE accounts SET limits_revision = limits_revision + 1 WHERE account_id = $1 RETURNING limits_revision",
        account_id,
    )
    return row["limits_revision"]


async def put_worth(rows: Connection, account: Account) -> None:
    """Writes what its losses are counted from, and its locks. Call it under the account's lock."""
    await rows.execute(
        """
        UPDATE accounts SET day_start_time = $2, day_start_equity = $3, peak_equity = $4, locks = $5
        WHERE account_id = $1
        """,
        account.account_id,
        account.day_start_time,
        account.day_start_equity,
        account.peak_equity,
        sorted(lock.value for lock in account.locks),
    )


async def add_events(rows: Connection | Together, events: Sequence[RiskEvent]) -> None:
    if events:
        await rows.execute(INSERT_EVENTS.statement, *INSERT_EVENTS.arguments(events))


async def list_events(
    rows: Connection, user_id: UUID, account_id: UUID | None, before: UUID | None, limit: int
) -> list[RiskEvent]:
    found = await rows.fetch(
        f"""
        SELECT {EVENT_FIELDS} FROM risk_events
        WHERE user_id = $1 AND ($2::uuid IS NULL OR account_id = $2) AND ($3::uuid IS NULL OR risk_event_id < $3)
        ORDER BY risk_event_id DESC LIMIT $4
        """,
        user_id,
        account_id,
        before,
        limit,
    )
    return [RiskEvent(**row) for row in found]


async def put_switch(rows: Connection, switch: KillSwitch) -> KillSwitch:
    """Sets it, and tells it; as it now stands. Its revision is counted here."""
    if switch.scope is Scope.GLOBAL:
        revision = await rows.fetchval(
            """
            INSERT INTO global_switches AS kept (mode, reason, canceling, revision, time) VALUES ($1, $2, $3, 1, $4)
            ON CONFLICT (place) DO UPDATE SET mode = excluded.mode, reason = excluded.reason,
              canceling = excluded.canceling, revision = kept.revision + 1, time = excluded.time
            RETURNING revision
            """,
            switch.mode.name.lower(),
            switch.reason,
            switch.canceling,
            switch.time,
        )
    else:
        revision = await rows.fetchval(
            """
            INSERT INTO kill_switches AS kept
              (user_id, scope, target_id, by_operator, mode, reason, canceling, revision, time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8)
            ON CONFLICT (user_id, scope, target_id, by_operator) DO UPDATE SET mode = excluded.mode, reason = excluded.reason,
              canceling = excluded.canceling, revision = kept.revision + 1, time = excluded.time
            RETURNING revision
            """,
            switch.user_id,
            switch.scope.value,
            switch.target_id,
            switch.by_operator,
            switch.mode.name.lower(),
            switch.reason,
            switch.canceling,
            switch.time,
        )
    return replace(switch, revision=revision)


async def tell_switch(rows: Connection, switch: KillSwitch, kind: str, payload: bytes) -> None:
    """As a fact, in the transaction that set it."""
    whose = f"{switch.user_id}/{switch.target_id}/{'operator' if switch.by_operator else 'owner'}"
    key = "switch/global" if switch.scope is Scope.GLOBAL else f"switch/{switch.scope.value}/{whose}"
    await outbox.add(
        rows, [Fact(key=key, sequence=switch.revision, user_id=switch.user_id, kind=kind, payload=payload)]
    )


async def list_switches(rows: Connection, user_id: UUID) -> list[KillSwitch]:
    """Those that are on and may hold for the user's orders: everybody's first, then the user's own, newest first."""
    found = await rows.fetch(
        """
        SELECT 'global' AS scope, NULL::uuid AS target_id, NULL::uuid AS user_id, mode, reason, true AS by_operator,
          canceling, revision, time
        FROM global_switches WHERE mode <> 'off'
        UNION ALL (
          SELECT scope, target_id, user_id, mode, reason, by_operator, canceling, revision, time FROM kill_switches
          WHERE user_id = $1 AND mode <> 'off' ORDER BY time DESC, scope, target_id LIMIT $2)
        """,
        user_id,
        SWITCHES_MAX,
    )
    return [switch_from(row) for row in found]


def switch_from(row: Any) -> KillSwitch:
    values = dict(row)
    return KillSwitch(**{**values, "scope": Scope(values["scope"]), "mode": Switch[values["mode"].upper()]})


# What the worker does: cancels that a switch asks for.


async def canceling(rows: Connection, limit: int) -> list[KillSwitch]:
    """Switches whose open orders are still to be asked to cancel: everybody's first, then the oldest."""
    found = await rows.fetch(
        """
        SELECT 'global' AS scope, NULL::uuid AS target_id, NULL::uuid AS user_id, mode, reason, true AS by_operator,
          canceling, revision, time
        FROM global_switches WHERE canceling
        UNION ALL (
          SELECT scope, target_id, user_id, mode, reason, by_operator, canceling, revision, time FROM kill_switches
          WHERE canceling ORDER BY time LIMIT $1)
        """,
        limit,
    )
    return [switch_from(row) for row in found]


async def lock_canceling(rows: Connection, switch: KillSwitch) -> bool:
    """Whether it still asks for cancels, and no other replica is at it."""
    if switch.scope is Scope.GLOBAL:
        return bool(await rows.fetchval("SELECT true FROM global_switches WHERE canceling FOR UPDATE SKIP LOCKED"))
    return bool(
        await rows.fetchval(
            """
            SELECT true FROM kill_switches
            WHERE user_id = $1 AND scope = $2 AND target_id = $3 AND by_operator = $4 AND canceling FOR UPDATE SKIP LOCKED
            """,
            switch.user_id,
            switch.scope.value,
            switch.target_id,
            switch.by_operator,
        )
    )


async def finish_canceling(rows: Connection, switch: KillSwitch) -> None:
    """Unless it was set again meanwhile."""
    if switch.scope is Scope.GLOBAL:
        await rows.execute("UPDATE global_switches SET canceling = false WHERE revision = $1", switch.revision)
        return
    await rows.execute(
        """
        UPDATE kill_switches SET canceling = false
        WHERE user_id = $1 AND scope = $2 AND target_id = $3 AND by_operator = $4 AND revision = $5
        """,
        switch.user_id,
        switch.scope.value,
        switch.target_id,
        switch.by_operator,
        switch.revision,
    )


async def users_with_open_orders(rows: Connection, after: UUID, limit: int) -> list[UUID]:
    """Or with parent orders that may place some, in the order of their ids."""
    found = await rows.fetch(
        """
        SELECT user_id FROM accounts WHERE open_orders > 0 AND user_id > $1
        UNION SELECT user_id FROM parent_orders
        WHERE state IN ('active', 'canceling') AND state = 'active' AND user_id > $1
        ORDER BY user_id LIMIT $2
        """,
        after,
        limit,
    )
    return [row["user_id"] for row in found]
