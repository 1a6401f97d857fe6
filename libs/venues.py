"""What everybody who asks a venue through ccxt has to know alike."""

from collections.abc import Mapping
from typing import Any

RETRY_SECONDS_MAX = 3 * 86_400.0  # the longest that Binance bans an address


def retry_seconds(headers: Any, otherwise: float = 1.0) -> float:
    """When the venue asks to come back, or what is given where it does not say."""
    said = next((value for name, value in dict(headers or {}).items() if name.lower() == "retry-after"), "")
    return min(RETRY_SECONDS_MAX, max(1.0, float(said))) if said.isascii() and said.isdigit() else otherwise


def below(address: str, paths: Mapping[str, str]) -> dict[str, str]:
    """Ccxt's addresses by the name of each interface, below one that stands in for the venue's own; none without it."""
    return {name: f"{address.rstrip('/')}{path}" for name, path in paths.items()} if address else {}
