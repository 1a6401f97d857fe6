"""`python -m libs.codegen`: turns proto/ into everything in gen/, and the chart's share of it into helm/."""

import os
import subprocess
import sys
from pathlib import Path

from libs.codegen import chart, third_party, typescript

BIN = Path(sys.executable).parent


def main() -> None:
    third_party.main()
    generate(Path())


def generate(root: Path) -> None:
    """Writes `root`/gen, `root`/helm/files and the chart's rendered examples. Each step is a process of its own, for it reads what the one before it wrote."""
    generated = root / "gen" / "python"
    run("buf", "generate", "--output", str(root))
    typescript.generate(root)
    run("python", "-m", "libs.edge.generate", str(root / "gen" / "edge"), generated=generated)
    run("python", "-m", "libs.codegen.openapi", str(root / "gen" / "openapi"), generated=generated)
    chart.generate(root)


def run(*command: str, generated: Path | None = None) -> None:
    subprocess.run([str(BIN / command[0]), *command[1:]], check=True, env=environment(generated))


def environment(generated: Path | None = None) -> dict[str, str]:
    """Ours, with the tools of this .venv first, and generated code from where it was written last."""
    found = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])}
    if generated is not None:
        found["PYTHONPATH"] = str(generated.resolve())
    return found


if __name__ == "__main__":
    main()
