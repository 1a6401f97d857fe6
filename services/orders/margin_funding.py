"""What a settlement of funding is to an account: who was long right before it pays who was short, where the rate is positive.

What an account held then is told by fills of an earlier market time, however late they are told: a payment is always brought to
what the fills say by now, and what that changes is entered, under the time of the settlement. So it is made once, whatever is
repeated. Of a live account what is entered is the venue's record; what was expected is kept beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from libs.margin import funding_payment
from libs.money import ZERO
from services.orders import books
from services.orders.domain import AccountState, Mode, Position

SAME_SETTLEMENT = timedelta(minutes=1)
"""What a venue has entered within so long of a settlement is of it: its records name moments some milliseconds apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """As marketdata tells of it."""

    instrument_id: str
    funding_time: datetime
    rate: Decimal
    mark_price: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A settlement that accounts beyond this one have not been paid yet."""

    settlement: Settlement
    after_account_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """What a settlement was to an account; what nobody has told yet is None."""

    instrument_id: str
    funding_time: datetime
    asset: str
    quantity: Decimal | None = None
    rate: Decimal | None = None
    mark_price: Decimal | None = None
    expected_amount: Decimal | None = None
    amount: Decimal | None = None
    """What was entered."""

    @property
    def difference(self) -> Decimal | None:
        if self.amount is None or self.expected_amount is None:
            return None
        return self.amount - self.expected_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An entry of a venue's income history."""

    venue_id: str
    instrument_id: str
    funding_time: datetime
    asset: str
    amount: Decimal


def settle(
    state: AccountState, settlement: Settlement, quantity: Decimal, before: Payment | None, now: datetime
) -> Payment | None:
    """Brings what was paid to what follows from the quantity; the payment as it now stands, None where nothing changes."""
    if before is None and not quantity:
        return None
    asset = state.perpetuals[settlement.instrument_id].settle_asset
    expected = funding_payment(quantity, settlement.mark_price, settlement.rate)
    known = before or Payment(instrument_id=settlement.instrument_id, funding_time=settlement.funding_time, asset=asset)
    payment = replace(
        known,
        quantity=quantity,
        rate=settlement.rate,
        mark_price=settlement.mark_price,
        expected_amount=expected,
        amount=expected if state.account.mode is Mode.PAPER else known.amount,
    )
    if payment == before:
        return None
    enter(state, payment, (payment.amount or ZERO) - (known.amount or ZERO), now)
    return payment


def nearest(settlements: Iterable[Settlement], time: datetime) -> Settlement | None:
    """Of an instrument's settlements the one that an entry of this time is of; None where there is none of them."""
    near = [each for each in settlements if abs(each.funding_time - time) <= SAME_SETTLEMENT]
    return min(near, key=lambda each: (abs(each.funding_time - time), each.funding_time), default=None)


def tell(state: AccountState, told: Told, before: Payment | None, now: datetime) -> Payment:
    """Enters what the venue has settled, whatever was expected."""
    known = before or Payment(instrument_id=told.instrument_id, funding_time=told.funding_time, asset=told.asset)
    payment = replace(known, asset=told.asset, amount=(known.amount or ZERO) + told.amount)
    enter(state, payment, told.amount, now)
    return payment


def enter(state: AccountState, payment: Payment, amount: Decimal, now: datetime) -> None:
    if not amount:
        return
    books.enter(state, "funding", {payment.asset: amount}, payment.funding_time)
    position = state.positions.get(payment.instrument_id) or Position(instrument_id=payment.instrument_id)
    state.positions[payment.instrument_id] = replace(
        position, funding=position.funding + amount, update_time=position.update_time or now
    )
    state.changed_positions.add(payment.instrument_id)


def earliest(state: AccountState) -> dict[str, datetime]:
    """By instrument the market time of the earliest fill since: settlements after it may have to be corrected."""
    found: dict[str, datetime] = {}
    for execution in state.executions:
        known = found.get(execution.instrument_id)
        if known is None or execution.time < known:
            found[execution.instrument_id] = execution.time
    return found
