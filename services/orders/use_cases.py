"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from libs.errors import Invalid, NotFound, Refusal, RequestIdReused
from libs.money import ZERO, down_to, multiply, plain, rounded
from libs.store.requests import RequestKey
from services.orders import books, life, live, margin, placing, replacing, risk, triggers
from services.orders.domain import (
    OPEN,
    Account,
    AccountKind,
    AccountState,
    Annotation,
    Balance,
    Exposure,
    GroupKind,
    Instrument,
    Limits,
    LiveState,
    Mode,
    Order,
    OrderType,
    Position,
    Quote,
    Replacement,
    RiskEvent,
    RiskLimits,
    Scope,
    Side,
    Ticket,
    TimeInForce,
)
from services.orders.margin import Holding, MarginStanding
from services.orders.refusals import (
    AccountLocked,
    AccountNotFound,
    NotReducing,
    OrderLiquidates,
    OrderNotFound,
    OrderRateReached,
    RiskLimitReached,
    TooManyAccounts,
    TooManyOpenOrders,
    TradingHalted,
    UserDeleted,
)
from services.orders.risk import Margin, Standing, Weighing

LIMITS_KNOWN_MAX = 10_000
"""Accounts whose limits are kept in memory, of some hundred bytes each."""
REFUSALS_NOTED_EVERY = timedelta(minutes=1)
REFUSALS_KNOWN_MAX = 10_000
NOTHING = Exposure()


class Accounts(Protocol):
    """Where accounts and orders live, in one transaction."""

    async def add_account(self, state: AccountState) -> None: ...
    async def count_accounts(self, user_id: UUID) -> int: ...
    async def has_left(self, user_id: UUID) -> bool: ...
    async def uncanceled_orders(
        self, user_id: UUID, limit: int, *, account_id: UUID | None = None, deployment_id: UUID | None = None
    ) -> Sequence[tuple[UUID, UUID]]: ...
    async def active_parents(
        self, user_id: UUID, limit: int, *, account_id: UUID | None = None, deployment_id: UUID | None = None
    ) -> Sequence[tuple[UUID, UUID]]: ...
    async def cancel_parents(
        self, states: Mapping[UUID, AccountState], now: datetime, **which: Any
    ) -> Sequence[UUID]: ...
    async def lock(
        self, account_ids: Iterable[UUID], instrument_ids: Iterable[str] = ()
    ) -> dict[UUID, AccountState]: ...
    async def lock_free(
        self, account_ids: Iterable[UUID], instrument_ids: Iterable[str] = ()
    ) -> tuple[dict[UUID, AccountState], dict[UUID, UUID]]: ...
    async def load_standing(self, states: Mapping[UUID, AccountState], instrument_ids: Iterable[str]) -> None: ...
    async def find_limits(self, account_ids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, Decimal]]: ...
    async def add_risk_events(self, events: Sequence[RiskEvent]) -> None: ...
    async def load_orders(self, states: Mapping[UUID, AccountState], order_ids: Iterable[UUID]) -> None: ...
    async def load_open(self, states: Mapping[UUID, AccountState]) -> None: ...
    async def load_reducing(self, states: Mapping[UUID, AccountState]) -> None: ...
    async def annotate(self, order: Order, annotation: Annotation) -> None: ...
    async def save(self, states: Sequence[AccountState]) -> None: ...


class Answers(Protocol):
    """The answers to earlier requests, in the same transaction."""

    async def find(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, bytes | RequestIdReused]: ...
    async def add(self, answers: Mapping[RequestKey, bytes]) -> None: ...


class Market(Protocol):
    """What is known of the market in this process."""

    live_trading: bool

    def instrument(self, instrument_id: str) -> Instrument | None: ...
    def quote(self, instrument_id: str, now: datetime) -> Quote | None: ...
    def pricing(self, asset: str) -> Instrument | None: ...
    def pricing_in(self, asset: str, quote_asset: str) -> Instrument | None: ...


