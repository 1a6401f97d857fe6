"""`tradeloom live`: accounts of real money, and how they compare with their venues."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from getpass import getpass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc
from tradeloom.orders.v1 import live_pb2, live_pb2_grpc, orders_pb2, orders_pb2_grpc
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.cli.options import DataDir, running_stack
from libs.cli.parent_orders import printed, time_text, word_of
from libs.cli.person import (
    ACCOUNTS_MAX,
    AccountArgument,
    Caller,
    Email,
    RequestId,
    calling,
    new_request_id,
    refusals,
)
from libs.stack.errors import StackError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Trade real money: enable it, open, confirm and stop accounts, and compare them with their venues.",
)

PAGE = 200
COMPARED_SECONDS = 60.0
POLL_SECONDS = 0.5
Reason = Annotated[str, typer.Option(help="Why; kept with the setting.")]
ExternalArgument = Annotated[str, typer.Argument(help="The id of the order, as `tradeloom live external` lists it.")]
REQUESTED = execution_pb2.RECONCILIATION_STATE_REQUESTED
FAILED = execution_pb2.RECONCILIATION_STATE_FAILED


@app.command()
def status(email: Email = "", data_dir: DataDir = None) -> None:
    """Say whether real money is traded here, and by which of one's accounts."""

    async def asked(caller: Caller) -> tuple[live_pb2.LiveTrading, Sequence[orders_pb2.Account]]:
        live: Any = live_pb2_grpc.LiveTradingServiceStub(caller.channel)
        portfolios: Any = orders_pb2_grpc.PortfolioServiceStub(caller.channel)
        trading = (await caller.ask(live.GetLiveTrading, live_pb2.GetLiveTradingRequest())).live_trading
        listed = await caller.ask(portfolios.ListAccounts, orders_pb2.ListAccountsRequest(page_size=ACCOUNTS_MAX))
        return trading, [each for each in listed.accounts if each.mode == orders_pb2.ACCOUNT_MODE_LIVE]

    trading, accounts = answered(asked, email, data_dir)
    print_trading(trading)
    if accounts:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("account", "venue", "state", "why", "id"):
            table.add_column(name, no_wrap=name == "id")
        for each in accounts:
            table.add_row(escape(each.name), each.venue, state_of(each), each.stop_reason or "-", each.account_id)
        Console(highlight=False, soft_wrap=True).print(table)


