"""gen/ts is made and checked wherever `make gen` and `make check` run, or they say that it is not."""

import shutil
import sys
from pathlib import Path

import pytest

from libs.codegen import check, third_party, typescript
from tests import page


@pytest.fixture
def without_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no program but those of .venv and the system's own shell is found."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "env"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))


@pytest.mark.usefixtures("without_node")
def test_gen_ts_is_made_and_is_current_without_a_node_on_the_machine(tmp_path: Path) -> None:
    page.node()
    third_party.main()

    typescript.generate(tmp_path)

    assert check.differences(tmp_path / "gen/ts", Path("gen/ts")) == []


def test_where_the_dashboards_packages_are_missing_gen_ts_fails_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    web = tmp_path / "services/web"
    shutil.copytree("services/web", web, ignore=shutil.ignore_patterns("node_modules", "dist", "src"))
    shutil.copy("services/__init__.py", tmp_path / "services")
    monkeypatch.chdir(tmp_path)
    # Nobody answers here, and nothing was kept from before.
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))

    with pytest.raises(SystemExit, match="gen/ts is neither made nor checked"):
        typescript.generate(tmp_path)

    assert "npm" in capfd.readouterr().err
    assert not (tmp_path / "gen").exists()


@pytest.mark.usefixtures("without_node")
def test_types_are_checked_without_a_node_on_the_machine_and_without_loading_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRIGHT_PYTHON_ENV_DIR", str(tmp_path / "loaded"))
    monkeypatch.setenv("PYRIGHT_PYTHON_CACHE_DIR", str(tmp_path / "loaded"))
    wrong = tmp_path / "wrong.py"
    wrong.write_text("number: int = 'text'\n")

    holds, said = check.run("pyright", "--pythonpath", sys.executable, str(wrong))

    assert not holds
    assert "reportAssignmentType" in said
    assert not (tmp_path / "loaded").exists()
