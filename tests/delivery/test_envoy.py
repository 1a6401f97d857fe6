"""The real Envoy with the configuration made from the contract."""

import asyncio
import base64
import io
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import orders_pb2
from yarl import URL

from libs.edge import contract
from libs.edge.clusters import REFLECTIONS_MAX
from libs.edge.listeners import JWKS_EARLY_SECONDS
from libs.edge.target import LOOPBACK
from tests.journeys.callers import documents
from tests.libs.edge.stand import ABSENT, CHANNEL_OPTIONS, KEPT, SigningKey, Stand, make_certificates, standing

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT: dict[str, Any] = {"request_idle_seconds": 1.0, "stream_idle_seconds": 2.0, "unary_timeout_seconds": 1.5}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with standing(tmp_path_factory.mktemp("edge"), sign_in_burst=20) as started:
        yield started


@pytest.fixture(autouse=True)
def forgotten(request: pytest.FixtureRequest) -> None:
    if "stand" in request.fixturenames:
        services = request.getfixturevalue("stand").services
        services.calls.clear()
        services.unavailable.clear()
        services.heartbeats = 0


async def test_a_grpc_call_with_a_token_reaches_its_service(stand: Stand) -> None:
    answer = await stand.orders.ListOrders(
        orders_pb2.ListOrdersRequest(account_id="account-1"), metadata=stand.metadata()
    )

    assert answer.next_page_token == "account-1"
    # The service verifies the token once more.
    assert stand.services.metadata["authorization"].startswith("Bearer ")


async def test_rest_answers_in_snake_case_with_every_field(stand: Stand) -> None:
    body = {"side": "ORDER_SIDE_BUY", "quantity": {"value": "0.25"}}
    async with stand.http.post("/orders", json=body, headers=stand.bearer()) as answer:
        order = (await answer.json())["order"]

    assert answer.status == 200
    assert order["order_id"] == "order-1"
    assert order["side"] == "ORDER_SIDE_BUY"
    assert order["quantity"] == {"value": "0.25"}
    assert order["fee_asset"] == ""


async def test_no_answer_of_a_service_is_kept_or_taken_for_a_page(stand: Stand) -> None:
    login = {"email": "ada@example.com", "password": "a"}
    for asking in (
        stand.http.post("/auth/login", json=login),
        stand.http.get("/orders/executions", headers=stand.bearer()),
        stand.http.get("/orders/order-2", headers=stand.bearer()),
    ):
        async with asking as answer:
            assert answer.headers.getall("cache-control") == ["no-store"]
            assert answer.headers.getall("x-content-type-options") == ["nosniff"]
    # Files say so themselves.
    async with stand.http.get("/assets/app.js") as answer:
        assert answer.headers.getall("cache-control") == [KEPT]


async def test_a_fixed_rest_path_wins_over_a_variable_one(stand: Stand) -> None:
    async with stand.http.get("/orders/executions", headers=stand.bearer()) as answer:
        assert answer.status == 200

    assert stand.services.calls == {"ListExecutions": 1}


@pytest.mark.parametrize("written", ["SIM:BTCUSDT", "SIM%3ABTCUSDT", "BINANCE:BTC%2FUSDT"])
async def test_an_instrument_id_is_read_from_a_rest_path(stand: Stand, written: str) -> None:
    url = URL(f"{stand.url}/marketdata/instruments/{written}", encoded=True)
    async with stand.http.get(url, headers=stand.bearer()) as answer:
        assert answer.status == 200, await answer.text()
        found = (await answer.json())["instrument"]["instrument_id"]

    assert found == written.replace("%3A", ":").replace("%2F", "/")


