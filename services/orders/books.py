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
    Order,
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


def set_aside(state: AccountState, order: Order, needed: Decimal) -> Order:
    """The order with so much set aside for it, and the rest free again."""
    if needed == order.reserved:
        return order
    state.add(order.reserved_asset, reserved=needed - order.reserved)
    return replace(order, reserved=needed)


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
    state: AccountState,
    execution: Execution,
    instrument: Instrument,
    *,
    fee_worth: Decimal,
    now: datetime,
    realized_profit: Decimal | None = None,
) -> None:
    """Enters a trade: into the balances and the ledger to the last digit, and into the position.

    realized_profit is what the venue says that closing has made; None to work it out.
    """
    before = state.positions.get(execution.instrument_id) or Position(instrument_id=execution.instrument_id)
    position = traded(before, execution, fee_worth, now, realized_profit)
    if state.account.is_margin:
        # Nothing changes hands until a position is closed, and then what that has made.
        moved = {instrument.quote_asset: position.realized_profit - before.realized_profit}
    else:
        notional = rounded(multiply(execution.price, execution.quantity), ROUND_DOWN)
        sign = 1 if execution.side is Side.BUY else -1
        moved = {instrument.base_asset: sign * execution.quantity, instrument.quote_asset: -sign * notional}
    settle(state, execution, moved)
    state.positions[execution.instrument_id] = position
    state.changed_positions.add(execution.instrument_id)
    if execution.deployment_id is not None:
        # A sub-ledger over the one net position: what this deployment alone has made of it.
        key = execution.deployment_id, execution.instrument_id
        own = state.deployments.get(key) or Position(instrument_id=execution.instrument_id)
        state.deployments[key] = traded(own, execution, fee_worth, now)
    state.executions.append(execution)


def settle(state: AccountState, execution: Execution, moved: Mapping[str, Decimal]) -> None:
    """Moves so much of each asset, and the fee, against the books of the venue and of fees."""
    entries: list[Entry] = []
    for asset, amount in moved.items():
        if amount:
            state.add(asset, total=amount)
            entries.append(Entry(book="account", asset=asset, amount=amount))
            entries.append(Entry(book="venue", asset=asset, amount=-amount))
    if execution.fee:
        state.add(execution.fee_asset, total=-execution.fee)
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


def traded(
    position: Position, execution: Execution, fee_worth: Decimal, now: datetime, realized_profit: Decimal | None = None
) -> Position:
    """The position after a trade: more of the same side averages in, the other side closes first, the rest turns it.

    realized_profit is what that has made, where it is known better than the average price tells.
    """
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
        realized_profit=position.realized_profit + (profit if realized_profit is None else realized_profit),
        fees=position.fees + fee_worth,
        update_time=now,
    )
