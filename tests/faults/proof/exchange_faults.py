"""What befalls an exchange and what it says: each fault is written into its script, and sees that somebody ran into it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from libs.bus.connection import open_redis
from tests.faults.proof.chaos import HOLD_SECONDS, RECOVERY_SECONDS, Chaos, Fault, NotInjected
from tests.faults.proof.exchange import BUDGET, Exchange
from tests.faults.proof.stand import connected, until
from tests.venues import faults
from tests.venues.faults import MessageFault, RequestFault

ORDER, CANCEL = {"method": "POST", "path": "/api/v3/order"}, {"method": "DELETE", "path": "/api/v3/order"}
CHANGE = {"method": "POST", "path": "/api/v3/order/cancelReplace"}
FILLS = {"method": "GET", "path": "/api/v3/myTrades"}
BALANCES = {"method": "GET", "path": "/api/v3/account"}
LATE_SECONDS, TOO_LATE_SECONDS = 2.0, 11.0
"""Of an answer: that execution still waits for, and that it does not."""
RETRY_SECONDS = 2
ON_ITS_WAY_SECONDS = 0.2
MESSAGES = 3
OF_USERS = "user@"
MISSED_MAX = 10_000
"""Messages of a silence: more than there are."""
LEFT = 2.0
"""Of the budget once it has run out: for a cancel, and a tenth of what is left before an order goes out."""
LOOK_MILLISECONDS = 1_000
"""Looked at more seldom, so much may have come in again that an order goes out by good right."""

# KEYS: the budget. ARGV: LEFT. The time, and what was ever spent on cancels and on orders.
RUN_OUT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'available', ARGV[1], 'at', now)
local spent = redis.call('HMGET', KEYS[1], 'spent_cancel', 'spent_order')
return {tostring(now), spent[1] or '0', spent[2] or '0'}
"""
# Orders that were not let out, and wait to be tried again.
WAITING = "SELECT count(*) FROM execution.venue_orders WHERE state = 'intended' AND retry_time > clock_timestamp()"


@dataclass
class ExchangeFaults:
    exchange: Exchange
    cutting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self, chaos: Chaos, make: Callable[[], RequestFault]) -> None:
        """The next such request is answered so."""
        script, fault = self.exchange.binance.faults.requests, make()
        script.append(fault)
        try:
            await until(lambda: fault not in script, f"somebody asks for {fault.method} {fault.path}", HOLD_SECONDS)
        except TimeoutError:
            script.remove(fault)
            raise

    async def die_waiting(self, chaos: Chaos, asked: Mapping[str, str]) -> None:
        """Whoever asks is killed when the exchange has done it, and before it has answered."""
        fault = faults.silent(done=True, **asked)
        await self.answer(chaos, lambda: fault)
        replica = next((each for each in chaos.stand.replicas["execution"] if each.owns_port(fault.port)), None)
        if replica:
            await chaos.kill_this(replica)

    async def confuse(self, chaos: Chaos, make: Callable[[], MessageFault]) -> None:
        """The next messages about people's orders come so."""
        script, fault = self.exchange.binance.faults.messages, make()
        script.append(fault)
        try:
            await until(lambda: fault not in script, f"messages for {fault.mishap.name}", HOLD_SECONDS)
        except TimeoutError:
            script.remove(fault)
            raise

    async def fall_silent(self, chaos: Chaos) -> None:
        """Nothing is told for a while, over streams that seem to be sound."""
        script = self.exchange.binance.faults.messages
        fault = faults.missing(MISSED_MAX, stream=OF_USERS)
        script.appendleft(fault)
        try:
            await asyncio.sleep(chaos.stop_seconds)
            await until(lambda: fault.times < MISSED_MAX, "something is to be told", HOLD_SECONDS)
        finally:
            script.remove(fault)

    async def run_out(self, chaos: Chaos) -> None:
        """So much has been asked of it that no order goes out any more, on any replica; cancels do."""
        exchange, installation = self.exchange, chaos.stand.installation
        async with (
            exchange.filling,
            chaos.losing_redis,
            chaos.ground.stands(),
            open_redis(installation.redis_url) as redis,
        ):

            async def spent() -> list[float]:
                asked: Any = redis.eval(RUN_OUT, 1, BUDGET, LEFT)
                return [float(value) for value in await asked]

            rows = await connected(installation)
            last = first = await spent()

            async def has_held() -> bool:
                nonlocal last, first
                before, last = last, await spent()
                if last[0] - before[0] > LOOK_MILLISECONDS:
                    first = last
                if last[2] > first[2]:
                    raise NotInjected("an order went out for which nothing was left")
                return last[1] > first[1] and bool(await rows.fetchval(WAITING))

            try:
                await until(has_held, "cancels go out and orders wait", HOLD_SECONDS)
            finally:
                await rows.close()

    async def cut(self, chaos: Chaos) -> None:
        """Nobody reaches it for a while, and whoever was connected is not any more."""
        binance = self.exchange.binance
        async with self.cutting:
            async with binance.refusing():
                await asyncio.sleep(ON_ITS_WAY_SECONDS)  # what had come before it was cut off is looked at
                asked = len(binance.asked)
                await asyncio.sleep(chaos.stop_seconds / 2)
                if binance.streams.sockets or len(binance.asked) != asked:
                    raise NotInjected("somebody reached the exchange")
            await until(lambda: len(binance.asked) > asked, "somebody comes back to the exchange", RECOVERY_SECONDS)


