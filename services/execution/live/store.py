"""Where live accounts' orders, ids, balances and fills live. Each function is a statement or two, in the caller's transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.money import ZERO
from libs.store.database import Connection
from services.execution import store
from services.execution.domain import (
    AccountKind,
    Funding,
    Instrument,
    LiveAccount,
    Order,
    Position,
    Replacement,
    State,
)
from services.execution.live.news import Change, Standing, Walk, amounts_of, position_after
from services.execution.store import ASKED, CHANGING, COLUMNS, ORDER_COLUMNS, columns_of, order_from, places
from services.execution.venues.port import VenueFill

SAVED = (*CHANGING, "send_time")
MICROSECOND_NS = 1_000
FLAT = Position(quantity=ZERO, average_price=ZERO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to be done about an order: what state it is in, and what is asked of it."""

    account_id: UUID
    order_id: UUID
    instrument_id: str
    state: State
    is_due: bool
    """Of one to be sent: whether the venue takes it again by now."""
    send_time: datetime | None
    cancel_asked: bool
    change_asked: bool


async def find_accounts(rows: Connection) -> dict[UUID, LiveAccount]:
    """Those of which a venue may be asked; for the worker role, of all users."""
    found = await rows.fetch(
        """
        SELECT account_id, user_id, venue, kind, credential_id, credential_revision, trading, confirm_count
        FROM live_accounts WHERE credential_id IS NOT NULL ORDER BY account_id
        """
    )
    return {row["account_id"]: account_from(row) for row in found}


def account_from(row: Any) -> LiveAccount:
    return LiveAccount(**{**row, "kind": AccountKind(row["kind"])})


async def find_tasks(rows: Connection, account_ids: Collection[UUID], each_max: int) -> list[Task]:
    """What is to be done about orders of these accounts, the oldest first, so many of each; for the worker role."""
    found = await rows.fetch(
        """
        WITH asked AS (
          SELECT order_id FROM venue_orders
          WHERE account_id = ANY($1) AND venue <> 'PAPER' AND state IN ('intended', 'sending', 'unknown', 'working')
          AND state <> 'working'
          UNION SELECT order_id FROM venue_cancels WHERE venue <> 'PAPER'
          UNION SELECT order_id FROM venue_replaces WHERE venue <> 'PAPER' AND coalesce(retry_time, '-infinity') <= now()),
        tasks AS (
          SELECT account_id, order_id, instrument_id, state, coalesce(retry_time, '-infinity') <= now() AS is_due, send_time,
            EXISTS (SELECT FROM venue_cancels WHERE venue_cancels.order_id = venue_orders.order_id) AS cancel_asked,
            EXISTS (SELECT FROM venue_replaces WHERE venue_replaces.order_id = venue_orders.order_id) AS change_asked,
            row_number() OVER (PARTITION BY account_id ORDER BY state = 'intended', order_id) AS number
          FROM asked JOIN venue_orders USING (order_id) WHERE account_id = ANY($1))
        SELECT account_id, order_id, instrument_id, state, is_due, send_time, cancel_asked, change_asked
        FROM tasks WHERE number <= $2 ORDER BY order_id
        """,
        list(account_ids),
        each_max,
    )
    return [Task(**{**row, "state": State(row["state"])}) for row in found]


async def find_late(rows: Connection, count_max: int) -> list[tuple[UUID, UUID]]:
    """Orders that should have been sent by now, with whose they are; for the worker role.

    Who carries an account does the same, a little earlier.
    """
    found = await rows.fetch(
        """
        SELECT order_id, user_id FROM venue_orders WHERE state = 'intended' AND venue <> 'PAPER'
        AND send_before < now() - interval '1 second' ORDER BY order_id LIMIT $1
        """,
        count_max,
    )
    return [(row["order_id"], row["user_id"]) for row in found]


