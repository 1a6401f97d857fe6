"""What venues and marketdata tell, through the bus: each applied once, in order, to the last digit."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.marketdata.v1 import events_pb2 as marketdata_events
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import orders_pb2
from tradeloom.type.v1 import fact_pb2

from libs.ids import uuid7
from libs.store.outbox import partition_of
from tests.mesh import Installation, Served
from tests.orders.stand import (
    Trader,
    Venue,
    accepted,
    canceled,
    decimal,
    filled,
    reason,
    select,
    sequences,
    steps,
    trader,
    until,
)


async def ledger(installation: Installation, anna: Trader) -> list[tuple[str, str, str, Decimal]]:
    rows = await select(
        installation,
        "SELECT kind, book, asset, amount FROM ledger_entries WHERE account_id = $1 ORDER BY entry_id",
        UUID(anna.account_id),
    )
    return [tuple(row) for row in rows]


async def everything_of(installation: Installation, anna: Trader) -> Any:
    """All that is kept of an account."""
    tables = ("accounts", "balances", "trading_orders", "trading_executions", "order_events", "positions")
    kept: list[Any] = [
        await select(installation, f"SELECT * FROM {table} WHERE account_id = $1 ORDER BY 1, 2", UUID(anna.account_id))
        for table in tables
    ]
    facts = await select(
        installation, "SELECT sequence, payload FROM outbox WHERE key = $1 ORDER BY 1", anna.account_id
    )
    return [*kept, facts, await ledger(installation, anna)]


async def until_read(installation: Installation, anna: Trader, sequence: int) -> None:
    """Returns once the service has taken the venue's words up to this one."""

    async def is_read() -> bool:
        found = await select(installation, "SELECT sequence FROM fact_positions WHERE key = $1", anna.account_id)
        return bool(found) and found[0]["sequence"] >= sequence

    await until(is_read)


