"""Postgres: a pool of connections, and transactions that see only the rows of the users they name."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import asyncpg

from libs.errors import Unavailable

ACQUIRE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
# A new connection takes Postgres some milliseconds and megabytes, and its first statements as long again: work that nobody
# waits for, of which much begins at the same moment, sooner waits so long for a connection that another is done with. Once
# it has waited in vain the pool stays larger, so that it does so a few times in a process's life.
PATIENT_SECONDS = 0.1
STATEMENT_SECONDS = 30.0
LOCK_SECONDS = 5.0
# A statement that was cancelled goes on where Postgres heard of that before it; then its connection is given up.
ROLLBACK_SECONDS = 5.0
IDLE_IN_TRANSACTION_SECONDS = 60  # a process that stands still does not hold its locks for ever
OWN_OID_MIN = 16_384  # those of what a database's owners made begin here
TYPES_MAX = 256  # sets of types remembered, some kilobytes each

_TYPES: dict[frozenset[int], list[asyncpg.Record]] = {}
# asyncpg prepares its statement anew when the one it asked by has no name.
_NAMED = SimpleNamespace(name="known")

# Of these only the state of the connection tells whether it was lost.
_PERHAPS_OURS = (
    OSError,  # refused, reset, and TimeoutError
    asyncpg.InterfaceError,  # closed before a statement
    asyncpg.InternalClientError,  # closed in the midst of one
)
_UNREACHABLE = (
    *_PERHAPS_OURS,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # the server stops, or is starting
    asyncpg.InsufficientResourcesError,
)
_LOST_RACES = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class DatabaseUnavailable(Unavailable):
    """Postgres does not answer, or chose another transaction over this one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, dependency="postgres")


class StillLocked(DatabaseUnavailable):
    """Another transaction holds what this one waited for, and did not let go in time."""


class Connection(asyncpg.Connection):
    """A connection inside Database.transaction or Database.reading; savepoints and cursors are written in SQL there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._after_commit: list[Callable[[], None]] = []

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Have callback run once this transaction has committed; never if it is rolled back."""
        self._after_commit.append(callback)

    def take_after_commit(self) -> list[Callable[[], None]]:
        callbacks, self._after_commit = self._after_commit, []
        return callbacks

    def get_reset_query(self) -> str:
        """Nothing: settings are LOCAL to their transaction, and a round trip per transaction is saved."""
        return ""

    async def _introspect_types(
        self,
        typeoids: Iterable[int],
        timeout: float | None,  # noqa: ASYNC109 (asyncpg's own)
    ) -> tuple[list[asyncpg.Record], Any]:
        """What asyncpg has to learn of types before their first use, which takes Postgres longer than a connection does.

        Asked for once by a process of types that are Postgres's own, as arrays of numbers are: they are the same everywhere.
        """
        asked = frozenset(typeoids)
        if asked not in _TYPES:
            types, statement = await super()._introspect_types(asked, timeout)
            if len(_TYPES) == TYPES_MAX or max(asked) >= OWN_OID_MIN:
                return types, statement
            _TYPES[asked] = types
        return _TYPES[asked], _NAMED


