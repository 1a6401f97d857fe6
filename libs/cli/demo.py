"""`tradeloom demo`: one person's first trade, from registration to the fill, through the one port."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Annotated

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from rich.console import Console
from rich.table import Table
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from libs.cli.client import CALL_SECONDS, Metadata, edge_channel, sign_in, sign_in_admin
from libs.cli.detached import refuse_another, start, stop, wait_healthy, wait_stopped
from libs.cli.history import history_before
from libs.cli.options import DataDir, Port
from libs.ids import uuid7
from libs.mesh.watchdog import StreamSilent, watched
from libs.money import plain
from libs.stack.credentials import DEMO, Credentials
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.options import Options
from libs.stack.state import Snapshot, running

app = typer.Typer(add_completion=False)

DEMO_EMAIL = "demo@tradeloom.local"
STARTING_BALANCES = {"USDT": "1000000", "USD": "1000000", "BTC": "10", "ETH": "100", "SOL": "1000", "EUR": "1000000"}
SIMULATED_VENUE = "SIM"
BEGINNING = Timestamp()
PAGE_BARS = 5_000
TICKS_SHOWN = 5
INSTRUMENT_SECONDS = 30.0
"""How long a new stack may take to announce its instruments."""
TICKS_SECONDS = 30.0
FILL_SECONDS = 60.0
POLL_SECONDS = 0.2
DONE = {
    orders_pb2.ORDER_STATE_FILLED,
    orders_pb2.ORDER_STATE_CANCELED,
    orders_pb2.ORDER_STATE_REJECTED,
    orders_pb2.ORDER_STATE_EXPIRED,
}


class Type(Enum):
    MARKET = "market"
    LIMIT = "limit"


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What the demo is to trade."""

    instrument_id: str
    side: Side
    order_type: Type
    quantity: Decimal
    limit_price: Decimal | None

    @property
    def text(self) -> str:
        at = f"limit {plain(self.limit_price)}" if self.limit_price is not None else "market"
        return f"{self.side.value} {plain(self.quantity)} {self.instrument_id}, {at}"


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened, for machines; it holds no token and no password."""

    user_id: str = ""
    account_id: str = ""
    instrument_id: str = ""
    history: dict[str, int] = field(default_factory=dict)
    ticks: list[dict[str, str | float]] = field(default_factory=list)
    order: dict[str, str] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    executions: list[dict[str, str | bool]] = field(default_factory=list)
    balances: list[dict[str, str]] = field(default_factory=list)
    positions: list[dict[str, str]] = field(default_factory=list)
    equity: dict[str, str] = field(default_factory=dict)


@app.command()
def demo(
    symbol: Annotated[str, typer.Argument(help="BTCUSDT, or with its venue: SIM:BTCUSDT")] = "BTCUSDT",
    quantity: Annotated[str, typer.Argument(help="How much, in units of the base asset.")] = "0.25",
    order_type: Annotated[Type, typer.Option(help="At any price, or a limit.")] = Type.MARKET,
    limit_price: Annotated[str, typer.Option(help="For a limit order: the worst price accepted.")] = "",
    side: Annotated[Side, typer.Option(help="Which way.")] = Side.BUY,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the fill.", min=0)] = FILL_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    data_dir: DataDir = None,
    port: Port = None,
) -> None:
    """Register, watch ticks, place an order and see it filled; starts the stack if it is not running."""
    ticket = Ticket(
        instrument_id=symbol.upper() if ":" in symbol else f"SIM:{symbol.upper()}",
        side=side,
        order_type=order_type,
        quantity=number(quantity, "quantity"),
        limit_price=number(limit_price, "--limit-price") if limit_price else None,
    )
    if (order_type is Type.LIMIT) != (ticket.limit_price is not None):
        raise typer.BadParameter("--limit-price goes with --order-type limit, and only with it")
    folder = DataFolder.at(data_dir)
    console = Console(stderr=as_json, highlight=False)
    try:
        with stack_for(folder, port, console) as snapshot:
            story = asyncio.run(trade(snapshot, folder, ticket, wait_seconds, console))
    except aio.AioRpcError as error:
        raise StackError(f"{error.code().name}: {error.details()}") from error
    except StreamSilent as error:
        raise StackError(str(error)) from error
    if as_json:
        print(json.dumps(asdict(story)))
    if story.order.get("state") != "ORDER_STATE_FILLED":
        raise typer.Exit(1)


def number(text: str, name: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0:
        raise typer.BadParameter(f"{name} must be a number above zero, such as 0.25")
    return value


@contextmanager
def stack_for(folder: DataFolder, port: int | None, console: Console) -> Iterator[Snapshot]:
    """The stack that runs there, waited for while it starts; else one started just for this, and taken down after it."""
    wait_stopped(folder)
    if running(folder):
        snapshot = wait_healthy(folder)
        refuse_another(folder, snapshot, port)
        yield snapshot
        return
    console.print("starting Tradeloom ...")
    supervisor = start(Options(folder=folder, port=port))
    own = True
    try:
        snapshot = wait_healthy(folder, supervisor)
        own = snapshot.supervisor.pid == supervisor.pid  # not where another `up` was quicker
        refuse_another(folder, snapshot, port)
        console.print(f"healthy after {snapshot.healthy_seconds} s")
        yield snapshot
    finally:
        stop(supervisor)
        if own:
            console.print("stopped the stack that was started for this; `tradeloom up` keeps one running")


async def trade(snapshot: Snapshot, folder: DataFolder, ticket: Ticket, wait_seconds: float, console: Console) -> Story:
    story = Story(instrument_id=ticket.instrument_id)
    async with edge_channel(snapshot) as channel:
        market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        session = await register(channel, folder, story, console)
        instrument = await find_instrument(market, session, ticket.instrument_id)
        story.account_id = await open_account(channel, session, ticket, instrument, console)
        admin = await sign_in_admin(channel, snapshot)
        await import_history(market, session, admin, instrument, story, console)
        await watch_ticks(market, session, ticket.instrument_id, story, console)
        await place(channel, session, ticket, wait_seconds, story, console)
        await show(channel, session, story, console)
    return story


async def register(channel: aio.Channel, folder: DataFolder, story: Story, console: Console) -> Metadata:
    """The demo's person: the same each time, with a password that only the data folder knows."""
    auth = auth_pb2_grpc.AuthServiceStub(channel)
    password = Credentials(folder.secrets)[DEMO]
    try:
        request = auth_pb2.RegisterRequest(email=DEMO_EMAIL, password=password, full_name="Demo")
        await auth.Register(request, timeout=CALL_SECONDS)
        console.print(f"registered  {DEMO_EMAIL}")
    except aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        console.print(f"registered  {DEMO_EMAIL} (earlier)")
    session = await sign_in(channel, DEMO_EMAIL, password)
    me = await auth.GetMe(auth_pb2.GetMeRequest(), metadata=session, timeout=CALL_SECONDS)
    story.user_id = me.user.user_id
    console.print("signed in")
    return session


