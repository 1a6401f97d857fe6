"""What placing an order costs beside the same durable SQL without a service around it, and how fast its backlog drains."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from functools import partial
from statistics import median

import asyncpg
import grpc
from grpc import aio
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from bench.baselines import ECHO, FLOOR
from bench.load import MILLISECONDS, Call, warmed
from bench.rounds import Form, Report, Values, alternate, histogram, series
from bench.stack import Stack
from bench.stored import store_orders
from libs.cli.client import CALL_SECONDS, Metadata
from libs.ids import uuid7
from libs.money import divide, down_to, plain
from libs.stack.credentials import OWNER
from libs.stack.processes import child_environment

PLACE = "/tradeloom.orders.v1.OrderService/PlaceOrder"
PLACE_SEVERAL = "/tradeloom.orders.v1.OrderService/PlaceOrders"
INSTRUMENT_ID = "SIM:BTCUSDT"
FAR = Decimal("0.1")
"""Limit prices as a part of the last one: no such order is filled while it is measured."""
STARTING = "1000000000"
MANY = 32
USERS = 8
CHANNELS = 4
FLOOR_DATABASE = "bench_floor"
POLL_SECONDS = 0.05
KNOWN_SECONDS = 30.0
"""How long orders may take to hear of the instrument."""
DRAIN_SECONDS_MAX = 600.0
SEVERAL, SEVERAL_SHORT = 100, 5
"""Orders of one PlaceOrders."""
SEVERAL_CALLERS, SEVERAL_CALLERS_SHORT = 16, 2
"""Whose orders together are no more than may wait in a service at once (ORDERS_WAITING_ORDERS_MAX)."""
STORED, STORED_SHORT = 1_000_000, 100
"""Ended orders that are on record when all is measured once more."""
FILLED, FILLED_SHORT = 300, 5
"""Market orders whose fills are waited for."""
FILL_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Owned:
    """An account, and what its owner's calls carry."""

    account_id: str
    session: Metadata


@dataclass(frozen=True, slots=True)
class Arrangement:
    callers: int
    accounts: int

    @property
    def key(self) -> str:
        return self.text.replace(",", "").replace(" ", "_")

    @property
    def text(self) -> str:
        callers = "1 caller" if self.callers == 1 else f"{self.callers} callers"
        return f"{callers}, {self.accounts} {'account' if self.accounts == 1 else 'accounts'}"


ARRANGEMENTS = [Arrangement(callers, accounts) for callers in (1, MANY) for accounts in (1, MANY)]
HEADLINE = {"p50": Arrangement(1, 1), "throughput": Arrangement(MANY, MANY)}
WHILE_RUNNING = [Arrangement(1, 1), Arrangement(MANY, MANY)]


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("orders", form)
    order = await order_for(stack)
    owned = await open_accounts(stack, MANY, 1 if form.is_short else USERS)
    database_url = await floor_database(stack, owned)
    async with (
        stack.baselines(database_url) as beside,
        backlog_of(stack) as backlog,
    ):
        sides = {
            "orders": ([stack.direct("orders") for _ in range(CHANNELS)], PLACE),
            "floor": ([stack.direct("orders", beside.port) for _ in range(CHANNELS)], FLOOR),
            "echo": ([stack.direct("orders", beside.port) for _ in range(CHANNELS)], ECHO),
        }

        async def measure(side: str, arrangement: Arrangement) -> Values:
            channels, path = sides[side]
            return (await warmed(callers_of(channels, path, order, owned, arrangement), form.seconds)).values()

        for arrangement in ARRANGEMENTS:
            measured = await alternate({side: partial(measure, side, arrangement) for side in sides}, form.rounds)
            compare(report, arrangement, measured, "")
        await compare_several(report, form, sides["orders"][0], order, owned)
        waited = "backlog of execution's absence, drained"
        async with working_off(stack, report, backlog, "backlog_drain_rate", waited):

            async def placing_until_drained(arrangement: Arrangement) -> Values:
                before = await backlog.placed()
                began = time.perf_counter()
                values = await measure("orders", arrangement)
                placing_seconds = time.perf_counter() - began
                drain_seconds = await drained(backlog)
                placed = await backlog.placed() - before
                return {
                    **values,
                    "until_drained": placed / (placing_seconds + drain_seconds),
                    "drain_seconds": drain_seconds,
                }

            for arrangement in WHILE_RUNNING:
                turns: dict[str, Callable[[], Awaitable[Values]]] = {
                    side: partial(measure, side, arrangement) for side in sides
                }
                turns["orders"] = partial(placing_until_drained, arrangement)
                measured = await alternate(turns, form.rounds)
                compare(report, arrangement, measured, "_running", ", running")
                if arrangement.callers > 1:
                    report.compare(
                        "until_drained_vs_floor",
                        f"{arrangement.text}, running, until drained",
                        subject=series(measured["orders"], "until_drained"),
                        baseline=series(measured["floor"], "throughput"),
                        unit="orders/s",
                        of="floor",
                    )
                    report.note("until_drained", series(measured["orders"], "until_drained"))
                    report.note("drain_seconds", series(measured["orders"], "drain_seconds"))
            fills = await times_to_fill(stack, order, owned[0], FILLED_SHORT if form.is_short else FILLED)
            await backlog.settled()

        stored = STORED_SHORT if form.is_short else STORED
        await backlog.store(owned, stored)
        for arrangement in HEADLINE.values():
            measured = await alternate({side: partial(measure, side, arrangement) for side in sides}, form.rounds)
            compare(report, arrangement, measured, "_stored", f", {stored:,} orders on record")
            value = value_of(arrangement)
            before, after = (report.ratios[f"{value}_vs_floor{suffix}"] for suffix in ("", "_stored"))
            report.note(f"{value}_stored_vs_empty", [after / before])
        async with working_off(stack, report, backlog, "stored_drain_rate", f"the same, {stored:,} orders on record"):
            pass
        before, after = (report.absolute[name] for name in ("backlog_drain_rate", "stored_drain_rate"))
        report.note("drain_rate_stored_vs_empty", [after / before])
    report.tell("place_to_fill_p50", "from PlaceOrder to the fill on the stream, median", [median(fills)], "ms")
    report.draw(histogram("PlaceOrder to fill", {"paper": fills}))
    report.limits = (
        "Client, service, Postgres and, while it runs, execution share the cores; a floor's transaction takes the same "
        "six round trips as the service's."
    )
    return report


