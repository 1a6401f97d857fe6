"""The real Envoy before small real services over mutual TLS, for tests of the edge alone."""

import asyncio
import base64
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import grpc
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue]
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.edge import config, contract, envoy
from libs.edge.target import LOOPBACK, Address, Target, embedded
from libs.stack import pki
from libs.tokens import AUDIENCE, ISSUER
from tests.servers import free_port

WORDS = ("auth", "orders", "marketdata")
ABSENT = "absent"
"""A service that has ports of the earlier system, and nothing behind them yet."""
KEPT = "public, max-age=60"
"""How long the dashboard's files say they keep."""
CHANNEL_OPTIONS = [("grpc.enable_http_proxy", 0)]
READY_SECONDS = 20


def make_certificates(folder: Path, words: tuple[str, ...]) -> None:
    """A leaf named `spiffe://tradeloom/svc/<word>` for each word, by the authority that the folder has or gets."""
    pki.make_certificates(folder, folder / "authority.key", words)


class SigningKey:
    """An Ed25519 key as the auth service has them."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self._key = ed25519.Ed25519PrivateKey.generate()

    def public(self) -> auth_pb2.JsonWebKey:
        raw = self._key.public_key().public_bytes_raw()
        x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        return auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=self.kid, use="sig", alg="EdDSA")

    def token(
        self, *, seconds: int = 900, audience: str = AUDIENCE, issuer: str = ISSUER, issued: float | None = None
    ) -> str:
        now = datetime.now(UTC).timestamp()
        # With its fraction, as auth gives it.
        issued = now if issued is None else issued
        claims = {"iss": issuer, "aud": audience, "sub": "user-1", "iat": issued, "exp": int(now) + seconds}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.kid})


@dataclass(slots=True, kw_only=True)
class Services:
    """What the small services remember, and how they should behave."""

    keys: list[SigningKey] = field(default_factory=lambda: [SigningKey("first")])
    calls: Counter[str] = field(default_factory=Counter)
    metadata: dict[str, str] = field(default_factory=dict)
    unavailable: Counter[str] = field(default_factory=Counter)
    """By method: how many calls are still to be answered UNAVAILABLE."""
    heartbeat_seconds: float = 0.3
    heartbeats: int = 0

    async def count(self, method: str, context: aio.ServicerContext) -> None:
        self.calls[method] += 1
        self.metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        if self.unavailable[method]:
            self.unavailable[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "as the test asked")


class Auth(auth_pb2_grpc.AuthServiceServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def GetJwks(self, request, context):
        return auth_pb2.GetJwksResponse(keys=[key.public() for key in self._services.keys])

    async def Login(self, request, context):
        await self._services.count("Login", context)
        return auth_pb2.LoginResponse(access_token=self._services.keys[0].token(), token_type="Bearer")

    async def GetMe(self, request, context):
        await self._services.count("GetMe", context)
        return auth_pb2.GetMeResponse(user=auth_pb2.User(user_id="user-1", full_name="Ada"))


class Orders(orders_pb2_grpc.OrderServiceServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def PlaceOrder(self, request, context):
        await self._services.count("PlaceOrder", context)
        return orders_pb2.PlaceOrderResponse(
            order=orders_pb2.Order(order_id="order-1", side=request.side, quantity=request.quantity)
        )

    async def GetOrder(self, request, context):
        await self._services.count("GetOrder", context)
        info = error_details_pb2.ErrorInfo(reason="ORDER_NOT_FOUND", domain="orders.tradeloom")
        status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no such order")
        status.details.add().Pack(info)
        await context.abort_with_status(rpc_status.to_status(status))

    async def ListOrders(self, request, context):
        await self._services.count("ListOrders", context)
        return orders_pb2.ListOrdersResponse(next_page_token=request.account_id)

    async def ListExecutions(self, request, context):
        await self._services.count("ListExecutions", context)
        return orders_pb2.ListExecutionsResponse()

    async def StreamOrderEvents(self, request, context):
        await self._services.count("StreamOrderEvents", context)
        for number in range(self._services.heartbeats):
            yield orders_pb2.StreamOrderEventsResponse(cursor=str(number), heartbeat=orders_pb2.OrdersHeartbeat())
            await asyncio.sleep(self._services.heartbeat_seconds)


class MarketData(marketdata_pb2_grpc.MarketDataServiceServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def GetInstrument(self, request, context):
        await self._services.count("GetInstrument", context)
        instrument = marketdata_pb2.Instrument(instrument_id=request.instrument_id)
        return marketdata_pb2.GetInstrumentResponse(instrument=instrument)

    async def GetCandles(self, request, context):
        await self._services.count("GetCandles", context)
        candle = marketdata_pb2.Candle(open=1.25, high=2.5, low=1.125, close=2, volume=1e6, closed=True)
        return marketdata_pb2.GetCandlesResponse(candles=[candle] * (request.page_size or 1))

    async def ImportCandles(self, request_iterator, context):
        await self._services.count("ImportCandles", context)
        read = 0
        async for part in request_iterator:
            read += len(part.chunk)
        return marketdata_pb2.ImportCandlesResponse(candle_import=marketdata_pb2.CandleImport(held_bytes=read))


class Stand:
    """Envoy and what stands behind it."""

    def __init__(self, target: Target, services: Services, folder: Path) -> None:
        self.target = target
        self.services = services
        self.folder = folder
        self.url = f"http://{LOOPBACK}:{target.listen_port}"
        self.http = aiohttp.ClientSession(base_url=self.url)
        self.channel = aio.insecure_channel(f"{LOOPBACK}:{target.listen_port}", options=CHANNEL_OPTIONS)
        self.servers: dict[str, aio.Server] = {}
        self.envoy: asyncio.subprocess.Process | None = None

    @property
    def orders(self):
        return orders_pb2_grpc.OrderServiceStub(self.channel)

    @property
    def marketdata(self):
        return marketdata_pb2_grpc.MarketDataServiceStub(self.channel)

    @property
    def auth(self):
        return auth_pb2_grpc.AuthServiceStub(self.channel)

    def bearer(self, token: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {token or self.services.keys[0].token()}"}

    def metadata(self, token: str | None = None) -> tuple[tuple[str, str], ...]:
        return tuple(self.bearer(token).items())

    async def start_service(self, word: str) -> None:
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        # What a test does not need answers UNIMPLEMENTED.
        if word == "auth":
            auth_pb2_grpc.add_AuthServiceServicer_to_server(Auth(self.services), server)  # pyright: ignore[reportAbstractUsage]
        elif word == "orders":
            orders_pb2_grpc.add_OrderServiceServicer_to_server(Orders(self.services), server)  # pyright: ignore[reportAbstractUsage]
        else:
            marketdata_pb2_grpc.add_MarketDataServiceServicer_to_server(MarketData(self.services), server)  # pyright: ignore[reportAbstractUsage]
        healthy = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        # As libs.mesh does it: any service describes the whole contract.
        names = [service.full_name for service in contract.services()]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        read = [(self.folder / name).read_bytes() for name in (f"{word}.key", f"{word}.pem", "ca.pem")]
        credentials = grpc.ssl_server_credentials([(read[0], read[1])], read[2], require_client_auth=True)
        server.add_secure_port(f"{LOOPBACK}:{self.target.addresses[word].mesh_port}", credentials)
        await server.start()
        self.servers[word] = server

    async def stop_service(self, word: str) -> None:
        await self.servers.pop(word).stop(0)

    async def start_envoy(self) -> None:
        path = self.folder / "envoy.json"
        config.write(self.target, path)
        with (self.folder / "access.log").open("wb") as log:
            self.envoy = await asyncio.create_subprocess_exec(*envoy.command(path), stdout=log, stderr=sys.stderr)
        await self.until_true(self.ready)

    async def until_true(self, condition) -> None:
        """Asks again and again; a condition that never holds fails the test."""
        async with asyncio.timeout(READY_SECONDS):
            while not await condition():
                await asyncio.sleep(0.05)

    async def ready(self) -> bool:
        assert self.envoy is not None
        assert self.envoy.returncode is None, "Envoy ended"
        try:
            async with self.http.get(f"http://{LOOPBACK}:{self.target.probe_port}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def stat(self, name: str) -> int:
        """One of Envoy's own numbers."""
        url = f"http://{LOOPBACK}:{self.target.admin_port}/stats?filter=^{name}$"
        async with self.http.get(url) as answer:
            return int((await answer.text()).rsplit(" ", 1)[1])

    async def key_fetches(self, outcome: str) -> int:
        """How often Envoy's token filters have asked for the keys, with "success" or "failed"."""
        url = f"http://{LOOPBACK}:{self.target.admin_port}/stats?filter=jwks_fetch_{outcome}$"
        async with self.http.get(url) as answer:
            return sum(int(line.rsplit(" ", 1)[1]) for line in (await answer.text()).splitlines())

    async def healthy_hosts(self, word: str) -> int:
        url = f"http://{LOOPBACK}:{self.target.admin_port}/clusters?format=json"
        async with self.http.get(url) as answer:
            statuses = (await answer.json(content_type=None))["cluster_statuses"]
        cluster = next(one for one in statuses if one["name"] == word)
        hosts = cluster.get("host_statuses", [])
        return sum(host["health_status"] == {"eds_health_status": "HEALTHY"} for host in hosts)

    async def close(self) -> None:
        await self.http.close()
        await self.channel.close()
        if self.envoy is not None and self.envoy.returncode is None:
            self.envoy.terminate()
            await self.envoy.wait()
        for server in self.servers.values():
            await server.stop(0)


