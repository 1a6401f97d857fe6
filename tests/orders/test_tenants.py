"""Another user's accounts and orders do not exist: over the wire, and in the tables."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from tradeloom.orders.v1 import live_pb2, margin_pb2, orders_pb2, parents_pb2, risk_pb2

from libs.edge import contract
from libs.ids import uuid7
from libs.store.database import open_database
from services.orders import store
from services.orders.store import AccountStore, Filter
from tests.mesh import Installation, Served
from tests.orders.stand import (
    BTC,
    Trader,
    Venue,
    accepted,
    decimal,
    filled,
    limit,
    quote,
    refusal,
    resting,
    select,
    sequences,
    steps,
    trader,
    until,
)

NAMING = {"account_id", "order_id", "parent_order_id"}
OWNED = {
    "accounts",
    "balances",
    "trading_orders",
    "trading_executions",
    "order_events",
    "positions",
    "ledger_entries",
    "request_keys",
    "outbox",
    "departures",
    "order_notes",
    "order_tags",
    "exposures",
    "risk_limits",
    "risk_events",
    "kill_switches",
    "equity_points",
    "deployment_positions",
    "parent_orders",
    "parent_order_skips",
    "account_credentials",
    "funding_payments",
    "venue_funding",
}


def waiting(account_id: str) -> parents_pb2.PlaceParentOrderRequest:
    """A parent order that begins in an hour."""
    parts = parents_pb2.Dca(amount=decimal(50), interval_seconds=60, purchases=2)
    parts.start_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    return parents_pb2.PlaceParentOrderRequest(
        request_id=str(uuid7()),
        account_id=account_id,
        instrument_id=BTC.instrument_id,
        side=orders_pb2.ORDER_SIDE_BUY,
        dca=parts,
    )


async def parent_of(caller: Trader, redis: Redis) -> str:
    """A parent order of theirs; the price by which it is judged may be on its way to the service."""
    await quote(redis, last_price=100.0)

    async def placed() -> str:
        try:
            answered = await caller.parents.PlaceParentOrder(waiting(caller.account_id), metadata=caller.metadata)
        except AioRpcError as error:
            assert "no price" in str(error.details())
            return ""
        return answered.parent_order.parent_order_id

    return await until(placed)


def calls(caller: Trader, account_id: str, order_id: str, parent_order_id: str) -> dict[str, Any]:
    """Every RPC that names an account, an order or a parent order, and how the caller asks for these."""
    orders, portfolios, risks = caller.orders, caller.portfolios, caller.risks
    parents, lives, margins = caller.parents, caller.lives, caller.margins
    return {
        "PlaceParentOrder": (parents.PlaceParentOrder, waiting(account_id)),
        "CancelParentOrder": (
            parents.CancelParentOrder,
            parents_pb2.CancelParentOrderRequest(request_id="x", parent_order_id=parent_order_id),
        ),
        "GetParentOrder": (
            parents.GetParentOrder,
            parents_pb2.GetParentOrderRequest(parent_order_id=parent_order_id),
        ),
        "ListParentOrders": (parents.ListParentOrders, parents_pb2.ListParentOrdersRequest(account_id=account_id)),
        "PlaceOrder": (orders.PlaceOrder, limit(account_id)),
        "CancelOrder": (orders.CancelOrder, orders_pb2.CancelOrderRequest(request_id="x", order_id=order_id)),
        "ReplaceOrder": (
            orders.ReplaceOrder,
            orders_pb2.ReplaceOrderRequest(
                request_id="x", order_id=order_id, replacement=orders_pb2.Replacement(limit_price=decimal(99))
            ),
        ),
        "CancelAllOrders": (
            orders.CancelAllOrders,
            orders_pb2.CancelAllOrdersRequest(request_id="x", account_id=account_id),
        ),
        "AnnotateOrder": (
            orders.AnnotateOrder,
            orders_pb2.AnnotateOrderRequest(request_id="x", order_id=order_id, note="n", tags=["t"]),
        ),
        "GetOrder": (orders.GetOrder, orders_pb2.GetOrderRequest(order_id=order_id)),
        "ListOrders": (orders.ListOrders, orders_pb2.ListOrdersRequest(account_id=account_id)),
        "ListExecutions": (
            orders.ListExecutions,
            orders_pb2.ListExecutionsRequest(account_id=account_id, order_id=order_id),
        ),
        "StreamOrderEvents": (
            orders.StreamOrderEvents,
            orders_pb2.StreamOrderEventsRequest(account_id=account_id, after_cursor="0"),
        ),
        "GetPortfolio": (portfolios.GetPortfolio, orders_pb2.GetPortfolioRequest(account_id=account_id)),
        "ListPositions": (portfolios.ListPositions, orders_pb2.ListPositionsRequest(account_id=account_id)),
        "ClosePosition": (
            portfolios.ClosePosition,
            orders_pb2.ClosePositionRequest(request_id="x", account_id=account_id, instrument_id=BTC.instrument_id),
        ),
        "ListLedgerEntries": (
            portfolios.ListLedgerEntries,
            orders_pb2.ListLedgerEntriesRequest(account_id=account_id),
        ),
        "GetEquityHistory": (portfolios.GetEquityHistory, orders_pb2.GetEquityHistoryRequest(account_id=account_id)),
        "StreamPortfolio": (portfolios.StreamPortfolio, orders_pb2.StreamPortfolioRequest(account_id=account_id)),
        "GetRiskLimits": (risks.GetRiskLimits, risk_pb2.GetRiskLimitsRequest(account_id=account_id)),
        "SetRiskLimits": (
            risks.SetRiskLimits,
            risk_pb2.SetRiskLimitsRequest(request_id="x", account_id=account_id, limits=risk_pb2.RiskLimits()),
        ),
        "LiftRiskLocks": (risks.LiftRiskLocks, risk_pb2.LiftRiskLocksRequest(request_id="x", account_id=account_id)),
        "ListRiskEvents": (risks.ListRiskEvents, risk_pb2.ListRiskEventsRequest(account_id=account_id)),
        "SetKillSwitch": (
            risks.SetKillSwitch,
            risk_pb2.SetKillSwitchRequest(
                request_id="x", account_id=account_id, mode=risk_pb2.KILL_SWITCH_MODE_REDUCE_ONLY
            ),
        ),
        "GetKillSwitch": (risks.GetKillSwitch, risk_pb2.GetKillSwitchRequest(account_id=account_id)),
        "ConfirmLiveTrading": (
            lives.ConfirmLiveTrading,
            live_pb2.ConfirmLiveTradingRequest(request_id="x", account_id=account_id),
        ),
        "StopLiveTrading": (
            lives.StopLiveTrading,
            live_pb2.StopLiveTradingRequest(request_id="x", account_id=account_id),
        ),
        "SetLeverage": (
            margins.SetLeverage,
            margin_pb2.SetLeverageRequest(request_id="x", account_id=account_id, leverage=2),
        ),
        "ListFundingPayments": (
            margins.ListFundingPayments,
            margin_pb2.ListFundingPaymentsRequest(account_id=account_id),
        ),
    }


NAMING_RPCS = sorted(
    method.name
    for method in contract.methods()
    if method.service.startswith("tradeloom.orders.") and NAMING & set(method.descriptor.input_type.fields_by_name)
)


def named_by(name: str) -> str:
    """What the RPC is about."""
    if name in ("AnnotateOrder", "CancelOrder", "GetOrder", "ReplaceOrder"):
        return "order"
    return "parent_order" if name in ("CancelParentOrder", "GetParentOrder") else "account"


async def answer(call: Any) -> Any:
    """The answer, or the first message of a stream. That there is nothing to close, or to confirm, is one about one's own."""
    try:
        return await call.read() if hasattr(call, "read") else await call
    except AioRpcError as error:
        nothing = ("there is nothing to close", "the account is a paper account", "the account is a cash account")
        if str(error.details()).startswith(nothing):
            return error
        raise


