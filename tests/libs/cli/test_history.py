"""The made-up past of a simulated market, as a trader would look at it."""

import csv
import io
import math
import statistics
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from libs.cli.history import HISTORY_BARS, history_before
from services.feeds import wire
from services.feeds.sources.characters import CHARACTERS

END = datetime(2026, 3, 1, 0, 7, tzinfo=UTC)
MINUTES_IN_YEAR = 525_600

pytestmark = pytest.mark.parametrize("character", CHARACTERS.values(), ids=CHARACTERS)


def bars_of(character) -> list[dict[str, str]]:
    content = history_before(wire.instrument_to_proto(character.instrument), END, character.base_price)
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_it_is_one_day_without_a_gap_up_to_its_end(character):
    bars = bars_of(character)
    times = [datetime.fromisoformat(bar["timestamp"]).replace(tzinfo=UTC) for bar in bars]
    assert times == [END - timedelta(minutes=minutes) for minutes in range(HISTORY_BARS, 0, -1)]
    assert [bar["close"] for bar in bars[:-1]] == [bar["open"] for bar in bars[1:]]
    assert Decimal(bars[-1]["close"]) == Decimal(str(character.base_price))


def test_every_price_is_one_that_could_be_traded(character):
    tick_size = character.instrument.tick_size
    for bar in bars_of(character):
        opened, high, low, close = (Decimal(bar[name]) for name in ("open", "high", "low", "close"))
        assert low <= min(opened, close) <= max(opened, close) <= high
        assert not any(price % tick_size for price in (opened, high, low, close))
        assert float(bar["volume"]) > 0


def test_it_moves_about_as_much_as_the_market_that_follows(character):
    closes = [float(bar["close"]) for bar in bars_of(character)]
    moves = [math.log(after / before) for before, after in pairwise(closes)]
    yearly = statistics.pstdev(moves) * math.sqrt(MINUTES_IN_YEAR)
    assert character.yearly_volatility * 0.5 < yearly < character.yearly_volatility * 2


def test_it_is_the_same_each_time_and_another_for_another_beginning(character):
    instrument = wire.instrument_to_proto(character.instrument)
    first = history_before(instrument, END, character.base_price)
    assert history_before(instrument, END, character.base_price) == first
    assert history_before(instrument, END + timedelta(minutes=1), character.base_price) != first
