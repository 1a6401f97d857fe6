"""What positions and orders of margin accounts are backed by: worked examples, and what holds of any run of fills."""

from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.errors import Refusal
from libs.mesh.perpetuals import perpetual_to_proto
from libs.money import ZERO
from services.orders import life, margin, margin_funding, parents, placing, replacing
from services.orders.consumers import instrument_from_proto
from services.orders.domain import AccountState, GroupKind, OrderType, Position, Replacement, Side, TimeInForce, Trail
from services.orders.margin_funding import Payment, Settlement
from services.orders.parents import ParentKind, ParentTicket
from services.orders.refusals import InstrumentNotForAccount, InsufficientMargin, NoFreshPrice, NotReducing
from tests.orders import accounts
from tests.orders.accounts import LIMITS, NOW, as_it_is, ticket
from tests.orders.margins import PERP, QUOTE, TERMS, fill, margined, perp, place, quote_at, traded, weighing

NAME = PERP.instrument_id


def standing(state: AccountState, mark: str = "50000") -> margin.MarginStanding:
    return margin.standing_in(state, "USDT", {NAME: Decimal(mark)}.get)


def wallet(state: AccountState) -> Decimal:
    return state.balance("USDT").total


def reserved(state: AccountState) -> Decimal:
    margin.back(state)
    assert sum((order.reserved for order in state.orders.values()), ZERO) == state.balance("USDT").reserved
    return state.balance("USDT").reserved


def liquidation_price(state: AccountState, mark: str = "50000") -> Decimal | None:
    held = margin.holdings(state.account, state.positions.values(), state.perpetuals, {NAME: Decimal(mark)}.get)
    return margin.liquidation_price(held[0], held, wallet(state), PERP.tick_size)


def test_an_order_sets_aside_the_margin_of_what_it_opens_and_its_fees():
    state = margined("10000", leverage=5)
    order = place(state, perp(Side.BUY, "0.5", "50000"))
    # 25000 / 5, and 25000 * 0.0005.
    assert (order.reserved_asset, order.reserved) == ("USDT", Decimal("5012.5"))
    assert reserved(state) == Decimal("5012.5")
    before = as_it_is(state)
    with pytest.raises(InsufficientMargin) as refused:
        place(state, perp(Side.BUY, "0.5", "50000"))
    assert refused.value.metadata == {"asset": "USDT", "needed": "5012.5", "available": "4987.5"}
    assert state == before


def test_a_long_position_is_turned_and_closed_to_the_last_digit():
    state = margined("10000", leverage=5)
    traded(state, Side.BUY, "0.5", "50000", fee="12.5")
    assert (wallet(state), reserved(state)) == (Decimal("9987.5"), ZERO)
    # Nothing changes hands but the fee.
    assert [(each.book, each.asset, each.amount) for each in state.transactions[-1].entries] == [
        ("account", "USDT", Decimal("-12.5")),
        ("fees", "USDT", Decimal("12.5")),
    ]
    now = standing(state, "52000")
    # 9987.5 + 0.5 * 2000 less 26000 / 5: profit that is not realised counts.
    assert (now.profit, now.balance, now.initial) == (Decimal(1000), Decimal("10987.5"), Decimal(5200))
    assert (now.available, now.maintenance) == (Decimal("5787.5"), Decimal(130))
    assert now.ratio == Decimal("0.01183163")
    # (9987.5 - 0.5 * 50000) / (0.5 * 0.005 - 0.5), up to the tick.
    assert liquidation_price(state) == Decimal("30175.9")
    at_52000 = quote_at("52000")
    with pytest.raises(InsufficientMargin) as refused:
        place(state, perp(Side.SELL, "1.2", "52000"), at_52000)
    # 0.7 of it opens: 36400 / 5, and 62400 * 0.0005.
    assert refused.value.metadata == {"asset": "USDT", "needed": "7311.2", "available": "5787.5"}
    order = place(state, perp(Side.SELL, "0.9", "52000"), at_52000)
    assert order.reserved == Decimal("4183.4")
    fill(state, order, "0.9", "52000", fee="23.4")
    position = state.positions[NAME]
    assert (position.quantity, position.average_price) == (Decimal("-0.4"), Decimal(52000))
    assert (position.realized_profit, position.fees) == (Decimal(1000), Decimal("35.9"))
    assert wallet(state) == Decimal("10964.1")
    # (10964.1 + 0.4 * 52000) / (0.4 * 0.005 + 0.4), down to the tick.
    assert liquidation_price(state) == Decimal("79015.1")
    traded(state, Side.BUY, "0.4", "51000", fee="10.2")
    assert (state.positions[NAME].quantity, wallet(state), reserved(state)) == (ZERO, Decimal("11353.9"), ZERO)


