"""Paper orders from the fact that orders them to the facts that tell what became of them."""

import pytest

from services.execution.venues import paper
from tests.execution.stand import BTC, XRP, Stand, Trader, at, decimal, instrument, limit, until

BOOK = (1000, [(99.0, 5.0)], [(100.0, 0.4), (101.0, 5.0)])


@pytest.fixture
async def desk(stand: Stand) -> Stand:
    """Where BTC is known, and XRP, which has no book."""
    await stand.announce(instrument())
    await stand.announce(instrument(XRP, has_book=False))
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
    assert (fill.fee.value, fill.fee_asset, fill.time) == ("0.02", "USDT", at(1000))


async def test_an_order_that_arrives_late_meets_the_book_of_its_market_time(desk: Stand):
    anna, bert = Trader(), Trader()
    await desk.market(book=(900, [], [(90.0, 5.0)]))
    await desk.market(book=BOOK)
    await desk.market(prints=[(1500, 101.0, 1.0)], book=(2000, [(119.0, 5.0)], [(120.0, 5.0)]))
    async with desk.running():
        await desk.place(anna, quantity="0.1")
        await desk.wait_for(anna, "accepted", "filled 0.1 at 100 as taker")
        # Also while the instrument is followed, far beyond that time.
        await desk.place(bert, **limit("BUY", 1, 50, market_time=at(2000)))
        await desk.market(book=(3000, [(129.0, 5.0)], [(130.0, 5.0)]))
        await desk.wait_for(bert, "accepted")
        await desk.place(anna, quantity="0.2")
        first = ["accepted", "filled 0.1 at 100 as taker"]
        await desk.wait_for(anna, *first, "accepted", "filled 0.2 at 100 as taker")


async def test_the_latency_moves_the_moment_at_which_an_order_is_met(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    await desk.market(book=(1050, [], [(110.0, 5.0)]))
    async with desk.running(paper_latency_milliseconds=50):
        await desk.place(anna)
        await desk.wait_for(anna, "accepted", "filled 1 at 110 as taker")


async def test_an_order_decided_without_a_quote_meets_only_what_comes_after_it(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 200, market_time=at(0)))
        await desk.wait_for(anna, "accepted")
        await desk.market(book=(1100, [], [(110.0, 5.0)]))
        await desk.wait_for(anna, "accepted", "filled 1 at 110 as taker")


async def test_a_limit_order_rests_behind_what_the_book_shows_and_fills_when_prints_go_through_it(desk: Stand):
    anna = Trader()
    async with desk.running():
        await desk.market(book=(1000, [(99.5, 20.0)], BOOK[2]))
        await desk.place(anna, **limit("BUY", 1, 99.5))
        await desk.wait_for(anna, "accepted")
        await desk.market(prints=[(1100, 100.0, 9.0), (1101, 99.5, 9.0)])
        await desk.market(prints=[(1200, 99.0, 0.3), (1201, 98.5, 0.2)])
        filled = ["accepted", "filled 0.3 at 99.5 as maker", "filled 0.2 at 99.5 as maker"]
        await desk.wait_for(anna, *filled)
        await desk.market(prints=[(1300, 99.0, 7.0)])
        await desk.wait_for(anna, *filled, "filled 0.5 at 99.5 as maker")
    fills = (await desk.told(anna))[1:]
    assert len({fill.venue_fill_id for fill in fills}) == 3
    assert [fill.fee.value for fill in fills] == ["0.00597", "0.00398", "0.00995"]


async def test_prints_that_are_made_again_after_redis_forgot_them_fill_nobody_twice(desk: Stand):
    anna = Trader()
    async with desk.running():
        await desk.market(book=BOOK)
        await desk.place(anna, **limit("BUY", 1, 99.5))
        await desk.wait_for(anna, "accepted")
        await desk.market(prints=[(1100, 99.0, 0.3)], book=(1150, *BOOK[1:]))
        await desk.market(prints=[(1200, 99.0, 0.2)])
        filled = ["accepted", "filled 0.3 at 99.5 as maker", "filled 0.2 at 99.5 as maker"]
        await desk.wait_for(anna, *filled)
        # The new feeder cuts its batches elsewhere, and the last of these goes on beyond what was forgotten.
        await desk.forget_market(3)
        await desk.market(prints=[(1100, 99.0, 0.3)], epoch=2)
        await desk.market(book=(1150, *BOOK[1:]), epoch=2)
        await desk.market(prints=[(1200, 99.0, 0.2), (1300, 99.0, 0.1)], epoch=2)
        await desk.wait_for(anna, *filled, "filled 0.1 at 99.5 as maker")
        await desk.market(prints=[(1400, 99.0, 7.0)], epoch=2)
        await desk.wait_for(anna, *filled, "filled 0.1 at 99.5 as maker", "filled 0.4 at 99.5 as maker")


