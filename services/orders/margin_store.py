"""Where settlements of funding, and what they were to each account, live."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from libs.money import ZERO
from libs.store.bulk import Bulk, upsert
from libs.store.database import Connection
from services.orders import store
from services.orders.domain import Account, AccountState, Side
from services.orders.margin_funding import SAME_SETTLEMENT, Payment, Settlement, Told, Undone
from services.orders.store import ACCOUNT_FIELDS, account_from

FIRST = UUID(int=0)
PAYMENT_COLUMNS = {
    "account_id": "uuid",
    "instrument_id": "text",
    "funding_time": "timestamptz",
    "user_id": "uuid",
    "asset": "text",
    "quantity": "numeric",
    "rate": "numeric",
    "mark_price": "numeric",
    "expected_amount": "numeric",
    "amount": "numeric",
}
PAYMENT_FIELDS = "instrument_id, funding_time, asset, quantity, rate, mark_price, expected_amount, amount"
UPSERT_PAYMENTS = Bulk(
    "funding_payments",
    PAYMENT_COLUMNS,
    upsert(
        "account_id, funding_time, instrument_id",
        ["asset", "quantity", "rate", "mark_price", "expected_amount", "amount"],
    ),
)


@dataclass(frozen=True, slots=True)
class MarginStore:
    """One transaction's view of leverage and funding; it is used under the accounts' locks."""

    rows: Connection

    async def set_leverage(self, account_id: UUID, leverage: int) -> None:
        """Call it under the account's lock."""
        await self.rows.execute("UPDATE accounts SET leverage = $2 WHERE account_id = $1", account_id, leverage)

    async def quantity_before(self, state: AccountState, settlement: Settlement) -> Decimal:
        """What an account held right before a settlement: what it holds, without what has traded at or after it.

        Call it under the account's lock, with the position at hand, also after fills that are not written yet.
        """
        position = state.positions.get(settlement.instrument_id)
        since: Decimal = await self.rows.fetchval(  # type: ignore[assignment] (a sum of nothing is 0 here)
            """
            SELECT coalesce(sum(CASE side WHEN 'buy' THEN quantity ELSE -quantity END), 0) FROM trading_executions
            WHERE account_id = $1 AND instrument_id = $2 AND time >= $3
            """,
            state.account.account_id,
            settlement.instrument_id,
            settlement.funding_time,
        )
        for execution in state.executions:
            if execution.instrument_id == settlement.instrument_id and execution.time >= settlement.funding_time:
                since += execution.quantity if execution.side is Side.BUY else -execution.quantity
        return (position.quantity if position is not None else ZERO) - since

    async def find_payments(
        self, account_ids: Sequence[UUID], instrument_id: str, funding_times: Sequence[datetime]
    ) -> dict[tuple[UUID, datetime], Payment]:
        """What was paid at these times, by account and time. Call it under the accounts' locks."""
        found = await self.rows.fetch(
            f"""
            SELECT account_id, {PAYMENT_FIELDS} FROM funding_payments
            WHERE account_id = ANY($1) AND instrument_id = $2 AND funding_time = ANY($3)
            """,
            list(account_ids),
            instrument_id,
            list(funding_times),
        )
        return {
            (row["account_id"], row["funding_time"]): Payment(**{k: v for k, v in row.items() if k != "account_id"})
            for row in found
        }

    async def put_payments(self, payments: Sequence[tuple[Account, Payment]]) -> None:
        """Writes payments as they now stand, in the order of their keys; the accounts' worth is to be looked at again."""
        if not payments:
            return
        ordered = sorted(payments, key=lambda each: (each[0].account_id, each[1].funding_time, each[1].instrument_id))
        await self.rows.execute(
            UPSERT_PAYMENTS.statement,
            *UPSERT_PAYMENTS.arguments([store.Row(account, each) for account, each in ordered]),
        )
        await self.rows.execute(
            "UPDATE accounts SET equity_sequence = -1 WHERE account_id = ANY($1)",
            [account.account_id for account, _ in ordered],
        )

    async def settlements_after(self, instrument_id: str, time: datetime, limit: int) -> list[Settlement]:
        """Of an instrument those that came after a time, the earliest first."""
        found = await self.rows.fetch(
            """
            SELECT instrument_id, funding_time, rate, mark_price FROM funding_settlements
            WHERE instrument_id = $1 AND funding_time > $2
            ORDER BY funding_time LIMIT $3
            """,
            instrument_id,
            time,
            limit,
        )
        return [Settlement(**row) for row in found]

    async def settlements_near(self, instrument_id: str, time: datetime) -> list[Settlement]:
        """Of an instrument those of which an entry of this time may be."""
        found = await self.rows.fetch(
            """
            SELECT instrument_id, funding_time, rate, mark_price FROM funding_settlements
            WHERE instrument_id = $1 AND funding_time BETWEEN $2::timestamptz - $3::interval AND $2::timestamptz + $3::interval
            """,
            instrument_id,
            time,
            SAME_SETTLEMENT,
        )
        return [Settlement(**row) for row in found]

    async def claim_told(
        self, account_ids: Sequence[UUID], instrument_id: str, funding_times: Sequence[datetime]
    ) -> None:
        """Has what venues told before these settlements were known here be of them: of each account and settlement one entry.

        An entry is of the settlement that is nearest to it, as `nearest` says. Call it under the accounts' locks.
        """
        await self.rows.execute(
            """
            WITH told AS (
              SELECT DISTINCT ON (payment.account_id, settled.funding_time)
                payment.account_id, payment.funding_time AS told_time, settled.funding_time
              FROM unnest($3::timestamptz[]) AS asked (funding_time)
              JOIN funding_payments AS payment ON payment.account_id = ANY($1) AND payment.instrument_id = $2
                AND payment.funding_time BETWEEN asked.funding_time - $4::interval AND asked.funding_time + $4::interval
                AND payment.rate IS NULL
              CROSS JOIN LATERAL (
                SELECT funding_time FROM funding_settlements WHERE instrument_id = $2
                AND funding_time BETWEEN payment.funding_time - $4::interval AND payment.funding_time + $4::interval
                ORDER BY abs(extract(epoch FROM funding_time - payment.funding_time)), funding_time LIMIT 1) AS settled
              WHERE settled.funding_time = asked.funding_time AND NOT EXISTS (
                SELECT FROM funding_payments AS there WHERE there.account_id = payment.account_id
                AND there.instrument_id = $2 AND there.funding_time = settled.funding_time)
              ORDER BY payment.account_id, settled.funding_time,
                abs(extract(epoch FROM settled.funding_time - payment.funding_time)), payment.funding_time)
            UPDATE funding_payments AS kept SET funding_time = told.funding_time FROM told
            WHERE kept.account_id = told.account_id AND kept.instrument_id = $2 AND kept.funding_time = told.told_time
            """,
            list(account_ids),
            instrument_id,
            list(funding_times),
            SAME_SETTLEMENT,
        )

    async def add_told(self, account: Account, told: Told) -> bool:
        """Keeps what a venue told of; whether it was new."""
        done = await self.rows.execute(
            """
            INSERT INTO venue_funding (account_id, venue_id, user_id, instrument_id, funding_time, asset, amount)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
            """,
            account.account_id,
            told.venue_id,
            account.user_id,
            told.instrument_id,
            told.funding_time,
            told.asset,
            told.amount,
        )
        return done == "INSERT 0 1"


