"""A market of the offline Kraken: what its streams tell of it, and what it has on record."""

import itertools
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from libs import money
from tests.venues.binance_klines import Trade, text
from tests.venues.binance_orders import NOTHING, Side
from tests.venues.market import Market as AnyMarket

SECOND = 1_000_000_000
RECORD_DECIMALS = 5
"""Of the prices of trades on record, whatever the pair's are."""
DEPTHS = (10, 25, 100, 500, 1_000)
CHECKED_LEVELS = 10
OHLC_MAX = 720
TRADES_MAX = 1_000
# The assets of Kraken's first years have a letter before their names, and two have names of Kraken's own.
OLD_ASSETS = {"BTC": "XXBT", "DOGE": "XXDG", "ETH": "XETH", "LTC": "XLTC", "USD": "ZUSD", "EUR": "ZEUR", "GBP": "ZGBP"}

Offers = Mapping[Decimal, Decimal]


def asset_id(name: str) -> str:
    return OLD_ASSETS.get(name, name)


def altname(name: str) -> str:
    return OLD_ASSETS[name][1:] if name in OLD_ASSETS else name


def pair_id(base: str, quote: str) -> str:
    if base in OLD_ASSETS and quote in OLD_ASSETS:
        return asset_id(base) + asset_id(quote)
    return altname(base) + altname(quote)