@dataclass(frozen=True, slots=True)
class CreateAccount:
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    accounts_max: int

    async def __call__(
        self,
        accounts: Accounts,
        *,
        user_id: UUID,
        name: str,
        mode: Mode,
        kind: AccountKind,
        starting: Mapping[str, Decimal],
        valuation_asset: str,
        venue: str = "",
        leverage: int = 1,
    ) -> Account:
        """An empty valuation_asset is the first that it starts with; a live account has a venue, and starts with nothing."""
        if mode is Mode.LIVE:
            live.check_venue(venue, kind)
        if await accounts.count_accounts(user_id) >= self.accounts_max:
            raise TooManyAccounts("too many accounts", accounts_max=self.accounts_max)
        # Under the lock of the count: who leaves at this moment does so before it, or after the commit.
        if await accounts.has_left(user_id):
            raise UserDeleted
        account = Account(
            account_id=self.next_id(),
            user_id=user_id,
            name=name,
            mode=mode,
            kind=kind,
            create_time=self.now(),
            valuation_asset=valuation_asset or next(iter(starting)),
            venue=venue,
            live_state=LiveState.UNCONFIRMED if mode is Mode.LIVE else None,
            leverage=leverage,
        )
        state = books.open_account(account, starting.items(), account.create_time)
        await accounts.add_account(state)
        return account


@dataclass(frozen=True, slots=True)
class Placing:
    """One request to place an order."""

    key: RequestKey
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Weigh:
    """Reads what orders of an account are weighed by. Limits that were set are kept in memory by their revision."""

    market: Market
    usual: RiskLimits
    known: OrderedDict[UUID, tuple[int, RiskLimits]] = field(default_factory=OrderedDict)

    async def load(self, accounts: Accounts, states: Iterable[AccountState]) -> None:
        """Brings the limits of accounts into their states; call it under their locks."""
        unknown: list[AccountState] = []
        for state in states:
            account = state.account
            revision, state.limits = self.known.get(account.account_id, (0, self.usual))
            if revision != account.limits_revision:
                unknown.append(state)
        if not unknown:
            return
        found = await accounts.find_limits([state.account.account_id for state in unknown])
        for state in unknown:
            account = state.account
            state.limits = risk.with_set(self.usual, found.get(account.account_id, {}))
            self.known[account.account_id] = account.limits_revision, state.limits
            self.known.move_to_end(account.account_id)
        while len(self.known) > LIMITS_KNOWN_MAX:
            self.known.popitem(last=False)

    def __call__(self, state: AccountState, instrument_id: str, deployment_id: UUID | None, now: datetime) -> Weighing:
        account, limits = state.account, state.limits or self.usual
        equity = None
        if limits.go_by_worth:
            equity = equity_of(account, state.balances.values(), state.positions.values(), self.market, now)
        standing = Standing(
            open_orders=account.open_orders,
            rate=account.rate,
            short_sales=account.kind is AccountKind.MARGIN,
            equity=equity,
            day_start_equity=account.day_start_equity,
            peak_equity=account.peak_equity,
            locks=account.locks,
            switches=[
                (scope, switch)
                for scope, target_id, switch in state.switches
                if scope is not Scope.DEPLOYMENT or target_id == deployment_id
            ],
        )
        exposure = state.exposures.get(instrument_id) or NOTHING
        quotes: dict[str, Quote | None] = {}
        if account.is_margin:
            exposure = margin.exposure(state, instrument_id)
            held = {name for name, position in state.positions.items() if position.quantity}
            quotes = {name: self.market.quote(name, now) for name in {instrument_id, *held}}
        return Weighing(limits, standing, exposure, self.market.live_trading, quotes)


@dataclass(frozen=True, slots=True)
class NoteRefusals:
    """Has refusals by limits, locks and switches noted: of an account and limit one in a while, by this process."""

    next_id: Callable[[], UUID]
    noted: OrderedDict[tuple[UUID, str], datetime] = field(default_factory=OrderedDict)

    def __call__(self, account: Account, instrument_id: str, refusal: Refusal, now: datetime) -> list[RiskEvent]:
        if not isinstance(refusal, TradingHalted | RiskLimitReached | OrderRateReached | TooManyOpenOrders):
            return []
        key = account.account_id, refusal.metadata["limit"]
        last = self.noted.get(key)
        if last is not None and abs(now - last) < REFUSALS_NOTED_EVERY:
            return []
        self.noted[key] = now
        self.noted.move_to_end(key)
        while len(self.noted) > REFUSALS_KNOWN_MAX:
            self.noted.popitem(last=False)
        return [
            RiskEvent(
                risk_event_id=self.next_id(),
                user_id=account.user_id,
                account_id=account.account_id,
                kind="refused",
                limit_name=refusal.metadata["limit"],
                value=refusal.metadata["value"],
                bound=refusal.metadata["bound"],
                instrument_id=instrument_id,
                time=now,
            )
        ]


