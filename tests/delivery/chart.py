"""The chart as the tests look at it: rendered once for each example, its manifests by kind and name."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from libs.codegen import chart

EXAMPLES = sorted((chart.CHART / "ci").glob("*.values.yaml"))

Manifest = dict[str, Any]


@cache
def rendered(example: Path | None = None) -> dict[str, str]:
    values = yaml.safe_load(example.read_text()) if example else {}
    return chart.render(values)


def manifests(texts: dict[str, str]) -> list[Manifest]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [found for text in texts.values() for found in yaml.load_all(text, Loader=loader) if found]


@cache
def usual() -> tuple[Manifest, ...]:
    """Without any values of the operator's."""
    return tuple(manifests(rendered()))


def of_kind(kind: str, found: tuple[Manifest, ...] | list[Manifest] | None = None) -> dict[str, Manifest]:
    """By name without the release's."""
    found = usual() if found is None else found
    return {one["metadata"]["name"].removeprefix(f"{chart.RELEASE}-"): one for one in found if one["kind"] == kind}


def workloads(found: tuple[Manifest, ...] | list[Manifest]) -> list[Manifest]:
    return [one for one in found if one["kind"] in ("Deployment", "StatefulSet", "Job")]


def container(workload: Manifest) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


def environment(workload: Manifest) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in container(workload)["env"]}
