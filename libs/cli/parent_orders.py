"""`tradeloom parent-orders`: large orders worked in small ones."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc, parents_pb2, parents_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from libs.cli.options import DataDir, running_stack, time_of
from libs.cli.person import AccountArgument, Email, RequestId, calling, new_request_id, refusals
from libs.mesh.wire import time_from_proto, timestamp
from libs.stack.errors import StackError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Work large orders in small ones: TWAPs, icebergs and DCAs, which go on whatever restarts.",
)

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LISTED_MAX = 500
CHILDREN_SHOWN_MAX = 500
UNDER_WAY = (parents_pb2.PARENT_ORDER_STATE_ACTIVE, parents_pb2.PARENT_ORDER_STATE_CANCELING)


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


InstrumentArgument = Annotated[str, typer.Argument(help="What to trade, such as SIM:BTCUSDT.")]
SideOption = Annotated[Side, typer.Option(help="Which way.")]
Start = Annotated[str, typer.Option(help="When it begins, such as 2027-01-31T10:00Z; now unless said.")]
End = Annotated[str, typer.Option(help="When it is over.")]
ParentArgument = Annotated[str, typer.Argument(help="The id of the parent order.")]


@app.command()
def twap(
    account: AccountArgument,
    instrument: InstrumentArgument,
    quantity: Annotated[str, typer.Option(help="All of it, in units of the base asset.")],
    every: Annotated[str, typer.Option(help="Between two slices: 30s, 5m, 1h, 1d.")],
    over: Annotated[str, typer.Option(help="How long it lasts, from its start: 4h. Or give --end.")] = "",
    end: End = "",
    start: Start = "",
    side: SideOption = Side.BUY,
    limit_price: Annotated[str, typer.Option(help="The worst price accepted; the market's unless said.")] = "",
    request_id: RequestId = "",
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """Trade a quantity in equal parts over time. Times are in UTC unless they have an offset."""
    begins, ends = time_of(start, "--start"), time_of(end, "--end")
    if (ends is None) == (over == ""):
        raise StackError("a TWAP needs --over or --end, and not both")
    schedule = parents_pb2.Twap(
        quantity=decimal(quantity),
        limit_price=decimal(limit_price),
        start_time=timestamp(begins),
        end_time=timestamp(ends or (begins or datetime.now(UTC)) + timedelta(seconds=seconds_of(over, "--over"))),
        interval_seconds=seconds_of(every, "--every"),
    )
    place(data_dir, email, account, instrument, side, request_id, twap=schedule)


@app.command()
def iceberg(
    account: AccountArgument,
    instrument: InstrumentArgument,
    quantity: Annotated[str, typer.Option(help="All of it, in units of the base asset.")],
    display: Annotated[str, typer.Option(help="What is shown at a time.")],
    limit_price: Annotated[str, typer.Option(help="The price at which the parts rest.")],
    side: SideOption = Side.BUY,
    request_id: RequestId = "",
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """Trade a quantity by limit orders that show a part of it at a time."""
    schedule = parents_pb2.Iceberg(
        quantity=decimal(quantity), display_quantity=decimal(display), limit_price=decimal(limit_price)
    )
    place(data_dir, email, account, instrument, side, request_id, iceberg=schedule)


@app.command()
def dca(
    account: AccountArgument,
    instrument: InstrumentArgument,
    every: Annotated[str, typer.Option(help="Between two purchases: 30m, 1d, 7d.")],
    amount: Annotated[str, typer.Option(help="For so much of the quote asset each time. Or give --quantity.")] = "",
    quantity: Annotated[str, typer.Option(help="So much of the base asset each time.")] = "",
    purchases: Annotated[int, typer.Option(help="How many. Or give --end.", min=0)] = 0,
    end: End = "",
    start: Start = "",
    request_id: RequestId = "",
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """Buy the same again and again, a fixed time apart. Times are in UTC unless they have an offset."""
    if (amount == "") == (quantity == ""):
        raise StackError("a DCA needs --amount or --quantity, and not both")
    ends = time_of(end, "--end")
    if (ends is None) == (purchases == 0):
        raise StackError("a DCA needs --purchases or --end, and not both")
    schedule = parents_pb2.Dca(
        start_time=timestamp(time_of(start, "--start")), interval_seconds=seconds_of(every, "--every")
    )
    if amount:
        schedule.amount.value = amount
    else:
        schedule.quantity.value = quantity
    if ends is None:
        schedule.purchases = purchases
    else:
        schedule.end_time.CopyFrom(timestamp(ends) or Timestamp())
    place(data_dir, email, account, instrument, Side.BUY, request_id, dca=schedule)


def place(
    data_dir: Any, email: str, account: str, instrument: str, side: Side, request_id: str, **schedule: Any
) -> None:
    snapshot, request_id = running_stack(data_dir), new_request_id(request_id)

    async def placed() -> parents_pb2.ParentOrder:
        async with calling(snapshot, email) as caller:
            request = parents_pb2.PlaceParentOrderRequest(
                request_id=request_id,
                account_id=await caller.account_id(account),
                instrument_id=instrument.upper(),
                side=orders_pb2.OrderSide.Value(f"ORDER_SIDE_{side.name}"),
                **schedule,
            )
            stub: Any = parents_pb2_grpc.ParentOrderServiceStub(caller.channel)
            return (await caller.ask(stub.PlaceParentOrder, request)).parent_order

    with refusals(request_id):
        parent = asyncio.run(placed())
    printed([("under way", title_of(parent)), ("slices", str(parent.slices)), ("id", parent.parent_order_id)])


@app.command("list")
def list_them(
    account: AccountArgument,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    count: Annotated[int, typer.Option(help="The newest so many.", min=1, max=LISTED_MAX)] = 50,
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """List an account's parent orders, newest first."""
    snapshot = running_stack(data_dir)

    async def listed() -> parents_pb2.ListParentOrdersResponse:
        async with calling(snapshot, email) as caller:
            states = () if everything else UNDER_WAY
            account_id = await caller.account_id(account)
            request = parents_pb2.ListParentOrdersRequest(account_id=account_id, states=states, page_size=count)
            stub: Any = parents_pb2_grpc.ParentOrderServiceStub(caller.channel)
            return await caller.ask(stub.ListParentOrders, request)

    with refusals():
        page = asyncio.run(listed())
    console = Console(highlight=False, soft_wrap=True)
    if not page.parent_orders:
        console.print("none" if everything else "none are under way")
        return
    console.print(table_of(page.parent_orders))
    if page.next_page_token:
        console.print("and older ones: see --count")


