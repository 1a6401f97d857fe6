"""What is alike in every port over ccxt: how a question is carried, what its answer means, and how a stream is followed.

Of ccxt this takes what it knows best, how a venue's requests are addressed and signed, and none of what it makes of answers:
those are read from the venue's own text, whose numbers never become floats, and what a venue says no to is told by the
venue's code alone. ccxt sends a request once; nothing below it sends one again that places an order.
"""

import asyncio
import json
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import aiohttp
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.bus.budget import Budget, BudgetSpent, Use
from libs.store.background import Backoff
from libs.venues import below, limits_from, retry_seconds
from services.execution.domain import LeasedKey, Position, VenueUnavailable, venue_unavailable
from services.execution.venues.keys import KeyDropped
from services.execution.venues.port import (
    Balance,
    Card,
    Connected,
    Done,
    FillPage,
    FundingPage,
    Lost,
    NotNow,
    Outcome,
    Refused,
    StreamEvent,
    Ticket,
    Told,
    Unknown,
    VenueOrder,
    VenueRefused,
)

REQUEST_SECONDS = 10.0
WAIT_SECONDS: Mapping[Use, float] = {Use.CANCEL: 5.0, Use.ORDER: 2.0}
"""So long a request waits for the venue's budget; then it was not sent."""
CLOSE_SECONDS = 5.0
CONNECT_SECONDS = 10.0
"""So long a stream may take to be connected, and as long to be subscribed to."""
KEEPALIVE_SECONDS = 5.0
"""At most so often a stream is pinged; one that does not answer within half of it is lost."""
RECONNECT_SECONDS_FIRST = 0.25
RECONNECT_SECONDS_MAX = 30.0
EARLY_MESSAGES_MAX = 100
"""Told over a stream before it says that it is subscribed to."""
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
WORDS_MAX = 200
NUMBERS_MAX = 10**18
MILLISECOND_NS, SECOND_NS = 1_000_000, 1_000_000_000

MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)
"""What reading an answer raises that is not in the form that it should have."""

NEVER_LEFT = (aiohttp.ClientConnectorError, socket.gaierror)
"""Why a connection was not made, over which nothing was sent then."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a venue's servers are, instead of where ccxt knows them; empty: there."""

    rest: str = ""
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Manner:
    """What ccxt is told of a venue before it is asked."""

    options: Mapping[str, Any] = field(default_factory=dict)
    rest_paths: Mapping[str, str] = field(default_factory=dict)
    """Where those of its interfaces that are asked lie below its address, for who sets another one."""
    stream_paths: Mapping[str, Any] = field(default_factory=dict)


class Verdict(Enum):
    """What a venue's no says of the command it answers."""

    REFUSED = auto()
    NOT_NOW = auto()
    UNKNOWN = auto()


class Answered(Exception):
    """The venue answered, and not as it does who has done what was asked. Holds nothing of the request."""

    def __init__(self, status: int, code: str, words: str, retry_after_seconds: float = 1.0, data: Any = None) -> None:
        super().__init__(f"{status} {code} {words}"[:WORDS_MAX])
        self.status, self.code, self.words = status, code, words[:WORDS_MAX]
        self.retry_after_seconds, self.data = retry_after_seconds, data


class NotAnswered(Exception):
    """There is no answer. Holds nothing of the request."""

    def __init__(self, why: str, *, may_be_there: bool, retry_after_seconds: float = 1.0) -> None:
        super().__init__(why)
        self.may_be_there, self.retry_after_seconds = may_be_there, retry_after_seconds


class StreamLost(Exception):
    """A stream ended, or said what cannot be read."""


@dataclass(slots=True)
class Attempt:
    """One command or question on its way through ccxt."""

    use: Use
    cost_min: float = 0.0
    has_left: bool = False
    """Whether a byte of a request may have left that changes something."""


ATTEMPT: ContextVar[Attempt] = ContextVar("attempt")


def exact_json(text: str) -> Any:
    """The venue's own text, of which every number stays as it is written."""
    return json.loads(text, parse_float=str, parse_int=str)


def exact(written: Any) -> Decimal:
    """A number as the venue wrote it. Raises for anything else, above all for a float."""
    if not isinstance(written, str):
        raise TypeError(f"a number is written as {type(written).__name__}")
    number = Decimal(written)
    if not number.is_finite() or abs(number) >= NUMBERS_MAX:
        raise ValueError("there is no such number")
    return number


