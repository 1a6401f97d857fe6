"""How a refusal, a broken rule, a spent allowance, an absent dependency and a defect look from outside."""

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
import redis.exceptions
from google.rpc import error_details_pb2
from grpc import aio
from prometheus_client import REGISTRY
from structlog.processors import format_exc_info
from structlog.testing import capture_logs
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.type.v1.decimal_pb2 import Decimal

from libs import errors
from libs.mesh.errors import CODES, Defect, code_of, to_status
from libs.mesh.rules import violations
from tests.libs.mesh.stand import detail, refused, serving_works, status_of
from tests.mesh import Served, sign_in

ACCOUNT = orders_pb2.CreateAccountRequest(
    request_id="first",
    name="Savings",
    mode=orders_pb2.ACCOUNT_MODE_PAPER,
    kind=orders_pb2.ACCOUNT_KIND_CASH,
    starting_balances=[orders_pb2.Amount(asset="USDT", amount=Decimal(value="1000"))],
)


def raising(error: BaseException):
    async def work(request: Any, context: aio.ServicerContext) -> None:
        raise error

    return work


async def refusal_of(served: Served, request: Any = ACCOUNT) -> Any:
    with pytest.raises(aio.AioRpcError) as caught:
        await served.stub(orders_pb2_grpc.PortfolioServiceStub).CreateAccount(request, metadata=sign_in())
    return caught


def counted(method: str, code: str) -> float:
    labels = {"service": "orders", "method": method, "code": code}
    return REGISTRY.get_sample_value("tradeloom_rpc_handled_total", labels) or 0.0


async def until_counted(method: str, code: str, count: float) -> None:
    """A call is counted when it is over, which its caller may know a moment earlier."""
    async with asyncio.timeout(5):
        while counted(method, code) != count:
            await asyncio.sleep(0.01)


class OnlyHere(errors.NotAllowed):
    reason = "ONLY_HERE"