@dataclass(frozen=True, slots=True)
class PlaceOrders:
    """Places a batch in one transaction, one outcome for each; a refused order leaves the others alone.

    An outcome is the serialized answer, new or of the first time, or the refusal. With skip_locked, accounts that
    somebody else has locked are not waited for: AccountLocked.
    """

    market: Market
    limits: Limits
    weigh: Weigh
    note_refusals: NoteRefusals
    answer: Callable[[AccountState, Order], bytes]
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, answers: Answers, placings: Sequence[Placing], *, skip_locked: bool = False
    ) -> list[bytes | Refusal]:
        named = {each.ticket.account_id for each in placings}
        traded = {each.ticket.instrument_id for each in placings}
        owners: dict[UUID, UUID] = {}
        if skip_locked:
            states, owners = await accounts.lock_free(named, traded)
        else:
            states = await accounts.lock(named, traded)
        await self.weigh.load(accounts, states.values())
        # Under the lock: an equal request that was first has committed by now.
        used = dict(await answers.find([each.key for each in placings]))
        if any(each.ticket.reduce_only for each in placings):
            await accounts.load_reducing(states)
        new: dict[RequestKey, bytes] = {}
        # Only what was accepted uses its request_id; after a refusal another body may have it.
        accepted: dict[tuple[UUID, str, str], RequestKey] = {}
        outcomes: list[bytes | Refusal] = []
        refused: list[RiskEvent] = []
        for each in placings:
            key = each.key
            request = (key.user_id, key.method, key.request_id)
            if owners.get(each.ticket.account_id) == key.user_id:
                outcomes.append(AccountLocked("the account is busy; retry", dependency="orders"))
            elif before := used.get(key) or new.get(key):
                outcomes.append(before)
            elif request in accepted:
                outcomes.append(
                    RequestIdReused("the request_id was used before with another body", request_id=key.request_id)
                )
            else:
                state = states.get(each.ticket.account_id)
                try:
                    state, order = self._place(state, each)
                except Refusal as refusal:
                    outcomes.append(refusal)
                    if state is not None:
                        refused += self.note_refusals(state.account, each.ticket.instrument_id, refusal, self.now())
                else:
                    accepted[request] = key
                    new[key] = self.answer(state, order)
                    outcomes.append(new[key])
        if new:
            await accounts.save(list(states.values()))
            await answers.add(new)
        await accounts.add_risk_events(refused)
        return outcomes

    def _place(self, state: AccountState | None, asked: Placing) -> tuple[AccountState, Order]:
        ticket = asked.ticket
        # The transaction sees the accounts of all the batch's users; this caller may name only its own.
        if state is None or state.account.user_id != asked.key.user_id:
            raise AccountNotFound("no such account", account_id=ticket.account_id)
        now = self.now()
        return state, placing.place(
            state,
            ticket,
            instrument=self.market.instrument(ticket.instrument_id),
            quote=self.market.quote(ticket.instrument_id, now),
            limits=self.limits,
            weighing=self.weigh(state, ticket.instrument_id, ticket.deployment_id, now),
            order_id=self.next_id(),
            now=now,
        )


async def locked_account(
    accounts: Accounts, account_id: UUID, instrument_ids: Iterable[str] = ()
) -> tuple[dict[UUID, AccountState], AccountState]:
    """An account under its lock, also by its id. Raises AccountNotFound."""
    states = await accounts.lock([account_id], instrument_ids)
    if account_id not in states:
        raise AccountNotFound("no such account", account_id=account_id)
    return states, states[account_id]


