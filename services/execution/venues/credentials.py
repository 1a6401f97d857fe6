"""What venues say of keys: whom they are, and what they may do. Asked through ccxt, which knows how each is signed."""

import asyncio
import binascii
import logging
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any
from uuid import UUID

import structlog

from libs.errors import Exhausted
from libs.mesh.limits import Limiter
from libs.venues import below, retry_seconds
from services.execution.domain import (
    CredentialProblem,
    KeyRights,
    LeasedKey,
    VenueNotFound,
    VenueUnavailable,
    venue_unavailable,
)

log = structlog.get_logger(__name__)

CHECKS_AT_ONCE_MAX = 16
# Of all people, at one venue. A check takes 21 of the 6,000 that Binance allows an address in a minute.
CHECKS_PER_MINUTE_MAX = 30
MINUTE_SECONDS = 60.0
CHECKS_OF_ONE = "credential check"
CHECKS_OF_ONE_PER_SECOND_MAX = 0.1
# With any of them a key moves money to another account, or to where other keys move it on: out of the account, to a
# master's or a sub-account, and between wallets.
BINANCE_MOVES_MONEY = ("enableWithdrawals", "enableInternalTransfer", "permitsUniversalTransfer")
BINANCE_CODE = re.compile(r'"code":\s*(-?\d+)')
BINANCE_SIGNATURE_INVALID = "-1022"
KRAKEN_SIGNATURE_INVALID = "EAPI:Invalid signature"

Ask = Callable[[Any], Awaitable[KeyRights]]


async def ask_binance(exchange: Any) -> KeyRights:
    restrictions = await exchange.sapi_get_account_apirestrictions()
    # What the key may do, and whether the account behind it may do it at all.
    can_read = restrictions.get("enableReading") is True
    account = await exchange.private_get_account() if can_read else {}
    trades_spot = restrictions.get("enableSpotAndMarginTrading") is True and account.get("canTrade", True) is True
    return KeyRights(
        can_read=can_read,
        # Which of both an account needs is not known here: where a key has only the other, Binance refuses its orders.
        can_trade=trades_spot or restrictions.get("enableFutures") is True,
        # Where it is not said, the worst is taken to be so.
        can_withdraw=any(restrictions.get(right) is not False for right in BINANCE_MOVES_MONEY),
    )


async def ask_kraken(exchange: Any) -> KeyRights:
    answer = await exchange.private_post_getapikeyinfo()
    permissions = answer.get("result", {}).get("permissions")
    if not isinstance(permissions, list):
        raise TypeError("the permissions are no list")
    return KeyRights(
        can_read="query-funds" in permissions,
        can_trade="modify-trades" in permissions,
        can_withdraw="withdraw-funds" in permissions,
    )


# By venue: its class in ccxt, how it is asked, and which of its addresses stand below the one that is set.
VENUES: Mapping[str, tuple[str, Ask, Mapping[str, str]]] = {
    "BINANCE": ("binance", ask_binance, {"private": "/api/v3", "sapi": "/sapi/v1"}),
    "KRAKEN": ("kraken", ask_kraken, {"private": ""}),
}


class Checkers:
    """urls by venue; a venue has seconds to answer.

    A venue bans our address, not whose key it was: so people are held apart, and a venue that has had enough is left
    alone. All of it is counted in this process. Of two replicas each asks as much, and learns of a ban by itself.
    """

    def __init__(self, urls: Mapping[str, str], seconds: float) -> None:
        self._urls, self._seconds = urls, seconds
        self._at_once = asyncio.Semaphore(CHECKS_AT_ONCE_MAX)
        self._people = Limiter(CHECKS_OF_ONE, CHECKS_OF_ONE_PER_SECOND_MAX)
        self._checking: set[UUID] = set()
        # By venue, and so no more than there are VENUES: when it was asked in the last minute, and is asked again.
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)
        self._resume_at: dict[str, float] = {}

    @asynccontextmanager
    async def turn(self, user_id: UUID) -> AsyncIterator[None]:
        """One person's turn to have a key checked: one at a time. Raises Exhausted."""
        if user_id in self._checking:
            raise Exhausted("a check of this person's is under way", retry_after_seconds=1.0, limit=CHECKS_OF_ONE)
        self._people.take(user_id)
        self._checking.add(user_id)
        try:
            yield
        finally:
            self._checking.discard(user_id)

    async def check(self, key: LeasedKey) -> KeyRights:
        """What the venue says. Raises VenueUnavailable where it says nothing or is not to be asked, and VenueNotFound."""
        if key.venue not in VENUES:
            raise VenueNotFound(f"there is no venue {key.venue} that knows keys", venue=key.venue)
        self._count(key.venue)
        try:
            async with asyncio.timeout(self._seconds), self._at_once:
                return await self._ask(key)
        except TimeoutError:
            raise venue_unavailable(key.venue) from None

    def _count(self, venue: str) -> None:
        """Counts a question to the venue; raises VenueUnavailable if it is one too many."""
        now, asked = asyncio.get_running_loop().time(), self._asked[venue]
        while asked and now - asked[0] >= MINUTE_SECONDS:
            asked.popleft()
        resume_at = self._resume_at.get(venue, now)
        if len(asked) >= CHECKS_PER_MINUTE_MAX:
            resume_at = max(resume_at, asked[0] + MINUTE_SECONDS)
        if resume_at > now:
            raise venue_unavailable(venue, resume_at - now)
        asked.append(now)

    async def _ask(self, key: LeasedKey) -> KeyRights:
        # Half a second, and 40 MB: for those who need it, when they do, and beside the market's loop.
        ccxt = await asyncio.to_thread(import_module, "ccxt.async_support")
        logging.getLogger("ccxt").setLevel(logging.WARNING)  # below, it writes down what it sends
        name, ask, paths = VENUES[key.venue]
        exchange = getattr(ccxt, name)(
            {
                "apiKey": key.api_key,
                "secret": key.api_secret,
                "password": key.passphrase,
                "enableRateLimit": False,
                "timeout": round(self._seconds * 1000),
                "urls": {"api": below(self._urls[key.venue], paths)},
            }
        )
        try:
            return await ask(exchange)
        except binascii.Error:
            return KeyRights(problem=CredentialProblem.SECRET_INVALID)
        except (ccxt.BaseError, TypeError, AttributeError) as error:
            if is_signature_invalid(str(error)):
                return KeyRights(problem=CredentialProblem.SECRET_INVALID)
            if isinstance(error, ccxt.AuthenticationError):
                return KeyRights(problem=CredentialProblem.KEY_INVALID)
            # Also where a clock runs wrong, or too much was asked: nothing is said of the key.
            refusal = self._unavailable(key, error, exchange)
            if isinstance(error, (ccxt.DDoSProtection, ccxt.RateLimitExceeded)):
                # Whoever goes on asking is banned, and banned for longer.
                self._resume_at[key.venue] = asyncio.get_running_loop().time() + refusal.retry_after_seconds
            raise refusal from None
        finally:
            await exchange.close()

    def _unavailable(self, key: LeasedKey, error: Exception, exchange: Any) -> VenueUnavailable:
        # Its kind alone: what ccxt says holds the request, with the key in it.
        log.warning("a venue does not say what a key may do", venue=key.venue, error=type(error).__name__)
        return venue_unavailable(key.venue, retry_seconds(exchange.last_response_headers))


def is_signature_invalid(said: str) -> bool:
    code = BINANCE_CODE.search(said)
    return KRAKEN_SIGNATURE_INVALID in said or bool(code and code[1] == BINANCE_SIGNATURE_INVALID)
