"""One stack for all journeys."""

from collections.abc import Iterator

import pytest

from tests.stack import Stack, stack_in


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack_in(tmp_path_factory.mktemp("stack")) as running:
        yield running
