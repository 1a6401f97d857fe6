"""The supervisor, with small real programs."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from libs.stack import processes, supervisor
from libs.stack.errors import StackError
from libs.stack.ports import HOST, is_free
from libs.stack.processes import Owned
from libs.stack.supervisor import Process, Record, State, Supervisor, clear_left_behind, left_behind

WAIT_SECONDS = 20.0

STAYS = """
import pathlib, sys, time
print("here", flush=True)
pathlib.Path(sys.argv[1]).touch()
while True:
    time.sleep(60)
"""

STUBBORN_WITH_CHILD = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
while True:
    time.sleep(60)
"""

FAILS = "import sys; print('no such table: orders', flush=True); sys.exit(7)"


@pytest.fixture
def keep(tmp_path):
    return Supervisor(logs=tmp_path, run=tmp_path)


def program(tmp_path: Path, source: str, name: str = "worker", **more) -> Process:
    file = tmp_path / f"{name}.py"
    file.write_text(source)
    ready_file = tmp_path / f"{name}.ready"

    async def remove_ready_file() -> None:
        ready_file.unlink(missing_ok=True)

    async def ready() -> bool:
        return ready_file.exists()

    settings = {"prepare": remove_ready_file, "stop_seconds": 0.3} | more
    return Process(name=name, command=[sys.executable, str(file), str(ready_file)], ready=ready, **settings)


@contextmanager
def started(source: str, *arguments: str):
    """A Python that runs this; killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", source, *arguments])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_process_that_is_killed_is_started_again(keep, tmp_path):
    async with keep:
        keep.start(program(tmp_path, STAYS))
        await keep.wait_ready("worker", seconds=WAIT_SECONDS)
        [status] = keep.statuses
        first = status.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: status.restarts == 1 and status.state is State.READY)
        assert status.pid not in (None, first)
        assert status.exit == "killed by SIGKILL"
    assert status.state is State.STOPPED


async def test_waits_grow_while_a_process_keeps_dying_and_its_status_says_why(keep, tmp_path):
    waits = []
    keep = Supervisor(logs=tmp_path, run=tmp_path, changed=lambda status, _: waits.append(status.next_start_seconds))
    async with keep:
        keep.start(program(tmp_path, FAILS))
        [status] = keep.statuses
        await until(lambda: status.restarts >= 3 and status.next_start_seconds is not None)
        assert status.exit == "exited with 7"
        assert status.deaths == status.restarts + 1
    grown = list(dict.fromkeys(wait for wait in waits if wait is not None))
    assert grown[:4] == [0.1, 0.2, 0.4, 0.8]


async def test_the_wait_between_starts_has_a_limit(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "BACKOFF_MAX_SECONDS", 0.2)
    async with keep:
        keep.start(program(tmp_path, FAILS))
        [status] = keep.statuses
        await until(lambda: status.restarts >= 4 and status.next_start_seconds is not None)
        assert status.next_start_seconds == 0.2


async def test_a_process_that_lived_long_is_not_counted_as_failing(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "STABLE_SECONDS", 0.0)
    async with keep:
        keep.start(program(tmp_path, FAILS))
        [status] = keep.statuses
        await until(lambda: status.restarts >= 3 and status.next_start_seconds is not None)
        assert status.next_start_seconds == supervisor.BACKOFF_FIRST_SECONDS


async def test_waiting_for_a_process_that_cannot_start_shows_what_it_said(keep, tmp_path):
    async with keep:
        keep.start(program(tmp_path, FAILS))
        with pytest.raises(StackError, match=r"exited with 7(.|\n)*no such table: orders"):
            await keep.wait_ready("worker", seconds=WAIT_SECONDS, deaths_max=2)


async def test_a_program_that_does_not_exist_is_a_death_like_any_other(keep, tmp_path):
    async def never() -> bool:
        return False

    async with keep:
        keep.start(Process(name="ghost", command=["/no/such/program"], ready=never))
        with pytest.raises(StackError, match=r"ghost does not start(.|\n)*No such file"):
            await keep.wait_ready("ghost", seconds=WAIT_SECONDS, deaths_max=1)


async def test_stopping_leaves_no_process_behind_not_even_a_child_of_a_stubborn_one(keep, tmp_path):
    async with keep:
        keep.start(program(tmp_path, STUBBORN_WITH_CHILD))
        await keep.wait_ready("worker", seconds=WAIT_SECONDS)
        [status] = keep.statuses
        assert status.pid is not None
        await until((tmp_path / "worker.ready").read_text)
        family = [Owned.of(status.pid), Owned.of(int((tmp_path / "worker.ready").read_text()))]
    assert [owned.alive for owned in family if owned] == [False, False]
    assert not list(tmp_path.glob("*.json"))


async def test_the_impatient_need_not_wait_for_draining(keep, tmp_path):
    async with keep:
        keep.start(program(tmp_path, STUBBORN_WITH_CHILD, stop_seconds=600.0))
        await keep.wait_ready("worker", seconds=WAIT_SECONDS)
        stopping = asyncio.create_task(keep.stop("worker"))
        await until(lambda: keep.statuses[0].state is State.STOPPING)
        keep.kill_all()
        async with asyncio.timeout(WAIT_SECONDS):
            await stopping


async def test_a_process_that_says_it_cannot_work_is_shown_as_unready(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "READY_POLL_SECONDS", 0.02)
    async with keep:
        keep.start(program(tmp_path, STAYS))
        await keep.wait_ready("worker", seconds=WAIT_SECONDS)
        (tmp_path / "worker.ready").unlink()
        await until(lambda: keep.statuses[0].state is State.UNREADY)
        (tmp_path / "worker.ready").touch()
        await until(lambda: keep.statuses[0].state is State.READY)
        assert keep.statuses[0].restarts == 0


async def test_proxies_are_unknown_to_what_we_start(keep, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("LANG", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    source = (
        "import os; print(sorted(n for n in os.environ if 'proxy' in n.lower()), os.environ['LANG'], os.environ['TZ'])"
    )
    async with keep:
        keep.start(program(tmp_path, source))
        await until(lambda: keep.statuses[0].deaths)
    assert (tmp_path / "worker.log").read_text().startswith("[] C.UTF-8 UTC\n")


SUPERVISES = """
import asyncio, pathlib, signal, sys
from libs.stack.supervisor import Process, Supervisor

