"""What the offline Binance lets an address ask of it in a minute, and what becomes of who asks more."""

import math
import time
from dataclasses import dataclass, field

from tests.venues.binance_answers import ORDERS_PER_10_SECONDS, WEIGHT_PER_MINUTE, Refused


@dataclass
class Window:
    """So much may be done in so many seconds, counted from the first of them."""

    maximum: int
    seconds: float
    used: int = 0
    began: float = 0.0

    def add(self, amount: int) -> int:
        """How many seconds are left until there is room again; 0 if there was room."""
        now = time.monotonic()
        if now - self.began >= self.seconds:
            self.used, self.began = 0, now
        self.used += amount
        return math.ceil(self.began + self.seconds - now) if self.used > self.maximum else 0


@dataclass
class Limits:
    """What an address may ask. Who goes on when it is told to stop is banned."""

    weight: Window = field(default_factory=lambda: Window(WEIGHT_PER_MINUTE, 60))
    orders: Window = field(default_factory=lambda: Window(ORDERS_PER_10_SECONDS, 10))
    refused_max: int = 10
    ban_seconds: float = 120.0
    refused: int = 0
    banned_until: float = 0.0

    def count(self, weight: int) -> None:
        """Raises Refused."""
        ban = math.ceil(self.banned_until - time.monotonic())
        if ban > 0:
            raise self._banned(ban)
        wait = self.weight.add(weight)
        if not wait:
            self.refused = 0
            return
        self.refused += 1
        if self.refused > self.refused_max:
            self.refused, self.banned_until = 0, time.monotonic() + self.ban_seconds
            raise self._banned(math.ceil(self.ban_seconds))
        raise Refused(-1003, self.weight.maximum, headers={"Retry-After": str(wait)})

    def _banned(self, seconds: int) -> Refused:
        refused = Refused(-1003, self.weight.maximum, headers={"Retry-After": str(seconds)})
        until = round((time.time() + seconds) * 1000)
        refused.status = 418
        refused.body["msg"] = f"Way too much request weight used; IP banned until {until}."
        return refused

    def count_order(self) -> None:
        """Raises Refused."""
        if wait := self.orders.add(1):
            headers = {"Retry-After": str(wait)}
            raise Refused(-1015, self.orders.maximum, "10 SECOND", headers=headers)
