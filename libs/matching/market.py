"""How the market of one instrument fills orders.

A moment is a print or a book. What the orders meet at each, in this order:

1. Expiry. An order whose expire time is at or before the moment's ends, with that time, before anything else: nothing
   at or after its expire time fills or triggers it.
2. Matching, by the rules below: first of what rests, then of what enters; at a print, of what buys and then of what
   sells.
3. Stops, at prints alone. A stop is reached by a print at or through it whose time is at or after the order's active
   time. The order is a market or limit order from then on, and its active time becomes the print's time plus the
   latency; so it enters at the first book, or where there is none the first print, that comes after that print and is
   at or after the new active time. The print that reached a stop never fills the order.
   A trailing stop follows the best print since the order was active at a distance in ticks or in basis points, rounded
   away from the market onto a tick. It never goes back. Whether a print reached it is seen first.
   Those reached from below come first, then those from above, the nearest stop first.

Where the source brings a book:

- An order enters at the first book whose time is at or after its active time. It takes from the other side, best price
  first, up to its limit or protection, at the prices of the book. What is left of a market or IOC order is canceled;
  FOK trades all of its quantity there or nothing; a GTC limit rests.
- A resting order is filled at its own limit, as maker, when a print is strictly beyond the limit or when the book's
  other side reaches the limit (then nothing can be left at that price on its own side). Resting orders meet a book
  before the orders that enter at it.
- A print at the limit fills it, as maker, with what the print leaves after the queue ahead of it, as far as that is
  known. Ahead of it is what the book showed at its price when it came to rest; less each print at its price; and never
  more than a later book shows there. A price deeper than the deepest level shown is out of view: nothing is known there
  until it comes into view, and what is known stays as it was when it goes out of view. What was filled in part while it
  rested has nothing ahead of it.

Where it brings none, prints stand in for the book:

- An order enters at the first print at or after its active time. If that print is strictly beyond its limit it takes
  at the print's price; otherwise a GTC limit rests and fills at its limit, as maker, when a later print is strictly
  beyond the limit (a print at the limit may have been for others in the queue).
- A market order takes at the price of its first print and, because a print tells what was traded and not what could
  have been, goes on taking prints until it is full or a print is worse than its protection, which cancels it. A limit
  IOC or either FOK is decided by its first print alone.

Everywhere:

- A print, and each level of one book, fills each side no more than its own quantity, shared by price, then active
  time, then order id. Our fills leave no trace in the market: the next book is taken as it is shown.
- A post-only order that would take on entering is rejected instead.
- What takes pays the slippage: so many basis points of the price, rounded up to a tick, but never beyond its limit or
  protection, and never below one tick. (Of the price and not in ticks, so that one number suits instruments of any
  tick size.)
- What one order of a group trades is taken off the others at once: right after its fill come the ends of those that
  have nothing left, by order id. An order that ends otherwise leaves the others of its group alone.
- A replaced order that is for no more than before, at the same limit, keeps its place. Any other change of an order that
  has no stop to wait for takes it out of the queue, and it enters anew at the first book, or print, at or after the
  time of the change. A stop or trail that is changed holds from the next print on, and a trail does not move the stop
  back.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from libs.matching.orders import (
    Book,
    Canceled,
    Cause,
    Expired,
    Fill,
    Level,
    Order,
    Outcome,
    Print,
    Rejected,
    Replacement,
    Side,
    TimeInForce,
    Trail,
    Trigger,
    Triggered,
)

WHOLE_BASIS_POINTS = 10_000
"""Of which each is a hundredth of a percent."""
_BEST_RANK = -(2**63)
"""Ranks an order without a limit before every limit."""

_Keys = list[tuple[Any, ...]]
"""Sorted; the last part of each key is an order's id."""


