"""What a live account holds at its venue, and what is there that was never sent from here."""

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from tradeloom.execution.v1 import execution_pb2

from libs.errors import Exhausted, RequestIdReused
from libs.ids import uuid7
from libs.store.database import Database, open_database
from services.execution import domain
from services.execution.__main__ import VENUES
from services.execution.live.reconciliation_store import REQUESTED_SECONDS_MIN
from services.execution.servicer import ExecutionServicer
from tests.execution.live_stand import LiveStand, as_user
from tests.execution.stand import until
from tests.servers import PostgresServer
from tests.venues import faults

ANY_CONTEXT: Any = None
NOBODY: Any = None


@pytest.fixture
async def servicer(postgres: PostgresServer, database_name: str, worker: Database) -> Any:
    async with open_database(postgres.url(database_name, "execution_rpc")) as database:
        yield ExecutionServicer(database, worker, VENUES, NOBODY, NOBODY, 0.5)


async def put_by_hand(live: LiveStand, **of: Any) -> None:
    """As its owner does on the venue's own page."""
    async with live.venue.opened() as port:
        await port.submit(live.venue.ticket(**{"client_order_id": str(uuid4()), **of}))


async def test_what_is_deposited_is_told_once(live: LiveStand):
    async with live.connected(reconcile_seconds=0.3):
        live.venue.account.deposit("BTC", "0.25")
        live.venue.account.deposit(live.venue.kind.quote, -500)
        await live.wait_for(f"adjusted: BTC 0.25, {live.venue.kind.quote} -500 as unexplained")
        await live.buy("0.5")
        await live.wait_until_told("filled")
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'periodic' AND difference_count = 0")
    assert len(await live.story()) == 4
    found = await live.stand.everything.fetch("SELECT kind, subject, ours, venues FROM differences ORDER BY subject")
    assert [tuple(row)[:3] for row in found] == [
        ("balance", "BTC", "50"),
        ("balance", live.venue.kind.quote, "1000000"),
    ]


async def test_the_balances_follow_each_fill_exactly(live: LiveStand):
    async with live.connected(reconcile_seconds=0.3):
        await live.buy("0.5")
        await live.wait_until_told("filled")
        held = live.venue.account.balances

        async def is_so() -> bool:
            rows = await live.stand.everything.fetch("SELECT asset, total FROM venue_balances")
            return {row["asset"]: row["total"] for row in rows} == {
                asset: held[asset].free + held[asset].locked for asset in ("BTC", live.venue.kind.quote)
            }

        await until(is_so)
    assert not [one for one in await live.story() if one.startswith("adjusted")]


async def test_a_trade_that_is_not_ours_is_told_with_its_amounts(live: LiveStand):
    quote = live.venue.kind.quote
    async with live.connected(reconcile_seconds=0.3):
        await put_by_hand(live, quantity=Decimal("0.5"))
        await live.stand.wait_for_count(1, "external_orders", "state = 'found'")
        live.venue.market.trade("29000", "0.5", buyer_is_maker=True)
        base = "BTC 0.4995" if quote == "USDT" else "BTC 0.5"
        cost = "USDT -14500" if quote == "USDT" else "USD -14514.5"
        await live.wait_for(f"adjusted: {base}, {cost} as external_fill")
        await live.stand.wait_for_count(1, "external_orders", "state = 'done'")


