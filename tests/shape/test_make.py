"""What `make` offers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.stack import run_tradeloom
from libs.stack.folder import DataFolder
from tests.page import missing
from tests.stack import Stack

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_target_with_what_it_does():
    if not shutil.which("make"):
        missing("make")
    done = subprocess.run(["make", "-s", "help"], check=True, capture_output=True, text=True, cwd=ROOT)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    [targets] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert list(listed) == targets.split()
    assert {"up", "demo", "test", "check", "gen", "bench"} <= set(listed)


def test_what_tests_and_benches_start_keeps_to_its_folder_whatever_servers_the_shell_names(tmp_path, monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.setenv(name, f"{name}-of-somebody")
    asked = ("migrate", "--reset")  # the question says what it would empty; nobody answers it
    tested = Stack(DataFolder.at(tmp_path)).command(*asked)
    with pytest.raises(RuntimeError) as measured:
        run_tradeloom(*asked, folder=tmp_path, environment=None)
    for said in (tested.stdout, str(measured.value)):
        assert f"kept in {tmp_path}. Go on?" in said
