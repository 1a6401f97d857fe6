"""What a stack is started with. Apart from `run`, which takes a moment to import and which only a supervisor needs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.stack.folder import DataFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    folder: DataFolder
    only: Sequence[str] = ()
    """Words; empty for every service there is."""
    port: int | None = None
    """The edge's; None takes 8080, or any other when that is taken; 0 takes any port for everything."""
    take_over: bool = False
    """Give the services' roles on the server of DATABASE_URL this folder's passwords, whatever they have."""
    began: float = field(default_factory=time.time)
    """When the command was given, in seconds since the epoch: what `healthy_seconds` counts from."""
