"""A rotation of a service's keys keeps every key that may still be needed, whenever it is killed or begun."""

import os
import time
from pathlib import Path

import pytest

from libs.stack import rotation
from libs.stack.credentials import Credentials
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.processes import Owned
from libs.stack.rotation import FORGET_SECONDS, KEYS_KEPT_MAX, alone, rotate
from libs.stack.state import Snapshot
from libs.words import WORDS


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder.at(tmp_path / "data")
    made.make()
    Credentials(made.secrets).make(WORDS)
    return made


@pytest.fixture
def snapshot() -> Snapshot:
    me = Owned.of(os.getpid())
    assert me
    ports = {"postgres": 1, **{f"{word}.{use}": 1 for word in WORDS for use in ("mesh", "probe")}}
    return Snapshot(supervisor=me, start_time=None, words=["users"], ports=ports)  # type: ignore[arg-type]


class Rewraps:
    """What each rewrap found in the file, and what it answers."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file, self.found, self.fails = file, [], False
        monkeypatch.setattr(rotation, "rewrap", self)

    async def __call__(self, word: str, environment: dict[str, str]) -> str:
        assert environment[f"{word.upper()}_KEY_ENCRYPTION_KEYS_FILE"] == str(self._file)
        self.found.append(self._file.read_text().split())
        if self.fails:
            raise StackError("left are 1 under old")
        return "done"


@pytest.fixture
def rewraps(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> Rewraps:
    return Rewraps(keys_of(folder), monkeypatch)


def keys_of(folder: DataFolder) -> Path:
    return Credentials(folder.secrets).keys_file("users")


def age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


async def test_a_new_key_is_first_in_the_file_before_anything_is_put_under_it(folder, snapshot, rewraps):
    [old] = keys_of(folder).read_text().split()
    assert await rotate("users", folder, snapshot) == "done"
    new, kept = keys_of(folder).read_text().split()
    assert kept == old != new
    assert rewraps.found == [[new, old]]
    assert keys_of(folder).stat().st_mode & 0o777 == 0o600


async def test_the_next_rotation_ends_one_that_was_killed_and_keeps_its_keys(folder, snapshot, rewraps):
    rewraps.fails = True
    with pytest.raises(StackError, match="left are"):
        await rotate("users", folder, snapshot)
    first = keys_of(folder).read_text().split()
    # Also when it was long ago: something is left under the old one.
    age(keys_of(folder), FORGET_SECONDS + 60)
    with pytest.raises(StackError, match="left are"):
        await rotate("users", folder, snapshot)
    assert keys_of(folder).read_text().split() == first, "no further key is made before that"
    rewraps.fails = False
    await rotate("users", folder, snapshot)
    assert rewraps.found[-2] == first


async def test_an_older_key_is_forgotten_when_nothing_is_left_under_it_and_nobody_can_be_at_work(
    folder, snapshot, rewraps
):
    await rotate("users", folder, snapshot)
    lately = keys_of(folder).read_text().split()
    await rotate("users", folder, snapshot)
    assert keys_of(folder).read_text().split()[1:] == lately
    age(keys_of(folder), FORGET_SECONDS + 60)
    before = keys_of(folder).read_text().split()
    await rotate("users", folder, snapshot)
    assert keys_of(folder).read_text().split()[1:] == before[:1]


async def test_rotations_in_a_row_come_to_an_end(folder, snapshot, rewraps):
    for _ in range(KEYS_KEPT_MAX - 1):
        await rotate("users", folder, snapshot)
    with pytest.raises(StackError, match="come back in an hour"):
        await rotate("users", folder, snapshot)


async def test_two_rotations_at_once_do_not_lose_each_others_key(folder, snapshot, rewraps):
    before = keys_of(folder).read_text()
    with alone(keys_of(folder)), pytest.raises(StackError, match="rotated already"):
        await rotate("users", folder, snapshot)
    assert keys_of(folder).read_text() == before
    await rotate("users", folder, snapshot)
