"""Keys are held in memory, renewed, and gone when they count no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs
from tradeloom.type.v1 import fact_pb2
from tradeloom.users.v1 import events_pb2, users_pb2

from libs.errors import Unavailable
from libs.mesh import identity
from libs.mesh.wire import timestamp
from libs.store import outbox
from libs.store.database import Database
from libs.store.outbox import Fact, partition_of
from libs.store.relay import relay, stream_of
from services.execution.clients import Keys
from services.execution.domain import CredentialNotFound, LeasedKey
from services.execution.venues import keys
from services.execution.venues.keys import HeldKey, KeyDropped, KeyRing, key_ring
from services.users.domain import CredentialNotUsable
from tests.libs.mesh.stand import serving_works
from tests.mesh import Installation
from tests.servers import ValkeyServer

USER, CREDENTIAL = uuid4(), uuid4()
REVOKED_SECONDS_MAX = 5.0


@dataclass
class Users:
    """Leases whatever it has, and tells what becomes of it as the relay does."""

    redis: Redis
    revision: int = 1
    lasts_seconds: float = 600.0
    trouble: Exception | None = None
    leases: list[str] = field(default_factory=list)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    told: int = 0

    def __post_init__(self) -> None:
        self.answering.set()

    async def lease(self, user_id: UUID, credential_id: UUID, request_id: str) -> LeasedKey:
        self.leases.append(request_id)
        key, trouble = self._key(), self.trouble
        await self.answering.wait()
        if trouble:
            raise trouble
        return key

    def _key(self) -> LeasedKey:
        return LeasedKey(
            venue="BINANCE",
            api_key=f"public {self.revision}",
            api_secret=f"secret {self.revision}",
            passphrase="",
            expire_time=datetime.now(UTC) + timedelta(seconds=self.lasts_seconds),
            revision=self.revision,
        )

    async def tell(self, message: Any, *, lost_before: bool = False) -> None:
        stream = stream_of("users", partition_of(str(USER)))
        before = f"1-{self.told}" if self.told else "0-0"
        self.told += 2 if lost_before else 1
        if lost_before:
            before = f"1-{self.told - 1}"
        fact = fact_pb2.Fact(
            source="users",
            key=str(USER),
            sequence=self.told,
            user_id=str(USER),
            kind=message.DESCRIPTOR.full_name,
            payload=message.SerializeToString(),
        )
        fields: Any = {"f": fact.SerializeToString(), "p": before}
        await self.redis.xadd(stream, fields, id=f"1-{self.told}")


@pytest.fixture
def users(redis: Redis) -> Users:
    return Users(redis)


@asynccontextmanager
async def holding(users: Users) -> AsyncIterator[tuple[KeyRing, HeldKey]]:
    async with key_ring(users.redis, users.lease) as ring, ring.holding(USER, CREDENTIAL) as held:
        yield ring, held


async def eventually(is_so: Callable[[], bool], seconds: float = REVOKED_SECONDS_MAX) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.005)


def is_held(held: HeldKey) -> bool:
    try:
        held()
    except KeyDropped:
        return False
    return True


async def test_a_key_is_leased_once_and_used_often(users: Users):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        assert [held().api_secret for _ in range(3)] == ["secret 1"] * 3
    assert len(users.leases) == 1
    with pytest.raises(KeyDropped):
        held()


@pytest.mark.parametrize(
    "told",
    [
        events_pb2.BrokerCredentialDeleted(credential_id=str(CREDENTIAL)),
        events_pb2.BrokerCredentialTested(credential_id=str(CREDENTIAL), state="refused", problem="can_withdraw"),
        events_pb2.BrokerCredentialPut(credential_id=str(CREDENTIAL), revision=2),
        events_pb2.UserPurged(user_id=str(USER)),
    ],
    ids=lambda told: type(told).__name__,
)
async def test_a_revoked_key_is_gone_within_five_seconds(users: Users, told: Any):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        # Whatever users says to who asks again, and however long it takes.
        users.answering.clear()
        users.trouble = CredentialNotFound("no such credential")
        await users.tell(told)
        await eventually(lambda: not is_held(held))
        users.answering.set()
        await eventually(lambda: held.drop_count == 2)
        assert (len(users.leases), is_held(held)) == (2, False)


async def test_a_revocation_arrives_by_the_relay_within_five_seconds(users: Users, worker: Database):
    """From the transaction in which it is committed on; the relay is that of every service."""
    deleted = events_pb2.BrokerCredentialDeleted(credential_id=str(CREDENTIAL))
    fact = Fact(
        key=str(USER),
        sequence=1,
        user_id=USER,
        kind=deleted.DESCRIPTOR.full_name,
        payload=deleted.SerializeToString(),
    )
    async with relay(worker, users.redis, "users"), holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        users.trouble = CredentialNotFound("no such credential")
        async with worker.transaction(USER) as rows:
            await outbox.add(rows, [fact])
        await eventually(lambda: not is_held(held))
        assert held.why in {"it was deleted", "no such credential"}


async def test_what_is_told_of_others_changes_nothing(users: Users):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        await users.tell(events_pb2.BrokerCredentialDeleted(credential_id=str(uuid4())))
        await users.tell(events_pb2.BrokerCredentialTested(credential_id=str(uuid4()), state="usable"))
        await users.tell(events_pb2.ProfileUpdated(fields=["email"]))
        await users.tell(events_pb2.BrokerCredentialPut(credential_id=str(uuid4()), revision=2))
        # Heard after all of them.
        await users.tell(events_pb2.BrokerCredentialTested(credential_id=str(CREDENTIAL), state="usable"))
        await eventually(lambda: len(users.leases) == 2)
        assert (held().api_secret, held.drop_count) == ("secret 1", 0)


async def test_another_key_in_its_place_is_leased_once_it_is_usable(users: Users):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        users.revision, users.trouble = 2, CredentialNotFound("no usable credential")
        await users.tell(events_pb2.BrokerCredentialPut(credential_id=str(CREDENTIAL), revision=2))
        await eventually(lambda: len(users.leases) == 2)
        assert not is_held(held)
        users.trouble = None
        await users.tell(events_pb2.BrokerCredentialTested(credential_id=str(CREDENTIAL), state="usable"))
        await eventually(lambda: is_held(held))
        assert held().api_secret == "secret 2"


async def test_a_lease_that_was_on_its_way_when_it_was_revoked_is_not_held(
    users: Users, monkeypatch: pytest.MonkeyPatch
):
    users.answering.clear()
    async with holding(users) as (_, held):
        await eventually(lambda: len(users.leases) == 1)
        await users.tell(events_pb2.BrokerCredentialDeleted(credential_id=str(CREDENTIAL)))
        await eventually(lambda: held.drop_count == 1)
        put: list[Any] = []
        monkeypatch.setattr(held, "put", lambda *leased: put.append(leased))
        users.trouble = CredentialNotFound("no such credential")
        users.answering.set()
        await eventually(lambda: len(users.leases) == 2)
        await eventually(lambda: held.drop_count == 2)
        assert put == []


async def test_what_was_lost_may_have_been_a_revocation(users: Users):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        users.trouble = CredentialNotFound("no such credential")
        await users.tell(events_pb2.ProfileUpdated(fields=["email"]), lost_before=True)
        await eventually(lambda: len(users.leases) == 2)
        assert not is_held(held)


async def test_a_key_is_forgotten_when_its_lease_expires(users: Users, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "RETRY_SECONDS_FIRST", 0.01)
    users.lasts_seconds = 0.5
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        users.trouble = Unavailable("users does not answer")
        await eventually(lambda: not is_held(held))
        assert "expired" in held.why
        # And had again when users answers.
        users.trouble, users.lasts_seconds = None, 600.0
        await eventually(lambda: is_held(held), seconds=15)


async def test_a_key_is_renewed_before_it_expires(users: Users, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "RENEW_SECONDS", 0.6)
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        users.revision = 2
        await eventually(lambda: held().revision == 2)
        assert len(set(users.leases)) == len(users.leases) > 1


async def test_a_clock_that_jumps_past_the_expiry_drops_the_key(users: Users):
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        key = held()
        held.put(
            LeasedKey(
                venue=key.venue,
                api_key=key.api_key,
                api_secret=key.api_secret,
                passphrase="",
                expire_time=datetime.now(UTC) - timedelta(seconds=1),
                revision=1,
            ),
            600,
        )
        assert not is_held(held)


async def test_a_lease_that_says_it_lasts_for_hours_is_held_for_ten_minutes(users: Users):
    users.lasts_seconds = 7_200
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        assert held._expiry is not None
        left = held._expiry.when() - asyncio.get_running_loop().time()
    assert 590 < left <= 600


async def test_while_users_is_not_heard_no_key_is_given_out(
    users: Users, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keys, "SILENCE_SECONDS_MAX", 1.2)
    async with holding(users) as (_, held):
        await eventually(lambda: is_held(held))
        valkey.kill()
        await eventually(lambda: not is_held(held))
        valkey.start()
        await eventually(lambda: is_held(held), seconds=20)


async def test_keys_are_not_written_anywhere(users: Users, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    with capture_logs() as logs:
        async with holding(users) as (_, held):
            await eventually(lambda: is_held(held))
            written = repr([held, held(), vars(held)])
            users.trouble = RuntimeError("secret 1")
            held.woken.set()
            await eventually(lambda: len(users.leases) == 2)
            await users.tell(events_pb2.BrokerCredentialDeleted(credential_id=str(CREDENTIAL)))
            await eventually(lambda: not is_held(held))
    assert any(entry["event"] == "a key is dropped" for entry in logs)
    assert "secret 1" not in written + repr(logs) + caplog.text


async def test_users_is_asked_for_a_key_to_trade_with(installation: Installation):
    asked: list[tuple[Any, str]] = []

    async def lease(request: users_pb2.LeaseBrokerCredentialRequest, context: Any) -> Any:
        asked.append((request, str(identity.current().user_id)))
        if request.request_id == "lease-2":
            raise CredentialNotUsable("only a credential that was tested and found usable trades")
        return users_pb2.LeaseBrokerCredentialResponse(
            credential_id=request.credential_id,
            venue="BINANCE",
            api_key="public",
            api_secret="secret",
            expire_time=timestamp(datetime(2030, 1, 1, tzinfo=UTC)),
            revision=3,
        )

    async with serving_works(installation, "users", LeaseBrokerCredential=lease) as served:
        users = Keys(served.channel("execution"))
        key = await users.lease_to_trade(USER, CREDENTIAL, "lease-1")
        with pytest.raises(CredentialNotFound):
            await users.lease_to_trade(USER, CREDENTIAL, "lease-2")
    request, user_id = asked[0]
    assert (request.purpose, request.request_id, request.credential_id) == (
        users_pb2.LEASE_PURPOSE_TRADE,
        "lease-1",
        str(CREDENTIAL),
    )
    assert (user_id, key.api_secret, key.revision) == (str(USER), "secret", 3)