async def test_a_refusal_keeps_its_reason_over_rest(stand: Stand) -> None:
    async with stand.http.get("/orders/0190", headers=stand.bearer()) as answer:
        status = await answer.json()

    assert answer.status == 404
    assert status["code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert status["message"] == "no such order"
    assert status["details"][0]["reason"] == "ORDER_NOT_FOUND"
    assert status["details"][0]["domain"] == "orders.tradeloom"


async def test_bad_json_and_an_unknown_parameter_are_refused_over_rest(stand: Stand) -> None:
    async with stand.http.post("/orders", data=b'{"side": ', headers=stand.bearer()) as answer:
        assert answer.status == 400, await answer.text()
        assert (await answer.json())["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    async with stand.http.post("/orders", json={"side": "UP"}, headers=stand.bearer()) as answer:
        assert answer.status == 400
    async with stand.http.get("/orders", params={"acount_id": "x"}, headers=stand.bearer()) as answer:
        assert answer.status == 400
        assert "acount_id" in (await answer.json())["message"]

    assert not stand.services.calls


async def test_a_wrong_verb_and_an_unknown_path_are_not_found(stand: Stand) -> None:
    for method, path in [("DELETE", "/orders"), ("GET", "/orders/a/b/c/d"), ("GET", "/auth/nothing")]:
        async with stand.http.request(method, path, headers=stand.bearer()) as answer:
            assert answer.status == 404
            assert (await answer.json())["code"] == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_a_stream_over_rest_is_one_json_object_a_line(stand: Stand) -> None:
    stand.services.heartbeats = 2
    params = {"account_id": "account-1"}
    async with stand.http.get("/orders/stream/events", params=params, headers=stand.bearer()) as answer:
        lines = [json.loads(line) async for line in answer.content]

    assert answer.status == 200
    assert [line["cursor"] for line in lines] == ["0", "1"]


async def test_a_page_of_5000_candles_passes_over_rest(stand: Stand) -> None:
    params = {"page_size": "5000"}
    async with stand.http.get("/marketdata/candles/SIM:X", params=params, headers=stand.bearer()) as answer:
        assert answer.status == 200
        assert len((await answer.json())["candles"]) == 5000


async def test_too_large_a_body_is_refused(stand: Stand) -> None:
    body = io.BytesIO(b'{"instrument_id": "' + b"x" * 5_000_000 + b'"}')
    async with stand.http.post("/orders", data=body, headers=stand.bearer()) as answer:
        assert answer.status == 413
        assert (await answer.json())["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert not stand.services.calls


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(None, id="missing"),
        pytest.param("nonsense", id="malformed"),
        pytest.param("expired", id="expired"),
        pytest.param(SigningKey("first").token(), id="signed with another key of the same name"),
        pytest.param(SigningKey("second").token(), id="signed with an unknown key"),
        pytest.param("audience", id="for another audience"),
        pytest.param("issuer", id="from another issuer"),
    ],
)
async def test_a_bad_token_is_refused_with_its_reason(stand: Stand, token: str | None) -> None:
    key = stand.services.keys[0]
    made = {
        "expired": key.token(seconds=-60),
        "audience": key.token(audience="others"),
        "issuer": key.token(issuer="https://others"),
    }
    headers = {} if token is None else stand.bearer(made.get(token, token))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=tuple(headers.items()))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(refused.value) == "TOKEN_INVALID"
    async with stand.http.get("/orders", headers=headers) as answer:
        assert answer.status == 401
        status = await answer.json()
    assert status["code"] == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert status["details"][0]["reason"] == "TOKEN_INVALID"
    assert not stand.services.calls


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def test_a_token_in_the_query_is_no_token(stand: Stand) -> None:
    async with stand.http.get("/orders", params={"access_token": stand.services.keys[0].token()}) as answer:
        assert answer.status == 401


async def test_public_methods_need_no_token(stand: Stand) -> None:
    async with stand.http.post("/auth/login", json={"email": "a@b.c", "password": "x"}) as answer:
        assert answer.status == 200
        assert (await answer.json())["token_type"] == "Bearer"
    async with stand.http.get("/.well-known/jwks.json") as answer:
        keys = await answer.json()
    assert keys["keys"][0]["crv"] == "Ed25519"


async def test_only_the_public_verb_of_a_path_needs_no_token(stand: Stand) -> None:
    async with stand.http.get("/auth/login") as answer:
        assert answer.status == 404


