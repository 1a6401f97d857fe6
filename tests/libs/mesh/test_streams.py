"""When a stream ends: its token, its session, its process; and what a slow or a silent reader changes about that."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import grpc
import pytest
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.ids import uuid7
from libs.mesh import channel as channel_module
from libs.mesh import sessions as sessions_module
from libs.mesh.channel import open_channel
from libs.mesh.identity import Identity
from libs.mesh.revocations import follow_sessions
from libs.mesh.server import Draining, Mesh
from libs.mesh.sessions import TOKEN_SECONDS_MAX, Outdated, RevocationsStale, SessionRevoked, Sessions, TokenOutdated
from libs.mesh.wire import timestamp
from libs.store.background import running
from tests.auth.people import seen_from
from tests.libs.mesh.stand import refused, serving_works
from tests.mesh import Installation, Metadata, Served, bearer, sign_in, with_auth

ASKED = orders_pb2.StreamOrderEventsRequest(account_id=str(uuid7()))
SOON = datetime.now(UTC) + timedelta(minutes=15)
UNREAD_BYTES = 32 * 1024 * 1024
"""Of one message; gRPC takes about 6 MB of what nobody reads."""


async def busy(request: Any, context: aio.ServicerContext) -> AsyncIterator[orders_pb2.StreamOrderEventsResponse]:
    """Sends as fast as it is read."""
    while True:
        yield orders_pb2.StreamOrderEventsResponse(cursor="x" * 1_000)
        await asyncio.sleep(0)


async def opened(served: Served, metadata: Metadata | None = None) -> Any:
    """A stream whose first message was read."""
    stub = served.stub(orders_pb2_grpc.OrderServiceStub)
    call = stub.StreamOrderEvents(ASKED, metadata=metadata or sign_in())
    await call.read()
    return call


def channel_of_its_own(served: Served) -> aio.Channel:
    """One that outlasts the service: the others are closed once it has ended, whatever is still to be read there."""
    return open_channel(served.address, served.word, tls_folder=served.pki, caller="edge")


async def end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How the stream ends, with all that it still sends read away."""
    with pytest.raises(aio.AioRpcError) as caught:
        async with asyncio.timeout(8):
            while await call.read() is not aio.EOF:
                pass
    code, info = refused(caught)
    return code, info.reason


@pytest.mark.parametrize("works", [{}, {"StreamOrderEvents": busy}], ids=["idle", "busy"])
async def test_a_stream_ends_with_its_token(place, works):
    async with serving_works(place, **works) as served:
        started = time.time()
        call = await opened(served, sign_in(seconds=3))
        assert await end_of(call) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        # Not before: what ends it is the expiry.
        assert time.time() - started >= 3


@pytest.mark.parametrize("works", [{}, {"StreamOrderEvents": busy}], ids=["idle", "busy"])
async def test_a_stream_ends_with_its_session_and_no_other_does(place, works):
    meshes: list[Mesh] = []
    session_id, user_id, other = uuid7(), uuid7(), uuid7()
    async with serving_works(place, meshes=meshes, **works) as served:
        ending = await opened(served, sign_in(user_id, sid=str(session_id)))
        staying = await opened(served, sign_in(user_id))
        meshes[0].sessions.end({session_id: SOON})
        assert await end_of(ending) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
        if works:
            assert await staying.read()
        strangers = await opened(served, sign_in(other, gen=2))
        meshes[0].sessions.end({}, {other: Outdated(2, SOON)})
        meshes[0].sessions.end({}, {other: Outdated(3, SOON)})
        assert await end_of(strangers) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_OUTDATED")
        staying.cancel()


class Flood:
    """Sends more than is taken of what nobody reads: behind its first message it is held in the midst of sending."""

    def __init__(self) -> None:
        self.held, self.ended, self.is_taken = asyncio.Event(), asyncio.Event(), False

    async def work(
        self, request: Any, context: aio.ServicerContext
    ) -> AsyncIterator[orders_pb2.StreamOrderEventsResponse]:
        try:
            yield orders_pb2.StreamOrderEventsResponse(cursor="x")
            self.held.set()
            yield orders_pb2.StreamOrderEventsResponse(cursor="x" * UNREAD_BYTES)
            self.is_taken = True
        finally:
            self.ended.set()

    async def until_held(self) -> None:
        async with asyncio.timeout(5):
            await self.held.wait()

    async def until_ended(self) -> None:
        async with asyncio.timeout(5):
            await self.ended.wait()
        assert not self.is_taken


