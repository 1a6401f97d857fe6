"""Writes gen/openapi: the REST side of the contract as OpenAPI 3.1, one document for each word and one for all.

Comments become descriptions, field rules constraints, policies security.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor import FieldDescriptor as F
from tradeloom.policy.v1 import policy_pb2

from libs.edge import contract
from libs.edge.contract import Method, Rest
from libs.words import EDGE_PORT

FOLDER = Path("gen/openapi")
Json = dict[str, Any]

SCALARS: dict[int, Json] = {
    F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    F.TYPE_FLOAT: {"type": "number", "format": "float"},
    F.TYPE_INT32: {"type": "integer", "format": "int32"},
    F.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0},
    # Proto's JSON writes 64-bit numbers as text, since JavaScript's cannot hold them.
    F.TYPE_INT64: {"type": "string", "format": "int64"},
    F.TYPE_UINT64: {"type": "string", "format": "uint64"},
    F.TYPE_BOOL: {"type": "boolean"},
    F.TYPE_STRING: {"type": "string"},
    F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    # Names of fields, separated by commas.
    "google.protobuf.FieldMask": {"type": "string", "example": "locale,time_zone"},
    "google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?s$"},
}
MATCHES = re.compile(r"this\.matches\('(?P<pattern>[^']*)'\)")
NUMBERS = ("int32", "int64", "uint32", "uint64", "double", "float")
BOUNDS = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
ROLES = {policy_pb2.ACCESS_OPERATOR: "role:operator", policy_pb2.ACCESS_ADMIN: "role:admin"}
IF_ENROLLED = {policy_pb2.STEP_UP_IF_ENROLLED: ", of who has set one up"}
COMMON = "tradeloom/type/v1/error_reason.proto"
# A body that is taken as it comes, whatever it is.
RAW = "google.api.HttpBody"

REFUSAL: Json = {
    "type": "object",
    "description": "Why a call was refused: google.rpc.Status.",
    "properties": {
        "code": {"type": "integer", "description": "The code of gRPC."},
        "message": {"type": "string", "description": "For people."},
        "details": {
            "type": "array",
            "description": "An ErrorInfo with a catalogued reason; BadRequest, RetryInfo or QuotaFailure where they help.",
            "items": {
                "type": "object",
                "required": ["@type"],
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"type": "string"},
                    "domain": {"type": "string"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
    },
}


class Comments:
    """What stands above each element of the contract, by its full name."""

    def __init__(self, compiled: descriptor_pb2.FileDescriptorSet) -> None:
        self._texts: dict[str, str] = {}
        for file in compiled.file:
            for location in file.source_code_info.location:
                name = named(file, list(location.path))
                if name and location.leading_comments:
                    self._texts[name] = " ".join(location.leading_comments.split())

    def of(self, full_name: str) -> str:
        return self._texts.get(full_name, "")


def named(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str | None:
    """The full name of what a path of numbers leads to; None for what has no name, such as options."""
    element: Any = file
    names = [file.package]
    while path:
        field = element.DESCRIPTOR.fields_by_number.get(path[0])
        if field is None or len(path) < 2 or not field.is_repeated or field.message_type is None:
            return None
        element = getattr(element, field.name)[path[1]]
        if not hasattr(element, "name"):
            return None
        names.append(element.name)
        path = path[2:]
    if isinstance(element, descriptor_pb2.EnumValueDescriptorProto):
        names.pop(-2)  # values are named beside their enum, not inside it
    return ".".join(names)


def compiled() -> descriptor_pb2.FileDescriptorSet:
    """The contract with its comments, which the generated Python has not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "contract.binpb")
        subprocess.run(["buf", "build", "proto", "--as-file-descriptor-set", "-o", str(path)], check=True)
        return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


