from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tradeloom.marketdata.v1 import events_pb2, marketdata_pb2

from libs.store.database import open_database
from services.marketdata import store
from tests.marketdata.stand import BTC, ETH, START, Caller, Feeder, announce, select, served, tick_at, until
from tests.mesh import sign_in


def reason_of(error: Any) -> str:
    status = rpc_status.from_call(error)
    assert status
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    raise AssertionError(status)


async def refused(call) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)


async def find(caller: Caller, instrument_id: str):
    asked = marketdata_pb2.GetInstrumentRequest(instrument_id=instrument_id)
    return (await caller.ask("GetInstrument", asked)).instrument


async def search(caller: Caller, **more):
    found = await caller.ask("SearchInstruments", marketdata_pb2.SearchInstrumentsRequest(**more))
    return [each.instrument_id for each in found.instruments], found.next_page_token


async def test_announced_instruments_are_found_by_the_start_of_id_symbol_or_description(installation, caller):
    await announce(installation, BTC, ETH, "FILE:XRPETH")
    assert await search(caller) == (["FILE:XRPETH", BTC, ETH], "")
    assert (await search(caller, query="sim:btcu"))[0] == [BTC]
    assert (await search(caller, query="ethu"))[0] == [ETH]
    assert (await search(caller, query="all about xrp"))[0] == ["FILE:XRPETH"]
    assert (await search(caller, venue="SIM"))[0] == [BTC, ETH]
    assert (await search(caller, query="%"))[0] == []
    first, token_after_first = await search(caller, page_size=2)
    assert first == ["FILE:XRPETH", BTC]
    assert await search(caller, page_size=2, page_token=token_after_first) == ([ETH], "")


async def test_an_announced_instrument_stands_as_its_feed_says_and_can_be_traded(installation, caller):
    await announce(installation, BTC)
    found = await find(caller, BTC)
    assert (found.venue, found.symbol, found.base_asset, found.tick_size.value) == ("SIM", "BTCUSDT", "BTC", "0.01")
    assert found.state == marketdata_pb2.INSTRUMENT_STATE_TRADING
    assert await refused(find(caller, "SIM:NONE")) == "INSTRUMENT_NOT_FOUND"


async def test_every_change_of_an_instrument_is_told_once_and_in_order(installation, caller):
    await announce(installation, BTC)
    await announce(installation, BTC)
    await caller.put("HAND:X")
    await caller.put("HAND:X")
    await caller.put("HAND:X", description="Another")
    told = await select(installation, "SELECT key, sequence, kind, payload FROM outbox ORDER BY key, sequence")
    assert [(row["key"], row["sequence"]) for row in told] == [("HAND:X", 1), ("HAND:X", 2), (BTC, 1)]
    assert {row["kind"] for row in told} == {"tradeloom.marketdata.v1.InstrumentChanged"}
    changed = events_pb2.InstrumentChanged.FromString(told[1]["payload"]).instrument
    assert (changed.description, changed.state) == ("Another", marketdata_pb2.INSTRUMENT_STATE_HALTED)


async def test_a_reader_that_is_new_learns_instruments_whose_facts_are_long_gone(installation, redis):
    await announce(installation, BTC, ETH)
    async with installation.connect() as superuser:
        # A week later; Redis, too, was made anew. One of them is as new as it was.
        await superuser.execute("SET search_path = marketdata")
        await superuser.execute("DELETE FROM outbox WHERE key = $1", BTC)
        await superuser.execute("UPDATE instruments SET fact_sequence = 3 WHERE instrument_id = $1", BTC)
        known = "SELECT instrument_id FROM execution.instruments ORDER BY 1"
        async with served(installation), installation.serve("execution"):

            async def learned() -> bool:
                return [row["instrument_id"] for row in await superuser.fetch(known)] == [BTC, ETH]

            assert await until(learned)
        # Told once, however often the service starts.
        async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
            assert await store.tell_again(rows, 10) == 0
        await superuser.execute("UPDATE outbox SET create_time = now() - make_interval(days => 6) WHERE key = $1", BTC)
        async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
            assert await store.tell_again(rows, 10) == 1
        told = await superuser.fetch("SELECT key, sequence FROM outbox ORDER BY 1, 2")
    assert [tuple(row) for row in told] == [(BTC, 4), (BTC, 5), (ETH, 1)]


async def test_an_instrument_that_a_feed_brings_cannot_be_put_by_hand(installation, caller):
    await announce(installation, BTC)
    assert await refused(caller.put(BTC)) == "INSTRUMENT_HAS_FEED"


async def test_the_same_request_id_puts_an_instrument_once_and_another_body_is_refused(caller):
    first = await caller.put("HAND:X", request_id="one")
    assert await caller.put("HAND:X", request_id="one") == first
    assert await refused(caller.put("HAND:X", request_id="one", description="Other")) == "REQUEST_ID_REUSED"
    assert (await find(caller, "HAND:X")).description == first.instrument.description


async def test_a_step_of_zero_is_refused_by_name(caller):
    put = marketdata_pb2.PutInstrumentRequest(request_id="one", instrument=(await caller.put("HAND:X")).instrument)
    put.instrument.tick_size.value = "0"
    put.instrument.lot_size.value = "-1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.ask("PutInstrument", put)
    assert "instrument.tick_size" in (caught.value.details() or "")
    assert "instrument.lot_size" in (caught.value.details() or "")


async def test_only_operators_put_and_import(caller):
    caller.metadata = sign_in()
    assert await refused(caller.put("HAND:X")) == "NOT_PERMITTED"
    assert await refused(caller.load("HAND:X", b"")) == "NOT_PERMITTED"


async def test_a_quote_is_the_newest_or_its_absence_has_a_reason(installation, caller, redis):
    asked = marketdata_pb2.GetQuoteRequest(instrument_id=BTC)
    assert await refused(caller.ask("GetQuote", asked)) == "INSTRUMENT_NOT_FOUND"
    await announce(installation, BTC)
    assert await refused(caller.ask("GetQuote", asked)) == "NO_QUOTE"
    feeder = Feeder(redis)
    await feeder.append([tick_at(START, 99.5)])
    assert (await caller.ask("GetQuote", asked)).quote.last_price == 99.5


async def test_feeds_facts_arrive_through_the_bus(installation, caller, redis):
    """The relay of feeds writes the entry; here the test does."""
    from tradeloom.feeds.v1 import events_pb2 as feeds_events
    from tradeloom.type.v1.fact_pb2 import Fact

    from libs.store.outbox import partition_of
    from tests.marketdata.stand import instrument

    payload = feeds_events.InstrumentAnnounced(instrument=instrument(BTC)).SerializeToString()
    fact = Fact(source="feeds", key=BTC, sequence=1, kind="tradeloom.feeds.v1.InstrumentAnnounced", payload=payload)
    fact.time.GetCurrentTime()
    fields = {"f": fact.SerializeToString(), "p": "0-0"}
    await redis.xadd(f"facts:feeds:{partition_of(BTC)}", fields, id="1-1")

    async def announced() -> bool:
        return (await search(caller))[0] == [BTC]

    assert await until(announced)
