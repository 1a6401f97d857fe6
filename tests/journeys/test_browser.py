"""A person at the page in a real Chromium, through the edge: gRPC-Web calls and streams."""

import sys
from pathlib import Path

import pytest

from tests import page
from tests.stack import Stack


@pytest.mark.timeout(600)
def test_a_person_trades_through_the_page(stack: Stack, tmp_path: Path) -> None:
    page.walk(stack, tmp_path, "account", "journey", "parents", MAILS=str(stack.folder.mails), PYTHON=sys.executable)
