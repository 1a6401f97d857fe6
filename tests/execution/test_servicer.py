"""What the execution API says of its venues."""

from pathlib import Path
from typing import Any

import pytest
from tradeloom.execution.v1 import execution_pb2

from libs.mesh.identity import Verifier
from libs.mesh.server import Mesh
from libs.mesh.sessions import Sessions
from services.execution.__main__ import VENUES, execution
from services.execution.domain import VenueNotFound
from services.execution.servicer import ExecutionServicer
from tests.execution.stand import Stand, Trader, instrument, limit, settings

ANY_CONTEXT: Any = None
NOBODY: Any = None
BOOK = (1000, [(99.0, 5.0)], [(100.0, 5.0)])


async def test_venues_say_what_they_take_and_how_many_orders_of_all_users_are_open(stand: Stand):
    anna, bert = Trader(), Trader()
    await stand.announce(instrument())
    await stand.market(book=BOOK)
    async with stand.running():
        await stand.place_all(anna, [limit("BUY", 1, 90), limit("BUY", 1, 91), limit("BUY", 1, 100)])
        await stand.place(bert, **limit("SELL", 1, 110))
        await stand.wait_for_count(3, "venue_orders", "state = 'working'")
        await stand.wait_for_count(1, "venue_fills")
    servicer = ExecutionServicer(stand.worker, stand.worker, VENUES, NOBODY, NOBODY, 60.0)
    listed = await servicer.ListVenues(execution_pb2.ListVenuesRequest(), ANY_CONTEXT)
    names = [venue.venue for venue in listed.venues]
    assert names == ["BINANCE", "KRAKEN", "PAPER"]
    binance, _, venue = listed.venues
    assert list(binance.times_in_force) == ["GTC", "IOC", "FOK"]
    assert (binance.description, binance.open_order_count) == ("Real money; proved", 0)
    assert (venue.venue, venue.open_order_count) == ("PAPER", 3)
    assert list(venue.order_types) == ["MARKET", "LIMIT", "STOP", "STOP_LIMIT", "TRAILING_STOP", "TAKE_PROFIT"]
    assert list(venue.times_in_force) == ["GTC", "IOC", "FOK", "DAY", "GTD"]
    found = await servicer.GetVenue(execution_pb2.GetVenueRequest(venue="PAPER"), ANY_CONTEXT)
    assert found.venue == venue


async def test_a_venue_nobody_knows_is_not_found(stand: Stand):
    servicer = ExecutionServicer(stand.worker, stand.worker, VENUES, NOBODY, NOBODY, 60.0)
    with pytest.raises(VenueNotFound):
        await servicer.GetVenue(execution_pb2.GetVenueRequest(venue="NASDAQ"), ANY_CONTEXT)


async def test_the_service_opens_and_its_dependencies_answer(postgres, database_name: str, valkey, pki: Path):
    own = settings(
        database_url=postgres.url(database_name, "execution_rpc"),
        worker_database_url=postgres.url(database_name, "execution_worker"),
        redis_url=valkey.url,
        tls_folder=pki,
    )
    mesh = Mesh(own, Verifier(), Sessions(own.streams_max, own.streams_per_caller_max))
    async with execution(own, mesh) as service:
        assert set(service.checks) == {"postgres", "redis", "relay"}
        assert set(service.watched) == {"facts of marketdata", "facts of orders", "paper", "live"}
        for check in (*service.checks.values(), *service.watched.values()):
            await check()
