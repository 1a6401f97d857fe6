"""An API key that is bound to networks is good for nothing elsewhere, whoever holds its token."""

import grpc
import pytest
from grpc import aio
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from tests.libs.mesh.stand import refused, serving_works
from tests.mesh import Metadata, sign_in

LOOK = orders_pb2.ListAccountsRequest()
BOUND = ["198.51.100.0/24", "2001:db8::/32"]


def seen_from(address: str) -> Metadata:
    """As the edge tells where it was called from."""
    return (("x-envoy-external-address", address),)


@pytest.mark.parametrize("address", ["198.51.100.7", "::ffff:198.51.100.7", "2001:db8:1::1"])
async def test_a_bound_key_is_let_in_from_its_networks(place, address):
    async with serving_works(place) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
        await stub.ListAccounts(LOOK, metadata=(*sign_in(networks=BOUND), *seen_from(address)))


@pytest.mark.parametrize(
    "address", ["198.51.101.7", "2001:db9::1", "127.0.0.1", "198.51.100.7, 10.0.0.1", "nowhere", ""]
)
async def test_a_bound_key_is_refused_from_elsewhere(place, address):
    async with serving_works(place) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListAccounts(LOOK, metadata=(*sign_in(networks=BOUND), *seen_from(address)))
        code, info = refused(caught)
        assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADDRESS_NOT_ALLOWED")
        assert dict(info.metadata) == {"address": address}
        # Nor is its stream opened.
        orders = served.stub(orders_pb2_grpc.OrderServiceStub)
        asked = orders_pb2.StreamOrderEventsRequest(account_id="0190a1b2-0000-7000-8000-000000000001")
        with pytest.raises(aio.AioRpcError) as caught:
            await orders.StreamOrderEvents(asked, metadata=(*sign_in(networks=BOUND), *seen_from(address))).read()
        assert refused(caught)[1].reason == "ADDRESS_NOT_ALLOWED"


async def test_only_the_edge_is_believed_where_a_call_comes_from(place):
    async with serving_works(place) as served:
        stub = served.stub(orders_pb2_grpc.PortfolioServiceStub, "operator")
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListAccounts(LOOK, metadata=(*sign_in(networks=BOUND), *seen_from("198.51.100.7")))
        assert dict(refused(caught)[1].metadata) == {"address": "127.0.0.1"}
        await stub.ListAccounts(LOOK, metadata=sign_in(networks=["127.0.0.0/8"]))
