"""What an operator may turn, with the units in the names."""

from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from libs.mesh.settings import Environment, ServiceSettings
from services.feeds.sources.simulated import TRADES_PER_SECOND


class Settings(ServiceSettings):
    word: ClassVar[str] = "feeds"

    # Recorded files are played out of this folder alone; without one, none can be.
    replay_folder: Path | None = None
    # Feeds that run at once; each takes one of the worker's database connections, and a replay holds its file in memory.
    running_feeds_max: PositiveInt = 8
    # Whether the simulated market is kept running; in development it is, unless this says no.
    simulated: bool | None = None
    simulated_seed: int = 1
    simulated_trades_per_second: float = TRADES_PER_SECOND

    @property
    def keeps_simulated_market(self) -> bool:
        return self.environment is Environment.DEVELOPMENT if self.simulated is None else self.simulated