async def test_a_stream_whose_reader_stands_still_ends_with_its_session_too(place, monkeypatch):
    monkeypatch.setattr(channel_module, "MESSAGE_BYTES_MAX", 2 * UNREAD_BYTES)
    meshes: list[Mesh] = []
    session_id, flood = uuid7(), Flood()
    async with serving_works(place, meshes=meshes, StreamOrderEvents=flood.work) as served:
        call = await opened(served, sign_in(sid=str(session_id)))
        await flood.until_held()
        meshes[0].sessions.end({session_id: SOON})
        await flood.until_ended()
        assert await end_of(call) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")


async def test_a_reader_that_leaves_while_it_stands_still_is_no_defect(place):
    flood = Flood()
    with capture_logs() as logged:
        async with serving_works(place, StreamOrderEvents=flood.work) as served:
            call = await opened(served)
            await flood.until_held()
            call.cancel()
            await flood.until_ended()
    assert not [event for event in logged if event["event"] == "defect"]


async def test_a_session_ended_at_auth_ends_its_streams_and_calls_everywhere_within_five_seconds(place, shared_auth):
    auth = shared_auth.served.stub(auth_pb2_grpc.AuthServiceStub)
    email, password = f"{uuid7()}@example.com", "tea and biscuits"
    await auth.Register(auth_pb2.RegisterRequest(email=email, password=password))
    session = await auth.Login(auth_pb2.LoginRequest(email=email, password=password))
    metadata = bearer(session.access_token)
    async with serving_works(place) as served, serving_works(place, "marketdata") as elsewhere:
        call = await opened(served, metadata)
        started = time.monotonic()
        await auth.Logout(auth_pb2.LogoutRequest(), metadata=metadata)
        assert await end_of(call) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
        await until_refused(served, metadata)
        assert time.monotonic() - started < 5
        await elsewhere.until_ready()
    await shared_auth.served.close()


async def until_refused(served: Served, metadata: Metadata) -> None:
    stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
    async with asyncio.timeout(5):
        while True:
            try:
                await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=metadata)
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                return
            await asyncio.sleep(0.02)


async def test_a_drain_ends_streams_so_that_they_resume_elsewhere(place):
    async with AsyncExitStack() as outlasting:
        async with serving_works(place) as served:
            channel = await outlasting.enter_async_context(channel_of_its_own(served))
            call = orders_pb2_grpc.OrderServiceStub(channel).StreamOrderEvents(ASKED, metadata=sign_in())
            await call.read()
            stopping = time.monotonic()
        assert await end_of(call) == (grpc.StatusCode.UNAVAILABLE, Draining.reason)
        # Neither the stream nor the fixture's health watch holds the drain up until its last second.
        assert time.monotonic() - stopping < 3


async def test_an_open_health_watch_does_not_hold_up_a_drain(place):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with AsyncExitStack() as outlasting:
        async with serving_works(place) as served:
            channel = await outlasting.enter_async_context(channel_of_its_own(served))
            watch = health_pb2_grpc.HealthStub(channel).Watch(  # pyright: ignore[reportAttributeAccessIssue]
                health_pb2.HealthCheckRequest(service="tradeloom.orders.v1.OrderService")
            )
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            stopping = time.monotonic()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - stopping < 3


async def test_more_streams_than_a_process_may_serve_are_refused_and_a_place_is_given_back(place):
    async with serving_works(place, settings={"streams_max": "2"}) as served:
        first, second = await opened(served), await opened(served)
        with pytest.raises(aio.AioRpcError) as caught:
            await opened(served)
        assert refused(caught)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused(caught)[1].reason == "TOO_MANY_STREAMS"
        first.cancel()
        await until_opened(served, sign_in())
        second.cancel()


