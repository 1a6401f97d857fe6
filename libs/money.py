"""Exact decimals: money, quantities and order prices. A float never holds any of them.

Importing this makes the arithmetic of the whole process exact: +, -, * and sum() of decimals return the exact result or
raise decimal.Inexact, never a rounded one. Rounding is asked for by name, here.
"""

import decimal
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, Inexact

# Room for the product of three numbers of 18 digits before and 18 after the point (price, quantity and a fee's rate),
# and for a sum of as many of them as there may be.
DIGITS = 128
TRAPPED = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
# For what is rounded on purpose.
CONTEXT = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=TRAPPED)
EXACT = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=[*TRAPPED, Inexact])
SCALE = Decimal("1e-18")
ZERO = Decimal(0)


def be_exact() -> None:
    """Make EXACT the context of this thread, of every later one, and of every task."""
    # A thread and a task without a context of its own begin with a copy of the default.
    decimal.DefaultContext.prec = EXACT.prec
    decimal.DefaultContext.rounding = EXACT.rounding
    decimal.DefaultContext.traps = EXACT.traps
    decimal.setcontext(EXACT.copy())


be_exact()


def multiply(first: Decimal, second: Decimal) -> Decimal:
    """The exact product."""
    return EXACT.multiply(first, second)


def divide(dividend: Decimal, divisor: Decimal) -> Decimal:
    """The quotient rounded half-even to 18 digits after the point."""
    return rounded(CONTEXT.divide(dividend, divisor))


def rounded(value: Decimal, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """The value with at most 18 digits after the point, as many as the contract lets a decimal have."""
    return value.quantize(SCALE, rounding=rounding, context=CONTEXT)


def is_multiple(value: Decimal, step: Decimal) -> bool:
    """Whether value lies on the grid of step."""
    return CONTEXT.remainder(value, step) == 0


def down_to(value: Decimal, step: Decimal) -> Decimal:
    """The largest multiple of step that is not further from zero than value."""
    steps = CONTEXT.divide(value, step).to_integral_value(ROUND_DOWN)
    return CONTEXT.multiply(steps, step)


def plain(value: Decimal) -> str:
    """Plain notation without exponent and without needless zeros, such as "0.25" or "-3"."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
