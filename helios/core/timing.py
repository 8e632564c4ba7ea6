"""Averages of durations."""

from __future__ import annotations

import math


class AverageTimer:
    """The mean of the last durations.

    Args:
        window: how many durations count; older ones do not.

    Raises:
        ValueError: if ``window`` is not positive.

    Example:
        >>> timer = AverageTimer(window=2)
        >>> for seconds in (9.0, 1.0, 2.0):
        ...     timer.add(seconds)
        >>> timer.average
        1.5
    """

    def __init__(self, window: int = 200) -> None:
        if window < 1:
            raise ValueError(f"window: received {window}; expected a positive number of durations")
        self._window = window
        self._durations: list[float] = []
        self._next = 0
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration, in seconds; the oldest goes if there are more than the window."""
        durations = self._durations
        if len(durations) < self._window:
            durations.append(seconds)
            self._sum += seconds
            return
        self._sum += seconds - durations[self._next]
        durations[self._next] = seconds
        self._next += 1
        if self._next == self._window:
            self._next = 0
            # Once a round the sum is taken anew, so that rounding errors do not pile up.
            self._sum = math.fsum(durations)

    @property
    def average(self) -> float:
        """The mean, in seconds; 0 before the first duration."""
        return self._sum / len(self._durations) if self._durations else 0.0
