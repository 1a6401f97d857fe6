"""The committed OpenAPI documents against the contract they were made from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tradeloom.policy.v1 import policy_pb2

from libs.edge import contract

FOLDER = Path("gen/openapi")
DOCUMENTS = sorted(FOLDER.glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_there_is_one_document_for_each_word_and_one_for_all() -> None:
    words = {method.word for method in contract.methods() if method.rests}

    assert {path.stem for path in DOCUMENTS} == {*words, "tradeloom"}


def test_the_document_of_all_has_every_rest_path_with_its_policy() -> None:
    paths = read(FOLDER / "tradeloom.json")["paths"]
    found = 0
    for method in contract.methods():
        for rest in method.rests:
            operation = paths[rest.template][rest.verb.lower()]
            assert operation["operationId"].endswith(f"_{method.name}")
            assert bool(operation["security"]) == (method.policy.access != policy_pb2.ACCESS_PUBLIC)
            found += 1
    assert found == sum(len(operations) for operations in paths.values())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_reference_leads_somewhere_and_everything_is_described(path: Path) -> None:
    document = read(path)
    for part in walk(document):
        if "$ref" in part:
            target: Any = document
            for name in part["$ref"].removeprefix("#/").split("/"):
                target = target[name]
        assert part.get("description") != ""
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert {"200", "default"} <= set(operation["responses"])


def test_field_rules_become_constraints() -> None:
    schemas = read(FOLDER / "tradeloom.json")["components"]["schemas"]
    order = schemas["orders.PlaceOrderRequest"]

    assert {"request_id", "account_id", "instrument_id", "side", "order_type", "quantity"} == set(order["required"])
    assert order["properties"]["account_id"]["format"] == "uuid"
    assert order["properties"]["request_id"]["maxLength"] == 64
    assert schemas["type.Decimal"]["properties"]["value"]["pattern"].startswith("^-?[0-9]")
    assert schemas["auth.RegisterRequest"]["properties"]["password"] == {
        "type": "string",
        "minLength": 12,
        "maxLength": 256,
        "format": "password",
        "description": "At least 12 characters.",
    }


def test_what_the_path_says_is_not_asked_for_again_in_the_body() -> None:
    operation = read(FOLDER / "tradeloom.json")["paths"]["/orders/{order_id}/cancel"]["post"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["order_id"]
    assert set(operation["requestBody"]["content"]["application/json"]["schema"]["properties"]) == {"request_id"}


def test_reasons_of_refusals_are_listed() -> None:
    responses = read(FOLDER / "orders.json")["components"]["responses"]

    assert "`INSUFFICIENT_BALANCE`: FAILED_PRECONDITION" in responses["orders.Refusal"]["description"]


def test_a_map_is_an_object_and_a_body_that_is_taken_as_it_comes_may_be_anything() -> None:
    document = read(FOLDER / "billing.json")
    quotas = document["components"]["schemas"]["billing.Plan"]["properties"]["quotas"]
    webhook = document["paths"]["/billing/stripe/webhook"]["post"]

    assert quotas["type"] == "object"
    assert quotas["additionalProperties"] == {"type": "string", "format": "int64"}
    assert quotas["maxProperties"] == 100
    assert webhook["requestBody"] == {"required": True, "content": {"*/*": {}}}
    assert [parameter["name"] for parameter in webhook["parameters"]] == ["request_id"]
