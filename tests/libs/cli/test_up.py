"""The whole of it, through the command line: what a person types, and what survives which kill.

One data folder for the module, so that a cluster is made once; every test finds the stack up and healthy.
"""

import json
import os
import signal
import socket
from pathlib import Path

import asyncpg
import pytest

from libs.stack.credentials import OWNER, Credentials
from libs.stack.folder import DataFolder
from libs.stack.postgres import PostgresServer
from libs.stack.processes import Owned
from libs.stack.state import HEALTHY, STARTING, STOPPING, Snapshot, running
from libs.stack.supervisor import State
from tests.servers import forget_home_of_nobody
from tests.stack import WAIT_SECONDS, begun, everything, state_of, tradeloom, until

ONLY = "auth"


pytestmark = pytest.mark.timeout(300)  # each command is a start or a stop of everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = DataFolder.at(tmp_path_factory.mktemp("stack") / "data")
    yield folder
    tradeloom(folder, "down")
    forget_home_of_nobody(folder.postgres)


@pytest.fixture
def up(folder) -> Snapshot:
    done = tradeloom(folder, "up", "--detach", "--only", ONLY, "--port", "0")
    assert done.returncode == 0, done.stderr + supervisor_log(folder)
    snapshot = running(folder)
    assert snapshot is not None
    return snapshot


def supervisor_log(folder: DataFolder) -> str:
    return "".join(file.read_text() for file in (folder.log("supervisor"), folder.log(ONLY)) if file.exists())


def status_of(folder: DataFolder, name: str):
    snapshot = Snapshot.read(folder)
    assert snapshot is not None
    return next(status for status in snapshot.processes if status.name == name)


def test_up_returns_when_everything_is_healthy_and_says_where(folder, up):
    done = tradeloom(folder, "status")
    assert done.returncode == 0
    for word in ("postgres", "valkey", "envoy", ONLY, "ready", f"http://127.0.0.1:{up.ports['edge']}"):
        assert word in done.stdout
    assert up.healthy_seconds is not None
    assert {"cluster", "postgres", "valkey", "certificates", "migrations", "edge", "readiness"} <= set(up.phases)
    assert tradeloom(folder, "health").returncode == 0


def test_up_a_second_time_says_what_runs_where(folder, up):
    for more in ([], ["--detach"]):
        done = tradeloom(folder, "up", *more)
        assert done.returncode == 0
        assert "running already" in done.stdout
        assert f"http://127.0.0.1:{up.ports['edge']}" in done.stdout
    again = running(folder)
    assert again is not None
    assert again.supervisor == up.supervisor


def test_up_a_second_time_with_the_same_words_is_no_error(folder, up):
    done = tradeloom(folder, "up", "--only", ONLY, "--port", str(up.ports["edge"]))
    assert done.returncode == 0
    assert "running already" in done.stdout


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("up", "--port", "9"), "on port {edge}, not 9"),
        (("up", "--detach", "--only", "auth,orders"), "with auth, not auth, orders"),
        (("demo", "--port", "9"), "on port {edge}, not 9"),
    ],
)
def test_another_stack_than_the_one_that_runs_is_refused(folder, up, command, why):
    done = tradeloom(folder, *command)
    assert done.returncode == 1
    assert f"{why.format(edge=up.ports['edge'])}; stop it first with `tradeloom down`" in done.stderr
    assert done.stdout == ""


def test_up_during_a_stop_waits_for_its_end_and_starts_again(folder, up):
    service = Owned.of(status_of(folder, ONLY).pid)
    service.send(signal.SIGSTOP)  # the stop waits for it
    with begun(folder, "down"):
        until(lambda: state_of(folder) == STOPPING)
        with begun(folder, "up", "--only", ONLY, "--port", "0", "--detach") as again:
            tradeloom(folder, "status")  # as long as the other takes to look
            service.send(signal.SIGCONT)
            assert again.wait(WAIT_SECONDS) == 0, again.stdout.read()
    assert state_of(folder) == HEALTHY
    snapshot = running(folder)
    assert snapshot is not None
    assert snapshot.supervisor != up.supervisor


