"""Exact decimals: money, quantities and order prices. A float never holds any of them."""

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal

# Room for the product of two numbers of 18 digits before and 18 after the point.
CONTEXT = Context(prec=76, rounding=ROUND_HALF_EVEN)
SCALE = Decimal("1e-18")
ZERO = Decimal(0)


def multiply(first: Decimal, second: Decimal) -> Decimal:
    """The exact product."""
    return CONTEXT.multiply(first, second)


def divide(dividend: Decimal, divisor: Decimal) -> Decimal:
    """The quotient rounded half-even to 18 digits after the point."""
    return CONTEXT.divide(dividend, divisor).quantize(SCALE, context=CONTEXT)


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