async def find_order(rows: Connection, order_id: UUID) -> Order | None:
    row = await rows.fetchrow(f"SELECT {ORDER_COLUMNS} FROM venue_orders WHERE order_id = $1", order_id)
    return order_from(row) if row else None


async def find_open(rows: Connection, account_id: UUID) -> list[Order]:
    """The account's orders that may still trade at its venue."""
    found = await rows.fetch(
        f"""
        SELECT {ORDER_COLUMNS} FROM venue_orders WHERE account_id = $1 AND venue <> 'PAPER'
        AND state IN ('intended', 'sending', 'unknown', 'working') AND state <> 'intended' ORDER BY order_id
        """,
        account_id,
    )
    return [order_from(row) for row in found]


async def order_id_of(rows: Connection, account_id: UUID, client_order_id: str, venue_order_id: str) -> UUID | None:
    """The order that was ever sent under either id; None if it was not sent from here."""
    return await rows.fetchval(
        """
        SELECT order_id FROM venue_ids WHERE account_id = $1
        AND ((client_order_id = $2 AND $2 <> '') OR (venue_order_id = $3 AND $3 <> '')) LIMIT 1
        """,
        account_id,
        client_order_id,
        venue_order_id,
    )


async def lock_standing(rows: Connection, order_id: UUID, fill_ids: Sequence[str] = ()) -> Standing | None:
    """The order, its row locked until the commit, and what is asked of it."""
    row = await rows.fetchrow(
        f"""
        SELECT {ORDER_COLUMNS}, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
        FROM venue_orders WHERE order_id = $1 FOR UPDATE
        """,
        order_id,
    )
    if row is None:
        return None
    # Only now: what is asked meanwhile is for the next time, what another has just answered is answered.
    cancel_asked: Any = await rows.fetchval("SELECT EXISTS (SELECT FROM venue_cancels WHERE order_id = $1)", order_id)
    changes = await rows.fetch(
        f"SELECT {', '.join(ASKED)}, send_time FROM venue_replaces WHERE order_id = $1 ORDER BY create_time, client_order_id",
        order_id,
    )
    order = order_from(row)
    return Standing(
        order=order,
        cancel_asked=cancel_asked,
        changes=tuple(
            Change(replacement=Replacement(**{name: change[name] for name in ASKED}), send_time=change["send_time"])
            for change in changes
        ),
        known_fills=await known_fills(rows, order.account_id, fill_ids) if fill_ids else (),
        now_ns=row["now_us"] * MICROSECOND_NS,
    )


async def lock_orders(rows: Connection, order_ids: Sequence[UUID]) -> None:
    """Before any other row, and in one order, so that nobody waits in a circle."""
    await rows.fetch("SELECT FROM venue_orders WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE", order_ids)


async def known_fills(rows: Connection, account_id: UUID, fill_ids: Sequence[str]) -> set[str]:
    """Those of them that are recorded, as ours or as others'."""
    found = await rows.fetch(
        """
        SELECT venue_fill_id FROM venue_fills WHERE account_id = $1 AND venue_fill_id = ANY($2)
        UNION ALL SELECT venue_fill_id FROM external_fills WHERE account_id = $1 AND venue_fill_id = ANY($2)
        """,
        account_id,
        list(fill_ids),
    )
    return {row["venue_fill_id"] for row in found}


async def save_walk(rows: Connection, before: Order, walk: Walk) -> None:
    """What became of an order, with its fills, answers and facts, in the transaction that has it locked."""
    if walk.order != before:
        await save_order(rows, walk.order)
        if walk.order.venue_order_id and walk.order.venue_order_id != before.venue_order_id:
            await name_order(rows, walk.order, walk.order.client_order_id)
    told = list(zip(walk.orders, walk.events, strict=True))
    await store.add_fills(rows, told)
    if walk.fills:
        await move_balances(rows, walk.order.account_id, walk.order.user_id, walk.fills)
    if walk.cancel_answered:
        await store.answer_cancels(rows, [walk.order.order_id])
    await store.answer_replaces(rows, [(walk.order.order_id, change) for change in walk.answered])
    await store.tell(rows, told)