def exact_or_none(written: Any) -> Decimal | None:
    """None for nothing, and for the zero by which venues say that there is no such price."""
    return (exact(written) or None) if written else None


class CcxtPort(ABC):
    """One account at one venue, as `opened` opens it."""

    COSTS: ClassVar[Mapping[str, float]] = {}
    """By the method that asks, of requests that ccxt takes for cheaper than they are."""

    def __init__(
        self, card: Card, exchange: Any, session: aiohttp.ClientSession, budget: Budget, key: Callable[[], LeasedKey]
    ) -> None:
        self.card = card
        self._exchange, self._session, self._budget, self._key = exchange, session, budget, key
        self._send = exchange.fetch
        exchange.fetch = self._fetch
        exchange.throttle = self._throttle
        exchange.on_json_response = exact_json
        exchange.handle_errors = self._hear

    # What each venue has of its own.

    @abstractmethod
    def said(self, status: int, response: Any) -> tuple[str, str] | None:
        """The venue's code and words if it says no; None if it has done what was asked."""

    @abstractmethod
    def verdict(self, said: Answered) -> Verdict: ...

    @abstractmethod
    def is_of_address(self, said: Answered) -> bool:
        """Whether it is our address that is to leave the venue alone, and not one account."""

    def is_reached(self, said: Answered) -> bool:
        """Whether an order was REFUSED because its stop is reached already."""
        return False

    def pause_seconds(self, said: Answered) -> float:
        """How long the venue is to be left alone, where it said NOT_NOW."""
        return said.retry_after_seconds

    @abstractmethod
    async def submit(self, ticket: Ticket) -> Outcome: ...

    @abstractmethod
    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome: ...

    @abstractmethod
    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome: ...

    @abstractmethod
    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]: ...

    @abstractmethod
    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None: ...

    @abstractmethod
    async def fills_since(self, cursor: str, instrument_ids: Sequence[str]) -> FillPage: ...

    @abstractmethod
    async def balances(self) -> dict[str, Balance]: ...

    async def positions(self) -> dict[str, Position]:
        return {}

    async def funding_since(self, cursor: str, begin_time_ns: int) -> FundingPage:
        return FundingPage(entries=(), cursor=cursor, is_last=True)

    async def unfit(self) -> str:
        return ""

    @abstractmethod
    async def subscription(self) -> tuple[str, dict[str, Any] | None]:
        """The address of the account's stream, and what it is sent to be subscribed to; None where that is the address."""

    def kept(self, following: aiohttp.ClientWebSocketResponse) -> AbstractAsyncContextManager[None]:
        """What is done beside a stream so that it goes on, for as long as it is followed."""
        return nullcontext()

    @abstractmethod
    def is_subscribed(self, message: Any) -> bool:
        """Whether the stream says that it is subscribed to. Raises StreamLost if it says no."""

    @abstractmethod
    async def told(self, message: Any) -> list[Told]:
        """What a message says of orders. Raises StreamLost where it ends the stream."""

    # Commands and questions.

    async def _command(self, use: Use, read: Callable[[Any], Done], method: str, *asked: Any) -> Outcome:
        """Asks once."""
        try:
            return read(await self._ask(use, method, *asked))
        except Answered as said:
            return await self._judged(said)
        except NotAnswered as error:
            if error.may_be_there:
                return Unknown(why=str(error))
            return NotNow(retry_after_seconds=error.retry_after_seconds, why=str(error))
        except MALFORMED as error:
            return Unknown(why=f"the answer cannot be read: {type(error).__name__}")

    async def _question(self, read: Callable[[Any], T], method: str, *asked: Any) -> T:
        """Raises VenueUnavailable, VenueRefused."""
        try:
            return read(await self._ask(Use.ORDER, method, *asked))
        except Answered as said:
            match await self._judged(said):
                case Refused(code=code, words=words):
                    raise VenueRefused(code, words) from None
                case NotNow(retry_after_seconds=seconds):
                    raise venue_unavailable(self.card.venue, seconds) from None
                case _:
                    raise venue_unavailable(self.card.venue) from None
        except NotAnswered as error:
            raise venue_unavailable(self.card.venue, error.retry_after_seconds) from None
        except MALFORMED as error:
            log.warning("an answer cannot be read", venue=self.card.venue, asked=method, error=type(error).__name__)
            raise venue_unavailable(self.card.venue) from None

    async def _beforehand(self, asked: Awaitable[T]) -> T | NotNow | Refused:
        """A question that has to be answered before a command can be sent; what becomes of that if it is not."""
        try:
            return await asked
        except VenueUnavailable as error:
            return NotNow(retry_after_seconds=error.retry_after_seconds, why=str(error))
        except VenueRefused as error:
            return Refused(code=error.code, words=error.words)

    async def _judged(self, said: Answered) -> Outcome:
        verdict = self.verdict(said)
        if verdict is Verdict.REFUSED:
            return Refused(code=said.code, words=said.words, stop_reached=self.is_reached(said))
        if verdict is Verdict.UNKNOWN:
            return Unknown(why=str(said))
        seconds = self.pause_seconds(said)
        if self.is_of_address(said):
            # Whoever goes on asking is banned, and banned for longer.
            log.warning("a venue was asked too much", venue=self.card.venue, seconds=seconds)
            try:
                await self._budget.block(seconds)
            except (RedisError, OSError) as error:
                log.warning("a venue is not left alone", venue=self.card.venue, error=type(error).__name__)
        return NotNow(retry_after_seconds=seconds, why=str(said))

    # How a request is carried.

    async def _ask(self, use: Use, method: str, *asked: Any) -> Any:
        """Has ccxt's method ask, which changes anything at most once. Raises Answered, NotAnswered, and whatever a bad answer raises in ccxt."""
        attempt = Attempt(use, self.COSTS.get(method, 0.0))
        ATTEMPT.set(attempt)
        try:
            self._key()
            return await getattr(self._exchange, method)(*asked)
        except (Answered, NotAnswered):
            raise
        except BudgetSpent as spent:
            seconds = spent.retry_after_seconds or 1.0
            raise NotAnswered(str(spent), may_be_there=False, retry_after_seconds=seconds) from None
        except Exception as error:  # noqa: BLE001 (whatever it is, it is no answer)
            # Its kind alone: what ccxt says holds the request, with the key and the signature in it.
            raise NotAnswered(type(error).__name__, may_be_there=attempt.has_left) from None

    def _take_key(self) -> None:
        """For what is signed next, and no longer. Raises KeyDropped."""
        key = self._key()
        self._exchange.apiKey, self._exchange.secret = key.api_key, key.api_secret
        self._exchange.password = key.passphrase

    def _leave_key(self) -> None:
        self._exchange.apiKey = self._exchange.secret = self._exchange.password = ""

    async def _throttle(self, cost: float | None = None) -> None:
        """Asked by ccxt before it signs a request."""
        attempt = ATTEMPT.get()
        cost, use = max(1.0 if cost is None else cost, attempt.cost_min), attempt.use
        await self._budget.take(cost, use, wait_seconds_max=WAIT_SECONDS[use])
        # What follows at once is the signing.
        self._take_key()

    async def _fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        self._leave_key()
        attempt = ATTEMPT.get()
        if method == "GET":
            return await self._send(url, method, headers, body)
        if attempt.has_left:
            # Whatever ccxt is told or makes of an answer, an order is sent once.
            raise NotAnswered("it would be sent twice", may_be_there=True)
        attempt.has_left = True
        try:
            return await self._send(url, method, headers, body)
        except Exception as error:
            # By itself aiohttp sends all but this again where a connection that was kept turns out to be broken.
            attempt.has_left = method != "POST" or not isinstance(error.__cause__, NEVER_LEFT)
            raise

    def _hear(
        self, status: int, reason: str, url: str, method: str, headers: Any, body: str, response: Any, *request: Any
    ) -> None:
        """Asked by ccxt of each answer, before it makes anything of it. Raises Answered for a no."""
        if status < 400 and not isinstance(response, (dict, list)):
            raise NotAnswered("the answer is no JSON", may_be_there=ATTEMPT.get().has_left)
        said = self.said(status, response)
        if said is None and status >= 400:
            said = "", reason or ""
        if said is not None:
            data = response.get("data") if isinstance(response, dict) else None
            raise Answered(status, *said, retry_seconds(headers), data)

    # How a stream is followed.

    async def stream(self) -> AsyncIterator[StreamEvent]:
        """See VenuePort."""
        loop, backoff = asyncio.get_running_loop(), Backoff(RECONNECT_SECONDS_FIRST, RECONNECT_SECONDS_MAX)
        while True:
            began_at, why = loop.time(), "closed"
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
            except (StreamLost, Answered, NotAnswered) as error:
                why = str(error)
            except (
                *MALFORMED,
                aiohttp.ClientError,
                TimeoutError,
                OSError,
                KeyDropped,
                BudgetSpent,
                RedisError,
            ) as error:
                why = type(error).__name__
            backoff.went_well_for(loop.time() - began_at)
            log.warning("a stream of orders was lost", venue=self.card.venue, why=why)
            yield Lost(why=why)
            await asyncio.sleep(backoff.next_seconds())

    async def _connection(self) -> AsyncGenerator[StreamEvent]:
        """One connection, until it raises."""
        await self._budget.take(1.0, Use.ORDER, wait_seconds_max=WAIT_SECONDS[Use.ORDER])
        url, subscription = await self.subscription()
        async with asyncio.timeout(CONNECT_SECONDS):
            following = await self._session.ws_connect(url, heartbeat=KEEPALIVE_SECONDS, max_msg_size=MESSAGE_BYTES_MAX)
        try:
            early = [] if subscription is None else await self._subscribed(following, subscription)
            async with self.kept(following):
                yield Connected()
                for told in early:
                    yield told
                while True:
                    for told in await self.told(await next_message(following)):
                        yield told
        finally:
            await following.close()

    async def _subscribed(self, following: aiohttp.ClientWebSocketResponse, subscription: dict[str, Any]) -> list[Told]:
        """What was told before the stream said that it is subscribed to. Raises StreamLost if it does not say it."""
        early: list[Told] = []
        async with asyncio.timeout(CONNECT_SECONDS):
            await following.send_json(subscription)
            for _ in range(EARLY_MESSAGES_MAX):
                if self.is_subscribed(message := await next_message(following)):
                    return early
                early += await self.told(message)
        raise StreamLost("it does not say that it is subscribed to")


