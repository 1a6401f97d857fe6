"""Parent orders in their database, under any number of workers, and over the wire."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.orders.v1 import orders_pb2, parents_pb2, risk_pb2

from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import Database, open_database
from libs.store.outbox import Fact
from services.orders import consumers, parent_store, parents, stepping, store, upkeep, use_cases
from services.orders.domain import Account, AccountKind, Mode, Quote, Side, State
from services.orders.market import Market
from services.orders.parent_store import ParentStore
from services.orders.parent_use_cases import CancelParentOrder, PlaceParentOrder, StepParentOrder
from services.orders.parents import Parent, ParentKind, ParentState, ParentTicket
from services.orders.refusals import TooManyParentOrders
from services.orders.stepping import Stepping
from services.orders.store import AccountStore, Filter
from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.accounts import BTC, LIMITS, NOW, QUOTE, USUAL
from tests.orders.parent_desk import OneMarket
from tests.orders.stand import (
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    reason,
    refusal,
    select,
    trader,
    until,
)

PARENTS_MAX = 3


class Killed(Exception):
    """The process died."""


@dataclass
class Desk:
    """Accounts and parents in Postgres, under a clock of the test's own; the use cases are those of the service."""

    installation: Installation
    rpc: Database
    worker: Database
    market: OneMarket = field(default_factory=OneMarket)
    now: datetime = NOW
    _told: int = 0

    def __post_init__(self) -> None:
        self.weigh = use_cases.Weigh(self.market, USUAL)  # type: ignore[arg-type]

    def clock(self) -> datetime:
        return self.now

    @property
    def step_parent(self) -> StepParentOrder:
        noting = use_cases.NoteRefusals(uuid7)
        return StepParentOrder(self.market, LIMITS, self.weigh, noting, uuid7, self.clock)

    @property
    def replica(self) -> Stepping:
        """One replica's worker."""
        return Stepping(self.worker, self.step_parent, self.clock)

    async def open(self, user_id: UUID | None = None, balance: str = "1000000") -> Account:
        async with self.rpc.transaction(user_id := user_id or uuid7()) as rows:
            create = use_cases.CreateAccount(uuid7, self.clock, 50)
            return await create(
                AccountStore(rows),
                user_id=user_id,
                name="test",
                mode=Mode.PAPER,
                kind=AccountKind.CASH,
                starting={"USDT": Decimal(balance)},
                valuation_asset="",
            )

    async def place(self, account: Account, **asked: Any) -> Parent:
        usual = {"instrument_id": BTC.instrument_id, "side": Side.BUY, "kind": ParentKind.TWAP}
        ticket = ParentTicket(account_id=account.account_id, **{**usual, **asked})
        async with self.rpc.transaction(account.user_id) as rows:
            placing = PlaceParentOrder(self.market, uuid7, self.clock, PARENTS_MAX)
            return await placing(AccountStore(rows), ParentStore(rows), ticket)

    async def twap(self, account: Account, quantity: str = "1", **asked: Any) -> Parent:
        """Of ten slices, ten seconds apart."""
        times = {"end_time": self.now + timedelta(seconds=100), "slice_interval": timedelta(seconds=10)}
        return await self.place(account, quantity=Decimal(quantity), **{**times, **asked})

    async def iceberg(self, account: Account, **asked: Any) -> Parent:
        sizes = {"quantity": Decimal(1), "slice_quantity": Decimal("0.4"), "limit_price": Decimal(100)}
        return await self.place(account, kind=ParentKind.ICEBERG, **{**sizes, **asked})

    async def due(self) -> list[parent_store.Due]:
        async with self.worker.reading() as rows:
            return await parent_store.due_parents(rows, self.now, 100)

    async def steps(self) -> None:
        """Until nothing is due."""
        while found := await self.due():
            for each in found:
                await self.replica.step(each)

    async def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        await self.steps()

    async def found(self, parent: Parent) -> Parent:
        async with self.rpc.transaction(parent.user_id) as rows:
            found = await parent_store.find(rows, parent.parent_order_id)
        assert found
        return found

    async def children(self, parent: Parent) -> list[Any]:
        async with self.rpc.transaction(parent.user_id) as rows:
            wanted = Filter(parent_order_id=parent.parent_order_id)
            return (await store.list_orders(rows, parent.account_id, wanted, before=None, limit=500))[::-1]

    async def tell(self, parent: Parent, *messages: Any) -> list[bool]:
        """As the reader of execution's facts applies them; whether a worker was woken, each time."""
        woken: list[bool] = []
        for message in messages:
            self._told += 1
            fact = Fact(
                key=str(parent.account_id),
                sequence=self._told,
                user_id=parent.user_id,
                kind=message.DESCRIPTOR.full_name,
                payload=message.SerializeToString(),
            )
            wakes: list[None] = []
            known = Market()
            step_waiting = use_cases.StepWaiting(known, LIMITS, use_cases.Weigh(known, USUAL), self.clock)
            apply = consumers.ApplyExecution(uuid7, self.clock, known, step_waiting, lambda w=wakes: w.append(None))
            async with self.worker.transaction(parent.user_id) as rows:
                await apply(rows, [fact])
            woken.append(bool(wakes))
        return woken

    async def fill(self, parent: Parent, quantity: str = "") -> list[bool]:
        """Has the venue fill what is open."""
        return [
            woken
            for child in await self.children(parent)
            if child.open_quantity
            for woken in await self.tell(parent, fill_of(child, quantity or f"{child.remaining:f}"))
        ]

    async def end_all(self, parent: Parent) -> None:
        for child in await self.children(parent):
            if child.state is State.PENDING_CANCEL:
                await self.tell(parent, execution_events.VenueCanceled(order_id=str(child.order_id), cause="user"))


