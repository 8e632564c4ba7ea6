"""From a sampler to batches of indices that know their epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import Sampler

from helios.core.rng import preserved_rng
from helios.data.checks import check_integer
from helios.data.samplers import ResumableSampler
from helios.functional.rng import fold


class BatchIndices(NamedTuple):
    """What a worker is asked for: the indices of one batch, and their epoch, counted from 0."""

    epoch: int
    indices: list[Any]


class KeyedBatchSampler(Sampler[BatchIndices]):
    """Cuts the indices of a sampler in batches, from any batch of any epoch on.

    A `ResumableSampler` starts there by itself. The indices of any other sampler are skipped one
    by one, without a sample being fetched, and what it draws from the global generators while it
    does so comes from keys of its own, folded from the seed, the epoch and the batch.

    Args:
        sampler: any iterable of indices; its ``set_epoch`` is called if there is one.
        batch_size: samples per batch.
        drop_last: leave out a last batch that is smaller.
        seed: the seed of the loader.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool, seed: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self._epoch = 0
        self._start_iter = 0

    @property
    def resumable(self) -> bool:
        """Whether the sampler itself can start in the middle of an epoch."""
        return (
            isinstance(self.sampler, ResumableSampler)
            and type(self.sampler).__iter__ is ResumableSampler.__iter__
        )

    def seek(self, epoch: int, start: int) -> None:
        """Let the next iteration begin at batch ``start`` of ``epoch``, both counted from 0."""
        check_integer("epoch", epoch, at_least=0)
        check_integer("start", start, at_least=0)
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        if self.resumable:
            self.sampler.start_iter = start
        else:
            self._start_iter = start

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        samples = len(self.sampler)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[BatchIndices]:
        # A caller who holds only the sampler says the epoch there.
        epoch = getattr(self.sampler, "epoch", self._epoch)
        epoch = epoch if isinstance(epoch, int) else self._epoch
        if self.resumable:
            return self._cut(epoch, iter(self.sampler))
        return self._cut_foreign(epoch, self._start_iter)

    def _cut(self, epoch: int, numbers: Iterator[Any]) -> Iterator[BatchIndices]:
        while self._whole(indices := list(islice(numbers, self.batch_size))):
            yield BatchIndices(epoch, indices)

    def _cut_foreign(self, epoch: int, start: int) -> Iterator[BatchIndices]:
        self._start_iter = 0
        with preserved_rng(fold(self.seed, "sampler", epoch)):
            numbers = iter(self.sampler)
        number = 0
        while True:
            with preserved_rng(fold(self.seed, "sampler", epoch, number)):
                indices = list(islice(numbers, self.batch_size))
            if not self._whole(indices):
                return
            if number >= start:
                yield BatchIndices(epoch, indices)
            number += 1

    def _whole(self, indices: list[Any]) -> bool:
        return len(indices) == self.batch_size or bool(indices and not self.drop_last)
