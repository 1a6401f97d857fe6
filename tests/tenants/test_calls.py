"""No RPC of any service returns or changes what is another user's: the whole contract is walked with two people.

Anna has one of everything. For each method somebody new, Bert, names hers in every field for an id, and also what nobody
has. What he is told is the same, holds nothing of hers, and leaves all her rows as they were. `tests.tenants.walk` says
how a method that is added is covered; until it is, its name fails `test_every_method_and_every_id_is_walked`.
"""

from collections.abc import Sequence
from functools import partial

import pytest
from argon2 import PasswordHasher

from libs.ids import uuid7
from libs.mesh.contract import Method, methods
from services.auth import passwords
from tests.mesh import Installation
from tests.tenants.walk import (
    ASKED,
    NOBODYS_IDS,
    PERSONAL_TEXTS,
    SERVED,
    UNNAMED,
    Anna,
    Person,
    World,
    for_people,
    marks,
    outcome,
    request_of,
    short,
    somebody,
    standing,
)

DIFFERS = {
    "AuthService/Register": "whose address it is must be told that it is taken",
}
"""Methods that tell a person's own from what nobody has, with the reason why they must."""
LEAVES = {
    "AuthService/Login": {"failed_logins", "outbox", "users", "audit_events", "audit_chains"},
    "AuthService/RequestPasswordReset": {"mails", "one_time_tokens"},
}
"""What those who only know somebody's address may leave: notes that they tried, and a mail to that somebody."""


@pytest.fixture(autouse=True)
def weak_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in auth's own tests: many people sign in."""
    weak = partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "PasswordHasher", weak)


def walked() -> list[Method]:
    """Those that leave something of their own come last, for it goes on by itself."""
    return sorted(methods(*SERVED).values(), key=lambda method: short(method) in LEAVES)


@pytest.mark.timeout(300)
async def test_no_rpc_returns_or_changes_what_is_anothers(bare_installation: Installation):
    async with standing(bare_installation, SERVED) as world:
        anna = Anna(world, await somebody(world))
        await anna.have()
        before = await anna.rows()
        assert {table for table in before if not before[table]} <= NOT_HAD
        failures: list[str] = []
        left: set[str] = set()
        called = 0
        berts: list[Person] = []
        for method in walked():
            known = marks(before, anna)
            left |= LEAVES.get(short(method), set())
            for page_token in await page_tokens(world, anna, method):
                # Who has only looked is as new as somebody new.
                berts = berts or [await somebody(world), await somebody(world)]
                failures += [
                    f"{short(method)}: {failure}"
                    for failure in await tried(world, anna, berts, method, page_token, known)
                ]
                called += 1
                if not method.reads_only:
                    berts = []
            after = await anna.rows()
            if method.server_streams:
                before = after  # Anna has acted meanwhile
            changed = [table for table in before if after[table] != before[table] and table[1] not in left]
            failures += [f"{short(method)}: changed {'.'.join(table)} of another" for table in changed]
            before = after
        assert not failures, "\n".join(failures)
        assert called >= len(walked())


NOT_HAD = {
    *((word, "request_keys") for word in ("auth", "billing", "execution", "feeds", "marketdata")),
    *((word, "outbox") for word in ("feeds", "marketdata")),
    *(("auth", table) for table in ("failed_logins", "key_refusals", "record_reads", "reset_requests")),
    *(("auth", table) for table in ("mails", "mfa_totp", "recovery_codes", "revocations")),
    *(("billing", table) for table in ("invoices", "usage")),
    *(("execution", table) for table in ("venue_cancels", "venue_releases", "venue_replaces")),
    *(("marketdata", table) for table in ("imports", "import_chunks", "deletions")),
    ("orders", "departures"),
}
"""Tables in which Anna has no row while she is walked past."""


async def page_tokens(world: World, anna: Anna, method: Method) -> list[str]:
    """None, and that of Anna's own second page, where there is one."""
    if not for_people(method) or "page_token" not in method.descriptor.input_type.fields_by_name:
        return [""]
    request = request_of(method, anna.ids)
    request.page_size = 1  # type: ignore[attr-defined]
    token = (await world.ask(method, request, anna.person.metadata)).next_page_token
    return ["", token] if token else [""]


async def tried(
    world: World, anna: Anna, berts: Sequence[Person], method: Method, page_token: str, known: set[str]
) -> list[str]:
    """What is wrong with how Bert is answered: the one who names what is hers, and the other who names what nobody has."""
    nobodys = {name: f"{uuid7()}@example.com" if name in PERSONAL_TEXTS else str(uuid7()) for name in anna.ids}
    outcomes = []
    for ids, bert in zip((anna.ids, nobodys), berts, strict=True):
        request = request_of(method, ids, page_token)
        outcomes.append((request, await outcome(world, method, request, bert.metadata, anna.act)))
    (request, hers), (_, theirs) = outcomes
    wrong = []
    if (hers.code, hers.reason, hers.told) != (theirs.code, theirs.reason, theirs.told) and short(
        method
    ) not in DIFFERS:
        wrong.append(f"tells hers from nobody's: {hers}, {theirs}")
    if hers.reason == "INVALID_FIELDS":
        wrong.append(f"its line in ASKED makes no request that is read: {sorted(hers.told)}")
    said = {mark for mark in known | set(anna.ids.values()) if mark in hers.text and mark not in str(request)}
    if said:
        wrong.append(f"tells what is hers: {sorted(said)}")
    return wrong


def test_every_method_and_every_id_is_walked():
    """What is added to the contract is covered by a line of `tests.tenants.walk`, or fails here by its name."""
    made = {
        "user_id",
        "email",
        "session_id",
        "account_id",
        "account_ids",
        "api_key_id",
        "order_id",
        "credential_id",
        "export_id",
        "group_id",
        "parent_order_id",
        "deployment_id",
        "reconciliation_id",
        "external_order_id",
    }
    for method in walked():
        assert short(method) in ASKED or not for_people(method), f"{short(method)} has no line in ASKED"
        for named in method.descriptor.input_type.fields:
            if UNNAMED.search(named.name) and for_people(method):
                assert named.name in made | NOBODYS_IDS, f"{short(method)}: nobody makes {named.name}"
    assert set(ASKED) <= {short(method) for method in walked()}, "what is not there needs no line"
    assert set(DIFFERS) | set(LEAVES) <= set(ASKED)
