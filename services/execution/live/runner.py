"""One live account, while this replica holds it: its port, its stream, and the steps of its orders, some at once."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog

from libs.store.background import Backoff, end, running
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import Lease, LeaseLost
from services.execution.domain import LeasedKey, LiveAccount, State, VenueUnavailable
from services.execution.live.adopting import Adopting
from services.execution.live.comparison import Cause
from services.execution.live.funding import FundingReader
from services.execution.live.news import News
from services.execution.live.reconciling import Reconciling
from services.execution.live.records import Records
from services.execution.live.sending import ASK_SECONDS_FIRST, ASK_SECONDS_MAX, Sending
from services.execution.live.store import Task
from services.execution.venues.keys import HeldKey, KeyDropped, KeyRing
from services.execution.venues.port import Connected, Lost, StreamEvent, Told, VenuePort, VenueRefused
from services.execution.venues.ports import Ports, card_of

STEPS_AT_ONCE_MAX = 8
"""Of one account."""
CANCELS_FIRST = 2
"""So many of those are left to cancels."""
TRIES_MAX = 5
"""So often news that cannot be applied is tried; then it is left to the reconciliation."""
ASK_SECONDS = 5.0
"""So often a venue that tells nothing by itself is compared with, while it is not connected by a stream."""
PAUSE_SECONDS = 0.5
"""At least so long passes between two comparisons, however much is told of what is not ours."""
CONNECT_SECONDS = 10.0
"""So long the first comparison waits for the stream to be connected."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What an operator may turn; see settings."""

    accounts_max: int
    reconcile_seconds: float
    unknown_alert_seconds: float


@dataclass(slots=True)
class Pause:
    """Until when a thing is left alone, on the event loop's clock."""

    until: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(ASK_SECONDS_FIRST, ASK_SECONDS_MAX))


@dataclass(slots=True)
class Wanted:
    """What is to be done for an account, as the tables were last read."""

    tasks: list[Task] = field(default_factory=list)
    reconciliation_id: UUID | None = None
    external_order_id: UUID | None = None


