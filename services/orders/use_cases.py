"""What the service does, one per intention. Each works on a store that is bound to one transaction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from libs.errors import Invalid, NotFound, Refusal, RequestIdReused
from libs.money import ZERO, multiply, rounded
from libs.store.requests import RequestKey
from services.orders import books, life, placing, replacing
from services.orders.domain import (
    OPEN,
    Account,
    AccountKind,
    AccountState,
    Annotation,
    Balance,
    GroupKind,
    Instrument,
    Limits,
    Mode,
    Order,
    Position,
    Quote,
    Replacement,
    Side,
    Ticket,
)
from services.orders.refusals import (
    AccountLocked,
    AccountNotFound,
    OrderNotFound,
    TooManyAccounts,
    UserDeleted,
)


class Accounts(Protocol):
    """Where accounts and orders live, in one transaction."""

    async def add_account(self, state: AccountState) -> None: ...
    async def count_accounts(self, user_id: UUID) -> int: ...
    async def has_left(self, user_id: UUID) -> bool: ...
    async def uncanceled_orders(self, user_id: UUID, limit: int) -> Sequence[tuple[UUID, UUID]]: ...
    async def lock(self, account_ids: Iterable[UUID]) -> dict[UUID, AccountState]: ...
    async def lock_free(self, account_ids: Iterable[UUID]) -> tuple[dict[UUID, AccountState], dict[UUID, UUID]]: ...
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

    def instrument(self, instrument_id: str) -> Instrument | None: ...
    def quote(self, instrument_id: str, now: datetime) -> Quote | None: ...
    def pricing(self, asset: str) -> Instrument | None: ...


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
    ) -> Account:
        if await accounts.count_accounts(user_id) >= self.accounts_max:
            raise TooManyAccounts("too many accounts", accounts_max=self.accounts_max)
        # Under the lock of the count: who leaves at this moment does so before it, or after the commit.
        if await accounts.has_left(user_id):
            raise UserDeleted
        account = Account(
            account_id=self.next_id(), user_id=user_id, name=name, mode=mode, kind=kind, create_time=self.now()
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
class PlaceOrders:
    """Places a batch in one transaction, one outcome for each; a refused order leaves the others alone.

    An outcome is the serialized answer, new or of the first time, or the refusal. With skip_locked, accounts that
    somebody else has locked are not waited for: AccountLocked.
    """

    market: Market
    limits: Limits
    answer: Callable[[Order], bytes]
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, answers: Answers, placings: Sequence[Placing], *, skip_locked: bool = False
    ) -> list[bytes | Refusal]:
        named = {each.ticket.account_id for each in placings}
        states, owners = await accounts.lock_free(named) if skip_locked else (await accounts.lock(named), {})
        # Under the lock: an equal request that was first has committed by now.
        used = dict(await answers.find([each.key for each in placings]))
        if any(each.ticket.reduce_only for each in placings):
            await accounts.load_reducing(states)
        new: dict[RequestKey, bytes] = {}
        # Only what was accepted uses its request_id; after a refusal another body may have it.
        accepted: dict[tuple[UUID, str, str], RequestKey] = {}
        outcomes: list[bytes | Refusal] = []
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
                try:
                    order = self._place(states.get(each.ticket.account_id), each)
                except Refusal as refusal:
                    outcomes.append(refusal)
                else:
                    accepted[request] = key
                    new[key] = self.answer(order)
                    outcomes.append(new[key])
        if new:
            await accounts.save(list(states.values()))
            await answers.add(new)
        return outcomes

    def _place(self, state: AccountState | None, asked: Placing) -> Order:
        ticket = asked.ticket
        # The transaction sees the accounts of all the batch's users; this caller may name only its own.
        if state is None or state.account.user_id != asked.key.user_id:
            raise AccountNotFound("no such account", account_id=ticket.account_id)
        now = self.now()
        return placing.place(
            state,
            ticket,
            instrument=self.market.instrument(ticket.instrument_id),
            quote=self.market.quote(ticket.instrument_id, now),
            limits=self.limits,
            order_id=self.next_id(),
            now=now,
        )


@dataclass(frozen=True, slots=True)
class PlaceGroup:
    """Places orders that depend on each other, all of them or none."""

    market: Market
    limits: Limits
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, kind: GroupKind, tickets: Sequence[Ticket]) -> Sequence[Order]:
        account_id, instrument_id = tickets[0].account_id, tickets[0].instrument_id
        states = await accounts.lock([account_id])
        state = states.get(account_id)
        if state is None:
            raise AccountNotFound("no such account", account_id=account_id)
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
    open_orders: int
    open_orders_max: int


@dataclass(frozen=True, slots=True)
class PreviewOrder:
    """Judges an order as PlaceOrder would, against an account as it was read, and changes nothing."""

    market: Market
    limits: Limits
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    def __call__(self, state: AccountState, ticket: Ticket) -> Preview:
        now = self.now()
        quote = self.market.quote(ticket.instrument_id, now)
        known = {
            "instrument": self.market.instrument(ticket.instrument_id),
            "quote": quote,
            "limits": self.limits,
            "now": now,
        }
        order, notional = None, None
        try:
            order = placing.drafted(state, ticket, order_id=self.next_id(), **known)
        except Refusal as refusal:
            refusals = [refusal]
        else:
            refusals = list(placing.objections(state, order, **known))
            price = placing.likely_price(order, quote)
            notional = None if price is None else rounded(multiply(order.quantity, price))
        if any(isinstance(refusal, Invalid | NotFound) for refusal in refusals):
            order = None
        return Preview(
            order=order,
            refusals=refusals,
            notional=notional,
            open_orders=state.account.open_orders + 1,
            open_orders_max=self.limits.open_orders_max,
        )


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
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, account_id: UUID | None, order_id: UUID, change: Replacement) -> Order:
        states, state, order = await locked_order(accounts, account_id, order_id)
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
            now=now,
        )
        await accounts.save([state])
        return replaced


@dataclass(frozen=True, slots=True)
class CancelOrder:
    now: Callable[[], datetime]

    async def __call__(self, accounts: Accounts, account_id: UUID | None, order_id: UUID) -> Order:
        _, state, order = await locked_order(accounts, account_id, order_id)
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
    """An account has no more open orders than it may, so that one transaction cancels them all."""

    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, account_id: UUID, selection: Selection
    ) -> tuple[Account, Sequence[UUID]]:
        states = await accounts.lock([account_id])
        state = states.get(account_id)
        if state is None:
            raise AccountNotFound("no such account", account_id=account_id)
        if state.account.closed:
            raise UserDeleted
        await accounts.load_open(states)
        named = sorted(
            order_id for order_id, order in state.orders.items() if order.state in OPEN and selection.holds(order)
        )
        cancel_each(state, named, self.now())
        await accounts.save([state])
        return state.account, named


def cancel_each(state: AccountState, order_ids: Iterable[UUID], now: datetime) -> None:
    """Asks to cancel those of the orders that are still open: what waits for an entry ends with it."""
    for order_id in order_ids:
        if (order := state.orders[order_id]).state in OPEN:
            life.request_cancel(state, order, now)


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
    """Has open orders of somebody who has left canceled, so many at most, as they would have; how many there were."""

    now: Callable[[], datetime]
    orders_at_once: int

    async def __call__(self, accounts: Accounts, user_id: UUID) -> int:
        found = await accounts.uncanceled_orders(user_id, self.orders_at_once)
        states = await accounts.lock({account_id for account_id, _ in found})
        await accounts.load_orders(states, [order_id for _, order_id in found])
        for account_id, order_id in found:
            # It may have been filled before its account was locked.
            cancel_each(states[account_id], [order_id], self.now())
        await accounts.save(list(states.values()))
        return len(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuedPosition:
    """A position, and what closing it now would make; None without a price."""

    position: Position
    mark_price: Decimal | None
    unrealized_profit: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio:
    account: Account
    balances: Sequence[Balance]
    positions: Sequence[ValuedPosition]
    equity: Mapping[str, Decimal]


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
    valued = [value(position, market.quote(position.instrument_id, now)) for position in positions]
    equity: dict[str, Decimal] = {}
    for balance in balances:
        asset, worth = balance.asset, balance.total
        if (instrument := market.pricing(asset)) and (quote := market.quote(instrument.instrument_id, now)):
            price = quote.bid or quote.last or ZERO
            asset, worth = instrument.quote_asset, rounded(multiply(worth, price))
        equity[asset] = equity.get(asset, ZERO) + worth
    return Portfolio(account=account, balances=balances, positions=valued, equity=equity)
