"""The page on security says what is true: its tests are there, its requirements whole, its numbers those of the code."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from services.auth.domain import CONTEXT_WORDS

PAGE = Path("docs/security.md")
# OWASP ASVS 5.0.0: how many requirements of levels 1 and 2 there are in each section of its chapters V6, V7, V9 and V13.3, and
# of V11 for what is stored. They are the first of their section; those of level 3 follow them.
ASKED = {
    "6.1": 3,
    "6.2": 12,
    "6.3": 4,
    "6.4": 4,
    "6.5": 5,
    "6.6": 3,
    "6.8": 4,
    "7.1": 3,
    "7.2": 4,
    "7.3": 2,
    "7.4": 5,
    "7.5": 2,
    "7.6": 2,
    "9.1": 3,
    "9.2": 4,
    "11.1": 2,
    "11.2": 3,
    "11.3": 3,
    "11.4": 4,
    "11.5": 1,
    "11.6": 1,
    "13.3": 2,
}
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>test_\w+)`")
REASON = "Reason: "
REASON_WORDS_MIN = 4
NUMBER = re.compile(r"^\| `(?P<name>[\w.]+)` \| (?P<value>[\d.]+) \|", re.MULTILINE)
TABLE = re.compile(r"CREATE TABLE (?P<name>\w+) \((?P<columns>.*?)\n?\s*\"\"\"", re.DOTALL)
SECRET_COLUMN = re.compile(
    r"\b(?:password|secret|sealed|token|code|wrapped)\w*(?:_hash)?\s+bytea|\bpassword\w*\s+text|\bsealed\w*"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One requirement, as the page answers it."""

    number: str
    asked: str
    met: str
    here: str
    shown_by: str

    @property
    def tests(self) -> list[tuple[Path, str]]:
        return [(Path(found["file"]), found["name"]) for found in TEST.finditer(self.shown_by)]


def lines() -> Iterator[Line]:
    for text in PAGE.read_text().splitlines():
        if re.match(r"\| \d+\.\d+\.\d+ \|", text):
            yield Line(*(cell.strip() for cell in text.strip("|").split("|")))


LINES = list(lines())


def test_every_requirement_stands_once_and_in_the_standards_order() -> None:
    assert [line.number for line in LINES] == [
        f"{section}.{n + 1}" for section, count in ASKED.items() for n in range(count)
    ]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.number)
def test_every_line_has_a_test_or_a_reason(line: Line) -> None:
    assert line.asked
    assert line.met in ("yes", "partly", "no", "–")
    if line.met == "yes":
        assert line.tests
        assert REASON not in line.here
    else:
        assert line.here.startswith(REASON)
        assert len(line.here.split()) > REASON_WORDS_MIN
    # Nothing in the last column but tests.
    assert not TEST.sub("", line.shown_by).replace("<br>", "").strip()


@cache
def names_in(file: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_test_that_the_page_names_is_there() -> None:
    named = [(Path(found["file"]), found["name"]) for found in TEST.finditer(PAGE.read_text())]
    assert named
    missing = [f"{file}::{name}" for file, name in named if not file.exists() or name not in names_in(file)]
    assert not missing


def test_a_test_that_is_not_there_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "class Inner:\n    async def test_there(self): ...\n# def test_not_there(): ...\n"
    )
    assert names_in(tmp_path / "test_it.py") == {"test_there"}


def test_the_numbers_are_those_of_the_code() -> None:
    said = {found["name"]: float(found["value"]) for found in NUMBER.finditer(PAGE.read_text())}
    assert len(said) > 1
    assert {name: float(value_of(name)) for name in said} == said


def value_of(name: str) -> Any:
    """A constant of a module, or the default of a setting or a field of a class."""
    parts = name.split(".")
    owner = next(part for part in range(len(parts)) if parts[part][0].isupper())
    found = getattr(import_module(".".join(parts[:owner])), parts[owner])
    if owner == len(parts) - 1:
        return found
    fields = getattr(found, "model_fields", None) or found.__dataclass_fields__
    return fields[parts[owner + 1]].default


def test_the_words_that_no_password_may_consist_of_are_those_of_the_code() -> None:
    listed = next(line for line in PAGE.read_text().splitlines() if line.startswith("`admin`"))
    assert re.findall(r"`(\w+)`", listed) == sorted(CONTEXT_WORDS)


def test_every_column_that_holds_a_secret_is_in_the_list_of_secrets() -> None:
    listed = PAGE.read_text().split("## How secrets rest")[1].split("\n## ")[0]
    tables = [
        (found["name"], found["columns"])
        for file in sorted(Path("migrations").glob("*/0*.py"))
        for found in TABLE.finditer(file.read_text())
    ]
    holding = {name for name, columns in tables if SECRET_COLUMN.search(columns)}
    assert {"users", "mfa_totp", "signing_keys", "api_keys", "mails", "refresh_tokens"} <= holding
    assert not [name for name in sorted(holding) if not re.search(rf"[.`]{name}`", listed)]
