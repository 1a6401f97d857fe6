"""The earlier system's command for the demo; `tradeloom demo` does it, and takes the same arguments."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    tradeloom = ROOT / ".venv" / "bin" / "tradeloom"
    os.chdir(ROOT)
    if not tradeloom.exists():
        subprocess.run(["make", ".venv/core"], check=True)
    os.execv(tradeloom, [str(tradeloom), "demo", *sys.argv[1:]])  # noqa: S606 (nothing here is for a shell)


if __name__ == "__main__":
    main()
