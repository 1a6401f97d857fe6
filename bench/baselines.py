"""The baselines' own process: `python -m bench.baselines`, started by a bench in the way the stack starts a service.

One grpc.aio server under uvloop behind mutual TLS, without concerns: no token, no rules, no metrics. What it answers with
is made beforehand, so that each method costs what its transport and, for the floor, its SQL costs. One alone, Known, has
all that every service puts around a call.
"""

import asyncio
import base64
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import orders_pb2

from bench.batches import BATCH_TICKS, FIRST_EPOCH, PACED_ID, PACED_TICKS, at_pace, ready_made, stamped, ticks_of
from libs.ids import uuid7
from libs.mesh.around import wrap
from libs.mesh.concerns import Concerns, check
from libs.mesh.contract import methods
from libs.mesh.identity import Verifier
from libs.mesh.readiness import Readiness, probes
from libs.mesh.server import SERVER_OPTIONS
from libs.mesh.sessions import Sessions
from libs.mesh.tls import server_credentials
from libs.money import ZERO
from libs.stack.ports import HOST
from libs.store import outbox, requests
from libs.store.bulk import together
from libs.store.outbox import partition_of
from services.orders import domain, placing, store, wire
from services.orders.domain import Account, AccountState, Instrument, Limits, RiskLimits, Ticket
from services.orders.market import Market
from services.orders.use_cases import Weigh

SERVICE = "bench.Baselines"
ECHO, FLOOR, NAIVE, CEILING, PACED, BARE, KNOWN = (
    f"/{SERVICE}/{name}" for name in ("Echo", "Floor", "Naive", "Ceiling", "Paced", "Bare", "Known")
)
TURN, LISTENERS = "bench-turn", "bench-listeners"
"""Metadata of Naive and Ceiling: whose turn it is, and how many streams it has."""
KEY_ID = "bench"
PUBLIC_KEY = "BENCH_PUBLIC_KEY"
"""Base64 of the key that verifies the tokens of Known's callers."""
WORD = "orders"
BATCH_ORDERS_MAX = 100
READY_MADE_BATCHES = 64
METHOD = "tradeloom.orders.v1.PlaceOrder"
DIGEST = bytes(16)
SOME = UUID(int=1)
WRITES = together(
    (
        store.INSERT_ORDERS.statement,
        store.UPSERT_BALANCES.statement,
        store.ADD_EXPOSURES.statement,
        store.COUNT_EVENTS,
        store.INSERT_EVENTS,
        outbox.ADD,
        requests.ADD,
    )
)
"""What placing orders writes, in its order."""


@dataclass(frozen=True, slots=True)
class Canned:
    """A placed order as it is written and told, made once by the code that makes real ones."""

    order: Sequence[Sequence[object]]
    """The columns, one value in each."""
    event: bytes
    fact_kind: str
    fact: bytes
    answer: bytes
    assets: int
    """How many balances an account has."""
    instrument_id: str
    quantity: Decimal


