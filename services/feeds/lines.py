"""Lines: one instrument each, from its source's events to numbered batches for its stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus.feed import Batch, Cursor
from services.feeds import wire
from services.feeds.domain import SECOND_NS, Backfilled, Book, Event, Instant, Mark, Missed, Moment, Place, Tick

BATCH_TICKS_MAX = 500
BATCHES_AT_ONCE_MAX = 20
"""Of one line, appended in one round trip: what is more waits for the next."""
CATCH_UP_SECONDS = 60
"""A simulated market that stood still for longer was closed: it goes on at its last price, without the time between."""
WAIT_SECONDS_MAX = 5
"""A simulated market has several events a second: one that is due later than this tells of a clock that was set back."""

APART_SECONDS = 1
"""Instruments that are replayed together are at most so far apart in market time."""

HELD_UP_NS = 1_000_000
TIME_MAX_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a line has come, and how many ticks it brought since it was made."""

    sequence: int
    position: int
    trade_id: str = ""
    tick_count: int = 0
    market_time_ns: int = 0


class Line(ABC):
    """Numbers the events of one instrument in the order of its source.

    Each tick, book and market time takes one sequence, however they are cut into batches, and so does a mark that has a
    batch of its own: so what has to be made again, because Redis forgot it, gets the numbers it had. What was cut counts as done only after `acknowledge`: before, nobody knows
    whether Redis has it.
    """

    def __init__(self, place: Place, quote: marketdata_pb2.Quote) -> None:
        """Begins after a place, with the quote as it stands there."""
        self._previous = Cursor(place.instrument_id, place.position_epoch, place.sequence)
        self._quote = quote
        self._place = place
        self._missed: Missed | None = None
        self._after: Cursor | None = None
        self.start_sequence = place.sequence
        self._cut = self.done = Progress(place.sequence, place.position, place.trade_id)

    @property
    def instrument_id(self) -> str:
        return self._place.instrument_id

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether nothing will come any more."""

    @abstractmethod
    def wait_ns(self, now: Instant) -> int:
        """How long until the next event is to be told; TIME_MAX_NS while there is none."""

    @abstractmethod
    def _due(self, now: Instant) -> Event | None:
        """The next event, if it is to be told by now."""

    @abstractmethod
    def _take(self) -> None:
        """Goes on from the event that was due to the one after it."""

    @abstractmethod
    def _position_after(self, ticks: Sequence[Tick], time_ns: int) -> int:
        """The source's position after these ticks, the last event at a market time."""

    def is_out_of_step(self, now: Instant) -> bool:
        """Whether the wall's clock was set, or the machine slept, so that market time has to be fitted to it anew."""
        return False

    def cut(self, now: Instant, sequence_max: int) -> list[Batch]:
        """The events that are due, in batches; none beyond a sequence, and only so many batches at once."""
        batches: list[Batch] = []
        ticks: list[Tick] = []

        def end_batch(last: Book | Moment | Mark | Backfilled | None = None) -> None:
            nonlocal ticks
            batches.append(self._batch(ticks, last, now))
            ticks = []

        while len(batches) < BATCHES_AT_ONCE_MAX and self._cut.sequence + len(ticks) < sequence_max:
            event = self._due(now)
            if event is None:
                break
            self._take()
            match event:
                case Tick():
                    ticks.append(event)
                    if len(ticks) == BATCH_TICKS_MAX:
                        end_batch()
                case Book() | Moment() | Mark():
                    end_batch(event)
                case Missed() | Backfilled():
                    if ticks:
                        end_batch()
                    if isinstance(event, Missed):
                        self._missed = event
                    else:
                        end_batch(event)
        if ticks:
            end_batch()
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
            trade_id=self.done.trade_id,
            market_time_ns=max(self._place.market_time_ns, self.done.market_time_ns),
        )

    def _batch(self, ticks: Sequence[Tick], last: Book | Moment | Mark | Backfilled | None, now: Instant) -> Batch:
        """The ticks and what ends them, as one batch; what was missed before the first of them is told with it."""
        first_sequence = self._previous.sequence + 1
        if isinstance(last, Backfilled):
            batch = wire.backfill_to_proto(self.instrument_id, self._place.epoch, first_sequence, last)
            # A last batch may only tell that all is there; it takes a sequence all the same.
            count = max(1, len(last.ticks))
            self._cut = replace(self._cut, tick_count=self._cut.tick_count + len(last.ticks))
        else:
            batch = wire.batch_to_proto(self.instrument_id, self._place.epoch, first_sequence, ticks, last)
            if ticks and self._missed is not None:
                batch.missed.CopyFrom(wire.missed_to_proto(self._missed))
                self._missed = None
            tells_time = isinstance(last, Moment) or (isinstance(last, Book) and last.tells_time)
            count = max(1, len(ticks) + isinstance(last, Book) + tells_time)
            time_ns = last.time_ns if last is not None else ticks[-1].time_ns
            self._cut = replace(
                self._cut,
                position=self._position_after(ticks, time_ns),
                trade_id=ticks[-1].trade_id if ticks else self._cut.trade_id,
                tick_count=self._cut.tick_count + len(ticks),
                market_time_ns=max(
                    self._cut.market_time_ns, *(tick.time_ns for tick in ticks[-1:]), time_ns if tells_time else 0
                ),
            )
        cursor = Cursor(self.instrument_id, self._place.epoch, self._previous.sequence + count)
        batch.previous_cursor, batch.cursor = str(self._previous), str(cursor)
        after, self._after = self._after, cursor
        self._previous = cursor
        self._cut = replace(self._cut, sequence=cursor.sequence)
        wire.update_quote(self._quote, batch, now.wall_ns)
        response = marketdata_pb2.StreamTicksResponse(batches=[batch])
        return Batch(cursor, first_sequence, response.SerializeToString(), self._quote.SerializeToString(), after)