async def test_an_order_made_by_hand_is_adopted_with_what_is_left_of_it(live: LiveStand, servicer: ExecutionServicer):
    async with live.connected(reconcile_seconds=0.3):
        await put_by_hand(live)
        live.venue.market.trade("29000", "0.25", buyer_is_maker=True)
        await live.wait_until_told("adjusted")
        [found] = await list_external(live, servicer)
        assert (found.buys, found.quantity.value, found.limit_price.value) == (True, "1", "29000")
        request = execution_pb2.AdoptExternalOrderRequest(
            request_id=str(uuid7()), external_order_id=found.external_order_id
        )
        with as_user(live.trader.user_id):
            first = await servicer.AdoptExternalOrder(request, ANY_CONTEXT)
            assert first.order.state == execution_pb2.EXTERNAL_ORDER_STATE_ADOPTING
            assert await servicer.AdoptExternalOrder(request, ANY_CONTEXT) == first
        await live.wait_until_told("adopted: 0.75 at 29000")
        live.venue.market.trade("29000", "0.5", buyer_is_maker=True)
        await live.wait_until_told("filled 0.5 at 29000 as maker")
        [adopted] = await list_external(live, servicer, include_decided=True)
        assert adopted.state == execution_pb2.EXTERNAL_ORDER_STATE_ADOPTED
        await live.cancel(UUID(adopted.order_id))
        await live.wait_until_told("canceled: user")
        with as_user(live.trader.user_id), pytest.raises(domain.ExternalOrderDone):
            await servicer.IgnoreExternalOrder(
                execution_pb2.IgnoreExternalOrderRequest(
                    request_id=str(uuid7()), external_order_id=found.external_order_id
                ),
                ANY_CONTEXT,
            )
    assert len([one for one in await live.story() if one.startswith("adjusted")]) == 1


async def test_an_order_in_what_nobody_knows_is_not_adopted(at_binance: LiveStand, servicer: ExecutionServicer):
    live = at_binance
    async with live.connected(reconcile_seconds=0.3):
        await put_by_hand(live)
        await live.stand.wait_for_count(1, "external_orders")
        [found] = await list_external(live, servicer)
        await live.stand.everything.execute("DELETE FROM instruments")
        request = execution_pb2.AdoptExternalOrderRequest(
            request_id=str(uuid7()), external_order_id=found.external_order_id
        )
        with as_user(live.trader.user_id), pytest.raises(domain.InstrumentNotFound) as refused:
            await servicer.AdoptExternalOrder(request, ANY_CONTEXT)
        assert refused.value.metadata == {"instrument_id": found.instrument_id}
        assert await list_external(live, servicer) == [found]


async def test_an_ignored_order_stays_its_owners_and_is_not_listed(at_binance: LiveStand, servicer: ExecutionServicer):
    live = at_binance
    async with live.connected(reconcile_seconds=0.3):
        await put_by_hand(live)
        await put_by_hand(live)
        await live.stand.wait_for_count(2, "external_orders")
        found, other = await list_external(live, servicer)
        request = execution_pb2.IgnoreExternalOrderRequest(
            request_id=str(uuid7()), external_order_id=found.external_order_id
        )
        with as_user(uuid7()), pytest.raises(domain.ExternalOrderNotFound):
            await servicer.IgnoreExternalOrder(request, ANY_CONTEXT)
        with as_user(live.trader.user_id):
            ignored = await servicer.IgnoreExternalOrder(request, ANY_CONTEXT)
            assert await servicer.IgnoreExternalOrder(request, ANY_CONTEXT) == ignored
            request.external_order_id = other.external_order_id
            with pytest.raises(RequestIdReused):
                await servicer.IgnoreExternalOrder(request, ANY_CONTEXT)
        assert ignored.order.state == execution_pb2.EXTERNAL_ORDER_STATE_IGNORED
        assert await list_external(live, servicer) == [other]


async def list_external(live: LiveStand, servicer: ExecutionServicer, **of: Any) -> list[Any]:
    with as_user(live.trader.user_id):
        request = execution_pb2.ListExternalOrdersRequest(account_id=str(live.trader.account_id), **of)
        return list((await servicer.ListExternalOrders(request, ANY_CONTEXT)).orders)


async def test_an_owner_has_their_account_compared_not_too_often_and_nobody_elses(
    at_binance: LiveStand, servicer: ExecutionServicer
):
    live, account_id = at_binance, str(at_binance.trader.account_id)

    def request() -> execution_pb2.ReconcileRequest:
        return execution_pb2.ReconcileRequest(request_id=str(uuid7()), account_id=account_id)

    async with live.connected():
        with as_user(uuid7()), pytest.raises(domain.AccountNotFound):
            await servicer.Reconcile(request(), ANY_CONTEXT)
        with as_user(live.trader.user_id, account_ids=frozenset({uuid7()})), pytest.raises(domain.AccountNotFound):
            await servicer.Reconcile(request(), ANY_CONTEXT)
        with as_user(live.trader.user_id):
            first = request()
            asked = await servicer.Reconcile(first, ANY_CONTEXT)
            with pytest.raises(Exhausted) as caught:
                await servicer.Reconcile(request(), ANY_CONTEXT)
            assert 0 < (caught.value.retry_after_seconds or 0) <= REQUESTED_SECONDS_MIN
            assert await servicer.Reconcile(first, ANY_CONTEXT) == asked, "a repeat is no second one"
        # Who keeps the whole running waits for nobody.
        with as_user(uuid7(), roles={"operator"}):
            await servicer.Reconcile(request(), ANY_CONTEXT)
        await live.stand.wait_for_count(2, "reconciliations", "cause = 'requested' AND state = 'done'")


