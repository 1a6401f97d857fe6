"""An account's events as they are streamed: every one, once, in order, wherever a reader resumes."""

import asyncio
from dataclasses import replace

import pytest
from tradeloom.orders.v1 import orders_pb2

from services.orders import store
from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.stand import Trader, Venue, accepted, filled, ids, refusal, sequences, steps, trader

Step = orders_pb2.StreamOrderEventsResponse


def kinds(messages: list[Step]) -> list[str]:
    return [
        orders_pb2.OrderEventKind.Name(message.event.kind).removeprefix("ORDER_EVENT_KIND_") for message in messages
    ]


async def test_a_stream_begins_with_the_open_orders_and_goes_on_with_what_happens(orders: Served, venue: Venue):
    anna = await trader(orders)
    first, second = await anna.place(), await anna.place()
    stream = anna.events()
    (acknowledged,) = await steps(stream, 1)
    assert acknowledged.cursor == "2"
    assert ids(acknowledged.acknowledgement.open_orders) == [second.order_id, first.order_id]
    assert acknowledged.acknowledgement.heartbeat_seconds == 10
    await venue.tell(anna, accepted(first), filled(first, "0.04", 100), filled(first, "0.06", 100))
    await anna.cancel(second.order_id)
    messages = await steps(stream, 4)
    assert [message.cursor for message in messages] == ["3", "4", "5", "6"]
    assert sequences(messages) == [3, 4, 5, 6]
    told = {(kind, message.event.order.order_id) for kind, message in zip(kinds(messages), messages, strict=True)}
    assert told == {
        ("WORKING", first.order_id),
        ("FILLED", first.order_id),
        ("CANCEL_REQUESTED", second.order_id),
    }
    fills = [message.event for message in messages if message.event.HasField("execution")]
    assert [each.execution.quantity.value for each in fills] == ["0.04", "0.06"]
    assert [each.order.state for each in fills] == [
        orders_pb2.ORDER_STATE_PARTIALLY_FILLED,
        orders_pb2.ORDER_STATE_FILLED,
    ]
    stream.cancel()


async def test_a_reader_that_resumes_again_and_again_has_every_event_once(
    orders: Served, venue: Venue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "EVENTS_PAGE", 3)  # so that what was missed takes several reads
    anna = await trader(orders, USDT="1000000")
    count = 40

    async def trade() -> None:
        for number in range(count):
            order = await anna.place()
            await venue.tell(anna, accepted(order), filled(order, "0.1", 100))
            if number % 5 == 0:
                await asyncio.sleep(0)

    trading = asyncio.create_task(trade())
    seen, cursor = [], "0"
    while len(seen) < 3 * count:
        stream = anna.events(cursor)
        (acknowledged,) = await steps(stream, 1)
        assert acknowledged.cursor == cursor
        assert list(acknowledged.acknowledgement.open_orders) == []
        # Reads some, and is cut off; of what had been sent beyond, nothing is lost.
        messages = await steps(stream, min(7, 3 * count - len(seen)))
        seen += sequences(messages)
        cursor = messages[-1].cursor
        stream.cancel()
    await trading
    assert seen == list(range(1, 3 * count + 1))
    # Read once more from the beginning, it is the same story.
    stream = anna.events("0")
    again = (await steps(stream, 3 * count + 1))[1:]
    stream.cancel()
    assert sequences(again) == seen
    assert sorted(kinds(again)) == ["ACCEPTED"] * count + ["FILLED"] * count + ["WORKING"] * count


async def test_many_readers_of_one_account_have_the_same_events(orders: Served):
    anna = await trader(orders)
    streams = [anna.events("0") for _ in range(10)]
    for stream in streams:
        await steps(stream, 1)
    await asyncio.gather(*(anna.place(quantity="0.05") for _ in range(5)))
    told = [await steps(stream, 5) for stream in streams]
    assert told == [told[0]] * 10
    for stream in streams:
        stream.cancel()


async def test_what_happens_at_another_replica_is_told_long_before_a_heartbeat(installation: Installation):
    async with stand.served(installation) as first, stand.served(installation) as second:
        anna = await trader(first)
        there = replace(await trader(second, user_id=anna.user_id), account_id=anna.account_id)
        stream = there.events()
        await steps(stream, 1)
        for number in range(1, 6):
            await anna.place(quantity="0.05")
            (message,) = await steps(stream, 1)
            assert message.event.account_sequence == number
        stream.cancel()


async def test_a_quiet_stream_shows_that_it_lives_and_where_it_is(installation: Installation):
    async with stand.served(installation, stream_heartbeat_seconds="0.1") as orders:
        anna = await trader(orders)
        await anna.place()
        stream = anna.events()
        _, *beats = await steps(stream, 3)
        assert [message.WhichOneof("step") for message in beats] == ["heartbeat"] * 2
        assert [message.cursor for message in beats] == ["1", "1"]
        assert beats[0].heartbeat.time.ToNanoseconds() < beats[1].heartbeat.time.ToNanoseconds()
        stream.cancel()


@pytest.mark.parametrize("cursor", ["2", "-1", "1.0", "abc", "٣", "99999999999999999999"])
async def test_a_cursor_that_the_account_never_gave_out_is_refused(orders: Served, cursor: str):
    anna = await trader(orders)
    await anna.place()
    refused = await refusal(anna.events(cursor).read())
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "CURSOR_INVALID")
    assert refused.fields == ["after_cursor"]


async def test_a_stream_of_one_account_tells_nothing_of_another(orders: Served):
    anna, bert = await trader(orders), await trader(orders)
    second: Trader = await trader(orders, user_id=anna.user_id)
    stream = anna.events("0")
    await steps(stream, 1)
    await bert.place()
    await second.place()
    own = await anna.place()
    (message,) = await steps(stream, 1)
    assert (message.event.account_sequence, message.event.order) == (1, own)
    stream.cancel()
