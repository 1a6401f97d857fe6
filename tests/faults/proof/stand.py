"""What the proof stands on: orders and execution as processes of their own, on a Postgres and a Valkey that may die."""

import asyncio
import inspect
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from tradeloom.orders.v1 import orders_pb2_grpc

from libs.store.database import open_database
from services.execution import domain as execution_domain
from services.execution import store as execution_store
from services.orders import domain as orders_domain
from services.orders import store as orders_store
from tests import mesh, sample, servers
from tests.faults.proof.market import Market
from tests.mesh import Installation, Served, ServedProcess
from tests.servers import PostgresProcess, ValkeyServer

WORDS = ("orders", "execution")
LOOK_SECONDS = 0.01
KEEP_UP_SECONDS = 0.2
READY_SECONDS = 120.0
"""That a process may take to be ready, on a machine that others keep busy and while faults befall it."""
OFTEN = {"stream_heartbeat_seconds": "2"}
BASE_ASSETS = ("BTC", "ETH")
INSTRUMENTS = {
    venue: tuple(
        orders_domain.Instrument(
            instrument_id=f"{venue}:{base}USDT",
            base_asset=base,
            quote_asset="USDT",
            tick_size=Decimal("0.01"),
            lot_size=Decimal("0.001"),
            minimum_notional=Decimal(1),
            maker_fee_rate=maker_fee_rate,
            taker_fee_rate=Decimal("0.001"),
            trading=True,
        )
        for base in BASE_ASSETS
    )
    for venue, maker_fee_rate in (("SIM", Decimal("0.0008")), ("BINANCE", Decimal("0.001")))
}
"""By the venue whose market they are of; in those of SIM people trade on paper."""


