"""Export and deletion: all that is kept of a person, and then nothing of it; never early, and never without the export."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.auth.v1 import events_pb2 as auth_events
from tradeloom.orders.v1 import events_pb2 as orders_events
from tradeloom.orders.v1 import orders_pb2
from tradeloom.users.v1 import events_pb2, users_pb2

from libs.edge import contract
from libs.ids import uuid7
from libs.mesh.wire import time_from_proto, timestamp
from libs.store.database import Database, open_database
from libs.store.leases import holding
from libs.store.outbox import Fact
from services.users import clients, consumers, exporting, purging, store
from services.users.domain import EXPORTS_MAX
from services.users.settings import Settings
from tests.mesh import KEY_ENCRYPTION_KEYS, Installation
from tests.orders.stand import reason, refusal
from tests.users import stand
from tests.users.stand import BINANCE_KEY, BINANCE_SECRET, Person, Stand, Told, until

EMAIL = "ada@example.com"
DAY = timedelta(days=1)


@pytest.fixture
async def worker(installation: Installation) -> AsyncIterator[Database]:
    async with open_database(installation.url("users_worker"), 4) as database:
        yield database


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks often, for a test would wait for it."""
    monkeypatch.setattr(exporting, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(purging, "POLL_SECONDS", 0.02)


async def somebody(users: Stand, redis: Redis) -> Person:
    ada = users.person()
    await Told(redis).register(ada, EMAIL, "Ada Lovelace")
    return ada


async def delete(person: Person, email: str = EMAIL, request_id: str = "") -> users_pb2.Deletion:
    request = users_pb2.DeleteAccountRequest(request_id=request_id or str(uuid7()), email=email)
    return (await person.ask(person.api.DeleteAccount, request)).deletion


async def cancel(person: Person, request_id: str = "") -> users_pb2.Deletion:
    request = users_pb2.CancelDeletionRequest(request_id=request_id or str(uuid7()))
    return (await person.ask(person.api.CancelDeletion, request)).deletion


async def deletion(person: Person) -> users_pb2.Deletion:
    return (await person.ask(person.api.GetDeletion, users_pb2.GetDeletionRequest())).deletion


async def export(person: Person, request_id: str = "") -> users_pb2.PersonalDataExport:
    request = users_pb2.ExportPersonalDataRequest(request_id=request_id or str(uuid7()))
    return (await person.ask(person.api.ExportPersonalData, request)).export


async def exports(person: Person) -> list[users_pb2.PersonalDataExport]:
    request = users_pb2.ListPersonalDataExportsRequest()
    return list((await person.ask(person.api.ListPersonalDataExports, request)).exports)


async def ready(person: Person, export_id: str = "") -> users_pb2.PersonalDataExport:
    async def is_ready() -> users_pb2.PersonalDataExport | None:
        found = await exports(person)
        return next(
            (
                each
                for each in found
                if each.export_id == (export_id or found[0].export_id) and each.state == users_pb2.EXPORT_STATE_READY
            ),
            None,
        )

    return await until(is_ready)


async def download(person: Person, found: users_pb2.PersonalDataExport) -> dict[str, Any]:
    """The documents by name."""
    data = b""
    for part in range(found.part_count):
        request = users_pb2.DownloadPersonalDataRequest(export_id=found.export_id, part=part)
        answer = await person.ask(person.api.DownloadPersonalData, request)
        assert answer.part_count == found.part_count
        assert len(answer.data) <= exporting.PART_BYTES
        data += answer.data
    assert len(data) == found.size_bytes
    assert hashlib.sha256(data).digest() == found.digest
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


async def rows_of(users: Stand, user_id: UUID) -> dict[str, int]:
    """How many rows of a person each table has."""
    tables = await users.select(
        """
        SELECT table_name FROM information_schema.columns WHERE table_schema = 'users' AND column_name = 'user_id'
        """
    )
    found = {}
    for row in tables:
        [count] = await users.select(f"SELECT count(*) FROM {row['table_name']} WHERE user_id = $1", user_id)
        if count["count"]:
            found[row["table_name"]] = count["count"]
    return found


async def purged(users: Stand, person: Person) -> None:
    async def is_purged() -> bool:
        return any(isinstance(told, events_pb2.UserPurged) for told in await users.told(person.user_id))

    await until(is_purged)


@asynccontextmanager
async def leaving(installation: Installation, **changes: str) -> AsyncIterator[Stand]:
    """Without any grace, unless said."""
    none = {"deletion_grace_days": "0", "deletion_download_days": "0"}
    async with stand.served(installation, **none | changes) as served:
        yield served


# What is exported.


async def test_an_export_holds_what_every_service_keeps_of_the_person(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    await ada.change_preferences(time_zone="Europe/London")
    put = await ada.put(label="main")
    paper = ada.opens_account()
    found = await ready(ada, (await export(ada)).export_id)
    documents = await download(ada, found)
    assert documents["users/profile.json"]["full_name"] == "Ada Lovelace"
    assert documents["users/preferences.json"]["time_zone"] == "Europe/London"
    assert documents["users/onboarding.json"]["steps"][3]["proved"]
    [kept] = documents["users/broker_credentials.json"]["credentials"]
    assert (kept["label"], kept["api_key_ending"]) == ("main", BINANCE_KEY[-4:])
    assert documents["auth/GetMe-000001.json"]["user"]["email"] == EMAIL
    assert documents["auth/ListSessions-000001.json"]["sessions"][0]["address"] == "203.0.113.7"
    assert documents["billing/GetSubscription-000001.json"]["subscription"]["plan"] == "pro"
    # Every page of every account.
    for account_id in (put.account_id, paper):
        pages = [documents[f"orders/ListOrders-{account_id}-{page:06}.json"] for page in (1, 2)]
        assert [order["order_id"] for page in pages for order in page["orders"]] == ["order-0", "order-1", "order-2"]
        assert documents[f"orders/GetPortfolio-{account_id}-000001.json"]["account"]["account_id"] == account_id
        assert f"orders/ListExecutions-{account_id}-000001.json" in documents
        assert f"orders/ListPositions-{account_id}-000001.json" in documents
    assert documents["contents.json"]["documents"] == list(documents)[:-1]
    assert BINANCE_SECRET not in json.dumps(documents)
    assert BINANCE_KEY not in json.dumps(documents)
    told = (await users.told(ada.user_id))[-1]
    assert told == events_pb2.PersonalDataExported(export_id=found.export_id, size_bytes=found.size_bytes)
    assert {caller for _, caller in users.around.asked} == {"users"}


def test_the_contract_decides_what_is_exported():
    """Whoever lets users read for a person has it exported; so only what can be asked for each person may be let."""
    found = clients.personal_methods()
    assert {f"{method.word}.{method.name}" for method in found} >= {
        "auth.GetMe",
        "auth.ListSessions",
        "auth.ListApiKeys",
        "auth.ListOwnAuditEvents",
        "billing.GetSubscription",
        "billing.ListInvoices",
        "billing.GetUsage",
        "orders.ListAccounts",
        "orders.ListOrders",
        "orders.ListExecutions",
        "orders.ListParentOrders",
        "orders.ListPositions",
        "orders.GetPortfolio",
    }
    where = {"mesh_port": 0, "probe_port": 0, "tls_folder": "/", "key_encryption_keys": KEY_ENCRYPTION_KEYS}
    addresses = Settings.model_validate(where).addresses
    for method in found:
        assert method.word in addresses, f"users has no setting for the address of {method.word}"
        asked = method.descriptor.input_type.fields_by_name
        paged = "page_token" in asked
        assert paged == ("next_page_token" in method.descriptor.output_type.fields_by_name), method.path
    assert {method.path for method in found} <= {f"/{each.service}/{each.name}" for each in contract.methods()}


async def test_a_zip_of_any_size_comes_in_parts_of_bounded_size(
    users: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "PART_BYTES", 100)
    ada = await somebody(users, redis)
    ada.opens_account()
    users.around.orders_count = 41
    found = await ready(ada, (await export(ada)).export_id)
    assert found.part_count == -(-found.size_bytes // 100) > 10
    documents = await download(ada, found)
    assert sum(name.startswith("orders/ListOrders") for name in documents) == 21


async def test_what_is_stored_of_an_export_is_sealed(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    await ready(ada, (await export(ada)).export_id)
    [part] = await users.select("SELECT ciphertext FROM personal_data_parts")
    assert b"PK" not in part["ciphertext"][:40]
    assert b"contents.json" not in part["ciphertext"]


async def test_an_export_is_its_owners_alone(users: Stand, redis: Redis):
    ada, eve = await somebody(users, redis), users.person()
    found = await ready(ada, (await export(ada)).export_id)
    request = users_pb2.DownloadPersonalDataRequest(export_id=found.export_id)
    refused = await refusal(eve.ask(eve.api.DownloadPersonalData, request))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "EXPORT_NOT_FOUND")
    assert await exports(eve) == []
    request.part = found.part_count
    assert await reason(ada.ask(ada.api.DownloadPersonalData, request)) == "EXPORT_PART_NOT_FOUND"
    enrolled = users.person(ada.user_id, mfa=True)
    assert await reason(enrolled.ask(enrolled.api.DownloadPersonalData, request)) == "STEP_UP_REQUIRED"


async def test_one_export_is_made_at_a_time_and_as_many_are_kept_as_said(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    users.around.away.add("GetMe")
    first = await export(ada, "first")
    assert (await export(ada)).export_id == first.export_id
    request = users_pb2.DownloadPersonalDataRequest(export_id=first.export_id)
    assert await reason(ada.ask(ada.api.DownloadPersonalData, request)) == "EXPORT_PENDING"
    users.around.away.clear()
    await ready(ada, first.export_id)
    assert (await export(ada, "first")).state == users_pb2.EXPORT_STATE_PENDING  # the first answer
    for _ in range(EXPORTS_MAX - 1):
        await ready(ada, (await export(ada)).export_id)
    refused = await refusal(export(ada))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_EXPORTS")
    # Nobody is kept from leaving by that: the oldest makes room.
    left = await delete(ada)
    kept = [each.export_id for each in await exports(ada)]
    assert len(kept) == EXPORTS_MAX
    assert left.export_id in kept
    assert first.export_id not in kept


async def test_an_export_expires(installation: Installation, redis: Redis):
    async with stand.served(installation, export_kept_days="0.00001") as users:
        ada = await somebody(users, redis)
        await export(ada)

        async def is_gone() -> bool:
            told = await users.told(ada.user_id)
            return bool(told) and not await exports(ada)

        await until(is_gone)
        assert await users.select("SELECT 1 FROM personal_data_parts") == []


async def test_a_service_that_is_away_is_asked_until_it_answers(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    users.around.away.add("ListSessions")
    asked = await export(ada)

    async def has_tried() -> bool:
        [row] = await users.select("SELECT attempt_count, trouble FROM personal_data_exports")
        return row["attempt_count"] >= 2 and row["trouble"].startswith("UNAVAILABLE")

    await until(has_tried)
    [pending] = await exports(ada)
    assert pending.state == users_pb2.EXPORT_STATE_PENDING
    users.around.away.clear()
    documents = await download(ada, await ready(ada, asked.export_id))
    assert "auth/ListSessions-000001.json" in documents


# Deletion.


async def test_a_deletion_is_scheduled_after_an_export_and_told(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    began = datetime.now(UTC)
    left = await delete(ada, " Ada@Example.com ", "same")
    assert left.state == users_pb2.DELETION_STATE_SCHEDULED
    assert timedelta(0) <= time_from_proto(left.purge_time) - began - 30 * DAY < timedelta(minutes=1)
    # Asked again, in whatever way, nothing changes.
    assert await delete(ada, " Ada@Example.com ", "same") == await delete(ada) == await deletion(ada) == left
    await ready(ada, left.export_id)
    assert await deletion(ada) == left, "there is time enough to download it"
    told = await users.told(ada.user_id)
    assert told == [
        events_pb2.DeletionScheduled(purge_time=left.purge_time),
        events_pb2.PersonalDataExported(export_id=left.export_id, size_bytes=told[1].size_bytes),
    ]
    # Everything goes on meanwhile.
    await ada.change_profile(display_name="still here")


async def test_only_the_persons_own_address_confirms_a_deletion(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    refused = await refusal(delete(ada, "eve@example.com"))
    assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "CONFIRMATION_MISMATCH", ["email"])
    unknown = users.person()
    refused = await refusal(delete(unknown, ""))
    assert refused.fields == ["email"]
    assert (await refusal(delete(unknown))).reason == "PROFILE_PENDING"
    enrolled = users.person(ada.user_id, mfa=True)
    assert await reason(delete(enrolled)) == "STEP_UP_REQUIRED"
    assert await reason(deletion(ada)) == "DELETION_NOT_SCHEDULED"
    assert await users.select("SELECT 1 FROM deletions UNION ALL SELECT 1 FROM personal_data_exports") == []


async def test_who_changes_their_mind_stays(users: Stand, redis: Redis):
    ada = await somebody(users, redis)
    assert await reason(cancel(ada)) == "DELETION_NOT_SCHEDULED"
    left = await delete(ada)
    await ready(ada, left.export_id)
    stayed = await cancel(ada, "same")
    assert (stayed.state, stayed.export_id) == (users_pb2.DELETION_STATE_CANCELED, left.export_id)
    assert await cancel(ada, "same") == await deletion(ada) == stayed
    assert await reason(cancel(ada)) == "DELETION_NOT_SCHEDULED"
    assert isinstance((await users.told(ada.user_id))[-1], events_pb2.DeletionCancelled)
    again = await delete(ada)
    assert again.state == users_pb2.DELETION_STATE_SCHEDULED
    assert again.export_id != left.export_id


async def test_when_the_time_has_come_nothing_is_left_and_the_others_are_told(installation: Installation, redis: Redis):
    async with leaving(installation) as users:
        ada, bert = await somebody(users, redis), users.person()
        for person in (ada, bert):
            await person.change_profile(display_name="here", phone="+442071234567")
            await person.change_preferences(locale="de")
            await person.put()
        before = await rows_of(users, bert.user_id)
        assert before.keys() >= {"profiles", "user_preferences", "user_broker_credentials", "request_keys"}
        await delete(ada)
        await purged(users, ada)
        # The facts of the last days travel on; and that there was somebody, so that nobody comes back.
        assert (await rows_of(users, ada.user_id)).keys() == {"people", "outbox"}
        for row in await users.select("SELECT payload FROM outbox WHERE user_id = $1", ada.user_id):
            assert b"+442071234567" not in row["payload"]
        told = await users.told(ada.user_id)
        assert told[-1] == events_pb2.UserPurged(user_id=str(ada.user_id))
        assert await rows_of(users, bert.user_id) == before
        assert (await bert.profile()).display_name == "here"


async def test_who_was_deleted_for_good_comes_back_by_no_way(
    installation: Installation, redis: Redis, worker: Database
):
    async with leaving(installation) as users:
        ada = users.person()
        told = Told(redis)
        await told.register(ada, EMAIL)
        request_id = str(uuid7())
        await delete(ada, request_id=request_id)
        await purged(users, ada)
        # A token may live for some minutes more, and facts may be read again.
        for doing in (
            ada.profile(),
            ada.preferences(),
            ada.onboarding(),
            ada.credentials(),
            exports(ada),
            deletion(ada),
            ada.change_profile(display_name="x"),
            ada.change_preferences(locale="de"),
            ada.put(),
            cancel(ada),
            export(ada),
            delete(ada, request_id=request_id),
        ):
            refused = await refusal(doing)
            assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "USER_DELETED")
        again = auth_events.UserRegistered(user_id=str(ada.user_id), email=EMAIL)
        verified = auth_events.EmailVerified(email=EMAIL)
        async with worker.transaction(ada.user_id) as rows:
            await consumers.apply_auth(rows, [fact_of(ada, again), fact_of(ada, verified)])
        filled = orders_events.OrderChanged(event=orders_pb2.OrderEvent(kind=orders_pb2.ORDER_EVENT_KIND_FILLED))
        async with worker.transaction(ada.user_id) as rows:
            await consumers.apply_orders(rows, [fact_of(ada, filled)])
        assert (await rows_of(users, ada.user_id)).keys() == {"people", "outbox"}


def fact_of(person: Person, message: Message) -> Fact:
    return Fact(
        key=str(person.user_id),
        sequence=1,
        user_id=person.user_id,
        kind=message.DESCRIPTOR.full_name,
        payload=message.SerializeToString(),
    )


async def test_nothing_is_deleted_before_the_export_is_ready(
    installation: Installation, redis: Redis, worker: Database
):
    async with leaving(installation) as users:
        ada = await somebody(users, redis)
        users.around.away.add("GetMe")
        await delete(ada)

        async def has_tried() -> bool:
            [row] = await users.select("SELECT attempt_count FROM personal_data_exports")
            return row["attempt_count"] >= 2

        await until(has_tried)
        async with worker.transaction() as rows:
            assert await store.due_deletions(rows, 10) == []
        async with worker.transaction(ada.user_id) as rows:
            assert not await store.purge(rows, ada.user_id)
        assert (await ada.profile()).email == EMAIL
        users.around.away.clear()
        await purged(users, ada)


async def test_an_export_that_is_late_moves_the_deletion_and_that_is_told(installation: Installation, redis: Redis):
    async with stand.served(installation, deletion_grace_days="1", deletion_download_days="7") as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        found = await ready(ada, left.export_id)
        moved = await deletion(ada)
        assert time_from_proto(moved.purge_time) - time_from_proto(found.ready_time) == 7 * DAY
        told = [each for each in await users.told(ada.user_id) if isinstance(each, events_pb2.DeletionScheduled)]
        assert [each.purge_time for each in told] == [left.purge_time, moved.purge_time]


async def test_what_was_done_since_is_exported_once_more_before_anything_is_deleted(
    installation: Installation, redis: Redis, worker: Database
):
    async with stand.served(installation) as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        await ready(ada, left.export_id)
        await ada.change_profile(display_name="traded on")
        # Its time has come, as by a clock that was ahead when the worker was away: the first export does not do.
        await users.select("UPDATE deletions SET purge_time = now() - interval '1 day' RETURNING 1")
        async with worker.transaction(ada.user_id) as rows:
            assert not await store.purge(rows, ada.user_id)

        async def is_another() -> users_pb2.Deletion | None:
            found = await deletion(ada)
            return found if found.export_id != left.export_id else None

        again = await until(is_another)
        last = await ready(ada, again.export_id)
        assert (await download(ada, last))["users/profile.json"]["display_name"] == "traded on"
        moved = await deletion(ada)
        assert (moved.export_id, moved.state) == (last.export_id, users_pb2.DELETION_STATE_SCHEDULED)
        assert time_from_proto(moved.purge_time) - time_from_proto(last.ready_time) == 7 * DAY
        # Once is enough: when those days are over, the time has come.
        await users.select("UPDATE deletions SET purge_time = now() - interval '1 second' RETURNING 1")
        await purged(users, ada)


async def test_the_last_export_is_made_when_there_is_still_time_to_download_it(
    installation: Installation, redis: Redis
):
    async with stand.served(installation) as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        await ready(ada, left.export_id)
        near = datetime.now(UTC) + 7 * DAY + timedelta(minutes=59)
        await users.select("UPDATE deletions SET purge_time = $1 RETURNING 1", near)

        async def is_made() -> bool:
            found = await exports(ada)
            return len(found) == 2 and found[0].state == users_pb2.EXPORT_STATE_READY

        await until(is_made)
        assert time_from_proto((await deletion(ada)).purge_time) == near
        told = [each for each in await users.told(ada.user_id) if isinstance(each, events_pb2.DeletionScheduled)]
        assert len(told) == 1


async def test_an_export_that_a_deletion_waits_with_does_not_expire(
    installation: Installation, redis: Redis, worker: Database
):
    async with stand.served(installation, export_kept_days="0.00001") as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        await ready(ada, left.export_id)

        async def is_over() -> bool:
            [row] = await users.select("SELECT expire_time < clock_timestamp() AS is_over FROM personal_data_exports")
            return row["is_over"]

        await until(is_over)
        async with worker.transaction() as rows:
            assert await store.expired_exports(rows, 10) == []
        await cancel(ada)

        async def is_gone() -> bool:
            return not await exports(ada)

        await until(is_gone)


async def test_who_stays_at_the_last_moment_is_not_deleted(installation: Installation, redis: Redis, worker: Database):
    """The worker has found them due, and they change their mind before it has locked them."""
    async with leaving(installation, deletion_confirm_seconds="3600") as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        await ready(ada, left.export_id)
        async with worker.transaction() as rows:
            assert await store.due_deletions(rows, 10) == [ada.user_id]
        await cancel(ada)
        async with worker.transaction(ada.user_id) as rows:
            assert not await store.purge(rows, ada.user_id)
        assert (await ada.profile()).email == EMAIL


async def test_a_clock_that_is_set_forward_for_a_while_deletes_nobody(
    installation: Installation, redis: Redis, worker: Database
):
    async with leaving(installation, deletion_confirm_seconds="3600") as users:
        ada = await somebody(users, redis)
        left = await delete(ada)
        await ready(ada, left.export_id)

        async def is_due() -> bool:
            async with worker.transaction() as rows:
                return await store.due_deletions(rows, 10) == [ada.user_id]

        await until(is_due)
        now = asyncio.get_running_loop().time()
        careful = purging.Purging(worker, 3600)
        async with holding(worker, "a purge of the test's") as lease:
            await careful.step(lease)
            assert careful._due_since.keys() == {ada.user_id}
            # The clock is right again: what was seen before counts no more.
            await users.select("UPDATE deletions SET purge_time = now() + interval '1 day' RETURNING 1")
            await careful.step(lease)
            assert careful._due_since == {}
            await users.select("UPDATE deletions SET purge_time = now() - interval '1 day' RETURNING 1")
            await careful.step(lease)
            assert (await ada.profile()).email == EMAIL
            careful._due_since[ada.user_id] = now - 3601
            await careful.step(lease)
        assert await reason(ada.profile()) == "USER_DELETED"


# Killed at any moment.


async def test_a_worker_that_is_killed_in_the_midst_of_an_export_is_succeeded_by_one_that_begins_anew(
    installation: Installation, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "PART_BYTES", 100)
    async with stand.served(installation) as users:
        # A replica that is killed while it holds the lease; the one of the stand takes over.
        ada = await somebody(users, redis)
        ada.opens_account()
        waiting, go_on = asyncio.Event(), asyncio.Event()
        answer = users.around.ListPositions

        async def stall(request: Any, context: Any) -> Any:
            if not go_on.is_set():
                waiting.set()
                await go_on.wait()
            return await answer(request, context)

        users.around.stalls["ListPositions"] = stall
        left = await delete(ada)
        await asyncio.wait_for(waiting.wait(), 20)
        parts = await users.select("SELECT part FROM personal_data_parts")
        assert len(parts) > 3
        # Its lease goes to somebody else, as when it had died: what it writes from now on is refused.
        await users.select(
            "UPDATE leases SET epoch = epoch + 1, expire_time = now() WHERE name = 'personal data' RETURNING 1"
        )
        go_on.set()
        documents = await download(ada, await ready(ada, left.export_id))
        assert documents["contents.json"]["documents"] == list(documents)[:-1]
        told = [each for each in await users.told(ada.user_id) if isinstance(each, events_pb2.PersonalDataExported)]
        assert len(told) == 1


async def test_a_process_killed_in_the_midst_of_an_export_leaves_it_and_the_purge_to_its_successor(
    installation: Installation, redis: Redis
):
    none = {"deletion_grace_days": "0", "deletion_download_days": "0"}
    async with stand.surrounded(installation, **none) as (around, settings):
        with installation.start("users", **settings) as process:
            await process.served.until_ready()
            users = Stand(installation, around, process.served)
            ada = await somebody(users, redis)
            waiting = asyncio.Event()

            async def stall(request: Any, context: Any) -> Any:
                waiting.set()
                await asyncio.Event().wait()

            around.stalls["ListAccounts"] = stall
            await delete(ada)
            await asyncio.wait_for(waiting.wait(), 20)
            process.kill()
            await process.served.close()
            around.stalls.clear()
            assert await users.told(ada.user_id) == [events_pb2.DeletionScheduled(purge_time=(await due(users)))]
            process.start()
            await process.served.until_ready()
            await purged(users, ada)
            assert (await rows_of(users, ada.user_id)).keys() == {"people", "outbox"}
            await process.served.close()


async def due(users: Stand) -> Timestamp:
    [row] = await users.select("SELECT purge_time FROM deletions")
    found = timestamp(row["purge_time"])
    assert found
    return found


async def test_a_purge_that_breaks_off_deletes_nothing(installation: Installation, redis: Redis, worker: Database):
    async with leaving(installation, deletion_confirm_seconds="3600") as users:
        ada = await somebody(users, redis)
        await ada.put()
        left = await delete(ada)
        await ready(ada, left.export_id)
        before = await rows_of(users, ada.user_id)
        with pytest.raises(ConnectionResetError):
            async with worker.transaction(ada.user_id) as rows:
                assert await store.purge(rows, ada.user_id)
                raise ConnectionResetError
        assert await rows_of(users, ada.user_id) == before
        assert len(await ada.credentials()) == 1


async def test_auth_itself_answers_an_export(installation: Installation, redis: Redis):
    """Not its stand-in: what auth keeps of somebody who registered there."""
    async with installation.serve("auth") as auth:
        stub: Any = auth.stub(auth_pb2_grpc.AuthServiceStub)
        request = auth_pb2.RegisterRequest(email=EMAIL, password="tea and biscuits at four", full_name="Ada")
        registered = await stub.Register(request)
        async with stand.served(installation, auth_service_url=auth.address) as users:
            ada = users.person(UUID(registered.user.user_id))

            async def is_known() -> bool:
                return (await ada.profile()).email == EMAIL

            await until(is_known)
            documents = await download(ada, await ready(ada, (await export(ada)).export_id))
            assert documents["auth/GetMe-000001.json"]["user"]["email"] == EMAIL
            kinds = [event["kind"] for event in documents["auth/ListOwnAuditEvents-000001.json"]["events"]]
            assert "tradeloom.auth.v1.UserRegistered" in kinds
