"""Speaks the feeds API: reads the request, calls one use case, writes the response."""

from collections.abc import Callable
from uuid import UUID

from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc

from libs.mesh import pages
from libs.mesh.requests import answer_once, key_of
from libs.store.database import Connection, Database
from services.feeds import wire
from services.feeds.open_sources import Sources
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed, stop_feed

PAGE_SIZE = 50


class FeedServicer(feeds_pb2_grpc.FeedServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        start_feed: StartFeed,
        order_backfill: OrderBackfill,
        sources: Sources,
        look: Callable[[], None],
    ) -> None:
        """`look` has this process's runner look at once for feeds to run or stop."""
        self._database, self._start_feed, self._order_backfill = database, start_feed, order_backfill
        self._sources, self._look = sources, look

    async def ListFeeds(self, request, context):
        size = pages.size_of(request.page_size, PAGE_SIZE)
        async with self._database.transaction() as rows:
            found = await FeedStore(rows).page(pages.uuid_after(request.page_token), size + 1)
        feeds, more = found[:size], found[size:]
        return feeds_pb2.ListFeedsResponse(
            feeds=map(wire.feed_to_proto, feeds),
            next_page_token=pages.token_after(str(feeds[-1].feed_id)) if more else "",
        )

    async def StartFeed(self, request, context):
        source = wire.source_from_proto(request)

        async def work(rows: Connection) -> feeds_pb2.StartFeedResponse:
            first_times_ns = await self._sources.look_at(source)
            feed = await self._start_feed(FeedStore(rows), source, first_times_ns)
            rows.after_commit(self._look)
            return feeds_pb2.StartFeedResponse(feed=wire.feed_to_proto(feed))

        return await answer_once(self._database, key_of(request), feeds_pb2.StartFeedResponse, work)

    async def StopFeed(self, request, context):
        async def work(rows: Connection) -> feeds_pb2.StopFeedResponse:
            feed = await stop_feed(FeedStore(rows), UUID(request.feed_id))
            rows.after_commit(self._look)
            return feeds_pb2.StopFeedResponse(feed=wire.feed_to_proto(feed))

        return await answer_once(self._database, key_of(request), feeds_pb2.StopFeedResponse, work)

    async def Backfill(self, request, context):
        async def work(rows: Connection) -> feeds_pb2.BackfillResponse:
            bounds = wire.bounds_from_proto(request)
            backfill = await self._order_backfill(FeedStore(rows), request.instrument_id, bounds, request.bar_size)
            return feeds_pb2.BackfillResponse(backfill=wire.backfill_order_to_proto(backfill))

        return await answer_once(self._database, key_of(request), feeds_pb2.BackfillResponse, work)

    async def ListBackfills(self, request, context):
        size = pages.size_of(request.page_size, PAGE_SIZE)
        async with self._database.transaction() as rows:
            after = pages.uuid_after(request.page_token)
            found = await FeedStore(rows).backfills(request.instrument_id, after, size + 1)
        backfills, more = found[:size], found[size:]
        return feeds_pb2.ListBackfillsResponse(
            backfills=map(wire.backfill_order_to_proto, backfills),
            next_page_token=pages.token_after(str(backfills[-1].backfill_id)) if more else "",
        )

    async def GetVenueBudget(self, request, context):
        budget = await self._sources.budget_of(request.venue)
        return feeds_pb2.GetVenueBudgetResponse(budget=wire.budget_to_proto(budget, await budget.state()))
