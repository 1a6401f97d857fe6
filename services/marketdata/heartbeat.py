"""When a stream has been quiet for so long that it must show that it lives."""

import asyncio
from collections.abc import Callable


class Heartbeat:
    """Calls back when nothing was sent for so long. Sending only notes the time; the timer looks at it when it fires."""

    def __init__(self, seconds: float, due: Callable[[], None]) -> None:
        self._seconds, self._due = seconds, due
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)
        self.is_due = False

    def sent(self) -> None:
        self._sent_at = self._loop.time()
        self.is_due = False

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        due_at = self._sent_at + self._seconds
        now = self._loop.time()
        if now >= due_at:
            self.is_due = True
            self._due()
            due_at = now + self._seconds
        self._timer = self._loop.call_at(due_at, self._look)
