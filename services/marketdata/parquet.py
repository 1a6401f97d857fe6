"""What a Parquet file says of its pages, so that it is known how much they unpack to before any is: polars unpacks what it reads.

The footer and the head of each page are structs in Thrift's compact form. Only what is wanted of them is read: where the pages
of a column stand, and how long each is packed and unpacked.
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO

from services.marketdata.domain import ImportMalformed
from services.marketdata.unpacking import Budget

MAGIC = b"PAR1"
FOOTER_BYTES_MAX = 16 * 1024 * 1024
ROW_GROUP_BYTES_MAX = 512 * 1024 * 1024
"""Unpacked, of the columns that are read."""
PAGES_MAX = 2_000_000
PAGE_HEAD_BYTES = (256, 64 * 1024)
"""As many are read of a page's head; more where it says more of its values."""
TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
DEPTH_MAX = 16
UNREADABLE = "is not readable as Parquet"


class Compact:
    """A reader of Thrift's compact form. Raises IndexError beyond the end."""

    def __init__(self, content: bytes) -> None:
        self._content, self.position = content, 0

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > len(self._content):
            raise IndexError
        return self._content[self.position - count : self.position]

    def byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                return value

    def signed(self) -> int:
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)

    def binary(self) -> bytes:
        return self.take(self.unsigned())

    def fields(self) -> Iterator[tuple[int, int]]:
        """The number and kind of each field of a struct; whoever takes one reads or skips it before the next."""
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.signed()
            yield number, head & 0x0F

    def items(self) -> Iterator[int]:
        """The kind of each item of a list, once for each."""
        head = self.byte()
        count = head >> 4
        for _ in range(self.unsigned() if count == 0x0F else count):
            yield head & 0x0F

    def skip(self, kind: int, *, in_list: bool = False, depth: int = 0) -> None:
        if depth > DEPTH_MAX:
            raise IndexError
        if kind in (TRUE, FALSE):
            # In a struct the kind is the value itself.
            self.take(int(in_list))
        elif kind == BYTE:
            self.take(1)
        elif kind in (SHORT, INT, LONG):
            self.unsigned()
        elif kind == DOUBLE:
            self.take(8)
        elif kind == BINARY:
            self.binary()
        elif kind in (LIST, SET):
            for item in self.items():
                self.skip(item, in_list=True, depth=depth + 1)
        elif kind == STRUCT:
            for _, field in self.fields():
                self.skip(field, depth=depth + 1)
        else:
            raise IndexError


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group."""

    column: str
    start: int
    packed_bytes: int


def check_unpacked_bytes(file: IO[bytes], columns: Collection[str]) -> None:
    """Raises ImportMalformed if these columns unpack to more than they may, as the head of each page says."""
    end = file.seek(0, 2)
    budget = Budget(end)
    page_count = 0
    for chunks in row_groups(footer_of(file, end)):
        unpacked_bytes = 0
        for chunk in chunks:
            if chunk.column not in columns:
                continue
            for page_bytes in pages(file, chunk):
                page_count += 1
                unpacked_bytes += page_bytes
                budget.spend(page_bytes)
                if unpacked_bytes > ROW_GROUP_BYTES_MAX or page_count > PAGES_MAX:
                    raise ImportMalformed(
                        {
                            "file": f"has a row group above {ROW_GROUP_BYTES_MAX >> 20} MiB, or more than {PAGES_MAX} pages; "
                            "write smaller row groups, or larger pages"
                        }
                    )


def footer_of(file: IO[bytes], end: int) -> bytes:
    file.seek(max(0, end - 8))
    tail = file.read(8)
    length = struct.unpack("<I", tail[:4])[0] if len(tail) == 8 and tail.endswith(MAGIC) else 0
    if not 0 < length <= min(end, FOOTER_BYTES_MAX):
        raise ImportMalformed({"file": UNREADABLE})
    file.seek(end - 8 - length)
    return file.read(length)


def row_groups(footer: bytes) -> Iterator[list[Chunk]]:
    read = Compact(footer)
    for number, kind in read.fields():
        if (number, kind) != (4, LIST):
            read.skip(kind)
            continue
        for _ in read.items():
            yield chunks_of(read)


def chunks_of(read: Compact) -> list[Chunk]:
    chunks: list[Chunk] = []
    for number, kind in read.fields():
        if (number, kind) != (1, LIST):
            read.skip(kind)
            continue
        for _ in read.items():
            for field, its_kind in read.fields():
                if (field, its_kind) == (3, STRUCT):
                    chunks.append(chunk_of(read))
                else:
                    read.skip(its_kind)
    return chunks


def chunk_of(read: Compact) -> Chunk:
    path: list[str] = []
    places: dict[int, int] = {}
    for number, kind in read.fields():
        if (number, kind) == (3, LIST):
            path = [read.binary().decode("utf-8", "replace") for _ in read.items()]
        elif number in (7, 9, 11) and kind == LONG:
            places[number] = read.signed()
        else:
            read.skip(kind)
    # A dictionary stands before the values.
    start = min(places.get(9, 0), places.get(11) or places.get(9, 0))
    return Chunk(path[0] if path else "", start, places.get(7, 0))


def pages(file: IO[bytes], chunk: Chunk) -> Iterator[int]:
    """How long each page is when it is unpacked."""
    position, end = chunk.start, chunk.start + chunk.packed_bytes
    while position < end:
        head_bytes, packed_bytes, unpacked_bytes = page_at(file, position)
        position += head_bytes + packed_bytes
        yield unpacked_bytes


def page_at(file: IO[bytes], position: int) -> tuple[int, int, int]:
    """How long the head of a page is, and what comes after it, packed and unpacked."""
    for head_bytes in PAGE_HEAD_BYTES:
        file.seek(position)
        read, lengths = Compact(file.read(head_bytes)), {2: -1, 3: -1}
        try:
            for number, kind in read.fields():
                if number in lengths and kind == INT:
                    lengths[number] = read.signed()
                else:
                    read.skip(kind)
        except IndexError:
            continue
        if min(lengths.values()) >= 0:
            return read.position, lengths[3], lengths[2]
    raise ImportMalformed({"file": UNREADABLE})
