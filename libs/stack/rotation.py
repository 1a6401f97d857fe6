"""A new key-encryption key for what a service seals, while the stack runs."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from libs.stack.credentials import OWNER, Credentials, new_entry
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.postgres import PostgresServer
from libs.stack.processes import write_whole
from libs.stack.services import Surroundings, service_environment
from libs.stack.state import Snapshot
from libs.stack.supervisor import run_to_end
from libs.stack.urls import plain_database_url

REWRAP_SECONDS = 3600.0
# Longer than anything that was begun under a key may take to be committed.
FORGET_SECONDS = 3600.0
KEYS_KEPT_MAX = 10


async def rotate(word: str, folder: DataFolder, snapshot: Snapshot) -> str:
    """Makes a key, puts every data key of the service under it, and says how many; none is unreadable at any moment.

    Killed at any point, the next one ends what it began. An older key goes with a later rotation, when nothing is left
    under it and nobody can still be at work with it.
    """
    file = Credentials(folder.secrets).keys_file(word)
    environment = environment_of(word, folder, snapshot)
    with alone(file):
        entries = file.read_text().split()
        if len(entries) > 1:
            await rewrap(word, environment)
            if time.time() - file.stat().st_mtime > FORGET_SECONDS:
                entries = entries[:1]
        if len(entries) >= KEYS_KEPT_MAX:
            raise StackError(f"{len(entries)} keys were made lately; come back in an hour")
        write_whole(file, "\n".join([new_entry(), *entries]) + "\n")
        return await rewrap(word, environment)


async def rewrap(word: str, environment: Mapping[str, str]) -> str:
    """Raises StackError where something is left under an older key; then all of them stay."""
    command: Sequence[str] = [sys.executable, "-P", "-m", f"services.{word}.rewrap"]
    said = await run_to_end(command, seconds=REWRAP_SECONDS, environment=environment)
    return said.splitlines()[-1]


def environment_of(word: str, folder: DataFolder, snapshot: Snapshot) -> dict[str, str]:
    credentials = Credentials(folder.secrets)
    if snapshot.embedded_database:
        owner_url = PostgresServer(snapshot.ports["postgres"], credentials.postgres("postgres")).url(
            OWNER, credentials.postgres(OWNER)
        )
    elif own := os.environ.get("DATABASE_URL"):
        owner_url = plain_database_url(own)
    else:
        raise StackError("the stack runs on a database of your own; set DATABASE_URL as for `tradeloom up`")
    around = Surroundings(
        folder=folder,
        credentials=credentials,
        ports=snapshot.ports,
        words=snapshot.words,
        owner_url=owner_url,
        redis_urls={word: ""},  # it speaks to nobody
    )
    return service_environment(word, around)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Two rotations at once would lose one of their keys, and what was sealed under it."""
    descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StackError("the keys are being rotated already") from None
    finally:
        os.close(descriptor)