def fill_of(child: Any, quantity: str) -> execution_events.VenueFilled:
    return execution_events.VenueFilled(
        order_id=str(child.order_id),
        venue_fill_id=str(uuid7()),
        price=decimal(100),
        quantity=decimal(quantity),
        fee=decimal("0.1"),
        fee_asset="USDT",
        time=timestamp(NOW),
    )


@pytest.fixture
async def desk(installation: Installation) -> AsyncIterator[Desk]:
    async with (
        open_database(installation.url("orders_rpc"), 4) as rpc,
        open_database(installation.url("orders_worker"), 6) as worker,
    ):
        async with worker.transaction() as rows:
            await store.save_instruments(rows, [BTC])
        yield Desk(installation, rpc, worker)


async def test_a_twap_is_worked_to_its_end_and_counts_what_its_children_do(desk: Desk):
    parent = await desk.twap(await desk.open())
    assert await desk.found(parent) == parent
    for number in range(10):
        await desk.steps()
        found = await desk.found(parent)
        assert (found.slice_number, found.open_children, found.working_quantity) == (number + 1, 1, Decimal("0.1"))
        assert await desk.fill(parent, "0.04") == [False]
        assert await desk.fill(parent) == [True]
        await desk.later(10)
    found, children = await desk.found(parent), await desk.children(parent)
    assert (found.state, found.filled_quantity, found.working_quantity) == (ParentState.COMPLETED, 1, 0)
    assert (found.filled_notional, found.fees, found.average_price) == (100, 2, 100)
    assert [child.slice_number for child in children] == list(range(1, 11))
    assert {child.parent_order_id for child in children} == {parent.parent_order_id}
    assert await desk.due() == []


async def test_the_next_part_of_an_iceberg_follows_the_fill_of_the_one_before(desk: Desk):
    parent = await desk.iceberg(await desk.open())
    await desk.steps()
    for count in (1, 2, 3):
        assert len(await desk.children(parent)) == count
        assert await desk.due() == []
        assert await desk.fill(parent) == [True]
        assert len(await desk.due()) == 1
        await desk.steps()
    assert [f"{child.quantity:.1f}" for child in await desk.children(parent)] == ["0.4", "0.4", "0.2"]
    assert (await desk.found(parent)).state is ParentState.COMPLETED


