"""Where certificates lie: in a folder as Kubernetes mounts a Secret, whoever made it.

What was renewed together lies in a folder of its own, and the link `..data` leads to the newest of them. Key and
certificate are read from one such folder, so that they always belong together.
"""

from pathlib import Path

NEWEST = "..data"
AUTHORITIES = "ca.pem"
READS_MAX = 5
"""A folder may be replaced while it is read; so often in a row it is not there at all."""

Files = tuple[bytes, bytes, bytes]
"""The certificates of the authorities, a word's key and its certificate."""


def newest(folder: Path) -> Path:
    """Where the newest files lie, by a name that never leads to others."""
    link = folder / NEWEST
    return link.resolve() if link.is_symlink() else folder


def files(folder: Path, word: str) -> Files:
    """What belongs together at this moment."""
    for left in reversed(range(READS_MAX)):
        home = newest(folder)
        try:
            return (
                (home / AUTHORITIES).read_bytes(),
                (home / f"{word}.key").read_bytes(),
                (home / f"{word}.pem").read_bytes(),
            )
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError
