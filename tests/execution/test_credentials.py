"""What a key may do is asked of the venue itself: signed as it demands, and whatever it answers."""

import asyncio
import base64
import hashlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc
from tradeloom.users.v1 import users_pb2

from libs.errors import Exhausted
from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.wire import timestamp
from services.execution.domain import (
    CredentialProblem,
    KeyRights,
    LeasedKey,
    VenueNotFound,
    VenueUnavailable,
)
from services.execution.venues import credentials
from services.execution.venues.credentials import Checkers
from tests.libs.mesh.stand import refused, serving_works
from tests.mesh import Installation
from tests.venues import binance as binance_venue
from tests.venues import faults
from tests.venues import kraken as kraken_venue
from tests.venues.binance import Binance
from tests.venues.faults import RequestFault, broken, server_error, silent, too_many
from tests.venues.kraken import Kraken

API_KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
KRAKEN_KEY = "4/SDrDBcOOPnm3nPlNfEMMJDeRcIVqPz+QhRxIodyZbI9po/aVRiHsgX"
KRAKEN_SECRET = base64.b64encode(hashlib.sha512(b"a secret of the tests").digest()).decode()


@pytest.fixture
async def binance() -> AsyncIterator[Binance]:
    async with binance_venue.binance(**{API_KEY: binance_venue.Key(SECRET)}) as venue:
        yield venue


@pytest.fixture
async def kraken() -> AsyncIterator[Kraken]:
    async with kraken_venue.kraken({KRAKEN_KEY: kraken_venue.Key(KRAKEN_SECRET)}) as venue:
        yield venue


def leased(venue: str = "BINANCE", api_key: str = API_KEY, api_secret: str = SECRET) -> LeasedKey:
    expire_time = datetime.now(UTC) + timedelta(minutes=10)
    return LeasedKey(
        venue=venue, api_key=api_key, api_secret=api_secret, passphrase="", expire_time=expire_time, revision=1
    )


async def check(venue: Binance | Kraken, key: LeasedKey, seconds: float = 5.0) -> KeyRights:
    return await Checkers({key.venue: venue.url}, seconds).check(key)


async def test_binance_says_what_a_key_may_do(binance: Binance):
    assert await check(binance, leased()) == KeyRights(can_read=True, can_trade=True, can_withdraw=False)
    assert binance.asked == ["/sapi/v1/account/apiRestrictions", "/api/v3/account"]


@pytest.mark.parametrize(
    ("changed", "rights"),
    [
        ({"withdrawals": True}, KeyRights(can_read=True, can_trade=True, can_withdraw=True)),
        ({"internal_transfer": True}, KeyRights(can_read=True, can_trade=True, can_withdraw=True)),
        ({"universal_transfer": True}, KeyRights(can_read=True, can_trade=True, can_withdraw=True)),
        ({"spot_trading": False}, KeyRights(can_read=True)),
        ({"spot_trading": False, "futures_trading": True}, KeyRights(can_read=True, can_trade=True)),
        ({"account_can_trade": False}, KeyRights(can_read=True)),
        ({"reading": False}, KeyRights(can_trade=True)),
    ],
)
async def test_each_right_is_told_for_itself(binance: Binance, changed: dict[str, bool], rights: KeyRights):
    binance.keys[API_KEY] = binance_venue.Key(SECRET, **changed)
    assert await check(binance, leased()) == rights


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (leased(api_key="x" * 64), CredentialProblem.KEY_INVALID),  # -2015
        (leased(api_key="too short, with spaces"), CredentialProblem.KEY_INVALID),  # -2014
        (leased(api_secret="y" * 64), CredentialProblem.SECRET_INVALID),  # -1022
    ],
)
async def test_a_key_that_binance_takes_for_nobodys_is_told_as_that(
    binance: Binance, key: LeasedKey, problem: CredentialProblem
):
    assert await check(binance, key) == KeyRights(problem=problem)


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (too_many(17), 17.0),
        (RequestFault(status=418, headers={"Retry-After": "9000"}, body="banned"), 9000.0),
        (RequestFault(status=418, headers={"Retry-After": "9000000"}, body="banned"), 259_200.0),
        (RequestFault(status=429, headers={"Retry-After": "soon"}, body="{}"), 1.0),
        (server_error(), 1.0),
        (RequestFault(status=503, body='{"code":-1000,"msg":"busy"}'), 1.0),
        (RequestFault(status=200, body="not json"), 1.0),
        (RequestFault(status=200, body="[]"), 1.0),
    ],
)
async def test_a_venue_in_trouble_says_nothing_of_the_key(binance: Binance, fault: RequestFault, seconds: float):
    binance.faults.requests.append(fault)
    with pytest.raises(VenueUnavailable) as caught:
        await check(binance, leased())
    assert (caught.value.metadata["venue"], caught.value.retry_after_seconds) == ("BINANCE", seconds)
    assert (await check(binance, leased())).can_trade