@dataclass
class Replica:
    """One process of a service, which keeps its ports whenever it is started again."""

    word: str
    process: ServedProcess

    @property
    def pid(self) -> int:
        return self.process.process.pid

    @property
    def lives(self) -> bool:
        return self.process.process.poll() is None

    def is_at_rest(self, pid: int) -> bool:
        """Whether the process of that pid does nothing: it stands still, or another has its place."""
        return self.pid != pid or not self.lives or psutil.Process(pid).status() == psutil.STATUS_STOPPED

    def die(self) -> int:
        """`kill -9`, and another process in its place; the pid of the one that died."""
        pid = self.pid
        self.process.kill()
        self.process.start()
        return pid

    def stand_still(self) -> None:
        self.process.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.process.send_signal(signal.SIGCONT)

    async def until_ready(self) -> None:
        """Returns once it is ready, whatever else befalls it until then. TimeoutError after READY_SECONDS."""
        end = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            try:
                await self.process.served.until_ready()
            except TimeoutError:
                if asyncio.get_running_loop().time() > end:
                    raise
            else:
                return

    def owns_port(self, port: int) -> bool:
        """Whether that port of this machine is the process's end of a connection."""
        try:
            found = psutil.Process(self.pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            return False
        return any(each.laddr and each.laddr.port == port for each in found)


@dataclass(frozen=True)
class Doors:
    """Where people trade: any replica of orders, and the market that they look at."""

    orders: Sequence[Served]
    market: Market

    def order_stubs(self) -> list[orders_pb2_grpc.OrderServiceStub]:
        return [served.stub(orders_pb2_grpc.OrderServiceStub) for served in self.orders]

    def portfolio_stubs(self) -> list[orders_pb2_grpc.PortfolioServiceStub]:
        return [served.stub(orders_pb2_grpc.PortfolioServiceStub) for served in self.orders]


@dataclass
class Stand:
    """The installation, its servers, the replicas of each service, and a market that goes on by itself."""

    installation: Installation
    postgres: PostgresProcess
    valkey: ValkeyServer
    market: Market
    replicas: dict[str, list[Replica]] = field(default_factory=dict)
    started_again: int = 0

    @property
    def doors(self) -> Doors:
        return Doors([replica.process.served for replica in self.replicas["orders"]], self.market)

    async def keep_up(self) -> None:
        """Starts again, as a supervisor does, what ended because it began while its servers were away."""
        while True:
            for replica in (replica for replicas in self.replicas.values() for replica in replicas):
                if replica.process.process.poll() is not None:
                    [*_, why] = replica.process.logged().splitlines()
                    assert "Unavailable" in why, f"{replica.word} ended: {why}"
                    replica.process.start()
                    self.started_again += 1
            await asyncio.sleep(KEEP_UP_SECONDS)

    @asynccontextmanager
    async def joined_by(self, word: str, **settings: str) -> AsyncIterator[Replica]:
        """One more process of that service during the block."""
        with self.installation.start(word, **settings) as process:
            self.replicas.setdefault(word, []).append(replica := Replica(word, process))
            try:
                yield replica
            finally:
                await process.served.close()

    async def until_ready(self) -> None:
        for replicas in self.replicas.values():
            for replica in replicas:
                await replica.until_ready()


@asynccontextmanager
async def standing(
    installation: Installation,
    folder: Path,
    replicas: int,
    market: Market | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> AsyncIterator[Stand]:
    """So many replicas of each service, ready; auth is the installation's own, which nothing befalls.

    On paper people trade in the market of SIM; settings are by word.
    """
    async with AsyncExitStack() as stack:
        homes = {name: folder / name for name in ("postgres", "valkey")}
        for home in homes.values():
            home.mkdir()
        postgres = await asyncio.to_thread(lambda: stack.enter_context(servers.own_postgres(homes["postgres"])))
        valkey = await asyncio.to_thread(lambda: stack.enter_context(servers.valkey(homes["valkey"])))
        await asyncio.to_thread(sample.make_template, postgres.server)
        await asyncio.to_thread(mesh.make_template, postgres.server)
        own = Installation(
            postgres.server, mesh.TEMPLATE, valkey.url, installation.pki, folder, installation.auth_address
        )
        market = market or market_of("SIM")
        await announce(own, market)
        await stack.enter_async_context(going_on(market, own))
        stand = Stand(own, postgres, valkey, market)
        for word in WORDS:
            given = {**OFTEN, **(settings or {}).get(word, {})}
            for _ in range(replicas):
                await stack.enter_async_context(stand.joined_by(word, **given))
        await stand.until_ready()
        yield stand


def market_of(venue: str) -> Market:
    return Market([each.instrument_id for each in INSTRUMENTS[venue]])


@asynccontextmanager
async def going_on(market: Market, installation: Installation) -> AsyncIterator[None]:
    """The market of all instruments goes on during the block."""
    task = asyncio.create_task(market.run(installation.redis_url), name="the market")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def announce(installation: Installation, market: Market) -> None:
    """As if marketdata had told both services of the market's instruments."""
    every = [each for of_venue in INSTRUMENTS.values() for each in of_venue]
    instruments = [each for each in every if each.instrument_id in market.middle_ticks]
    async with open_database(installation.url("orders_worker"), 1) as worker, worker.transaction() as rows:
        await orders_store.save_instruments(rows, instruments)
    known = [
        execution_domain.Instrument(
            instrument_id=each.instrument_id,
            quote_asset=each.quote_asset,
            tick_size=each.tick_size,
            lot_size=each.lot_size,
            maker_fee_rate=each.maker_fee_rate,
            taker_fee_rate=each.taker_fee_rate,
            has_book=True,
        )
        for each in instruments
    ]
    async with open_database(installation.url("execution_worker"), 1) as worker, worker.transaction() as rows:
        await execution_store.put_instruments(rows, known)


async def until(check: Callable[[], Any], what: str, seconds: float) -> Any:
    """What check returns, at once or awaited, as soon as that is something; TimeoutError, saying what, if it never is."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found := await found if inspect.isawaitable(found) else found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(LOOK_SECONDS)


async def connected(installation: Installation) -> asyncpg.Connection:
    return await asyncpg.connect(installation.url())