async def test_what_a_dca_skips_is_kept_with_its_reason(desk: Desk):
    asked = {"slice_amount": Decimal(50), "slice_interval": timedelta(minutes=1), "purchases": 3}
    parent = await desk.place(await desk.open(), kind=ParentKind.DCA, **asked)
    desk.market.quoted = Quote(bid=None, ask=None, last=None, market_time=NOW, age_seconds=0.1)
    await desk.steps()
    assert (await desk.found(parent)).refusal_reason == "NO_FRESH_PRICE"
    desk.market.quoted = QUOTE
    desk.now += timedelta(minutes=2)
    await desk.steps()
    assert [f"{child.quantity:.3f}" for child in await desk.children(parent)] == ["0.499"]
    async with desk.rpc.transaction(parent.user_id) as rows:
        skips = await parent_store.skips_of(rows, parent.parent_order_id)
    assert [(each.first_slice, each.last_slice, each.reason) for each in skips] == [
        (2, 2, "MISSED"),
        (1, 1, "NO_FRESH_PRICE"),
    ]


async def test_two_workers_at_once_place_each_child_once(desk: Desk):
    account = await desk.open()
    mine = [await desk.twap(account) for _ in range(3)]
    due = await desk.due()
    workers = [desk.replica for _ in range(4)]

    stepped = await asyncio.gather(*(worker.step(each) for worker in workers for each in due), return_exceptions=True)
    assert {each for each in stepped if isinstance(each, bool)} == {True, False}
    assert sum(each is True for each in stepped) <= 3
    await desk.steps()
    for parent in mine:
        assert len(await desk.children(parent)) == 1


@pytest.mark.parametrize("point", ["save", "add_skips", "put", "commit"])
async def test_a_worker_that_is_killed_leaves_nothing_half_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, point: str
):
    parent = await desk.twap(await desk.open())
    desk.now += timedelta(seconds=30)
    [due] = await desk.due()

    async def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if point != "commit":
            patch.setattr(AccountStore if point == "save" else ParentStore, point, die)
        with pytest.raises(Killed):
            async with desk.worker.transaction(due.user_id) as rows:
                named = (due.account_id, due.instrument_id, due.parent_order_id)
                await desk.step_parent(AccountStore(rows), ParentStore(rows), *named)
                raise Killed
    assert await desk.found(parent) == parent
    assert await desk.children(parent) == []
    assert await select(desk.installation, "SELECT 1 FROM parent_order_skips") == []
    await desk.steps()
    assert [child.slice_number for child in await desk.children(parent)] == [4]
    assert (await desk.found(parent)).skipped_slices == 3


async def test_the_database_itself_takes_no_second_child_of_a_slice(desk: Desk):
    parent = await desk.twap(await desk.open())
    await desk.steps()
    # As if what is kept of the parent had been lost.
    await select(
        desk.installation, "UPDATE parent_orders SET slice_number = 0, working_quantity = 0, due_time = start_time"
    )
    [due] = await desk.due()
    with pytest.raises(asyncpg.UniqueViolationError):
        await desk.replica.step(due)
    # It holds up nobody else's, and is put off.
    assert await desk.replica._try(due)
    assert await desk.due() == []
    assert len(await desk.children(parent)) == 1


async def test_a_cancel_is_done_once_the_children_are_and_nothing_follows(desk: Desk):
    parent = await desk.iceberg(await desk.open())
    await desk.steps()
    cancel = CancelParentOrder(desk.clock)
    for _ in range(2):
        async with desk.rpc.transaction(parent.user_id) as rows:
            answered = await cancel(AccountStore(rows), ParentStore(rows), parent.account_id, parent.parent_order_id)
        assert answered.state is ParentState.CANCELING
    [child] = await desk.children(parent)
    assert child.state is State.PENDING_CANCEL
    # The venue refuses, and is asked again.
    await desk.tell(parent, execution_events.VenueCancelRejected(order_id=str(child.order_id), reason="not now"))
    assert (await desk.children(parent))[0].state is State.NEW
    await desk.later(parents.CANCEL_AGAIN.total_seconds())
    assert (await desk.children(parent))[0].state is State.PENDING_CANCEL
    await desk.end_all(parent)
    await desk.steps()
    found = await desk.found(parent)
    assert (found.state, found.open_children, found.working_quantity) == (ParentState.CANCELED, 0, 0)
    await desk.later(1_000)
    assert len(await desk.children(parent)) == 1


