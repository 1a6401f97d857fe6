"""The edge of a cluster leaves without cutting anybody off."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tradeloom.orders.v1 import orders_pb2

from libs.edge import drain
from libs.edge.target import LOOPBACK
from tests.libs.edge.stand import Stand, standing

NOTICE_SECONDS = 0.5
DRAIN_SECONDS = 20.0


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with standing(tmp_path) as started:
        yield started


async def test_an_open_stream_is_waited_for_while_health_sends_callers_elsewhere(stand: Stand) -> None:
    stand.services.heartbeats = 12
    asked = orders_pb2.StreamOrderEventsRequest()
    stream = aiter(stand.orders.StreamOrderEvents(asked, metadata=stand.metadata()))
    told = [await anext(stream)]

    draining = asyncio.create_task(
        asyncio.to_thread(drain.main, stand.target.admin_port, NOTICE_SECONDS, DRAIN_SECONDS)
    )
    await stand.until_true(lambda: health_says_no(stand))
    told += [message async for message in stream]

    # Every message came, and once the stream was over it was soon done.
    assert [message.cursor for message in told] == [str(number) for number in range(12)]
    began = time.monotonic()
    assert await draining
    assert time.monotonic() - began < DRAIN_SECONDS / 2


async def test_a_stream_that_nobody_ends_is_left_behind_in_time(stand: Stand) -> None:
    stand.services.heartbeats = 1000
    stream = stand.orders.StreamOrderEvents(orders_pb2.StreamOrderEventsRequest(), metadata=stand.metadata())
    await stream.read()

    assert not await asyncio.to_thread(drain.main, stand.target.admin_port, 0, 1.0)
    stream.cancel()


async def health_says_no(stand: Stand) -> bool:
    async with stand.http.get(f"http://{LOOPBACK}:{stand.target.probe_port}/health") as answer:
        return answer.status == 503
