"""`tradeloom demo` on a stack that runs already: the history it brings, and limit orders."""

import json

from tests.stack import Stack

CHART = """
WITH past AS (SELECT * FROM market_data_ohlcv WHERE instrument_id = 'SIM:SOLUSDT' AND bar_size = '1m' AND imported),
live AS (SELECT * FROM market_data_ohlcv WHERE instrument_id = 'SIM:SOLUSDT' AND bar_size = '1m' AND NOT imported)
SELECT (SELECT count(*) FROM past),
(SELECT min(open_time) FROM live) - (SELECT max(open_time) FROM past),
(SELECT open FROM live ORDER BY open_time LIMIT 1) - (SELECT close FROM past ORDER BY open_time DESC LIMIT 1)
"""


def test_the_history_ends_where_the_market_begins_and_is_imported_once(stack: Stack):
    first, second = (stack.command("demo", "SOLUSDT", "1", "--json") for _ in range(2))
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads(first.stdout)["history"] == {"read": 1440, "inserted": 1440, "unchanged": 0}
    assert json.loads(second.stdout)["history"] == {"read": 1440, "inserted": 0, "unchanged": 1440}
    chart = stack.command("psql", "--tuples-only", "--no-align", "-c", CHART).stdout
    assert chart == "1440|00:01:00|0\n"


def test_a_limit_order_that_the_market_meets_is_filled(stack: Stack):
    # Above the simulated market, and not further than the usual collar lets it be.
    done = stack.command("demo", "BTCUSDT", "0.01", "--order-type", "limit", "--limit-price", "68000", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    order = json.loads(done.stdout)["order"]
    assert (order["state"], order["filled_quantity"]) == ("ORDER_STATE_FILLED", "0.01")


def test_a_limit_order_that_rests_is_waited_for_and_left_at_the_venue(stack: Stack):
    limit = ("--order-type", "limit", "--limit-price", "1000", "--wait-seconds", "3")
    done = stack.command("demo", "BTCUSDT", "0.01", *limit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "order       buy 0.01 SIM:BTCUSDT, limit 1000\n" in done.stdout
    assert "event       new  0 filled\n" in done.stdout
    assert "order       not filled within 3 s; it stays at the venue\n" in done.stdout
