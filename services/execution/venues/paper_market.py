"""The paper market of one instrument: its open orders, what the market does to them, and what is to be told of it.

Pure and deterministic: the same orders and the same moments of the market make the same events with the same ids.
Nothing is committed here; whoever commits takes the changes with take().
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from uuid import UUID

from libs.matching import orders as matching
from libs.matching.grid import fee
from libs.matching.market import Market
from libs.matching.orders import Book, Cause, Fill, Outcome, Print, Side, Trail, Trigger
from libs.money import CONTEXT, ZERO
from services.execution import domain
from services.execution.domain import (
    AT_ONCE,
    GROUP,
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Expired,
    Filled,
    Instrument,
    Order,
    OrderType,
    Rejected,
    Release,
    Replaced,
    Replacement,
    ReplaceRejected,
    Triggered,
)

POST_ONLY = "post_only"
"""Why an order is rejected that was only to rest and would have taken."""
BASIS_POINTS_PER_PERCENT = 100

Moment = Print | Book


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """How the paper venue differs from the market it follows; see settings."""

    latency_ns: int = 0
    slippage_basis_points: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be committed together: orders as they now stand, and what happened to which, in order."""

    orders: Sequence[Order]
    events: Sequence[tuple[Order, Event]]


class PaperMarket:
    def __init__(self, instrument: Instrument, model: Model, orders: Iterable[Order] = ()) -> None:
        """Goes on with orders that were accepted before; those that no longer fit the instrument's grid are canceled."""
        self.instrument = instrument
        self._grid = instrument.grid
        self._model = model
        self._market = self._new_market()
        self._orders: dict[str, Order] = {}
        self._groups: defaultdict[UUID, set[str]] = defaultdict(set)
        self._changed: dict[str, Order] = {}
        self._events: list[tuple[Order, Event]] = []
        self.time_ns = 0
        for order in orders:
            self._keep(order)
            try:
                if order.remaining:
                    self._market.submit(self._wish(order))
            except ValueError:
                self._tell(order, Canceled(cause="instrument_changed", time_ns=order.active_time_ns))

    @property
    def is_empty(self) -> bool:
        """Whether no order is left that could still trade."""
        return not self._orders

    @property
    def has_news(self) -> bool:
        return bool(self._events)

    def impatient(self) -> list[Order]:
        """The orders that may not rest and still wait for the market."""
        return [order for order in self._orders.values() if order.remaining and not order.rests]

    def accept(self, orders: Sequence[Order], history: Sequence[Moment]) -> None:
        """Takes new orders in, and lets them meet what the market did since they became active.

        So what an order trades depends on its own market time and not on how long it was on its way. The older orders
        have met that history already; the new ones share it among themselves.
        """
        arriving = self._new_market()
        for order in orders:
            try:
                wish = self._wish(order) if order.remaining else None
            except ValueError as error:
                self._tell(order, Rejected(reason=str(error), time_ns=order.active_time_ns))
                continue
            self._tell(order, Accepted(venue_order_id=str(order.order_id), time_ns=order.active_time_ns))
            if wish is not None:
                arriving.submit(wish)
            elif not order.held_back:
                self._tell(self._orders[str(order.order_id)], Canceled(cause=GROUP, time_ns=order.active_time_ns))
        self._pass_through(arriving, history)
        for wish in arriving.orders():
            self._see(wish)
            self._market.submit(wish)

    def pass_through(self, moments: Iterable[Moment]) -> None:
        """Lets the market go on."""
        self._pass_through(self._market, moments)

    def release(self, order: Order, release: Release) -> None:
        """Lets an order go on with more than it was for, or end if none is left and none will come.

        order is as it was last committed.
        """
        order_id = str(order.order_id)
        before = self._orders.get(order_id, order)
        after = domain.released(before, release)
        if after == before:
            return
        self._changed[order_id] = after
        if not after.is_open:
            return
        self._keep(after)
        if after.remaining:
            self._renew(after)
        elif not after.held_back:
            self._tell(after, Canceled(cause=GROUP, time_ns=self._time_of(after)))

    def _renew(self, order: Order) -> None:
        """Lets the market have an order for as much as it is for by now."""
        order_id, time_ns = str(order.order_id), self._time_of(order)
        try:
            if self._market.find(order_id) is None:
                self._market.submit(self._wish(replace(order, active_time_ns=time_ns, entered=False, queue_ahead=None)))
            else:
                more = matching.Replacement(quantity_lots=self._grid.quantity_lots(order.quantity))
                self._market.replace(order_id, more, time_ns)
        except ValueError:
            self._market.cancel(order_id)
            self._tell(order, Canceled(cause="instrument_changed", time_ns=time_ns))
        else:
            self._catch_up(order_id)

    def replace(self, order: Order, replacement: Replacement) -> None:
        """Changes an order on its user's wish, or says why not; order is as it was last committed."""
        current = self._orders.get(str(order.order_id))
        if current is None:
            done = self._changed.get(str(order.order_id), order)
            reason = f"the order is {done.state.value}"
            self._reject_replace(done, replacement, reason)
            return
        current = self._catch_up(str(order.order_id))
        time_ns = self._time_of(current)
        try:
            wish = self._wish(domain.changed(current, replacement))
            change = matching.Replacement(
                quantity_lots=wish.traded_lots + wish.remaining_lots,
                limit_ticks=wish.limit_ticks,
                protection_ticks=wish.protection_ticks,
                stop_ticks=wish.stop_ticks if wish.waits_for_stop else None,
                trail=wish.trail if wish.waits_for_stop else None,
            )
            self._market.replace(str(order.order_id), change, time_ns)
        except ValueError as error:
            self._reject_replace(current, replacement, str(error))
        else:
            venue_order_id = str(order.order_id)
            self._tell(current, Replaced(replacement=replacement, venue_order_id=venue_order_id, time_ns=time_ns))
            self._catch_up(str(order.order_id))

    def cancel(self, order: Order) -> None:
        """Takes an order back on its user's wish, or says that it is done; order is as it was last committed."""
        current = self._orders.get(str(order.order_id))
        if current is None:
            done = self._changed.get(str(order.order_id), order)
            self._tell(done, CancelRejected(reason=f"the order is {done.state.value}", time_ns=self._time_of(done)))
        else:
            self._take_back(current, "user")

    def give_up(self, order: Order) -> None:
        """Ends an order that may not rest and has waited too long for any market data."""
        self._take_back(order, "no_market_data")

    def take(self) -> Changes:
        """What has changed since the last take, for the caller to commit; if that fails, this market is to be discarded."""
        for wish in self._market.take_changed():
            self._see(wish)
        changes = Changes(list(self._changed.values()), self._events)
        self._changed, self._events = {}, []
        return changes

    def _new_market(self) -> Market:
        return Market(
            has_book=self.instrument.has_book,
            latency_ns=self._model.latency_ns,
            slippage_basis_points=self._model.slippage_basis_points,
        )

    def _pass_through(self, market: Market, moments: Iterable[Moment]) -> None:
        for moment in moments:
            self.time_ns = max(self.time_ns, moment.time_ns)
            if isinstance(moment, Print):
                outcomes = market.on_print(moment)
            elif self.instrument.has_book:
                outcomes = market.on_book(moment)
            else:
                continue
            for outcome in outcomes:
                self._note(market, outcome)

    def _note(self, market: Market, outcome: Outcome) -> None:
        order, time_ns = self._orders[outcome.order_id], outcome.time_ns
        match outcome:
            case Fill():
                self._tell(order, self._filled(order, outcome))
                if order.group_id is not None:
                    self._take_off(market, order.group_id, outcome)
            case matching.Canceled(cause=Cause.GROUP) if order.held_back:
                pass  # It waits for more of it to be released.
            case matching.Canceled(cause=cause):
                self._tell(order, Canceled(cause=cause.value, time_ns=time_ns))
            case matching.Rejected():
                self._tell(order, Rejected(reason=POST_ONLY, time_ns=time_ns))
            case matching.Expired():
                self._tell(order, Expired(time_ns=time_ns))
            case matching.Triggered(stop_ticks=stop_ticks):
                self._tell(order, Triggered(stop_price=self._grid.price(stop_ticks), time_ns=time_ns))

    def _take_off(self, market: Market, group_id: UUID, fill: Fill) -> None:
        """Notes what a fill leaves of the others of its order's group; those that rest while it arrives lose it too."""
        quantity = self._grid.quantity(fill.quantity_lots)
        for order_id in self._groups.get(group_id, set()) - {fill.order_id}:
            self._orders[order_id] = self._changed[order_id] = domain.less(self._orders[order_id], quantity)
        if market is not self._market:
            for ended in self._market.take_off(str(group_id), fill.quantity_lots, fill.time_ns):
                self._note(self._market, ended)

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

    def _take_back(self, order: Order, cause: str) -> None:
        self._market.cancel(str(order.order_id))
        self._tell(order, Canceled(cause=cause, time_ns=self._time_of(order)))

    def _reject_replace(self, order: Order, replacement: Replacement, reason: str) -> None:
        client_order_id, time_ns = replacement.client_order_id, self._time_of(order)
        self._tell(order, ReplaceRejected(client_order_id=client_order_id, reason=reason, time_ns=time_ns))

    def _tell(self, order: Order, event: Event) -> None:
        after = domain.apply(order, event)
        self._events.append((after, event))
        if after != order:
            self._changed[str(order.order_id)] = after
        if after.is_open:
            self._keep(after)
        else:
            self._drop(after)

    def _keep(self, order: Order) -> None:
        self._orders[str(order.order_id)] = order
        if order.group_id is not None:
            self._groups[order.group_id].add(str(order.order_id))

    def _drop(self, order: Order) -> None:
        self._orders.pop(str(order.order_id), None)
        if order.group_id is not None:
            self._groups[order.group_id].discard(str(order.order_id))
            if not self._groups[order.group_id]:
                del self._groups[order.group_id]

    def _catch_up(self, order_id: str) -> Order:
        """The order as it stands in the market, if it is there."""
        if (wish := self._market.find(order_id)) is not None:
            self._see(wish)
        return self._orders[order_id]

    def _see(self, wish: matching.Order) -> None:
        """Notes how an order stands in the market."""
        order = self._orders[wish.order_id]
        after = replace(
            order,
            active_time_ns=wish.active_time_ns,
            entered=wish.entered,
            stop_price=None if wish.stop_ticks is None else self._grid.price(wish.stop_ticks),
            queue_ahead=None if wish.ahead_lots is None else self._grid.quantity(wish.ahead_lots),
        )
        if after != order:
            self._orders[wish.order_id] = self._changed[wish.order_id] = after

    def _time_of(self, order: Order) -> int:
        return max(self.time_ns, order.active_time_ns)

    def _wish(self, order: Order) -> matching.Order:
        """The order as the matching counts it. Raises ValueError where it does not fit the instrument's grid."""
        worst_ticks = self._worst_ticks(order)
        trigger = self._trigger(order)
        return matching.Order(
            order_id=str(order.order_id),
            side=order.side,
            time_in_force=self._time_in_force(order),
            remaining_lots=self._grid.quantity_lots(order.remaining),
            limit_ticks=worst_ticks if order.trades_at_limit else None,
            active_time_ns=order.active_time_ns,
            entered=order.entered,
            traded_lots=self._grid.quantity_lots(order.filled_quantity),
            protection_ticks=None if order.trades_at_limit else worst_ticks,
            expire_time_ns=order.expire_time_ns,
            post_only=order.post_only,
            trigger=trigger,
            stop_ticks=self._stop_ticks(order) if trigger else None,
            trail=self._trail(order),
            trigger_time_ns=order.trigger_time_ns,
            ahead_lots=None if order.queue_ahead is None else self._ahead_lots(order.queue_ahead),
            group=None if order.group_id is None else str(order.group_id),
        )

    def _time_in_force(self, order: Order) -> matching.TimeInForce:
        """What becomes of what cannot trade on entering; what waits for a stop waits whatever this says."""
        if order.time_in_force in AT_ONCE:
            return matching.TimeInForce(order.time_in_force.value)
        return matching.TimeInForce.GTC if order.trades_at_limit else matching.TimeInForce.IOC

    def _trigger(self, order: Order) -> Trigger | None:
        if not order.has_stop:
            return None
        takes_profit = order.order_type in (OrderType.TAKE_PROFIT, OrderType.TAKE_PROFIT_LIMIT)
        return Trigger.TAKE_PROFIT if takes_profit else Trigger.STOP

    def _worst_ticks(self, order: Order) -> int | None:
        """The worst price in ticks, a price between two of them made stricter."""
        if order.worst_price is None:
            return None
        return self._rounded(order.worst_price, ROUND_DOWN if order.side is Side.BUY else ROUND_UP)

    def _stop_ticks(self, order: Order) -> int:
        """The stop in ticks; a trailing one between two of them goes away from the market."""
        if order.stop_price is None:
            raise ValueError(f"a {order.order_type.value} order needs a stop price")
        if order.order_type is OrderType.TRAILING_STOP:
            return self._rounded(order.stop_price, ROUND_UP if order.side is Side.BUY else ROUND_DOWN)
        return self._grid.price_ticks(order.stop_price)

    def _trail(self, order: Order) -> Trail | None:
        if order.order_type is not OrderType.TRAILING_STOP:
            return None
        if order.trail_percent is None:
            return Trail(ticks=self._grid.price_ticks(order.trail_amount or ZERO))
        return Trail(basis_points=int(order.trail_percent * BASIS_POINTS_PER_PERCENT))

    def _ahead_lots(self, quantity: Decimal) -> int:
        return int(CONTEXT.divide(quantity, self.instrument.lot_size).to_integral_value(ROUND_UP))

    def _rounded(self, price: Decimal, rounding: str) -> int:
        return int(CONTEXT.divide(price, self.instrument.tick_size).to_integral_value(rounding))
