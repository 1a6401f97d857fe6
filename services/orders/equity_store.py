"""Where what accounts were worth lives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from libs.store.database import Connection
from services.orders import risk_store
from services.orders.domain import Account, Balance, Position
from services.orders.store import ACCOUNT_FIELDS, account_from

OF_LIMITED = """
    account_id IN (SELECT account_id FROM risk_limits WHERE limit_name IN ('daily_loss_max', 'drawdown_percent_max'))
    """
OF_CHANGING = """
    (equity_sequence <> account_sequence OR EXISTS (SELECT FROM balances
      WHERE balances.account_id = accounts.account_id AND total <> 0 AND asset <> valuation_asset)
      OR kind = 'margin' AND EXISTS (SELECT FROM positions
        WHERE positions.account_id = accounts.account_id AND quantity <> 0))
    """

READ_HELD = """
    SELECT false AS is_position, account_id, asset AS name, total AS first, reserved AS second FROM balances
    WHERE account_id = ANY($1::uuid[]) AND total <> 0
    UNION ALL SELECT true, account_id, instrument_id, quantity, average_price FROM positions
    WHERE account_id = ANY($2::uuid[]) AND quantity <> 0 ORDER BY name
    """
"""Wallets and positions of one moment: what a fill has realised is in one of them, never in both or neither."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an account holds: positions only of a margin account, and those that are not flat."""

    balances: list[Balance] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Watched:
    account: Account
    balances: Sequence[Balance]
    limits: Mapping[str, Decimal]
    """Those that were set."""
    positions: Sequence[Position] = ()
    """Of a margin account: those that are not flat."""


async def find_watched(rows: Connection, after: UUID, count_max: int, *, only_limited: bool) -> list[Watched]:
    """Accounts whose worth may have changed since it was last noted, or those that have a limit on losses; by id.

    An account that holds nothing but what it is valued in is worth what it was until something happens in it. For the
    worker role.
    """
    which = OF_LIMITED if only_limited else OF_CHANGING
    found = await rows.fetch(
        f"""
        SELECT {ACCOUNT_FIELDS} FROM accounts WHERE account_id > $1 AND NOT closed AND {which}
        ORDER BY account_id LIMIT $2
        """,
        after,
        count_max,
    )
    if not found:
        return []
    accounts = [account_from(row) for row in found]
    account_ids = [account.account_id for account in accounts]
    held = await read_held(rows, accounts)
    limits = await risk_store.find_limits(rows, account_ids)
    return [
        Watched(account, own.balances, limits[account.account_id], own.positions)
        for account in accounts
        for own in [held[account.account_id]]
    ]


async def read_held(rows: Connection, accounts: Sequence[Account]) -> dict[UUID, Held]:
    """By account, all of one moment. For the worker role."""
    held = {account.account_id: Held() for account in accounts}
    margined = [account.account_id for account in accounts if account.is_margin]
    for row in await rows.fetch(READ_HELD, list(held), margined):
        own, name, first, second = held[row["account_id"]], row["name"], row["first"], row["second"]
        if row["is_position"]:
            own.positions.append(Position(instrument_id=name, quantity=first, average_price=second))
        else:
            own.balances.append(Balance(asset=name, total=first, reserved=second))
    return held


async def add_points(rows: Connection, points: Sequence[tuple[Account, datetime, Decimal]]) -> None:
    """Notes what accounts are worth; of one minute the last counts.

    It waits for no account: one that is being traded in keeps its old mark, and is looked at again the next time.
    """
    await rows.execute(
        """
        INSERT INTO equity_points AS kept (account_id, time, user_id, equity)
        SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::numeric[])
        ON CONFLICT (account_id, time) DO UPDATE SET equity = excluded.equity
        """,
        [account.account_id for account, _, _ in points],
        [time for _, time, _ in points],
        [account.user_id for account, _, _ in points],
        [equity for _, _, equity in points],
    )
    await rows.execute(
        """
        UPDATE accounts SET equity_time = seen.time, equity_sequence = seen.sequence,
          peak_equity = greatest(peak_equity, seen.equity)
        FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::numeric[], $5::bigint[])
          AS seen (account_id, time, sequence, equity, adjustments)
        WHERE accounts.account_id = seen.account_id
          -- What was looked at before something was withdrawn is no peak after it.
          AND accounts.adjustments = seen.adjustments
          AND accounts.account_id IN (SELECT account_id FROM accounts WHERE account_id = ANY($1) FOR UPDATE SKIP LOCKED)
        """,
        [account.account_id for account, _, _ in points],
        [time for _, time, _ in points],
        [account.account_sequence for account, _, _ in points],
        [equity for _, _, equity in points],
        [account.adjustments for account, _, _ in points],
    )


async def list_points(
    rows: Connection, account_id: UUID, *, bucket: str, after: datetime, before: datetime, limit: int
) -> list[tuple[datetime, Decimal]]:
    """Of the points from `after` on the last of each bucket ("minute", "hour" or "day", in UTC), oldest first."""
    found = await rows.fetch(
        """
        SELECT DISTINCT ON (date_trunc($2, time, 'UTC')) time, equity FROM equity_points
        WHERE account_id = $1 AND time >= $3 AND time < $4
        ORDER BY date_trunc($2, time, 'UTC'), time DESC LIMIT $5
        """,
        account_id,
        bucket,
        after,
        before,
        limit,
    )
    return [(row["time"], row["equity"]) for row in found]


async def thin(rows: Connection, bucket: str, before: datetime, span: timedelta) -> bool:
    """Deletes all but the last point of each bucket, from where it had come to, for a span at most and never past `before`.

    Says whether more is left. For the worker role.
    """
    thinned = await rows.fetchval("SELECT thinned_before FROM equity_thinned WHERE bucket = $1 FOR UPDATE", bucket)
    if thinned is None:
        thinned = await rows.fetchval("SELECT min(time) FROM equity_points") or before
    begin = begin_of(bucket, thinned)
    end = begin_of(bucket, min(before, begin + span))
    if end <= begin:
        return False
    await rows.execute(
        """
        DELETE FROM equity_points AS old USING (
          SELECT account_id, max(time) AS time FROM equity_points WHERE time >= $2 AND time < $3
          GROUP BY account_id, date_trunc($1, time, 'UTC')) AS kept
        WHERE old.time >= $2 AND old.time < $3 AND old.account_id = kept.account_id
        AND date_trunc($1, old.time, 'UTC') = date_trunc($1, kept.time, 'UTC') AND old.time < kept.time
        """,
        bucket,
        begin,
        end,
    )
    await rows.execute(
        """
        INSERT INTO equity_thinned (bucket, thinned_before) VALUES ($1, $2)
        ON CONFLICT (bucket) DO UPDATE SET thinned_before = excluded.thinned_before
        """,
        bucket,
        end,
    )
    return end < before


def begin_of(bucket: str, time: datetime) -> datetime:
    """When its hour or day began, in UTC."""
    hour = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return hour.replace(hour=0) if bucket == "day" else hour