@pytest.mark.parametrize("name", NAMING_RPCS)
async def test_anothers_account_or_order_is_not_found(
    installation: Installation, orders: Served, redis: Redis, venue: Venue, name: str
):
    anna, bert = await trader(orders), await trader(orders)
    order, parent = await resting(installation, venue, anna), await parent_of(anna, redis)
    # Hers are there, so that it is not found for another reason.
    method, request = calls(anna, anna.account_id, order.order_id, parent)[name]
    assert await answer(method(request, metadata=anna.metadata, timeout=20))
    method, request = calls(bert, anna.account_id, order.order_id, parent)[name]
    refused = await refusal(answer(method(request, metadata=bert.metadata, timeout=20)))
    named = named_by(name)
    assert (refused.code, refused.reason) == ("NOT_FOUND", f"{named.upper()}_NOT_FOUND")
    hers = {"account": anna.account_id, "order": order.order_id, "parent_order": parent}
    assert refused.metadata == {f"{named}_id": hers[named]}
    # The same words as for one that nobody has.
    method, request = calls(bert, (nobodys := str(uuid7())), nobodys, nobodys)[name]
    unknown = await refusal(answer(method(request, metadata=bert.metadata, timeout=20)))
    assert (unknown.code, unknown.reason) == (refused.code, refused.reason)
    assert unknown.metadata == {f"{named}_id": nobodys}
    # Nothing was done but what she herself has asked for.
    done = {
        "PlaceOrder": [orders_pb2.ORDER_STATE_PENDING_NEW, orders_pb2.ORDER_STATE_NEW],
        "ReplaceOrder": [orders_pb2.ORDER_STATE_PENDING_REPLACE],
        "CancelOrder": [orders_pb2.ORDER_STATE_PENDING_CANCEL],
        "CancelAllOrders": [orders_pb2.ORDER_STATE_PENDING_CANCEL],
    }
    states = [each.state for each in (await anna.list_orders()).orders]
    assert states == done.get(name, [orders_pb2.ORDER_STATE_NEW])


