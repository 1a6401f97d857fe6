"""What an operator may turn, with the units in the names."""

from typing import ClassVar

from libs.mesh.settings import ServiceSettings


class Settings(ServiceSettings):
    word: ClassVar[str] = "marketdata"

    # Ticks and bars are stored at most so often; also how old the stored forming bar may be.
    store_interval_seconds: float = 0.25
    # How often candle streams look for what was stored; with the above, how often a forming bar is told.
    candle_interval_seconds: float = 0.25
    # What may wait for one reader of ticks before it counts as slow. Readers of the same instrument share the memory.
    reader_bytes_max: int = 16 * 1024 * 1024
    # Changes of books that may wait for one reader; beyond, the books as they stand replace them.
    reader_book_updates_max: int = 2_000
    # Ready batches are joined into messages of about this size when a reader has several to take.
    tick_message_bytes: int = 256 * 1024
    # Files imported at once; others wait. Each is held in memory whole.
    imports_at_once_max: int = 2
