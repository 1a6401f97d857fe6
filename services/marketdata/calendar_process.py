"""The other end of `services.marketdata.calendar_reader`, a process that reads one calendar after the other."""

import atexit
import pickle
import subprocess
import sys
from contextlib import suppress
from datetime import date
from threading import Lock, Timer
from typing import Any

from libs.errors import Unavailable

READ_SECONDS = 120.0
"""That one calendar may take; the longest takes some seconds."""
ATTEMPTS = 2
"""The process may have ended just now, as nobody had asked it for a while."""


class ReaderFailed(Unavailable):
    """The process died, or took too long."""


class CalendarProcess:
    """Started when it is asked, and again whenever it has ended. What it answers is believed: it is our own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = Lock()
        atexit.register(self._end)

    def read(self, name: str, last_date: date) -> Any:
        """What calendar_reader answers. Raises ReaderFailed."""
        with self._asking:
            for _ in range(ATTEMPTS):
                process = self._process = self._process or start()
                alarm = Timer(READ_SECONDS, process.kill)
                alarm.start()
                try:
                    return ask(process, f"{name} {last_date}\n")
                except (OSError, EOFError, pickle.UnpicklingError):
                    self._end()
                finally:
                    alarm.cancel()
            raise ReaderFailed(f"the calendar {name} cannot be read now; retry", dependency="calendars")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            with suppress(OSError), process:
                pass


def start() -> "subprocess.Popen[bytes]":
    safe = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safe, "-m", "services.marketdata.calendar_reader"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ask(process: "subprocess.Popen[bytes]", line: str) -> Any:
    assert process.stdin
    assert process.stdout
    process.stdin.write(line.encode())
    process.stdin.flush()
    return pickle.load(process.stdout)  # noqa: S301
