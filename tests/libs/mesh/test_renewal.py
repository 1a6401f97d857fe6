"""Certificates and authorities are replaced while calls go on, through the real Envoy and between services."""

import asyncio
import base64
import gc
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from cryptography import x509
from grpc import aio
from tradeloom.auth.v1 import auth_pb2
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.edge.target import LOOPBACK, Address, embedded
from libs.ids import uuid7
from libs.mesh import renewing, server, tls
from libs.mesh.certificates import files
from libs.mesh.channel import open_channel
from libs.mesh.watchdog import StreamRetired, watched
from libs.mesh.wire import timestamp
from libs.stack import pki
from libs.stack.pki import make_certificates
from tests.libs.edge.stand import Services, Stand
from tests.libs.mesh.stand import serving_works
from tests.mesh import MINT, Installation, Served, make_pki, sign_in
from tests.servers import free_port

WORDS = ("auth", "orders", "edge", "users")
LOOK_SECONDS = 0.2
TOLD_SECONDS = 0.1
"""Between two messages of a stream."""
SILENT_SECONDS = 3.0
"""Longer than any pause of calls or messages that is not a failure."""
LOOK = orders_pb2.ListAccountsRequest()


async def keys(request: Any, context: aio.ServicerContext) -> auth_pb2.GetJwksResponse:
    x = base64.urlsafe_b64encode(MINT.stored.public_key).rstrip(b"=").decode()
    key = auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=MINT.stored.key_id, use="sig", alg="EdDSA")
    return auth_pb2.GetJwksResponse(keys=[key])