@dataclass
class Market(AnyMarket):
    """symbol is the pair's id; tell sends a text to whoever follows that stream; times are in nanoseconds."""

    now: Callable[[], int] = time.time_ns
    tick: Decimal = Decimal("0.1")
    step: Decimal = Decimal("0.00000001")
    notional_min: Decimal = Decimal("0.5")
    tell: Callable[[str, str], None] = field(kw_only=True)
    status: str = "online"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._told: dict[int, dict[Side, Offers]] = {}
        """The book as those who follow it to that depth know it."""

    @property
    def name(self) -> str:
        """As the second version of the streams calls it."""
        return f"{self.base}/{self.quote}"

    @property
    def decimals(self) -> int:
        exponent = self.tick.normalize().as_tuple().exponent
        assert isinstance(exponent, int)
        return max(0, -exponent)

    def price_text(self, price: Decimal) -> str:
        return f"{price:.{self.decimals}f}"

    # What the streams tell.

    def taken(self, made: Sequence[Trade]) -> None:
        told = ",".join(self._trade_text(trade) for trade in made)
        self.tell(f"trade@{self.name}", f'{{"channel":"trade","type":"update","data":[{told}]}}')

    def _trade_text(self, trade: Trade) -> str:
        side = "sell" if trade.buyer_is_maker else "buy"
        return (
            f'{{"symbol":"{self.name}","side":"{side}","price":{self.price_text(trade.price)},"qty":{text(trade.quantity)},'
            f'"ord_type":"market","trade_id":{trade.trade_id},"timestamp":"{time_text(trade.time)}"}}'
        )

    def book_snapshot(self, depth: int) -> str:
        """What who begins to follow the book is told."""
        view = self._told.setdefault(depth, self._view(depth))
        return self._book_text("snapshot", view, view)

    def settled(self) -> None:
        for depth, told in self._told.items():
            view = self._view(depth)
            changes = {side: self._changes(side, told[side], view[side]) for side in Side}
            if any(changes.values()):
                self._told[depth] = view
                self.tell(f"book-{depth}@{self.name}", self._book_text("update", changes, view))

    def _view(self, depth: int) -> dict[Side, Offers]:
        return {side: dict(itertools.islice(self.offers(side).items(), depth)) for side in Side}

    def _changes(self, side: Side, told: Offers, view: Offers) -> Offers:
        """What has only fallen out of the depth is left to who follows it."""
        gone = {price: NOTHING for price in told if price not in view and not self.offered(side, price)}
        return gone | {price: quantity for price, quantity in view.items() if told.get(price) != quantity}

    def _book_text(self, kind: str, changes: Mapping[Side, Offers], view: Mapping[Side, Offers]) -> str:
        bids, asks = (
            ",".join(
                f'{{"price":{self.price_text(price)},"qty":{text(quantity)}}}'
                for price, quantity in changes[side].items()
            )
            for side in Side
        )
        sums = self.checksum(view[Side.BUY], view[Side.SELL])
        return (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{self.name}","bids":[{bids}],"asks":[{asks}],'
            f'"checksum":{sums},"timestamp":"{time_text(self.now())}"}}]}}'
        )

    def checksum(self, bids: Offers, asks: Offers) -> int:
        """Of the ten best on both sides: digits alone, from the first that is not 0 on."""
        numbers = [
            number.replace(".", "").lstrip("0")
            for offers in (asks, bids)
            for price, quantity in itertools.islice(offers.items(), CHECKED_LEVELS)
            for number in (self.price_text(price), text(quantity))
        ]
        return zlib.crc32("".join(numbers).encode())

    # What is on record.

    def trade_rows(self, since: int | None, count: int) -> tuple[list[Any], str]:
        """The oldest made after that time, or the newest without one; and the time after which to ask for more."""
        if since is None:
            found = self.trades[-count:]
        else:
            start = bisect_right(self.trades, since, key=lambda trade: trade.time)
            found = self.trades[start : start + count]
        rows = [
            [
                f"{trade.price:.{RECORD_DECIMALS}f}",
                text(trade.quantity),
                trade.time / SECOND,
                "s" if trade.buyer_is_maker else "b",
                "m",
                "",
                trade.trade_id,
            ]
            for trade in found
        ]
        return rows, str(found[-1].time if found else since or self.now())

    def ohlc_rows(self, minutes: int, since: int) -> list[Any]:
        """The newest, of those that opened after so many seconds; none is left out between trades."""
        if not self.trades:
            return []
        length, now = minutes * 60, self.now() // SECOND
        first = max(self.trades[0].time // SECOND, since + 1, now - (OHLC_MAX - 1) * length)
        rows: list[Any] = []
        for opened in range(first // length * length, now + 1, length):
            start, end = (
                bisect_left(self.trades, at * SECOND, key=lambda trade: trade.time) for at in (opened, opened + length)
            )
            if opened <= since:
                continue
            trades = self.trades[start:end]
            prices = [trade.price for trade in trades] or [self.trades[max(0, start - 1)].price]
            volume = sum((trade.quantity for trade in trades), NOTHING)
            paid = sum((trade.quantity * trade.price for trade in trades), NOTHING)
            average = money.divide(paid, volume) if volume else NOTHING
            shown = map(self.price_text, (prices[0], max(prices), min(prices), prices[-1], average))
            rows.append([opened, *shown, text(volume), len(trades)])
        return rows

    def depth_rows(self, count: int) -> dict[str, Any]:
        at = self.now() // SECOND
        return {
            name: [
                [f"{price:.{RECORD_DECIMALS}f}", f"{quantity:.3f}", at]
                for price, quantity in itertools.islice(self.offers(side).items(), count)
            ]
            for name, side in (("asks", Side.SELL), ("bids", Side.BUY))
        }

    def info(self) -> dict[str, Any]:
        """As AssetPairs gives it."""
        return {
            "altname": altname(self.base) + altname(self.quote),
            "wsname": f"{altname(self.base)}/{altname(self.quote)}",
            "aclass_base": "currency",
            "base": asset_id(self.base),
            "aclass_quote": "currency",
            "quote": asset_id(self.quote),
            "lot": "unit",
            "cost_decimals": 5,
            "pair_decimals": self.decimals,
            "lot_decimals": 8,
            "lot_multiplier": 1,
            "leverage_buy": [],
            "leverage_sell": [],
            "fees": [[0, 0.4], [10_000, 0.35]],
            "fees_maker": [[0, 0.25], [10_000, 0.2]],
            "fee_volume_currency": "ZUSD",
            "margin_call": 80,
            "margin_stop": 40,
            "ordermin": "0.00005",
            "costmin": str(self.notional_min),
            "tick_size": str(self.tick),
            "status": self.status,
        }


def time_text(time_ns: int) -> str:
    """In microseconds, the rest cut off."""
    moment = datetime.fromtimestamp(time_ns // SECOND, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % SECOND // 1_000:06d}Z"
