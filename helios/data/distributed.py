"""One order of the epoch for all ranks, and the share of each in every global batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from helios.data.checks import check_flag, check_integer, length_of
from helios.data.order import Order
from helios.data.samplers import SAMPLER_REGISTRY, ResumableSampler, shuffled
from helios.errors import DataError
from helios.functional.share import Shares


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(ResumableSampler):
    """One order of the epoch for all ranks, of which each takes its share of every global batch.

    A trainer shares the batches of any loader among its ranks by itself; this is for loops of your
    own. A trainer that is given it takes the batches as this rank's own.

    Global batch k is the samples ``[k * G, (k + 1) * G)`` of the order, with
    ``G = batch_size * num_replicas``; rank r takes the r-th of its ``num_replicas`` equal parts.
    So the global batches are the same on any number of ranks that gives the same G. Where the
    last one cannot be cut in equal parts, it is filled with the epoch's first samples, or with
    ``drop_last`` its odd samples are left out: every rank has the same number of batches.

    Law: the ranks' parts of a global batch, one after the other, are the batch of a single rank
    with batch size G, filling aside (``tests/data/test_sampler_laws.py``).

    Args:
        dataset: the dataset, of which only the length is used.
        num_replicas: the number of ranks; None for that of ``torch.distributed``.
        rank: the rank of this process; None for that of ``torch.distributed``.
        shuffle: draw the order anew each epoch, else ascending.
        seed: what the order is drawn from, equal on all ranks; None for that of the loader.
        drop_last: leave out the samples that cannot be shared equally.
        batch_size: samples per batch of one rank; None for that of the loader (1 without one).

    Raises:
        DataError: if ``dataset`` has no length.
        ValueError: if the rank is not below the number of ranks, or neither was given and
            ``torch.distributed`` is not initialised.

    Example:
        >>> ranks = [
        ...     ResumableDistributedSampler(range(5), 2, rank, shuffle=False, batch_size=2)
        ...     for rank in range(2)
        ... ]
        >>> [list(sampler) for sampler in ranks]
        [[0, 1, 4], [2, 3, 0]]
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        self._size = length_of(dataset, "ResumableDistributedSampler")
        self._world = _group("get_world_size") if num_replicas is None else num_replicas
        self._rank = _group("get_rank") if rank is None else rank
        check_integer("num_replicas", self._world, at_least=1)
        check_integer("rank", self._rank, at_least=0)
        if self._rank >= self._world:
            raise ValueError(
                f"rank: received {self._rank} with num_replicas {self._world}; expected a rank "
                f"from 0 to {self._world - 1}"
            )
        self._shuffle = shuffle
        self._drop_last = drop_last

    def __len__(self) -> int:
        """Return the samples of this rank in an epoch."""
        if self._drop_last:
            return self._size // self._world
        return math.ceil(self._size / self._world)

    @property
    def num_replicas(self) -> int:
        """The number of ranks."""
        return self._world

    @property
    def rank(self) -> int:
        """The rank whose indices these are."""
        return self._rank

    @property
    def padding(self) -> int:
        """Return how many samples of an epoch stand twice, over all ranks, in its last batch."""
        return max(len(self) * self._world - self._size, 0)

    def indices(self, epoch: int, start: int) -> Order:
        """Return this rank's indices from batch ``start`` on."""
        return Order(self._shares(epoch, start))

    def _shares(self, epoch: int, start: int) -> Iterator[torch.Tensor]:
        if self._shuffle:
            order = shuffled(self._size, self.seed, epoch)
        else:
            order = torch.arange(self._size)
        total = len(self) * self._world
        if total > self._size > 0:
            order = order.repeat(math.ceil(total / self._size))
        whole = self.batch_size * self._world
        for position in range(start * whole, total, whole):
            share = (min(position + whole, total) - position) // self._world
            first = position + self._rank * share
            yield order[first : first + share]


def is_own(sampler: Any, shares: Shares) -> bool:
    """Tell whether a sampler gives a rank its own indices, so that nothing is left to share.

    Raises:
        DataError: if it does, but for another rank, or for another number of ranks.

    Example:
        >>> is_own([1, 2], Shares(pieces=2, first=0, end=1))
        False
    """
    if not isinstance(sampler, (ResumableDistributedSampler, DistributedSampler)):
        return False
    if sampler.num_replicas == 1:
        return False
    each = shares.end - shares.first
    rank, world = shares.first // each, shares.pieces // each
    if (sampler.rank, sampler.num_replicas) != (rank, world):
        raise DataError(
            f"{type(sampler).__name__}: received one of rank {sampler.rank} of "
            f"{sampler.num_replicas} in rank {rank} of {world}; leave it out (the ranks share the "
            "batches without it), or let it take both from torch.distributed"
        )
    return True


def _group(query: str) -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(getattr(torch.distributed, query)())
    raise ValueError(
        "num_replicas and rank: received None, and torch.distributed is not initialised; "
        "initialise the process group first, or give both"
    )
