"""Where orders at venues live. Every function is one or two statements, whatever the number of orders."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from libs.bus.feed import Cursor
from libs.matching.orders import Side
from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact, partition_of
from services.execution import events
from services.execution.domain import (
    PAPER,
    Event,
    Filled,
    Instrument,
    Order,
    OrderType,
    Release,
    Replacement,
    State,
    TimeInForce,
    less,
)

SECOND_NS = 1_000_000_000
COLUMNS = {
    "order_id": "uuid",
    "user_id": "uuid",
    "account_id": "uuid",
    "venue": "text",
    "instrument_id": "text",
    "side": "text",
    "order_type": "text",
    "time_in_force": "text",
    "quantity": "numeric",
    "worst_price": "numeric",
    "active_time_ns": "bigint",
    "client_order_id": "text",
    "venue_order_id": "text",
    "stop_price": "numeric",
    "trail_amount": "numeric",
    "trail_percent": "numeric",
    "trigger_time_ns": "bigint",
    "expire_time_ns": "bigint",
    "post_only": "boolean",
    "group_id": "uuid",
    "released_quantity": "numeric",
    "held_back": "numeric",
    "state": "text",
    "filled_quantity": "numeric",
    "fill_count": "integer",
    "entered": "boolean",
    "queue_ahead": "numeric",
    "reason": "text",
    "send_before": "timestamptz",
    "accept_time": "timestamptz",
    "reduce_only": "boolean",
    "deployment_id": "uuid",
    "send_time": "timestamptz",
    "filled_before": "numeric",
}
"""Of an order, with their types."""
ENUMS = ("side", "order_type", "time_in_force", "state")
CHANGING = (
    "quantity",
    "worst_price",
    "active_time_ns",
    "client_order_id",
    "venue_order_id",
    "stop_price",
    "trail_amount",
    "trail_percent",
    "trigger_time_ns",
    "released_quantity",
    "held_back",
    "state",
    "filled_quantity",
    "fill_count",
    "entered",
    "queue_ahead",
    "reason",
)
"""What becomes of an order at its venue."""
ORDER_COLUMNS = ", ".join(COLUMNS)
AS_ASKED_ANEW = ", ".join(
    f"{name} = excluded.{name}"
    for name in COLUMNS
    if name not in {"order_id", "user_id", "account_id", "venue", "instrument_id", "side"}
)
JOINED_COLUMNS = ", ".join(f"venue_orders.{name}" for name in COLUMNS)
OPEN = "state IN ('intended', 'sending', 'unknown', 'working')"
GROUP_FILLED = """
    CASE WHEN venue_orders.group_id IS NULL THEN 0 ELSE (
      SELECT coalesce(sum(filled_quantity), 0) FROM venue_orders AS other
      WHERE other.group_id = venue_orders.group_id AND other.order_id <> venue_orders.order_id) END AS group_filled
"""
"""What the others of an order's group have traded."""
ASKED = ("client_order_id", "quantity", "limit_price", "stop_price", "trail_amount", "trail_percent")
"""Of a replacement."""


class Disagreement(Exception):
    """What is in memory is not what is stored: a defect, or another wrote; read it again."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What users want of a venue: orders to take in, and what is to be answered, each with its order as it is stored."""

    orders: Sequence[Order]
    """Those of groups without what the others of theirs have traded."""
    releases: Sequence[tuple[Order, Release]]
    replaces: Sequence[tuple[Order, Replacement]]
    cancels: Sequence[Order]


