"""The tick feed: ready-made batches of ticks, one Redis stream per instrument.

An entry's id is `<epoch>-<sequence of its last tick>`: ids must grow, so Redis itself refuses a feeder that was
replaced. Its fields: `b`, a serialized marketdata StreamTicksResponse that holds only batches, which is what readers
are sent; `s`, the sequence of its first tick, by which a reader sees that something before it is gone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse

from libs.errors import CursorInvalid

# Kept for readers that resume, even when stored. Events are ticks and books.
RESUME_BATCHES = 5_000
RESUME_EVENTS = 100_000
STREAM_BYTES_MAX = 80 * 1024 * 1024
"""Of one instrument, stored or not, if what it appends with names no less: the memory bound, at which a gap is preferred."""
ENTRY_BYTES = 192  # of Redis's memory for an entry at most, beside its batch and a quarter of that for rounding
# Trimmed at once.
TRIM_BATCHES = 100
TRIM_EVENTS = 5_000
TRIM_PART = 16  # of the memory bound, one part
IDLE_SECONDS = 7 * 86_400  # a stream that nobody has appended to for so long is forgotten, as facts are
ENDED_SECONDS = 3_600  # what has ended and is stored is kept so long for readers that resume
READ_BATCHES = 100  # of one instrument, at once

# How ids are read and ordered, in scripts.
_IDS = """
local function parts(id)
  local epoch, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(sequence)
end
local function before(one, other)
  local epoch, sequence = parts(one)
  local other_epoch, other_sequence = parts(other)
  if epoch ~= other_epoch then return epoch < other_epoch end
  return sequence < other_sequence
end
"""

# What an entry takes, and what those take that were appended before it: the difference of two is what lies between them.
_BYTES = """
local function cost(batch) return math.ceil(#batch * 1.25) + %d end
local function bytes_before(entry) return tonumber(entry[2][6] or 0) end
local function edge(command, from, to) return redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1] end
""" % (ENTRY_BYTES)  # noqa: UP031 (the braces are Lua's)

# KEYS: ticks, quote, stored. ARGV: id, batch, first sequence, quote, and the constants that append gives; then the memory
# bound, and the id that must be the newest, if any must. A refused XADD ends the script before the quote is touched; 0 if
# something was lost before. Sequences count events, so their difference is how many there are after the oldest batch.
#
# The oldest go first, and what is stored is older than what is not: so at the memory bound it is the part for readers that
# resume which becomes shorter, before anything is lost. Only so much is trimmed at once, but never less than is appended.
_APPEND = (
    _IDS
    + _BYTES
    + """
local held = edge('XREVRANGE', '+', '-')
if ARGV[12] ~= '' and (not held or (held[1] ~= ARGV[12] and before(held[1], ARGV[12]))) then return 0 end
local own, earlier = cost(ARGV[2]), held and bytes_before(held) + cost(held[2][2]) or 0
local total = earlier + own
redis.call('XADD', KEYS[1], ARGV[1], 'b', ARGV[2], 's', ARGV[3], 't', earlier)
if ARGV[4] ~= '' then redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[10]) else redis.call('EXPIRE', KEYS[2], ARGV[10]) end
for key = 1, 3, 2 do redis.call('EXPIRE', KEYS[key], ARGV[10]) end

local batches, events, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[11])
local trim_batches, trim_events = tonumber(ARGV[7]), tonumber(ARGV[8])
local _, newest = parts(ARGV[1])
local function events_after(id)
  local _, sequence = parts(id)
  return newest - sequence
end

local length, first = redis.call('XLEN', KEYS[1]), edge('XRANGE', '-', '+')
local bytes = total - bytes_before(first)
local is_full = bytes > bytes_max
local stored = '0-0'
if not is_full then
  if length < batches + trim_batches and events_after(first[1]) < events + trim_events then return 1 end
  stored = redis.call('GET', KEYS[3]) or stored
  if not before(first[1], stored) then return 1 end
