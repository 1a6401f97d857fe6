"""Benches in their short form: what they print can be read by people and by machines. Their numbers mean nothing here."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

RATIOS = {
    "edge": {"p50_vs_direct", "throughput_vs_direct"},
    "auth": {"login_p50_vs_argon2", "seen_p50_vs_bare", "new_p50_vs_bare", "verification_vs_signature"},
    "ticks": {
        *("fanout_vs_naive", "fanout_vs_ceiling", "fanout_vs_naive_1", "fanout_vs_ceiling_1", "cost_growth"),
        *("storing_vs_naive", "storing_vs_ceiling", "p99_vs_ceiling", "stalled_vs_none", "resuming_vs_none"),
    },
    "candles": {"copy_vs_bare", "copy_sparse_vs_bare", "candles_vs_query"},
    "memory": {"growth"},
    "orders": {
        *("p50_vs_floor", "throughput_vs_floor", "p50_vs_echo", "throughput_vs_echo", "until_drained_vs_floor"),
        *("p50_vs_floor_stored", "throughput_vs_floor_stored", "batch_vs_unary"),
    },
    "up": {"cold_vs_aim", "warm_vs_aim", "memory_vs_aim"},
}
BENCH_SECONDS = 280


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What all benches print, one after the other."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--short"],
        check=False,
        capture_output=True,
        text=True,
        timeout=BENCH_SECONDS,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def found(printed: list[str], name: str) -> tuple[list[str], dict[str, Any]]:
    """The table of one bench, and the JSON of the line that ends it."""
    start = next(number for number, line in enumerate(printed) if line.strip() == f"bench {name}")
    end = next(number for number, line in enumerate(printed[start:], start) if line.startswith("{"))
    return printed[start:end], json.loads(printed[end])


@pytest.mark.timeout(BENCH_SECONDS + 20)
@pytest.mark.parametrize("name", RATIOS)
def test_a_bench_prints_a_table_and_last_its_json(printed, name):
    table, told = found(printed, name)
    assert set(told) == {"bench", "ratios", "absolute", "samples"}
    assert told["bench"] == name
    assert told["ratios"].keys() >= RATIOS[name]
    assert all(value > 0 for value in told["ratios"].values())
    assert told["absolute"]
    assert told["samples"]["rounds"] == 1
    assert told["samples"]["spread"].keys() == told["ratios"].keys()
    assert table[1].split() == ["subject", "baseline", "ratio", "spread"]
    assert any("load average" in line for line in table)
    assert any(f"data on {told['samples']['file_system']}" in line for line in table)


def test_the_ticks_bench_draws_how_long_they_took_and_names_what_a_subscriber_costs(printed):
    table, told = found(printed, "ticks")
    heading = next(number for number, line in enumerate(table) if line.startswith("feed to client"))
    assert table[heading].split()[3:] == ["ceiling", "service", "stalled", "resuming"]
    parts = [[float(part) for part in re.findall(r"([\d.]+)%", line)] for line in table[heading + 1 : heading + 10]]
    assert all(sum(column) == pytest.approx(100, abs=0.1) for column in zip(*parts, strict=True))
    assert told["absolute"]["cost_per_subscriber_1"] > 0
    assert told["absolute"]["service_messages_1"] > 0
    assert told["absolute"]["steady_service_p50"] <= told["absolute"]["steady_service_max"]


def test_the_last_line_of_all_is_json(printed):
    assert json.loads(printed[-1])["bench"] == "up"


def test_an_unknown_bench_is_refused_and_the_known_ones_named():
    done = subprocess.run([sys.executable, "-m", "bench", "nothing"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(name in done.stderr for name in RATIOS)