async def test_an_order_of_ones_own_is_found_in_no_other_account_of_ones_own(orders: Served):
    anna = await trader(orders)
    second = await trader(orders, user_id=anna.user_id)
    order = await anna.place()
    assert (await second.list_orders()).orders == []
    assert (await second.list_executions(order_id=order.order_id)).executions == []
    assert (await anna.list_orders()).orders == [order]


async def test_lists_of_accounts_hold_the_callers_alone(orders: Served):
    anna, bert = await trader(orders), await trader(orders)
    found = await bert.portfolios.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=bert.metadata)
    assert [account.account_id for account in found.accounts] == [bert.account_id]
    assert anna.account_id != bert.account_id


@pytest.fixture
async def traded(installation: Installation, orders: Served, redis: Redis, venue: Venue) -> Trader:
    """Somebody with rows in every table."""
    anna = await trader(orders)
    order = await anna.place(note="mine", tags=["some"], deployment_id=str(uuid7()))
    stream = anna.events("0")
    await venue.tell(anna, accepted(order), filled(order, "0.1", 100, fee="0.01"))
    assert sequences(await steps(stream, 4)) == [0, 1, 2, 3]
    stream.cancel()
    limits = risk_pb2.RiskLimits(open_orders_max=9)
    asked = risk_pb2.SetRiskLimitsRequest(request_id="x", account_id=anna.account_id, limits=limits)
    await anna.risks.SetRiskLimits(asked, metadata=anna.metadata)
    asked = risk_pb2.SetKillSwitchRequest(request_id="x", mode=risk_pb2.KILL_SWITCH_MODE_HALT)
    await anna.risks.SetKillSwitch(asked, metadata=anna.metadata)
    await select(installation, "INSERT INTO departures (user_id, done) VALUES ($1, true)", anna.user_id)
    await select(
        installation,
        "INSERT INTO account_credentials VALUES (gen_random_uuid(), $2, $1, 'BINANCE', 1, true)",
        UUID(anna.account_id),
        anna.user_id,
    )
    await select(
        installation,
        "INSERT INTO equity_points (account_id, user_id, time, equity) VALUES ($1, $2, '2026-01-01Z', 1)",
        UUID(anna.account_id),
        anna.user_id,
    )
    await select(
        installation,
        "INSERT INTO funding_payments (account_id, instrument_id, funding_time, user_id, asset) VALUES ($1, 'P', now(), $2, 'A')",
        UUID(anna.account_id),
        anna.user_id,
    )
    await select(
        installation,
        "INSERT INTO venue_funding VALUES ($1, '1', $2, 'P', now(), 'A', 1)",
        UUID(anna.account_id),
        anna.user_id,
    )
    await select(
        installation,
        """
        INSERT INTO parent_order_skips (parent_order_id, first_slice, last_slice, user_id, account_id, reason, message, time)
        VALUES ($1, 1, 2, $2, $3, 'MISSED', '', now())
        """,
        UUID(await parent_of(anna, redis)),
        anna.user_id,
        UUID(anna.account_id),
    )
    return anna


async def test_every_table_with_a_user_has_row_security_that_holds(installation: Installation, traded: Trader):
    tables = await select(
        installation,
        """
        SELECT relname, relrowsecurity AND relforcerowsecurity AS is_secured FROM pg_class
        JOIN pg_attribute ON attrelid = pg_class.oid
        WHERE relnamespace = 'orders'::regnamespace AND relkind = 'r' AND attname = 'user_id' AND NOT attisdropped
        """,
    )
    assert {row["relname"]: row["is_secured"] for row in tables} == dict.fromkeys(OWNED, True)
    anna, bert = traded.user_id, uuid7()
    # The worker relays the whole outbox, goes after whoever has left, values every account, cancels for every switch and
    # steps every parent order.
    valued = ("accounts", "balances", "risk_limits", "equity_points", "kill_switches", "parent_orders")
    # And it looks at the margin of every account, and pays funding to all.
    margined = ("exposures", "positions")
    read_whole = {("worker", table) for table in ("outbox", "departures", *valued, *margined)}
    for role in ("rpc", "worker"):
        async with open_database(installation.url(f"orders_{role}"), 1) as database:
            for table in OWNED:
                if (role, table) in {("rpc", "outbox"), ("rpc", "venue_funding")}:
                    continue  # it may not read them at all
                counts = []
                for users in [(anna,), (bert,), (), (anna, bert)]:
                    async with database.transaction(*users) as rows:
                        counts.append(await rows.fetchval(f"SELECT count(*) FROM {table}"))
                hers, his, nobodys, both = counts
                assert hers > 0, (role, table)
                assert both == hers, (role, table)
                if (role, table) not in read_whole:
                    assert (his, nobodys) == (0, 0), (role, table)


