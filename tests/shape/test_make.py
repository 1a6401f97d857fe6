"""What `make` offers."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.page import missing

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_target_with_what_it_does():
    if not shutil.which("make"):
        missing("make")
    done = subprocess.run(["make", "-s", "help"], check=True, capture_output=True, text=True, cwd=ROOT)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    [targets] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert list(listed) == targets.split()
    assert {"up", "demo", "test", "check", "gen", "bench"} <= set(listed)
