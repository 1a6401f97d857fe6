"""The feeds API on the real Postgres, as one signed-in operator."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tradeloom.feeds.v1 import feeds_pb2
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.errors import Invalid, RequestIdReused
from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.identity import Identity
from services.feeds.__main__ import keep_simulated_market
from services.feeds.domain import FeedNotFound, InstrumentTaken, RecordingTooOld, ReplayFileInvalid, TooManyFeeds
from services.feeds.open_sources import Sources
from services.feeds.servicer import FeedServicer
from services.feeds.settings import Settings
from services.feeds.use_cases import OrderBackfill, StartFeed
from tests.feeds.conftest import playing, until

RUNNING_MAX = 5
TRADES = "timestamp,id,side,price,amount\n1000,1,buy,2,3\n"


@contextmanager
def operator() -> Iterator[None]:
    now = datetime.now(UTC)
    caller = Identity(
        user_id=uuid7(),
        session_id=uuid7(),
        roles=frozenset({"operator"}),
        scopes=frozenset(),
        entitlements=frozenset(),
        generation=0,
        expire_time=now,
        second_factor_time=None,
    )
    token = identity._current.set(caller)
    try:
        yield
    finally:
        identity._current.reset(token)


@pytest.fixture
def servicer(rpc, redis, tmp_path: Path) -> FeedServicer:
    (tmp_path / "trades.csv").write_text(TRADES, encoding="utf-8")
    start_feed = StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX)
    return FeedServicer(
        database=rpc,
        start_feed=start_feed,
        order_backfill=OrderBackfill(uuid7, lambda: datetime.now(UTC)),
        sources=Sources(redis, tmp_path),
        look=lambda: None,
    )


def simulated(request_id: str = "first", seed: int = 3) -> feeds_pb2.StartFeedRequest:
    return feeds_pb2.StartFeedRequest(request_id=request_id, simulated=feeds_pb2.SimulatedSource(seed=seed))


def replay(request_id: str = "replay", instrument_id: str = "FILE:XRPETH", **changes) -> feeds_pb2.StartFeedRequest:
    request = feeds_pb2.StartFeedRequest(request_id=request_id)
    request.replay.file = changes.pop("file", "trades.csv")
    instrument = request.replay.instrument
    instrument.instrument_id, instrument.asset_class = instrument_id, marketdata_pb2.ASSET_CLASS_CRYPTO
    instrument.base_asset, instrument.quote_asset = "XRP", "ETH"
    numbers = {
        "tick_size": "0.00000001",
        "lot_size": "1",
        "minimum_notional": "0",
        "maker_fee_rate": "0",
        "taker_fee_rate": "0",
    }
    for name, value in (numbers | changes).items():
        getattr(instrument, name).value = value
    return request


async def test_a_feed_is_started_listed_and_stopped(servicer):
    with operator():
        started = (await servicer.StartFeed(simulated(), None)).feed
        assert started.state == feeds_pb2.FEED_STATE_RUNNING
        assert (started.simulated.seed, started.simulated.trades_per_second) == (3, 5)
        assert len(started.instrument_ids) == 6
        played = (await servicer.StartFeed(replay(), None)).feed
        assert (played.instrument_ids, played.replay.instrument.has_book) == (["FILE:XRPETH"], False)
        listed = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
        assert list(listed) == [started, played]
        stopping = feeds_pb2.StopFeedRequest(request_id="stop", feed_id=started.feed_id)
        stopped = (await servicer.StopFeed(stopping, None)).feed
        assert stopped.state == feeds_pb2.FEED_STATE_STOPPED
        again = feeds_pb2.StopFeedRequest(request_id="again", feed_id=started.feed_id)
        assert (await servicer.StopFeed(again, None)).feed == stopped


async def test_feeds_are_listed_a_page_at_a_time(servicer):
    with operator():
        started = [(await servicer.StartFeed(replay(f"r{n}", f"FILE:X{n}"), None)).feed.feed_id for n in range(5)]
        found, token = [], ""
        for _ in range(3):
            page = await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(page_size=2, page_token=token), None)
            found, token = [*found, *(feed.feed_id for feed in page.feeds)], page.next_page_token
    assert (found, token) == (started, "")


async def test_the_same_request_id_never_starts_a_second_feed(servicer):
    with operator():
        first = await servicer.StartFeed(simulated(), None)
        assert await servicer.StartFeed(simulated(), None) == first
        with pytest.raises(RequestIdReused):
            await servicer.StartFeed(simulated(seed=4), None)
        assert len((await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds) == 1


async def test_an_instrument_is_brought_by_one_running_feed(servicer):
    with operator():
        first = await servicer.StartFeed(simulated(), None)
        with pytest.raises(InstrumentTaken) as caught:
            await servicer.StartFeed(simulated("second"), None)
        assert caught.value.metadata == {"instrument_id": "SIM:AAPL"}
        # The refusal left nothing, not even its request_id.
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=first.feed.feed_id), None)
        await servicer.StartFeed(simulated("second"), None)


async def test_no_more_feeds_run_at_once_than_may_also_when_they_start_together(servicer):
    requests = [replay(f"r{n}", f"FILE:X{n}") for n in range(RUNNING_MAX + 2)]
    with operator():
        answers = await asyncio.gather(
            *(servicer.StartFeed(request, None) for request in requests), return_exceptions=True
        )
        started = [answer.feed.feed_id for answer in answers if not isinstance(answer, BaseException)]
        refused = [answer for answer in answers if isinstance(answer, TooManyFeeds)]
        assert (len(started), len(refused)) == (RUNNING_MAX, 2)
        assert refused[0].metadata == {"running_feeds_max": str(RUNNING_MAX)}
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=started[0]), None)
        await servicer.StartFeed(replay("after", "FILE:AFTER"), None)


async def test_a_file_that_begins_before_its_instruments_market_time_is_refused_with_both_times(
    servicer, worker, redis, tmp_path
):
    async def has_ended() -> bool:
        (feed,) = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
        return feed.state == feeds_pb2.FEED_STATE_FINISHED

    (tmp_path / "later.csv").write_text(TRADES.replace("1000,", "1001,"), encoding="utf-8")
    with operator():
        first = await servicer.StartFeed(replay(), None)
        async with playing(worker, redis, tmp_path):
            await until(has_ended)
        with pytest.raises(RecordingTooOld) as caught:
            await servicer.StartFeed(replay("again"), None)
        assert caught.value.metadata == {
            "instrument_id": "FILE:XRPETH",
            "first_trade_time": "1970-01-01T00:00:01+00:00",
            "market_time": "1970-01-01T00:00:01+00:00",
        }
        # What was asked for before is answered as before, the refusal left nothing, and what is later can be played.
        assert await servicer.StartFeed(replay(), None) == first
        await servicer.StartFeed(replay("again", "FILE:OTHER"), None)
        await servicer.StartFeed(replay("later", file="later.csv"), None)


async def test_an_unknown_feed_cannot_be_stopped(servicer):
    with operator(), pytest.raises(FeedNotFound):
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=str(uuid7())), None)


async def test_every_wrong_field_of_a_files_instrument_is_named(servicer):
    with operator(), pytest.raises(Invalid) as caught:
        await servicer.StartFeed(replay(instrument_id="SIM:X", tick_size="0", lot_size="-1", taker_fee_rate="1"), None)
    assert set(caught.value.violations) == {
        f"replay.instrument.{name}" for name in ("instrument_id", "tick_size", "lot_size", "taker_fee_rate")
    }


async def test_a_file_that_cannot_be_played_is_refused_at_once(servicer, tmp_path):
    (tmp_path / "wrong.csv").write_text(TRADES + "x,2,buy,1,1\n", encoding="utf-8")
    with operator():
        with pytest.raises(ReplayFileInvalid) as caught:
            await servicer.StartFeed(replay(file="wrong.csv"), None)
        assert list(caught.value.violations) == ["replay.file line 3"]
        with pytest.raises(ReplayFileInvalid):
            await servicer.StartFeed(replay(file="../wrong.csv"), None)


async def test_the_simulated_market_is_kept_running_once_however_many_replicas_start(rpc, servicer, tmp_path):
    settings = Settings(mesh_port=1, probe_port=1, tls_folder=tmp_path)
    assert settings.keeps_simulated_market
    for _ in range(2):
        await keep_simulated_market(rpc, StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX), settings)
    with operator():
        feeds = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
    assert [feed.simulated.seed for feed in feeds] == [settings.simulated_seed]