async def find_instrument(
    market: marketdata_pb2_grpc.MarketDataServiceStub, session: Metadata, instrument_id: str
) -> marketdata_pb2.Instrument:
    """A stack that has just been started learns its instruments within a moment."""
    until = asyncio.get_running_loop().time() + INSTRUMENT_SECONDS
    while True:
        try:
            request = marketdata_pb2.GetInstrumentRequest(instrument_id=instrument_id)
            found = await market.GetInstrument(request, metadata=session, timeout=CALL_SECONDS)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND or asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(POLL_SECONDS)
        else:
            return found.instrument


async def open_account(
    channel: aio.Channel, session: Metadata, ticket: Ticket, instrument: marketdata_pb2.Instrument, console: Console
) -> str:
    """An account that can pay for the order: the newest one, or a new one."""
    portfolios = orders_pb2_grpc.PortfolioServiceStub(channel)
    asset = instrument.quote_asset if ticket.side is Side.BUY else instrument.base_asset
    accounts = await portfolios.ListAccounts(
        orders_pb2.ListAccountsRequest(page_size=200), metadata=session, timeout=CALL_SECONDS
    )
    enough = Decimal(STARTING_BALANCES.get(asset, "1000000")) / 4
    for account in reversed(accounts.accounts):
        portfolio = await portfolios.GetPortfolio(
            orders_pb2.GetPortfolioRequest(account_id=account.account_id), metadata=session, timeout=CALL_SECONDS
        )
        available = {balance.asset: Decimal(balance.available.value) for balance in portfolio.balances}
        if available.get(asset, Decimal(0)) >= enough:
            console.print(f"account     {account.name} (opened earlier)")
            return account.account_id
    starting = {**STARTING_BALANCES, asset: STARTING_BALANCES.get(asset, "1000000")}
    request = orders_pb2.CreateAccountRequest(
        request_id=str(uuid7()),
        name=f"Demo {len(accounts.accounts) + 1}",
        mode=orders_pb2.ACCOUNT_MODE_PAPER,
        kind=orders_pb2.ACCOUNT_KIND_CASH,
        starting_balances=[
            orders_pb2.Amount(asset=name, amount=decimal_pb2.Decimal(value=amount)) for name, amount in starting.items()
        ],
    )
    opened = await portfolios.CreateAccount(request, metadata=session, timeout=CALL_SECONDS)
    console.print(f"account     {opened.account.name}, on paper, with {starting[asset]} {asset}")
    return opened.account.account_id


