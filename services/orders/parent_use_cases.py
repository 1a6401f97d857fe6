"""What is done with parent orders, one per intention. Each works on stores that are bound to one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from libs.errors import Refusal
from services.orders import parents, placing
from services.orders.domain import AccountState, Limits, Order, State
from services.orders.parents import LIVE, Parent, ParentKind, ParentMove, ParentState, ParentTicket, Skip
from services.orders.refusals import ParentOrderDone, ParentOrderNotFound, TooManyParentOrders, UserDeleted
from services.orders.use_cases import Accounts, Market, NoteRefusals, Weigh, cancel_each, locked_account


class Parents(Protocol):
    """Where parent orders live, in the same transaction as their accounts."""

    async def add(self, parent: Parent) -> None: ...
    async def find(self, parent_order_id: UUID) -> Parent | None: ...
    async def put(self, parent: Parent) -> None: ...
    async def add_skips(self, parent: Parent, skips: Sequence[Skip]) -> None: ...
    async def count_live(self, account_id: UUID, user_id: UUID) -> int: ...
    async def last_child(self, parent_order_id: UUID) -> tuple[State, datetime] | None: ...
    async def open_children(self, parent: Parent) -> Sequence[UUID]: ...


@dataclass(frozen=True, slots=True)
class PlaceParentOrder:
    market: Market
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    parent_orders_max: int

    async def __call__(self, accounts: Accounts, known: Parents, ticket: ParentTicket) -> Parent:
        _, state = await locked_account(accounts, ticket.account_id)
        account, now = state.account, self.now()
        parent = parents.accept(
            ticket,
            account=account,
            instrument=self.market.instrument(ticket.instrument_id),
            quote=self.market.quote(ticket.instrument_id, now),
            parent_order_id=self.next_id(),
            now=now,
        )
        if await known.count_live(account.account_id, account.user_id) >= self.parent_orders_max:
            raise TooManyParentOrders("too many parent orders are under way", parent_orders_max=self.parent_orders_max)
        await known.add(parent)
        return parent


@dataclass(frozen=True, slots=True)
class CancelParentOrder:
    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, known: Parents, account_id: UUID | None, parent_order_id: UUID
    ) -> Parent:
        """From this commit on it places nothing. A cancel that is under way already changes nothing."""
        states = await accounts.lock([account_id] if account_id else [])
        parent = await known.find(parent_order_id)
        if parent is None or not (state := states.get(parent.account_id)):
            raise ParentOrderNotFound("no such parent order", parent_order_id=parent_order_id)
        if state.account.closed:
            raise UserDeleted
        if parent.state not in LIVE:
            raise ParentOrderDone(
                f"the parent order is {parent.state.value}", parent_order_id=parent_order_id, state=parent.state.name
            )
        if parent.state is ParentState.CANCELING:
            return parent
        now = self.now()
        move = ParentMove.CANCEL_REQUESTED if parent.open_children else ParentMove.CANCELED
        parent = parents.moved(parent, move, now)
        await cancel_children(accounts, known, states, parent, now)
        await known.put(parent)
        return parent


async def cancel_children(
    accounts: Accounts, known: Parents, states: Mapping[UUID, AccountState], parent: Parent, now: datetime
) -> None:
    """Asks to cancel the open children; call it under the lock."""
    if not parent.open_children:
        return
    children = await known.open_children(parent)
    await accounts.load_orders(states, children)
    cancel_each(states[parent.account_id], children, now)
    await accounts.save(list(states.values()))


@dataclass(frozen=True, slots=True)
class StepParentOrder:
    """Does what a parent is due to do, in one transaction: its child is placed with it, or neither is."""

    market: Market
    limits: Limits
    weigh: Weigh
    note_refusals: NoteRefusals
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]

    async def __call__(
        self, accounts: Accounts, known: Parents, account_id: UUID, instrument_id: str, parent_order_id: UUID
    ) -> bool:
        """Whether it was due: another replica may have been first."""
        states, state = await locked_account(accounts, account_id, [instrument_id])
        parent, now = await known.find(parent_order_id), self.now()
        if parent is None or parent.due_time is None or parent.due_time > now:
            return False
        is_iceberg = parent.kind is ParentKind.ICEBERG
        last_child = await known.last_child(parent_order_id) if is_iceberg else None
        step = parents.next_step(parent, last_child[0] if last_child else None, now)
        after = step.parent
        if step.cancels:
            await cancel_children(accounts, known, states, after, now)
        elif step.slice_number is not None:
            await self.weigh.load(accounts, [state])
            since = parents.slice_start(after, step.slice_number)
            if last_child is not None:
                since = last_child[1]
            after = await self._place(accounts, state, after, step.slice_number, since, now)
        await known.add_skips(after, step.skips)
        await known.put(after)
        return True

    async def _place(
        self, accounts: Accounts, state: AccountState, parent: Parent, number: int, since: datetime, now: datetime
    ) -> Parent:
        """The parent with the slice's child, or with the refusal noted."""
        try:
            child = self._child(state, parent, number, now)
        except Refusal as refusal:
            noted = self.note_refusals(state.account, parent.instrument_id, refusal, now)
            await accounts.add_risk_events(noted)
            return parents.refused(parent, number, refusal, since, now)
        if child is None:
            return parents.unneeded(parent, number, now)
        await accounts.save([state])
        return parents.placed(parent, child, now)

    def _child(self, state: AccountState, parent: Parent, number: int, now: datetime) -> Order | None:
        """The slice's child, placed as PlaceOrder does; None where there is nothing to place."""
        instrument = self.market.instrument(parent.instrument_id)
        quote = self.market.quote(parent.instrument_id, now)
        if instrument is None:
            raise parents.no_instrument(parent.instrument_id)
        quantity = parents.child_quantity(parent, number, instrument, quote, self.limits)
        if not quantity:
            return None
        return placing.place(
            state,
            parents.child_ticket(parent, number, quantity),
            instrument=instrument,
            quote=quote,
            limits=self.limits,
            weighing=self.weigh(state, parent.instrument_id, parent.deployment_id, now),
            order_id=self.next_id(),
            now=now,
        )
