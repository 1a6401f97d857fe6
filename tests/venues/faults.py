"""What goes wrong at a venue, and when: every fault has a name, and befalls the next requests or messages that it is for.

A test writes the script beforehand, and what happens follows from it alone: nothing is left to chance.
"""

import asyncio
import json
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from aiohttp import web

YEAR_SECONDS = 365 * 86_400
Lie = Callable[[str], str]
"""Makes another text of a true one."""


@dataclass
class RequestFault:
    """Befalls so many requests of that method to a path that ends so; what is not said is any.

    The asker waits for those seconds, and then has the status and the body, or a broken connection, or waits for ever. It
    has the true answer where there is no status, or what a lie makes of it. Nothing is done of what was asked, unless it says
    done.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    breaks: bool = False
    silent: bool = False
    done: bool = False
    lie: Lie | None = None
    method: str = ""
    path: str = ""
    times: float = 1
    port: int = 0
    """The asker's, of the last request that it befell; set by the venue."""

    def is_for(self, method: str, path: str) -> bool:
        return self.method in {"", method} and path.endswith(self.path)


def too_many(seconds: int, **of: Any) -> RequestFault:
    """As Binance says that too much was asked."""
    body = '{"code":-1003,"msg":"Too much request weight used; current limit is 6000 request weight per 1 MINUTE."}'
    return RequestFault(429, {"Retry-After": str(seconds), "Content-Type": "application/json"}, body, **of)


def kraken_error(error: str = "EAPI:Rate limit exceeded", **of: Any) -> RequestFault:
    """As Kraken says no; if nothing else is said, that too much was asked."""
    return RequestFault(200, {"Content-Type": "application/json"}, json.dumps({"error": [error]}), **of)


def server_error(status: int = 500, **of: Any) -> RequestFault:
    return RequestFault(status, {"Content-Type": "text/html"}, "<html><body>oops</body></html>", **of)


def unknown_outcome(**of: Any) -> RequestFault:
    """Binance's words where it does not know what became of the request. Here it was done; with done=False it was not."""
    body = '{"code":-1007,"msg":"Timeout waiting for response from backend server. Send status unknown; execution status unknown."}'
    return RequestFault(503, {"Content-Type": "application/json"}, body, **{"done": True, **of})


def malformed_answer(**of: Any) -> RequestFault:
    """As if an answer ended before its end. Under 200: ccxt takes it for one."""
    return RequestFault(200, {"Content-Type": "application/json"}, '{"symbol":"BTCUSDT","orderId":', **of)


def empty_page(**of: Any) -> RequestFault:
    """As if nothing were on record, as Binance says it."""
    return RequestFault(200, {"Content-Type": "application/json"}, "[]", **of)


def slow(seconds: float, **of: Any) -> RequestFault:
    return RequestFault(seconds=seconds, **of)


def broken(**of: Any) -> RequestFault:
    return RequestFault(breaks=True, **of)


def silent(**of: Any) -> RequestFault:
    return RequestFault(silent=True, **of)


def lost_answer(**of: Any) -> RequestFault:
    """What was asked is done, and the connection breaks before the answer."""
    return RequestFault(breaks=True, done=True, **of)


def lying(lie: Lie, **of: Any) -> RequestFault:
    return RequestFault(lie=lie, **of)


class Mishap(Enum):
    DUPLICATE = auto()  # sent twice
    OUT_OF_ORDER = auto()  # sent after the stream's next
    MISSING = auto()  # not sent
    MALFORMED = auto()  # sent cut off
    LYING = auto()  # sent with something in it that is not so
    DISCONNECT = auto()  # not sent, and whoever would have had it is disconnected


@dataclass
class MessageFault:
    """Befalls so many messages of the streams whose names hold that text, once so many have passed unharmed.

    Only those that somebody would have had are counted, and only those of that event, if one is said. The streams of users
    begin with user@. One that is out of order is sent behind the next of that kind.
    """

    mishap: Mishap
    stream: str = ""
    event: str = ""
    behind: str = ""
    after: int = 0
    times: float = 1
    close_frame: bool = True
    lie: Lie = str


