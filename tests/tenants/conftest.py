"""What the walks of two people have in common."""

import pytest

from services.orders import equity


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accounts are worth is noted at every look."""
    monkeypatch.setattr(equity, "NOTE_SECONDS", 0.0)
    monkeypatch.setattr(equity, "LOOK_SECONDS", 0.2)
