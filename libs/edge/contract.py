"""Reads the compiled contract: every method, who may call it and where REST finds it."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tradeloom
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2
from tradeloom.policy.v1 import policy_pb2

HTTP: Any = annotations_pb2.http  # its package has no types
VERBS = ("get", "put", "post", "delete", "patch")
VARIABLE = re.compile(r"\{(?P<name>[a-z0-9_.]+)(=(?P<pattern>[^}]+))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """One HTTP verb and path of a method, as `google.api.http` gives it."""

    verb: str
    template: str
    body: str

    @property
    def variables(self) -> list[str]:
        return [found["name"] for found in VARIABLE.finditer(self.template)]

    @property
    def path_regex(self) -> str | None:
        """What paths match, or None where only the template itself does."""
        if not self.variables:
            return None
        parts: list[str] = []
        position = 0
        for found in VARIABLE.finditer(self.template):
            parts.append(re.escape(self.template[position : found.start()]))
            pattern = found["pattern"] or "*"
            parts.append(re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^/]+"))
            position = found.end()
        return "".join([*parts, re.escape(self.template[position:])])

    @property
    def precedence(self) -> tuple[tuple[bool, str], ...]:
        """Sorts fixed segments before variable ones, as the transcoder prefers them."""
        return tuple((segment.startswith("{"), segment) for segment in self.template.split("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC."""

    word: str
    service: str
    name: str
    policy: policy_pb2.Policy
    read_only: bool
    client_streaming: bool
    server_streaming: bool
    rests: tuple[Rest, ...]
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def public(self) -> bool:
        return self.policy.access == policy_pb2.ACCESS_PUBLIC

    @property
    def routed(self) -> bool:
        """Whether it can be called through the edge: methods for services cannot."""
        return self.policy.access not in (policy_pb2.ACCESS_UNSPECIFIED, policy_pb2.ACCESS_SERVICE)


@cache
def files() -> tuple[FileDescriptor, ...]:
    """Every file of the contract, in the order of their names."""
    pool = descriptor_pool.Default()
    names: list[str] = []
    for root in tradeloom.__path__:
        for path in Path(root).rglob("*_pb2.py"):
            module = path.relative_to(Path(root).parent).with_suffix("")
            importlib.import_module(".".join(module.parts))
            names.append(module.as_posix().removesuffix("_pb2") + ".proto")
    return tuple(pool.FindFileByName(name) for name in sorted(set(names)))


@cache
def services() -> tuple[ServiceDescriptor, ...]:
    """Every service of the contract, in the order of their full names."""
    found = (service for file in files() for service in file.services_by_name.values())
    return tuple(sorted(found, key=lambda service: service.full_name))


@cache
def methods() -> tuple[Method, ...]:
    """Every method of the contract, service by service, in the order they are written."""
    return tuple(method_from(method) for service in services() for method in service.methods)


def method_from(method: MethodDescriptor) -> Method:
    service = method.containing_service
    options = method.GetOptions()
    return Method(
        word=service.full_name.split(".")[1],
        service=service.full_name,
        name=method.name,
        policy=options.Extensions[policy_pb2.policy],
        read_only=options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        rests=tuple(rests_from(options.Extensions[HTTP])),
        descriptor=method,
    )


def rests_from(rule: http_pb2.HttpRule) -> Iterator[Rest]:
    for one in (rule, *rule.additional_bindings):
        verb = one.WhichOneof("pattern")
        if verb in VERBS:
            yield Rest(verb=verb.upper(), template=getattr(one, verb), body=one.body)


def descriptor_set() -> bytes:
    """The contract and all it imports as a FileDescriptorSet, imports first; for the transcoder.

    With the standard details of errors, which no file imports but every refusal carries.
    """
    ordered: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in ordered:
            return
        for imported in file.dependencies:
            add(imported)
        ordered[file.name] = file

    for file in (*files(), error_details_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR):
        add(file)
    found = descriptor_pb2.FileDescriptorSet()
    for file in ordered.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString(deterministic=True)
