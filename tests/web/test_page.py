"""The dashboard's own tests and types, run by its own tools."""

import pytest

from tests import page


@pytest.mark.timeout(400)
def test_the_page_keeps_its_promises_before_services_in_memory() -> None:
    page.run(page.node(), "node_modules/vitest/vitest.mjs", "run", seconds=360)


@pytest.mark.timeout(200)
def test_the_page_agrees_with_the_contracts_types() -> None:
    page.run(page.node(), "node_modules/typescript/bin/tsc", "--noEmit", seconds=180)
