"""What orders tells of live accounts, of who may send, and of kill switches; and what right before sending is asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.store.database import Connection
from services.execution.domain import LiveAccount, Order, Switch, SwitchMode


async def put_account(rows: Connection, account: LiveAccount) -> None:
    """Adds to how often it was confirmed."""
    await rows.execute(
        """
        INSERT INTO live_accounts AS kept
          (account_id, user_id, venue, kind, credential_id, credential_revision, trading, confirm_count)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (account_id) DO UPDATE SET venue = excluded.venue, kind = excluded.kind,
          credential_id = excluded.credential_id, credential_revision = excluded.credential_revision,
          trading = excluded.trading,
          confirm_count = kept.confirm_count + excluded.confirm_count, update_time = now()
        """,
        account.account_id,
        account.user_id,
        account.venue,
        account.kind.value,
        account.credential_id,
        account.credential_revision,
        account.trading,
        account.confirm_count,
    )


async def put_live_trading(rows: Connection, enabled: bool) -> None:
    await rows.execute(
        "INSERT INTO live_trading (enabled) VALUES ($1) ON CONFLICT (place) DO UPDATE SET enabled = excluded.enabled",
        enabled,
    )


async def put_switch(rows: Connection, user_id: UUID | None, switch: Switch) -> None:
    """Of a user's, or everybody's where it is nobody's."""
    if user_id is None or switch.target_id is None:
        await rows.execute(
            """
            INSERT INTO global_switches (mode, time) VALUES ($1, $2)
            ON CONFLICT (place) DO UPDATE SET mode = excluded.mode, time = excluded.time
            """,
            switch.mode.value,
            switch.time,
        )
        return
    await rows.execute(
        """
        INSERT INTO switches (user_id, scope, target_id, by_operator, mode, time) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (user_id, scope, target_id, by_operator) DO UPDATE SET mode = excluded.mode, time = excluded.time
        """,
        user_id,
        switch.scope,
        switch.target_id,
        switch.by_operator,
        switch.mode.value,
        switch.time,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """What decides right before sending whether an order may be sent."""

    enabled: bool
    trading: bool
    credential_id: UUID | None
    credential_revision: int
    switches: Sequence[tuple[SwitchMode, datetime]]
    now: datetime


async def find_leave(rows: Connection, order: Order) -> Leave:
    """In the transaction that has the order sent."""
    account: Any = await rows.fetchrow(
        """
        SELECT trading, credential_id, credential_revision, clock_timestamp() AS now,
          coalesce((SELECT enabled FROM live_trading), false) AS enabled
        FROM live_accounts WHERE account_id = $1
        """,
        order.account_id,
    )
    switches = await rows.fetch(
        """
        SELECT mode, time FROM global_switches
        UNION ALL
        SELECT mode, time FROM switches WHERE user_id = $1 AND (scope, target_id) IN (
          ('user', $1), ('account', $2), ('deployment', $3))
        """,
        order.user_id,
        order.account_id,
        order.deployment_id,
    )
    return Leave(**account, switches=[(SwitchMode(row["mode"]), row["time"]) for row in switches])


def objection(order: Order, leave: Leave, account: LiveAccount, unfit: str) -> str:
    """Why the order may not be sent, or changed, now; empty if it may. account is as its key was leased for.

    unfit is why the account's positions and margin are not what is told of them here: then it may only get rid of them.
    """
    if not leave.enabled:
        return "trading with real money is disabled"
    if (leave.credential_id, leave.credential_revision) != (account.credential_id, account.credential_revision):
        return "the account's key is another one than was confirmed"
    if not leave.trading:
        return "the account is stopped"
    if unfit and not order.reduce_only:
        return unfit
    for mode, time in leave.switches:
        if mode is SwitchMode.HALT:
            return "a kill switch halts trading"
        # What was accepted after that was found to make a position smaller.
        is_later = order.accept_time is not None and order.accept_time > time
        if mode is SwitchMode.REDUCE_ONLY and not order.reduce_only and not is_later:
            return "a kill switch lets positions only be made smaller"
    return ""


def is_late(order: Order, leave: Leave) -> bool:
    return order.send_before is not None and leave.now >= order.send_before