@dataclass(frozen=True, slots=True)
class PlaceGroup:
    """Places orders that depend on each other, all of them or none."""

    market: Market
    limits: Limits
    weigh: Weigh
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, kind: GroupKind, tickets: Sequence[Ticket]) -> Sequence[Order]:
        account_id, instrument_id = tickets[0].account_id, tickets[0].instrument_id
        states, state = await locked_account(accounts, account_id, [instrument_id])
        await self.weigh.load(accounts, [state])
        if any(ticket.reduce_only for ticket in tickets):
            await accounts.load_reducing(states)
        now = self.now()
        orders = placing.place_group(
            state,
            kind,
            tickets,
            instrument=self.market.instrument(instrument_id),
            quote=self.market.quote(instrument_id, now),
            limits=self.limits,
            weighing=self.weigh(state, instrument_id, tickets[0].deployment_id, now),
            group_id=self.next_id(),
            next_id=self.next_id,
            now=now,
        )
        await accounts.save([state])
        return orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What placing an order would answer; order is None where it names or asks for what there is not."""

    order: Order | None
    refusals: Sequence[Refusal]
    notional: Decimal | None
    margins: Sequence[Margin]
    initial_margin: Decimal | None = None
    """Of a margin account: what the part of it that would open takes."""
    liquidation_price: Decimal | None = None
    """Of a margin account: of the position after it."""


@dataclass(frozen=True, slots=True)
class PreviewOrder:
    """Judges an order as PlaceOrder would, against an account as it was read, and changes nothing."""

    market: Market
    limits: Limits
    weigh: Weigh
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, state: AccountState, ticket: Ticket) -> Preview:
        await self.weigh.load(accounts, [state])
        now = self.now()
        quote = self.market.quote(ticket.instrument_id, now)
        known = {
            "instrument": self.market.instrument(ticket.instrument_id),
            "quote": quote,
            "limits": self.limits,
            "now": now,
        }
        order, notional, margins = None, None, []
        initial_margin, liquidation_price = None, None
        try:
            order = placing.drafted(state, ticket, order_id=self.next_id(), **known)
        except Refusal as refusal:
            refusals = [refusal]
        else:
            weighing = self.weigh(state, ticket.instrument_id, ticket.deployment_id, now)
            refusals = list(placing.objections(state, order, **known, weighing=weighing))
            margins = list(weighing.margins(placing.proposal_of(order, quote, self.limits)))
            price = placing.likely_price(order, quote)
            notional = None if price is None else rounded(multiply(order.quantity, price))
            if state.account.is_margin:
                initial_margin = margin.need_of_new(state, order).margin
                if price is not None and (instrument := known["instrument"]):
                    liquidation_price = self._liquidation_price(state, order, price, instrument, now)
        if any(isinstance(refusal, Invalid | NotFound) for refusal in refusals):
            order = None
        return Preview(
            order=order,
            refusals=refusals,
            notional=notional,
            margins=margins,
            initial_margin=initial_margin,
            liquidation_price=liquidation_price,
        )

    def _liquidation_price(
        self, state: AccountState, order: Order, price: Decimal, instrument: Instrument, now: datetime
    ) -> Decimal | None:
        """Of the position as it would be once all of the order has traded at the price."""
        wallet = state.balance(order.reserved_asset).total
        position, wallet = margin.traded(state, order, price, wallet, now)
        others = [each for each in state.positions.values() if each.instrument_id != order.instrument_id]
        held = holdings(state.account, [*others, position], self.market, now)
        for holding in held:
            if holding.position.instrument_id == order.instrument_id:
                return margin.liquidation_price(holding, held, wallet, instrument.tick_size)
        return None


async def locked_order(
    accounts: Accounts, account_id: UUID | None, order_id: UUID
) -> tuple[dict[UUID, AccountState], AccountState, Order]:
    """An order under its account's lock. Raises OrderNotFound, and UserDeleted where nothing is traded any more."""
    states = await accounts.lock([account_id] if account_id else [])
    await accounts.load_orders(states, [order_id])
    for state in states.values():
        if state.account.closed:
            raise UserDeleted
        if order := state.orders.get(order_id):
            return states, state, order
    raise OrderNotFound("no such order", order_id=order_id)


