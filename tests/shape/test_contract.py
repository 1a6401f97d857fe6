"""What must hold for every method, message and enum of the contract, whoever adds one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from tradeloom.policy.v1 import policy_pb2

from libs.edge import contract
from libs.edge.contract import Method
from libs.words import WORDS, Word

METHODS = contract.methods()
MUTATING = [method for method in METHODS if not method.read_only]
PERSONAL = (policy_pb2.ACCESS_USER, policy_pb2.ACCESS_OPERATOR, policy_pb2.ACCESS_ADMIN)
NOT_WORDS = {"policy", "type"}
# By the field that holds them: requests that are several, each with a request_id of its own.
OF_THEIR_OWN = {"tradeloom.orders.v1.PlaceOrdersRequest": "orders"}
# They only read, and what they ask with does not fit into a URL.
READ_BY_BODY = {"PreviewOrder"}
# Zero is a true answer here: the venue does not say, the usual one is meant, or any.
ZERO_MEANS_SOMETHING = {
    "tradeloom.marketdata.v1.Adjustment",
    "tradeloom.marketdata.v1.Aggressor",
    "tradeloom.orders.v1.CancelAllOrdersRequest.side",
    "tradeloom.orders.v1.EquityResolution",
    "tradeloom.orders.v1.TimeInForce",
}
# What is never money: research data and speeds.
DOUBLES = {
    "tradeloom.marketdata.v1.Tick",
    "tradeloom.marketdata.v1.BookLevel",
    "tradeloom.marketdata.v1.Quote",
    "tradeloom.marketdata.v1.Mark",
    "tradeloom.marketdata.v1.Candle",
    "tradeloom.feeds.v1.SimulatedSource",
    "tradeloom.feeds.v1.ReplaySource",
    "tradeloom.feeds.v1.VenueBudget",
}
# Of texts alone: a message holds its own.
SECRET = re.compile(
    r"(^|_)(password|refresh_token|access_token|secret|passphrase|challenge|recovery_codes?|otpauth_uri|qr_svg)$"
    r"|^(api_key|token|code)$"
)
MONEY = re.compile(r"(^|_)(price|quantity|amount|fee|fees|balance|cash|notional|equity)$")


def named(method: Method) -> str:
    return f"{method.service}.{method.name}"


def is_idempotent(method: Method) -> bool:
    """Whether services alone may call it, and it says that doing it twice is doing it once."""
    level = method.descriptor.GetOptions().idempotency_level
    return method.policy.access == policy_pb2.ACCESS_SERVICE and level == MethodOptions.IDEMPOTENT


def messages() -> Iterator[Descriptor]:
    def inside(message: Descriptor) -> Iterator[Descriptor]:
        yield message
        for nested in message.nested_types:
            yield from inside(nested)

    for file in contract.files():
        for message in file.message_types_by_name.values():
            yield from inside(message)


def fields() -> Iterator[FieldDescriptor]:
    return (field for message in messages() for field in message.fields)


def enums() -> Iterator[EnumDescriptor]:
    for file in contract.files():
        yield from file.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_every_method_says_who_may_call_it_and_what_it_is_counted_against(method: Method) -> None:
    policy = method.policy
    assert policy.access != policy_pb2.ACCESS_UNSPECIFIED
    assert policy.limit != policy_pb2.LIMIT_UNSPECIFIED
    if policy.access in PERSONAL:
        assert policy.scope != policy_pb2.SCOPE_UNSPECIFIED
    if policy.access == policy_pb2.ACCESS_SERVICE:
        assert policy.services, "a method for services names them"
        assert not method.rests, "the edge has no route to it"
    if policy.access == policy_pb2.ACCESS_PUBLIC:
        assert not policy.step_up
        assert not policy.entitlement


@pytest.mark.parametrize("method", [one for one in MUTATING if not is_idempotent(one)], ids=named)
def test_every_method_that_changes_something_can_be_repeated_safely(method: Method) -> None:
    request = method.descriptor.input_type
    if method.client_streaming:
        # The first part of an upload is its header.
        header = request.fields_by_name["header"].message_type
        assert header is not None
        request = header
    if request.full_name in OF_THEIR_OWN:
        held = request.fields_by_name[OF_THEIR_OWN[request.full_name]].message_type
        assert held is not None
        request = held
    request_id = request.fields_by_name["request_id"]
    assert request_id.number == 1
    assert request_id.type == FieldDescriptor.TYPE_STRING
    rules = request_id.GetOptions().Extensions[validate_pb2.field].string
    assert 0 < rules.max_len <= 64
    if method.policy.limit in (policy_pb2.LIMIT_WRITE, policy_pb2.LIMIT_PAYMENT) and method.word != "auth":
        assert rules.min_len == 1, "only auth, where the act itself is unique, may do without"


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_looking_is_never_counted_as_writing_nor_writing_as_looking(method: Method) -> None:
    if method.policy.limit in (policy_pb2.LIMIT_WRITE, policy_pb2.LIMIT_PAYMENT):
        assert not method.read_only
    if method.policy.limit in (policy_pb2.LIMIT_READ, policy_pb2.LIMIT_STREAM):
        assert method.read_only
    if method.policy.limit == policy_pb2.LIMIT_STREAM:
        assert method.server_streaming
    if method.policy.scope == policy_pb2.SCOPE_READ:
        assert method.read_only


FILES = {"ExportCandles": "a file is of one moment: the second half of a later one would not fit"}
"""Streams that end by themselves and are begun anew, each with the reason."""


@pytest.mark.parametrize(
    "method", [one for one in METHODS if one.server_streaming and one.name not in FILES], ids=named
)
def test_every_stream_can_be_resumed(method: Method) -> None:
    assert method.name.startswith("Stream")
    assert not method.client_streaming, "browsers cannot speak such"
    asked = set(method.descriptor.input_type.fields_by_name)
    assert asked & {"after_cursor", "after_cursors"}
    # The cursor stands in every message, or, where messages are concatenated, in each of their batches or updates.
    answered = method.descriptor.output_type.fields_by_name
    first = answered.get("batches") or answered.get("updates")
    inner = first.message_type.fields_by_name if first is not None and first.message_type else {}
    assert "cursor" in answered or "cursor" in inner


@pytest.mark.parametrize("method", [one for one in METHODS if one.name.startswith("List")], ids=named)
def test_every_list_that_can_grow_has_pages(method: Method) -> None:
    asked = method.descriptor.input_type.fields_by_name
    answered = method.descriptor.output_type.fields_by_name
    if not asked:
        # A list without any parameter is short by nature and says how short in its comment.
        assert method.name == "ListVenues"
        return
    assert {"page_size", "page_token"} <= set(asked)
    assert "next_page_token" in answered
    assert asked["page_size"].GetOptions().Extensions[validate_pb2.field].int32.lte > 0


def test_every_path_means_one_method() -> None:
    found: dict[tuple[str, str], str] = {}
    for method in METHODS:
        for rest in method.rests:
            shape = contract.VARIABLE.sub("{}", rest.template)
            assert found.setdefault((rest.verb, shape), named(method)) == named(method)


@pytest.mark.parametrize("method", [one for one in METHODS if one.rests], ids=named)
def test_every_rest_path_begins_with_its_services_word(method: Method) -> None:
    for rest in method.rests:
        assert rest.template.split("/")[1] in (method.word, ".well-known")
        assert (rest.verb == "GET") == (method.read_only and method.name not in READ_BY_BODY)
        for name in rest.variables:
            assert name in method.descriptor.input_type.fields_by_name


@pytest.mark.parametrize("method", [one for one in METHODS if one.routed and not one.client_streaming], ids=named)
def test_whatever_a_user_may_call_has_a_rest_path(method: Method) -> None:
    assert method.rests


def test_every_service_has_one_word() -> None:
    assert {method.word for method in METHODS} == set(WORDS) - {"web"}
    for word in WORDS:
        assert re.fullmatch("[a-z]+", word)


def test_every_word_is_a_line_of_the_charts_values() -> None:
    values = yaml.safe_load(Path("helm/values.yaml").read_text())["services"]

    assert {name: service["port"] for name, service in values.items()} == {
        word.name: word.alias_port for word in WORDS.values()
    }


@pytest.mark.parametrize("word", sorted({method.word for method in METHODS}))
def test_every_word_has_its_catalogue_of_reasons_and_its_facts(word: str) -> None:
    folder = Path("proto/tradeloom", word, "v1")
    assert (folder / f"{word}.proto").is_file()
    assert (folder / "events.proto").is_file()
    assert (folder / "error_reason.proto").is_file()
    for file in contract.files():
        if file.name.startswith(f"tradeloom/{word}/"):
            assert file.package == f"tradeloom.{word}.v1"


def test_every_folder_of_the_contract_is_a_word() -> None:
    folders = {path.name for path in Path("proto/tradeloom").iterdir() if path.is_dir()}

    assert folders - NOT_WORDS <= set(WORDS)


@pytest.mark.parametrize("kind", ["services", "migrations"])
def test_every_folder_of_services_and_migrations_is_a_word(kind: str) -> None:
    for path in Path(kind).iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert path.name in WORDS


@pytest.mark.parametrize("word", WORDS.values(), ids=lambda word: word.name)
def test_every_word_has_its_folders(word: Word) -> None:
    assert Path("services", word.name, "__main__.py").is_file()
    assert Path("tests", word.name).is_dir()
    assert not word.has_contract or list(Path("migrations", word.name).glob("0001_*.py"))


@pytest.mark.parametrize("enum", list(enums()), ids=lambda enum: enum.full_name)
def test_the_zero_of_an_enum_is_unspecified(enum: EnumDescriptor) -> None:
    assert enum.values[0].number == 0
    assert enum.values[0].name.endswith("_UNSPECIFIED")
    assert not enum.name.endswith("Status"), "states are called State"


def test_an_enum_in_a_request_refuses_its_zero_or_means_something_by_it() -> None:
    for method in METHODS:
        for field in method.descriptor.input_type.fields:
            if field.enum_type is not None and not {field.enum_type.full_name, field.full_name} & ZERO_MEANS_SOMETHING:
                rules = field.GetOptions().Extensions[validate_pb2.field]
                one = rules.repeated.items.enum if field.is_repeated else rules.enum
                allowed = list(getattr(one, "in"))
                assert 0 in one.not_in or (allowed and 0 not in allowed), field.full_name


def test_money_is_decimal_and_never_a_float() -> None:
    for field in fields():
        assert field.containing_type is not None
        owner = field.containing_type.full_name
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            assert owner in DOUBLES, field.full_name
        elif MONEY.search(field.name) and owner not in DOUBLES:
            message = field.message_type
            assert message is not None, field.full_name
            assert message.full_name in ("tradeloom.type.v1.Decimal", "tradeloom.orders.v1.Amount"), field.full_name


def test_times_are_timestamps_and_say_so() -> None:
    for field in fields():
        timed = field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp"
        is_named_so = field.name == "time" or field.name.endswith("_time") or field.name == "send_before"
        assert timed == is_named_so, field.full_name


def test_secrets_are_marked_and_nothing_else_is() -> None:
    for field in fields():
        is_secret = field.message_type is None and bool(SECRET.search(field.name))
        assert field.GetOptions().debug_redact == is_secret, field.full_name


def test_every_text_in_a_request_has_a_bound() -> None:
    for method in METHODS:
        for field in method.descriptor.input_type.fields:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            text = rules.string
            if field.is_repeated:
                assert rules.repeated.max_items > 0, field.full_name
            elif field.type == FieldDescriptor.TYPE_STRING:
                assert text.max_len or text.uuid or getattr(text, "in"), field.full_name


def test_message_level_rules_begin_with_their_field() -> None:
    for message in messages():
        for rule in message.GetOptions().Extensions[validate_pb2.message].cel:
            assert rule.id.split(".")[0] in message.fields_by_name, rule.id