class AccountRunner:
    """is_held says whether this replica may still count on the account's lease; wake has the tables read again."""

    def __init__(
        self,
        database: Database,
        lease: Lease,
        account: LiveAccount,
        rules: Rules,
        is_held: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self.account, self._lease = account, lease
        self._database, self._rules, self._is_held, self._wake = database, rules, is_held, wake
        self._steps: dict[object, asyncio.Task[None]] = {}
        self._busy: set[UUID] = set()
        self._pauses: dict[object, Pause] = {}
        self._unfinished: set[UUID] = set()
        """Orders that the tables say nothing is to be done about, and the venue has more of."""
        self._sending: Sending | None = None
        self._reconciling: Reconciling | None = None
        self._compare = asyncio.Event()
        self._cause = Cause.START
        self._key: HeldKey | None = None
        self.is_connected = False
        self.trouble = "it is not connected yet"

    @property
    def troubles(self) -> str:
        """Why nothing can be sent; empty if it can."""
        if self._key is not None:
            try:
                self.key()
            except KeyDropped as error:
                return f"no key: {error}"
        return self.trouble

    def key(self) -> LeasedKey:
        """Asked right before each request is signed. Raises KeyDropped where nothing may be asked any more."""
        if self._key is None:
            raise KeyDropped("it is not leased yet")
        key = self._key()
        if key.revision != self.account.credential_revision:
            raise KeyDropped("another key than was confirmed")
        if not self._is_held():
            # Another may hold the account by now, and conclude from the record that nothing was sent.
            raise KeyDropped("the account may be in other hands")
        return key

    async def run(self, ring: KeyRing, ports: Ports) -> None:
        """Until it is cancelled."""
        account = self.account
        assert account.credential_id is not None
        card = await card_of(account.venue, account.kind)
        async with (
            ring.holding(account.user_id, account.credential_id) as held,
            ports.opened(account.venue, self.key, account.kind) as port,
        ):
            self._key = held
            self._sending = Sending(Records(self._database, self._lease, account, card), port)
            funding = FundingReader(self._sending)
            self._reconciling = Reconciling(self._sending, funding)
            try:
                async with (
                    running(f"the stream of {account.account_id}", lambda: self._listen(port)),
                    running(f"reconciling {account.account_id}", self._reconcile),
                    running(f"the funding of {account.account_id}", lambda: self._follow_funding(funding)),
                ):
                    await asyncio.Event().wait()
            finally:
                await end(list(self._steps.values()))
                self._sending = self._reconciling = None

    def compare(self) -> None:
        """Has it compared with its venue soon, as after it was confirmed anew."""
        self._compare.set()

    # What is to be done.

    def take(self, wanted: Wanted) -> None:
        """Begins what is not begun yet and may be."""
        sending, reconciling = self._sending, self._reconciling
        if sending is None or reconciling is None or not self._is_held():
            return
        sent: set[str] = set()
        for task in sorted(wanted.tasks, key=lambda task: not task.cancel_asked):
            if task.state is State.INTENDED and not task.cancel_asked:
                # The oldest of each instrument alone; a change waits until it is there.
                if task.instrument_id not in sent and task.is_due:
                    self._begin(task.instrument_id, lambda task=task: sending.send(task.order_id), task.order_id)
                sent.add(task.instrument_id)
            elif task.cancel_asked:
                self._begin(task.order_id, lambda task=task: sending.cancel(task.order_id), task.order_id, urgent=True)
            elif task.state in {State.SENDING, State.UNKNOWN}:
                self._begin(task.order_id, lambda task=task: sending.settle(task.order_id), task.order_id)
            elif task.change_asked:
                self._begin(task.order_id, lambda task=task: sending.change(task.order_id), task.order_id)
        for order_id in list(self._unfinished):
            self._begin(order_id, lambda order_id=order_id: sending.settle(order_id), order_id)
        if wanted.external_order_id is not None:
            external_order_id = wanted.external_order_id
            self._begin(external_order_id, lambda: Adopting(reconciling).adopt(external_order_id))
        if wanted.reconciliation_id is not None:
            reconciliation_id = wanted.reconciliation_id
            self._begin("reconciliation", lambda: self._requested(reconciling, reconciliation_id))

    def _begin(
        self,
        name: object,
        step: Callable[[], Awaitable[float | None]],
        order_id: UUID | None = None,
        *,
        urgent: bool = False,
    ) -> None:
        room = STEPS_AT_ONCE_MAX - (0 if urgent else CANCELS_FIRST)
        pause = self._pauses.get(name)
        if name in self._steps or order_id in self._busy or len(self._steps) >= room:
            return
        if pause is not None and self._now() < pause.until:
            return
        if order_id is not None:
            self._busy.add(order_id)
        work: Coroutine[Any, Any, None] = self._step(name, step, order_id)
        self._steps[name] = asyncio.create_task(work, name=f"{self.account.account_id}: {name}")

    async def _step(self, name: object, step: Callable[[], Awaitable[float | None]], order_id: UUID | None) -> None:
        pause = self._pauses.setdefault(name, Pause())
        try:
            seconds = await step()
            within = self._asked_within(order_id)
            if seconds is None:
                self._pauses.pop(name, None)
                self._leave(order_id, done=True)
            else:
                pause.until = self._now() + (
                    min(max(seconds, pause.backoff.next_seconds()), within) if seconds else 0.0
                )
                self._leave(order_id)
        except LeaseLost as error:
            pause.until = self._now() + ASK_SECONDS_FIRST
            log.info("a live account is left to another replica", cause=str(error))
        except (VenueUnavailable, VenueRefused, DatabaseUnavailable) as error:
            pause.until = self._now() + max(
                getattr(error, "retry_after_seconds", None) or 0.0, pause.backoff.next_seconds()
            )
            self._leave(order_id)
            log.warning("an order waits", account_id=str(self.account.account_id), name=str(name), cause=str(error))
        except Exception:
            pause.until = self._now() + pause.backoff.next_seconds()
            self._leave(order_id)
            log.exception("an order waits", account_id=str(self.account.account_id), name=str(name))
        finally:
            self._steps.pop(name, None)
            if order_id is not None:
                self._busy.discard(order_id)
            self._wake()

    def _asked_within(self, order_id: UUID | None) -> float:
        """Within so many seconds the order is to be asked for again, as the step that is done has found."""
        if self._sending is None or order_id is None:
            return math.inf
        return self._sending.asked_within.pop(order_id, math.inf)

    def _leave(self, order_id: UUID | None, *, done: bool = False) -> None:
        """Whether or not the tables say that something is to be done about the order, its record is asked again."""
        if order_id is not None:
            (self._unfinished.discard if done else self._unfinished.add)(order_id)

    # What the venue tells.

    async def _listen(self, port: VenuePort) -> None:
        stream: Any = port.stream()
        try:
            async with aclosing(stream) as told:
                async for event in told:
                    await self._hear(event)
        finally:
            self.is_connected = False
        # It tells nothing by itself.
        await asyncio.Event().wait()

    async def _hear(self, event: StreamEvent) -> None:
        match event:
            case Connected():
                self.is_connected = True
                self._compare.set()
            case Lost(why=why):
                if self.is_connected:
                    self._cause = Cause.RECONNECT
                self.is_connected = False
                log.info("a live account's stream is lost", account_id=str(self.account.account_id), why=why)
            case Told():
                await self._learn(event)

    async def _learn(self, told: Told) -> None:
        sending = self._sending
        if sending is None:
            return
        backoff = Backoff()
        for _ in range(TRIES_MAX):
            try:
                learned = await sending.records.learn(News.told(told))
            except DatabaseUnavailable as error:
                log.warning("what a venue told waits", account_id=str(self.account.account_id), cause=str(error))
            except LeaseLost:
                return
            except Exception:
                log.exception("what a venue told cannot be applied", account_id=str(self.account.account_id))
            else:
                if learned.order is None:
                    # Not ours, or not known to be yet; the record says whose it is.
                    self._compare.set()
                elif learned.is_short:
                    self._unfinished.add(learned.order.order_id)
                    self._wake()
                return
            await asyncio.sleep(backoff.next_seconds())
        self._compare.set()

    # Comparing.

    async def _follow_funding(self, funding: FundingReader) -> None:
        """Beside the comparisons, which read it too."""
        if not funding.sending.records.card.perpetuals:
            await asyncio.Event().wait()
        try:
            await funding.follow()
        except (LeaseLost, VenueRefused, DatabaseUnavailable) as error:
            log.warning("funding is not read", account_id=str(self.account.account_id), cause=str(error))
            await asyncio.sleep(ASK_SECONDS)

    async def _reconcile(self) -> None:
        """Once it is connected, and then every so often, or sooner where something was missed."""
        reconciling = self._reconciling
        if reconciling is None:
            return
        has_stream = reconciling.sending.port.card.has_stream
        if self._cause is Cause.START and has_stream:
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._compare.wait()
        while True:
            self._compare.clear()
            found = None
            try:
                found = await reconciling.reconcile(self._cause)
                self.trouble = found.problem
            except LeaseLost:
                await asyncio.sleep(ASK_SECONDS)
            if found is not None and not found.problem:
                self._cause = Cause.PERIODIC
            await asyncio.sleep(PAUSE_SECONDS)
            seconds = self._rules.reconcile_seconds if has_stream and self.is_connected else ASK_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, self._rules.reconcile_seconds)):
                    await self._compare.wait()

    async def _requested(self, reconciling: Reconciling, reconciliation_id: UUID) -> float | None:
        await reconciling.reconcile(Cause.REQUESTED, reconciliation_id)
        return None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