async def test_an_operator_has_an_account_compared_and_its_owner_sees_what_was_found(
    at_binance: LiveStand, servicer: ExecutionServicer
):
    live, operator = at_binance, uuid7()
    account_id = str(live.trader.account_id)
    request = execution_pb2.ReconcileRequest(request_id=str(uuid7()), account_id=account_id)
    with as_user(operator, roles={"operator"}), pytest.raises(domain.AccountNotFound):
        await servicer.Reconcile(request, ANY_CONTEXT)
    async with live.connected():
        live.venue.account.deposit("BTC", 1)
        with as_user(operator, roles={"operator"}):
            asked = (await servicer.Reconcile(request, ANY_CONTEXT)).reconciliation
            assert (await servicer.Reconcile(request, ANY_CONTEXT)).reconciliation == asked
        await live.wait_for("adjusted: BTC 1 as unexplained")
        await live.stand.wait_for_count(1, "reconciliations", "cause = 'requested' AND state = 'done'")
    get = execution_pb2.GetReconciliationRequest(reconciliation_id=asked.reconciliation_id)
    listing = execution_pb2.ListReconciliationsRequest(account_id=account_id, page_size=1)
    for caller, roles in ((operator, {"operator"}), (live.trader.user_id, set[str]())):
        with as_user(caller, roles=roles):
            found = (await servicer.GetReconciliation(get, ANY_CONTEXT)).reconciliation
        assert found.state == execution_pb2.RECONCILIATION_STATE_DONE
        [difference] = found.differences
        assert (difference.subject, difference.ours, difference.venues) == ("BTC", "50", "51")
    with as_user(live.trader.user_id):
        page = await servicer.ListReconciliations(listing, ANY_CONTEXT)
        assert [one.cause for one in page.reconciliations] == [execution_pb2.RECONCILIATION_CAUSE_REQUESTED]
        rest = execution_pb2.ListReconciliationsRequest(account_id=account_id, page_token=page.next_page_token)
        assert [one.cause for one in (await servicer.ListReconciliations(rest, ANY_CONTEXT)).reconciliations] == [
            execution_pb2.RECONCILIATION_CAUSE_START
        ]
    with as_user(uuid7()):
        with pytest.raises(domain.ReconciliationNotFound):
            await servicer.GetReconciliation(get, ANY_CONTEXT)
        with pytest.raises(domain.AccountNotFound):
            await servicer.ListReconciliations(listing, ANY_CONTEXT)


async def test_an_order_that_stays_unknown_is_listed_and_then_alerted(
    at_binance: LiveStand, servicer: ExecutionServicer, monkeypatch: pytest.MonkeyPatch
):
    live = at_binance
    async with live.connected(unknown_alert_seconds=0.5) as carried:
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(faults.lost_answer(method="POST", path="/api/v3/order"))
        live.venue.fault(faults.server_error(method="GET", path="/api/v3/order", times=1_000))
        order_id = await live.place()
        await live.wait_for_state(order_id, "unknown")

        async def is_alerted() -> bool:
            return any("unknown for too long" in trouble for trouble in carried.troubles)

        await until(is_alerted)
        listed = await servicer.ListUnknownOrders(execution_pb2.ListUnknownOrdersRequest(), ANY_CONTEXT)
        [unknown] = listed.orders
        assert (unknown.order_id, unknown.account_id) == (str(order_id), str(live.trader.account_id))
        assert unknown.alerted
        assert listed.next_page_token == ""
        live.venue.venue.faults.requests.clear()
        await live.wait_for("unknown", "accepted")
    assert live.sent_count(order_id) == 1