def canned(now: datetime) -> Canned:
    account = Account(
        account_id=SOME,
        user_id=SOME,
        name="bench",
        mode=domain.Mode.PAPER,
        kind=domain.AccountKind.CASH,
        create_time=now,
        account_sequence=10_000,
    )
    state = AccountState(account=account, balances={"USDT": domain.Balance(asset="USDT", total=Decimal(10**9))})
    fee_rate = Decimal("0.001")
    instrument = Instrument(
        instrument_id="SIM:BTCUSDT",
        base_asset="BTC",
        quote_asset="USDT",
        tick_size=Decimal("0.01"),
        lot_size=Decimal("0.00001"),
        minimum_notional=Decimal(5),
        maker_fee_rate=fee_rate,
        taker_fee_rate=fee_rate,
        trading=True,
    )
    ticket = Ticket(
        account_id=SOME,
        instrument_id=instrument.instrument_id,
        side=domain.Side.BUY,
        order_type=domain.OrderType.LIMIT,
        time_in_force=domain.TimeInForce.GTC,
        quantity=Decimal("0.01"),
        limit_price=Decimal("1000.00"),
    )
    limits = Limits(quote_age_seconds_max=10, market_protection=Decimal("0.05"))
    usual = RiskLimits(open_orders_max=10, orders_per_second_max=10, price_collar_percent=Decimal(10))
    weighing = Weigh(Market(), usual)(state, instrument.instrument_id, None, now)
    asked = {"instrument": instrument, "quote": None, "limits": limits, "weighing": weighing}
    order = placing.place(state, ticket, **asked, order_id=uuid7(), now=now)
    event, (kind, fact) = wire.told(state, state.events[0])
    answer = wire.place_answer(state, order)
    return Canned(
        store.INSERT_ORDERS.arguments([order]),
        event,
        kind,
        fact,
        answer,
        len(state.balances),
        order.instrument_id,
        order.quantity,
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    account_id: UUID
    request_id: str
    done: asyncio.Future[bytes]


class Floor:
    """The same rows under the same locks as placing an order, by the same statements, and nothing decided.

    Who comes while a transaction is under way shares the next one, as in the service.
    """

    def __init__(self, rows: asyncpg.Connection) -> None:
        self._rows = rows
        self._canned = canned(datetime.now(UTC))
        self._waiting: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._users: dict[UUID, UUID] = {}
        self._order_columns = {name: number for number, name in enumerate(store.ORDER_COLUMNS)}

    async def place(self, request: orders_pb2.PlaceOrderRequest, context: object) -> bytes:
        waiting = Waiting(UUID(request.account_id), request.request_id, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.done

    async def work(self) -> None:
        # Row security names users, and a floor has no tokens to know them by.
        self._users = dict(await self._rows.fetch("SELECT account_id, user_id FROM bench_accounts"))
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:BATCH_ORDERS_MAX], self._waiting[BATCH_ORDERS_MAX:]
            if not self._waiting:
                self._arrived.clear()
            if any(waiting.account_id not in self._users for waiting in batch):
                self._users = dict(await self._rows.fetch("SELECT account_id, user_id FROM bench_accounts"))
            await self._commit(batch)
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(self._canned.answer)

    async def _commit(self, batch: Sequence[Waiting]) -> None:
        rows, made, now = self._rows, self._canned, datetime.now(UTC)
        accounts = list({waiting.account_id for waiting in batch})
        users = ",".join({str(self._users[account_id]) for account_id in accounts})
        await rows.execute(f"BEGIN; SELECT set_config('app.user_ids', '{users}', true)")
        locked = await rows.fetch(store.LOCK_ACCOUNTS, accounts)
        sequences = {row["account_id"]: row["account_sequence"] for row in locked}
        standing = await rows.fetch(store.READ_STANDING, accounts, [made.instrument_id])
        balances = [row for row in standing if row["kind"] == "balance"]
        user_ids = [self._users[waiting.account_id] for waiting in batch]
        methods, request_ids = [METHOD] * len(batch), [waiting.request_id for waiting in batch]
        await rows.fetch(requests.FIND, user_ids, methods, request_ids)
        columns: list[Sequence[object]] = [list(column) * len(batch) for column in made.order]
        account_ids = [waiting.account_id for waiting in batch]
        columns[self._order_columns["order_id"]] = [uuid7() for _ in batch]
        columns[self._order_columns["user_id"]] = user_ids
        columns[self._order_columns["account_id"]] = account_ids
        event_sequences = []
        for account_id in account_ids:
            sequences[account_id] += 1
            event_sequences.append(sequences[account_id])
        keys = [str(account_id) for account_id in account_ids]
        await rows.execute(
            WRITES,
            *columns,
            *([row[name] for row in balances] for name in ("account_id", "name")),
            [self._users[row["account_id"]] for row in balances],
            [row["first"] for row in balances],
            [row["second"] + 1 for row in balances],
            *(list(sequences), [made.instrument_id] * len(sequences), [self._users[each] for each in sequences]),
            *([made.quantity] * len(sequences), [ZERO] * len(sequences)),
            *(list(sequences), list(sequences.values()), [1] * len(sequences)),
            *([ZERO] * len(sequences), [now] * len(sequences)),
            *(account_ids, event_sequences, user_ids, [made.event] * len(batch), [now] * len(batch)),
            *([partition_of(key) for key in keys], keys, event_sequences, user_ids),
            *([made.fact_kind] * len(batch), [made.fact] * len(batch)),
            *(user_ids, methods, request_ids, [DIGEST] * len(batch), [made.answer] * len(batch)),
        )
        await rows.execute("COMMIT")


class Turns:
    """Streams of one turn that begin together: the first thousand messages would keep the thousandth stream from opening."""

    def __init__(self) -> None:
        self._listening: Counter[str] = Counter()
        self._complete: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def all_listening(self, context: aio.ServicerContext[Any, Any]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        turn, listeners = str(metadata[TURN]), int(metadata[LISTENERS])
        self._listening[turn] += 1
        if self._listening[turn] == listeners:
            self._complete[turn].set()
        await self._complete[turn].wait()


turns = Turns()


async def naive(
    request: marketdata_pb2.StreamTicksRequest, context: aio.ServicerContext[Any, Any]
) -> AsyncIterator[object]:
    """One message for each tick, encoded for each subscriber, for as long as it listens."""
    yield marketdata_pb2.StreamTicksResponse()
    await turns.all_listening(context)
    ticks = ticks_of(BATCH_TICKS)
    sequence = 0
    while True:
        for tick in ticks:
            sequence += 1
            cursor = f"{request.instrument_ids[0]}@1-{sequence}"
            batch = marketdata_pb2.TickBatch(
                instrument_id=request.instrument_ids[0], epoch=1, first_sequence=sequence, ticks=[tick], cursor=cursor
            )
            yield marketdata_pb2.StreamTicksResponse(batches=[batch])


@cache
def batches_of(instrument_id: str) -> Sequence[bytes]:
    return [batch.response for batch in ready_made(instrument_id, FIRST_EPOCH, READY_MADE_BATCHES)]


async def ceiling(
    request: marketdata_pb2.StreamTicksRequest, context: aio.ServicerContext[Any, Any]
) -> AsyncIterator[bytes]:
    """The bytes of ready-made batches, the same for all subscribers, for as long as it listens."""
    yield b""
    await turns.all_listening(context)
    batches = batches_of(request.instrument_ids[0])
    while True:
        for response in batches:
            yield response


class Pacer:
    """Hands one stamped batch after the other to all who listen, at a steady pace."""

    def __init__(self) -> None:
        self._batches = [
            batch.response for batch in ready_made(PACED_ID, FIRST_EPOCH, READY_MADE_BATCHES, batch_ticks=PACED_TICKS)
        ]
        self._listening: set[asyncio.Queue[bytes]] = set()

    async def stream(self, request: marketdata_pb2.StreamTicksRequest, context: object) -> AsyncIterator[bytes]:
        waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._listening.add(waiting)
        try:
            while True:
                yield await waiting.get()
        finally:
            self._listening.remove(waiting)

    async def work(self) -> None:
        batches = cycle(self._batches)
        async for _ in at_pace():
            if self._listening:
                message = stamped(next(batches))
                for waiting in self._listening:
                    waiting.put_nowait(message)


def known(handler: grpc.RpcMethodHandler, public_key: str) -> grpc.RpcMethodHandler:
    """The same behind the concerns of a service, as a method that only reads and that any user may call."""
    verifier, sessions = Verifier(), Sessions(1, 1)
    verifier.use({KEY_ID: Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key))})
    method = methods("auth")["/tradeloom.auth.v1.AuthService/GetMe"]
    return wrap(handler, method, Concerns("auth", verifier, sessions, {}).in_order(), check)


