"""A person at the page in a real Chromium, through the edge: gRPC-Web calls and streams."""

import sys
from pathlib import Path

import pytest

from services.web import build
from tests import page
from tests.stack import Stack


@pytest.mark.timeout(600)
def test_a_person_trades_through_the_page(stack: Stack, tmp_path: Path) -> None:
    node, chromium = page.node(), page.chromium()
    build.build()
    page.run(
        node,
        "node_modules/@playwright/test/cli.js",
        "test",
        "account",
        "journey",
        seconds=540,
        EDGE_URL=f"http://{stack.edge}",
        CHROMIUM=chromium,
        E2E_OUTPUT=str(tmp_path),
        MAILS=str(stack.folder.mails),
        PYTHON=sys.executable,
    )
