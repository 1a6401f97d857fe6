"""The one word of each service, and the ports that follow from it.

The word names the proto package, the folder, the schema, the migrations, the environment prefix, the Helm key, the
Envoy cluster, the error domain and the tests' folder.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

EDGE_PORT = 8080


@dataclass(frozen=True, slots=True)
class Word:
    name: str
    alias_port: int
    """Where the earlier system had it: on one machine the edge answers its REST paths, /health and /docs there too."""
    also_port: int | None = None
    """A second port of the earlier system, with the same answers."""
    has_contract: bool = True
    """Whether it answers RPCs; web only serves files."""

    @property
    def mesh_port(self) -> int:
        """Mutual TLS gRPC."""
        return self.alias_port + 10_000

    @property
    def probe_port(self) -> int:
        """Plain HTTP: /health, /live and /metrics."""
        return self.alias_port + 20_000

    @property
    def alias_ports(self) -> tuple[int, ...]:
        return (self.alias_port,) if self.also_port is None else (self.alias_port, self.also_port)


TABLE = (
    Word("auth", 8011),
    Word("users", 8001, also_port=8012),
    Word("billing", 8013),
    Word("algo", 8014),
    Word("orders", 8015),
    Word("marketdata", 8016),
    Word("feeds", 8017),
    Word("execution", 8018),
    Word("screener", 8019),
    Word("alerts", 8020),
    Word("notifications", 8021),
    Word("web", 8022, has_contract=False),
    Word("reports", 8023),
)
"""All there will be; a service is part of the mesh once the contract has it."""


def in_contract(word: str) -> bool:
    # Found, not imported: whoever only wants a port does not load messages.
    spec = find_spec("tradeloom")
    roots = spec.submodule_search_locations if spec else None
    return any(Path(root, word, "v1", f"{word}_pb2.py").exists() for root in roots or ())


WORDS = {word.name: word for word in TABLE if in_contract(word.name) or not word.has_contract}
