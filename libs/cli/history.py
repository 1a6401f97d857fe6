"""A made-up day before a simulated market's first one, so that its chart has a past.

It ends where the market's own record begins, at the very price, and is the same each time it is made.
"""

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from tradeloom.marketdata.v1 import marketdata_pb2

HISTORY_BARS = 1_440
STEPS_IN_MINUTE = 12
MINUTES_IN_YEAR = 365 * 24 * 60


@dataclass(frozen=True, slots=True)
class Character:
    """How much its prices move in a year, and what is traded in a minute, in the quote asset."""

    yearly_volatility: float
    minute_notional: float


CHARACTERS = {
    marketdata_pb2.ASSET_CLASS_CRYPTO: Character(0.6, 500_000),
    marketdata_pb2.ASSET_CLASS_EQUITY: Character(0.27, 6_000_000),
    marketdata_pb2.ASSET_CLASS_FOREX: Character(0.08, 11_000_000),
    marketdata_pb2.ASSET_CLASS_PERPETUAL: Character(0.6, 500_000),
}


def history_before(instrument: marketdata_pb2.Instrument, end: datetime, price: float) -> bytes:
    """A file of the one-minute bars before `end`; the last of them closes at the price."""
    character = CHARACTERS[instrument.asset_class]
    chance = random.Random(f"{instrument.instrument_id} {end.isoformat()} {price}")  # noqa: S311 (no secret)
    tick_size = Decimal(instrument.tick_size.value)
    deviation = character.yearly_volatility / math.sqrt(MINUTES_IN_YEAR * STEPS_IN_MINUTE)
    lines: list[str] = []
    for minutes in range(1, HISTORY_BARS + 1):
        # From the end backwards: where this one opens, the one before it closes.
        path = [price]
        for _ in range(STEPS_IN_MINUTE):
            path.append(path[-1] * math.exp(chance.gauss(0, deviation)))
        close, price = path[0], path[-1]
        volume = chance.lognormvariate(0, 0.6) * character.minute_notional / price
        prices = ",".join(on_grid(each, tick_size) for each in (price, max(path), min(path), close))
        lines.append(f"{end - timedelta(minutes=minutes):%Y-%m-%d %H:%M:%S},{prices},{volume:.4f}")
    return "\n".join(["timestamp,open,high,low,close,volume", *reversed(lines), ""]).encode()


def on_grid(price: float, tick_size: Decimal) -> str:
    return str(max(1, round(Decimal(price) / tick_size)) * tick_size)
