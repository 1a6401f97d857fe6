"""Trading with real money over the wire: who may, what stops it, and what venues tell of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.orders.v1 import events_pb2, live_pb2, live_pb2_grpc, orders_pb2, risk_pb2
from tradeloom.users.v1 import events_pb2 as users_events

from libs.ids import uuid7
from libs.mesh.wire import time_from_proto, timestamp
from services.orders import consumers, equity_store, store, upkeep
from tests.mesh import Installation, Served, sign_in
from tests.orders import stand
from tests.orders.stand import (
    WAIT_SECONDS,
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    fresh,
    limit,
    locked,
    market,
    quote,
    reason,
    refusal,
    select,
    steps,
    stubs,
    trader,
    until,
)
from tests.users.stand import Told

BTC = replace(stand.BTC, instrument_id="BINANCE:BTCUSDT")
ON, STOPPED = orders_pb2.LIVE_STATE_ON, orders_pb2.LIVE_STATE_STOPPED
CONNECTING, UNCONFIRMED = orders_pb2.LIVE_STATE_CONNECTING, orders_pb2.LIVE_STATE_UNCONFIRMED
SEND_SECONDS = 17


@pytest.fixture
async def orders(installation: Installation) -> AsyncIterator[Served]:
    async with stand.served(installation, BTC, stand.BTC, live_send_seconds=str(SEND_SECONDS)) as service:
        yield service


@dataclass(frozen=True)
class Live:
    """Somebody with a live account, and the others who tell of it."""

    owner: Trader
    venue: Venue
    users: Told
    credential_id: str

    async def account(self) -> orders_pb2.Account:
        return (await self.owner.portfolio()).account

    async def tell(self, *messages: Message) -> None:
        """As users."""
        await self.users.tell("users", self.owner.user_id, *messages)

    async def put(self, revision: int = 1, venue: str = "BINANCE") -> None:
        await self.tell(
            users_events.BrokerCredentialPut(
                credential_id=self.credential_id,
                account_id=self.owner.account_id,
                venue=venue,
                label="l",
                revision=revision,
            )
        )

    async def test(self, state: str = "usable") -> None:
        await self.tell(users_events.BrokerCredentialTested(credential_id=self.credential_id, state=state))

    async def delete(self) -> None:
        await self.tell(
            users_events.BrokerCredentialDeleted(credential_id=self.credential_id, account_id=self.owner.account_id)
        )

    def confirm(self, request_id: str = "", **call: Any) -> Any:
        request = live_pb2.ConfirmLiveTradingRequest(
            request_id=request_id or str(uuid7()), account_id=self.owner.account_id
        )
        call = {"metadata": self.owner.metadata, "timeout": WAIT_SECONDS, **call}
        return self.owner.lives.ConfirmLiveTrading(request, **call)

    async def stop(self) -> orders_pb2.Account:
        request = live_pb2.StopLiveTradingRequest(request_id=str(uuid7()), account_id=self.owner.account_id)
        answer = await self.owner.lives.StopLiveTrading(request, metadata=self.owner.metadata, timeout=WAIT_SECONDS)
        return answer.account

    async def until_confirmed(self) -> orders_pb2.Account:
        """Confirms as soon as the key is known here."""

        async def is_confirmed() -> orders_pb2.Account | None:
            try:
                return (await self.confirm()).account
            except stand.aio.AioRpcError:
                return None

        return await until(is_confirmed)

    async def connect(self, **totals: object) -> None:
        balances = [execution_events.VenueBalance(asset=asset, total=decimal(total)) for asset, total in totals.items()]
        await self.venue.tell(
            self.owner, execution_events.VenueConnected(balances=balances, time=timestamp(datetime.now(UTC)))
        )

    async def adjust(self, cause: str, reconciliation_id: str = "", **amounts: object) -> None:
        adjustments = [
            execution_events.VenueAdjustment(asset=asset, amount=decimal(amount)) for asset, amount in amounts.items()
        ]
        message = execution_events.VenueAdjusted(
            adjustments=adjustments,
            cause=cause,
            reconciliation_id=reconciliation_id,
            time=timestamp(datetime.now(UTC)),
        )
        await self.venue.tell(self.owner, message)

    async def until_state(self, state: int, stop_reason: str = "") -> None:
        async def is_so() -> bool:
            account = await self.account()
            return (account.live_state, account.stop_reason) == (state, stop_reason)

        await until(is_so)

    async def until_holds(self, **totals: str) -> dict[str, tuple[Decimal, Decimal]]:
        async def holds() -> dict[str, tuple[Decimal, Decimal]] | None:
            found = await self.owner.balances()
            return (
                found if {a: t for a, (t, _) in found.items()} == {a: Decimal(t) for a, t in totals.items()} else None
            )

        return await until(holds)

    async def ledger(self, kind: str) -> list[orders_pb2.LedgerEntry]:
        """The account's own entries of a kind, oldest first."""
        request = orders_pb2.ListLedgerEntriesRequest(account_id=self.owner.account_id)
        found = await self.owner.portfolios.ListLedgerEntries(request, metadata=self.owner.metadata)
        return [each for each in reversed(found.entries) if (each.kind, each.book) == (kind, "account")]


