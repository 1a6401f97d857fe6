"""Where accounts, orders and the ledger live."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from asyncpg import Record

from libs.ids import uuid7
from libs.margin import Perpetual
from libs.money import ZERO, plain
from libs.store import outbox
from libs.store.bulk import Bulk, Together, upsert
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.orders import margin, parent_store, risk_store, wire
from services.orders.domain import (
    EPOCH,
    OPEN,
    Account,
    AccountKind,
    AccountState,
    Annotation,
    Balance,
    Execution,
    Exposure,
    GroupRole,
    Instrument,
    Kind,
    LiveState,
    Lock,
    Mode,
    Order,
    OrderType,
    Position,
    Replacement,
    RiskEvent,
    Scope,
    Side,
    State,
    Switch,
    TimeInForce,
    Trail,
)
from services.orders.parent_store import OPEN_STATES

# An event stream reads so many at once.
EVENTS_PAGE = 500
OPEN_ORDERS_IN_SNAPSHOT = 1_000
PERPETUALS_KNOWN_MAX = 10_000
"""Texts of terms whose meaning is kept in memory, of a few kilobytes each."""

ORDER_COLUMNS = {
    "order_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "instrument_id": "text",
    "side": "text",
    "order_type": "text",
    "time_in_force": "text",
    "quantity": "numeric",
    "limit_price": "numeric",
    "protection_price": "numeric",
    "state": "text",
    "filled_quantity": "numeric",
    "filled_notional": "numeric",
    "fees": "numeric",
    "fee_asset": "text",
    "reserved_asset": "text",
    "reserved": "numeric",
    "fee_rate": "numeric",
    "reason": "text",
    "create_time": "timestamptz",
    "update_time": "timestamptz",
    "market_time": "timestamptz",
    "revision": "bigint",
}
# What most orders have nothing of: they are written without.
MORE_ORDER_COLUMNS = {
    "stop_price": "numeric",
    "trail_amount": "numeric",
    "trail_percent": "numeric",
    "expire_time": "timestamptz",
    "post_only": "boolean",
    "reduce_only": "boolean",
    "trigger_time": "timestamptz",
    "replacement": "text",
    "replaced_as": "uuid",
    "group_id": "uuid",
    "group_role": "text",
    "deployment_id": "uuid",
    "released_quantity": "numeric",
    "parent_order_id": "uuid",
    "slice_number": "integer",
    "external_id": "text",
    "triggers_here": "boolean",
    "liquidates": "boolean",
}
ALL_ORDER_COLUMNS = ORDER_COLUMNS | MORE_ORDER_COLUMNS
ORDER_CHANGES = (
    "quantity",
    "limit_price",
    "protection_price",
    "state",
    "filled_quantity",
    "filled_notional",
    "fees",
    "reserved",
    "reason",
    "update_time",
    "market_time",
    "revision",
    "stop_price",
    "trail_amount",
    "trail_percent",
    "trigger_time",
    "replacement",
    "replaced_as",
    "released_quantity",
    "triggers_here",
)
EXECUTION_COLUMNS = {
    "execution_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "order_id": "uuid",
    "instrument_id": "text",
    "side": "text",
    "price": "numeric",
    "quantity": "numeric",
    "fee": "numeric",
    "fee_asset": "text",
    "maker": "boolean",
    "venue_fill_id": "text",
    "time": "timestamptz",
    "deployment_id": "uuid",
}
BALANCE_COLUMNS = {"account_id": "uuid", "asset": "text", "user_id": "uuid", "total": "numeric", "reserved": "numeric"}
POSITION_COLUMNS = {
    "account_id": "uuid",
    "instrument_id": "text",
    "user_id": "uuid",
    "quantity": "numeric",
    "average_price": "numeric",
    "realized_profit": "numeric",
    "fees": "numeric",
    "update_time": "timestamptz",
}
ENTRY_COLUMNS = {
    "transaction_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "kind": "text",
    "book": "text",
    "asset": "text",
    "amount": "numeric",
    "order_id": "uuid",
    "execution_id": "uuid",
    "time": "timestamptz",
    "deployment_id": "uuid",
    "cause": "text",
    "reconciliation_id": "text",
}
INSERT_ORDERS = Bulk("trading_orders", ORDER_COLUMNS)
INSERT_WHOLE_ORDERS = Bulk("trading_orders", ALL_ORDER_COLUMNS)
UPSERT_ORDERS = Bulk("trading_orders", ALL_ORDER_COLUMNS, upsert("order_id", ORDER_CHANGES))
NOTE_COLUMNS = {"order_id": "uuid", "user_id": "uuid", "account_id": "uuid", "note": "text"}
UPSERT_NOTES = Bulk("order_notes", NOTE_COLUMNS, upsert("order_id", ["note"]))
TAG_COLUMNS = {"account_id": "uuid", "tag": "text", "order_id": "uuid", "user_id": "uuid"}
INSERT_TAGS = Bulk("order_tags", TAG_COLUMNS)
INSERT_EXECUTIONS = Bulk("trading_executions", EXECUTION_COLUMNS)
UPSERT_BALANCES = Bulk("balances", BALANCE_COLUMNS, upsert("account_id, asset", ("total", "reserved")))
POSITION_CHANGES = ("quantity", "average_price", "realized_profit", "fees", "update_time")
UPSERT_POSITIONS = Bulk(
    "positions",
    POSITION_COLUMNS | {"funding": "numeric"},
    upsert("account_id, instrument_id", [*POSITION_CHANGES, "funding"]),
)
UPSERT_DEPLOYMENTS = Bulk(
    "deployment_positions",
    {"deployment_id": "uuid"} | POSITION_COLUMNS,
    upsert("account_id, deployment_id, instrument_id", POSITION_CHANGES),
)
INSERT_ENTRIES = Bulk("ledger_entries", ENTRY_COLUMNS)
INSTRUMENT_COLUMNS = {
    "instrument_id": "text",
    "base_asset": "text",
    "quote_asset": "text",
    "tick_size": "numeric",
    "lot_size": "numeric",
    "minimum_notional": "numeric",
    "maker_fee_rate": "numeric",
    "taker_fee_rate": "numeric",
    "trading": "boolean",
    "time_zone": "text",
    "perpetual": "text",
}
UPSERT_INSTRUMENTS = Bulk(
    "instruments",
    INSTRUMENT_COLUMNS,
    # Terms outlast whatever is wrong with newer ones, which cannot be traded by: positions are held to them.
    upsert("instrument_id", [name for name in INSTRUMENT_COLUMNS if name not in ("instrument_id", "perpetual")])
    + """, perpetual = CASE WHEN excluded.trading THEN excluded.perpetual
      ELSE coalesce(excluded.perpetual, instruments.perpetual) END
    """,
)
ACCOUNT_FIELDS = ", ".join(field.name for field in fields(Account))
EXPOSURE_COLUMNS = {
    "account_id": "uuid",
    "instrument_id": "text",
    "user_id": "uuid",
    "open_buys": "numeric",
    "open_sells": "numeric",
}
ADD_EXPOSURES = Bulk(
    "exposures",
    EXPOSURE_COLUMNS,
    """
    ON CONFLICT (account_id, instrument_id) DO UPDATE SET open_buys = exposures.open_buys + excluded.open_buys,
      open_sells = exposures.open_sells + excluded.open_sells
    """,
)
LOCK_ACCOUNTS = (
    f"SELECT {ACCOUNT_FIELDS} FROM accounts WHERE account_id = ANY($1::uuid[]) ORDER BY account_id FOR UPDATE"
)
LOCK_FREE_ACCOUNTS = f"{LOCK_ACCOUNTS} SKIP LOCKED"
READ_OWNERS = "SELECT account_id, user_id FROM accounts WHERE account_id = ANY($1::uuid[])"
READ_STANDING = """
    SELECT 'balance' AS kind, account_id, asset AS name, total AS first, reserved AS second FROM balances
    WHERE account_id = ANY($1::uuid[])
    UNION ALL SELECT 'position', account_id, instrument_id, quantity, NULL FROM positions
    WHERE account_id = ANY($1) AND instrument_id = ANY($2::text[])
    UNION ALL SELECT 'exposure', account_id, instrument_id, open_buys, open_sells FROM exposures
    WHERE account_id = ANY($1) AND instrument_id = ANY($2)
    UNION ALL SELECT 'switch', NULL, mode, NULL, NULL FROM global_switches WHERE mode <> 'off'
    UNION ALL SELECT scope, target_id, mode, NULL, NULL FROM kill_switches WHERE mode <> 'off'
    """
"""What accounts hold, what is held of and open in these instruments, and which switches are on: all in one round trip."""
READ_TERMS = """
    SELECT instrument_id, perpetual FROM instruments WHERE perpetual IS NOT NULL AND (instrument_id = ANY($2::text[])
      OR instrument_id IN (SELECT instrument_id FROM positions WHERE account_id = ANY($1::uuid[])))
    """
COUNT_EVENTS = """
    UPDATE accounts SET account_sequence = new.account_sequence, open_orders = new.open_orders,
      rate_level = new.rate_level, rate_time = new.rate_time
    FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::numeric[], $5::timestamptz[])
      AS new (account_id, account_sequence, open_orders, rate_level, rate_time)
    WHERE accounts.account_id = new.account_id
    """
INSERT_EVENTS = """
    INSERT INTO order_events (account_id, account_sequence, user_id, event, create_time)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bytea[], $5::timestamptz[])
    """
REACHED = """
    CASE WHEN (side = 'buy') = (order_type IN ('stop', 'stop_limit', 'trailing_stop'))
      THEN last >= CASE order_type WHEN 'limit' THEN limit_price ELSE stop_price END
      ELSE last <= CASE order_type WHEN 'limit' THEN limit_price ELSE stop_price END END
    """
"""Of an order that waits here: whether a last price is at what it waits for, or beyond."""
FOLLOWED = """
    (order_type = 'trailing_stop' AND last IS NOT NULL AND (stop_price IS NULL OR CASE side
      WHEN 'sell' THEN last - coalesce(trail_amount, last * trail_percent / 100) > stop_price
      ELSE last + coalesce(trail_amount, last * trail_percent / 100) < stop_price END))
    """
"""Whether its stop follows a last price, but for what its tick size makes of that."""
ORDER_FIELDS = ", ".join(f"trading_orders.{name}" for name in ALL_ORDER_COLUMNS)
EXECUTION_FIELDS = ", ".join(EXECUTION_COLUMNS)


@dataclass(frozen=True, slots=True)
class Row:
    """A row under its account: the thing's own attributes, and whose it is."""

    account: Account
    thing: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.account if name in ("account_id", "user_id") else self.thing, name)


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order as its columns."""

    order: Order

    def __getattr__(self, name: str) -> Any:
        match name:
            case "trail_amount" | "trail_percent":
                return self.order.trail and getattr(self.order.trail, name.removeprefix("trail_"))
            case "replacement":
                return self.order.replacement and replacement_to_text(self.order.replacement)
            case _:
                return getattr(self.order, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationRow:
    """A note or a tag, beside its order."""

    order: Order
    note: str = ""
    tag: str = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.order, name)


@dataclass(frozen=True, slots=True)
class InstrumentRow:
    """An instrument as its columns."""

    instrument: Instrument

    def __getattr__(self, name: str) -> Any:
        if name == "perpetual":
            perpetual = self.instrument.perpetual
            return perpetual and json.dumps(perpetual.to_json(), sort_keys=True)
        return getattr(self.instrument, name)


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """What a deployment has made of an instrument, under its account."""

    account: Account
    deployment_id: UUID
    position: Position

    def __getattr__(self, name: str) -> Any:
        return getattr(self.account if name in ("account_id", "user_id") else self.position, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureRow:
    account_id: UUID
    instrument_id: str
    user_id: UUID
    open_buys: Decimal
    open_sells: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRow:
    transaction_id: UUID
    user_id: UUID
    account_id: UUID
    kind: str
    book: str
    asset: str
    amount: Any
    order_id: UUID | None
    execution_id: UUID | None
    time: Any
    deployment_id: UUID | None
    cause: str
    reconciliation_id: str


@dataclass(frozen=True, slots=True)
class AccountStore:
    """One transaction's view of accounts; it sees those of the users that the transaction names.

    What it writes is sent at once, or with what else is collected in writes.
    """

    rows: Connection
    writes: Together | None = None

    async def add_account(self, state: AccountState) -> None:
        account = state.account
        await self.rows.execute(
            """
            INSERT INTO accounts (account_id, user_id, name, mode, kind, create_time, account_sequence, open_orders, closed,
              valuation_asset, venue, live_state, leverage)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
            """,
            account.account_id,
            account.user_id,
            account.name,
            account.mode.value,
            account.kind.value,
            account.create_time,
            account.account_sequence,
            account.open_orders,
            account.closed,
            account.valuation_asset,
            account.venue,
            account.live_state and account.live_state.value,
            account.leverage,
        )
        await self.save([state])

    async def count_accounts(self, user_id: UUID) -> int:
        # Under a lock of the user's, so that two requests at once do not both find room.
        await lock_accounts_of(self.rows, user_id)
        return await self.rows.fetchval("SELECT count(*) FROM accounts WHERE user_id = $1", user_id) or 0

    async def has_left(self, user_id: UUID) -> bool:
        return bool(await self.rows.fetchval("SELECT true FROM departures WHERE user_id = $1", user_id))

    async def uncanceled_orders(
        self, user_id: UUID, limit: int, *, account_id: UUID | None = None, deployment_id: UUID | None = None
    ) -> list[tuple[UUID, UUID]]:
        """Accounts and orders of which nobody has asked for a cancel, oldest first; none that liquidates."""
        found = await self.rows.fetch(
            f"""
            SELECT account_id, order_id FROM trading_orders
            WHERE account_id IN (SELECT account_id FROM accounts WHERE user_id = $1)
              AND state IN {OPEN_STATES} AND state <> 'pending_cancel' AND NOT liquidates
              AND ($3::uuid IS NULL OR account_id = $3) AND ($4::uuid IS NULL OR deployment_id = $4)
            ORDER BY order_id LIMIT $2
            """,
            user_id,
            limit,
            account_id,
            deployment_id,
        )
        return [(row["account_id"], row["order_id"]) for row in found]

    async def active_parents(
        self, user_id: UUID, limit: int, *, account_id: UUID | None = None, deployment_id: UUID | None = None
    ) -> list[tuple[UUID, UUID]]:
        """Accounts and parent orders of which nobody has asked for a cancel, oldest first."""
        return await parent_store.active_parents(
            self.rows, user_id, limit, account_id=account_id, deployment_id=deployment_id
        )

    async def cancel_parents(self, states: Mapping[UUID, AccountState], now: datetime, **which: Any) -> list[UUID]:
        """Has active parent orders of these accounts place nothing more; call it under their locks."""
        return await parent_store.cancel_parents(self.rows, states, now, **which)

    async def lock(self, account_ids: Iterable[UUID], instrument_ids: Iterable[str] = ()) -> dict[UUID, AccountState]:
        """The accounts, locked in the order of their ids, with what they hold as it is under the lock.

        With instruments, also with their exposures in these.
        """
        return await self._states(await self.rows.fetch(LOCK_ACCOUNTS, list(account_ids)), instrument_ids)

    async def lock_free(
        self, account_ids: Iterable[UUID], instrument_ids: Iterable[str] = ()
    ) -> tuple[dict[UUID, AccountState], dict[UUID, UUID]]:
        """The same without waiting: those that can be had at once, and whose the others are that exist."""
        wanted = set(account_ids)
        states = await self._states(await self.rows.fetch(LOCK_FREE_ACCOUNTS, list(wanted)), instrument_ids)
        locked = wanted - states.keys()
        found = await self.rows.fetch(READ_OWNERS, list(locked)) if locked else []
        return states, {row["account_id"]: row["user_id"] for row in found}

    async def _states(self, found: Sequence[Record], instrument_ids: Iterable[str]) -> dict[UUID, AccountState]:
        states = {row["account_id"]: AccountState(account=account_from(row)) for row in found}
        await read_standing(self.rows, states, instrument_ids)
        await self.load_margin(states, instrument_ids)
        return states

    async def load_margin(self, states: Mapping[UUID, AccountState], instrument_ids: Iterable[str] = ()) -> None:
        """Brings in what margin is counted by: of margin accounts all positions, open orders and terms of both.

        Call it under the lock.
        """
        margined = {account_id: state for account_id, state in states.items() if state.account.is_margin}
        if not margined:
            return
        await self._load_positions(margined)
        await self.load_open(margined)
        ordered = {order.instrument_id for state in margined.values() for order in state.orders.values()}
        found = await self.rows.fetch(READ_TERMS, list(margined), list({*instrument_ids, *ordered}))
        terms = {row["instrument_id"]: terms_from(row["perpetual"]) for row in found}
        for state in margined.values():
            state.perpetuals = dict(terms)

    async def load_standing(self, states: Mapping[UUID, AccountState], instrument_ids: Iterable[str]) -> None:
        """Brings in the exposures in these instruments; call it under the lock."""
        await read_standing(self.rows, states, instrument_ids)

    async def find_limits(self, account_ids: Sequence[UUID]) -> dict[UUID, dict[str, Decimal]]:
        """What was set, by account and the limits' names."""
        return await risk_store.find_limits(self.rows, account_ids)

    async def add_risk_events(self, events: Sequence[RiskEvent]) -> None:
        await risk_store.add_events(self.writes or self.rows, events)

    async def load_orders(self, states: Mapping[UUID, AccountState], order_ids: Iterable[UUID]) -> None:
        """Brings these orders and their groups into their accounts' states; call it under the lock."""
        await self._load(states, "order_id = ANY($1)", list(order_ids))

    async def load_open(self, states: Mapping[UUID, AccountState]) -> None:
        """Brings in all open orders of accounts; call it under the lock."""
        await self._load(states, f"account_id = ANY($1) AND state IN {OPEN_STATES}", list(states))

    async def load_reducing(self, states: Mapping[UUID, AccountState]) -> None:
        """Brings in positions and the open orders that only reduce, with their groups; call it under the lock."""
        await self._load_positions(states)
        await self._load(states, f"account_id = ANY($1) AND reduce_only AND state IN {OPEN_STATES}", list(states))

    async def _load(self, states: Mapping[UUID, AccountState], condition: str, argument: list[UUID]) -> None:
        found = await self._orders(condition, argument)
        if groups := {order.group_id for order in found if order.group_id is not None}:
            found += await self._orders("group_id = ANY($1)", list(groups))
        for order in found:
            if state := states.get(order.account_id):
                state.orders[order.order_id] = order

    async def _orders(self, condition: str, argument: list[UUID]) -> list[Order]:
        found = await self.rows.fetch(f"SELECT {ORDER_FIELDS} FROM trading_orders WHERE {condition}", argument)
        return [order_from(row) for row in found]

    async def _load_positions(self, states: Mapping[UUID, AccountState]) -> None:
        for row in await self.rows.fetch("SELECT * FROM positions WHERE account_id = ANY($1)", list(states)):
            states[row["account_id"]].positions[row["instrument_id"]] = position_from(row)

    async def _load_deployments(self, states: Mapping[UUID, AccountState]) -> None:
        deployments = {order.deployment_id for state in states.values() for order in state.orders.values()} - {None}
        if not deployments:
            return
        for row in await self.rows.fetch(
            "SELECT * FROM deployment_positions WHERE account_id = ANY($1) AND deployment_id = ANY($2)",
            list(states),
            list(deployments),
        ):
            key = row["deployment_id"], row["instrument_id"]
            states[row["account_id"]].deployments[key] = position_from(row)

    async def load_trading(self, states: Mapping[UUID, AccountState], fill_ids: Sequence[str]) -> None:
        """Brings in what fills change, and which of these were applied before; call it under the lock."""
        if not fill_ids:
            return
        await self.load_reducing(states)
        await self._load_deployments(states)
        for row in await self.rows.fetch(
            "SELECT account_id, venue_fill_id FROM trading_executions WHERE account_id = ANY($1) AND venue_fill_id = ANY($2)",
            list(states),
            list(fill_ids),
        ):
            states[row["account_id"]].known_fills.add(row["venue_fill_id"])

    async def annotate(self, order: Order, annotation: Annotation) -> None:
        """Keeps this in place of what was noted of the order before."""
        await self.rows.execute("DELETE FROM order_tags WHERE order_id = $1", order.order_id)
        if annotation == Annotation():
            await self.rows.execute("DELETE FROM order_notes WHERE order_id = $1", order.order_id)
            return
        writes = Together(self.rows)
        await write_annotations(writes, [(order, annotation)])
        await writes.send()

    async def save(self, states: Sequence[AccountState]) -> None:
        """Writes all that has changed, and tells it, in one round trip."""
        for state in states:
            margin.back(state)
        changed = [state for state in states if has_changed(state)]
        if not changed:
            return
        writes = self.writes or Together(self.rows)
        orders = [state.orders[order_id] for state in changed for order_id in state.changed_orders]
        events = [event for state in changed for event in state.events]
        # What a new order takes of the room to close, an older one of a margin account may have to set aside for.
        placed = {event.kind for event in events} == {Kind.ACCEPTED} and len(events) == len(orders)
        if placed and all(is_plain(order) for order in orders):
            await write(writes, INSERT_ORDERS, orders)
        else:
            bulk = INSERT_WHOLE_ORDERS if placed else UPSERT_ORDERS
            await write(writes, bulk, [OrderRow(order) for order in orders])
        await write(
            writes,
            UPSERT_BALANCES,
            [Row(state.account, state.balances[asset]) for state in changed for asset in state.changed_balances],
        )
        await write(writes, INSERT_EXECUTIONS, [execution for state in changed for execution in state.executions])
        await write(
            writes,
            UPSERT_POSITIONS,
            [
                Row(state.account, state.positions[instrument_id])
                for state in changed
                for instrument_id in state.changed_positions
            ],
        )
        await write(
            writes,
            UPSERT_DEPLOYMENTS,
            [
                DeploymentRow(state.account, key[0], state.deployments[key])
                for state in changed
                for key in {(each.deployment_id, each.instrument_id) for each in state.executions if each.deployment_id}
            ],
        )
        await write(writes, ADD_EXPOSURES, list(exposure_rows(changed)))
        await parent_store.write_progress(writes, changed)
        await write(writes, INSERT_ENTRIES, list(entry_rows(changed)))
        noted = [(state.orders[order_id], each) for state in changed for order_id, each in state.annotations.items()]
        await write_annotations(writes, noted)
        await tell(writes, changed)
        if self.writes is None:
            await writes.send()


