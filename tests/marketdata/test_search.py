"""Finding instruments: how well each answers, what is misspelled, filters, pages, and that an index makes it quick."""

import itertools
from typing import Any

import asyncpg
import grpc
import pytest
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.store.database import open_database
from services.marketdata import search
from services.marketdata.domain import InstrumentFilter
from services.marketdata.search import Place, exchanged, words_of
from tests.marketdata.stand import Caller
from tests.mesh import Installation

MANY = 20_000
KNOWN = [
    ("SIM:BTCUSDT", "crypto", "BTC", "USDT", "Bitcoin in US dollars"),
    ("SIM:ETHUSDT", "crypto", "ETH", "USDT", "Ethereum in US dollars"),
    ("SIM:ETHBTC", "crypto", "ETH", "BTC", "Ethereum in bitcoin"),
    ("SIM:BTCEUR", "crypto", "BTC", "EUR", "Bitcoin in euros"),
    ("KRAKEN:BTC/USDT", "crypto", "BTC", "USDT", "Bitcoin in Tether"),
    ("SIM:EURUSD", "forex", "EUR", "USD", "Euros in US dollars"),
    ("NASDAQ:AAPL", "equity", "AAPL", "USD", "Apple Incorporated"),
    ("NASDAQ:MSFT", "equity", "MSFT", "USD", "Microsoft Corporation"),
    ("FILE:BTC", "perpetual", "BTC", "USD", "Société's 100% bitcoin, back\\slash_ed"),
]
ROW = """
INSERT INTO marketdata.instruments (
  instrument_id, asset_class, base_asset, quote_asset, description, tick_size, lot_size, minimum_notional,
  maker_fee_rate, taker_fee_rate, has_book, state, has_feed, fact_sequence)
VALUES ($1, $2, $3, $4, $5, 0.01, 0.01, 1, 0, 0, false, $6, false, 1)
"""


async def add(installation: Installation, rows: list[tuple[str, ...]], state: str = "trading") -> None:
    async with installation.connect() as superuser:
        await superuser.executemany(ROW, [(*row, state) for row in rows])
        await superuser.execute("SET search_path = marketdata")
        await superuser.execute(
            """
            INSERT INTO instrument_words
            SELECT DISTINCT unnest(string_to_array(btrim(search_text), ' ')) FROM instruments ON CONFLICT DO NOTHING
            """
        )
        await superuser.execute("VACUUM ANALYZE instruments, instrument_words")


@pytest.fixture
async def known(installation: Installation) -> None:
    await add(installation, KNOWN)


async def find(caller: Caller, query: str = "", **more: Any) -> list[str]:
    request = marketdata_pb2.SearchInstrumentsRequest(query=query, **more)
    return [found.instrument_id for found in (await caller.ask("SearchInstruments", request)).instruments]


async def test_what_is_meant_most_comes_first(known, caller):
    assert await find(caller, "BTC") == [
        "FILE:BTC",  # the symbol itself
        "KRAKEN:BTC/USDT",  # symbols that begin so
        "SIM:BTCEUR",
        "SIM:BTCUSDT",
        "SIM:ETHBTC",  # a word that begins so
    ]
    assert (await find(caller, "sim:btc"))[:2] == ["SIM:BTCEUR", "SIM:BTCUSDT"]
    assert await find(caller, "crosoft") == ["NASDAQ:MSFT"]


@pytest.mark.parametrize("query", ["btcusdt", "btc/usdt", "BTC-USDT", "  btc usdt "])
async def test_what_stands_between_the_words_is_not_looked_at(known, caller, query):
    assert (await find(caller, query))[:2] == ["KRAKEN:BTC/USDT", "SIM:BTCUSDT"]


