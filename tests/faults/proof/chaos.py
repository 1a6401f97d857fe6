"""Faults by a seeded plan: each has a name, does one thing, sees that it took hold, and undoes itself."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from libs.bus.connection import open_redis
from libs.store.relay import requests_of
from tests.faults.proof import steps
from tests.faults.proof.stand import WORDS, Replica, Stand, connected, until
from tests.faults.proof.steps import Step

# Until somebody comes to a step, or asks for something, whatever else is broken at the time: with four faults at once on a
# machine with a load of 30 nobody lived long enough in a minute to compare an account with its exchange, nor in four to send it
# a change of an order.
HOLD_SECONDS = 600.0
TAKE_HOLD_SECONDS = 30.0
PAUSE_SECONDS_MAX = 0.3  # between two faults of one lane
ATTEMPTS = 5
RECOVERY_SECONDS = 120.0  # until somebody is there again while other faults befall them

TOLD_AGAIN = 20  # facts about one account
ASK_AGAIN_SECONDS = 1.0
NEWEST = """
    SELECT key, sequence, stream_epoch, stream_counter FROM {}.outbox
    WHERE stream_epoch IS NOT NULL ORDER BY outbox_id DESC LIMIT 1
    """
SENT_SINCE = """
    SELECT (stream_epoch, stream_counter) > ($3, $4) FROM {}.outbox WHERE key = $1 AND sequence = $2
    """


class NotInjected(Exception):
    """A fault that was planned did not take hold."""


class Ground:
    """What stands while faults need it, as many at once as like, and gives way to one that takes it from under all."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._needed = 0
        self._is_to_give_way = False
        self._has_given_way = False

    @asynccontextmanager
    async def stands(self, *, at_once: bool = False) -> AsyncIterator[None]:
        """at_once, as long as it still stands: for who holds up what others need it for."""
        async with self._changed:
            await self._changed.wait_for(lambda: not (self._has_given_way if at_once else self._is_to_give_way))
            self._needed += 1
        try:
            yield
        finally:
            async with self._changed:
                self._needed -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def gives_way(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_to_give_way)
            self._is_to_give_way = True
            await self._changed.wait_for(lambda: not self._needed)
            self._has_given_way = True
        try:
            yield
        finally:
            async with self._changed:
                self._is_to_give_way = self._has_given_way = False
                self._changed.notify_all()