@pytest.mark.parametrize("status", [418, 429])
async def test_a_venue_that_has_had_enough_is_left_alone_until_the_time_it_told(binance: Binance, status: int):
    checkers = Checkers({"BINANCE": binance.url, "KRAKEN": binance.url}, 5.0)
    binance.faults.requests.append(RequestFault(status=status, headers={"Retry-After": "2"}, body="enough"))
    loop = asyncio.get_running_loop()
    with pytest.raises(VenueUnavailable):
        await checkers.check(leased())
    began, asked = loop.time(), len(binance.asked)
    with pytest.raises(VenueUnavailable) as caught:
        await checkers.check(leased(api_key="z" * 64))
    assert 0 < caught.value.retry_after_seconds <= 2
    assert len(binance.asked) == asked
    # Other venues are others.
    with pytest.raises(VenueUnavailable):
        await checkers.check(leased("KRAKEN", KRAKEN_KEY, KRAKEN_SECRET))

    async def may_ask() -> bool:
        try:
            return (await checkers.check(leased())).can_trade
        except VenueUnavailable:
            return False

    while not await may_ask():
        assert loop.time() - began < 20
        await asyncio.sleep(0.05)
    assert loop.time() - began >= 1.9


async def test_all_people_together_ask_a_venue_so_often_in_a_minute(binance: Binance, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(credentials, "CHECKS_PER_MINUTE_MAX", 3)
    monkeypatch.setattr(credentials, "MINUTE_SECONDS", 4.0)
    checkers = Checkers({"BINANCE": binance.url}, 5.0)
    for _ in range(3):
        assert (await checkers.check(leased())).can_trade
    with pytest.raises(VenueUnavailable) as caught:
        await checkers.check(leased())
    assert 0 < caught.value.retry_after_seconds <= 4
    assert len(binance.asked) == 6
    await asyncio.sleep(caught.value.retry_after_seconds + 0.01)
    assert (await checkers.check(leased())).can_trade


async def test_a_person_has_one_check_at_a_time_and_one_in_ten_seconds():
    checkers, ada = Checkers({}, 5.0), uuid7()
    async with checkers.turn(ada):
        with pytest.raises(Exhausted) as caught:
            async with checkers.turn(ada):
                raise AssertionError
        assert caught.value.retry_after_seconds == 1.0
        async with checkers.turn(uuid7()):
            pass
    with pytest.raises(Exhausted) as caught:
        async with checkers.turn(ada):
            raise AssertionError
    assert 8 < (caught.value.retry_after_seconds or 0) <= 10


async def test_a_broken_connection_says_nothing_of_the_key(binance: Binance):
    # aiohttp by itself tries once more what only looks.
    binance.faults.requests.append(broken(times=2))
    with pytest.raises(VenueUnavailable):
        await check(binance, leased())
    assert not binance.faults.requests


async def test_a_clock_that_runs_wrong_says_nothing_of_the_key(binance: Binance):
    binance.clock_offset_milliseconds = 120_000
    with pytest.raises(VenueUnavailable):
        await check(binance, leased())


async def test_a_venue_that_is_silent_is_not_waited_for_longer_than_said(binance: Binance):
    binance.faults.requests.append(silent())
    began = asyncio.get_running_loop().time()
    with pytest.raises(VenueUnavailable):
        await check(binance, leased(), seconds=0.5)
    assert asyncio.get_running_loop().time() - began < 3


async def test_a_venue_that_is_not_there_is_unavailable():
    venue = Binance(port=1)
    with pytest.raises(VenueUnavailable):
        await check(venue, leased())


async def test_kraken_says_what_a_key_may_do(kraken: Kraken):
    key = leased("KRAKEN", KRAKEN_KEY, KRAKEN_SECRET)
    assert await check(kraken, key) == KeyRights(can_read=True, can_trade=True, can_withdraw=False)
    kraken.keys[KRAKEN_KEY].permissions = ("withdraw-funds",)
    assert await check(kraken, key) == KeyRights(can_withdraw=True)


@pytest.mark.parametrize(
    ("api_key", "api_secret", "problem"),
    [
        ("a key that nobody has", KRAKEN_SECRET, CredentialProblem.KEY_INVALID),
        (KRAKEN_KEY, base64.b64encode(b"another secret").decode(), CredentialProblem.SECRET_INVALID),
        (KRAKEN_KEY, "a" * 17, CredentialProblem.SECRET_INVALID),
    ],
)
async def test_a_key_that_kraken_takes_for_nobodys_is_told_as_that(
    kraken: Kraken, api_key: str, api_secret: str, problem: CredentialProblem
):
    assert await check(kraken, leased("KRAKEN", api_key, api_secret)) == KeyRights(problem=problem)


@pytest.mark.parametrize(
    "error", ["EService:Unavailable", "EAPI:Rate limit exceeded", "EAPI:Invalid nonce", "EOther:?"]
)
async def test_a_kraken_in_trouble_says_nothing_of_the_key(kraken: Kraken, error: str):
    kraken.faults.requests.append(faults.kraken_error(error))
    with pytest.raises(VenueUnavailable):
        await check(kraken, leased("KRAKEN", KRAKEN_KEY, KRAKEN_SECRET))


async def test_a_venue_that_knows_no_keys_is_not_found():
    with pytest.raises(VenueNotFound):
        await Checkers({}, 1.0).check(leased("PAPER"))


async def test_no_key_is_ever_logged(binance: Binance, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logged:
        await check(binance, leased())
        binance.faults.requests.append(server_error())
        with pytest.raises(VenueUnavailable) as caught:
            await check(binance, leased())
    said = f"{logged}{caplog.text}{caught.value}{caught.value.metadata}{leased()!r}"
    assert "a venue does not say" in said
    assert API_KEY not in said
    assert SECRET not in said


def test_execution_starts_without_what_only_a_check_needs():
    loaded = "import services.execution.__main__, sys; sys.exit('ccxt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


async def test_execution_leases_the_key_of_the_user_that_users_names_and_asks_the_venue(
    installation: Installation, binance: Binance
):
    user_id, credential_id = uuid7(), str(uuid7())
    asked: list[Any] = []

    async def lease(request: users_pb2.LeaseBrokerCredentialRequest, context: Any) -> Any:
        asked.append((identity.current().user_id, identity.peer_of(context), request.credential_id, request.purpose))
        return users_pb2.LeaseBrokerCredentialResponse(
            venue="BINANCE", api_key=API_KEY, api_secret=SECRET, revision=7, expire_time=timestamp(datetime.now(UTC))
        )

    async with (
        serving_works(installation, "users", LeaseBrokerCredential=lease) as users,
        installation.serve("execution", user_service_url=users.address, binance_url=binance.url) as execution,
    ):
        stub: Any = execution.stub(execution_pb2_grpc.ExecutionServiceStub, "users")
        request = execution_pb2.CheckBrokerCredentialRequest(request_id="x", credential_id=credential_id)
        answer = await stub.CheckBrokerCredential(request, metadata=identity.for_user(user_id))
        assert (answer.can_read, answer.can_trade, answer.can_withdraw, answer.revision) == (True, True, False, 7)
        assert asked == [(user_id, "execution", credential_id, users_pb2.LEASE_PURPOSE_TEST)]
        # Nobody else, and for nobody in general.
        for caller, metadata, code in [
            ("edge", identity.for_user(user_id), "PERMISSION_DENIED"),
            ("orders", identity.for_user(user_id), "PERMISSION_DENIED"),
            ("users", (), "UNAUTHENTICATED"),
        ]:
            stub = execution.stub(execution_pb2_grpc.ExecutionServiceStub, caller)
            with pytest.raises(Exception) as caught:
                await stub.CheckBrokerCredential(request, metadata=metadata)
            assert refused(caught)[0].name == code
        binance.faults.requests.append(too_many(30))
        stub = execution.stub(execution_pb2_grpc.ExecutionServiceStub, "users")
        # Too early, and then nothing is leased; somebody else is not.
        leased_before = len(asked)
        for caller, why in ((user_id, "RATE_LIMITED"), (uuid7(), "VENUE_UNAVAILABLE"), (uuid7(), "VENUE_UNAVAILABLE")):
            with pytest.raises(Exception) as caught:
                await stub.CheckBrokerCredential(request, metadata=identity.for_user(caller))
            assert refused(caught)[1].reason == why
        assert len(asked) == leased_before + 2
        assert len(binance.asked) == 3
