"""Generates gen/ts, the dashboard's messages and services, where the dashboard's packages are installed.

Its plugin is one of those packages. A machine without Node keeps the committed gen/ts as it is: `buf.gen.web.yaml` is
a template of its own, so that regenerating gen/python never clears gen/ts.
"""

import subprocess
import sys
from pathlib import Path

TEMPLATE = "buf.gen.web.yaml"
PLUGIN = Path("services/web/app/node_modules/.bin/protoc-gen-es")


def generate(root: Path) -> None:
    """Writes `root`/gen/ts. Needs third_party/, and runs in the repository's root."""
    if not PLUGIN.exists():
        sys.stderr.write(
            "gen/ts is left as it is: its plugin is not installed (run `npm ci --ignore-scripts` in services/web/app)\n"
        )
        return
    buf = Path(sys.executable).parent / "buf"
    subprocess.run([str(buf), "generate", "--template", TEMPLATE, "--output", str(root)], check=True)
