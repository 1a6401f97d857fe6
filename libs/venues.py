"""What everybody who asks a venue through ccxt has to know alike."""

from collections.abc import Mapping
from typing import Any

from libs.bus.budget import Limits

BUDGET_SHARE = 0.6
BUDGET_BURST_SECONDS = 20.0
"""The share of what a venue allows that fills the bucket, and how much of it is saved: in no minute both exceed the whole."""
RETRY_SECONDS_MAX = 3 * 86_400.0  # the longest that Binance bans an address
UNIT_MILLISECONDS: Mapping[str, float] = {"BINANCE-PERP": 25.0}
"""How often a unit of cost may be spent, by segment, where it is not as ccxt says: Binance allows its futures 2,400 in a minute, and
ccxt takes them for as dear as on the spot market, where it counts in other units."""


def limits_from(rate_limit_milliseconds: float, segment: str = "") -> Limits:
    """A bucket that never lets through more in any minute than the segment of a venue allows, in ccxt's units of cost."""
    units_per_second = BUDGET_SHARE * 1_000 / UNIT_MILLISECONDS.get(segment, rate_limit_milliseconds)
    return Limits(units_per_second * BUDGET_BURST_SECONDS, units_per_second)


def retry_seconds(headers: Any, otherwise: float = 1.0) -> float:
    """When the venue asks to come back, or what is given where it does not say."""
    said = next((value for name, value in dict(headers or {}).items() if name.lower() == "retry-after"), "")
    return min(RETRY_SECONDS_MAX, max(1.0, float(said))) if said.isascii() and said.isdigit() else otherwise


def below(address: str, paths: Mapping[str, str]) -> dict[str, str]:
    """Ccxt's addresses by the name of each interface, below one that stands in for the venue's own; none without it."""
    return {name: f"{address.rstrip('/')}{path}" for name, path in paths.items()} if address else {}
