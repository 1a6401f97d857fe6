"""Where orders at venues live. Every function is one or two statements, whatever the number of orders."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from libs.bus.feed import Cursor
from libs.matching.orders import Side, TimeInForce
from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact, partition_of
from services.execution import events
from services.execution.domain import Event, Filled, Instrument, Order, OrderType, State

SECOND_NS = 1_000_000_000
ORDER_COLUMNS = """
    order_id, user_id, account_id, venue, instrument_id, side, order_type, time_in_force, quantity, worst_price,
    active_time_ns, state, filled_quantity, fill_count, entered, reason
"""
OPEN = "state IN ('intended', 'sending', 'working')"


class Disagreement(Exception):
    """What is in memory is not what is stored: a defect, or another wrote; read it again."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What users want of a venue: orders to take in, cancels to answer (each with its order as it is stored)."""

    orders: Sequence[Order]
    cancels: Sequence[Order]


async def add_orders(rows: Connection, orders: Sequence[Order]) -> None:
    """Writes the intents; one that is there already stays as it is."""
    if not orders:
        return
    await rows.execute(
        f"""
        INSERT INTO venue_orders ({ORDER_COLUMNS}, partition)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
          $9::numeric[], $10::numeric[], $11::bigint[], $12::text[], $13::numeric[], $14::integer[], $15::boolean[],
          $16::text[], $17::smallint[])
        ON CONFLICT (order_id) DO NOTHING
        """,
        [order.order_id for order in orders],
        [order.user_id for order in orders],
        [order.account_id for order in orders],
        [order.venue for order in orders],
        [order.instrument_id for order in orders],
        [order.side.value for order in orders],
        [order.order_type.value for order in orders],
        [order.time_in_force.value for order in orders],
        [order.quantity for order in orders],
        [order.worst_price for order in orders],
        [order.active_time_ns for order in orders],
        [order.state.value for order in orders],
        [order.filled_quantity for order in orders],
        [order.fill_count for order in orders],
        [order.entered for order in orders],
        [order.reason for order in orders],
        [partition_of(order.instrument_id) for order in orders],
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
    """Writes what became of open orders. Raises Disagreement if one of them is not open any more."""
    if not orders:
        return
    done = await rows.execute(
        f"""
        UPDATE venue_orders AS kept SET state = changed.state, filled_quantity = changed.filled_quantity,
          fill_count = changed.fill_count, entered = changed.entered, reason = changed.reason, update_time = now()
        FROM unnest($1::uuid[], $2::text[], $3::numeric[], $4::integer[], $5::boolean[], $6::text[])
          AS changed (order_id, state, filled_quantity, fill_count, entered, reason)
        WHERE kept.order_id = changed.order_id AND kept.{OPEN}
        """,
        [order.order_id for order in orders],
        [order.state.value for order in orders],
        [order.filled_quantity for order in orders],
        [order.fill_count for order in orders],
        [order.entered for order in orders],
        [order.reason for order in orders],
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
          (venue, venue_fill_id, user_id, account_id, order_id, price, quantity, fee, fee_asset, maker, time)
        SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[], $4::uuid[], $5::uuid[], $6::numeric[], $7::numeric[],
          $8::numeric[], $9::text[], $10::boolean[], $11::timestamptz[])
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
    )


async def answer_cancels(rows: Connection, order_ids: Sequence[UUID]) -> None:
    if order_ids:
        await rows.execute("DELETE FROM venue_cancels WHERE order_id = ANY($1)", order_ids)


async def tell(rows: Connection, told: Sequence[tuple[Order, Event]]) -> None:
    """Tells the events as facts about their accounts, whose rows stay locked, in the order of their ids, until the commit."""
    if not told:
        return
    counts = Counter((order.account_id, order.user_id) for order, _ in told)
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
    for order, event in told:
        last[order.account_id] += 1
        kind, payload = events.fact_of(order, event)
        facts.append(
            Fact(
                key=str(order.account_id),
                sequence=last[order.account_id],
                user_id=order.user_id,
                kind=kind,
                payload=payload,
            )
        )
    await outbox.add(rows, facts)


async def find_requests(rows: Connection, venue: str, partitions: Sequence[int], count_max: int) -> Requests:
    """The oldest orders not yet taken in, of instruments that are known, and the oldest cancels of those that are.

    For the worker role, which reads all users'.
    """
    orders = await rows.fetch(
        f"""
        SELECT {ORDER_COLUMNS} FROM venue_orders
        WHERE state = 'intended' AND venue = $1 AND partition = ANY($2)
        AND EXISTS (SELECT FROM instruments WHERE instruments.instrument_id = venue_orders.instrument_id)
        ORDER BY order_id LIMIT $3
        """,
        venue,
        partitions,
        count_max,
    )
    cancels = await rows.fetch(
        f"""
        SELECT {", ".join(f"venue_orders.{name.strip()}" for name in ORDER_COLUMNS.split(","))}
        FROM venue_cancels JOIN venue_orders USING (order_id)
        WHERE venue_cancels.venue = $1 AND venue_cancels.partition = ANY($2) AND state <> 'intended'
        ORDER BY venue_cancels.create_time, order_id LIMIT $3
        """,
        venue,
        partitions,
        count_max,
    )
    return Requests([order_from(row) for row in orders], [order_from(row) for row in cancels])


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
    values = dict(row)
    return Order(
        **{
            **values,
            "side": Side(values["side"]),
            "order_type": OrderType(values["order_type"]),
            "time_in_force": TimeInForce(values["time_in_force"]),
            "state": State(values["state"]),
        }
    )


def time_from_ns(time_ns: int) -> datetime:
    """The microsecond it falls into."""
    seconds, rest_ns = divmod(time_ns, SECOND_NS)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest_ns // 1_000)