def test_the_venues_own_figure_of_what_closing_has_made_is_entered():
    state = margined("10000")
    traded(state, Side.BUY, "0.5", "50000", realized_profit=Decimal(0))
    order = place(state, perp(Side.SELL, "0.5", "50010"))
    fill(state, order, "0.5", "50010", realized_profit=Decimal("4.99"))
    assert (wallet(state), state.positions[NAME].realized_profit) == (Decimal("10004.99"), Decimal("4.99"))


def test_a_large_position_takes_the_margin_of_its_tier_whatever_the_leverage():
    state = margined("1000000", leverage=100)
    # From 500000 on a quarter of all of it, though the first 8 alone took 4000.
    first = place(state, perp(Side.BUY, "8", "50000"))
    second = place(state, perp(Side.BUY, "4", "50000"))
    assert (first.reserved, second.reserved) == (Decimal(4200), Decimal(150_000 - 4_000 + 100))


def test_orders_of_one_side_share_the_room_to_close_the_oldest_first():
    state = margined("10000", leverage=5)
    traded(state, Side.BUY, "0.5", "50000")
    first = place(state, perp(Side.SELL, "0.3", "50000"))
    second = place(state, perp(Side.SELL, "0.3", "50000"))
    # The first closes, and of the second 0.1 opens: 5000 / 5.
    assert (first.reserved, second.reserved) == (Decimal("7.5"), Decimal("1007.5"))
    life.apply_ended(state, state.orders[first.order_id], life.Kind.CANCELED, "user", NOW)
    assert (reserved(state), state.orders[second.order_id].reserved) == (Decimal("7.5"), Decimal("7.5"))


def test_what_only_reduces_takes_the_room_to_close_from_what_was_there():
    state = margined("10000", leverage=5)
    traded(state, Side.BUY, "0.5", "50000")
    closing = place(state, perp(Side.SELL, "0.5", "51000"))
    assert closing.reserved == Decimal("12.75")
    reducing = place(state, perp(Side.SELL, "0.5", None, time_in_force=TimeInForce.IOC, reduce_only=True))
    assert reducing.reserved == Decimal("11.875")  # at its worst, 5 % below the bid: its fee alone
    # Once that has traded, the limit opens a short position: 25500 / 5.
    assert reserved(state) == Decimal("12.75") + Decimal(5100) + Decimal("11.875")


def test_one_that_reduces_is_not_refused_however_little_there_is():
    state = margined("5030", leverage=5)
    traded(state, Side.BUY, "0.5", "50000")
    state.add("USDT", total=Decimal(-4000))
    crashed = quote_at("49000")
    assert (standing(state, "49000").available or ZERO) < 0
    place(state, perp(Side.SELL, "0.2", "49000"), crashed)
    place(state, perp(Side.SELL, "0.3", None, time_in_force=TimeInForce.IOC, reduce_only=True), crashed)
    with pytest.raises(NotReducing):
        place(state, perp(Side.SELL, "0.3", None, time_in_force=TimeInForce.IOC, reduce_only=True), crashed)
    with pytest.raises(InsufficientMargin):
        place(state, perp(Side.SELL, "0.1", "49000"), crashed)


@pytest.mark.parametrize("quote", [quote_at(None), quote_at("50000", age_seconds=11.0), quote_at("50000", -2.0)])
def test_without_a_mark_price_of_the_last_seconds_nothing_is_opened_and_all_is_closed(quote):
    state = margined("10000")
    traded(state, Side.BUY, "0.1", "50000")
    with pytest.raises(NoFreshPrice):
        place(state, perp(Side.BUY, "0.001", "50000"), quote)
    assert place(state, perp(Side.SELL, "0.1", "50000"), quote).reserved == Decimal("2.5")


def test_a_sale_below_the_mark_price_is_judged_by_that():
    # It opens a position of 50000 / 5 at once, whatever its limit.
    state = margined("9500", leverage=5)
    with pytest.raises(InsufficientMargin):
        place(state, perp(Side.SELL, "1", "45000"))
    assert place(margined("10030", leverage=5), perp(Side.SELL, "1", "45000")).reserved == Decimal("9022.5")


