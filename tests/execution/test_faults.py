"""Killed processes, lost leases and two replicas: no fill is ever lost or doubled."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.store.database import Database, DatabaseUnavailable
from tests.execution.stand import Stand, Trader, at, instrument, limit, until

EFFECTS = (
    "venue_orders",
    "venue_cancels",
    "venue_replaces",
    "venue_releases",
    "venue_fills",
    "paper_cursors",
    "account_sequences",
    "outbox",
)
BOOK = (1000, [(99.0, 5.0)], [(100.0, 0.4), (101.0, 5.0)])


class Killed(Exception):
    """The process dies here."""


class Mortal(Database):
    """A process's database that dies at its step of a given number: before a write, before a commit or right after it."""

    def __init__(self, pool: asyncpg.Pool, last_step: int) -> None:
        super().__init__(pool)
        self._steps_left = last_step
        self.dead = asyncio.Event()
        self.place = ""

    def step(self, place: str) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            self.dead.set()
            self.place = place
            raise Killed(place)

    @asynccontextmanager
    async def transaction(self, *user_ids: UUID) -> AsyncIterator[Any]:
        if self.dead.is_set():
            raise DatabaseUnavailable("this process is dead")
        wrote: list[str] = []
        async with super().transaction(*user_ids) as rows:
            yield Watched(rows, self, wrote)
            if wrote:
                self.step("before COMMIT")
        if wrote:
            self.step("after COMMIT")


class Watched:
    """A connection that counts what it writes."""

    def __init__(self, rows: Any, mortal: Mortal, wrote: list[str]) -> None:
        self._rows, self._mortal, self._wrote = rows, mortal, wrote

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    async def execute(self, statement: str, *arguments: Any) -> Any:
        self._watch(statement)
        return await self._rows.execute(statement, *arguments)

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        self._watch(statement)
        return await self._rows.fetch(statement, *arguments)

    def _watch(self, statement: str) -> None:
        verb = statement.split(maxsplit=1)[0]
        if verb in ("INSERT", "UPDATE", "DELETE") and any(table in statement for table in EFFECTS):
            self._wrote.append(statement)
            self._mortal.step(" ".join(statement.split()[:4]))


@pytest.fixture
def desk(stand: Stand) -> Stand:
    return stand


async def expire_leases(desk: Stand) -> None:
    """As time would, a few seconds after their holder died."""
    await desk.everything.execute("UPDATE leases SET expire_time = '-infinity'")


async def test_a_process_killed_between_any_two_steps_neither_loses_nor_doubles_anything(desk: Stand):
    places: list[str] = []
    for last_step in range(1, 100):
        anna, bert, cleo, instrument_id = Trader(), Trader(), Trader(), f"SIM:BTC{last_step}"
        await desk.announce(instrument(instrument_id))
        await desk.market(book=BOOK, instrument_id=instrument_id)
        await desk.place(anna, quantity=1, instrument_id=instrument_id)
        order_id = await desk.place(bert, **limit("SELL", 2, 103, instrument_id=instrument_id))
        await desk.market(prints=[(1100, 103.5, 0.5), (1101, 104.0, 0.25)], instrument_id=instrument_id)
        # A leg of which more was released before anybody looked, so that it is for more and then for another price.
        part = {"order_id": str(UUID(int=last_step)), "instrument_id": instrument_id}
        cleo_sells = limit("SELL", 3, 105, **part)
        await desk.tell(cleo, "RELEASED", cleo_sells | {"released_quantity": 1})
        await desk.tell(cleo, "RELEASED", cleo_sells | {"released_quantity": 2})
        await desk.ask_to_replace(cleo, UUID(int=last_step), "moved", limit_price=106)
        await desk.ask_to_cancel(bert, order_id)
        mortal = Mortal(desk.worker._pool, last_step)
        bought = ["accepted", "filled 0.4 at 100 as taker", "filled 0.6 at 101 as taker"]
        sold = ["accepted", "filled 0.5 at 103 as maker", "filled 0.25 at 103 as maker", "canceled: user"]
        moved = ["accepted", "replaced: moved"]
        async with desk.running(mortal):

            async def is_over(mortal: Mortal = mortal, traders: tuple[Trader, ...] = (anna, bert, cleo)) -> bool:
                return mortal.dead.is_set() or [len(await desk.story(trader)) for trader in traders] == [3, 4, 2]

            await until(is_over)
        await expire_leases(desk)
        if mortal.dead.is_set():
            places.append(mortal.place)
            async with desk.running():
                await desk.wait_for(anna, *bought)
                await desk.wait_for(bert, *sold)
                await desk.wait_for(cleo, *moved)
            await expire_leases(desk)
        else:
            assert await desk.story(anna) == bought
            assert await desk.story(bert) == sold
            assert await desk.story(cleo) == moved
            break
    assert await desk.everything.fetchval("SELECT count(*) FROM venue_fills") == 4 * (len(places) + 1)
    assert await desk.everything.fetchval(
        "SELECT array_agg(DISTINCT quantity) FROM venue_orders WHERE worst_price = 106"
    ) == [2]
    for table in ("venue_releases", "venue_replaces", "venue_cancels"):
        assert await desk.everything.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert {"before COMMIT", "after COMMIT"} < set(places)
    assert len(places) > 12


