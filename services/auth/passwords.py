"""Password hashes: argon2id in threads, so many at once and no more."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from libs.errors import Exhausted
from services.auth.domain import PasswordTooCommon, is_too_common, words_of

T = TypeVar("T")
COMMON = frozenset(FREQUENCY_LISTS["passwords"])
STRANGERS_SHARE = 0.75
"""Of those that may wait."""


class Passwords:
    """Hashes and verifies in threads; calls that wait are bounded, and an unknown user costs as much time as a known one."""

    def __init__(self, at_once_max: int, waiting_max: int) -> None:
        self._hasher = PasswordHasher()  # The library's defaults follow RFC 9106.
        self._threads = ThreadPoolExecutor(at_once_max, "passwords")
        self._counting, self._count, self._count_max = Lock(), 0, at_once_max + waiting_max
        self._strangers_max = at_once_max + int(waiting_max * STRANGERS_SHARE)
        self._nobody = self._hasher.hash("nobody has this password")

    def refuse_common(self, password: str, field: str = "password", *, email: str = "", full_name: str = "") -> None:
        """Raises for a password that is tried first by whoever guesses; field is where it stood."""
        if is_too_common(password, COMMON, words_of(email, full_name)):
            why = "is among the most common ones, or little else than one of them, your name or your address"
            raise PasswordTooCommon({field: why})

    @contextmanager
    def place(self, *, known: bool = False) -> Iterator["Place"]:
        """Room for one call, taken before it is counted as an attempt; raises Exhausted.

        Some of the room is kept for those who are known, by a session or by where they have signed in before: a flood of
        strangers keeps no owner out.
        """
        with self._counting:
            if self._count >= (self._count_max if known else self._strangers_max):
                raise Exhausted("too many people sign in at once; retry", retry_after_seconds=1.0, limit="passwords")
            self._count += 1
        place = Place(self._hasher, self._threads, self._nobody)
        try:
            yield place
        finally:
            # A thread that has begun goes on when its caller has left, and its place is taken until it is done.
            place.when_done(self._leave)

    async def hash(self, password: str, *, known: bool = False) -> str:
        with self.place(known=known) as place:
            return await place.hash(password)

    def _leave(self, _: object = None) -> None:
        with self._counting:
            self._count -= 1


class Place:
    """One call's, for one hash after the other."""

    def __init__(self, hasher: PasswordHasher, threads: ThreadPoolExecutor, nobody: str) -> None:
        self._hasher, self._threads, self._nobody = hasher, threads, nobody
        self._running: Future[Any] | None = None

    async def hash(self, password: str) -> str:
        return await self.run(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password made the hash; None (nobody) takes as long and is never right."""
        right = await self.run(self._verify, password_hash or self._nobody, password)
        return right and password_hash is not None

    async def renewed(self, password_hash: str | None, password: str) -> str | None:
        """The hash to keep from now on, if this one was made with less work than is done today."""
        if password_hash is None or not self._hasher.check_needs_rehash(password_hash):
            return None
        return await self.hash(password)

    async def run(self, work: Callable[..., T], *arguments: str) -> T:
        running = self._running = self._threads.submit(work, *arguments)
        return await asyncio.wrap_future(running)

    def when_done(self, leave: Callable[..., None]) -> None:
        if self._running is None:
            leave()
        else:
            self._running.add_done_callback(leave)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False