def has_changed(state: AccountState) -> bool:
    return bool(state.events or state.transactions or state.changed_orders or state.changed_positions)


async def write_annotations(writes: Together, annotations: Sequence[tuple[Order, Annotation]]) -> None:
    """Notes and tags of orders that have no tags yet."""
    await write(
        writes, UPSERT_NOTES, [AnnotationRow(order=order, note=annotation.note) for order, annotation in annotations]
    )
    tags = [AnnotationRow(order=order, tag=tag) for order, annotation in annotations for tag in annotation.tags]
    await write(writes, INSERT_TAGS, tags)


async def lock_accounts_of(rows: Connection, user_id: UUID) -> None:
    """Until the transaction ends nobody else opens accounts for the user, or closes them."""
    await rows.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"accounts/{user_id}")


async def write(writes: Together, bulk: Bulk, rows: Sequence[Any]) -> None:
    if rows:
        await writes.execute(bulk.statement, *bulk.arguments(rows))


async def tell(writes: Together, states: Sequence[AccountState]) -> None:
    """The events for streams, the facts for other services, and the accounts' new counts."""
    events, facts = [], []
    for state in states:
        account = state.account
        for event in state.events:
            message, (kind, payload) = wire.told(state, event)
            events.append((account.account_id, event.account_sequence, account.user_id, message, event.time))
            facts.append(
                Fact(
                    key=str(account.account_id),
                    sequence=event.account_sequence,
                    user_id=account.user_id,
                    kind=kind,
                    payload=payload,
                )
            )
    if not events:
        return
    await writes.execute(
        COUNT_EVENTS,
        [state.account.account_id for state in states],
        [state.account.account_sequence for state in states],
        [state.account.open_orders for state in states],
        [state.account.rate_level for state in states],
        [state.account.rate_time for state in states],
    )
    await writes.execute(INSERT_EVENTS, *map(list, zip(*events, strict=True)))
    await outbox.add(writes, facts)


