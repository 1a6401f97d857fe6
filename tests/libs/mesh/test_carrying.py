"""A trace goes on from service to service, where traces are collected."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.mesh import channel
from libs.mesh.server import Mesh
from libs.telemetry import traces
from tests.libs.mesh.stand import serving_works
from tests.libs.telemetry.collector import Collector, Span, caller
from tests.mesh import Installation, sign_in

LOOK = orders_pb2.ListAccountsRequest()
WATCH = auth_pb2.StreamRevocationsRequest()
SEARCH = marketdata_pb2.SearchInstrumentsRequest()


async def test_a_call_from_one_service_to_another_continues_the_trace(
    place: Installation, collector: Collector
) -> None:
    traces.set_up("mesh", collector.url, 0.0)
    meshes: list[Mesh] = []
    deadlines: list[float | None] = []

    async def heard(request: Any, context: aio.ServicerContext) -> None:
        deadlines.append(context.time_remaining())

    async with serving_works(place, "auth", GetJwks=heard) as auth:

        async def ask(request: Any, context: aio.ServicerContext) -> None:
            async with meshes[0].channel("auth", auth.address) as channel:
                await auth_pb2_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest(), timeout=5)
                stream = auth_pb2_grpc.RevocationServiceStub(channel).StreamRevocations(WATCH)
                async for _ in stream:
                    break
                stream.cancel()

        async with serving_works(place, "marketdata", meshes=meshes, SearchInstruments=ask) as marketdata:
            trace_id, _, carried = caller(sampled=True)
            stub = marketdata.stub(marketdata_pb2_grpc.MarketDataServiceStub)
            await stub.SearchInstruments(SEARCH, metadata=(*sign_in(), *carried.items()))  # type: ignore[arg-type]
            asked = await asyncio.to_thread(
                collector.until, "tradeloom.marketdata.v1.MarketDataService/SearchInstruments"
            )
            if not (streamed := spans_of(collector, "StreamRevocations", asked)):
                await asyncio.to_thread(collector.until, "tradeloom.auth.v1.RevocationService/StreamRevocations")
                streamed = spans_of(collector, "StreamRevocations", asked)

    assert asked.trace_id == trace_id
    for found in (spans_of(collector, "GetJwks", asked), streamed):
        assert [(span.trace_id, span.parent_span_id) for span in found] == [(trace_id, asked.span_id)]
    [remaining] = deadlines
    assert remaining is not None
    assert 0 < remaining <= 5


def spans_of(collector: Collector, method: str, within: Span) -> list[Span]:
    """Of the calls made for another; services also follow auth by themselves."""
    found = [span for span in collector.spans if span.name.endswith(f"/{method}")]
    return [span for span in found if span.trace_id == within.trace_id]


async def test_a_call_that_carries_a_trace_keeps_the_channels_deadline(
    place: Installation, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(request: Any, context: aio.ServicerContext) -> None:
        await asyncio.Event().wait()

    traces.set_up("mesh", collector.url, 1.0)
    async with serving_works(place, ListAccounts=never) as orders:
        monkeypatch.setattr(channel, "UNARY_DEADLINE_SECONDS", 0.5)
        with pytest.raises(aio.AioRpcError) as caught:
            await orders.stub(orders_pb2_grpc.PortfolioServiceStub, "operator").ListAccounts(LOOK, metadata=sign_in())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_where_no_traces_are_collected_calls_are_not_intercepted(
    place: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "_tracer", None)
    traces.set_up("orders", "", 1.0)
    async with serving_works(place) as orders:
        call = orders.stub(orders_pb2_grpc.PortfolioServiceStub).ListAccounts(LOOK, metadata=sign_in())
        assert type(call).__name__ == "UnaryUnaryCall"
        await call
