"""`make check`: every rule that holds without starting anything."""

import filecmp
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from libs.codegen import third_party
from libs.codegen.__main__ import BIN, environment

STEP_SECONDS = 600
Result = tuple[bool, str]
"""Whether it holds, and what there is to say."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    run: Callable[[], Result]


def main() -> int:
    third_party.main()
    failed: list[str] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        started = {pool.submit(timed, step): step for step in STEPS}
        for done in as_completed(started):
            (holds, said), seconds = done.result()
            name = started[done].name
            print(f"{'ok  ' if holds else 'FAIL'} {name:<40} {seconds:5.1f} s", flush=True)  # noqa: T201
            if said and not holds:
                print("     " + said.strip().replace("\n", "\n     "), flush=True)  # noqa: T201
            if not holds:
                failed.append(name)
    print(f"failed: {', '.join(sorted(failed))}" if failed else "everything holds")  # noqa: T201
    return 1 if failed else 0


def timed(step: Step) -> tuple[Result, float]:
    began = time.monotonic()
    return step.run(), time.monotonic() - began


def command(*words: str) -> Callable[[], Result]:
    return lambda: run(*words)


def run(*words: str, folder: Path | None = None) -> Result:
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
        env=environment(),
        cwd=folder,
    )
    return done.returncode == 0, done.stdout


def generated_is_current() -> Result:
    """Generates anew beside the tree, which stays as it is, and compares."""
    with tempfile.TemporaryDirectory() as folder:
        script = "import sys, pathlib; from libs.codegen.__main__ import generate; generate(pathlib.Path(sys.argv[1]))"
        made, said = run("python", "-c", script, folder)
        if not made:
            return False, said
        differing: list[str] = []
        for part in sorted(Path(folder, "gen").iterdir()):
            differing += differences(part, Path("gen", part.name))
        differing += differences(Path(folder, "helm"), Path("helm"))
    return not differing, "`make gen` changes:\n" + "\n".join(differing)


def differences(new: Path, old: Path) -> list[str]:
    """Files that are not the same in both folders."""
    names = {path.relative_to(root) for root in (new, old) for path in root.rglob("*") if is_source(path)}
    return [
        str(old / name)
        for name in sorted(names)
        if not (new / name).is_file() or not (old / name).is_file() or not same(new / name, old / name)
    ]


def is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def contract_breaks_nobody() -> Result:
    """Against the newest release; before the first one the contract may still be bettered."""
    if not Path(".git").exists() or shutil.which("git") is None:
        return True, "no history here"
    tags = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=-v:refname"], capture_output=True, text=True, check=True
    )
    if not tags.stdout.split():
        return True, "no release yet"
    newest = tags.stdout.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "release.tar")
        subprocess.run(["git", "archive", "--output", str(archive), newest, "proto", "buf.yaml"], check=True)
        release = Path(folder, "release")
        with tarfile.open(archive) as packed:
            packed.extractall(release)  # noqa: S202 (git made it a moment ago; the filter is newer than Python 3.11.2)
        shutil.copytree(third_party.THIRD_PARTY, release / third_party.THIRD_PARTY)
        return run("buf", "breaking", "--against", str(release))


STEPS = (
    # The long ones first, so that the short ones fill the time beside them.
    Step("types: pyright", command("pyright")),
    Step("generated code is current", generated_is_current),
    Step("lint: ruff check", command("ruff", "check", ".")),
    Step("format: ruff format", command("ruff", "format", "--check", ".")),
    Step("architecture: import-linter", command("lint-imports")),
    Step("contract: buf lint", command("buf", "lint")),
    Step("contract: buf format", command("buf", "format", "proto", "--diff", "--exit-code")),
    Step("contract: breaks nobody", contract_breaks_nobody),
)

if __name__ == "__main__":
    sys.exit(main())