def opening(**changed: Any) -> orders_pb2.CreateAccountRequest:
    values: dict[str, Any] = {
        "request_id": str(uuid7()),
        "name": "real",
        "mode": orders_pb2.ACCOUNT_MODE_LIVE,
        "kind": orders_pb2.ACCOUNT_KIND_CASH,
        "venue": "BINANCE",
        "valuation_asset": "USDT",
    }
    return orders_pb2.CreateAccountRequest(**{**values, **changed})


async def live_trader(served: Served, venue: Venue, users: Told) -> Live:
    user_id = uuid7()
    apis, metadata = stubs(served), fresh(user_id)
    account = (await apis[1].CreateAccount(opening(), metadata=metadata, timeout=WAIT_SECONDS)).account
    assert (account.mode, account.venue, account.live_state) == (
        orders_pb2.ACCOUNT_MODE_LIVE,
        "BINANCE",
        UNCONFIRMED,
    )
    owner = Trader(*apis, user_id=user_id, metadata=metadata, account_id=account.account_id)
    return Live(owner, venue, users, str(uuid7()))


@pytest.fixture
async def anna(orders: Served, venue: Venue, redis: Redis) -> Live:
    return await live_trader(orders, venue, Told(redis))


@pytest.fixture
async def trading(orders: Served, anna: Live) -> Live:
    """One that trades, with a thousand USDT and half a BTC."""
    await enable(orders)
    await anna.put()
    await anna.test()
    await anna.until_confirmed()
    await anna.connect(USDT=1000, BTC="0.5")
    await anna.until_state(ON)

    async def is_taken() -> bool:
        return not (await preview(anna)).refusals

    await until(is_taken)
    return anna


async def enable(served: Served, request_id: str = "", *, enabled: bool = True, **claims: Any) -> live_pb2.LiveTrading:
    request = live_pb2.SetLiveTradingRequest(request_id=request_id or str(uuid7()), enabled=enabled, reason="tried out")
    metadata = fresh(uuid7(), **{"roles": ["operator"], **claims})
    stub = served.stub(live_pb2_grpc.LiveTradingServiceStub)
    return (await stub.SetLiveTrading(request, metadata=metadata, timeout=WAIT_SECONDS)).live_trading


async def preview(who: Live, **changed: Any) -> orders_pb2.PreviewOrderResponse:
    order = limit(who.owner.account_id, **{"instrument_id": BTC.instrument_id, **changed})
    request = orders_pb2.PreviewOrderRequest(order=order)
    return await who.owner.orders.PreviewOrder(request, metadata=who.owner.metadata, timeout=WAIT_SECONDS)


