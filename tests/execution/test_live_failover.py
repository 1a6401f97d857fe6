"""Whatever happens to who carries an account, each order reaches its venue once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from libs.store import leases
from libs.store.database import open_database
from services.execution.live.records import Records
from tests.execution.live_stand import LiveStand, eventually
from tests.servers import PostgresServer
from tests.venues import faults


@dataclass
class Deaths:
    """Has everything stand still for ever before or after a transaction, as if the process had been killed there."""

    left: int = -1
    before: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def stand_still(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> Deaths:
    found = Deaths()
    transaction = Records.transaction

    @asynccontextmanager
    async def deadly(self: Records) -> AsyncIterator[object]:
        if found.reached.is_set():
            await asyncio.Event().wait()
        is_last = found.left == 0
        found.left -= 1
        if is_last and found.before:
            await found.stand_still()
        async with transaction(self) as rows:
            yield rows
        if is_last:
            await found.stand_still()

    monkeypatch.setattr(Records, "transaction", deadly)
    return found


async def test_killed_at_any_step_an_order_is_sent_once(at_binance: LiveStand, deaths: Deaths):
    """The next replica finds what the one before left, and settles it by the record."""
    live = at_binance
    await live.confirm()
    placed = []
    for number in range(2):
        for before in (True, False):
            deaths.left, deaths.before = -1, before
            deaths.reached.clear()
            async with live.replica():
                await live.wait_until_told("connected")
                # What the stream tells is not needed, and would make it another's transaction that is the last.
                live.venue.venue.faults.messages.append(faults.silence())
                await live.stand.wait_for_count(0, "venue_orders", "state IN ('intended', 'sending', 'unknown')")
                # From then on no transaction is left but those of the order that is placed now.
                await live.stand.wait_for_count(
                    len(placed) + 1, "reconciliations", "cause = 'start' AND state = 'done'"
                )
                deaths.left = number
                order_id = await live.place()
                placed.append(order_id)
                async with asyncio.timeout(10):
                    await deaths.reached.wait()
            live.venue.venue.faults.messages.clear()
    deaths.left = -1
    deaths.reached.clear()
    # Only what was to be sent, and was not yet, is given up: nobody can know that, until it cannot arrive any more.
    states = ["working", "rejected", "working", "working"]
    async with live.replica():
        for order_id, state in zip(placed, states, strict=True):
            await live.wait_for_state(order_id, state)
    assert [live.sent_count(order_id) for order_id in placed] == [1, 0, 1, 1]
    story = await live.story()
    assert story.count("accepted") == 3
    assert story.count("rejected: it never reached the venue") == 1


async def test_of_two_replicas_one_carries_and_the_other_takes_over(
    at_binance: LiveStand, postgres: PostgresServer, database_name: str
):
    live = at_binance
    async with open_database(postgres.url(database_name, "execution_worker")) as other, live.replica(other) as second:
        async with live.connected() as first:
            orders = [await live.place() for _ in range(5)]
            await live.wait_for(*["accepted"] * 5)
            assert len(first.carried_ids | second.carried_ids) == 1
        await live.place()
        await live.wait_for(*["accepted"] * 6)
        for order_id in orders:
            await live.cancel(order_id)
        await live.wait_until_told("canceled: user")
    assert all(live.sent_count(order_id) == 1 for order_id in orders)


async def test_who_lost_the_lease_while_an_order_was_on_its_way_records_nothing(at_binance: LiveStand):
    live = at_binance
    async with live.connected() as accounts:
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(faults.RequestFault(seconds=0.5, done=True, method="POST", path="/api/v3/order"))
        order_id = await live.place()
        await eventually(lambda: live.sent_count(order_id) == 1)
        name, rows = f"live/{live.trader.account_id}", live.stand.everything
        # As long as a lease can be: one beyond that is of a clock that was wrong, and nobody's.
        lose = """
            UPDATE leases SET owner = 'another', epoch = epoch + 1, expire_time = clock_timestamp() + $2::interval * 1.9
            WHERE name = $1
            """
        await rows.execute(lose, name, leases.life())
        await eventually(lambda: not accounts.carried_ids)
        assert await live.state_of(order_id) == "sending"
        # The other is gone, and left nothing: what is there is settled by the record.
        await rows.execute("UPDATE leases SET expire_time = '-infinity' WHERE name = $1", name)
        await live.wait_for("unknown", "accepted")
    assert live.sent_count(order_id) == 1
