"""What is kept in memory has bounds, and the bounds fit into what there is."""

from pathlib import Path

from libs.bus import feed
from libs.mesh.contract import PACKAGES
from libs.stack.valkey import MEMORY_MAX
from libs.store.outbox import PARTITIONS
from libs.store.relay import ENTRY_BYTES, STREAM_ENTRIES_MAX
from services.feeds.feeder import LEAD_TICKS_MAX
from services.feeds.settings import Settings
from services.feeds.sources.simulated import CHARACTERS

GIGABYTE = 2**30
SOURCES = [word for word in PACKAGES if Path("services", word, "__main__.py").exists()]
RUNNING_FEEDS_MAX: int = Settings.model_fields["running_feeds_max"].default
TRIMMED_TOGETHER = 100  # of Redis: an approximate trim leaves up to a node of a stream more


def test_the_facts_of_all_services_take_less_than_half_of_what_redis_may_hold() -> None:
    assert MEMORY_MAX.endswith("gb")
    assert f"- --maxmemory\n            - {MEMORY_MAX}\n" in Path("k8s/redis.yaml").read_text()
    memory_bytes = int(MEMORY_MAX.removesuffix("gb")) * GIGABYTE
    assert facts_bytes() < memory_bytes / 2


def test_facts_the_simulated_market_and_as_many_replays_as_may_run_fit_into_redis_together() -> None:
    memory_bytes = int(MEMORY_MAX.removesuffix("gb")) * GIGABYTE
    # What is not stored of the simulated market may grow up to the stream's bound; a replay waits to be stored.
    of_replay = (feed.RESUME_EVENTS + feed.TRIM_EVENTS + LEAD_TICKS_MAX) * feed.STREAM_BYTES_MAX / feed.EVENTS_MAX
    simulated_bytes = len(CHARACTERS) * feed.STREAM_BYTES_MAX
    assert simulated_bytes < memory_bytes / 2
    assert facts_bytes() + simulated_bytes + RUNNING_FEEDS_MAX * of_replay < memory_bytes


def facts_bytes() -> int:
    entries = len(SOURCES) * PARTITIONS * (STREAM_ENTRIES_MAX + TRIMMED_TOGETHER)
    return entries * ENTRY_BYTES