async def facts(installation: Installation, key: str, kind: Callable[[], Any]) -> list[Any]:
    found = await select(
        installation,
        "SELECT payload FROM outbox WHERE key = $1 AND kind = $2 ORDER BY sequence",
        key,
        kind().DESCRIPTOR.full_name,
    )
    return [kind().FromString(row["payload"]) for row in found]


async def told(installation: Installation, who: Live) -> list[tuple[str, int, bool]]:
    """What execution hears of the account: its key, which one, and whether it trades."""
    found = await facts(installation, f"live/{who.owner.account_id}", events_pb2.LiveAccountChanged)
    assert {(each.account_id, each.venue) for each in found} <= {(who.owner.account_id, "BINANCE")}
    return [(each.credential_id, each.credential_revision, each.trading) for each in found]


# Opening


async def test_a_live_account_is_opened_at_a_venue_that_keys_are_taken_for_and_holds_nothing(orders: Served):
    somebody = await trader(orders)

    async def refused(request: orders_pb2.CreateAccountRequest) -> tuple[str, list[str]]:
        found = await refusal(somebody.portfolios.CreateAccount(request, metadata=somebody.metadata))
        return found.reason, found.fields

    assert await refused(opening(venue="SIM")) == ("INVALID_FIELDS", ["venue"])
    for wrong in (
        opening(venue=""),
        opening(valuation_asset=""),
        opening(starting_balances=[orders_pb2.Amount(asset="USDT", amount=decimal(1))]),
        opening(mode=orders_pb2.ACCOUNT_MODE_PAPER),
    ):
        assert (await refused(wrong))[0] == "INVALID_FIELDS"
    listed = await somebody.portfolios.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=somebody.metadata)
    assert [each.live_state for each in listed.accounts] == [orders_pb2.LIVE_STATE_UNSPECIFIED]


# Who may


async def test_only_an_operator_with_a_fresh_second_factor_enables_real_money(
    installation: Installation, orders: Served
):
    stub = orders.stub(live_pb2_grpc.LiveTradingServiceStub)

    async def stands() -> tuple[bool, int, str]:
        asked = stub.GetLiveTrading(live_pb2.GetLiveTradingRequest(), metadata=sign_in(), timeout=WAIT_SECONDS)
        found = (await asked).live_trading
        return found.enabled, found.revision, found.reason

    assert await stands() == (False, 0, "")
    assert await reason(enable(orders, roles=["user"])) == "NOT_PERMITTED"
    assert await reason(enable(orders, mfa_time=None)) == "STEP_UP_REQUIRED"
    assert await stands() == (False, 0, "")
    operator = str(uuid7())
    first = await enable(orders, "once", sub=operator)
    assert await enable(orders, "once", sub=operator) == first
    assert await reason(enable(orders, "once", enabled=False, sub=operator)) == "REQUEST_ID_REUSED"
    assert await stands() == (True, 1, "tried out")
    assert (await enable(orders, enabled=False)).revision == 2
    changes = await facts(installation, "live", events_pb2.LiveTradingChanged)
    assert [each.enabled for each in changes] == [True, False]