def entry_rows(states: Sequence[AccountState]) -> Iterable[EntryRow]:
    for state in states:
        for transaction in state.transactions:
            transaction_id = uuid7()
            for entry in transaction.entries:
                yield EntryRow(
                    transaction_id=transaction_id,
                    user_id=state.account.user_id,
                    account_id=state.account.account_id,
                    kind=transaction.kind,
                    book=entry.book,
                    asset=entry.asset,
                    amount=entry.amount,
                    order_id=transaction.order_id,
                    execution_id=transaction.execution_id,
                    time=transaction.time,
                    deployment_id=transaction.deployment_id,
                    cause=transaction.cause,
                    reconciliation_id=transaction.reconciliation_id,
                )


def exposure_rows(states: Sequence[AccountState]) -> Iterable[ExposureRow]:
    """How much more, or less, is open. In the order of their keys, so that nobody waits for another in a circle."""
    for state in sorted(states, key=lambda state: state.account.account_id):
        for instrument_id in sorted({instrument_id for instrument_id, _ in state.opened}):
            yield ExposureRow(
                account_id=state.account.account_id,
                instrument_id=instrument_id,
                user_id=state.account.user_id,
                open_buys=state.opened.get((instrument_id, Side.BUY), ZERO),
                open_sells=state.opened.get((instrument_id, Side.SELL), ZERO),
            )


