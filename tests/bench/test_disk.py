"""Benches measure durable commits, so their data lies on a disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import disk

MEMORY = Path("/dev/shm")
REFUSE_SECONDS = 60


def test_data_lies_where_tmpdir_says_and_otherwise_not_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert disk.folder() == Path("/var/tmp")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert disk.folder() == tmp_path


def test_the_file_system_is_the_one_a_folder_is_really_on(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc/self")
    assert disk.file_system(link) == "proc"


@pytest.mark.skipif(disk.file_system(MEMORY) not in disk.IN_MEMORY, reason="this machine has no /dev/shm in memory")
def test_a_folder_in_memory_is_refused_by_name_before_anything_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "orders"],
        check=False,
        capture_output=True,
        text=True,
        timeout=REFUSE_SECONDS,
        env={**os.environ, "TMPDIR": str(MEMORY)},
    )
    assert done.returncode == 1
    assert "/dev/shm is tmpfs" in done.stderr
    assert "TMPDIR" in done.stderr
    assert done.stdout == ""
