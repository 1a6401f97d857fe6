"""Fields for passwords: hidden while typed, and open to whoever pastes or has a program fill them in."""

import re
from pathlib import Path

SOURCES = sorted(Path("services/web/app/src").rglob("*.tsx"))
FIELD = re.compile(r"<(?P<kind>TextInput|PasswordInput|Textarea|input)\b(?P<given>[^>]*?(?:=>[^>]*?)*)/?>", re.DOTALL)


def fields() -> list[tuple[str, str]]:
    return [(found["kind"], found["given"]) for path in SOURCES for found in FIELD.finditer(path.read_text())]


def test_a_password_is_typed_into_a_field_that_hides_it() -> None:
    asked = [kind for kind, given in fields() if re.search(r"(name|label)=[\"{`]*[^\s]*password", given, re.IGNORECASE)]
    assert asked
    assert set(asked) == {"PasswordInput"}


def test_no_field_for_a_password_refuses_what_is_pasted_or_filled_in() -> None:
    assert not [path for path in SOURCES if "onPaste" in path.read_text()]
    hidden = [given for kind, given in fields() if kind == "PasswordInput"]
    assert hidden
    for given in hidden:
        assert not re.search(r"auto[Cc]omplete=[\"{`']*off", given), given