async def save_instruments(rows: Connection, instruments: Sequence[Instrument]) -> None:
    # The newest of each, since one statement may not write a row twice.
    newest = {instrument.instrument_id: InstrumentRow(instrument) for instrument in instruments}
    await rows.execute(UPSERT_INSTRUMENTS.statement, *UPSERT_INSTRUMENTS.arguments(newest.values()))


async def instruments(rows: Connection) -> dict[str, Instrument]:
    found = await rows.fetch(f"SELECT {', '.join(INSTRUMENT_COLUMNS)} FROM instruments")
    return {
        row["instrument_id"]: Instrument(**{**row, "perpetual": row["perpetual"] and terms_from(row["perpetual"])})
        for row in found
    }


@lru_cache(maxsize=PERPETUALS_KNOWN_MAX)
def terms_from(text: str) -> Perpetual:
    """As they are stored; the same text is read once."""
    return Perpetual.from_json(json.loads(text))


async def read_standing(rows: Connection, states: Mapping[UUID, AccountState], instrument_ids: Iterable[str]) -> None:
    """Brings in what accounts hold, their exposures in these instruments, and the switches that are on."""
    names = list(set(instrument_ids))
    for state in states.values():
        state.exposures = {name: Exposure() for name in names}
    switches: list[tuple[Scope, UUID | None, Switch]] = []
    for kind, account_id, name, first, second in await rows.fetch(READ_STANDING, list(states), names):
        match kind:
            case "balance":
                states[account_id].balances[name] = Balance(asset=name, total=first, reserved=second)
            case "position":
                exposures = states[account_id].exposures
                exposures[name] = replace(exposures[name], position=first)
            case "exposure":
                exposures = states[account_id].exposures
                exposures[name] = replace(exposures[name], open_buys=first, open_sells=second)
            case "switch":
                switches.append((Scope.GLOBAL, None, Switch[name.upper()]))
            case scope:
                switches.append((Scope(scope), account_id, Switch[name.upper()]))
    if switches:
        for state in states.values():
            account = state.account
            state.switches = [each for each in switches if is_for(each, account)]