async def test_what_an_outdated_holder_matched_is_not_committed(desk: Stand, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "services.execution")
    anna = Trader()
    await desk.announce(instrument())
    await desk.market(book=BOOK)
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 99))
        await desk.wait_for(anna, "accepted")
        # Another takes over while this one believes in its lease.
        await desk.everything.execute(
            """
            UPDATE leases SET epoch = epoch + 1, owner = 'another', expire_time = now() + interval '10 seconds'
            WHERE name LIKE 'paper/%' AND name NOT LIKE '%member%'
            """
        )
        await desk.market(prints=[(1100, 98.0, 9.0)])
        await desk.place(anna, quantity="0.1", market_time=at(1000))
        await desk.wait_for_count(1, "venue_orders", "state = 'intended'")

        async def was_refused() -> bool:
            return "left to another replica" in caplog.text

        await until(was_refused)
        assert await desk.story(anna) == ["accepted"]
        await expire_leases(desk)
        await desk.wait_for_count(2, "venue_fills")
    assert sorted((await desk.story(anna))[1:]) == ["accepted", "filled 0.1 at 100 as taker", "filled 1 at 99 as maker"]


async def test_two_replicas_share_the_instruments_and_each_order_is_filled_once(desk: Stand):
    names = [f"SIM:COIN{number}" for number in range(24)]
    traders = [Trader() for _ in range(8)]
    for name in names:
        await desk.announce(instrument(name))
        await desk.market(book=(1000, [(99.0, 900.0)], [(100.0, 900.0)]), instrument_id=name)
    placed = 0

    async def place_some() -> None:
        nonlocal placed
        for trader in traders:
            await desk.place_all(trader, [{"instrument_id": name} for name in names])
            placed += len(names)

    async def both_hold() -> bool:
        owners = await desk.everything.fetchval(
            "SELECT count(DISTINCT owner) FROM leases WHERE name ~ '^paper/[0-9]+$' AND expire_time > now()"
        )
        return owners == 2

    mortal = Mortal(desk.worker._pool, 0)
    async with desk.running():
        await place_some()
        async with desk.running(mortal):
            await place_some()
            await until(both_hold)
            await place_some()
            await desk.wait_for_count(placed, "venue_fills")
            mortal.dead.set()  # in the midst of work, with its leases held
            await place_some()
        await expire_leases(desk)
        await desk.wait_for_count(placed, "venue_fills")
    for trader in traders:
        story = await desk.story(trader)
        assert story.count("accepted") == story.count("filled 1 at 100 as taker") == 4 * len(names)
        assert len(story) == 8 * len(names)


async def test_orders_that_cannot_be_committed_are_told_by_the_health_check_until_they_can(desk: Stand):
    anna = Trader()
    await desk.announce(instrument())
    await desk.market(book=BOOK)
    async with desk.running() as venue:
        await desk.everything.execute("ALTER TABLE venue_fills ADD CONSTRAINT broken CHECK (false)")
        await desk.place(anna, quantity="0.1")

        async def is_troubled() -> bool:
            return "broken" in "".join(venue.troubles.values())

        async def is_well() -> bool:
            return not venue.troubles

        await until(is_troubled)
        assert await desk.story(anna) == []
        await desk.everything.execute("ALTER TABLE venue_fills DROP CONSTRAINT broken")
        await desk.wait_for(anna, "accepted", "filled 0.1 at 100 as taker")
        await until(is_well)