class Document:
    """One OpenAPI document, made method by method."""

    def __init__(self, title: str, description: str, comments: Comments) -> None:
        self._comments = comments
        self._schemas: Json = {"Refusal": REFUSAL}
        self._responses: Json = {}
        self._paths: Json = {}
        self._tags: Json = {}
        self._head = {"title": title, "version": "v1", "description": description}

    def add(self, method: Method) -> None:
        service = method.service
        short = service.rsplit(".", 1)[1]
        self._tags[short] = {"name": short, "description": self._comments.of(service)}
        for number, rest in enumerate(method.rests):
            operation = self._operation(method, rest)
            operation["operationId"] = f"{short}_{method.name}" + (f"_{number + 1}" if number else "")
            path = contract.VARIABLE.sub(lambda found: "{" + found["name"] + "}", rest.template)
            self._paths.setdefault(path, {})[rest.verb.lower()] = operation

    def finished(self) -> Json:
        return {
            "openapi": "3.1.0",
            "info": self._head,
            "servers": [
                {"url": "/"},
                {"url": f"http://localhost:{EDGE_PORT}", "description": "The embedded stack"},
            ],
            "tags": [self._tags[name] for name in sorted(self._tags)],
            "paths": {path: self._paths[path] for path in sorted(self._paths)},
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "The access token of `POST /auth/login`.",
                    }
                },
                "responses": {name: self._responses[name] for name in sorted(self._responses)},
                "schemas": {name: self._schemas[name] for name in sorted(self._schemas)},
            },
        }

    def _operation(self, method: Method, rest: Rest) -> Json:
        comment = self._comments.of(f"{method.service}.{method.name}")
        request, response = method.descriptor.input_type, method.descriptor.output_type
        answer: Json = {"schema": self._reference(response)}
        if method.server_streaming:
            comment += " Answers one JSON object a line for as long as the stream lives."
        operation: Json = {
            "tags": [method.service.rsplit(".", 1)[1]],
            "summary": comment.split(". ")[0].rstrip("."),
            "description": f"{comment}\n\n{needs(method.policy)}",
            "parameters": list(self._parameters(request, rest)),
            "responses": {
                "200": {
                    "description": self._comments.of(response.full_name),
                    "content": {"application/json": answer},
                },
                "default": {"$ref": f"#/components/responses/{self._refusal(method.word)}"},
            },
            "security": security(method.policy),
            "x-tradeloom-policy": policy(method.policy),
        }
        if rest.body:
            body = request if rest.body == "*" else request.fields_by_name[rest.body].message_type
            assert body is not None, f"the body of {method.path} is no message"
            raw = body.full_name == RAW
            content = {"*/*": {}} if raw else {"application/json": {"schema": self._body(body, rest)}}
            operation["requestBody"] = {"required": True, "content": content}
        return operation

    def _body(self, message: Descriptor, rest: Rest) -> Json:
        """The request without what the path already says."""
        if not rest.variables:
            return self._reference(message)
        schema = self._message(message)
        for name in rest.variables:
            schema["properties"].pop(name, None)
        schema["required"] = [name for name in schema.get("required", []) if name not in rest.variables]
        return {key: value for key, value in schema.items() if value != []}

    def _parameters(self, request: Descriptor, rest: Rest) -> Iterator[Json]:
        for name in rest.variables:
            field = leaf(request, name)
            schema = self._field(field)
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "description": schema.pop("description", ""),
                "schema": schema,
            }
        if rest.body == "*":
            return
        for name, field in leaves(request, rest.body):
            if name not in rest.variables:
                schema = self._field(field)
                yield {
                    "name": name,
                    "in": "query",
                    "required": required(field),
                    "description": schema.pop("description", ""),
                    "schema": schema,
                }

    def _refusal(self, word: str) -> str:
        name = f"{word}.Refusal"
        if name not in self._responses:
            lines = [
                *self._reasons(f"tradeloom/{word}/v1/error_reason.proto"),
                *self._reasons(COMMON),
            ]
            self._responses[name] = {
                "description": "Refused, for one of these reasons:\n\n" + "\n".join(lines),
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
            }
        return name

    def _reasons(self, path: str) -> Iterator[str]:
        for file in contract.files():
            if file.name == path:
                for enum in file.enum_types_by_name.values():
                    for value in enum.values[1:]:
                        reason = value.name.removeprefix("ERROR_REASON_")
                        yield f"- `{reason}`: {self._comments.of(f'{file.package}.{value.name}')}"

    def _reference(self, message: Descriptor) -> Json:
        if message.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[message.full_name])
        name = short_name(message.full_name)
        if name not in self._schemas:
            self._schemas[name] = {}  # messages may hold each other
            self._schemas[name] = self._message(message)
        return {"$ref": f"#/components/schemas/{name}"}

    def _message(self, message: Descriptor) -> Json:
        description = [self._comments.of(message.full_name)]
        rules = message.GetOptions().Extensions[validate_pb2.message]
        description += [f"Rule `{rule.id}`: {rule.message}." for rule in rules.cel]
        for oneof in message.oneofs:
            names = ", ".join(f"`{field.name}`" for field in oneof.fields)
            exactly = oneof.GetOptions().Extensions[validate_pb2.oneof].required
            description.append(f"{'Exactly' if exactly else 'At most'} one of {names}.")
        schema: Json = {
            "type": "object",
            "description": " ".join(filter(None, description)),
            "properties": {field.name: self._field(field) for field in message.fields},
        }
        if names := [field.name for field in message.fields if required(field)]:
            schema["required"] = names
        return schema

    def _enum(self, enum: EnumDescriptor) -> Json:
        name = short_name(enum.full_name)
        if name not in self._schemas:
            package = enum.full_name.rsplit(".", 1)[0]
            lines = [f"- `{value.name}`: {self._comments.of(f'{package}.{value.name}')}" for value in enum.values]
            self._schemas[name] = {
                "type": "string",
                "description": "\n".join([self._comments.of(enum.full_name), "", *lines]),
                "enum": [value.name for value in enum.values],
            }
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: FieldDescriptor) -> Json:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        description = [self._comments.of(field.full_name), *(f"It {rule.message}." for rule in rules.cel)]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            # Written as an object, whatever its keys are.
            value = self._single(field.message_type.fields_by_name["value"])
            schema: Json = {"type": "object", "additionalProperties": {**value, **constraints(rules.map.values)}}
            if rules.map.HasField("max_pairs"):
                schema["maxProperties"] = rules.map.max_pairs
        elif field.is_repeated:
            repeated = rules.repeated
            schema = {"type": "array", "items": {**self._single(field), **constraints(repeated.items)}}
            if repeated.HasField("min_items"):
                schema["minItems"] = repeated.min_items
            if repeated.HasField("max_items"):
                schema["maxItems"] = repeated.max_items
            if repeated.unique:
                schema["uniqueItems"] = True
        else:
            schema = {**self._single(field), **constraints(rules)}
        if field.GetOptions().debug_redact and schema.get("type") == "string":
            schema["format"] = "password"
        return {**schema, "description": " ".join(filter(None, description))}

    def _single(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self._reference(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(SCALARS[field.type])


def constraints(rules: validate_pb2.FieldRules) -> Json:
    """What JSON Schema can say of a field's rules."""
    found: Json = {}
    kind = rules.WhichOneof("type")
    for rule in rules.cel:
        if matches := MATCHES.fullmatch(rule.expression):
            found["pattern"] = matches["pattern"]
    if kind == "string":
        text = rules.string
        if text.HasField("min_len"):
            found["minLength"] = text.min_len
        if text.HasField("max_len"):
            found["maxLength"] = text.max_len
        if text.HasField("pattern"):
            found["pattern"] = text.pattern
        if getattr(text, "in"):
            found["enum"] = list(getattr(text, "in"))
        for name in ("uuid", "email"):
            if text.WhichOneof("well_known") == name:
                found["format"] = name
    elif kind in NUMBERS:
        number = getattr(rules, kind)
        # As text, 64-bit numbers have no bounds that JSON Schema could say.
        if not kind.endswith("64"):
            found |= {key: getattr(number, name) for name, key in BOUNDS.items() if number.HasField(name)}
    elif kind == "bytes" and rules.bytes.HasField("max_len"):
        found["maxLength"] = (rules.bytes.max_len + 2) // 3 * 4
    return found


def required(field: FieldDescriptor) -> bool:
    """Whether leaving it out breaks its rules."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return False
    return (
        rules.required
        or rules.string.min_len > 0
        or rules.string.uuid
        or rules.string.email
        or rules.repeated.min_items > 0
        or 0 in rules.enum.not_in
        or (len(getattr(rules.enum, "in")) > 0 and 0 not in getattr(rules.enum, "in"))
    )


def leaf(message: Descriptor, path: str) -> FieldDescriptor:
    *outer, last = path.split(".")
    for name in outer:
        inner = message.fields_by_name[name].message_type
        assert inner is not None, f"{path} leads through a field that is no message"
        message = inner
    return message.fields_by_name[last]


def leaves(message: Descriptor, body: str, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """The fields that a query can name, those of inner messages with dots."""
    for field in message.fields:
        if prefix + field.name == body:
            continue
        inner = field.message_type
        if inner is None or inner.full_name in WELL_KNOWN:
            yield prefix + field.name, field
        elif not field.is_repeated:
            yield from leaves(inner, body, f"{prefix}{field.name}.")


def needs(one: policy_pb2.Policy) -> str:
    if one.access == policy_pb2.ACCESS_PUBLIC:
        return "Needs no token."
    parts = ["a token"]
    if one.access in ROLES:
        parts.append(f"the {ROLES[one.access].replace(':', ' ')}")
    parts.append(f"the scope {scope(one)}")
    if one.entitlement:
        parts.append(f"the entitlement {one.entitlement}")
    if one.verified_email:
        parts.append("a verified e-mail address")
    if one.step_up:
        parts.append("a fresh second factor" + IF_ENROLLED.get(one.step_up, ""))
    return "Needs " + ", ".join(parts) + "."


def security(one: policy_pb2.Policy) -> list[Json]:
    if one.access == policy_pb2.ACCESS_PUBLIC:
        return []
    roles = [ROLES[one.access]] if one.access in ROLES else []
    entitlements = [f"entitlement:{one.entitlement}"] if one.entitlement else []
    return [{"bearer": [*roles, f"scope:{scope(one)}", *entitlements]}]


def policy(one: policy_pb2.Policy) -> Json:
    found: Json = {
        "access": policy_pb2.Access.Name(one.access).removeprefix("ACCESS_").lower(),
        "limit": policy_pb2.Limit.Name(one.limit).removeprefix("LIMIT_").lower(),
    }
    if one.scope:
        found["scope"] = scope(one)
    if one.entitlement:
        found["entitlement"] = one.entitlement
    if one.verified_email:
        found["verified_email"] = True
    if one.step_up:
        found["step_up"] = policy_pb2.StepUp.Name(one.step_up).removeprefix("STEP_UP_").lower()
    return found


def scope(one: policy_pb2.Policy) -> str:
    return policy_pb2.Scope.Name(one.scope).removeprefix("SCOPE_").lower()


def short_name(full_name: str) -> str:
    """`tradeloom.orders.v1.Order` → `orders.Order`."""
    _, word, _, *names = full_name.split(".")
    return ".".join([word, *names])


def documents() -> dict[str, Json]:
    """By file name without its ending."""
    comments = Comments(compiled())
    methods = [method for method in contract.methods() if method.rests and method.routed]
    found: dict[str, Json] = {}
    for word in sorted({method.word for method in methods}):
        own = [method for method in methods if method.word == word]
        description = " ".join(dict.fromkeys(comments.of(method.service) for method in own))
        found[word] = document(f"Tradeloom: {word}", description, own, comments)
    found["tradeloom"] = document("Tradeloom", "Every service's REST paths, on one port.", methods, comments)
    return found


def document(title: str, description: str, methods: list[Method], comments: Comments) -> Json:
    made = Document(title, description, comments)
    for method in methods:
        made.add(method)
    return made.finished()


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = documents()
    for path in folder.glob("*.json"):
        if path.stem not in made:
            path.unlink()
    for name, content in made.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
