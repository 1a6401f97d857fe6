"""The audit chains: everything about a person, once, in order, provable, and nobody else's."""

import asyncio
import base64
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tradeloom.auth.v1 import auth_pb2
from tradeloom.orders.v1 import events_pb2 as orders_events_pb2
from tradeloom.orders.v1 import orders_pb2

from libs import audit
from libs.audit import Checkpoint, Tampered
from libs.bus.connection import open_redis
from libs.cli.audit import event_from_proto
from libs.ids import uuid7
from libs.mesh import pages
from libs.store import outbox
from libs.store.database import open_database
from libs.store.outbox import Fact
from libs.store.relay import relay
from services.auth import audit_store
from tests.auth.people import (
    admin_of,
    administering,
    carrying,
    enrolled,
    reason_of,
    recorded,
    registered,
    signed_in,
    stub_of,
    told_of,
)
from tests.mesh import sign_in

SECONDS = 10


async def events_of(auth, metadata, page_size: int = 0) -> tuple[list[auth_pb2.AuditEvent], auth_pb2.AuditCheckpoint]:
    """All of the caller's records, page by page."""
    found, token = [], ""
    while True:
        request = auth_pb2.ListOwnAuditEventsRequest(page_size=page_size, page_token=token)
        page = await stub_of(auth).ListOwnAuditEvents(request, metadata=metadata)
        found += page.events
        token = page.next_page_token
        if not token:
            return found, page.checkpoint


async def until_recorded(auth, metadata, *kinds: str) -> list[auth_pb2.AuditEvent]:
    """Once just these are there, in this order."""
    async with asyncio.timeout(SECONDS):
        while len((await events_of(auth, metadata))[0]) < len(kinds):
            await asyncio.sleep(0.02)
    found = (await events_of(auth, metadata))[0]
    assert [event.kind.rpartition(".")[2] for event in found] == list(kinds)
    return found


async def proved(auth, events: list[auth_pb2.AuditEvent], end: auth_pb2.AuditCheckpoint) -> audit.Verified:
    """As `tradeloom audit verify` does with an export of them."""
    keys = (await stub_of(auth).GetAuditKeys(auth_pb2.GetAuditKeysRequest())).keys
    trusted = [{"kid": key.kid, "x": key.x} for key in keys]
    checkpoint = Checkpoint(user_id=UUID(end.user_id), sequence=end.sequence, hash=end.hash, signature=end.signature)
    lines = [
        audit.head_line(checkpoint.user_id, trusted),
        *(audit.record_line(event_from_proto(event)) for event in events),
        audit.end_line(checkpoint),
    ]
    return audit.verify_export(lines, trusted)


async def test_what_a_person_does_and_suffers_is_recorded_in_order_and_proved(auth):
    who = await enrolled(auth)
    made = await stub_of(auth).CreateApiKey(
        auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_READ), metadata=who.metadata
    )
    await stub_of(auth).RevokeApiKey(
        auth_pb2.RevokeApiKeyRequest(api_key_id=made.api_key.api_key_id), metadata=who.metadata
    )
    assert await reason_of(stub_of(auth).StepUp(auth_pb2.StepUpRequest(code="000000"), metadata=who.metadata))
    kinds = ["UserRegistered", "SessionOpened", "TotpEnabled", "RecoveryCodesRegenerated", "ApiKeyCreated"]
    events = await until_recorded(auth, who.metadata, *kinds, "ApiKeyRevoked", "SecondFactorFailed")
    assert [event.sequence for event in events] == list(range(1, 8))
    assert json.loads(events[4].detail)["api_key_id"] == made.api_key.api_key_id
    assert made.secret not in str(events)
    pages, end = await events_of(auth, who.metadata, page_size=3)
    assert pages == events
    assert (await proved(auth, pages, end)).record_count == 7


