"""Opens a file whatever it is packed in, which its first bytes tell: gzip, a zip of one or more members, or nothing.

A member of a zip may be packed by gzip once more. What stands beside the bars in a zip, such as a README, is passed over; what a
checksum there says of a member is held against it.

No more comes out of it than a file of bars may have: what unpacks to more, or to far more than it is long, is refused while it
is read.
"""

import gzip
import hashlib
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from libs import checksums
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
NOTES = re.compile(
    r"(readme|licen[cs]e)(\.txt)?|.*\.(checksum|sha256|md5|md|pdf|html?)|thumbs\.db|desktop\.ini", re.IGNORECASE
)
"""The names of what stands beside the bars in a zip."""
OFFICE_MEMBERS = ("[Content_Types].xml", "content.xml")


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


class Summed:
    """A member whose checksum is known. Raises ImportMalformed at its end if it is another's."""

    def __init__(self, name: str, content: IO[bytes], sha256: bytes) -> None:
        self._name, self._content, self._sha256 = name, content, sha256
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        content = self._content.read(count)
        self._digest.update(content)
        if not content and self._digest.digest() != self._sha256:
            raise ImportMalformed({self._name: "is not what its checksum in the zip is of; fetch the zip again"})
        return content


class Rest:
    """A stream of which the first bytes were read already."""

    def __init__(self, begins: bytes, content: Any) -> None:
        self._begins, self._content = begins, content

    def read(self, count: int) -> bytes:
        if not self._begins:
            return self._content.read(count)
        taken, self._begins = self._begins[:count], self._begins[count:]
        return taken if len(taken) == count else taken + self._content.read(count - len(taken))


class Guarded:
    """A file that is a zip: whatever it claims of its directory, no more of it is taken into memory than a bound."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, place: int, whence: int = 0) -> int:
        # Its directory says where each member begins.
        if whence == 0 and place < 0:
            raise ImportMalformed({"file": "cannot be unpacked: the zip's directory names places before its beginning"})
        return self._file.seek(place, whence)

    def read(self, count: int = -1) -> bytes:
        # To the end is read only from where the last 64 KiB begin.
        if count > READ_BYTES_MAX:
            raise ImportMalformed({"file": f"the zip's directory is larger than {DIRECTORY_BYTES_MAX >> 20} MiB"})
        return self._file.read(count if count >= 0 else READ_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Member:
    """One of the files that are in a file. Its name is empty where there is but one and it has none."""

    name: str
    packing: str
    """What it is packed in, in words; empty if in nothing."""
    content: Any
    """Has read(count), which gives no more than so many bytes, and none at the end."""
    budget: Budget
    plain: IO[bytes] | None = None
    """The file itself, if it is not packed."""


def members(file: IO[bytes]) -> Iterator[Member]:
    """In the order of their names, each to be read before the next."""
    size_bytes = file.seek(0, 2)
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    budget = Budget(size_bytes)
    if magic.startswith(GZIP):
        yield Member("", "gzip", Unpacking("file", gzip.GzipFile(fileobj=file), budget), budget)  # type: ignore[arg-type]
    elif magic in ZIP:
        yield from zip_members(file, budget)
    else:
        yield Member("", "", file, budget, file)


def zip_members(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(Guarded(file)) as archive:  # type: ignore[arg-type]
        everything = [each for each in archive.infolist() if is_file(each)]
        if len(everything) > MEMBERS_MAX:
            raise ImportMalformed({"file": f"has more than {MEMBERS_MAX} members"})
        if any(each.filename in OFFICE_MEMBERS for each in everything):
            raise ImportMalformed({"file": "is a workbook, as of Excel; save its sheet as CSV"})
        found = sorted((each for each in everything if not is_note(each)), key=lambda each: each.filename)
        if not found:
            only = f"only {name_of(everything[0])} and the like are in the zip" if everything else "the zip is empty"
            raise ImportMalformed({"file": f"has no bars: {only}"})
        names = Counter(name_of(each) for each in found)
        sums = {name: sha256 for name, sha256 in sums_in(archive, everything, budget).items() if names[name] == 1}
        packing = f"zip of {len(found)} files" if len(found) > 1 else "zip"
        for each in found:
            with archive.open(each) as content:
                member = zip_member(each, content, packing, sums, budget, is_only=len(found) == 1)
                yield member
                # Whoever read a table has left what comes after it; that it is whole is known at its end.
                while member.content.read(READ_BYTES_MAX):
                    pass


def zip_member(
    each: zipfile.ZipInfo,
    content: Any,
    packing: str,
    sums: Mapping[str, bytes],
    budget: Budget,
    *,
    is_only: bool,
) -> Member:
    name = each.filename
    if sha256 := sums.get(name_of(each)):
        content = Summed(name, content, sha256)
    unpacking = Unpacking(name, content, budget)
    begins = unpacking.read(len(GZIP))
    unpacked: Any = Rest(begins, unpacking)
    if begins == GZIP:
        # Counted on both ways: it may unpack to much of which nothing comes.
        unpacked = Unpacking(name, gzip.GzipFile(fileobj=unpacked), budget)  # type: ignore[arg-type]
        packing = f"gzip in {packing}"
    return Member("" if is_only else name, packing, unpacked, budget)


def sums_in(archive: zipfile.ZipFile, everything: Sequence[zipfile.ZipInfo], budget: Budget) -> dict[str, bytes]:
    """By the names of members, what files beside them say of them."""
    sums: dict[str, bytes] = {}
    for each in everything:
        if each.filename.lower().endswith(checksums.ENDINGS):
            with archive.open(each) as content:
                sums |= checksums.sums_of(Unpacking(each.filename, content, budget).read(checksums.BYTES_MAX))
    return sums


def name_of(member: zipfile.ZipInfo) -> str:
    return member.filename.rpartition("/")[2]


def is_file(member: zipfile.ZipInfo) -> bool:
    """Not a folder, nor what some systems add beside the files."""
    return not (member.is_dir() or member.filename.startswith("__MACOSX/") or name_of(member).startswith("."))


def is_note(member: zipfile.ZipInfo) -> bool:
    return NOTES.fullmatch(name_of(member)) is not None


@contextmanager
def unpacked_well() -> Iterator[None]:
    """Raises ImportMalformed for whatever is wrong with how a file is packed."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        UnicodeDecodeError,  # of a member's name
    ) as error:
        raise ImportMalformed({"file": f"cannot be unpacked: {error}"}) from error
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise ImportMalformed({"file": "cannot be unpacked without its password"}) from error
