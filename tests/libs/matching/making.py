"""Short forms of what goes into a market and what comes out."""

from collections.abc import Iterable, Sequence
from typing import Any

from libs.matching.orders import (
    Book,
    Canceled,
    Expired,
    Fill,
    Level,
    Order,
    Outcome,
    Print,
    Rejected,
    Side,
    TimeInForce,
    Trigger,
    Triggered,
)

GTC, IOC, FOK = TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK
BUY, SELL = Side.BUY, Side.SELL
STOP, TAKE_PROFIT = Trigger.STOP, Trigger.TAKE_PROFIT


def order(
    order_id: str,
    side: Side,
    lots: int,
    limit: int | None = None,
    force: TimeInForce | None = None,
    active: int = 0,
    **more: Any,
) -> Order:
    return Order(
        order_id=order_id,
        side=side,
        time_in_force=force or (IOC if limit is None else GTC),
        remaining_lots=lots,
        limit_ticks=limit,
        active_time_ns=active,
        **more,
    )


def stop(
    order_id: str, side: Side, lots: int, at: int, limit: int | None = None, trigger: Trigger = STOP, **more: Any
) -> Order:
    """Active from 0 on, like order()."""
    return order(order_id, side, lots, limit, trigger=trigger, stop_ticks=at, **more)


def book(time_ns: int, bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]) -> Book:
    return Book(time_ns, tuple(Level(*bid) for bid in bids), tuple(Level(*ask) for ask in asks))


def short(outcomes: Iterable[Outcome]) -> list[tuple[Any, ...]]:
    return [in_short(outcome) for outcome in outcomes]


def in_short(outcome: Outcome) -> tuple[Any, ...]:
    match outcome:
        case Fill(order_id=order_id, price_ticks=price, quantity_lots=lots, maker=maker):
            return order_id, price, lots, "maker" if maker else "taker"
        case Canceled(order_id=order_id, cause=cause, remaining_lots=lots):
            return order_id, cause.value, lots
        case Rejected(order_id=order_id, remaining_lots=lots):
            return order_id, "post_only", lots
        case Expired(order_id=order_id, remaining_lots=lots, time_ns=time_ns):
            return order_id, "expired", lots, time_ns
        case Triggered(order_id=order_id, stop_ticks=stop_ticks):
            return order_id, "triggered", stop_ticks


def prints(market: Any, *trades: tuple[int, int, int]) -> list[tuple[Any, ...]]:
    """What prints of (time, price, lots) do, in short."""
    return [told for trade in trades for told in short(market.on_print(Print(*trade)))]
