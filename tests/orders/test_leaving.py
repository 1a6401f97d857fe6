"""Who was deleted for good trades no more: their orders are canceled, and nothing they called anything is left."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.orders.v1 import events_pb2, orders_pb2
from tradeloom.users.v1 import events_pb2 as users_events

from libs.ids import uuid7
from services.orders import upkeep
from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.stand import (
    Trader,
    Venue,
    accepted,
    canceled,
    filled,
    limit,
    refusal,
    select,
    trader,
    until,
)
from tests.users.stand import Told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks often, for a test would wait for it."""
    monkeypatch.setattr(upkeep, "POLL_SECONDS", 0.02)


async def leave(redis: Redis, *people: Trader) -> None:
    told = Told(redis)
    for person in people:
        await told.tell("users", person.user_id, users_events.UserPurged(user_id=str(person.user_id)))


async def states(installation: Installation, user_id: UUID) -> list[str]:
    found = await select(installation, "SELECT state FROM trading_orders WHERE user_id = $1 ORDER BY order_id", user_id)
    return [row["state"] for row in found]


async def until_all_are(installation: Installation, person: Trader, state: str) -> None:
    async def are_all() -> bool:
        return set(await states(installation, person.user_id)) == {state}

    await until(are_all)


async def is_done(installation: Installation, person: Trader) -> bool:
    found = await select(installation, "SELECT done FROM departures WHERE user_id = $1", person.user_id)
    return bool(found) and found[0]["done"]


async def cancels_told(installation: Installation, person: Trader) -> list[str]:
    """The orders whose cancel execution hears of, in order."""
    found = await select(
        installation, "SELECT payload FROM outbox WHERE user_id = $1 ORDER BY sequence", person.user_id
    )
    changes = [events_pb2.OrderChanged.FromString(row["payload"]).event for row in found]
    return [change.order.order_id for change in changes if change.kind == orders_pb2.ORDER_EVENT_KIND_CANCEL_REQUESTED]


async def test_who_is_gone_has_no_open_order_no_name_and_no_request_id(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna, bert = await trader(orders), await trader(orders)
    resting, partly, done = [await anna.place(note="hers", tags=["hers"]) for _ in range(3)]
    kept = await bert.place(note="his", tags=["his"])
    await venue.tell(anna, accepted(resting), accepted(partly), filled(partly, "0.05", "99"), accepted(done))
    await venue.tell(anna, filled(done, "0.1", "99"))

    async def is_filled() -> bool:
        return (await anna.order(done.order_id)).state == orders_pb2.ORDER_STATE_FILLED

    await until(is_filled)
    await leave(redis, anna)

    async def is_under_way() -> bool:
        return await states(installation, anna.user_id) == ["pending_cancel", "pending_cancel", "filled"]

    await until(is_under_way)
    assert not await is_done(installation, anna), "the venue may still fill them"
    assert await cancels_told(installation, anna) == [resting.order_id, partly.order_id]
    await venue.tell(anna, canceled(resting), canceled(partly))

    async def is_over() -> bool:
        return await is_done(installation, anna)

    await until(is_over)
    assert await states(installation, anna.user_id) == ["canceled", "canceled", "filled"]
    [account] = await select(installation, "SELECT name, closed FROM accounts WHERE user_id = $1", anna.user_id)
    assert (account["name"], account["closed"]) == ("", True)
    for table in ("request_keys", "order_notes", "order_tags"):
        assert await select(installation, f"SELECT 1 FROM {table} WHERE user_id = $1", anna.user_id) == [], table
    # The books are whole.
    for table, count in (("trading_executions", 2), ("ledger_entries", 2 + 2 * 4), ("order_events", 12)):
        found = await select(installation, f"SELECT count(*) FROM {table} WHERE user_id = $1", anna.user_id)
        assert found[0]["count"] == count, table
    # Nobody else is touched.
    found = await bert.order(kept.order_id)
    assert (found.state, found.note, list(found.tags)) == (orders_pb2.ORDER_STATE_PENDING_NEW, "his", ["his"])
    assert (await bert.portfolio()).account.name == "test"
    assert len(await select(installation, "SELECT 1 FROM request_keys WHERE user_id = $1", bert.user_id)) == 2


async def test_who_is_gone_trades_no_more_whatever_token_is_left(
    installation: Installation, orders: Served, redis: Redis
):
    anna, nobody = await trader(orders), await trader(orders)
    request = limit(anna.account_id)
    placed = (await anna.send(request)).order
    await select(installation, "DELETE FROM balances WHERE user_id = $1", nobody.user_id)
    await select(installation, "DELETE FROM ledger_entries WHERE user_id = $1", nobody.user_id)
    await select(installation, "DELETE FROM accounts WHERE user_id = $1", nobody.user_id)
    await leave(redis, anna, nobody)
    await until_all_are(installation, anna, "pending_cancel")

    async def is_over() -> bool:
        return await is_done(installation, nobody)

    await until(is_over)
    opening = orders_pb2.CreateAccountRequest(
        request_id=str(uuid7()),
        name="once more",
        mode=orders_pb2.ACCOUNT_MODE_PAPER,
        kind=orders_pb2.ACCOUNT_KIND_CASH,
        starting_balances=[{"asset": "USDT", "amount": {"value": "1"}}],  # type: ignore[list-item]
    )
    for doing in (
        anna.send(request),
        anna.place(),
        anna.cancel(placed.order_id),
        anna.portfolios.CreateAccount(opening, metadata=anna.metadata),
        nobody.portfolios.CreateAccount(opening, metadata=nobody.metadata),
    ):
        refused = await refusal(doing)
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "USER_DELETED")
    assert (
        await select(installation, "SELECT 1 FROM request_keys WHERE user_id = ANY($1)", [anna.user_id, nobody.user_id])
        == []
    )


async def test_however_many_orders_there_are_they_are_canceled_in_slices(
    installation: Installation, redis: Redis, monkeypatch: pytest.MonkeyPatch, served_in_slices: Served
):
    monkeypatch.setattr(upkeep, "REQUESTS_AT_ONCE", 2)
    anna = await trader(served_in_slices)
    other = await trader(served_in_slices, user_id=anna.user_id)
    placed = [await each.place() for _ in range(4) for each in (anna, other)]
    await leave(redis, anna)
    await until_all_are(installation, anna, "pending_cancel")
    assert sorted(await cancels_told(installation, anna)) == sorted(order.order_id for order in placed)

    async def is_forgotten() -> bool:
        return not await select(installation, "SELECT 1 FROM request_keys WHERE user_id = $1", anna.user_id)

    await until(is_forgotten)


@pytest.fixture
async def served_in_slices(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(upkeep, "ORDERS_AT_ONCE", 3)
    async with stand.served(installation) as service:
        yield service


async def test_a_cancel_that_the_venue_refuses_is_asked_for_again(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trader(orders)
    order = await anna.place()
    await venue.tell(anna, accepted(order))
    await leave(redis, anna)
    await until_all_are(installation, anna, "pending_cancel")
    await venue.tell(anna, execution_events.VenueCancelRejected(order_id=order.order_id, reason="not now"))

    async def is_asked_again() -> bool:
        return await cancels_told(installation, anna) == [order.order_id] * 2

    await until(is_asked_again)