def duplicate(times: int = 1, **of: Any) -> MessageFault:
    return MessageFault(Mishap.DUPLICATE, times=times, **of)


def out_of_order(times: int = 1, **of: Any) -> MessageFault:
    return MessageFault(Mishap.OUT_OF_ORDER, times=times, **of)


def missing(times: int = 1, **of: Any) -> MessageFault:
    """What they told of has happened all the same, and is found by asking."""
    return MessageFault(Mishap.MISSING, times=times, **of)


def silence(**of: Any) -> MessageFault:
    """No message any more, while pings go on; until the script is cleared."""
    return MessageFault(Mishap.MISSING, times=math.inf, **of)


def malformed(times: int = 1, **of: Any) -> MessageFault:
    return MessageFault(Mishap.MALFORMED, times=times, **of)


def disconnect(*, close_frame: bool = True, **of: Any) -> MessageFault:
    return MessageFault(Mishap.DISCONNECT, close_frame=close_frame, **of)


def later(seconds: int) -> Lie:
    """Dates the first trade in a text so much later."""

    def moved(found: re.Match[str]) -> str:
        if milliseconds := found["milliseconds"]:
            return str(int(milliseconds) + seconds * 1_000)
        return (datetime.fromisoformat(found["written"]) + timedelta(seconds=seconds)).isoformat()

    times = r'(?:(?<="T":)|(?<="T": ))(?P<milliseconds>\d+)|(?<="timestamp":")(?P<written>[^"]+)'
    return lambda text: re.sub(times, moved, text, count=1)


def instead(names: str, value: str) -> Lie:
    """Gives the first number of that name, or of one of those, another value."""
    return lambda text: re.sub(rf'("(?:{names})": ?"?)[\d.]+', rf"\g<1>{value}", text, count=1)


def lying_time(seconds: int = YEAR_SECONDS, **of: Any) -> MessageFault:
    """A trade is dated so much later than it was made."""
    return MessageFault(Mishap.LYING, lie=later(seconds), **of)


def lying_price(price: str = "-5", **of: Any) -> MessageFault:
    return MessageFault(Mishap.LYING, lie=instead("p|price", price), **of)


def lying_quantity(quantity: str = "-1", **of: Any) -> MessageFault:
    return MessageFault(Mishap.LYING, lie=instead("q|qty", quantity), **of)


def lying_id(trade_id: int = 10**12, **of: Any) -> MessageFault:
    """A trade is told under an id that the venue has not given."""
    return MessageFault(Mishap.LYING, lie=instead("a|trade_id", str(trade_id)), **of)


@dataclass
class Faults:
    """The script of a venue. The first fault that is for a request or a message befalls it."""

    requests: deque[RequestFault] = field(default_factory=deque)
    messages: deque[MessageFault] = field(default_factory=deque)

    def of_request(self, method: str, path: str) -> RequestFault | None:
        fault = next((fault for fault in self.requests if fault.is_for(method, path)), None)
        if fault:
            fault.times -= 1
            if fault.times <= 0:
                self.requests.remove(fault)
        return fault

    def of_message(self, stream: str, event: str) -> MessageFault | None:
        fault = next(
            (fault for fault in self.messages if fault.stream in stream and fault.event in {"", event}),
            None,
        )
        if fault and fault.after:
            fault.after -= 1
            return None
        if fault:
            fault.times -= 1
            if fault.times <= 0:
                self.messages.remove(fault)
        return fault


async def befall(
    fault: RequestFault, request: web.Request, answered: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    if request.transport is not None:
        fault.port = request.transport.get_extra_info("peername")[1]
    await request.read()  # before the asker may be gone
    response = await answered(request) if fault.done else None
    if fault.silent:
        await asyncio.Event().wait()
    await asyncio.sleep(fault.seconds)
    if fault.breaks:
        assert request.transport is not None
        request.transport.abort()
    if fault.status or fault.breaks:
        return web.Response(status=fault.status or 500, headers=fault.headers, text=fault.body)
    response = response or await answered(request)
    if fault.lie and isinstance(response, web.Response):
        response.text = fault.lie(response.text or "")
    return response
