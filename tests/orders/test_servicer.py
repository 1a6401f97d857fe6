"""The orders API as clients meet it: what it accepts, why it refuses, what it repeats, and how its lists page."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import aio
from redis.asyncio import Redis
from tradeloom.orders.v1 import orders_pb2
from tradeloom.type.v1 import decimal_pb2

from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.stand import (
    BTC,
    Venue,
    accepted,
    canceled,
    filled,
    ids,
    limit,
    locked,
    market,
    quote,
    reason,
    refusal,
    select,
    trader,
    until,
    waits_for_a_lock,
)

AS_THE_CONTRACT_SAYS = re.compile(r"^-?[0-9]{1,18}([.][0-9]{1,18})?$")


def decimals_in(message: Message) -> Iterator[str]:
    if isinstance(message, decimal_pb2.Decimal):
        yield message.value
        return
    for field, value in message.ListFields():
        if field.message_type:
            for each in value if field.is_repeated else [value]:
                yield from decimals_in(each)


async def orders_count(installation: Installation) -> int:
    return (await select(installation, "SELECT count(*) FROM trading_orders"))[0][0]


async def test_an_order_is_answered_as_it_was_accepted_and_its_money_is_set_aside(orders: Served):
    anna = await trader(orders, USDT="1000", BTC="2")
    buy = await anna.place(quantity="0.5", limit_price="100.01")
    assert (buy.state, buy.revision) == (orders_pb2.ORDER_STATE_PENDING_NEW, 1)
    assert (buy.time_in_force, buy.fee_asset) == (orders_pb2.TIME_IN_FORCE_GTC, "USDT")
    assert await anna.order(buy.order_id) == buy
    await anna.place(buys=False, quantity="1.5")
    assert await anna.balances() == {
        "BTC": (Decimal(2), Decimal("1.5")),
        "USDT": (Decimal(1000), Decimal("50.055005")),  # 0.5 * 100.01, and a thousandth for the fee
    }


@pytest.mark.parametrize(
    ("changed", "code", "said", "metadata", "fields"),
    [
        (
            {"instrument_id": "SIM:NONE"},
            "NOT_FOUND",
            "INSTRUMENT_NOT_FOUND",
            {"instrument_id": "SIM:NONE"},
            [],
        ),
        (
            {"instrument_id": "SIM:HALTED"},
            "FAILED_PRECONDITION",
            "INSTRUMENT_HALTED",
            {"instrument_id": "SIM:HALTED"},
            [],
        ),
        (
            {"limit_price": "100.001"},
            "INVALID_ARGUMENT",
            "PRICE_OFF_TICK",
            {"price": "100.001", "tick_size": "0.01"},
            ["limit_price"],
        ),
        (
            {"quantity": "0.0005"},
            "INVALID_ARGUMENT",
            "QUANTITY_OFF_LOT",
            {"quantity": "0.0005", "lot_size": "0.001"},
            ["quantity"],
        ),
        (
            {"quantity": "0.0005", "limit_price": "100.001"},
            "INVALID_ARGUMENT",
            "QUANTITY_OFF_LOT",
            {"quantity": "0.0005", "lot_size": "0.001", "price": "100.001", "tick_size": "0.01"},
            ["quantity", "limit_price"],
        ),
        (
            {"quantity": "0.001"},
            "FAILED_PRECONDITION",
            "NOTIONAL_TOO_SMALL",
            {"notional": "0.1", "minimum_notional": "5"},
            [],
        ),
        (
            {"quantity": "10"},
            "FAILED_PRECONDITION",
            "INSUFFICIENT_BALANCE",
            {"asset": "USDT", "needed": "1001", "available": "1000"},
            [],
        ),
        (
            {"buys": False},
            "FAILED_PRECONDITION",
            "INSUFFICIENT_BALANCE",
            {"asset": "BTC", "needed": "0.1", "available": "0"},
            [],
        ),
        ({"quantity": "0", "limit_price": "-1"}, "INVALID_ARGUMENT", "INVALID_FIELDS", {}, ["quantity", "limit_price"]),
    ],
)
async def test_each_refusal_has_its_own_reason_and_changes_nothing(
    installation: Installation, changed: dict[str, Any], code: str, said: str, metadata: dict[str, str], fields: Any
):
    halted = replace(BTC, instrument_id="SIM:HALTED", trading=False)
    async with stand.served(installation, BTC, halted) as orders:
        anna = await trader(orders)
        before = await anna.portfolio()
        refused = await refusal(anna.place(**changed))
        assert (refused.code, refused.reason) == (code, said)
        assert (refused.metadata, refused.fields) == (metadata, fields)
        assert await anna.portfolio() == before
        assert await orders_count(installation) == 0


async def test_a_market_order_needs_a_price_of_the_last_seconds(orders: Served, redis: Redis):
    anna = await trader(orders, USDT="1000000")

    async def refused_for(age: str) -> bool:
        found = await refusal(anna.send(market(anna.account_id)))
        assert (found.code, found.reason) == ("FAILED_PRECONDITION", "NO_FRESH_PRICE")
        assert found.metadata["instrument_id"] == BTC.instrument_id
        return found.metadata["age_seconds"].startswith(age)

    assert await refused_for("never")
    await quote(redis, age_seconds=11, bid_price=99.0, ask_price=101.0)
    await until(lambda: refused_for("11."))
    # A clock was set back: this may be of any age.
    await quote(redis, age_seconds=-3600, bid_price=99.0, ask_price=101.0)
    await until(lambda: refused_for("-3"))
    # The limit order needs none.
    await anna.place()

    await quote(redis, bid_price=99.0, ask_price=101.0)
    request = market(anna.account_id)

    async def placed() -> Any:
        try:
            return (await anna.send(request)).order
        except aio.AioRpcError as error:
            assert "no quote" in (error.details() or "")  # until the next look at the quotes
            return None

    order = await until(placed)
    assert order.protection_price.value == "106.05"
    assert (order.time_in_force, order.HasField("limit_price")) == (orders_pb2.TIME_IN_FORCE_IOC, False)


async def test_an_account_has_so_many_open_orders_and_a_user_so_many_accounts(installation: Installation):
    async with stand.served(installation, open_orders_max="1", accounts_max="2") as orders:
        anna = await trader(orders)
        await anna.place()
        refused = await refusal(anna.place())
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OPEN_ORDERS")
        await trader(orders, user_id=anna.user_id)
        refused = await refusal(trader(orders, user_id=anna.user_id))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_ACCOUNTS")
        await trader(orders)


async def test_a_repeated_request_id_returns_the_first_order_and_another_body_is_refused(
    installation: Installation, orders: Served
):
    anna, bert = await trader(orders), await trader(orders)
    request = limit(anna.account_id, request_id="one")
    first = await anna.send(request)
    await anna.place()
    assert await anna.send(request) == first
    refused = await refusal(anna.place(request_id="one", quantity="0.2"))
    assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    # Another user's ids are another's.
    assert (await bert.place(request_id="one", quantity="0.2")).order_id != first.order.order_id
    assert await orders_count(installation) == 3


async def test_a_refused_request_leaves_its_id_free(orders: Served):
    anna = await trader(orders)
    assert await reason(anna.place(request_id="one", quantity="1000")) == "INSUFFICIENT_BALANCE"
    assert await reason(anna.place(request_id="one", quantity="1000")) == "INSUFFICIENT_BALANCE"
    placed = await anna.place(request_id="one")
    assert await anna.place(request_id="one") == placed


async def test_the_same_request_many_times_at_once_is_one_order(installation: Installation, orders: Served):
    anna = await trader(orders)
    request = limit(anna.account_id)
    answers = await asyncio.gather(*(anna.send(request) for _ in range(20)))
    assert answers == [answers[0]] * 20
    assert await orders_count(installation) == 1


async def test_the_same_request_at_two_replicas_is_one_order(installation: Installation):
    async with stand.served(installation) as first, stand.served(installation) as second:
        anna = await trader(first)
        there = await trader(second, user_id=anna.user_id)
        at_second = replace(there, account_id=anna.account_id)
        for _ in range(20):
            request = limit(anna.account_id, quantity="0.05")
            answers = await asyncio.gather(*(each.send(request) for each in (anna, at_second) * 3))
            assert answers == [answers[0]] * 6
        assert await orders_count(installation) == 20
        assert (await anna.portfolio()).revision == 20


async def test_the_same_cancel_and_the_same_account_at_once_have_one_effect(installation: Installation, orders: Served):
    anna = await trader(orders)
    order = await anna.place()
    canceled_orders = await asyncio.gather(*(anna.cancel(order.order_id, "one") for _ in range(5)))
    assert canceled_orders == [canceled_orders[0]] * 5
    assert canceled_orders[0].state == orders_pb2.ORDER_STATE_PENDING_CANCEL
    assert (await anna.portfolio()).revision == 2
    assert await reason(anna.cancel((await anna.place()).order_id, "one")) == "REQUEST_ID_REUSED"


async def test_an_order_that_is_done_cannot_be_canceled(orders: Served, venue: Venue):
    anna = await trader(orders)
    order = await anna.place()
    await venue.tell(anna, accepted(order), canceled(order))

    async def is_canceled() -> bool:
        return (await anna.order(order.order_id)).state == orders_pb2.ORDER_STATE_CANCELED

    await until(is_canceled)
    refused = await refusal(anna.cancel(order.order_id))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ORDER_DONE")
    assert refused.metadata == {"order_id": order.order_id, "state": "CANCELED"}


async def test_when_too_many_are_on_their_way_the_next_is_told_when_to_retry(installation: Installation):
    async with stand.served(installation, waiting_orders_max="1") as orders:
        anna = await trader(orders)
        async with locked(installation, anna.account_id) as other:
            first = asyncio.create_task(anna.place())
            await waits_for_a_lock(installation)
            refused = await refusal(anna.place())
            assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_BUSY")
            assert refused.retry_seconds == 0.5
            await other.execute("COMMIT")
            assert (await first).state == orders_pb2.ORDER_STATE_PENDING_NEW


async def test_a_locked_account_holds_up_neither_others_nor_the_reading_of_its_own(
    installation: Installation, orders: Served
):
    anna, bert = await trader(orders), await trader(orders)
    await anna.place()
    async with locked(installation, anna.account_id) as other:
        first = asyncio.create_task(anna.place())
        await waits_for_a_lock(installation)
        for _ in range(3):
            await bert.place()
        assert (await anna.portfolio()).revision == 1
        stream = anna.events()
        (acknowledged,) = await stand.steps(stream, 1)
        assert (acknowledged.cursor, len(acknowledged.acknowledgement.open_orders)) == ("1", 1)
        stream.cancel()
        assert not first.done()
        await other.execute("COMMIT")
        assert (await first).revision == 2


async def test_a_read_waits_for_no_revision_that_is_not_there(orders: Served):
    anna = await trader(orders)
    order = await anna.place()
    assert (await anna.portfolio(min_revision=order.revision)).revision == order.revision
    refused = await refusal(anna.portfolio(min_revision=order.revision + 1))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "REVISION_NOT_REACHED")


async def test_orders_page_newest_first_and_filter_without_gap_or_repeat(orders: Served, venue: Venue):
    anna = await trader(orders)
    placed = [await anna.place(quantity="0.05") for _ in range(5)]
    await venue.tell(anna, accepted(placed[1]), accepted(placed[3]))

    async def working() -> list[str]:
        return ids((await anna.list_orders(states=[orders_pb2.ORDER_STATE_NEW])).orders)

    async def both() -> bool:
        return len(await working()) == 2

    await until(both)
    newest_first = ids(placed)[::-1]
    assert await working() == [placed[3].order_id, placed[1].order_id]
    pages, token = [], ""
    while True:
        page = await anna.list_orders(page_size=2, page_token=token)
        pages.append(ids(page.orders))
        if not (token := page.next_page_token):
            break
        if len(pages) == 1:
            await anna.place(quantity="0.05")  # what comes later is not on a later page
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert ids((await anna.list_orders(instrument_id="SIM:OTHER")).orders) == []
    refused = await refusal(anna.list_orders(page_token="nonsense"))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_executions_positions_and_accounts_page_too(installation: Installation, venue: Venue):
    instruments = [replace(BTC, instrument_id=f"SIM:COIN{n}", base_asset=f"COIN{n}") for n in range(3)]
    async with stand.served(installation, *instruments) as orders:
        anna = await trader(orders)
        placed = [await anna.place(instrument_id=each.instrument_id) for each in instruments]
        for number, order in enumerate(placed):
            await venue.tell(anna, filled(order, "0.04", 100, f"{number}a"), filled(order, "0.06", 99, f"{number}b"))

        async def executions(**more: Any) -> list[str]:
            found, token = [], ""
            while True:
                page = await anna.list_executions(page_size=2, page_token=token, **more)
                assert len(page.executions) <= 2
                found += [each.venue_fill_id for each in page.executions]
                if not (token := page.next_page_token):
                    return found

        async def all_filled() -> bool:
            return len(await executions()) == 6

        await until(all_filled)
        assert await executions() == ["2b", "2a", "1b", "1a", "0b", "0a"]
        assert await executions(order_id=placed[1].order_id) == ["1b", "1a"]

        first = await anna.list_positions(page_size=2)
        second = await anna.list_positions(page_size=2, page_token=first.next_page_token)
        listed = [each.instrument_id for page in (first, second) for each in page.positions]
        assert (listed, second.next_page_token) == (["SIM:COIN0", "SIM:COIN1", "SIM:COIN2"], "")

        back = await anna.place(instrument_id="SIM:COIN1", buys=False)
        await venue.tell(anna, filled(back, "0.1", 110))

        async def is_flat() -> bool:
            return len((await anna.list_positions()).positions) == 2

        await until(is_flat)
        flat = (await anna.list_positions(include_flat=True)).positions[1]
        assert (flat.instrument_id, flat.quantity.value, flat.HasField("average_price")) == ("SIM:COIN1", "0", False)
        assert Decimal(flat.realized_profit.value) == Decimal("1.06")  # 11 less 0.04 * 100 less 0.06 * 99

        others = [await trader(orders, user_id=anna.user_id) for _ in range(2)]
        request = orders_pb2.ListAccountsRequest(page_size=2)
        first_page = await anna.portfolios.ListAccounts(request, metadata=anna.metadata)
        request.page_token = first_page.next_page_token
        second_page = await anna.portfolios.ListAccounts(request, metadata=anna.metadata)
        found = [each.account_id for page in (first_page, second_page) for each in page.accounts]
        assert found == [each.account_id for each in (anna, *others)]
        assert second_page.next_page_token == ""


async def test_every_decimal_that_leaves_is_one_that_the_contract_allows(
    installation: Installation, venue: Venue, redis: Redis
):
    finest = replace(
        BTC,
        tick_size=Decimal("0.00000000000001"),
        lot_size=Decimal("0.00000000000001"),
        minimum_notional=Decimal(0),
        taker_fee_rate=Decimal("0.000000000000000123"),
    )
    async with stand.served(installation, finest) as orders:
        anna = await trader(orders, USDT="123456789012345678.123456789012345678")
        assert (await anna.balances())["USDT"][0] == Decimal("123456789012345678.123456789012345678")
        bought = [
            await anna.place(quantity="0.1", limit_price="47000.01"),
            await anna.place(quantity="0.2", limit_price="47000.02000000000007"),
            await anna.place(quantity="0.00000000000007", limit_price="0.00000000000003"),
        ]
        stream = anna.events("0")
        told = [
            filled(each, each.quantity.value, each.limit_price.value, fee="0.000000000000000001") for each in bought
        ]
        await venue.tell(anna, *told)
        messages = await stand.steps(stream, 7)
        sold = await anna.place(buys=False, quantity="0.15", limit_price="47001.55")
        await venue.tell(anna, filled(sold, "0.15", "47001.55"))
        messages += await stand.steps(stream, 2)
        stream.cancel()
        await quote(redis, bid_price=1 / 3e5, ask_price=1 / 3e5)

        async def is_marked() -> Any:
            found = await anna.portfolio()
            return found if found.positions[0].HasField("mark_price") else None

        portfolio = await until(is_marked)
        (position,) = portfolio.positions
        # 20 digits, were they not rounded.
        assert Decimal(position.realized_profit.value).as_tuple().exponent >= -18
        answers = [
            portfolio,
            await anna.list_positions(),
            await anna.list_orders(),
            await anna.list_executions(),
            await anna.order(sold.order_id),
            sold,
            *bought,
            *messages,
        ]
        texts = [text for answer in answers for text in decimals_in(answer)]
        assert len(texts) > 100
        assert [text for text in texts if not AS_THE_CONTRACT_SAYS.match(text)] == []
        rows = await select(
            installation, "SELECT asset, sum(amount) FROM ledger_entries GROUP BY transaction_id, asset"
        )
        assert {row["sum"] for row in rows} == {0}
        kept = await select(
            installation, "SELECT asset, sum(amount) FROM ledger_entries WHERE book = 'account' GROUP BY asset"
        )
        totals = {asset: total for asset, (total, _) in (await anna.balances()).items()}
        assert {row["asset"]: row["sum"] for row in kept} == totals