async def test_canceling_all_orders_cancels_the_parents_of_what_it_covers(desk: Desk):
    account = await desk.open()
    deployment_id = uuid7()
    mine, other = await desk.twap(account), await desk.twap(account, deployment_id=deployment_id)
    await desk.steps()
    cancel_all = use_cases.CancelAllOrders(desk.clock)
    for selection, expected in (
        (use_cases.Selection(instrument_id="SIM:NONE"), []),
        (use_cases.Selection(side=Side.SELL), []),
        (use_cases.Selection(deployment_id=deployment_id), [other.parent_order_id]),
        (use_cases.Selection(), [mine.parent_order_id]),
    ):
        async with desk.rpc.transaction(account.user_id) as rows:
            _, _, canceling = await cancel_all(AccountStore(rows), account.account_id, selection)
        assert canceling == expected
    for parent in (mine, other):
        await desk.end_all(parent)
        await desk.later(10)
        assert (await desk.found(parent)).state is ParentState.CANCELED
        assert len(await desk.children(parent)) == 1


@pytest.mark.parametrize("whose", ["global", "user"])
async def test_a_kill_switch_that_cancels_ends_parents_though_they_have_no_open_order(desk: Desk, whose: str):
    account, waiting = await desk.open(), timedelta(hours=1)
    times = {"start_time": NOW + waiting, "end_time": NOW + 2 * waiting, "slice_interval": waiting / 10}
    parent, bystander = await desk.twap(account, **times), await desk.twap(await desk.open(), **times)
    switched = upkeep.Switched(desk.worker, use_cases.CancelOrdersOf(desk.clock, 200))
    if whose == "global":
        await select(
            desk.installation,
            "INSERT INTO global_switches (mode, reason, canceling, revision, time) VALUES ('halt', '', true, 1, now())",
        )
    else:
        await select(
            desk.installation,
            """
            INSERT INTO kill_switches (user_id, scope, target_id, by_operator, mode, reason, canceling, revision, time)
            VALUES ($1, 'user', $1, false, 'halt', '', true, 1, now())
            """,
            account.user_id,
        )
    await switched()
    await desk.steps()
    assert (await desk.found(parent)).state is ParentState.CANCELED
    expected = ParentState.CANCELED if whose == "global" else ParentState.ACTIVE
    assert (await desk.found(bystander)).state is expected


async def test_who_was_deleted_for_good_has_no_parent_that_goes_on(desk: Desk):
    account = await desk.open()
    parent, later = await desk.iceberg(account), await desk.twap(account, start_time=NOW + timedelta(seconds=50))
    await desk.steps()
    async with desk.worker.transaction(account.user_id) as rows:
        await store.close_accounts(rows, account.user_id)
    # Even before the worker has come to it, nothing is placed.
    await desk.later(50)
    assert (await desk.found(later)).refusal_reason == "USER_DELETED"
    departing = upkeep.Departing(desk.worker, use_cases.CancelOrdersOf(desk.clock, 200))
    await departing.step(account.user_id)
    await desk.end_all(parent)
    await desk.steps()
    for each in (parent, later):
        assert (await desk.found(each)).state is ParentState.CANCELED
    assert [len(await desk.children(each)) for each in (parent, later)] == [1, 0]


async def test_an_account_has_no_more_parents_under_way_than_it_may(desk: Desk):
    account = await desk.open()
    first = await desk.twap(account)
    for _ in range(PARENTS_MAX - 1):
        await desk.twap(account)
    with pytest.raises(TooManyParentOrders) as refused:
        await desk.twap(account)
    assert refused.value.metadata == {"parent_orders_max": str(PARENTS_MAX)}
    await desk.twap(await desk.open(account.user_id))
    async with desk.rpc.transaction(account.user_id) as rows:
        cancel = CancelParentOrder(desk.clock)
        await cancel(AccountStore(rows), ParentStore(rows), account.account_id, first.parent_order_id)
    assert (await desk.found(first)).state is ParentState.CANCELED
    await desk.twap(account)


