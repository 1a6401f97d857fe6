"""How the market of one instrument fills orders.

Where the source brings a book:

- An order enters at the first book whose time is at or after its active time. It takes from the other side, best price
  first, up to its limit, at the prices of the book. What is left of a market or IOC order is canceled; FOK trades all
  of its quantity there or nothing; a GTC limit rests.
- A resting order is filled at its own limit, as maker, when a print is strictly beyond the limit (a print at the limit
  may have been for others in the queue) or when the book's other side reaches the limit (then nothing can be left at
  that price on its own side). Resting orders meet a book before the orders that enter at it.

Where it brings none, prints stand in for the book:

- An order enters at the first print at or after its active time. If that print is strictly beyond its limit it takes
  at the print's price; otherwise a GTC limit rests and fills at its limit, as maker, by the rule above.
- A market order takes at the price of its first print and, because a print tells what was traded and not what could
  have been, goes on taking prints until it is full. A limit IOC or either FOK is decided by its first print alone.

Everywhere: a print, and each level of one book, fills each side no more than its own quantity, shared by price, then
active time, then order id. Our fills leave no trace in the market: the next book is taken as it is shown.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter

from libs.matching.orders import Book, Canceled, Fill, Level, Order, Outcome, Print, Side, TimeInForce

_BEST_RANK = -(2**63)
"""Ranks an order without a limit before every limit."""

_Rank = tuple[int, int, str]
_key = itemgetter(0)


class Market:
    """The orders of one instrument and what prints and books do to them.

    The orders are its whole state: a market made of `orders()` goes on exactly as this one would have.
    """

    def __init__(self, *, has_book: bool, orders: Iterable[Order] = ()) -> None:
        self._has_book = has_book
        self._orders: dict[str, Order] = {}
        self._waiting: list[tuple[tuple[int, str], str]] = []
        self._resting: dict[Side, list[tuple[_Rank, str]]] = {Side.BUY: [], Side.SELL: []}
        for order in orders:
            self.submit(order)

    def orders(self) -> tuple[Order, ...]:
        """Every order that may still trade, by id."""
        return tuple(self._orders[order_id] for order_id in sorted(self._orders))

    def find(self, order_id: str) -> Order | None:
        """An order that may still trade, as it now stands."""
        return self._orders.get(order_id)

    def submit(self, order: Order) -> None:
        """Lets an order wait for its market time. Raises ValueError for an id that is here already."""
        if order.order_id in self._orders:
            raise ValueError(f"order {order.order_id} is in the market already")
        self._orders[order.order_id] = order
        if order.entered:
            self._rest(order)
        else:
            insort(self._waiting, (_arrival(order), order.order_id))

    def cancel(self, order_id: str) -> Order | None:
        """Takes an order out and returns what it was, or None if it is not here (any more)."""
        order = self._orders.get(order_id)
        if order is not None:
            self._remove(order)
        return order

    def on_print(self, trade: Print) -> list[Outcome]:
        """What one trade of the market does to the orders."""
        entering = () if self._has_book else self._enter(trade.time_ns)
        outcomes: list[Outcome] = []
        for side in Side:
            self._share(side, trade, entering, outcomes)
        for order_id in entering:
            order = self._orders.get(order_id)
            if order is not None and order.limit_ticks is not None and order.time_in_force is not TimeInForce.GTC:
                outcomes.append(self._cancel_rest(order, trade.time_ns))
        return outcomes

    def on_book(self, book: Book) -> list[Outcome]:
        """What one book does to the orders. Raises ValueError where the source is said to bring none."""
        if not self._has_book:
            raise ValueError("this market is said to have no book")
        outcomes: list[Outcome] = []
        offers = {Side.BUY: list(book.asks), Side.SELL: list(book.bids)}
        for side in Side:
            self._cross(side, offers[side], book.time_ns, outcomes)
        for order_id in self._enter(book.time_ns):
            order = self._orders[order_id]
            self._take(order, offers[order.side], book.time_ns, outcomes)
        return outcomes

    def _share(self, side: Side, trade: Print, entering: Sequence[str], outcomes: list[Outcome]) -> None:
        """Gives a print's quantity to the orders of one side that it went through."""
        left_lots = trade.quantity_lots
        queue = self._resting[side]
        place = 0
        while left_lots > 0 and place < len(queue):
            order = self._orders[queue[place][1]]
            if not _is_through(order, trade.price_ticks):
                break
            takes = order.limit_ticks is None or order.order_id in entering
            if order.time_in_force is TimeInForce.FOK and order.remaining_lots > left_lots:
                outcomes.append(self._cancel_rest(order, trade.time_ns))
                continue
            price_ticks = trade.price_ticks if takes or order.limit_ticks is None else order.limit_ticks
            lots = min(order.remaining_lots, left_lots)
            left_lots -= lots
            outcomes.append(self._fill(order, price_ticks, lots, maker=not takes, time_ns=trade.time_ns))
            if order.order_id in self._orders:
                place += 1

    def _cross(self, side: Side, offers: list[Level], time_ns: int, outcomes: list[Outcome]) -> None:
        """Fills resting orders whose limit the other side of the book has reached."""
        queue = self._resting[side]
        place = 0
        while offers and place < len(queue):
            order = self._orders[queue[place][1]]
            if order.limit_ticks is None or not _accepts(order, offers[0].price_ticks):
                break
            lots = sum(lots for _, lots in _eat(order, offers))
            if lots:
                outcomes.append(self._fill(order, order.limit_ticks, lots, maker=True, time_ns=time_ns))
            if order.order_id in self._orders:
                place += 1

    def _take(self, order: Order, offers: list[Level], time_ns: int, outcomes: list[Outcome]) -> None:
        """Lets an entering order take from the book, and decides what becomes of its rest."""
        reachable_lots = sum(level.quantity_lots for level in offers if _accepts(order, level.price_ticks))
        if order.time_in_force is not TimeInForce.FOK or reachable_lots >= order.remaining_lots:
            for price_ticks, lots in _eat(order, offers):
                outcomes.append(
                    self._fill(self._orders[order.order_id], price_ticks, lots, maker=False, time_ns=time_ns)
                )
        rest = self._orders.get(order.order_id)
        if rest is not None and rest.time_in_force is not TimeInForce.GTC:
            outcomes.append(self._cancel_rest(rest, time_ns))

    def _enter(self, time_ns: int) -> tuple[str, ...]:
        """Moves the orders whose time has come among the resting ones, and names them in order of arrival."""
        count = bisect_left(self._waiting, (time_ns + 1, ""), key=_key)
        entering = tuple(order_id for _, order_id in self._waiting[:count])
        del self._waiting[:count]
        for order_id in entering:
            self._orders[order_id] = order = replace(self._orders[order_id], entered=True)
            self._rest(order)
        return entering

    def _rest(self, order: Order) -> None:
        insort(self._resting[order.side], (_rank(order), order.order_id))

    def _fill(self, order: Order, price_ticks: int, lots: int, *, maker: bool, time_ns: int) -> Fill:
        remaining_lots = order.remaining_lots - lots
        if remaining_lots:
            self._orders[order.order_id] = replace(order, remaining_lots=remaining_lots)
        else:
            self._remove(order)
        return Fill(
            order_id=order.order_id,
            price_ticks=price_ticks,
            quantity_lots=lots,
            remaining_lots=remaining_lots,
            maker=maker,
            time_ns=time_ns,
        )

    def _cancel_rest(self, order: Order, time_ns: int) -> Canceled:
        self._remove(order)
        return Canceled(
            order_id=order.order_id,
            cause=order.time_in_force,
            remaining_lots=order.remaining_lots,
            time_ns=time_ns,
        )

    def _remove(self, order: Order) -> None:
        del self._orders[order.order_id]
        if order.entered:
            queue = self._resting[order.side]
            del queue[bisect_left(queue, _rank(order), key=_key)]
        else:
            del self._waiting[bisect_left(self._waiting, _arrival(order), key=_key)]


def _arrival(order: Order) -> tuple[int, str]:
    return order.active_time_ns, order.order_id


def _rank(order: Order) -> _Rank:
    """Price, then time, then id: the smaller is served first."""
    if order.limit_ticks is None:
        return _BEST_RANK, order.active_time_ns, order.order_id
    return (
        -order.limit_ticks if order.side is Side.BUY else order.limit_ticks,
        order.active_time_ns,
        order.order_id,
    )


def _is_through(order: Order, price_ticks: int) -> bool:
    """Whether a price is strictly better for the order than its limit."""
    if order.limit_ticks is None:
        return True
    return price_ticks < order.limit_ticks if order.side is Side.BUY else price_ticks > order.limit_ticks


def _accepts(order: Order, price_ticks: int) -> bool:
    """Whether a price is the order's limit or better."""
    return order.limit_ticks is None or price_ticks == order.limit_ticks or _is_through(order, price_ticks)


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
