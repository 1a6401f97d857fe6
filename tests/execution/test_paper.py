"""Paper orders from the fact that orders them to the facts that tell what became of them."""

import pytest

from tests.execution.stand import Stand, Trader, instrument

BOOK = (1000, [(99.0, 5.0)], [(100.0, 0.4), (101.0, 5.0)])


@pytest.fixture
async def desk(stand: Stand) -> Stand:
    await stand.announce(instrument())
    return stand


async def test_a_market_order_walks_the_first_book_at_or_after_its_market_time(desk: Stand):
    anna = Trader()
    async with desk.running():
        await desk.market(book=(999, [(98.0, 5.0)], [(99.0, 5.0)]))
        await desk.place(anna, quantity=1, protection_price=105)
        await desk.wait_for(anna, "accepted")
        await desk.market(book=BOOK)
        await desk.wait_for(anna, "accepted", "filled 0.4 at 100 as taker", "filled 0.6 at 101 as taker")
    fill = (await desk.told(anna))[1]
    assert (fill.fee.value, fill.fee_asset) == ("0.02", "USDT")