@app.command()
def show(parent_order_id: ParentArgument, email: Email = "", data_dir: DataDir = None) -> None:
    """Show one parent order with its orders and the slices it has skipped."""
    snapshot = running_stack(data_dir)

    async def found() -> tuple[parents_pb2.GetParentOrderResponse, orders_pb2.ListOrdersResponse]:
        async with calling(snapshot, email) as caller:
            stub: Any = parents_pb2_grpc.ParentOrderServiceStub(caller.channel)
            orders: Any = orders_pb2_grpc.OrderServiceStub(caller.channel)
            one = await caller.ask(
                stub.GetParentOrder, parents_pb2.GetParentOrderRequest(parent_order_id=parent_order_id)
            )
            asked = orders_pb2.ListOrdersRequest(
                account_id=one.parent_order.account_id,
                parent_order_id=parent_order_id,
                page_size=CHILDREN_SHOWN_MAX,
            )
            return one, await caller.ask(orders.ListOrders, asked)

    with refusals():
        one, page = asyncio.run(found())
    printed(facts_of(one.parent_order))
    console = Console(highlight=False, soft_wrap=True)
    if page.orders:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("slice", "state", "filled", "quantity", "average", "order"):
            table.add_column(name, justify="left" if name in ("state", "order") else "right")
        for child in page.orders:
            row = (child.slice_number, word_of("ORDER_STATE_", orders_pb2.OrderState.Name(child.state)))
            numbers = (child.filled_quantity.value or "0", child.quantity.value, child.average_price.value or "-")
            table.add_row(str(row[0]), row[1], *numbers, child.order_id)
        console.print(table)
    if page.next_page_token:
        console.print(f"and older ones than these {CHILDREN_SHOWN_MAX}")
    for skip in one.skips:
        slices = (
            f"slice {skip.first_slice}"
            if skip.first_slice == skip.last_slice
            else f"slices {skip.first_slice} to {skip.last_slice}"
        )
        console.print(f"skipped    {slices}: {skip.message} ({skip.reason})", markup=False)


