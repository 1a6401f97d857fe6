"""Accounts of real money: when they may trade, and how their books follow what their venue holds.

A live account is confirmed with one key, and trades once its venue has told what it holds. The venue is right by definition:
what differs is entered as the venue says, and available money may be less than nothing then.

What is deposited or withdrawn is neither gained nor lost: by what it is worth at the prices of that moment the day's start and
the peak move with it, so that a loss stays as large as it was. What an order that is not ours has traded moves neither, for
what that made or cost is made or lost. Where something of it has no price then, day and peak begin anew with the first worth
that is known; locks stay.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from libs import native
from libs.errors import Invalid, Refusal
from libs.money import ZERO, divide, plain
from services.orders import books, life, margin
from services.orders.domain import (
    Account,
    AccountKind,
    AccountState,
    Credential,
    IllegalMove,
    Instrument,
    Kind,
    Limits,
    LiveState,
    Mode,
    Order,
    OrderType,
    Position,
    RiskEvent,
    Side,
    State,
    TimeInForce,
)
from services.orders.refusals import (
    AccountNotLive,
    LiveTradingDisabled,
    LiveTradingOff,
    NotTakenByVenue,
    NoUsableCredential,
    UserDeleted,
)

VENUES = frozenset({"BINANCE", "KRAKEN"})
"""Those that users takes keys for; a test holds both to the same."""
OWNER, KEY_REPLACED, KEY_DELETED, KEY_REFUSED = "owner", "key_replaced", "key_deleted", "key_refused"
EXTERNAL_FILL, RECONNECTED = "external_fill", "reconnected"
HUNDRED = Decimal(100)


def check_venue(venue: str, kind: AccountKind) -> None:
    venues = margin.VENUES if kind is AccountKind.MARGIN else VENUES
    if venue not in venues:
        of = "orders of margin accounts" if kind is AccountKind.MARGIN else "orders"
        raise Invalid({"venue": f"no {of} can be sent to it; there are {', '.join(sorted(venues))}"})


def objections(account: Account, *, enabled: bool) -> Iterator[Refusal]:
    """Why nothing is sent for a live account."""
    if not enabled:
        yield LiveTradingDisabled("trading with real money is not enabled here")
    if account.live_state is not LiveState.ON:
        state = account.live_state.name if account.live_state else ""
        yield LiveTradingOff(
            f"the account is {state.lower()}, not on", account_id=str(account.account_id), live_state=state
        )


PROTECTING = frozenset({OrderType.STOP, OrderType.STOP_LIMIT, OrderType.TRAILING_STOP})
"""Of two legs the one that is to rest at the venue, where it can."""
WITHOUT_STOP = frozenset({OrderType.MARKET, OrderType.LIMIT})


def lacks(venue: str, order: Order) -> str:
    """What the venue has none of, in words, where it does not take such an order natively; empty if it does."""
    order_type, time_in_force = at_venue(order)
    amount = order.trail.amount if order.trail is not None else None
    percent = order.trail.percent if order.trail is not None else None
    return facts_of(venue, order).lacks(
        order_type,
        time_in_force,
        post_only=order.post_only,
        trail_amount=amount,
        trail_fraction=None if percent is None else divide(percent, HUNDRED),
    )


def changes_no(venue: str, order: Order) -> str:
    """Of what the venue changes none, in words, where it does not change the order that it has; empty if it does."""
    order_type, _ = at_venue(as_triggered(order) if order.triggers_here else order)
    return facts_of(venue, order).changes_no(order_type, has_traded=bool(order.filled_quantity))


def facts_of(venue: str, order: Order) -> native.Native:
    return native.of(venue, perpetuals=order.instrument_id.endswith(native.PERPETUAL))


def at_venue(order: Order) -> tuple[native.OrderType, TimeInForce]:
    """As what its venue is sent the order."""
    order_type = native.OrderType(order.order_type.value)
    if order_type is native.OrderType.TAKE_PROFIT and order.limit_price is not None:
        order_type = native.OrderType.TAKE_PROFIT_LIMIT
    return native.at_venue(
        order_type,
        order.time_in_force,
        is_bounded=order.worst_price is not None or order.order_type is OrderType.MARKET,
        expires=order.expire_time is not None,
    )


def as_triggered(order: Order) -> Order:
    """As what an order that waited here for its price is sent: at its limit, or at once within its protection."""
    if order.limit_price is not None:
        return replace(order, order_type=OrderType.LIMIT, stop_price=None, trail=None)
    return replace(
        order, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC, expire_time=None, stop_price=None, trail=None
    )


def not_taken(venue: str, order: Order) -> NotTakenByVenue | None:
    """Where the venue does not take the order, neither as it is nor as what it becomes once its price is reached."""
    words = lacks(venue, order)
    if words and order.order_type not in WITHOUT_STOP:
        words = lacks(venue, as_triggered(order))
    if not words:
        return None
    return NotTakenByVenue(f"{venue} has no {words}", venue=venue, order_type=order.order_type.name)


def resting(venue: str, legs: Sequence[Order]) -> Order | None:
    """Which of two legs its venue is to have, for without groups it may have but one; None where it takes neither."""
    taken = [leg for leg in legs if not lacks(venue, leg)]
    return next((leg for leg in taken if leg.order_type in PROTECTING), next(iter(taken), None))


def send_before(limits: Limits, now: datetime) -> datetime:
    """Until when what is accepted or released now is to be sent."""
    return now + timedelta(seconds=limits.live_send_seconds)


def check_live(account: Account) -> None:
    if account.mode is not Mode.LIVE:
        raise AccountNotLive("the account is a paper account", account_id=str(account.account_id))
    if account.closed:
        raise UserDeleted


def confirm(account: Account, credential: Credential | None) -> Account:
    """To trade with this key, once the venue has told what the account holds."""
    check_live(account)
    if credential is None or not credential.usable or credential.venue != account.venue:
        raise NoUsableCredential(
            f"no key for {account.venue} was put for the account and found usable",
            account_id=str(account.account_id),
            venue=account.venue,
        )
    return replace(
        account,
        live_state=LiveState.CONNECTING,
        stop_reason="",
        credential_id=credential.credential_id,
        credential_revision=credential.revision,
        live_sequence=account.live_sequence + 1,
    )


def stop(account: Account) -> Account:
    """As its owner asks: what rests at the venue is followed with the key, if it has one. Again it changes nothing."""
    check_live(account)
    if account.live_state is LiveState.STOPPED:
        return account
    return replace(account, live_state=LiveState.STOPPED, stop_reason=OWNER, live_sequence=account.live_sequence + 1)


def lose_key(account: Account, reason: str) -> Account:
    """Its key counts no more: nothing is asked of the venue until it is confirmed anew."""
    return replace(
        account,
        live_state=LiveState.STOPPED,
        stop_reason=reason,
        credential_id=None,
        credential_revision=0,
        live_sequence=account.live_sequence + 1,
    )


def follow_put(account: Account, put: Credential) -> Account:
    """After a key was put: where it stands in place of the one that was confirmed, that counts no more."""
    if account.credential_id == put.credential_id and account.credential_revision != put.revision:
        return lose_key(account, KEY_REPLACED)
    return account


def follow_loss(account: Account, credential_id: UUID, reason: str) -> Account:
    """After a key was deleted or refused."""
    return lose_key(account, reason) if account.credential_id == credential_id else account


def leave(account: Account) -> Account:
    """Of who is gone for good, with their keys."""
    if account.live_state is LiveState.STOPPED and account.credential_id is None:
        return account
    return lose_key(account, KEY_DELETED)


def differences(state: AccountState, totals: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """By asset how much more the venue holds than the books; what it does not name it has nothing of."""
    assets = sorted(state.balances.keys() | totals.keys())
    return {asset: totals.get(asset, ZERO) - state.balance(asset).total for asset in assets}


def connect(state: AccountState, amounts: Mapping[str, Decimal], worth: Decimal | None, time: datetime) -> None:
    """The venue has told what it holds, by so much more than the books: the first time that opens them."""
    if state.account.adjustments:
        adjust(state, amounts, worth, time, cause=RECONNECTED)
    else:
        bring(state, "opening", amounts, worth, time)
    if state.account.live_state is LiveState.CONNECTING:
        state.account = replace(state.account, live_state=LiveState.ON)


def adjust(
    state: AccountState,
    amounts: Mapping[str, Decimal],
    worth: Decimal | None,
    time: datetime,
    *,
    cause: str,
    reconciliation_id: str = "",
) -> None:
    """Brings the books to what the venue holds. worth is that of the amounts now; None where one has no price."""
    moved = ZERO if cause == EXTERNAL_FILL else worth
    bring(state, "adjustment", amounts, moved, time, cause=cause, reconciliation_id=reconciliation_id)


def bring(
    state: AccountState,
    kind: str,
    amounts: Mapping[str, Decimal],
    moved: Decimal | None,
    time: datetime,
    *,
    cause: str = "",
    reconciliation_id: str = "",
) -> None:
    amounts = {asset: amount for asset, amount in amounts.items() if amount}
    if amounts:
        books.enter(state, kind, amounts, time, cause=cause, reconciliation_id=reconciliation_id)
        state.account = shifted(state.account, moved)
    state.account = replace(state.account, adjustments=state.account.adjustments + 1)


def shifted(account: Account, moved: Decimal | None) -> Account:
    """What losses are counted from, after so much came to the account or left it; None begins anew."""
    day, peak = account.day_start_equity, account.peak_equity
    return replace(
        account,
        day_start_equity=None if day is None or moved is None else day + moved,
        peak_equity=None if peak is None or moved is None else peak + moved,
    )


def adopt(
    state: AccountState,
    *,
    order_id: UUID,
    external_id: str,
    instrument: Instrument,
    side: Side,
    quantity: Decimal,
    limit_price: Decimal | None,
    stop_price: Decimal | None,
    time: datetime,
    now: datetime,
) -> Order:
    """Takes on an order that rests at the venue, with what it may cost set aside even where there is less.

    Raises IllegalMove, and InstrumentNotForAccount where an account of its kind trades no such instrument.
    """
    if order_id in state.orders:
        raise IllegalMove("adopted, and it is there already")
    margin.check_kind(state.account, instrument)
    if instrument.perpetual is not None:
        state.perpetuals.setdefault(instrument.instrument_id, instrument.perpetual)
    order = Order(
        order_id=order_id,
        user_id=state.account.user_id,
        account_id=state.account.account_id,
        instrument_id=instrument.instrument_id,
        side=side,
        order_type=type_of(limit_price, stop_price),
        time_in_force=TimeInForce.GTC,
        quantity=quantity,
        limit_price=limit_price,
        protection_price=None,
        state=State.NEW,
        filled_quantity=ZERO,
        filled_notional=ZERO,
        fees=ZERO,
        fee_asset=instrument.quote_asset,
        reserved_asset=margin.reserved_asset(state.account, instrument, side),
        reserved=ZERO,
        fee_rate=max(ZERO, instrument.maker_fee_rate, instrument.taker_fee_rate),
        reason="",
        create_time=now,
        update_time=now,
        market_time=time,
        revision=state.account.account_sequence + 1,
        stop_price=stop_price,
        external_id=external_id,
    )
    return life.noted(state, Kind.WORKING, order, now)


def not_adopted(
    risk_event_id: UUID, account: Account, instrument_id: str, venue_order_id: str, now: datetime
) -> RiskEvent:
    """Says that an order its owner adopted stays at the venue alone, for nothing here can stand for its instrument."""
    return RiskEvent(
        risk_event_id=risk_event_id,
        user_id=account.user_id,
        account_id=account.account_id,
        kind="not_adopted",
        limit_name="external_order",
        value=venue_order_id,
        instrument_id=instrument_id,
        time=now,
    )


def set_position(state: AccountState, told: Position, now: datetime) -> Position:
    """Takes a position as the venue has it, with what it has made so far as it is known here; the one before."""
    known = state.positions.get(told.instrument_id) or Position(instrument_id=told.instrument_id)
    if (known.quantity, known.average_price) != (told.quantity, told.average_price):
        state.positions[told.instrument_id] = replace(
            known, quantity=told.quantity, average_price=told.average_price, update_time=now
        )
        state.changed_positions.add(told.instrument_id)
        state.unbacked.add(told.instrument_id)
        life.cancel_excess(state, told.instrument_id, now)
    return known


def position_set(risk_event_id: UUID, account: Account, known: Position, told: Position, now: datetime) -> RiskEvent:
    """Says that the venue holds another quantity than was known here."""
    return RiskEvent(
        risk_event_id=risk_event_id,
        user_id=account.user_id,
        account_id=account.account_id,
        kind="position_set",
        limit_name="position",
        value=plain(told.quantity),
        bound=plain(known.quantity),
        instrument_id=told.instrument_id,
        time=now,
    )


def type_of(limit_price: Decimal | None, stop_price: Decimal | None) -> OrderType:
    if stop_price is not None:
        return OrderType.STOP if limit_price is None else OrderType.STOP_LIMIT
    return OrderType.MARKET if limit_price is None else OrderType.LIMIT
