"""What an order book is, what changes from one to the next, and the checksum by which a reader knows its own to be right."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.marketdata.v1.marketdata_pb2 import Book, BookLevel, BookUpdate, StreamOrderBookResponse

from libs.bus.feed import Cursor

DEPTH_MAX = 20
Levels = Mapping[float, float]
"""Quantities by price, best first."""


@dataclass(frozen=True, slots=True)
class BookState:
    """A book as it stands at a cursor."""

    cursor: Cursor
    time: Timestamp
    bids: Levels
    asks: Levels


def state_from(book: Book, cursor: Cursor) -> BookState:
    return BookState(
        cursor,
        book.time,
        {level.price: level.quantity for level in book.bids},
        {level.price: level.quantity for level in book.asks},
    )


def checksum(bids: Levels, asks: Levels) -> int:
    """As the contract says at BookUpdate."""
    numbers = [number for levels in (bids, asks) for level in levels.items() for number in level]
    return zlib.crc32(struct.pack(f"<BB{len(numbers)}d", len(bids), len(asks), *numbers))


def update(before: BookState, after: BookState) -> bytes:
    """The message that takes a reader from one book to the other."""
    return serialized(
        BookUpdate(
            instrument_id=after.cursor.instrument_id,
            time=after.time,
            bids=changes(before.bids, after.bids),
            asks=changes(before.asks, after.asks),
            checksum=checksum(after.bids, after.asks),
            previous_cursor=str(before.cursor),
            cursor=str(after.cursor),
        )
    )


def snapshot(state: BookState) -> bytes:
    """The message that gives a reader the whole book."""
    return serialized(
        BookUpdate(
            instrument_id=state.cursor.instrument_id,
            time=state.time,
            snapshot=True,
            bids=levels_to_proto(state.bids),
            asks=levels_to_proto(state.asks),
            checksum=checksum(state.bids, state.asks),
            cursor=str(state.cursor),
        )
    )


def top(state: BookState, depth: int) -> tuple[Book, int]:
    """The best levels of either side, and their checksum."""
    bids, asks = (dict(islice(levels.items(), depth)) for levels in (state.bids, state.asks))
    book = Book(time=state.time, bids=levels_to_proto(bids), asks=levels_to_proto(asks))
    return book, checksum(bids, asks)


def changes(before: Levels, after: Levels) -> Iterator[BookLevel]:
    """New and changed levels, then with quantity 0 those that are gone."""
    yield from levels_to_proto({price: size for price, size in after.items() if before.get(price) != size})
    yield from levels_to_proto({price: 0.0 for price in before if price not in after})


def levels_to_proto(levels: Levels) -> Iterator[BookLevel]:
    return (BookLevel(price=price, quantity=quantity) for price, quantity in levels.items())


def serialized(message: BookUpdate) -> bytes:
    return StreamOrderBookResponse(updates=[message]).SerializeToString()
