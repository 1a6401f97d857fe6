"""Ticks in columns: what a feed has sent of one instrument, decoded at once and looked at a column at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from tradeloom.marketdata.v1.marketdata_pb2 import MissedTrades

from services.marketdata import tick_bytes
from services.marketdata.tick_bytes import SECOND_NS, ResponseOfBytes

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Texts = NDArray[np.bytes_]
"""In UTF-8, each as long as the longest."""


class Ticks(NamedTuple):
    """Ticks of one instrument by their sequences."""

    sequence: Integers
    epoch: Integers
    time_ns: Integers
    price: Floats
    quantity: Floats
    aggressor: Integers
    backfill: Flags
    trade_id: Texts

    @property
    def number(self) -> int:
        return len(self.sequence)

    def where(self, wanted: Flags) -> "Ticks":
        """Those of the ticks."""
        return self if wanted.all() else Ticks._make(column[wanted] for column in self)

    def runs(self) -> "Iterator[Ticks]":
        """The ticks cut where those that were fetched later begin and end."""
        ends = [*(np.flatnonzero(np.diff(self.backfill)) + 1).tolist(), self.number]
        for start, end in pairwise([0, *ends]):
            if start < end:
                yield Ticks._make(column[start:end] for column in self)

    @staticmethod
    def joined(several: "Sequence[Ticks]") -> "Ticks":
        """All of them, one after the other."""
        return Ticks._make(map(np.concatenate, zip(*several, strict=True)))


NONE = np.array([], np.int64)
NO_TICKS = Ticks(
    NONE,
    NONE,
    NONE,
    NONE.astype(np.float64),
    NONE.astype(np.float64),
    NONE,
    NONE.astype(np.bool_),
    NONE.astype(np.bytes_),
)


@dataclass(frozen=True, slots=True)
class Told:
    """What batches of one instrument say: their ticks, and what they say of the market beside them."""

    ticks: Ticks
    market_time_ns: int
    """The newest that ticks and market times have told; not those that were fetched later, nor books. 0 if none has."""
    missed: Sequence[MissedTrades]
    filled: Sequence[MissedTrades]


def told_by(response: bytes) -> Told:
    """Decodes batches, which are the bytes of one or more messages."""
    batches = ResponseOfBytes.FromString(response).batches
    found = tick_bytes.read([tick for batch in batches for tick in batch.ticks])
    counts = np.array([len(batch.ticks) for batch in batches], np.int64)
    # A batch's sequences follow by one on its first.
    starts = np.array([batch.first_sequence for batch in batches], np.int64) - (np.cumsum(counts) - counts)
    columns = Ticks(
        sequence=np.repeat(starts, counts) + np.arange(len(found.time_ns)),
        epoch=np.repeat(np.array([batch.epoch for batch in batches], np.int64), counts),
        backfill=np.repeat(np.array([batch.backfill for batch in batches], np.bool_), counts),
        **found._asdict(),
    )
    live = columns.time_ns[~columns.backfill]
    told = [int(live.max())] if len(live) else []
    told += [ns_of(batch.market_time) for batch in batches if batch.HasField("market_time")]
    return Told(
        columns,
        max(told, default=0),
        [batch.missed for batch in batches if batch.HasField("missed")],
        [batch.filled for batch in batches if batch.HasField("filled")],
    )


def ns_of(time: Timestamp) -> int:
    return time.seconds * SECOND_NS + time.nanos
