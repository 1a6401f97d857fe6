"""Leases divided among members that come, go, stand still and die."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.store import leases
from libs.store.database import Connection, Database, DatabaseUnavailable
from libs.store.leases import LeaseLost, fence
from libs.store.shares import Share, part_of
from tests.libs.store.conftest import Away, expire, take

NAMES = [str(number) for number in range(16)]

holdings = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 20), min_size=1, max_size=8)


@given(holdings, st.integers(0, 100))
def test_parts_are_even_and_are_all_there_is(held, count):
    parts = [part_of(member, held, count) for member in held]
    assert sum(parts) == count
    assert max(parts) - min(parts) <= 1


@given(holdings, st.integers(0, 100))
def test_no_other_even_parts_would_have_fewer_change_hands(held, count):
    each, over = divmod(count, len(held))
    given_up = sum(max(0, held[member] - part_of(member, held, count)) for member in held)
    above = [number - each for number in held.values() if number > each]
    assert given_up == sum(above) - min(over, len(above))


@given(holdings)
def test_who_holds_parts_that_are_even_keeps_them(held):
    each = min(held.values())
    held = {member: min(number, each + 1) for member, number in held.items()}
    assert all(part_of(member, held, sum(held.values())) == number for member, number in held.items())


async def rounds(members: list[Share], names: list[str], count: int = 3) -> None:
    """So many turns of each."""
    for _ in range(count):
        for member in members:
            await member.turn(names)


async def test_two_members_share_evenly_and_the_survivor_takes_over(worker, sample):
    first, second = Share(worker, "facts/x"), Share(worker, "facts/x")
    await first.turn(NAMES)
    assert len(first.held) == 16
    await second.turn(NAMES)  # is counted now, and finds nothing free
    await first.turn(NAMES)  # gives up half
    await second.turn(NAMES)
    assert (len(first.held), len(second.held)) == (8, 8)
    assert first.held.keys() | second.held.keys() == set(NAMES)
    epochs = {name: lease.epoch for name, lease in first.held.items()}
    await expire(sample)  # the first is killed; the second renews what it has
    await second.turn(NAMES)
    await second.turn(NAMES)
    assert len(second.held) == 16
    assert all(second.held[name].epoch == epoch + 1 for name, epoch in epochs.items())
    await first.turn(NAMES)
    assert first.held == {}


@pytest.mark.parametrize("seed", range(4))
async def test_whoever_comes_leaves_or_dies_and_whatever_is_wanted_each_name_has_one_holder_and_the_fewest_move(
    worker, sample, seed
):
    chance = random.Random(seed)
    names, members = NAMES[: chance.randint(1, 16)], [Share(worker, "group")]
    for _ in range(12):
        before = {name: lease for member in members for name, lease in member.held.items()}
        change = chance.choice(["come", "leave", "die", "want"])
        gone: Share | None = None
        if change == "come":
            members.append(Share(worker, "group"))
        elif change == "want":
            names = chance.sample(NAMES, chance.randint(1, 16))
        elif len(members) > 1:
            gone = members.pop(chance.randrange(len(members)))
            lost = gone.held
            before = {name: lease for name, lease in before.items() if name not in lost}
            await (gone.leave() if change == "leave" else expire(sample, gone._owner))
        had = Counter(lease.owner for name, lease in before.items() if name in names)
        await rounds(members, names)
        held = [member.held for member in members]
        assert sorted(name for each in held for name in each) == sorted(names)
        assert max(map(len, held)) - min(map(len, held)) <= 1
        now = {name: lease for each in held for name, lease in each.items()}
        moved = sum(name in names and now[name] != lease for name, lease in before.items())
        # What somebody had above an even part, and no more.
        assert moved == sum(max(0, had[member._owner] - len(member.held)) for member in members)
        owners = {member._owner: had[member._owner] for member in members}
        assert moved == sum(max(0, number - part_of(owner, owners, len(names))) for owner, number in owners.items())
        await rounds(members, names, 1)
        assert now == {name: lease for member in members for name, lease in member.held.items()}


async def test_one_lease_of_two_members_stays_where_it_is(worker):
    members = [Share(worker, "group") for _ in range(2)]
    await rounds(members, ["only"])
    [lease] = [lease for member in members for lease in member.held.values()]
    await rounds(members, ["only"], 5)
    assert [lease] == [lease for member in members for lease in member.held.values()]


async def test_what_is_above_a_members_part_is_given_only_when_it_is_busy_no_more(worker):
    first, second = Share(worker, "group"), Share(worker, "group")
    await first.turn(NAMES)
    await second.turn(NAMES)
    held = await first.turn(NAMES, busy=NAMES)
    assert len(held) == 8
    given_up = set(NAMES) - held.keys()
    for _ in range(2):
        assert await first.turn(NAMES, busy=NAMES) == held  # and not others each time
        assert await second.turn(NAMES) == {}
    idle = min(given_up)
    await first.turn(NAMES, busy=set(NAMES) - {idle})
    assert (await second.turn(NAMES)).keys() == {idle}
    await first.turn(NAMES)
    assert (await second.turn(NAMES)).keys() == given_up


async def test_what_is_busy_is_renewed_until_it_is_given(worker, sample):
    share = Share(worker, "group")
    await share.turn(["busy"])
    assert await share.turn([], busy=["busy"]) == {}
    await expire(sample)
    assert await share.turn([], busy=["busy"]) == {}
    assert await take(worker, "thief", "group/busy") == []
    await share.turn([])
    assert await take(worker, "another", "group/busy")


async def test_without_postgres_a_member_loses_nothing_until_another_has_taken_it(worker, sample):
    database = Away(worker)
    share = Share(database, "group")
    held = await share.turn(["kept", "taken"])
    database.is_away = True
    with pytest.raises(DatabaseUnavailable):
        await share.turn(["kept", "taken"])
    await expire(sample)
    [taken] = await take(worker, "thief", "group/taken")
    database.is_away = False
    assert await share.turn(["kept", "taken"]) == {"kept": held["kept"]}
    async with worker.transaction() as rows:
        await fence(rows, held["kept"])
    with pytest.raises(LeaseLost):
        async with worker.transaction() as rows:
            await fence(rows, held["taken"])
    assert taken.epoch == held["taken"].epoch + 1


async def test_nothing_changes_hands_when_postgres_was_away_from_all_members_for_long(worker, sample, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    members = [Share(worker, "group") for _ in range(2)]
    await rounds(members, NAMES)
    held = [member.held for member in members]
    await asyncio.sleep(leases.LEASE_SECONDS)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    await rounds(members, NAMES)
    assert [member.held for member in members] == held
    # What nobody renews is taken a little later.
    await expire(sample, members[1]._owner)
    async with asyncio.timeout(20):
        while len(members[0].held) < len(NAMES):
            await members[0].turn(NAMES)
            await asyncio.sleep(0.1)


class Lost(Database):
    """The database of another, which commits so many transactions and is lost in the midst of the next."""

    def __init__(self, database: Database, commits: int) -> None:
        super().__init__(database._pool)
        self.commits = commits

    @asynccontextmanager
    async def transaction(self, *user_ids: UUID, **more: Any) -> AsyncIterator[Connection]:
        async with super().transaction(*user_ids, **more) as rows:
            yield rows
            self.commits -= 1
            if self.commits == -1:
                raise DatabaseUnavailable("it was lost")


async def test_what_was_taken_and_not_committed_is_not_held_though_another_has_it_under_the_same_epoch(worker, sample):
    first = Share(worker, "group")
    old = (await first.turn(["name"]))["name"]
    await first.leave()
    unlucky = Share(Lost(worker, commits=1), "group")  # the renewal's
    with pytest.raises(DatabaseUnavailable):
        await unlucky.turn(["name"])
    [lease] = await take(worker, "another", "group/name")
    assert lease.epoch == old.epoch + 1
    assert await unlucky.turn(["name"]) == {}


async def test_a_member_that_leaves_frees_its_part_at_once(worker):
    names = ["a", "b"]
    first, second = Share(worker, "group"), Share(worker, "group")
    await first.turn(names)
    await first.leave()
    await second.turn(names)
    assert second.held.keys() == {"a", "b"}


async def test_members_that_died_before_the_clock_was_set_back_are_not_counted_and_what_they_held_is_free(
    worker, sample
):
    dead, alive = Share(worker, "facts/x"), Share(worker, "facts/x")
    await dead.turn(NAMES)
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute("UPDATE sample.leases SET expire_time = expire_time + interval '3 hours'")
    await superuser.close()
    await alive.turn(NAMES)
    assert alive.held.keys() == set(NAMES)


async def test_a_lease_whose_row_is_locked_keeps_no_member_from_the_others(worker, sample):
    dead, alive = Share(worker, "facts/x"), Share(worker, "facts/x")
    await dead.turn(NAMES)
    await expire(sample)
    superuser = await asyncpg.connect(sample.superuser_url)
    async with superuser.transaction():  # as a process that stands still in the midst of its work
        await superuser.execute("SELECT FROM sample.leases WHERE name = 'facts/x/3' FOR UPDATE")
        async with asyncio.timeout(leases.TRY_SECONDS * 4):  # far below the lock's time-out
            await alive.turn(NAMES)
            await alive.turn(NAMES)  # renews what it has
        assert alive.held.keys() == set(NAMES) - {"3"}
    await superuser.close()
    await alive.turn(NAMES)
    assert alive.held.keys() == set(NAMES)
