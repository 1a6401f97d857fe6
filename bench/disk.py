"""Where the stacks of benches keep their data: on a disk, for in memory no commit waits for anything."""

import os
from pathlib import Path

import psutil

USUAL = Path("/var/tmp")
"""Not /tmp, which many systems keep in memory."""
IN_MEMORY = {"tmpfs", "ramfs"}


def folder() -> Path:
    """The one that TMPDIR names, if any."""
    return Path(os.environ.get("TMPDIR") or USUAL).absolute()


def file_system(path: Path) -> str:
    """Its type, such as "ext4"."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    real = path.resolve()
    return next((mounts[place] for place in (real, *real.parents) if place in mounts), "unknown")


def refuse_memory() -> None:
    """Ends the program where durable writes would cost nothing."""
    found = file_system(folder())
    if found in IN_MEMORY:
        raise SystemExit(
            f"{folder()} is {found}, which keeps nothing: benches measure commits that wait for a disk. "
            "Let TMPDIR name a folder on one."
        )
