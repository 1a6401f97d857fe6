"""Rounds: baseline and subject take turns in the same minute, and what is told is the median of the rounds.

A ratio is made within each round, from measurements seconds apart, so that a slow minute of the machine touches both of
its sides. The spread is half the range of the rounds over their median: what is smaller than it was not measured.
"""

import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from rich.console import Console
from rich.table import Table

from bench import disk

BUCKETS_MILLISECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Of a histogram."""
BAR = 14
CONSOLE_COLUMNS = 120
"""Wide enough where no terminal says how wide it is."""


@dataclass(frozen=True, slots=True)
class Form:
    """How long a bench measures; the short form only shows that it works."""

    rounds: int
    seconds: float
    """Of one measurement of one side."""
    is_short: bool = False


FULL = Form(rounds=5, seconds=2.0)
SHORT = Form(rounds=1, seconds=0.05, is_short=True)

Values = Mapping[str, float]
Measure = Callable[[], Awaitable[Values]]
"""One measurement of one side: its values by name."""


async def alternate(sides: Mapping[str, Measure], rounds: int) -> dict[str, list[Values]]:
    """The measurements of each side, round by round; every other round goes through the sides backwards."""
    measured: dict[str, list[Values]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            measured[name].append(await sides[name]())
    return measured


def series(measured: Sequence[Values], name: str) -> list[float]:
    return [values[name] for values in measured]


def spread(values: Sequence[float]) -> float:
    """Half the range over the median, as a fraction."""
    middle = median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


def histogram(what: str, latencies_milliseconds: Mapping[str, Sequence[float]]) -> list[str]:
    """How many of a hundred took so long, by side; of all rounds together."""
    lines = [f"{what:<22}" + "".join(f"{side:<{BAR + 10}}" for side in latencies_milliseconds)]
    for lower, upper in pairwise([0.0, *BUCKETS_MILLISECONDS, math.inf]):
        bucket = f"{lower:g} ms or more" if upper == math.inf else f"< {upper:g} ms"
        line = f"{bucket:>20}  "
        for latencies in latencies_milliseconds.values():
            part = sum(lower <= each < upper for each in latencies) / max(1, len(latencies))
            line += f"{part:7.2%} {'#' * math.ceil(part * BAR):<{BAR}}  "
        lines.append(line.rstrip())
    return lines


@dataclass(slots=True)
class Report:
    """What one bench found: a table for people, one line of JSON for machines."""

    bench: str
    form: Form
    limits: str = ""
    """What bounds the numbers on this machine, in a sentence."""
    ratios: dict[str, float] = field(default_factory=dict)
    absolute: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    _rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    _drawn: list[str] = field(default_factory=list)

    def compare(
        self, name: str, what: str, *, subject: Sequence[float], baseline: Sequence[float], unit: str, of: str
    ) -> None:
        """Subject over baseline, round by round; `of` names the baseline."""
        ratios = [mine / its for mine, its in zip(subject, baseline, strict=True)]
        self.ratios[name] = round(median(ratios), 4)
        self.spreads[name] = round(spread(ratios), 4)
        self._rows.append(
            (
                what,
                text_of(median(subject), unit),
                f"{text_of(median(baseline), unit)} {of}",
                f"{median(ratios):.3f}",
                f"±{spread(ratios):.0%}",
            )
        )

    def tell(self, name: str, what: str, values: Sequence[float], unit: str) -> None:
        """A value that is compared with nothing."""
        self.note(name, values)
        self._rows.append((what, text_of(median(values), unit), "", "", f"±{spread(values):.0%}"))

    def draw(self, lines: Sequence[str]) -> None:
        """For people only, below the table."""
        self._drawn.extend(lines)

    def note(self, name: str, values: Sequence[float]) -> None:
        """For the JSON only."""
        self.absolute[name] = round(median(values), 4)

    def show(self) -> None:
        """Prints the table and then, as the last line, the JSON."""
        console = Console(highlight=False, width=None if os.isatty(1) else CONSOLE_COLUMNS)
        table = Table(title=f"bench {self.bench}", title_justify="left", box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for column in ("subject", "baseline", "ratio", "spread"):
            table.add_column(column, justify="right")
        for row in self._rows:
            table.add_row(*row)
        console.print(table)
        for line in self._drawn:
            console.print(line)
        load_after = os.getloadavg()[0]
        data_on = disk.file_system(disk.folder())
        console.print(
            f"medians of {self.form.rounds} rounds of {self.form.seconds:g} s a side, "
            f"load average {self.load_before:.1f} before and {load_after:.1f} after on {os.cpu_count()} cores, "
            f"data on {data_on}"
        )
        if self.limits:
            console.print(self.limits)
        found = {
            "bench": self.bench,
            "ratios": self.ratios,
            "absolute": self.absolute,
            "samples": {
                "rounds": self.form.rounds,
                "seconds": self.form.seconds,
                "spread": self.spreads,
                "load_average": [round(self.load_before, 2), round(load_after, 2)],
                "file_system": data_on,
            },
        }
        print(json.dumps(found), flush=True)


def text_of(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 1_000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {unit}"
