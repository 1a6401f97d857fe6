"""A page in a real Chromium while what it stands on dies: its ticks have no seam that it is not told of."""

from pathlib import Path

import pytest

from tests import page
from tests.stack import Stack


@pytest.mark.timeout(600)
@pytest.mark.parametrize("long", ["", pytest.param("1", marks=pytest.mark.long)], ids=["cut", "cut and hung"])
def test_a_page_lives_through_a_restart_of_everything_and_through_a_lost_connection(
    stack: Stack, tmp_path: Path, long: str
) -> None:
    # One after the other: the first kills what the second stands on.
    print(page.walk(stack, tmp_path, "faults", "--workers=1", STACK_STATE=str(stack.folder.state), LONG=long))