async def test_an_account_is_confirmed_by_its_owner_with_a_fresh_code_and_a_key_found_usable(
    installation: Installation, orders: Served, anna: Live
):
    assert await reason(anna.confirm(metadata=sign_in(anna.owner.user_id, email_verified=True))) == "STEP_UP_REQUIRED"
    assert await reason(anna.confirm(metadata=fresh(anna.owner.user_id, scopes=["trade"]))) == "NOT_PERMITTED"
    none = await refusal(anna.confirm())
    assert (none.reason, none.metadata) == (
        "NO_USABLE_CREDENTIAL",
        {"account_id": anna.owner.account_id, "venue": "BINANCE"},
    )
    await anna.put()
    assert await reason(anna.confirm()) == "NO_USABLE_CREDENTIAL"
    await anna.test("refused")
    await anna.put(2, venue="KRAKEN")
    await anna.test()
    for _ in range(3):
        assert await reason(anna.confirm()) == "NO_USABLE_CREDENTIAL"
    await anna.put(3)
    await anna.test()
    confirmed = await anna.until_confirmed()
    assert (confirmed.live_state, confirmed.stop_reason) == (CONNECTING, "")
    assert await told(installation, anna) == [(anna.credential_id, 3, True)]
    paper = await trader(orders)
    assert await reason(replace(anna, owner=paper).confirm()) == "ACCOUNT_NOT_LIVE"
    assert await reason(replace(anna, owner=paper).stop()) == "ACCOUNT_NOT_LIVE"


async def test_a_repeated_confirmation_gets_the_first_answer_and_is_told_once(
    installation: Installation, orders: Served, trading: Live
):
    first = await trading.confirm("once")
    await trading.connect(USDT=1000, BTC="0.5")
    await trading.until_state(ON)
    assert await trading.confirm("once") == first
    assert (await trading.account()).live_state == ON
    assert len(await told(installation, trading)) == 2
    assert await trading.ledger("adjustment") == []


# What is refused


async def test_an_order_for_real_money_is_taken_only_while_both_have_said_so(orders: Served, trading: Live):
    anna = trading

    async def previewed(**changed: Any) -> list[str]:
        reasons = []
        for status in (await preview(anna, **changed)).refusals:
            info = stand.error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            reasons.append(info.reason)
        return reasons

    async def refused(**changed: Any) -> list[str]:
        first = await reason(anna.owner.place(**{"instrument_id": BTC.instrument_id, **changed}))
        found = await previewed(**changed)
        assert first == found[0]
        return found

    assert await refused(instrument_id=stand.BTC.instrument_id) == ["INSTRUMENT_NOT_AT_VENUE"]
    # Binance ends no order by time.
    assert await refused(time_in_force=orders_pb2.TIME_IN_FORCE_DAY) == ["NOT_TAKEN_BY_VENUE"]
    assert (await anna.stop()).stop_reason == "owner"
    assert await refused() == ["LIVE_TRADING_OFF"]
    await enable(orders, enabled=False)

    async def is_heard() -> bool:
        return await previewed() == ["LIVE_TRADING_DISABLED", "LIVE_TRADING_OFF"]

    await until(is_heard)
    assert await reason(anna.owner.place(instrument_id=BTC.instrument_id)) == "LIVE_TRADING_DISABLED"
    # What is not real goes on.
    assert await (await trader(orders)).place()


async def test_orders_of_real_money_say_until_when_they_are_to_be_sent(
    installation: Installation, orders: Served, redis: Redis, trading: Live
):
    placed = await trading.owner.place(instrument_id=BTC.instrument_id)
    await quote(redis, instrument_id=BTC.instrument_id, bid_price=99.0, ask_price=101.0, last_price=100.0)

    async def bought() -> orders_pb2.Order | None:
        try:
            return (await trading.owner.send(market(trading.owner.account_id, instrument_id=BTC.instrument_id))).order
        except stand.aio.AioRpcError:
            return None

    by_market = await until(bought)
    assert by_market.protection_price.value == "106.05"
    await trading.owner.cancel(placed.order_id)
    changes = await facts(installation, trading.owner.account_id, events_pb2.OrderChanged)
    assert {each.mode for each in changes} == {orders_pb2.ACCOUNT_MODE_LIVE}
    ends = [
        time_from_proto(each.send_before) - time_from_proto(each.event.time) if each.HasField("send_before") else None
        for each in changes
    ]
    assert ends == [timedelta(seconds=SEND_SECONDS)] * 2 + [None]
    paper = await trader(orders)
    await paper.place()
    [change] = await facts(installation, paper.account_id, events_pb2.OrderChanged)
    assert not change.HasField("send_before")


