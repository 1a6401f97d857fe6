"""Speaks the marketdata API: reads the request, asks for the data, writes the response."""

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import UUID

from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc, perpetuals_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import GetCandlesRequest, ListCorporateActionsRequest

from libs.bar_sizes import EPOCH
from libs.bus import feed
from libs.errors import Invalid
from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.mesh.wire import time_asked, time_from_proto
from libs.store.database import Connection, Database
from services.marketdata import (
    action_store,
    adjusting,
    books,
    candle_store,
    domain,
    funding_store,
    gap_store,
    import_store,
    search,
    sessions,
    store,
    tick_store,
    wire,
)
from services.marketdata.book_hub import BookHub
from services.marketdata.book_stream import BookStreams
from services.marketdata.candle_stream import CandleStreams, parse_cursor
from services.marketdata.deleting import Deleting
from services.marketdata.exporting import Exporting
from services.marketdata.putting import Putting
from services.marketdata.receiving import Receiving
from services.marketdata.tick_store import Moment
from services.marketdata.tick_stream import TickStreams, cursors_from

INSTRUMENTS_USUAL = 50
CANDLES_USUAL = 500
TICKS_USUAL = 500
SNAPSHOT_USUAL = 100
GAPS_USUAL = 50
FUNDING_RATES_USUAL = 100
ACTIONS_USUAL = 50
SESSIONS_USUAL = 100
FORWARDS, BACKWARDS = "after", "before"
MICROSECOND = timedelta(microseconds=1)
MICROSECONDS_MAX = timedelta(days=700_000) // MICROSECOND  # from the epoch, either way: within what datetime can say


def moment_of(page: Sequence[str | int]) -> Moment:
    """The place that a page of ticks ended at. Raises PageTokenInvalid."""
    match page:
        case [int(microseconds), int(place), int(sequence)]:
            return Moment(time_of(microseconds), place, sequence)
    raise pages.PageTokenInvalid({"page_token": "is not one that was given out"})


def place_of(page: Sequence[str | int]) -> tuple[bool, datetime]:
    """Whether a page of candles goes on forwards, and from where. Raises PageTokenInvalid."""
    match page[:2]:
        case [str(direction), int(microseconds)] if direction in (FORWARDS, BACKWARDS):
            return direction == FORWARDS, time_of(microseconds)
    raise pages.PageTokenInvalid({"page_token": "is not one that was given out"})


def known_of(page: Sequence[str | int]) -> tuple[int, datetime]:
    """How many corporate actions the first page of adjusted candles knew, and how far the market had come.

    Raises PageTokenInvalid.
    """
    match page[2:]:
        case [int(number), int(microseconds)]:
            return number, time_of(microseconds)
    raise pages.PageTokenInvalid({"page_token": "is not one that was given out"})


def time_of(microseconds: int) -> datetime:
    """Raises PageTokenInvalid for what no time can be."""
    if abs(microseconds) > MICROSECONDS_MAX:
        raise pages.PageTokenInvalid({"page_token": "is not one that was given out"})
    return EPOCH + microseconds * MICROSECOND


