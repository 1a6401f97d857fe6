"""What traders and operators do from the command line, on the whole mesh."""

import re
from typing import Any
from uuid import uuid4

import grpc
import pytest
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.type.v1 import decimal_pb2

from tests.administrator import Administrator
from tests.stack import Stack, until

INSTRUMENT = "SIM:BTCUSDT"
ACCOUNT = "from the command line"


class Terminal:
    """Runs commands as a program does, with an API key that may trade."""

    def __init__(self, stack: Stack, administrator: Administrator) -> None:
        self._stack = stack
        channel: Any = grpc.insecure_channel(stack.edge, options=[("grpc.enable_http_proxy", 0)])
        auth: Any = auth_pb2_grpc.AuthServiceStub(channel)
        portfolios: Any = orders_pb2_grpc.PortfolioServiceStub(channel)
        with channel:
            asked = auth_pb2.CreateApiKeyRequest(name=str(uuid4()), scope=auth_pb2.API_KEY_SCOPE_TRADE)
            self._key = auth.CreateApiKey(asked, metadata=administrator.metadata).secret
            opening = orders_pb2.CreateAccountRequest(
                request_id=str(uuid4()),
                name=ACCOUNT,
                mode=orders_pb2.ACCOUNT_MODE_PAPER,
                kind=orders_pb2.ACCOUNT_KIND_CASH,
                starting_balances=[orders_pb2.Amount(asset="USDT", amount=decimal_pb2.Decimal(value="100000"))],
            )
            portfolios.CreateAccount(opening, metadata=administrator.metadata)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        done = self._stack.command(*arguments, TRADELOOM_API_KEY=self._key)
        assert self._key not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_parent_order_is_placed_once_followed_and_canceled(stack: Stack, administrator: Administrator) -> None:
    terminal = Terminal(stack, administrator)
    iceberg = ("parent-orders", "iceberg", ACCOUNT, INSTRUMENT, "--quantity", "2", "--display", "0.5")
    code, said = terminal(*iceberg, "--limit-price", "1000.001")
    assert code == 1
    assert "iceberg.limit_price: " in said
    placing = (*iceberg, "--limit-price", "1000", "--request-id", str(uuid4()))
    code, said = terminal(*placing)
    assert code == 0, said
    assert "buy 2 SIM:BTCUSDT by iceberg" in said
    [parent_id] = re.findall(r"id +([0-9a-f-]{36})", said)
    assert terminal(*placing) == (0, said), "the same request is the same parent order"

    until(lambda: " new " in terminal("parent-orders", "show", parent_id)[1])
    code, listed = terminal("parent-orders", "list", ACCOUNT)
    assert [line for line in listed.splitlines() if parent_id in line and "active" in line and "0 of 2" in line]
    assert terminal("parent-orders", "cancel", parent_id)[0] == 0
    until(lambda: "none are under way" in terminal("parent-orders", "list", ACCOUNT)[1])


@pytest.mark.timeout(150)
def test_real_money_is_enabled_by_nobody_without_a_second_factor(stack: Stack) -> None:
    refused = stack.command("live", "enable", "--reason", "we are ready")
    assert refused.returncode == 1
    assert "STEP_UP_REQUIRED" in refused.stderr
    assert "--email" in refused.stderr
    assert "real money disabled" in stack.command("live", "status").stdout
    assert "the outcome of every order is known" in stack.command("live", "unknown").stdout