@asynccontextmanager
async def working_off(stack: Stack, report: Report, backlog: "Backlog", name: str, what: str) -> AsyncIterator[None]:
    """Execution runs during the block, from when it has worked off what waited for it; tells how many a second it did."""
    waiting, began = await backlog(), time.perf_counter()
    async with stack.service("execution"):
        await drained(backlog)
        rate = waiting / (time.perf_counter() - began)
        report.note(f"{name}_orders", [waiting])
        report.tell(name, what, [rate], "orders/s")
        yield


async def compare_several(
    report: Report,
    form: Form,
    channels: Sequence[aio.Channel],
    order: orders_pb2.PlaceOrderRequest,
    owned: Sequence[Owned],
) -> None:
    """Orders a second of PlaceOrders beside those of PlaceOrder, by as many callers in as many accounts."""
    size, callers = (SEVERAL_SHORT, SEVERAL_CALLERS_SHORT) if form.is_short else (SEVERAL, SEVERAL_CALLERS)
    for arrangement in (HEADLINE["p50"], Arrangement(callers, MANY)):

        async def unary(arrangement: Arrangement = arrangement) -> Values:
            return (await warmed(callers_of(channels, PLACE, order, owned, arrangement), form.seconds)).values()

        async def several(arrangement: Arrangement = arrangement) -> Values:
            calls = callers_of(channels, PLACE_SEVERAL, order, owned, arrangement, size)
            load = await warmed(calls, form.seconds)
            return {"throughput": load.per_second * size}

        measured = await alternate({"several": several, "unary": unary}, form.rounds)
        name = "batch_vs_unary" if arrangement.callers == 1 else f"batch_vs_unary_{arrangement.key}"
        report.compare(
            name,
            f"{arrangement.text}, PlaceOrders of {size}",
            subject=series(measured["several"], "throughput"),
            baseline=series(measured["unary"], "throughput"),
            unit="orders/s",
            of="PlaceOrder",
        )