async def save_order(rows: Connection, order: Order) -> None:
    """Whatever state it was in: its row is locked."""
    await rows.execute(
        f"""
        UPDATE venue_orders AS kept SET {", ".join(f"{name} = changed.{name}" for name in SAVED)}, update_time = now()
        FROM unnest($1::uuid[], {places([COLUMNS[name] for name in SAVED], 2)}) AS changed (order_id, {", ".join(SAVED)})
        WHERE kept.order_id = changed.order_id
        """,
        [order.order_id],
        *columns_of([order], SAVED),
    )


async def put_back(rows: Connection, order_id: UUID, seconds: float) -> None:
    """Of an order that was certainly not taken, and is to be tried another time."""
    await rows.execute(
        """
        UPDATE venue_orders SET state = 'intended', retry_time = now() + make_interval(secs => $2), update_time = now()
        WHERE order_id = $1 AND state IN ('intended', 'sending')
        """,
        order_id,
        seconds,
    )


async def name_order(rows: Connection, order: Order, client_order_id: str) -> None:
    """Writes an id under which the order is sent, or what the venue calls it."""
    await rows.execute(
        """
        INSERT INTO venue_ids AS kept (account_id, client_order_id, venue_order_id, order_id, user_id)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (account_id, client_order_id) DO UPDATE SET venue_order_id = excluded.venue_order_id
        WHERE excluded.venue_order_id <> ''
        """,
        order.account_id,
        client_order_id,
        order.venue_order_id if client_order_id == order.client_order_id else "",
        order.order_id,
        order.user_id,
    )


async def mark_change_sent(rows: Connection, order_id: UUID, client_order_id: str) -> None:
    await rows.execute(
        """
        UPDATE venue_replaces SET send_time = clock_timestamp(), retry_time = NULL
        WHERE order_id = $1 AND client_order_id = $2
        """,
        order_id,
        client_order_id,
    )


async def put_back_change(rows: Connection, order_id: UUID, client_order_id: str, seconds: float) -> None:
    await rows.execute(
        """
        UPDATE venue_replaces SET send_time = NULL, retry_time = now() + make_interval(secs => $3)
        WHERE order_id = $1 AND client_order_id = $2
        """,
        order_id,
        client_order_id,
        seconds,
    )


async def is_old_change(rows: Connection, order_id: UUID, client_order_id: str, seconds: int) -> bool:
    found: Any = await rows.fetchval(
        """
        SELECT create_time < now() - make_interval(secs => $3) FROM venue_replaces
        WHERE order_id = $1 AND client_order_id = $2
        """,
        order_id,
        client_order_id,
        seconds,
    )
    return bool(found)


async def seconds_until(rows: Connection, time: datetime, seconds: float) -> float:
    """Until so long has passed since, by the clock that wrote it; not positive once it has."""
    found: Any = await rows.fetchval(
        "SELECT extract(epoch FROM $1::timestamptz + $2::interval - clock_timestamp())::float8",
        time,
        timedelta(seconds=seconds),
    )
    return found


async def has_unnamed(rows: Connection, account_id: UUID, instrument_ids: Collection[str]) -> set[str]:
    """Instruments with orders on the way of which the venue's id may not be known here: whose fill it is, is not clear."""
    found = await rows.fetch(
        """
        SELECT DISTINCT instrument_id FROM venue_orders
        WHERE account_id = $1 AND venue <> 'PAPER' AND instrument_id = ANY($2)
        AND state IN ('intended', 'sending', 'unknown', 'working')
        AND (state IN ('sending', 'unknown') OR (state = 'working' AND venue_order_id = '') OR EXISTS (
          SELECT FROM venue_replaces WHERE venue_replaces.order_id = venue_orders.order_id AND send_time IS NOT NULL))
        """,
        account_id,
        list(instrument_ids),
    )
    return {row["instrument_id"] for row in found}


