"""Broker credentials: sealed, shown by their last four characters only, tested at the venue, leased to execution alone."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc import aio
from tradeloom.execution.v1 import execution_pb2
from tradeloom.users.v1 import events_pb2, users_pb2, users_pb2_grpc

from libs.errors import Exhausted
from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.wire import time_from_proto, timestamp
from libs.words import WORDS
from services.execution.domain import CredentialNotFound, venue_unavailable
from services.users.domain import CREDENTIALS_MAX
from tests.mesh import Installation, sign_in
from tests.orders.stand import reason, refusal
from tests.users.stand import BINANCE_KEY, BINANCE_SECRET, WAIT_SECONDS, Person, Stand, served, strong


def says(stand: Stand, **said: Any) -> None:
    """What the venue says of whatever key, of the revision that users has."""

    async def check(request: execution_pb2.CheckBrokerCredentialRequest) -> Any:
        [row] = await stand.select(
            "SELECT revision FROM user_broker_credentials WHERE credential_id = $1::text::uuid", request.credential_id
        )
        values = {"can_read": True, "can_trade": True, "revision": row["revision"], **said}
        return execution_pb2.CheckBrokerCredentialResponse(check_time=timestamp(datetime.now(UTC)), **values)

    stand.around.check = check


async def everything_stored(stand: Stand) -> str:
    """All that a thief of the database would read, as text and as bytes."""
    found = []
    tables = await stand.select("SELECT tablename FROM pg_tables WHERE schemaname = 'users'")
    for table in tables:
        for row in await stand.select(f"SELECT * FROM {table['tablename']}"):
            found += [bytes(value).decode("latin-1") if isinstance(value, bytes) else str(value) for value in row]
    return "\n".join(found)


async def test_a_credential_shows_the_last_four_characters_of_its_key_and_nothing_else(users: Stand):
    ada = users.person()
    account_id = ada.opens_account()
    put = await ada.put(account_id, label="main", passphrase="tea and biscuits")
    assert (put.account_id, put.venue, put.label) == (account_id, "BINANCE", "main")
    assert put.api_key_ending == BINANCE_KEY[-4:]
    assert (put.state, put.revision) == (users_pb2.BROKER_CREDENTIAL_STATE_UNTESTED, 1)
    assert not put.HasField("check")
    assert await ada.credentials() == [put]
    stored = await everything_stored(users)
    assert put.credential_id in stored
    for secret in (BINANCE_KEY, BINANCE_SECRET, "tea and biscuits"):
        assert secret not in stored
        assert secret not in str(await ada.credentials())
    [told] = await users.told(ada.user_id)
    assert told == events_pb2.BrokerCredentialPut(
        credential_id=put.credential_id, account_id=account_id, venue="BINANCE", label="main", revision=1
    )


async def test_what_was_put_is_leased_to_execution_and_told_before(users: Stand):
    ada = users.person()
    put = await ada.put(passphrase="tea")
    leased = await ada.lease(put.credential_id)
    assert (leased.api_key, leased.api_secret, leased.passphrase) == (BINANCE_KEY, BINANCE_SECRET, "tea")
    assert (leased.account_id, leased.venue, leased.revision) == (put.account_id, "BINANCE", 1)
    left = time_from_proto(leased.expire_time) - datetime.now(UTC)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    told = (await users.told(ada.user_id))[-1]
    assert (told.credential_id, told.purpose, told.service) == (put.credential_id, "test", "execution")
    assert told.request_id
    assert told.expire_time == leased.expire_time
    # Each lease is told, also one that is repeated.
    await ada.lease(put.credential_id)
    assert len(await users.told(ada.user_id)) == 3


async def test_a_lease_that_cannot_be_unsealed_was_told_all_the_same(users: Stand):
    ada = users.person()
    put = await ada.put()
    await users.select("UPDATE user_broker_credentials SET key_id = 'lost' RETURNING 1")
    refused = await refusal(ada.lease(put.credential_id))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
    assert isinstance((await users.told(ada.user_id))[-1], events_pb2.BrokerCredentialLeased)


async def test_a_sealed_secret_that_was_moved_to_another_row_opens_for_nobody(users: Stand):
    ada, eve = users.person(), users.person()
    hers, others = await ada.put(), await eve.put(api_key="e" * 64, api_secret="f" * 64)
    await users.select(
        """
        UPDATE user_broker_credentials AS mine
        SET key_id = other.key_id, wrapped_key = other.wrapped_key, ciphertext = other.ciphertext
        FROM user_broker_credentials AS other WHERE mine.user_id = $1 AND other.user_id = $2 RETURNING 1
        """,
        eve.user_id,
        ada.user_id,
    )
    assert (await ada.lease(hers.credential_id)).api_key == BINANCE_KEY
    refused = await refusal(eve.lease(others.credential_id))
    assert (refused.code, refused.reason) == ("INTERNAL", "INTERNAL")


@pytest.mark.parametrize("caller", sorted({*WORDS, "edge", "operator", "notifications"} - {"execution", "web"}))
async def test_nobody_elses_certificate_gets_a_lease(users: Stand, caller: str):
    ada = users.person()
    put = await ada.put()
    request = users_pb2.LeaseBrokerCredentialRequest(
        request_id="x", credential_id=put.credential_id, purpose=users_pb2.LEASE_PURPOSE_TEST
    )
    stub: Any = users.served.stub(users_pb2_grpc.BrokerCredentialServiceStub, caller)
    for metadata in (identity.for_user(ada.user_id), sign_in(ada.user_id, **strong()), ()):
        refused = await refusal(stub.LeaseBrokerCredential(request, metadata=metadata))
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "NOT_PERMITTED")
    assert len(await users.told(ada.user_id)) == 1


async def test_execution_leases_for_a_user_whom_it_names_and_only_what_is_theirs(users: Stand):
    ada, eve = users.person(), users.person()
    put = await ada.put()
    refused = await refusal(eve.lease(put.credential_id))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "CREDENTIAL_NOT_FOUND")
    request = users_pb2.LeaseBrokerCredentialRequest(
        request_id="x", credential_id=put.credential_id, purpose=users_pb2.LEASE_PURPOSE_TEST
    )
    stub: Any = users.served.stub(users_pb2_grpc.BrokerCredentialServiceStub, "execution")
    # Somebody's own token names nobody: execution must say for whom it asks.
    for metadata in ((), sign_in(ada.user_id)):
        assert (await refusal(stub.LeaseBrokerCredential(request, metadata=metadata))).code == "UNAUTHENTICATED"
    assert [type(told) for told in await users.told(ada.user_id)] == [events_pb2.BrokerCredentialPut]


async def test_putting_a_key_needs_a_fresh_second_factor_and_an_address_that_is_verified(users: Stand):
    ada = users.person()
    request = ada.put_request(ada.opens_account())
    for claims, why in [
        ({}, "EMAIL_NOT_VERIFIED"),
        ({"email_verified": True}, "STEP_UP_REQUIRED"),
        ({**strong(), "mfa_time": int((datetime.now(UTC) - timedelta(minutes=6)).timestamp())}, "STEP_UP_REQUIRED"),
        ({**strong(), "email_verified": False}, "EMAIL_NOT_VERIFIED"),
        ({**strong(), "scopes": ["read", "trade"]}, "NOT_PERMITTED"),
    ]:
        weak = users.person(ada.user_id, **claims)
        refused = await refusal(weak.ask(weak.keys.PutBrokerCredential, request))
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", why)
    assert await ada.credentials() == []


@pytest.mark.parametrize(
    ("venue", "code", "why"),
    [
        ("PAPER", "FAILED_PRECONDITION", "VENUE_NEEDS_NO_CREDENTIAL"),
        ("SIM", "FAILED_PRECONDITION", "VENUE_NEEDS_NO_CREDENTIAL"),
        ("MTGOX", "FAILED_PRECONDITION", "VENUE_NOT_SUPPORTED"),
        ("binance", "FAILED_PRECONDITION", "VENUE_NOT_SUPPORTED"),
    ],
)
async def test_a_key_for_a_venue_that_takes_none_is_refused_by_name(users: Stand, venue: str, code: str, why: str):
    ada = users.person()
    refused = await refusal(ada.put(venue=venue))
    assert (refused.code, refused.reason, refused.metadata) == (code, why, {"venue": venue})
    assert await ada.credentials() == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"api_key": "short"}, "api_key"),
        ({"api_key": BINANCE_KEY + "\n"}, "api_key"),
        ({"api_secret": "with spaces in the midst"}, "api_secret"),
        ({"label": ""}, "label"),
        ({"account_id": "mine"}, "account_id"),
        ({"credential_id": "mine"}, "credential_id"),
        ({"request_id": ""}, "request_id"),
    ],
)
async def test_a_bad_key_is_refused_by_field_and_never_repeated(users: Stand, changed: dict[str, str], field: str):
    ada = users.person()
    with pytest.raises(aio.AioRpcError) as caught:
        await ada.put(**changed)
    refused = await refusal(ada.put(**changed))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])
    assert BINANCE_SECRET not in str(caught.value)


async def test_the_account_must_be_ones_own(users: Stand):
    ada, eve = users.person(), users.person()
    account_id = ada.opens_account()
    refused = await refusal(eve.put(account_id))
    assert (refused.code, refused.reason, refused.metadata) == (
        "NOT_FOUND",
        "ACCOUNT_NOT_FOUND",
        {"account_id": account_id},
    )
    assert ("GetPortfolio", "users") in users.around.asked
    users.around.away.add("GetPortfolio")
    assert (await refusal(ada.put(account_id))).code == "UNAVAILABLE"
    assert await ada.credentials() == await eve.credentials() == []


async def test_an_account_has_one_credential_and_no_two_are_labelled_alike(users: Stand):
    ada, eve = users.person(), users.person()
    first_account, second_account = ada.opens_account(), ada.opens_account()
    first = await ada.put(first_account, label="main")
    refused = await refusal(ada.put(first_account, label="other"))
    assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "ACCOUNT_HAS_CREDENTIAL")
    assert refused.metadata == {"account_id": first_account, "credential_id": first.credential_id}
    assert await reason(ada.put(second_account, label="main")) == "LABEL_TAKEN"
    second = await ada.put(second_account, label="second", venue="BINANCE")
    assert await ada.credentials() == [first, second]
    # Another person's labels are their own.
    assert (await eve.put(label="main")).label == "main"


async def test_there_is_a_bound_on_how_many_also_for_puts_at_once(users: Stand):
    ada = users.person()
    accounts = [ada.opens_account() for _ in range(CREDENTIALS_MAX + 3)]
    outcomes = await asyncio.gather(*(ada.put(account) for account in accounts), return_exceptions=True)
    assert sum(isinstance(each, users_pb2.BrokerCredential) for each in outcomes) == CREDENTIALS_MAX
    refused = await refusal(ada.put())
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CREDENTIALS")
    assert refused.metadata == {"credentials_max": str(CREDENTIALS_MAX)}
    # One in another's place needs no more room.
    [first, *_] = await ada.credentials()
    assert (await ada.put(first.account_id, credential_id=first.credential_id)).revision == 2


async def test_a_key_in_anothers_place_is_untested_and_sealed_anew(users: Stand):
    ada, eve = users.person(), users.person()
    says(users)
    put = await ada.put(label="main")
    await ada.test(put.credential_id)
    [before] = await users.select("SELECT wrapped_key, ciphertext FROM user_broker_credentials")
    again = await ada.put(
        put.account_id, credential_id=put.credential_id, label="main, new", api_key="n" * 64, api_secret="m" * 64
    )
    assert (again.credential_id, again.revision, again.api_key_ending) == (put.credential_id, 2, "nnnn")
    assert again.state == users_pb2.BROKER_CREDENTIAL_STATE_UNTESTED
    assert not again.HasField("check")
    assert again.create_time == put.create_time
    [after] = await users.select("SELECT wrapped_key, ciphertext FROM user_broker_credentials")
    assert after["wrapped_key"] != before["wrapped_key"]
    assert (await ada.lease(put.credential_id)).api_secret == "m" * 64
    assert await reason(eve.put(credential_id=put.credential_id)) == "CREDENTIAL_NOT_FOUND"


async def test_repeating_a_put_returns_the_first_answer_and_needs_nobody(users: Stand):
    ada = users.person()
    request = ada.put_request(ada.opens_account())
    strong_ada = ada.with_second_factor()
    first = await strong_ada.ask(strong_ada.keys.PutBrokerCredential, request)
    users.around.away.add("GetPortfolio")
    assert await strong_ada.ask(strong_ada.keys.PutBrokerCredential, request) == first
    request.api_secret = "s" * 64
    assert await reason(strong_ada.ask(strong_ada.keys.PutBrokerCredential, request)) == "REQUEST_ID_REUSED"
    assert len(await ada.credentials()) == 1
    assert len(await users.told(ada.user_id)) == 1


async def test_the_same_put_many_times_at_once_has_one_effect(users: Stand):
    ada = users.person().with_second_factor()
    request = ada.put_request(ada.opens_account())
    answers = await asyncio.gather(*(ada.ask(ada.keys.PutBrokerCredential, request) for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert len(await ada.credentials()) == len(await users.told(ada.user_id)) == 1


async def test_credentials_come_in_pages_of_ones_own(users: Stand):
    ada, eve = users.person(), users.person()
    put = [await ada.put() for _ in range(3)]
    await eve.put()
    request = users_pb2.ListBrokerCredentialsRequest(page_size=2)
    first = await ada.ask(ada.keys.ListBrokerCredentials, request)
    request.page_token = first.next_page_token
    second = await ada.ask(ada.keys.ListBrokerCredentials, request)
    assert [*first.credentials, *second.credentials] == put
    assert second.next_page_token == ""


async def delete(person: Person, credential_id: str, request_id: str = "delete") -> None:
    request = users_pb2.DeleteBrokerCredentialRequest(request_id=request_id, credential_id=credential_id)
    await person.ask(person.keys.DeleteBrokerCredential, request)


async def test_a_deleted_credential_is_gone_with_its_secret_and_told(users: Stand):
    ada, eve = users.person(), users.person()
    put = await ada.put()
    assert await reason(delete(eve, put.credential_id)) == "CREDENTIAL_NOT_FOUND"
    await delete(ada, put.credential_id)
    await delete(ada, put.credential_id)  # the same request
    assert await reason(delete(ada, put.credential_id, "another")) == "CREDENTIAL_NOT_FOUND"
    assert await ada.credentials() == []
    assert await reason(ada.lease(put.credential_id)) == "CREDENTIAL_NOT_FOUND"
    assert await users.select("SELECT 1 FROM user_broker_credentials") == []
    assert (await users.told(ada.user_id))[1:] == [
        events_pb2.BrokerCredentialDeleted(credential_id=put.credential_id, account_id=put.account_id, venue="BINANCE")
    ]
    # Its account and its label are free again.
    await ada.put(put.account_id, label=put.label)


async def test_who_has_a_second_factor_proves_it_to_delete_a_credential(users: Stand):
    ada = users.person()
    put = await ada.put()
    enrolled = users.person(ada.user_id, mfa=True)
    assert await reason(delete(enrolled, put.credential_id)) == "STEP_UP_REQUIRED"
    await delete(ada.with_second_factor(), put.credential_id)


async def test_a_key_that_the_venue_lets_read_and_trade_is_usable(users: Stand):
    ada = users.person()
    put = await ada.put()
    assert await reason(ada.lease(put.credential_id, "TRADE")) == "CREDENTIAL_NOT_USABLE"
    says(users)
    tested = await ada.test(put.credential_id)
    assert tested.state == users_pb2.BROKER_CREDENTIAL_STATE_USABLE
    assert (tested.check.can_read, tested.check.can_trade, tested.check.can_withdraw) == (True, True, False)
    assert tested.check.problem == users_pb2.BROKER_CREDENTIAL_PROBLEM_UNSPECIFIED
    assert await ada.credentials() == [tested]
    assert (await ada.lease(put.credential_id, "TRADE")).api_secret == BINANCE_SECRET
    assert (await users.told(ada.user_id))[1] == events_pb2.BrokerCredentialTested(
        credential_id=put.credential_id, state="usable", can_read=True, can_trade=True
    )
    assert ("CheckBrokerCredential", "users") in users.around.asked


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"can_withdraw": True}, "CAN_WITHDRAW"),
        ({"can_trade": False}, "CANNOT_TRADE"),
        ({"can_read": False}, "CANNOT_READ"),
        ({"can_read": False, "can_trade": False, "problem": 1}, "KEY_INVALID"),
        ({"can_read": False, "can_trade": False, "problem": 2}, "SECRET_INVALID"),
    ],
)
async def test_a_key_that_is_of_no_use_or_may_withdraw_is_refused_and_never_leased_to_trade(
    users: Stand, said: dict[str, Any], problem: str
):
    ada = users.person()
    put = await ada.put()
    says(users)
    await ada.test(put.credential_id)
    says(users, **said)
    tested = await ada.test(put.credential_id)
    assert tested.state == users_pb2.BROKER_CREDENTIAL_STATE_REFUSED
    wanted = users_pb2.BrokerCredentialProblem.Value(f"BROKER_CREDENTIAL_PROBLEM_{problem}")
    assert (tested.check.problem, tested.check.can_withdraw) == (wanted, said.get("can_withdraw", False))
    refused = await refusal(ada.lease(put.credential_id, "TRADE"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CREDENTIAL_NOT_USABLE")
    assert refused.metadata == {"credential_id": put.credential_id, "state": "refused"}
    # To ask the venue once more it can be leased.
    await ada.lease(put.credential_id, "TEST")
    told = [each for each in await users.told(ada.user_id) if isinstance(each, events_pb2.BrokerCredentialTested)]
    assert (told[-1].state, told[-1].problem) == ("refused", problem.lower())


async def test_a_venue_that_does_not_answer_changes_nothing_and_says_when_to_come_back(users: Stand):
    ada = users.person()
    put = await ada.put()
    says(users)
    tested = await ada.test(put.credential_id)

    async def away(request: Any) -> Any:
        raise venue_unavailable("BINANCE", 17.0)

    users.around.check = away
    refused = await refusal(ada.test(put.credential_id))
    assert (refused.code, refused.reason, refused.retry_seconds) == ("UNAVAILABLE", "VENUE_UNAVAILABLE", 17.0)
    assert refused.metadata == {"venue": "BINANCE"}
    users.around.away.add("CheckBrokerCredential")
    assert (await refusal(ada.test(put.credential_id))).reason == "DEPENDENCY_UNAVAILABLE"
    assert await ada.credentials() == [tested]


async def test_repeating_a_test_returns_the_first_answer_without_asking_the_venue_again(users: Stand):
    ada = users.person()
    put = await ada.put()
    says(users)
    first = await ada.test(put.credential_id, "same")
    says(users, can_withdraw=True)
    assert await ada.test(put.credential_id, "same") == first
    assert users.around.asked.count(("CheckBrokerCredential", "users")) == 1


async def test_the_same_credential_is_not_tested_again_at_once(installation: Installation):
    async with served(installation, credential_test_pause_seconds="10") as users:
        ada = users.person()
        put, other = await ada.put(), await ada.put()
        says(users)
        first = await ada.test(put.credential_id, "same")
        refused = await refusal(ada.test(put.credential_id))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert 5 < (refused.retry_seconds or 0) <= 10
        assert await ada.test(put.credential_id, "same") == first
        # Another one is, and so is another key in its place.
        await ada.test(other.credential_id)
        await ada.put(put.account_id, credential_id=put.credential_id)
        await ada.test(put.credential_id)
        assert users.around.asked.count(("CheckBrokerCredential", "users")) == 3


async def test_who_is_to_wait_by_executions_word_is_told_so(users: Stand):
    ada = users.person()
    put = await ada.put()

    async def too_many(request: Any) -> Any:
        raise Exhausted("one at a time", retry_after_seconds=7.0)

    users.around.check = too_many
    refused = await refusal(ada.test(put.credential_id))
    assert (refused.code, refused.reason, refused.retry_seconds) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 7.0)


async def test_what_was_said_of_a_key_does_not_count_for_the_one_put_in_its_place_meanwhile(users: Stand):
    ada = users.person()
    put = await ada.put()

    async def replaced_meanwhile(request: Any) -> Any:
        await ada.put(put.account_id, credential_id=put.credential_id, api_key="n" * 64)
        return execution_pb2.CheckBrokerCredentialResponse(can_read=True, can_trade=True, revision=1)

    users.around.check = replaced_meanwhile
    refused = await refusal(ada.test(put.credential_id))
    assert (refused.code, refused.reason) == ("ABORTED", "CREDENTIAL_CHANGED")
    [kept] = await ada.credentials()
    assert (kept.state, kept.revision) == (users_pb2.BROKER_CREDENTIAL_STATE_UNTESTED, 2)


async def test_a_credential_that_was_deleted_while_it_was_tested_is_not_found(users: Stand):
    ada, eve = users.person(), users.person()
    put = await ada.put()

    async def deleted_meanwhile(request: Any) -> Any:
        await delete(ada, put.credential_id)
        raise CredentialNotFound("no such credential", credential_id=request.credential_id)

    users.around.check = deleted_meanwhile
    assert await reason(eve.test(put.credential_id)) == "CREDENTIAL_NOT_FOUND"
    refused = await refusal(ada.test(put.credential_id))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "CREDENTIAL_NOT_FOUND")
    assert await reason(ada.test(str(uuid7()))) == "CREDENTIAL_NOT_FOUND"


async def test_a_program_with_an_api_key_sees_no_credentials(users: Stand):
    ada = users.person(scopes=["read", "trade"])
    request = users_pb2.ListBrokerCredentialsRequest()
    with pytest.raises(aio.AioRpcError) as caught:
        await ada.keys.ListBrokerCredentials(request, metadata=ada.metadata, timeout=WAIT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