async def times_to_fill(stack: Stack, order: orders_pb2.PlaceOrderRequest, own: Owned, count: int) -> list[float]:
    """Milliseconds from the call of PlaceOrder until the account's stream has told the fill; one order after the other."""
    orders = orders_pb2_grpc.OrderServiceStub(stack.direct("orders"))
    followed = orders.StreamOrderEvents(
        orders_pb2.StreamOrderEventsRequest(account_id=own.account_id), metadata=own.session
    )
    events = aiter(followed)
    await anext(events)  # it acknowledges
    times = []
    async with asyncio.timeout(FILL_SECONDS_MAX * count):
        for number in range(count):
            request = orders_pb2.PlaceOrderRequest(
                request_id=str(uuid7()),
                account_id=own.account_id,
                instrument_id=INSTRUMENT_ID,
                side=orders_pb2.ORDER_SIDE_SELL if number % 2 else orders_pb2.ORDER_SIDE_BUY,
                order_type=orders_pb2.ORDER_TYPE_MARKET,
                quantity=order.quantity,
            )
            began = time.perf_counter()
            placed = await orders.PlaceOrder(request, metadata=own.session, timeout=CALL_SECONDS)
            async for told in events:
                event = told.event
                if event.order.order_id == placed.order.order_id and event.order.state == orders_pb2.ORDER_STATE_FILLED:
                    break
            times.append((time.perf_counter() - began) * MILLISECONDS)
    followed.cancel()
    return times


def value_of(arrangement: Arrangement) -> str:
    return "p50" if arrangement.callers == 1 else "throughput"


def compare(
    report: Report, arrangement: Arrangement, measured: dict[str, list[Values]], suffix: str, also: str = ""
) -> None:
    """The headline ratios have the plain names; each arrangement's have its own."""
    value = value_of(arrangement)
    unit = "ms" if value == "p50" else "orders/s"
    for baseline in ("floor", "echo"):
        key = f"{value}_vs_{baseline}{suffix}"
        is_headline = arrangement == HEADLINE[value]
        report.compare(
            key if is_headline else f"{key}_{arrangement.key}",
            f"{arrangement.text}{also}, {value}",
            subject=series(measured["orders"], value),
            baseline=series(measured[baseline], value),
            unit=unit,
            of=baseline,
        )
    for side, values in measured.items():
        report.note(f"{side}_{value}_{arrangement.key}{suffix}", series(values, value))
        report.note(f"{side}_p99_{arrangement.key}{suffix}", series(values, "p99"))


def callers_of(
    channels: Sequence[aio.Channel],
    path: str,
    order: orders_pb2.PlaceOrderRequest,
    owned: Sequence[Owned],
    arrangement: Arrangement,
    several: int = 0,
) -> list[Call]:
    """Each caller places one order after the other, or so many at once, each under a request id of its own.

    It takes turns in its accounts.
    """
    accounts = owned[: arrangement.accounts]

    def caller(number: int) -> Call:
        method = channels[number % len(channels)].unary_unary(path)
        own = accounts[number % len(accounts) :: arrangement.callers] or [accounts[number % len(accounts)]]
        requests = []
        for each in own:
            request = orders_pb2.PlaceOrderRequest()
            request.CopyFrom(order)
            request.account_id = each.account_id
            requests.append((request, each.session))
        turns = itertools.cycle(requests)

        def place() -> Awaitable[object]:
            request, session = next(turns)
            request.request_id = str(uuid7())
            return method(request.SerializeToString(), metadata=session, timeout=CALL_SECONDS)

        async def place_several() -> None:
            request, session = next(turns)
            asked = orders_pb2.PlaceOrdersRequest(orders=several * [request])
            for each in asked.orders:
                each.request_id = str(uuid7())
            answer = await method(asked.SerializeToString(), metadata=session, timeout=CALL_SECONDS)
            outcomes = orders_pb2.PlaceOrdersResponse.FromString(answer).outcomes
            if len(outcomes) != several or any(not each.HasField("order") for each in outcomes):
                raise RuntimeError(f"not every order of several was placed: {outcomes[-1]}")

        return place_several if several else place

    return [caller(number) for number in range(arrangement.callers)]


async def order_for(stack: Stack) -> orders_pb2.PlaceOrderRequest:
    """A limit order that rests: far below the market and as small as the instrument allows, twice over."""
    market = marketdata_pb2_grpc.MarketDataServiceStub(stack.edge())
    session = await stack.admin()
    until = time.monotonic() + KNOWN_SECONDS
    while True:
        try:
            found = await market.GetInstrument(
                marketdata_pb2.GetInstrumentRequest(instrument_id=INSTRUMENT_ID), metadata=session
            )
            quoted = await market.GetQuote(
                marketdata_pb2.GetQuoteRequest(instrument_id=INSTRUMENT_ID), metadata=session
            )
            break
        except aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                raise
            if time.monotonic() > until:
                raise
            await asyncio.sleep(POLL_SECONDS)
    instrument = found.instrument
    price = down_to(Decimal(str(quoted.quote.last_price)) * FAR, Decimal(instrument.tick_size.value))
    lot = Decimal(instrument.lot_size.value)
    least = max(lot, divide(Decimal(instrument.minimum_notional.value), price))
    quantity = divide(2 * least, lot).to_integral_value(ROUND_UP) * lot
    return orders_pb2.PlaceOrderRequest(
        instrument_id=INSTRUMENT_ID,
        side=orders_pb2.ORDER_SIDE_BUY,
        order_type=orders_pb2.ORDER_TYPE_LIMIT,
        quantity=decimal_pb2.Decimal(value=plain(quantity)),
        limit_price=decimal_pb2.Decimal(value=plain(price)),
    )


