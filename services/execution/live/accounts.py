"""All live accounts: divided among the replicas by leases, each carried by the one that holds it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
from prometheus_client import Gauge

from libs.errors import Unavailable
from libs.store.background import Backoff, end, running
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import Lease
from libs.store.shares import Share
from services.execution.domain import LiveAccount, State
from services.execution.live import reconciliation_store, store
from services.execution.live.records import give_up_late
from services.execution.live.runner import AccountRunner, Rules, Wanted
from services.execution.live.store import Task
from services.execution.venues.keys import KeyRing
from services.execution.venues.ports import Ports

LOOK_SECONDS = 1.0
"""So often leases are renewed, and accounts looked for that were confirmed or stopped."""
POLL_SECONDS = 0.1
"""So often the orders are asked for that other replicas wrote, and what else people asked for LOOK_SECONDS apart; what this
one wrote wakes it."""
LATE_MAX = 100
"""Orders that nobody has sent in time, given up at a time."""
TASKS_MAX = 50
"""Of each account, read at a time."""

ACCOUNTS = Gauge("tradeloom_live_accounts", "Live accounts that this replica carries.")
WAITING = Gauge("tradeloom_live_accounts_waiting", "Of those, the ones for which nothing can be sent now.")
UNKNOWN = Gauge("tradeloom_unknown_orders_alerted", "Orders whose outcome is unknown for longer than it should be.")

log = structlog.get_logger(__name__)


class LiveStuck(Unavailable):
    """Live accounts wait, or the outcome of orders is unknown for too long."""


@dataclass(slots=True)
class Carried:
    lease: Lease
    runner: AccountRunner
    task: asyncio.Task[None]
    confirm_count: int
    ending: asyncio.Task[None] | None = None

    def is_of(self, account: LiveAccount | None, lease: Lease | None) -> bool:
        """Whether it goes on; for another key another one begins. Whether it may trade is looked at right before sending."""
        mine = self.runner.account
        return (
            account is not None
            and lease == self.lease
            and (account.credential_id, account.credential_revision, account.venue, account.kind)
            == (mine.credential_id, mine.credential_revision, mine.venue, mine.kind)
        )


class LiveAccounts:
    """database is of the worker role."""

    def __init__(self, database: Database, ring: KeyRing, ports: Ports, rules: Rules) -> None:
        self._database, self._ring, self._ports, self._rules = database, ring, ports, rules
        self._share = Share(database, "live")
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._carried: dict[UUID, Carried] = {}
        self._waiting: set[UUID] = set()
        self._alerted: set[UUID] = set()
        self._ask_all_at = 0.0

    def wake(self) -> None:
        """Has the tables be read at once."""
        self._woken.set()

    @property
    def carried_ids(self) -> set[UUID]:
        """Of the accounts that this replica carries."""
        return set(self._carried)

    @property
    def troubles(self) -> list[str]:
        found = [
            f"account {account_id}: {trouble}"
            for account_id, carried in self._carried.items()
            if (trouble := carried.runner.troubles)
        ]
        found += [f"account {account_id}: no room, see EXECUTION_LIVE_ACCOUNTS_MAX" for account_id in self._waiting]
        if self._alerted:
            found.append(f"{len(self._alerted)} orders are unknown for too long: see ListUnknownOrders")
        return found

    async def check(self) -> None:
        """Raises LiveStuck."""
        if troubles := self.troubles:
            raise LiveStuck("; ".join(troubles), dependency="live")

    @asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        try:
            async with running("dividing live accounts", self._look), running("orders of live accounts", self._poll):
                yield
        finally:
            await end([carried.task for carried in self._carried.values()])
            self._carried.clear()
            await self._share.leave()

    # Which accounts.

    async def _look(self) -> None:
        self._changed.clear()
        async with self._database.reading() as rows:
            accounts = await store.find_accounts(rows)
        self._carried = {account_id: one for account_id, one in self._carried.items() if not one.task.done()}
        busy = [str(account_id) for account_id in self._carried]
        held = await self._share.turn([str(account_id) for account_id in accounts], busy)
        self._settle(accounts, {UUID(name): lease for name, lease in held.items()})
        await give_up_late(self._database, LATE_MAX)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._changed.wait()

    def _settle(self, accounts: Mapping[UUID, LiveAccount], held: Mapping[UUID, Lease]) -> None:
        for account_id, carried in self._carried.items():
            if not carried.is_of(accounts.get(account_id), held.get(account_id)) and carried.ending is None:
                # Beside, as the leases of the others are to be renewed however long it takes.
                carried.ending = asyncio.create_task(end([carried.task]), name=f"end of live account {account_id}")
                carried.ending.add_done_callback(lambda _: self._changed.set())
            elif (account := accounts.get(account_id)) and account.confirm_count != carried.confirm_count:
                carried.confirm_count = account.confirm_count
                carried.runner.compare()
        new = sorted(held.keys() & accounts.keys() - self._carried.keys())
        room = max(0, self._rules.accounts_max - len(self._carried))
        self._waiting = set(new[room:])
        for account_id in new[:room]:
            lease, account = held[account_id], accounts[account_id]
            runner = AccountRunner(
                self._database,
                lease,
                account,
                self._rules,
                lambda account_id=account_id, lease=lease: self._share.held.get(str(account_id)) == lease,
                self.wake,
            )
            task = asyncio.create_task(self._carry(runner), name=f"live account {account_id}")
            self._carried[account_id] = Carried(lease, runner, task, account.confirm_count)
        ACCOUNTS.set(len(self._carried))

    async def _carry(self, runner: AccountRunner) -> None:
        """As often as it takes, until it is cancelled."""
        backoff = Backoff()
        while True:
            started_at = time.monotonic()
            try:
                await runner.run(self._ring, self._ports)
            except Exception as error:
                runner.trouble = f"{type(error).__name__}: {error}"
                log.exception("a live account is not carried", account_id=str(runner.account.account_id))
            backoff.went_well_for(time.monotonic() - started_at)
            await asyncio.sleep(backoff.next_seconds())

    # What is to be done.

    async def _poll(self) -> None:
        asks_all = self._woken.is_set() or time.monotonic() >= self._ask_all_at
        self._woken.clear()
        if account_ids := [account_id for account_id, one in self._carried.items() if one.ending is None]:
            await self._give(account_ids, asks_all=asks_all)
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()

    async def _give(self, account_ids: list[UUID], *, asks_all: bool) -> None:
        requested: Mapping[UUID, UUID] = {}
        adopting: Mapping[UUID, UUID] = {}
        try:
            async with self._database.reading() as rows:
                tasks = await store.find_tasks(rows, account_ids, TASKS_MAX)
                if asks_all:
                    requested = await reconciliation_store.find_requested(rows, account_ids)
                    adopting = await reconciliation_store.find_adopting(rows, account_ids)
                    self._ask_all_at = time.monotonic() + LOOK_SECONDS
        except DatabaseUnavailable as error:
            log.warning("orders of live accounts wait", cause=str(error))
            await asyncio.sleep(LOOK_SECONDS)
            return
        self._alert(tasks)
        wanted = {
            account_id: Wanted([], requested.get(account_id), adopting.get(account_id)) for account_id in account_ids
        }
        for task in tasks:
            wanted[task.account_id].tasks.append(task)
        for account_id, of_account in wanted.items():
            if (carried := self._carried.get(account_id)) and carried.ending is None:
                carried.runner.take(of_account)
        WAITING.set(len(self._waiting) + sum(bool(one.runner.troubles) for one in self._carried.values()))

    def _alert(self, tasks: list[Task]) -> None:
        limit = time.time() - self._rules.unknown_alert_seconds
        alerted = {
            task.order_id
            for task in tasks
            if task.state is State.UNKNOWN and task.send_time is not None and task.send_time.timestamp() < limit
        }
        for order_id in alerted - self._alerted:
            log.error("the outcome of an order is not known for too long", order_id=str(order_id))
        self._alerted = alerted
        UNKNOWN.set(len(alerted))