# What stops


@pytest.mark.parametrize(
    ("losing", "stop_reason"),
    [
        (lambda who: who.put(2), "key_replaced"),
        (lambda who: who.delete(), "key_deleted"),
        (lambda who: who.test("refused"), "key_refused"),
    ],
    ids=["replaced", "deleted", "refused"],
)
async def test_an_account_stops_with_its_key(installation: Installation, trading: Live, losing: Any, stop_reason: str):
    await losing(trading)
    await trading.until_state(STOPPED, stop_reason)
    assert await reason(trading.owner.place(instrument_id=BTC.instrument_id)) == "LIVE_TRADING_OFF"
    assert await told(installation, trading) == [(trading.credential_id, 1, True), ("", 0, False)]
    assert await reason(trading.confirm()) == "NO_USABLE_CREDENTIAL"
    # With a usable one it is confirmed anew, and goes on from what the venue holds by then.
    await trading.put(3)
    await trading.test()
    assert (await trading.until_confirmed()).live_state == CONNECTING
    await trading.connect(USDT=900)
    await trading.until_state(ON)
    assert [(each.asset, each.amount.value, each.cause) for each in await trading.ledger("adjustment")] == [
        ("BTC", "-0.5", "reconnected"),
        ("USDT", "-100", "reconnected"),
    ]


async def test_what_its_owner_stopped_keeps_its_key_and_can_be_canceled(
    installation: Installation, trading: Live, venue: Venue
):
    order = await trading.owner.place(instrument_id=BTC.instrument_id)
    await venue.tell(trading.owner, accepted(order))
    await trading.stop()
    assert (await trading.stop()).live_state == STOPPED
    key = trading.credential_id
    assert await told(installation, trading) == [(key, 1, True), (key, 1, False)]
    assert (await trading.owner.cancel(order.order_id)).state == orders_pb2.ORDER_STATE_PENDING_CANCEL
    await venue.tell(trading.owner, canceled(order))

    async def is_free() -> bool:
        return (await trading.owner.balances())["USDT"] == (Decimal(1000), Decimal(0))

    await until(is_free)


async def test_a_key_that_is_deleted_while_its_account_is_being_confirmed_does_not_trade(
    installation: Installation, orders: Served, venue: Venue, redis: Redis
):
    told_of = Told(redis)
    for _ in range(3):
        anna = await live_trader(orders, venue, told_of)
        await anna.put()
        await anna.test()
        await anna.until_confirmed()
        await anna.stop()
        async with locked(installation, anna.owner.account_id) as other:
            confirming = asyncio.create_task(settled(anna.confirm()))
            await anna.delete()
            await stand.waits_for_a_lock(installation)
            await other.execute("COMMIT")
            await confirming
        await anna.until_state(STOPPED, "key_deleted")
        assert (await told(installation, anna))[-1] == ("", 0, False)