class PlannedLine(Line):
    """A line whose every event is known before it is due."""

    def __init__(self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote) -> None:
        super().__init__(place, quote)
        self._events = events
        self._next = next(events, None)

    @property
    def has_ended(self) -> bool:
        return self._next is None

    def wait_ns(self, now: Instant) -> int:
        return TIME_MAX_NS if self._next is None else self._due_in_ns(self._next.time_ns, now)

    def _due(self, now: Instant) -> Event | None:
        return self._next if self.wait_ns(now) <= 0 else None

    def _take(self) -> None:
        self._next = next(self._events, None)

    @abstractmethod
    def _due_in_ns(self, time_ns: int, now: Instant) -> int:
        """How long until an event of a market time is to be told."""


class SimulatedLine(PlannedLine):
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

    def _position_after(self, ticks: Sequence[Tick], time_ns: int) -> int:
        return time_ns - self._place.offset_ns


class Pace:
    """Plays recordings as one market, at one speed; their lines are never more than APART_SECONDS of market time apart."""

    def __init__(self, speed: float, start: Instant) -> None:
        """The first event of all is due at the start, the others as much later as the speed says; 0: all at once."""
        self._speed, self._start = speed, start
        self._first_ns = TIME_MAX_NS
        self.lines: list[ReplayLine] = []

    def add(self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote) -> None:
        line = ReplayLine(events, place, quote, pace=self)
        self.lines.append(line)
        self._first_ns = min(self._first_ns, line.next_ns)

    def due_in_ns(self, time_ns: int, now: Instant) -> int:
        after_start_ns = round((time_ns - self._first_ns) / self._speed) if self._speed else 0
        return self._start.steady_ns + after_start_ns - now.steady_ns

    def horizon_ns(self, of: "ReplayLine") -> int:
        """Up to when a line may tell its events, whatever is due: what is slow to be stored holds up the others."""
        others = (line.next_ns for line in self.lines if line is not of)
        return min(others, default=TIME_MAX_NS - APART_SECONDS * SECOND_NS) + APART_SECONDS * SECOND_NS


class ReplayLine(PlannedLine):
    """Market time is that of the recording; the position is the number of its trades that were told."""

    def __init__(self, events: Iterator[Tick | Book], place: Place, quote: marketdata_pb2.Quote, *, pace: Pace) -> None:
        super().__init__(events, place, quote)
        self._pace = pace
        self._horizon_ns = 0

    @property
    def next_ns(self) -> int:
        """Of the next event; where there is none, later than all."""
        return TIME_MAX_NS - APART_SECONDS * SECOND_NS if self._next is None else self._next.time_ns

    def cut(self, now: Instant, sequence_max: int) -> list[Batch]:
        self._horizon_ns = self._pace.horizon_ns(self)
        return super().cut(now, sequence_max)

    def wait_ns(self, now: Instant) -> int:
        self._horizon_ns = self._pace.horizon_ns(self)
        return super().wait_ns(now)

    def _due(self, now: Instant) -> Event | None:
        return self._next if self._next and self._due_in_ns(self._next.time_ns, now) <= 0 else None

    def _due_in_ns(self, time_ns: int, now: Instant) -> int:
        due_in_ns = self._pace.due_in_ns(time_ns, now)
        # Held up until the others have come so far, which is looked at again at every turn.
        return due_in_ns if time_ns <= self._horizon_ns else max(due_in_ns, HELD_UP_NS)

    def _position_after(self, ticks: Sequence[Tick], time_ns: int) -> int:
        return self._cut.position + len(ticks)
