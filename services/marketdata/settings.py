"""What an operator may turn, with the units in the names."""

from typing import ClassVar

from pydantic import NonNegativeInt

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
    # How long what is stored is kept, in days; 0 is for ever. It goes by whole parts: ticks and bars of a minute by the month,
    # bars of a second by the day, bars of 5 and 15 minutes by the year. Longer bars are kept for ever.
    tick_kept_days: NonNegativeInt = 0
    second_kept_days: NonNegativeInt = 30
    minute_kept_days: NonNegativeInt = 0
    quarter_kept_days: NonNegativeInt = 0

    @property
    def kept_days(self) -> dict[str, int]:
        """By the tables that have such parts."""
        return {
            "market_data_ticks": self.tick_kept_days,
            "market_data_ohlcv_1s": self.second_kept_days,
            "market_data_ohlcv_1m": self.minute_kept_days,
            "market_data_ohlcv_5m_15m": self.quarter_kept_days,
        }
