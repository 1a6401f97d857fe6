"""Properties are tried with a part of their examples here, and with all of them by `make faults`."""

import re
from pathlib import Path

import pytest

from tests import examples

TESTS = Path(__file__).parents[1]
IMPORT = "from tests.examples import examples\n"


def test_the_long_form_has_all_examples_and_the_short_one_a_part_of_them(monkeypatch):
    monkeypatch.setattr(examples, "is_long", False)
    assert [examples.examples(count).max_examples for count in (400, 20, 6)] == [80, 5, 5]
    monkeypatch.setattr(examples, "is_long", True)
    assert [examples.examples(count).max_examples for count in (400, 20, 6)] == [400, 20, 6]


def test_whoever_leaves_out_examples_is_run_with_all_of_them_by_make_faults():
    targets = (TESTS.parent / "Makefile").read_text().split("\n\n")
    [faults] = [target for target in targets if target.startswith("faults:")]
    assert '--long -m "long or examples"' in faults
    users = {file: source for file in TESTS.rglob("test_*.py") if IMPORT in (source := file.read_text())}
    assert len(users) > 5
    for file, source in users.items():
        marks = source.count("pytest.mark.examples")
        assert len(re.findall(r"(?<!mark\.)\bexamples\(", source)) == marks, file


def test_the_option_decides_before_tests_are_collected(request: pytest.FixtureRequest):
    assert examples.is_long == request.config.getoption("--long")