async def add_orders(rows: Connection, orders: Sequence[Order]) -> None:
    """Writes the intents; one that is there already stays as it is.

    But for one that was rejected beyond the network and is released anew since: nobody else asks for it to be sent before a
    later time, and nothing of it is there. What is told again says the same time again, and changes nothing.
    """
    if not orders:
        return
    await rows.execute(
        f"""
        INSERT INTO venue_orders AS kept ({ORDER_COLUMNS}, partition)
        SELECT * FROM unnest({places(COLUMNS.values())}, ${len(COLUMNS) + 1}::smallint[])
        ON CONFLICT (order_id) DO UPDATE SET {AS_ASKED_ANEW}, retry_time = NULL, update_time = now()
        WHERE kept.state = 'rejected' AND kept.filled_quantity = 0 AND kept.venue <> '{PAPER}'
        AND excluded.send_before > kept.send_before
        """,
        *columns_of(orders, COLUMNS),
        [partition_of(order.instrument_id) for order in orders],
    )


async def add_releases(rows: Connection, releases: Mapping[UUID, tuple[Decimal | None, bool]]) -> None:
    """Writes of orders that are there how much is held back from now on, if that is less, and whether that is the last word."""
    if not releases:
        return
    await rows.execute(
        """
        INSERT INTO venue_releases AS kept (order_id, user_id, venue, partition, held_back, is_last)
        SELECT order_id, user_id, venue, partition, asked.held_back, asked.is_last
        FROM unnest($1::uuid[], $2::numeric[], $3::boolean[]) AS asked (order_id, held_back, is_last)
        JOIN venue_orders USING (order_id)
        WHERE (asked.held_back < venue_orders.held_back OR (asked.is_last AND venue_orders.held_back > 0))
        AND state IN ('intended', 'sending', 'unknown', 'working', 'filled') ORDER BY order_id
        ON CONFLICT (order_id) DO UPDATE SET
          held_back = least(kept.held_back, excluded.held_back), is_last = kept.is_last OR excluded.is_last
        """,
        list(releases),
        [held_back for held_back, _ in releases.values()],
        [is_last for _, is_last in releases.values()],
    )


async def add_replaces(rows: Connection, replaces: Sequence[tuple[UUID, Replacement]]) -> None:
    """Writes that changes are asked for. An order that never came to a venue needs no answer."""
    if not replaces:
        return
    await rows.execute(
        """
        INSERT INTO venue_replaces (order_id, client_order_id, user_id, venue, partition, quantity, limit_price, stop_price,
          trail_amount, trail_percent)
        SELECT order_id, asked.client_order_id, user_id, venue, partition, asked.quantity, asked.limit_price,
          asked.stop_price, asked.trail_amount, asked.trail_percent
        FROM unnest($1::uuid[], $2::text[], $3::numeric[], $4::numeric[], $5::numeric[], $6::numeric[], $7::numeric[])
          AS asked (order_id, client_order_id, quantity, limit_price, stop_price, trail_amount, trail_percent)
        JOIN venue_orders USING (order_id) WHERE state <> 'rejected' ORDER BY order_id
        ON CONFLICT (order_id, client_order_id) DO NOTHING
        """,
        [order_id for order_id, _ in replaces],
        [asked.client_order_id for _, asked in replaces],
        [asked.quantity for _, asked in replaces],
        [asked.limit_price for _, asked in replaces],
        [asked.stop_price for _, asked in replaces],
        [asked.trail_amount for _, asked in replaces],
        [asked.trail_percent for _, asked in replaces],
    )


async def add_cancels(rows: Connection, order_ids: Sequence[UUID]) -> None:
    """Writes that cancels are asked for. An order that never came to a venue needs no answer."""
    if not order_ids:
        return
    await rows.execute(
        """
        INSERT INTO venue_cancels (order_id, user_id, venue, partition)
        SELECT order_id, user_id, venue, partition FROM venue_orders WHERE order_id = ANY($1) AND state <> 'rejected'
        ORDER BY order_id ON CONFLICT (order_id) DO NOTHING
        """,
        order_ids,
    )


