"""Margin of linear perpetual futures: pure functions of exact decimals.

A linear contract is settled in the asset its price is in, so profit is quantity times the change of the price. Quantities are in
units of the base asset, positive for a long position and negative for a short one. The formulas are those that Binance publishes for
its USDⓈ-M futures in one-way mode ("How to Calculate Liquidation Price of USDⓈ-M Futures Contracts", "Leverage and Margin of
USDⓈ-M Futures", "Introduction to Binance Futures Funding Rates"); other venues of linear contracts use the same with tiers of their
own. What is not said to be rounded is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import Any

from libs.money import CONTEXT, SCALE, ZERO, plain

TIERS_MAX = 64
"""Of one instrument."""
ONE = Decimal(1)
RATE_STEP = Decimal("1e-8")
"""Rates that are worked out have so many digits after the point, as venues publish them."""
PAYMENT_STEP = Decimal("1e-8")
"""The smallest amount that venues settle."""


FUNDING_INTERVAL_SECONDS = 28_800
"""The usual one, for which interest is told: eight hours."""
FUNDING_DAMPER = Decimal("0.0005")
"""As long as the premium is no further from the interest, the rate is the interest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginTier:
    """What a position must be backed by from a notional on, up to where the next tier begins.

    The maintenance amount is what the whole notional at this tier's rate is more than tier by tier: with it taken off,
    maintenance margin does not jump where a tier begins.
    """

    notional_floor: Decimal
    initial_margin_rate: Decimal
    maintenance_margin_rate: Decimal
    maintenance_amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Perpetual:
    """The terms of a linear perpetual future."""

    settle_asset: str
    contract_size: Decimal
    """Units of the base asset in one contract at the venue."""
    leverage_max: Decimal
    margin_tiers: tuple[MarginTier, ...]
    """None on the way from a feed whose venue does not tell them."""
    funding_interval_seconds: int
    tiers_put: bool = False
    """Whether an operator put the highest leverage and the tiers, since the venue does not tell them."""

    def violations(self, quote_asset: str) -> dict[str, str]:
        """What is wrong with them for an instrument with this quote asset, by field; nothing if nothing is."""
        found: dict[str, str] = {}
        if self.settle_asset != quote_asset:
            found["settle_asset"] = f"must be {quote_asset}, the quote asset: inverse contracts are not brought"
        if self.contract_size <= ZERO:
            found["contract_size"] = "must be above zero"
        if self.leverage_max < ONE:
            found["leverage_max"] = "must be 1 or more"
        return found | {f"margin_tiers{where}": what for where, what in tier_violations(self.margin_tiers).items()}

    def to_json(self) -> dict[str, Any]:
        """As it is stored, with decimals as text."""
        tiers = [{name: plain(getattr(tier, name)) for name in MarginTier.__slots__} for tier in self.margin_tiers]
        return {
            "settle_asset": self.settle_asset,
            "contract_size": plain(self.contract_size),
            "leverage_max": plain(self.leverage_max),
            "margin_tiers": tiers,
            "funding_interval_seconds": self.funding_interval_seconds,
            **({"tiers_put": True} if self.tiers_put else {}),
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "Perpetual":
        """What to_json made."""
        return Perpetual(
            settle_asset=stored["settle_asset"],
            contract_size=Decimal(stored["contract_size"]),
            leverage_max=Decimal(stored["leverage_max"]),
            margin_tiers=tuple(
                MarginTier(**{name: Decimal(text) for name, text in tier.items()}) for tier in stored["margin_tiers"]
            ),
            funding_interval_seconds=stored["funding_interval_seconds"],
            tiers_put=stored.get("tiers_put", False),
        )


def usual_tiers(leverage_max: Decimal) -> tuple[MarginTier, ...]:
    """Of an instrument whose venue keeps its tiers to itself: one, whose initial margin rate is 1 / leverage_max.

    Rounded up to RATE_STEP; half of it for maintenance.
    """
    initial = _stepped(CONTEXT.divide(ONE, leverage_max), RATE_STEP, ROUND_CEILING)
    return (
        MarginTier(
            notional_floor=ZERO,
            initial_margin_rate=initial,
            maintenance_margin_rate=CONTEXT.divide(initial, Decimal(2)),
            maintenance_amount=ZERO,
        ),
    )


def tier_violations(tiers: Sequence[MarginTier]) -> dict[str, str]:
    """What is wrong with tiers, by field such as "[1].notional_floor"; nothing if nothing is."""
    if not 1 <= len(tiers) <= TIERS_MAX:
        return {"": f"must be from 1 to {TIERS_MAX} tiers"}
    found: dict[str, str] = {}
    if tiers[0].notional_floor != ZERO:
        found["[0].notional_floor"] = "must be 0"
    if tiers[0].maintenance_amount != ZERO:
        found["[0].maintenance_amount"] = "must be 0"
    for number, tier in enumerate(tiers):
        if not ZERO < tier.initial_margin_rate <= ONE:
            found[f"[{number}].initial_margin_rate"] = "must be above 0 and no more than 1"
        if not ZERO < tier.maintenance_margin_rate < ONE:
            found[f"[{number}].maintenance_margin_rate"] = "must be above 0 and below 1"
        elif tier.maintenance_margin_rate > tier.initial_margin_rate:
            found[f"[{number}].maintenance_margin_rate"] = "must not be above the initial_margin_rate"
    for number, (before, tier) in enumerate(pairwise(tiers), 1):
        if tier.notional_floor <= before.notional_floor:
            found[f"[{number}].notional_floor"] = "must be above that of the tier before"
        for name in ("initial_margin_rate", "maintenance_margin_rate"):
            if getattr(tier, name) < getattr(before, name):
                found.setdefault(f"[{number}].{name}", "must not be below that of the tier before")
        steeper = tier.maintenance_margin_rate - before.maintenance_margin_rate
        amount = before.maintenance_amount + tier.notional_floor * steeper
        if tier.maintenance_amount != amount:
            found[f"[{number}].maintenance_amount"] = f"must be {plain(amount)}, or maintenance margin jumps"
    return found


def notional(quantity: Decimal, price: Decimal) -> Decimal:
    """What a position is worth: |quantity| * price."""
    return abs(quantity) * price


def tier_of(tiers: Sequence[MarginTier], position_notional: Decimal) -> MarginTier:
    """The tier that a notional falls in: the last that begins at it or below."""
    return [tier for tier in tiers if tier.notional_floor <= position_notional][-1]


def initial_margin(position_notional: Decimal, leverage: Decimal, tiers: Sequence[MarginTier]) -> Decimal:
    """What opening takes: notional / leverage, and no less than notional * the tier's initial margin rate.

    Rounded up to 18 digits after the point.
    """
    by_leverage = CONTEXT.divide(position_notional, leverage)
    least = position_notional * tier_of(tiers, position_notional).initial_margin_rate
    return _stepped(max(by_leverage, least), SCALE, ROUND_CEILING)


def maintenance_margin(position_notional: Decimal, tiers: Sequence[MarginTier]) -> Decimal:
    """What holding takes: notional * maintenance margin rate - maintenance amount, both of the tier it falls in."""
    tier = tier_of(tiers, position_notional)
    return position_notional * tier.maintenance_margin_rate - tier.maintenance_amount


def unrealised_profit(quantity: Decimal, entry_price: Decimal, mark_price: Decimal) -> Decimal:
    """What closing at the mark price would bring: quantity * (mark price - entry price); a loss is negative."""
    return quantity * (mark_price - entry_price)


def margin_ratio(maintenance: Decimal, margin_balance: Decimal) -> Decimal | None:
    """Maintenance margin / margin balance, where margin balance is wallet balance + unrealised profit: liquidation is at 1.

    Rounded up to RATE_STEP, so that what is shown is never better than it is. None where the balance is used up, which is beyond.
    """
    if margin_balance <= ZERO:
        return None
    return _stepped(CONTEXT.divide(maintenance, margin_balance), RATE_STEP, ROUND_CEILING)


def liquidation_price(
    quantity: Decimal,
    entry_price: Decimal,
    wallet_balance: Decimal,
    tiers: Sequence[MarginTier],
    *,
    other_maintenance: Decimal = ZERO,
    other_profit: Decimal = ZERO,
    step: Decimal = SCALE,
) -> Decimal | None:
    """The mark price at which margin balance is maintenance margin, while all other positions stand as they are.

        LP = (WB - TMM1 + UPNL1 + cumB - Side*Q*EP) / (Q*MMR - Side*Q)

    WB is the wallet balance, TMM1 and UPNL1 the maintenance margin and the unrealised profit of the other positions, Q the quantity
    without its sign, EP the entry price, and cumB and MMR the amount and the rate of the tier that the notional at LP falls in, which
    may be another than now. In isolated margin WB is what was set apart for the position, TMM1 and UPNL1 are 0.

    Rounded to `step` towards being liquidated sooner: up for a long position, down for a short one. A long position is liquidated at
    this price and below it, a short one at it and above: so 0 says of a short one that every price does. None where no price above
    zero does: of a long position that is backed whole, and where there is none.
    """
    if quantity == ZERO:
        return None
    side = ONE if quantity > ZERO else -ONE
    fixed = wallet_balance - other_maintenance + other_profit - quantity * entry_price

    def excess(tier: MarginTier) -> Decimal:
        """Margin balance less maintenance margin where the tier begins."""
        at = tier.notional_floor
        return fixed + side * at - (at * tier.maintenance_margin_rate - tier.maintenance_amount)

    # The excess only rises with the price of a long position and only falls with that of a short one, and does not jump: so it is
    # zero in the last tier that begins before it is.
    reached = [tier for tier in tiers[:TIERS_MAX] if side * excess(tier) <= ZERO]
    if not reached:
        return None if quantity > ZERO else ZERO
    tier = reached[-1]
    dividend = fixed + tier.maintenance_amount
    divisor = abs(quantity) * tier.maintenance_margin_rate - quantity
    price = _divided(dividend, divisor, step, ROUND_CEILING if quantity > ZERO else ROUND_FLOOR)
    return price if price > ZERO or quantity < ZERO else None


def bankruptcy_price(
    quantity: Decimal,
    entry_price: Decimal,
    wallet_balance: Decimal,
    *,
    other_profit: Decimal = ZERO,
    step: Decimal = SCALE,
) -> Decimal | None:
    """The mark price at which margin balance is zero: EP - (WB + UPNL1) / (Side*Q).

    Rounded as a liquidation price is, and 0 or None where that is.
    """
    if quantity == ZERO:
        return None
    dividend = quantity * entry_price - wallet_balance - other_profit
    price = _divided(dividend, quantity, step, ROUND_CEILING if quantity > ZERO else ROUND_FLOOR)
    if price > ZERO:
        return price
    return None if quantity > ZERO else ZERO


def funding_payment(quantity: Decimal, mark_price: Decimal, rate: Decimal, step: Decimal = PAYMENT_STEP) -> Decimal:
    """What a settlement adds to the wallet: -(quantity * mark price * rate). Where the rate is positive, longs pay shorts.

    Rounded half-even to `step`, so that what one side pays is what the other is paid.
    """
    return _stepped(-(quantity * mark_price * rate), step, ROUND_HALF_EVEN)


def funding_rate(premium: Decimal, interest: Decimal, interval_seconds: int) -> Decimal:
    """The rate of an interval by its average premium index: (premium + clamp(interest - premium, ±0.05 %)) / (8 h / interval).

    `interest` is for eight hours. Rounded half-even to RATE_STEP.
    """
    damped = min(max(interest - premium, -FUNDING_DAMPER), FUNDING_DAMPER)
    dividend = (premium + damped) * interval_seconds
    return _divided(dividend, Decimal(FUNDING_INTERVAL_SECONDS), RATE_STEP, ROUND_HALF_EVEN)


def _stepped(value: Decimal, step: Decimal, rounding: str) -> Decimal:
    return CONTEXT.divide(value, step).to_integral_value(rounding) * step


def _divided(dividend: Decimal, divisor: Decimal, step: Decimal, rounding: str) -> Decimal:
    return CONTEXT.divide(dividend, divisor * step).to_integral_value(rounding) * step
