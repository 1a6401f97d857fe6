"""The venues beyond the network, by name: what each takes, and how one account's port to it is opened."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

from redis.asyncio import Redis

from services.execution.domain import LeasedKey, VenueNotFound
from services.execution.venues import binance, kraken
from services.execution.venues.ccxt_port import Addresses, CcxtPort, opened
from services.execution.venues.port import Card

CARDS: Mapping[str, Card] = {card.venue: card for card in (binance.CARD, kraken.CARD)}


@dataclass(frozen=True, slots=True)
class Ports:
    """Opens ports for all accounts of a process. addresses by venue; from_address names where requests come from."""

    redis: Redis
    from_address: str
    addresses: Mapping[str, Addresses] = field(default_factory=dict)
    _pairs: kraken.Pairs = field(default_factory=kraken.Pairs)

    def opened(self, venue: str, key: Callable[[], LeasedKey]) -> AbstractAsyncContextManager[CcxtPort]:
        """Asks for the key before each request; key raises KeyDropped where there is none. Raises VenueNotFound."""
        kinds = {
            binance.VENUE: (binance.BinancePort, binance.MANNER),
            kraken.VENUE: (partial(kraken.KrakenPort, self._pairs), kraken.MANNER),
        }
        if venue not in kinds:
            raise VenueNotFound(f"there is no venue {venue} that orders are sent to", venue=venue)
        kind, manner = kinds[venue]
        addresses = self.addresses.get(venue, Addresses())
        return opened(kind, CARDS[venue], manner, addresses, key, self.redis, self.from_address)