@contextlib.asynccontextmanager
async def standing(folder: Path, *, started: tuple[str, ...] = WORDS, **changes) -> AsyncIterator[Stand]:
    """Envoy with these services, a web server and probes; `changes` are fields of Target."""
    if not (folder / "ca.pem").exists():
        make_certificates(folder, ("edge", *WORDS))
    addresses = {
        word: Address(host=LOOPBACK, mesh_port=free_port(), probe_port=free_port()) for word in (*WORDS, "web")
    }
    target = replace(
        embedded(
            tls_folder=str(folder),
            secrets_folder=str(folder),
            descriptors_file=str(folder / "tradeloom.binpb"),
            addresses=addresses,
            alias_ports={**{word: [free_port()] for word in addresses}, ABSENT: [free_port(), free_port()]},
            listen_port=free_port(),
            admin_port=free_port(),
            probe_port=free_port(),
        ),
        **changes,
    )
    stand = Stand(target, Services(), folder)
    async with plain_servers(addresses):
        try:
            for word in started:
                await stand.start_service(word)
            await stand.start_envoy()
            yield stand
        finally:
            await stand.close()


@contextlib.asynccontextmanager
async def plain_servers(addresses: dict[str, Address]) -> AsyncIterator[None]:
    """The probes of every service, and the dashboard's file server."""

    async def healthy(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "port": request.url.port})

    async def page(request: web.Request) -> web.Response:
        text = f"<html>{request.path}</html>"
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": KEPT})

    runners: list[web.AppRunner] = []
    try:
        for word, address in addresses.items():
            probes = web.Application()
            probes.router.add_get("/health", healthy)
            pages = web.Application()
            pages.router.add_get("/{path:.*}", page)
            wanted = [(probes, address.probe_port), *([(pages, address.mesh_port)] if word == "web" else [])]
            for application, port in wanted:
                runner = web.AppRunner(application, access_log=None)
                await runner.setup()
                runners.append(runner)
                await web.TCPSite(runner, LOOPBACK, port).start()
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