async def find_followed(rows: Connection, account_id: UUID, count_max: int) -> list[str]:
    """The instruments whose fills are read, those of the newest orders first."""
    found = await rows.fetch(
        """
        SELECT instrument_id FROM (
          SELECT instrument_id, max(update_time) AS time FROM venue_orders
          WHERE account_id = $1 AND venue <> 'PAPER' AND send_time IS NOT NULL GROUP BY 1
          UNION ALL SELECT instrument_id, max(create_time) FROM external_fills WHERE account_id = $1 GROUP BY 1
          UNION ALL SELECT instrument_id, max(find_time) FROM external_orders WHERE account_id = $1 GROUP BY 1
          UNION ALL SELECT instrument_id, update_time FROM venue_positions WHERE account_id = $1) AS seen
        GROUP BY instrument_id ORDER BY max(time) DESC LIMIT $2
        """,
        account_id,
        count_max,
    )
    return [row["instrument_id"] for row in found]


# Balances.


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the account's row says of its balances and fills."""

    open_time: datetime | None
    confirm_count: int
    connect_count: int
    fills_cursor: str
    funding_cursor: str
    fill_count: int
    """Also rises with funding."""

    @property
    def is_connected(self) -> bool:
        """Whether the venue's balances have answered the last confirmation."""
        return self.connect_count >= self.confirm_count


async def find_books(rows: Connection, account_id: UUID, *, lock: bool = False) -> Books:
    row: Any = await rows.fetchrow(
        f"""
        SELECT open_time, confirm_count, connect_count, fills_cursor, funding_cursor, fill_count
        FROM live_accounts WHERE account_id = $1 {"FOR UPDATE" if lock else ""}
        """,
        account_id,
    )
    return Books(**row)


async def put_cursor(rows: Connection, account_id: UUID, cursor: str) -> None:
    await rows.execute("UPDATE live_accounts SET fills_cursor = $2 WHERE account_id = $1", account_id, cursor)


async def connect(rows: Connection, account: LiveAccount, confirm_count: int) -> None:
    """So many confirmations are answered."""
    await rows.execute(
        """
        UPDATE live_accounts SET open_time = coalesce(open_time, clock_timestamp()), connect_count = $2
        WHERE account_id = $1
        """,
        account.account_id,
        confirm_count,
    )


async def find_balances(rows: Connection, account_id: UUID) -> dict[str, Decimal]:
    """What the account holds by all that is recorded."""
    found = await rows.fetch("SELECT asset, total FROM venue_balances WHERE account_id = $1", account_id)
    return {row["asset"]: row["total"] for row in found}


async def put_balances(rows: Connection, account: LiveAccount, totals: Mapping[str, Decimal]) -> None:
    """In place of all that was recorded."""
    await rows.execute(
        "DELETE FROM venue_balances WHERE account_id = $1 AND asset <> ALL($2)", account.account_id, list(totals)
    )
    await _write_balances(rows, account.account_id, account.user_id, totals, "excluded.total")


async def move_balances(rows: Connection, account_id: UUID, user_id: UUID, fills: Sequence[VenueFill]) -> None:
    """Has the balances and the positions follow fills, once they were told; counts the fills in any case."""
    books = await rows.fetchrow(
        "UPDATE live_accounts SET fill_count = fill_count + $2 WHERE account_id = $1 RETURNING open_time",
        account_id,
        len(fills),
    )
    if books is None or books["open_time"] is None:
        return
    instruments = await store.find_instruments(rows, {fill.instrument_id for fill in fills})
    await add_to_balances(rows, account_id, user_id, _sums(fills, instruments))
    await _move_positions(rows, account_id, user_id, [fill for fill in fills if fill.realized_profit is not None])


