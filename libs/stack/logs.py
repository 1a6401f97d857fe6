"""One log file per process, bounded: the newest file and the one before it."""

import os
from contextlib import suppress
from pathlib import Path

LOG_BYTES_MAX = 10 * 1024 * 1024
"""Of one file; with the one before it a process keeps at most twice this."""
TAIL_BYTES = 4096


class Log:
    """Appends bytes to a file and begins anew, keeping one older file, when it is full.

    A full disk loses lines; it ends nothing.
    """

    def __init__(self, file: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._file = file
        self._bytes_max = bytes_max
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        with suppress(OSError):
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._bytes_max:
            os.close(self._descriptor)
            self._file.replace(older(self._file))
            self._open()
        os.write(self._descriptor, data)
        self._size += len(data)

    def close(self) -> None:
        os.close(self._descriptor)


def older(file: Path) -> Path:
    return file.with_name(f"{file.name}.1")


def tail(file: Path, lines_max: int = 10) -> str:
    """The last lines, for a message about a process that failed."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-lines_max:])