class Market:
    """The orders of one instrument and what prints and books do to them.

    The orders are its whole state: a market made of `orders()` goes on exactly as this one would have.
    """

    def __init__(
        self, *, has_book: bool, latency_ns: int = 0, slippage_basis_points: int = 0, orders: Iterable[Order] = ()
    ) -> None:
        """The latency is that of what enters because its stop was reached; slippage is of what takes."""
        self._has_book, self._latency_ns, self._slippage = has_book, latency_ns, slippage_basis_points
        self._orders: dict[str, Order] = {}
        self._groups: defaultdict[str, set[str]] = defaultdict(set)
        self._changed: set[str] = set()
        self._expiring: _Keys = []
        self._waiting: _Keys = []
        self._resting: dict[Side, _Keys] = {Side.BUY: [], Side.SELL: []}
        self._unwatched: _Keys = []
        self._rising: _Keys = []
        self._falling: _Keys = []
        self._trailing: dict[Side, _Keys] = {Side.BUY: [], Side.SELL: []}
        for order in orders:
            self.submit(order)

    def orders(self) -> tuple[Order, ...]:
        """Every order that may still trade, by id."""
        return tuple(self._orders[order_id] for order_id in sorted(self._orders))

    def find(self, order_id: str) -> Order | None:
        """An order that may still trade, as it now stands."""
        return self._orders.get(order_id)

    def take_changed(self) -> list[Order]:
        """The orders that are here and not as they were when this was last asked, by id."""
        changed = [self._orders[order_id] for order_id in sorted(self._changed) if order_id in self._orders]
        self._changed.clear()
        return changed

    def submit(self, order: Order) -> None:
        """Lets an order wait for its market time. Raises ValueError for an id that is here already."""
        if order.order_id in self._orders:
            raise ValueError(f"order {order.order_id} is in the market already")
        self._orders[order.order_id] = order
        if order.group is not None:
            self._groups[order.group].add(order.order_id)
        for keys, key in self._places(order):
            insort(keys, key)

    def cancel(self, order_id: str) -> Order | None:
        """Takes an order out and returns what it was, or None if it is not here (any more)."""
        order = self._orders.get(order_id)
        if order is not None:
            self._remove(order)
        return order

    def replace(self, order_id: str, change: Replacement, time_ns: int) -> Order:
        """Changes an order at a market time and returns it. Raises ValueError, saying why, where it cannot be changed."""
        order = self._orders.get(order_id)
        if order is None:
            raise ValueError("the order is done")
        wanted = change.quantity_lots if change.quantity_lots is not None else order.traded_lots + order.remaining_lots
        if wanted <= order.traded_lots:
            raise ValueError("as much has traded already")
        if change.limit_ticks is not None and order.limit_ticks is None:
            raise ValueError("the order has no limit price")
        if change.stop_ticks is not None and not order.waits_for_stop:
            raise ValueError("the order waits for no stop price")
        if change.trail is not None and (not order.waits_for_stop or order.trail is None):
            raise ValueError("the order does not trail")
        changed = replace(
            order,
            remaining_lots=wanted - order.traded_lots,
            limit_ticks=order.limit_ticks if change.limit_ticks is None else change.limit_ticks,
            protection_ticks=order.protection_ticks if change.protection_ticks is None else change.protection_ticks,
            stop_ticks=order.stop_ticks if change.stop_ticks is None else change.stop_ticks,
            trail=order.trail if change.trail is None else change.trail,
        )
        keeps_place = changed.remaining_lots <= order.remaining_lots and changed.limit_ticks == order.limit_ticks
        if not keeps_place and not order.waits_for_stop:
            active_time_ns = max(order.active_time_ns, time_ns)
            changed = replace(changed, active_time_ns=active_time_ns, entered=False, ahead_lots=None)
        self._move(order, changed)
        return changed

    def take_off(self, group: str, lots: int, time_ns: int, *, but: str = "") -> list[Canceled]:
        """Takes what one order of a group has traded off the others, and says which of them have nothing left."""
        ended: list[Canceled] = []
        for order_id in sorted(self._groups.get(group, ())):
            if order_id == but:
                continue
            order = self._orders[order_id]
            if order.remaining_lots > lots:
                self._keep(replace(order, remaining_lots=order.remaining_lots - lots))
            else:
                self._remove(order)
                ended.append(Canceled(order_id=order_id, cause=Cause.GROUP, remaining_lots=0, time_ns=time_ns))
        return ended

    def on_print(self, trade: Print) -> list[Outcome]:
        """What one trade of the market does to the orders."""
        outcomes = self._expire(trade.time_ns)
        entering = () if self._has_book else self._enter(trade.time_ns)
        for order_id in entering:
            order = self._orders[order_id]
            if order.post_only and _is_through(order, trade.price_ticks):
                outcomes.append(self._reject(order, trade.time_ns))
        takers = frozenset(entering)
        for side, keys in self._resting.items():
            if keys:
                self._share(side, trade, takers, outcomes)
        for order_id in entering:
            order = self._orders.get(order_id)
            if order is not None and _is_decided(order):
                outcomes.append(self._end(order, Cause(order.time_in_force.value), trade.time_ns))
        self._watch(trade, outcomes)
        return outcomes

    def on_book(self, book: Book) -> list[Outcome]:
        """What one book does to the orders. Raises ValueError where the source is said to bring none."""
        if not self._has_book:
            raise ValueError("this market is said to have no book")
        outcomes = self._expire(book.time_ns)
        offers = {Side.BUY: list(book.asks), Side.SELL: list(book.bids)}
        for side in Side:
            self._cross(side, offers[side], book.time_ns, outcomes)
        for order_id in self._enter(book.time_ns):
            order = self._orders.get(order_id)
            if order is not None:
                self._take(order, offers[order.side], book.time_ns, outcomes)
        self._see(Side.BUY, book.bids)
        self._see(Side.SELL, book.asks)
        return outcomes

    def _expire(self, time_ns: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while self._expiring and self._expiring[0][0] <= time_ns:
            expire_time_ns, order_id = self._expiring[0]
            order = self._orders[order_id]
            self._remove(order)
            outcomes.append(Expired(order_id=order_id, remaining_lots=order.remaining_lots, time_ns=expire_time_ns))
        return outcomes

    def _share(self, side: Side, trade: Print, takers: frozenset[str], outcomes: list[Outcome]) -> None:
        """Gives a print's quantity to the orders of one side that it went through, and then to those that it is at."""
        keys, bound = self._resting[side], _ranked(side, trade.price_ticks)
        if keys[0][0] > bound:
            return
        left_lots = trade.quantity_lots
        through = bisect_left(keys, (bound,))
        at = keys[through : bisect_left(keys, (bound + 1,))] if self._has_book else ()
        for _, _, order_id in keys[:through]:
            order = self._orders.get(order_id)
            if order is None:
                continue
            if order.limit_ticks is None and not _accepts(order, trade.price_ticks):
                outcomes.append(self._end(order, Cause.PROTECTION, trade.time_ns))
                continue
            if left_lots <= 0 and order.limit_ticks is None:
                continue
            if left_lots <= 0:
                break
            if order.time_in_force is TimeInForce.FOK and order.remaining_lots > left_lots:
                outcomes.append(self._end(order, Cause.FOK, trade.time_ns))
                continue
            lots = min(order.remaining_lots, left_lots)
            left_lots -= lots
            if order.limit_ticks is None or order_id in takers:
                self._fill_as_taker(order, trade.price_ticks, lots, trade.time_ns, outcomes)
            else:
                self._fill_as_maker(order, lots, trade.time_ns, outcomes)
        used_lots = trade.quantity_lots - left_lots
        for _, _, order_id in at:
            order = self._orders.get(order_id)
            if order is None or order.ahead_lots is None:
                continue
            lots = min(order.remaining_lots, trade.quantity_lots - order.ahead_lots - used_lots)
            if lots > 0:
                used_lots += lots
                self._fill_as_maker(order, lots, trade.time_ns, outcomes)
            elif order.ahead_lots and trade.quantity_lots:
                self._keep(replace(order, ahead_lots=max(0, order.ahead_lots - trade.quantity_lots)))

    def _cross(self, side: Side, offers: list[Level], time_ns: int, outcomes: list[Outcome]) -> None:
        """Fills resting orders whose limit the other side of the book has reached."""
        keys = self._resting[side]
        if not offers or not keys or keys[0][0] > _ranked(side, offers[0].price_ticks):
            return
        for _, _, order_id in keys[: bisect_left(keys, (_ranked(side, offers[0].price_ticks) + 1,))]:
            order = self._orders.get(order_id)
            if order is not None and (lots := sum(lots for _, lots in _eat(order, offers))):
                self._fill_as_maker(order, lots, time_ns, outcomes)

    def _take(self, order: Order, offers: list[Level], time_ns: int, outcomes: list[Outcome]) -> None:
        """Lets an entering order take from the book, and decides what becomes of its rest."""
        reachable_lots = sum(level.quantity_lots for level in offers if _accepts(order, level.price_ticks))
        if order.post_only and reachable_lots:
            outcomes.append(self._reject(order, time_ns))
            return
        if order.time_in_force is not TimeInForce.FOK or reachable_lots >= order.remaining_lots:
            for price_ticks, lots in _eat(order, offers):
                self._fill_as_taker(self._orders[order.order_id], price_ticks, lots, time_ns, outcomes)
        rest = self._orders.get(order.order_id)
        if rest is not None and rest.time_in_force is not TimeInForce.GTC:
            outcomes.append(self._end(rest, Cause(rest.time_in_force.value), time_ns))

    def _see(self, side: Side, levels: Sequence[Level]) -> None:
        """Lets resting orders move up to what the book shows at their prices."""
        keys = self._resting[side]
        if not levels or not keys:
            return
        shown: defaultdict[int, int] = defaultdict(int)
        for price_ticks, lots in levels:
            shown[price_ticks] += lots
        for _, _, order_id in keys[: bisect_left(keys, (_ranked(side, levels[-1].price_ticks) + 1,))]:
            order = self._orders[order_id]
            lots = 0 if order.limit_ticks is None else shown.get(order.limit_ticks, 0)
            if order.ahead_lots is None or lots < order.ahead_lots:
                self._keep(replace(order, ahead_lots=lots))

    def _enter(self, time_ns: int) -> tuple[str, ...]:
        """Moves the orders whose time has come among the resting ones, and names them in order of arrival."""
        if not self._waiting or self._waiting[0][0] > time_ns:
            return ()
        entering = tuple(order_id for _, order_id in self._waiting[: bisect_left(self._waiting, (time_ns + 1,))])
        for order_id in entering:
            order = self._orders[order_id]
            self._move(order, replace(order, entered=True))
        return entering

    def _watch(self, trade: Print, outcomes: list[Outcome]) -> None:
        """Sees which stops a print reached, and lets the others trail it."""
        while self._unwatched and self._unwatched[0][0] <= trade.time_ns:
            order = self._orders[self._unwatched[0][-1]]
            self._move(order, replace(order, entered=True))
        for keys, bound in ((self._rising, trade.price_ticks), (self._falling, -trade.price_ticks)):
            while keys and keys[0][0] <= bound:
                order = self._orders[keys[0][-1]]
                active_time_ns = trade.time_ns + self._latency_ns
                self._move(
                    order,
                    replace(order, trigger_time_ns=trade.time_ns, active_time_ns=active_time_ns, entered=False),
                )
                stop_ticks = order.stop_ticks or 0
                outcomes.append(Triggered(order_id=order.order_id, stop_ticks=stop_ticks, time_ns=trade.time_ns))
        for side, keys in self._trailing.items():
            bound = trade.price_ticks if side is Side.SELL else -trade.price_ticks
            while keys and keys[0][0] <= bound:
                order = self._orders[keys[0][-1]]
                self._move(order, replace(order, stop_ticks=_followed(order, trade.price_ticks)))

    def _fill_as_taker(self, order: Order, price_ticks: int, lots: int, time_ns: int, outcomes: list[Outcome]) -> None:
        slippage_ticks = _part(price_ticks, self._slippage)
        if slippage_ticks:
            worst_ticks = order.worst_ticks
            if order.side is Side.BUY:
                slipped = price_ticks + slippage_ticks
                price_ticks = slipped if worst_ticks is None else min(slipped, worst_ticks)
            else:
                slipped = max(1, price_ticks - slippage_ticks)
                price_ticks = slipped if worst_ticks is None else max(slipped, worst_ticks)
        self._fill(order, price_ticks, lots, time_ns, outcomes, maker=False)

    def _fill_as_maker(self, order: Order, lots: int, time_ns: int, outcomes: list[Outcome]) -> None:
        self._fill(order, order.limit_ticks or 0, lots, time_ns, outcomes, maker=True)

    def _fill(
        self, order: Order, price_ticks: int, lots: int, time_ns: int, outcomes: list[Outcome], *, maker: bool
    ) -> None:
        remaining_lots = order.remaining_lots - lots
        if remaining_lots:
            traded_lots = order.traded_lots + lots
            ahead_lots = 0 if maker and self._has_book else order.ahead_lots
            self._keep(replace(order, remaining_lots=remaining_lots, traded_lots=traded_lots, ahead_lots=ahead_lots))
        else:
            self._remove(order)
        outcomes.append(
            Fill(
                order_id=order.order_id,
                price_ticks=price_ticks,
                quantity_lots=lots,
                remaining_lots=remaining_lots,
                maker=maker,
                time_ns=time_ns,
            )
        )
        if order.group is not None:
            outcomes += self.take_off(order.group, lots, time_ns, but=order.order_id)

    def _end(self, order: Order, cause: Cause, time_ns: int) -> Canceled:
        self._remove(order)
        return Canceled(order_id=order.order_id, cause=cause, remaining_lots=order.remaining_lots, time_ns=time_ns)

    def _reject(self, order: Order, time_ns: int) -> Rejected:
        self._remove(order)
        return Rejected(order_id=order.order_id, remaining_lots=order.remaining_lots, time_ns=time_ns)

    def _keep(self, order: Order) -> None:
        """Notes a change of an order that leaves it in its places."""
        self._orders[order.order_id] = order
        self._changed.add(order.order_id)

    def _move(self, before: Order, after: Order) -> None:
        for keys, key in self._places(before):
            del keys[bisect_left(keys, key)]
        for keys, key in self._places(after):
            insort(keys, key)
        self._keep(after)

    def _remove(self, order: Order) -> None:
        del self._orders[order.order_id]
        if order.group is not None:
            self._groups[order.group].discard(order.order_id)
            if not self._groups[order.group]:
                del self._groups[order.group]
        for keys, key in self._places(order):
            del keys[bisect_left(keys, key)]

    def _places(self, order: Order) -> Iterator[tuple[_Keys, tuple[Any, ...]]]:
        """Where an order stands: each list that names it, and its key there."""
        if order.expire_time_ns is not None:
            yield self._expiring, (order.expire_time_ns, order.order_id)
        if not order.waits_for_stop:
            if order.entered:
                yield self._resting[order.side], _rank(order)
            else:
                yield self._waiting, (order.active_time_ns, order.order_id)
        elif not order.entered:
            yield self._unwatched, (order.active_time_ns, order.order_id)
        else:
            stop_ticks = order.stop_ticks or 0
            if (order.side is Side.BUY) is (order.trigger is Trigger.STOP):
                yield self._rising, (stop_ticks, order.order_id)
            else:
                yield self._falling, (-stop_ticks, order.order_id)
            if order.trail is not None:
                yield self._trailing[order.side], (_moves_at(order.side, stop_ticks, order.trail), order.order_id)


def _ranked(side: Side, price_ticks: int) -> int:
    """A price as it ranks among what rests on a side: the smaller, the sooner it is served."""
    return price_ticks if side is Side.SELL else -price_ticks


def _rank(order: Order) -> tuple[int, int, str]:
    """Price, then time, then id: the smaller is served first."""
    rank = _BEST_RANK if order.limit_ticks is None else _ranked(order.side, order.limit_ticks)
    return rank, order.active_time_ns, order.order_id


def _is_through(order: Order, price_ticks: int) -> bool:
    """Whether a price is strictly better for the order than its limit."""
    if order.limit_ticks is None:
        return True
    return price_ticks < order.limit_ticks if order.side is Side.BUY else price_ticks > order.limit_ticks


def _accepts(order: Order, price_ticks: int) -> bool:
    """Whether a price is the worst the order accepts or better."""
    worst_ticks = order.worst_ticks
    if worst_ticks is None:
        return True
    return price_ticks <= worst_ticks if order.side is Side.BUY else price_ticks >= worst_ticks


def _is_decided(order: Order) -> bool:
    """Whether an order that has met its first print, and is not full, is done."""
    if order.time_in_force is TimeInForce.IOC:
        return order.limit_ticks is not None
    return order.time_in_force is TimeInForce.FOK


def _eat(order: Order, offers: list[Level]) -> list[tuple[int, int]]:
    """Takes as much as the order wants and accepts out of the offers; returns (price, lots) of each bite."""
    wanted_lots = order.remaining_lots
    bites: list[tuple[int, int]] = []
    while wanted_lots > 0 and offers and _accepts(order, offers[0].price_ticks):
        price_ticks, quantity_lots = offers[0]
        lots = min(wanted_lots, quantity_lots)
        wanted_lots -= lots
        if lots:
            bites.append((price_ticks, lots))
        if lots == quantity_lots:
            del offers[0]
        else:
            offers[0] = Level(price_ticks, quantity_lots - lots)
    return bites


def _part(price_ticks: int, basis_points: int) -> int:
    """So many basis points of a price, rounded up to a tick."""
    return -(-price_ticks * basis_points // WHOLE_BASIS_POINTS)


def _followed(order: Order, price_ticks: int) -> int:
    """Where a trailing stop stands behind a print."""
    trail = order.trail or Trail()
    distance_ticks = _part(price_ticks, trail.basis_points) if trail.basis_points is not None else trail.ticks or 0
    return price_ticks - distance_ticks if order.side is Side.SELL else price_ticks + distance_ticks


def _moves_at(side: Side, stop_ticks: int, trail: Trail) -> int:
    """The first print that moves a trailing stop: the lowest for what sells, the highest, negated, for what buys."""
    if side is Side.SELL:
        if trail.basis_points is None:
            return stop_ticks + 1 + (trail.ticks or 0)
        return -(-(stop_ticks + 1) * WHOLE_BASIS_POINTS // (WHOLE_BASIS_POINTS - trail.basis_points))
    if trail.basis_points is None:
        return -(stop_ticks - 1 - (trail.ticks or 0))
    return -((stop_ticks - 1) * WHOLE_BASIS_POINTS // (WHOLE_BASIS_POINTS + trail.basis_points))
