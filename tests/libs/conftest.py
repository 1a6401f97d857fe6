"""Fixtures of the libraries' tests."""

from collections.abc import Iterator

import pytest

from libs.telemetry import traces
from tests.libs.telemetry.collector import Collector, collecting


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    # Read by OpenTelemetry: for how many milliseconds finished spans wait for others.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr(traces, "_tracer", None)
    with collecting() as started:
        yield started
