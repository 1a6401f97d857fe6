"""A market of an offline venue: its book, what was traded in it, and what becomes of an order. All of it is exact.

A test moves it, by levels of the book, by trades, or by letting it wander; users' orders meet both. How a venue tells of it
is the venue's own.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

from libs import money
from tests.venues.binance_klines import Trade
from tests.venues.binance_orders import NOTHING, Account, Order, Side, State

Number = Decimal | int | str

# Different, so that nobody takes one for the other.
FIRST_TRADE_ID = 28_457
FIRST_AGGREGATE_ID = 26_129
FIRST_ORDER_ID = 12_345_678
WANDERS_LEVELS = 20
WAKES_SECONDS = 0.01


class Rejected(Exception):
    """An order that the market does not take, in Binance's words."""


@dataclass
class Market:
    """now is the venue's clock, in its own unit."""

    symbol: str
    base: str
    quote: str
    now: Callable[[], int]
    tick: Decimal = Decimal("0.01")
    step: Decimal = Decimal("0.00001")
    notional_min: Decimal = Decimal(5)
    middle: Decimal = Decimal(30_000)
    """Of the book of others, while it wanders."""
    trades: list[Trade] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._levels: dict[Side, dict[Decimal, Decimal]] = {side: {} for side in Side}
        """What others than users offer, by price."""
        self._resting: dict[Side, list[Order]] = {side: [] for side in Side}
        self._stops: list[Order] = []
        self._order_ids = itertools.count(FIRST_ORDER_ID)
        self._next_trade_id, self._next_aggregate_id = FIRST_TRADE_ID, FIRST_AGGREGATE_ID

    # What a venue tells of it.

    def traded(self, trade: Trade) -> None:
        """After each trade."""

    def taken(self, made: Sequence[Trade]) -> None:
        """After all that one taker traded at once, if it traded."""

    def changed(self, side: Side, price: Decimal) -> None:
        """After what is offered there has changed."""

    def settled(self) -> None:
        """After all that has come of one act."""

    # What a test does.

    def level(self, side: Side | str, price: Number, quantity: Number) -> None:
        """Others now offer so much at the price. What they offer meets users' orders, and drives others' aside."""
        side, price, quantity = Side(side), Decimal(price), Decimal(quantity)
        if quantity:
            made = self._meet(side, quantity, price, self._time(None), others=False)
            self._took(made)
            quantity -= sum((trade.quantity for trade in made), NOTHING)
            for crossed in self._prices(side.opposite, price, self._levels[side.opposite]):
                self._set(side.opposite, crossed, NOTHING)
        self._set(side, price, quantity)
        self._settle()

    def book(self, bids: dict[Any, Any], asks: dict[Any, Any]) -> None:
        """All that others offer: quantities by price."""
        wanted = {Side.BUY: bids, Side.SELL: asks}
        for side in Side:
            kept = {Decimal(price) for price in wanted[side]}
            for price in [price for price in self._levels[side] if price not in kept]:
                self._set(side, price, NOTHING)
        for side in Side:
            for price, quantity in wanted[side].items():
                self.level(side, price, quantity)

    def trade(
        self, price: Number, *quantities: Number, buyer_is_maker: bool = False, time: int | None = None
    ) -> list[Trade]:
        """Others trade at the price, whether the book shows it or not: one taker, and a maker for each quantity.

        Users' orders that the taker would have met on the way are filled first, at their own prices.
        """
        price, time = Decimal(price), self._time(time)
        takes = Side.SELL if buyer_is_maker else Side.BUY
        made: list[Trade] = []
        for wanted in map(Decimal, quantities):
            met = self._meet(takes, wanted, price, time, others=False)
            left = wanted - sum((trade.quantity for trade in met), NOTHING)
            made += met
            if left:
                shown = self._levels[takes.opposite].get(price, NOTHING)
                if shown:
                    self._set(takes.opposite, price, max(NOTHING, shown - left))
                made.append(self._print(price, left, takes, time))
        self._took(made)
        self._settle()
        return made

    def skip_ids(self, count: int = 1) -> None:
        """So many ids are never given to any trade, nor to any aggregate."""
        self._next_trade_id += count
        self._next_aggregate_id += count

    def renumber(self, first_id: int = 1) -> None:
        """Ids begin anew, from lower ones; under the old ones nothing is on record any more."""
        self._next_trade_id = self._next_aggregate_id = first_id
        self.trades.clear()

    def take(self, side: Side | str, quantity: Number, *, limit: Number | None = None) -> list[Trade]:
        """Others take from the book what it offers, no worse than the limit."""
        limit = None if limit is None else Decimal(limit)
        made = self._meet(Side(side), Decimal(quantity), limit, self._time(None))
        self._settle()
        return made

    def wander(self, chance: Random, time: int | None = None) -> None:
        """One step of a market left to itself: its best prices move a little, and somebody takes from one of them."""
        self.middle = max(self.tick * 100, self.middle + self.tick * chance.choice((-1, 0, 0, 1)))
        for side, sign in ((Side.BUY, -1), (Side.SELL, 1)):
            best, worst = self.middle + sign * self.tick, self.middle + sign * self.tick * WANDERS_LEVELS
            levels = self._levels[side]
            for gone in [price for price in levels if (price - best) * sign < 0 or (price - worst) * sign > 0]:
                self._set(side, gone, NOTHING)
            changed = self.middle + sign * self.tick * chance.randint(1, WANDERS_LEVELS)
            for price in {best, changed} if best not in levels else {changed}:
                self.level(side, price, self.step * chance.randint(1, 100_000))
        takes = chance.choice((Side.BUY, Side.SELL))
        price = self.middle + self.tick * (1 if takes is Side.BUY else -1)
        self.trade(price, self.step * chance.randint(1, 1_000), buyer_is_maker=takes is Side.SELL, time=time)

    async def run(self, trades_per_second: float, seed: int = 0) -> None:
        """Wanders at that pace until it is cancelled. The seed alone says what is traded; when is the clock's."""
        chance, loop = Random(seed), asyncio.get_running_loop()
        began, done = loop.time(), 0
        while True:
            while done < (loop.time() - began) * trades_per_second:
                self.wander(chance)
                done += 1
            await asyncio.sleep(WAKES_SECONDS)

    # What users do.

    def order_of(self, account: Account, kind: type[Order] = Order, **of: Any) -> Order:
        """A new order in this market, not yet placed."""
        ids = {"order_id": next(self._order_ids), "time": self.now()}
        return kind(account, self.symbol, self.base, self.quote, **ids, **of)

    def place(self, order: Order) -> None:
        """Raises Rejected."""
        self._admit(order)
        order.account.orders.append(order)
        if order.is_stop:
            order.opened(self.now())
            self._stops.append(order)
        else:
            self._work(order)
        self._settle()

    def cancel(self, order: Order, cancel_id: str) -> None:
        if order in self._stops:
            self._stops.remove(order)
        if order in self._resting[order.side]:
            self._resting[order.side].remove(order)
            self._touch(order.side, order.price)
        order.ended(State.CANCELED, self.now(), cancel_id)
        self._settle()

    def amend(self, order: Order, quantity: Decimal, price: Decimal) -> None:
        """In place: what it has traded stays, and the rest of it meets the book anew."""
        self._resting[order.side].remove(order)
        self._touch(order.side, order.price)
        order.unlock()
        order.quantity, order.price = quantity, price
        order.lock(order.remaining * price if order.side is Side.BUY else order.remaining)
        self._match(order)
        if order.is_open:
            self._resting[order.side].append(order)
            self._touch(order.side, price)
        self._settle()

    def _admit(self, order: Order) -> None:
        """Sets aside what the order is going to spend. Raises Rejected."""
        if order.is_stop and self._is_reached(order):
            raise Rejected("Stop price would trigger immediately.")
        if order.type == "LIMIT_MAKER" and self._prices(order.side.opposite, order.price):
            raise Rejected("Order would immediately match and take.")
        needed = self._needs(order)
        if needed > order.account.balances[order.spends].free:
            raise Rejected("Account has insufficient balance for requested action.")
        # What a market order costs is known when it is matched.
        if order.is_limit or (order.is_stop and order.side is Side.SELL):
            order.lock(needed)
            order.account.tell_balances(order.spends)

    def _needs(self, order: Order) -> Decimal:
        if order.side is Side.SELL:
            return order.quantity
        if order.is_limit:
            return order.quantity * order.price
        return order.quote_quantity or self._cost(order.quantity)

    def _cost(self, quantity: Decimal) -> Decimal:
        """What so much would cost at once."""
        cost = NOTHING
        for price in self._prices(Side.SELL):
            taken = min(quantity, self.offered(Side.SELL, price))
            cost, quantity = cost + taken * price, quantity - taken
        return cost

    def _work(self, order: Order) -> None:
        """The order meets the book, and rests there or ends."""
        now = self.now()
        order.working_time = now
        order.opened(now)
        # A stop that nothing was set aside for may find too little.
        if order.locked or self._needs(order) <= order.account.balances[order.spends].free:
            self._match(order)
        if not order.is_open:
            return
        if not order.is_limit or order.time_in_force in {"IOC", "FOK"}:
            order.ended(State.EXPIRED, now)
            return
        self._resting[order.side].append(order)
        self._touch(order.side, order.price)

    def _match(self, order: Order) -> None:
        if not order.quantity:
            order.quantity = self._bought_for(order.quote_quantity, order.side.opposite)
        limit = order.price if order.is_limit else None
        if order.time_in_force != "FOK" or self._available(order) >= order.quantity:
            self._meet(order.side, order.remaining, limit, self._time(None), taker=order)

    def _bought_for(self, amount: Decimal, side: Side) -> Decimal:
        """How much of what that side offers is had for so much of the quote."""
        found = NOTHING
        for price in self._prices(side):
            part = min(self.offered(side, price), money.down_to(money.divide(amount, price), self.step))
            found, amount = found + part, amount - part * price
        return found

    def _available(self, order: Order) -> Decimal:
        opposite = order.side.opposite
        return sum((self.offered(opposite, price) for price in self._prices(opposite, order.price)), NOTHING)

    # How they meet.

    def _meet(
        self,
        side: Side,
        quantity: Decimal,
        limit: Decimal | None,
        time: int,
        *,
        taker: Order | None = None,
        others: bool = True,
    ) -> list[Trade]:
        """Takes from the other side, best price first; at one price from users in their order, then from others.

        Without others only users' orders are met, and whoever asks sees to the aggregates.
        """
        made: list[Trade] = []
        opposite = side.opposite
        for price in self._prices(opposite, limit):
            for maker in [order for order in self._resting[opposite] if order.price == price]:
                if not quantity:
                    break
                taken = min(quantity, maker.remaining)
                quantity -= taken
                made.append(self._fill(price, taken, side, time, taker, maker))
            if others and quantity and (shown := self._levels[opposite].get(price)):
                taken = min(quantity, shown)
                quantity -= taken
                self._set(opposite, price, shown - taken)
                made.append(self._fill(price, taken, side, time, taker, None))
            if not quantity:
                break
        if others:
            self._took(made)
        return made

    def _fill(
        self, price: Decimal, quantity: Decimal, takes: Side, time: int, taker: Order | None, maker: Order | None
    ) -> Trade:
        trade = self._print(price, quantity, takes, time)
        if maker:
            maker.fill(trade, is_maker=True)
            if not maker.is_open:
                self._resting[maker.side].remove(maker)
            self._touch(maker.side, price)
        if taker:
            taker.fill(trade, is_maker=False)
        return trade

    def _settle(self) -> None:
        """After all that may have moved the price: stops that it has reached, and the best offers."""
        while reached := next(filter(self._is_reached, self._stops), None):
            self._stops.remove(reached)
            self._work(reached)
        self.settled()

    def _is_reached(self, stop: Order) -> bool:
        if not self.trades:
            return False
        last = self.trades[-1].price
        return last >= stop.stop_price if stop.rises_to_stop else last <= stop.stop_price

    # What is on record.

    def _time(self, time: int | None) -> int:
        last = self.trades[-1].time if self.trades else 0
        if time is None:
            return max(self.now(), last)
        if time < last:
            raise ValueError("trades are made in the order of time")
        return time

    def _print(self, price: Decimal, quantity: Decimal, takes: Side, time: int) -> Trade:
        """A trade of a taker of that side; of one aggregate with the one before where both are one taker's, at one price."""
        maker, before = takes is Side.SELL, self.trades[-1] if self.trades else None
        # What is not yet on record is of this taker.
        if before and before.aggregate_id == self._next_aggregate_id and before.price != price:
            self._next_aggregate_id += 1
        trade = Trade(self._next_trade_id, self._next_aggregate_id, price, quantity, time, maker)
        self._next_trade_id += 1
        self.trades.append(trade)
        self.traded(trade)
        return trade

    def _took(self, made: Sequence[Trade]) -> None:
        if made:
            self.taken(made)
            self._next_aggregate_id += 1

    # The book.

    def _set(self, side: Side, price: Decimal, quantity: Decimal) -> None:
        if quantity == self._levels[side].get(price, NOTHING):
            return
        if quantity:
            self._levels[side][price] = quantity
        else:
            del self._levels[side][price]
        self._touch(side, price)

    def _touch(self, side: Side, price: Decimal) -> None:
        self.changed(side, price)

    def _prices(
        self, side: Side, limit: Decimal | None = None, among: dict[Decimal, Decimal] | None = None
    ) -> list[Decimal]:
        """The prices offered on that side, best first, that somebody of the other side with that limit would take."""
        prices = set(self._levels[side]) if among is None else set(among)
        if among is None:
            prices |= {order.price for order in self._resting[side]}
        if limit is not None:
            prices = {price for price in prices if (price >= limit if side is Side.BUY else price <= limit)}
        return sorted(prices, reverse=side is Side.BUY)

    def offered(self, side: Side, price: Decimal) -> Decimal:
        users = (order.remaining for order in self._resting[side] if order.price == price)
        return sum(users, self._levels[side].get(price, NOTHING))

    def best_of(self, side: Side) -> tuple[Decimal, Decimal]:
        prices = self._prices(side)
        return (prices[0], self.offered(side, prices[0])) if prices else (NOTHING, NOTHING)

    def offers(self, side: Side | str) -> dict[Decimal, Decimal]:
        """Quantities by price, best first: others' and users'."""
        return {price: self.offered(Side(side), price) for price in self._prices(Side(side))}
