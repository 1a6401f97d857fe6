"""Ticks as protobuf writes them, taken apart and put together a column at a time: nothing is done tick by tick.

Messages of one form have the same fields in the same order, each as long as in the others: whatever is of all of them is in
the same place. Ticks of a feed have a handful of forms.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray
from tradeloom.marketdata.v1 import marketdata_pb2

TIME, PRICE, QUANTITY, AGGRESSOR, TRADE_ID = (
    marketdata_pb2.Tick.DESCRIPTOR.fields_by_name[name].number
    for name in ("time", "price", "quantity", "aggressor", "trade_id")
)
BATCHES = marketdata_pb2.StreamTicksResponse.DESCRIPTOR.fields_by_name["batches"].number
TICKS = marketdata_pb2.TickBatch.DESCRIPTOR.fields_by_name["ticks"].number
SECONDS, NANOS = 1, 2
"""Of a Timestamp."""
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
"""How fields are written, of those that can be."""
FIXED_LENGTHS = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
KINDS = {
    (TIME, SECONDS): VARINT,
    (TIME, NANOS): VARINT,
    (PRICE,): EIGHT_BYTES,
    (QUANTITY,): EIGHT_BYTES,
    (AGGRESSOR,): VARINT,
    (TRADE_ID,): BYTES,
}
"""Of the fields that are read. Whatever is written otherwise is passed over, as protobuf does."""
SECOND_NS = 1_000_000_000
VARINT_BYTES_MAX = 10
USUAL_SECONDS_BYTES = 5
"""From 1970 until the year 3058."""
NANOS_BYTES = 5

Bytes = NDArray[np.uint8]


def with_bytes_of_ticks() -> type[Any]:
    """Of StreamTicksResponse, a class that takes ticks for bytes, and makes no message of each."""
    pool = DescriptorPool()

    def add(file: FileDescriptor) -> None:
        for needed in file.dependencies:
            add(needed)
        described = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)
        if file is marketdata_pb2.DESCRIPTOR:
            [batch] = [message for message in described.message_type if message.name == "TickBatch"]
            [ticks] = [each for each in batch.field if each.number == TICKS]
            ticks.type = ticks.TYPE_BYTES
            ticks.ClearField("type_name")
        pool.AddSerializedFile(described.SerializeToString())

    add(marketdata_pb2.DESCRIPTOR)
    return GetMessageClass(pool.FindMessageTypeByName(marketdata_pb2.StreamTicksResponse.DESCRIPTOR.full_name))


ResponseOfBytes = with_bytes_of_ticks()


class TickColumns(NamedTuple):
    """What ticks say, in columns."""

    time_ns: NDArray[np.int64]
    price: NDArray[np.float64]
    quantity: NDArray[np.float64]
    aggressor: NDArray[np.int64]
    trade_id: NDArray[np.bytes_]
    """In UTF-8, each as long as the longest."""


@dataclass(slots=True)
class Form:
    """Where messages of one form have what, by the numbers of the fields and of those in them."""

    places: dict[tuple[int, ...], slice] = field(default_factory=dict)
    wanted: bytearray = field(default_factory=bytearray)
    """The bytes that all of them have alike,"""
    looked_at: bytearray = field(default_factory=bytearray)
    """and which bits of each byte: all of keys and lengths, of a number those that say that it goes on."""


def read(ticks: Sequence[bytes]) -> TickColumns:
    """Raises DecodeError for bytes that are no ticks."""
    number = len(ticks)
    lengths = np.fromiter(map(len, ticks), np.int64, number)
    seconds, nanos, aggressor = np.zeros((3, number), np.int64)
    price, quantity = np.zeros((2, number))
    trade_ids = np.zeros((number, int(lengths.max(initial=1))), np.uint8)
    longest = 1
    for length in sorted({*lengths.tolist()} - {0}):
        same = np.flatnonzero(lengths == length)
        some = ticks if len(same) == number else [ticks[at] for at in same.tolist()]
        content = np.frombuffer(b"".join(some), np.uint8).reshape(-1, length)
        for form, of_form in by_form(content):
            at = same[of_form]
            rows = content if len(at) == len(content) else content[of_form]
            whole = {(TIME, SECONDS): seconds, (TIME, NANOS): nanos, (AGGRESSOR,): aggressor}
            for place in whole.keys() & form.places.keys():
                whole[place][at] = numbers(rows[:, form.places[place]])
            broken = {(PRICE,): price, (QUANTITY,): quantity}
            for place in broken.keys() & form.places.keys():
                broken[place][at] = np.ascontiguousarray(rows[:, form.places[place]]).view("<f8")[:, 0]
            if place := form.places.get((TRADE_ID,)):
                width = place.stop - place.start
                trade_ids[at, :width] = rows[:, place]
                longest = max(longest, width)
    texts = np.ascontiguousarray(trade_ids[:, :longest]).view(f"S{longest}")[:, 0]
    return TickColumns(seconds * SECOND_NS + nanos, price, quantity, aggressor, texts)


def by_form(content: Bytes) -> Iterator[tuple[Form, NDArray[np.int64]]]:
    """The forms of messages that are of one length, and which of them have it."""
    left = np.arange(len(content))
    while len(left):
        form = form_of(content[left[0]].tobytes())
        rows = content if len(left) == len(content) else content[left]
        wanted, looked_at = (np.frombuffer(each, np.uint8) for each in (form.wanted, form.looked_at))
        is_alike = (rows & looked_at) == wanted
        if is_alike.all():
            yield form, left
            return
        is_of_form = is_alike.all(axis=1)
        yield form, left[is_of_form]
        left = left[~is_of_form]


def numbers(varints: Bytes) -> NDArray[np.int64]:
    """Of varints that are of one length."""
    return (varints & 0x7F).astype(np.int64) @ np.left_shift(1, 7 * np.arange(varints.shape[1]))


def form_of(message: bytes) -> Form:
    form = Form()
    add_fields(form, message, 0, len(message), ())
    return form


def add_fields(form: Form, message: bytes, at: int, end: int, within: tuple[int, ...]) -> None:
    """Adds the fields between two places, which are those of a message within another or within none."""
    while at < end:
        begin = at
        key, at = varint(message, at)
        field_number, kind = key >> 3, key & 7
        if kind == BYTES:
            length, at = varint(message, at)
        elif kind == VARINT:
            length = varint(message, at)[1] - at
        else:
            length = FIXED_LENGTHS.get(kind, len(message))
        if at + length > end:
            raise DecodeError("there is no tick in these bytes")
        look(form, message[begin:at], 0xFF)
        place = (*within, field_number)
        if KINDS.get(place) == kind:
            form.places[place] = slice(at, at + length)
        if place == (TIME,) and kind == BYTES:
            add_fields(form, message, at, at + length, place)
        else:
            look(form, message[at : at + length], 0x80 if kind == VARINT else 0)
        at += length


def look(form: Form, content: bytes, mask: int) -> None:
    form.looked_at += bytes([mask]) * len(content)
    form.wanted += bytes(each & mask for each in content)


def varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    found = 0
    for shift, each in enumerate(message[at : at + VARINT_BYTES_MAX]):
        found |= (each & 0x7F) << (7 * shift)
        if each < 0x80:
            return found, at + shift + 1
    raise DecodeError("there is no tick in these bytes")


def written(ticks: TickColumns) -> tuple[bytes, NDArray[np.int64]]:
    """Each as one of the ticks of a TickBatch, one after the other, and where each ends.

    Numbers may have zeros before them, which every reader takes, so that ticks have one form where their ids are of one length.
    """
    seconds, nanos = np.divmod(ticks.time_ns, SECOND_NS)
    widths = width_of(seconds, USUAL_SECONDS_BYTES), width_of(ticks.aggressor, 1)
    lengths = np.char.str_len(ticks.trade_id)
    sizes = np.zeros(len(lengths), np.int64)
    made: list[tuple[NDArray[np.int64], bytearray]] = []
    for length in sorted({*lengths.tolist()}):
        at = np.flatnonzero(lengths == length)
        alike, places = record(*widths, length)
        content = bytearray(alike * len(at))
        records = np.frombuffer(content, places)
        records["seconds"] = varints(seconds[at], widths[0])
        records["nanos"] = varints(nanos[at], NANOS_BYTES)
        records["price"], records["quantity"] = ticks.price[at], ticks.quantity[at]
        records["aggressor"] = varints(ticks.aggressor[at], widths[1])
        if length:
            records["trade_id"] = ticks.trade_id[at]
        made.append((at, content))
        sizes[at] = len(alike)
    ends = np.cumsum(sizes)
    if len(made) == 1:
        return bytes(made[0][1]), ends
    together = np.zeros(int(sizes.sum()), np.uint8)
    for at, content in made:
        size = len(content) // len(at)
        together[(ends[at] - size)[:, np.newaxis] + np.arange(size)] = np.frombuffer(content, np.uint8).reshape(
            -1, size
        )
    return together.tobytes(), ends


@functools.lru_cache(maxsize=1_024)
def record(seconds_bytes: int, aggressor_bytes: int, trade_id_bytes: int) -> tuple[bytes, np.dtype[np.void]]:
    """What all ticks of a form have alike, with room for the rest, and where that goes."""
    time_bytes = 2 + seconds_bytes + NANOS_BYTES
    fields: list[tuple[bytes, str, object]] = [
        (
            key_of(TIME, BYTES) + written_varint(time_bytes) + key_of(SECONDS, VARINT),
            "seconds",
            (np.uint8, seconds_bytes),
        ),
        (key_of(NANOS, VARINT), "nanos", (np.uint8, NANOS_BYTES)),
        (key_of(PRICE, EIGHT_BYTES), "price", "<f8"),
        (key_of(QUANTITY, EIGHT_BYTES), "quantity", "<f8"),
        (key_of(AGGRESSOR, VARINT), "aggressor", (np.uint8, aggressor_bytes)),
    ]
    if trade_id_bytes:
        fields.append((key_of(TRADE_ID, BYTES) + written_varint(trade_id_bytes), "trade_id", f"S{trade_id_bytes}"))
    content, places = b"", {}
    for before, name, kind in fields:
        content += before
        places[name] = (np.dtype(kind), len(content))  # pyright: ignore[reportArgumentType, reportCallIssue]
        content += bytes(places[name][0].itemsize)
    head = key_of(TICKS, BYTES) + written_varint(len(content))
    kinds, offsets = zip(*places.values(), strict=True)
    return head + content, np.dtype(
        {
            "names": [*places],
            "formats": kinds,
            "offsets": [len(head) + offset for offset in offsets],
            "itemsize": len(head + content),
        }
    )


def head_of_batch(length: int) -> bytes:
    """What stands before a batch of so many bytes in a StreamTicksResponse."""
    return key_of(BATCHES, BYTES) + written_varint(length)


def width_of(values: NDArray[np.int64], usual: int) -> int:
    """In how many bytes each of them can be written."""
    fits = not len(values) or (values.min() >= 0 and values.max() >> (7 * usual) == 0)
    return usual if fits else VARINT_BYTES_MAX


def varints(values: NDArray[np.int64], width: int) -> Bytes:
    goes_on = np.array([0x80] * (width - 1) + [0], np.uint8)
    shifts = 7 * np.arange(width, dtype=np.uint64)
    return (values.astype(np.uint64)[:, np.newaxis] >> shifts & np.uint64(0x7F)).astype(np.uint8) | goes_on


def written_varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + written_varint(value >> 7)


def key_of(number: int, kind: int) -> bytes:
    return written_varint(number << 3 | kind)
