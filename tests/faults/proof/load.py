"""People who trade, repeat what was not answered, and write down what they were told, outside of all that is killed."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.orders.v1 import orders_pb2

from libs.ids import uuid7
from tests.faults.proof.market import price
from tests.faults.proof.stand import BASE_ASSETS, Doors
from tests.mesh import sign_in
from tests.orders.stand import decimal

CALL_SECONDS = 3.0
RETRY_SECONDS = 0.1
PAUSE_SECONDS = (0.05, 0.4)  # between two wishes of one person
MOMENT_SECONDS = 0.005  # that somebody waits who never asks again
ASKED_ONCE = 0.05  # of all orders
ANSWER_SECONDS = 180.0  # that any outage may last
FEW_OPEN, MANY_OPEN = 2, 12  # orders of one person, between which they come and go
AWAY_TICKS = 8  # of a limit from the middle, at most
FAR_TICKS, FAR_PART = 60, 0.4  # of those that are to rest for a while, and how many are to
RESTING_PART = 0.5  # of the cancels, of what rests
REPLACE_WEIGHT = 8  # of 29, where something rests
# Prices that the market never comes to: what rests there is still open in the end.
NEVER_MET = {orders_pb2.ORDER_SIDE_BUY: Decimal(50), orders_pb2.ORDER_SIDE_SELL: Decimal(200)}
LIST_SIZE = 500  # above what anybody has open
OPENING = {"USDT": Decimal(20_000), **dict.fromkeys(BASE_ASSETS, Decimal(50))}

# What says nothing of whether the call was carried out, or asks to be tried again.
UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
OPEN_STATES = (
    orders_pb2.ORDER_STATE_PENDING_NEW,
    orders_pb2.ORDER_STATE_NEW,
    orders_pb2.ORDER_STATE_PARTIALLY_FILLED,
    orders_pb2.ORDER_STATE_PENDING_REPLACE,
    orders_pb2.ORDER_STATE_UNKNOWN,
)
RESTING_STATES = (orders_pb2.ORDER_STATE_NEW, orders_pb2.ORDER_STATE_PARTIALLY_FILLED)
# What a person may be refused here by good right, and nothing else.
REFUSALS = {"NO_FRESH_PRICE", "INSUFFICIENT_BALANCE", "ORDER_DONE", "NOT_REPLACEABLE", "REPLACEMENT_INVALID"}


@dataclass
class Journal:
    """What people asked and what they were told, by request_id."""

    opened: dict[str, UUID] = field(default_factory=dict)
    """Whose an account is; each began with OPENING."""
    asked: dict[str, orders_pb2.PlaceOrderRequest] = field(default_factory=dict)
    acknowledged: dict[str, orders_pb2.Order] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    """Asked once, and never again although there was no answer: such an order is there once or not at all."""
    cancels: dict[str, str] = field(default_factory=dict)
    """The order of each cancel that was answered."""
    changes: dict[str, orders_pb2.ReplaceOrderRequest] = field(default_factory=dict)
    """What each change that was taken up asked for."""
    taken_up: dict[str, orders_pb2.Order] = field(default_factory=dict)
    """The answer to each of them: the order, with the change under way."""
    refusals: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    """Requests that were answered before, and had to be answered alike."""
    reused: int = 0
    """Request ids that were tried for another order, and had to be refused."""
    unanswered: int = 0
    contradictions: list[str] = field(default_factory=list)
    answer_times: list[float] = field(default_factory=list)

    def outage_seconds(self) -> float:
        """The longest time in which no order was acknowledged."""
        pairs = zip(self.answer_times, self.answer_times[1:], strict=False)
        return max((after - before for before, after in pairs), default=0.0)


@dataclass
class Person:
    """Trades in an account of their own, by chance that a seed repeats."""

    doors: Doors
    journal: Journal
    chance: random.Random
    pause_seconds: tuple[float, float] = PAUSE_SECONDS
    few_open: int = FEW_OPEN
    replace_weight: int = REPLACE_WEIGHT
    far_part: float = FAR_PART
    user_id: UUID = field(default_factory=uuid7)
    account_id: str = ""
    known: list[str] = field(default_factory=list)
    """Request ids of the orders that were acknowledged."""
    changed: list[str] = field(default_factory=list)
    """Request ids of the changes that were taken up."""
    open: list[str] = field(default_factory=list)
    """Orders that may still be open, as far as this person knows."""
    resting: dict[str, str] = field(default_factory=dict)
    """The instrument of each order that rests at a limit, as the stream last told."""
    events: list[orders_pb2.OrderEvent] = field(default_factory=list)
    """The account's story, as one stream that was resumed over every break told it."""

    async def begin(self) -> None:
        request = orders_pb2.CreateAccountRequest(
            request_id=self._id(),
            name="proof",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[
                orders_pb2.Amount(asset=asset, amount=decimal(amount)) for asset, amount in OPENING.items()
            ],
        )
        self.account_id = (await self._answered("CreateAccount", request)).account.account_id
        self.journal.opened[self.account_id] = self.user_id

    async def trade(self, until: asyncio.Event) -> None:
        while not until.is_set():
            wishes = [self._place, self._repeat, self._reuse]
            weights = [12, 2, 1] if len(self.open) < MANY_OPEN else [1, 2, 1]
            if self.resting:
                wishes.append(self._replace)
                weights.append(self.replace_weight)
            if len(self.open) > self.few_open:
                wishes.append(self._cancel)
                weights.append(6)
            [wish] = self.chance.choices(wishes, weights)
            await wish()
            await asyncio.sleep(self.chance.uniform(*self.pause_seconds))

    async def settle(self) -> None:
        """Has everything canceled that the market may meet, and leaves an order of either side where it never comes."""
        asked = orders_pb2.ListOrdersRequest(account_id=self.account_id, states=OPEN_STATES, page_size=LIST_SIZE)
        for order in (await self._answered("ListOrders", asked)).orders:
            await self._ask_to_cancel(order.order_id)
        for side, limit in NEVER_MET.items():
            request = self._order()
            request.side = side
            request.order_type = orders_pb2.ORDER_TYPE_LIMIT
            request.time_in_force = orders_pb2.TIME_IN_FORCE_GTC
            request.quantity.value = "0.02"
            request.limit_price.CopyFrom(decimal(limit))
            await self._ask_for(request)

    async def follow(self) -> None:
        """One stream of the account's events, from the first, resumed by cursor on any replica."""
        cursor = "0"
        while True:
            request = orders_pb2.StreamOrderEventsRequest(account_id=self.account_id, after_cursor=cursor)
            stub = self.chance.choice(self.doors.order_stubs())
            try:
                async for step in stub.StreamOrderEvents(request, metadata=sign_in(self.user_id)):
                    cursor = step.cursor
                    if step.HasField("event"):
                        self.events.append(step.event)
                        self._note(step.event.order)
            except aio.AioRpcError as error:
                # A token's end is the stream's end too, and a new one resumes it.
                if error.code() not in (*UNANSWERED, grpc.StatusCode.UNAUTHENTICATED):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    def _note(self, order: orders_pb2.Order) -> None:
        rests = order.state in RESTING_STATES and order.time_in_force == orders_pb2.TIME_IN_FORCE_GTC
        if rests:
            self.resting[order.order_id] = order.instrument_id
        else:
            self.resting.pop(order.order_id, None)

    async def _place(self) -> None:
        request = self._order()
        if self.chance.random() < ASKED_ONCE:
            await self._ask_once(request)
        else:
            await self._ask_for(request)

    async def _ask_for(self, request: orders_pb2.PlaceOrderRequest) -> None:
        self.journal.asked[request.request_id] = request
        answer = await self._answered_or_refused("PlaceOrder", request)
        if answer is None:
            return
        self.journal.acknowledged[request.request_id] = answer.order
        self.journal.answer_times.append(time.monotonic())
        self.known.append(request.request_id)
        self.open.append(answer.order.order_id)

    async def _ask_once(self, request: orders_pb2.PlaceOrderRequest) -> None:
        """Goes away without waiting long for the answer, and never asks again."""
        self.journal.asked[request.request_id] = request
        stub = self.chance.choice(self.doors.order_stubs())
        try:
            await stub.PlaceOrder(request, metadata=sign_in(self.user_id), timeout=MOMENT_SECONDS)
        except aio.AioRpcError as error:
            if error.code() not in UNANSWERED and reason_of(error) not in REFUSALS:
                raise
        self.journal.given_up.add(request.request_id)

    async def _cancel(self) -> None:
        """One that rests as far as is known, or any: it may be done by now, or on its way."""
        resting = [order_id for order_id in self.open if order_id in self.resting]
        order_id = self.chance.choice(resting if resting and self.chance.random() < RESTING_PART else self.open)
        self.open.remove(order_id)
        await self._ask_to_cancel(order_id)

    async def _replace(self) -> None:
        """Another quantity, another limit, or both."""
        order_id, instrument_id = self.chance.choice(list(self.resting.items()))
        request = orders_pb2.ReplaceOrderRequest(request_id=self._id(), order_id=order_id)
        what = self.chance.choice(["quantity", "limit", "both"])
        if what != "limit":
            request.replacement.quantity.CopyFrom(self._quantity())
        if what != "quantity":
            request.replacement.limit_price.CopyFrom(self._limit(instrument_id))
        answer = await self._answered_or_refused("ReplaceOrder", request)
        if answer is None:
            return
        self.journal.changes[request.request_id] = request
        self.journal.taken_up[request.request_id] = answer.order
        self.changed.append(request.request_id)

    async def _ask_to_cancel(self, order_id: str) -> None:
        request = orders_pb2.CancelOrderRequest(request_id=self._id(), order_id=order_id)
        if await self._answered_or_refused("CancelOrder", request) is not None:
            self.journal.cancels[request.request_id] = order_id

    async def _repeat(self) -> None:
        """What was answered is answered so again, whatever has become of the order."""
        if not self.known:
            return
        request_id = self.chance.choice([*self.known, *self.changed])
        if request_id in self.journal.changes:
            method, request = "ReplaceOrder", self.journal.changes[request_id]
            told = self.journal.taken_up[request_id]
        else:
            method, request = "PlaceOrder", self.journal.asked[request_id]
            told = self.journal.acknowledged[request_id]
        answer = await self._answered(method, request)
        self.journal.repeats += 1
        if answer.order != told:
            self.journal.contradictions.append(f"request {request_id} was answered otherwise when it was repeated")

    async def _reuse(self) -> None:
        if not self.known:
            return
        other = self._order()
        other.request_id = self.chance.choice(self.known)
        other.quantity.value = "0.777"
        try:
            await self._answered("PlaceOrder", other)
        except aio.AioRpcError as error:
            if reason_of(error) != "REQUEST_ID_REUSED":
                raise
            self.journal.reused += 1
        else:
            self.journal.contradictions.append(f"request {other.request_id} was accepted with another body")

    def _order(self) -> orders_pb2.PlaceOrderRequest:
        chance = self.chance
        instrument_id = chance.choice(list(self.doors.market.middle_ticks))
        request = orders_pb2.PlaceOrderRequest(
            request_id=self._id(),
            account_id=self.account_id,
            instrument_id=instrument_id,
            side=chance.choice([orders_pb2.ORDER_SIDE_BUY, orders_pb2.ORDER_SIDE_SELL]),
            order_type=orders_pb2.ORDER_TYPE_MARKET,
            quantity=self._quantity(),
        )
        forces = [orders_pb2.TIME_IN_FORCE_IOC, orders_pb2.TIME_IN_FORCE_FOK]
        if chance.random() < 0.75:
            request.order_type = orders_pb2.ORDER_TYPE_LIMIT
            forces += 3 * [orders_pb2.TIME_IN_FORCE_GTC]
            request.limit_price.CopyFrom(self._limit(instrument_id))
        request.time_in_force = chance.choice(forces)
        return request

    def _quantity(self) -> Any:
        return decimal(Decimal(self.chance.randint(20, 700)) / 1000)

    def _limit(self, instrument_id: str) -> Any:
        middle = self.doors.market.middle_ticks[instrument_id]
        away = FAR_TICKS if self.chance.random() < self.far_part else AWAY_TICKS
        return decimal(f"{price(middle + self.chance.randint(-away, away)):.2f}")

    def _id(self) -> str:
        return str(UUID(int=self.chance.getrandbits(128), version=4))

    async def _answered_or_refused(self, method: str, request: Message) -> Any:
        """None where it was refused by good right."""
        try:
            return await self._answered(method, request)
        except aio.AioRpcError as error:
            if (reason := reason_of(error)) not in REFUSALS:
                raise
            self.journal.refusals[reason] += 1
            return None

    async def _answered(self, method: str, request: Message) -> Any:
        """The same request to any replica, until one answers."""
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            stubs = self.doors.portfolio_stubs() if method == "CreateAccount" else self.doors.order_stubs()
            call: Any = getattr(self.chance.choice(stubs), method)
            try:
                return await call(request, metadata=sign_in(self.user_id), timeout=CALL_SECONDS)
            except aio.AioRpcError as error:
                if error.code() not in UNANSWERED or time.monotonic() > end:
                    raise
                self.journal.unanswered += 1
            await asyncio.sleep(RETRY_SECONDS)