@pytest.mark.parametrize("role", ["rpc", "worker"])
async def test_no_role_writes_rows_of_a_user_its_transaction_does_not_name(
    installation: Installation, traded: Trader, role: str
):
    bert = uuid7()
    async with open_database(installation.url(f"orders_{role}"), 1) as database:
        for table in ("accounts", "balances", "trading_orders", "parent_orders"):
            async with database.transaction(bert) as rows:
                assert await rows.execute(f"UPDATE {table} SET user_id = user_id") == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with database.transaction(bert) as rows:
                await rows.execute(
                    "INSERT INTO balances VALUES ($1, 'USDT', $2, 1000000, 0)", UUID(traded.account_id), traded.user_id
                )


async def test_what_the_service_reads_uses_an_index_under_row_security(installation: Installation, traded: Trader):
    """The rows of an account are found by the account; so the policy is checked on a few rows, and needs no index."""
    many = {
        "accounts": "gen_random_uuid(), gen_random_uuid(), 'n', 'paper', 'cash', 0, 0, now()",
        "balances": "account_id, 'X', user_id, 0, 0",
        "positions": "account_id, 'X', user_id, 0, 0, 0, 0, now()",
        "order_events": "account_id, 1, user_id, '', now()",
        "trading_executions": "gen_random_uuid(), user_id, account_id, gen_random_uuid(), 'X', 'buy', 1, 1, 0, 'X', true, '1', now()",
        "order_notes": "gen_random_uuid(), user_id, account_id, 'n'",
        "order_tags": "account_id, 't', gen_random_uuid(), user_id",
        "trading_orders": """
            gen_random_uuid(), user_id, account_id, 'X', 'buy', 'limit', 'gtc', 1, 1, NULL, 'filled', 0, 0, 0,
            'X', 'X', 0, 0, '', now(), now(), now(), 1
            """,
    }
    async with installation.connect() as superuser:
        await superuser.execute("SET search_path = orders")
        for table, values in many.items():
            source = "generate_series(1, 20000)" if table == "accounts" else "accounts WHERE name = 'n'"
            await superuser.execute(f"INSERT INTO {table} SELECT {values} FROM {source}")
            await superuser.execute(f"ANALYZE {table}")
    account_id = UUID(traded.account_id)
    async with open_database(installation.url("orders_rpc"), 1) as database:
        async with database.transaction(traded.user_id) as rows:
            accounts = AccountStore(rows)
            await accounts.lock([account_id])
            await accounts.lock_free([account_id])
            states = await accounts.lock([account_id])
            orders = await store.list_orders(rows, account_id, Filter(), before=None, limit=50)
            order_id = orders[0].order_id
            await accounts.load_orders(states, [order_id])
            await accounts.load_trading(states, ["some fill"])
            await accounts.load_open(states)
            await store.read_state(rows, account_id, [BTC.instrument_id])
            await store.annotations_of(rows, [order_id])
            await store.list_orders(rows, account_id, Filter(tag="some"), before=None, limit=50)
            await store.find_account(rows, account_id)
            await store.list_accounts(rows, traded.user_id, UUID(int=0), 50)
            await store.account_of_order(rows, order_id)
            await store.find_order(rows, order_id)
            await store.open_orders(rows, account_id)
            await store.list_executions(rows, account_id, order_id=None, before=None, limit=50)
            await store.list_executions(rows, account_id, order_id=order_id, before=None, limit=50)
            await store.balances(rows, account_id)
            await store.list_positions(rows, account_id, include_flat=True, after="", limit=50)
            await store.events_after(rows, account_id, 0)
            found = await rows.fetch(
                "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = ANY($1)",
                list(many),
            )
    for row in found:
        assert row["seq_tup_read"] == 0, row
        assert 0 < row["idx_tup_fetch"] < 100, row
    assert {row["relname"] for row in found} == set(many)