async def test_records_can_be_read_newest_first_page_by_page(auth):
    who = await enrolled(auth)
    kinds = ["UserRegistered", "SessionOpened", "TotpEnabled", "RecoveryCodesRegenerated"]
    oldest_first = await until_recorded(auth, who.metadata, *kinds)
    found, token = [], ""
    for size in (3, 1):
        request = auth_pb2.ListOwnAuditEventsRequest(page_size=3, page_token=token, newest_first=True)
        page = await stub_of(auth).ListOwnAuditEvents(request, metadata=who.metadata)
        assert len(page.events) == size
        found += page.events
        token = page.next_page_token
    assert not token
    assert found == oldest_first[::-1]
    asked = auth_pb2.ListAuditEventsRequest(user_id=who.person.user_id, page_size=1, newest_first=True)
    # Their own, so that nothing is added by reading.
    own = administering(who.person.user_id, gen=1)
    [newest] = (await admin_of(auth).ListAuditEvents(asked, metadata=own)).events
    assert newest == oldest_first[-1]


async def test_an_administrator_sees_anybodys_and_a_person_only_their_own(auth):
    ada, bob = await registered(auth), await registered(auth)
    session = await signed_in(auth, ada)
    events = await until_recorded(auth, carrying(session), "UserRegistered", "SessionOpened")
    request = auth_pb2.ListAuditEventsRequest(user_id=ada.user_id)
    seen = await admin_of(auth).ListAuditEvents(request, metadata=administering())
    # That they are being read may be recorded by then.
    assert list(seen.events)[:2] == events
    assert (await proved(auth, list(seen.events), seen.checkpoint)).record_count == len(seen.events)
    of_bob, end = await events_of(auth, carrying(await signed_in(auth, bob)))
    assert not {event.hash for event in of_bob} & {event.hash for event in events}
    assert end.user_id == bob.user_id
    nobody, end = await events_of(auth, sign_in(uuid7()))
    assert nobody == []
    assert (await proved(auth, nobody, end)).record_count == 0


async def test_an_administrators_act_stands_in_the_chain_of_whom_it_befell(auth):
    person, admin = await registered(auth), str(uuid7())
    await admin_of(auth).SetUserRoles(
        auth_pb2.SetUserRolesRequest(user_id=person.user_id, roles=["operator"]), metadata=administering(admin)
    )
    session = await signed_in(auth, person)
    events = await until_recorded(auth, carrying(session), "UserRegistered", "RolesChanged", "SessionOpened")
    changed = json.loads(events[1].detail)
    assert (changed["roles"], changed["admin_user_id"]) == (["operator", "user"], admin)


async def test_that_an_administrator_read_somebodys_records_is_recorded_about_them(auth, bare_installation):
    """However they page: no token of theirs keeps it from being recorded, and reading much is told of once."""
    who, reader, other = await enrolled(auth), str(uuid7()), str(uuid7())
    asked = auth_pb2.ListAuditEventsRequest(user_id=who.person.user_id, page_size=1)
    last_page = auth_pb2.ListAuditEventsRequest(user_id=who.person.user_id, page_token=pages.token_after(1))
    await admin_of(auth).ListAuditEvents(last_page, metadata=administering(other))
    for _ in range(3):
        page = await admin_of(auth).ListAuditEvents(asked, metadata=administering(reader))
        asked.page_token = page.next_page_token
    read = await told_of(auth, who.metadata, "AuditRecordsRead", lambda _: 1, 2)
    assert [one["admin_user_id"] for one in read] == [other, reader]
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.record_reads SET read_time = read_time - interval '10 minutes'")
    await admin_of(auth).ListAuditEvents(asked, metadata=administering(reader))
    await told_of(auth, who.metadata, "AuditRecordsRead", lambda _: 1, 3)
    # One's own are one's own, whichever way.
    asked.page_token = ""
    await admin_of(auth).ListAuditEvents(asked, metadata=administering(who.person.user_id, gen=1))
    await signed_in(auth, await registered(auth))
    assert len(await recorded(auth, who.metadata, "AuditRecordsRead")) == 3


