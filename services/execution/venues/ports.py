"""The venues beyond the network, by name: what each takes, and how one account's port to it is opened."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from services.execution.domain import LeasedKey, VenueNotFound
from services.execution.venues import binance, kraken, unified
from services.execution.venues.ccxt_port import Addresses, CcxtPort, opened
from services.execution.venues.port import Card

PROVED: Mapping[str, Card] = {card.venue: card for card in (binance.CARD, kraken.CARD)}


async def card_of(venue: str) -> Card:
    """What a venue takes. Raises VenueNotFound; for one that is not proved it takes a second the first time."""
    if venue in PROVED:
        return PROVED[venue]
    ccxt = await asyncio.to_thread(import_module, "ccxt.async_support")
    if venue.lower() not in ccxt.exchanges or venue != venue.upper():
        raise VenueNotFound(f"there is no venue {venue} that orders are sent to", venue=venue)
    return unified.card_of(venue)


@dataclass(frozen=True, slots=True)
class Ports:
    """Opens ports for all accounts of a process. addresses by venue; from_address names where requests come from."""

    redis: Redis
    from_address: str
    addresses: Mapping[str, Addresses] = field(default_factory=dict)
    _pairs: kraken.Pairs = field(default_factory=kraken.Pairs)

    @asynccontextmanager
    async def opened(self, venue: str, key: Callable[[], LeasedKey]) -> AsyncIterator[CcxtPort]:
        """Asks for the key before each request; key raises KeyDropped where there is none. Raises VenueNotFound."""
        card = await card_of(venue)
        kinds: Mapping[str, Any] = {
            binance.VENUE: (binance.BinancePort, binance.MANNER),
            kraken.VENUE: (partial(kraken.KrakenPort, self._pairs), kraken.MANNER),
        }
        kind, manner = kinds.get(venue, (unified.UnifiedPort, unified.MANNER))
        addresses = self.addresses.get(venue, Addresses())
        async with opened(kind, card, manner, addresses, key, self.redis, self.from_address) as port:
            yield port
