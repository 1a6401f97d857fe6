"""Applies what the other services tell: instruments from marketdata, what venues did and hold from execution, whose keys count and who is gone from users."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import structlog
from tradeloom.execution.v1 import events_pb2 as execution_pb2
from tradeloom.marketdata.v1 import events_pb2 as marketdata_events_pb2
from tradeloom.marketdata.v1 import marketdata_pb2, perpetuals_pb2
from tradeloom.users.v1 import events_pb2 as users_events_pb2

from libs.errors import Refusal
from libs.mesh.perpetuals import perpetual_from_proto
from libs.mesh.wire import decimal_from_proto, time_from_proto
from libs.money import ZERO
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.orders import life, live, live_store, margin_store, margin_use_cases, store, triggers, use_cases
from services.orders.domain import (
    Account,
    AccountState,
    Balance,
    Credential,
    Fill,
    IllegalMove,
    Instrument,
    Kind,
    Mode,
    Order,
    Position,
    Side,
)
from services.orders.margin_funding import Settlement, Told
from services.orders.margin_store import MarginStore
from services.orders.market import Market
from services.orders.refusals import InstrumentNotFound
from services.orders.store import AccountStore

log = structlog.get_logger(__name__)

VENUE_FACTS = {
    message.DESCRIPTOR.full_name: message
    for message in (
        execution_pb2.VenueAccepted,
        execution_pb2.VenueFilled,
        execution_pb2.VenueCanceled,
        execution_pb2.VenueRejected,
        execution_pb2.VenueCancelRejected,
        execution_pb2.VenueExpired,
        execution_pb2.VenueTriggered,
        execution_pb2.VenueReplaced,
        execution_pb2.VenueReplaceRejected,
        execution_pb2.VenueUnknown,
        execution_pb2.VenueConnected,
        execution_pb2.VenueAdjusted,
        execution_pb2.VenueAdopted,
        execution_pb2.VenueFunded,
    )
}
KEY_FACTS = {
    message.DESCRIPTOR.full_name: message
    for message in (
        users_events_pb2.BrokerCredentialPut,
        users_events_pb2.BrokerCredentialTested,
        users_events_pb2.BrokerCredentialDeleted,
    )
}
USABLE = "usable"
INSTRUMENT_WAIT = timedelta(seconds=5)
"""For so long after an adoption the facts of its partition wait until its instrument is known."""
OF_BALANCES = (execution_pb2.VenueConnected, execution_pb2.VenueAdjusted)
OF_NO_ORDER = (*OF_BALANCES, execution_pb2.VenueFunded)
OF_LIVE = (*OF_NO_ORDER, execution_pb2.VenueAdopted)


class InstrumentAwaited(Exception):
    """The fact is applied later, when marketdata has told of its instrument."""


async def apply_marketdata(rows: Connection, facts: Sequence[Fact]) -> None:
    kind = marketdata_events_pb2.InstrumentChanged.DESCRIPTOR.full_name
    changed = [marketdata_events_pb2.InstrumentChanged.FromString(fact.payload) for fact in facts if fact.kind == kind]
    if changed:
        await store.save_instruments(rows, [instrument_from_proto(each.instrument) for each in changed])
    kind = marketdata_events_pb2.FundingSettled.DESCRIPTOR.full_name
    settled = [marketdata_events_pb2.FundingSettled.FromString(fact.payload) for fact in facts if fact.kind == kind]
    if settled:
        await margin_store.add_settlements(rows, [settlement_from_proto(each.funding_rate) for each in settled])


def settlement_from_proto(message: perpetuals_pb2.FundingRate) -> Settlement:
    return Settlement(
        instrument_id=message.instrument_id,
        funding_time=time_from_proto(message.funding_time),
        rate=Decimal(message.rate.value),
        mark_price=decimal_from_proto(message.mark_price),
    )


def instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    return Instrument(
        instrument_id=message.instrument_id,
        base_asset=message.base_asset,
        quote_asset=message.quote_asset,
        tick_size=decimal_from_proto(message.tick_size),
        lot_size=decimal_from_proto(message.lot_size),
        minimum_notional=decimal_from_proto(message.minimum_notional),
        maker_fee_rate=decimal_from_proto(message.maker_fee_rate),
        taker_fee_rate=decimal_from_proto(message.taker_fee_rate),
        # Of a perpetual future whose terms nobody knows, nobody knows what it must be backed by.
        trading=message.state == marketdata_pb2.INSTRUMENT_STATE_TRADING
        and (message.HasField("perpetual") or message.asset_class != marketdata_pb2.ASSET_CLASS_PERPETUAL),
        time_zone=message.time_zone or "UTC",
        perpetual=perpetual_from_proto(message.perpetual) if message.HasField("perpetual") else None,
    )


async def apply_users(rows: Connection, facts: Sequence[Fact]) -> None:
    """From this commit on nothing is traded for who is gone, nor with a key that is; `upkeep` does the rest, however much."""
    purged = users_events_pb2.UserPurged.DESCRIPTOR.full_name
    gone = {fact.user_id for fact in facts if fact.kind == purged and fact.user_id}
    of_keys = [fact for fact in facts if fact.kind in KEY_FACTS and fact.user_id]
    accounts: dict[UUID, Account] = {}
    if users := gone | {fact.user_id for fact in of_keys if fact.user_id}:
        accounts = await live_store.lock_accounts_of(rows, users, gone=gone)
    before = dict(accounts)
    for fact in of_keys:
        await follow_key(rows, accounts, fact)
    # In one order: two readers do not wait for each other in a circle.
    for user_id in sorted(gone):
        await store.close_accounts(rows, user_id)
        await live_store.delete_credentials_of(rows, user_id)
        accounts |= {key: live.leave(each) for key, each in accounts.items() if each.user_id == user_id}
    for account_id, account in accounts.items():
        await live_store.change_account(rows, before[account_id], account)


async def follow_key(rows: Connection, accounts: dict[UUID, Account], fact: Fact) -> None:
    """Notes what users tells of a key, and stops the account that trades with it where it counts no more."""
    assert fact.user_id is not None, "a key is somebody's"
    message = KEY_FACTS[fact.kind].FromString(fact.payload)
    credential_id = UUID(message.credential_id)
    own = {key: each for key, each in accounts.items() if each.user_id == fact.user_id}
    match message:
        case users_events_pb2.BrokerCredentialPut():
            credential = Credential(
                credential_id=credential_id,
                user_id=fact.user_id,
                account_id=UUID(message.account_id),
                venue=message.venue,
                revision=message.revision,
                usable=False,
            )
            await live_store.put_credential(rows, credential)
            accounts |= {key: live.follow_put(each, credential) for key, each in own.items()}
        case users_events_pb2.BrokerCredentialTested():
            usable = message.state == USABLE
            await live_store.judge_credential(rows, credential_id, usable=usable)
            if not usable:
                accounts |= {key: live.follow_loss(each, credential_id, live.KEY_REFUSED) for key, each in own.items()}
        case users_events_pb2.BrokerCredentialDeleted():
            await live_store.delete_credential(rows, credential_id)
            accounts |= {key: live.follow_loss(each, credential_id, live.KEY_DELETED) for key, each in own.items()}


@dataclass(frozen=True, slots=True)
class ApplyExecution:
    """Applies a batch of the venue's words under the locks of their accounts, each once, in order."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    market: Market
    step_waiting: use_cases.StepWaiting
    wake: Callable[[], None] = lambda: None
    """Called once it is committed that a child of a parent order is done: the next one may follow."""

    async def __call__(self, rows: Connection, facts: Sequence[Fact]) -> None:
        told = [(fact, VENUE_FACTS[fact.kind].FromString(fact.payload)) for fact in facts if fact.kind in VENUE_FACTS]
        if not told:
            return
        accounts = AccountStore(rows)
        states = await accounts.lock({UUID(fact.key) for fact, _ in told})
        named = {UUID(message.order_id) for _, message in told if not isinstance(message, OF_NO_ORDER)}
        await accounts.load_orders(states, named)
        fills = [message.venue_fill_id for _, message in told if isinstance(message, execution_pb2.VenueFilled)]
        await accounts.load_trading(states, fills)
        await self.step_waiting.load(accounts, states)
        known = await store.instruments(rows)
        before = {account_id: state.account for account_id, state in states.items()}
        margins = MarginStore(rows)
        for fact, message in told:
            state = states.get(UUID(fact.key))
            if state is None:
                log.error("a venue tells of an account nobody has", account_id=fact.key, kind=fact.kind)
                continue
            try:
                self._apply(state, message, known)
                if isinstance(message, execution_pb2.VenueFunded):
                    await margin_use_cases.tell_funding(margins, state, told_from(message), self.now())
            except IllegalMove as error:
                # The venue repeats or contradicts itself; the account is as its earlier words made it.
                log.warning("a venue's word changes nothing", account_id=fact.key, kind=fact.kind, why=str(error))
        for state in states.values():
            # What was released, or in whose way nothing is any more, goes to its venue with the fact that says so.
            self.step_waiting(state)
            await margin_use_cases.correct_funding(margins, state, self.now())
        await accounts.save(list(states.values()))
        await accounts.add_risk_events([event for state in states.values() for event in state.risk_events])
        if any(progress.has_ended for state in states.values() for progress in state.progress.values()):
            rows.after_commit(self.wake)
        for account_id, state in states.items():
            if state.account.adjustments != before[account_id].adjustments:
                await live_store.put_account(rows, state.account)

    def _apply(self, state: AccountState, message: Any, known: dict[str, Instrument]) -> None:
        if isinstance(message, OF_LIVE) and state.account.mode is not Mode.LIVE:
            raise IllegalMove("it is of a live account, and this is none")
        now = self.now()
        match message:
            case execution_pb2.VenueConnected():
                totals = {each.asset: Decimal(each.total.value) for each in message.balances}
                amounts = live.differences(state, totals)
                opens = not state.account.adjustments
                live.connect(state, amounts, self._worth(state, amounts, now), time_from_proto(message.time))
                positions = positions_from(message.positions)
                gone = [name for name, each in state.positions.items() if each.quantity and name not in positions]
                positions |= {name: Position(instrument_id=name) for name in gone}
                self._set_positions(state, positions, now, is_told=not opens)
            case execution_pb2.VenueAdjusted():
                self._adjust(state, message, now)
                self._set_positions(state, positions_from(message.positions), now, is_told=True)
            case execution_pb2.VenueFunded():
                if not state.account.is_margin:
                    raise IllegalMove("it is of a margin account, and this is none")
            case execution_pb2.VenueAdopted():
                self._adopt(state, message, known.get(message.instrument_id), now)
            case _:
                order = state.orders.get(UUID(message.order_id))
                if order is None:
                    log.error("a venue tells of an order nobody has", order_id=message.order_id)
                    return
                self._apply_to(state, order, message, known, now)

    def _adopt(
        self, state: AccountState, message: execution_pb2.VenueAdopted, instrument: Instrument | None, now: datetime
    ) -> None:
        """What cannot be taken on stays at the venue alone: its owner is told, and nobody else's facts wait for it.

        marketdata may be about to tell of the instrument: so long it is waited for, and no longer. Raises InstrumentAwaited.
        """
        name = message.instrument_id
        if instrument is None and timedelta() <= now - time_from_proto(message.time) < INSTRUMENT_WAIT:
            raise InstrumentAwaited(f"an order in {name} is adopted, of which marketdata has told nothing yet")
        try:
            if instrument is None:
                raise InstrumentNotFound(f"no instrument {name}", instrument_id=name)
            adopt(state, message, instrument, now)
        except Refusal as refusal:
            account = state.account
            log.warning(
                "an order is not adopted",
                account_id=str(account.account_id),
                order_id=message.order_id,
                why=str(refusal),
            )
            event = live.not_adopted(self.next_id(), account, name, message.venue_order_id, now)
            state.risk_events.append(event)

    def _set_positions(
        self, state: AccountState, positions: Mapping[str, Position], now: datetime, *, is_told: bool
    ) -> None:
        """As the venue of a live margin account has them; its owner is told of those that were others here."""
        if not state.account.is_margin:
            return
        for position in positions.values():
            known = live.set_position(state, position, now)
            if is_told and known.quantity != position.quantity:
                state.risk_events.append(live.position_set(self.next_id(), state.account, known, position, now))

    def _adjust(self, state: AccountState, message: execution_pb2.VenueAdjusted, now: datetime) -> None:
        amounts: dict[str, Decimal] = {}
        for each in message.adjustments:
            amounts[each.asset] = amounts.get(each.asset, ZERO) + Decimal(each.amount.value)
        live.adjust(
            state,
            amounts,
            self._worth(state, amounts, now),
            time_from_proto(message.time),
            cause=message.cause,
            reconciliation_id=message.reconciliation_id,
        )

    def _worth(self, state: AccountState, amounts: Mapping[str, Decimal], now: datetime) -> Decimal | None:
        """Of so much, in what the account is valued in; None where something of it has no price now."""
        held = [Balance(asset=asset, total=amount) for asset, amount in amounts.items()]
        return use_cases.worth(held, state.account.valuation_asset, self.market, now)

    def _apply_to(
        self, state: AccountState, order: Order, message: object, known: dict[str, Instrument], now: datetime
    ) -> None:
        match message:
            case execution_pb2.VenueAccepted():
                life.apply_working(state, order, now)
            case execution_pb2.VenueFilled():
                self._apply_fill(state, order, fill_from(message), known[order.instrument_id], now)
            case execution_pb2.VenueCanceled():
                life.apply_ended(state, order, Kind.CANCELED, message.cause, now)
            case execution_pb2.VenueRejected():
                self._reject(state, order, message, now)
            case execution_pb2.VenueExpired():
                life.apply_ended(state, order, Kind.EXPIRED, order.time_in_force.value, now)
            case execution_pb2.VenueCancelRejected():
                life.apply_cancel_rejected(state, order, message.reason, now)
            case execution_pb2.VenueTriggered():
                life.apply_triggered(state, order, time_from_proto(message.time), now)
            case execution_pb2.VenueReplaced():
                life.apply_replaced(state, order, message.client_order_id, now)
            case execution_pb2.VenueReplaceRejected():
                life.apply_replace_rejected(state, order, message.client_order_id, message.reason, now)
            case execution_pb2.VenueUnknown():
                life.apply_unknown(state, order, now)

    def _reject(self, state: AccountState, order: Order, message: execution_pb2.VenueRejected, now: datetime) -> None:
        may_go_again = message.not_sent or message.stop_reached
        if not may_go_again or not triggers.comes_back(state.account, order):
            life.apply_ended(state, order, Kind.REJECTED, message.reason, now)
            return
        time = time_from_proto(message.time) if message.stop_reached else None
        order = triggers.take_back(state, order, message.reason, now, stop_reached=time)
        if order.reason:
            state.risk_events.append(triggers.not_sent(self.next_id(), order, message.reason, now))

    def _apply_fill(self, state: AccountState, order: Order, fill: Fill, instrument: Instrument, now: datetime) -> None:
        of_instrument = fill.fee_asset in (instrument.base_asset, instrument.quote_asset)
        fee_price = None if of_instrument else self.market.last_price(fill.fee_asset, instrument.quote_asset, now)
        execution_id = self.next_id()
        life.apply_fill(state, order, fill, instrument, execution_id=execution_id, now=now, fee_price=fee_price)