async def save_orders(rows: Connection, orders: Sequence[Order]) -> None:
    """Writes what became of orders that are open, or were until more was released.

    Raises Disagreement if one of them is neither.
    """
    if not orders:
        return
    done = await rows.execute(
        f"""
        UPDATE venue_orders AS kept SET {", ".join(f"{name} = changed.{name}" for name in CHANGING)}, update_time = now()
        FROM unnest($1::uuid[], {places([COLUMNS[name] for name in CHANGING], 2)}) AS changed (order_id, {", ".join(CHANGING)})
        WHERE kept.order_id = changed.order_id AND (kept.{OPEN} OR kept.released_quantity < changed.released_quantity)
        """,
        [order.order_id for order in orders],
        *columns_of(orders, CHANGING),
    )
    if done != f"UPDATE {len(orders)}":
        raise Disagreement(f"of {len(orders)} orders that are open in memory: {done}")


async def add_fills(rows: Connection, told: Iterable[tuple[Order, Event]]) -> None:
    """Writes the fills; one that is there already is a defect and raises UniqueViolationError."""
    fills = [(order, event) for order, event in told if isinstance(event, Filled)]
    if not fills:
        return
    await rows.execute(
        """
        INSERT INTO venue_fills
          (venue, venue_fill_id, user_id, account_id, order_id, price, quantity, fee, fee_asset, maker, time, realized_profit)
        SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[], $4::uuid[], $5::uuid[], $6::numeric[], $7::numeric[],
          $8::numeric[], $9::text[], $10::boolean[], $11::timestamptz[], $12::numeric[])
        """,
        [order.venue for order, _ in fills],
        [fill.venue_fill_id for _, fill in fills],
        [order.user_id for order, _ in fills],
        [order.account_id for order, _ in fills],
        [order.order_id for order, _ in fills],
        [fill.price for _, fill in fills],
        [fill.quantity for _, fill in fills],
        [fill.fee for _, fill in fills],
        [fill.fee_asset for _, fill in fills],
        [fill.maker for _, fill in fills],
        [time_from_ns(fill.time_ns) for _, fill in fills],
        [fill.realized_profit for _, fill in fills],
    )


async def answer_cancels(rows: Connection, order_ids: Sequence[UUID]) -> None:
    if order_ids:
        await rows.execute("DELETE FROM venue_cancels WHERE order_id = ANY($1)", order_ids)


async def answer_replaces(rows: Connection, replaces: Sequence[tuple[UUID, str]]) -> None:
    """Each is an order and the client_order_id of its change."""
    if replaces:
        await rows.execute(
            """
            DELETE FROM venue_replaces AS kept USING unnest($1::uuid[], $2::text[]) AS answered (order_id, client_order_id)
            WHERE kept.order_id = answered.order_id AND kept.client_order_id = answered.client_order_id
            """,
            [order_id for order_id, _ in replaces],
            [client_order_id for _, client_order_id in replaces],
        )


async def answer_releases(rows: Connection, releases: Sequence[tuple[UUID, Release]]) -> None:
    """What was released since an answer was worked out stays to be answered."""
    if releases:
        await rows.execute(
            """
            DELETE FROM venue_releases AS kept
            USING unnest($1::uuid[], $2::numeric[], $3::boolean[]) AS answered (order_id, held_back, is_last)
            WHERE kept.order_id = answered.order_id AND kept.held_back IS NOT DISTINCT FROM answered.held_back
            AND kept.is_last = answered.is_last
            """,
            [order_id for order_id, _ in releases],
            [release.held_back for _, release in releases],
            [release.is_last for _, release in releases],
        )


async def tell(rows: Connection, told: Sequence[tuple[Order, Event]]) -> None:
    """Tells the events as facts about their accounts, whose rows stay locked, in the order of their ids, until the commit."""
    if not told:
        return
    await tell_messages(
        rows,
        [(order.account_id, order.user_id, events.message_of(str(order.order_id), event)) for order, event in told],
    )