def test_each_kind_of_account_trades_its_own():
    state = margined()
    with pytest.raises(InstrumentNotForAccount) as refused:
        accounts.place(state, ticket())
    assert refused.value.metadata == {"instrument_id": "SIM:BTCUSDT", "account_kind": "MARGIN"}
    assert refused.value.violations == {"instrument_id": "a margin account trades perpetual futures alone"}
    with pytest.raises(InstrumentNotForAccount):
        place(accounts.account_with(USDT="10000"), perp())


def test_a_perpetual_future_whose_terms_nobody_knows_cannot_be_traded():
    told = marketdata_pb2.Instrument(
        instrument_id="FILE:X",
        asset_class=marketdata_pb2.ASSET_CLASS_PERPETUAL,
        state=marketdata_pb2.INSTRUMENT_STATE_TRADING,
    )
    for name in ("tick_size", "lot_size", "minimum_notional", "maker_fee_rate", "taker_fee_rate"):
        getattr(told, name).value = "1"
    assert not instrument_from_proto(told).trading
    told.perpetual.CopyFrom(perpetual_to_proto(PERP.perpetual))
    assert instrument_from_proto(told).trading
    assert instrument_from_proto(told).perpetual == PERP.perpetual


def test_a_bracket_sets_aside_what_its_entry_opens_and_its_legs_fees():
    state = margined("10000", leverage=5)
    legs = [
        perp(Side.SELL, "0.5", "55000"),
        perp(Side.SELL, "0.5", None, order_type=OrderType.STOP, stop_price=Decimal(45000)),
    ]
    entry, *_ = placing.place_group(
        state,
        GroupKind.BRACKET,
        [perp(Side.BUY, "0.5", "50000"), *legs],
        instrument=PERP,
        quote=QUOTE,
        limits=LIMITS,
        weighing=weighing(state),
        group_id=accounts.uuid4(),
        next_id=accounts.uuid7,
        now=NOW,
    )
    # 25000 / 5 and its fee; of the legs, which share a quantity, the fee of the dearer one.
    assert reserved(state) == Decimal("5012.5") + Decimal("13.75")
    fill(state, entry, "0.5", "50000")
    assert reserved(state) == Decimal("13.75")


def test_a_change_that_opens_more_needs_the_margin_for_it():
    state = margined("10000", leverage=5)
    order = place(state, perp(Side.BUY, "0.5", "50000"))
    order = life.apply_working(state, order, NOW)

    def change(quantity: str) -> None:
        replacing.replace_order(
            state,
            state.orders[order.order_id],
            Replacement(client_order_id=accounts.uuid4(), quantity=Decimal(quantity)),
            instrument=PERP,
            quote=QUOTE,
            limits=LIMITS,
            weighing=weighing(state),
            now=NOW,
        )

    before = as_it_is(state)
    with pytest.raises(InsufficientMargin) as refused:
        change("1")
    assert (refused.value.metadata["needed"], refused.value.metadata["available"]) == ("5012.5", "4987.5")
    assert state.orders == before.orders
    change("0.8")
    assert reserved(state) == Decimal(8020)


def test_margin_is_used_up_at_the_liquidation_price_and_not_before():
    state = margined("10000", leverage=5)
    traded(state, Side.BUY, "0.5", "50000", fee="12.5")
    assert not standing(state, "30176").is_used_up
    assert standing(state, "30175.8").is_used_up
    assert standing(state, "20000").ratio is None  # beyond: nothing is left
    assert standing(state, "20000").is_used_up


