"""Channels between services: the right one at the other end, all its addresses, a deadline, and few second tries."""

import asyncio
import contextlib
import json
import shutil
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc import aio
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.errors import Unavailable
from libs.ids import uuid7
from libs.mesh import channel, server
from libs.mesh.channel import UNARY_DEADLINE_SECONDS, open_channel, service_config
from libs.mesh.contract import PACKAGES, methods
from libs.stack.pki import make_certificates
from tests.libs.mesh.stand import serving_works
from tests.libs.mesh.test_refusals import ACCOUNT
from tests.mesh import Installation, sign_in

LOOK = orders_pb2.ListAccountsRequest()


def failing(times: int, counted: Counter[str], name: str):
    async def work(request: Any, context: aio.ServicerContext) -> None:
        counted[name] += 1
        if counted[name] <= times:
            raise Unavailable("not yet")

    return work


async def test_reading_is_tried_again_and_writing_never(place):
    counted: Counter[str] = Counter()
    works: dict[str, Any] = {name: failing(2, counted, name) for name in ("ListAccounts", "CreateAccount")}
    async with serving_works(place, **works) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
        await stub.ListAccounts(LOOK, metadata=sign_in())
        with pytest.raises(aio.AioRpcError):
            await stub.CreateAccount(ACCOUNT, metadata=sign_in())
    assert counted == {"ListAccounts": 3, "CreateAccount": 1}


def test_every_unary_method_has_a_deadline_and_only_reads_are_tried_again():
    for word in PACKAGES:
        configs = {
            f"/{config['name'][0]['service']}/{config['name'][0]['method']}": config
            for config in json.loads(service_config(word))["methodConfig"]
        }
        for path, method in methods(word).items():
            unary = not method.server_streams and not method.client_streams
            assert ("timeout" in configs[path]) == unary
            assert ("retryPolicy" in configs[path]) == (unary and method.reads_only)


async def test_a_service_that_does_not_answer_is_given_up(place, monkeypatch):
    async def never(request: Any, context: aio.ServicerContext) -> None:
        await asyncio.Event().wait()

    async with serving_works(place, CreateAccount=never) as served:
        assert UNARY_DEADLINE_SECONDS == 10
        monkeypatch.setattr(channel, "UNARY_DEADLINE_SECONDS", 0.5)
        with pytest.raises(aio.AioRpcError) as caught:
            await served.stub(orders_pb2_grpc.PortfolioServiceStub, "operator").CreateAccount(
                ACCOUNT, metadata=sign_in()
            )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_peer_that_goes_silent_is_given_up_by_who_only_reads(place):
    """Nothing is sent any more, so TCP has nothing to miss: only pings tell, and there must be more than the first two."""
    async with serving_works(place) as served, silencing(served.mesh_port) as proxy:
        async with open_channel(
            f"127.0.0.1:{proxy.port}",
            "orders",
            tls_folder=place.pki,
            caller="operator",
            keepalive_milliseconds=300,
            keepalive_timeout_milliseconds=700,
        ) as opened:
            asked = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
            call = orders_pb2_grpc.OrderServiceStub(opened).StreamOrderEvents(asked, metadata=sign_in())
            await call.read()
            reading = asyncio.ensure_future(call.read())
            # A peer that answers pings is kept, for several times the bound.
            assert not (await asyncio.wait([reading], timeout=3))[0]
            proxy.silent = True
            with pytest.raises(aio.AioRpcError) as caught:
                async with asyncio.timeout(8):
                    await reading
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_that_goes_silent_does_not_keep_its_stream(place, monkeypatch):
    ended = asyncio.Event()

    async def stream(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            yield orders_pb2.StreamOrderEventsResponse()
            await asyncio.Event().wait()
        finally:
            ended.set()

    quick = [option for option in server.SERVER_OPTIONS if option not in channel.keepalive()]
    monkeypatch.setattr(server, "SERVER_OPTIONS", [*quick, *channel.keepalive(300, 700)])
    assert len(quick) + len(channel.keepalive()) == len(server.SERVER_OPTIONS)
    async with serving_works(place, StreamOrderEvents=stream) as served, silencing(served.mesh_port) as proxy:
        async with open_channel(f"127.0.0.1:{proxy.port}", "orders", tls_folder=place.pki, caller="operator") as opened:
            asked = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
            call = orders_pb2_grpc.OrderServiceStub(opened).StreamOrderEvents(asked, metadata=sign_in())
            await call.read()
            assert not ended.is_set()
            proxy.silent = True
            async with asyncio.timeout(8):
                await ended.wait()
            call.cancel()


@dataclass
class Silencing:
    """Passes bytes on in both directions until it is to be silent; the connections stay open."""

    port: int
    silent: bool = False

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while found := await reader.read(65_536):
                if not self.silent:
                    writer.write(found)
        writer.close()


@asynccontextmanager
async def silencing(port: int) -> AsyncIterator[Silencing]:
    """A proxy in front of a port."""
    connections: set[asyncio.Task[None] | None] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        async with closing(writer):
            try:
                onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return
            async with closing(onward_writer):
                await asyncio.gather(proxy.pass_on(reader, onward_writer), proxy.pass_on(onward_reader, writer))

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    proxy = Silencing(listener.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        listener.close()
        for connection in filter(None, connections):
            connection.cancel()
        await asyncio.gather(*filter(None, connections), return_exceptions=True)


@asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_calls_are_spread_over_all_addresses(place):
    counted: Counter[str] = Counter()
    async with (
        serving_works(place, ListAccounts=failing(0, counted, "first")) as first,
        serving_works(place, ListAccounts=failing(0, counted, "second")) as second,
    ):
        both = f"ipv4:{first.address},{second.address}"
        async with open_channel(both, "orders", tls_folder=place.pki, caller="edge") as opened:
            stub = orders_pb2_grpc.PortfolioServiceStub(opened)
            async with asyncio.timeout(10):
                while len(counted) < 2:
                    await stub.ListAccounts(LOOK, metadata=sign_in())
            counted.clear()
            for _ in range(10):
                await stub.ListAccounts(LOOK, metadata=sign_in())
    assert counted == {"first": 5, "second": 5}


async def test_proxies_are_ignored(place, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving_works(place) as served:
        await served.stub(orders_pb2_grpc.PortfolioServiceStub).ListAccounts(LOOK, metadata=sign_in())


async def test_a_renewed_certificate_is_used_without_a_restart(place: Installation, tmp_path):
    folder = tmp_path / "renewed"
    shutil.copytree(place.pki, folder, symlinks=True)
    async with serving_works(replace(place, pki=folder)) as served:
        before = await certificate_of(served.mesh_port, folder)
        await served.stub(orders_pb2_grpc.PortfolioServiceStub).ListAccounts(LOOK, metadata=sign_in())
        made = make_certificates(folder, folder / "authority.key", ["orders"], datetime.now(UTC) + timedelta(days=360))
        assert made == ["orders"]
        after = await certificate_of(served.mesh_port, folder)
        # Calls on the open connection go on.
        await served.stub(orders_pb2_grpc.PortfolioServiceStub).ListAccounts(LOOK, metadata=sign_in())
    assert before.serial_number != after.serial_number


async def certificate_of(port: int, folder) -> x509.Certificate:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "edge.pem", folder / "edge.key")
    context.set_alpn_protocols(["h2"])
    # A certificate made for later on is not valid yet; only which one is shown is asked.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="orders")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found)
