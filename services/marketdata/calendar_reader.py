"""Reads calendars in a process of its own: `python -m services.marketdata.calendar_reader`.

It computes for some tenths of a second to some seconds, and whatever shared its interpreter would wait for it at every turn.
A line on stdin names a calendar and its last day; the answer on stdout is pickled: the calendar, or None where none is known.
"""

import pickle
import select
import signal
import sys
from datetime import date

from libs import loading
from services.marketdata.sessions import UnknownCalendar, read

IDLE_SECONDS = 30.0
"""After which it gives its memory back."""


def main() -> None:
    loading.end()
    # Ctrl-C is for the service, with which this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        name, last_date = line.split()
        try:
            answer = read(name, last_date=date.fromisoformat(last_date))
        except UnknownCalendar:
            answer = None
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
