"""The klines of the offline Binance, computed from the trades of its market."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
WEEK_BEGINS = 4 * DAY  # 1970 began on a Thursday, weeks begin on Mondays
UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
MONTH = "1M"
INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", MONTH)


@dataclass(frozen=True, slots=True)
class Trade:
    trade_id: int
    aggregate_id: int
    price: Decimal
    quantity: Decimal
    time: int
    buyer_is_maker: bool


def text(value: Decimal) -> str:
    return f"{value:.8f}"


def open_time(interval: str, time: int) -> int:
    """When the kline began that the time belongs to, in milliseconds."""
    if interval == MONTH:
        day = datetime.fromtimestamp(time / 1000, UTC)
        return round(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp() * 1000)
    length, begins = int(interval[:-1]) * UNITS[interval[-1]], WEEK_BEGINS if interval == "1w" else 0
    return (time - begins) // length * length + begins


def next_open_time(interval: str, opened: int) -> int:
    if interval == MONTH:
        return open_time(MONTH, opened + 31 * DAY)
    return opened + int(interval[:-1]) * UNITS[interval[-1]]


@dataclass(frozen=True, slots=True)
class Kline:
    """previous_close is what a kline without trades has for all its prices."""

    symbol: str
    interval: str
    open_time: int
    previous_close: Decimal
    trades: Sequence[Trade]

    @property
    def close_time(self) -> int:
        return next_open_time(self.interval, self.open_time) - 1

    def _prices(self) -> list[Decimal]:
        return [trade.price for trade in self.trades] or [self.previous_close]

    def _volumes(self) -> list[str]:
        """Of base and quote, then what takers bought of both."""
        bought = [trade for trade in self.trades if not trade.buyer_is_maker]
        return [
            text(total)
            for trades in (self.trades, bought)
            for total in (
                sum((trade.quantity for trade in trades), Decimal()),
                sum((trade.quantity * trade.price for trade in trades), Decimal()),
            )
        ]

    def row(self) -> list[Any]:
        """As REST gives it."""
        prices, (volume, quote, bought, bought_quote) = self._prices(), self._volumes()
        opened = [self.open_time, *map(text, (prices[0], max(prices), min(prices), prices[-1])), volume]
        return [*opened, self.close_time, quote, len(self.trades), bought, bought_quote, "0"]

    def event(self, now: int) -> dict[str, Any]:
        """As a stream gives it."""
        opened, first, high, low, last, volume, closed, quote, count, bought, bought_quote, _ = self.row()
        ids = {
            "f": self.trades[0].trade_id if self.trades else -1,
            "L": self.trades[-1].trade_id if self.trades else -1,
        }
        prices = {"o": first, "c": last, "h": high, "l": low}
        volumes = {"v": volume, "n": count, "x": now > closed, "q": quote, "V": bought, "Q": bought_quote, "B": "0"}
        kline = {"t": opened, "T": closed, "s": self.symbol, "i": self.interval, **ids, **prices, **volumes}
        return {"e": "kline", "E": now, "s": self.symbol, "k": kline}


def klines(symbol: str, interval: str, trades: Sequence[Trade], since: int, until: int) -> Iterator[Kline]:
    """Those that open from since to until, both included, from the first trade on; none is left out between trades."""
    if not trades:
        return
    opened = open_time(interval, max(since, trades[0].time))
    if opened < since:
        opened = next_open_time(interval, opened)
    start = bisect_left(trades, opened, key=lambda trade: trade.time)
    while opened <= until:
        following = next_open_time(interval, opened)
        end = bisect_left(trades, following, lo=start, key=lambda trade: trade.time)
        yield Kline(symbol, interval, opened, trades[max(0, start - 1)].price, trades[start:end])
        opened, start = following, end