def test_no_password_is_ever_printed_and_the_state_holds_none(folder, up):
    secrets = set(json.loads((folder.secrets / "secrets.json").read_text()).values())
    said = "".join(
        tradeloom(folder, *command).stdout
        for command in (["up"], ["status"], ["status", "--json"], ["health"], ["logs"])
    )
    said += folder.state.read_text() + "".join(file.read_text() for file in folder.logs.iterdir())
    assert not [secret for secret in secrets if secret in said]
    assert str(folder.secrets / "admin-password") in said


def test_what_is_secret_is_open_to_its_owner_only(folder, up):
    for private in (folder.path, folder.secrets, folder.tls, folder.run, folder.logs):
        assert private.stat().st_mode & 0o777 == 0o700
    for file in (folder.state, *folder.secrets.iterdir(), *folder.tls.glob("*.key")):
        assert file.stat().st_mode & 0o777 == 0o600


def test_the_database_is_open_to_people_for_reading(folder, up):
    done = tradeloom(folder, "psql", "-c", "SELECT count(*) FROM users")
    assert done.returncode == 0, done.stderr
    assert "count" in done.stdout
    assert tradeloom(folder, "psql", "-c", "CREATE TABLE mine ()").returncode != 0
    assert tradeloom(folder, "psql", "-c", "DELETE FROM users").returncode != 0


@pytest.mark.parametrize("name", [ONLY, "envoy", "valkey", "postgres"])
def test_a_process_that_is_killed_comes_back_and_the_status_counts_it(folder, up, name):
    before = status_of(folder, name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: status_of(folder, name).restarts == before.restarts + 1)
    until(lambda: all(status.state is State.READY for status in everything_said(folder)))
    assert f"{name}: killed by SIGKILL, starts again" in supervisor_log(folder)
    assert tradeloom(folder, "health").returncode == 0


def everything_said(folder: DataFolder):
    snapshot = Snapshot.read(folder)
    assert snapshot is not None
    return snapshot.processes


def test_after_the_supervisor_is_killed_nothing_lives_on_and_the_next_up_recovers(folder, up):
    family = everything(folder)
    assert len(family) > 5
    os.kill(up.supervisor.pid, signal.SIGKILL)
    until(lambda: not any(owned.alive for owned in family))
    assert tradeloom(folder, "status").returncode == 1

    done = tradeloom(folder, "up", "--detach", "--only", ONLY, "--port", "0")
    assert done.returncode == 0, done.stderr
    again = running(folder)
    assert again is not None
    assert again.supervisor != up.supervisor
    assert tradeloom(folder, "psql", "-c", "SELECT count(*) FROM users").returncode == 0


def test_after_all_of_it_is_killed_at_once_the_next_up_recovers(folder, up):
    for owned in everything(folder):
        owned.send(signal.SIGKILL)
    until(lambda: running(folder) is None)
    done = tradeloom(folder, "up", "--detach", "--only", ONLY, "--port", "0")
    assert done.returncode == 0, done.stderr


def test_migrating_and_beginning_anew_need_the_stack_to_be_down(folder, up):
    assert "stop it first" in tradeloom(folder, "migrate", "--reset", "--yes").stderr


async def test_beginning_anew_asks_first_and_empties_everything(folder, up):
    owner = PostgresServer(up.ports["postgres"], "").url(OWNER, Credentials(folder.secrets).postgres(OWNER))
    rows = await asyncpg.connect(owner)
    await rows.execute("CREATE TABLE IF NOT EXISTS marketdata.marked AS SELECT 1 AS mark")
    await rows.close()
    assert tradeloom(folder, "psql", "-t", "-c", "SELECT mark FROM marked").stdout.split() == ["1"]
    tradeloom(folder, "down")

    refused = tradeloom(folder, "migrate", "--reset")
    assert refused.returncode != 0
    assert f"This deletes every user, order and price kept in {folder.path}. Go on? [y/N]" in refused.stdout
    assert (folder.valkey / "data").exists()
    wrong = tradeloom(folder, "migrate", "--reset", "--yes", "--database", "other")
    assert wrong.returncode == 1
    assert "the database is called trading, not other; nothing was emptied" in wrong.stderr

    done = tradeloom(folder, "migrate", "--reset", "--yes")
    assert done.returncode == 0, done.stderr
    assert not (folder.valkey / "data").exists()
    assert tradeloom(folder, "migrate").returncode == 0
    tradeloom(folder, "up", "--detach", "--only", ONLY, "--port", "0")
    gone = tradeloom(folder, "psql", "-t", "-c", "SELECT mark FROM marked")
    assert 'relation "marked" does not exist' in gone.stderr