async def test_one_persons_many_parents_and_locked_account_hold_up_nobody_elses(desk: Desk):
    many, one = await desk.open(), await desk.open()
    for _ in range(PARENTS_MAX):
        await desk.twap(many)
    desk.now += timedelta(seconds=1)
    lonely = await desk.twap(one)
    assert [each.user_id for each in await desk.due()] == [many.user_id, one.user_id, many.user_id, many.user_id]
    async with desk.rpc.transaction(many.user_id) as rows:
        await AccountStore(rows).lock([many.account_id])
        await desk.replica()
        assert len(await desk.children(lonely)) == 1
    await desk.steps()
    assert await desk.due() == []


async def test_looking_for_what_is_due_reads_what_is_due_alone(desk: Desk):
    account = await desk.open()
    await desk.twap(account)
    names = [name for name in parent_store.PARENT_FIELDS if name not in ("parent_order_id", "due_time")]
    await select(
        desk.installation,
        f"""
        INSERT INTO parent_orders (parent_order_id, due_time, {", ".join(names)})
        SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN due_time + interval '1 day' END, {", ".join(names)}
        FROM parent_orders, generate_series(1, 5000) AS n
        """,
    )
    async with desk.installation.connect() as superuser:
        await superuser.execute("ANALYZE orders.parent_orders")
    async with desk.worker.transaction() as rows:
        assert len(await parent_store.due_parents(rows, desk.now, 100)) == 1
        [read] = await rows.fetch(
            "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'parent_orders'"
        )
    assert (read["seq_tup_read"], read["idx_tup_fetch"]) == (0, 1)


# Over the wire.


def asking(account_id: str, request_id: str = "", **schedule: Any) -> parents_pb2.PlaceParentOrderRequest:
    """A TWAP of 0.2 at 100 or better in two slices a second apart, but for what is said."""
    if not schedule:
        now = datetime.now(UTC)
        end = timestamp(now + timedelta(seconds=1.9))
        schedule["twap"] = parents_pb2.Twap(quantity=decimal("0.2"), end_time=end, interval_seconds=1)
        schedule["twap"].limit_price.value = "100"
    return parents_pb2.PlaceParentOrderRequest(
        request_id=request_id or str(uuid7()),
        account_id=account_id,
        instrument_id=BTC.instrument_id,
        side=orders_pb2.ORDER_SIDE_BUY,
        **schedule,
    )


def rests(account_id: str, **other: Any) -> parents_pb2.PlaceParentOrderRequest:
    parts = parents_pb2.Iceberg(quantity=decimal("0.3"), display_quantity=decimal("0.1"), limit_price=decimal("100"))
    return asking(account_id, iceberg=parts, **other)


@dataclass(frozen=True)
class Client:
    """Somebody who places parent orders."""

    person: Trader

    async def place(self, request: parents_pb2.PlaceParentOrderRequest) -> parents_pb2.ParentOrder:
        return (
            await self.person.parents.PlaceParentOrder(request, metadata=self.person.metadata, timeout=20)
        ).parent_order

    async def cancel(self, parent_order_id: str, request_id: str = "") -> parents_pb2.ParentOrder:
        asked = parents_pb2.CancelParentOrderRequest(
            request_id=request_id or str(uuid7()), parent_order_id=parent_order_id
        )
        return (
            await self.person.parents.CancelParentOrder(asked, metadata=self.person.metadata, timeout=20)
        ).parent_order

    async def get(self, parent_order_id: str) -> parents_pb2.GetParentOrderResponse:
        asked = parents_pb2.GetParentOrderRequest(parent_order_id=parent_order_id)
        return await self.person.parents.GetParentOrder(asked, metadata=self.person.metadata, timeout=20)

    async def list(self, **asked: Any) -> parents_pb2.ListParentOrdersResponse:
        request = parents_pb2.ListParentOrdersRequest(account_id=self.person.account_id, **asked)
        return await self.person.parents.ListParentOrders(request, metadata=self.person.metadata, timeout=20)

    async def child(self, parent_order_id: str, number: int) -> orders_pb2.Order:
        """The child of a slice, as soon as there is one."""

        async def found() -> orders_pb2.Order | None:
            children = (await self.person.list_orders(parent_order_id=parent_order_id)).orders
            return next((child for child in children if child.slice_number == number), None)

        return await until(found)

    async def until_state(self, parent_order_id: str, state: Any) -> parents_pb2.ParentOrder:
        async def found() -> parents_pb2.ParentOrder | None:
            parent = (await self.get(parent_order_id)).parent_order
            return parent if parent.state == state else None

        return await until(found)


