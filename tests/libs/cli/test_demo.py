"""`tradeloom demo`: on a stack that it starts and takes down, and what it refuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from libs.stack.folder import DataFolder
from libs.stack.launch import NOBODY
from libs.stack.postgres import IDENTITY_VARIABLE
from libs.stack.processes import Owned
from libs.stack.state import HEALTHY, STARTING, in_use, running
from libs.stack.supervisor import Record
from tests.servers import forget_home_of_nobody
from tests.stack import WAIT_SECONDS, begun, everything, state_of, tradeloom, until

TRADE = ("demo", "BTCUSDT", "0.25", "--order-type", "market", "--port", "0")
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.timeout(300)  # some start the whole mesh


@pytest.fixture
def folder(tmp_path):
    """Nothing is in it yet, and it lies in a home that is closed to everybody else."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    folder = DataFolder.at(home / "data")
    yield folder
    forget_home_of_nobody(folder.postgres)


def test_from_an_empty_folder_it_starts_a_stack_trades_and_takes_it_down(folder):
    """Also as root where the kernel refuses user namespaces: nobody can reach the database, but not the home."""
    done = tradeloom(folder, *TRADE, **{IDENTITY_VARIABLE: "nobody"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("starting Tradeloom ...\nhealthy after ")
    for said in ("1440 bars read, 1440 new", "event       filled  0.25 filled", "stopped the stack that was started"):
        assert said in done.stdout
    assert "eyJ" not in done.stdout + done.stderr, "a token was shown"
    assert everything(folder) == []
    assert not list(folder.run.iterdir())
    if os.geteuid() == 0:
        away = Path((folder.postgres / "home-of-nobody").read_text().strip())
        assert (away / "cluster").stat().st_uid == NOBODY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_starts_a_stack_it_leaves_nothing_running(folder, number):
    with begun(folder, *TRADE) as demo:
        until(lambda: state_of(folder) == STARTING and len(everything(folder)) > 1)
        family = everything(folder)
        demo.send_signal(number)
        assert demo.wait(WAIT_SECONDS) != 0
    assert [owned for owned in family if owned.alive] == []
    assert running(folder) is None


@pytest.mark.long
def test_where_another_up_is_quicker_it_waits_for_that_one_and_leaves_it_running(folder):
    folder.make()
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as stubborn:
        try:
            assert stubborn.stdout is not None
            assert stubborn.stdout.readline()
            # It holds up whoever starts in this folder, after it has locked it and before it says a word.
            owned = Owned.of(stubborn.pid)
            assert owned is not None
            Record(owned, signal.SIGTERM).write(folder.run / "stubborn.json")
            with begun(folder, "up", "--port", "0") as up:
                until(lambda: in_use(folder))
                with begun(folder, *TRADE) as demo:
                    assert demo.stdout.readline() == "starting Tradeloom ...\n"
                    stubborn.kill()
                    said = demo.stdout.read()
                    assert demo.wait(WAIT_SECONDS) == 0, said
                assert "event       filled  0.25 filled" in said
                assert "stopped" not in said
                snapshot = running(folder)
                assert snapshot is not None
                assert (snapshot.state, snapshot.supervisor.pid) == (HEALTHY, up.pid)
        finally:
            stubborn.kill()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("BTCUSDT", "much"), "quantity must be a number above zero"),
        (("BTCUSDT", "0"), "quantity must be a number above zero"),
        (("BTCUSDT", "NaN"), "quantity must be a number above zero"),
        (("BTCUSDT", "1", "--order-type", "limit", "--limit-price", "dear"), "--limit-price must be a number above"),
        (("BTCUSDT", "1", "--order-type", "limit"), "--limit-price goes with --order-type limit"),
        (("BTCUSDT", "1", "--limit-price", "5"), "--limit-price goes with --order-type limit"),
        (("BTCUSDT", "1", "--order-type", "stop"), "'stop' is not one of"),
        (("BTCUSDT", "1", "--wait-seconds", "-1"), "--wait-seconds"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_starts(folder, arguments, why):
    done = tradeloom(folder, "demo", *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert not folder.path.exists()
