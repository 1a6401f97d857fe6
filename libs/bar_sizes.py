"""How long bars are: the sizes that every service knows, by their names in the contract."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
MICROSECOND, SECOND = timedelta(microseconds=1), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class BarSize:
    """How long a bar is. Bars are half-open and open at whole multiples of the size since the origin.

    Of an instrument with a calendar, days and weeks are those that its exchange trades, and as long as these are.
    """

    name: str
    length: timedelta
    origin: datetime = EPOCH

    @property
    def seconds(self) -> int:
        return self.length // SECOND

    @property
    def length_ns(self) -> int:
        return self.length // MICROSECOND * 1_000

    @property
    def origin_ns(self) -> int:
        return (self.origin - EPOCH) // MICROSECOND * 1_000

    def at_or_before(self, time_ns: int) -> int:
        """The last moment up to then at which a bar opens; both in nanoseconds since 1970."""
        return time_ns - (time_ns - self.origin_ns) % self.length_ns

    def at_or_after(self, time_ns: int) -> int:
        """The first moment from then on at which a bar opens."""
        return time_ns + (self.origin_ns - time_ns) % self.length_ns


BAR_SIZES: Mapping[str, BarSize] = {
    size.name: size
    for size in (
        BarSize("1s", SECOND),
        BarSize("1m", timedelta(minutes=1)),
        BarSize("5m", timedelta(minutes=5)),
        BarSize("15m", timedelta(minutes=15)),
        BarSize("1h", timedelta(hours=1)),
        BarSize("4h", timedelta(hours=4)),
        BarSize("1d", timedelta(days=1)),
        BarSize("1w", timedelta(days=7), MONDAY),
    )
}
"""From the shortest on."""
