"""What other services tell: how much is used, each use once; and who is gone."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from tradeloom.auth.v1 import events_pb2 as auth_events
from tradeloom.type.v1 import fact_pb2, usage_pb2

from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import Database, open_database
from libs.store.outbox import partition_of
from services.billing import upkeep
from services.billing.__main__ import following
from tests.billing.stand import Person, at_stripe, select, serving, story, subscribed, until
from tests.billing.stripe_server import Fault, StripeServer
from tests.mesh import Installation

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@dataclass
class Source:
    """A service that a test has made up, as its relay tells."""

    redis: Redis
    word: str
    _told: int = 0
    _sequences: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _previous: dict[str, str] = field(default_factory=lambda: defaultdict(lambda: "0-0"))

    async def tell(self, user_id: UUID, message: Message, *, key: str = "") -> None:
        key = key or str(user_id)
        self._sequences[key] += 1
        await self.tell_as(
            user_id, key, self._sequences[key], message.DESCRIPTOR.full_name, message.SerializeToString()
        )

    async def tell_as(self, user_id: UUID, key: str, sequence: int, kind: str, payload: bytes) -> None:
        self._told += 1
        stream, stream_id = f"facts:{self.word}:{partition_of(key)}", f"1-{self._told}"
        fact = fact_pb2.Fact(
            source=self.word, key=key, sequence=sequence, user_id=str(user_id), kind=kind, payload=payload
        )
        fields: Any = {"f": fact.SerializeToString(), "p": self._previous[stream]}
        await self.redis.xadd(stream, fields, id=stream_id)
        self._previous[stream] = stream_id


@pytest.fixture
async def worker(bare_installation: Installation) -> AsyncIterator[Database]:
    async with open_database(bare_installation.url("billing_worker")) as opened:
        yield opened


@pytest.fixture
def algo(redis: Redis) -> Source:
    return Source(redis, "algo")


@asynccontextmanager
async def reading(worker: Database, redis: Redis, *words: str) -> AsyncIterator[None]:
    async with following(worker, redis, words or ("algo",)):
        yield


def added(quota: str, count: int = 1, time: datetime = NOON) -> usage_pb2.UsageCounted:
    return usage_pb2.UsageCounted(quota=quota, added=count, time=timestamp(time))


def current(quota: str, count: int) -> usage_pb2.UsageCounted:
    return usage_pb2.UsageCounted(quota=quota, current=count, time=timestamp(NOON))


async def used(installation: Installation) -> dict[tuple[UUID, str, str], int]:
    found = await select(installation, "SELECT user_id, quota, coalesce(day::text, 'now') AS day, used FROM usage")
    return {(row["user_id"], row["quota"], row["day"]): row["used"] for row in found}


async def counted(installation: Installation, wanted: dict[tuple[UUID, str, str], int]) -> None:
    """Waits until exactly this is counted, or fails showing what is."""
    found: dict = {}

    async def is_so() -> bool:
        found.clear()
        found.update(await used(installation))
        return found == wanted

    try:
        await until(is_so)
    except TimeoutError:
        assert found == wanted


async def test_uses_are_added_up_by_person_quota_and_day(
    bare_installation: Installation, worker: Database, redis: Redis, algo: Source
):
    anna, bert = uuid7(), uuid7()
    async with reading(worker, redis):
        for _ in range(30):
            await algo.tell(anna, added("backtests_per_day"), key=str(uuid7()))
        await algo.tell(anna, added("backtests_per_day", 2, NOON.replace(hour=23, minute=59, second=59)))
        await algo.tell(anna, added("backtests_per_day", 5, NOON + timedelta(hours=12)))
        await algo.tell(bert, added("backtests_per_day"))
        for count in (1, 2, 1):
            await algo.tell(anna, current("active_deployments", count))
        await counted(
            bare_installation,
            {
                (anna, "backtests_per_day", "2026-11-26"): 32,
                (anna, "backtests_per_day", "2026-11-27"): 5,
                (bert, "backtests_per_day", "2026-11-26"): 1,
                (anna, "active_deployments", "now"): 1,
            },
        )


async def test_a_fact_that_is_told_again_is_counted_once(
    bare_installation: Installation, worker: Database, redis: Redis, algo: Source
):
    anna = uuid7()
    use = added("backtests_per_day")
    async with reading(worker, redis):
        await algo.tell(anna, use)
        for _ in range(3):
            await algo.tell_as(anna, str(anna), 1, use.DESCRIPTOR.full_name, use.SerializeToString())
        await algo.tell(anna, use)
        await counted(bare_installation, {(anna, "backtests_per_day", "2026-11-26"): 2})
    # A reader that starts anew, as after kill -9, goes on where the count is.
    async with reading(worker, redis):
        await algo.tell(anna, use)
        await counted(bare_installation, {(anna, "backtests_per_day", "2026-11-26"): 3})


async def test_two_replicas_count_each_use_once(
    bare_installation: Installation, worker: Database, redis: Redis, algo: Source
):
    people = [uuid7() for _ in range(20)]
    async with reading(worker, redis), reading(worker, redis):
        for number in range(10):
            for each in people:
                await algo.tell(each, added("backtests_per_day"), key=f"{each}/{number}")
        await counted(bare_installation, {(each, "backtests_per_day", "2026-11-26"): 10 for each in people})


async def test_auth_tells_how_many_keys_there_are(bare_installation: Installation, worker: Database, redis: Redis):
    anna, auth = uuid7(), Source(redis, "auth")
    async with reading(worker, redis, "auth"):
        await auth.tell(anna, auth_events.UserRegistered(user_id=str(anna)))
        await auth.tell(anna, auth_events.ApiKeyCreated(api_key_id="1", api_key_count=1))
        await auth.tell(anna, auth_events.ApiKeyCreated(api_key_id="2", api_key_count=2))
        await counted(bare_installation, {(anna, "api_keys", "now"): 2})
        await auth.tell(anna, auth_events.ApiKeyRevoked(api_key_id="1", api_key_count=1))
        await counted(bare_installation, {(anna, "api_keys", "now"): 1})


async def test_a_use_that_nobody_can_have_holds_up_no_other(
    bare_installation: Installation, worker: Database, redis: Redis, algo: Source
):
    anna = uuid7()
    async with reading(worker, redis):
        for wrong in (added("x" * 65), added("", 1), added("backtests_per_day", -1), usage_pb2.UsageCounted(quota="x")):
            await algo.tell(anna, wrong)
        await algo.tell(anna, added("backtests_per_day"))
        await counted(bare_installation, {(anna, "backtests_per_day", "2026-11-26"): 1})


async def test_what_is_used_today_is_shown_with_what_is_allowed(installation: Installation, redis: Redis, algo: Source):
    async with serving(installation) as billing, open_database(installation.url("billing_worker")) as worker:
        person, now = Person(billing), datetime.now(UTC)
        async with reading(worker, redis):
            await algo.tell(person.user_id, added("backtests_per_day", 7, now - timedelta(days=1)))
            await algo.tell(person.user_id, added("backtests_per_day", 3, now))
            await algo.tell(person.user_id, current("active_deployments", 1))

            async def is_counted() -> bool:
                return (await person.usage())["active_deployments"] == (1, 1)

            await until(is_counted)
        # Unless midnight has just passed, which this must bear.
        assert (await person.usage())["backtests_per_day"] in ((3, 20), (0, 20))
        assert (await Person(billing).usage())["backtests_per_day"] == (0, 20)


async def test_of_who_is_gone_nothing_stays_but_the_books(
    installation: Installation, redis: Redis, stripe: StripeServer, algo: Source
):
    """users does not tell yet under a name that this contract has; the name is enough."""
    users = Source(redis, "users")
    async with (
        serving(installation, **at_stripe(stripe)) as billing,
        open_database(installation.url("billing_worker")) as worker,
        reading(worker, redis, "users", "algo"),
    ):
        person, other = Person(billing), Person(billing)
        subscription = await subscribed(person, stripe)
        await subscribed(other, stripe)
        await algo.tell(person.user_id, added("backtests_per_day"))
        await counted(installation, {(person.user_id, "backtests_per_day", "2026-11-26"): 1})
        await users.tell_as(person.user_id, str(person.user_id), 1, "tradeloom.users.v1.UserPurged", b"")

        async def is_purged() -> bool:
            return bool(
                await select(installation, "SELECT FROM customers WHERE user_id = $1 AND purged", person.user_id)
            )

        await until(is_purged)
        assert subscription["status"] == "canceled", "nobody goes on paying"
        assert len(stripe.customers) == 1
        # What is told late of them is not kept.
        await algo.tell(person.user_id, added("backtests_per_day"))
        await algo.tell(other.user_id, added("backtests_per_day"))
        await counted(installation, {(other.user_id, "backtests_per_day", "2026-11-26"): 1})
        for table in ("subscriptions", "request_keys", "usage"):
            assert not await select(installation, f"SELECT FROM {table} WHERE user_id = $1", person.user_id)
        (invoice,) = await select(installation, "SELECT url, number FROM invoices WHERE user_id = $1", person.user_id)
        assert (invoice["url"], invoice["number"]) == ("", "TEST-0001")
        assert (await other.subscription()).plan == "pro"
        assert (await story(installation, person))[:2] == ["started", "may use pro"]


async def test_who_is_gone_is_deleted_at_stripe_as_soon_as_it_answers(
    installation: Installation, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(upkeep, "RETRY", timedelta(seconds=0.2))
    async with serving(installation, **at_stripe(stripe)) as billing:
        person = Person(billing)
        await subscribed(person, stripe)
        (customer_id,) = stripe.customers
        stripe.faults = [Fault("DELETE", f"/v1/customers/{customer_id}", status=500, code="oops") for _ in range(3)]
        async with installation.connect("billing_worker") as worker:
            await worker.execute("SELECT set_config('app.user_ids', $1, false)", str(person.user_id))
            await worker.execute("UPDATE customers SET purge_time = now()")

        async def is_deleted() -> bool:
            return not stripe.customers

        await until(is_deleted)
        assert not stripe.faults
