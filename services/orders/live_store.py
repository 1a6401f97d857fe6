"""Where it is kept what may be traded for real money: whether at all, by which accounts, and with which keys."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from tradeloom.orders.v1 import events_pb2

from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.orders import wire
from services.orders.domain import Account, Credential, LiveTrading, Mode
from services.orders.store import ACCOUNT_FIELDS, account_from

CREDENTIAL_FIELDS = "credential_id, user_id, account_id, venue, revision, usable"
LIVE_ACCOUNT_CHANGED = events_pb2.LiveAccountChanged.DESCRIPTOR.full_name
LIVE_TRADING_CHANGED = events_pb2.LiveTradingChanged.DESCRIPTOR.full_name


async def find_live_trading(rows: Connection) -> LiveTrading:
    row = await rows.fetchrow("SELECT enabled, reason, set_time, revision FROM live_trading")
    return LiveTrading(**row) if row else LiveTrading()


async def put_live_trading(rows: Connection, *, enabled: bool, reason: str, now: datetime) -> LiveTrading:
    """Sets it and tells it; as it now stands."""
    row = await rows.fetchrow(
        """
        INSERT INTO live_trading AS kept (enabled, reason, set_time, revision) VALUES ($1, $2, $3, 1)
        ON CONFLICT (place) DO UPDATE SET enabled = excluded.enabled, reason = excluded.reason,
          set_time = excluded.set_time, revision = kept.revision + 1
        RETURNING enabled, reason, set_time, revision
        """,
        enabled,
        reason,
        now,
    )
    assert row is not None, "it was written"
    kept = LiveTrading(**row)
    payload = events_pb2.LiveTradingChanged(enabled=kept.enabled).SerializeToString()
    fact = Fact(key="live", sequence=kept.revision, user_id=None, kind=LIVE_TRADING_CHANGED, payload=payload)
    await outbox.add(rows, [fact])
    return kept


async def put_account(rows: Connection, account: Account) -> None:
    """Writes what is live of an account, and what its losses are counted from. Call it under the account's lock.

    Its worth is to be looked at again, for its balances may have changed.
    """
    await rows.execute(
        """
        UPDATE accounts SET live_state = $2, stop_reason = $3, credential_id = $4, credential_revision = $5,
          live_sequence = $6, adjustments = $7, day_start_equity = $8, peak_equity = $9, equity_sequence = -1
        WHERE account_id = $1
        """,
        account.account_id,
        account.live_state and account.live_state.value,
        account.stop_reason,
        account.credential_id,
        account.credential_revision,
        account.live_sequence,
        account.adjustments,
        account.day_start_equity,
        account.peak_equity,
    )


async def change_account(rows: Connection, before: Account, account: Account) -> None:
    """Writes and tells a confirmation or a stop, if it is one. Call it under the account's lock."""
    if account.live_sequence == before.live_sequence:
        return
    await put_account(rows, account)
    fact = Fact(
        key=f"live/{account.account_id}",
        sequence=account.live_sequence,
        user_id=account.user_id,
        kind=LIVE_ACCOUNT_CHANGED,
        payload=wire.live_account_to_fact(account).SerializeToString(),
    )
    await outbox.add(rows, [fact])


async def lock_accounts_of(
    rows: Connection, user_ids: Collection[UUID], *, gone: Collection[UUID]
) -> dict[UUID, Account]:
    """All live accounts of these users, locked with all others of those who are gone.

    At once and in the order of their ids: who locks accounts after others waits for nobody in a circle.
    """
    found = await rows.fetch(
        f"""
        SELECT {ACCOUNT_FIELDS} FROM accounts
        WHERE user_id = ANY($1) AND (mode = 'live' OR user_id = ANY($2)) ORDER BY account_id FOR UPDATE
        """,
        list(user_ids),
        list(gone),
    )
    accounts = map(account_from, found)
    return {account.account_id: account for account in accounts if account.mode is Mode.LIVE}


async def find_credential(rows: Connection, account_id: UUID) -> Credential | None:
    """The newest for an account. Call it under the account's lock: what is told of keys later waits for that."""
    row = await rows.fetchrow(
        f"""
        SELECT {CREDENTIAL_FIELDS} FROM account_credentials WHERE account_id = $1 ORDER BY credential_id DESC LIMIT 1
        """,
        account_id,
    )
    return Credential(**row) if row else None


# What the worker does: it follows what users tells.


async def put_credential(rows: Connection, credential: Credential) -> None:
    await rows.execute(
        f"""
        INSERT INTO account_credentials ({CREDENTIAL_FIELDS}) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (credential_id) DO UPDATE SET account_id = excluded.account_id, venue = excluded.venue,
          revision = excluded.revision, usable = excluded.usable
        """,
        credential.credential_id,
        credential.user_id,
        credential.account_id,
        credential.venue,
        credential.revision,
        credential.usable,
    )


async def judge_credential(rows: Connection, credential_id: UUID, *, usable: bool) -> None:
    await rows.execute("UPDATE account_credentials SET usable = $2 WHERE credential_id = $1", credential_id, usable)


async def delete_credential(rows: Connection, credential_id: UUID) -> None:
    await rows.execute("DELETE FROM account_credentials WHERE credential_id = $1", credential_id)


async def delete_credentials_of(rows: Connection, user_id: UUID) -> None:
    await rows.execute("DELETE FROM account_credentials WHERE user_id = $1", user_id)