async def client(served: Served, **other: Any) -> Client:
    return Client(await trader(served, **other))


async def test_a_twap_runs_by_itself_and_its_children_are_orders_like_any_other(orders: Served, venue: Venue):
    anna = await client(orders)
    request = asking(anna.person.account_id)
    placed = await anna.place(request)
    assert (placed.state, placed.slices) == (parents_pb2.PARENT_ORDER_STATE_ACTIVE, 2)
    assert await anna.place(request) == placed
    for number in (1, 2):
        child = await anna.child(placed.parent_order_id, number)
        assert (child.quantity.value, child.limit_price.value) == ("0.1", "100")
        assert (child.time_in_force, child.parent_order_id) == (
            orders_pb2.TIME_IN_FORCE_IOC,
            placed.parent_order_id,
        )
        await venue.tell(anna.person, accepted(child), filled(child, "0.1", 99, fee="0.5"))
    done = await anna.until_state(placed.parent_order_id, parents_pb2.PARENT_ORDER_STATE_COMPLETED)
    assert (done.filled_quantity.value, done.average_price.value, done.fees.value) == ("0.2", "99", "1")
    assert not done.HasField("next_time")
    asked = [parents_pb2.PARENT_ORDER_STATE_ACTIVE]
    assert (await anna.list(states=asked)).parent_orders == []
    assert (await anna.list()).parent_orders == [done]


async def test_the_first_part_follows_the_answer_and_the_next_ones_their_fills_without_a_look_between(
    installation: Installation, venue: Venue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stepping, "POLL_SECONDS", 3_600.0)
    async with stand.served(installation) as orders:
        anna = await client(orders)
        placed = await anna.place(rests(anna.person.account_id))
        for number in (1, 2, 3):
            child = await anna.child(placed.parent_order_id, number)
            await venue.tell(anna.person, accepted(child), filled(child, "0.1", 100))
        await anna.until_state(placed.parent_order_id, parents_pb2.PARENT_ORDER_STATE_COMPLETED)


async def test_parents_are_canceled_listed_and_paged(orders: Served, venue: Venue):
    anna = await client(orders)
    placed = [await anna.place(rests(anna.person.account_id)) for _ in range(3)]
    first = placed[0].parent_order_id
    child = await anna.child(first, 1)
    change = orders_pb2.ReplaceOrderRequest(
        request_id="x", order_id=child.order_id, replacement=orders_pb2.Replacement(quantity=decimal(5))
    )
    assert await reason(anna.person.orders.ReplaceOrder(change, metadata=anna.person.metadata)) == "NOT_REPLACEABLE"
    answers = [await anna.cancel(first, request_id="once") for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].state == parents_pb2.PARENT_ORDER_STATE_CANCELING
    await venue.tell(anna.person, canceled(child))
    await anna.until_state(first, parents_pb2.PARENT_ORDER_STATE_CANCELED)
    refused = await refusal(anna.cancel(first))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PARENT_ORDER_DONE")
    assert refused.metadata == {"parent_order_id": first, "state": "CANCELED"}
    page = await anna.list(page_size=2)
    assert [each.parent_order_id for each in page.parent_orders] == [
        placed[2].parent_order_id,
        placed[1].parent_order_id,
    ]
    page = await anna.list(page_size=2, page_token=page.next_page_token)
    assert ([each.parent_order_id for each in page.parent_orders], page.next_page_token) == ([first], "")


