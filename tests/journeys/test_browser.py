"""A person at the page in a real Chromium, through the edge: gRPC-Web calls and streams."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.orders.v1 import live_pb2, live_pb2_grpc

from libs.ids import uuid7
from tests import page
from tests.administrator import Administrator
from tests.stack import Stack
from tests.users.stand import BINANCE_KEY, BINANCE_SECRET
from tests.venues.beside import Exchange
from tests.venues.binance import Binance, Key
from tests.venues.binance_orders import Side


@pytest.mark.timeout(600)
def test_a_person_trades_through_the_page(
    stack: Stack, exchange: Exchange, administrator: Administrator, tmp_path: Path
) -> None:
    """On paper, and with real money at the tests' own exchange."""
    exchange.do(with_an_order_made_by_hand)
    # All of it in one go: the scripts go side by side.
    with trading_real_money(stack, administrator):
        page.walk(
            stack,
            tmp_path,
            *("account", "journey", "parents", "live"),
            MAILS=str(stack.folder.mails),
            PYTHON=sys.executable,
            VENUE_API_KEY=BINANCE_KEY,
            VENUE_API_SECRET=BINANCE_SECRET,
        )


def with_an_order_made_by_hand(binance: Binance) -> None:
    """A market at 30,000, and somebody there who has put an order by hand, as the page's script expects it."""
    market = binance.list_market("BTC", "USDT")
    market.book({"29990": 10}, {"30010": 10})
    key = binance.keys[BINANCE_KEY] = Key(BINANCE_SECRET)
    key.account.deposit("USDT", 100_000)
    quantity, price = Decimal("0.5"), Decimal(20_000)
    of = {"side": Side.BUY, "type": "LIMIT", "time_in_force": "GTC", "quantity": quantity, "price": price}
    market.place(market.order_of(key.account, client_order_id="by-hand", **of))


@contextmanager
def trading_real_money(stack: Stack, administrator: Administrator) -> Iterator[None]:
    """Operators have the stack trade real money, and bring what is traded at the exchange."""
    channel: Any = grpc.insecure_channel(stack.edge, options=[("grpc.enable_http_proxy", 0)])
    feeds: Any = feeds_pb2_grpc.FeedServiceStub(channel)
    live: Any = live_pb2_grpc.LiveTradingServiceStub(channel)

    def enable(enabled: bool) -> None:
        request = live_pb2.SetLiveTradingRequest(request_id=str(uuid7()), enabled=enabled, reason="a journey")
        live.SetLiveTrading(request, metadata=administrator.metadata)

    source = feeds_pb2.ExchangeSource(venue="BINANCE", symbols=["BTCUSDT"], has_book=True)
    starting = feeds_pb2.StartFeedRequest(request_id=str(uuid7()), exchange=source)
    feed = feeds.StartFeed(starting, metadata=administrator.metadata).feed
    enable(True)
    try:
        yield
    finally:
        enable(False)
        stopping = feeds_pb2.StopFeedRequest(request_id=str(uuid7()), feed_id=feed.feed_id)
        feeds.StopFeed(stopping, metadata=administrator.metadata)
        channel.close()