@dataclass(frozen=True, slots=True)
class ReplaceOrder:
    market: Market
    limits: Limits
    weigh: Weigh
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, account_id: UUID | None, order_id: UUID, change: Replacement) -> Order:
        states, state, order = await locked_order(accounts, account_id, order_id)
        await accounts.load_standing(states, [order.instrument_id])
        await self.weigh.load(accounts, [state])
        if order.reduce_only:
            await accounts.load_reducing(states)
        now = self.now()
        replaced = replacing.replace_order(
            state,
            order,
            change,
            instrument=self.market.instrument(order.instrument_id),
            quote=self.market.quote(order.instrument_id, now),
            limits=self.limits,
            weighing=self.weigh(state, order.instrument_id, order.deployment_id, now),
            now=now,
        )
        await accounts.save([state])
        return replaced


@dataclass(frozen=True, slots=True)
class ClosePosition:
    """Closes a position, or so much of it, at what the market offers."""

    market: Market
    limits: Limits
    weigh: Weigh
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, account_id: UUID, instrument_id: str, quantity: Decimal | None
    ) -> Order:
        states, state = await locked_account(accounts, account_id, [instrument_id])
        await self.weigh.load(accounts, [state])
        await accounts.load_reducing(states)
        instrument = self.market.instrument(instrument_id)
        position = state.positions.get(instrument_id) or Position(instrument_id=instrument_id)
        held = abs(position.quantity)
        if instrument is not None:
            held = down_to(held, instrument.lot_size)
        if not held:
            raise NotReducing("there is nothing to close", quantity=plain(quantity or ZERO), reducible="0")
        now = self.now()
        ticket = Ticket(
            account_id=account_id,
            instrument_id=instrument_id,
            side=Side.SELL if position.quantity > 0 else Side.BUY,
            order_type=OrderType.MARKET,
            time_in_force=TimeInForce.IOC,
            quantity=min(quantity or held, held),
            limit_price=None,
            reduce_only=True,
        )
        if state.account.is_margin:
            # Of a cash account a venue's cancel has to be waited for: until then what is to be sold is set aside.
            life.make_way(state, instrument_id, ticket.side, ticket.quantity, now)
        order = placing.place(
            state,
            ticket,
            instrument=instrument,
            quote=self.market.quote(instrument_id, now),
            limits=self.limits,
            weighing=self.weigh(state, instrument_id, None, now),
            order_id=self.next_id(),
            now=now,
        )
        await accounts.save([state])
        return order