async def test_one_user_cannot_take_the_streams_of_all(place):
    """Over several connections, and with a token of another session: it is the user who is counted."""
    user_id = uuid7()
    async with serving_works(place, settings={"streams_per_caller_max": "2"}) as served:
        first, _ = await opened(served, sign_in(user_id)), await opened(served, sign_in(user_id))
        async with open_channel(served.address, served.word, tls_folder=served.pki, caller="edge") as another:
            stub = orders_pb2_grpc.OrderServiceStub(another)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.StreamOrderEvents(ASKED, metadata=sign_in(user_id)).read()
        code, info = refused(caught)
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS_OF_CALLER")
        assert dict(info.metadata) == {"streams_per_caller_max": "2"}
        for _ in range(2):
            await opened(served, sign_in(uuid7()))
        first.cancel()
        await until_opened(served, sign_in(user_id))


async def test_services_are_counted_by_their_certificate(bare_installation: Installation):
    """They follow auth without a user, and on one machine from one address."""
    asked = auth_pb2.StreamRevocationsRequest()
    async with bare_installation.serve("auth", streams_per_caller_max="1") as auth:
        streams = [
            auth.stub(auth_pb2_grpc.RevocationServiceStub, word).StreamRevocations(asked)
            for word in ("orders", "marketdata")
        ]
        for stream in streams:
            assert (await stream.read()).snapshot
        with pytest.raises(aio.AioRpcError) as caught:
            await auth.stub(auth_pb2_grpc.RevocationServiceStub, "orders").StreamRevocations(asked).read()
        assert refused(caught)[1].reason == "TOO_MANY_STREAMS_OF_CALLER"
        for stream in streams:
            stream.cancel()


async def test_callers_whom_nobody_knows_are_counted_by_their_address(place):
    """Whoever asks what the contract is needs no token."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving_works(place, settings={"streams_per_caller_max": "1"}) as served:
        stub: Any = served.stub(reflection_pb2_grpc.ServerReflectionStub)

        async def asking(address: str) -> Any:
            call = stub.ServerReflectionInfo(metadata=seen_from(address))
            await call.write(question)
            assert (await call.read()).HasField("list_services_response")
            return call

        first, second = await asking("198.51.100.1"), await asking("198.51.100.2")
        with pytest.raises(aio.AioRpcError) as caught:
            await asking("198.51.100.1")
        assert refused(caught)[1].reason == "TOO_MANY_STREAMS_OF_CALLER"
        first.cancel()
        second.cancel()


async def until_opened(served: Served, metadata: Metadata) -> None:
    """A place is free a moment after its stream has ended."""
    async with asyncio.timeout(5):
        while True:
            try:
                (await opened(served, metadata)).cancel()
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                await asyncio.sleep(0.01)
            else:
                return


async def test_stale_news_refuses_writes_and_lets_look(bare_installation: Installation):
    """auth is killed: after five seconds nobody knows who was signed out; when it is back, writing goes on."""
    request = orders_pb2.CreateAccountRequest(
        request_id="1", name="x", mode=orders_pb2.ACCOUNT_MODE_PAPER, kind=orders_pb2.ACCOUNT_KIND_CASH
    )
    request.starting_balances.add(asset="USDT").amount.value = "1"
    with bare_installation.start("auth") as auth:
        await auth.served.until_ready()

        async with serving_works(with_auth(bare_installation, auth.served)) as served:
            stub, metadata = served.stub(orders_pb2_grpc.PortfolioServiceStub), sign_in()
            await stub.CreateAccount(request, metadata=metadata)
            auth.kill()
            killed = time.monotonic()
            with pytest.raises(aio.AioRpcError) as caught:
                while time.monotonic() - killed < 10:
                    await stub.CreateAccount(request, metadata=metadata)
                    await asyncio.sleep(0.05)
            assert time.monotonic() - killed < 6.5
            code, info = refused(caught)
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "REVOCATIONS_STALE")
            await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=metadata)
            (await opened(served)).cancel()
            # Nobody is taken out of service for it: who looks goes on looking.
            assert (await served.probe())[0] == 200
            auth.start()
            async with asyncio.timeout(30):
                while True:
                    try:
                        await stub.CreateAccount(request, metadata=metadata)
                    except aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE
                        await asyncio.sleep(0.05)
                    else:
                        break
        await auth.served.close()


class Clocks:
    """The clock that can be set, and the one that nobody sets, for a test to move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_by = self.passed = timedelta()
        started = datetime.now(UTC)
        monkeypatch.setattr(sessions_module, "time", SimpleNamespace(monotonic=lambda: self.passed.total_seconds()))
        shown = SimpleNamespace(now=lambda zone: started + self.passed + self.set_by)
        monkeypatch.setattr(sessions_module, "datetime", shown)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def someone(session_id: UUID, user_id: UUID | None = None) -> Identity:
    none = frozenset[str]()
    return Identity(
        user_id=user_id or uuid7(),
        session_id=session_id,
        roles=none,
        scopes=none,
        entitlements=none,
        generation=0,
        expire_time=SOON,
        second_factor_time=None,
    )


