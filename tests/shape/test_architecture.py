"""The arrows between the files of a service are drawn for each of them, and hold."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from libs.words import WORDS

CHECKED = ("libs", "services", "pyproject.toml")
LINT_SECONDS = 60


def contracts() -> list[dict[str, Any]]:
    return tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_every_file_of_every_service_has_its_place_between_door_and_domain() -> None:
    found = {one["containers"][0]: one for one in contracts() if one["type"] == "layers"}

    assert found.keys() == {f"services.{word}" for word in WORDS}
    for contract in found.values():
        assert contract["exhaustive"] is True
        assert not contract.get("exhaustive_ignores")
        # `a : b` would let each import the other.
        assert not [layer for layer in contract["layers"] if ":" in layer]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what import-linter reads, to be spoilt."""
    for name in CHECKED:
        if Path(name).is_dir():
            shutil.copytree(
                name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "dist", "app", "__pycache__")
            )
        else:
            shutil.copy(name, tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "lint-imports"
    command = [str(program), "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=LINT_SECONDS)


def test_a_store_that_looks_back_at_the_door_is_noticed(tree: Path) -> None:
    before = lint(tree)
    assert before.returncode == 0, before.stdout
    store = tree / "services/orders/store.py"
    store.write_text(store.read_text() + "\nimport services.orders.servicer\n")

    after = lint(tree)

    assert after.returncode == 1
    assert "orders reads from its door inwards BROKEN" in after.stdout


def test_a_file_without_a_place_is_noticed(tree: Path) -> None:
    (tree / "services/feeds/helpers.py").write_text("")

    after = lint(tree)

    assert after.returncode == 1
    assert "services.feeds.helpers" in after.stdout
