"""Puts bars of a venue's own record where imported ones stand, but for an operator's own: all of them or none."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import polars as pl
from tradeloom.marketdata.v1.marketdata_pb2 import Candle, PutCandlesRequest, PutCandlesResponse

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND, BarSize
from libs.errors import Invalid
from libs.mesh.wire import time_from_proto
from libs.store.database import Database
from services.marketdata import candle_store, parts, sessions, store
from services.marketdata.domain import CALENDAR_SIZES
from services.marketdata.values import COUNT_MAX, NUMBERS, is_above_zero, wrong_value

AT_ONCE_MAX = 1
"""Others wait: for it and what it derives there is one of the worker's connections."""
NAMED_BARS_MAX = 40
"""As many as fit into a status whatever is wrong with them."""


class Putting:
    """database is of the worker role."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def __call__(self, request: PutCandlesRequest) -> PutCandlesResponse:
        size = BAR_SIZES[request.bar_size]
        async with self._at_once:
            async with self._database.transaction() as rows:
                instrument = await store.get_instrument(rows, request.instrument_id)
                heads = await candle_store.read_heads(rows, [request.instrument_id])
                calendars = await candle_store.read_calendars(rows, [request.instrument_id])
                kept_from = parts.kept_from(await parts.read_dropped(rows))[size.name]
                now, calendar_name = datetime.now(UTC), calendars[request.instrument_id]
                ended_by = await candle_store.ended_by(rows, now)
            if calendar_name and size in CALENDAR_SIZES:
                raise Invalid({"bar_size": f"must be shorter: days of the instrument are those of {calendar_name}"})
            calendar = await sessions.known(calendar_name, now, "instrument.calendar") if calendar_name else None
            # Market time may lead these clocks, which may be late.
            ended_by = max(ended_by, heads[request.instrument_id].market_time)
            if violations := dict(
                wrong(request.candles, size, ended_by, above_zero=is_above_zero(instrument.asset_class))
            ):
                raise Invalid(violations)
            bars = bars_from(request.candles)
            async with self._database.transaction() as rows:
                await parts.ensure(rows, candle_store.parts_for(size, seconds_of(bars, kept_from)))
            async with self._database.transaction() as rows:
                # What is dropped by now, since it was looked at, has no place either.
                kept_from = parts.kept_from(await parts.read_dropped(rows, hold=True))[size.name]
                kept = bars.filter(pl.col("open_time") >= kept_from)
                done = await candle_store.import_bars(
                    rows, request.instrument_id, size, kept, calendar, by_operator=False
                )
        return PutCandlesResponse(
            inserted_count=done.inserted,
            changed_count=done.changed,
            unchanged_count=kept.height - done.inserted - done.changed,
            skipped_count=bars.height - kept.height,
        )


def wrong(
    candles: Sequence[Candle], size: BarSize, ended_by: datetime, *, above_zero: bool
) -> Iterator[tuple[str, str]]:
    """The first that is wrong with each bar, by its field; of NAMED_BARS_MAX bars at most."""
    last_seconds = (ended_by - size.length - EPOCH) // SECOND
    seen: dict[int, int] = {}
    named = 0
    values = wrong_values(candles, above_zero=above_zero)
    for number, (candle, value) in enumerate(zip(candles, values, strict=True)):
        before = seen.setdefault(candle.open_time.seconds, number)
        found = wrong_time(candle, size, last_seconds) or value
        if found is None and before != number:
            found = ("open_time", f"repeats that of candles[{before}]")
        if found is not None:
            name, why = found
            yield f"candles[{number}].{name}", why
            named += 1
            if named == NAMED_BARS_MAX:
                return


def wrong_time(candle: Candle, size: BarSize, last_seconds: int) -> tuple[str, str] | None:
    opened = candle.open_time
    if not candle.HasField("open_time"):
        return "open_time", "must be there"
    if opened.seconds < 0:
        return "open_time", "is before 1970"
    if opened.seconds > last_seconds:
        return "open_time", "is of a bar that has not ended yet"
    if opened.nanos or (opened.seconds - (size.origin - EPOCH) // SECOND) % size.seconds:
        return "open_time", f"is not where a bar of {size.name} opens"
    return None


def wrong_values(candles: Sequence[Candle], *, above_zero: bool) -> Iterator[tuple[str, str] | None]:
    """Of each bar the first of its values that is wrong, and why."""
    values = pl.DataFrame({name: [getattr(candle, name) for candle in candles] for name in NUMBERS})
    found = values.select(wrong_value(above_zero=above_zero).alias("wrong"))["wrong"]
    for candle, wrong in zip(candles, found, strict=True):
        if wrong is not None:
            name, _, why = wrong.partition(" ")
            yield name, why
        elif candle.trade_count < 0:
            yield "trade_count", "is negative"
        elif candle.trade_count > COUNT_MAX:
            yield "trade_count", f"is larger than any may be, {COUNT_MAX:.0e}"
        else:
            yield None


def bars_from(candles: Sequence[Candle]) -> pl.DataFrame:
    """By time."""
    columns = {
        "open_time": [time_from_proto(candle.open_time) for candle in candles],
        **{name: [getattr(candle, name) for candle in candles] for name in (*NUMBERS, "trade_count")},
    }
    return pl.DataFrame(columns, schema_overrides={"open_time": pl.Datetime("us", "UTC")}).sort("open_time")


def seconds_of(bars: pl.DataFrame, kept_from: datetime) -> candle_store.Integers:
    """When those open that are kept."""
    return bars.filter(pl.col("open_time") >= kept_from)["open_time"].dt.epoch("s").to_numpy()
