"""From a sampler to batches of indices that know their epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import torch
from torch.utils.data import Sampler

from helios.core.rng import preserved_rng
from helios.data.checks import check_integer
from helios.data.order import batches_of
from helios.data.pieces import spans
from helios.data.samplers import ResumableSampler
from helios.functional.rng import fold
from helios.functional.share import Shares


class BatchIndices(NamedTuple):
    """What a worker is asked for: the indices of one batch, and their epoch, counted from 0.

    The indices are a list; for a dataset that is cut, also a range or a tensor ``i64[batch]``.
    """

    epoch: int
    indices: Any


class Dealing(msgspec.Struct):
    """How an iteration shares each micro-batch, and what it has yielded.

    Args:
        shares: which pieces to yield of each micro-batch.
        cuts: whether to yield pieces; if not, whole batches, whose samples are told all the same.
        dealt: for each batch that was yielded, in order: the index of the piece, the samples in it
            that count, and those of the whole micro-batch. Whoever receives the batch takes it
            away.
    """

    shares: Shares
    cuts: bool
    dealt: deque[tuple[int, int, int]] = msgspec.field(default_factory=deque)


class KeyedBatchSampler(Sampler[BatchIndices]):
    """Cuts the indices of a sampler in batches, from any batch of any epoch on.

    A `ResumableSampler` starts there by itself. The indices of any other sampler are skipped one
    by one, without a sample being fetched, and what it draws from the global generators while it
    does so comes from keys of its own, folded from the seed, the epoch and the batch.

    With a ``dealing``, this rank's pieces of each micro-batch are yielded one by one instead, so
    that each is fetched and collated by itself and nothing of the other ranks is fetched. Positions
    and the length still count micro-batches.

    Args:
        sampler: any iterable of indices; its ``set_epoch`` is called if there is one.
        batch_size: samples per batch.
        drop_last: leave out a last batch that is smaller.
        seed: the seed of the loader.
        shared: whether ranks share a micro-batch; if not, each computes all of it.
        device: where indices are wanted as tensors, or as ranges, if the sampler has them so; None
            for lists.

    Attributes:
        dealing: how the iterations begun from now on share their batches; None for whole ones.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool,
        seed: int,
        shared: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.shared = shared
        self.device = device
        self.dealing: Dealing | None = None
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
        """Return the batches of a whole epoch, over all ranks."""
        samples = len(self.sampler)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[BatchIndices]:
        # A caller who holds only the sampler says the epoch there.
        epoch = getattr(self.sampler, "epoch", self._epoch)
        epoch = epoch if isinstance(epoch, int) else self._epoch
        if self.resumable:
            batches = self._cut(epoch, self.sampler.start_iter)
        else:
            batches = self._cut_foreign(epoch, self._start_iter)
        return batches if self.dealing is None else self._deal(batches, self.dealing)

    def _deal(self, batches: Iterator[BatchIndices], dealing: Dealing) -> Iterator[BatchIndices]:
        for epoch, indices in batches:
            samples = len(indices)
            if not dealing.cuts:
                dealing.dealt.append((dealing.shares.first, samples, samples))
                yield BatchIndices(epoch, indices)
                continue
            for index, span, count in spans(samples, dealing.shares):
                dealing.dealt.append((index, count, samples))
                yield BatchIndices(epoch, indices[span])

    def _cut(self, epoch: int, start: int) -> Iterator[BatchIndices]:
        # As in the sampler's own iterations, the first batch that is asked for uses up the start.
        self.sampler.start_iter = 0
        order = self.sampler.indices(epoch, start)
        for indices in batches_of(order, self.batch_size, self.device):
            if self._whole(indices):
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

    def _whole(self, indices: Any) -> bool:
        return len(indices) == self.batch_size or (len(indices) > 0 and not self.drop_last)