async def test_a_fill_moves_the_order_the_balances_the_position_and_the_ledger_together(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    order = await anna.place(quantity="0.5", limit_price="100")
    await venue.tell(anna, accepted(order), filled(order, "0.2", "99.5", fee="0.0199"))
    await until_read(installation, anna, 2)
    found = await anna.order(order.order_id)
    assert found.state == orders_pb2.ORDER_STATE_PARTIALLY_FILLED
    assert (found.filled_quantity.value, found.average_price.value, found.fees.value) == ("0.2", "99.5", "0.0199")
    # 0.3 are left, at 100 and a thousandth for the fee.
    assert await anna.balances() == {
        "BTC": (Decimal("0.2"), Decimal(0)),
        "USDT": (Decimal("980.0801"), Decimal("30.03")),
    }
    (position,) = (await anna.list_positions()).positions
    assert (position.quantity.value, position.average_price.value, position.fees.value) == ("0.2", "99.5", "0.0199")
    assert (await ledger(installation, anna))[2:] == [
        ("fill", "account", "BTC", Decimal("0.2")),
        ("fill", "venue", "BTC", Decimal("-0.2")),
        ("fill", "account", "USDT", Decimal("-19.9")),
        ("fill", "venue", "USDT", Decimal("19.9")),
        ("fill", "account", "USDT", Decimal("-0.0199")),
        ("fill", "fees", "USDT", Decimal("0.0199")),
    ]
    (execution,) = (await anna.list_executions()).executions
    assert (execution.price.value, execution.quantity.value, execution.fee.value) == ("99.5", "0.2", "0.0199")


async def test_a_venues_word_told_again_changes_nothing(installation: Installation, orders: Served, venue: Venue):
    anna = await trader(orders)
    order, other = await anna.place(), await anna.place()
    words = [accepted(order), filled(order, "0.04", 100, "one"), canceled(order), accepted(other)]
    await venue.tell(anna, *words)
    await until_read(installation, anna, 4)
    before = await everything_of(installation, anna)
    # The same facts: as a relay sends them that was killed before it had marked them.
    for sequence, word in enumerate(words, 1):
        await venue.tell_as(anna, sequence, word)
    # The same words in facts of their own: as a venue repeats itself.
    await venue.tell(anna, *words)
    await until_read(installation, anna, 8)
    assert await everything_of(installation, anna) == before
    # And it goes on from there.
    await venue.tell(anna, filled(other, "0.1", 100))
    await until_read(installation, anna, 9)
    assert (await anna.order(other.order_id)).state == orders_pb2.ORDER_STATE_FILLED


async def test_one_fill_told_twice_in_one_batch_is_applied_once(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    order = await anna.place()
    await venue.tell(anna, *[filled(order, "0.04", 100, "one")] * 3)
    await until_read(installation, anna, 3)
    assert (await anna.order(order.order_id)).filled_quantity.value == "0.04"
    assert len((await anna.list_executions()).executions) == 1


async def test_the_same_fill_id_in_two_accounts_is_two_fills(installation: Installation, orders: Served, venue: Venue):
    people = [await trader(orders) for _ in range(3)]
    for each in people:
        await venue.tell(each, filled(await each.place(), "0.04", 100, "one"))
    for each in people:
        await until_read(installation, each, 1)
        assert len((await each.list_executions()).executions) == 1


async def test_what_ends_an_order_frees_what_it_had_set_aside(installation: Installation, orders: Served, venue: Venue):
    anna = await trader(orders)
    rejected, gone, kept = [await anna.place() for _ in range(3)]
    await anna.cancel(kept.order_id)
    await venue.tell(
        anna,
        execution_events.VenueRejected(order_id=rejected.order_id, reason="no such thing"),
        canceled(gone, "expired"),
        execution_events.VenueCancelRejected(order_id=kept.order_id, reason="too late"),
    )
    await until_read(installation, anna, 3)
    found = [await anna.order(each.order_id) for each in (rejected, gone, kept)]
    assert [(each.state, each.reason) for each in found] == [
        (orders_pb2.ORDER_STATE_REJECTED, "no such thing"),
        (orders_pb2.ORDER_STATE_CANCELED, "expired"),
        (orders_pb2.ORDER_STATE_NEW, "too late"),
    ]
    assert (await anna.balances())["USDT"] == (Decimal(1000), Decimal("10.01"))


async def test_a_word_that_makes_no_sense_holds_up_none_that_do(
    installation: Installation, orders: Served, venue: Venue
):
    anna = await trader(orders)
    order, second = await anna.place(), await anna.place()
    unknown = replace_id(order)
    await venue.tell(
        anna,
        accepted(unknown),
        filled(unknown, "0.1", 100),
        canceled(order),
        accepted(order),  # it is canceled: the venue contradicts itself
        filled(second, "0.1", 100),
    )
    await until_read(installation, anna, 5)
    assert (await anna.order(order.order_id)).state == orders_pb2.ORDER_STATE_CANCELED
    assert (await anna.order(second.order_id)).state == orders_pb2.ORDER_STATE_FILLED
    stream = anna.events("0")
    assert sequences(await steps(stream, 5)) == [0, 1, 2, 3, 4]
    stream.cancel()


async def test_another_users_order_is_not_filled_through_ones_own_account(
    installation: Installation, orders: Served, venue: Venue
):
    anna, bert = await trader(orders), await trader(orders)
    hers = await anna.place()
    # Under bert's account, as no venue would.
    await venue.tell(bert, filled(hers, "0.1", 100), filled(await bert.place(), "0.1", 100))
    await until_read(installation, bert, 2)
    assert (await anna.order(hers.order_id)).state == orders_pb2.ORDER_STATE_PENDING_NEW
    assert len((await bert.list_executions()).executions) == 1


async def test_an_instrument_can_be_traded_as_marketdata_tells_of_it(orders: Served, redis: Redis):
    anna = await trader(orders)
    told = marketdata_pb2.Instrument(
        instrument_id="SIM:NEW",
        base_asset="NEW",
        quote_asset="USDT",
        tick_size=decimal("0.5"),
        lot_size=decimal("1"),
        minimum_notional=decimal("5"),
        maker_fee_rate=decimal("0"),
        taker_fee_rate=decimal("0.01"),
        state=marketdata_pb2.INSTRUMENT_STATE_TRADING,
    )
    stream = f"facts:marketdata:{partition_of(told.instrument_id)}"

    async def tell(sequence: int) -> None:
        message = marketdata_events.InstrumentChanged(instrument=told)
        fact = fact_pb2.Fact(
            source="marketdata",
            key=told.instrument_id,
            sequence=sequence,
            kind=message.DESCRIPTOR.full_name,
            payload=message.SerializeToString(),
        )
        previous = f"1-{sequence - 1}" if sequence > 1 else "0-0"
        await redis.xadd(stream, {"f": fact.SerializeToString(), "p": previous}, id=f"1-{sequence}")

    async def refused_as(wanted: str) -> bool:
        return await reason(anna.place(instrument_id="SIM:NEW", quantity="1.5", limit_price="10.5")) == wanted

    assert await refused_as("INSTRUMENT_NOT_FOUND")
    await tell(1)
    await until(lambda: refused_as("QUANTITY_OFF_LOT"))
    assert (await anna.place(instrument_id="SIM:NEW", quantity="2", limit_price="10.5")).quantity.value == "2"
    told.state = marketdata_pb2.INSTRUMENT_STATE_HALTED
    await tell(2)
    await until(lambda: refused_as("INSTRUMENT_HALTED"))


def replace_id(order: orders_pb2.Order) -> orders_pb2.Order:
    """An order that nobody has."""
    unknown = orders_pb2.Order()
    unknown.CopyFrom(order)
    unknown.order_id = str(uuid7())
    return unknown