class Database:
    """A pool of connections of one role, which grows when all are in use, and for so long none was given back."""

    def __init__(self, pool: asyncpg.Pool, patient_seconds: float = 0.0) -> None:
        self._pool = pool
        self._patient_seconds = patient_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def transaction(
        self, *user_ids: UUID, snapshot: bool = False, lock_seconds: float = LOCK_SECONDS
    ) -> AsyncIterator[Connection]:
        """Run the block in one transaction that sees and writes only what belongs to user_ids (or to nobody).

        With snapshot it only reads, and all its statements see the moment it began. It waits for no lock longer than
        lock_seconds: then StillLocked.

        Beginning takes one round trip. Leaving the block commits; an exception, also a cancellation, rolls back.
        DatabaseUnavailable when Postgres does not answer: nothing was changed, or, if it was lost while committing,
        repeating with the same request_id tells.
        """
        async with self._holding() as rows:
            rows.take_after_commit()  # what a transaction that failed had left
            await rows.execute(_beginning(user_ids, snapshot, lock_seconds))
            yield rows
            # Postgres answers COMMIT of a failed transaction with ROLLBACK, and no error.
            if await rows.execute("COMMIT") != "COMMIT":
                raise asyncpg.InFailedSQLTransactionError("an error in this transaction was swallowed; it rolled back")
            for callback in rows.take_after_commit():
                callback()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Statements of the block are each for themselves: for whoever looks again and again whether there is work.

        They only read. Each sees what a transaction without users would, at a moment of its own, and takes one round trip,
        where a transaction takes two more. DatabaseUnavailable when Postgres does not answer.
        """
        async with self._holding() as rows:
            yield rows

    async def check(self) -> None:
        """Raise DatabaseUnavailable unless Postgres answers."""
        async with self.reading() as rows:
            await rows.execute("SELECT 1")

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[Connection]:
        """One of the pool's connections during the block; what becomes of it is told as this module's errors."""
        try:
            if self._patient_seconds and self._grows_next():
                await self._wait_for_another()
            held = await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except _UNREACHABLE as error:
            raise DatabaseUnavailable(f"no connection to Postgres: {type(error).__name__}") from error
        try:
            yield cast("Connection", held)
        except asyncpg.LockNotAvailableError as error:
            raise StillLocked("another transaction holds what is needed") from error
        except _LOST_RACES as error:
            raise DatabaseUnavailable("another transaction was in the way") from error
        except _UNREACHABLE as error:
            # A time-out or wrong arguments may be the block's own fault and have nothing to do with the connection.
            if isinstance(error, _PERHAPS_OURS) and not _is_lost(held):
                raise
            raise DatabaseUnavailable(f"Postgres was lost: {type(error).__name__}") from error
        finally:
            await self._give_back(held)
            self._wake_one()

    def _grows_next(self) -> bool:
        """Whether whoever took a connection now would open one more beside those in use."""
        return not self._pool.get_idle_size() and 0 < self._pool.get_size() < self._pool.get_max_size()

    async def _wait_for_another(self) -> None:
        given_back = asyncio.get_running_loop().create_future()
        self._waiting.append(given_back)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patient_seconds):
                    await given_back
        except asyncio.CancelledError:
            if given_back.done() and not given_back.cancelled():
                self._wake_one()
            raise
        finally:
            with suppress(ValueError):  # whoever woke it has taken it off
                self._waiting.remove(given_back)

    def _wake_one(self) -> None:
        while self._waiting:
            if not (given_back := self._waiting.popleft()).done():
                given_back.set_result(None)
                return

    async def _give_back(self, held: asyncpg.pool.PoolConnectionProxy) -> None:
        try:
            if not _is_lost(held) and held.is_in_transaction():
                await held.execute("ROLLBACK", timeout=ROLLBACK_SECONDS)
        except (*_UNREACHABLE, asyncpg.PostgresError):
            _cut(held)  # the server rolls back when the connection is gone
        except BaseException:
            _cut(held)
            raise
        finally:
            await self._pool.release(held)


@asynccontextmanager
async def open_database(
    url: str, connections_max: int = 10, *, patient_seconds: float = 0.0
) -> AsyncIterator[Database]:
    """Connect to url, in any of SQLAlchemy's spellings of postgresql://, as the role it names.

    Whoever finds all connections in use waits for one of them for patient_seconds before another is opened.
    Raises DatabaseUnavailable if Postgres does not answer.
    """
    try:
        pool = await asyncpg.create_pool(
            plain_url(url),
            min_size=1,
            max_size=connections_max,
            max_inactive_connection_lifetime=0,  # prepared statements stay warm
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            connection_class=Connection,
            server_settings={
                "timezone": "UTC",
                "jit": "off",
                "lock_timeout": f"{round(LOCK_SECONDS * 1000)}ms",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
            },
        )
    except _UNREACHABLE as error:
        raise DatabaseUnavailable(f"no connection to Postgres: {type(error).__name__}") from error
    try:
        yield Database(pool, patient_seconds)
    finally:
        # Whoever still holds a connection was cancelled before; waiting for it could last for ever.
        pool.terminate()


async def see_also(rows: Connection, user_id: UUID) -> None:
    """The transaction sees from here on also what belongs to this user, whom it has only just come to know."""
    await rows.execute(
        "SELECT set_config('app.user_ids', concat_ws(',', nullif(current_setting('app.user_ids'), ''), $1::text), true)",
        str(user_id),
    )


def plain_url(url: str) -> str:
    """The url without the driver SQLAlchemy wants named: postgresql+asyncpg://… is postgresql://…."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)


def _is_lost(held: asyncpg.pool.PoolConnectionProxy) -> bool:
    try:
        return held.is_closed()
    except asyncpg.InterfaceError:  # the pool has already taken the closed connection back
        return True


def _cut(held: asyncpg.pool.PoolConnectionProxy) -> None:
    if not _is_lost(held):
        held.terminate()


def _beginning(user_ids: tuple[UUID, ...], snapshot: bool, lock_seconds: float) -> str:
    # Several statements in one round trip take no parameters; UUID() admits nothing that could break out.
    listed = ",".join(str(UUID(str(user_id))) for user_id in user_ids)
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else "BEGIN"
    # Nothing is to be set where it is as every connection has it; and 0 would mean for ever.
    lock = "" if lock_seconds == LOCK_SECONDS else f"; SET LOCAL lock_timeout = {max(1, round(lock_seconds * 1000))}"
    return f"{begin}; SELECT set_config('app.user_ids', '{listed}', true){lock}"
