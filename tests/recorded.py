"""The recorded data beside the project; where it is not, data of the same shape, the same each time."""

import functools
import math
import random
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
BINANCE_SPOT = FOLDER / "venues" / "binance-spot"
TRADES, BARS = "xrp-eth-trades.parquet", "btc-perp-1m-2022-01.csv"
BINANCE_TRADES = "btcusdt-trades.parquet"
TRADE_COUNT, BAR_COUNT = 12_477, 45_031
FIRST_TRADE = datetime(2019, 10, 11, tzinfo=UTC)
FIRST_BAR = datetime(2021, 12, 31, 23, 1, tzinfo=UTC)


def absent() -> list[str]:
    """What tests make up, by name."""
    return [name for name in (TRADES, BARS, BINANCE_TRADES) if not (FOLDER / name).is_file()]


def trades() -> Path:
    """12,477 trades of XRP/ETH over two and a half days."""
    return found_or_made(TRADES, make_trades)


def binance_trades() -> Path:
    """2,001 trades of BTC/USDT, as Binance's files have them."""
    return found_or_made(BINANCE_TRADES, make_binance_trades)


def bars() -> Path:
    """45,031 one-minute bars of a Bitcoin perpetual, without a hole."""
    return found_or_made(BARS, make_bars)


@functools.cache
def found_or_made(name: str, make: Callable[[Path], None]) -> Path:
    if (FOLDER / name).is_file():
        return FOLDER / name
    file = Path(tempfile.mkdtemp(prefix="tradeloom-recorded-")) / name
    make(file)
    return file


def make_trades(file: Path) -> None:
    chance, milliseconds = random.Random(20191011), int(FIRST_TRADE.timestamp() * 1_000)
    rows = []
    for number in range(TRADE_COUNT):
        # Bursts within one millisecond, and quiet minutes between them.
        milliseconds += chance.choice((0, 0, chance.randint(1, 900), chance.randint(1_000, 70_000)))
        # In swings that grow: whatever it is at first, it comes to be well above that and well below.
        swing = 0.08 * number / TRADE_COUNT * math.sin(2 * math.pi * number / 1_000)
        price = round(0.00145 * (1 + swing + chance.gauss(0, 0.0008)), 8)
        amount = float(max(1, round(chance.lognormvariate(4, 1.8))))
        rows.append((milliseconds, str(13_519_807 + number), chance.choice(("buy", "sell")), price, amount))
    frame = pl.DataFrame(rows, schema=["timestamp", "id", "side", "price", "amount"], orient="row")
    frame.with_columns(cost=pl.col("price") * pl.col("amount"), type=pl.lit(None, pl.String)).write_parquet(file)


def make_binance_trades(file: Path) -> None:
    chance, time = random.Random(20210108), datetime(2021, 1, 8, tzinfo=UTC)
    rows = []
    for number in range(2_001):
        time += timedelta(milliseconds=chance.randint(0, 90))
        price, quantity = round(39_432 + chance.gauss(0, 20), 2), round(chance.lognormvariate(-6, 2), 6)
        rows.append((time, 553_287_559 + number, price, max(quantity, 0.000001), chance.choice(("True", "False"))))
    columns = {"timestamp": pl.Datetime("ms", "UTC"), "trade_id": pl.Int64, "price": pl.Float64, "quantity": pl.Float64}
    pl.DataFrame(rows, schema=columns | {"buyer_maker": pl.String}, orient="row").write_parquet(file)


def make_bars(file: Path) -> None:
    chance, close = random.Random(20220101), 46_319.0
    lines = ["timestamp,open,high,low,close,volume"]
    for number in range(BAR_COUNT):
        opened, close = close, max(1.0, round(close * (1 + chance.gauss(0, 0.0006))))
        high, low = max(opened, close) + chance.randint(0, 9), min(opened, close) - chance.randint(0, 9)
        time = f"{FIRST_BAR + timedelta(minutes=number):%Y-%m-%d %H:%M:%S.%f}"
        lines.append(f"{time},{opened},{high},{low},{close},{chance.uniform(1e5, 3e6):.4f}")
    file.write_text("\n".join(lines) + "\n")