async def test_a_bad_request_is_refused_by_its_field_and_begins_nothing(installation: Installation, orders: Served):
    anna = await client(orders)
    account_id = anna.person.account_id
    long_ago = timestamp(datetime(2020, 1, 1, tzinfo=UTC))
    buying = parents_pb2.Dca(amount=decimal(50), interval_seconds=60, purchases=3)
    selling = asking(account_id, dca=buying)
    selling.side = orders_pb2.ORDER_SIDE_SELL
    for request, fields in (
        (asking(account_id, twap=parents_pb2.Twap(quantity=decimal(1), end_time=long_ago)), ["twap.interval_seconds"]),
        (
            asking(account_id, twap=parents_pb2.Twap(quantity=decimal(1), end_time=long_ago, interval_seconds=1)),
            ["twap.end_time"],
        ),
        (asking(account_id, dca=parents_pb2.Dca(amount=decimal(50), interval_seconds=60)), ["dca.until"]),
        (asking(account_id, dca=parents_pb2.Dca(interval_seconds=60, purchases=1)), ["dca.purchase"]),
        (selling, ["side"]),
    ):
        assert (await refusal(anna.place(request))).fields == fields
    assert await reason(anna.place(rests(str(uuid7())))) == "ACCOUNT_NOT_FOUND"
    unknown = rests(account_id)
    unknown.instrument_id = "SIM:NONE"
    assert await reason(anna.place(unknown)) == "INSTRUMENT_NOT_FOUND"
    assert await select(installation, "SELECT 1 FROM parent_orders") == []


async def test_a_halt_is_noted_in_the_parent_which_goes_on_when_it_is_lifted(orders: Served):
    anna = await client(orders)
    switching = risk_pb2.SetKillSwitchRequest(request_id="on", mode=risk_pb2.KILL_SWITCH_MODE_HALT)
    await anna.person.risks.SetKillSwitch(switching, metadata=anna.person.metadata)
    placed = await anna.place(rests(anna.person.account_id))

    async def is_noted() -> bool:
        return (await anna.get(placed.parent_order_id)).parent_order.refusal.reason == "TRADING_HALTED"

    await until(is_noted)
    switching = risk_pb2.SetKillSwitchRequest(request_id="off", mode=risk_pb2.KILL_SWITCH_MODE_OFF)
    await anna.person.risks.SetKillSwitch(switching, metadata=anna.person.metadata)
    assert (await anna.child(placed.parent_order_id, 1)).quantity.value == "0.1"


async def test_a_schedule_goes_on_after_both_replicas_were_killed(installation: Installation):
    """kill -9, and the parent is where it was: no slice twice, none for more than twice its share, the rest skipped."""
    await stand.announce(installation, stand.BTC)
    with installation.start("orders") as one, installation.start("orders") as other:
        for process in (one, other):
            await process.served.until_ready()
        anna = await client(one.served)
        end = timestamp(datetime.now(UTC) + timedelta(seconds=599.9))
        parts = parents_pb2.Twap(quantity=decimal(60), end_time=end, interval_seconds=1, limit_price=decimal(100))
        placed = await anna.place(asking(anna.person.account_id, twap=parts))
        await anna.child(placed.parent_order_id, 2)
        for process in (one, other):
            process.kill()
        before = await kept_children(installation)
        await one.served.close()
        # However fast it starts again, three slices have fallen due.
        await asyncio.sleep(3.0)
        one.start()
        await one.served.until_ready()

        async def has_gone_on() -> bool:
            return len(await kept_children(installation)) >= len(before) + 2

        await until(has_gone_on)
        after = await kept_children(installation)
    assert after[: len(before)] == before
    numbers = [number for number, _ in after]
    assert len(set(numbers)) == len(numbers)
    # All that is behind is made up, slice by slice.
    assert max(quantity for _, quantity in after) == Decimal("0.2")
    skips = await select(installation, "SELECT first_slice, last_slice FROM parent_order_skips")
    skipped = {number for skip in skips for number in range(skip["first_slice"], skip["last_slice"] + 1)}
    assert skipped
    assert sorted({*numbers} | skipped) == list(range(1, numbers[-1] + 1))
    assert not {*numbers} & skipped


async def kept_children(installation: Installation) -> list[tuple[int, Decimal]]:
    found = await select(
        installation,
        "SELECT slice_number, quantity FROM trading_orders WHERE parent_order_id IS NOT NULL ORDER BY slice_number",
    )
    return [tuple(row) for row in found]