async def test_a_method_for_services_has_no_route(stand: Stand) -> None:
    stub = auth_pb2_grpc.RevocationServiceStub(stand.channel)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub.StreamRevocations(auth_pb2.StreamRevocationsRequest(), metadata=stand.metadata()):
            pass

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_what_only_the_mesh_may_say_is_stripped(stand: Stand) -> None:
    said = {"x-tradeloom-user": "someone", "x-envoy-external-address": "1.2.3.4", "x-envoy-retry-on": "unavailable"}
    said |= {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}
    await stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=(*stand.metadata(), *said.items()))

    heard = stand.services.metadata
    assert not heard.keys() & {"x-tradeloom-user", "traceparent", "tracestate"}
    assert "x-envoy-retry-on" not in heard
    assert heard["x-envoy-external-address"] == LOOPBACK
    assert "x-tradeloom-connect" not in heard


async def test_a_forged_forwarded_address_is_not_believed(stand: Stand) -> None:
    async with stand.http.get("/orders", headers={**stand.bearer(), "x-forwarded-for": "9.9.9.9"}) as answer:
        assert answer.status == 200
    assert stand.services.metadata["x-envoy-external-address"] == LOOPBACK


async def test_a_read_is_sent_again_when_a_service_is_unavailable(stand: Stand) -> None:
    stand.services.unavailable["ListOrders"] = 2

    await stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stand.metadata())

    assert stand.services.calls["ListOrders"] == 3


async def test_a_write_that_a_service_saw_is_never_sent_again(stand: Stand) -> None:
    stand.services.unavailable["PlaceOrder"] = 1

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stand.orders.PlaceOrder(
            orders_pb2.PlaceOrderRequest(),
            metadata=(*stand.metadata(), ("x-envoy-retry-on", "unavailable"), ("x-envoy-max-retries", "3")),
        )

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert stand.services.calls["PlaceOrder"] == 1


async def test_a_quiet_stream_outlives_every_time_out_and_a_dead_one_does_not(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders"), **SHORT) as stand:
        # Nothing but heartbeats, for longer than each of the shortened time-outs.
        stand.services.heartbeats = 6
        stand.services.heartbeat_seconds = 0.6
        request = orders_pb2.StreamOrderEventsRequest()
        quiet = stand.orders.StreamOrderEvents(request, metadata=stand.metadata())
        assert [message.cursor async for message in quiet] == [str(number) for number in range(6)]

        stand.services.heartbeat_seconds = 60
        dead = stand.orders.StreamOrderEvents(request, metadata=stand.metadata())
        first = await dead.read()
        assert isinstance(first, orders_pb2.StreamOrderEventsResponse)
        with pytest.raises(grpc.aio.AioRpcError):
            await dead.read()


async def test_a_file_is_uploaded_in_parts(stand: Stand) -> None:
    async def parts():
        yield marketdata_pb2.ImportCandlesRequest(header=marketdata_pb2.ImportHeader(request_id="r"))
        for _ in range(8):
            yield marketdata_pb2.ImportCandlesRequest(chunk=b"x" * 1_048_576)

    answer = await stand.marketdata.ImportCandles(parts(), metadata=stand.metadata())

    assert answer.candle_import.held_bytes == 8 * 1_048_576


LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="*")


def reflection(stand: Stand) -> grpc.aio.StreamStreamMultiCallable:
    return stand.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )


async def left_open(stand: Stand) -> grpc.aio.StreamStreamCall:
    """A reflection stream that was answered once and whose caller never says that he has finished."""
    call = reflection(stand)()
    await call.write(LIST_SERVICES)
    await call.read()
    return call


async def test_reflection_lists_every_service(stand: Stand) -> None:
    answers = [answer async for answer in reflection(stand)(iter([LIST_SERVICES]))]

    listed = {service.name for service in answers[0].list_services_response.service}
    assert listed >= {service.full_name for service in contract.services()}


