from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.matching.grid import Grid, fee
from libs.matching.orders import Level

GRID = Grid(Decimal("0.05"), Decimal("0.001"))


def test_prices_and_quantities_become_whole_steps_and_come_back_unchanged():
    assert GRID.price_ticks(Decimal("100.15")) == 2003
    assert GRID.price(2003) == Decimal("100.15")
    assert GRID.quantity_lots(Decimal("0.3")) == 300
    assert GRID.quantity(300) == Decimal("0.3")


@pytest.mark.parametrize("price", ["100.151", "0.01"])
def test_a_price_off_the_grid_is_refused_and_never_rounded(price: str):
    with pytest.raises(ValueError, match="not a multiple"):
        GRID.price_ticks(Decimal(price))


def test_a_quantity_beyond_64_bits_is_refused():
    with pytest.raises(ValueError, match="more than"):
        GRID.quantity_lots(Decimal(10) ** 17)


def test_a_print_between_ticks_goes_to_the_nearest_and_loses_the_part_of_a_lot():
    assert GRID.trade(7, 100.16, 0.0029) == (7, 2003, 2)
    assert GRID.trade(7, 0.1 + 0.2, 0.3).quantity_lots == 300


def test_a_book_between_ticks_never_offers_a_better_price_than_the_market():
    book = GRID.book(7, bids=[(100.16, 1.0), (100.1, 2.0)], asks=[(100.21, 1.0), (100.3, 2.0)])
    assert book.bids == (Level(2003, 1000), Level(2002, 2000))
    assert book.asks == (Level(2005, 1000), Level(2006, 2000))


def test_fees_are_exact_and_rounded_up_only_at_the_eighteenth_digit():
    assert fee(Decimal("61234.56"), Decimal("0.25"), Decimal("0.001")) == Decimal("15.30864")
    assert fee(Decimal("0.000000000000000001"), Decimal("0.1"), Decimal("0.001")) == Decimal("1e-18")


@given(
    ticks=st.integers(min_value=1, max_value=2**53),
    exponent=st.integers(min_value=-10, max_value=2),
)
def test_every_price_of_the_grid_survives_being_a_double(ticks: int, exponent: int):
    grid = Grid(Decimal(1).scaleb(exponent), Decimal(1))
    ticks = min(ticks, 10**14)
    assert grid.trade(0, float(grid.price(ticks)), 1.0).price_ticks == ticks