def adopt(state: AccountState, message: execution_pb2.VenueAdopted, instrument: Instrument, now: datetime) -> None:
    live.adopt(
        state,
        order_id=UUID(message.order_id),
        external_id=message.client_order_id,
        instrument=instrument,
        side=Side.BUY if message.buys else Side.SELL,
        quantity=decimal_from_proto(message.quantity),
        limit_price=decimal_from_proto(message.limit_price) if message.HasField("limit_price") else None,
        stop_price=decimal_from_proto(message.stop_price) if message.HasField("stop_price") else None,
        time=time_from_proto(message.time),
        now=now,
    )


def positions_from(told: Sequence[execution_pb2.VenuePosition]) -> dict[str, Position]:
    """By instrument, with what the venue tells of them alone."""
    return {
        each.instrument_id: Position(
            instrument_id=each.instrument_id,
            quantity=Decimal(each.quantity.value),
            average_price=Decimal(each.average_price.value or 0),
        )
        for each in told
    }


def told_from(message: execution_pb2.VenueFunded) -> Told:
    return Told(
        venue_id=message.venue_id,
        instrument_id=message.instrument_id,
        funding_time=time_from_proto(message.funding_time),
        asset=message.asset,
        amount=Decimal(message.amount.value),
    )


def fill_from(message: execution_pb2.VenueFilled) -> Fill:
    return Fill(
        venue_fill_id=message.venue_fill_id,
        price=decimal_from_proto(message.price),
        quantity=decimal_from_proto(message.quantity),
        fee=Decimal(message.fee.value),
        fee_asset=message.fee_asset,
        maker=message.maker,
        time=time_from_proto(message.time),
        realized_profit=Decimal(message.realized_profit.value) if message.HasField("realized_profit") else None,
    )
