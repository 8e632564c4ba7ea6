"""How fast a run is: updates and samples in a second, and the share of time that data took."""

from __future__ import annotations

from typing import Any

from helios.functional import metrics
from helios.functional.share import is_shared


class Pace:
    """Counts the time of micro-batches from one report to the next, without what is between them.

    Example:
        >>> pace = Pace(updates=10)
        >>> pace.count([0.0], waited=0.5, took=2.0)
        >>> pace.take(updates=12)["speed/updates_per_second"]
        1.0
    """

    def __init__(self, updates: int) -> None:
        self._begin(updates)

    def _begin(self, updates: int) -> None:
        self._updates = updates
        self._samples = 0
        self._waited = self._took = 0.0

    def count(self, batch: Any, waited: float, took: float) -> None:
        """Count a micro-batch.

        Args:
            batch: it, or this rank's pieces of it.
            waited: seconds until it was there.
            took: seconds in all.
        """
        self._samples += batch[0].of if is_shared(batch) else metrics.batch_size(batch)
        self._waited += waited
        self._took += took

    def take(self, updates: int) -> dict[str, float]:
        """Return the figures since the last report, by tag, and begin anew; empty without time.

        Args:
            updates: updates done.
        """
        took, done = self._took, updates - self._updates
        found = {}
        if took > 0:
            found = {
                "speed/updates_per_second": done / took,
                "speed/samples_per_second": self._samples / took,
                "speed/waiting_for_data": self._waited / took,
            }
        self._begin(updates)
        return found
