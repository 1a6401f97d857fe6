"""Works on files of bars that are whole: checks every row, then stores the bars slice by slice.

So many imports as there are lanes are worked on at once in the whole installation. Whoever holds the lease of a lane goes
on with the import that the lane is at, so one whose process was killed is taken up by another: checked anew, or stored
from where it was. What a full disk or a lost database does not allow is tried again after growing pauses. Each slice is
committed with how far the import has come, and between slices the series is free for ticks.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import IO, TypeVar
from uuid import UUID

import asyncpg
import structlog

from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from libs.store.background import Backoff, running
from libs.store.database import Database, DatabaseUnavailable, StillLocked
from libs.store.leases import Lease, fence, holding
from services.marketdata import candle_store, deletion_store, import_store, imports, parts, sessions, store, values
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

TROUBLE_SECONDS_FIRST = 1.0
TROUBLE_SECONDS_MAX = 60.0
TROUBLES_MAX = 30
"""One after the other, over about twenty minutes: then others have their turn."""
TROUBLES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DatabaseUnavailable, StillLocked)
"""Of the disk and the database, not of the file."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


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


class Trouble:
    """What a lane remembers of the import that it could not work on, through no fault of the file."""

    def __init__(self) -> None:
        self._import_id: UUID | None = None
        self._backoff = Backoff(TROUBLE_SECONDS_FIRST, TROUBLE_SECONDS_MAX)

    def is_of(self, found: Import) -> bool:
        return self._import_id == found.import_id

    @property
    def lasts(self) -> bool:
        return self._backoff.failures >= TROUBLES_MAX

    async def wait(self, found: Import, error: Exception) -> None:
        if not self.is_of(found):
            self.end()
        self._import_id = found.import_id
        seconds = self._backoff.next_seconds()
        log.error(
            "an import could not be worked on", exc_info=error, import_id=str(found.import_id), again_in_seconds=seconds
        )
        await asyncio.sleep(seconds)

    def end(self) -> None:
        self._import_id = None
        self._backoff.reset()


class Lane:
    """database is of the worker role."""

    def __init__(self, database: Database, lane: int, lease: Lease, trouble: Trouble) -> None:
        self._database, self._lane, self._lease, self._trouble = database, lane, lease, trouble

    async def turn(self) -> bool:
        """Works on one import to its end; whether there was one."""
        async with self._database.reading() as rows:
            found = await import_store.take(rows, self._lane)
        if found is None:
            return False
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            attempts = await import_store.claim(rows, found, self._lane, is_counted=not self._trouble.is_of(found))
        if attempts is None:
            return True
        try:
            await self._work_to_an_end(found, attempts)
        except TROUBLES as error:
            await self._trouble.wait(found, error)
        else:
            self._trouble.end()
        return True

    async def _work_to_an_end(self, found: Import, attempts: int) -> None:
        try:
            if attempts > ATTEMPTS_MAX:
                raise ImportMalformed({"file": f"could not be worked on in {ATTEMPTS_MAX} attempts; see the log"})
            if self._trouble.is_of(found) and self._trouble.lasts:
                raise ImportMalformed({"file": "could not be worked on for want of disk or database; import it again"})
            await self._work(found)
            await self._end(found, ImportState.DONE)
        except CalendarChanged:
            # What is stored was made anew by the other calendar; the file is checked by it, and the rest stored.
            async with self._database.transaction(found.user_id) as rows:
                await fence(rows, self._lease)
                await import_store.check_anew(rows, found)
            return
        except Invalid as refusal:
            with suppress(import_store.Ended):
                await self._refuse(found, refusal)
        except import_store.Ended:
            pass  # Its owner has cancelled it.
        await import_store.forget_bytes(self._database, found.user_id, found.import_id)

    async def forget(self) -> None:
        """What nobody needs any more of others that have ended, or never will, and of deletions."""
        async with self._database.transaction() as rows:
            await deletion_store.forget_old(rows)
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
            instrument = await store.get_instrument(rows, found.instrument_id)
            ended_by = await candle_store.ended_by(rows, now)
        if found.state is ImportState.STORING:
            name = found.calendar
        calendar = await sessions.known_or_none(name, now)
        return imports.Rules(
            BAR_SIZES[found.bar_size],
            ended_by,
            kept_from,
            calendar,
            found.is_sparse,
            values.is_above_zero(instrument.asset_class),
        )

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

    async def _refuse(self, found: Import, refusal: Invalid) -> None:
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            now = await import_store.get(rows, found.import_id)
            await import_store.end(rows, found, ImportState.REFUSED, kept(refusal, now or found))

    async def _end(self, found: Import, state: ImportState) -> None:
        async with self._database.transaction(found.user_id) as rows:
            await fence(rows, self._lease)
            await import_store.end(rows, found, state)


def kept(refusal: Invalid, found: Import) -> ImportRefusal:
    """As it is told, with what was stored of the file before."""
    return ImportRefusal(
        reason=refusal.reason,
        message=f"{refusal}; {found.so_far}",
        violations=dict(refusal.violations),
        wrong_line_count=int(refusal.metadata.get("wrong_lines", 0)),
    )


@asynccontextmanager
async def importing(database: Database) -> AsyncIterator[None]:
    """Works on imports during the block, in each lane whose lease no other replica holds."""

    async def work(lane: int, trouble: Trouble) -> None:
        async with holding(database, f"imports {lane}") as lease:
            working = Lane(database, lane, lease, trouble)
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
            trouble = Trouble()
            await lanes.enter_async_context(
                running(f"importing in lane {lane}", lambda lane=lane, trouble=trouble: work(lane, trouble))
            )
        yield