def is_for(switch: tuple[Scope, UUID | None, Switch], account: Account) -> bool:
    """Whether a switch may hold for orders of an account; one of a deployment does for that deployment's."""
    scope, target_id, _ = switch
    return scope in (Scope.GLOBAL, Scope.DEPLOYMENT) or target_id in (account.user_id, account.account_id)


async def read_state(rows: Connection, account_id: UUID, instrument_ids: Iterable[str]) -> AccountState | None:
    """An account with what it may trade with and reduce, as it is without a lock."""
    account = await find_account(rows, account_id)
    if account is None:
        return None
    states = {account_id: AccountState(account=account)}
    await read_standing(rows, states, instrument_ids)
    await AccountStore(rows).load_reducing(states)
    await AccountStore(rows).load_margin(states, instrument_ids)
    return states[account_id]


async def find_account(rows: Connection, account_id: UUID, *, lock: bool = False) -> Account | None:
    held = " FOR UPDATE" if lock else ""
    row = await rows.fetchrow(f"SELECT {ACCOUNT_FIELDS} FROM accounts WHERE account_id = $1{held}", account_id)
    return account_from(row) if row else None


async def list_accounts(
    rows: Connection, user_id: UUID, after: UUID, limit: int, only: Collection[UUID] | None = None
) -> list[Account]:
    """The user's, or those of them that are among `only`."""
    found = await rows.fetch(
        f"""
        SELECT {ACCOUNT_FIELDS} FROM accounts
        WHERE user_id = $1 AND account_id > $2 AND ($4::uuid[] IS NULL OR account_id = ANY($4))
        ORDER BY account_id LIMIT $3
        """,
        user_id,
        after,
        limit,
        None if only is None else list(only),
    )
    return [account_from(row) for row in found]


