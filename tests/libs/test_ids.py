"""Ids sort by the order in which they were made."""

import time
from uuid import RFC_4122

import pytest

from libs.ids import uuid7


def test_ids_of_one_millisecond_sort_in_the_order_they_were_made() -> None:
    made = [uuid7() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(each.version, each.variant) for each in made} == {(7, RFC_4122)}


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= uuid7().int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_a_clock_that_is_set_back_does_not_turn_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert uuid7() > first
