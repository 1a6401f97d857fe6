"""The earlier system's commands, word for word: they are in people's scripts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page import missing
from tests.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 90
# Those of the earlier system's services that have their successor here.
HEALTH_LOOP = "for port in 8011 8015 8016 8017 8018; do curl -f -s http://localhost:$port/health || exit 1; echo; done"
REGISTER = """curl -s -X POST http://localhost:8011/auth/register -H "Content-Type: application/json" \\
  -d '{"email": "test@example.com", "password": "SecurePass123!", "full_name": "Test User"}'"""
LOGIN = """curl -s -X POST http://localhost:8011/auth/login -H "Content-Type: application/json" \\
  -d '{"email": "test@example.com", "password": "SecurePass123!"}'"""


def run(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def usual_ports(stack: Stack) -> None:
    """The commands name ports, so they can be tried only where nobody else has these."""
    moved = [
        name
        for name, port in {"edge": 8080, "auth.alias": 8011, "orders.alias": 8015, "postgres": 5432}.items()
        if stack.snapshot.ports[name] != port
    ]
    if moved:
        missing(f"the usual ports of {', '.join(moved)}, which are taken")
    if not shutil.which("curl"):
        missing("curl")


def test_the_health_loop_answers_on_every_service_s_own_port(usual_ports: None) -> None:
    answers = [json.loads(line) for line in run(HEALTH_LOOP).splitlines()]
    assert [answer["service"] for answer in answers] == ["auth", "orders", "marketdata", "feeds", "execution"]
    assert {answer["status"] for answer in answers} == {"healthy"}


def test_a_person_registers_and_logs_in_with_curl(usual_ports: None) -> None:
    assert json.loads(run(REGISTER))["user"]["email"] == "test@example.com"
    session = json.loads(run(LOGIN))
    assert (session["token_type"], session["expires_in"]) == ("Bearer", 900)
    assert session["access_token"]
    assert session["refresh_token"]


def test_the_counts_are_there_for_psql(usual_ports: None, stack: Stack) -> None:
    psql = shutil.which("psql")
    for table in ("users", "trading_orders", "trading_executions", "market_data_ohlcv", "market_data_ticks"):
        query = f"SELECT count(*) FROM {table};"
        if psql:
            text = run(f"PGPASSWORD=trading psql -h localhost -U trading trading -t -c '{query}'")
        else:
            text = stack.command("psql", "-t", "-c", query).stdout
        assert int(text.strip()) >= 0


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