async def account_of_order(rows: Connection, order_id: UUID) -> UUID | None:
    return await rows.fetchval("SELECT account_id FROM trading_orders WHERE order_id = $1", order_id)


async def find_order(rows: Connection, order_id: UUID) -> Order | None:
    row = await rows.fetchrow(f"SELECT {ORDER_FIELDS} FROM trading_orders WHERE order_id = $1", order_id)
    return order_from(row) if row else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which orders of an account; what is empty or None asks for nothing."""

    states: Sequence[State] = ()
    instrument_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    tag: str = ""
    deployment_id: UUID | None = None
    group_id: UUID | None = None
    parent_order_id: UUID | None = None


async def list_orders(
    rows: Connection, account_id: UUID, wanted: Filter, *, before: UUID | None, limit: int
) -> list[Order]:
    """Newest first: order ids sort by the time they were made, and times are compared with them."""
    arguments: list[Any] = [account_id]

    def argument(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    source, order_id = "trading_orders", "trading_orders.order_id"
    conditions = ["trading_orders.account_id = $1"]
    if wanted.tag:
        source, order_id = "order_tags JOIN trading_orders USING (order_id)", "order_tags.order_id"
        conditions.append(f"order_tags.account_id = $1 AND order_tags.tag = {argument(wanted.tag)}")
    if wanted.states:
        conditions.append(f"state = ANY({argument([state.value for state in wanted.states])})")
        if OPEN.issuperset(wanted.states):
            conditions.append(f"state IN {OPEN_STATES}")
    if wanted.instrument_id:
        conditions.append(f"instrument_id = {argument(wanted.instrument_id)}")
    if wanted.deployment_id is not None:
        conditions.append(f"deployment_id = {argument(wanted.deployment_id)}")
    if wanted.group_id is not None:
        conditions.append(f"group_id = {argument(wanted.group_id)}")
    if wanted.parent_order_id is not None:
        conditions.append(f"parent_order_id = {argument(wanted.parent_order_id)}")
    if wanted.start_time is not None:
        conditions.append(f"{order_id} >= {argument(first_id_of(wanted.start_time))}")
    if wanted.end_time is not None:
        conditions.append(f"{order_id} < {argument(first_id_of(wanted.end_time))}")
    if before is not None:
        conditions.append(f"{order_id} < {argument(before)}")
    found = await rows.fetch(
        f"""
        SELECT {ORDER_FIELDS} FROM {source} WHERE {" AND ".join(conditions)}
        ORDER BY {order_id} DESC LIMIT {argument(limit)}
        """,
        *arguments,
    )
    return [order_from(row) for row in found]


def first_id_of(time: datetime) -> UUID:
    """No id that was made at this time, in milliseconds, or after it sorts before this."""
    return UUID(int=max(0, (time - EPOCH) // timedelta(milliseconds=1)) << 80)


async def annotations_of(rows: Connection, order_ids: Sequence[UUID]) -> dict[UUID, Annotation]:
    found = await rows.fetch(
        """
        SELECT order_id, note, ARRAY(SELECT tag FROM order_tags WHERE order_tags.order_id = order_notes.order_id
                                     ORDER BY tag) AS tags
        FROM order_notes WHERE order_id = ANY($1)
        """,
        list(order_ids),
    )
    return {row["order_id"]: Annotation(note=row["note"], tags=tuple(row["tags"])) for row in found}


async def open_orders(rows: Connection, account_id: UUID) -> list[Order]:
    found = await rows.fetch(
        f"""
        SELECT {ORDER_FIELDS} FROM trading_orders WHERE account_id = $1 AND state IN {OPEN_STATES}
        ORDER BY order_id DESC LIMIT $2
        """,
        account_id,
        OPEN_ORDERS_IN_SNAPSHOT,
    )
    return [order_from(row) for row in found]


async def list_executions(
    rows: Connection, account_id: UUID, *, order_id: UUID | None, before: UUID | None, limit: int
) -> list[Execution]:
    found = await rows.fetch(
        f"""
        SELECT {EXECUTION_FIELDS} FROM trading_executions
        WHERE account_id = $1 AND ($2::uuid IS NULL OR order_id = $2) AND ($3::uuid IS NULL OR execution_id < $3)
        ORDER BY execution_id DESC LIMIT $4
        """,
        account_id,
        order_id,
        before,
        limit,
    )
    return [Execution(**{**row, "side": Side(row["side"])}) for row in found]


async def balances(rows: Connection, account_id: UUID) -> list[Balance]:
    found = await rows.fetch(
        """
        SELECT asset, total, reserved FROM balances
        WHERE account_id = $1 AND (total <> 0 OR reserved <> 0) ORDER BY asset
        """,
        account_id,
    )
    return [Balance(**row) for row in found]


async def list_positions(
    rows: Connection, account_id: UUID, *, include_flat: bool, after: str, limit: int
) -> list[Position]:
    found = await rows.fetch(
        """
        SELECT * FROM positions
        WHERE account_id = $1 AND (quantity <> 0 OR $2) AND instrument_id > $3 ORDER BY instrument_id LIMIT $4
        """,
        account_id,
        include_flat,
        after,
        limit,
    )
    return [position_from(row) for row in found]


async def backed_positions(rows: Connection, account: Account) -> list[Position]:
    """Those of a margin account that are not flat, which its worth goes by; none of a cash account, which holds assets."""
    if not account.is_margin:
        return []
    found = await rows.fetch("SELECT * FROM positions WHERE account_id = $1 AND quantity <> 0", account.account_id)
    return [position_from(row) for row in found]


async def events_after(rows: Connection, account_id: UUID, sequence: int) -> list[tuple[int, bytes]]:
    """Serialized events in order, at most EVENTS_PAGE."""
    found = await rows.fetch(
        """
        SELECT account_sequence, event FROM order_events
        WHERE account_id = $1 AND account_sequence > $2 ORDER BY account_sequence LIMIT $3
        """,
        account_id,
        sequence,
        EVENTS_PAGE,
    )
    return [(row["account_sequence"], row["event"]) for row in found]


# What the worker does: orders that wait here.


async def waiting_instruments(rows: Connection) -> list[str]:
    """Those in which anybody has orders that wait here."""
    found = await rows.fetch("SELECT DISTINCT instrument_id FROM trading_orders WHERE triggers_here AND state = 'held'")
    return [row["instrument_id"] for row in found]


async def find_due(
    rows: Connection, prices: Mapping[str, Decimal], now: datetime, after: tuple[str, UUID], limit: int
) -> list[Order]:
    """Of everybody, by instrument and age, after an instrument and an order: what waits here and may be due at these prices.

    `triggers` decides; what is left out here it would leave alone too.
    """
    found = await rows.fetch(
        f"""
        SELECT {ORDER_FIELDS} FROM trading_orders
        LEFT JOIN unnest($1::text[], $2::numeric[]) AS seen (instrument_id, last) USING (instrument_id)
        WHERE triggers_here AND state = 'held' AND (instrument_id, order_id) > ($4, $5)
        AND (expire_time <= $3 OR trigger_time IS NOT NULL OR {REACHED} OR {FOLLOWED})
        ORDER BY instrument_id, order_id LIMIT $6
        """,
        list(prices),
        list(prices.values()),
        now,
        *after,
        limit,
    )
    return [order_from(row) for row in found]


async def find_resting(rows: Connection, after: tuple[str, UUID], limit: int) -> list[Order]:
    """The same of those in groups and of those that came back, of which a venue may come to have some as they are."""
    found = await rows.fetch(
        f"""
        SELECT {ORDER_FIELDS} FROM trading_orders
        WHERE triggers_here AND state = 'held' AND (group_id IS NOT NULL OR reason <> '') AND trigger_time IS NULL
        AND (instrument_id, order_id) > ($1, $2) ORDER BY instrument_id, order_id LIMIT $3
        """,
        *after,
        limit,
    )
    return [order_from(row) for row in found]


# What the worker does: people who leave.


async def close_accounts(rows: Connection, user_id: UUID) -> None:
    """Closes somebody's accounts for good, forgets what they called them, and notes what is left to do."""
    await lock_accounts_of(rows, user_id)
    await rows.fetch("SELECT 1 FROM accounts WHERE user_id = $1 ORDER BY account_id FOR UPDATE", user_id)
    await rows.execute("UPDATE accounts SET closed = true, name = '' WHERE user_id = $1", user_id)
    await rows.execute("INSERT INTO departures (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)


async def departures(rows: Connection, limit: int) -> list[UUID]:
    """Of whom something is left to do."""
    found = await rows.fetch("SELECT user_id FROM departures WHERE NOT done ORDER BY create_time LIMIT $1", limit)
    return [row["user_id"] for row in found]


async def lock_departure(rows: Connection, user_id: UUID) -> bool:
    """Whether something is left to do, and no other replica is at it."""
    return bool(
        await rows.fetchval(
            "SELECT true FROM departures WHERE user_id = $1 AND NOT done FOR UPDATE SKIP LOCKED", user_id
        )
    )


async def forget_requests(rows: Connection, user_id: UUID, limit: int) -> int:
    """Deletes request ids and the answers to them; how many."""
    deleted = await rows.execute(
        """
        DELETE FROM request_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM request_keys WHERE user_id = $1 LIMIT $2))
        """,
        user_id,
        limit,
    )
    return int(deleted.split()[-1])


async def forget_words(rows: Connection, user_id: UUID, limit: int) -> int:
    """Deletes what somebody noted and set, so many rows of each kind; how many."""
    forgotten = 0
    for table in ("order_notes", "order_tags", "risk_limits", "kill_switches"):
        deleted = await rows.execute(
            f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE user_id = $1 LIMIT $2))",
            user_id,
            limit,
        )
        forgotten += int(deleted.split()[-1])
    return forgotten