def reason_of(error: aio.AioRpcError) -> str:
    """The catalogued reason of a refusal; empty where there is none."""
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    return info.reason if status and any(detail.Unpack(info) for detail in status.details) else ""


@dataclass
class Load:
    journal: Journal
    people: Sequence[Person]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    trading: list[asyncio.Task[None]] = field(default_factory=list)
    following: list[asyncio.Task[None]] = field(default_factory=list)

    def check(self) -> None:
        """Raises what ended a person's trading, or a stream, before it was to end."""
        for task in (*self.trading, *self.following):
            if task.done():
                task.result()

    async def end(self) -> None:
        """Lets everybody finish what they are at."""
        self.over.set()
        await asyncio.gather(*self.trading)
        self.check()

    async def settle(self) -> None:
        """After the end: nothing is left that the market could change."""
        await asyncio.gather(*(person.settle() for person in self.people))


@asynccontextmanager
async def loading(
    doors: Doors, people: int, seed: int, kind: Callable[[Doors, Journal, random.Random], Person] = Person
) -> AsyncIterator[Load]:
    """So many people trade during the block, or until the load is ended; their streams are followed during all of it."""
    journal = Journal()
    load = Load(journal, [kind(doors, journal, random.Random(f"{seed} {number}")) for number in range(people)])
    try:
        await asyncio.gather(*(person.begin() for person in load.people))
        for person in load.people:
            load.following.append(asyncio.create_task(person.follow()))
            load.trading.append(asyncio.create_task(person.trade(load.over)))
        yield load
    finally:
        tasks = (*load.trading, *load.following)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
