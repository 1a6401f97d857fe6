"""Allowances by caller: token buckets in this process, the oldest forgotten first."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from libs.errors import Exhausted

BUCKETS_MAX = 20_000
BURST_SECONDS = 2.0


@dataclass(slots=True)
class Bucket:
    tokens: float
    time: float


class Limiter:
    """So many calls a second for each caller, saved up for two seconds at the most."""

    def __init__(self, name: str, per_second: float) -> None:
        self._name, self._per_second = name, per_second
        self._burst = max(1.0, per_second * BURST_SECONDS)
        self._buckets: OrderedDict[object, Bucket] = OrderedDict()

    def take(self, caller: object) -> None:
        """Counts one call; raises Exhausted with the time to wait when there is no allowance left."""
        now = time.monotonic()
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._buckets.popitem(last=False)
            bucket = self._buckets[caller] = Bucket(self._burst, now)
        else:
            self._buckets.move_to_end(caller)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.time) * self._per_second)
        bucket.time = now
        if bucket.tokens < 1.0:
            wait = (1.0 - bucket.tokens) / self._per_second
            raise Exhausted(
                f"more than {self._per_second:g} {self._name} calls a second",
                retry_after_seconds=wait,
                limit=self._name,
                per_second=f"{self._per_second:g}",
            )
        bucket.tokens -= 1.0
