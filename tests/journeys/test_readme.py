"""The README's first five minutes, as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page import missing
from tests.stack import Stack

COMMAND_SECONDS = 60
BLOCK = re.compile(r"(?ms)^```(?P<language>\w*)\n(?P<text>.*?)^```")


def block(beginning: str, language: str = "") -> str:
    found = [one["text"] for one in BLOCK.finditer(Path("README.md").read_text()) if one["language"] == language]
    [only] = [text for text in found if text.startswith(beginning)]
    return only


@pytest.fixture
def session(stack: Stack) -> dict[str, str]:
    """What the curl lines leave behind: a token and an account."""
    if not shutil.which("curl"):
        missing("curl")
    script = here(block("curl"), stack) + 'printf "\\n%s\\n%s\\n" "$TOKEN" "$ACCOUNT"\n'
    done = subprocess.run(
        ["bash", "-e", "-c", script], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, quote, token, account = done.stdout.splitlines()
    assert '"bid_price"' in quote
    return {"TOKEN": token, "ACCOUNT": account}


def here(text: str, stack: Stack) -> str:
    assert "localhost:8080" in text
    return text.replace("localhost:8080", stack.edge)


def test_what_the_readme_shows_registers_watches_and_trades(stack: Stack, session: dict[str, str]) -> None:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **session, "PATH": programs}

    python = subprocess.Popen(
        [sys.executable, "-c", here(block("import os, uuid, grpc", "python"), stack)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert python.stdout
    try:
        lines = iter(python.stdout.readline, "")
        states = [next(lines).split()[0]]
        while states[-1] != "ORDER_STATE_FILLED":
            states.append(next(lines).split()[0])
    finally:
        python.kill()
        python.wait()
        python.stdout.close()
    assert "ORDER_STATE_UNSPECIFIED" not in states

    if not shutil.which("grpcurl", path=programs):
        missing("grpcurl")
    listing, watching = re.split(r"(?m)^(?=grpcurl)", here(block("grpcurl"), stack))[1:]
    listed = subprocess.run(
        ["bash", "-c", listing], check=True, capture_output=True, text=True, env=environment, timeout=COMMAND_SECONDS
    )
    assert "tradeloom.orders.v1.OrderService" in listed.stdout
    # It would go on for ever.
    watched = subprocess.run(
        ["bash", "-c", f"{watching.strip()} | grep --max-count 1 firstSequence"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=COMMAND_SECONDS,
    )
    assert watched.returncode == 0, watched.stderr