async def list_payments(
    rows: Connection,
    account_id: UUID,
    *,
    instrument_id: str,
    start_time: datetime | None,
    end_time: datetime | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Payment]:
    """Newest first, of one time in the order of the instruments; what is empty or None leaves nothing out."""
    before_time, before_instrument = before or (None, "")
    found = await rows.fetch(
        f"""
        SELECT {PAYMENT_FIELDS} FROM funding_payments
        WHERE account_id = $1 AND ($2 = '' OR instrument_id = $2)
          AND ($3::timestamptz IS NULL OR funding_time >= $3) AND ($4::timestamptz IS NULL OR funding_time < $4)
          AND ($5::timestamptz IS NULL OR funding_time < $5 OR funding_time = $5 AND instrument_id > $6)
        ORDER BY funding_time DESC, instrument_id LIMIT $7
        """,
        account_id,
        instrument_id,
        start_time,
        end_time,
        before_time,
        before_instrument,
        limit,
    )
    return [Payment(**row) for row in found]


# What the worker does: it follows what marketdata and venues tell.


async def add_settlements(rows: Connection, settlements: Iterable[Settlement]) -> None:
    """Notes settlements, each once, whose payments are to be made."""
    every = list(settlements)
    await rows.execute(
        """
        INSERT INTO funding_settlements (instrument_id, funding_time, rate, mark_price, after_account_id, done)
        SELECT *, $5::uuid, false FROM unnest($1::text[], $2::timestamptz[], $3::numeric[], $4::numeric[])
        ON CONFLICT DO NOTHING
        """,
        [each.instrument_id for each in every],
        [each.funding_time for each in every],
        [each.rate for each in every],
        [each.mark_price for each in every],
        FIRST,
    )


