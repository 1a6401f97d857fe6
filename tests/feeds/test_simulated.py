import time
from itertools import islice

import numpy as np
import pytest

from services.feeds.domain import Book, Tick
from services.feeds.sources.characters import CHARACTERS
from services.feeds.sources.simulated import BLOCK_SECONDS, BOOK_LEVELS, SimulatedMarket

BLOCK_NS = BLOCK_SECONDS * 1_000_000_000
PERP = "SIM:BTCUSDT-PERP"
MARKET = SimulatedMarket(seed=20261122)
ALIKE = "SIM:ETHUSDT-PERP"
"""Made as PERP is: what holds of one holds of the other."""
INSTRUMENTS = sorted(CHARACTERS.keys() - {ALIKE})
BLOCKS = range(250)


@pytest.fixture(scope="module")
def hour():
    """A bit more than an hour of each instrument, made once."""
    return {instrument_id: [MARKET.block(instrument_id, index) for index in BLOCKS] for instrument_id in INSTRUMENTS}


def events(market: SimulatedMarket, instrument_id: str, count: int, after_ns: int = -1):
    return list(islice(market.events_after(instrument_id, after_ns, 0), count))


def test_it_brings_six_spot_markets_and_two_perpetual_futures():
    assert sorted(CHARACTERS) == [
        "SIM:AAPL",
        "SIM:BTCUSDT",
        PERP,
        "SIM:ETHUSDT",
        ALIKE,
        "SIM:EURUSD",
        "SIM:MSFT",
        "SIM:SOLUSDT",
    ]


def test_the_same_seed_makes_the_same_market_and_another_seed_another():
    again, other = SimulatedMarket(seed=20261122), SimulatedMarket(seed=1)
    for instrument_id in INSTRUMENTS:
        assert events(MARKET, instrument_id, 500) == events(again, instrument_id, 500)
        assert events(MARKET, instrument_id, 500) != events(other, instrument_id, 500)


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_it_goes_on_after_any_event_as_if_it_had_never_stopped(instrument_id: str):
    whole = events(MARKET, instrument_id, 700)
    for stopped_after in (0, 1, 77, 160, 333, 498):
        resumed = events(SimulatedMarket(seed=20261122), instrument_id, 200, whole[stopped_after].time_ns)
        assert resumed == whole[stopped_after + 1 : stopped_after + 201]


def test_every_block_boundary_can_be_resumed_at(hour):
    for index in range(1, 6):
        first = events(MARKET, "SIM:BTCUSDT", 1, index * BLOCK_NS - 1)[0]
        trades, books = hour["SIM:BTCUSDT"][index]
        assert first.time_ns == min(trades.time_ns[0], books.time_ns[0])


