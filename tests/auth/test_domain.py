"""What makes a password too easy, whoever chooses it."""

import pytest

from services.auth.domain import CONTEXT_WORDS, is_too_common, words_of
from services.auth.passwords import COMMON

OWN = words_of("ada.lovelace@analytical-engine.example", "Ada King, Countess of Lovelace")


@pytest.mark.parametrize(
    "password",
    [
        *(
            f"{word.title()}{end}"
            for word in ("password", "letmein", "dragon")
            for end in ("1234567890", "!2026!", "  1")
        ),
        "***monkey***",
        *(f"{word} {2026}!!" for word in sorted(CONTEXT_WORDS)),
        "TradeloomTradeloom",
        "tradeloom-Password1",
        "my tradeloom 1",
        "lovelace1815",
        "AdaLovelace1815!",
        "ada@analytical-engine",
        "Countess King 7",
    ],
)
def test_what_is_little_else_than_a_common_word_or_ones_own_is_too_common(password: str) -> None:
    assert is_too_common(password, COMMON, OWN)


@pytest.mark.parametrize(
    "password",
    [
        "tea and biscuits at four",
        "SecurePass123!",
        "483920175648",  # of digits alone
        "....----....+",  # of signs alone
        "dragon48392017564",  # the digits alone are as hard to guess
        "quince marmalade",
        "lovelace wrote the first program",
        "пароль из четырёх слов",
        "correct horse battery staple",
    ],
)
def test_whatever_else_it_is_made_of_is_nobodys_business(password: str) -> None:
    assert not is_too_common(password, COMMON, OWN)


def test_every_password_of_the_list_is_too_common_in_any_case() -> None:
    assert len(COMMON) >= 30_000
    assert all(is_too_common(one.swapcase(), COMMON) for one in COMMON)


def test_ones_own_words_are_those_of_address_and_name() -> None:
    assert words_of("ada.lovelace@analytical-engine.example", "Ada King, Countess of Lovelace") == {
        "ada",
        "lovelace",
        "analytical",
        "engine",
        "example",
        "king",
        "countess",
    }
