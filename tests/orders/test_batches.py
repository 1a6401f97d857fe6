"""Orders that share a transaction: each has its own outcome, and nobody holds up the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tradeloom.orders.v1 import orders_pb2

from libs.errors import Refusal, RequestIdReused, Unavailable
from libs.ids import uuid7
from libs.store import requests
from libs.store.database import open_database
from libs.store.requests import RequestKey
from services.orders import books, use_cases, wire
from services.orders.__main__ import PlaceTogether
from services.orders.batches import Bounds, Patience, batching
from services.orders.domain import Account, AccountKind, Limits, Mode, OrderType, RiskLimits, Side, Ticket, TimeInForce
from services.orders.market import Market, now
from services.orders.refusals import AccountNotFound
from services.orders.store import AccountStore
from services.orders.use_cases import Placing
from tests.mesh import Installation
from tests.orders.stand import BTC, WAIT_SECONDS, announce, locked, select, waits_for_a_lock

BOUNDS = Bounds(batch_max=100, waiting_max=2000, locked_max=2)
METHOD = "tradeloom.orders.v1.PlaceOrder"


@dataclass
class Desk:
    """Places for real, and remembers what shared a transaction."""

    installation: Installation
    together: PlaceTogether
    batches: list[tuple[int, Patience]] = field(default_factory=list)

    async def place(self, placings: Sequence[Placing], patience: Patience) -> list[bytes | Refusal]:
        self.batches.append((len(placings), patience))
        return await self.together(placings, patience)

    async def open_account(self, usdt: object = 1000, user_id: UUID | None = None) -> Account:
        account = Account(
            account_id=uuid7(),
            user_id=user_id or uuid7(),
            name="test",
            mode=Mode.PAPER,
            kind=AccountKind.CASH,
            create_time=now(),
        )
        async with self.together.database.transaction(account.user_id) as rows:
            state = books.open_account(account, [("USDT", Decimal(str(usdt)))], now())
            await AccountStore(rows).add_account(state)
        return account

    async def orders_of(self, account: Account) -> list[UUID]:
        found = await select(
            self.installation,
            "SELECT order_id FROM trading_orders WHERE account_id = $1 ORDER BY order_id",
            account.account_id,
        )
        return [row["order_id"] for row in found]


@pytest.fixture
async def desk(installation: Installation) -> AsyncIterator[Desk]:
    await announce(installation, BTC)
    async with open_database(installation.url("orders_rpc")) as database:
        market = Market()
        await market.read_instruments(database)
        limits = Limits(quote_age_seconds_max=10, market_protection=Decimal("0.05"))
        usual = RiskLimits(open_orders_max=1_000, orders_per_second_max=1_000, price_collar_percent=Decimal(10))
        place_orders = use_cases.PlaceOrders(
            market, limits, use_cases.Weigh(market, usual), use_cases.NoteRefusals(uuid7), wire.place_answer, uuid7, now
        )
        yield Desk(installation, PlaceTogether(database, place_orders))


def placing(
    account: Account,
    quantity: object = "0.1",
    *,
    price: object = 100,
    request_id: str = "",
    user_id: UUID | None = None,
    instrument_id: str = BTC.instrument_id,
) -> Placing:
    ticket = Ticket(
        account_id=account.account_id,
        instrument_id=instrument_id,
        side=Side.BUY,
        order_type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC,
        quantity=Decimal(str(quantity)),
        limit_price=Decimal(str(price)),
    )
    digest = repr(ticket).encode()
    return Placing(RequestKey(user_id or account.user_id, METHOD, request_id or str(uuid4()), digest), ticket)


def order_id(outcome: Any) -> UUID:
    assert isinstance(outcome, bytes), outcome
    return UUID(orders_pb2.PlaceOrderResponse.FromString(outcome).order.order_id)


def told(outcome: Any) -> str:
    """The reason of a refusal, "placed" for an answer."""
    return "placed" if isinstance(outcome, bytes) else outcome.reason


async def all_at_once(desk: Desk, placings: Sequence[Placing], bounds: Bounds = BOUNDS) -> list[Any]:
    async with batching(desk.place, bounds) as placed:
        async with asyncio.timeout(WAIT_SECONDS):
            return await asyncio.gather(*(placed.place(each) for each in placings), return_exceptions=True)


async def test_one_refused_order_leaves_the_others_of_its_batch_alone(desk: Desk):
    rich, poor = await desk.open_account(), await desk.open_account(usdt=1)
    outcomes = await all_at_once(
        desk,
        [
            placing(rich),
            placing(poor),
            placing(rich, "0.0005"),
            placing(rich, price="100.001"),
            placing(rich, instrument_id="SIM:NONE"),
            placing(rich, "0.01", price=1),
            placing(rich, "1000"),
            placing(rich),
        ],
    )
    assert desk.batches == [(8, Patience.SOME)]
    assert list(map(told, outcomes)) == [
        "placed",
        "INSUFFICIENT_BALANCE",
        "QUANTITY_OFF_LOT",
        "PRICE_OFF_TICK",
        "INSTRUMENT_NOT_FOUND",
        "NOTIONAL_TOO_SMALL",
        "INSUFFICIENT_BALANCE",
        "placed",
    ]
    assert await desk.orders_of(rich) == [order_id(outcomes[0]), order_id(outcomes[-1])]
    assert await desk.orders_of(poor) == []


async def test_two_users_in_one_batch_cannot_trade_in_each_others_accounts(desk: Desk):
    anna, bert = await desk.open_account(), await desk.open_account()
    outcomes = await all_at_once(
        desk,
        [
            placing(anna),
            placing(bert),
            placing(anna, user_id=bert.user_id),
            placing(bert, user_id=anna.user_id),
        ],
    )
    assert desk.batches == [(4, Patience.SOME)]
    assert list(map(told, outcomes)) == ["placed", "placed", "ACCOUNT_NOT_FOUND", "ACCOUNT_NOT_FOUND"]
    assert await desk.orders_of(anna) == [order_id(outcomes[0])]
    assert await desk.orders_of(bert) == [order_id(outcomes[1])]


async def test_a_request_twice_in_a_batch_is_one_order_and_another_body_is_refused(desk: Desk):
    account = await desk.open_account()
    outcomes = await all_at_once(
        desk,
        [placing(account, request_id="one"), placing(account, request_id="one"), placing(account, 1, request_id="one")],
    )
    assert desk.batches == [(3, Patience.SOME)]
    assert list(map(told, outcomes)) == ["placed", "placed", "REQUEST_ID_REUSED"]
    assert outcomes[0] == outcomes[1]
    assert len(await desk.orders_of(account)) == 1
    # Also later, when the first is in the database.
    again = await all_at_once(desk, [placing(account, request_id="one"), placing(account, 1, request_id="one")])
    assert again[0] == outcomes[0]
    assert isinstance(again[1], RequestIdReused)
    assert len(await desk.orders_of(account)) == 1


async def test_a_refused_order_leaves_its_request_id_free_for_another_body_in_the_same_batch(desk: Desk):
    account = await desk.open_account()
    outcomes = await all_at_once(
        desk,
        [
            placing(account, "1000", request_id="one"),
            placing(account, "0.1", request_id="one"),
            placing(account, "1000", request_id="one"),
        ],
    )
    assert desk.batches == [(3, Patience.SOME)]
    assert list(map(told, outcomes)) == ["INSUFFICIENT_BALANCE", "placed", "REQUEST_ID_REUSED"]


async def test_a_request_that_another_transaction_uses_meanwhile_is_found_out_alone(desk: Desk):
    account, other = await desk.open_account(), await desk.open_account()
    taken = placing(account, request_id="taken")
    async with desk.together.database.transaction(account.user_id) as rows:
        # As another replica does, which has not committed when this one looks.
        await requests.add(rows, {taken.key: b"the first answer"})
        async with batching(desk.place, BOUNDS) as placed:
            outcome = asyncio.gather(*(placed.place(each) for each in (placing(other), taken, placing(account))))
            await waits_for_a_lock(desk.installation)
            await rows.execute("COMMIT; BEGIN")
            outcomes = await asyncio.wait_for(outcome, WAIT_SECONDS)
    assert outcomes[1] == b"the first answer"
    assert [told(outcome) for outcome in outcomes] == ["placed"] * 3
    assert len(await desk.orders_of(account)) == 1
    assert [size for size, _ in desk.batches][-3:] == [1, 1, 1]


async def test_an_order_that_cannot_be_written_fails_alone(desk: Desk):
    account, other = await desk.open_account(), await desk.open_account()
    broken = placing(account)
    broken = Placing(RequestKey(account.user_id, METHOD, "nul \x00", broken.key.digest), broken.ticket)
    outcomes = await all_at_once(desk, [placing(account), broken, placing(other)])
    assert [size for size, _ in desk.batches] == [3, 1, 1, 1]
    assert isinstance(outcomes[1], asyncpg.DataError)
    assert [told(outcomes[0]), told(outcomes[2])] == ["placed", "placed"]
    assert (len(await desk.orders_of(account)), len(await desk.orders_of(other))) == (1, 1)


async def test_an_account_that_another_session_has_locked_holds_up_nobody_else(desk: Desk):
    stuck, free = await desk.open_account(), await desk.open_account()
    async with batching(desk.place, BOUNDS) as placed, locked(desk.installation, str(stuck.account_id)) as other:
        waiting = [asyncio.create_task(placed.place(placing(stuck))) for _ in range(3)]
        foreign = asyncio.create_task(placed.place(placing(stuck, user_id=free.user_id)))
        together = [asyncio.create_task(placed.place(placing(free))) for _ in range(3)]
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*together)
            # Who does not own it does not wait for it either.
            with pytest.raises(AccountNotFound):
                await foreign
            # From now on what is for it goes straight to its lane: no batch of the others waits again.
            waiting += [asyncio.create_task(placed.place(placing(stuck))) for _ in range(2)]
            before = len(desk.batches)
            await placed.place(placing(free))
            assert desk.batches[before:] == [(1, Patience.SOME)]
            assert not any(task.done() for task in waiting)
            await waits_for_a_lock(desk.installation)
            await other.execute("COMMIT")
            await asyncio.gather(*waiting)
    assert (len(await desk.orders_of(stuck)), len(await desk.orders_of(free))) == (5, 4)
    # Those that came while the first three waited share one batch.
    assert desk.batches == [
        (7, Patience.SOME),
        (7, Patience.NONE),
        (3, Patience.MUCH),
        (1, Patience.SOME),
        (2, Patience.MUCH),
    ]


async def test_who_waits_too_long_for_an_account_is_told_to_repeat(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("services.orders.__main__.LOCK_SECONDS", 0.2)
    stuck = await desk.open_account()
    request = placing(stuck)
    async with batching(desk.place, BOUNDS) as placed:
        async with locked(desk.installation, str(stuck.account_id)):
            with pytest.raises(Unavailable) as refused:
                await asyncio.wait_for(placed.place(request), WAIT_SECONDS)
            assert refused.value.reason == "DEPENDENCY_UNAVAILABLE"
        # Its lane is gone with it.
        assert told(await placed.place(request)) == "placed"
    assert desk.batches[-1] == (1, Patience.SOME)


async def test_more_than_may_be_on_their_way_are_too_many(desk: Desk):
    account = await desk.open_account()
    bounds = Bounds(batch_max=2, waiting_max=5, locked_max=1)
    outcomes = await all_at_once(desk, [placing(account) for _ in range(7)], bounds)
    assert list(map(told, outcomes)) == ["placed"] * 5 + ["TOO_BUSY"] * 2
    assert outcomes[-1].retry_after_seconds == 0.5
    assert [size for size, _ in desk.batches] == [2, 2, 1]


async def test_a_locked_account_takes_no_more_room_than_one_batch(desk: Desk):
    stuck, free = await desk.open_account(), await desk.open_account()
    bounds = Bounds(batch_max=2, waiting_max=100, locked_max=1)
    async with batching(desk.place, bounds) as placed, locked(desk.installation, str(stuck.account_id)) as other:
        first = asyncio.create_task(placed.place(placing(stuck)))
        await waits_for_a_lock(desk.installation)
        await placed.place(placing(free))  # and by now the first is in its lane
        rest = [asyncio.create_task(placed.place(placing(stuck))) for _ in range(4)]
        await placed.place(placing(free))
        await waits_for_a_lock(desk.installation)
        await other.execute("COMMIT")
        outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
    assert list(map(told, outcomes)) == ["placed"] * 3 + ["TOO_BUSY"] * 2


async def test_who_leaves_before_its_batch_begins_places_nothing(desk: Desk):
    account = await desk.open_account()
    async with batching(desk.place, BOUNDS) as placed, locked(desk.installation, str(account.account_id)) as other:
        first = asyncio.create_task(placed.place(placing(account)))
        await waits_for_a_lock(desk.installation)
        left = asyncio.create_task(placed.place(placing(account)))
        await asyncio.sleep(0)
        left.cancel()
        await other.execute("COMMIT")
        await first
        with pytest.raises(asyncio.CancelledError):
            await left
    assert len(await desk.orders_of(account)) == 1


async def test_stopping_in_mid_batch_answers_everybody(desk: Desk):
    account, other_account = await desk.open_account(), await desk.open_account()
    async with locked(desk.installation, str(account.account_id)):
        async with batching(desk.place, BOUNDS) as placed:
            tasks = [asyncio.create_task(placed.place(placing(each))) for each in (account, other_account, account)]
            await waits_for_a_lock(desk.installation)
            tasks.append(asyncio.create_task(placed.place(placing(account))))
            await asyncio.sleep(0)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_SECONDS)
        late = await asyncio.gather(placed.place(placing(account)), return_exceptions=True)
    for outcome in [*outcomes, *late]:
        # The other account's may have been placed before the stop; what is told is what is so.
        assert isinstance(outcome, bytes) or "stopping" in str(outcome)
    assert not isinstance(outcomes[0], bytes)
    assert await desk.orders_of(account) == []
    assert len(await desk.orders_of(other_account)) == isinstance(outcomes[1], bytes)


async def test_stopping_while_a_batch_is_being_divided_answers_everybody(desk: Desk):
    account = await desk.open_account()
    dividing = asyncio.Event()

    async def place(placings: Sequence[Placing], patience: Patience) -> list[bytes | Refusal]:
        if len(placings) > 1:
            raise asyncpg.DataError("one of them cannot be written")
        dividing.set()
        return await asyncio.Future()

    async with batching(place, BOUNDS) as placed:
        tasks = [asyncio.create_task(placed.place(placing(account))) for _ in range(3)]
        await dividing.wait()
    async with asyncio.timeout(WAIT_SECONDS):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all("stopping" in str(outcome) for outcome in outcomes)