@dataclass
class Chaos:
    stand: Stand
    faults: Mapping[str, "Fault"]
    chance: random.Random
    check: Callable[[], None]
    """Raises where something is amiss that is no fault of ours."""
    stop_seconds: float
    waited_for_leases: float
    """Of this part of the dead the leases end by themselves; those of the others at once, as if the time had passed."""
    injected: Counter[str] = field(default_factory=Counter)
    standing_still: set[int] = field(default_factory=set)
    """Processes that do."""
    losing_redis: asyncio.Lock = field(default_factory=asyncio.Lock)
    ground: Ground = field(default_factory=Ground)
    """Postgres, which some faults need."""

    async def run(self, plan: Iterator[str], lanes: int) -> None:
        """All faults of the plan, so many at once at most; each is said as it is over, for who reads why a run failed."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def work() -> None:
            for name in plan:
                began = loop.time()
                await self.faults[name](self)
                self.injected[name] += 1
                print(
                    f"{self.injected.total():4} {loop.time() - start:7.1f} s, in {loop.time() - began:5.1f} s: {name}"
                )
                self.check()
                await asyncio.sleep(self.chance.uniform(0, PAUSE_SECONDS_MAX))

        async with asyncio.TaskGroup() as group:
            keeping_up = group.create_task(self.stand.keep_up())
            async with asyncio.TaskGroup() as working:
                for _ in range(lanes):
                    working.create_task(work())
            keeping_up.cancel()
        await self.stand.until_ready()

    async def die_at(self, step: Step) -> None:
        for _ in range(ATTEMPTS):
            if await self._die_at(step):
                return
        raise NotInjected(f"whoever was held at {step.name!r} had left it before it died")

    async def _die_at(self, step: Step) -> bool:
        """Whether it was held there still when it died.

        On a machine that others keep busy it may be seen so late that it has given up by then, as its lease was not renewed.
        """
        async with self.ground.stands():
            async with self._connected() as rows:
                await steps.take(rows, step)
                held = partial(steps.waiting_ports, rows, step)
                [port, *_] = await until(held, f"somebody comes to {step.name!r}", HOLD_SECONDS)
                # Nobody's, if another fault has killed it there just now.
                replica = next((each for each in self.stand.replicas[step.word] if each.owns_port(port)), None)
                pid = replica.die() if replica else None
                is_held = port in await held()
            if pid:
                await self._outlive(step.word, pid)
        if replica:
            await replica.until_ready()
        return is_held

    async def kill(self, word: str) -> None:
        await self.kill_this(await until(partial(self._some, word), f"a process of {word}", RECOVERY_SECONDS))

    async def kill_this(self, replica: Replica) -> None:
        async with self.ground.stands():
            await self._outlive(replica.word, replica.die())
        await replica.until_ready()

    async def kill_relay(self, word: str) -> None:
        """The process that carries the service's facts to Redis at this moment."""
        async with self.ground.stands():
            async with self._connected() as rows:
                replica = await until(partial(self._relay_of, rows, word), f"a relay of {word}", TAKE_HOLD_SECONDS)
                pid = replica.die()
            await self._outlive(word, pid)
        await replica.until_ready()

    async def stop(self, word: str) -> None:
        """Stands still for longer than its leases last, and goes on when it has none any more."""
        for _ in range(ATTEMPTS):
            replica = await until(partial(self._some, word), f"a process of {word}", RECOVERY_SECONDS)
            pid = replica.pid
            replica.stand_still()
            self.standing_still.add(pid)
            try:
                await until(partial(replica.is_at_rest, pid), f"{word} stands still", TAKE_HOLD_SECONDS)
                await asyncio.sleep(self.stop_seconds)
                if replica.pid == pid:
                    # Somebody may wait for it to come to a step, and keep the ground until then.
                    async with self.ground.stands(at_once=True):
                        await self._see_no_lease(word, pid)
            finally:
                self.standing_still.discard(pid)
                # It may have been killed meanwhile, as one that stood still at a step is.
                lasted = replica.pid == pid and replica.lives
                if lasted:
                    replica.go_on()
            await replica.until_ready()
            if lasted:
                return
        raise NotInjected(f"{word} was killed whenever it stood still")

    async def lose_redis(self) -> None:
        """With all its data, as a Redis without a disk."""
        valkey = self.stand.valkey
        async with self.losing_redis, open_redis(self.stand.installation.redis_url) as redis:
            mark = "proof:lost"
            await redis.set(mark, 1)
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(self.chance.uniform(0, 1))
            await asyncio.to_thread(valkey.start)
            if await redis.exists(mark):
                raise NotInjected("Redis has what it had")

    async def lose_postgres(self, *, kills: bool) -> None:
        postgres = self.stand.postgres
        async with self.ground.gives_way():
            began = await self._postgres_began()
            await asyncio.to_thread(postgres.kill if kills else postgres.stop)
            await asyncio.sleep(self.chance.uniform(0, 1))
            await asyncio.to_thread(postgres.start)
            if await self._postgres_began() == began:
                raise NotInjected("Postgres is the one that it was")

    async def tell_again(self, word: str) -> None:
        """Its newest facts about some account go out a second time, asked for as a reader does that has missed them."""
        async with (
            self.ground.stands(),
            self._connected() as rows,
            open_redis(self.stand.installation.redis_url) as redis,
        ):
            told = await until(
                partial(rows.fetchrow, NEWEST.format(word)), f"{word} has told something", TAKE_HOLD_SECONDS
            )
            request: Any = {"key": told["key"], "after": max(0, told["sequence"] - TOLD_AGAIN)}

            async def is_out_again() -> bool:
                # Redis may be away, or lose the request.
                with suppress(RedisError):
                    await redis.xadd(requests_of(word), request)
                await asyncio.sleep(ASK_AGAIN_SECONDS)
                return bool(await rows.fetchval(SENT_SINCE.format(word), *told.values()))

            await until(is_out_again, f"{word} tells again", TAKE_HOLD_SECONDS)

    def _some(self, word: str) -> Replica | None:
        """By chance, of those that live, and that do not stand still if there are any."""
        living = [replica for replica in self.stand.replicas[word] if replica.lives]
        going_on = [replica for replica in living if replica.pid not in self.standing_still]
        return self.chance.choice(going_on or living) if living else None

    async def _see_no_lease(self, word: str, pid: int) -> None:
        async with self._connected() as rows:
            held = await rows.fetchval(
                f"SELECT count(*) FROM {word}.leases WHERE split_part(owner, ':', 2) = $1 AND expire_time > now()",
                str(pid),
            )
        if held:
            raise NotInjected(f"process {pid} of {word}, which stood still, has {held} leases")

    async def _relay_of(self, rows: asyncpg.Connection, word: str) -> Replica | None:
        owner = await rows.fetchval(
            f"SELECT owner FROM {word}.leases WHERE name = $1 AND expire_time > now()", f"relay/{word}"
        )
        return next(
            (each for each in self.stand.replicas[word] if owner and str(each.pid) == owner.split(":")[1]), None
        )

    async def _outlive(self, word: str, pid: int) -> None:
        """What a process held that has died becomes free, sometimes at once."""
        if self.chance.random() < self.waited_for_leases:
            return
        async with self._connected() as rows:
            await rows.execute(
                f"UPDATE {word}.leases SET expire_time = '-infinity' WHERE split_part(owner, ':', 2) = $1", str(pid)
            )

    async def _postgres_began(self) -> object:
        async with self._connected() as rows:
            return await rows.fetchval("SELECT pg_postmaster_start_time()")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        rows = await connected(self.stand.installation)
        try:
            yield rows
        finally:
            await rows.close()


Fault = Callable[[Chaos], Awaitable[None]]


def step_faults(of: Iterable[Step]) -> dict[str, Fault]:
    return {step.name: partial(Chaos.die_at, step=step) for step in of}


# What befalls our own processes and what they stand on; what befalls a venue stands beside it.
FAULTS: Mapping[str, Fault] = {
    **{f"kill {word}": partial(Chaos.kill, word=word) for word in WORDS},
    **{f"kill the relay of {word}": partial(Chaos.kill_relay, word=word) for word in WORDS},
    **{f"stop {word} and continue it": partial(Chaos.stop, word=word) for word in WORDS},
    "repeat what orders told": partial(Chaos.tell_again, word="orders"),
    "lose Redis": Chaos.lose_redis,
    "kill Postgres": partial(Chaos.lose_postgres, kills=True),
    "restart Postgres": partial(Chaos.lose_postgres, kills=False),
}
