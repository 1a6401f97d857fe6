"""Margin of linear perpetuals: the venue's own examples, and what must hold of any position."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.margin import (
    PAYMENT_STEP,
    TIERS_MAX,
    MarginTier,
    bankruptcy_price,
    funding_payment,
    funding_rate,
    initial_margin,
    liquidation_price,
    maintenance_margin,
    margin_ratio,
    notional,
    tier_of,
    tier_violations,
    unrealised_profit,
    usual_tiers,
)
from libs.money import CONTEXT, ZERO

CENT = Decimal("0.01")


def tiers_of(*rows: tuple[str, str, str, str]) -> tuple[MarginTier, ...]:
    return tuple(
        MarginTier(
            notional_floor=Decimal(floor),
            initial_margin_rate=Decimal(initial),
            maintenance_margin_rate=Decimal(maintenance),
            maintenance_amount=Decimal(amount),
        )
        for floor, initial, maintenance, amount in rows
    )


# Binance's brackets of the time of its example.
BTC_TIERS = tiers_of(
    ("0", "0.008", "0.004", "0"),
    ("50000", "0.01", "0.005", "50"),
    ("250000", "0.02", "0.01", "1300"),
    ("1000000", "0.05", "0.025", "16300"),
    ("5000000", "0.1", "0.05", "141300"),
    ("20000000", "0.2", "0.1", "1141300"),
)
ETH_TIERS = tiers_of(
    ("0", "0.01", "0.005", "0"),
    ("10000", "0.0133", "0.0065", "15"),
    ("100000", "0.02", "0.01", "365"),
    ("500000", "0.04", "0.02", "5365"),
    ("1000000", "0.1", "0.05", "35365"),
    ("2000000", "0.2", "0.1", "135365"),
    ("5000000", "0.25", "0.125", "260365"),
)


def test_the_venues_example_of_two_positions_under_cross_margin():
    """Binance, "How to Calculate Liquidation Price of USDⓈ-M Futures Contracts": one wallet of 1,535,443.01 USDT."""
    wallet = Decimal("1535443.01")
    eth, eth_entry, eth_mark = Decimal("3683.979"), Decimal("1456.84"), Decimal("1335.18")
    btc, btc_entry, btc_mark = Decimal("109.488"), Decimal("32481.980"), Decimal("31967.27")
    eth_maintenance = maintenance_margin(notional(eth, eth_mark), ETH_TIERS)
    btc_maintenance = maintenance_margin(notional(btc, btc_mark), BTC_TIERS)
    eth_profit, btc_profit = unrealised_profit(eth, eth_entry, eth_mark), unrealised_profit(btc, btc_entry, btc_mark)
    assert eth_maintenance.quantize(CENT, context=CONTEXT) == Decimal("356512.51")
    assert btc_maintenance.quantize(CENT, context=CONTEXT) == Decimal("71200.81")
    assert eth_profit.quantize(CENT, context=CONTEXT) == Decimal("-448192.89")
    assert btc_profit.quantize(CENT, context=CONTEXT) == Decimal("-56354.57")

    of_btc = liquidation_price(
        btc, btc_entry, wallet, BTC_TIERS, other_maintenance=eth_maintenance, other_profit=eth_profit
    )
    of_eth = liquidation_price(
        eth, eth_entry, wallet, ETH_TIERS, other_maintenance=btc_maintenance, other_profit=btc_profit
    )
    assert of_btc is not None and of_eth is not None
    assert of_btc.quantize(CENT, context=CONTEXT) == Decimal("26316.89")
    # Now in the seventh tier by its entry, at this price in the sixth, whose rate counts.
    assert of_eth.quantize(CENT, context=CONTEXT) == Decimal("1153.26")


def test_funding_is_paid_by_longs_where_the_rate_is_positive():
    # Ten bitcoins at 11,329.52 and a rate of 0.0001: 11.32952.
    assert funding_payment(Decimal(10), Decimal("11329.52"), Decimal("0.0001")) == Decimal("-11.32952")
    assert funding_payment(Decimal(-10), Decimal("11329.52"), Decimal("0.0001")) == Decimal("11.32952")
    assert funding_payment(Decimal(10), Decimal("11329.52"), Decimal("-0.0001")) == Decimal("11.32952")


@pytest.mark.parametrize(
    ("premium", "hours", "rate"),
    [
        ("0", 8, "0.0001"),  # within the damper it is the interest
        ("0.0005", 8, "0.0001"),
        ("-0.0004", 8, "0.0001"),
        ("0.0008", 8, "0.0003"),  # beyond it follows the premium
        ("-0.0008", 8, "-0.0003"),
        ("0.0008", 4, "0.00015"),  # half the time, half the rate
    ],
)
def test_a_funding_rate_is_the_premium_damped_towards_the_interest(premium: str, hours: int, rate: str):
    assert funding_rate(Decimal(premium), Decimal("0.0001"), hours * 3_600) == Decimal(rate)


def test_what_is_backed_whole_is_never_liquidated_and_what_is_not_backed_at_all_always():
    quantity, entry = Decimal(2), Decimal(100)
    assert liquidation_price(quantity, entry, Decimal(200), BTC_TIERS) is None
    assert bankruptcy_price(quantity, entry, Decimal(200)) is None
    assert liquidation_price(-quantity, entry, Decimal(-201), BTC_TIERS) == ZERO
    assert bankruptcy_price(-quantity, entry, Decimal(-201)) == ZERO
    assert liquidation_price(ZERO, entry, Decimal(1), BTC_TIERS) is None


def test_the_margin_ratio_says_nothing_where_nothing_is_left():
    assert margin_ratio(Decimal(1), Decimal(3)) == Decimal("0.33333334")
    assert margin_ratio(Decimal(1), ZERO) is None


def test_tiers_that_are_sound_pass_and_wrong_ones_are_named():
    assert tier_violations(BTC_TIERS) == tier_violations(ETH_TIERS) == {}
    assert tier_violations(usual_tiers(Decimal(7))) == {}
    assert usual_tiers(Decimal(7))[0].initial_margin_rate == Decimal("0.14285715")
    assert set(tier_violations([])) == set(tier_violations(BTC_TIERS[:1] * (TIERS_MAX + 1))) == {""}
    jumping = [*BTC_TIERS[:2], replace(BTC_TIERS[2], maintenance_amount=Decimal(1299))]
    assert tier_violations(jumping) == {"[2].maintenance_amount": "must be 1300, or maintenance margin jumps"}
    wrong = tiers_of(("1", "0", "0.1", "0"), ("1", "0.05", "1", "1"))
    assert set(tier_violations(wrong)) == {
        "[0].notional_floor",
        "[0].initial_margin_rate",
        "[0].maintenance_margin_rate",
        "[1].notional_floor",
        "[1].maintenance_margin_rate",
        "[1].maintenance_amount",
    }


def places(number: int, low: str, high: str) -> st.SearchStrategy[Decimal]:
    return st.decimals(low, high, places=number, allow_nan=False, allow_infinity=False)


QUANTITIES = st.builds(lambda size, side: size * side, places(3, "0.001", "500"), st.sampled_from((1, -1)))
PRICES = places(2, "10", "90000")
WALLETS = places(2, "0.01", "2000000")
LEVERAGES = st.integers(1, 125).map(Decimal)
TIERS = st.sampled_from((BTC_TIERS, ETH_TIERS, usual_tiers(Decimal(20))))


def excess_at(
    price: Decimal, quantity: Decimal, entry: Decimal, wallet: Decimal, tiers: Sequence[MarginTier]
) -> Decimal:
    balance = wallet + unrealised_profit(quantity, entry, price)
    return balance - maintenance_margin(notional(quantity, price), tiers)


@given(QUANTITIES, PRICES, WALLETS, TIERS, st.sampled_from((Decimal("1e-18"), CENT)))
def test_at_the_liquidation_price_the_margin_balance_is_the_maintenance_margin(
    quantity: Decimal, entry: Decimal, wallet: Decimal, tiers: tuple[MarginTier, ...], step: Decimal
):
    price = liquidation_price(quantity, entry, wallet, tiers, step=step)
    if price is None:
        assert quantity > ZERO
        assert excess_at(ZERO, quantity, entry, wallet, tiers) >= ZERO
        return
    # At the price, rounded towards liquidation, there still is as much as it takes; a step beyond there is less.
    beyond = price - step if quantity > ZERO else price + step
    assert excess_at(price, quantity, entry, wallet, tiers) >= ZERO
    assert excess_at(beyond, quantity, entry, wallet, tiers) < ZERO
    assert tier_of(tiers, notional(quantity, price)) in tiers


@given(QUANTITIES, PRICES, WALLETS, TIERS)
def test_what_others_take_and_bring_counts_as_if_it_were_in_the_wallet(
    quantity: Decimal, entry: Decimal, wallet: Decimal, tiers: tuple[MarginTier, ...]
):
    taken, brought = Decimal("12.5"), Decimal("-3.25")
    crossed = liquidation_price(quantity, entry, wallet, tiers, other_maintenance=taken, other_profit=brought)
    assert crossed == liquidation_price(quantity, entry, wallet - taken + brought, tiers)


@given(QUANTITIES, PRICES, WALLETS, places(2, "0.01", "5000"), TIERS)
def test_more_in_the_wallet_moves_liquidation_away(
    quantity: Decimal, entry: Decimal, wallet: Decimal, more: Decimal, tiers: tuple[MarginTier, ...]
):
    less_backed = liquidation_price(quantity, entry, wallet, tiers)
    backed = liquidation_price(quantity, entry, wallet + more, tiers)
    if quantity < ZERO:
        assert less_backed is not None and backed is not None and backed > less_backed
    elif backed is not None:
        assert less_backed is not None and backed < less_backed


@given(QUANTITIES, PRICES, LEVERAGES, LEVERAGES, TIERS)
def test_higher_leverage_takes_no_more_margin_and_is_liquidated_no_later(
    quantity: Decimal, entry: Decimal, one: Decimal, other: Decimal, tiers: tuple[MarginTier, ...]
):
    low, high = sorted((one, other))
    value = notional(quantity, entry)
    much, little = initial_margin(value, low, tiers), initial_margin(value, high, tiers)
    assert much >= little >= value * tier_of(tiers, value).initial_margin_rate
    assert little >= maintenance_margin(value, tiers)
    near, far = (liquidation_price(quantity, entry, wallet, tiers) for wallet in (little, much))
    assert near is not None or far is None
    if near is not None and far is not None:
        assert near >= far if quantity > ZERO else near <= far


@given(QUANTITIES, PRICES, WALLETS, TIERS)
def test_bankruptcy_lies_beyond_liquidation(
    quantity: Decimal, entry: Decimal, wallet: Decimal, tiers: tuple[MarginTier, ...]
):
    liquidated = liquidation_price(quantity, entry, wallet, tiers)
    bankrupt = bankruptcy_price(quantity, entry, wallet)
    if bankrupt is not None:
        assert liquidated is not None
        assert bankrupt <= liquidated if quantity > ZERO else bankrupt >= liquidated
        beyond = Decimal("1e-18").copy_sign(quantity)
        assert wallet + unrealised_profit(quantity, entry, bankrupt) >= ZERO
        assert wallet + unrealised_profit(quantity, entry, bankrupt - beyond) < ZERO


@given(QUANTITIES, PRICES, places(8, "-0.03", "0.03"))
def test_what_one_side_gains_or_pays_the_other_pays_or_gains(quantity: Decimal, price: Decimal, rate: Decimal):
    assert unrealised_profit(quantity, price, price + 1) == -unrealised_profit(-quantity, price, price + 1)
    paid = funding_payment(quantity, price, rate)
    assert paid == -funding_payment(-quantity, price, rate)
    assert abs(paid + quantity * price * rate) <= PAYMENT_STEP / 2


@given(st.lists(places(2, "0", "30000000"), min_size=2, max_size=2), TIERS)
def test_maintenance_margin_rises_with_the_notional_and_never_jumps(
    notionals: list[Decimal], tiers: tuple[MarginTier, ...]
):
    low, high = sorted(notionals)
    rise = maintenance_margin(high, tiers) - maintenance_margin(low, tiers)
    assert ZERO <= rise <= (high - low) * tiers[-1].maintenance_margin_rate