async def add_to_balances(rows: Connection, account_id: UUID, user_id: UUID, amounts: Mapping[str, Decimal]) -> None:
    await _write_balances(rows, account_id, user_id, amounts, "kept.total + excluded.total")


async def _write_balances(
    rows: Connection, account_id: UUID, user_id: UUID, totals: Mapping[str, Decimal], total: str
) -> None:
    assets = sorted(totals)
    await rows.execute(
        f"""
        INSERT INTO venue_balances AS kept (account_id, asset, user_id, total)
        SELECT $1, asset, $2, total FROM unnest($3::text[], $4::numeric[]) AS changed (asset, total)
        ON CONFLICT (account_id, asset) DO UPDATE SET total = {total}
        """,
        account_id,
        user_id,
        assets,
        [totals[asset] for asset in assets],
    )


def _sums(fills: Sequence[VenueFill], instruments: Mapping[str, Instrument]) -> dict[str, Decimal]:
    """Of an instrument that is not known here nothing: then the next comparison shows it."""
    sums: dict[str, Decimal] = {}
    for fill in fills:
        instrument = instruments.get(fill.instrument_id)
        for asset, amount in amounts_of(fill, instrument).items() if instrument else ():
            sums[asset] = sums.get(asset, ZERO) + amount
    return sums


# Positions.


async def find_positions(rows: Connection, account_id: UUID) -> dict[str, Position]:
    """What the account holds of perpetual futures by all that is recorded, but for what is flat."""
    found = await rows.fetch(
        "SELECT instrument_id, quantity, average_price FROM venue_positions WHERE account_id = $1 AND quantity <> 0",
        account_id,
    )
    return {
        row["instrument_id"]: Position(quantity=row["quantity"], average_price=row["average_price"]) for row in found
    }


async def put_positions(rows: Connection, account: LiveAccount, positions: Mapping[str, Position]) -> None:
    """In place of all that was recorded; those that are flat now stay, so that their fills are read on."""
    await rows.execute(
        """
        UPDATE venue_positions SET quantity = 0, average_price = 0, update_time = now()
        WHERE account_id = $1 AND quantity <> 0 AND instrument_id <> ALL($2)
        """,
        account.account_id,
        list(positions),
    )
    await _write_positions(rows, account.account_id, account.user_id, positions)


async def _move_positions(rows: Connection, account_id: UUID, user_id: UUID, fills: Sequence[VenueFill]) -> None:
    """The account's row is locked by who counts the fills."""
    if not fills:
        return
    held = await find_positions(rows, account_id)
    moved: dict[str, Position] = {}
    for fill in fills:
        before = moved.get(fill.instrument_id) or held.get(fill.instrument_id, FLAT)
        moved[fill.instrument_id] = position_after(before, fill)
    await _write_positions(rows, account_id, user_id, moved)


async def _write_positions(
    rows: Connection, account_id: UUID, user_id: UUID, positions: Mapping[str, Position]
) -> None:
    instrument_ids = sorted(positions)
    await rows.execute(
        """
        INSERT INTO venue_positions (account_id, instrument_id, user_id, quantity, average_price)
        SELECT $1, instrument_id, $2, quantity, average_price
        FROM unnest($3::text[], $4::numeric[], $5::numeric[]) AS changed (instrument_id, quantity, average_price)
        ON CONFLICT (account_id, instrument_id) DO UPDATE SET quantity = excluded.quantity,
          average_price = excluded.average_price, update_time = now()
        """,
        account_id,
        user_id,
        instrument_ids,
        [positions[instrument_id].quantity for instrument_id in instrument_ids],
        [positions[instrument_id].average_price for instrument_id in instrument_ids],
    )


# Funding.


async def known_funding(rows: Connection, account_id: UUID, venue_ids: Sequence[str]) -> set[str]:
    """Those of them that were told."""
    found = await rows.fetch(
        "SELECT venue_id FROM venue_funding WHERE account_id = $1 AND venue_id = ANY($2)", account_id, list(venue_ids)
    )
    return {row["venue_id"] for row in found}


