"""What Arrow IPC says of its record batches, so that they are read one at a time: polars takes a stream whole.

A message is a length, a description in FlatBuffers' form, and a body. Only what stands at fixed places of the description is
read here: the kind, the body's length, the number of rows, and where the body's buffers are, each of which begins with its length
unpacked if it is compressed. A file has beside its messages a footer that lists them.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import IO

import polars as pl

from services.marketdata.domain import ImportMalformed
from services.marketdata.unpacking import Budget

FILE_MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"
ENDS = CONTINUES + bytes(4)
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
DESCRIPTION_BYTES_MAX = 4 * 1024 * 1024
BATCH_BYTES_MAX = 256 * 1024 * 1024
"""Packed or unpacked: a batch is unpacked whole."""
BATCH_ROWS_MAX = 4_000_000
BUFFERS_MAX = 100_000
DICTIONARIES_MAX = 1_000
BATCHES_MAX = 1_000_000
BLOCK = struct.Struct("<qi4xq")
"""How a footer lists a message: where it is, and how long its description and its body are."""
BUFFER = struct.Struct("<qq")
"""Where in a body a buffer is, and how long."""
LENGTH = struct.Struct("<q")


class Table:
    """A table of FlatBuffers: its fields by their numbers."""

    def __init__(self, content: bytes, position: int) -> None:
        self.content, self._position = content, position
        (back,) = struct.unpack_from("<i", content, position)
        self._fields = position - back
        (self._length,) = struct.unpack_from("<H", content, self._fields)

    @staticmethod
    def root(content: bytes) -> "Table":
        return Table(content, *struct.unpack_from("<I", content, 0))

    def place(self, number: int) -> int | None:
        """Where the field is; None if it has its default."""
        at = 4 + 2 * number
        offset = struct.unpack_from("<H", self.content, self._fields + at)[0] if at < self._length else 0
        return self._position + offset if offset else None

    def value(self, number: int, form: str) -> int:
        place = self.place(number)
        return 0 if place is None else struct.unpack_from(form, self.content, place)[0]

    def target(self, number: int) -> int | None:
        """Where what the field refers to begins."""
        place = self.place(number)
        return None if place is None else place + struct.unpack_from("<I", self.content, place)[0]

    def table(self, number: int) -> "Table | None":
        target = self.target(number)
        return None if target is None else Table(self.content, target)


def kind_of(message: Table) -> int:
    return message.value(1, "<B")


def checked_batch(message: Table) -> tuple[int, int]:
    """How many rows the batch of a message has, and how long its body is. Raises ImportMalformed if that is too much."""
    target, body_bytes = message.target(2), message.value(3, "<q")
    row_count = Table(message.content, target).value(0, "<q") if target is not None else 0
    if not (0 <= row_count <= BATCH_ROWS_MAX and 0 <= body_bytes <= BATCH_BYTES_MAX):
        raise ImportMalformed(
            {
                "file": f"has a record batch above {BATCH_ROWS_MAX} rows or {BATCH_BYTES_MAX >> 20} MiB; write smaller ones"
            }
        )
    return row_count, body_bytes


def compressed_buffers(message: Table) -> list[int]:
    """Where in the body of a batch or dictionary those buffers begin that are compressed. Raises ImportMalformed."""
    batch = message.table(2)
    if batch is not None and kind_of(message) == DICTIONARY:
        batch = batch.table(1)
    start = None if batch is None or batch.target(3) is None else batch.target(2)
    if batch is None or start is None:
        return []
    (count,) = struct.unpack_from("<I", batch.content, start)
    if count > BUFFERS_MAX:
        raise ImportMalformed({"file": f"has a record batch of more than {BUFFERS_MAX} buffers"})
    buffers = (BUFFER.unpack_from(batch.content, start + 4 + number * BUFFER.size) for number in range(count))
    return [offset for offset, length in buffers if length > 0]


def spend(budget: Budget, lengths: Iterable[bytes]) -> None:
    """Counts what the buffers unpack to that begin so. Raises ImportMalformed."""
    # A buffer that compression made no shorter says -1.
    unpacked_bytes = sum(max(0, *LENGTH.unpack(length)) for length in lengths)
    if unpacked_bytes > BATCH_BYTES_MAX:
        raise ImportMalformed(
            {"file": f"has a record batch that unpacks to more than {BATCH_BYTES_MAX >> 20} MiB; write smaller ones"}
        )
    budget.spend(unpacked_bytes)


def batches_of_stream(
    stream: IO[bytes], budget: Budget, check_types: Callable[[pl.Schema], None]
) -> Iterator[pl.DataFrame]:
    """The record batches of a stream, each by itself, once its types are checked."""
    schema: list[bytes] = []
    dictionaries: list[bytes] = []
    while message := next_message(stream, budget):
        kind, content = message
        if kind == SCHEMA:
            schema = [content]
            check_types(pl.read_ipc_stream(BytesIO(content + ENDS)).schema)
        elif kind == DICTIONARY:
            dictionaries.append(content)
            if len(dictionaries) > DICTIONARIES_MAX or sum(map(len, dictionaries)) > BATCH_BYTES_MAX:
                raise ImportMalformed({"file": "has more dictionaries than can be held"})
        elif kind == RECORDS:
            yield pl.read_ipc_stream(BytesIO(b"".join([*schema, *dictionaries, content, ENDS])))


def next_message(stream: IO[bytes], budget: Budget) -> tuple[int, bytes] | None:
    """The kind of the next message, and all of its bytes; None after the last."""
    head = stream.read(8)
    if head in (b"", ENDS):
        return None
    length = struct.unpack("<i", head[4:])[0] if len(head) == 8 and head.startswith(CONTINUES) else -1
    if not 0 < length <= DESCRIPTION_BYTES_MAX:
        raise ImportMalformed({"file": "is not readable as an Arrow stream"})
    description = exactly(stream, length)
    message = Table.root(description)
    _, body_bytes = checked_batch(message)
    body = exactly(stream, body_bytes)
    spend(budget, (body[offset : offset + LENGTH.size] for offset in compressed_buffers(message)))
    return kind_of(message), head + description + body


def exactly(stream: IO[bytes], length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        if not (piece := stream.read(min(length - len(content), 1 << 20))):
            raise ImportMalformed({"file": "ends in the midst of a record batch"})
        content += piece
    return bytes(content)


def row_counts_of_file(file: IO[bytes], budget: Budget) -> list[int]:
    """How many rows each record batch of a file has, by its footer. Raises ImportMalformed if one is too large."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 10))
    tail = file.read(10)
    length = struct.unpack("<i", tail[:4])[0] if len(tail) == 10 and tail.endswith(FILE_MAGIC) else -1
    if not 0 < length <= min(end, BATCHES_MAX * BLOCK.size):
        raise ImportMalformed({"file": "is not readable as an Arrow file"})
    file.seek(end - 10 - length)
    footer = Table.root(exactly(file, length))
    for dictionary in blocks_of(footer, 2):
        checked_at(file, *dictionary, budget)
    return [checked_at(file, *batch, budget) for batch in blocks_of(footer, 3)]


def blocks_of(footer: Table, number: int) -> Iterator[tuple[int, int, int]]:
    start = footer.target(number)
    if start is not None:
        (count,) = struct.unpack_from("<I", footer.content, start)
        for place in range(count):
            yield BLOCK.unpack_from(footer.content, start + 4 + place * BLOCK.size)


def checked_at(file: IO[bytes], offset: int, length: int, body_bytes: int, budget: Budget) -> int:
    """How many rows the batch of a file has. Raises ImportMalformed if it is too much."""
    if not (offset >= 0 and 0 < length <= DESCRIPTION_BYTES_MAX and 0 <= body_bytes <= BATCH_BYTES_MAX):
        raise ImportMalformed({"file": f"has a record batch above {BATCH_BYTES_MAX >> 20} MiB; write smaller ones"})
    file.seek(offset)
    content = exactly(file, length)
    message = Table.root(content[8 if content.startswith(CONTINUES) else 4 :])
    row_count, _ = checked_batch(message)

    def lengths() -> Iterator[bytes]:
        for start in compressed_buffers(message):
            file.seek(offset + length + start)
            yield exactly(file, LENGTH.size)

    spend(budget, lengths())
    return row_count
