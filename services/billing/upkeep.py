"""What goes on beside the requests: time passing, changed plans reaching those who have them, forgetting."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from libs.errors import Refusal
from libs.store.database import Database
from services.billing import domain, store, use_cases
from services.billing.payments import Payments
from services.billing.store import Books

# How far a clock may drift between two looks.
DRIFT_SECONDS = 5.0
# What could not be done is tried again after.
RETRY = timedelta(minutes=10)
PURGE_SECONDS = 60.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Clock:
    """The time of day, held against a clock that nobody can set: nobody loses a plan because a machine's clock jumped."""

    now: Callable[[], datetime]
    settle_seconds: float
    """A clock that was just set may be set again: for so long nothing becomes due by it."""
    monotonic: Callable[[], float] = time.monotonic
    _ahead: float = field(default=0.0, init=False)
    _set_at: float | None = field(default=None, init=False)

    def believed(self) -> datetime | None:
        """None while the clock was set not long ago, as it may have been when nobody looked yet."""
        now, moment = self.now(), self.monotonic()
        ahead = now.timestamp() - moment
        if self._set_at is None:
            self._set_at = moment
        elif abs(ahead - self._ahead) > DRIFT_SECONDS:
            log.warning("the clock was set", seconds=round(ahead - self._ahead, 1))
            self._set_at = moment
        self._ahead = ahead
        return None if moment - self._set_at < self.settle_seconds else now


@dataclass(frozen=True, slots=True)
class Upkeep:
    """database is of the worker role; payments is None in manual mode."""

    database: Database
    clock: Clock
    pass_time: use_cases.PassTime
    payments: Payments | None
    poll_seconds: float

    async def follow_time(self) -> None:
        """Ends what has ended by itself, and asks Stripe about what it should have told long ago."""
        if now := self.clock.believed():
            async with self.database.reading() as rows:
                due = await store.find_due(rows, now)
            for user_id in due:
                await self._attempt("time could not pass for a person", user_id, lambda each: self._pass(each, now))
        await asyncio.sleep(self.poll_seconds)

    async def _pass(self, user_id: UUID, now: datetime) -> None:
        async with self.database.transaction(user_id) as rows:
            books = Books(rows, stripe=self.payments is not None)
            await books.lock(user_id)
            # Whoever fails below comes again later, behind the others; and another replica finds nothing due.
            if not await store.postpone(rows, user_id, now, now + RETRY):
                return
            subscription, moved = await self.pass_time(books, user_id, now)
        if self.payments and not moved and subscription and subscription.at_stripe:
            await self.payments.bring_up_to_date(user_id)

    async def follow_plans(self) -> None:
        """Tells everybody who has a plan that was changed what it allows now."""
        async with self.database.reading() as rows:
            outdated = await store.find_outdated(rows)
        for user_id in outdated:
            await self._attempt("a person could not be told of a changed plan", user_id, self._tell)
        if not outdated:
            await asyncio.sleep(self.poll_seconds)

    async def _tell(self, user_id: UUID) -> None:
        async with self.database.transaction(user_id) as rows:
            books = Books(rows, stripe=self.payments is not None)
            _, subscription = await books.lock(user_id)
            await books.tell_entitlements(user_id, subscription)

    async def follow_payments(self) -> None:
        """Asks Stripe about those of whom it may have had to tell what never came: who may pay, and who owes a bill."""
        if payments := self.payments:
            now = self.clock.now()
            async with self.database.reading() as rows:
                watched = await store.find_watched(rows, now)
            for user_id in watched:
                await self._attempt(
                    "a payment could not be followed", user_id, lambda each: self._look(payments, each, now)
                )
        await asyncio.sleep(self.poll_seconds)

    async def _look(self, payments: Payments, user_id: UUID, now: datetime) -> None:
        async with self.database.transaction(user_id) as rows:
            count = await store.count_look(rows, user_id, now)
            if count is None:
                return
            if count > domain.LOOKS_MAX:
                log.error("there is no end to what Stripe may have to tell of a person", user_id=str(user_id))
                await store.stop_looking(rows, user_id)
                return
        await payments.bring_up_to_date(user_id)

    async def follow_departures(self) -> None:
        """Deletes what is left of people who are gone, at Stripe first, where they would go on paying."""
        now = self.clock.now()
        async with self.database.reading() as rows:
            gone = await store.find_gone(rows, now)
        for user_id in gone:
            await self._attempt("a person could not be purged", user_id, lambda each: self._purge(each, now))
        await asyncio.sleep(self.poll_seconds)

    async def _purge(self, user_id: UUID, now: datetime) -> None:
        async with self.database.transaction(user_id) as rows:
            if not await store.postpone_purge(rows, user_id, now, now + RETRY):
                return
            customer_id = (await store.find_customer(rows, user_id)).stripe_customer_id
        if customer_id and self.payments:
            await self.payments.stripe.delete_customer(customer_id)
        async with self.database.transaction(user_id) as rows:
            await store.purge_user(rows, user_id)
            if customer_id and not self.payments:
                # It is all by which somebody with the keys can end what is paid there.
                log.error("without keys nobody can delete this customer at Stripe", customer=customer_id)
            else:
                await store.finish_purge(rows, user_id, customer_id)

    async def purge_old(self) -> None:
        async with self.database.transaction() as rows:
            await store.purge_old(rows)
        await asyncio.sleep(PURGE_SECONDS)

    async def _attempt(self, failure: str, user_id: UUID, work: Callable[[UUID], Awaitable[None]]) -> None:
        """One person's trouble is not the others'."""
        try:
            await work(user_id)
        except Refusal as refusal:
            log.warning(failure, user_id=str(user_id), why=refusal.reason, **refusal.metadata)
