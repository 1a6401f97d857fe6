"""The life of a process: ready, not ready, ready again, draining, gone; and what it tells of itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.development import DEVELOPMENT_MARK
from libs.errors import Unavailable
from libs.mesh import reflection
from libs.mesh.channel import open_channel
from libs.mesh.contract import services
from libs.mesh.settings import ServiceSettings
from services.auth.settings import Settings as AuthSettings
from services.orders.settings import Settings as OrdersSettings
from tests.auth.people import seen_from
from tests.libs.mesh.stand import refused, serving_works
from tests.mesh import sign_in
from tests.servers import free_port

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("failure", [Unavailable, asyncio.CancelledError])
async def test_readiness_follows_a_dependency_down_and_up_and_liveness_does_not(place, failure):
    away = [False]

    async def check() -> None:
        if away[0]:
            raise failure("the venue is closed")

    async with serving_works(place, checks={"venue": check}) as served:
        assert (await served.probe())[0] == 200
        away[0] = True
        await served.until_health(NOT_SERVING)
        status, body = await served.probe()
        assert status == 503
        assert "the venue is closed" in body
        assert (await served.probe("/live"))[0] == 200
        away[0] = False
        await served.until_ready()
        assert (await served.probe())[0] == 200


async def test_health_serves_nobody_before_the_dependencies_have_answered(place):
    answered = asyncio.Event()
    port = free_port()

    async def serve() -> None:
        async with serving_works(place, checks={"venue": answered.wait}, settings={"mesh_port": str(port)}):
            pass

    serving = asyncio.create_task(serve())
    async with open_channel(f"127.0.0.1:{port}", "orders", tls_folder=place.pki, caller="edge") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", *(one.full_name for one in services("orders"))):
            asked = health_pb2.HealthCheckRequest(service=name)
            assert (await stub.Check(asked, wait_for_ready=True, timeout=20)).status == NOT_SERVING
        answered.set()
        await serving


async def test_what_is_watched_is_told_and_takes_nobody_out_of_service(place):
    stuck = [True]

    async def check() -> None:
        if stuck[0]:
            raise Unavailable("a fact cannot be applied")

    async with serving_works(place, watched={"facts": check}) as served:
        status, body = await served.probe()
        assert status == 200
        assert '"degraded"' in body
        assert "a fact cannot be applied" in body
        assert 'tradeloom_dependency_well{dependency="facts"} 0.0' in (await served.probe("/metrics"))[1]
        stuck[0] = False
        async with asyncio.timeout(10):
            while '"healthy"' not in (await served.probe())[1]:
                await asyncio.sleep(0.05)


async def test_readiness_follows_valkey_and_postgres(bare_installation, valkey):
    """The real ones: Valkey is killed and comes back, Postgres cuts everybody off and lets them in again."""
    async with bare_installation.serve("auth") as auth:
        valkey.kill()
        await auth.until_health(NOT_SERVING)
        assert "redis" in (await auth.probe())[1]
        valkey.start()
        await auth.until_ready()
        name = bare_installation.database
        async with bare_installation.connect() as rows:
            await rows.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
            await rows.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename LIKE 'auth%'",
                name,
            )
            await auth.until_health(NOT_SERVING)
            stub = auth.stub(auth_pb2_grpc.AuthServiceStub)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.GetMe(auth_pb2.GetMeRequest(), metadata=sign_in())
            code, info = refused(caught)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert info.reason in ("DEPENDENCY_UNAVAILABLE", "REVOCATIONS_STALE")
            assert "postgres" in (await auth.probe())[1]
            await rows.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        await auth.until_ready()


async def test_a_call_in_progress_finishes_while_the_service_drains(place):
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: aio.ServicerContext) -> None:
        begun.set()
        await finish.wait()

    # The caller's channel outlives the service: else it might close before it has read the answer.
    async with AsyncExitStack() as outliving:
        async with serving_works(place, ListAccounts=slow) as served:
            own = open_channel(served.address, served.word, tls_folder=served.pki, caller="edge")
            channel = await outliving.enter_async_context(own)
            stub = orders_pb2_grpc.PortfolioServiceStub(channel)
            call = stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=sign_in())
            await begun.wait()
            asyncio.get_running_loop().call_later(0.3, finish.set)
        assert await call == orders_pb2.ListAccountsResponse()


async def test_sigterm_lets_a_call_finish_and_leaves_with_0(bare_installation):
    """The call is held by a lock of Postgres until the service has been told to stop."""
    with bare_installation.start("auth") as process:
        auth = process.served
        await auth.until_ready()
        stub: Any = auth.stub(health_pb2_grpc.HealthStub)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        async with bare_installation.connect() as rows:
            await rows.execute("BEGIN; LOCK TABLE auth.users IN ACCESS EXCLUSIVE MODE")
            register = auth_pb2.RegisterRequest(email="a@example.com", password="tea and biscuits at four")
            call = auth.stub(auth_pb2_grpc.AuthServiceStub).Register(register)
            calling = asyncio.ensure_future(call)
            async with asyncio.timeout(10):
                while not await rows.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            process.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            assert not calling.done()
            await rows.execute("COMMIT")
        assert (await calling).user.email == "a@example.com"
        assert await asyncio.to_thread(process.process.wait, 10) == 0
        assert '"event": "stopped"' in process.logged()
        await auth.close()


async def test_any_service_reflects_the_whole_contract(place):
    async with serving_works(place) as served:
        stub: Any = served.stub(reflection_pb2_grpc.ServerReflectionStub)
        asked = reflection_pb2.ServerReflectionRequest
        names = {one.full_name for one in services()}
        requests = [asked(list_services=""), *(asked(file_containing_symbol=name) for name in sorted(names))]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    listed = {one.name for one in answers[0].list_services_response.service}
    assert names <= listed
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers[1:])


async def test_nobody_keeps_a_service_busy_by_asking_what_its_contract_is(place, monkeypatch):
    """Without a token, on one stream; whoever asks from elsewhere is answered all the same."""
    monkeypatch.setattr(reflection, "QUESTIONS_PER_SECOND", 0.5)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving_works(place) as served:
        stub: Any = served.stub(reflection_pb2_grpc.ServerReflectionStub)
        asking = stub.ServerReflectionInfo(metadata=seen_from("198.51.100.1"))
        await asking.write(question)
        assert (await asking.read()).HasField("list_services_response")
        await asking.write(question)
        with pytest.raises(aio.AioRpcError) as caught:
            await asking.read()
        code, info = refused(caught)
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert [_ async for _ in stub.ServerReflectionInfo(iter([question]), metadata=seen_from("198.51.100.2"))]


async def test_an_open_question_about_the_contract_does_not_hold_up_a_drain(place):
    async def asking() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        await asyncio.Event().wait()

    async with serving_works(place) as served:
        stub: Any = served.stub(reflection_pb2_grpc.ServerReflectionStub)
        call = stub.ServerReflectionInfo(asking())
        await call.read()
        ended = asyncio.ensure_future(call.code())
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 3
    assert await ended is not grpc.StatusCode.OK


async def test_health_knows_the_service_by_each_of_its_names(place):
    async with serving_works(place) as served:
        stub: Any = served.stub(health_pb2_grpc.HealthStub)
        for name in ("", *(one.full_name for one in services("orders"))):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="tradeloom.nobody.v1.Nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_setting_is_read_under_the_services_own_name_first(monkeypatch, tmp_path):
    for name, value in {
        "MESH_PORT": "1",
        "PROBE_PORT": "2",
        "TLS_FOLDER": str(tmp_path),
        "ORDERS_PROBE_PORT": "3",
    }.items():
        monkeypatch.setenv(name, value)

    class Orders(ServiceSettings):
        word = "orders"

    settings = Orders()  # type: ignore[call-arg]
    assert (settings.mesh_port, settings.probe_port) == (1, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"database_url": "postgresql://trading:trading@localhost/trading", "environment": "production"},
        {"key_encryption_keys": "k1:c2VjcmV0"},
        {"admin_email": "a@example.com", "admin_password": "secret"},
        {"stream_heartbeat_seconds": "10.5"},
        {"stream_heartbeat_seconds": "0"},
        {"streams_per_caller_max": "0"},
        {"writes_per_second": "0"},
        {"access_token_seconds": "3601"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_settings_are_refused_without_showing_a_secret(place, wrong):
    values = place.values("auth", database_url="postgresql://u:verysecret@h/d") | wrong
    with pytest.raises(ValueError) as caught:
        AuthSettings.model_validate(values)
    for secret in ("verysecret", "c2VjcmV0", "secret", place.values("auth")["key_encryption_keys"]):
        assert secret not in str(caught.value)


MADE = DEVELOPMENT_MARK + "0" * 40
OUR_OWN = dict.fromkeys(("database_url", "worker_database_url"), "postgresql://orders:8Yt2pQ@db/trading")


@pytest.mark.parametrize(
    ("settings_type", "name", "value"),
    [
        (OrdersSettings, "database_url", f"postgresql://orders_rpc:{MADE}@db/trading"),
        (OrdersSettings, "database_url", "postgresql://trading:trading@db/trading"),
        (OrdersSettings, "worker_database_url", "postgresql://postgres:postgres@db1:5432,db2:5432/trading"),
        (OrdersSettings, "worker_database_url", "postgresql://db/trading?user=postgres&password=postgres"),
        (OrdersSettings, "redis_url", "redis://orders:change%2Dme@redis:6379"),
        (AuthSettings, "redis_url", "rediss://:ChangeMe@redis:6379"),
        (AuthSettings, "smtp_url", f"smtps://mailer:{MADE}@mail"),
        (AuthSettings, "admin_password", MADE),
    ],
)
def test_production_refuses_what_was_made_for_development_and_names_it(place, settings_type, name, value):
    values = place.values(settings_type.word, redis_url="redis://redis:6379", **OUR_OWN)
    settings_type.model_validate(values | {"environment": "production"})
    settings_type.model_validate(values | {name: value})
    with pytest.raises(ValueError, match=f"ENVIRONMENT=production refuses .*: {name} ") as caught:
        settings_type.model_validate(values | {name: value, "environment": "production"})
    assert value not in str(caught.value)


def test_a_url_that_nobody_can_read_is_refused_elsewhere_and_never_shown(place):
    unreadable = OUR_OWN | {"database_url": "postgresql://orders:8Yt[2pQ]@db/trading"}
    OrdersSettings.model_validate(place.values("orders", **unreadable) | {"environment": "production"})


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_values(as_json):
    program = f"""
import logging
import structlog
from libs.telemetry import logs
logs.set_up("orders", as_json={as_json})
def sign_in(password):
    raise RuntimeError("a defect")
try:
    sign_in("".join(["hun", "ter2"]))
except RuntimeError:
    structlog.get_logger().exception("defect", error_id="7")
    logging.getLogger("elsewhere").exception("defect")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stderr.count("RuntimeError: a defect") == 2
    assert "hunter2" not in done.stderr
