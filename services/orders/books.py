"""The books: balances, positions and the ledger, and what a trade does to each."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import ROUND_DOWN, Decimal

from libs.money import ZERO, divide, multiply, rounded
from services.orders.domain import (
    Account,
    AccountState,
    Entry,
    Execution,
    Fill,
    Instrument,
    Position,
    Side,
    Transaction,
)


def open_account(account: Account, starting: Iterable[tuple[str, Decimal]], now: datetime) -> AccountState:
    """A new account with its starting balances, each against the book "opening"."""
    state = AccountState(account=account)
    for asset, amount in starting:
        enter(state, "opening", {asset: amount}, now)
    return state


def enter(
    state: AccountState,
    kind: str,
    amounts: Mapping[str, Decimal],
    time: datetime,
    *,
    cause: str = "",
    reconciliation_id: str = "",
) -> None:
    """Enters what comes to the account, or leaves it, and did not trade here: against the book of its kind."""
    entries: list[Entry] = []
    for asset, amount in amounts.items():
        state.add(asset, total=amount)
        entries.append(Entry(book="account", asset=asset, amount=amount))
        entries.append(Entry(book=kind, asset=asset, amount=-amount))
    state.transactions.append(
        Transaction(
            kind=kind,
            order_id=None,
            execution_id=None,
            time=time,
            entries=tuple(entries),
            cause=cause,
            reconciliation_id=reconciliation_id,
        )
    )


def fee_worth(fill: Fill, instrument: Instrument, price: Decimal | None) -> Decimal:
    """A fill's fee in the instrument's quote asset: what the order's and the position's fees count.

    price is that of the fee's asset, where that is neither of the instrument's; without one the fee counts nothing there.
    """
    if fill.fee_asset == instrument.quote_asset:
        return fill.fee
    if fill.fee_asset == instrument.base_asset:
        price = fill.price
    return rounded(multiply(fill.fee, price)) if price is not None else ZERO


def book(
    state: AccountState, execution: Execution, instrument: Instrument, *, fee_worth: Decimal, now: datetime
) -> None:
    """Enters a trade: into the balances and the ledger to the last digit, and into the position."""
    settle(state, execution, rounded(multiply(execution.price, execution.quantity), ROUND_DOWN), instrument)
    position = state.positions.get(execution.instrument_id) or Position(instrument_id=execution.instrument_id)
    state.positions[execution.instrument_id] = traded(position, execution, fee_worth, now)
    if execution.deployment_id is not None:
        # A sub-ledger over the one net position: what this deployment alone has made of it.
        key = execution.deployment_id, execution.instrument_id
        own = state.deployments.get(key) or Position(instrument_id=execution.instrument_id)
        state.deployments[key] = traded(own, execution, fee_worth, now)
    state.executions.append(execution)


def settle(state: AccountState, execution: Execution, notional: Decimal, instrument: Instrument) -> None:
    """Moves both assets and the fee, against the books of the venue and of fees."""
    sign = 1 if execution.side is Side.BUY else -1
    base, quote = sign * execution.quantity, -sign * notional
    state.add(instrument.base_asset, total=base)
    state.add(instrument.quote_asset, total=quote)
    state.add(execution.fee_asset, total=-execution.fee)
    entries = [
        Entry(book="account", asset=instrument.base_asset, amount=base),
        Entry(book="venue", asset=instrument.base_asset, amount=-base),
        Entry(book="account", asset=instrument.quote_asset, amount=quote),
        Entry(book="venue", asset=instrument.quote_asset, amount=-quote),
    ]
    if execution.fee:
        entries.append(Entry(book="account", asset=execution.fee_asset, amount=-execution.fee))
        entries.append(Entry(book="fees", asset=execution.fee_asset, amount=execution.fee))
    state.transactions.append(
        Transaction(
            kind="fill",
            order_id=execution.order_id,
            execution_id=execution.execution_id,
            time=execution.time,
            entries=tuple(entries),
            deployment_id=execution.deployment_id,
        )
    )


def traded(position: Position, execution: Execution, fee_worth: Decimal, now: datetime) -> Position:
    """The position after a trade: more of the same side averages in, the other side closes first, the rest turns it."""
    signed = execution.quantity if execution.side is Side.BUY else -execution.quantity
    before, price = position.quantity, execution.price
    after = before + signed
    profit, average = ZERO, position.average_price
    if before * signed >= 0:
        average = divide(multiply(abs(before), average) + multiply(abs(signed), price), abs(after))
    else:
        closed = min(abs(before), abs(signed))
        profit = rounded(multiply(closed, price - average if before > 0 else average - price))
        if abs(signed) > abs(before):
            average = price
        elif after == 0:
            average = ZERO
    return replace(
        position,
        quantity=after,
        average_price=average,
        realized_profit=position.realized_profit + profit,
        fees=position.fees + fee_worth,
        update_time=now,
    )