async def tell_messages(rows: Connection, told: Sequence[tuple[UUID, UUID, Message]]) -> None:
    """The same of messages, each with its account and whose that is."""
    counts = Counter((account_id, user_id) for account_id, user_id, _ in told)
    reserved = await rows.fetch(
        """
        INSERT INTO account_sequences AS kept (account_id, user_id, sequence)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS told (account_id, user_id, count) ORDER BY account_id
        ON CONFLICT (account_id) DO UPDATE SET sequence = kept.sequence + excluded.sequence
        RETURNING account_id, user_id, sequence
        """,
        [account_id for account_id, _ in counts],
        [user_id for _, user_id in counts],
        list(counts.values()),
    )
    last = {row["account_id"]: row["sequence"] - counts[row["account_id"], row["user_id"]] for row in reserved}
    facts: list[Fact] = []
    for account_id, user_id, message in told:
        last[account_id] += 1
        facts.append(
            Fact(
                key=str(account_id),
                sequence=last[account_id],
                user_id=user_id,
                kind=message.DESCRIPTOR.full_name,
                payload=message.SerializeToString(),
            )
        )
    await outbox.add(rows, facts)


async def find_requests(rows: Connection, venue: str, partitions: Sequence[int], count_max: int) -> Requests:
    """The oldest orders not yet taken in, of instruments that are known, and the oldest of what else is asked of those that are.

    For the worker role, which reads all users'.
    """
    orders = await rows.fetch(
        f"""
        SELECT {ORDER_COLUMNS}, {GROUP_FILLED} FROM venue_orders
        WHERE state = 'intended' AND venue = $1 AND partition = ANY($2)
        AND EXISTS (SELECT FROM instruments WHERE instruments.instrument_id = venue_orders.instrument_id)
        ORDER BY order_id LIMIT $3
        """,
        venue,
        partitions,
        count_max,
    )

    async def find_asked(table: str, columns: str) -> Sequence[Any]:
        return await rows.fetch(
            f"""
            SELECT {JOINED_COLUMNS}, {columns} FROM {table} AS asked JOIN venue_orders USING (order_id)
            WHERE asked.venue = $1 AND asked.partition = ANY($2) AND state <> 'intended'
            ORDER BY asked.create_time, order_id LIMIT $3
            """,
            venue,
            partitions,
            count_max,
        )

    releases = await find_asked(
        "venue_releases", f"asked.held_back AS asked_held_back, asked.is_last AS asked_is_last, {GROUP_FILLED}"
    )
    replaces = await find_asked("venue_replaces", ", ".join(f"asked.{name} AS asked_{name}" for name in ASKED))
    cancels = await find_asked("venue_cancels", "true")
    return Requests(
        [less(order_from(row), row["group_filled"]) for row in orders],
        [(order_from(row), release_from(row)) for row in releases],
        [(order_from(row), Replacement(**{name: row[f"asked_{name}"] for name in ASKED})) for row in replaces],
        [order_from(row) for row in cancels],
    )


async def find_strays(
    rows: Connection, venue: str, partitions: Sequence[int], patience: timedelta, count_max: int
) -> list[Order]:
    """Orders that have waited longer than patience for their instrument to become known; for the worker role."""
    found = await rows.fetch(
        f"""
        SELECT {ORDER_COLUMNS} FROM venue_orders
        WHERE state = 'intended' AND venue = $1 AND partition = ANY($2) AND create_time < now() - $3::interval
        AND NOT EXISTS (SELECT FROM instruments WHERE instruments.instrument_id = venue_orders.instrument_id)
        ORDER BY order_id LIMIT $4
        """,
        venue,
        partitions,
        patience,
        count_max,
    )
    return [order_from(row) for row in found]


async def find_working(rows: Connection, venue: str, partition: int) -> list[Order]:
    """Every order of the partition that the venue has and that may still trade; for the worker role."""
    found = await rows.fetch(
        f"SELECT {ORDER_COLUMNS} FROM venue_orders WHERE {OPEN} AND state = 'working' AND venue = $1 AND partition = $2",
        venue,
        partition,
    )
    return [order_from(row) for row in found]


