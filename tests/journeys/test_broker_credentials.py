"""Somebody proves who they are, keeps a key here and takes their data along; and an operator replaces the key over it all."""

import io
import zipfile
from typing import Any

import aiohttp
import grpc
import pytest
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.channel import open_channel, open_edge_channel
from tests.auth.people import letter_to
from tests.authenticator import Authenticator
from tests.mesh import Metadata, bearer
from tests.stack import Stack
from tests.users.stand import BINANCE_KEY, BINANCE_SECRET, until

EMAIL, PASSWORD = "keeper@example.com", "tea and biscuits at four"


async def somebody(stack: Stack, channel: Any) -> tuple[str, Metadata]:
    """Registers, verifies the address and sets up a second factor: the user's id, and a token that may put keys."""
    auth = auth_pb2_grpc.AuthServiceStub(channel)
    registered = await auth.Register(auth_pb2.RegisterRequest(email=EMAIL, password=PASSWORD, full_name="Ada"))
    mail = await letter_to(stack.folder.mails, EMAIL, "erif")
    await auth.VerifyEmail(auth_pb2.VerifyEmailRequest(token=mail.token))
    session = await auth.Login(auth_pb2.LoginRequest(email=EMAIL, password=PASSWORD))
    metadata = bearer(session.access_token)
    made = await auth.SetupTotp(auth_pb2.SetupTotpRequest(), metadata=metadata)
    code = Authenticator(made.otpauth_uri).code()
    enabled = await auth.EnableTotp(auth_pb2.EnableTotpRequest(code=code), metadata=metadata)
    return registered.user.user_id, bearer(enabled.access_token)


async def test_a_key_is_kept_through_a_rotation_and_leaves_with_nobody(stack: Stack):
    async with open_edge_channel(stack.edge) as channel:
        user_id, metadata = await somebody(stack, channel)
        portfolios, users, keys = (
            stub(channel)
            for stub in (
                orders_pb2_grpc.PortfolioServiceStub,
                users_pb2_grpc.UserServiceStub,
                users_pb2_grpc.BrokerCredentialServiceStub,
            )
        )
        opening = orders_pb2.CreateAccountRequest(
            request_id=str(uuid7()),
            name="kept",
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[{"asset": "USDT", "amount": {"value": "1000"}}],
        )
        opened = await portfolios.CreateAccount(opening, metadata=metadata)
        request = users_pb2.PutBrokerCredentialRequest(
            request_id=str(uuid7()),
            account_id=opened.account.account_id,
            venue="BINANCE",
            label="main",
            api_key=BINANCE_KEY,
            api_secret=BINANCE_SECRET,
        )
        put = (await keys.PutBrokerCredential(request, metadata=metadata)).credential
        assert put.api_key_ending == BINANCE_KEY[-4:]

        # Over REST too a change names its fields, in the contract's names.
        async with aiohttp.ClientSession(f"http://{stack.edge}", headers=dict(metadata)) as session:
            body = {
                "request_id": "rest",
                "preferences": {"time_zone": "Europe/Berlin", "notifications": {"order_filled": False}},
                "update_mask": "time_zone,notifications.order_filled",
            }
            async with session.patch("/users/preferences", json=body) as answer:
                changed = await answer.json()
                assert answer.status == 200, changed
            assert changed["preferences"]["time_zone"] == "Europe/Berlin"
            assert changed["preferences"]["notifications"]["order_filled"] is False
            assert changed["preferences"]["notifications"]["order_rejected"] is True

        for _ in range(2):
            done = stack.command("rotate-keys")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "none is left under another key" in done.stdout

        address = f"127.0.0.1:{stack.snapshot.ports['users.mesh']}"
        leasing = users_pb2.LeaseBrokerCredentialRequest(
            request_id="x", credential_id=put.credential_id, purpose=users_pb2.LEASE_PURPOSE_TEST
        )
        async with open_channel(address, "users", tls_folder=stack.folder.tls, caller="execution") as direct:
            stub: Any = users_pb2_grpc.BrokerCredentialServiceStub(direct)
            leased = await stub.LeaseBrokerCredential(leasing, metadata=identity.for_user(user_id))
        assert leased.api_secret == BINANCE_SECRET
        # The edge has no way to it.
        with pytest.raises(aio.AioRpcError) as caught:
            await keys.LeaseBrokerCredential(leasing, metadata=metadata)
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)

        started = await users.ExportPersonalData(users_pb2.ExportPersonalDataRequest(request_id="x"), metadata=metadata)

        async def is_ready() -> Any:
            asking = users_pb2.ListPersonalDataExportsRequest()
            found = await users.ListPersonalDataExports(asking, metadata=metadata)
            [export] = found.exports
            return export if export.state == users_pb2.EXPORT_STATE_READY else None

        export = await until(is_ready)
        asking = users_pb2.DownloadPersonalDataRequest(export_id=started.export.export_id)
        part = await users.DownloadPersonalData(asking, metadata=metadata)
        assert (part.part_count, len(part.data)) == (1, export.size_bytes)
        with zipfile.ZipFile(io.BytesIO(part.data)) as archive:
            assert EMAIL in archive.read("auth/GetMe-000001.json").decode()
            whole = b"".join(archive.read(name) for name in archive.namelist())
        assert opened.account.account_id.encode() in whole
        assert BINANCE_SECRET.encode() not in whole
    for name in ("users", "execution", "edge", "envoy", "supervisor"):
        if stack.folder.log(name).exists():
            assert BINANCE_SECRET not in stack.log(name)