def microseconds_of(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def not_in_future(request: ListCorporateActionsRequest | GetCandlesRequest, now: datetime) -> datetime | None:
    """The request's as_of_time, if it has one. Raises Invalid."""
    as_of = time_from_proto(request.as_of_time) if request.HasField("as_of_time") else None
    if as_of is not None and as_of > now:
        raise Invalid({"as_of_time": "must not be in the future"})
    return as_of


class MarketDataServicer(marketdata_pb2_grpc.MarketDataServiceServicer):
    """database is of the rpc role, which reads only; worker of the worker role."""

    def __init__(
        self,
        *,
        database: Database,
        worker: Database,
        redis: Redis,
        tick_streams: TickStreams,
        book_hub: BookHub,
        book_streams: BookStreams,
        candle_streams: CandleStreams,
        receiving: Receiving,
        putting: Putting,
        deleting: Deleting,
        exporting: Exporting,
    ) -> None:
        self._database, self._worker, self._redis = database, worker, redis
        self._tick_streams, self._candle_streams = tick_streams, candle_streams
        self._receive, self._put, self._delete, self._exporting = receiving, putting, deleting, exporting
        self._book_hub, self._book_streams = book_hub, book_streams

    async def SearchInstruments(self, request, context):
        wanted, after = wire.filter_from_proto(request), search.place_after(request.page_token)
        size = pages.size_of(request.page_size, INSTRUMENTS_USUAL)
        async with self._database.transaction() as rows:
            found = await search.search(rows, request.query, wanted, after, size + 1)
        return marketdata_pb2.SearchInstrumentsResponse(
            instruments=[wire.instrument_to_proto(each.instrument) for each in found[:size]],
            next_page_token=search.token_after(found[size - 1].place) if len(found) > size else "",
        )

    async def GetInstrument(self, request, context):
        async with self._database.transaction() as rows:
            instrument = await store.get_instrument(rows, request.instrument_id)
        return marketdata_pb2.GetInstrumentResponse(instrument=wire.instrument_to_proto(instrument))

    async def PutInstrument(self, request, context):
        instrument = await sessions.zoned(wire.put_instrument_from_proto(request.instrument), datetime.now(UTC))

        async def work(rows: Connection) -> marketdata_pb2.PutInstrumentResponse:
            existing = await store.find_instrument(rows, instrument.instrument_id, for_update=True)
            stored = await store.put_instrument(rows, domain.put_by_hand(instrument, existing))
            return marketdata_pb2.PutInstrumentResponse(instrument=wire.instrument_to_proto(stored))

        return await answer_once(self._worker, key_of(request), marketdata_pb2.PutInstrumentResponse, work)

    async def ListSessions(self, request, context):
        name, now = request.calendar, datetime.now(UTC)
        if request.instrument_id:
            async with self._database.transaction() as rows:
                name = (await store.get_instrument(rows, request.instrument_id)).calendar
        if not name:
            return marketdata_pb2.ListSessionsResponse(
                time_zone=domain.UTC_ZONE, market_state=wire.market_state_to_proto(domain.ALWAYS_OPEN)
            )
        calendar = await sessions.asked_for(name, now, "calendar")
        start = time_from_proto(request.start_time) if request.HasField("start_time") else None
        end = time_from_proto(request.end_time) if request.HasField("end_time") else None
        start, end = sessions.asked_within(calendar, start, end, now)
        places = sessions.session_range(calendar, start, end, pages.number_after(request.page_token))
        size = pages.size_of(request.page_size, SESSIONS_USUAL)
        found = sessions.sessions_of(calendar, places[:size])
        return marketdata_pb2.ListSessionsResponse(
            sessions=map(wire.session_to_proto, found),
            next_page_token=pages.token_after(sessions.day_number(found[-1].date)) if len(places) > size else "",
            calendar=calendar.name,
            time_zone=calendar.time_zone,
            market_state=wire.market_state_to_proto(sessions.market_state(calendar, now)),
        )

    async def GetQuote(self, request, context):
        quote = (await feed.quotes(self._redis, [request.instrument_id])).get(request.instrument_id)
        if quote is None:
            async with self._database.transaction() as rows:
                await store.get_instrument(rows, request.instrument_id)
            raise domain.NoQuote("the instrument has had no tick yet", instrument_id=request.instrument_id)
        return marketdata_pb2.GetQuoteResponse(quote=marketdata_pb2.Quote.FromString(quote))

    async def GetOrderBook(self, request, context):
        async with self._database.transaction() as rows:
            instrument = await store.get_instrument(rows, request.instrument_id)
        state = await self._book_hub.current(request.instrument_id) if instrument.has_book else None
        if state is None:
            raise domain.NoBook("the instrument has no order book, or none yet", instrument_id=request.instrument_id)
        book, checksum = books.top(state, pages.size_of(request.depth, books.DEPTH_MAX))
        return marketdata_pb2.GetOrderBookResponse(book=book, cursor=str(state.cursor), checksum=checksum)

    async def GetCandles(self, request, context):
        size = domain.bar_size(request.bar_size)
        limit = pages.size_of(request.page_size, CANDLES_USUAL)
        # With a start, pages go on towards the end; without one, back in time from the end.
        start = time_from_proto(request.start_time) if request.HasField("start_time") else None
        before = time_from_proto(request.end_time) if request.HasField("end_time") else None
        adjustment, now = wire.ADJUSTMENTS_BACK[request.adjustment], datetime.now(UTC)
        is_adjusted, as_of = adjustment is not domain.Adjustment.RAW, not_in_future(request, now)
        known = None
        if page := pages.key_of(request.page_token, 4 if is_adjusted else 2):
            is_forwards, at = place_of(page)
            start, before = (at, before) if is_forwards else (None, at)
            known = known_of(page) if is_adjusted else None
        calendar = await adjusting.calendar_of(self._database, request.instrument_id, now) if is_adjusted else None
        async with self._database.transaction(snapshot=True) as rows:
            await store.get_instrument(rows, request.instrument_id)
            found = await candle_store.read_candles(
                rows, request.instrument_id, size, start=start, before=before, limit=limit, ended_by=as_of
            )
            candles = found.candles
            if is_adjusted:
                await adjusting.require_calendar(rows, request.instrument_id, calendar)
                number, reached = known = known or (
                    await action_store.newest_number(rows, request.instrument_id),
                    found.head.watermark,
                )
                reached = min(reached, as_of or reached)
                factors = await adjusting.factors_for(
                    rows, request.instrument_id, calendar, adjustment, (number, as_of), reached
                )
                candles = await adjusting.adjusted_candles(
                    rows, request.instrument_id, calendar, size, candles, factors
                )
        token = ""
        if found.more:
            direction = BACKWARDS if start is None else FORWARDS
            at = found.candles[0].open_time if start is None else found.candles[-1].open_time + MICROSECOND
            pinned = (known[0], microseconds_of(known[1])) if known else ()
            token = pages.token_after(direction, microseconds_of(at), *pinned)
        response = marketdata_pb2.GetCandlesResponse(next_page_token=token)
        wire.add_candles(response, candles)
        return response

    async def PutCorporateAction(self, request, context):
        now = datetime.now(UTC)
        action = wire.action_from_proto(request.action, now)
        replaced_id = UUID(request.replaced_action_id) if request.replaced_action_id else None
        calendar = await adjusting.calendar_of(self._worker, action.instrument_id, now)

        async def work(rows: Connection) -> marketdata_pb2.PutCorporateActionResponse:
            stored = await adjusting.put_action(rows, action, replaced_id, calendar, now)
            return marketdata_pb2.PutCorporateActionResponse(action=wire.action_to_proto(stored))

        return await answer_once(self._worker, key_of(request), marketdata_pb2.PutCorporateActionResponse, work)

    async def WithdrawCorporateAction(self, request, context):
        async def work(rows: Connection) -> marketdata_pb2.WithdrawCorporateActionResponse:
            stored = await adjusting.withdraw_action(rows, UUID(request.action_id), datetime.now(UTC))
            return marketdata_pb2.WithdrawCorporateActionResponse(action=wire.action_to_proto(stored))

        return await answer_once(self._worker, key_of(request), marketdata_pb2.WithdrawCorporateActionResponse, work)

    async def ListCorporateActions(self, request, context):
        size = pages.size_of(request.page_size, ACTIONS_USUAL)
        as_of = not_in_future(request, datetime.now(UTC))
        async with self._database.transaction() as rows:
            await store.get_instrument(rows, request.instrument_id)
            found = await action_store.list_actions(
                rows,
                request.instrument_id,
                (await action_store.newest_number(rows, request.instrument_id), as_of),
                include_withdrawn=request.include_withdrawn,
                after=pages.number_after(request.page_token),
                limit=size + 1,
            )
        return marketdata_pb2.ListCorporateActionsResponse(
            actions=map(wire.action_to_proto, found[:size]),
            next_page_token=pages.token_after(found[size - 1].put_number) if len(found) > size else "",
        )

    async def GetFundingRates(self, request, context):
        size = pages.size_of(request.page_size, FUNDING_RATES_USUAL)
        # As candles: with a start, pages go on towards the end; without one, back in time from it.
        start, before = time_asked(request, "start_time"), time_asked(request, "end_time")
        is_forwards = start is not None
        if page := pages.key_of(request.page_token, 2):
            is_forwards, at = place_of(page)
            start, before = (at, before) if is_forwards else (None, at)
        async with self._database.transaction() as rows:
            await store.get_instrument(rows, request.instrument_id)
            found = await funding_store.read_rates(
                rows, request.instrument_id, start=start, before=before, backwards=not is_forwards, limit=size + 1
            )
        kept = found[:size] if is_forwards else found[-size:]
        token = ""
        if len(found) > size:
            at = kept[-1].funding_time + MICROSECOND if is_forwards else kept[0].funding_time
            token = pages.token_after(FORWARDS if is_forwards else BACKWARDS, microseconds_of(at))
        return perpetuals_pb2.GetFundingRatesResponse(
            funding_rates=map(wire.funding_rate_to_proto, kept), next_page_token=token
        )

    async def ListGaps(self, request, context):
        size = pages.size_of(request.page_size, GAPS_USUAL)
        async with self._database.transaction() as rows:
            found = await gap_store.list_gaps(
                rows,
                instrument_id=request.instrument_id,
                include_filled=request.include_filled,
                after=pages.uuid_after(request.page_token),
                limit=size + 1,
            )
        return marketdata_pb2.ListGapsResponse(
            gaps=map(wire.gap_to_proto, found[:size]),
            next_page_token=pages.token_after(str(found[size - 1].gap_id)) if len(found) > size else "",
        )

    async def GetTicks(self, request, context):
        limit = pages.size_of(request.page_size, TICKS_USUAL)
        backwards = not request.HasField("start_time")
        after = None if backwards else Moment(time_from_proto(request.start_time))
        before = Moment(time_from_proto(request.end_time)) if request.HasField("end_time") else None
        if page := pages.key_of(request.page_token, 3):
            at = moment_of(page)
            after, before = (after, at) if backwards else (at, before)
        async with self._database.transaction() as rows:
            await store.get_instrument(rows, request.instrument_id)
            found = await tick_store.read_ticks(
                rows, request.instrument_id, after=after, before=before, backwards=backwards, limit=limit
            )
        end = found.first if backwards else found.last
        token = pages.token_after(microseconds_of(end.time), end.place, end.sequence) if found.more and end else ""
        ticks = await tick_store.ticks_of(found.found)
        return marketdata_pb2.GetTicksResponse(ticks=ticks, next_page_token=token)

    async def StreamTicks(self, request, context):  # pyright: ignore[reportIncompatibleMethodOverride] (the mesh sends bytes as they are)
        after = cursors_from(request.after_cursors, request.instrument_ids)
        async with self._database.transaction() as rows:
            await store.require_instruments(rows, request.instrument_ids)
        async for message in self._tick_streams.stream(request.instrument_ids, after, conflate=request.conflate):
            yield message

    async def StreamOrderBook(self, request, context):  # pyright: ignore[reportIncompatibleMethodOverride] (the mesh sends bytes as they are)
        after = cursors_from(request.after_cursors, request.instrument_ids)
        async with self._database.transaction() as rows:
            await store.require_instruments(rows, request.instrument_ids)
        async for message in self._book_streams.stream(request.instrument_ids, after):
            yield message

    async def StreamCandles(self, request, context):  # pyright: ignore[reportIncompatibleMethodOverride] (the mesh sends bytes as they are)
        size = domain.bar_size(request.bar_size)
        after = parse_cursor(request.after_cursor, request.instrument_id, size) if request.after_cursor else None
        async with self._database.transaction() as rows:
            await store.get_instrument(rows, request.instrument_id)
        async for message in self._candle_streams.stream(
            request.instrument_id,
            size,
            after=after,
            snapshot_size=pages.size_of(request.snapshot_size, SNAPSHOT_USUAL),
        ):
            yield message

    async def ImportCandles(self, request_iterator, context):
        ended = await self._receive(request_iterator)
        return marketdata_pb2.ImportCandlesResponse(candle_import=wire.import_to_proto(ended))

    async def GetImport(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            found = await import_store.find(rows, user_id, request.request_id)
        if found is None:
            raise domain.ImportNotFound(request.request_id)
        return marketdata_pb2.GetImportResponse(candle_import=wire.import_to_proto(found))

    async def CancelImport(self, request, context):
        key = key_of(request)

        async def work(rows: Connection) -> marketdata_pb2.CancelImportResponse:
            found = await import_store.cancel(rows, key.user_id, request.import_request_id)
            if found is None:
                raise domain.ImportNotFound(request.import_request_id)
            return marketdata_pb2.CancelImportResponse(candle_import=wire.import_to_proto(found))

        return await answer_once(self._worker, key, marketdata_pb2.CancelImportResponse, work)

    async def DeleteCandles(self, request, context):
        wanted = wire.deletion_from_proto(request, key_of(request))
        if request.validate_only:
            return marketdata_pb2.DeleteCandlesResponse(deleted_count=await self._delete.count(wanted))
        return wire.deletion_to_proto(await self._delete(wanted))

    async def PutCandles(self, request, context):
        return await self._put(request)

    async def ExportCandles(self, request, context):
        wanted = wire.export_from_proto(request)
        async with aclosing(self._exporting.stream(wanted, identity.current().user_id)) as messages:
            async for message in messages:
                yield message
