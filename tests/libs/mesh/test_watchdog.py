"""Who follows a stream gives it up when it falls silent, and stays as long as it says that it lives."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
import pytest
from grpc import aio
from tradeloom.auth.v1 import auth_pb2
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.ids import uuid7
from libs.mesh import revocations
from libs.mesh.channel import open_channel
from libs.mesh.sessions import Sessions
from libs.mesh.watchdog import SILENCE_SECONDS_MAX, StreamSilent, watched
from libs.mesh.wire import timestamp
from tests.libs.mesh.stand import serving_works
from tests.mesh import Served, sign_in

ASKED = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
HEARTBEAT = orders_pb2.StreamOrderEventsResponse(heartbeat=orders_pb2.OrdersHeartbeat())


def followed(served: Served) -> Any:
    return served.stub(orders_pb2_grpc.OrderServiceStub).StreamOrderEvents(ASKED, metadata=sign_in())


async def test_a_stream_that_falls_silent_is_given_up_and_ended(place):
    ended = asyncio.Event()

    async def fall_silent(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            yield HEARTBEAT
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving_works(place, StreamOrderEvents=fall_silent) as served:
        async with asyncio.timeout(8), watched(followed(served), 1.0) as messages:
            assert await anext(messages) == HEARTBEAT
            with pytest.raises(StreamSilent):
                await anext(messages)
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_stream_that_never_begins_is_given_up(place):
    async def begin_never(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield HEARTBEAT

    async with serving_works(place, StreamOrderEvents=begin_never) as served:
        with pytest.raises(StreamSilent):
            async with asyncio.timeout(8), watched(followed(served), 0.5) as messages:
                await anext(messages)


async def test_a_stream_that_has_nothing_but_heartbeats_is_kept(place):
    async def beat(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        for _ in range(12):
            yield HEARTBEAT
            await asyncio.sleep(0.25)

    async with serving_works(place, StreamOrderEvents=beat) as served:
        started = time.monotonic()
        async with watched(followed(served), 2.0) as messages:
            read = [message async for message in messages]
        assert read == [HEARTBEAT] * 12
        assert time.monotonic() - started > 2.0


async def test_how_a_stream_ends_is_told_as_it_is(place):
    async def refuse(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        yield HEARTBEAT
        await context.abort(grpc.StatusCode.ABORTED, "enough")

    async with serving_works(place, StreamOrderEvents=refuse) as served:
        async with watched(followed(served)) as messages:
            assert await anext(messages) == HEARTBEAT
            with pytest.raises(aio.AioRpcError) as caught:
                await anext(messages)
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_who_has_read_enough_ends_the_stream(place):
    ended = asyncio.Event()

    async def go_on(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            while True:
                yield HEARTBEAT
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with serving_works(place, StreamOrderEvents=go_on) as served:
        async with watched(followed(served)) as messages:
            await anext(messages)
        async with asyncio.timeout(5):
            await ended.wait()


async def test_an_auth_that_falls_silent_is_asked_anew(place, monkeypatch):
    """Following returns, so that it is begun again; what was told before counts until it is stale."""

    async def fall_silent(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        yield auth_pb2.StreamRevocationsResponse(snapshot=True, time=timestamp(datetime.now(UTC)))
        await asyncio.Event().wait()

    monkeypatch.setattr(revocations, "SILENCE_SECONDS_MAX", 1.0)
    sessions = Sessions(1, 1)
    async with serving_works(place, "auth", StreamRevocations=fall_silent) as served:
        to_auth = partial(open_channel, served.address, "auth", tls_folder=place.pki, caller="orders")
        async with asyncio.timeout(8):
            await revocations.follow_sessions(to_auth, sessions)
    sessions.check_known()


def test_two_heartbeats_may_be_missed():
    assert SILENCE_SECONDS_MAX == 20