async def finish_departure(rows: Connection, user_id: UUID) -> bool:
    """Notes that nothing is left to do, unless an order is still open of which something may yet be heard; whether it was noted.

    With the key of a live account the only way to its venue is gone: what rests there is its owner's own to cancel.
    """
    done = await rows.execute(
        f"""
        UPDATE departures SET done = true WHERE user_id = $1 AND NOT EXISTS (
          SELECT FROM trading_orders WHERE state IN {OPEN_STATES}
          AND account_id IN (
            SELECT account_id FROM accounts
            WHERE accounts.user_id = $1 AND (live_state IS NULL OR credential_id IS NOT NULL)))
        """,
        user_id,
    )
    return done == "UPDATE 1"


def account_from(row: Record) -> Account:
    return Account(
        **{
            **row,
            "mode": Mode(row["mode"]),
            "kind": AccountKind(row["kind"]),
            "locks": frozenset(map(Lock, row["locks"])),
            "live_state": row["live_state"] and LiveState(row["live_state"]),
        }
    )


def order_from(row: Record) -> Order:
    values = dict(row)
    amount, percent = values.pop("trail_amount"), values.pop("trail_percent")
    return Order(
        **{
            **values,
            "side": Side(row["side"]),
            "order_type": OrderType(row["order_type"]),
            "time_in_force": TimeInForce(row["time_in_force"]),
            "state": State(row["state"]),
            "trail": None if amount is None and percent is None else Trail(amount=amount, percent=percent),
            "replacement": None if row["replacement"] is None else replacement_from_text(row["replacement"]),
            "group_role": None if row["group_role"] is None else GroupRole(row["group_role"]),
        }
    )


