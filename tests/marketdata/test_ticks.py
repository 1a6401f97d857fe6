"""Stored ticks by their times: from a start on, or back from the newest."""

import asyncio
from datetime import timedelta

import pytest
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.mesh import pages as pages_of_others
from libs.mesh.wire import timestamp
from services.marketdata.tick_store import PIECE_TICKS, ticks_of
from tests.marketdata.stand import BTC, ETH, START, Feeder, announce, desk_of, tick_at
from tests.marketdata.test_instruments import refused

SECOND = timedelta(seconds=1)
# Out of order, and several at one moment.
SECONDS = [0, 1, 1, 1, 5, 3, 3, 8, 2, 9]


async def stored(installation, redis) -> None:
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    async with desk_of(installation, redis) as desk:
        ticks = [tick_at(START + at * SECOND, 10.0 + number, 1.0, str(number)) for number, at in enumerate(SECONDS)]
        await desk.store(feeder.batch(ticks[:6]), other.batch([tick_at(START + SECOND, 5.0, 1.0, "other")]))
        await desk.store(feeder.batch(ticks[6:]))


def in_order() -> list[str]:
    return [str(number) for _, number in sorted((at, number) for number, at in enumerate(SECONDS))]


async def pages(caller, **asked) -> list[list[str]]:
    found, token = [], ""
    while True:
        request = marketdata_pb2.GetTicksRequest(page_token=token, **asked)
        request.instrument_id = request.instrument_id or BTC
        answer = await caller.ask("GetTicks", request)
        found.append([tick.trade_id for tick in answer.ticks])
        token = answer.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("size", [1, 2, 3, 10, 0])
async def test_pages_hold_every_tick_once_in_the_order_of_time_whichever_way_they_go(installation, caller, redis, size):
    await stored(installation, redis)
    forwards = await pages(caller, start_time=timestamp(START), page_size=size)
    assert [trade_id for page in forwards for trade_id in page] == in_order()
    backwards = await pages(caller, page_size=size)
    assert [trade_id for page in reversed(backwards) for trade_id in page] == in_order()
    assert all(len(page) == size for page in forwards[:-1])


async def test_the_start_is_within_and_the_end_is_not(installation, caller, redis):
    await stored(installation, redis)
    for start in range(11):
        for end in range(start, 11):
            bounds = {"start_time": timestamp(START + start * SECOND), "end_time": timestamp(START + end * SECOND)}
            [page] = await pages(caller, **bounds)
            assert page == [each for each in in_order() if start <= SECONDS[int(each)] < end]
    [newest] = [page[-1:] for page in await pages(caller, end_time=timestamp(START + 5 * SECOND))]
    assert newest == ["6"]


async def test_what_is_not_there_is_refused(installation, caller, redis):
    await stored(installation, redis)

    async def ask(**asked) -> str:
        return await refused(caller.ask("GetTicks", marketdata_pb2.GetTicksRequest(**asked)))

    assert await ask(instrument_id="SIM:NOTHING") == "INSTRUMENT_NOT_FOUND"
    for token in ("nonsense", pages_of_others.token_after("after", 5), pages_of_others.token_after(2**62, 1)):
        assert await ask(instrument_id=BTC, page_token=token) == "PAGE_TOKEN_INVALID"


def stored_rows(number: int) -> list[dict[str, object]]:
    """As Postgres has them."""
    return [
        {
            "time": START + at * SECOND,
            "price": 10.0,
            "quantity": 1.0,
            "aggressor": 1,
            "trade_id": str(at),
        }
        for at in range(number)
    ]


async def test_whoever_reads_much_lets_others_have_turns_in_between():
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    rows = stored_rows(5_000)
    others = asyncio.create_task(take_turns())
    ticks = await ticks_of(rows)
    others.cancel()
    assert [tick.trade_id for tick in ticks] == [row["trade_id"] for row in rows]
    assert turns >= len(rows) // PIECE_TICKS