async def test_every_word_has_to_be_found_in_any_order(known, caller):
    assert (await find(caller, "bitcoin usd")) == ["FILE:BTC", "KRAKEN:BTC/USDT", "SIM:BTCUSDT"]
    assert (await find(caller, "usd bitcoin")) == ["FILE:BTC", "KRAKEN:BTC/USDT", "SIM:BTCUSDT"]
    assert await find(caller, "bitcoin apple") == []


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("btcustd", "SIM:BTCUSDT"),
        ("bitcion", "SIM:BTCEUR"),
        ("bticoin dolars", "SIM:BTCUSDT"),
        ("bct usdt", "SIM:BTCUSDT"),
        ("ehtereum", "SIM:ETHUSDT"),
        ("appel", "NASDAQ:AAPL"),
        ("aple inc", "NASDAQ:AAPL"),
        ("micorsoft", "NASDAQ:MSFT"),
        ("mfst", "NASDAQ:MSFT"),
        ("société", "FILE:BTC"),
        ("SOCIETE", "FILE:BTC"),
    ],
)
async def test_misspelled_words_find_what_was_meant(known, caller, query, meant):
    assert meant in (await find(caller, query))[:3]


async def test_a_word_that_somebody_has_is_not_taken_for_misspelled(installation, known, caller):
    await add(installation, [("SIM:APLE", "equity", "APLE", "USD", "Aple Reit")])
    assert await find(caller, "aple") == ["SIM:APLE"]
    assert "NASDAQ:AAPL" in await find(caller, "appel")


async def test_words_of_what_is_put_can_be_misspelled_at_once(caller):
    await caller.put("HAND:X", description="Zylophone")
    await caller.put("HAND:X", description="Xylophone")
    assert await find(caller, "xylohpone") == ["HAND:X"]
    assert await find(caller, "zylophone") == []


async def test_signs_of_patterns_are_only_signs(known, caller):
    assert await find(caller, "%") == await find(caller, "_") == await find(caller, "\\") == []
    assert await find(caller, "100%") == ["FILE:BTC"]
    assert await find(caller, "back\\slash_ed") == ["FILE:BTC"]
    assert words_of("a\0%b_c") == ["a", "b", "c"]
    assert exchanged("bct") == ["cbt", "btc"]


async def test_filters_hold_for_whatever_is_found(installation, known, caller):
    await add(installation, [("HAND:BTCOLD", "crypto", "BTC", "USDT", "Gone")], state="halted")
    crypto, halted = marketdata_pb2.ASSET_CLASS_CRYPTO, marketdata_pb2.INSTRUMENT_STATE_HALTED
    assert await find(caller, venue="NASDAQ") == ["NASDAQ:AAPL", "NASDAQ:MSFT"]
    assert await find(caller, quote_asset="BTC") == ["SIM:ETHBTC"]
    assert await find(caller, states=[halted]) == ["HAND:BTCOLD"]
    assert await find(caller, "bitcoin", asset_classes=[crypto], quote_asset="EUR") == ["SIM:BTCEUR"]
    assert await find(caller, "btcustd", base_asset="BTC", venue="SIM") == ["SIM:BTCUSDT", "SIM:BTCEUR"]


@pytest.mark.parametrize(
    "wrong", [{"venue": "sim"}, {"asset_classes": [0]}, {"base_asset": "b t"}, {"quote_asset": "usd"}, {"states": [7]}]
)
async def test_a_filter_that_nothing_can_meet_is_refused_by_its_name(caller, wrong):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await find(caller, **wrong)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(wrong)) in (caught.value.details() or "")


@pytest.mark.parametrize("query", ["", "btc", "bitcion"])
async def test_pages_follow_on_each_other_whatever_is_added_between(installation, known, caller, query):
    every = await find(caller, query)
    got: list[str] = []
    request = marketdata_pb2.SearchInstrumentsRequest(query=query, page_size=1)
    for number in itertools.count():
        page = await caller.ask("SearchInstruments", request)
        got += [found.instrument_id for found in page.instruments]
        if not (token := page.next_page_token):
            break
        request.page_token = token
        # Before where the page ended, so that counting from the start would repeat an instrument.
        await add(installation, [(f"AA:{number}BTC", "crypto", "BTC", "USD", f"{number}")] if number < 2 else [])
    assert [each for each in got if not each.startswith("AA:")] == every
    assert len(set(got)) == len(got) > 2


