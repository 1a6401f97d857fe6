"""Exact decimals stay exact."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.money import divide, down_to, is_multiple, multiply, plain

DECIMALS = st.decimals(min_value="-999999999999999999", max_value="999999999999999999", places=18)


@given(DECIMALS, DECIMALS)
def test_a_product_loses_no_digit(first: Decimal, second: Decimal) -> None:
    assert Fraction(multiply(first, second)) == Fraction(first) * Fraction(second)


@given(DECIMALS)
def test_plain_text_reads_back_as_the_same_number(value: Decimal) -> None:
    assert Decimal(plain(value)) == value
    assert "E" not in plain(value)


@pytest.mark.parametrize(
    ("value", "text"), [("1E-8", "0.00000001"), ("1E+3", "1000"), ("-0", "0"), ("2.50", "2.5"), ("100", "100")]
)
def test_plain_text_has_no_exponent_and_no_needless_zero(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


@given(DECIMALS, st.integers(0, 18))
def test_a_number_brought_onto_a_grid_is_on_it_and_not_further_from_zero(value: Decimal, places: int) -> None:
    step = Decimal(1).scaleb(-places)
    on_grid = down_to(value, step)
    assert is_multiple(on_grid, step)
    assert abs(Fraction(on_grid)) <= abs(Fraction(value)) < abs(Fraction(on_grid)) + Fraction(step)


def test_a_quotient_is_rounded_half_even_at_eighteen_digits() -> None:
    assert divide(Decimal(2), Decimal(3)) == Decimal("0.666666666666666667")
