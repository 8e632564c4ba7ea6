"""Paired figures: what a contestant took against what the baseline took in the same round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Example:
        >>> Spread.of([1.0, 2.0, 3.0, 4.0, 10.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the median and the quartiles of some values.

        Raises:
            ValueError: if there are none.
        """
        if not values:
            raise ValueError("values: received none; expected at least one")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass(frozen=True)
class Paired:
    """A contestant against the baseline.

    Args:
        ratio: time of the contestant by that of the baseline, over the rounds.
        difference: us per update, contestant minus baseline, over the rounds.
        microseconds: us per update of the contestant, over the rounds.
    """

    ratio: Spread
    difference: Spread
    microseconds: Spread

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def paired(seconds: Sequence[float], baseline: Sequence[float], steps: int) -> Paired:
    """Compare turns with those of the baseline in the same rounds.

    The median of the ratios, not the ratio of the medians: a slow minute of the machine slows both
    of a pair.

    Args:
        seconds: of each turn of the contestant.
        baseline: of each turn of the baseline.
        steps: updates in a turn.

    Raises:
        ValueError: if there are no rounds, or not as many of both.

    Example:
        >>> paired([2e-3, 6e-3, 3e-3], [1e-3, 2e-3, 1e-3], steps=10).ratio.median
        3.0
    """
    if len(seconds) != len(baseline):
        raise ValueError(
            f"seconds: received {len(seconds)} rounds, and {len(baseline)} of the baseline; "
            "expected as many"
        )
    to_us = 1e6 / steps
    return Paired(
        Spread.of([a / b for a, b in zip(seconds, baseline, strict=True)]),
        Spread.of([(a - b) * to_us for a, b in zip(seconds, baseline, strict=True)]),
        Spread.of([a * to_us for a in seconds]),
    )
