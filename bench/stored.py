"""Orders of the past: what a platform has on record after some time, without having traded it."""

from collections.abc import Sequence

import asyncpg

ROWS_AT_ONCE = 20_000
"""Orders that one statement writes, so that a bench that is stopped does not wait long."""

# An order that was placed, worked and was canceled is one row, two events and the answers to two requests: as one that was
# placed, but for what names it, when it was, and that it has ended. Ids rise, as those of UUIDv7 do. Events count from
# below zero: those that are told go on without a gap.
ID = "('01900000' || lpad(to_hex({number}), 8, '0') || '7000800000000000')::uuid"
ORDERS = f"""
    INSERT INTO orders.trading_orders
    SELECT made.* FROM
      (SELECT * FROM orders.trading_orders WHERE account_id = $1 ORDER BY order_id LIMIT 1) AS like_this,
      generate_series($2::bigint, $3::bigint) AS number,
      jsonb_populate_record(like_this::orders.trading_orders, jsonb_build_object(
        'order_id', {ID.format(number="number")}, 'state', 'canceled', 'reason', 'user', 'reserved', 0,
        'create_time', like_this.create_time - interval '1 day', 'update_time', like_this.create_time - interval '1 day'
      )) AS made
    """
EVENTS = """
    INSERT INTO orders.order_events
    SELECT made.* FROM
      (SELECT * FROM orders.order_events WHERE account_id = $1 ORDER BY account_sequence LIMIT 1) AS like_this,
      generate_series($2::bigint, $3::bigint) AS number,
      jsonb_populate_record(like_this::orders.order_events, jsonb_build_object('account_sequence', number)) AS made
    """
ANSWERS = """
    INSERT INTO orders.request_keys
    SELECT made.* FROM
      (SELECT * FROM orders.request_keys WHERE method LIKE '%PlaceOrder' AND user_id = $1 LIMIT 1) AS like_this,
      generate_series($2::bigint, $3::bigint) AS number,
      jsonb_populate_record(like_this::orders.request_keys, jsonb_build_object('request_id', 'stored ' || number)) AS made
    """
VENUE_ORDERS = f"""
    INSERT INTO execution.venue_orders
    SELECT made.* FROM
      (SELECT * FROM execution.venue_orders WHERE account_id = $1 ORDER BY order_id LIMIT 1) AS like_this,
      generate_series($2::bigint, $3::bigint) AS number,
      jsonb_populate_record(like_this::execution.venue_orders, jsonb_build_object(
        'order_id', {ID.format(number="number")}, 'client_order_id', 'stored ' || number, 'state', 'canceled'
      )) AS made
    """


async def store_orders(rows: asyncpg.Connection, account_ids: Sequence[str], count: int) -> None:
    """Writes at least so many ended orders of these accounts, as many of each, with all that belongs to them.

    Each account must have placed an order, which execution has taken. rows see all.
    """
    each = -(-count // len(account_ids))
    for place, account_id in enumerate(account_ids):
        user_id = await rows.fetchval("SELECT user_id FROM orders.accounts WHERE account_id = $1", account_id)
        for first in range(place * each, (place + 1) * each, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, (place + 1) * each) - 1
            async with rows.transaction():
                await rows.execute(ORDERS, account_id, first, last)
                await rows.execute(VENUE_ORDERS, account_id, first, last)
                await rows.execute(EVENTS, account_id, -2 * last - 2, -2 * first - 1)
                await rows.execute(ANSWERS, user_id, 2 * first, 2 * last + 1)
    await rows.execute(
        "ANALYZE orders.trading_orders, orders.order_events, orders.request_keys, execution.venue_orders"
    )