def test_positions_that_settle_in_one_asset_back_each_other_and_those_of_another_asset_do_not():
    state = margined("10000", leverage=5)
    traded(state, Side.BUY, "0.5", "50000")
    assert reserved(state) == ZERO
    others = {
        "SIM:ETHUSDT-PERP": (Decimal(-2), Decimal(3000), TERMS),
        "SIM:BTCUSDC-PERP": (Decimal(1), Decimal(50000), replace(TERMS, settle_asset="USDC")),
    }
    for name, (quantity, price, terms) in others.items():
        state.positions[name] = Position(instrument_id=name, quantity=quantity, average_price=price)
        state.perpetuals[name] = terms
    marks = {NAME: Decimal(50_000), "SIM:ETHUSDT-PERP": Decimal(3_250), "SIM:BTCUSDC-PERP": Decimal(40_000)}
    in_usdt = margin.standing_in(state, "USDT", marks.get)
    # 25000 / 5 and 6500 / 5; half a percent of both; a loss of 2 * 250.
    assert (in_usdt.initial, in_usdt.maintenance) == (Decimal(6_300), Decimal("157.5"))
    assert (in_usdt.profit, in_usdt.available) == (Decimal(-500), Decimal(10_000 - 500 - 6_300))
    in_usdc = margin.standing_in(state, "USDC", marks.get)
    assert (in_usdc.wallet, in_usdc.balance, in_usdc.is_used_up) == (ZERO, Decimal(-10_000), True)
    held = margin.holdings(state.account, state.positions.values(), state.perpetuals, marks.get)
    (own,) = [each for each in held if each.position.instrument_id == NAME]
    # (10000 - 32.5 - 500 - 25000) / (0.5 * 0.005 - 0.5), up to the tick.
    assert margin.liquidation_price(own, held, wallet(state), PERP.tick_size) == Decimal("31221.2")
    # While the price of another is missing, where it stands is not known, and nothing is liquidated for it.
    del marks["SIM:ETHUSDT-PERP"]
    unknown = margin.standing_in(state, "USDT", marks.get)
    assert (unknown.balance, unknown.available, unknown.ratio, unknown.is_used_up) == (None, None, None, False)
    held = margin.holdings(state.account, state.positions.values(), state.perpetuals, marks.get)
    assert margin.liquidation_price(own, held, wallet(state), PERP.tick_size) is None


def settled(hours: int, rate: str = "0.0001", mark: str = "50000") -> Settlement:
    return Settlement(
        instrument_id=NAME,
        funding_time=NOW + timedelta(hours=hours),
        rate=Decimal(rate),
        mark_price=Decimal(mark),
    )


def test_an_entry_is_of_the_settlement_that_is_nearest_to_it_and_not_of_one_that_is_far():
    first, second = settled(8), settled(16)
    close = replace(second, funding_time=first.funding_time + timedelta(seconds=90))
    for seconds, found in ((-60, first), (0.003, first), (44, first), (46, close), (150, close), (-60.001, None)):
        time = first.funding_time + timedelta(seconds=seconds)
        assert margin_funding.nearest([second, close, first], time) == found


def test_funding_is_paid_by_who_is_long_and_corrected_by_what_is_told_later():
    state = margined("10000")
    traded(state, Side.BUY, "0.5", "50000")
    payment = margin_funding.settle(state, settled(8), Decimal("0.5"), None, NOW)
    assert payment == Payment(
        instrument_id=NAME,
        funding_time=NOW + timedelta(hours=8),
        asset="USDT",
        quantity=Decimal("0.5"),
        rate=Decimal("0.0001"),
        mark_price=Decimal(50000),
        expected_amount=Decimal("-2.5"),
        amount=Decimal("-2.5"),
    )
    assert (wallet(state), state.positions[NAME].funding) == (Decimal("9997.5"), Decimal("-2.5"))
    assert margin_funding.settle(state, settled(8), Decimal("0.5"), payment, NOW) is None
    # A sale of before it is told: it was short 0.1, and is paid.
    corrected = margin_funding.settle(state, settled(8), Decimal("-0.1"), payment, NOW)
    assert corrected is not None
    assert (corrected.amount, wallet(state)) == (Decimal("0.5"), Decimal("10000.5"))
    assert state.transactions[-1].kind == "funding"
    assert state.transactions[-1].time == NOW + timedelta(hours=8)
    assert margin_funding.settle(state, settled(16), ZERO, None, NOW) is None


def test_of_a_live_account_the_venues_record_is_entered_and_what_was_expected_kept_beside_it():
    state = margined("10000", mode=accounts.Mode.LIVE)
    state.perpetuals[NAME] = PERP.perpetual  # type: ignore[assignment] (it has terms)
    expected = margin_funding.settle(state, settled(8), Decimal("0.5"), None, NOW)
    assert expected is not None
    assert (expected.expected_amount, expected.amount, wallet(state)) == (Decimal("-2.5"), None, Decimal(10000))
    told = margin_funding.Told(
        venue_id="1",
        instrument_id=NAME,
        funding_time=NOW + timedelta(hours=8),
        asset="USDT",
        amount=Decimal("-2.49999999"),
    )
    paid = margin_funding.tell(state, told, expected, NOW)
    assert (paid.amount, paid.difference, wallet(state)) == (
        Decimal("-2.49999999"),
        Decimal("0.00000001"),
        Decimal("9997.50000001"),
    )
    again = margin_funding.settle(state, settled(8), Decimal("0.6"), paid, NOW)
    assert again is not None
    assert (again.expected_amount, again.amount, wallet(state)) == (
        Decimal(-3),
        Decimal("-2.49999999"),
        Decimal("9997.50000001"),
    )