async def test_who_began_a_rotation_of_the_signing_key_is_recorded(auth):
    who = await enrolled(auth)
    rotating = auth_pb2.RotateSigningKeyRequest(request_id="r")
    for _ in range(2):
        rotated = await admin_of(auth).RotateSigningKey(rotating, metadata=administering(who.person.user_id, gen=1))
    [told] = await told_of(auth, who.metadata, "SigningKeyRotated", lambda _: 1, 1)
    assert told["key_id"] == rotated.key_id


async def told_by_orders(installation, facts: list[Fact]) -> None:
    async with (
        open_database(installation.url("orders_worker")) as worker,
        open_redis(installation.redis_url) as redis,
    ):
        async with worker.transaction(*{fact.user_id for fact in facts}) as rows:
            await outbox.add(rows, facts)
        async with relay(worker, redis, "orders"):
            async with asyncio.timeout(SECONDS):
                while True:
                    async with worker.transaction() as rows:
                        if not await rows.fetchval("SELECT count(*) FROM outbox WHERE stream_epoch IS NULL"):
                            return
                    await asyncio.sleep(0.02)


async def test_decisions_about_orders_are_recorded_and_fills_are_not(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    # What different services tell comes in any order.
    await until_recorded(auth, carrying(session), "UserRegistered", "SessionOpened")
    account_id, kinds = str(uuid7()), orders_pb2.OrderEventKind
    told = [
        kinds.ORDER_EVENT_KIND_ACCEPTED,
        kinds.ORDER_EVENT_KIND_WORKING,
        kinds.ORDER_EVENT_KIND_FILLED,
        kinds.ORDER_EVENT_KIND_REJECTED,
    ]
    facts = [
        Fact(
            key=account_id,
            sequence=sequence,
            user_id=UUID(person.user_id),
            kind=orders_events_pb2.OrderChanged.DESCRIPTOR.full_name,
            payload=orders_events_pb2.OrderChanged(
                event=orders_pb2.OrderEvent(account_sequence=sequence, kind=kind)
            ).SerializeToString(),
        )
        for sequence, kind in enumerate(told, 1)
    ]
    # One of a kind that this process does not know yet.
    newer = Fact(
        key=account_id, sequence=5, user_id=UUID(person.user_id), kind="tradeloom.orders.v1.Newer", payload=b"\x01"
    )
    await told_by_orders(bare_installation, [*facts, newer])
    events = await until_recorded(
        auth, carrying(session), "UserRegistered", "SessionOpened", "OrderChanged", "OrderChanged", "Newer"
    )
    decided = [json.loads(event.detail)["event"]["kind"] for event in events[2:4]]
    assert decided == ["ORDER_EVENT_KIND_ACCEPTED", "ORDER_EVENT_KIND_REJECTED"]
    assert {event.source for event in events[2:]} == {"orders"}
    assert base64.b64decode(json.loads(events[4].detail)["payload"]) == b"\x01"


async def test_a_killed_auth_records_each_fact_once(bare_installation):
    with bare_installation.start("auth") as process:
        auth = process.served
        await auth.until_ready()
        person = await registered(auth)
        for _ in range(4):
            await signed_in(auth, person)
            await auth.close()
            process.kill()
            process.start()
            await auth.until_ready()
        session = await signed_in(auth, person)
        await until_recorded(auth, carrying(session), "UserRegistered", *["SessionOpened"] * 5)
        events, end = await events_of(auth, carrying(session))
        assert (await proved(auth, events, end)).record_count == 6
        await auth.close()


async def test_two_replicas_write_one_chain(auth, bare_installation):
    async with bare_installation.serve("auth") as replica:
        person = await registered(auth)
        # So many at once as cost nothing.
        sessions = await asyncio.gather(*(signed_in(one, person) for one in (auth, replica) * 2))
        sessions += await asyncio.gather(*(signed_in(one, person) for one in (auth, replica) * 2))
        kinds = ["UserRegistered", *["SessionOpened"] * 8]
        events = await until_recorded(auth, carrying(sessions[0]), *kinds)
        assert (await proved(auth, *await events_of(replica, carrying(sessions[0])))).record_count == len(events)


async def test_the_chains_can_be_added_to_and_emptied_and_nothing_else(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    await until_recorded(auth, carrying(session), "UserRegistered", "SessionOpened")
    refused = (asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)
    for role in ("auth_rpc", "auth_worker"):
        async with bare_installation.connect(role) as rows:
            await rows.execute("SELECT set_config('app.user_ids', $1, false)", person.user_id)
            for statement in (
                "DELETE FROM audit_events",
                "TRUNCATE audit_events",
                "UPDATE audit_events SET hash = ''",
                "UPDATE audit_events SET kind = 'x'",
                "UPDATE audit_events SET detail = 'x'",
                "UPDATE audit_events SET salt = 'x'",
            ):
                with pytest.raises(refused):
                    await rows.execute(statement)
    async with (
        open_database(bare_installation.url("auth_worker")) as worker,
        worker.transaction(UUID(person.user_id)) as rows,
    ):
        await audit_store.empty(rows, UUID(person.user_id))
    events, end = await events_of(auth, carrying(session))
    assert {(event.detail, event.salt) for event in events} == {("", b"")}
    # What the role of the worker can empty without a purge, nobody takes for one.
    with pytest.raises(Tampered, match="record 1: it was emptied"):
        await proved(auth, events, end)


async def rewritten(superuser: asyncpg.Connection, user_id: str) -> None:
    """By whoever can write the database and knows how chains are made: the first record is another, all hashes fit."""
    found = await superuser.fetch("SELECT * FROM auth.audit_events WHERE user_id = $1 ORDER BY sequence", user_id)
    end = Checkpoint(user_id=UUID(user_id), sequence=0, hash=audit.BEFORE_FIRST)
    await superuser.execute("ALTER TABLE auth.audit_events DISABLE TRIGGER only_empties")
    for row in found:
        kept: dict[str, Any] = {name: row[name] for name in ("time", "source", "kind", "detail", "salt")}
        if row == found[0]:
            kept["detail"] = '{"address":"192.0.2.1"}'
        event, end = audit.next_event(end, **kept)
        await superuser.execute(
            "UPDATE auth.audit_events SET (detail, digest, hash) = ($3, $4, $5) WHERE user_id = $1 AND sequence = $2",
            user_id,
            event.sequence,
            event.detail,
            event.digest,
            event.hash,
        )
    await superuser.execute("ALTER TABLE auth.audit_events ENABLE TRIGGER only_empties")
    await superuser.execute("UPDATE auth.audit_chains SET hash = $2 WHERE user_id = $1", user_id, end.hash)


@pytest.mark.parametrize("signature", ["signature", "''"])
async def test_who_writes_the_database_alone_writes_no_other_past(auth, bare_installation, signature):
    person, other = await registered(auth), await registered(auth)
    session, of_other = await signed_in(auth, person), await signed_in(auth, other)
    for one in (session, of_other):
        await until_recorded(auth, carrying(one), "UserRegistered", "SessionOpened")
    async with bare_installation.connect() as superuser:
        await rewritten(superuser, person.user_id)
        await superuser.execute(
            f"UPDATE auth.audit_chains SET signature = {signature} WHERE user_id = $1", person.user_id
        )
    with pytest.raises(Tampered, match="signature"):
        await proved(auth, *await events_of(auth, carrying(session)))
    # Nor does auth sign it when something follows: it says so, and goes on with everybody else's.
    await signed_in(auth, person)
    await signed_in(auth, other)
    await until_recorded(auth, carrying(of_other), "UserRegistered", "SessionOpened", "SessionOpened")
    async with asyncio.timeout(SECONDS):
        while person.user_id not in (await auth.probe())[1]:
            await asyncio.sleep(0.02)
    status, health = await auth.probe()
    assert (status, "audit chains" in health) == (200, True)
    assert "tradeloom_audit_chains_broken 1.0" in (await auth.probe("/metrics"))[1]
    with pytest.raises(Tampered, match="signature"):
        await proved(auth, *await events_of(auth, carrying(session)))
    assert (await proved(auth, *await events_of(auth, carrying(of_other)))).record_count == 3
