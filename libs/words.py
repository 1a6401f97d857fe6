"""The one word of each service, and the ports that follow from it.

The word names the proto package, the folder, the schema, the migrations, the environment prefix, the Helm key, the
Envoy cluster, the error domain and the tests' folder.
"""

from dataclasses import dataclass

EDGE_PORT = 8080


@dataclass(frozen=True, slots=True)
class Word:
    name: str
    alias_port: int
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


WORDS = {
    word.name: word
    for word in (
        Word("auth", 8011),
        Word("orders", 8015),
        Word("marketdata", 8016),
        Word("feeds", 8017),
        Word("execution", 8018),
        Word("web", 8022, has_contract=False),
    )
}
