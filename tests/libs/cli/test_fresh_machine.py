"""The first trade of an ordinary user on a small machine: no IPv6, 64 MB of shared memory, the usual port taken."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import pytest

import libs.stack
from libs.stack.folder import DataFolder
from libs.stack.launch import NOBODY
from tests.page import missing
from tests.stack import COMMAND_SECONDS, bare_environment

MACHINE = Path(__file__).with_name("small_machine.py")
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

pytestmark = [
    pytest.mark.timeout(300),  # the whole mesh starts
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a smaller machine of this one"),
]


def readable_by_nobody(file: str) -> bool:
    done = subprocess.run(["test", "-r", file], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
    return done.returncode == 0


@pytest.fixture
def said():
    """What each command said, by its first word; all of them ended with 0."""
    allowed = subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"this machine refuses namespaces, even to root: {allowed.stderr.strip()}")
    if not all(map(readable_by_nobody, (libs.stack.__file__, grpc.__file__))):
        missing("a checkout and packages that an ordinary user may read")
    with tempfile.TemporaryDirectory(prefix="tradeloom-test-", dir="/var/tmp") as home:
        os.chown(home, NOBODY, NOBODY)
        packages = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [*NAMESPACES, sys.executable, str(MACHINE), home],
            env=bare_environment(DataFolder.at(Path(home) / "data"), PYTHONPATH=packages, TMPDIR=home),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_an_ordinary_user_trades_on_a_small_machine(said):
    assert "the usual ports were taken; instead: edge " in said["up"]
    assert "http://127.0.0.1:8080 " not in said["up"]
    assert said["psql"].split() == ["mmap"]
    assert "1440 bars read, 1440 new" in said["demo"]
    assert "event       filled  0.25 filled" in said["demo"]
    assert "no" not in said["health"].split()
    assert said["down"] == "stopped\n"