async def import_history(
    market: marketdata_pb2_grpc.MarketDataServiceStub,
    session: Metadata,
    admin: Metadata,
    instrument: marketdata_pb2.Instrument,
    story: Story,
    console: Console,
) -> None:
    if instrument.venue != SIMULATED_VENUE:
        console.print("history     none: it is made up for the simulated market alone")
        return
    first = await first_bar_of_its_own(market, session, instrument.instrument_id)
    content = history_before(instrument, first.open_time.ToDatetime(UTC), first.open)

    async def parts() -> AsyncIterator[marketdata_pb2.ImportCandlesRequest]:
        header = marketdata_pb2.ImportHeader(
            request_id=str(uuid7()),
            instrument_id=instrument.instrument_id,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
        )
        yield marketdata_pb2.ImportCandlesRequest(header=header)
        yield marketdata_pb2.ImportCandlesRequest(chunk=content)

    done = (await market.ImportCandles(parts(), metadata=admin, timeout=CALL_SECONDS)).candle_import
    story.history = {"read": done.read_count, "inserted": done.inserted_count, "unchanged": done.unchanged_count}
    console.print(f"history     {done.read_count} bars read, {done.inserted_count} new")


async def first_bar_of_its_own(
    market: marketdata_pb2_grpc.MarketDataServiceStub, session: Metadata, instrument_id: str
) -> marketdata_pb2.Candle:
    """The first that was made of ticks, and not imported; a market that has just begun has one within a moment."""
    until = asyncio.get_running_loop().time() + TICKS_SECONDS
    page_token = ""
    while True:
        request = marketdata_pb2.GetCandlesRequest(
            instrument_id=instrument_id, start_time=BEGINNING, page_size=PAGE_BARS, page_token=page_token
        )
        page = await market.GetCandles(request, metadata=session, timeout=CALL_SECONDS)
        for candle in page.candles:
            if candle.trade_count:
                return candle
        page_token = page.next_page_token
        if not page_token:
            if asyncio.get_running_loop().time() > until:
                raise StackError(f"{instrument_id} has no trades yet; see `tradeloom logs feeds`")
            await asyncio.sleep(POLL_SECONDS)


async def watch_ticks(
    market: marketdata_pb2_grpc.MarketDataServiceStub,
    session: Metadata,
    instrument_id: str,
    story: Story,
    console: Console,
) -> None:
    stream = market.StreamTicks(
        marketdata_pb2.StreamTicksRequest(instrument_ids=[instrument_id]), metadata=session, timeout=TICKS_SECONDS
    )
    async with watched(stream) as messages:
        async for message in messages:
            for tick in (tick for batch in message.batches for tick in batch.ticks):
                time = tick.time.ToDatetime(UTC)
                story.ticks.append({"time": time.isoformat(), "price": tick.price, "quantity": tick.quantity})
                console.print(f"tick        {time:%H:%M:%S.%f}  {tick.quantity:>14} @ {tick.price}")
                if len(story.ticks) == TICKS_SHOWN:
                    return


async def place(
    channel: aio.Channel, session: Metadata, ticket: Ticket, wait_seconds: float, story: Story, console: Console
) -> None:
    """Places the order and follows its events until it is done, or the patience for a resting one ends."""
    orders = orders_pb2_grpc.OrderServiceStub(channel)
    events = orders.StreamOrderEvents(
        orders_pb2.StreamOrderEventsRequest(account_id=story.account_id),
        metadata=session,
        timeout=2 * CALL_SECONDS + wait_seconds,
    )
    async with watched(events) as updates:
        await anext(updates)  # Acknowledged: nothing that happens from here on is missed.
        order = await placed_and_followed(orders, updates, session, ticket, wait_seconds, story, console)
    story.order = {
        "order_id": order.order_id,
        "state": orders_pb2.OrderState.Name(order.state),
        "quantity": order.quantity.value,
        "filled_quantity": order.filled_quantity.value,
        "average_price": order.average_price.value,
        "fees": order.fees.value,
        "fee_asset": order.fee_asset,
        "reason": order.reason,
    }