def is_plain(order: Order) -> bool:
    """Whether an order that was just placed has nothing of what MORE_ORDER_COLUMNS keep."""
    return (
        order.stop_price is order.trail is order.expire_time is order.group_id is order.deployment_id is None
        and order.parent_order_id is None
        and not order.post_only
        and not order.reduce_only
        and not order.triggers_here
        and not order.liquidates
    )


def replacement_to_text(change: Replacement) -> str:
    """As JSON with decimals as text, what is None left out."""
    trail = change.trail or Trail()
    values = {
        "quantity": change.quantity,
        "limit_price": change.limit_price,
        "stop_price": change.stop_price,
        "protection_price": change.protection_price,
        "trail_amount": trail.amount,
        "trail_percent": trail.percent,
    }
    known = {name: plain(value) for name, value in values.items() if value is not None}
    return json.dumps({"client_order_id": str(change.client_order_id), **known})


def replacement_from_text(text: str) -> Replacement:
    values = json.loads(text)
    client_order_id = UUID(values.pop("client_order_id"))
    known = {name: Decimal(value) for name, value in values.items()}
    amount, percent = known.pop("trail_amount", None), known.pop("trail_percent", None)
    trail = None if amount is None and percent is None else Trail(amount=amount, percent=percent)
    return Replacement(client_order_id=client_order_id, trail=trail, **known)


def position_from(row: Record) -> Position:
    """Of an account, or of a deployment, for which no funding is kept."""
    return Position(**{field.name: row[field.name] for field in fields(Position) if field.name in row})
