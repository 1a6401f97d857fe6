"""Opens a file whatever it is packed in, which its first bytes tell: gzip, a zip of one or more members, or nothing.

No more comes out of it than a file of bars may have: what unpacks to more, or to far more than it is long, is refused while it
is read.
"""

import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from services.marketdata.domain import ImportMalformed

UNPACKED_BYTES_MAX = 16 * 1024 * 1024 * 1024
UNPACKED_RATIO_MAX = 200
"""Bars as text take a third to a thirtieth of their length."""
UNPACKED_BYTES_FREE = 16 * 1024 * 1024
"""Up to here the ratio does not matter."""
MEMBERS_MAX = 1_000
DIRECTORY_BYTES_MAX = 1024 * 1024
READ_BYTES_MAX = DIRECTORY_BYTES_MAX
GZIP, ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")


class Budget:
    """How much may still come out of a file of so many bytes."""

    def __init__(self, packed_bytes: int) -> None:
        self.bytes_max = min(UNPACKED_BYTES_MAX, max(UNPACKED_BYTES_FREE, packed_bytes * UNPACKED_RATIO_MAX))
        self._left = self.bytes_max

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ImportMalformed(
                {
                    "file": f"unpacks to more than {UNPACKED_BYTES_MAX >> 30} GiB "
                    f"or {UNPACKED_RATIO_MAX} times its length; split it, or send it unpacked"
                }
            )


class Unpacking:
    """What comes out of a file, counted. Raises ImportMalformed for what cannot be unpacked."""

    def __init__(self, name: str, packed: IO[bytes], budget: Budget) -> None:
        self._name, self._packed, self._budget = name, packed, budget

    def read(self, count: int) -> bytes:
        try:
            content = self._packed.read(min(count, READ_BYTES_MAX))
        except (lzma.LZMAError, zlib.error, zipfile.BadZipFile, EOFError, OSError) as error:
            # One with a number is the disk's; bzip2 says by one without what is wrong with the file.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImportMalformed({self._name: f"cannot be unpacked: {error}"}) from error
        self._budget.spend(len(content))
        return content


class Guarded:
    """A file that is a zip: whatever it claims of its directory, no more of it is taken into memory than a bound."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        # To the end is read only from where the last 64 KiB begin.
        if count > READ_BYTES_MAX:
            raise ImportMalformed({"file": f"the zip's directory is larger than {DIRECTORY_BYTES_MAX >> 20} MiB"})
        return self._file.read(count if count >= 0 else READ_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Member:
    """One of the files that are in a file. Its name is empty where there is but one and it has none."""

    name: str
    content: Any
    """Has read(count), which gives no more than so many bytes, and none at the end."""
    budget: Budget
    plain: IO[bytes] | None = None
    """The file itself, if it is not packed."""


def members(file: IO[bytes]) -> tuple[str, Iterator[Member]]:
    """What the file is packed in, and its members in the order of their names, each to be read before the next."""
    size_bytes = file.seek(0, 2)
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    budget = Budget(size_bytes)
    if magic.startswith(GZIP):
        return "gzip", iter([Member("", Unpacking("file", gzip.GzipFile(fileobj=file), budget), budget)])  # type: ignore[arg-type]
    if magic in ZIP:
        return "zip", zip_members(file, budget)
    return "", iter([Member("", file, budget, file)])


def zip_members(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(Guarded(file)) as archive:  # type: ignore[arg-type]
        found = sorted((each for each in archive.infolist() if is_wanted(each)), key=lambda each: each.filename)
        if len(found) > MEMBERS_MAX:
            raise ImportMalformed({"file": f"has more than {MEMBERS_MAX} members"})
        if not found:
            raise ImportMalformed({"file": "the zip is empty"})
        for each in found:
            with archive.open(each) as content:
                yield Member(each.filename if len(found) > 1 else "", Unpacking(each.filename, content, budget), budget)


def is_wanted(member: zipfile.ZipInfo) -> bool:
    """Not a folder, nor what some systems add beside the files."""
    return not (
        member.is_dir() or member.filename.startswith("__MACOSX/") or member.filename.rpartition("/")[2].startswith(".")
    )


@contextmanager
def unpacked_well() -> Iterator[None]:
    """Raises ImportMalformed for whatever is wrong with how a file is packed."""
    try:
        yield
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ImportMalformed({"file": f"cannot be unpacked: {error}"}) from error
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise ImportMalformed({"file": "cannot be unpacked without its password"}) from error
