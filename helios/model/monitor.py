"""Which validation metric says whether a run gets better."""

from __future__ import annotations

import math

import msgspec


class Monitor(msgspec.Struct, frozen=True):
    """A metric and the direction in which it is good.

    A score that is NaN or infinite is never an improvement, and neither is a tie; the first finite
    score is one.

    Args:
        metric: the name of a validation metric.
        mode: ``"min"`` if less is better, ``"max"`` if more is.

    Raises:
        ValueError: if ``mode`` is another word.

    Example:
        >>> Monitor("accuracy", mode="max").improves(0.9, best=0.8)
        True
        >>> Monitor("loss").improves(float("nan"), best=None)
        False
    """

    metric: str
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: received {self.mode!r}; expected 'min' or 'max'")

    def improves(self, score: float, best: float | None) -> bool:
        """Tell whether ``score`` is strictly better than ``best``."""
        if not math.isfinite(score):
            return False
        if best is None or not math.isfinite(best):
            return True
        return score < best if self.mode == "min" else score > best
