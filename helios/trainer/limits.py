"""The first batches alone: of a data set to overfit, or of each to try the code on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from torch.utils.data import DataLoader

from helios.data import EpochSource, source_of
from helios.data.prefetch import Lane
from helios.functional.share import Shares
from helios.trainer.lookahead import close


class Limits(msgspec.Struct, frozen=True):
    """How much of its data a run uses.

    Args:
        overfit: batches to train on, the same ones in every epoch; None for all of the data.
        train: the most batches of an epoch; None for all.
        evaluate: the most batches of a validation or a test; None for all.
    """

    overfit: int | None = None
    train: int | None = None
    evaluate: int | None = None

    def of_training(self, source: EpochSource) -> EpochSource:
        """Return what of the training batches is used."""
        if self.overfit is not None:
            source = FirstBatches(source, self.overfit, same=True)
        return source if self.train is None else FirstBatches(source, self.train)

    def of_evaluation(self, source: EpochSource) -> EpochSource:
        """Return what of the batches of a validation or a test is used."""
        return source if self.evaluate is None else FirstBatches(source, self.evaluate)

    def to_validate(
        self, train_loaders: Any, again: Any, seed: int, shares: Shares | None
    ) -> EpochSource | None:
        """Return the training batches once more, to validate an overfitting run on.

        Args:
            train_loaders: what the data module returned as its training loader.
            again: what it returned the second time.
            seed: as for `helios.data.source_of`.
            shares: likewise.
        """
        source = source_of(_another(again, train_loaders), seed=seed, shares=shares)
        return None if source is None else self.of_training(source)


class FirstBatches(EpochSource):
    """The first batches of each epoch of a source, or of its first epoch again and again.

    Args:
        source: where they come from; closed with this.
        most: how many at most.
        same: whether every epoch is the first one: the order and the random numbers of a sample
            are those of epoch 0 each time.

    Law:
        ``open(e, k)`` gives what ``open(e, 0)`` gives after its first k batches
        (``tests/trainer/test_limits.py``).

    Example:
        >>> source = FirstBatches(EpochSource(["a", "b", "c"]), 2)
        >>> source.batches_per_epoch, list(source.open(epoch=0, start=1))
        (2, ['b'])
    """

    def __init__(self, source: EpochSource, most: int, *, same: bool = False) -> None:
        self._source = source
        self._most = most
        self._same = same
        length = source.batches_per_epoch
        self.batches_per_epoch = None if length is None else min(length, most)

    @property
    def lane(self) -> Lane | None:
        """What carries batches to a device; that of the source."""
        return self._source.lane

    @lane.setter
    def lane(self, lane: Lane | None) -> None:
        self._source.lane = lane

    @property
    def resume_note(self) -> str | None:
        """How the position last opened was restored."""
        return self._source.resume_note

    @property
    def samples_per_batch(self) -> int | None:
        """Samples of a whole batch; those of the source."""
        return self._source.samples_per_batch

    def open(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch; see `EpochSource.open`."""
        return self._first(self._source.open(0 if self._same else epoch, start), start)

    def _first(self, batches: Iterator[Any], start: int) -> Iterator[Any]:
        try:
            yield from islice(batches, max(self._most - start, 0))
        finally:
            close(batches)

    def indices(self, epoch: int, number: int) -> list[int] | None:
        """Return the indices of a batch; see `EpochSource.indices`."""
        return self._source.indices(0 if self._same else epoch, number)

    def indices_from(self, epoch: int, number: int) -> Iterator[Sequence[Any]] | None:
        """Iterate over the indices of the batches; see `EpochSource.indices_from`."""
        found = self._source.indices_from(0 if self._same else epoch, number)
        return None if found is None else islice(found, max(self._most - number, 0))

    def state_after(self, batches: int) -> dict[str, Any] | None:
        """Return the position of an iterable dataset; None at the start: each epoch begins anew."""
        return None if batches == 0 else self._source.state_after(batches)

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Let the next `open` restore a position; see `EpochSource.load_state`."""
        self._source.load_state(state)

    def close(self) -> None:
        """End the iteration in progress and all workers of the source."""
        self._source.close()


def _another(loaders: Any, first: Any) -> Any:
    """Return loaders that iterate beside the first: one that is the same holds one iterator."""
    if isinstance(loaders, tuple) and isinstance(first, tuple):
        return tuple(_another(one, other) for one, other in zip(loaders, first, strict=False))
    return copy.copy(loaders) if loaders is first and isinstance(loaders, DataLoader) else loaders