async def count_open(rows: Connection) -> dict[str, int]:
    """Orders that rest or are on their way, of all users, by venue; for the worker role."""
    found = await rows.fetch(f"SELECT venue, count(*) FROM venue_orders WHERE {OPEN} GROUP BY venue")
    return {row["venue"]: row["count"] for row in found}


async def put_instruments(rows: Connection, instruments: Sequence[Instrument]) -> None:
    """Writes instruments as they now stand; of several states of one, the last."""
    newest = list({instrument.instrument_id: instrument for instrument in instruments}.values())
    await rows.execute(
        """
        INSERT INTO instruments
          (instrument_id, quote_asset, tick_size, lot_size, maker_fee_rate, taker_fee_rate, has_book)
        SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[], $4::numeric[], $5::numeric[], $6::numeric[], $7::boolean[])
        ON CONFLICT (instrument_id) DO UPDATE SET quote_asset = excluded.quote_asset, tick_size = excluded.tick_size,
          lot_size = excluded.lot_size, maker_fee_rate = excluded.maker_fee_rate,
          taker_fee_rate = excluded.taker_fee_rate, has_book = excluded.has_book
        """,
        [instrument.instrument_id for instrument in newest],
        [instrument.quote_asset for instrument in newest],
        [instrument.tick_size for instrument in newest],
        [instrument.lot_size for instrument in newest],
        [instrument.maker_fee_rate for instrument in newest],
        [instrument.taker_fee_rate for instrument in newest],
        [instrument.has_book for instrument in newest],
    )


async def find_instruments(rows: Connection, instrument_ids: Iterable[str]) -> dict[str, Instrument]:
    found = await rows.fetch(
        """
        SELECT instrument_id, quote_asset, tick_size, lot_size, maker_fee_rate, taker_fee_rate, has_book
        FROM instruments WHERE instrument_id = ANY($1)
        """,
        list(instrument_ids),
    )
    return {row["instrument_id"]: Instrument(**row) for row in found}


async def find_cursors(rows: Connection, instrument_ids: Iterable[str]) -> dict[str, Cursor]:
    found = await rows.fetch(
        "SELECT instrument_id, epoch, sequence FROM paper_cursors WHERE instrument_id = ANY($1)", list(instrument_ids)
    )
    return {row["instrument_id"]: Cursor(**row) for row in found}


async def put_cursor(rows: Connection, cursor: Cursor) -> None:
    await rows.execute(
        """
        INSERT INTO paper_cursors (instrument_id, epoch, sequence) VALUES ($1, $2, $3)
        ON CONFLICT (instrument_id) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence
        """,
        cursor.instrument_id,
        cursor.epoch,
        cursor.sequence,
    )


def order_from(row) -> Order:  # noqa: ANN001 (asyncpg.Record cannot be made elsewhere)
    values = {name: row[name] for name in COLUMNS}
    return Order(
        **{
            **values,
            "client_order_id": values["client_order_id"] or str(values["order_id"]),
            "side": Side(values["side"]),
            "order_type": OrderType(values["order_type"]),
            "time_in_force": TimeInForce(values["time_in_force"]),
            "state": State(values["state"]),
        }
    )


def release_from(row) -> Release:  # noqa: ANN001 (asyncpg.Record cannot be made elsewhere)
    return Release(held_back=row["asked_held_back"], is_last=row["asked_is_last"], group_filled=row["group_filled"])


def columns_of(orders: Sequence[Order], names: Iterable[str]) -> list[list[Any]]:
    """The orders' values, column by column."""
    return [list(map(attrgetter(f"{name}.value" if name in ENUMS else name), orders)) for name in names]


def places(types: Iterable[str], first: int = 1) -> str:
    """The parameters that hold columns of these types, counted from the first."""
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, first))


def time_from_ns(time_ns: int) -> datetime:
    """The microsecond it falls into."""
    seconds, rest_ns = divmod(time_ns, SECOND_NS)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest_ns // 1_000)
