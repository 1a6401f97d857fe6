"""Exact decimals stay exact."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from decimal import Context, Decimal, Inexact
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.money import SCALE, divide, down_to, is_multiple, multiply, plain, rounded

DECIMALS = st.decimals(min_value="-999999999999999999", max_value="999999999999999999", places=18)
LONG = Decimal("123456789012345678.123456789012345678")


def in_this_context(look: Callable[[], None]) -> None:
    look()


def in_a_context_of_its_own(look: Callable[[], None]) -> None:
    contextvars.Context().run(look)


def in_a_task(look: Callable[[], None]) -> None:
    async def task() -> None:
        look()

    asyncio.run(task())


def in_a_worker_of_the_loop(look: Callable[[], None]) -> None:
    asyncio.run(asyncio.to_thread(look))


def in_a_thread(look: Callable[[], None]) -> None:
    # What look raises there is a warning of pytest's, and warnings are errors.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "where", [in_this_context, in_a_context_of_its_own, in_a_task, in_a_worker_of_the_loop, in_a_thread]
)
def test_arithmetic_is_exact_or_an_error_wherever_it_runs(where: Callable[[Callable[[], None]], None]) -> None:
    def look() -> None:
        assert str(-LONG) == f"-{LONG}"
        assert str(LONG + 1) == "123456789012345679.123456789012345678"
        assert LONG * LONG - LONG * LONG == 0
        with pytest.raises(Inexact):
            Decimal(1) / 3

    where(look)


def test_a_context_that_somebody_makes_is_an_error_too_where_it_would_round() -> None:
    with pytest.raises(Inexact):
        Context(prec=28).add(LONG, 1)


@given(st.lists(DECIMALS, max_size=50))
def test_a_sum_loses_no_digit(values: list[Decimal]) -> None:
    assert Fraction(sum(values, Decimal(0))) == sum(map(Fraction, values))
    assert Fraction(sum((-value for value in values), Decimal(0))) == -sum(map(Fraction, values))


@given(DECIMALS, DECIMALS, DECIMALS)
def test_price_times_quantity_times_rate_loses_no_digit(price: Decimal, quantity: Decimal, rate: Decimal) -> None:
    assert Fraction(multiply(multiply(price, quantity), rate)) == Fraction(price) * Fraction(quantity) * Fraction(rate)


@given(DECIMALS, DECIMALS)
def test_what_is_rounded_is_as_near_as_eighteen_digits_allow(first: Decimal, second: Decimal) -> None:
    exact = multiply(first, second)
    assert abs(Fraction(rounded(exact)) - Fraction(exact)) <= Fraction(SCALE) / 2
    assert rounded(rounded(exact)) == rounded(exact)


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
