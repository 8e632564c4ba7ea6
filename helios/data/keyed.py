"""Datasets whose random numbers are a function of ``(seed, epoch, index)``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import (
    ConcatDataset,
    StackDataset,
    Subset,
    TensorDataset,
    get_worker_info,
)

from helios.core.rng import preserved_rng, seed_all
from helios.data.batches import BatchIndices
from helios.errors import DataError
from helios.functional.rng import fold

_PLAIN = (list, tuple, range, torch.Tensor)


class KeyedDataset(torch.utils.data.Dataset[Any]):
    """Fetches the samples of a dataset, each under a key of its own.

    Before ``dataset[index]`` is called, the global generators of torch, of ``random`` and of
    numpy are seeded with ``fold(seed, "sample", epoch, index)``. So a sample does not depend on
    the number of workers, on prefetching, on where the run was resumed, or on the samples before
    it. A dataset with a ``__getitems__`` of its own is called once per batch, under a key folded
    from all the batch's indices; where ranks share a batch, a piece of it is such a batch, so what
    it draws depends on the number of pieces.

    A dataset that cannot draw random numbers (see `draws_nothing`) is not re-keyed. In the main
    process, the global generators are put back as they were after each batch.

    Law: the batches are the same for any number of workers (``tests/data/test_equality.py``).

    Args:
        dataset: any map-style dataset.
        seed: the seed of the loader.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._rekeyed = not draws_nothing(dataset)
        self._together = fetches_together(dataset)
        self._epoch: int | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return a sample as the dataset gives it, not re-keyed."""
        return self.dataset[index]

    def __getitems__(self, batch: BatchIndices) -> list[Any]:
        """Fetch the samples of a batch, each under its key."""
        if batch.epoch != self._epoch:
            # Here and not in the main process: a worker holds its own copy of the dataset.
            self._epoch = batch.epoch
            if callable(getattr(self.dataset, "set_epoch", None)):
                self.dataset.set_epoch(batch.epoch)
        if not self._rekeyed:
            return self._fetch(batch, _no_key)
        if get_worker_info() is not None:
            return self._fetch(batch, seed_all)
        with preserved_rng():
            return self._fetch(batch, seed_all)

    def _fetch(self, batch: BatchIndices, seed: Callable[[int], None]) -> list[Any]:
        if self._together:
            numbers = map(_number, batch.indices)
            seed(fold(self.seed, "samples", batch.epoch, *numbers))
            with Naming(batch.epoch) as naming:
                naming.index = batch.indices
                return list(self.dataset.__getitems__(batch.indices))
        samples = []
        with Naming(batch.epoch) as naming:
            for index in batch.indices:
                naming.index = index
                seed(fold(self.seed, "sample", batch.epoch, _number(index)))
                samples.append(self.dataset[index])
        return samples


def draws_nothing(dataset: Any) -> bool:
    """Tell whether fetching from ``dataset`` certainly draws no random numbers.

    Example:
        >>> draws_nothing(Subset(TensorDataset(torch.zeros(3)), [0, 2]))
        True
    """
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(draws_nothing(part) for part in dataset.datasets)
    if type(dataset) is StackDataset:
        return all(draws_nothing(part) for part in parts_of(dataset))
    return type(dataset) is TensorDataset or type(dataset) in _PLAIN


def parts_of(dataset: Any) -> list[Any]:
    """Return what a `StackDataset` is a stack of."""
    stacked = dataset.datasets
    return list(stacked.values() if isinstance(stacked, dict) else stacked)


def fetches_together(dataset: Any) -> bool:
    """Tell whether ``dataset`` fetches a batch by one call of a ``__getitems__`` of its own.

    That of a torch ``Subset`` only counts if what it is a subset of has one.
    """
    if type(dataset) is Subset:
        return fetches_together(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))


class Naming:
    """Adds to an exception of the dataset which index it was raised for."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.index: Any = None

    def __enter__(self) -> Naming:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(self.index, (range, torch.Tensor)):
            self.index = list(self.index) if type(self.index) is range else self.index.tolist()
        if isinstance(error, StopIteration):
            # It would end the epoch without a word.
            raise DataError(
                f"dataset[{self.index}] raised StopIteration in epoch {self.epoch}; a dataset "
                "raises IndexError for an index that it does not have"
            ) from error
        error.add_note(f"raised by dataset[{self.index}] in epoch {self.epoch} (from 0)")


def _no_key(key: int) -> None:
    pass


def _number(index: Any) -> int:
    try:
        return operator.index(index)
    except TypeError:
        return int.from_bytes(blake2b(repr(index).encode(), digest_size=8).digest(), "little")
