import pytest

from libs.stack.credentials import Credentials
from libs.stack.folder import DataFolder
from libs.stack.services import Surroundings, service_environment
from libs.words import WORDS


@pytest.fixture
def around(tmp_path):
    credentials = Credentials(tmp_path)
    credentials.make(WORDS)
    return Surroundings(
        folder=DataFolder.at(tmp_path),
        credentials=credentials,
        ports={"edge": 1, **{f"{word}.{use}": 1 for word in WORDS for use in ("mesh", "probe")}},
        words=list(WORDS),
        owner_url="postgresql://tradeloom:secret@127.0.0.1:5432/trading",
        redis_urls={word: f"redis://{word}:secret@127.0.0.1:6379" for word in WORDS},
    )


@pytest.mark.parametrize("word", WORDS)
def test_a_service_is_told_its_own_passwords_and_who_asks_nobody_none(around, word):
    told = service_environment(word, around)
    known = {role: around.credentials.postgres(role) for each in WORDS for role in (f"{each}_rpc", f"{each}_worker")}
    given = {role for role, password in known.items() if any(password in value for value in told.values())}
    assert given == ({f"{word}_rpc", f"{word}_worker"} if WORDS[word].has_contract else set())
    assert any("redis://" in value for value in told.values()) == WORDS[word].has_contract