async def main(folder):
    async def ready():
        return (folder / "worker.ready").exists()
    async with Supervisor(logs=folder, run=folder) as keep:
        keep.start(Process(name="worker", command=[sys.executable, str(folder / "worker.py"), str(folder / "worker.ready")],
                           ready=ready, death_signal=signal.Signals(int(sys.argv[2]))))
        await keep.wait_ready("worker", seconds=20)
        (folder / "all.ready").touch()
        await asyncio.sleep(600)

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


async def kill_a_supervisor(tmp_path: Path, source: str, death_signal: signal.Signals) -> Owned:
    """What was left of the process it supervised."""
    (tmp_path / "worker.py").write_text(source)
    with started(SUPERVISES, str(tmp_path), str(int(death_signal))):
        await until((tmp_path / "all.ready").exists)
        record = Record.read(tmp_path / "worker.json")
        assert record is not None
        assert record.owned.alive
    return record.owned


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_children_die_with_a_supervisor_that_is_killed(tmp_path):
    child = await kill_a_supervisor(tmp_path, STAYS, signal.SIGKILL)
    assert await processes.gone([child], WAIT_SECONDS)


async def test_what_a_killed_supervisor_left_is_found_and_stopped(tmp_path):
    # This one ignores the kernel's word, as a drain that hangs would.
    child = await kill_a_supervisor(tmp_path, STUBBORN_WITH_CHILD, signal.SIGTERM)
    assert child.alive
    assert list(left_behind(tmp_path)) == ["worker"]
    assert await clear_left_behind(tmp_path, stop_seconds=0.2) == ["worker"]
    assert not child.alive
    assert Owned.of(int((tmp_path / "worker.ready").read_text())) is None
    assert await clear_left_behind(tmp_path, stop_seconds=0.2) == []


async def test_a_pid_that_was_handed_out_again_is_never_stopped(tmp_path):
    with started("import time; time.sleep(600)") as bystander:
        Record(Owned(bystander.pid, "another boot:123"), signal.SIGKILL).write(tmp_path / "worker.json")
        assert await clear_left_behind(tmp_path, stop_seconds=0.1) == []
        assert bystander.poll() is None


async def test_a_record_cut_short_by_a_crash_is_passed_over(tmp_path):
    (tmp_path / "worker.json").write_text('{"owned": {"pid": 12')
    assert await clear_left_behind(tmp_path, stop_seconds=0.1) == []
    assert not (tmp_path / "worker.json").exists()


async def test_a_corpse_does_not_count_as_living():
    with started("pass") as child:
        owned = Owned.of(child.pid)
        assert owned is not None
        await until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert not owned.alive


async def test_a_stranger_that_answers_on_its_port_does_not_make_a_process_ready(keep, tmp_path):
    with socket.socket() as stranger:
        stranger.bind((HOST, 0))
        stranger.listen()
        port = stranger.getsockname()[1]

        async def answered() -> bool:
            return not is_free(port)

        source = f"import socket, time; time.sleep(0.3); socket.socket().bind(('127.0.0.1', {port}))"
        command = [sys.executable, "-c", source]
        async with keep:
            keep.start(Process(name="worker", command=command, ready=answered, ports={"probe": port}))
            [status] = keep.statuses
            await until(lambda: status.deaths)
            assert status.ready_seconds is None
            assert f"exited with 1; port {port} is held by " in status.exit
            assert f"pid {os.getpid()}" in status.exit