def test_of_each_second_one_book_tells_the_time_though_nothing_trades():
    quiet = events(SimulatedMarket(seed=1, trades_per_second=0.001), "SIM:BTCUSDT", 500)
    times = [event.time_ns // 1_000_000_000 for event in quiet if isinstance(event, Book) and event.tells_time]
    assert times == list(range(len(times)))
    assert len(times) > 40
    assert sum(isinstance(event, Tick) for event in quiet) < 20


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_events_have_rising_times_within_their_blocks(hour, instrument_id: str):
    for index, (trades, books) in enumerate(hour[instrument_id]):
        for times in (trades.time_ns, books.time_ns):
            assert (np.diff(times) > 0).all()
            assert (times >= index * BLOCK_NS).all()
            assert (times < (index + 1) * BLOCK_NS).all()
        assert not np.intersect1d(trades.time_ns, books.time_ns).size


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_books_have_ten_levels_a_side_and_are_never_crossed(hour, instrument_id: str):
    for _, books in hour[instrument_id]:
        assert books.bid_ticks.shape[1] == books.ask_ticks.shape[1] == BOOK_LEVELS
        assert (books.bid_ticks[:, 0] < books.ask_ticks[:, 0]).all()
        assert (np.diff(books.bid_ticks, axis=1) < 0).all()
        assert (np.diff(books.ask_ticks, axis=1) > 0).all()
        assert (books.bid_ticks > 0).all()
        assert (books.bid_lots > 0).all()
        assert (books.ask_lots > 0).all()


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_prices_and_quantities_are_the_doubles_of_decimals_on_the_grid(instrument_id: str):
    instrument = CHARACTERS[instrument_id].instrument
    tick, lot = float(instrument.tick_size), float(instrument.lot_size)
    places = -int(instrument.tick_size.as_tuple().exponent), -int(instrument.lot_size.as_tuple().exponent)
    for event in events(MARKET, instrument_id, 600):
        levels = [*event.bids, *event.asks] if isinstance(event, Book) else [(event.price, event.quantity)]
        for price, quantity in levels:
            assert price == round(round(price / tick) * tick, places[0])
            assert quantity == round(round(quantity / lot) * lot, places[1])


def test_a_trade_names_the_simulated_time_it_is_found_again_by():
    offset_ns = 1_790_000_000_000_000_000
    moved = list(islice(MARKET.events_after("SIM:AAPL", -1, offset_ns), 300))
    plain = events(MARKET, "SIM:AAPL", 300)
    assert [event.time_ns - offset_ns for event in moved] == [event.time_ns for event in plain]
    assert all(event.trade_id == str(event.time_ns) for event in plain if isinstance(event, Tick))
    assert [event.trade_id for event in moved if isinstance(event, Tick)] == [
        event.trade_id for event in plain if isinstance(event, Tick)
    ]


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_trades_come_in_bursts_at_the_chosen_rate(hour, instrument_id: str):
    times = np.concatenate([trades.time_ns for trades, _ in hour[instrument_id]]) / 1e9
    assert len(times) / (len(BLOCKS) * BLOCK_SECONDS) == pytest.approx(MARKET.trades_per_second, rel=0.2)
    gaps = np.diff(times)
    # Independent arrivals would have a deviation of one mean.
    assert gaps.std() / gaps.mean() > 1.5


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_its_volatility_is_the_instruments_own(hour, instrument_id: str):
    middles = np.concatenate(
        [(books.bid_ticks[:, 0] + books.ask_ticks[:, 0]) / 2 for _, books in hour[instrument_id]]
    ).astype(float)
    every_seconds = 30
    returns = np.diff(np.log(middles[:: every_seconds * 5]))
    yearly = returns.std() * np.sqrt(365 * 86_400 / every_seconds)
    assert yearly == pytest.approx(CHARACTERS[instrument_id].yearly_volatility, rel=0.35)


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
def test_the_price_does_not_jump_where_a_block_ends(hour, instrument_id: str):
    middles = np.concatenate([(books.bid_ticks[:, 0] + books.ask_ticks[:, 0]) / 2 for _, books in hour[instrument_id]])
    steps = np.abs(np.diff(middles)).astype(float)
    at_blocks = steps[len(hour[instrument_id][0][1].time_ns) - 1 :: len(hour[instrument_id][0][1].time_ns)]
    assert at_blocks.mean() < 2 * steps.mean() + 1


def test_prices_bounce_between_bid_and_ask(hour):
    changes = np.diff(np.concatenate([trades.price_ticks for trades, _ in hour["SIM:AAPL"]]).astype(float))
    assert np.corrcoef(changes[1:], changes[:-1])[0, 1] < -0.15


def test_buying_pushes_the_price_up(hour):
    pushes = []
    for trades, books in hour["SIM:ETHUSDT"]:
        signs = np.where(trades.is_buyer, 1, -1)
        middle = (books.bid_ticks[:, 0] + books.ask_ticks[:, 0]) / 2
        flow = np.add.reduceat(signs, np.searchsorted(trades.time_ns, books.time_ns[:-1]).clip(max=len(signs) - 1))
        pushes.append(np.corrcoef(flow, np.diff(middle))[0, 1])
    assert np.mean(pushes) > 0.05


def test_the_spread_returns_to_its_mean(hour):
    spread = np.concatenate([books.ask_ticks[:, 0] - books.bid_ticks[:, 0] for _, books in hour["SIM:BTCUSDT"]])
    assert spread.mean() == pytest.approx(CHARACTERS["SIM:BTCUSDT"].spread_ticks, rel=0.3)
    near = np.corrcoef(spread[1:], spread[:-1])[0, 1]
    far = np.corrcoef(spread[200:], spread[:-200])[0, 1]
    assert near > 0.8
    assert abs(far) < 0.2


def test_crypto_moves_together_and_currencies_do_not_follow_it(hour):
    def returns(instrument_id: str):
        last = [float(books.bid_ticks[-1, 0]) for _, books in hour[instrument_id]]
        return np.diff(np.log(last))

    assert np.corrcoef(returns("SIM:BTCUSDT"), returns("SIM:ETHUSDT"))[0, 1] > 0.5
    assert abs(np.corrcoef(returns("SIM:BTCUSDT"), returns("SIM:EURUSD"))[0, 1]) < 0.3


def test_prices_stay_in_a_sensible_range_for_years():
    for instrument_id in INSTRUMENTS:
        character = CHARACTERS[instrument_id]
        for day in range(0, 3650, 73):
            trades, _ = MARKET.block(instrument_id, day * 86_400 // BLOCK_SECONDS)
            price = float(trades.price_ticks.mean()) * float(character.instrument.tick_size)
            assert 0.1 < price / character.base_price < 10


def test_a_busy_market_is_made_faster_than_any_stream_could_carry_it():
    """200,000 ticks a second of the processor's own time, so that other processes do not matter."""
    market = SimulatedMarket(seed=1, trades_per_second=2000)
    market.block("SIM:BTCUSDT", 0)
    start = time.process_time()
    made = sum(len(market.block("SIM:BTCUSDT", index)[0].time_ns) for index in range(1, 9))
    assert made / (time.process_time() - start) > 200_000
