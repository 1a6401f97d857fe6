"""Whole lives of orders and groups, held against a model of its own that only counts."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from uuid import UUID, uuid4

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.errors import Refusal
from libs.ids import uuid7
from services.orders import life, placing, replacing
from services.orders.domain import (
    AccountState,
    GroupKind,
    IllegalMove,
    Kind,
    Order,
    OrderType,
    Position,
    Replacement,
    Side,
    State,
    Ticket,
    TimeInForce,
    Trail,
)
from services.orders.refusals import OrderDone
from tests.examples import examples
from tests.orders.accounts import BTC, LIMITS, NOW, QUOTE, account_with, as_it_is, fill_of, ticket, weighing

FEE = Fraction(1, 1000)
ENDS = {Kind.CANCELED: State.CANCELED, Kind.REJECTED: State.REJECTED, Kind.EXPIRED: State.EXPIRED}
DONE = {State.FILLED, *ENDS.values()}


@dataclass
class Known:
    """What the model remembers of an order."""

    buys: bool
    quantity: Fraction
    price: Fraction
    """The worst one; of a trailing stop that sells none is needed."""
    state: State = State.PENDING_NEW
    filled: Fraction = Fraction(0)
    released: Fraction | None = None
    change: tuple[Fraction | None, Fraction] | None = None
    """The quantity, if it is to be another, and the price that were asked for."""
    mates: list[UUID] = field(default_factory=list)
    role: str = ""

    @property
    def is_open(self) -> bool:
        return self.state not in DONE

    @property
    def lives(self) -> State:
        if self.change:
            return State.PENDING_REPLACE
        return State.PARTIALLY_FILLED if self.filled else State.NEW

    def after(self, kind: Kind) -> State | None:
        """Its state once a venue, or its owner, has said so; None where that makes no sense."""
        match kind:
            case Kind.CANCELED if self.is_open:
                return State.CANCELED
            case Kind.EXPIRED if self.is_open and self.state is not State.HELD:
                return State.EXPIRED
            case Kind.REJECTED if self.is_open and self.state not in (State.HELD, State.PARTIALLY_FILLED):
                return State.REJECTED
            case Kind.WORKING if self.state is State.PENDING_CANCEL:
                return State.PENDING_CANCEL
            case Kind.WORKING if self.state in (State.PENDING_NEW, State.UNKNOWN):
                return self.lives
            case Kind.UNKNOWN if self.is_open and self.state not in (State.HELD, State.UNKNOWN):
                return State.UNKNOWN
            case Kind.CANCEL_REJECTED if self.state in (State.PENDING_CANCEL, State.UNKNOWN):
                return self.lives
            case Kind.CANCEL_REJECTED if not self.is_open:
                return self.state
        return None

    def needs(self, waiting: Fraction = Fraction(0), brought: Fraction = Fraction(0)) -> Fraction:
        """What it has to set aside, as it is or as it is being changed, whichever is more."""
        found = []
        for asked, price in [(self.quantity, self.price), *([self.change] if self.change else [])]:
            quantity = self.quantity if asked is None else asked
            each = price * (1 + FEE) if self.buys else Fraction(1)
            sent = max(Fraction(0), quantity - self.filled) - waiting
            found.append(sent * each + waiting * max(Fraction(0), each - brought))
        return max(found)


def worst(order: Order) -> Fraction:
    return Fraction(order.limit_price or order.protection_price or 0)


class Life(RuleBasedStateMachine):
    """Random orders and groups, fills, changes, cancels, repeats and contradictions; what is kept must always add up."""

    @initialize()
    def open(self) -> None:
        """An account that has both assets."""
        self.state: AccountState = account_with(USDT="10000", BTC="50")
        self.started = {asset: balance.total for asset, balance in self.state.balances.items()}
        self.known: dict[UUID, Known] = {}
        self.next_fill = 0

    def pick(self, data, wanted: Callable[[Known], bool] = lambda _: True) -> Order | None:
        found = [order_id for order_id, known in self.known.items() if wanted(known)]
        return self.state.orders[found[data.draw(st.integers(0, len(found) - 1))]] if found else None

    def remember(self, orders: list[Order], roles: list[str]) -> None:
        for order, role in zip(orders, roles, strict=True):
            self.known[order.order_id] = Known(
                buys=order.side is Side.BUY,
                quantity=Fraction(order.quantity),
                price=worst(order),
                state=State.HELD if role in ("exit", "triggered") else State.PENDING_NEW,
                released=Fraction(0) if role in ("exit", "triggered") else None,
                mates=[other.order_id for other in orders if other is not order],
                role=role,
            )

    # Placing

    @rule(side=st.sampled_from(Side), lots=st.integers(1, 5_000), ticks=st.integers(9_000, 11_000), data=st.data())
    def place_one(self, side: Side, lots: int, ticks: int, data) -> None:
        price, quantity = Decimal(ticks) / 100, f"{Decimal(lots) / 1000}"
        kind = data.draw(st.sampled_from(OrderType))
        match kind:
            case OrderType.LIMIT:
                asked = ticket(side, quantity, str(price))
            case OrderType.MARKET:
                asked = ticket(side, quantity, None, TimeInForce.IOC)
            case OrderType.TRAILING_STOP:
                asked = ticket(side, quantity, None, order_type=kind, trail=Trail(percent=Decimal("1.5")))
            case OrderType.STOP_LIMIT:
                asked = ticket(side, quantity, str(price), order_type=kind, stop_price=price)
            case _:
                asked = ticket(side, quantity, None, order_type=kind, stop_price=price)
        before = as_it_is(self.state)
        try:
            order = placing.place(
                self.state,
                asked,
                instrument=BTC,
                quote=QUOTE,
                limits=LIMITS,
                weighing=weighing(self.state),
                order_id=uuid7(),
                now=NOW,
            )
        except Refusal:
            assert self.state == before
        else:
            self.remember([order], ["alone"])

    @rule(
        kind=st.sampled_from(GroupKind),
        side=st.sampled_from(Side),
        lots=st.integers(10, 3_000),
        share=st.integers(1, 100),
        ticks=st.integers(9_000, 11_000),
    )
    def place_group(self, kind: GroupKind, side: Side, lots: int, share: int, ticks: int) -> None:
        exit_side = Side.SELL if side is Side.BUY else Side.BUY
        whole, part = f"{Decimal(lots) / 1000}", f"{Decimal(max(2, lots * share // 100)) / 1000}"
        entry = ticket(side, whole, str(Decimal(ticks) / 100))
        stop_at = Decimal(110 if exit_side is Side.BUY else 90)
        stop = ticket(exit_side, part, None, order_type=OrderType.STOP, stop_price=stop_at)
        profit = ticket(exit_side, part, "90" if exit_side is Side.BUY else "110")
        asked: list[Ticket]
        match kind:
            case GroupKind.OCO:
                asked, roles = [profit, stop], ["leg", "leg"]
            case GroupKind.BRACKET:
                asked, roles = [entry, profit, stop], ["entry", "exit", "exit"]
            case GroupKind.OTO:
                asked, roles = [entry, profit, replace(entry, limit_price=Decimal(95))], ["entry", *["triggered"] * 2]
        before = as_it_is(self.state)
        try:
            orders = placing.place_group(
                self.state,
                kind,
                asked,
                instrument=BTC,
                quote=QUOTE,
                limits=LIMITS,
                weighing=weighing(self.state),
                group_id=uuid4(),
                next_id=uuid7,
                now=NOW,
            )
        except Refusal:
            assert self.state == before
        else:
            self.remember(orders, roles)

    # What venues tell

    @precondition(lambda self: self.known)
    @rule(data=st.data(), share=st.integers(1, 100), better=st.integers(0, 200))
    def fill(self, data, share: int, better: int) -> None:
        order = self.pick(data, lambda known: known.state is not State.HELD)
        if order is None or (left := order.at_venue) == 0:
            return
        quantity = Decimal(max(1, int(left * 1000 * share // 100))) / 1000
        improvement = Decimal(better) / 100
        price = order.worst_price or Decimal(100)
        price = max(Decimal("0.01"), price - improvement if order.side is Side.BUY else price + improvement)
        fee = price * quantity / 1000
        known = self.known[order.order_id]
        paid = life.cost(order.side, quantity, price, Decimal("0.001"))
        if not known.is_open and paid > self.state.balance(order.reserved_asset).available:
            return  # what a late trade costs may have been spent since
        self.next_fill += 1
        told = fill_of(order, str(quantity), str(price), str(fee), str(self.next_fill))
        life.apply_fill(self.state, order, told, BTC, execution_id=uuid4(), now=NOW)
        known.filled += Fraction(quantity)
        if known.filled >= known.quantity:
            known.state, known.change = State.FILLED, None
        elif known.state in (State.PENDING_NEW, State.NEW, State.PARTIALLY_FILLED, State.UNKNOWN):
            known.state = known.lives
        self.follow(known, Fraction(quantity))

    def follow(self, traded: Known, quantity: Fraction) -> None:
        """What a trade means to the rest of its group."""
        for mate in (self.known[order_id] for order_id in traded.mates):
            if not mate.is_open:
                continue
            if traded.role == "entry" and mate.role == "exit" and mate.released is not None:
                mate.released = min(mate.quantity, mate.released + quantity)
            elif traded.role == "entry" and mate.role == "triggered" and traded.state is State.FILLED:
                mate.released = mate.quantity
            elif traded.role == mate.role and traded.role in ("leg", "exit"):
                mate.quantity = max(mate.filled, mate.quantity - quantity)
                if mate.released is not None:
                    mate.released = max(mate.filled, mate.released - quantity)
            if mate.state is State.HELD and mate.released:
                mate.state = State.PENDING_NEW

    @precondition(lambda self: self.state.executions)
    @rule(data=st.data())
    def repeat_a_fill(self, data) -> None:
        told = self.state.executions[data.draw(st.integers(0, len(self.state.executions) - 1))]
        before = as_it_is(self.state)
        order = self.state.orders[told.order_id]
        again = fill_of(order, str(told.quantity), str(told.price), "0", told.venue_fill_id)
        life.apply_fill(self.state, order, again, BTC, execution_id=uuid4(), now=NOW)
        assert self.state == before

    @precondition(lambda self: self.known)
    @rule(data=st.data(), kind=st.sampled_from([Kind.WORKING, Kind.UNKNOWN, Kind.CANCEL_REJECTED, *ENDS, *ENDS, *ENDS]))
    def venue_says(self, data, kind: Kind) -> None:
        order = self.pick(data)
        assert order is not None
        known, before = self.known[order.order_id], as_it_is(self.state)
        expected = known.after(kind)
        try:
            match kind:
                case Kind.WORKING:
                    life.apply_working(self.state, order, NOW)
                case Kind.UNKNOWN:
                    life.apply_unknown(self.state, order, NOW)
                case Kind.CANCEL_REJECTED:
                    life.apply_cancel_rejected(self.state, order, "too late", NOW)
                case _:
                    life.apply_ended(self.state, order, kind, "said so", NOW)
        except IllegalMove:
            assert expected is None
            assert self.state == before
            return
        assert expected is not None
        known.state = expected
        if kind in ENDS:
            self.end(known)

    def end(self, ended: Known) -> None:
        """What the end of an order means to what waits for it."""
        ended.change = None
        if ended.role != "entry":
            return
        for mate in (self.known[order_id] for order_id in ended.mates):
            if not mate.is_open or mate.released is None:
                continue
            if mate.state is State.HELD:
                mate.state, mate.change = State.CANCELED, None
                continue
            mate.quantity = mate.released
            if mate.quantity and mate.filled == mate.quantity:
                mate.state, mate.change = State.FILLED, None
            elif not mate.quantity:
                mate.state = State.PENDING_CANCEL

    @precondition(lambda self: self.known)
    @rule(data=st.data(), takes=st.booleans())
    def venue_answers_a_change(self, data, takes: bool) -> None:
        order = self.pick(data, lambda known: known.change is not None)
        if order is None:
            return
        known = self.known[order.order_id]
        assert order.replacement is not None
        name = str(order.replacement.client_order_id)
        asked, known.change = known.change, None
        if takes:
            life.apply_replaced(self.state, order, name, NOW)
            assert asked is not None
            known.quantity, known.price = asked[0] or known.quantity, asked[1]
            assert self.state.orders[order.order_id].client_order_id == order.replacement.client_order_id
        else:
            life.apply_replace_rejected(self.state, order, name, "no", NOW)
        if takes and known.filled >= known.quantity:
            known.state = State.FILLED
        elif known.state is not State.PENDING_CANCEL:
            known.state = known.lives

    # What its owner asks for

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def ask_to_cancel(self, data) -> None:
        order = self.pick(data)
        assert order is not None
        known = self.known[order.order_id]
        try:
            life.request_cancel(self.state, order, NOW)
        except OrderDone:
            assert not known.is_open
        else:
            known.state = State.CANCELED if known.state is State.HELD else State.PENDING_CANCEL

    @precondition(lambda self: self.known)
    @rule(data=st.data(), lots=st.integers(1, 5_000), ticks=st.integers(9_000, 11_000))
    def ask_to_change(self, data, lots: int, ticks: int) -> None:
        order = self.pick(data)
        assert order is not None
        known, before = self.known[order.order_id], as_it_is(self.state)
        price = Decimal(ticks) / 100 if order.limit_price is not None else None
        quantity = Decimal(lots) / 1000 if order.group_id is None else None
        change = Replacement(client_order_id=uuid4(), quantity=quantity, limit_price=price)
        try:
            replacing.replace_order(
                self.state,
                order,
                change,
                instrument=BTC,
                quote=QUOTE,
                limits=LIMITS,
                weighing=weighing(self.state),
                now=NOW,
            )
        except Refusal:
            assert self.state == before
            return
        assert known.state in (State.NEW, State.PARTIALLY_FILLED, State.HELD)
        worst_price = Fraction(price) if price else known.price
        if known.state is State.HELD:
            known.price = worst_price
        else:
            known.change = (Fraction(quantity) if quantity else None, worst_price)
            known.state = State.PENDING_REPLACE

    # What must be so after each

    @invariant()
    def orders_are_as_the_model_has_them(self) -> None:
        for order_id, known in self.known.items():
            order = self.state.orders[order_id]
            assert (order.state, order.quantity, order.filled_quantity) == (known.state, known.quantity, known.filled)
            assert order.released_quantity == known.released or not known.is_open
            assert (order.replacement is not None) == (known.change is not None)

    @invariant()
    def what_is_set_aside_is_what_open_orders_need(self) -> None:
        needed: dict[str, Fraction] = defaultdict(Fraction)
        seen: set[UUID] = set()
        for order_id, known in self.known.items():
            if order_id in seen:
                continue
            seen |= {order_id, *known.mates}
            for order, need in self.needs_of([order_id, *known.mates]):
                needed[order.reserved_asset] += need
        held: dict[str, Fraction] = defaultdict(Fraction)
        for order in self.state.orders.values():
            held[order.reserved_asset] += Fraction(order.reserved)
        for asset, balance in self.state.balances.items():
            assert balance.reserved == needed[asset] == held[asset]
            assert 0 <= balance.reserved <= balance.total

    def needs_of(self, order_ids: list[UUID]) -> list[tuple[Order, Fraction]]:
        """An order's own, or a group's: what the entry will bring is not needed, and two legs need the more of both."""
        members = sorted(order_ids)
        entries = [self.known[one] for one in members if self.known[one].role == "entry"]
        traded = entries[0].filled if entries else Fraction(0)
        found: list[tuple[Order, Fraction]] = []
        legs: list[tuple[Order, Fraction]] = []
        for order_id in members:
            known = self.known[order_id]
            if not known.is_open:
                continue
            waiting = brought = Fraction(0)
            if entries and known.buys is not entries[0].buys:
                prices = [entries[0].price, *([entries[0].change[1]] if entries[0].change else [])]
                brought = Fraction(1) if entries[0].buys else min(prices) * (1 - FEE)
                if known.role == "exit" and known.released is not None:
                    waiting = known.quantity - known.released
                elif known.state is State.HELD:
                    waiting = max(Fraction(0), known.quantity - traded)
            need = (self.state.orders[order_id], known.needs(waiting, brought))
            (legs if known.role in ("leg", "exit") else found).append(need)
        return [*found, *sorted(legs, key=lambda need: need[1])[-1:]]

    @invariant()
    def the_ledger_sums_to_zero_and_to_the_balances(self) -> None:
        totals = defaultdict(Decimal, self.started)
        for transaction in self.state.transactions:
            sums: dict[str, Decimal] = defaultdict(Decimal)
            for entry in transaction.entries:
                sums[entry.asset] += entry.amount
                if entry.book == "account":
                    totals[entry.asset] += entry.amount
            assert set(sums.values()) == {0}
        assert {asset: balance.total for asset, balance in self.state.balances.items()} == dict(totals)

    @invariant()
    def the_sequence_has_no_gap_and_the_count_of_open_orders_is_right(self) -> None:
        sequences = [event.account_sequence for event in self.state.events]
        assert sequences == list(range(1, len(sequences) + 1))
        assert self.state.account.account_sequence == len(sequences)
        assert self.state.account.open_orders == sum(known.is_open for known in self.known.values())
        assert {event.order.order_id for event in self.state.events} == set(self.known)

    @invariant()
    def what_may_still_trade_of_each_side_is_counted(self) -> None:
        for side in Side:
            orders = [order for order in self.state.orders.values() if order.side is side]
            left = sum((order.at_venue for order in orders if self.known[order.order_id].is_open), Decimal(0))
            assert self.state.opened.get((BTC.instrument_id, side), 0) == left

    @invariant()
    def an_order_has_traded_the_sum_of_its_fills(self) -> None:
        filled: dict[UUID, Decimal] = defaultdict(Decimal)
        held = Decimal(0)
        for each in self.state.executions:
            filled[each.order_id] += each.quantity
            held += each.quantity if each.side is Side.BUY else -each.quantity
        for order_id, order in self.state.orders.items():
            assert order.filled_quantity == filled[order_id]
        assert held == (self.state.positions.get(BTC.instrument_id) or Position(instrument_id="")).quantity


TestLife = pytest.mark.examples(Life.TestCase)
TestLife.settings = examples(
    60,
    stateful_step_count=40,
    deadline=timedelta(seconds=2),
    # Explaining a failure traces every line of it, which takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