@app.command()
def cancel(
    parent_order_id: ParentArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None
) -> None:
    """Cancel a parent order and its open orders; what has traded stays."""
    snapshot, request_id = running_stack(data_dir), new_request_id(request_id)

    async def canceled() -> parents_pb2.ParentOrder:
        async with calling(snapshot, email) as caller:
            stub: Any = parents_pb2_grpc.ParentOrderServiceStub(caller.channel)
            request = parents_pb2.CancelParentOrderRequest(request_id=request_id, parent_order_id=parent_order_id)
            return (await caller.ask(stub.CancelParentOrder, request)).parent_order

    with refusals(request_id):
        parent = asyncio.run(canceled())
    printed([(state_of(parent), title_of(parent))])


def decimal(text: str) -> decimal_pb2.Decimal | None:
    """None where nothing was given; the service says what is wrong with the rest."""
    return decimal_pb2.Decimal(value=text) if text else None


def seconds_of(text: str, option: str) -> int:
    """Such as 90 for 90s and 300 for 5m."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if found is None:
        raise StackError(f"{option} is no time such as 30s, 5m, 1h or 1d: {text}")
    return int(found[1]) * UNIT_SECONDS[found[2]]


def word_of(prefix: str, name: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")


def state_of(parent: parents_pb2.ParentOrder) -> str:
    return word_of("PARENT_ORDER_STATE_", parents_pb2.ParentOrderState.Name(parent.state))


def title_of(parent: parents_pb2.ParentOrder) -> str:
    """Such as "buy 2 SIM:BTCUSDT by twap" and "buy SIM:BTCUSDT for 100 USDT by dca"."""
    kind = parent.WhichOneof("schedule") or ""
    side = word_of("ORDER_SIDE_", orders_pb2.OrderSide.Name(parent.side))
    if kind == "dca" and parent.dca.WhichOneof("purchase") == "amount":
        return f"{side} {parent.instrument_id} for {parent.dca.amount.value} {parent.fee_asset} by dca"
    return f"{side} {getattr(parent, kind).quantity.value} {parent.instrument_id} by {kind}"


def progress_of(parent: parents_pb2.ParentOrder) -> str:
    if parent.WhichOneof("schedule") == "dca":
        return f"{parent.slice_number} of {parent.slices} purchases"
    return f"{parent.filled_quantity.value or '0'} of {getattr(parent, parent.WhichOneof('schedule') or '').quantity.value}"


def is_held_up(parent: parents_pb2.ParentOrder) -> bool:
    """Whether its present slice was refused, and is tried again."""
    active = parent.state == parents_pb2.PARENT_ORDER_STATE_ACTIVE
    return active and parent.refusal.slice_number > parent.slice_number


def table_of(parents: Sequence[parents_pb2.ParentOrder]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "state", "progress", "slices", "next", "id"):
        table.add_column(name, no_wrap=name == "id")
    for parent in parents:
        state = f"{state_of(parent)}{', held up' if is_held_up(parent) else ''}"
        slices = f"{parent.slice_number}/{parent.slices}"
        upcoming = time_text(parent.next_time) if parent.HasField("next_time") else "-"
        table.add_row(title_of(parent), state, progress_of(parent), slices, upcoming, parent.parent_order_id)
    return table


def facts_of(parent: parents_pb2.ParentOrder) -> list[tuple[str, str]]:
    facts = [
        ("what", title_of(parent)),
        ("state", f"{state_of(parent)}{f', {parent.reason}' if parent.reason else ''}"),
        ("progress", progress_of(parent)),
        ("slices", f"{parent.slice_number} of {parent.slices} over with, {parent.skipped_slices} skipped"),
        ("working", parent.working_quantity.value or "0"),
        ("filled", f"{parent.filled_quantity.value or '0'} at {parent.average_price.value or '-'}"),
        ("fees", f"{parent.fees.value or '0'} {parent.fee_asset}"),
        ("starts", time_text(parent.start_time)),
    ]
    if parent.HasField("end_time"):
        facts.append(("ends", time_text(parent.end_time)))
    if parent.HasField("next_time"):
        facts.append(("next", time_text(parent.next_time)))
    if parent.HasField("refusal"):
        name = "held up" if is_held_up(parent) else "was held up"
        refusal = parent.refusal
        facts.append((name, f"slice {refusal.slice_number}: {refusal.message} ({refusal.reason})"))
    return facts


def time_text(time: Timestamp) -> str:
    return time_from_proto(time).strftime("%Y-%m-%d %H:%M:%SZ")


def printed(facts: Sequence[tuple[str, str]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, value in facts:
        console.print(f"{name:<11}{value}", markup=False)
