"""The earlier system's commands, word for word: they are in people's scripts."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from libs.stack.ports import moved_ports
from libs.stack.postgres import wheel
from libs.words import WORDS
from tests.page import missing
from tests.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 90
STORED_SECONDS = 30
HEALTH_LOOP = (
    "for port in 8001 8011 8012 8013 8014 8015 8016 8017 8018; do "
    "curl -f -s http://localhost:$port/health || exit 1; echo; done"
)
SERVICES = ["users", "auth", "users", "billing", "algo", "orders", "marketdata", "feeds", "execution"]
REGISTER = """curl -s -X POST http://localhost:8011/auth/register -H "Content-Type: application/json" \\
  -d '{"email": "test@example.com", "password": "SecurePass123!", "full_name": "Test User"}'"""
LOGIN = """curl -s -X POST http://localhost:8011/auth/login -H "Content-Type: application/json" \\
  -d '{"email": "test@example.com", "password": "SecurePass123!"}'"""
COUNT = "PGPASSWORD=trading psql -h localhost -U trading trading -c 'SELECT count(*) FROM {table};'"


def run(command: str) -> str:
    # psql out of the same wheel as the server, as in `tradeloom psql`.
    environment = {**os.environ, "PATH": f"{wheel() / 'bin'}:{os.environ['PATH']}", "no_proxy": "localhost"}
    done = subprocess.run(
        ["bash", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def usual_ports(stack: Stack) -> None:
    """The commands name ports, so they can be tried only where nobody else has these."""
    named = {"edge", "postgres", *(use for use in stack.snapshot.ports if use.endswith((".alias", ".also")))}
    if moved := named & moved_ports(stack.snapshot.ports).keys():
        missing(f"the usual ports of {', '.join(sorted(moved))}, which are taken")
    if not shutil.which("curl"):
        missing("curl")


def test_the_health_loop_answers_on_every_service_s_own_port(usual_ports: None) -> None:
    answers = [json.loads(line) for line in run(HEALTH_LOOP).splitlines()]
    assert [answer["service"] for answer in answers] == SERVICES
    for answer in answers:
        assert answer["status"] == ("healthy" if answer["service"] in WORDS else "absent")


def test_a_person_registers_and_logs_in_with_curl(usual_ports: None) -> None:
    assert json.loads(run(REGISTER))["user"]["email"] == "test@example.com"
    session = json.loads(run(LOGIN))
    assert (session["token_type"], session["expires_in"]) == ("Bearer", 900)
    assert session["access_token"]
    assert session["refresh_token"]


def counted(table: str) -> int:
    title, _, number, rows, *_ = run(COUNT.format(table=table)).splitlines()
    assert (title.strip(), rows) == ("count", "(1 row)")
    return int(number)


def test_psql_counts_what_a_trade_leaves_behind(usual_ports: None, stack: Stack) -> None:
    users = counted("users")
    run(REGISTER.replace("test@", f"{uuid4()}@"))
    assert counted("users") == users + 1

    orders, executions = counted("trading_orders"), counted("trading_executions")
    traded = stack.command("demo", "BTCUSDT", "0.25", "--json")
    assert traded.returncode == 0, traded.stdout + traded.stderr
    story = json.loads(traded.stdout)
    assert counted("trading_orders") == orders + 1
    assert counted("trading_executions") == executions + len(story["executions"]) > executions
    assert counted("market_data_ohlcv") >= story["history"]["read"] > 0

    # Ticks are written beside the way they travel, a moment later.
    end = time.monotonic() + STORED_SECONDS
    while not counted("market_data_ticks"):
        assert time.monotonic() < end, "no tick was stored"


def test_the_demo_script_ends_with_a_filled_order(stack: Stack) -> None:
    command = [sys.executable, "scripts/dev/bootstrap_demo.py", "BTCUSDT", "0.25", "--order-type", "market"]
    environment = {"TRADELOOM_DATA_DIR": str(stack.folder.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "filled  0.25 filled" in done.stdout
    assert "eyJ" not in done.stdout + done.stderr, "a token was shown"


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_the_demo_works_again_and_for_machines(stack: Stack, side: str) -> None:
    done = stack.command("demo", "ETHUSDT", "1", "--json", "--side", side)
    assert done.returncode == 0, done.stdout + done.stderr
    story = json.loads(done.stdout)
    assert story["order"]["state"] == "ORDER_STATE_FILLED"
    assert (story["states"][:2], story["states"][-1]) == (["PENDING_NEW", "NEW"], "FILLED")
    assert len(story["ticks"]) == 5
    assert story["history"]["read"] == 1440
