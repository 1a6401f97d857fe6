"""What befalls an exchange and what it says: each fault is written into its script, and sees that somebody ran into it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tests.faults.proof.chaos import HOLD_SECONDS, RECOVERY_SECONDS, Chaos, Fault, NotInjected
from tests.faults.proof.exchange import Exchange
from tests.faults.proof.stand import until
from tests.venues import faults
from tests.venues.faults import MessageFault, RequestFault

ORDER, CANCEL = {"method": "POST", "path": "/api/v3/order"}, {"method": "DELETE", "path": "/api/v3/order"}
RECORD, FILLS = {"method": "GET", "path": "/api/v3/order"}, {"method": "GET", "path": "/api/v3/myTrades"}
BALANCES = {"method": "GET", "path": "/api/v3/account"}
LATE_SECONDS, TOO_LATE_SECONDS = 2.0, 11.0
"""Of an answer: that execution still waits for, and that it does not."""
RETRY_SECONDS = 2
MESSAGES = 3
OF_USERS = "user@"
MISSED_MAX = 10_000
"""Messages of a silence: more than there are."""


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

    async def cut(self, chaos: Chaos) -> None:
        """Nobody reaches it for a while, and whoever was connected is not any more."""
        binance = self.exchange.binance
        async with self.cutting:
            async with binance.refusing():
                asked = len(binance.asked)
                await asyncio.sleep(chaos.stop_seconds / 2)
                if binance.streams.sockets or len(binance.asked) != asked:
                    raise NotInjected("somebody reached the exchange")
            await until(lambda: len(binance.asked) > asked, "somebody comes back to the exchange", RECOVERY_SECONDS)


ScriptFault = Callable[[ExchangeFaults, Chaos], Awaitable[None]]


def answered(make: Callable[..., RequestFault], asked: Mapping[str, str], **of: object) -> ScriptFault:
    return partial(ExchangeFaults.answer, make=partial(make, **asked, **of))


def confused(make: Callable[..., MessageFault], *times: int) -> ScriptFault:
    return partial(ExchangeFaults.confuse, make=partial(make, *times, stream=OF_USERS))


EXCHANGE_FAULTS: Mapping[str, ScriptFault] = {
    "after the send, before the reply": partial(ExchangeFaults.die_waiting, asked=ORDER),
    "after a cancel is sent, before the reply": partial(ExchangeFaults.die_waiting, asked=CANCEL),
    "the exchange is cut off": ExchangeFaults.cut,
    "the stream falls silent": ExchangeFaults.fall_silent,
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
    "the answer to a cancel is lost": answered(faults.lost_answer, CANCEL),
    "a cancel's outcome is unknown": answered(faults.unknown_outcome, CANCEL),
    "the answer to a cancel is too late": answered(partial(faults.slow, TOO_LATE_SECONDS), CANCEL, done=True),
    "the exchange fails at a cancel": answered(faults.server_error, CANCEL),
    "too much is asked with a cancel": answered(partial(faults.too_many, RETRY_SECONDS), CANCEL),
    "the answer to a cancel is cut off": answered(faults.malformed_answer, CANCEL, done=True),
    "the exchange fails at its record of fills": answered(faults.server_error, FILLS),
    "its record of fills is cut off": answered(faults.malformed_answer, FILLS),
    "the exchange fails at its balances": answered(faults.server_error, BALANCES),
    "messages come twice": confused(faults.duplicate, MESSAGES),
    "messages come out of order": confused(faults.out_of_order, MESSAGES),
    "messages do not come": confused(faults.missing, MESSAGES),
    "a message is cut off": confused(faults.malformed),
    "the stream ends": confused(faults.disconnect),
}


def exchange_faults(exchange: Exchange) -> dict[str, Fault]:
    script = ExchangeFaults(exchange)
    return {name: partial(fault, script) for name, fault in EXCHANGE_FAULTS.items()}
