"""Every way of refusing has its place in a catalogue, and every place in a catalogue somebody who refuses so."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

import libs
import services
from libs.errors import Refusal
from libs.mesh.contract import PACKAGES, error_reasons
from libs.mesh.errors import code_of, to_status

UNSPECIFIED = {"UNSPECIFIED"}
SERVED = [word for word in PACKAGES if Path("services", word, "__main__.py").exists()]


def refusals() -> list[type[Refusal]]:
    """Every class of refusal that we have, those for tests left out."""
    for package in (libs, services):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # The command line and the code generators refuse nothing over the wire.
            if not module.name.startswith(("libs.cli", "libs.codegen")):
                importlib.import_module(module.name)

    def below(refusal: type[Refusal]) -> Iterator[type[Refusal]]:
        for inner in refusal.__subclasses__():
            yield inner
            yield from below(inner)

    found = {one for one in below(Refusal) if one.__module__.startswith(("libs.", "services."))}
    return sorted(found, key=lambda one: (one.__module__, one.__name__))


REFUSALS = refusals()


def word_of(refusal: type[Refusal]) -> str:
    """The service that refuses so, or "type" for the libraries of all."""
    package, word, *_ = refusal.__module__.split(".")
    return word if package == "services" else "type"


def used(word: str) -> set[str]:
    return {one.__dict__["reason"] for one in REFUSALS if "reason" in one.__dict__ and word_of(one) == word}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_every_refusal_is_catalogued_where_it_is_made(refusal: type[Refusal]) -> None:
    if not hasattr(refusal, "reason"):
        assert refusal.__module__ == "libs.errors", "only the words themselves may be without a reason"
        return
    own = "reason" in refusal.__dict__
    # A reason of its own stands in its service's catalogue; an inherited one in its parent's.
    assert refusal.reason in error_reasons(word_of(refusal) if own else "type") | error_reasons(word_of(refusal))


@pytest.mark.parametrize("word", ["type", *SERVED])
def test_every_reason_of_a_catalogue_is_given_by_somebody(word: str) -> None:
    assert error_reasons(word) - UNSPECIFIED - used(word) == set()


@pytest.mark.parametrize("word", PACKAGES)
def test_no_service_uses_a_common_reason_for_something_of_its_own(word: str) -> None:
    assert (error_reasons(word) & error_reasons("type")) == UNSPECIFIED


@pytest.mark.parametrize("refusal", [one for one in REFUSALS if "reason" in one.__dict__], ids=lambda one: one.reason)
def test_the_domain_says_in_whose_catalogue_the_reason_stands(refusal: type[Refusal]) -> None:
    # Each takes other arguments; only what every status is made of is needed.
    made = refusal.__new__(refusal)
    Exception.__init__(made, "x")
    made.__dict__.update(metadata={}, violations={}, retry_after_seconds=None)
    word = word_of(refusal)
    status = to_status(made, "orders" if word == "type" else word)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == ("tradeloom" if word == "type" else f"{word}.tradeloom")
    assert status.code == code_of(made).value[0]


def test_every_comment_in_a_catalogue_begins_with_the_code_it_travels_under() -> None:
    """Readers of the contract rely on it, so it is held against what the code does."""
    codes = {(word_of(one), one.__dict__["reason"]): code_of_class(one) for one in REFUSALS if "reason" in one.__dict__}
    for word in ("type", *SERVED):
        comment: list[str] = []
        for line in Path("proto/tradeloom", word, "v1/error_reason.proto").read_text().splitlines():
            text = line.strip()
            if text.startswith("//"):
                comment.append(text.removeprefix("//").strip())
            elif text.startswith("ERROR_REASON_"):
                reason = text.split(" ")[0].removeprefix("ERROR_REASON_")
                if (word, reason) in codes:
                    assert comment[0].split(":")[0] == codes[word, reason], (word, reason)
                comment = []
            else:
                comment = []


def code_of_class(refusal: type[Refusal]) -> str:
    return code_of(refusal.__new__(refusal)).name
