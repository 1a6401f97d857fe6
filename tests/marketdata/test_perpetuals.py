"""The terms of perpetual futures, and what their funding was settled at: stored once, told once, read in pages."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest
from tradeloom.feeds.v1 import events_pb2 as feeds_events
from tradeloom.marketdata.v1 import events_pb2, marketdata_pb2, perpetuals_pb2

from libs.errors import Invalid
from libs.ids import uuid7
from libs.margin import Perpetual, usual_tiers
from libs.mesh.perpetuals import perpetual_from_proto, perpetual_to_proto
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from libs.store.outbox import Fact
from services.marketdata import store
from services.marketdata.consumers import apply_feeds_facts
from services.marketdata.domain import put_by_hand
from services.marketdata.wire import put_instrument_from_proto
from tests.marketdata.stand import BTC, announce, instrument, select
from tests.marketdata.test_instruments import find, refused

PERP = "SIM:BTCUSDT-PERP"
FIRST = datetime(2026, 3, 2, 0, 0, tzinfo=UTC)
HOURS = timedelta(hours=8)


def decimal(text: str) -> Any:
    return {"value": text}


def terms(**more) -> perpetuals_pb2.Perpetual:
    values: dict[str, Any] = {
        "settle_asset": "USDT",
        "contract_size": decimal("1"),
        "leverage_max": decimal("20"),
        "margin_tiers": [
            tier("0", "0.05", "0.025", "0"),
            tier("250000", "0.1", "0.05", "6250"),
        ],
        "funding_interval_seconds": 28_800,
    }
    return perpetuals_pb2.Perpetual(**values | more)


def tier(floor: str, initial: str, maintenance: str, amount: str) -> perpetuals_pb2.MarginTier:
    return perpetuals_pb2.MarginTier(
        notional_floor=decimal(floor),
        initial_margin_rate=decimal(initial),
        maintenance_margin_rate=decimal(maintenance),
        maintenance_amount=decimal(amount),
    )


def perpetual(**more) -> marketdata_pb2.Instrument:
    told = instrument(PERP)
    told.asset_class = marketdata_pb2.ASSET_CLASS_PERPETUAL
    told.perpetual.CopyFrom(terms(**more))
    return told


def announced(told: marketdata_pb2.Instrument) -> Fact:
    message = feeds_events.InstrumentAnnounced(instrument=told)
    return fact_of(message, told.instrument_id)


def settled(number: int, rate: str = "0.0001", instrument_id: str = PERP) -> Fact:
    """The settlement after so many intervals."""
    rates = perpetuals_pb2.FundingRate(
        instrument_id=instrument_id,
        funding_time=timestamp(FIRST + number * HOURS),
        rate=decimal(rate),
        mark_price=decimal("64000.01"),
    )
    return fact_of(feeds_events.FundingAnnounced(funding_rate=rates), instrument_id)


def fact_of(message, key: str) -> Fact:
    kind = message.DESCRIPTOR.full_name
    return Fact(key=key, sequence=1, user_id=None, kind=kind, payload=message.SerializeToString())


async def apply(installation, *facts: Fact) -> None:
    async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
        await apply_feeds_facts(rows, facts)


async def told(installation) -> list:
    """Facts in the order of their sequences."""
    found = await select(installation, "SELECT sequence, kind, payload FROM outbox WHERE key = $1 ORDER BY 1", PERP)
    assert [row["sequence"] for row in found] == list(range(1, len(found) + 1))
    kinds = {each.DESCRIPTOR.full_name: each for each in (events_pb2.InstrumentChanged, events_pb2.FundingSettled)}
    return [kinds[row["kind"]].FromString(row["payload"]) for row in found]


def test_terms_stay_what_they_are_in_the_contract_and_in_the_database():
    there = perpetual_from_proto(terms())
    assert perpetual_to_proto(there) == terms()
    assert Perpetual.from_json(there.to_json()) == there
    put = replace(there, tiers_put=True)
    assert Perpetual.from_json(put.to_json()) == put == perpetual_from_proto(terms(tiers_put=True))
    assert perpetual_to_proto(None) is None


def test_without_tiers_there_is_one_that_the_highest_leverage_makes():
    assert perpetual_from_proto(terms(margin_tiers=[])).margin_tiers == usual_tiers(Decimal(20))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"settle_asset": "BTC"}, "settle_asset"),
        ({"contract_size": decimal("0")}, "contract_size"),
        ({"leverage_max": decimal("0.5")}, "leverage_max"),
        ({"margin_tiers": [tier("1", "0.05", "0.025", "0")]}, "margin_tiers[0].notional_floor"),
    ],
)
def test_wrong_terms_are_refused_by_name(wrong, field):
    with pytest.raises(Invalid) as caught:
        put_by_hand(put_instrument_from_proto(perpetual(**wrong)), None)
    assert f"instrument.perpetual.{field}" in caught.value.violations


def test_terms_of_what_is_no_perpetual_are_refused():
    told = perpetual()
    told.asset_class = marketdata_pb2.ASSET_CLASS_CRYPTO
    with pytest.raises(Invalid) as caught:
        put_by_hand(put_instrument_from_proto(told), None)
    assert set(caught.value.violations) == {"instrument.perpetual"}


async def test_tiers_that_the_feed_does_not_tell_can_be_put_and_stay_until_they_are_taken_back(installation, caller):
    untold = perpetual(margin_tiers=[])
    put = [tier("0", "0.01", "0.005", "0"), tier("1000", "0.02", "0.01", "5")]

    async def ask(of: marketdata_pb2.Instrument) -> Any:
        request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid7()), instrument=of)
        return (await caller.ask("PutInstrument", request)).instrument

    async def stand() -> tuple[str, int, bool, int]:
        now = await find(caller, PERP)
        terms = now.perpetual
        return terms.leverage_max.value, len(terms.margin_tiers), terms.tiers_put, now.state

    # Before a feed brings it, and after.
    by_hand = perpetual(leverage_max=decimal("100"), margin_tiers=put)
    await ask(by_hand)
    await apply(installation, announced(untold))
    assert await stand() == ("100", 2, True, marketdata_pb2.INSTRUMENT_STATE_TRADING)
    brought = await find(caller, PERP)
    brought.perpetual.leverage_max.value = "50"
    del brought.perpetual.margin_tiers[1:]
    await ask(brought)
    await apply(installation, announced(untold))
    assert await stand() == ("50", 1, True, marketdata_pb2.INSTRUMENT_STATE_TRADING)
    # Of nothing else, and nothing wrong.
    for name, value in (("description", "Another"), ("has_book", not brought.has_book)):
        other = marketdata_pb2.Instrument()
        other.CopyFrom(brought)
        setattr(other, name, value)
        assert await refused(ask(other)) == "INSTRUMENT_HAS_FEED"
    wrong = marketdata_pb2.Instrument()
    wrong.CopyFrom(brought)
    wrong.perpetual.margin_tiers.append(tier("1000", "0.02", "0.01", "7"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(wrong)
    assert "margin_tiers[1].maintenance_amount" in str(caught.value.details())
    assert await stand() == ("50", 1, True, marketdata_pb2.INSTRUMENT_STATE_TRADING)
    del brought.perpetual.margin_tiers[:]
    brought.perpetual.tiers_put = True
    await ask(brought)
    await apply(installation, announced(untold))
    assert await stand() == ("20", 1, False, marketdata_pb2.INSTRUMENT_STATE_TRADING)
    # Where the feed tells them, they are its own.
    await apply(installation, announced(perpetual()))
    brought = await find(caller, PERP)
    assert brought.perpetual == terms()
    del brought.perpetual.margin_tiers[1:]
    assert await refused(ask(brought)) == "INSTRUMENT_HAS_FEED"


async def test_terms_are_found_and_told_and_a_change_of_them_is_told(installation, caller):
    await apply(installation, announced(perpetual()), announced(perpetual()))
    assert (await find(caller, PERP)).perpetual == terms()
    await apply(installation, announced(perpetual(leverage_max=decimal("10"))))
    facts = await told(installation)
    assert [each.instrument.perpetual.leverage_max.value for each in facts] == ["20", "10"]
    # By terms that cannot be, nobody is to work out margin.
    await apply(installation, announced(perpetual(contract_size=decimal("0"))))
    assert not (await find(caller, PERP)).HasField("perpetual")


async def test_a_settlement_is_stored_and_told_once_however_often_it_is_announced(installation):
    await apply(installation, announced(perpetual()), settled(0), settled(0))
    await apply(installation, settled(0, rate="0.9"), settled(1, rate="-0.00025"))
    await apply(installation, settled(0), announced(perpetual(leverage_max=decimal("10"))))
    await apply(installation, settled(0, instrument_id="SIM:NOBODY-KNOWS"))
    changed, first, second, changed_again = await told(installation)
    assert first.funding_rate.funding_time.ToDatetime(UTC) == FIRST
    assert (first.funding_rate.rate.value, first.funding_rate.mark_price.value) == ("0.0001", "64000.01")
    assert second.funding_rate.rate.value == "-0.00025"
    assert changed.instrument.perpetual.leverage_max.value == "20"
    assert changed_again.instrument.perpetual.leverage_max.value == "10"


async def test_settlements_do_not_keep_an_instrument_from_being_told_again(installation):
    await apply(installation, announced(perpetual()), settled(0))
    async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
        assert await store.tell_again(rows, 10) == 0
    async with installation.connect() as superuser:
        await superuser.execute(
            "UPDATE marketdata.outbox SET create_time = now() - make_interval(days => 6) WHERE sequence = 1"
        )
    async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
        assert await store.tell_again(rows, 10) == 1
        assert await store.tell_again(rows, 10) == 0
    assert (await told(installation))[2].instrument.perpetual == terms()


async def test_rates_are_read_forwards_and_backwards_in_pages(installation, caller):
    await apply(installation, announced(perpetual()), *(settled(number) for number in range(7)))

    async def read(**more) -> list[list[int]]:
        """By page, after how many intervals each was settled."""
        found, token = [], ""
        while token or not found:
            asked = perpetuals_pb2.GetFundingRatesRequest(instrument_id=PERP, page_token=token, page_size=3, **more)
            page = await caller.ask("GetFundingRates", asked)
            found.append([(rate.funding_time.ToDatetime(UTC) - FIRST) // HOURS for rate in page.funding_rates])
            token = page.next_page_token
        return found

    assert await read() == [[4, 5, 6], [1, 2, 3], [0]]
    assert await read(start_time=timestamp(FIRST)) == [[0, 1, 2], [3, 4, 5], [6]]
    one, four = timestamp(FIRST + HOURS), timestamp(FIRST + 4 * HOURS)
    assert await read(start_time=one, end_time=four) == [[1, 2, 3]]
    assert await read(end_time=four) == [[1, 2, 3], [0]]


async def test_what_is_asked_wrongly_of_rates_is_refused(installation, caller):
    asked = perpetuals_pb2.GetFundingRatesRequest(instrument_id=PERP)
    assert await refused(caller.ask("GetFundingRates", asked)) == "INSTRUMENT_NOT_FOUND"
    await announce(installation, BTC)
    asked.instrument_id = BTC
    assert not (await caller.ask("GetFundingRates", asked)).funding_rates
    asked.page_token = "another's"
    assert await refused(caller.ask("GetFundingRates", asked)) == "PAGE_TOKEN_INVALID"
    asked.page_token, asked.page_size = "", 1001
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.ask("GetFundingRates", asked)
    assert "page_size" in (caught.value.details() or "")