async def add_funding(rows: Connection, account: LiveAccount, entries: Sequence[Funding]) -> None:
    """Records them, counts them, and has the balances follow."""
    await rows.execute(
        """
        INSERT INTO venue_funding (account_id, venue_id, user_id, instrument_id, amount, asset, time)
        SELECT $1, venue_id, $2, instrument_id, amount, asset, time
        FROM unnest($3::text[], $4::text[], $5::numeric[], $6::text[], $7::timestamptz[])
          AS told (venue_id, instrument_id, amount, asset, time)
        """,
        account.account_id,
        account.user_id,
        [entry.venue_id for entry in entries],
        [entry.instrument_id for entry in entries],
        [entry.amount for entry in entries],
        [entry.asset for entry in entries],
        [store.time_from_ns(entry.time_ns) for entry in entries],
    )
    await rows.execute(
        "UPDATE live_accounts SET fill_count = fill_count + $2 WHERE account_id = $1", account.account_id, len(entries)
    )
    sums: dict[str, Decimal] = {}
    for entry in entries:
        sums[entry.asset] = sums.get(entry.asset, ZERO) + entry.amount
    await add_to_balances(rows, account.account_id, account.user_id, sums)


async def put_funding_cursor(rows: Connection, account_id: UUID, cursor: str) -> None:
    await rows.execute("UPDATE live_accounts SET funding_cursor = $2 WHERE account_id = $1", account_id, cursor)


# What is not ours.


async def add_external_fill(rows: Connection, account: LiveAccount, fill: VenueFill) -> dict[str, Decimal]:
    """Records it, and has the balances and the position follow; by how much each balance does."""
    await rows.execute(
        """
        INSERT INTO external_fills (account_id, venue_fill_id, user_id, venue_order_id, instrument_id, side, price, quantity,
          fee, fee_asset, time, realized_profit)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        """,
        account.account_id,
        fill.venue_fill_id,
        account.user_id,
        fill.venue_order_id,
        fill.instrument_id,
        fill.side.value,
        fill.price,
        fill.quantity,
        fill.fee,
        fill.fee_asset,
        store.time_from_ns(fill.time_ns),
        fill.realized_profit,
    )
    instruments = await store.find_instruments(rows, [fill.instrument_id])
    amounts = _sums([fill], instruments)
    await move_balances(rows, account.account_id, account.user_id, [fill])
    return amounts


async def external_filled(rows: Connection, account_id: UUID, venue_order_id: str) -> Decimal:
    """What is recorded to have traded of an order that is not ours."""
    found: Any = await rows.fetchval(
        "SELECT coalesce(sum(quantity), 0) FROM external_fills WHERE account_id = $1 AND venue_order_id = $2",
        account_id,
        venue_order_id,
    )
    return found


# For people.


async def find_account(rows: Connection, account_id: UUID) -> LiveAccount | None:
    row: Any = await rows.fetchrow(
        """
        SELECT account_id, user_id, venue, kind, credential_id, credential_revision, trading, confirm_count
        FROM live_accounts WHERE account_id = $1
        """,
        account_id,
    )
    return account_from(row) if row else None


async def list_unknown(rows: Connection, after: tuple[datetime, UUID] | None, limit: int) -> list[Any]:
    """Of all users, the longest waiting first, as rows; for the worker role."""
    time, order_id = after or (None, None)
    return await rows.fetch(
        """
        SELECT order_id, user_id, account_id, venue, instrument_id, send_time, reason, clock_timestamp() AS now
        FROM venue_orders WHERE state = 'unknown' AND venue <> 'PAPER'
        AND ($1::timestamptz IS NULL OR (send_time, order_id) > ($1, $2)) ORDER BY send_time, order_id LIMIT $3
        """,
        time,
        order_id,
        limit,
    )
