"""The venues beyond the network, by name: what each takes, and how one account's port to it is opened."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from services.execution.domain import AccountKind, LeasedKey, VenueNotFound
from services.execution.venues import binance, binance_futures, kraken, unified
from services.execution.venues.ccxt_port import Addresses, CcxtPort, opened
from services.execution.venues.port import Card

PROVED: Mapping[str, Card] = {card.venue: card for card in (binance.CARD, kraken.CARD)}
PROVED_MARGIN: Mapping[str, Card] = {binance_futures.CARD.venue: binance_futures.CARD}
"""Of margin accounts: of those no venue is taken that is not proved."""


async def card_of(venue: str, kind: AccountKind = AccountKind.CASH) -> Card:
    """What a venue takes of such an account. Raises VenueNotFound; for one that is not proved it takes a second the first time."""
    if kind is AccountKind.MARGIN:
        if venue not in PROVED_MARGIN:
            raise VenueNotFound(f"{venue} has no margin accounts that orders are sent for", venue=venue)
        return PROVED_MARGIN[venue]
    if venue in PROVED:
        return PROVED[venue]
    ccxt = await asyncio.to_thread(import_module, "ccxt.async_support")
    if venue.lower() not in ccxt.exchanges or venue != venue.upper():
        raise VenueNotFound(f"there is no venue {venue} that orders are sent to", venue=venue)
    return unified.card_of(venue)


@dataclass(frozen=True, slots=True)
class Ports:
    """Opens ports for all accounts of a process. addresses by Card.exchange_name; from_address names where requests come from."""

    redis: Redis
    from_address: str
    addresses: Mapping[str, Addresses] = field(default_factory=dict)
    _pairs: kraken.Pairs = field(default_factory=kraken.Pairs)

    @asynccontextmanager
    async def opened(
        self, venue: str, key: Callable[[], LeasedKey], kind: AccountKind = AccountKind.CASH
    ) -> AsyncIterator[CcxtPort]:
        """Asks for the key before each request; key raises KeyDropped where there is none. Raises VenueNotFound."""
        card = await card_of(venue, kind)
        made: Mapping[str, Any] = {
            binance.VENUE: (binance.BinancePort, binance.MANNER),
            binance_futures.EXCHANGE: (binance_futures.BinanceFuturesPort, binance_futures.MANNER),
            kraken.VENUE: (partial(kraken.KrakenPort, self._pairs), kraken.MANNER),
        }
        make, manner = made.get(card.exchange_name, (unified.UnifiedPort, unified.MANNER))
        addresses = self.addresses.get(card.exchange_name, Addresses())
        async with opened(make, card, manner, addresses, key, self.redis, self.from_address) as port:
            yield port
