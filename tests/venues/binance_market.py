"""A market of the offline Binance: what its streams tell of it, and the aggregates, book and tickers that it has on record."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from libs import money
from tests.venues.binance_klines import DAY, Trade, text
from tests.venues.binance_orders import NOTHING, Side
from tests.venues.market import Market as AnyMarket

FIRST_UPDATE_ID = 1_027_024
DEPTH_SPEEDS = ("100ms", "1000ms")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one taker traded at one price, whoever the makers were."""

    aggregate_id: int
    price: Decimal
    quantity: Decimal
    first_trade_id: int
    last_trade_id: int
    time: int
    buyer_is_maker: bool

    def row(self) -> dict[str, Any]:
        return {
            "a": self.aggregate_id,
            "p": text(self.price),
            "q": text(self.quantity),
            "f": self.first_trade_id,
            "l": self.last_trade_id,
            "T": self.time,
            "m": self.buyer_is_maker,
            "M": True,
        }


@dataclass
class Diff:
    """The prices at which the book has changed since that update."""

    first_update_id: int
    changed: dict[Side, set[Decimal]] = field(default_factory=lambda: {side: set() for side in Side})


@dataclass
class Market(AnyMarket):
    """publish sends an event to whoever follows that stream; times are in milliseconds."""

    publish: Callable[[str, dict[str, Any]], None] = field(kw_only=True)
    aggregates: list[Aggregate] = field(default_factory=list)
    has_ids: bool = True
    """Whether aggregates are told with their ids; there are venues that have none."""
    update_id: int = FIRST_UPDATE_ID

    def __post_init__(self) -> None:
        super().__post_init__()
        self._diffs = {speed: Diff(self.update_id + 1) for speed in DEPTH_SPEEDS}
        self._best: list[str] = []

    @property
    def stream(self) -> str:
        return self.symbol.lower()

    def renumber(self, first_id: int = 1) -> None:
        super().renumber(first_id)
        self.aggregates.clear()

    # What it tells at once.

    def traded(self, trade: Trade) -> None:
        event = {
            "e": "trade",
            "E": self.now(),
            "s": self.symbol,
            "t": trade.trade_id,
            "p": text(trade.price),
            "q": text(trade.quantity),
            "T": trade.time,
            "m": trade.buyer_is_maker,
            "M": True,
        }
        self.publish(f"{self.stream}@trade", event)

    def taken(self, made: Sequence[Trade]) -> None:
        """Puts what one taker traded on record, and tells of it."""
        for aggregate_id, group in itertools.groupby(made, key=lambda trade: trade.aggregate_id):
            trades = list(group)
            quantity = sum((trade.quantity for trade in trades), NOTHING)
            first, last = trades[0], trades[-1]
            aggregate = Aggregate(
                aggregate_id,
                first.price,
                quantity,
                first.trade_id,
                last.trade_id,
                first.time,
                first.buyer_is_maker,
            )
            self.aggregates.append(aggregate)
            event = {"e": "aggTrade", "E": self.now(), "s": self.symbol, **self.row_of(aggregate)}
            self.publish(f"{self.stream}@aggTrade", event)

    def row_of(self, aggregate: Aggregate) -> dict[str, Any]:
        row = aggregate.row()
        if not self.has_ids:
            del row["a"]
        return row

    def changed(self, side: Side, price: Decimal) -> None:
        self.update_id += 1
        for diff in self._diffs.values():
            diff.changed[side].add(price)

    def settled(self) -> None:
        best = [text(value) for side in Side for value in self.best_of(side)]
        if best != self._best:
            self._best = best
            self.publish(f"{self.stream}@bookTicker", {"u": self.update_id, **self.book_ticker()})

    # The book.

    def depth(self, limit: int) -> dict[str, Any]:
        sides = {
            name: [
                [text(price), text(quantity)] for price, quantity in itertools.islice(self.offers(side).items(), limit)
            ]
            for name, side in (("bids", Side.BUY), ("asks", Side.SELL))
        }
        return {"lastUpdateId": self.update_id, **sides}

    def tell_depth(self, speed: str) -> None:
        """What has changed in the book since this was told the last time, if anything has."""
        diff = self._diffs[speed]
        if diff.first_update_id > self.update_id:
            return
        self._diffs[speed] = Diff(self.update_id + 1)
        changes = {
            name: [[text(price), text(self.offered(side, price))] for price in sorted(diff.changed[side])]
            for name, side in (("b", Side.BUY), ("a", Side.SELL))
        }
        ids = self.ids_of_change(diff.first_update_id)
        event = {"e": "depthUpdate", "E": self.now(), "s": self.symbol, **ids, **changes}
        for name in [f"{self.stream}@depth@{speed}", *([f"{self.stream}@depth"] if speed == "1000ms" else [])]:
            self.publish(name, event)

    def ids_of_change(self, first_update_id: int) -> dict[str, Any]:
        """By which who follows the book knows that nothing is missing since what was told before."""
        return {"U": first_update_id, "u": self.update_id}

    # Tickers.

    def book_ticker(self) -> dict[str, Any]:
        """As a stream gives it."""
        (bid, bid_quantity), (ask, ask_quantity) = self.best_of(Side.BUY), self.best_of(Side.SELL)
        best = {"b": text(bid), "B": text(bid_quantity), "a": text(ask), "A": text(ask_quantity)}
        return {"s": self.symbol, **best}

    def ticker(self) -> dict[str, Any]:
        """Of the last 24 hours, as REST gives it."""
        now, best = self.now(), self.book_ticker()
        start = bisect_left(self.trades, now - DAY, key=lambda trade: trade.time)
        trades = self.trades[start:]
        prices = [trade.price for trade in trades] or [NOTHING]
        before = self.trades[start - 1].price if start else prices[0]
        volume = sum((trade.quantity for trade in trades), NOTHING)
        quote_volume = sum((trade.quantity * trade.price for trade in trades), NOTHING)
        change = prices[-1] - prices[0]
        return {
            "symbol": self.symbol,
            "priceChange": text(change),
            "priceChangePercent": f"{money.divide(change * 100, prices[0]) if prices[0] else NOTHING:.3f}",
            "weightedAvgPrice": text(money.divide(quote_volume, volume) if volume else NOTHING),
            "prevClosePrice": text(before),
            "lastPrice": text(prices[-1]),
            "lastQty": text(trades[-1].quantity if trades else NOTHING),
            "bidPrice": best["b"],
            "bidQty": best["B"],
            "askPrice": best["a"],
            "askQty": best["A"],
            "openPrice": text(prices[0]),
            "highPrice": text(max(prices)),
            "lowPrice": text(min(prices)),
            "volume": text(volume),
            "quoteVolume": text(quote_volume),
            "openTime": now - DAY,
            "closeTime": now,
            "firstId": trades[0].trade_id if trades else -1,
            "lastId": trades[-1].trade_id if trades else -1,
            "count": len(trades),
        }
