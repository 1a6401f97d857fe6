"""The paper market of one instrument: its open orders, what the market does to them, and what is to be told of it.

Pure and deterministic: the same orders and the same moments of the market make the same events with the same ids.
Nothing is committed here; whoever commits takes the changes with take().
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, ROUND_UP

from libs.matching import orders as matching
from libs.matching.grid import fee
from libs.matching.market import Market
from libs.matching.orders import Book, Fill, Outcome, Print, Side
from libs.money import CONTEXT
from services.execution import domain
from services.execution.domain import (
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Filled,
    Instrument,
    Order,
    OrderType,
    Rejected,
)

Moment = Print | Book


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be committed together: orders as they now stand, and what happened to which, in order."""

    orders: Sequence[Order]
    events: Sequence[tuple[Order, Event]]


class PaperMarket:
    def __init__(self, instrument: Instrument, orders: Iterable[Order] = ()) -> None:
        """Goes on with orders that were accepted before; those that no longer fit the instrument's grid are canceled."""
        self.instrument = instrument
        self._grid = instrument.grid
        self._market = Market(has_book=instrument.has_book)
        self._orders: dict[str, Order] = {}
        self._outside: set[str] = set()
        self._changed: dict[str, Order] = {}
        self._events: list[tuple[Order, Event]] = []
        self.time_ns = 0
        for order in orders:
            try:
                wish = self._wish(order)
            except ValueError:
                self._tell(order, Canceled(cause="instrument_changed", time_ns=order.active_time_ns))
            else:
                self._keep(order)
                self._market.submit(wish)

    @property
    def is_empty(self) -> bool:
        """Whether no order is left that could still trade."""
        return not self._orders

    @property
    def has_news(self) -> bool:
        return bool(self._events)

    def impatient(self) -> list[Order]:
        """The orders that may not rest and still wait for the market."""
        return [order for order in self._orders.values() if not order.rests]

    def accept(self, orders: Sequence[Order], history: Sequence[Moment]) -> None:
        """Takes new orders in, and lets them meet what the market did since they became active.

        So what an order trades depends on its own market time and not on how long it was on its way. The older orders
        have met that history already; the new ones share it among themselves.
        """
        arriving = Market(has_book=self.instrument.has_book)
        for order in orders:
            try:
                wish = self._wish(order)
            except ValueError as error:
                self._tell(order, Rejected(reason=str(error), time_ns=order.active_time_ns))
            else:
                self._tell(order, Accepted(venue_order_id=str(order.order_id), time_ns=order.active_time_ns))
                self._outside.add(wish.order_id)
                arriving.submit(wish)
        self._pass_through(arriving, history)
        for wish in arriving.orders():
            self._market.submit(wish)

    def pass_through(self, moments: Iterable[Moment]) -> None:
        """Lets the market go on."""
        self._pass_through(self._market, moments)

    def cancel(self, order: Order) -> None:
        """Takes an order back on its user's wish, or says that it is done; order is as it was last committed."""
        current = self._orders.get(str(order.order_id))
        if current is None:
            done = self._changed.get(str(order.order_id), order)
            self._tell(done, CancelRejected(reason=f"the order is {done.state.value}", time_ns=self._time_of(done)))
        else:
            self._take_back(self._market, current, "user", self._time_of(current))

    def give_up(self, order: Order) -> None:
        """Ends an order that may not rest and has waited too long for any market data."""
        self._take_back(self._market, order, "no_market_data", self._time_of(order))

    def take(self) -> Changes:
        """What has changed since the last take, for the caller to commit; if that fails, this market is to be discarded."""
        for order_id in list(self._outside):
            wish = self._market.find(order_id)
            if wish is None or wish.entered:
                self._outside.discard(order_id)
            if wish is not None and wish.entered:
                self._orders[order_id] = self._changed[order_id] = replace(self._orders[order_id], entered=True)
        changes = Changes(list(self._changed.values()), self._events)
        self._changed, self._events = {}, []
        return changes

    def _pass_through(self, market: Market, moments: Iterable[Moment]) -> None:
        for moment in moments:
            self.time_ns = max(self.time_ns, moment.time_ns)
            if isinstance(moment, Print):
                self._protect(market, moment)
                outcomes = market.on_print(moment)
            elif self.instrument.has_book:
                outcomes = market.on_book(moment)
            else:
                continue
            for outcome in outcomes:
                self._note(outcome)

    def _protect(self, market: Market, trade: Print) -> None:
        """Where prints stand in for a book, a market order ends at the first print that is worse than it accepts."""
        if self.instrument.has_book:
            return
        price = self._grid.price(trade.price_ticks)
        for order in self.impatient():
            if order.order_type is not OrderType.MARKET or order.worst_price is None:
                continue
            worse = price > order.worst_price if order.side is Side.BUY else price < order.worst_price
            if worse and order.active_time_ns <= trade.time_ns:
                self._take_back(market, order, "protection_price", trade.time_ns)

    def _note(self, outcome: Outcome) -> None:
        order = self._orders[outcome.order_id]
        if isinstance(outcome, Fill):
            self._tell(order, self._filled(order, outcome))
        elif isinstance(outcome, matching.Canceled):
            self._tell(order, Canceled(cause=outcome.cause.value, time_ns=outcome.time_ns))

    def _filled(self, order: Order, fill: Fill) -> Filled:
        price, quantity = self._grid.price(fill.price_ticks), self._grid.quantity(fill.quantity_lots)
        rate = self.instrument.maker_fee_rate if fill.maker else self.instrument.taker_fee_rate
        return Filled(
            # By its number in the order, so that what is worked out again has the same name.
            venue_fill_id=f"{order.order_id}-{order.fill_count + 1}",
            price=price,
            quantity=quantity,
            fee=fee(price, quantity, rate),
            fee_asset=self.instrument.quote_asset,
            maker=fill.maker,
            time_ns=fill.time_ns,
        )

    def _take_back(self, market: Market, order: Order, cause: str, time_ns: int) -> None:
        if market.cancel(str(order.order_id)) is not None:
            self._tell(order, Canceled(cause=cause, time_ns=time_ns))

    def _tell(self, order: Order, event: Event) -> None:
        after = domain.apply(order, event)
        self._events.append((after, event))
        if after != order:
            self._changed[str(order.order_id)] = after
        if after.is_open:
            self._orders[str(order.order_id)] = after
        else:
            self._orders.pop(str(order.order_id), None)

    def _keep(self, order: Order) -> None:
        self._orders[str(order.order_id)] = order
        if not order.entered:
            self._outside.add(str(order.order_id))

    def _time_of(self, order: Order) -> int:
        return max(self.time_ns, order.active_time_ns)

    def _wish(self, order: Order) -> matching.Order:
        """The order as the matching counts it. Raises ValueError where it does not fit the instrument's grid."""
        return matching.Order(
            order_id=str(order.order_id),
            side=order.side,
            time_in_force=order.time_in_force,
            remaining_lots=self._grid.quantity_lots(order.remaining),
            limit_ticks=self._limit_ticks(order),
            active_time_ns=order.active_time_ns,
            entered=order.entered,
        )

    def _limit_ticks(self, order: Order) -> int | None:
        """The worst price in ticks, a price between two of them made stricter."""
        # Where prints stand in for a book, a market order takes print after print, and _protect watches their price.
        if order.worst_price is None or (order.order_type is OrderType.MARKET and not self.instrument.has_book):
            return None
        ticks = CONTEXT.divide(order.worst_price, self.instrument.tick_size)
        return int(ticks.to_integral_value(ROUND_DOWN if order.side is Side.BUY else ROUND_UP))
