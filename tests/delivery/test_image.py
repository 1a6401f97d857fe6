"""k8s/Dockerfile, as far as it can be held true without building it: what it copies is all that its commands need."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from libs.words import WORDS
from tests.delivery.chart import container, of_kind

DOCKERFILE = Path("k8s/Dockerfile").read_text()
IMPORT_SECONDS = 60


def stage(name: str) -> str:
    found = re.search(rf"(?ms)^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in /app."""
    folder = tmp_path_factory.mktemp("app")
    unwanted = shutil.ignore_patterns("__pycache__", "node_modules", "dist")
    for source, target in re.findall(r"(?m)^COPY (\S+) (\S+)$", stage("application")):
        shutil.copytree(source, folder / target, ignore=unwanted)
    return folder


def commands() -> list[str]:
    """The modules that the chart runs."""
    found = [*of_kind("Deployment").values(), *of_kind("Job").values()]
    run = [command for one in found if (command := container(one)["command"])[0] == "python"]
    stopping = container(of_kind("Deployment")["edge"])["lifecycle"]["preStop"]["exec"]["command"]
    return sorted({command[2] for command in [*run, stopping]})


def test_the_chart_runs_every_service_the_migrations_and_the_drain() -> None:
    assert set(commands()) == {*(f"services.{word}" for word in WORDS), "migrations", "libs.edge.drain"}


def test_the_image_has_all_that_its_commands_import(application: Path) -> None:
    left_out = re.search(r"startswith\((\(.*?\))\)", stage("packages"))
    assert left_out
    script = f"""
import importlib, importlib.util, sys
class LeftOut:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({left_out[1].replace("-", "_")}):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, LeftOut())
sys.path[:0] = [{str(application)!r}, {str(application / "gen/python")!r}, {sysconfig.get_path("purelib")!r}]
for module in {commands()!r}:
    package = importlib.util.find_spec(module).submodule_search_locations
    importlib.import_module(module + ".__main__" if package else module)
import libs
assert libs.__path__[0].startswith({str(application)!r})
"""
    # -S: nothing of the tree is found besides what was copied.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        cwd=application,
        capture_output=True,
        text=True,
        check=False,
        timeout=IMPORT_SECONDS,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_runs_as_root_unless_it_is_told_to() -> None:
    assert re.findall(r"(?m)^USER (\S+)$", DOCKERFILE) == ["65532:65532"]
    pod = of_kind("Deployment")["orders"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 65532