@dataclass(frozen=True, slots=True)
class CancelOrder:
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, account_id: UUID | None, order_id: UUID) -> Order:
        _, state, order = await locked_order(accounts, account_id, order_id)
        if order.liquidates and order.state in OPEN:
            raise OrderLiquidates(order.order_id)
        canceled = life.request_cancel(state, order, self.now())
        await accounts.save([state])
        return canceled


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Open orders of an account; None for any."""

    instrument_id: str | None = None
    side: Side | None = None
    deployment_id: UUID | None = None

    def holds(self, order: Order) -> bool:
        return (
            (self.instrument_id is None or order.instrument_id == self.instrument_id)
            and (self.side is None or order.side is self.side)
            and (self.deployment_id is None or order.deployment_id == self.deployment_id)
        )


@dataclass(frozen=True, slots=True)
class CancelAllOrders:
    """An account has no more open orders than it may, so that one transaction cancels them all.

    Parent orders go first: what they would place next would be open again.
    """

    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, account_id: UUID, selection: Selection
    ) -> tuple[Account, Sequence[UUID], Sequence[UUID]]:
        """The account after it, and the orders and the parent orders whose cancel is under way."""
        states, state = await locked_account(accounts, account_id)
        if state.account.closed:
            raise UserDeleted
        now = self.now()
        canceling = await accounts.cancel_parents(
            states,
            now,
            instrument_id=selection.instrument_id,
            side=selection.side,
            deployment_id=selection.deployment_id,
        )
        await accounts.load_open(states)
        named = sorted(
            order_id
            for order_id, order in state.orders.items()
            if order.state in OPEN and not order.liquidates and selection.holds(order)
        )
        cancel_each(state, named, now)
        await accounts.save([state])
        return state.account, named, canceling


def cancel_each(state: AccountState, order_ids: Iterable[UUID], now: datetime, cause: str = life.USER) -> None:
    """Asks to cancel those of the orders that are still open: what waits for an entry ends with it."""
    for order_id in order_ids:
        if (order := state.orders[order_id]).state in OPEN:
            life.request_cancel(state, order, now, cause)


@dataclass(frozen=True, slots=True)
class StepWaiting:
    """Has what waits here do what it can, under the locks of its accounts: orders of theirs that are at hand.

    Loading comes before anything is changed, and the steps after it.
    """

    market: Market
    limits: Limits
    weigh: Weigh
    now: Callable[[], datetime]

    async def load(self, accounts: Accounts, states: Mapping[UUID, AccountState]) -> None:
        found = [(state, order) for state in states.values() for order in triggers.at_hand(state)]
        if not found:
            return
        await accounts.load_standing(states, {order.instrument_id for _, order in found})
        await self.weigh.load(accounts, {id(state): state for state, _ in found}.values())

    def __call__(self, state: AccountState) -> None:
        for order_id in [order.order_id for order in triggers.waiting(state)]:
            order, now = state.orders[order_id], self.now()
            instrument = self.market.instrument(order.instrument_id)
            # A step before may have ended it.
            if not order.waits_here or instrument is None:
                continue
            triggers.step(
                state,
                order,
                instrument=instrument,
                quote=self.market.quote(order.instrument_id, now),
                limits=self.limits,
                weighing=self.weigh(state, order.instrument_id, order.deployment_id, now),
                now=now,
            )


@dataclass(frozen=True, slots=True)
class AnnotateOrder:
    """Under the account's lock: who leaves at this moment has done so before it, or what is noted is forgotten with the rest."""

    async def __call__(
        self, accounts: Accounts, account_id: UUID | None, order_id: UUID, annotation: Annotation
    ) -> Order:
        _, _, order = await locked_order(accounts, account_id, order_id)
        await accounts.annotate(order, annotation)
        return order


