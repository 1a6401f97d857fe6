"""Who connects: only with a certificate of our authority that has not ended, and nobody without a name of ours is a service."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.mesh.channel import open_channel
from libs.stack import pki
from libs.stack.pki import LEAF_LIFE, new_leaf, read_authorities
from tests.libs.mesh.stand import refused, serving_works
from tests.libs.mesh.test_renewal import kept
from tests.mesh import Installation, Served, make_pki, sign_in

LOOK = orders_pb2.ListAccountsRequest()
NOW = datetime.now(UTC)

Spoil = Callable[[Path, str, Path], None]
"""Gives the word another certificate in the folder; of another authority's there is a folder too."""


def stranger(folder: Path, word: str, other: Path) -> None:
    """It knows our authority; ours does not know it."""
    for ending in ("key", "pem"):
        (folder / f"{word}.{ending}").write_bytes((other / f"{word}.{ending}").read_bytes())


def expired(folder: Path, word: str, other: Path) -> None:
    put(folder, word, NOW - LEAF_LIFE)


def not_yet_valid(folder: Path, word: str, other: Path) -> None:
    put(folder, word, NOW + timedelta(days=1))


def put(folder: Path, word: str, made: datetime) -> None:
    """A certificate of our authority, made then."""
    (authority,) = read_authorities(folder, folder / "authority.key", NOW)
    for name, content in new_leaf(word, authority, made).items():
        (folder / name).write_text(content)


async def answer(served: Served, folder: Path) -> grpc.StatusCode:
    async with open_channel(served.address, "orders", tls_folder=folder, caller="edge") as channel:
        try:
            await orders_pb2_grpc.PortfolioServiceStub(channel).ListAccounts(LOOK, metadata=sign_in(), timeout=5)
        except aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def ours(place: Installation, tmp_path: Path) -> Path:
    return kept(place.pki, tmp_path / "ours")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    return make_pki(folder)


@pytest.mark.parametrize("spoil", [stranger, expired, not_yet_valid])
async def test_a_caller_with_such_a_certificate_is_not_let_in(place, ours, others, spoil: Spoil):
    spoil(ours, "edge", others)
    async with serving_works(place) as served:
        assert await answer(served, place.pki) is grpc.StatusCode.OK
        assert await answer(served, ours) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("spoil", [stranger, expired, not_yet_valid])
async def test_a_service_with_such_a_certificate_is_not_called(place, ours, others, spoil: Spoil):
    async with serving_works(replace(place, pki=ours)) as served:
        assert await answer(served, place.pki) is grpc.StatusCode.OK
        # It is read at the next connection.
        spoil(ours, "orders", others)
        assert await answer(served, place.pki) is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_without_a_certificate_is_not_let_in(place):
    credentials = grpc.ssl_channel_credentials((place.pki / "ca.pem").read_bytes())
    options = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "orders")]
    async with serving_works(place) as served:
        for channel in (
            aio.secure_channel(served.address, credentials, options=options),
            aio.insecure_channel(served.address, options=options[:1]),
        ):
            async with channel:
                with pytest.raises(aio.AioRpcError) as caught:
                    await orders_pb2_grpc.PortfolioServiceStub(channel).ListAccounts(
                        LOOK, metadata=sign_in(), timeout=5
                    )
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


NAMES = [
    [],
    ["https://tradeloom/svc/edge"],
    ["spiffe://elsewhere/svc/edge"],
    ["spiffe://tradeloom/svc/edge/of/another"],
    ["spiffe://tradeloom/user/edge"],
    ["spiffe://tradeloom/svc/marketdata", "spiffe://tradeloom/svc/edge"],
]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
async def test_a_caller_without_a_name_of_ours_is_nobody(place, ours, names, monkeypatch):
    """Its certificate is of our authority, and says nothing that makes it a service or the edge."""
    made = x509.SubjectAlternativeName

    def named(_: list[x509.GeneralName]) -> x509.SubjectAlternativeName:
        return made([x509.DNSName("edge"), *map(x509.UniformResourceIdentifier, names)])

    monkeypatch.setattr(pki.x509, "SubjectAlternativeName", named)
    put(ours, "edge", NOW)
    monkeypatch.undo()
    async with serving_works(place) as served, serving_works(place, "auth") as auth:
        async with (
            open_channel(served.address, "orders", tls_folder=ours, caller="edge") as channel,
            open_channel(auth.address, "auth", tls_folder=ours, caller="edge") as to_auth,
        ):
            with pytest.raises(aio.AioRpcError) as caught:
                await orders_pb2_grpc.PortfolioServiceStub(channel).ListAccounts(LOOK, metadata=sign_in())
            assert refused(caught)[1].reason == "NOT_PERMITTED"
            with pytest.raises(aio.AioRpcError) as caught:
                await (
                    auth_pb2_grpc.RevocationServiceStub(to_auth)
                    .StreamRevocations(auth_pb2.StreamRevocationsRequest())
                    .read()
                )
            assert refused(caught)[1].reason == "NOT_PERMITTED"
