"""What journeys share."""

import pytest

from tests.administrator import Administrator
from tests.stack import Stack


@pytest.fixture(scope="session")
def administrator(stack: Stack) -> Administrator:
    return Administrator(stack)