@app.command()
def enable(reason: Reason, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Enable trading with real money for all confirmed accounts; for operators with a second factor."""
    set_trading(True, reason, request_id, email, data_dir)


@app.command()
def disable(reason: Reason, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Disable it: what was not sent is rejected, what rests at venues stays and can be canceled."""
    set_trading(False, reason, request_id, email, data_dir)


def set_trading(enabled: bool, reason: str, request_id: str, email: str, data_dir: Any) -> None:
    request = live_pb2.SetLiveTradingRequest(request_id=new_request_id(request_id), enabled=enabled, reason=reason)

    async def asked(caller: Caller) -> live_pb2.LiveTrading:
        stub: Any = live_pb2_grpc.LiveTradingServiceStub(caller.channel)
        return (await caller.ask(stub.SetLiveTrading, request)).live_trading

    print_trading(answered(asked, email, data_dir, request.request_id))


@app.command("open")
def open_account(
    name: Annotated[str, typer.Argument(help="What the account is to be called.")],
    venue: Annotated[str, typer.Option(help="Where its money is: BINANCE or KRAKEN.")],
    valuation_asset: Annotated[str, typer.Option(help="What its worth and its losses are counted in, such as USDT.")],
    request_id: RequestId = "",
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """Open a live account; it trades nothing until it has a key and is confirmed."""
    request = orders_pb2.CreateAccountRequest(
        request_id=new_request_id(request_id),
        name=name,
        mode=orders_pb2.ACCOUNT_MODE_LIVE,
        kind=orders_pb2.ACCOUNT_KIND_CASH,
        venue=venue.upper(),
        valuation_asset=valuation_asset.upper(),
    )

    async def asked(caller: Caller) -> orders_pb2.Account:
        stub: Any = orders_pb2_grpc.PortfolioServiceStub(caller.channel)
        return (await caller.ask(stub.CreateAccount, request)).account

    print_account(answered(asked, email, data_dir, request.request_id))


@app.command()
def put_key(
    account: AccountArgument,
    label: Annotated[str, typer.Option(help="For you; the account's name unless said.")] = "",
    request_id: RequestId = "",
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """Put the venue's key for an account, in place of one that is there, and have it tested; both halves are asked for."""
    if not sys.stdin.isatty():
        raise StackError("the key is asked for on a terminal, so that it stands in no history and no list of processes")
    key, secret = (getpass(f"{half}: ", sys.stderr) for half in ("API key", "Secret"))
    request_id = new_request_id(request_id)

    async def asked(caller: Caller) -> users_pb2.BrokerCredential:
        stub: Any = users_pb2_grpc.BrokerCredentialServiceStub(caller.channel)
        own = await account_of(caller, account)
        listed = await caller.ask(stub.ListBrokerCredentials, users_pb2.ListBrokerCredentialsRequest(page_size=100))
        present = [each.credential_id for each in listed.credentials if each.account_id == own.account_id]
        request = users_pb2.PutBrokerCredentialRequest(
            request_id=request_id,
            credential_id="".join(present),
            account_id=own.account_id,
            venue=own.venue,
            label=label or own.name[:50],
            api_key=key,
            api_secret=secret,
        )
        put = (await caller.ask(stub.PutBrokerCredential, request)).credential
        testing = users_pb2.TestBrokerCredentialRequest(request_id=new_request_id(""), credential_id=put.credential_id)
        return (await caller.ask(stub.TestBrokerCredential, testing)).credential

    credential = answered(asked, email, data_dir, request_id)
    state = word_of("BROKER_CREDENTIAL_STATE_", users_pb2.BrokerCredentialState.Name(credential.state))
    problem = users_pb2.BrokerCredentialProblem.Name(credential.check.problem)
    printed([("key", f"{credential.label}, ending in {credential.api_key_ending}"), ("state", state)])
    if credential.check.problem:
        printed([("because", word_of("BROKER_CREDENTIAL_PROBLEM_", problem))])


@app.command()
def confirm(account: AccountArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Confirm that an account is to trade real money, with its key; its owner needs a second factor."""
    request_id = new_request_id(request_id)

    async def asked(caller: Caller) -> orders_pb2.Account:
        stub: Any = live_pb2_grpc.LiveTradingServiceStub(caller.channel)
        account_id = await caller.account_id(account)
        request = live_pb2.ConfirmLiveTradingRequest(request_id=request_id, account_id=account_id)
        return (await caller.ask(stub.ConfirmLiveTrading, request)).account

    print_account(answered(asked, email, data_dir, request_id))


@app.command()
def stop(account: AccountArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Stop an account's trading real money until it is confirmed anew; what rests at its venue stays."""
    request_id = new_request_id(request_id)

    async def asked(caller: Caller) -> orders_pb2.Account:
        stub: Any = live_pb2_grpc.LiveTradingServiceStub(caller.channel)
        account_id = await caller.account_id(account)
        request = live_pb2.StopLiveTradingRequest(request_id=request_id, account_id=account_id)
        return (await caller.ask(stub.StopLiveTrading, request)).account

    print_account(answered(asked, email, data_dir, request_id))


@app.command()
def compare(account: AccountArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Have a live account compared with its venue now; exit with 1 where that failed or something differed."""
    request_id = new_request_id(request_id)

    async def asked(caller: Caller) -> execution_pb2.Reconciliation:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(caller.channel)
        account_id = await caller.account_id(account)
        request = execution_pb2.ReconcileRequest(request_id=request_id, account_id=account_id)
        found = (await caller.ask(stub.Reconcile, request)).reconciliation
        looking = execution_pb2.GetReconciliationRequest(reconciliation_id=found.reconciliation_id)
        try:
            async with asyncio.timeout(COMPARED_SECONDS):
                while found.state == REQUESTED:
                    await asyncio.sleep(POLL_SECONDS)
                    found = (await caller.ask(stub.GetReconciliation, looking)).reconciliation
        except TimeoutError:
            raise StackError(
                f"it was not compared within {COMPARED_SECONDS:g} s; `tradeloom live comparisons` tells"
            ) from None
        return found

    found = answered(asked, email, data_dir, request_id)
    print_comparison(found)
    if found.state == FAILED or found.differences:
        raise typer.Exit(1)


@app.command()
def comparisons(
    account: AccountArgument,
    count: Annotated[int, typer.Option(help="The newest so many.", min=1, max=PAGE)] = 10,
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """List how one's account compared with its venue, newest first."""

    async def asked(caller: Caller) -> Sequence[execution_pb2.Reconciliation]:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(caller.channel)
        account_id = await caller.account_id(account)
        request = execution_pb2.ListReconciliationsRequest(account_id=account_id, page_size=count)
        return (await caller.ask(stub.ListReconciliations, request)).reconciliations

    found = answered(asked, email, data_dir)
    for each in found:
        print_comparison(each)
    if not found:
        printed([("none", "it was not compared yet")])


@app.command()
def unknown(email: Email = "", data_dir: DataDir = None) -> None:
    """List orders of everybody whose outcome at their venue is not known, the longest waiting first; for operators."""

    async def asked(caller: Caller) -> execution_pb2.ListUnknownOrdersResponse:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(caller.channel)
        return await caller.ask(stub.ListUnknownOrders, execution_pb2.ListUnknownOrdersRequest(page_size=PAGE))

    page = answered(asked, email, data_dir)
    console = Console(highlight=False, soft_wrap=True)
    for order in page.orders:
        alert = "  TOO LONG: look at the venue" if order.alerted else ""
        console.print(
            f"{order.order_id}  {order.instrument_id}  since {time_text(order.send_time)}{alert}", markup=False
        )
        console.print(f"           {order.reason} (account {order.account_id}, user {order.user_id})", markup=False)
    if not page.orders:
        console.print("none: the outcome of every order is known")
    if page.next_page_token:
        console.print("and more")


@app.command()
def external(
    account: AccountArgument,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are decided or over.")] = False,
    email: Email = "",
    data_dir: DataDir = None,
) -> None:
    """List orders at the venue of one's account that were never sent from here, oldest first."""

    async def asked(caller: Caller) -> execution_pb2.ListExternalOrdersResponse:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(caller.channel)
        account_id = await caller.account_id(account)
        request = execution_pb2.ListExternalOrdersRequest(
            account_id=account_id, include_decided=everything, page_size=PAGE
        )
        return await caller.ask(stub.ListExternalOrders, request)

    page = answered(asked, email, data_dir)
    console = Console(highlight=False, soft_wrap=True)
    for order in page.orders:
        console.print(f"{order.external_order_id}  {external_text(order)}", markup=False)
    if not page.orders:
        console.print("none")
    if page.next_page_token:
        console.print("and more")


@app.command()
def adopt(order: ExternalArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Make an order that was made at the venue by hand the account's."""
    request = execution_pb2.AdoptExternalOrderRequest(request_id=new_request_id(request_id), external_order_id=order)
    decide("AdoptExternalOrder", request, email, data_dir)


@app.command()
def ignore(order: ExternalArgument, request_id: RequestId = "", email: Email = "", data_dir: DataDir = None) -> None:
    """Leave an order that was made at the venue by hand to whoever made it."""
    request = execution_pb2.IgnoreExternalOrderRequest(request_id=new_request_id(request_id), external_order_id=order)
    decide("IgnoreExternalOrder", request, email, data_dir)


def decide(method: str, request: Any, email: str, data_dir: Any) -> None:
    async def asked(caller: Caller) -> execution_pb2.ExternalOrder:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(caller.channel)
        return (await caller.ask(getattr(stub, method), request)).order

    printed([("order", external_text(answered(asked, email, data_dir, request.request_id)))])


def answered(asked: Callable[[Caller], Awaitable[Any]], email: str, data_dir: Any, request_id: str = "") -> Any:
    """What the running stack answers whoever asks."""
    snapshot = running_stack(data_dir)

    async def answer() -> Any:
        async with calling(snapshot, email) as caller:
            return await asked(caller)

    with refusals(request_id):
        return asyncio.run(answer())


async def account_of(caller: Caller, account: str) -> orders_pb2.Account:
    """One of the caller's own."""
    account_id = await caller.account_id(account)
    portfolios: Any = orders_pb2_grpc.PortfolioServiceStub(caller.channel)
    listed = await caller.ask(portfolios.ListAccounts, orders_pb2.ListAccountsRequest(page_size=ACCOUNTS_MAX))
    for each in listed.accounts:
        if each.account_id == account_id:
            return each
    raise StackError(f"no account of yours has the id {account_id}")


def print_trading(trading: live_pb2.LiveTrading) -> None:
    since = f", “{trading.reason}”, since {time_text(trading.set_time)}" if trading.HasField("set_time") else ""
    printed([("real money", f"{'enabled' if trading.enabled else 'disabled'}{since}")])


def state_of(account: orders_pb2.Account) -> str:
    return word_of("LIVE_STATE_", orders_pb2.LiveState.Name(account.live_state))


def print_account(account: orders_pb2.Account) -> None:
    why = f", {account.stop_reason}" if account.stop_reason else ""
    printed(
        [
            ("account", f"{account.name} at {account.venue}"),
            ("state", f"{state_of(account)}{why}"),
            ("id", account.account_id),
        ]
    )


def print_comparison(found: execution_pb2.Reconciliation) -> None:
    """As a record that is read from above: what was compared, and each difference with what explains it."""
    cause = word_of("RECONCILIATION_CAUSE_", execution_pb2.ReconciliationCause.Name(found.cause))
    time = time_text(found.end_time if found.HasField("end_time") else found.create_time)
    printed([("compared", f"{time}, {cause}: {outcome_of(found)}")])
    console = Console(highlight=False, soft_wrap=True)
    for each in found.differences:
        kind = word_of("DIFFERENCE_KIND_", execution_pb2.DifferenceKind.Name(each.kind))
        about = " ".join(filter(None, (each.subject, each.order_id, each.venue_order_id)))
        console.print(
            f"  {kind} {about}: ours {each.ours or 'nothing'}, the venue's {each.venues or 'nothing'}", markup=False
        )
        console.print(f"    {each.explanation}", markup=False)


def outcome_of(found: execution_pb2.Reconciliation) -> str:
    if found.state == FAILED:
        return f"not compared: {found.problem}"
    if found.state == REQUESTED:
        return "not yet"
    scope = f"{found.order_count} orders, {found.fill_count} fills, {found.asset_count} assets"
    count = len(found.differences)
    return f"{'all agreed' if not count else f'{count} differ'} ({scope})"


def external_text(order: execution_pb2.ExternalOrder) -> str:
    limit = f" at {order.limit_price.value}" if order.HasField("limit_price") else ""
    stop = f" from {order.stop_price.value}" if order.HasField("stop_price") else ""
    state = word_of("EXTERNAL_ORDER_STATE_", execution_pb2.ExternalOrderState.Name(order.state))
    side = "buy" if order.buys else "sell"
    filled = order.filled_quantity.value or "0"
    return f"{side} {order.quantity.value} {order.instrument_id}{limit}{stop}, {filled} filled, {state}"