async def undone(rows: Connection, limit: int) -> list[Undone]:
    """Settlements of which payments are left to make, the earliest first."""
    found = await rows.fetch(
        """
        SELECT instrument_id, funding_time, rate, mark_price, after_account_id FROM funding_settlements WHERE NOT done
        ORDER BY funding_time, instrument_id LIMIT $1
        """,
        limit,
    )
    return [undone_from(row) for row in found]


async def lock_undone(rows: Connection, settlement: Settlement) -> Undone | None:
    """As it stands under its lock; None where it is done, or another replica is at it."""
    row = await rows.fetchrow(
        """
        SELECT instrument_id, funding_time, rate, mark_price, after_account_id FROM funding_settlements
        WHERE instrument_id = $1 AND funding_time = $2 AND NOT done FOR UPDATE SKIP LOCKED
        """,
        settlement.instrument_id,
        settlement.funding_time,
    )
    return undone_from(row) if row else None


def undone_from(row: Mapping[str, object]) -> Undone:
    values = dict(row)
    after = values.pop("after_account_id")
    return Undone(settlement=Settlement(**values), after_account_id=after)  # type: ignore[arg-type] (as selected)


async def whom_it_is_for(rows: Connection, undone: Undone, limit: int) -> list[tuple[UUID, UUID]]:
    """The next margin accounts, by id, and whose they are, that may have held the instrument.

    A fill can only be of an order, which an exposure was kept of before its venue had heard of it: so whoever has none by now
    has no fill of before the settlement either, but one that is told later, which sees the settlement itself.
    """
    found = await rows.fetch(
        """
        SELECT account_id, user_id FROM accounts
        WHERE kind = 'margin' AND NOT closed AND account_id > $2 AND account_id IN (
          SELECT account_id FROM exposures WHERE instrument_id = $1
          UNION SELECT account_id FROM positions WHERE instrument_id = $1)
        ORDER BY account_id LIMIT $3
        """,
        undone.settlement.instrument_id,
        undone.after_account_id,
        limit,
    )
    return [(row["account_id"], row["user_id"]) for row in found]


async def go_on(rows: Connection, undone: Undone, after_account_id: UUID | None) -> None:
    """Notes up to which account it is paid; None once all are."""
    await rows.execute(
        """
        UPDATE funding_settlements SET done = $3::uuid IS NULL, after_account_id = coalesce($3, after_account_id)
        WHERE instrument_id = $1 AND funding_time = $2
        """,
        undone.settlement.instrument_id,
        undone.settlement.funding_time,
        after_account_id,
    )


# Whose margin is looked at.


async def find_margined(rows: Connection, after: UUID, limit: int) -> list[Account]:
    """Margin accounts, by id, that hold something or owe something. For the worker role."""
    found = await rows.fetch(
        f"""
        SELECT {ACCOUNT_FIELDS} FROM accounts WHERE kind = 'margin' AND NOT closed AND account_id > $1 AND (
          EXISTS (SELECT FROM positions WHERE positions.account_id = accounts.account_id AND quantity <> 0)
          OR EXISTS (SELECT FROM balances WHERE balances.account_id = accounts.account_id AND total < 0))
        ORDER BY account_id LIMIT $2
        """,
        after,
        limit,
    )
    return [account_from(row) for row in found]