async def test_the_rest_of_an_immediate_order_is_canceled_and_one_for_all_or_nothing_trades_whole_or_not(desk: Stand):
    anna, bert, cleo = Trader(), Trader(), Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 100, "IOC"))
        await desk.wait_for(anna, "accepted", "filled 0.4 at 100 as taker", "canceled: ioc")
        await desk.place(bert, **limit("BUY", 1, 100, "FOK"))
        await desk.wait_for(bert, "accepted", "canceled: fok")
        await desk.place(cleo, **limit("BUY", 1, 101, "FOK"))
        await desk.wait_for(cleo, "accepted", "filled 0.4 at 100 as taker", "filled 0.6 at 101 as taker")


async def test_a_market_order_never_trades_beyond_its_protection(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, quantity=1, protection_price="100.7")
        await desk.wait_for(anna, "accepted", "filled 0.4 at 100 as taker", "canceled: ioc")


async def test_without_a_book_a_market_order_takes_prints_until_it_is_full_or_they_are_worse_than_it_accepts(
    desk: Stand,
):
    anna, bert = Trader(), Trader()
    async with desk.running():
        await desk.market(prints=[(900, 99.0, 5.0)], instrument_id=XRP)
        await desk.place(anna, instrument_id=XRP, protection_price=105)
        await desk.place(bert, instrument_id=XRP, quantity=9, protection_price=105)
        await desk.wait_for(bert, "accepted")
        await desk.market(prints=[(1000, 100.0, 0.3), (1001, 105.0, 2.0), (1002, 105.5, 9.0)], instrument_id=XRP)
        await desk.wait_for(anna, "accepted", "filled 0.3 at 100 as taker", "filled 0.7 at 105 as taker")
        await desk.wait_for(bert, "accepted", "filled 1.3 at 105 as taker", "canceled: protection_price")


