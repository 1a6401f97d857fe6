"""Password hashes: argon2id in threads, so many at once and no more."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from libs.errors import Exhausted
from services.auth.domain import PasswordTooCommon, is_too_common, words_of

T = TypeVar("T")
COMMON = frozenset(FREQUENCY_LISTS["passwords"])


class Passwords:
    """Hashes and verifies; waiting calls are bounded, and an unknown user costs as much time as a known one."""

    def __init__(self, at_once_max: int, waiting_max: int) -> None:
        self._hasher = PasswordHasher()  # The library's defaults follow RFC 9106.
        self._threads = ThreadPoolExecutor(at_once_max, "passwords")
        self._counting, self._count, self._count_max = Lock(), 0, at_once_max + waiting_max
        self._nobody = self._hasher.hash("nobody has this password")

    def refuse_common(self, password: str, field: str = "password", *, email: str = "", full_name: str = "") -> None:
        """Raises for a password that is tried first by whoever guesses; field is where it stood."""
        if is_too_common(password, COMMON, words_of(email, full_name)):
            why = "is among the most common ones, or little else than one of them, your name or your address"
            raise PasswordTooCommon({field: why})

    async def hash(self, password: str) -> str:
        return await self._in_thread(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password made the hash; None (nobody) takes as long and is never right."""
        right = await self._in_thread(self._verify, password_hash or self._nobody, password)
        return right and password_hash is not None

    async def renewed(self, password_hash: str | None, password: str) -> str | None:
        """The hash to keep from now on, if this one was made with less work than is done today."""
        if password_hash is None or not self._hasher.check_needs_rehash(password_hash):
            return None
        return await self.hash(password)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[..., T], *arguments: str) -> T:
        """A thread that has begun goes on when its caller has left, and counts until it is done."""
        with self._counting:
            if self._count >= self._count_max:
                raise Exhausted("too many people sign in at once; retry", retry_after_seconds=1.0, limit="passwords")
            self._count += 1
        future = self._threads.submit(work, *arguments)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def _done(self, _: Future[Any]) -> None:
        with self._counting:
            self._count -= 1
