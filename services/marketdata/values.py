"""What the values of a bar must be, whoever brings it: a file or a venue's record."""

import polars as pl

from services.marketdata.domain import AssetClass

PRICES = ("open", "high", "low", "close")
NUMBERS = (*PRICES, "volume")
VALUE_MAX = 10**15
"""Of a price or a volume, either way: a week of such seconds has a sum."""
COUNT_MAX = 10**12
"""Of trades, likewise."""
MAY_FALL_TO_ZERO = frozenset({AssetClass.PERPETUAL})
"""Futures have fallen below it. What is paid for at once is worth something, or is not traded."""


def is_above_zero(asset_class: AssetClass) -> bool:
    return asset_class not in MAY_FALL_TO_ZERO


def wrong_value(*, above_zero: bool) -> pl.Expr:
    """The first value of a bar that is wrong, by its column, and why, such as "high is below low"; null where none is."""
    low_of_two, high_of_two = pl.min_horizontal("open", "close"), pl.max_horizontal("open", "close")
    checks: list[tuple[pl.Expr, str]] = [
        *((~pl.col(name).is_finite(), f"{name} is not finite") for name in NUMBERS),
        *((pl.col(name).abs() > VALUE_MAX, f"{name} is larger than any may be, {VALUE_MAX:.0e}") for name in NUMBERS),
        *((pl.col(name) <= 0, f"{name} is not above zero") for name in PRICES if above_zero),
        (pl.col("high") < pl.col("low"), "high is below low"),
        (pl.col("high") < high_of_two, "high is below open or close"),
        (pl.col("low") > low_of_two, "low is above open or close"),
        (pl.col("volume") < 0, "volume is negative"),
    ]
    return pl.coalesce(pl.when(is_wrong).then(pl.lit(why)) for is_wrong, why in checks)