async def test_who_is_gone_for_good_trades_no_real_money_and_leaves_no_key(
    installation: Installation, trading: Live, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(upkeep, "POLL_SECONDS", 0.02)
    placed = await trading.owner.place(instrument_id=BTC.instrument_id)
    await trading.tell(users_events.UserPurged(user_id=str(trading.owner.user_id)))
    await trading.until_state(STOPPED, "key_deleted")
    assert (await told(installation, trading))[-1] == ("", 0, False)
    assert await select(installation, "SELECT 1 FROM account_credentials") == []
    assert await reason(trading.confirm()) == "USER_DELETED"

    async def is_over() -> bool:
        # Nobody can ask the venue any more, so that its answer is not waited for.
        return (await select(installation, "SELECT done FROM departures"))[0]["done"]

    await until(is_over)
    assert (await trading.owner.order(placed.order_id)).state == orders_pb2.ORDER_STATE_PENDING_CANCEL


async def test_whoever_watches_an_account_hears_of_its_stop(trading: Live):
    """Through its own fact: the heartbeat that reads anew comes after ten seconds, too late for this stream."""
    owner = trading.owner
    asked = orders_pb2.StreamPortfolioRequest(account_id=owner.account_id)
    stream = owner.portfolios.StreamPortfolio(asked, metadata=owner.metadata, timeout=8)
    assert (await stream.read()).portfolio.account.live_state == ON
    await trading.stop()
    assert (await stream.read()).portfolio.account.live_state == STOPPED
    stream.cancel()


# What venues tell


async def test_the_books_follow_what_the_venue_holds_each_word_once(installation: Installation, trading: Live):
    anna = trading
    assert [(each.asset, each.amount.value) for each in await anna.ledger("opening")] == [
        ("BTC", "0.5"),
        ("USDT", "1000"),
    ]
    order = await anna.owner.place(instrument_id=BTC.instrument_id, quantity="9")
    found_by = str(uuid7())
    await anna.adjust("unexplained", found_by, USDT=-600, XYZ=3)
    await anna.adjust("external_fill", USDT=50, BTC="-0.5")
    balances = await anna.until_holds(USDT="450", XYZ="3")
    assert balances["USDT"] == (Decimal(450), Decimal("900.9"))
    [usdt] = [each for each in (await anna.owner.portfolio()).balances if each.asset == "USDT"]
    assert usdt.available.value == "-450.9"
    assert await reason(anna.owner.place(instrument_id=BTC.instrument_id)) == "INSUFFICIENT_BALANCE"
    adjusted = await anna.ledger("adjustment")
    assert [(each.asset, each.amount.value, each.cause, each.reconciliation_id) for each in adjusted] == [
        ("USDT", "-600", "unexplained", found_by),
        ("XYZ", "3", "unexplained", found_by),
        ("USDT", "50", "external_fill", ""),
        ("BTC", "-0.5", "external_fill", ""),
    ]
    # The same facts again, as from a relay that was killed.
    for sequence in (2, 3):
        word = execution_events.VenueAdjusted(cause="unexplained")
        word.adjustments.add(asset="USDT", amount=decimal(1000))
        await anna.venue.tell_as(anna.owner, sequence, word)
    await anna.venue.tell(anna.owner, filled(order, "4", 100))
    await anna.until_holds(USDT="50", XYZ="3", BTC="4")
    sums = await select(
        installation,
        "SELECT sum(amount) FROM ledger_entries WHERE account_id = $1 GROUP BY transaction_id, asset",
        UUID(anna.owner.account_id),
    )
    assert {row["sum"] for row in sums} == {0}


async def test_a_venues_word_on_the_money_of_a_paper_account_changes_nothing(
    installation: Installation, orders: Served, venue: Venue
):
    paper = await trader(orders)
    order = await paper.place()
    word = execution_events.VenueConnected(balances=[{"asset": "USDT", "total": decimal(1)}])  # type: ignore[list-item]
    await venue.tell(paper, word, filled(order, "0.1", 100))

    async def is_filled() -> bool:
        return (await paper.order(order.order_id)).state == orders_pb2.ORDER_STATE_FILLED

    await until(is_filled)
    assert (await paper.balances())["USDT"] == (Decimal(990), Decimal(0))


async def test_an_order_that_was_made_by_hand_is_the_accounts_once_it_is_adopted(
    installation: Installation, trading: Live, venue: Venue
):
    owner = trading.owner
    stream = owner.events("0")
    await steps(stream, 1)
    adopted = execution_events.VenueAdopted(
        order_id=str(uuid7()),
        client_order_id="by-hand",
        venue_order_id="77",
        instrument_id=BTC.instrument_id,
        buys=True,
        quantity=decimal(20),
        limit_price=decimal(100),
        time=timestamp(datetime.now(UTC)),
    )
    await venue.tell(owner, adopted, adopted)
    [step] = await steps(stream, 1)
    assert (step.event.kind, step.event.order.external) == (orders_pb2.ORDER_EVENT_KIND_WORKING, True)
    [order] = (await owner.list_orders()).orders
    assert await owner.order(adopted.order_id) == order
    assert (order.state, order.external, order.client_order_id) == (orders_pb2.ORDER_STATE_NEW, True, "by-hand")
    assert (order.quantity.value, order.limit_price.value) == ("20", "100")
    assert (await owner.balances())["USDT"] == (Decimal(1000), Decimal(2002))
    await venue.tell(owner, filled(order, "5", 100))
    assert (await owner.cancel(order.order_id)).state == orders_pb2.ORDER_STATE_PENDING_CANCEL
    await venue.tell(owner, canceled(order))
    ends = [each.event.kind for each in await steps(stream, 3)]
    stream.cancel()
    assert set(ends) == {
        orders_pb2.ORDER_EVENT_KIND_FILLED,
        orders_pb2.ORDER_EVENT_KIND_CANCEL_REQUESTED,
        orders_pb2.ORDER_EVENT_KIND_CANCELED,
    }
    assert (await owner.balances())["USDT"] == (Decimal(500), Decimal(0))


async def test_an_order_that_cannot_be_adopted_holds_up_nobody_and_its_owner_is_told(trading: Live, venue: Venue):
    owner = trading.owner
    order = await owner.place(instrument_id=BTC.instrument_id, quantity="1")
    adopted = execution_events.VenueAdopted(
        order_id=str(uuid7()),
        venue_order_id="77",
        instrument_id="BINANCE:NOBODY",
        buys=True,
        quantity=decimal(20),
        limit_price=decimal(100),
        # Nobody tells of it any more.
        time=timestamp(datetime.now(UTC) - consumers.INSTRUMENT_WAIT),
    )
    await venue.tell(owner, adopted, accepted(order), filled(order, "1", 100))

    async def is_filled() -> bool:
        return (await owner.order(order.order_id)).state == orders_pb2.ORDER_STATE_FILLED

    await until(is_filled)
    assert [each.order_id for each in (await owner.list_orders()).orders] == [order.order_id]
    asked = risk_pb2.ListRiskEventsRequest(account_id=owner.account_id)
    events = (await owner.risks.ListRiskEvents(asked, metadata=owner.metadata)).events
    assert [(each.kind, each.instrument_id, each.value) for each in events] == [
        (risk_pb2.RISK_EVENT_KIND_NOT_ADOPTED, "BINANCE:NOBODY", "77")
    ]


async def test_what_was_looked_at_before_a_withdrawal_is_no_peak_after_it(
    installation: Installation, trading: Live, venue: Venue
):
    """The watch reads and writes in two transactions; between them something may be withdrawn."""
    account_id = UUID(trading.owner.account_id)
    worth = (
        "UPDATE accounts SET peak_equity = 1000, day_start_equity = 1000, day_start_time = now() WHERE account_id = $1"
    )
    await select(installation, worth, account_id)
    async with stand.worker_of(installation) as worker:
        async with worker.transaction(trading.owner.user_id) as rows:
            seen = await store.find_account(rows, account_id)
        assert seen is not None
        await trading.adjust("unexplained", USDT=-600)
        await trading.until_holds(USDT="400", BTC="0.5")
        async with worker.transaction(trading.owner.user_id) as rows:
            await equity_store.add_points(rows, [(seen, datetime(2026, 1, 1, tzinfo=UTC), Decimal(1000))])
    [row] = await select(
        installation, "SELECT peak_equity, day_start_equity FROM accounts WHERE account_id = $1", account_id
    )
    assert tuple(row) == (Decimal(400), Decimal(400))


async def settled(call: Any) -> None:
    """Whatever is answered."""
    try:
        await call
    except stand.aio.AioRpcError:
        return
