"""Fixtures of auth's tests."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
from argon2 import PasswordHasher

from services.auth import passwords
from tests.mesh import Installation, Served


@pytest.fixture
async def auth(bare_installation: Installation) -> AsyncIterator[Served]:
    """An auth of the test's own, on a fresh database."""
    async with bare_installation.serve("auth") as served:
        yield served


@pytest.fixture(autouse=True)
def weak_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same argon2id with less work in it, so that tests may sign in often; one test proves what the service uses."""
    weak = partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "PasswordHasher", weak)
