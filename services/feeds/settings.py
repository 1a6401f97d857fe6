"""What an operator may turn, with the units in the names."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from libs.margin import FUNDING_INTERVAL_SECONDS
from libs.mesh.settings import Environment, ServiceSettings
from services.feeds.domain import INSTRUMENT_BYTES_MIN
from services.feeds.room import KEPT_BYTES_MAX, TICKS_BYTES_MAX
from services.feeds.sources.simulated import TRADES_PER_SECOND
from services.feeds.venues import Addresses


class Settings(ServiceSettings):
    word: ClassVar[str] = "feeds"

    # Recorded files are played out of this folder alone; without one, none can be.
    replay_folder: Path | None = None
    # Feeds that run at once; each takes one of the worker's database connections, and a replay holds its file in memory.
    running_feeds_max: PositiveInt = 8
    # Bytes of Redis's memory for ticks, divided among all instruments; as many run as leave each a quarter of a megabyte. It
    # has to leave room below Redis's maxmemory for all else: facts take less than half a gigabyte.
    ticks_bytes_max: int = Field(default=TICKS_BYTES_MAX, ge=INSTRUMENT_BYTES_MIN)
    # Bytes of this process's memory for ticks that are not known to be stored, in case Redis loses them; divided alike.
    kept_bytes_max: PositiveInt = KEPT_BYTES_MAX
    # Whether the simulated market is kept running; in development it is, unless this says no.
    simulated: bool | None = None
    simulated_seed: int = 1
    simulated_trades_per_second: float = TRADES_PER_SECOND
    # Between two settlements of funding of its perpetual futures.
    simulated_funding_interval_seconds: PositiveInt = FUNDING_INTERVAL_SECONDS

    # Where bars of the past are put.
    market_data_url: str = "127.0.0.1:18016"
    # Names the address that venues see requests come from. Whoever shares it shares what may be asked; replicas that leave
    # through different gateways have different names.
    from_address: str = "default"
    # Where venues are, if not where everybody finds them: the address of their REST and of their WebSocket servers.
    binance_url: str = ""
    binance_stream_url: str = ""
    binance_futures_url: str = ""
    binance_futures_stream_url: str = ""
    kraken_url: str = ""
    kraken_stream_url: str = ""

    @property
    def instruments_max(self) -> int:
        """Those that may run at once."""
        return self.ticks_bytes_max // INSTRUMENT_BYTES_MIN

    @property
    def addresses(self) -> dict[str, Addresses]:
        return {
            "BINANCE": Addresses(self.binance_url, self.binance_stream_url),
            "BINANCE-PERP": Addresses(self.binance_futures_url, self.binance_futures_stream_url),
            "KRAKEN": Addresses(self.kraken_url, self.kraken_stream_url),
        }

    @property
    def keeps_simulated_market(self) -> bool:
        return self.environment is Environment.DEVELOPMENT if self.simulated is None else self.simulated
