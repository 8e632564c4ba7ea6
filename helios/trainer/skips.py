"""Updates that were left out: counted from the state, and said, but not at each of them."""

from __future__ import annotations

from helios.functional.state import Carry, TrainingState
from helios.trainer.report import Reporter


class Skips:
    """Says that an update was left out, because it was not finite.

    Args:
        reporter: prints the 1st, 2nd, 4th, 8th, ... of them, and writes the others to the log.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._said = 0

    def begin(self, state: TrainingState) -> None:
        """Take those that a state has counted already as said."""
        self._said = skipped(state)

    def look(self, state: TrainingState) -> None:
        """Say so if the update of a state was left out."""
        count = skipped(state)
        if count > self._said:
            self._said = count
            say = self._reporter.say if count & (count - 1) else self._reporter.announce
            say(
                f"update {state.current_iteration} was left out: its loss or a gradient is NaN or "
                f"infinite ({count} so far)"
            )


def skipped(state: TrainingState) -> int:
    """Return how many updates were left out.

    Example:
        >>> skipped(TrainingState())
        0
    """
    return state.carry.skipped if isinstance(state.carry, Carry) else 0