TRADES = st.lists(
    st.tuples(
        st.sampled_from(Side),
        st.integers(1, 3_000),
        st.integers(400_000, 600_000),
        st.decimals("-1", "5", places=8),
        st.decimals("-0.003", "0.003", places=8),
    ),
    min_size=1,
    max_size=12,
)


@given(TRADES)
def test_whatever_is_traded_the_books_sum_to_zero_and_the_wallet_is_what_was_brought_made_and_paid(trades):
    state = margined("100000000", leverage=100)
    fees = funding = ZERO
    for hour, (side, lots, ticks, fee, rate) in enumerate(trades):
        quantity, price = str(Decimal(lots) / 1000), str(Decimal(ticks) / 10)
        traded(state, side, quantity, price, fee=str(fee))
        payment = margin_funding.settle(state, settled(hour, str(rate)), state.positions[NAME].quantity, None, NOW)
        fees += fee
        funding += payment.amount or ZERO if payment is not None else ZERO
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for entry in state.transactions[-1].entries:
            sums[entry.asset] += entry.amount
        assert set(sums.values()) <= {ZERO}
    position = state.positions[NAME]
    assert wallet(state) == 100_000_000 + position.realized_profit + funding - fees
    assert (position.funding, position.fees) == (funding, fees)
    assert position.quantity == sum((lots if side is Side.BUY else -lots for side, lots, *_ in trades), 0) / Decimal(
        1000
    )
    assert set(state.balances) == {"USDT"}
    assert reserved(state) == ZERO


ORDERS = st.lists(
    st.tuples(st.sampled_from(Side), st.integers(1, 3_000), st.integers(400_000, 600_000), st.booleans()),
    min_size=1,
    max_size=10,
)


@given(ORDERS, ORDERS)
def test_what_a_new_order_sets_aside_is_what_all_together_are_worked_out_to_need(held, asked):
    state = margined("100000000", leverage=7)
    for side, lots, ticks, _ in held:
        traded(state, side, str(Decimal(lots) / 1000), str(Decimal(ticks) / 10))
    for side, lots, ticks, reduces in asked:
        order = perp(side, str(Decimal(lots) / 1000), str(Decimal(ticks) / 10))
        try:
            place(state, replace(order, reduce_only=reduces))
        except Refusal:
            continue
        before = state.balance("USDT").reserved
        state.unbacked.add(NAME)
        assert reduces or reserved(state) == before


def test_orders_that_wait_for_a_stop_set_aside_the_margin_of_what_they_would_open():
    state = margined("100000", leverage=5)
    stop = place(state, perp(Side.BUY, "0.1", None, order_type=OrderType.STOP, stop_price=Decimal(51_000)))
    # At its worst 5 % beyond the stop, which is 53550: a fifth of a tenth of it, and the fee.
    assert stop.reserved == Decimal(1071) + Decimal("2.6775")
    stop = place(state, perp(Side.SELL, "0.1", None, order_type=OrderType.STOP, stop_price=Decimal(49_000)))
    # A sale takes the more margin the higher it trades: at the stop.
    assert stop.reserved == Decimal(980) + Decimal("2.45")
    trailing = perp(Side.SELL, "0.1", None, order_type=OrderType.TRAILING_STOP, trail=Trail(amount=Decimal(1_000)))
    assert place(state, trailing).reserved == Decimal(980) + Decimal("2.45")
    # Without a price nobody knows what it would open.
    unseen = replace(QUOTE, last=None)
    with pytest.raises(NoFreshPrice):
        place(state, trailing, unseen)


def test_a_parent_order_is_for_an_account_of_its_instruments_kind():
    with pytest.raises(InstrumentNotForAccount):
        parents.accept(
            ParentTicket(
                account_id=accounts.uuid4(),
                instrument_id=NAME,
                kind=ParentKind.ICEBERG,
                side=Side.BUY,
                quantity=Decimal(1),
                slice_quantity=Decimal("0.1"),
                limit_price=Decimal(50_000),
            ),
            account=accounts.account_with(USDT="1").account,
            instrument=PERP,
            quote=QUOTE,
            parent_order_id=accounts.uuid7(),
            now=NOW,
        )
