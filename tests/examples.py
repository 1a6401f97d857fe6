"""How many examples a property is tried with: all of them in its long form, a part of them in `make test`.

Whoever uses it marks the test `examples`, so that `make faults` runs it with all of them.
"""

import math
from typing import Any

from hypothesis import settings

PART = 0.2
"""Of the examples, in the short form: a property that does not hold mostly fails in the first few."""
SHORT_MIN = 5
is_long = False
"""Set by the option --long before tests are collected."""


def examples(count: int, **others: Any) -> settings:
    """Hypothesis' settings for a property that the long form tries so often."""
    return settings(max_examples=count if is_long else max(SHORT_MIN, math.ceil(count * PART)), **others)
