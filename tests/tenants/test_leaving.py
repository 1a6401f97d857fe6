"""Who was deleted for good: in no table of any service is anything left of them but what a reason keeps.

Anna has one of everything, and every service is the real one. Her orders are canceled at the venue, and what she called
things is nowhere. A table that is added is found in the catalogue: where it keeps her id, KEPT has to say why.
"""

import asyncio
from functools import partial
from uuid import UUID

import asyncpg
import pytest
from argon2 import PasswordHasher
from google.protobuf.field_mask_pb2 import FieldMask
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.ids import uuid7
from services.auth import passwords
from services.orders import upkeep
from services.users import exporting, purging
from tests.mesh import Installation
from tests.tenants.rows import Table, relations
from tests.tenants.walk import ANSWER_SECONDS, SERVED, Anna, somebody, standing

PHONE = "+442071838750"
FOR_A_WEEK = "facts, which a service that is away reads within a week"
THE_BOOKS = "the books must be provable: who traded stands there as a bare id"
NOBODY_COMES_BACK = "a bare id, so that nobody comes back by a fact that is read again"
KEPT = {
    **{(word, "outbox"): FOR_A_WEEK for word in SERVED},
    **{
        ("orders", table): THE_BOOKS
        for table in (
            "accounts",
            "balances",
            "ledger_entries",
            "order_events",
            "deployment_positions",
            "equity_points",
            "exposures",
            "funding_payments",
            "parent_orders",
            "parent_order_skips",
            "positions",
            "risk_events",
            "trading_executions",
            "trading_orders",
            "venue_funding",
        )
    },
    **{
        ("execution", table): THE_BOOKS
        for table in (
            "account_sequences",
            "differences",
            "external_fills",
            "external_orders",
            "live_accounts",
            "reconciliations",
            "venue_balances",
            "venue_fills",
            "venue_funding",
            "venue_ids",
            "venue_orders",
            "venue_positions",
        )
    },
    ("execution", "switches"): "a bare id; what forbids her orders to be sent is never forgotten",
    ("billing", "invoices"): "the books must be provable: what was billed",
    ("orders", "departures"): NOBODY_COMES_BACK,
    ("users", "people"): NOBODY_COMES_BACK,
    ("auth", "users"): NOBODY_COMES_BACK,
    ("billing", "customers"): NOBODY_COMES_BACK,
    ("auth", "audit_events"): "hashes, which prove the chain; their details and salts are empty",
    ("auth", "audit_chains"): "the end of that chain",
    ("auth", "revocations"): "what was issued to her is refused until it has expired",
}
"""Where her id stays, each with the reason."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in auth's and users' own tests: people sign in, and workers look often."""
    weak = partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "PasswordHasher", weak)
    for module in (upkeep, exporting, purging):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)


async def test_of_who_was_deleted_for_good_only_that_is_left_which_a_reason_keeps(bare_installation: Installation):
    soon = {"deletion_confirm_seconds": "0", "deletion_download_days": "0", "poll_seconds": "0.1"}
    async with standing(bare_installation, SERVED, **soon) as world, bare_installation.connect() as superuser:
        anna = Anna(world, await somebody(world))
        await anna.have()
        naming = users_pb2.UpdateProfileRequest(
            request_id=str(uuid7()),
            profile=users_pb2.Profile(display_name="anna's name", phone=PHONE),
            update_mask=FieldMask(paths=["display_name", "phone"]),
        )
        await anna.call(users_pb2_grpc.UserServiceStub, "UpdateProfile", naming)
        await anna.settled()
        user_id, texts = UUID(anna.person.user_id), ("anna's", anna.person.email, PHONE)
        before = await anna.rows()
        assert set(await texts_left(superuser, texts)) >= {("orders", "accounts"), ("users", "profiles")}
        assert before["orders", "request_keys"]
        assert before["users", "personal_data_parts"]
        resting = UUID(anna.ids["order_id"])
        await superuser.execute("UPDATE users.deletions SET purge_time = now() WHERE user_id = $1", user_id)

        async with asyncio.timeout(ANSWER_SECONDS):
            while {table for table, rows in (await anna.rows()).items() if rows} - KEPT.keys() or not (
                await superuser.fetchval("SELECT done FROM orders.departures WHERE user_id = $1", user_id)
            ):
                await asyncio.sleep(0.05)
        # What came of the last of it is recorded, too.
        async with asyncio.timeout(ANSWER_SECONDS):
            await anna.settled()
        after = await anna.rows()
        assert {table for table, rows in after.items() if rows} <= KEPT.keys()
        assert await texts_left(superuser, texts) == []
        # The venue heard of it, and nothing she had in the books is missing.
        for table in ("orders.trading_orders", "execution.venue_orders"):
            state = await superuser.fetchval(f"SELECT state FROM {table} WHERE order_id = $1", resting)
            assert state == "canceled", table
        for table, reason in KEPT.items():
            if reason == THE_BOOKS:
                assert len(after[table]) >= len(before[table]) > 0, table


async def texts_left(superuser: asyncpg.Connection, texts: tuple[str, ...]) -> list[Table]:
    """The tables that hold any of these texts, as such or as bytes, whether they have a column for a user or none."""
    found = []
    for relation in await relations(superuser):
        table = relation["word"], relation["name"]
        if KEPT.get(table) == FOR_A_WEEK:
            continue
        wanted = [f"%{text}%" for text in texts] + [f"%{text.encode().hex()}%" for text in texts]
        if await superuser.fetchval(
            f"SELECT count(*) FROM {'.'.join(table)} AS one WHERE to_jsonb(one)::text LIKE ANY ($1::text[])", wanted
        ):
            found.append(table)
    return found
