"""Samplers whose order is a function of ``(seed, epoch)`` and whose position is an integer."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from helios.core.utils import Registry
from helios.data.checks import check_integer, length_of
from helios.data.order import Order
from helios.functional.rng import DEFAULT_SEED, fold

SAMPLER_REGISTRY = Registry("sampler")
"""The registry of samplers, for `create_sampler` and ``DataLoaderParams.sampler``."""


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Create a sampler that is registered in `SAMPLER_REGISTRY`.

    Args:
        type_name: the registered name.
        args: positional arguments of the sampler.
        kwargs: keyword arguments of the sampler.

    Raises:
        RegistryError: if no sampler of that name is registered.

    Example:
        >>> list(create_sampler("ResumableSequentialSampler", "abc"))
        [0, 1, 2]
    """
    return SAMPLER_REGISTRY.create(type_name, *args, **kwargs)


class ResumableSampler(Sampler[int], abc.ABC):
    """The base of samplers that can start in the middle of an epoch.

    A subclass says which indices an epoch has from a batch on; nothing that was consumed is drawn
    or fetched again. A subclass that overrides ``__iter__`` instead works too: its indices are
    then skipped one by one.

    Law: the indices from batch k on are those of the whole epoch less the first k batches
    (``tests/data/test_sampler_laws.py``).

    Args:
        batch_size: samples per batch of this rank; None for that of the loader (1 without one).
        seed: what the order is drawn from; None for that of the loader.
    """

    def __init__(self, batch_size: int | None = None, *, seed: int | None = None) -> None:
        if batch_size is not None:
            check_integer("batch_size", batch_size, at_least=1)
        if seed is not None:
            check_integer("seed", seed)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._start_iter = 0

    @abc.abstractmethod
    def indices(self, epoch: int, start: int) -> Iterable[int]:
        """Return the indices of this rank in ``epoch`` (from 0), from batch ``start`` on."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the samples of this rank in a whole epoch, wherever it starts."""

    def __iter__(self) -> Iterator[int]:
        return self._once(self._epoch, self._start_iter)

    def _once(self, epoch: int, start: int) -> Iterator[int]:
        # The start is used up by the first index that is asked for, not by `iter`: the first
        # iterator of a loader with workers calls `iter` on its sampler twice.
        self._start_iter = 0
        yield from self.indices(epoch, start)

    @property
    def batch_size(self) -> int:
        """Samples per batch of this rank."""
        return 1 if self._batch_size is None else self._batch_size

    @property
    def seed(self) -> int:
        """What the order is drawn from."""
        return DEFAULT_SEED if self._seed is None else self._seed

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, counted from 0."""
        return self._epoch

    @property
    def start_iter(self) -> int:
        """The batches that the next iteration leaves out; back to 0 once that has begun."""
        return self._start_iter

    @start_iter.setter
    def start_iter(self, batches: int) -> None:
        check_integer("start_iter", batches, at_least=0)
        self._start_iter = batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, of the iterations to come."""
        check_integer("epoch", epoch, at_least=0)
        self._epoch = epoch

    def attach(self, *, batch_size: int, seed: int) -> None:
        """Take over the batch size and the seed of a loader where none was given.

        Raises:
            ValueError: if the sampler was made for another batch size: a position in batches
                would then mean other samples than the loader's.
        """
        if self._batch_size is None:
            self._batch_size = batch_size
        elif self._batch_size != batch_size:
            raise ValueError(
                f"batch_size: the loader has {batch_size} but its {type(self).__name__} was made "
                f"with {self._batch_size}; give both the same, or leave the sampler's out"
            )
        if self._seed is None:
            self._seed = seed


def shuffled(size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the shuffled order of an epoch, ``i64[size]``, from a private generator.

    Example:
        >>> sorted(shuffled(4, seed=0, epoch=1).tolist())
        [0, 1, 2, 3]
    """
    generator = torch.Generator().manual_seed(fold(seed, "shuffle", epoch))
    return torch.randperm(size, generator=generator)


@SAMPLER_REGISTRY.register
class ResumableRandomSampler(ResumableSampler):
    """Every index once an epoch, in an order that is a function of ``(seed, epoch)``.

    Args:
        data_source: the dataset, of which only the length is used.
        seed: what the order is drawn from; None for that of the loader.
        batch_size: samples per batch; None for that of the loader (1 without one).

    Raises:
        DataError: if ``data_source`` has no length.

    Example:
        >>> sampler = ResumableRandomSampler(range(6), batch_size=2)
        >>> whole = list(sampler)
        >>> sampler.start_iter = 1
        >>> list(sampler) == whole[2:], list(sampler) == whole
        (True, True)
    """

    def __init__(
        self, data_source: Any, seed: int | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self._size = length_of(data_source, "ResumableRandomSampler")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def indices(self, epoch: int, start: int) -> Order:
        """Return the shuffled indices from batch ``start`` on."""
        return Order([shuffled(self._size, self.seed, epoch)[start * self.batch_size :]])


@SAMPLER_REGISTRY.register
class ResumableSequentialSampler(ResumableSampler):
    """Every index once an epoch, in ascending order.

    Args:
        data_source: the dataset, of which only the length is used.
        batch_size: samples per batch; None for that of the loader (1 without one).

    Raises:
        DataError: if ``data_source`` has no length.
    """

    def __init__(self, data_source: Any, batch_size: int | None = None) -> None:
        super().__init__(batch_size)
        self._size = length_of(data_source, "ResumableSequentialSampler")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def indices(self, epoch: int, start: int) -> range:
        """Return the indices from batch ``start`` on."""
        return range(min(start * self.batch_size, self._size), self._size)
