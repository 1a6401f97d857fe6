"""Which sessions have ended, and the streams that must end with them."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from types import MappingProxyType
from typing import Generic, TypeVar
from uuid import UUID

from libs.errors import Exhausted, Refusal, Unauthenticated, Unavailable
from libs.mesh.identity import Identity

# News older than five seconds may hide an ended session: writes are refused. auth tells nothing that it read more than
# a second before, so here four remain.
STALE_SECONDS = 4.0

# auth lets no access token live longer.
TOKEN_SECONDS_MAX = 3_600

T = TypeVar("T")
End = Callable[[Refusal], None]


class SessionRevoked(Unauthenticated):
    """The session was ended; sign in again."""

    reason = "SESSION_REVOKED"


class TokenOutdated(Unauthenticated):
    """The user's rights have changed since; a new token says which there are."""

    reason = "TOKEN_OUTDATED"


class RevocationsStale(Unavailable):
    """Nobody knows whether the session was ended."""

    reason = "REVOCATIONS_STALE"


class TooManyStreams(Exhausted):
    """This process serves as many streams as it may."""

    reason = "TOO_MANY_STREAMS"


class TooManyStreamsOfCaller(Exhausted):
    """This process serves the caller as many streams as one may have."""

    reason = "TOO_MANY_STREAMS_OF_CALLER"


@dataclass(frozen=True, slots=True)
class Outdated:
    """Which of a user's access tokens count no more: all of an earlier generation."""

    generation: int
    expire_time: datetime
    """When the last of them expires."""


NOBODY: Mapping[UUID, Outdated] = MappingProxyType({})


class Remembered(Generic[T]):
    """What ends access tokens, by id, each kept as long as there may be one.

    One clock may be set forward, so that all seems to have expired, and back again. So each is kept for the longest life
    of a token by a clock that nobody sets, and beyond that while tokens have not expired by the one that can be set.
    """

    def __init__(self) -> None:
        self.found: dict[UUID, T] = {}
        # In the order they were heard of, so the first is the first to be forgotten.
        self._needed_until: dict[UUID, tuple[float, datetime]] = {}

    def add(self, found: Mapping[UUID, T], expire_time_of: Callable[[T], datetime]) -> None:
        kept_until = time.monotonic() + TOKEN_SECONDS_MAX
        for key, one in found.items():
            self._needed_until.pop(key, None)
            self._needed_until[key] = (kept_until, expire_time_of(one))
        self.found |= found
        self._forget()

    def _forget(self) -> None:
        moment, now = time.monotonic(), datetime.now(UTC)
        over = takewhile(lambda item: item[1][0] <= moment and item[1][1] <= now, self._needed_until.items())
        for key in [key for key, _ in over]:
            del self._needed_until[key], self.found[key]


class Sessions:
    """What is known of ended sessions, kept fresh by `libs.mesh.revocations` (in auth by auth itself)."""

    def __init__(self, streams_max: int, streams_per_caller_max: int) -> None:
        self._streams_max, self._streams_per_caller_max = streams_max, streams_per_caller_max
        self._ended, self._outdated = Remembered[datetime](), Remembered[Outdated]()
        self._fresh_at = float("-inf")
        self._streams: dict[object, tuple[Identity | None, End]] = {}
        self._streams_of: Counter[Hashable] = Counter()

    @property
    def ended(self) -> Mapping[UUID, datetime]:
        """The sessions that have ended and may still matter, with the time when their last access token expires."""
        return self._ended.found

    @property
    def outdated(self) -> Mapping[UUID, Outdated]:
        """The users of whose tokens not all count, as far as they may still matter."""
        return self._outdated.found

    def refresh(self) -> None:
        """Notes that everything known is true as of now."""
        self._fresh_at = time.monotonic()

    def check_known(self) -> None:
        """Raises RevocationsStale until the ended sessions have been heard of once."""
        if self._fresh_at == float("-inf"):
            raise RevocationsStale("the ended sessions are not known yet; retry")

    def end(self, sessions: Mapping[UUID, datetime], outdated: Mapping[UUID, Outdated] = NOBODY) -> None:
        """Ends sessions, and all that these users' tokens of earlier generations stood for."""
        if not sessions and not outdated:
            return
        self._ended.add(sessions, lambda expire_time: expire_time)
        self._outdated.add(outdated, lambda one: one.expire_time)
        for identity, end in list(self._streams.values()):
            if identity is not None and (refusal := self._revoked(identity)):
                end(refusal)

    def check(self, identity: Identity, *, writes: bool) -> None:
        """Refuses an ended session, and writes while the news is stale."""
        if refusal := self._revoked(identity):
            raise refusal
        if writes:
            self.check_fresh()

    def check_fresh(self) -> None:
        """Raises RevocationsStale when the news is too old to rely on."""
        if (age := time.monotonic() - self._fresh_at) > STALE_SECONDS:
            raise RevocationsStale(
                "news of ended sessions is older than five seconds; retry", age_seconds=f"{min(age, 1e6):.1f}"
            )

    def _revoked(self, identity: Identity) -> Refusal | None:
        outdated = self._outdated.found.get(identity.user_id)
        return refusal_of(
            identity,
            ended=identity.session_id in self._ended.found,
            generation=outdated.generation if outdated else None,
        )

    @contextmanager
    def stream(self, identity: Identity | None, caller: Hashable, end: End) -> Iterator[None]:
        """Keeps `end` at hand while a stream is open, and one caller from taking the places of all."""
        if self._streams_of[caller] >= self._streams_per_caller_max:
            raise TooManyStreamsOfCaller(
                "this process serves you as many streams as one may have; end one first",
                streams_per_caller_max=self._streams_per_caller_max,
            )
        if len(self._streams) >= self._streams_max:
            raise TooManyStreams("this process serves as many streams as it may; retry", retry_after_seconds=1.0)
        key = object()
        self._streams[key] = (identity, end)
        self._streams_of[caller] += 1
        try:
            yield
        finally:
            del self._streams[key]
            self._streams_of[caller] -= 1
            if not self._streams_of[caller]:
                del self._streams_of[caller]

    def end_all_streams(self, refusal: Refusal) -> None:
        """At a drain: clients resume by cursor elsewhere."""
        for _, end in list(self._streams.values()):
            end(refusal)


def refusal_of(identity: Identity, *, ended: bool, generation: int | None) -> Refusal | None:
    """Why a token counts no more; None where it does. generation is the user's present one, where that is told."""
    if ended:
        return SessionRevoked("the session was ended; sign in again")
    if generation is not None and identity.generation is not None and identity.generation < generation:
        return TokenOutdated("what this access token allows has changed; refresh the session")
    return None
