"""Page tokens come from outside, whoever gave them out."""

import pytest

from libs.mesh.pages import PageTokenInvalid, key_of, token_after


@pytest.mark.parametrize("key", [("SIM:BTCUSDT",), ("+", 0), ("-", 2**63 - 1, -(2**63)), ("ä\U0001f600",)])
def test_a_token_stands_for_the_key_it_was_made_of(key):
    assert key_of(token_after(*key), len(key)) == list(key)


def test_no_token_is_the_first_page():
    assert key_of("", 1) is None


@pytest.mark.parametrize("part", [2**63, -(2**63) - 1, "a\0b", "\ud800", 1.5, None, ["x"]])
def test_a_token_that_postgres_cannot_be_asked_for_was_not_given_out(part):
    with pytest.raises(PageTokenInvalid):
        key_of(token_after(part), 1)


@pytest.mark.parametrize("token", ["x", "ä", "WyJ4Il", token_after("x", "y"), "bnVsbA"])
def test_anything_else_is_not_one_either(token):
    with pytest.raises(PageTokenInvalid):
        key_of(token, 1)