@pytest.mark.parametrize(
    ("refusal", "code", "domain"),
    [
        (errors.Unauthenticated("who?"), grpc.StatusCode.UNAUTHENTICATED, "tradeloom"),
        (errors.Forbidden("no", needs="role:admin"), grpc.StatusCode.PERMISSION_DENIED, "tradeloom"),
        (errors.RequestIdReused("again", request_id="1"), grpc.StatusCode.ALREADY_EXISTS, "tradeloom"),
        (OnlyHere("not now", limit="7"), grpc.StatusCode.FAILED_PRECONDITION, "orders.tradeloom"),
        (errors.Unavailable("away", dependency="postgres"), grpc.StatusCode.UNAVAILABLE, "tradeloom"),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
async def test_a_refusal_travels_with_its_reason_and_what_a_program_needs(place, refusal, code, domain):
    async with serving_works(place, CreateAccount=raising(refusal)) as served:
        caught = await refusal_of(served)
    found, info = refused(caught)
    assert (found, info.reason, info.domain) == (code, refusal.reason, domain)
    assert dict(info.metadata) == refusal.metadata
    assert caught.value.details() == str(refusal)


def test_every_word_for_refusing_has_a_code_of_its_own():
    words = [word for word in errors.Refusal.__subclasses__() if word.__module__ in ("libs.errors", "libs.mesh.errors")]
    assert set(words) == set(CODES)
    assert len(set(CODES.values())) == len(CODES)
    assert code_of(Defect("x")) is grpc.StatusCode.INTERNAL


async def test_a_limit_says_when_to_come_back(place):
    async with serving_works(place, settings={"writes_per_second": "0.5"}) as served:
        stub, metadata = served.stub(orders_pb2_grpc.PortfolioServiceStub), sign_in()
        await stub.CreateAccount(ACCOUNT, metadata=metadata)
        before = counted("CreateAccount", "RESOURCE_EXHAUSTED")
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.CreateAccount(ACCOUNT, metadata=metadata)
        await until_counted("CreateAccount", "RESOURCE_EXHAUSTED", before + 1)
        # Somebody else has an allowance of his own, and looking is not counted as writing.
        await stub.CreateAccount(ACCOUNT, metadata=sign_in())
        await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=metadata)
    code, info = refused(caught)
    assert (code, info.reason, dict(info.metadata)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        {"limit": "write", "per_second": "0.5"},
    )
    wait = detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds()
    assert 0 < wait <= 2
    assert detail(caught.value, error_details_pb2.QuotaFailure).violations


async def test_who_comes_back_when_told_is_not_too_early():
    status = to_status(errors.Exhausted("wait", retry_after_seconds=0.0004), "orders")
    found = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(found)
    assert found.retry_delay.ToTimedelta().total_seconds() >= 0.0004


async def test_every_broken_rule_is_named_at_once(place):
    asked: list[Any] = []

    async def create(request: Any, context: aio.ServicerContext) -> None:
        asked.append(request)

    async with serving_works(place, CreateAccount=create) as served:
        caught = await refusal_of(
            served,
            orders_pb2.CreateAccountRequest(
                name="x" * 101, starting_balances=[orders_pb2.Amount(asset="usdt", amount=Decimal(value="1e3"))]
            ),
        )
    code, info = refused(caught)
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    found = {one.field for one in detail(caught.value, error_details_pb2.BadRequest).field_violations}
    wanted = {"request_id", "name", "mode", "kind", "starting_balances[0].asset", "starting_balances[0].amount"}
    assert found == wanted
    assert not asked


async def test_hundreds_of_broken_rules_are_still_an_answer(place):
    wrong = [orders_pb2.Amount(asset="w" * 60, amount=Decimal(value="w" * 60)) for _ in range(400)]
    async with serving_works(place) as served:
        caught = await refusal_of(served, orders_pb2.CreateAccountRequest(starting_balances=wrong))
    assert refused(caught)[0] is grpc.StatusCode.INVALID_ARGUMENT
    found = detail(caught.value, error_details_pb2.BadRequest).field_violations
    assert len(found) > 16
    assert found[-1].description.endswith("more")


async def test_each_part_of_an_upload_is_held_against_the_rules(place):
    read: list[Any] = []

    async def import_candles(requests: Any, context: aio.ServicerContext) -> None:
        read.extend([part async for part in requests])

    header = marketdata_pb2.ImportHeader(request_id="1", instrument_id="SIM:BTCUSDT", size_bytes=1, sha256=bytes(32))
    parts = [marketdata_pb2.ImportCandlesRequest(header=header), marketdata_pb2.ImportCandlesRequest()]
    async with serving_works(place, "marketdata", ImportCandles=import_candles) as served:
        stub = served.stub(marketdata_pb2_grpc.MarketDataServiceStub)
        await stub.ImportCandles(iter(parts[:1]), metadata=sign_in(roles=["admin"]))
        assert len(read) == 1
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ImportCandles(iter(parts), metadata=sign_in(roles=["admin"]))
    assert refused(caught)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(caught.value, error_details_pb2.BadRequest).field_violations


def test_a_text_that_postgres_cannot_keep_is_named_wherever_it_stands():
    assert violations(ACCOUNT) == {}
    request = orders_pb2.CreateAccountRequest()
    request.CopyFrom(ACCOUNT)
    request.name, request.request_id = "a\0b", "\0"
    assert set(violations(request)) == {"name", "request_id"}


@pytest.mark.parametrize(
    ("error", "dependency"),
    [
        (asyncpg.ConnectionDoesNotExistError("gone"), "postgres"),
        (asyncpg.TooManyConnectionsError("full"), "postgres"),
        (redis.exceptions.ConnectionError("gone"), "redis"),
        (ConnectionResetError("gone"), "network"),
        (TimeoutError(), "network"),
    ],
)
async def test_an_absent_dependency_is_unavailable_by_name(place, error, dependency):
    async with serving_works(place, CreateAccount=raising(error)) as served:
        caught = await refusal_of(served)
    code, info = refused(caught)
    assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert info.metadata["dependency"] == dependency
    assert detail(caught.value, error_details_pb2.RetryInfo)


async def test_a_wrong_statement_is_a_defect_and_no_outage_to_wait_for(place, database):
    async def wrong(request, context) -> None:
        async with database.transaction() as rows:
            await rows.execute("SELECT $1::int", 1, 2)

    async with serving_works(place, CreateAccount=wrong) as served:
        code, info = refused(await refusal_of(served))
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_a_lost_connection_to_postgres_is_an_outage(place, database):
    async def cut_off(request, context) -> None:
        async with database.transaction() as rows:
            await rows.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async with serving_works(place, CreateAccount=cut_off) as served:
        code, info = refused(await refusal_of(served))
    assert (code, info.metadata["dependency"]) == (grpc.StatusCode.UNAVAILABLE, "postgres")


async def test_a_defect_tells_nothing_but_an_id_that_the_log_has_too(place):
    secret = "the text of a bug"
    with capture_logs([format_exc_info]) as logged:
        async with serving_works(place, CreateAccount=raising(RuntimeError(secret))) as served:
            caught = await refusal_of(served)
    code, info = refused(caught)
    assert (code, info.reason, info.domain) == (grpc.StatusCode.INTERNAL, "INTERNAL", "tradeloom")
    assert secret not in str(status_of(caught.value))
    [defect] = [event for event in logged if event["event"] == "defect"]
    assert secret in defect["exception"]
    assert defect["error_id"] == info.metadata["error_id"]


async def test_another_services_refusal_is_not_passed_on_as_if_it_were_ours(place):
    elsewhere = aio.AioRpcError(grpc.StatusCode.NOT_FOUND, aio.Metadata(), aio.Metadata(), "somebody's order")
    away = aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), "socket closed")
    for error, code in ((elsewhere, grpc.StatusCode.INTERNAL), (away, grpc.StatusCode.UNAVAILABLE)):
        async with serving_works(place, CreateAccount=raising(error)) as served:
            caught = await refusal_of(served)
        assert refused(caught)[0] is code
        assert "somebody" not in str(status_of(caught.value))


async def test_every_call_is_counted_by_how_it_ended(place):
    begun = asyncio.Event()

    async def wait(request: Any, context: aio.ServicerContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    before = {code: counted("CreateAccount", code) for code in ("OK", "UNAUTHENTICATED", "INVALID_ARGUMENT")}
    async with serving_works(place, ListAccounts=wait) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
        await stub.CreateAccount(ACCOUNT, metadata=sign_in())
        for request, metadata in ((ACCOUNT, ()), (orders_pb2.CreateAccountRequest(), sign_in())):
            with pytest.raises(aio.AioRpcError):
                await stub.CreateAccount(request, metadata=metadata)
        cancelled = counted("ListAccounts", "CANCELLED")
        call = stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=sign_in())
        await begun.wait()
        call.cancel()
        await until_counted("ListAccounts", "CANCELLED", cancelled + 1)
        for code, count in before.items():
            await until_counted("CreateAccount", code, count + 1)
        text = (await served.probe("/metrics"))[1]
    assert 'tradeloom_rpc_handled_total{code="OK",method="CreateAccount",service="orders"}' in text
    assert 'tradeloom_rpc_in_flight{method="CreateAccount",service="orders"} 0.0' in text
