"""The earlier system's command for the demo; `tradeloom demo` does it, and takes the same arguments."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    tradeloom = ROOT / ".venv" / "bin" / "tradeloom"
    if not tradeloom.exists():
        sys.exit(f"{tradeloom} is missing: `make demo` installs it and runs the same")
    os.chdir(ROOT)
    os.execv(tradeloom, [str(tradeloom), "demo", *sys.argv[1:]])


if __name__ == "__main__":
    main()
