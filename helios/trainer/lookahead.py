"""The batches of an epoch, of which some may be fetched before they are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

_END = object()


class Lookahead:
    """Hands out the batches of one epoch after the other.

    Where only the loader knows how many there are, it looks ahead to find whether one is the last.

    Example:
        >>> batches = Lookahead()
        >>> batches.open(iter("abc"))
        >>> batches.take(), batches.available(), batches.take(), batches.available()
        ('a', 2, 'b', 1)
    """

    def __init__(self) -> None:
        self._batches: Iterator[Any] = iter(())
        self._ahead: deque[Any] = deque()

    def open(self, batches: Iterator[Any]) -> None:
        """Go on with the batches of an epoch."""
        self._batches = batches

    def take(self) -> Any:
        """Return the next batch.

        Raises:
            StopIteration: if there is none.
        """
        return self._ahead.popleft() if self._ahead else next(self._batches)

    def available(self) -> int:
        """Fetch up to two batches of what is left; return how many there are."""
        while len(self._ahead) < 2:
            batch = next(self._batches, _END)
            if batch is _END:
                break
            self._ahead.append(batch)
        return len(self._ahead)

    def close(self) -> None:
        """Let go of the epoch and of what was fetched of it."""
        self._ahead.clear()
        close(self._batches)
        self._batches = iter(())


def close(batches: Iterator[Any]) -> None:
    """End an iteration before its end, if it can be: workers and files are let go of."""
    end = getattr(batches, "close", None)
    if end is not None:
        end()
