"""Orders of all types, groups, changes and notes, through the service and its database."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.orders.v1 import events_pb2, orders_pb2

from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from services.orders import store
from services.orders.domain import State
from services.orders.store import Filter
from tests.mesh import Installation, Served
from tests.orders.stand import (
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    ids,
    limit,
    market,
    quote,
    reason,
    refusal,
    resting,
    select,
    trader,
    until,
)


def of_type(account_id: str, order_type: Any, **changed: Any) -> orders_pb2.PlaceOrderRequest:
    """An order without a limit, of another type."""
    stop_price = changed.pop("stop_price", None)
    request = limit(account_id, order_type=order_type, **changed)
    if "limit_price" not in changed:
        request.ClearField("limit_price")
    if stop_price is not None:
        request.stop_price.CopyFrom(decimal(stop_price))
    return request


async def quoted(orders: Served, redis: Redis, anna: Trader) -> None:
    """Returns once the service knows that the last price is 100."""
    await quote(redis, last_price=100.0, bid_price=99.99, ask_price=100.01)

    async def is_known() -> bool:
        asked = orders_pb2.PreviewOrderRequest(order=market(anna.account_id))
        return not (await anna.orders.PreviewOrder(asked, metadata=anna.metadata)).refusals

    await until(is_known)


async def settled(anna: Trader, order_id: str, state: Any) -> orders_pb2.Order:
    async def is_so() -> Any:
        found = await anna.order(order_id)
        return found if found.state == state else None

    return await until(is_so)


async def told(installation: Installation, anna: Trader) -> list[orders_pb2.OrderEvent]:
    """What other services are told of an account, in order."""
    found = await select(installation, "SELECT payload FROM outbox WHERE key = $1 ORDER BY sequence", anna.account_id)
    return [events_pb2.OrderChanged.FromString(row["payload"]).event for row in found]


async def test_every_kind_of_order_is_kept_as_it_was_accepted(orders: Served, redis: Redis):
    anna = await trader(orders, USDT="100000", BTC="10")
    await quoted(orders, redis, anna)
    types, lasting = orders_pb2.OrderType, orders_pb2.TimeInForce
    soon = timestamp(datetime.now(UTC) + timedelta(days=1))
    account_id = anna.account_id
    sells: dict[str, Any] = {"buys": False, "quantity": "0.5"}
    asked = [
        limit(account_id, time_in_force=lasting.TIME_IN_FORCE_DAY, post_only=True),
        limit(account_id, time_in_force=lasting.TIME_IN_FORCE_GTD, expire_time=soon),
        of_type(account_id, types.ORDER_TYPE_STOP, stop_price="110"),
        of_type(account_id, types.ORDER_TYPE_STOP_LIMIT, stop_price="110", limit_price="111"),
        of_type(account_id, types.ORDER_TYPE_TAKE_PROFIT, stop_price="90"),
        of_type(account_id, types.ORDER_TYPE_TAKE_PROFIT, stop_price="120", limit_price="119", **sells),
        of_type(account_id, types.ORDER_TYPE_TRAILING_STOP, trail=orders_pb2.Trail(amount=decimal("2.5"))),
        of_type(account_id, types.ORDER_TYPE_TRAILING_STOP, trail=orders_pb2.Trail(percent=decimal("1.5")), **sells),
    ]
    answered = [(await anna.send(request)).order for request in asked]
    for request, order in zip(asked, answered, strict=True):
        assert await anna.order(order.order_id) == order
        for field in ("order_type", "limit_price", "trail", "post_only"):
            assert getattr(order, field) == getattr(request, field), field
        assert order.client_order_id == order.order_id
    assert [each.stop_price.value for each in answered] == ["", "", "110", "110", "90", "120", "102.5", "98.5"]
    assert answered[0].HasField("expire_time")
    assert answered[1].expire_time == soon
    assert ids((await anna.list_orders()).orders) == ids(reversed(answered))


async def test_a_stop_tells_when_it_was_reached_and_what_expires_gives_back_what_it_had(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)
    stop = (await anna.send(of_type(anna.account_id, orders_pb2.ORDER_TYPE_STOP, stop_price="110"))).order
    at = timestamp(datetime(2026, 5, 4, tzinfo=UTC))
    await venue.tell(
        anna,
        accepted(stop),
        execution_events.VenueTriggered(order_id=stop.order_id, stop_price=decimal("110"), time=at),
    )
    await settled(anna, stop.order_id, orders_pb2.ORDER_STATE_NEW)

    async def is_triggered() -> bool:
        return (await anna.order(stop.order_id)).trigger_time == at

    await until(is_triggered)
    await venue.tell(anna, execution_events.VenueUnknown(order_id=stop.order_id, reason="lost"))
    await settled(anna, stop.order_id, orders_pb2.ORDER_STATE_UNKNOWN)
    assert (await anna.balances())["USDT"][1] > 0
    await venue.tell(anna, execution_events.VenueExpired(order_id=stop.order_id))
    await settled(anna, stop.order_id, orders_pb2.ORDER_STATE_EXPIRED)
    assert (await anna.balances())["USDT"] == (Decimal(1000), Decimal(0))
    kinds = [event.kind for event in await told(installation, anna)]
    name = orders_pb2.OrderEventKind.Name
    assert [name(kind).removeprefix("ORDER_EVENT_KIND_") for kind in kinds] == [
        "ACCEPTED",
        "WORKING",
        "TRIGGERED",
        "UNKNOWN",
        "EXPIRED",
    ]


async def test_many_orders_are_placed_in_one_transaction_and_each_is_answered(
    installation: Installation, orders: Served
):
    anna = await trader(orders)
    asked = [limit(anna.account_id, quantity="0.05") for _ in range(40)]
    asked[3] = limit(anna.account_id, quantity="0.0005")
    asked[7] = limit(str(uuid7()))
    request = orders_pb2.PlaceOrdersRequest(orders=asked)
    outcomes = (await anna.orders.PlaceOrders(request, metadata=anna.metadata)).outcomes
    refused = {number: each.refusal for number, each in enumerate(outcomes) if each.HasField("refusal")}
    info = error_details_pb2.ErrorInfo()
    assert {number: status.details[0].Unpack(info) and info.reason for number, status in refused.items()} == {
        3: "QUANTITY_OFF_LOT",
        7: "ACCOUNT_NOT_FOUND",
    }
    placed = [each.order for each in outcomes if each.HasField("order")]
    assert [each.revision for each in placed] == list(range(1, 39))
    rows = await select(installation, "SELECT DISTINCT xmin::text FROM trading_orders")
    assert len(rows) == 1
    # Asked again, or one by one, they are the same orders; a refused one may be another now.
    again = (await anna.orders.PlaceOrders(request, metadata=anna.metadata)).outcomes
    assert [each.order for each in again if each.HasField("order")] == placed
    assert (await anna.send(asked[0])).order == placed[0]
    other = limit(anna.account_id, request_id=asked[0].request_id, quantity="0.06")
    reused = (
        await anna.orders.PlaceOrders(orders_pb2.PlaceOrdersRequest(orders=[other]), metadata=anna.metadata)
    ).outcomes
    assert reused[0].refusal.details[0].Unpack(info) and info.reason == "REQUEST_ID_REUSED"
    assert len(await select(installation, "SELECT 1 FROM trading_orders")) == 38


async def test_a_preview_names_all_that_speaks_against_an_order_and_changes_nothing(
    installation: Installation, orders: Served, redis: Redis
):
    anna = await trader(orders)
    await quoted(orders, redis, anna)

    async def preview(request: orders_pb2.PlaceOrderRequest) -> tuple[orders_pb2.PreviewOrderResponse, list[str]]:
        asked = orders_pb2.PreviewOrderRequest(order=request)
        answer = await anna.orders.PreviewOrder(asked, metadata=anna.metadata)
        info = error_details_pb2.ErrorInfo()
        return answer, [info.reason for status in answer.refusals if status.details[0].Unpack(info)]

    good = limit(anna.account_id, quantity="2", limit_price="90")
    answer, reasons = await preview(good)
    assert (reasons, answer.order.order_id) == ([], "")
    assert (answer.reserved.amount.value, answer.notional.amount.value, answer.fee.amount.value) == (
        "180.18",
        "180",
        "0.18",
    )
    assert [(each.limit, each.value.value, each.bound.value) for each in answer.margins] == [
        ("open_orders_max", "1", "1000"),
        ("price_collar_percent", "0", "10"),
    ]
    bad = of_type(anna.account_id, orders_pb2.ORDER_TYPE_STOP, stop_price="99", quantity="50", reduce_only=True)
    answer, reasons = await preview(bad)
    assert reasons == ["STOP_WOULD_TRIGGER", "NOT_REDUCING", "INSUFFICIENT_BALANCE"]
    assert answer.order.stop_price.value == "99"
    assert await reason(anna.send(bad)) == reasons[0]
    answer, reasons = await preview(limit(anna.account_id, quantity="0.0005", limit_price="0.001"))
    assert reasons == ["QUANTITY_OFF_LOT", "NOTIONAL_TOO_SMALL"]
    assert not answer.HasField("order")
    assert (await preview(limit(anna.account_id, instrument_id="SIM:NONE")))[1] == ["INSTRUMENT_NOT_FOUND"]
    assert (
        await reason(
            anna.orders.PreviewOrder(orders_pb2.PreviewOrderRequest(order=limit(str(uuid7()))), metadata=anna.metadata)
        )
        == "ACCOUNT_NOT_FOUND"
    )
    assert await select(installation, "SELECT 1 FROM trading_orders") == []
    assert (await anna.send(good)).order.revision == 1


def bracket(account_id: str, **entry: Any) -> orders_pb2.PlaceOrderGroupRequest:
    """To buy 1 at 100, and then leave it at 120 or below 90."""
    first = limit(account_id, request_id="group", quantity="1", **entry)
    take = limit(account_id, request_id="group", quantity="1", buys=False, limit_price="120")
    stop = of_type(
        account_id, orders_pb2.ORDER_TYPE_STOP, request_id="group", quantity="1", buys=False, stop_price="90"
    )
    return orders_pb2.PlaceOrderGroupRequest(
        request_id="group", kind=orders_pb2.GROUP_KIND_BRACKET, orders=[first, take, stop]
    )


async def test_a_bracket_is_placed_released_and_left_in_the_transactions_of_its_trades(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    request = bracket(anna.account_id)
    group = await anna.orders.PlaceOrderGroup(request, metadata=anna.metadata)
    assert await anna.orders.PlaceOrderGroup(request, metadata=anna.metadata) == group
    entry, take, stop = group.orders
    assert [each.state for each in group.orders] == [
        orders_pb2.ORDER_STATE_PENDING_NEW,
        *[orders_pb2.ORDER_STATE_HELD] * 2,
    ]
    assert {each.group_id for each in group.orders} == {group.group_id}
    await venue.tell(anna, accepted(entry), filled(entry, "0.4", 100), accepted(take), accepted(stop))
    found = await settled(anna, stop.order_id, orders_pb2.ORDER_STATE_NEW)
    assert (found.released_quantity.value, found.quantity.value) == ("0.4", "1")
    await venue.tell(anna, filled(take, "0.1", 120))
    found = await settled(anna, take.order_id, orders_pb2.ORDER_STATE_PARTIALLY_FILLED)
    assert (await anna.order(stop.order_id)).quantity.value == "0.9"
    await anna.cancel(entry.order_id)
    await venue.tell(anna, canceled(entry))
    await settled(anna, entry.order_id, orders_pb2.ORDER_STATE_CANCELED)
    assert [(await anna.order(each.order_id)).quantity.value for each in (take, stop)] == ["0.4", "0.3"]
    assert (await anna.balances())["BTC"] == (Decimal("0.3"), Decimal("0.3"))
    await venue.tell(anna, filled(stop, "0.3", 89), canceled(take, "group"))
    found = await settled(anna, take.order_id, orders_pb2.ORDER_STATE_CANCELED)
    assert found.reason == "group"
    assert (await anna.order(stop.order_id)).state == orders_pb2.ORDER_STATE_FILLED
    events = await told(installation, anna)
    assert [event.account_sequence for event in events] == list(range(1, len(events) + 1))
    released = [event for event in events if event.kind == orders_pb2.ORDER_EVENT_KIND_RELEASED]
    fill = next(event for event in events if event.kind == orders_pb2.ORDER_EVENT_KIND_FILLED)
    assert {event.order.market_time.ToNanoseconds() for event in released} == {fill.execution.time.ToNanoseconds()}
    assert (await anna.list_orders(group_id=group.group_id)).orders[-1].order_id == entry.order_id


async def test_a_group_that_is_refused_places_nothing_and_leaves_its_request_id(
    installation: Installation, orders: Served
):
    anna = await trader(orders)
    wrong = bracket(anna.account_id)
    wrong.orders[2].stop_price.value = "90.001"
    refused = await refusal(anna.orders.PlaceOrderGroup(wrong, metadata=anna.metadata))
    assert (refused.reason, refused.fields) == ("STOP_OFF_TICK", ["orders[2].stop_price"])
    assert await select(installation, "SELECT 1 FROM trading_orders") == []
    assert await anna.orders.PlaceOrderGroup(bracket(anna.account_id), metadata=anna.metadata)


async def test_a_change_is_asked_for_answered_and_known_by_its_own_id(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    order = await resting(installation, venue, anna)

    async def replace(price: str) -> orders_pb2.Order:
        request = orders_pb2.ReplaceOrderRequest(
            request_id=price,
            order_id=order.order_id,
            replacement=orders_pb2.Replacement(quantity=decimal("0.2"), limit_price=decimal(price)),
        )
        answers = [(await anna.orders.ReplaceOrder(request, metadata=anna.metadata)).order for _ in range(2)]
        assert answers[0] == answers[1]
        return answers[0]

    asked = await replace("101")
    assert (asked.state, asked.limit_price.value) == (orders_pb2.ORDER_STATE_PENDING_REPLACE, "100")
    assert (asked.replacement.limit_price.value, asked.replacement.quantity.value) == ("101", "0.2")
    assert await anna.order(order.order_id) == asked
    assert (await anna.balances())["USDT"][1] == Decimal("20.2202")
    name = asked.replacement.client_order_id
    await venue.tell(
        anna,
        execution_events.VenueReplaced(order_id=order.order_id, client_order_id=str(uuid7())),  # of no change
        execution_events.VenueReplaced(order_id=order.order_id, client_order_id=name),
    )
    found = await settled(anna, order.order_id, orders_pb2.ORDER_STATE_NEW)
    assert (found.limit_price.value, found.quantity.value, found.client_order_id) == ("101", "0.2", name)
    assert not found.HasField("replacement")
    asked = await replace("102")
    no = execution_events.VenueReplaceRejected(
        order_id=order.order_id, client_order_id=asked.replacement.client_order_id, reason="too late"
    )
    await venue.tell(anna, no)
    found = await settled(anna, order.order_id, orders_pb2.ORDER_STATE_NEW)
    assert (found.limit_price.value, found.reason, found.client_order_id) == ("101", "too late", name)
    assert (await anna.balances())["USDT"][1] == Decimal("20.2202")


async def test_all_open_orders_are_canceled_or_those_that_are_named(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders, USDT="1000", BTC="5")
    buy, sell = await anna.place(), await anna.place(buys=False)
    done = await anna.place()
    await venue.tell(anna, canceled(done))
    await settled(anna, done.order_id, orders_pb2.ORDER_STATE_CANCELED)
    group = await anna.orders.PlaceOrderGroup(bracket(anna.account_id), metadata=anna.metadata)

    async def cancel_all(**named: Any) -> list[str]:
        request = orders_pb2.CancelAllOrdersRequest(request_id=str(uuid7()), account_id=anna.account_id, **named)
        answers = [await anna.orders.CancelAllOrders(request, metadata=anna.metadata) for _ in range(2)]
        assert answers[0] == answers[1]
        return list(answers[0].order_ids)

    assert await cancel_all(instrument_id="SIM:NONE") == await cancel_all(deployment_id=str(uuid7())) == []
    assert await cancel_all(side=orders_pb2.ORDER_SIDE_BUY) == [buy.order_id, group.orders[0].order_id]
    assert await cancel_all() == ids([buy, sell, *group.orders])
    states = {each.order_id: each.state for each in (await anna.list_orders()).orders}
    assert [states[each] for each in ids([buy, sell, *group.orders])] == [
        *[orders_pb2.ORDER_STATE_PENDING_CANCEL] * 3,
        *[orders_pb2.ORDER_STATE_CANCELED] * 2,
    ]


async def test_what_only_reduces_is_judged_by_the_position_and_canceled_once_it_is_gone(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders, USDT="1000", BTC="1")
    assert await reason(anna.place(buys=False, reduce_only=True)) == "NOT_REDUCING"
    bought = await anna.place(quantity="0.5")
    await venue.tell(anna, filled(bought, "0.5", 100))
    await settled(anna, bought.order_id, orders_pb2.ORDER_STATE_FILLED)
    kept = await anna.place(buys=False, quantity="0.2", limit_price="120", reduce_only=True)
    assert (await refusal(anna.place(buys=False, quantity="0.4", reduce_only=True))).metadata == {
        "quantity": "0.4",
        "reducible": "0.3",
    }
    sold = await anna.place(buys=False, quantity="0.4")
    await venue.tell(anna, filled(sold, "0.3", 100))
    await settled(anna, sold.order_id, orders_pb2.ORDER_STATE_PARTIALLY_FILLED)
    assert (await anna.order(kept.order_id)).state == orders_pb2.ORDER_STATE_PENDING_NEW
    await venue.tell(anna, filled(sold, "0.1", 100))
    await settled(anna, kept.order_id, orders_pb2.ORDER_STATE_PENDING_CANCEL)
    fill, cancel = (await told(installation, anna))[-2:]
    assert (fill.kind, fill.order.order_id) == (orders_pb2.ORDER_EVENT_KIND_FILLED, sold.order_id)
    assert (cancel.kind, cancel.order.order_id) == (orders_pb2.ORDER_EVENT_KIND_CANCEL_REQUESTED, kept.order_id)


async def test_notes_and_tags_are_shown_to_their_owner_and_told_to_nobody(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    placed = await anna.place(note="a secret plan", tags=["swing", "btc"])
    assert (placed.note, list(placed.tags)) == ("", [])
    found = await anna.order(placed.order_id)
    assert (found.note, list(found.tags)) == ("a secret plan", ["btc", "swing"])
    await venue.tell(anna, canceled(placed))
    await settled(anna, placed.order_id, orders_pb2.ORDER_STATE_CANCELED)

    async def annotate(note: str, *tags: str) -> orders_pb2.Order:
        request = orders_pb2.AnnotateOrderRequest(
            request_id=str(uuid7()), order_id=placed.order_id, note=note, tags=tags
        )
        return (await anna.orders.AnnotateOrder(request, metadata=anna.metadata)).order

    other = await annotate("another", "swing", "late")
    assert (other.note, list(other.tags), other.state) == (
        "another",
        ["late", "swing"],
        orders_pb2.ORDER_STATE_CANCELED,
    )
    assert (await anna.list_orders(tag="late")).orders == [other]
    assert (await anna.list_orders(tag="btc")).orders == []
    for table, column in (("outbox", "payload"), ("order_events", "event")):
        rows = await select(installation, f"SELECT {column} FROM {table}")
        assert rows and not any(word in row[0] for row in rows for word in (b"secret", b"swing", b"another"))
    await annotate("")
    assert (await anna.order(placed.order_id)).note == ""
    for table in ("order_notes", "order_tags"):
        assert await select(installation, f"SELECT 1 FROM {table}") == []


async def test_lists_are_narrowed_by_time_and_tag_and_page_on(orders: Served):
    anna = await trader(orders)
    placed = []
    for number in range(5):
        placed.append(await anna.place(tags=["even"] if number % 2 == 0 else []))
        await asyncio.sleep(0.002)  # ids, and so lists, tell milliseconds apart
    at = [each.create_time for each in placed]
    found = await anna.list_orders(start_time=at[1], end_time=at[3])
    assert ids(found.orders) == ids([placed[2], placed[1]])
    page = await anna.list_orders(tag="even", page_size=2)
    assert ids(page.orders) == ids([placed[4], placed[2]])
    page = await anna.list_orders(tag="even", page_size=2, page_token=page.next_page_token)
    assert (ids(page.orders), page.next_page_token) == ([placed[0].order_id], "")


async def test_what_no_calendar_has_is_refused_by_its_field(orders: Served):
    anna = await trader(orders)
    never = Timestamp(seconds=2**60)
    lasting = orders_pb2.TIME_IN_FORCE_GTD
    assert (await refusal(anna.place(time_in_force=lasting, expire_time=never))).fields == ["expire_time"]
    for field in ("start_time", "end_time"):
        assert (await refusal(anna.list_orders(**{field: never}))).fields == [field]
    both = [limit(anna.account_id, time_in_force=lasting, expire_time=never), limit(anna.account_id)]
    outcomes = (
        await anna.orders.PlaceOrders(orders_pb2.PlaceOrdersRequest(orders=both), metadata=anna.metadata)
    ).outcomes
    assert [each.WhichOneof("outcome") for each in outcomes] == ["refusal", "order"]


@pytest.mark.parametrize(
    ("wanted", "reads_max"),
    [
        (Filter(), 60),
        (Filter(instrument_id="RARE"), 30),
        (Filter(tag="rare"), 60),
        (Filter(deployment_id=UUID(int=7)), 30),
        (Filter(group_id=UUID(int=8)), 30),
        (Filter(states=[State.NEW, State.HELD]), 30),
        (Filter(start_time=datetime(2020, 1, 1, tzinfo=UTC), end_time=datetime(2020, 1, 2, tzinfo=UTC)), 30),
    ],
    ids=["all", "instrument", "tag", "deployment", "group", "open", "time"],
)
async def test_a_narrowed_page_of_many_orders_reads_no_more_than_it_must(
    installation: Installation, orders: Served, wanted: Filter, reads_max: int
):
    """10 of 20 000 orders are asked for, and they are the oldest."""
    anna = await trader(orders)
    await select(
        installation,
        """
        INSERT INTO trading_orders (
          order_id, user_id, account_id, instrument_id, side, order_type, time_in_force, quantity, state,
          filled_quantity, filled_notional, fees, fee_asset, reserved_asset, reserved, fee_rate, reason, create_time,
          update_time, market_time, revision, deployment_id, group_id)
        SELECT ((CASE WHEN n <= 10 THEN '016f5e66-e8' ELSE '0196a000-00' END) || lpad(to_hex(n % 256), 2, '0')
                || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
          $1, $2, CASE WHEN n <= 10 THEN 'RARE' ELSE 'OFTEN' END, 'buy', 'limit', 'gtc', 1,
          CASE WHEN n <= 10 THEN 'new' ELSE 'filled' END, 0, 0, 0, 'X', 'X', 0, 0, '', now(), now(), now(), n,
          CASE WHEN n <= 10 THEN $3::uuid ELSE gen_random_uuid() END,
          CASE WHEN n <= 10 THEN $4::uuid ELSE gen_random_uuid() END
        FROM generate_series(1, 20000) AS n
        """,
        anna.user_id,
        UUID(anna.account_id),
        UUID(int=7),
        UUID(int=8),
    )
    await select(
        installation,
        """
        INSERT INTO order_tags SELECT account_id, CASE WHEN revision <= 10 THEN 'rare' ELSE 'often' END, order_id, user_id
        FROM trading_orders
        """,
    )
    for table in ("trading_orders", "order_tags"):
        await select(installation, f"ANALYZE {table}")
    async with open_database(installation.url("orders_rpc"), 1) as database:
        async with database.transaction(anna.user_id) as rows:
            found = await store.list_orders(rows, UUID(anna.account_id), wanted, before=None, limit=50)
            assert len(found) == (50 if wanted == Filter() else 10)
            read = await rows.fetch(
                "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = ANY($1)",
                ["trading_orders", "order_tags"],
            )
    assert sum(row["seq_tup_read"] for row in read) == 0, read
    assert 0 < sum(row["idx_tup_fetch"] for row in read) <= reads_max, read