end
local left, trimmed = bytes_max - bytes_max / ARGV[9], 0
local function is_beyond()
  local held = total - bytes_before(first)
  if is_full then return held > left and (trimmed < trim_batches or held > bytes - own) end
  return trimmed < trim_batches and (length - trimmed > batches or events_after(first[1]) > events)
end
while trimmed + 1 < length and is_beyond() do
  first = edge('XRANGE', '(' .. first[1], '+')
  trimmed = trimmed + 1
end
local first_kept = first[1]
if not is_full and before(stored, first_kept) then first_kept = stored end
redis.call('XTRIM', KEYS[1], 'MINID', first_kept)
return 1
"""
)

_APPEND_NAME = sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()

# KEYS: ticks. ARGV: the memory bound, TRIM_BATCHES. 0 while it takes more, of which the oldest go.
_TRIM = (
    _BYTES
    + """
local newest, first = edge('XREVRANGE', '+', '-'), edge('XRANGE', '-', '+')
if not newest then return 1 end
local total, trimmed = bytes_before(newest) + cost(newest[2][2]), 0
while trimmed < tonumber(ARGV[2]) and first[1] ~= newest[1] and total - bytes_before(first) > tonumber(ARGV[1]) do
  first = edge('XRANGE', '(' .. first[1], '+')
  trimmed = trimmed + 1
end
if trimmed == 0 then return 1 end
redis.call('XTRIM', KEYS[1], 'MINID', first[1])
return 0
"""
)

# KEYS: ticks, quote, stored. ARGV: ENDED_SECONDS. 0 while something is not stored.
_END = (
    _IDS
    + """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest and before(redis.call('GET', KEYS[3]) or '0-0', newest[1]) then return 0 end
for key = 1, 3 do redis.call('EXPIRE', KEYS[key], ARGV[1]) end
return 1
"""
)

# KEYS: ticks. ARGV: epoch. Sets the newest id to <epoch>-0 without an entry; 0 if it is there or beyond already.
_SHUT_OUT = """
local id = ARGV[1] .. '-0'
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XADD', KEYS[1], id, 'b', '')
  redis.call('XDEL', KEYS[1], id)
  return 1
end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for place = 1, #info, 2 do
  if info[place] == 'last-generated-id' and tonumber(string.match(info[place + 1], '^%d+')) >= tonumber(ARGV[1]) then
    return 0
  end
end
redis.call('XSETID', KEYS[1], id)
return 1
"""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the ticks of one instrument: right after the tick of that sequence. Text: `SIM:BTCUSDT@7-1234`."""

    instrument_id: str
    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.instrument_id}@{self.stream_id}"

    @property
    def stream_id(self) -> str:
        return f"{self.epoch}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a feeder appends: response is a serialized StreamTicksResponse with this batch alone, cursor is after it.

    quote is the serialized marketdata Quote after it, empty where there is none yet. With `after`, it is appended only where
    the stream still holds what ends at that cursor.
    """

    cursor: Cursor
    first_sequence: int
    response: bytes
    quote: bytes
    after: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch as it is read. If first_sequence is not one above the reader's cursor, what lies between is gone."""

    cursor: Cursor
    first_sequence: int
    response: bytes


class Outdated(Exception):
    """Another feeder with a higher epoch, or this one, has appended beyond this batch already."""


class Lost(Exception):
    """Redis no longer holds what was appended before."""


def parse_cursor(text: str, field: str = "after_cursor") -> Cursor:
    """The cursor that str() made; CursorInvalid, naming field, for any other text."""
    if not (found := re.fullmatch(r"([A-Z0-9]{2,16}:[A-Z0-9._/-]{1,32})@(\d{1,15})-(\d{1,15})", text, re.ASCII)):
        raise CursorInvalid({field: "is not a cursor of this stream"})
    return Cursor(found[1], int(found[2]), int(found[3]))


