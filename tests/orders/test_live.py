"""Accounts of real money, without a service: when they may trade, and how their books follow what their venue holds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Refusal
from libs.ids import uuid7
from libs.money import ZERO
from services.orders import equity, life, live, placing, replacing, use_cases, wire
from services.orders.domain import (
    Account,
    AccountState,
    Credential,
    IllegalMove,
    LiveState,
    Lock,
    Order,
    OrderType,
    Replacement,
    Side,
    State,
)
from services.users import domain as users
from tests.orders.accounts import (
    BTC,
    LIMITS,
    NOW,
    QUOTE,
    USUAL,
    account_with,
    apply_fill,
    as_it_is,
    fill_of,
    live_account_with,
    place,
    ticket,
    weighing,
)

D = Decimal
KEY = Credential(
    credential_id=UUID(int=9), user_id=UUID(int=2), account_id=UUID(int=1), venue="SIM", revision=3, usable=True
)


def live_account(state: LiveState = LiveState.UNCONFIRMED, **changed: Any) -> Account:
    return replace(live_account_with().account, **{"live_state": state, **changed})


def reason_of(call: Any, *arguments: Any) -> tuple[str, dict[str, str]]:
    with pytest.raises(Refusal) as found:
        call(*arguments)
    return found.value.reason, found.value.metadata


def test_the_venues_of_live_accounts_are_those_that_keys_are_taken_for():
    assert live.VENUES == users.VENUES


# Confirming and stopping


def test_an_account_is_confirmed_with_a_usable_key_for_its_own_venue_alone():
    account = live_account()
    confirmed = live.confirm(account, KEY)
    assert (confirmed.live_state, confirmed.credential_id, confirmed.credential_revision) == (
        LiveState.CONNECTING,
        KEY.credential_id,
        3,
    )
    for none in (None, replace(KEY, usable=False), replace(KEY, venue="KRAKEN")):
        assert reason_of(live.confirm, account, none) == (
            "NO_USABLE_CREDENTIAL",
            {"account_id": str(account.account_id), "venue": "SIM"},
        )
    paper = account_with().account
    assert reason_of(live.confirm, paper, KEY)[0] == reason_of(live.stop, paper)[0] == "ACCOUNT_NOT_LIVE"
    assert reason_of(live.confirm, replace(account, closed=True), KEY)[0] == "USER_DELETED"


def told(account: Account) -> tuple[int, str, bool]:
    changed = wire.live_account_to_fact(account)
    return account.live_sequence, changed.credential_id, changed.trading


def test_each_confirmation_and_stop_is_told_once_and_the_key_stays_while_its_owner_alone_has_stopped_it():
    account = live.confirm(live_account(), KEY)
    assert told(account) == (1, str(KEY.credential_id), True)
    stopped = live.stop(account)
    assert (told(stopped), stopped.stop_reason) == ((2, str(KEY.credential_id), False), "owner")
    assert live.stop(stopped) == stopped
    gone = live.follow_loss(stopped, KEY.credential_id, live.KEY_DELETED)
    assert (told(gone), gone.live_state, gone.stop_reason) == ((3, "", False), LiveState.STOPPED, "key_deleted")
    assert live.follow_loss(gone, KEY.credential_id, live.KEY_REFUSED) == gone
    again = live.confirm(gone, KEY)
    assert (told(again), again.stop_reason) == ((4, str(KEY.credential_id), True), "")


def test_only_another_key_in_place_of_the_confirmed_one_stops_the_account():
    account = live.confirm(live_account(), KEY)
    assert live.follow_put(account, KEY) == account, "a fact that is told again"
    assert live.follow_put(account, replace(KEY, credential_id=UUID(int=8), revision=7)) == account
    replaced = live.follow_put(account, replace(KEY, revision=4))
    assert (told(replaced), replaced.live_state, replaced.stop_reason) == (
        (2, "", False),
        LiveState.STOPPED,
        "key_replaced",
    )
    unconfirmed = live_account()
    assert live.follow_put(unconfirmed, KEY) == unconfirmed
    assert live.follow_loss(unconfirmed, KEY.credential_id, live.KEY_REFUSED) == unconfirmed


def test_who_leaves_stops_and_has_no_key():
    account = live.confirm(live_account(), KEY)
    gone = live.leave(account)
    assert (gone.live_state, gone.credential_id, gone.live_sequence) == (LiveState.STOPPED, None, 2)
    assert live.leave(gone) == gone
    assert live.leave(live.stop(account)).credential_id is None


# Placing


def refused(state: AccountState, asked: Any, *, enabled: bool = True) -> list[tuple[str, dict[str, str]]]:
    """Everything it is refused for; placing it is, for the first of these, and changes nothing."""
    weighed = replace(weighing(state), live_trading=enabled)
    known = {"instrument": BTC, "quote": QUOTE, "limits": LIMITS, "now": NOW}
    order = placing.drafted(state, asked, order_id=uuid7(), **known)
    found = list(placing.objections(state, order, **known, weighing=weighed))
    before = as_it_is(state)
    with pytest.raises(Refusal) as first:
        place(state, asked, weighing=weighed)
    assert (state, first.value.reason) == (before, found[0].reason)
    return [(each.reason, each.metadata) for each in found]


def test_real_money_needs_an_operator_an_owner_and_an_instrument_of_the_venue():
    state = live_account_with(USDT="1000")
    assert place(state, ticket()).state is State.PENDING_NEW
    assert refused(state, ticket(), enabled=False) == [("LIVE_TRADING_DISABLED", {})]
    account_id = str(state.account.account_id)
    for is_not_on in (LiveState.UNCONFIRMED, LiveState.CONNECTING, LiveState.STOPPED):
        state.account = replace(state.account, live_state=is_not_on)
        off = ("LIVE_TRADING_OFF", {"account_id": account_id, "live_state": is_not_on.name})
        assert refused(state, ticket()) == [off]
        assert refused(state, ticket(), enabled=False) == [("LIVE_TRADING_DISABLED", {}), off]
    state.account = replace(state.account, live_state=LiveState.ON, venue="KRAKEN")
    elsewhere = ("INSTRUMENT_NOT_AT_VENUE", {"instrument_id": "SIM:BTCUSDT", "venue": "KRAKEN"})
    assert refused(state, ticket()) == [elsewhere]


def test_play_money_needs_none_of_it():
    state = account_with(USDT="1000")
    assert place(state, ticket(), weighing=replace(weighing(state), live_trading=False))


def test_an_order_is_changed_only_while_its_account_trades():
    state = live_account_with(USDT="1000")
    order = life.apply_working(state, place(state, ticket()), NOW)
    change = Replacement(client_order_id=uuid7(), limit_price=D(99))
    known = {"instrument": BTC, "quote": QUOTE, "limits": LIMITS, "now": NOW}
    state.account = replace(state.account, live_state=LiveState.STOPPED)
    with pytest.raises(Refusal) as found:
        replacing.replace_order(state, order, change, **known, weighing=weighing(state))
    assert found.value.reason == "LIVE_TRADING_OFF"
    # It is canceled all the same.
    assert life.request_cancel(state, order, NOW).state is State.PENDING_CANCEL


def test_what_is_to_be_sent_for_real_money_says_until_when():
    state, paper = live_account_with(USDT="1000"), account_with(USDT="1000")
    limits = replace(LIMITS, live_send_seconds=7.0)
    order = place(state, ticket(), limits=limits)
    life.apply_working(state, order, NOW)
    place(paper, ticket(), limits=limits)
    assert [event.send_before for event in state.events] == [NOW + timedelta(seconds=7), None]
    assert [event.send_before for event in paper.events] == [None]


# The books


def connect(state: AccountState, totals: dict[str, Decimal], worth: Decimal | None = ZERO) -> None:
    live.connect(state, live.differences(state, totals), worth, NOW)


def entries(state: AccountState) -> list[tuple[str, str, str, Decimal, str]]:
    return [
        (each.kind, entry.book, entry.asset, entry.amount, each.cause)
        for each in state.transactions
        for entry in each.entries
    ]


def test_the_first_word_of_the_venue_opens_the_books_and_every_later_one_adjusts_them():
    state = live_account_with()
    state.account = replace(state.account, live_state=LiveState.CONNECTING)
    connect(state, {"USDT": D(100), "BTC": D("0.5")})
    assert state.account.live_state is LiveState.ON
    assert entries(state) == [
        ("opening", "account", "BTC", D("0.5"), ""),
        ("opening", "opening", "BTC", D("-0.5"), ""),
        ("opening", "account", "USDT", D(100), ""),
        ("opening", "opening", "USDT", D(-100), ""),
    ]
    state.transactions.clear()
    state.account = live.confirm(live.stop(state.account), KEY)
    # What is not named is there no more.
    connect(state, {"USDT": D(130)})
    assert entries(state) == [
        ("adjustment", "account", "BTC", D("-0.5"), "reconnected"),
        ("adjustment", "adjustment", "BTC", D("0.5"), "reconnected"),
        ("adjustment", "account", "USDT", D(30), "reconnected"),
        ("adjustment", "adjustment", "USDT", D(-30), "reconnected"),
    ]
    state.transactions.clear()
    connect(state, {"USDT": D(130)})
    assert not state.transactions


def test_a_venue_that_tells_of_a_stopped_account_starts_it_not():
    state = live_account_with()
    state.account = live.stop(live.confirm(state.account, KEY))
    connect(state, {"USDT": D(100)})
    assert state.account.live_state is LiveState.STOPPED
    assert state.balance("USDT").total == 100


def test_an_account_that_held_nothing_is_opened_by_nothing():
    state = live_account_with()
    connect(state, {})
    assert (state.transactions, state.account.adjustments) == ([], 1)
    connect(state, {"USDT": D(5)})
    assert entries(state)[0] == ("adjustment", "account", "USDT", D(5), "reconnected")


def test_what_is_withdrawn_from_under_orders_makes_less_than_nothing_available_and_stops_new_ones():
    state = live_account_with(USDT="1000")
    order = place(state, ticket(quantity="9"))
    live.adjust(state, {"USDT": D(-600)}, D(-600), NOW, cause="unexplained", reconciliation_id="r")
    balance = state.balance("USDT")
    assert (balance.total, balance.reserved, balance.available) == (D(400), D("900.9"), D("-500.9"))
    assert [reason for reason, _ in refused(state, ticket(quantity="0.1"))] == ["INSUFFICIENT_BALANCE"]
    [transaction] = state.transactions
    assert (transaction.cause, transaction.reconciliation_id) == ("unexplained", "r")
    # The venue fills what rests there, and what is over is canceled.
    life.apply_ended(state, apply_fill(state, order, fill_of(order, "4")), life.Kind.CANCELED, "venue", NOW)
    assert (state.balance("USDT").total, state.balance("USDT").reserved) == (0, 0)


def at_work(**changed: Any) -> AccountState:
    state = live_account_with(USDT="1000")
    begun = {"adjustments": 1, "day_start_time": NOW, "day_start_equity": D(1200), "peak_equity": D(2000)}
    state.account = replace(state.account, **{**begun, **changed})
    return state


def counted_from(state: AccountState) -> tuple[Decimal | None, Decimal | None]:
    return state.account.day_start_equity, state.account.peak_equity


@pytest.mark.parametrize("moved", [D(300), D(-300)])
def test_what_is_deposited_or_withdrawn_leaves_a_loss_as_large_as_it_was(moved: Decimal):
    state = at_work()
    live.adjust(state, {"USDT": moved}, moved, NOW, cause="unexplained")
    assert counted_from(state) == (1200 + moved, 2000 + moved)
    connect(state, {"USDT": D(1000)}, -moved)
    assert counted_from(state) == (1200, 2000)


def test_what_an_order_that_is_not_ours_made_or_lost_counts():
    state = at_work()
    live.adjust(state, {"USDT": D(-100), "BTC": D("0.9")}, D(-10), NOW, cause="external_fill")
    assert counted_from(state) == (1200, 2000)


def test_the_first_balances_are_no_gain():
    state = at_work(adjustments=0, day_start_equity=ZERO, peak_equity=ZERO)
    connect(state, {"USDT": D(500)}, D(500))
    assert counted_from(state) == (500, 500)
    # Of an account that was never looked at the first look is the beginning.
    state = at_work(adjustments=0, day_start_equity=None, peak_equity=None)
    connect(state, {"USDT": D(500)}, D(500))
    assert counted_from(state) == (None, None)


def test_where_a_deposit_has_no_price_day_and_peak_begin_anew_and_locks_stay():
    state = at_work(locks=frozenset({Lock.DAILY_LOSS, Lock.DRAWDOWN}))
    live.adjust(state, {"XYZ": D(1)}, None, NOW, cause="unexplained")
    assert counted_from(state) == (None, None)
    seen = equity.looked_at(state.account, D(900), USUAL, NOW + timedelta(minutes=1))
    assert (seen.account.day_start_equity, seen.account.peak_equity) == (900, 900)
    assert seen.account.locks == {Lock.DAILY_LOSS, Lock.DRAWDOWN}
    assert not seen.events


AMOUNTS = st.decimals("-50", "50", places=3)
WORDS = st.one_of(
    st.tuples(st.just("connected"), st.dictionaries(st.sampled_from(["USDT", "BTC", "XYZ"]), AMOUNTS, max_size=3)),
    st.tuples(
        st.sampled_from(["unexplained", "external_fill"]),
        st.dictionaries(st.sampled_from(["USDT", "BTC", "XYZ"]), AMOUNTS, min_size=1, max_size=3),
    ),
    st.tuples(st.just("filled"), st.tuples(st.integers(1, 99), st.integers(1, 500), st.booleans())),
    st.tuples(st.just("adopted"), st.tuples(st.integers(1, 99), st.booleans())),
    st.tuples(st.just("canceled"), st.none()),
)


@given(st.lists(WORDS, max_size=25))
def test_whatever_the_venue_tells_in_whatever_order_the_ledger_sums_to_zero_and_to_the_balances(words: Sequence[Any]):
    state = live_account_with(USDT="100000", BTC="1000")
    begun = {asset: balance.total for asset, balance in state.balances.items()}
    orders = [place(state, ticket(side, "100", "100")).order_id for side in (Side.BUY, Side.SELL)]
    for number, (kind, what) in enumerate(words):
        if kind == "connected":
            connect(state, what)
            for asset, balance in state.balances.items():
                assert balance.total == what.get(asset, ZERO)
        elif kind == "filled":
            quantity, price, buys = what
            order = state.orders[orders[0 if buys else 1]]
            apply_fill(state, order, fill_of(order, str(quantity), str(price), "0.1", fill_id=str(number)))
        elif kind == "adopted":
            adopt(state, quantity=D(what[0]), side=Side.BUY if what[1] else Side.SELL)
        elif kind == "canceled":
            for order in [each for each in state.orders.values() if each.state in (State.NEW, State.PENDING_NEW)]:
                life.apply_ended(state, state.orders[order.order_id], life.Kind.CANCELED, "venue", NOW)
        else:
            live.adjust(state, what, ZERO, NOW, cause=kind)
    sums: dict[str, Decimal] = defaultdict(Decimal, begun)
    for transaction in state.transactions:
        by_asset: dict[str, Decimal] = defaultdict(Decimal)
        for entry in transaction.entries:
            by_asset[entry.asset] += entry.amount
            if entry.book == "account":
                sums[entry.asset] += entry.amount
        assert set(by_asset.values()) == {ZERO}
    for asset, balance in state.balances.items():
        assert balance.total == sums[asset], asset
        reserved = sum((each.reserved for each in state.orders.values() if each.reserved_asset == asset), ZERO)
        assert balance.reserved == reserved, asset


# Orders that were made at the venue by hand


def adopt(state: AccountState, **changed: Any) -> Order:
    values: dict[str, Any] = {
        "order_id": uuid7(),
        "external_id": "by-hand",
        "instrument": BTC,
        "side": Side.BUY,
        "quantity": D(20),
        "limit_price": D(100),
        "stop_price": None,
        "time": NOW,
        "now": NOW,
    }
    return live.adopt(state, **{**values, **changed})


def test_an_adopted_order_sets_aside_what_it_may_cost_even_where_there_is_less():
    state = live_account_with(USDT="1000")
    order = adopt(state)
    assert (order.state, order.reserved, state.balance("USDT").available) == (State.NEW, D(2002), D(-1002))
    assert state.account.open_orders == 1
    [event] = state.events
    # Not as accepted: execution would send it.
    assert (event.kind, event.send_before) == (life.Kind.WORKING, None)
    message = wire.order_to_proto(order)
    assert (message.external, message.client_order_id) == (True, "by-hand")
    before = as_it_is(state)
    with pytest.raises(IllegalMove):
        adopt(state, order_id=order.order_id)
    assert state == before
    filled = apply_fill(state, order, fill_of(order, "5"))
    assert (filled.state, filled.reserved) == (State.PARTIALLY_FILLED, D("1501.5"))
    canceling = life.request_cancel(state, filled, NOW)
    ended = life.apply_ended(state, canceling, life.Kind.CANCELED, "user", NOW)
    assert (ended.state, state.balance("USDT").reserved, state.account.open_orders) == (State.CANCELED, 0, 0)


@pytest.mark.parametrize(
    ("prices", "order_type", "reserved"),
    [
        ({"limit_price": D(100)}, OrderType.LIMIT, "2002"),
        ({"stop_price": D(110), "limit_price": D(120)}, OrderType.STOP_LIMIT, "2402.4"),
        # Its venue knows no protection: at its stop, then.
        ({"stop_price": D(110), "limit_price": None}, OrderType.STOP, "2202.2"),
        ({"side": Side.SELL, "stop_price": D(90), "limit_price": None}, OrderType.STOP, "20"),
        ({"limit_price": None}, OrderType.MARKET, "0"),
    ],
)
def test_an_adopted_order_is_of_the_type_that_its_prices_make(
    prices: dict[str, Any], order_type: OrderType, reserved: str
):
    order = adopt(live_account_with(USDT="1"), **prices)
    assert (order.order_type, order.reserved) == (order_type, D(reserved))


def test_a_venue_without_an_id_of_its_own_for_it_leaves_ours():
    order = adopt(live_account_with(), external_id="")
    message = wire.order_to_proto(order)
    assert (message.external, message.client_order_id) == (True, str(order.order_id))


def test_what_is_withdrawn_is_worth_what_it_could_be_sold_for():
    class Priced:
        live_trading = True

        def pricing_in(self, asset: str, quote_asset: str) -> Any:
            return BTC if asset == "BTC" else None

        def quote(self, instrument_id: str, now: Any) -> Any:
            return QUOTE

    held = [use_cases.Balance(asset="BTC", total=D(-2)), use_cases.Balance(asset="USDT", total=D(-1))]
    assert use_cases.worth(held, "USDT", Priced(), NOW) == D("-200.98")  # type: ignore[arg-type]


def test_of_hundreds_of_assets_an_order_writes_the_one_that_it_changes():
    state = live_account_with(USDT="1000", **{f"DUST{number}": "0.1" for number in range(300)})
    place(state, ticket())
    assert state.changed_balances == {"USDT"}