async def next_message(following: aiohttp.ClientWebSocketResponse) -> Any:
    """Raises StreamLost at the end, and ValueError for what is no JSON."""
    message = await following.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise StreamLost(f"the connection ended: {message.type.name}")
    return exact_json(message.data)


async def never_elsewhere(*_: Any) -> None:
    """A venue does not send anybody on; following would send an order a second time, and its signature to another host."""
    raise aiohttp.ClientError("redirected")


P = TypeVar("P", bound=CcxtPort)


@asynccontextmanager
async def opened(
    kind: Callable[[Card, Any, aiohttp.ClientSession, Budget, Callable[[], LeasedKey]], P],
    card: Card,
    manner: Manner,
    addresses: Addresses,
    key: Callable[[], LeasedKey],
    redis: Redis,
    from_address: str,
) -> AsyncIterator[P]:
    """A venue's port during the block. key is asked before each request, and raises KeyDropped where there is none any more.

    from_address names where requests come from, such as a gateway; who share it share what may be asked of the venue.
    """
    # A second, and 100 MB: for those who need it, and beside the loop.
    ccxt = await asyncio.to_thread(import_module, "ccxt.pro")
    logging.getLogger("ccxt").setLevel(logging.WARNING)  # below, it writes down what it sends
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(never_elsewhere)
    async with aiohttp.ClientSession(trace_configs=[tracing]) as session:
        exchange = getattr(ccxt, card.exchange_name.lower())(
            {
                "session": session,
                "enableRateLimit": True,
                "timeout": round(REQUEST_SECONDS * 1000),
                "timeout_on_exit": 0,
                "options": {**manner.options, "maxRetriesOnFailure": 0},
                "urls": {
                    "api": {
                        **below(addresses.rest, manner.rest_paths),
                        **({"ws": nested_below(addresses.stream, manner.stream_paths)} if addresses.stream else {}),
                    }
                },
            }
        )
        try:
            limits = limits_from(exchange.rateLimit, card.segment)
            yield kind(card, exchange, session, Budget(redis, card.segment, from_address, limits), key)
        finally:
            async with asyncio.timeout(CLOSE_SECONDS):
                await exchange.close()


def nested_below(address: str, paths: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: nested_below(address, path) if isinstance(path, Mapping) else f"{address.rstrip('/')}{path}"
        for name, path in paths.items()
    }
