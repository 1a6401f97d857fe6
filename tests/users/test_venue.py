"""From a key that somebody types to what the venue says of it: users, orders and execution for real, and a Binance on loopback."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.users.v1 import events_pb2, users_pb2

from libs.ids import uuid7
from services.execution.venues import credentials
from services.users import domain
from tests.mesh import Installation, Served
from tests.orders.stand import decimal, refusal
from tests.servers import free_port
from tests.users.stand import BINANCE_KEY, BINANCE_SECRET, WAIT_SECONDS, Around, Person, Stand
from tests.venues.binance import Binance, Key, binance
from tests.venues.faults import too_many


@dataclass(frozen=True)
class Mesh:
    users: Stand
    orders: Served
    venue: Binance

    async def opens_account(self, person: Person) -> str:
        stub: Any = self.orders.stub(orders_pb2_grpc.PortfolioServiceStub)
        request = orders_pb2.CreateAccountRequest(
            request_id=str(uuid7()),
            name="at Binance",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[orders_pb2.Amount(asset="USDT", amount=decimal(100))],
        )
        opened = await stub.CreateAccount(request, metadata=person.metadata, timeout=WAIT_SECONDS)
        return opened.account.account_id


@pytest.fixture
async def mesh(installation: Installation) -> AsyncIterator[Mesh]:
    port = free_port()
    async with (
        binance(**{BINANCE_KEY: Key(BINANCE_SECRET)}) as venue,
        installation.serve("orders") as orders,
        installation.serve("execution", user_service_url=f"127.0.0.1:{port}", binance_url=venue.url) as execution,
        installation.serve(
            "users",
            mesh_port=str(port),
            order_router_url=orders.address,
            execution_service_url=execution.address,
        ) as users,
    ):
        yield Mesh(Stand(installation, Around(), users), orders, venue)


async def test_a_key_is_put_tested_at_the_venue_and_leased_to_trade(mesh: Mesh):
    ada = mesh.users.person()
    account_id = await mesh.opens_account(ada)
    put = await ada.put(account_id)
    tested = await ada.test(put.credential_id)
    assert tested.state == users_pb2.BROKER_CREDENTIAL_STATE_USABLE
    assert (tested.check.can_read, tested.check.can_trade, tested.check.can_withdraw) == (True, True, False)
    assert mesh.venue.asked == ["/sapi/v1/account/apiRestrictions", "/api/v3/account"]
    assert (await ada.lease(put.credential_id, "TRADE")).api_secret == BINANCE_SECRET
    # Who asked the venue for the person is told, before and after.
    assert [type(told) for told in await mesh.users.told(ada.user_id)] == [
        events_pb2.BrokerCredentialPut,
        events_pb2.BrokerCredentialLeased,
        events_pb2.BrokerCredentialTested,
        events_pb2.BrokerCredentialLeased,
    ]


@pytest.mark.parametrize("right", ["withdrawals", "internal_transfer", "universal_transfer"])
async def test_a_key_that_may_move_money_out_of_the_account_is_refused(mesh: Mesh, right: str):
    setattr(mesh.venue.keys[BINANCE_KEY], right, True)
    ada = mesh.users.person()
    put = await ada.put(await mesh.opens_account(ada))
    tested = await ada.test(put.credential_id)
    assert tested.state == users_pb2.BROKER_CREDENTIAL_STATE_REFUSED
    assert tested.check.problem == users_pb2.BROKER_CREDENTIAL_PROBLEM_CAN_WITHDRAW
    assert (await refusal(ada.lease(put.credential_id, "TRADE"))).reason == "CREDENTIAL_NOT_USABLE"


async def test_a_secret_that_is_another_keys_is_refused(mesh: Mesh):
    ada = mesh.users.person()
    put = await ada.put(await mesh.opens_account(ada), api_secret="y" * 64)
    tested = await ada.test(put.credential_id)
    assert tested.check.problem == users_pb2.BROKER_CREDENTIAL_PROBLEM_SECRET_INVALID


async def test_a_venue_that_is_asked_too_much_says_when_to_come_back(mesh: Mesh):
    ada = mesh.users.person()
    put = await ada.put(await mesh.opens_account(ada))
    mesh.venue.faults.requests.append(too_many(41))
    refused = await refusal(ada.test(put.credential_id))
    assert (refused.code, refused.reason, refused.retry_seconds) == ("UNAVAILABLE", "VENUE_UNAVAILABLE", 41.0)
    [kept] = await ada.credentials()
    assert kept.state == users_pb2.BROKER_CREDENTIAL_STATE_UNTESTED


async def test_orders_itself_says_whose_an_account_is(mesh: Mesh):
    ada, eve = mesh.users.person(), mesh.users.person()
    assert (await refusal(eve.put(await mesh.opens_account(ada)))).reason == "ACCOUNT_NOT_FOUND"


def test_a_key_can_be_put_for_exactly_the_venues_that_can_be_asked():
    assert credentials.VENUES.keys() == domain.VENUES
