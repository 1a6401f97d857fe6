"""`kill -9` of any one service during a person's trade: what was acknowledged is there, and no stream has a seam."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from uuid import uuid4

import aiohttp
import grpc
import pytest
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.mesh.channel import open_edge_channel
from libs.stack.supervisor import State
from libs.words import WORDS
from tests.stack import Stack

BTC = "SIM:BTCUSDT"
CALL_SECONDS = 15.0
RECOVERY_SECONDS = 60.0
RETRY_SECONDS = 0.2
# A draining service says UNAVAILABLE; of one that died Envoy resets the stream, which gRPC calls INTERNAL.
RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
PASSWORD = "correct horse battery"


class Trader:
    """Somebody's program: it repeats what was not answered, and resumes its streams by cursor."""

    def __init__(self, channel: aio.Channel) -> None:
        self._auth = auth_pb2_grpc.AuthServiceStub(channel)
        self._orders = orders_pb2_grpc.OrderServiceStub(channel)
        self._portfolios = orders_pb2_grpc.PortfolioServiceStub(channel)
        self._market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        self._session: list[tuple[str, str]] = []
        self.account_id = ""
        self.following: list[asyncio.Task[None]] = []
        self.events: list[orders_pb2.OrderEvent] = []
        self.batches: list[marketdata_pb2.TickBatch] = []

    async def begin(self) -> None:
        email = f"{uuid4()}@example.com"
        await self._auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD), timeout=CALL_SECONDS)
        session = await self._auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD), timeout=CALL_SECONDS)
        self._session = [("authorization", f"Bearer {session.access_token}")]
        request = orders_pb2.CreateAccountRequest(
            request_id=str(uuid4()),
            name="faults",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[{"asset": "USDT", "amount": {"value": "1000000"}}],
        )
        opened = await self.until_answered(self._portfolios.CreateAccount, request)
        self.account_id = opened.account.account_id

    async def until_answered(self, method, request):
        """The same request_id each time, so that it has one effect however often it is sent."""
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                try:
                    return await method(request, metadata=self._session, timeout=CALL_SECONDS)
                except aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise
                    await asyncio.sleep(RETRY_SECONDS)

    async def buy(self, quantity: str) -> orders_pb2.Order:
        request = orders_pb2.PlaceOrderRequest(
            request_id=str(uuid4()),
            account_id=self.account_id,
            instrument_id=BTC,
            side=orders_pb2.ORDER_SIDE_BUY,
            order_type=orders_pb2.ORDER_TYPE_MARKET,
            quantity={"value": quantity},
        )
        # A market order needs a fresh quote, which a dead feeder does not bring.
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                try:
                    return (await self.until_answered(self._orders.PlaceOrder, request)).order
                except aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)

    async def order(self, order_id: str) -> orders_pb2.Order:
        return (await self.until_answered(self._orders.GetOrder, orders_pb2.GetOrderRequest(order_id=order_id))).order

    async def executions(self, order_id: str) -> list[orders_pb2.Execution]:
        request = orders_pb2.ListExecutionsRequest(account_id=self.account_id, order_id=order_id)
        return list((await self.until_answered(self._orders.ListExecutions, request)).executions)

    async def follow_orders(self) -> None:
        cursor = "0"
        while True:
            request = orders_pb2.StreamOrderEventsRequest(account_id=self.account_id, after_cursor=cursor)
            try:
                async for step in self._orders.StreamOrderEvents(request, metadata=self._session):
                    cursor = step.cursor
                    if step.HasField("event"):
                        self.events.append(step.event)
            except aio.AioRpcError as error:
                assert error.code() in RESUMABLE, error
            await asyncio.sleep(RETRY_SECONDS)

    async def follow_ticks(self) -> None:
        cursors: list[str] = []
        while True:
            request = marketdata_pb2.StreamTicksRequest(instrument_ids=[BTC], after_cursors=cursors)
            try:
                async for message in self._market.StreamTicks(request, metadata=self._session):
                    assert not message.HasField("gap"), message
                    if not cursors:
                        cursors = list(message.acknowledgement.cursors)
                    for batch in message.batches:
                        self.batches.append(batch)
                        cursors = [batch.cursor]
            except aio.AioRpcError as error:
                assert error.code() in RESUMABLE, error
            await asyncio.sleep(RETRY_SECONDS)

    async def sees(self, what) -> None:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while not what():
                for task in self.following:
                    if task.done():
                        task.result()  # Says why a stream ended for good.
                await asyncio.sleep(RETRY_SECONDS)


@asynccontextmanager
async def trading(stack: Stack) -> AsyncIterator[Trader]:
    async with open_edge_channel(stack.edge) as channel:
        trader = Trader(channel)
        await trader.begin()
        trader.following = [asyncio.create_task(trader.follow_orders()), asyncio.create_task(trader.follow_ticks())]
        try:
            yield trader
        finally:
            for task in trader.following:
                task.cancel()
            await asyncio.gather(*trader.following, return_exceptions=True)


def process(stack: Stack, word: str):
    return next(status for status in stack.snapshot.processes if status.name == word)


async def documentation(stack: Stack) -> tuple[int, str]:
    """A page as a browser is given it."""
    async with aiohttp.ClientSession() as browser, browser.get(f"http://{stack.edge}/docs") as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("word", WORDS)
async def test_a_killed_service_loses_nothing_and_repeats_nothing(stack: Stack, word: str) -> None:
    async with trading(stack) as trader:
        first = await trader.buy("0.1")
        await trader.sees(lambda: len(trader.batches) > 3)
        page = await documentation(stack)
        assert page[0] == 200
        before = process(stack, word)
        second = await trader.buy("0.2")
        os.kill(before.pid, signal.SIGKILL)
        # Asked for while the service is down or coming back.
        third = await trader.buy("0.3")

        for order, quantity in ((first, "0.1"), (second, "0.2"), (third, "0.3")):
            await trader.sees(
                lambda order=order: any(
                    event.order.order_id == order.order_id and event.order.state == orders_pb2.ORDER_STATE_FILLED
                    for event in trader.events
                )
            )
            kept = await trader.order(order.order_id)
            assert (kept.state, kept.filled_quantity.value) == (orders_pb2.ORDER_STATE_FILLED, quantity)
            fills = await trader.executions(order.order_id)
            assert sum(Decimal(fill.quantity.value) for fill in fills) == Decimal(quantity)

        sequences = [event.account_sequence for event in trader.events]
        assert sequences == list(range(1, len(sequences) + 1))

        seen = len(trader.batches)
        await trader.sees(lambda: len(trader.batches) > seen + 3)
        for earlier, later in zip(trader.batches, trader.batches[1:], strict=False):
            assert later.previous_cursor == earlier.cursor
            numbered = len(earlier.ticks) + earlier.HasField("book") + earlier.HasField("market_time")
            assert later.first_sequence == earlier.first_sequence + numbered

        await trader.sees(lambda: process(stack, word).state is State.READY)
        after = process(stack, word)
        assert after.restarts > before.restarts
        assert after.pid != before.pid
        # Envoy looks again within a moment.
        async with asyncio.timeout(RECOVERY_SECONDS):
            while await documentation(stack) != page:
                await asyncio.sleep(RETRY_SECONDS)
