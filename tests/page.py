"""The dashboard's own tools: its packages installed, its page built, its tests run with the same Node."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from services.web import build
from tests.stack import Stack

WALK_SECONDS = 540.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def node() -> build.Node:
    """Node with the page's packages; the test is skipped, by name, where they are not to be had."""
    try:
        return build.prepare()
    except build.CannotBuildError as error:
        missing(f"the dashboard's packages: {error}")


def found_chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def chromium() -> str:
    return found_chromium() or missing("Chromium (on Debian: apt-get install chromium)")


def missing(what: str) -> NoReturn:
    pytest.skip(f"this machine lacks {what}")


def run(node: build.Node, *arguments: str, seconds: float, **environment: str) -> str:
    """Runs a tool of the page's in its folder, and returns what it printed, which is the failure's message too."""
    done = subprocess.run(
        [str(node.path), *arguments],
        cwd=build.APP,
        env={
            **os.environ,
            "PATH": f"{node.path.parent}{os.pathsep}{os.environ['PATH']}",
            "NO_COLOR": "1",
            **environment,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, Path(arguments[0]).name + "\n" + done.stdout + done.stderr
    return done.stdout


def walk(stack: Stack, output: Path, *arguments: str, **environment: str) -> str:
    """A real Chromium goes through the page's own scripts of these names; what was printed."""
    node_found, chromium_found = node(), chromium()
    build.build()
    return run(
        node_found,
        "node_modules/@playwright/test/cli.js",
        "test",
        *arguments,
        seconds=WALK_SECONDS,
        EDGE_URL=f"http://{stack.edge}",
        CHROMIUM=chromium_found,
        E2E_OUTPUT=str(output),
        **environment,
    )