async def append(redis: Redis, batches: Sequence[Batch], *, bytes_max: int = STREAM_BYTES_MAX) -> None:
    """Append batches, and set their quotes, in one round trip; no instrument's stream takes more than bytes_max after it.

    One that took more before, as when others were fewer, does not grow.
    Outdated if Redis refused one, Lost if it lacks what one comes after; others may be appended.
    """
    results = await _append(redis, batches, bytes_max)
    unknown = [batch for batch, result in zip(batches, results, strict=True) if isinstance(result, NoScriptError)]
    if unknown:
        # Redis was started since: the first of them brings the script.
        results = [result for result in results if not isinstance(result, NoScriptError)]
        results += await _append(redis, unknown, bytes_max, brings_script=True)
    for result in results:
        if isinstance(result, ResponseError) and "equal or smaller" in str(result):
            raise Outdated(str(result))
        if isinstance(result, Exception):
            raise result
    if not all(results):
        raise Lost("Redis no longer holds what was appended before")


async def _append(redis: Redis, batches: Sequence[Batch], bytes_max: int, *, brings_script: bool = False) -> list[Any]:
    """What came of each. The script goes by its name, since to read it takes Redis nearly as long as to run it."""
    pipeline = redis.pipeline(transaction=False)
    for number, batch in enumerate(batches):
        instrument_id = batch.cursor.instrument_id
        run, script = (pipeline.eval, _APPEND) if brings_script and number == 0 else (pipeline.evalsha, _APPEND_NAME)
        run(
            script,
            3,
            f"ticks:{instrument_id}",
            f"quote:{instrument_id}",
            f"ticks-stored:{instrument_id}",
            *(batch.cursor.stream_id, batch.response, batch.first_sequence, batch.quote),
            *(RESUME_BATCHES, RESUME_EVENTS, TRIM_BATCHES, TRIM_EVENTS, TRIM_PART, IDLE_SECONDS, bytes_max),
            batch.after.stream_id if batch.after else "",
        )
    return await pipeline.execute(raise_on_error=False)


async def trim(redis: Redis, instrument_ids: Sequence[str], bytes_max: int) -> None:
    """Have no stream of these instruments take more than bytes_max, whether anything is appended or not."""
    left = list(instrument_ids)
    while left:
        pipeline = redis.pipeline(transaction=False)
        for instrument_id in left:
            pipeline.eval(_TRIM, 1, f"ticks:{instrument_id}", bytes_max, TRIM_BATCHES)
        done: list[Any] = await pipeline.execute()
        left = [instrument_id for instrument_id, is_done in zip(left, done, strict=True) if not is_done]


async def count_held(redis: Redis, instrument_ids: Sequence[str]) -> int:
    """How many of these instruments have a stream."""
    return await redis.exists(*(f"ticks:{instrument_id}" for instrument_id in instrument_ids)) if instrument_ids else 0


async def shut_out(redis: Redis, epochs: Mapping[str, int]) -> None:
    """From now on, refuse every append to these instruments under an epoch below the one named.

    A new feeder does it before it reads how far its predecessor came. Outdated if the epoch was reached already.
    """
    pipeline = redis.pipeline(transaction=False)
    for instrument_id, epoch in epochs.items():
        pipeline.eval(_SHUT_OUT, 1, f"ticks:{instrument_id}", epoch)
    if not all(await pipeline.execute()):
        raise Outdated("another feeder has taken over already")


async def newest(redis: Redis, instrument_ids: Sequence[str]) -> dict[str, Cursor]:
    """The cursor after the last batch of each instrument; instruments without any are left out."""
    pipeline = redis.pipeline(transaction=False)
    for instrument_id in instrument_ids:
        pipeline.xrevrange(f"ticks:{instrument_id}", count=1)
    last: list[Any] = await pipeline.execute()
    return {
        instrument_id: _cursor_from(instrument_id, entries[0][0])
        for instrument_id, entries in zip(instrument_ids, last, strict=True)
        if entries
    }


