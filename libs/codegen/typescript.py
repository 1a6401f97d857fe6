"""Generates gen/ts, the dashboard's messages and services.

Its plugin is one of the dashboard's packages, which are prepared first. `buf.gen.web.yaml` is a template of its own, so
that regenerating gen/python never clears gen/ts.
"""

import os
import subprocess
import sys
from pathlib import Path

TEMPLATE = "buf.gen.web.yaml"
# A process of its own, for libraries know no service.
PREPARE = ("-m", "services.web.build", "packages")


def generate(root: Path) -> None:
    """Writes `root`/gen/ts. Needs third_party/, and runs in the repository's root."""
    prepared = subprocess.run([sys.executable, *PREPARE], stdout=subprocess.PIPE, text=True, check=False)
    if prepared.returncode != 0:
        # Nobody is to believe that what could not be made is current.
        sys.exit("gen/ts is neither made nor checked: its plugin is one of the dashboard's packages")
    # The plugin is a script that asks for Node by its name.
    node = Path(prepared.stdout.strip())
    environment = os.environ | {"PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    buf = Path(sys.executable).parent / "buf"
    command = [str(buf), "generate", "--template", TEMPLATE, "--output", str(root)]
    subprocess.run(command, check=True, env=environment)
