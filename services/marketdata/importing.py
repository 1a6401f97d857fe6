"""Works on files of bars that are whole: checks every row, then stores the bars slice by slice.

So many imports as there are lanes are worked on at once in the whole installation. Whoever holds the lease of a lane goes
on with the import that the lane is at, so one whose process was killed is taken up by another: checked anew, or stored
from where it was. Each slice is committed with how far the import has come, and between slices the series is free for
ticks.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import IO, TypeVar

from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from libs.store.background import running
from libs.store.database import Database
from libs.store.leases import Lease, fence, holding
from services.marketdata import candle_store, import_store, imports, parts, sessions
from services.marketdata.domain import CalendarChanged, Import, ImportMalformed, ImportRefusal, ImportState

LANES = 2
"""Imports that are worked on at once, of all replicas."""
LOOK_SECONDS = 0.25
"""How often a lane that has nothing to do looks for something."""
FORGET_SECONDS = 60.0
TELL_SECONDS = 0.5
"""How often it is told how many rows were checked."""
ATTEMPTS_MAX = 5
"""So often an import may be begun without any progress: what kills its process is not tried for ever."""

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits for what a thread does."""


class Progress:
    """What a thread tells of its work, and is told."""

    def __init__(self) -> None:
        self.row_count = 0
        self.is_stopped = False

    def told(self, row_count: int) -> None:
        if self.is_stopped:
            raise Stopped
        self.row_count = row_count


class Lane:
    """database is of the worker role."""

    def __init__(self, database: Database, lane: int, lease: Lease) -> None:
        self._database, self._lane, self._lease = database, lane, lease

    async def turn(self) -> bool:
        """Works on one import to its end; whether there was one."""
        async with self._database.transaction() as rows:
            found = await import_store.take(rows, self._lane)
        if found is None:
            return False
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            attempts = await import_store.claim(rows, found, self._lane)
        if attempts is None:
            return True
        try:
            if attempts > ATTEMPTS_MAX:
                raise ImportMalformed({"file": f"could not be worked on in {ATTEMPTS_MAX} attempts; see the log"})
            await self._work(found)
        except (Invalid, CalendarChanged) as refusal:
            await self._end(found, ImportState.REFUSED, kept(refusal))
        else:
            await self._end(found, ImportState.DONE)
        await import_store.forget_bytes(self._database, found.user_id, found.import_id)
        return True

    async def forget(self) -> None:
        """What nobody needs any more of others that have ended, or never will."""
        async with self._database.transaction() as rows:
            due = await import_store.due_to_forget(rows)
        for import_id, user_id in due:
            async with self._database.transaction(user_id) as rows:
                await fence(rows, self._lease)
                await import_store.refuse_unfinished(rows, import_id)
            await import_store.forget_bytes(self._database, user_id, import_id)
            async with self._database.transaction(user_id) as rows:
                await fence(rows, self._lease)
                await import_store.forget_old(rows, import_id)

    async def _work(self, found: Import) -> None:
        with tempfile.TemporaryFile() as file:
            await self._write(found, file)
            rules = await self._rules(found)
            if found.state is ImportState.CHECKING:
                await self._check(found, file, rules)
            await self._store(found, file, rules)

    async def _write(self, found: Import, file: IO[bytes]) -> None:
        """The bytes that are held, as one file without a name, which is gone with the process."""
        digest = hashlib.sha256()

        def write(content: bytes) -> None:
            digest.update(content)
            file.write(content)

        async for content in import_store.chunks(self._database, found):
            await asyncio.to_thread(write, content)
        file.flush()
        if digest.digest() != found.sha256:
            raise ImportMalformed({"header.sha256": "is not that of the bytes that came"})

    async def _rules(self, found: Import) -> imports.Rules:
        """What the bars of the file must be. What was checked by a calendar is stored by that calendar."""
        now = datetime.now(UTC)
        async with self._database.transaction() as rows:
            kept_from = parts.kept_from(await parts.read_dropped(rows))[found.bar_size]
            name = (await candle_store.read_calendars(rows, [found.instrument_id]))[found.instrument_id]
            ended_by = await candle_store.ended_by(rows, now)
        if found.state is ImportState.STORING:
            name = found.calendar
        calendar = await sessions.known_or_none(name, now)
        return imports.Rules(BAR_SIZES[found.bar_size], ended_by, kept_from, calendar)

    async def _check(self, found: Import, file: IO[bytes], rules: imports.Rules) -> None:
        progress = Progress()
        checked = await self._in_thread(found, progress, lambda: imports.check(file, rules, progress.told))
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            await import_store.begin_storing(
                rows,
                found,
                calendar=rules.calendar.name if rules.calendar else "",
                layout=checked.layout,
                read_count=checked.row_count,
                start=checked.first,
                end=checked.last,
            )

    async def _store(self, found: Import, file: IO[bytes], rules: imports.Rules) -> None:
        size, after = rules.size, found.stored_count
        progress = Progress()
        slices = imports.slices(file, rules, after, progress.told)
        while (bars := await self._in_thread(None, progress, lambda: next(slices, None))) is not None:
            async with self._database.transaction() as rows:
                await parts.ensure(rows, candle_store.parts_for(size, bars["open_time"].dt.epoch("s").to_numpy()))
            async with self._database.transaction(found.user_id) as rows:
                await fence(rows, self._lease)
                done = await candle_store.import_bars(rows, found.instrument_id, size, bars, rules.calendar)
                await import_store.advance(
                    rows, found, after, stored=bars.height, inserted=done.inserted, changed=done.changed
                )
            after += bars.height

    async def _in_thread(self, telling: Import | None, progress: Progress, work: Callable[[], T]) -> T:
        """What the work returns, told of meanwhile. A cancellation waits until the thread has noticed it."""
        thread = asyncio.create_task(asyncio.to_thread(work))
        told_count = 0
        try:
            while not (await asyncio.wait([thread], timeout=TELL_SECONDS))[0]:
                if telling and progress.row_count != told_count:
                    told_count = progress.row_count
                    async with self._database.transaction(telling.user_id) as rows:
                        await fence(rows, self._lease)
                        await import_store.tell_checked(rows, telling, told_count)
            return thread.result()
        finally:
            progress.is_stopped = True
            await asyncio.wait([thread])
            progress.is_stopped = False

    async def _end(self, found: Import, state: ImportState, refusal: ImportRefusal | None = None) -> None:
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            await import_store.end(rows, found, state, refusal)


def kept(refusal: Invalid | CalendarChanged) -> ImportRefusal:
    return ImportRefusal(
        reason=refusal.reason,
        message=str(refusal),
        violations=dict(refusal.violations) if isinstance(refusal, Invalid) else {},
        wrong_line_count=int(refusal.metadata.get("wrong_lines", 0)),
    )


@asynccontextmanager
async def importing(database: Database) -> AsyncIterator[None]:
    """Works on imports during the block, in each lane whose lease no other replica holds."""

    async def work(lane: int) -> None:
        async with holding(database, f"imports {lane}") as lease:
            working = Lane(database, lane, lease)
            forget_at = 0.0
            while True:
                if await working.turn():
                    continue
                if (now := asyncio.get_running_loop().time()) >= forget_at:
                    await working.forget()
                    forget_at = now + FORGET_SECONDS
                await asyncio.sleep(LOOK_SECONDS)

    async with AsyncExitStack() as lanes:
        for lane in range(LANES):
            await lanes.enter_async_context(running(f"importing in lane {lane}", lambda lane=lane: work(lane)))
        yield