def refuses(sessions: Sessions, identity: Identity) -> bool:
    try:
        sessions.check(identity, writes=False)
    except (SessionRevoked, TokenOutdated):
        return True
    return False


@pytest.mark.parametrize("set_by", [timedelta(minutes=20), timedelta(days=-1), timedelta()], ids=str)
def test_a_clock_that_is_set_and_set_back_revives_no_token(clocks, set_by):
    sessions, session_id, user_id = Sessions(1, 1), uuid7(), uuid7()
    ended, all_ended = someone(session_id), someone(uuid7(), user_id)
    sessions.end({session_id: SOON}, {user_id: Outdated(1, SOON)})
    clocks.set_by = set_by
    sessions.end({uuid7(): SOON + set_by})
    assert refuses(sessions, ended)
    assert refuses(sessions, all_ended)
    assert not refuses(sessions, someone(uuid7()))


def test_what_has_ended_is_remembered_while_the_clock_says_that_its_tokens_live(clocks):
    """Set back by a day, it lets tokens live a day longer than by the clock that nobody sets."""
    sessions, session_id = Sessions(1, 1), uuid7()
    sessions.end({session_id: SOON})
    clocks.set_by, clocks.passed = timedelta(days=-1), timedelta(hours=2)
    sessions.end({uuid7(): SOON})
    assert refuses(sessions, someone(session_id))


def test_ended_sessions_are_forgotten_when_their_tokens_have_expired_by_every_clock(clocks):
    sessions, later = Sessions(1, 1), uuid7()
    sessions.end({uuid7(): SOON for _ in range(3)}, {uuid7(): Outdated(1, SOON)})
    clocks.passed = timedelta(seconds=2 * TOKEN_SECONDS_MAX)
    sessions.end({later: SOON}, {later: Outdated(1, SOON + clocks.passed)})
    assert set(sessions.ended) == set(sessions.outdated) == {later}


def test_a_snapshot_of_many_ended_sessions_is_taken_at_once():
    sessions = Sessions(1, 1)
    started = time.process_time()
    sessions.end({uuid7(): SOON for _ in range(20_000)})
    assert len(sessions.ended) == 20_000
    assert time.process_time() - started < 2


async def test_the_ended_sessions_are_known_when_the_last_part_of_them_was_read(place):
    first, last, earlier = uuid7(), uuid7(), uuid7()
    asked = asyncio.Event()

    def part(session_id: UUID, **told: Any) -> auth_pb2.StreamRevocationsResponse:
        ended = auth_pb2.RevokedSession(session_id=str(session_id), expire_time=timestamp(SOON))
        return auth_pb2.StreamRevocationsResponse(sessions=[ended], snapshot=True, **told)

    async def in_parts(request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        yield part(first)
        await asked.wait()
        yield part(last, time=timestamp(datetime.now(UTC)))
        await asyncio.Event().wait()

    sessions = Sessions(1, 1)
    sessions.end({earlier: SOON})
    async with serving_works(place, "auth", StreamRevocations=in_parts) as served:
        to_auth = partial(open_channel, served.address, "auth", tls_folder=place.pki, caller="orders")
        async with running("news", partial(follow_sessions, to_auth, sessions)), asyncio.timeout(8):
            while first not in sessions.ended:
                await asyncio.sleep(0.01)
            with pytest.raises(RevocationsStale):
                sessions.check_known()
            asked.set()
            while last not in sessions.ended:
                await asyncio.sleep(0.01)
            sessions.check_fresh()
    assert set(sessions.ended) == {earlier, first, last}


def test_nothing_is_known_before_the_first_news():
    with pytest.raises(RevocationsStale):
        Sessions(1, 1).check_fresh()
