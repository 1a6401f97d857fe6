"""What may still be asked of a venue: one bucket of tokens for all processes that ask from one address.

Venues count requests by address, whoever's they are, and ban who asks too much. So every request takes its cost out of one
bucket in Redis, which fills at a steady rate. The more a use matters the lower it may draw: cancels take the last token, orders
leave a tenth, and market data leaves two fifths, so that it is market data that waits.

A bucket that is not there, at a first start or because Redis lost it, begins with what data leaves to orders: what was spent
before is not known, and whatever it was, it stays within what the venue allows.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from redis.asyncio import Redis

from libs.errors import Exhausted

KEPT_SECONDS = 4 * 86_400  # a bucket that nobody has touched for so long is forgotten
BLOCK_SECONDS_MAX = 3 * 86_400.0

# KEYS: bucket. ARGV: cost, capacity, units per second, share left to others, use, KEPT_SECONDS, share at the beginning.
# 0: taken; otherwise the milliseconds after which to ask again.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cost, capacity, per_second = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local held = redis.call('HMGET', KEYS[1], 'available', 'at', 'blocked_until')
local available, at = tonumber(held[1] or capacity * tonumber(ARGV[7])), tonumber(held[2] or now)
local blocked_until = tonumber(held[3] or 0)
available = math.min(capacity, available + math.max(0, now - at) * per_second / 1000)
local wait = math.max(0, blocked_until - now)
local lacking = cost + capacity * tonumber(ARGV[4]) - available
if lacking > 0 then wait = math.max(wait, math.ceil(lacking * 1000 / per_second)) end
if wait == 0 then
  available = available - cost
  redis.call('HINCRBYFLOAT', KEYS[1], 'spent_' .. ARGV[5], cost)
end
redis.call('HSET', KEYS[1], 'available', available, 'at', now)
redis.call('EXPIRE', KEYS[1], ARGV[6])
return wait
"""

# KEYS: bucket. ARGV: milliseconds, KEPT_SECONDS. Nobody asks before then; a block is never shortened.
_BLOCK = """
local time = redis.call('TIME')
local until_time = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
if until_time > tonumber(redis.call('HGET', KEYS[1], 'blocked_until') or 0) then
  redis.call('HSET', KEYS[1], 'blocked_until', until_time)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS: bucket. Its fields, and Redis's own time.
_LOOK = """
local time = redis.call('TIME')
local held = redis.call('HMGET', KEYS[1], 'available', 'at', 'blocked_until', 'spent_cancel', 'spent_order', 'spent_data')
return {time[1] * 1000 + math.floor(time[2] / 1000), held[1] or '-1', held[2] or '0', held[3] or '0', held[4] or '0',
        held[5] or '0', held[6] or '0'}
"""


class Use(Enum):
    """What a request is for."""

    CANCEL = "cancel"
    ORDER = "order"
    DATA = "data"


LEFT_TO_OTHERS: Mapping[Use, float] = {Use.CANCEL: 0.0, Use.ORDER: 0.1, Use.DATA: 0.4}
"""The share of a full bucket below which a use takes nothing."""
SHARE_AT_FIRST = LEFT_TO_OTHERS[Use.DATA]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a bucket holds, and how fast it fills, in the units in which the venue's requests are counted."""

    capacity: float
    units_per_second: float


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A bucket at one moment. `blocked_seconds` is how long the venue still wants to be left alone."""

    available: float
    blocked_seconds: float
    spent: Mapping[Use, float]


class BudgetSpent(Exhausted):
    """The venue may not be asked yet."""


class Budget:
    """The bucket of one venue, as it counts requests from one address."""

    def __init__(self, redis: Redis, venue: str, address: str, limits: Limits) -> None:
        """`address` names where requests come from, such as a gateway; who share it share the bucket."""
        self._redis, self.venue, self.address, self.limits = redis, venue, address, limits
        self._key = f"budget:{venue}:{address}"

    async def take(self, cost: float, use: Use, *, wait_seconds_max: float) -> None:
        """Takes the cost, waiting if it must. Raises BudgetSpent if that would take longer than it may."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait_seconds_max
        left = LEFT_TO_OTHERS[use]
        # What costs more than a use may ever draw is asked with a full bucket.
        cost = min(cost, self.limits.capacity * (1 - left))
        while True:
            asked: Any = self._redis.eval(
                _TAKE,
                1,
                self._key,
                *(
                    cost,
                    self.limits.capacity,
                    self.limits.units_per_second,
                    left,
                    use.value,
                    KEPT_SECONDS,
                    SHARE_AT_FIRST,
                ),
            )
            wait_seconds = int(await asked) / 1000
            if not wait_seconds:
                return
            if loop.time() + wait_seconds > give_up_at:
                raise BudgetSpent(
                    f"{self.venue} may not be asked for another {wait_seconds:g} s",
                    retry_after_seconds=wait_seconds,
                    limit=self.venue,
                )
            await asyncio.sleep(wait_seconds)

    async def block(self, seconds: float) -> None:
        """Has everybody leave the venue alone, because it said so."""
        milliseconds = round(min(seconds, BLOCK_SECONDS_MAX) * 1000)
        asked: Any = self._redis.eval(_BLOCK, 1, self._key, milliseconds, KEPT_SECONDS)
        await asked

    async def state(self) -> BudgetState:
        asked: Any = self._redis.eval(_LOOK, 1, self._key)
        now, available, at, blocked_until, *spent = (float(value) for value in await asked)
        if available < 0:
            available, at = self.limits.capacity * SHARE_AT_FIRST, now
        filled = max(0.0, now - at) / 1000 * self.limits.units_per_second
        return BudgetState(
            min(self.limits.capacity, available + filled),
            max(0.0, blocked_until - now) / 1000,
            dict(zip((Use.CANCEL, Use.ORDER, Use.DATA), spent, strict=True)),
        )