def test_a_log_that_does_not_exist_names_those_that_do(folder, up):
    assert "healthy after" in tradeloom(folder, "logs", "supervisor").stdout
    done = tradeloom(folder, "logs", "nothing")
    assert done.returncode == 1
    assert "postgres" in done.stderr


def test_down_leaves_no_process_behind_and_a_second_down_is_no_error(folder, up):
    family = everything(folder)
    done = tradeloom(folder, "down")
    assert done.returncode == 0, done.stderr
    assert [owned for owned in family if owned.alive] == []
    assert not list(folder.run.iterdir())
    assert "nothing runs" in tradeloom(folder, "down").stdout
    assert tradeloom(folder, "health").returncode == 1


def test_up_during_a_start_says_so_and_ctrl_c_stops_what_is_healthy(folder):
    """The second, detached, returns when the stack of the first is healthy."""
    tradeloom(folder, "down")
    with begun(folder, "up", "--only", ONLY, "--port", "0") as starting:
        until(lambda: state_of(folder) == STARTING)
        starting.send_signal(signal.SIGSTOP)  # it gets no further while the others look at it
        with begun(folder, "up", "--detach") as detached:
            assert "starting already" in tradeloom(folder, "up", "--only", ONLY).stdout
            assert detached.poll() is None
            starting.send_signal(signal.SIGCONT)
            assert detached.wait(WAIT_SECONDS) == 0
            assert "healthy after" in detached.stdout.read()
        snapshot = running(folder)
        assert snapshot is not None
        assert (snapshot.state, snapshot.supervisor.pid) == (HEALTHY, starting.pid)

        family = everything(folder)
        starting.send_signal(signal.SIGINT)
        said = starting.stdout.read().splitlines()
        assert starting.wait(WAIT_SECONDS) == 0
    assert any(line.startswith("healthy after") for line in said)
    assert len(family) > 5
    assert [owned for owned in family if owned.alive] == []
    stopped = [line.split(":")[0] for line in said if line.endswith(": stopped")]
    assert stopped == [ONLY, "envoy", "valkey", "postgres"]


def test_ctrl_c_while_starting_leaves_nothing_either(folder):
    tradeloom(folder, "down")
    family = []
    with begun(folder, "up", "--only", ONLY, "--port", "0") as supervisor:
        for line in supervisor.stdout:
            if line == "postgres: ready\n":
                family = everything(folder)
                supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(WAIT_SECONDS) == 0
    assert family
    assert [owned for owned in family if owned.alive] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_a_detached_stack_that_starts_takes_it_down(folder, number):
    tradeloom(folder, "down")
    with begun(folder, "up", "--only", ONLY, "--port", "0", "--detach") as starting:
        until(lambda: (found := running(folder)) is not None and bool(found.processes))
        family = everything(folder)
        starting.send_signal(number)
        assert starting.wait(WAIT_SECONDS) != 0
    assert [owned for owned in family if owned.alive] == []
    assert running(folder) is None


def test_a_port_that_is_taken_is_refused_by_number_with_its_holder_and_the_flag(folder):
    tradeloom(folder, "down")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = tradeloom(folder, "up", "--only", ONLY, "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} is held by" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "--port" in done.stderr


def test_an_unknown_service_is_refused_with_the_known_ones(folder):
    tradeloom(folder, "down")
    done = tradeloom(folder, "up", "--only", "ordres")
    assert done.returncode == 1
    assert "no service is called ordres; there are auth, " in done.stderr


def test_production_refuses_the_stacks_own_secrets(folder):
    tradeloom(folder, "down")
    done = tradeloom(folder, "up", "--only", ONLY, ENVIRONMENT="production")
    assert done.returncode == 1
    assert "ENVIRONMENT=production refuses development secrets" in done.stderr


def test_a_mistyped_command_is_refused_with_the_one_that_was_meant(folder):
    done = tradeloom(folder, "statu")
    assert done.returncode == 2
    assert "No such command 'statu'. Did you mean 'status'?" in done.stderr


def test_a_folder_where_nothing_runs_says_so(tmp_path):
    done = tradeloom(DataFolder.at(tmp_path / "empty"), "status")
    assert done.returncode == 1
    assert "start it with `tradeloom up`" in done.stderr
    assert not Path(tmp_path / "empty").exists()