async def test_a_resting_order_is_canceled_for_its_user_and_a_done_one_is_not(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        order_id = await desk.place(anna, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted")
        await desk.ask_to_cancel(anna, order_id)
        await desk.wait_for(anna, "accepted", "canceled: user")
        await desk.ask_to_cancel(anna, order_id)
        await desk.wait_for(anna, "accepted", "canceled: user", "cancel rejected: the order is canceled")
    assert await desk.everything.fetchval("SELECT count(*) FROM venue_cancels") == 0


async def test_a_cancel_does_not_overtake_a_trade_that_came_before_it(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        order_id = await desk.place(anna, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted")
    # While nobody looks the market trades through the order, more than is matched at once, and then a cancel comes.
    await desk.markets([([(1100 + number, 100.0, 1.0)], None) for number in range(2 * paper.BATCHES_AT_ONCE_MAX)])
    await desk.market(prints=[(2000, 98.5, 5.0)])
    await desk.ask_to_cancel(anna, order_id)
    async with desk.running():
        rejected = "cancel rejected: the order is filled"
        await desk.wait_for(anna, "accepted", "filled 1 at 99 as maker", rejected)


async def test_an_order_that_may_not_rest_is_canceled_when_no_market_data_comes(desk: Stand):
    anna, bert = Trader(), Trader()
    async with desk.running(paper_patience_seconds=0.3):
        await desk.place(anna)
        await desk.place(bert, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted", "canceled: no_market_data")
        await desk.market(book=(2000, [], [(90.0, 1.0)]))
        await desk.wait_for(bert, "accepted", "filled 1 at 90 as taker")


async def test_orders_no_venue_can_take_are_rejected_with_the_reason(desk: Stand):
    live, lost, odd = Trader(), Trader(), Trader()
    await desk.market(book=BOOK)
    async with desk.running(paper_patience_seconds=0.3):
        await desk.place_all(live, [{}], mode="LIVE")
        await desk.wait_for(live, "rejected: there is no venue SIM")
        await desk.place(odd, quantity="0.001")
        await desk.wait_for(odd, "rejected: 0.001 is not a multiple of 0.01")
        await desk.place(lost, instrument_id="SIM:NOWHERE")
        await desk.wait_for(lost, "rejected: the instrument is not known here")


async def test_a_cancel_of_an_order_whose_instrument_nobody_knows_holds_nothing_up(desk: Stand):
    lost, anna = Trader(), Trader()
    await desk.market(book=BOOK)
    async with desk.running(paper_patience_seconds=0.3):
        order_id = await desk.place(lost, instrument_id="SIM:NOWHERE")
        await desk.ask_to_cancel(lost, order_id)
        await desk.wait_for(lost, "rejected: the instrument is not known here")
        # As a cancel would that was written while the order was being rejected.
        await desk.everything.execute(
            "INSERT INTO venue_cancels SELECT order_id, user_id, venue, partition FROM venue_orders"
        )
        rejected = "cancel rejected: the order is rejected"
        await desk.wait_for(lost, "rejected: the instrument is not known here", rejected)
        await desk.place(anna, quantity="0.1")
        await desk.wait_for(anna, "accepted", "filled 0.1 at 100 as taker")


async def test_an_order_waits_for_an_instrument_that_is_announced_late(stand: Stand):
    anna = Trader()
    await stand.market(book=BOOK)
    async with stand.running():
        await stand.place(anna, quantity="0.4")
        await stand.wait_for_count(1, "venue_orders", "state = 'intended'")
        await stand.announce(instrument())
        await stand.wait_for(anna, "accepted", "filled 0.4 at 100 as taker")


async def test_facts_of_one_account_have_no_gap_across_instruments(desk: Stand):
    anna = Trader()
    await desk.market(book=(1000, [(99.0, 5.0)], [(100.0, 500.0)]))
    await desk.market(prints=[(1000, 100.0, 500.0)], instrument_id=XRP)
    async with desk.running():
        for _ in range(5):
            await desk.place_all(anna, [{"instrument_id": name, "quantity": "0.1"} for name in (BTC, XRP)])
        await desk.wait_for_count(10, "venue_fills")
    assert len(await desk.told(anna)) == 20


async def test_ticks_that_are_gone_are_counted_and_the_order_goes_on(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted")
    await desk.market(prints=[(1100, 98.0, 9.0)])
    await desk.redis.delete(f"ticks:{BTC}")
    before = paper.GAPS._value.get()
    async with desk.running():
        await desk.market(prints=[(1200, 98.0, 9.0)])
        await desk.wait_for(anna, "accepted", "filled 1 at 99 as maker")
    assert paper.GAPS._value.get() == before + 1


async def test_the_place_in_the_ticks_is_committed_though_nothing_trades(desk: Stand):
    anna = Trader()
    await desk.market(book=BOOK)
    async with desk.running(paper_cursor_seconds=0.1):
        await desk.place(anna, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted")

        async def is_committed() -> bool:
            await desk.market(prints=[(1100, 100.0, 1.0)])
            found = await desk.everything.fetchval("SELECT count(*) FROM paper_cursors WHERE sequence > 3")
            return found == 1

        await until(is_committed)


async def test_changed_fees_and_grid_hold_for_orders_that_rest(desk: Stand):
    anna, bert = Trader(), Trader()
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 99))
        await desk.place(bert, **limit("BUY", "1.01", 99))
        await desk.wait_for(bert, "accepted")
        await desk.announce(instrument(lot_size=decimal("0.1"), maker_fee_rate=decimal("-0.001")))
        await desk.wait_for(bert, "accepted", "canceled: instrument_changed")
        await desk.market(prints=[(1100, 98.0, 9.0)])
        await desk.wait_for(anna, "accepted", "filled 1 at 99 as maker")
    assert (await desk.told(anna))[1].fee.value == "-0.099"


async def test_the_database_keeps_users_apart(desk: Stand):
    anna, bert = Trader(), Trader()
    await desk.market(book=(1000, [(99.0, 5.0)], [(100.0, 500.0)]))
    async with desk.running():
        for trader in (anna, bert):
            order_id = await desk.place(trader)
            await desk.wait_for(trader, "accepted", "filled 1 at 100 as taker")
            await desk.ask_to_cancel(trader, order_id)
    async with desk.worker.transaction(anna.user_id) as rows:
        assert await rows.fetchval("SELECT count(*) FROM venue_fills") == 1
        assert await rows.fetchval("SELECT count(*) FROM account_sequences") == 1
        changed = await rows.execute("UPDATE venue_orders SET reason = 'mine'")
        assert changed == "UPDATE 1"
