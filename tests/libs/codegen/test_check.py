"""`make check` must notice what it is there for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from libs.codegen import check, third_party


def test_a_changed_a_missing_and_a_surplus_file_are_differences(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        (folder / "deep").mkdir(parents=True)
        (folder / "same.py").write_text("1")
        (folder / "deep/changed.py").write_text(folder.name)
    (new / "missing.py").write_text("1")
    (old / "surplus.py").write_text("1")

    found = check.differences(new, old)

    assert found == [str(old / name) for name in ("deep/changed.py", "missing.py", "surplus.py")]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_change_that_breaks_the_newest_release_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    third_party.main()
    for name in ("proto", "third_party"):
        shutil.copytree(name, tmp_path / name)
    shutil.copy("buf.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("add", "proto", "buf.yaml")
    git("-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", "first")

    assert check.contract_breaks_nobody() == (True, "no release yet")
    git("tag", "v0.9.0")
    git("tag", "v0.10.0")
    holds, said = check.contract_breaks_nobody()
    assert holds, said

    path = tmp_path / "proto/tradeloom/auth/v1/auth.proto"
    path.write_text(path.read_text().replace("string email = 2", "string address = 2"))
    holds, said = check.contract_breaks_nobody()
    assert not holds
    assert "email" in said


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)