ScriptFault = Callable[[ExchangeFaults, Chaos], Coroutine[Any, Any, None]]


def answered(make: Callable[..., RequestFault], asked: Mapping[str, str], **of: object) -> ScriptFault:
    return partial(ExchangeFaults.answer, make=partial(make, **asked, **of))


def confused(make: Callable[..., MessageFault], *times: int) -> ScriptFault:
    return partial(ExchangeFaults.confuse, make=partial(make, *times, stream=OF_USERS))


# By what they befall.
OF_REPLIES: Mapping[str, ScriptFault] = {
    "after the send, before the reply": partial(ExchangeFaults.die_waiting, asked=ORDER),
    "after a cancel is sent, before the reply": partial(ExchangeFaults.die_waiting, asked=CANCEL),
    "after a change is sent, before the reply": partial(ExchangeFaults.die_waiting, asked=CHANGE),
}
OF_CONNECTIONS: Mapping[str, ScriptFault] = {
    "the exchange is cut off": ExchangeFaults.cut,
    "the budget runs out": ExchangeFaults.run_out,
    "the stream falls silent": ExchangeFaults.fall_silent,
    "messages come twice": confused(faults.duplicate, MESSAGES),
    "messages come out of order": confused(faults.out_of_order, MESSAGES),
    "messages do not come": confused(faults.missing, MESSAGES),
    "a message is cut off": confused(faults.malformed),
    "the stream ends": confused(faults.disconnect),
}
OF_ORDERS: Mapping[str, ScriptFault] = {
    "the answer to an order is lost": answered(faults.lost_answer, ORDER),
    "an order's outcome is unknown, and it was taken": answered(faults.unknown_outcome, ORDER),
    "an order's outcome is unknown, and it was not taken": answered(faults.unknown_outcome, ORDER, done=False),
    "the answer to an order is late": answered(partial(faults.slow, LATE_SECONDS), ORDER),
    "the answer to an order is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), ORDER, done=True),
    "an order itself is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), ORDER),
    "the exchange fails at an order": answered(faults.server_error, ORDER),
    "the exchange fails after an order": answered(faults.server_error, ORDER, done=True),
    "too much is asked with an order": answered(partial(faults.too_many, RETRY_SECONDS), ORDER),
    "the answer to an order is cut off": answered(faults.malformed_answer, ORDER, done=True),
    "an order is not taken, and the answer is cut off": answered(faults.malformed_answer, ORDER),
}
OF_CHANGES: Mapping[str, ScriptFault] = {
    "the answer to a change is lost": answered(faults.lost_answer, CHANGE),
    "a change's outcome is unknown, and it was made": answered(faults.unknown_outcome, CHANGE),
    "a change's outcome is unknown, and it was not made": answered(faults.unknown_outcome, CHANGE, done=False),
    "the answer to a change is late": answered(partial(faults.slow, LATE_SECONDS), CHANGE, done=True),
    "the answer to a change is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), CHANGE, done=True),
    "a change itself is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), CHANGE),
    "the exchange fails at a change": answered(faults.server_error, CHANGE),
    "too much is asked with a change": answered(partial(faults.too_many, RETRY_SECONDS), CHANGE),
    "the answer to a change is cut off": answered(faults.malformed_answer, CHANGE, done=True),
}
OF_CANCELS_AND_RECORDS: Mapping[str, ScriptFault] = {
    "the answer to a cancel is lost": answered(faults.lost_answer, CANCEL),
    "a cancel's outcome is unknown": answered(faults.unknown_outcome, CANCEL),
    "the answer to a cancel is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), CANCEL, done=True),
    "the exchange fails at a cancel": answered(faults.server_error, CANCEL),
    "too much is asked with a cancel": answered(partial(faults.too_many, RETRY_SECONDS), CANCEL),
    "the answer to a cancel is cut off": answered(faults.malformed_answer, CANCEL, done=True),
    "the exchange fails at its record of fills": answered(faults.server_error, FILLS),
    "its record of fills is cut off": answered(faults.malformed_answer, FILLS),
    "the exchange fails at its balances": answered(faults.server_error, BALANCES),
}
EXCHANGE_FAULTS: Mapping[str, ScriptFault] = {
    name: fault
    for each in (OF_REPLIES, OF_CONNECTIONS, OF_ORDERS, OF_CHANGES, OF_CANCELS_AND_RECORDS)
    for name, fault in each.items()
}


def exchange_faults(exchange: Exchange) -> dict[str, Fault]:
    script = ExchangeFaults(exchange)
    return {name: partial(fault, script) for name, fault in EXCHANGE_FAULTS.items()}