@asynccontextmanager
async def floor(database_url: str) -> AsyncIterator[Floor | None]:
    if not database_url:
        yield None
        return
    rows = await asyncpg.connect(database_url, server_settings={"jit": "off", "timezone": "UTC"})
    placing = Floor(rows)
    task = asyncio.create_task(placing.work())
    # A floor that fell leaves its callers waiting: it takes the process with it, and the bench says so.
    task.add_done_callback(lambda done: None if done.cancelled() else os._exit(1))
    try:
        yield placing
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await rows.close()


async def serve() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    answer = canned(datetime.now(UTC)).answer

    async def echo(request: orders_pb2.PlaceOrderRequest, context: object) -> bytes:
        return answer

    async def echo_nobody(request: auth_pb2.GetMeRequest, context: object) -> bytes:
        return b""

    def as_is(message: bytes) -> bytes:
        return message

    parse_order = orders_pb2.PlaceOrderRequest.FromString
    parse_stream = marketdata_pb2.StreamTicksRequest.FromString
    encode = marketdata_pb2.StreamTicksResponse.SerializeToString
    pacer = Pacer()
    async with floor(os.environ["DATABASE_URL"]) as placing:
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(echo, parse_order, as_is),
            "Naive": grpc.unary_stream_rpc_method_handler(naive, parse_stream, encode),
            "Ceiling": grpc.unary_stream_rpc_method_handler(ceiling, parse_stream, as_is),
            "Paced": grpc.unary_stream_rpc_method_handler(pacer.stream, parse_stream, as_is),
        }
        if PUBLIC_KEY in os.environ:
            bare = grpc.unary_unary_rpc_method_handler(echo_nobody, auth_pb2.GetMeRequest.FromString, as_is)
            handlers |= {"Bare": bare, "Known": known(bare, os.environ[PUBLIC_KEY])}
        if placing is not None:
            handlers["Floor"] = grpc.unary_unary_rpc_method_handler(placing.place, parse_order, as_is)
        server = aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        credentials = server_credentials(Path(os.environ["TLS_FOLDER"]), WORD)
        server.add_secure_port(f"{HOST}:{os.environ['MESH_PORT']}", credentials)
        await server.start()
        pacing = asyncio.create_task(pacer.work())
        async with probes("bench", Readiness({}), HOST, int(os.environ["PROBE_PORT"])):
            await stopping.wait()
        pacing.cancel()
        await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve())