async def placed_and_followed(
    orders: orders_pb2_grpc.OrderServiceStub,
    updates: AsyncIterator[orders_pb2.StreamOrderEventsResponse],
    session: Metadata,
    ticket: Ticket,
    wait_seconds: float,
    story: Story,
    console: Console,
) -> orders_pb2.Order:
    request = orders_pb2.PlaceOrderRequest(
        request_id=str(uuid7()),
        account_id=story.account_id,
        instrument_id=ticket.instrument_id,
        side=orders_pb2.OrderSide.Value(f"ORDER_SIDE_{ticket.side.name}"),
        order_type=orders_pb2.OrderType.Value(f"ORDER_TYPE_{ticket.order_type.name}"),
        quantity=decimal_pb2.Decimal(value=plain(ticket.quantity)),
        limit_price=decimal_pb2.Decimal(value=plain(ticket.limit_price)) if ticket.limit_price is not None else None,
    )
    placed = await orders.PlaceOrder(request, metadata=session, timeout=CALL_SECONDS)
    console.print(f"order       {ticket.text}")
    order = placed.order
    try:
        async with asyncio.timeout(wait_seconds):
            async for message in updates:
                if message.event.order.order_id == order.order_id:
                    order = message.event.order
                    state = orders_pb2.OrderState.Name(order.state).removeprefix("ORDER_STATE_")
                    story.states.append(state)
                    console.print(
                        f"event       {state.lower().replace('_', ' ')}  {order.filled_quantity.value} filled"
                    )
                if order.state in DONE:
                    break
    except TimeoutError:
        console.print(f"order       not filled within {wait_seconds:g} s; it stays at the venue")
    return order


async def show(channel: aio.Channel, session: Metadata, story: Story, console: Console) -> None:
    orders, portfolios = orders_pb2_grpc.OrderServiceStub(channel), orders_pb2_grpc.PortfolioServiceStub(channel)
    executions = await orders.ListExecutions(
        orders_pb2.ListExecutionsRequest(account_id=story.account_id, order_id=story.order["order_id"]),
        metadata=session,
        timeout=CALL_SECONDS,
    )
    portfolio = await portfolios.GetPortfolio(
        orders_pb2.GetPortfolioRequest(account_id=story.account_id), metadata=session, timeout=CALL_SECONDS
    )
    table = table_with(console, "Executions", "time", "price", "quantity", "fee", "liquidity")
    for each in executions.executions:
        liquidity = "maker" if each.maker else "taker"
        fee = f"{each.fee.value} {each.fee_asset}"
        table.add_row(f"{each.time.ToDatetime(UTC):%H:%M:%S.%f}", each.price.value, each.quantity.value, fee, liquidity)
        story.executions.append(
            {"price": each.price.value, "quantity": each.quantity.value, "fee": each.fee.value, "maker": each.maker}
        )
    console.print(table)
    table = table_with(console, "Balances", "asset", "total", "reserved", "available")
    for balance in portfolio.balances:
        row = {"total": balance.total.value, "reserved": balance.reserved.value, "available": balance.available.value}
        table.add_row(balance.asset, *row.values())
        story.balances.append({"asset": balance.asset, **row})
    console.print(table)
    table = table_with(console, "Positions", "instrument", "quantity", "average price", "mark", "unrealized", "fees")
    for position in portfolio.positions:
        row = {
            "quantity": position.quantity.value,
            "average_price": position.average_price.value,
            "mark_price": position.mark_price.value,
            "unrealized_profit": position.unrealized_profit.value,
            "fees": position.fees.value,
        }
        table.add_row(position.instrument_id, *row.values())
        story.positions.append({"instrument_id": position.instrument_id, **row})
    console.print(table)
    story.equity = {each.asset: each.amount.value for each in portfolio.equity}
    console.print("equity      " + ", ".join(f"{amount} {asset}" for asset, amount in story.equity.items()))


def table_with(console: Console, title: str, *columns: str) -> Table:
    console.print()
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number_of, column in enumerate(columns):
        table.add_column(column, justify="left" if number_of == 0 else "right")
    return table
