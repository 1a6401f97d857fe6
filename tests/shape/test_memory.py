"""What is kept in memory has bounds, and the bounds fit into what there is."""

from pathlib import Path

from libs.mesh.contract import PACKAGES
from libs.stack.valkey import MEMORY_MAX
from libs.store.outbox import PARTITIONS
from libs.store.relay import ENTRY_BYTES, STREAM_ENTRIES_MAX

GIGABYTE = 2**30
SOURCES = [word for word in PACKAGES if Path("services", word, "__main__.py").exists()]
TRIMMED_TOGETHER = 100  # of Redis: an approximate trim leaves up to a node of a stream more


def test_the_facts_of_all_services_take_less_than_half_of_what_redis_may_hold() -> None:
    assert MEMORY_MAX.endswith("gb")
    assert f"- --maxmemory\n            - {MEMORY_MAX}\n" in Path("k8s/redis.yaml").read_text()
    memory_bytes = int(MEMORY_MAX.removesuffix("gb")) * GIGABYTE
    entries = len(SOURCES) * PARTITIONS * (STREAM_ENTRIES_MAX + TRIMMED_TOGETHER)
    assert entries * ENTRY_BYTES < memory_bytes / 2
