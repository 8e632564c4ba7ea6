"""Digests of the indices of the samples of micro-batches, as they are in the run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from helios.core.rng import preserved_rng
from helios.data import EpochSource
from helios.trainer.flight.record import UNKNOWN

_AHEAD = 64  # batches read at a time: keeping the generators costs more than a batch's indices


class IndexDigests:
    """Tells which samples a window was made of.

    Args:
        source: the training batches.

    Law:
        The digest of a window is that of the indices that `EpochSource.indices` gives for its
        micro-batches (``tests/trainer/test_flight.py``).
    """

    def __init__(self, source: EpochSource) -> None:
        self._source = source
        self._epoch = -1
        self._next = 0
        self._batches: Iterator[Any] | None = None
        self._ahead: list[bytes | None] = []

    def window(self, epoch: int, last: int, count: int) -> bytes:
        """Return the digest of the indices of a window; `UNKNOWN` if they are not known.

        Args:
            epoch: the epoch of its last micro-batch, counted from 1.
            last: that micro-batch in its epoch, counted from 0.
            count: its micro-batches.
        """
        size = self._source.batches_per_epoch
        if size is None:  # where the epoch before ended is not known after a resume
            return UNKNOWN
        whole = hashlib.blake2b(digest_size=16)
        for number in range(last - count + 1, last + 1):
            earlier, place = divmod(number, size)
            part = self._of(epoch - 1 + earlier, place)
            if part is None:
                return UNKNOWN
            whole.update(part)
        return whole.digest()

    def _of(self, epoch: int, place: int) -> bytes | None:
        """Return the digest of a batch; None if its indices are not known. In order it is fast."""
        if epoch < 0:
            return None
        if epoch != self._epoch or place != self._next:
            with preserved_rng():
                self._batches = self._source.indices_from(epoch, place)
            self._epoch, self._next, self._ahead = epoch, place, []
        if self._batches is None:
            return None
        if not self._ahead:
            with preserved_rng():
                self._ahead = [_digest(batch) for batch in islice(self._batches, _AHEAD)]
            self._ahead.reverse()
        self._next += 1
        return self._ahead.pop() if self._ahead else None


def _digest(indices: Sequence[Any]) -> bytes | None:
    if any(type(index) is not int for index in indices):
        return None
    try:
        numbers = array("q", indices)
    except OverflowError:
        return None
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()
