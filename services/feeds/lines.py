"""Lines: one instrument each, from its source's events to numbered batches for its stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus.feed import Batch, Cursor
from services.feeds import wire
from services.feeds.domain import Book, Instant, Place, Tick

BATCH_TICKS_MAX = 500
BATCHES_AT_ONCE_MAX = 20
"""Of one line, appended in one round trip: what is more waits for the next."""
CATCH_UP_SECONDS = 60
"""A simulated market that stood still for longer was closed: it goes on at its last price, without the time between."""
WAIT_SECONDS_MAX = 5
"""A simulated market has several events a second: one that is due later than this tells of a clock that was set back."""

SECOND_NS = 1_000_000_000
TIME_MAX_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a line has come, and how many ticks it brought since it was made."""

    sequence: int
    position: int
    tick_count: int = 0
    market_time_ns: int = 0


class Line(ABC):
    """Numbers the events of one instrument in the order of its source.

    Each tick and each book takes one sequence, however they are cut into batches: so what has to be made again, because
    Redis forgot it, gets the numbers it had. What was cut counts as done only after `acknowledge`: before, nobody knows
    whether Redis has it.
    """

    def __init__(self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote) -> None:
        """The events after a place, and the quote as it stands there."""
        self._events = events
        self._next = next(events, None)
        self._previous = Cursor(place.instrument_id, place.position_epoch, place.sequence)
        self._quote = quote
        self._place = place
        self.start_sequence = place.sequence
        self._cut = self.done = Progress(place.sequence, place.position)

    @property
    def instrument_id(self) -> str:
        return self._place.instrument_id

    @property
    def has_ended(self) -> bool:
        return self._next is None

    def wait_ns(self, now: Instant) -> int:
        """How long until the next event is to be told; for ever if there is none."""
        return TIME_MAX_NS if self._next is None else self._due_in_ns(self._next.time_ns, now)

    def is_out_of_step(self, now: Instant) -> bool:
        """Whether the wall's clock was set, or the machine slept, so that market time has to be fitted to it anew."""
        return False

    def cut(self, now: Instant, sequence_max: int) -> list[Batch]:
        """The events that are due, in batches; none beyond a sequence, and only so many batches at once."""
        batches: list[Batch] = []
        ticks: list[Tick] = []
        while len(batches) < BATCHES_AT_ONCE_MAX and self._cut.sequence + len(ticks) < sequence_max:
            event = self._next
            if event is None or self._due_in_ns(event.time_ns, now) > 0:
                break
            self._next = next(self._events, None)
            if isinstance(event, Book):
                batches.append(self._batch(ticks, event, now))
                ticks = []
                continue
            ticks.append(event)
            if len(ticks) == BATCH_TICKS_MAX:
                batches.append(self._batch(ticks, None, now))
                ticks = []
        if ticks:
            batches.append(self._batch(ticks, None, now))
        return batches

    def acknowledge(self) -> None:
        """Everything cut so far is in the stream."""
        self.done = self._cut

    def place(self) -> Place:
        """How far the stream has come, as it is to be noted."""
        return replace(
            self._place,
            position_epoch=self._place.epoch,
            sequence=self.done.sequence,
            position=self.done.position,
            market_time_ns=max(self._place.market_time_ns, self.done.market_time_ns),
        )

    def _batch(self, ticks: list[Tick], book: Book | None, now: Instant) -> Batch:
        first_sequence = self._previous.sequence + 1
        count = len(ticks) + (book is not None)
        cursor = Cursor(self.instrument_id, self._place.epoch, self._previous.sequence + count)
        batch = wire.batch_to_proto(self.instrument_id, self._place.epoch, first_sequence, ticks, book)
        batch.previous_cursor, batch.cursor = str(self._previous), str(cursor)
        self._previous = cursor
        time_ns = book.time_ns if book is not None else ticks[-1].time_ns
        self._cut = Progress(
            cursor.sequence,
            self._position_after(len(ticks), time_ns),
            self._cut.tick_count + len(ticks),
            time_ns,
        )
        wire.update_quote(self._quote, batch, now.wall_ns)
        response = marketdata_pb2.StreamTicksResponse(batches=[batch])
        return Batch(cursor, first_sequence, response.SerializeToString(), self._quote.SerializeToString())

    @abstractmethod
    def _due_in_ns(self, time_ns: int, now: Instant) -> int:
        """How long until an event of a market time is to be told."""

    @abstractmethod
    def _position_after(self, tick_count: int, time_ns: int) -> int:
        """The source's position after so many more ticks, the last event of them at a market time."""


class SimulatedLine(Line):
    """Market time is wall time; the position is simulated time, behind it by the place's offset.

    After the wall's clock was set back, market time leads it.
    """

    def __init__(
        self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote, *, lead_ns: int
    ) -> None:
        super().__init__(events, place, quote)
        self._lead_ns = lead_ns

    def is_out_of_step(self, now: Instant) -> bool:
        return not -CATCH_UP_SECONDS * SECOND_NS <= self.wait_ns(now) <= WAIT_SECONDS_MAX * SECOND_NS

    def _due_in_ns(self, time_ns: int, now: Instant) -> int:
        return time_ns - self._lead_ns - now.wall_ns

    def _position_after(self, tick_count: int, time_ns: int) -> int:
        return time_ns - self._place.offset_ns


class ReplayLine(Line):
    """Market time is that of the recording; the position is the number of its trades that were told."""

    def __init__(
        self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote, *, speed: float, start: Instant
    ) -> None:
        """The first event is due at the start, the others as much later as the speed says; 0: all at once."""
        super().__init__(events, place, quote)
        self._speed = speed
        self._start = start
        self._first_ns = 0 if self._next is None else self._next.time_ns

    def _due_in_ns(self, time_ns: int, now: Instant) -> int:
        after_start_ns = round((time_ns - self._first_ns) / self._speed) if self._speed else 0
        return self._start.steady_ns + after_start_ns - now.steady_ns

    def _position_after(self, tick_count: int, time_ns: int) -> int:
        return self._cut.position + tick_count