async def news(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
    while True:
        yield auth_pb2.StreamRevocationsResponse(time=timestamp(datetime.now(UTC)))
        await asyncio.sleep(TOLD_SECONDS)


async def heartbeats(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
    number = 0
    while True:
        number += 1
        yield orders_pb2.StreamOrderEventsResponse(cursor=str(number), heartbeat=orders_pb2.OrdersHeartbeat())
        await asyncio.sleep(TOLD_SECONDS)


@asynccontextmanager
async def edge_before(folder: Path, pki_folder: Path, auth: Served, orders: Served) -> AsyncIterator[Stand]:
    """Envoy, that speaks to these services."""
    folder.mkdir()
    target = embedded(
        tls_folder=str(pki_folder),
        secrets_folder=str(folder),
        descriptors_file=str(folder / "tradeloom.binpb"),
        addresses={
            served.word: Address(host=LOOPBACK, mesh_port=served.mesh_port, probe_port=served.probe_port)
            for served in (auth, orders)
        },
        alias_ports={},
        listen_port=free_port(),
        admin_port=free_port(),
        probe_port=free_port(),
    )
    stand = Stand(target, Services(), folder)
    try:
        await stand.start_envoy()
        yield stand
    finally:
        await stand.close()


@dataclass
class Load:
    """Calls one after the other and one open stream, on each channel; the first failure ends the test."""

    calls: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)

    async def call(self, name: str, channel: aio.Channel) -> None:
        stub, metadata = orders_pb2_grpc.PortfolioServiceStub(channel), sign_in()
        while True:
            await stub.ListAccounts(LOOK, metadata=metadata, timeout=SILENT_SECONDS)
            self.calls[name] = self.calls.get(name, 0) + 1
            await asyncio.sleep(0.005)

    async def read(self, name: str, channel: aio.Channel) -> None:
        asked = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
        stream = orders_pb2_grpc.OrderServiceStub(channel).StreamOrderEvents(asked, metadata=sign_in())
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                message = await stream.read()
            assert message is not aio.EOF, name
            # One stream from the first message on: none is missing and none comes twice.
            assert message.cursor == str(self.messages.get(name, 0) + 1), name
            self.messages[name] = int(message.cursor)


@asynccontextmanager
async def doing(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Works go on beside the block; if one fails, so does the block."""
    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def refusal(address: str, folder: Path) -> grpc.StatusCode:
    """What a new connection with these certificates is answered."""
    async with open_channel(address, "orders", tls_folder=folder, caller="edge") as channel:
        stub = orders_pb2_grpc.PortfolioServiceStub(channel)
        try:
            await stub.ListAccounts(LOOK, metadata=sign_in(), timeout=5)
        except aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def kept(pki_folder: Path, folder: Path) -> Path:
    """The certificates as they are now, for whoever would still use them later."""
    shutil.copytree(pki_folder, folder, symlinks=True)
    return folder


def authorities(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())


def leaf(folder: Path, word: str = "edge") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{word}.pem").read_bytes())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates of seconds; and connections that last half a second, so that everybody shakes hands all the time."""
    monkeypatch.setattr(renewing, "LOOK_SECONDS", LOOK_SECONDS)
    monkeypatch.setattr(pki, "LEAF_LIFE", timedelta(seconds=4))
    monkeypatch.setattr(pki, "RENEW_BEFORE", timedelta(seconds=3))
    usual = [option for option in server.SERVER_OPTIONS if option not in server.aging()]
    assert len(usual) + len(server.aging()) == len(server.SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", [*usual, *server.aging(0.5, 120)])


async def renew(folder: Path) -> None:
    """Keeps the certificates fresh, as the stack does."""
    while True:
        await asyncio.to_thread(make_certificates, folder, folder / "authority.key", WORDS)
        await asyncio.sleep(0.25)


@asynccontextmanager
async def loaded(place: Installation, folder: Path, pki_folder: Path) -> AsyncIterator[tuple[Served, Load]]:
    """Orders behind Envoy, called through it and by a service without pause, until the block ends without a failure."""
    own = replace(place, pki=pki_folder)
    async with doing(renew(pki_folder)), serving_works(own, "auth", GetJwks=keys, StreamRevocations=news) as auth:
        own = replace(own, auth_address=auth.address)
        async with (
            serving_works(own, StreamOrderEvents=heartbeats) as orders,
            edge_before(folder / "edge", pki_folder, auth, orders) as stand,
            open_channel(orders.address, "orders", tls_folder=pki_folder, caller="edge") as direct,
        ):

            async def reached() -> bool:
                return await stand.healthy_hosts("orders") == 1 and await stand.key_fetches("success") > 0

            await stand.until_true(reached)
            load = Load()
            async with doing(
                load.call("edge", stand.channel),
                load.read("edge", stand.channel),
                load.call("direct", direct),
                load.read("direct", direct),
            ):
                yield orders, load
            assert min(load.calls[name] for name in ("edge", "direct")) > 100, load
            assert min(load.messages[name] for name in ("edge", "direct")) > 20, load


async def until(moment: datetime) -> None:
    await asyncio.sleep((moment - datetime.now(UTC)).total_seconds())


async def test_leaves_are_replaced_until_the_first_has_expired_and_no_call_fails(place, tmp_path, quick):
    folder = tmp_path / "pki"
    folder.mkdir()
    make_certificates(folder, folder / "authority.key", WORDS)
    first = kept(folder, tmp_path / "first")
    async with (
        loaded(place, tmp_path, folder) as (orders, load),
        open_channel(orders.address, "orders", tls_folder=first, caller="edge") as held,
    ):
        assert await refusal(orders.address, first) is grpc.StatusCode.OK
        stub = orders_pb2_grpc.PortfolioServiceStub(held)
        await stub.ListAccounts(LOOK, metadata=sign_in(), timeout=5)
        await until(leaf(first).not_valid_after_utc + timedelta(seconds=1))
        before = dict(load.calls)
        assert await refusal(orders.address, first) is grpc.StatusCode.UNAVAILABLE
        # Nor does it help to have come while it was good.
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListAccounts(LOOK, metadata=sign_in(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await refusal(orders.address, folder) is grpc.StatusCode.OK
        # Those who called all the time go on, on connections of after that moment.
        await until(datetime.now(UTC) + timedelta(seconds=1))
        assert all(load.calls[name] > before[name] for name in before)
    assert authorities(folder) == authorities(first)


async def test_an_authority_is_replaced_and_no_call_fails(place, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(pki, "AUTHORITY_LIFE", timedelta(seconds=12))
    monkeypatch.setattr(pki, "AUTHORITY_RENEW_BEFORE", timedelta(seconds=10))
    monkeypatch.setattr(pki, "CHANGE_OVER", timedelta(seconds=2))
    folder = tmp_path / "pki"
    folder.mkdir()
    make_certificates(folder, folder / "authority.key", WORDS)
    first = kept(folder, tmp_path / "first")
    (authority,) = authorities(first)
    # The next one lasts.
    monkeypatch.setattr(pki, "AUTHORITY_LIFE", timedelta(days=1))
    async with loaded(place, tmp_path, folder) as (orders, _):
        await until(authority.not_valid_after_utc - timedelta(seconds=8.5))
        both = authorities(folder)
        assert len(both) == 2
        leaf(folder).verify_directly_issued_by(both[0])  # it is trusted before it signs
        await until(authority.not_valid_after_utc - timedelta(seconds=5))
        leaf(folder).verify_directly_issued_by(both[1])
        assert authorities(folder) == both
        await until(authority.not_valid_after_utc + timedelta(seconds=1.5))
        assert authorities(folder) == both[1:]
        assert await refusal(orders.address, first) is grpc.StatusCode.UNAVAILABLE
        assert await refusal(orders.address, folder) is grpc.StatusCode.OK


def test_a_reader_never_sees_a_key_without_its_certificate(tmp_path):
    folder, times = make_pki(tmp_path), 40
    later = datetime.now(UTC)

    def renew_often() -> None:
        nonlocal later
        for _ in range(times):
            later += pki.LEAF_LIFE
            make_certificates(folder, folder / "authority.key", ["orders"], later)

    seen: set[bytes] = set()
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(renew_often)
        while not renewal.done():
            found = files(folder, "orders")
            tls.check(found)
            seen.add(found[2])
        renewal.result()
    assert len(seen) > 5, "they were not read while they were renewed"


async def test_what_cannot_be_used_is_passed_over_at_both_ends(place, tmp_path, monkeypatch):
    monkeypatch.setattr(renewing, "LOOK_SECONDS", 0.0)
    folder = kept(place.pki, tmp_path / "pki")
    async with serving_works(replace(place, pki=folder)) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
        await stub.ListAccounts(LOOK, metadata=sign_in())
        for word in ("orders", "edge"):
            shutil.copyfile(folder / "users.key", folder / f"{word}.key")
        assert await refusal(served.address, place.pki) is grpc.StatusCode.OK
        await stub.ListAccounts(LOOK, metadata=sign_in())
        for word in ("orders", "edge"):
            (folder / f"{word}.key").unlink()
        assert await refusal(served.address, place.pki) is grpc.StatusCode.OK
        await stub.ListAccounts(LOOK, metadata=sign_in())


def test_at_a_start_what_cannot_be_used_is_an_error(place, tmp_path):
    folder = kept(place.pki, tmp_path / "pki")
    shutil.copyfile(folder / "users.key", folder / "orders.key")
    with pytest.raises(ValueError, match="not that of the certificate"):
        tls.server_credentials(folder, "orders")


def open_stream(channel: aio.Channel) -> Any:
    asked = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
    return orders_pb2_grpc.OrderServiceStub(channel).StreamOrderEvents(asked, metadata=sign_in())


async def connections(served: Served, wanted: Callable[[int], bool]) -> None:
    """Returns once so many connections to the service are open."""
    async with asyncio.timeout(10):
        while True:
            found = psutil.Process().net_connections("tcp")
            if wanted(sum(one.status == "ESTABLISHED" and one.laddr[1] == served.mesh_port for one in found)):
                return
            await asyncio.sleep(0.02)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every making makes every leaf anew, and every call looks."""
    monkeypatch.setattr(pki, "RENEW_BEFORE", timedelta(days=366))
    monkeypatch.setattr(renewing, "LOOK_SECONDS", 0.0)


async def test_a_stream_that_outlasts_its_time_is_ended_and_says_so(place, tmp_path, eager, monkeypatch):
    monkeypatch.setattr(renewing, "RETIRED_SECONDS_MAX", 0.5)
    folder = kept(place.pki, tmp_path / "pki")
    async with (
        serving_works(replace(place, pki=folder), StreamOrderEvents=heartbeats) as served,
        open_channel(served.address, "orders", tls_folder=folder, caller="edge") as channel,
        watched(open_stream(channel)) as messages,
    ):
        assert (await anext(messages)).cursor == "1"
        make_certificates(folder, folder / "authority.key", ["edge"])
        await orders_pb2_grpc.PortfolioServiceStub(channel).ListAccounts(LOOK, metadata=sign_in())
        assert (await anext(messages)).cursor == "2"
        with pytest.raises(StreamRetired):
            async with asyncio.timeout(10):
                async for _ in messages:
                    pass


async def test_a_channel_under_an_earlier_certificate_is_closed_after_its_last_call(place, tmp_path, eager):
    folder = kept(place.pki, tmp_path / "pki")
    async with (
        serving_works(replace(place, pki=folder), StreamOrderEvents=heartbeats) as served,
        open_channel(served.address, "orders", tls_folder=folder, caller="edge") as channel,
    ):
        await served.close()  # who asked whether it is ready
        gc.collect()  # a closed channel refers to itself, and keeps its connection until somebody looks
        await connections(served, lambda count: count == 0)
        stub = orders_pb2_grpc.PortfolioServiceStub(channel)
        stream = open_stream(channel)
        assert (await stream.read()).cursor == "1"
        for _ in range(3):
            make_certificates(folder, folder / "authority.key", ["edge"])
            await stub.ListAccounts(LOOK, metadata=sign_in())
        # That of the stream and the newest.
        await connections(served, lambda count: count == 2)
        assert (await stream.read()).cursor == "2"
        stream.cancel()
        # Whoever keeps the call keeps its connection.
        del stream
        gc.collect()
        await connections(served, lambda count: count == 1)
        await stub.ListAccounts(LOOK, metadata=sign_in())