async def test_however_many_ask_for_reflection_people_can_sign_in(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth",)) as stand:
        calls = await asyncio.gather(*(left_open(stand) for _ in range(REFLECTIONS_MAX)))
        # It asks nothing, or the answer could come while it is still writing, which grpc then calls an internal error.
        async with asyncio.timeout(5):
            assert await reflection(stand)().code() == grpc.StatusCode.UNAVAILABLE

        assert (await stand.auth.Login(auth_pb2.LoginRequest())).token_type == "Bearer"

        calls[0].cancel()

        async def answered() -> bool:
            try:
                await reflection(stand)(iter([LIST_SERVICES])).read()
            except grpc.aio.AioRpcError:
                return False
            return True

        await stand.until_true(answered)


async def test_reflection_that_nobody_ends_is_ended_and_what_it_led_to_goes_on(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders"), reflection_seconds=1.0) as stand:
        call = await left_open(stand)
        async with asyncio.timeout(5):  # Less than any other time-out.
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()

        # A program keeps its reflection open while the stream lasts that it needed it for.
        stand.services.heartbeats = 4
        stand.services.heartbeat_seconds = 0.6
        token = f"authorization: Bearer {stand.services.keys[0].token()}"
        code, printed, complained = await bufcurl(stand, "connect", "--header", token)
        assert code == 0, complained
        assert len(documents(printed)) == 4


@pytest.mark.parametrize("path", ["/tradeloom.auth.v1.AuthService/GetJwks", "/grpc.health.v1.Health/Check"])
async def test_who_has_no_token_takes_no_room_of_a_service_before_his_request_is_whole(stand: Stand, path: str) -> None:
    call = stand.channel.stream_unary(path, request_serializer=bytes, response_deserializer=bytes)()
    await call.wait_for_connection()

    async def begun() -> bool:
        return await stand.stat("http.edge.downstream_rq_active") == 1

    await stand.until_true(begun)
    # One that is whole passes by.
    await stand.auth.Login(auth_pb2.LoginRequest())
    assert await stand.stat("cluster.auth.upstream_rq_active") == 0

    await call.write(b"")
    await call.done_writing()
    assert await call


async def test_a_preflight_is_answered_for_pages_of_allowed_origins(stand: Stand) -> None:
    for path in ("/tradeloom.orders.v1.OrderService/PlaceOrder", "/orders", "/auth/login"):
        asked = {"origin": "http://localhost:5173", "access-control-request-method": "POST"}
        async with stand.http.options(path, headers=asked) as answer:
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
            assert "x-grpc-web" in answer.headers["access-control-allow-headers"]
        async with stand.http.options(path, headers={**asked, "origin": "https://evil.example"}) as answer:
            assert "access-control-allow-origin" not in answer.headers


async def test_grpc_web_carries_answers_and_refusals(stand: Stand) -> None:
    path = "/tradeloom.orders.v1.OrderService/ListOrders"
    request = orders_pb2.ListOrdersRequest(account_id="web").SerializeToString()
    headers = {
        "content-type": "application/grpc-web+proto",
        "x-grpc-web": "1",
        "origin": "http://localhost:5173",
    }
    framed = b"\0" + len(request).to_bytes(4, "big") + request

    async with stand.http.post(path, data=framed, headers={**headers, **stand.bearer()}) as answer:
        content = await answer.read()
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    length = int.from_bytes(content[1:5], "big")
    assert orders_pb2.ListOrdersResponse.FromString(content[5 : 5 + length]).next_page_token == "web"
    assert b"grpc-status:0" in content[5 + length :].replace(b" ", b"")

    async with stand.http.post(path, data=framed, headers=headers) as answer:
        refusal = await answer.read()
        status = answer.headers.get("grpc-status", "")
    assert status == "16" or b"grpc-status:16" in refusal.replace(b" ", b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"


async def test_connect_speaks_protobuf_and_says_so_of_json(stand: Stand) -> None:
    path = "/tradeloom.orders.v1.OrderService/ListOrders"
    headers = {"connect-protocol-version": "1", "content-type": "application/proto", **stand.bearer()}
    request = orders_pb2.ListOrdersRequest(account_id="connect").SerializeToString()
    async with stand.http.post(path, data=request, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert orders_pb2.ListOrdersResponse.FromString(await answer.read()).next_page_token == "connect"
    headers["content-type"] = "application/json"
    async with stand.http.post(path, data=b"{}", headers=headers) as answer:
        assert answer.status in (400, 415), await answer.text()


async def test_connect_gets_the_reason_of_a_refusal(stand: Stand) -> None:
    headers = {"connect-protocol-version": "1", "content-type": "application/proto"}
    async with stand.http.post("/tradeloom.orders.v1.OrderService/ListOrders", headers=headers) as answer:
        refusal = await answer.json()

    assert answer.status == 401
    assert refusal["code"] == "unauthenticated"
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(refusal["details"][0]["value"] + "=="))
    assert info.reason == "TOKEN_INVALID"


async def bufcurl(stand: Stand, protocol: str, *arguments: str) -> tuple[int, str, str]:
    """buf's own client on a stream of order events: how it ended, what it printed, what it complained of."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "buf",
        *("curl", "--protocol", protocol, "--timeout", "30s", "--data", "{}", *arguments),
        f"{stand.url}/tradeloom.orders.v1.OrderService/StreamOrderEvents",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode(), complained.decode()


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_a_stream_is_served_in_the_protocols_of_browsers(stand: Stand, protocol: str, version: str) -> None:
    stand.services.heartbeats = 3
    spoken = ["--http2-prior-knowledge"] if version == "HTTP/2" else []
    token = f"authorization: Bearer {stand.services.keys[0].token()}"
    code, printed, complained = await bufcurl(stand, protocol, *spoken, "--header", token)

    assert code == 0, complained
    assert [message["cursor"] for message in documents(printed)] == ["0", "1", "2"]

    code, printed, complained = await bufcurl(stand, protocol, *spoken)
    assert (code, printed) == (8 * grpc.StatusCode.UNAUTHENTICATED.value[0], "")
    assert json.loads(complained)["code"] == "unauthenticated"


async def test_all_callers_together_are_limited_and_told_so(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders"), requests_per_second=1) as stand:

        async def listed() -> int:
            async with stand.http.get("/orders", headers=stand.bearer()) as answer:
                if answer.status != 200:
                    assert (await answer.json())["details"][0]["reason"] == "RATE_LIMITED"
                return answer.status

        statuses = await asyncio.gather(*(listed() for _ in range(30)))
        assert set(statuses) == {200, 429}

        calls = [stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stand.metadata()) for _ in range(30)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [one for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
        assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert reason_of(refusals[0]) == "RATE_LIMITED"
        # None of those got any further.
        assert stand.services.calls["ListOrders"] == statuses.count(200) + len(outcomes) - len(refusals)


async def test_sign_in_is_limited_by_address_and_nothing_else_is(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders"), sign_in_burst=3, sign_in_per_second=1) as stand:
        answers: list[tuple[int, dict]] = []
        for _ in range(6):
            async with stand.http.post("/auth/login", json={"email": "a@b.c", "password": "x"}) as answer:
                answers.append((answer.status, await answer.json()))
        assert [status for status, _ in answers[:3]] == [200, 200, 200]
        status, refusal = answers[-1]
        assert status == 429
        assert refusal["details"][0]["reason"] == "RATE_LIMITED"

        # The bucket is one for all sign-in methods and all protocols.
        calls = [stand.auth.Login(auth_pb2.LoginRequest()) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [one for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
        assert refusals[-1].code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(refusals[-1]) == "RATE_LIMITED"
        for _ in range(10):
            async with stand.http.get("/orders", headers=stand.bearer()) as answer:
                assert answer.status == 200


async def test_behind_a_proxy_each_caller_has_a_limit_of_his_own_and_a_forged_address_gains_nothing(
    tmp_path: Path,
) -> None:
    # The number as the chart renders it.
    async with standing(
        tmp_path, started=("auth",), sign_in_burst=1, sign_in_per_second=1, trusted_proxies="1"
    ) as stand:

        async def signed_in(forwarded: str) -> int:
            headers = {"x-forwarded-for": forwarded}
            async with stand.http.post("/auth/login", json={"email": "a@b.c"}, headers=headers) as answer:
                return answer.status

        # What the proxy appended is the last; what stands before it the caller has written himself.
        assert 429 in [await signed_in(f"203.0.113.{number}, 198.51.100.1") for number in range(10)]
        assert await signed_in("198.51.100.2") == 200
        # auth counts failures by the same address.
        assert stand.services.metadata["x-envoy-external-address"] == "198.51.100.2"


async def test_tokens_are_verified_as_soon_as_auth_is_there(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("orders",)) as stand:
        async with stand.http.get("/orders", headers=stand.bearer()) as answer:
            assert answer.status == 401
        await stand.start_service("auth")

        async def accepted() -> bool:
            async with stand.http.get("/orders", headers=stand.bearer()) as answer:
                return answer.status == 200

        await stand.until_true(accepted)


REFRESH_SECONDS = 1.0


async def test_a_rotation_of_the_signing_key_is_followed_and_no_call_fails(tmp_path: Path) -> None:
    """Published, then signing, then withdrawn, as auth does it: nothing is restarted and nobody is refused in between."""
    async with standing(
        tmp_path, started=("auth", "orders"), jwks_refresh_seconds=REFRESH_SECONDS, jwks_kept_seconds=REFRESH_SECONDS
    ) as stand:
        first, second = stand.services.keys[0], SigningKey("second")
        calls = 0
        signing = first

        async def status(key: SigningKey) -> int:
            # Each token is new: none is known from before.
            async with stand.http.get("/orders", headers=stand.bearer(key.token())) as answer:
                return answer.status

        async def call() -> None:
            nonlocal calls
            while True:
                assert await status(signing) == 200
                calls += 1

        await stand.until_true(lambda: accepted(stand, first))
        async with asyncio.TaskGroup() as together:
            calling = together.create_task(call())
            assert await status(second) == 401
            stand.services.keys = [first, second]
            await refreshed(stand)
            signing = second
            for key in (first, second):
                assert await status(key) == 200
            before = calls
            await refreshed(stand)
            assert calls > before
            stand.services.keys = [second]

            async def withdrawn() -> bool:
                return await status(first) == 401

            await stand.until_true(withdrawn)
            assert await status(second) == 200
            calling.cancel()


async def refreshed(stand: Stand) -> None:
    """Returns when both sets of keys, the fresh ones and those that are kept, have been fetched twice from now on."""
    name = "http.edge.jwt_authn.jwks_fetch_success"
    before = await stand.stat(name)

    async def fetched() -> bool:
        return await stand.stat(name) >= before + 6

    await stand.until_true(fetched)


async def accepted(stand: Stand, key: SigningKey) -> bool:
    async with stand.http.get("/orders", headers=stand.bearer(key.token())) as answer:
        return answer.status == 200


async def test_while_auth_is_away_tokens_are_verified_for_longer_than_keys_are_fresh(tmp_path: Path) -> None:
    async with standing(
        tmp_path, started=("auth", "orders"), jwks_refresh_seconds=REFRESH_SECONDS, jwks_kept_seconds=60.0
    ) as stand:
        key = stand.services.keys[0]
        # Of those that are kept there is one fetch.
        await refreshed(stand)
        await stand.stop_service("auth")
        # The fresh keys are forgotten by then: the other ones verify.
        end = asyncio.get_running_loop().time() + REFRESH_SECONDS + JWKS_EARLY_SECONDS + 2
        before = await stand.key_fetches("failed")
        while asyncio.get_running_loop().time() < end:
            assert await accepted(stand, key)
            await asyncio.sleep(0.2)
        assert await stand.key_fetches("failed") > before


async def test_a_token_may_say_the_fraction_of_the_second_it_was_made_in(stand: Stand) -> None:
    key = stand.services.keys[0]
    for issued in (1763000000, 1763000000.123456, 1763000000.0):
        token = key.token(issued=issued)
        assert jwt.decode(token, options={"verify_signature": False})["iat"] == issued
        async with stand.http.get("/orders", headers=stand.bearer(token)) as answer:
            assert answer.status == 200


async def test_a_service_that_is_down_is_named_unavailable_and_found_again(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders")) as stand:
        await stand.stop_service("orders")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stand.orders.PlaceOrder(orders_pb2.PlaceOrderRequest(), metadata=stand.metadata())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused.value) == "DEPENDENCY_UNAVAILABLE"
        async with stand.http.get("/orders", headers=stand.bearer()) as answer:
            assert answer.status == 503
            assert (await answer.json())["details"][0]["reason"] == "DEPENDENCY_UNAVAILABLE"
        await stand.start_service("orders")

        async def healthy() -> bool:
            return await stand.healthy_hosts("orders") == 1

        await stand.until_true(healthy)
        await stand.orders.PlaceOrder(orders_pb2.PlaceOrderRequest(), metadata=stand.metadata())


async def test_a_service_with_another_name_is_not_spoken_to(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth",)) as stand:
        # A process with a certificate of our CA, but of another service.
        for ending in ("pem", "key"):
            shutil.copyfile(tmp_path / f"marketdata.{ending}", tmp_path / f"orders.{ending}")
        await stand.start_service("orders")

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stand.metadata())

        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not stand.services.calls["ListOrders"]


async def test_renewed_certificates_are_taken_without_a_restart(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth", "orders")) as stand:
        await stand.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stand.metadata())

        # Another authority altogether: nothing that was connected before can be spoken to now.
        (tmp_path / "authority.key").unlink()
        make_certificates(tmp_path, ("edge", "auth", "orders", "marketdata"))
        await stand.stop_service("orders")
        await stand.start_service("orders")

        async def answered() -> bool:
            try:
                await stand.orders.PlaceOrder(orders_pb2.PlaceOrderRequest(), metadata=stand.metadata())
            except grpc.aio.AioRpcError:
                return False
            return True

        await stand.until_true(answered)


async def test_the_earlier_ports_answer_their_services_paths(stand: Stand) -> None:
    auth = f"http://{LOOPBACK}:{stand.target.alias_ports['auth'][0]}"
    async with stand.http.post(f"{auth}/auth/login", json={"email": "a@b.c", "password": "x"}) as answer:
        assert answer.status == 200
    async with stand.http.get(f"{auth}/auth/me") as answer:
        assert answer.status == 401
    async with stand.http.get(f"{auth}/auth/me", headers=stand.bearer()) as answer:
        assert (await answer.json())["user"]["full_name"] == "Ada"
    async with stand.http.get(f"{auth}/health") as answer:
        assert (await answer.json())["status"] == "ok"
    async with stand.http.get(f"{auth}/docs") as answer:
        assert await answer.text() == "<html>/docs</html>"
    async with stand.http.get(f"{auth}/orders", headers=stand.bearer()) as answer:
        assert answer.status == 404


async def test_the_earlier_ports_of_what_is_not_built_yet_say_so(stand: Stand) -> None:
    for port in stand.target.alias_ports[ABSENT]:
        url = f"http://{LOOPBACK}:{port}"
        async with stand.http.get(f"{url}/health") as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            health = await answer.json()
        assert (health["service"], health["status"]) == (ABSENT, "absent")
        async with stand.http.get(f"{url}/docs") as answer:
            assert await answer.text() == "<html>/docs</html>"
        for method, path in [("GET", "/users/me"), ("POST", "/auth/login"), ("GET", "/")]:
            async with stand.http.request(method, url + path, headers=stand.bearer()) as answer:
                refusal = await answer.json()
            assert answer.status == 404
            assert refusal["code"] == grpc.StatusCode.UNIMPLEMENTED.value[0]
            assert refusal["message"] == "absent is not part of this installation yet"
    assert not stand.services.calls


async def test_everything_else_is_the_dashboard(stand: Stand) -> None:
    for path in ("/", "/assets/app.js", "/docs", "/docs/openapi.json"):
        async with stand.http.get(path) as answer:
            assert await answer.text() == f"<html>{path}</html>"


async def test_probes_and_metrics_are_on_a_port_of_their_own(stand: Stand) -> None:
    probes = f"http://{LOOPBACK}:{stand.target.probe_port}"
    for path in ("/health", "/live"):
        async with stand.http.get(probes + path) as answer:
            assert answer.status == 200
    async with stand.http.get(f"{probes}/metrics") as answer:
        assert "envoy_cluster_upstream_rq_total" in await answer.text()
    async with stand.http.get(f"{probes}/quitquitquit") as answer:
        assert answer.status == 404


async def test_the_access_log_holds_every_call_but_neither_tokens_nor_queries(stand: Stand) -> None:
    token = stand.services.keys[0].token()
    instrument, private = f"SIM:{uuid4()}", str(uuid4())
    path = f"/marketdata/candles/{instrument}"
    async with stand.http.get(path, params={"page_token": private}, headers=stand.bearer(token)) as answer:
        assert answer.status == 200
    with pytest.raises(grpc.aio.AioRpcError):
        await stand.orders.CancelOrder(orders_pb2.CancelOrderRequest(), metadata=stand.metadata(token))

    log = stand.folder / "access.log"
    called = {(path, "marketdata"), ("/tradeloom.orders.v1.OrderService/CancelOrder", "orders")}

    async def written() -> bool:
        # Whole lines only: Envoy may be writing.
        whole = log.read_text().rpartition("\n")[0]
        return called <= {(line["path"], line["cluster"]) for line in map(json.loads, whole.splitlines())}

    await stand.until_true(written)
    assert token not in log.read_text()
    assert private not in log.read_text()


async def say_nothing(stand: Stand) -> bytes:
    """Connects, and returns what is read until Envoy ends it: nothing."""
    reader, writer = await asyncio.open_connection(LOOPBACK, stand.target.listen_port)
    try:
        async with asyncio.timeout(5):  # Less than any other time-out.
            return await reader.read()
    finally:
        writer.close()


async def test_who_says_nothing_is_sent_away_and_who_called_before_calls_again(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth",), connection_idle_seconds=0.5) as stand:
        await stand.auth.Login(auth_pb2.LoginRequest())
        assert await say_nothing(stand) == b""

        async def both_were_idle() -> bool:
            return await stand.stat("http.edge.downstream_cx_idle_timeout") == 2

        await stand.until_true(both_were_idle)
        assert (await stand.auth.Login(auth_pb2.LoginRequest())).token_type == "Bearer"
        assert await stand.stat("http.edge.downstream_cx_http2_total") == 2


async def test_however_many_say_nothing_people_can_sign_in_and_streams_go_on(tmp_path: Path) -> None:
    places = {"connections_max": 10, "connection_idle_scarce_seconds": 0.3}
    async with standing(tmp_path, started=("auth", "orders"), **places) as stand:
        stand.services.heartbeats = 2
        stand.services.heartbeat_seconds = 1.0
        stream = stand.orders.StreamOrderEvents(orders_pb2.StreamOrderEventsRequest(), metadata=stand.metadata())
        await stream.read()

        assert await asyncio.gather(*(say_nothing(stand) for _ in range(9))) == [b""] * 9
        # Each had a place: none was turned away at the door.
        assert await stand.stat("http.edge.downstream_cx_idle_timeout") == 9

        async with stand.http.post("/auth/login", json={"email": "a@b.c", "password": "x"}) as answer:
            assert answer.status == 200
        second = await stream.read()
        assert isinstance(second, orders_pb2.StreamOrderEventsResponse)
        assert second.cursor == "1"


async def test_a_request_that_never_ends_is_ended(tmp_path: Path) -> None:
    async with standing(tmp_path, started=("auth",), unary_timeout_seconds=0.1, request_idle_seconds=0.9) as stand:
        reader, writer = await asyncio.open_connection(LOOPBACK, stand.target.listen_port)
        writer.write(b"POST /auth/login HTTP/1.1\r\nhost: edge\r\ncontent-length: 4096\r\n\r\n")
        answer = asyncio.ensure_future(reader.readline())
        async with asyncio.timeout(5):  # Less than any other time-out.
            while not answer.done():
                # Never silent for as long as would end it.
                writer.write(b" ")
                await asyncio.wait([answer], timeout=0.05)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_two_callers_share_no_connection_state(stand: Stand) -> None:
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{stand.target.listen_port}", options=CHANNEL_OPTIONS) as other:
        with pytest.raises(grpc.aio.AioRpcError):
            await auth_pb2_grpc.AuthServiceStub(other).GetMe(auth_pb2.GetMeRequest())
    await stand.auth.GetMe(auth_pb2.GetMeRequest(), metadata=stand.metadata())
