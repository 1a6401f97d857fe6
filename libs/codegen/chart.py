"""Gives the chart its copies from gen/edge, for it reads only its own files, and renders its examples."""

import re
import shutil
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path("helm")
RELEASE = "tradeloom"
NAMESPACE = "tradeloom"
FILES = ("envoy.kubernetes.yaml", "identity.json", "authority.json", "tradeloom.binpb")
"""Of gen/edge, which the edge of a cluster needs."""

HEADER = "# Rendered by `make gen`; never edited.\n"

# What comes out of helm/files fills pages; whoever reads an example looks there.
LONG = re.compile(r"(?m)^(  (?:envoy\.yaml|identity\.json|authority\.json|tradeloom\.binpb):).*\n(?:(?:    .*)?\n)*")
CHECKSUM = re.compile(r"(checksum/\w+: )[0-9a-f]{64}")


def generate(root: Path) -> None:
    """Writes `root`/helm/files and `root`/helm/ci/*.rendered.yaml; templates and values are those of the tree."""
    chart = root / CHART
    if chart.resolve() != CHART.resolve():
        shutil.copytree(CHART, chart)
    (chart / "files").mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(root / "gen" / "edge" / name, chart / "files" / name)
    for values in sorted((chart / "ci").glob("*.values.yaml")):
        rendered = render(yaml.safe_load(values.read_text()), chart)
        example(values).write_text(HEADER + shortened(rendered))


def example(values: Path) -> Path:
    return values.with_name(values.name.replace(".values.", ".rendered."))


def render(values: dict[str, Any] | None, chart: Path = CHART) -> dict[str, str]:
    """All manifests by template, with these values over the chart's own."""
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(values=values or {}, name=RELEASE, namespace=NAMESPACE)
    return {Path(name).name: text for name, text in sorted(rendered.items()) if name.endswith(".yaml")}


def shortened(rendered: dict[str, str]) -> str:
    """One stream of YAML without what is only copied."""
    parts = [f"---\n# {name}\n{text.strip()}\n" for name, text in rendered.items() if text.strip()]
    text = "".join(parts).replace("\n---\n\n---\n", "\n---\n")
    return CHECKSUM.sub(r"\1…", LONG.sub(r"\1 …\n", text))