async def read(
    redis: Redis, cursors: Mapping[str, Cursor], *, block_seconds: float, count: int = READ_BATCHES
) -> list[Entry]:
    """The batches after each instrument's cursor, `count` of each at most, waiting for block_seconds at most if there are none at all.

    A cursor inside a batch brings that batch whole; after() cuts it.
    """
    streams: Any = {f"ticks:{instrument_id}": cursor.stream_id for instrument_id, cursor in cursors.items()}
    found: Any = await redis.xread(streams, count=count, block=max(1, round(block_seconds * 1000)))
    return [
        Entry(_cursor_from(stream.decode().removeprefix("ticks:"), stream_id), int(fields[b"s"]), fields[b"b"])
        for stream, entries in found or ()
        for stream_id, fields in entries
    ]


async def read_back(redis: Redis, instrument_id: str, before: Cursor | None, *, count: int) -> list[Entry]:
    """The batches that end before the cursor (the newest of all, if None), the newest first, count at most."""
    newest = f"({before.stream_id}" if before else "+"
    found: Any = await redis.xrevrange(f"ticks:{instrument_id}", max=newest, count=count)
    return [
        Entry(_cursor_from(instrument_id, stream_id), int(fields[b"s"]), fields[b"b"]) for stream_id, fields in found
    ]


def after(entry: Entry, cursor: Cursor) -> Entry:
    """The entry without what is up to cursor, for a reader that resumes inside it; else the entry itself.

    All of it may be: when Redis has forgotten the newest batches, a feeder makes them again, under a higher epoch and
    the numbers they had. Then an entry without a batch is left, whose cursor has that epoch.
    """
    skipped = cursor.sequence + 1 - entry.first_sequence
    if skipped <= 0:
        return entry
    if entry.cursor.sequence <= cursor.sequence:
        return Entry(replace(cursor, epoch=entry.cursor.epoch), cursor.sequence + 1, b"")
    response = StreamTicksResponse.FromString(entry.response)
    for batch in response.batches:
        # The book comes after the last tick, and before the market time; the mark comes with it.
        if skipped > len(batch.ticks):
            batch.ClearField("book")
            batch.ClearField("mark")
        del batch.ticks[:skipped]
        batch.first_sequence += skipped
        batch.previous_cursor = str(cursor)
        batch.ClearField("missed")  # it was told with the first tick, which the reader has had
    return Entry(entry.cursor, entry.first_sequence + skipped, response.SerializeToString())


async def set_stored(redis: Redis, cursor: Cursor) -> None:
    """Say that everything up to cursor is in the database, so that it may be trimmed here."""
    await redis.set(f"ticks-stored:{cursor.instrument_id}", cursor.stream_id, ex=IDLE_SECONDS)


async def end(redis: Redis, instrument_id: str) -> bool:
    """Forget early what is all stored, since no more will come; False while it is not. The next append revokes it."""
    keys = [f"{kind}:{instrument_id}" for kind in ("ticks", "quote", "ticks-stored")]
    called: Any = redis.eval(_END, len(keys), *keys, ENDED_SECONDS)
    return bool(await called)


async def stored(redis: Redis, instrument_ids: Sequence[str]) -> dict[str, Cursor]:
    """What set_stored() said last; instruments of which nothing is stored are left out."""
    found: Any = await redis.mget([f"ticks-stored:{instrument_id}" for instrument_id in instrument_ids])
    return {
        instrument_id: _cursor_from(instrument_id, stream_id)
        for instrument_id, stream_id in zip(instrument_ids, found, strict=True)
        if stream_id
    }


async def quotes(redis: Redis, instrument_ids: Sequence[str]) -> dict[str, bytes]:
    """The serialized newest Quote of each instrument; those without one are left out."""
    if not instrument_ids:
        return {}
    found: list[Any] = await redis.mget([f"quote:{instrument_id}" for instrument_id in instrument_ids])
    return {instrument_id: quote for instrument_id, quote in zip(instrument_ids, found, strict=True) if quote}


def _cursor_from(instrument_id: str, stream_id: bytes) -> Cursor:
    epoch, sequence = stream_id.decode().split("-")
    return Cursor(instrument_id, int(epoch), int(sequence))