async def open_accounts(stack: Stack, count: int, user_count: int) -> list[Owned]:
    users = await stack.users(user_count)
    portfolios = orders_pb2_grpc.PortfolioServiceStub(stack.direct("orders"))
    owned = []
    for number in range(count):
        session = users[number % len(users)]
        request = orders_pb2.CreateAccountRequest(
            request_id=str(uuid7()),
            name=f"Bench {number}",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[orders_pb2.Amount(asset="USDT", amount=decimal_pb2.Decimal(value=STARTING))],
        )
        opened = await portfolios.CreateAccount(request, metadata=session)
        owned.append(Owned(opened.account.account_id, session))
    return owned


async def floor_database(stack: Stack, owned: Sequence[Owned]) -> str:
    """The floor's own copy of orders' tables on the same server, with the same accounts; its URL for the rpc role.

    Nobody follows its outbox, so the service's relay and execution work for the service's orders alone.
    """
    server = stack.postgres
    superuser = await asyncpg.connect(server.superuser_url())
    await superuser.execute(f"DROP DATABASE IF EXISTS {FLOOR_DATABASE} WITH (FORCE)")
    await superuser.execute(f"CREATE DATABASE {FLOOR_DATABASE} OWNER {OWNER}")
    owner_url = server.url(OWNER, stack.credentials.postgres(OWNER), FLOOR_DATABASE)
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-P", "-m", "migrations", "orders", "upgrade", "head"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=child_environment({**os.environ, "MIGRATIONS_DATABASE_URL": owner_url}),
    )
    floor = await asyncpg.connect(server.superuser_url(FLOOR_DATABASE))
    account_ids = [each.account_id for each in owned]
    for table in ("accounts", "balances"):
        rows = await superuser.fetch(f"SELECT * FROM orders.{table} WHERE account_id = ANY($1::uuid[])", account_ids)
        await floor.copy_records_to_table(
            table, schema_name="orders", columns=list(rows[0].keys()), records=[tuple(row) for row in rows]
        )
    await floor.execute("CREATE TABLE orders.bench_accounts AS SELECT account_id, user_id FROM orders.accounts")
    await floor.execute("GRANT SELECT ON orders.bench_accounts TO orders_rpc")
    await floor.close()
    await superuser.close()
    return server.url("orders_rpc", stack.credentials.postgres("orders_rpc"), FLOOR_DATABASE)


class Backlog:
    """Orders that execution has not yet taken to the venue and back.

    Every order rests, so each is open and has two events once it was: accepted and working.
    """

    def __init__(self, rows: asyncpg.Connection) -> None:
        self._rows = rows
        self._other_events = 0

    async def __call__(self) -> int:
        return (await self._counts())[1] + self._other_events

    async def store(self, owned: Sequence[Owned], count: int) -> None:
        """Puts so many ended orders on record."""
        await store_orders(self._rows, [each.account_id for each in owned], count)

    async def settled(self) -> None:
        """Nothing waits at this moment, whatever events there are of orders that have ended."""
        self._other_events -= await self()

    async def placed(self) -> int:
        return (await self._counts())[0]

    async def _counts(self) -> tuple[int, int]:
        [counts] = await self._rows.fetch(
            """
            SELECT coalesce(sum(open_orders), 0)::bigint AS placed,
              coalesce(sum(2 * open_orders - account_sequence), 0)::bigint AS waiting
            FROM orders.accounts
            """
        )
        return counts["placed"], counts["waiting"]


@asynccontextmanager
async def backlog_of(stack: Stack) -> AsyncIterator[Backlog]:
    rows = await asyncpg.connect(stack.postgres.superuser_url())
    try:
        yield Backlog(rows)
    finally:
        await rows.close()


async def drained(backlog: Backlog) -> float:
    """Seconds until nothing waits for execution."""
    began = time.perf_counter()
    while await backlog():
        if time.perf_counter() - began > DRAIN_SECONDS_MAX:
            raise RuntimeError(f"{await backlog()} orders still wait for execution after {DRAIN_SECONDS_MAX:g} s")
        await asyncio.sleep(POLL_SECONDS)
    return time.perf_counter() - began
