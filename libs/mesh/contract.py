"""What the contract says of each method: its policy, its shape and its types."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from tradeloom.policy.v1 import policy_pb2

from libs.words import WORDS

PACKAGES = tuple(word.name for word in WORDS.values() if word.has_contract)


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One RPC; path is what travels, such as "/tradeloom.orders.v1.OrderService/PlaceOrder"."""

    path: str
    descriptor: MethodDescriptor
    policy: policy_pb2.Policy

    @property
    def word(self) -> str:
        return self.path.split(".")[1]

    @property
    def name(self) -> str:
        return self.descriptor.name

    @property
    def reads_only(self) -> bool:
        return self.descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS

    @property
    def client_streams(self) -> bool:
        return self.descriptor.client_streaming

    @property
    def server_streams(self) -> bool:
        return self.descriptor.server_streaming


def services(*words: str) -> Iterator[ServiceDescriptor]:
    """The gRPC services of these words, or of all, in the order of the contract: of a word its own file's first."""
    for word in words or PACKAGES:
        yield from _services_of(word)


@functools.cache  # looking through a package's folder costs more than all the rest of building a server
def _services_of(word: str) -> tuple[ServiceDescriptor, ...]:
    package = import_module(f"tradeloom.{word}.v1")
    names = [module.name for module in iter_modules(package.__path__) if module.name.endswith("_pb2")]
    return tuple(
        service
        for name in sorted(names, key=lambda name: (name != f"{word}_pb2", name))
        for service in import_module(f"{package.__name__}.{name}").DESCRIPTOR.services_by_name.values()
    )


@functools.cache
def methods(*words: str) -> dict[str, Method]:
    """Every method by its path."""
    return {
        path: Method(path, descriptor, descriptor.GetOptions().Extensions[policy_pb2.policy])
        for service in services(*words)
        for descriptor in service.methods
        for path in [f"/{service.full_name}/{descriptor.name}"]
    }


@functools.cache
def error_reasons(word: str) -> frozenset[str]:
    """The reasons of a service's catalogue, or of "type" for those of every service, without their prefix."""
    import_module(f"tradeloom.{word}.v1.error_reason_pb2")
    catalogue = descriptor_pool.Default().FindEnumTypeByName(f"tradeloom.{word}.v1.ErrorReason")
    return frozenset(value.name.removeprefix("ERROR_REASON_") for value in catalogue.values)


def without_secrets(message: Message) -> None:
    """Clears every field marked `debug_redact`, at any depth, in place."""
    for field, value in message.ListFields():
        if field.GetOptions().debug_redact:
            message.ClearField(field.name)
        else:
            for nested in messages_in(field, value):
                without_secrets(nested)


def messages_in(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    """The messages that a field holds: one, several, the values of a map, or none."""
    if field.message_type is None:
        return ()
    if field.message_type.GetOptions().map_entry:
        return value.values() if field.message_type.fields_by_name["value"].message_type else ()
    return value if field.is_repeated else (value,)