@pytest.mark.parametrize("token", ["nonsense", "WyJhIl0", search.token_after(Place(4, -1, "A:B"))])
async def test_a_token_of_another_list_is_refused(known, caller, token):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await find(caller, "btc", page_token=token)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_without_trigrams_words_are_still_found(installation, known, caller):
    async with installation.connect() as superuser, superuser.transaction():
        # In the order in which the service's statements lock them, or one would wait for the other.
        await superuser.execute("LOCK TABLE marketdata.instruments, marketdata.instrument_words")
        await superuser.execute("DROP EXTENSION pg_trgm CASCADE")
    assert (await find(caller, "btc/usdt"))[:2] == ["KRAKEN:BTC/USDT", "SIM:BTCUSDT"]
    assert await find(caller, "crosoft") == ["NASDAQ:MSFT"]
    assert await find(caller, "micorsoft") == []


async def test_trigrams_that_somebody_else_installed_are_used_where_they_are(installation, known, caller):
    async with installation.connect() as superuser:
        await superuser.execute("CREATE SCHEMA elsewhere")
        await superuser.execute("ALTER EXTENSION pg_trgm SET SCHEMA elsewhere")
        assert await find(caller, "micorsoft") == []  # no right to it
        await superuser.execute("GRANT USAGE ON SCHEMA elsewhere TO marketdata_rpc")
    assert await find(caller, "micorsoft") == ["NASDAQ:MSFT"]


def many() -> list[tuple[str, ...]]:
    """Pairs of made-up assets, and shares with made-up names."""
    syllables = ["ba", "ko", "ti", "ru", "se", "na", "lo", "mi", "xe", "du", "fa", "go"]
    names = ["".join(parts) for parts in itertools.product(syllables, repeat=4)]
    quotes = ["USDT", "USD", "EUR", "BTC", "GBP"]
    rows = []
    for number, (name, quote) in enumerate(itertools.product(names, quotes)):
        if len(rows) == MANY - len(KNOWN):
            break
        symbol = f"{name[:2]}{name[4:6]}{number % 100}".upper()
        rows.append(
            (f"V{number % 7}X:{name.upper()}{quote}", "crypto", symbol, quote, f"{name}coin in {quote} {number}")
        )
    return rows


async def test_among_twenty_thousand_an_index_finds_words_and_words_alike(installation, known):
    await add(installation, many())
    async with open_database(installation.url("marketdata_rpc"), 1) as database:
        async with database.transaction() as rows:
            assert await rows.fetchval("SELECT count(*) FROM instruments") == MANY
            anything = InstrumentFilter()
            plan = await explained(rows, search.most_alike("bitcion", "marketdata"))
            assert "Bitmap Index Scan on instrument_words_alike" in plan
            others = {"bitcion": {"bitcoin": 333}}
            kotcoin = await search.words_alike(rows, ["kotcoin"])
            assert len(kotcoin["kotcoin"]) == search.ALIKE_WORDS_MAX
            for statement in (
                search.spelled_so(["bitcoin", "usd"], anything, None, 51),
                search.spelled_so(["btcusdt"], anything, None, 51),
                search.alike(["bitcion"], others, anything, None, 51),
                search.alike(["bitcion", "usdt"], others, anything, None, 51),
                search.alike(["kotcoin"], kotcoin, anything, None, 51),
                search.alike(["kotcoin", "gbp"], kotcoin, anything, None, 51),
            ):
                plan = await explained(rows, statement)
                assert "Bitmap Index Scan on instruments_search" in plan
                assert "Seq Scan" not in plan, plan
            for query in ("btcusdt", "bitcoin usd", "btcustd", "bakotiru", "bakotriu", "usdt", "b", "usdx", "kotcoin"):
                assert await search.search(rows, query, anything, None, 51), query


async def explained(rows: asyncpg.Connection, statement: search.Statement) -> str:
    plan = await rows.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) {statement.text}", *statement.arguments)
    return "\n".join(row[0] for row in plan)