@dataclass(frozen=True, slots=True)
class CancelOrdersOf:
    """Has open orders of somebody canceled, so many at most, as they would have; how many there were.

    Of all accounts, or of one, or of one deployment. Parent orders count too, and go first: so many more at most.
    """

    now: Callable[[], datetime]
    orders_at_once: int

    async def __call__(
        self,
        accounts: Accounts,
        user_id: UUID,
        *,
        cause: str = life.USER,
        account_id: UUID | None = None,
        deployment_id: UUID | None = None,
    ) -> int:
        only = {"account_id": account_id, "deployment_id": deployment_id}
        parents = await accounts.active_parents(user_id, self.orders_at_once, **only)
        found = await accounts.uncanceled_orders(user_id, self.orders_at_once, **only)
        states = await accounts.lock({account_id for account_id, _ in (*parents, *found)})
        if parents:
            await accounts.cancel_parents(
                states, self.now(), parent_order_ids=[parent_order_id for _, parent_order_id in parents]
            )
        await accounts.load_orders(states, [order_id for _, order_id in found])
        for found_in, order_id in found:
            # It may have been filled before its account was locked.
            cancel_each(states[found_in], [order_id], self.now(), cause)
        await accounts.save(list(states.values()))
        return len(parents) + len(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuedPosition:
    """A position, and what closing it now would make; None without a price."""

    position: Position
    mark_price: Decimal | None
    unrealized_profit: Decimal | None
    holding: Holding | None = None
    """Of a margin account: what it is backed by; None when flat."""
    liquidation_price: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio:
    account: Account
    balances: Sequence[Balance]
    positions: Sequence[ValuedPosition]
    equity: Mapping[str, Decimal]
    margins: Sequence[MarginStanding] = ()


def value(position: Position, quote: Quote | None) -> ValuedPosition:
    """Valued at what closing would get: the bid when long, the ask when short, the last trade without a book."""
    mark = None
    if quote is not None:
        mark = (quote.bid if position.quantity > 0 else quote.ask) or quote.last
    profit = rounded(multiply(position.quantity, mark - position.average_price)) if mark is not None else None
    return ValuedPosition(position=position, mark_price=mark, unrealized_profit=profit)


def appraise(
    account: Account, balances: Sequence[Balance], positions: Sequence[Position], market: Market, now: datetime
) -> Portfolio:
    """What an account holds and is worth, by asset.

    An asset that some instrument prices counts in that instrument's quote asset, every other one as itself.
    """
    if account.is_margin:
        return appraise_margin(account, balances, positions, market, now)
    valued = [value(position, market.quote(position.instrument_id, now)) for position in positions]
    equity: dict[str, Decimal] = {}
    for balance in balances:
        asset, worth = balance.asset, balance.total
        if (instrument := market.pricing(asset)) and (quote := market.quote(instrument.instrument_id, now)):
            price = quote.bid or quote.last or ZERO
            asset, worth = instrument.quote_asset, rounded(multiply(worth, price))
        equity[asset] = equity.get(asset, ZERO) + worth
    return Portfolio(account=account, balances=balances, positions=valued, equity=equity)


def appraise_margin(
    account: Account, balances: Sequence[Balance], positions: Sequence[Position], market: Market, now: datetime
) -> Portfolio:
    """What a margin account holds, and where it stands in each asset; positions are valued at their mark prices."""
    held = holdings(account, positions, market, now)
    standings = margin.standings(balances, held)
    return Portfolio(
        account=account,
        balances=balances,
        positions=value_margined(positions, balances, held, market),
        equity={each.asset: each.wallet if each.balance is None else each.balance for each in standings},
        margins=standings,
    )


def value_margined(
    positions: Iterable[Position], balances: Iterable[Balance], held: Sequence[Holding], market: Market
) -> list[ValuedPosition]:
    """Positions of a margin account, given all that it holds."""
    wallets = {each.asset: each.total for each in balances}
    own = {each.position.instrument_id: each for each in held}
    valued: list[ValuedPosition] = []
    for position in positions:
        holding, instrument = own.get(position.instrument_id), market.instrument(position.instrument_id)
        price = None
        if holding is not None and holding.perpetual is not None and instrument is not None:
            wallet = wallets.get(holding.perpetual.settle_asset, ZERO)
            price = margin.liquidation_price(holding, held, wallet, instrument.tick_size)
        profit = holding.profit if holding is not None else None
        valued.append(
            ValuedPosition(
                position=position,
                mark_price=holding.mark if holding is not None else None,
                unrealized_profit=None if profit is None else rounded(profit),
                holding=holding,
                liquidation_price=price,
            )
        )
    return valued


def holdings(account: Account, positions: Iterable[Position], market: Market, now: datetime) -> list[Holding]:
    """What a margin account holds, at the mark prices as they are known, however old."""
    held = [each for each in positions if each.quantity]
    instruments = {each.instrument_id: market.instrument(each.instrument_id) for each in held}
    quotes = {each.instrument_id: market.quote(each.instrument_id, now) for each in held}
    perpetuals = {name: each.perpetual for name, each in instruments.items() if each and each.perpetual}
    marks = {name: quote.mark for name, quote in quotes.items() if quote is not None}
    return margin.holdings(account, held, perpetuals, marks.get)


def equity_of(
    account: Account, balances: Iterable[Balance], positions: Iterable[Position], market: Market, now: datetime
) -> Decimal | None:
    """What an account is worth in its valuation asset; None where something it holds has no price now.

    A margin account is worth its wallets and what its positions would make at their mark prices.
    """
    if account.is_margin:
        valued = margin.valued(balances, holdings(account, positions, market, now))
        if valued is None:
            return None
        balances = valued
    return worth(balances, account.valuation_asset, market, now)


def worth(balances: Iterable[Balance], asset: str, market: Market, now: datetime) -> Decimal | None:
    """What balances are worth in the asset, at the prices they could be sold at; None where one has no price now.

    What no instrument prices in the asset counts nothing.
    """
    total = ZERO
    for balance in balances:
        if balance.asset == asset or not balance.total:
            total += balance.total
            continue
        instrument = market.pricing_in(balance.asset, asset)
        if instrument is None:
            continue
        quote = market.quote(instrument.instrument_id, now)
        price = quote and (quote.bid or quote.last)
        if not price:
            return None
        total += rounded(multiply(balance.total, price))
    return total
