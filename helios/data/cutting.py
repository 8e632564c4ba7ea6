"""Whole batches cut out of tensors: one operation for each, and no Python loop over samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from helios.data.batches import BatchIndices
from helios.data.keyed import Naming, parts_of
from helios.errors import DataError

Cut = Callable[[Any], Any]
"""Returns the batch of some indices: a range of step 1, or a tensor ``i64[batch]``, none below 0.

Its tensors share no storage with the dataset.
"""

_CPU = torch.device("cpu")
_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64}


class TensorBatches(torch.utils.data.Dataset[Any]):
    """Cuts whole batches out of a dataset that is made of tensors.

    That is a tensor, a `TensorDataset`, or a `Subset`, a `ConcatDataset` or a `StackDataset` of
    such. The result has the structure, the bits, the shapes and the strides of the samples'
    default collation. The indices of a `Subset` are read where an epoch begins.

    Law: a cut batch is the collated one (``tests/data/test_tensor_batches.py``).

    Args:
        dataset: a dataset for which `can_be_cut` holds; fetching from any other is a `DataError`.

    Attributes:
        device: where tensors of indices are wanted.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.device = _device_of(dataset)
        self._epoch: int | None = None

    def begin(self) -> None:
        """Begin an iteration: the next batch looks anew at what the dataset is made of."""
        self._epoch = None

    def _read(self, epoch: int) -> None:
        cut = _cut_of(self.dataset, self.device)
        if cut is None:
            raise DataError(
                f"TensorBatches: received a {type(self.dataset).__name__}; expected tensors, or "
                "datasets of torch that are made of nothing else"
            )
        self._cut, self._size, self._epoch = cut, len(self.dataset), epoch

    def __reduce__(self) -> Any:
        return type(self), (self.dataset,)  # what cuts holds the tensors, and is made anew

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return a sample."""
        return self.dataset[index]

    def __getitems__(self, batch: BatchIndices) -> Any:
        """Return a batch: a tensor ``[batch, ...]`` in the place of each in a sample."""
        epoch, indices = batch
        with Naming(epoch) as naming:
            naming.index = indices
            if epoch != self._epoch:
                self._read(epoch)
            if type(indices) is list:
                index = torch.tensor(indices, dtype=torch.int64)
                return self._cut(_counted(index, self._size).to(self.device))
            if type(indices) is range and indices.stop > self._size:
                raise _beyond(indices.stop - 1, self._size)
            return self._cut(indices)


def can_be_cut(dataset: Any) -> bool:
    """Tell whether batches of ``dataset`` can be cut from its tensors in one go each.

    Example:
        >>> can_be_cut(Subset(TensorDataset(torch.zeros(3)), [0, 2])), can_be_cut([0, 2])
        (True, False)
    """
    device = _device_of(dataset)
    cut = _cut_of(dataset, device)
    if cut is None or len(dataset) == 0:
        return False
    try:
        cut(torch.zeros(1, dtype=torch.int64, device=device))
        cut(range(1))
    except (RuntimeError, IndexError):  # some rare dtypes cannot be indexed; a subset may be wrong
        return False
    return True


def _cut_of(dataset: Any, device: torch.device) -> Cut | None:
    """Return what cuts a dataset by indices on a device; None if it is made of something else."""
    if type(dataset) is torch.Tensor:
        return (lambda index: _rows(dataset, index)) if _is_plain(dataset) else None
    if type(dataset) is TensorDataset:
        if not all(map(_is_plain, dataset.tensors)):
            return None
        return lambda index: [_rows(tensor, index) for tensor in dataset.tensors]
    if type(dataset) is Subset:
        return _subset(dataset, device)
    if type(dataset) is StackDataset:
        return _stack(dataset, device)
    if type(dataset) is ConcatDataset:
        return _concat(dataset)
    return None


def _device_of(dataset: Any) -> torch.device:
    devices = _devices(dataset)
    return devices.pop() if len(devices) == 1 else _CPU


def _devices(dataset: Any) -> set[torch.device]:
    if type(dataset) is torch.Tensor:
        return {dataset.device}
    if type(dataset) is TensorDataset:
        return {tensor.device for tensor in dataset.tensors}
    if type(dataset) is Subset:
        return _devices(dataset.dataset)
    if type(dataset) is StackDataset:
        return {device for part in parts_of(dataset) for device in _devices(part)}
    return {_CPU}  # which part of a concatenation an index belongs to is found on the CPU


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.dim() > 0


def _rows(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    if type(index) is range:
        return tensor.narrow_copy(0, index.start, len(index))
    return tensor.index_select(
        0, index if index.device == tensor.device else index.to(tensor.device)
    )


def _stack(dataset: Any, device: torch.device) -> Cut | None:
    cuts: list[Any] = [_cut_of(part, device) for part in parts_of(dataset)]
    if None in cuts:
        return None
    if isinstance(dataset.datasets, dict):
        named = dict(zip(dataset.datasets, cuts, strict=True))
        return lambda index: {name: cut(index) for name, cut in named.items()}
    return lambda index: [cut(index) for cut in cuts]


def _subset(dataset: Any, device: torch.device) -> Cut | None:
    inner, indices, whole = _cut_of(dataset.dataset, device), dataset.indices, len(dataset.dataset)
    table = _table(indices)
    if inner is None or table is None:
        return None
    table = _counted(table, whole).to(device)
    in_a_row = type(indices) is range and indices.step == 1
    if in_a_row and indices.start >= 0 and indices.stop <= whole:
        return lambda index: inner(
            indices[index.start : index.stop] if type(index) is range else _rows(table, index)
        )
    return lambda index: inner(_rows(table, index))


def _table(indices: Any) -> torch.Tensor | None:
    """Return the indices of a subset as a tensor, None if they are anything else than integers."""
    if type(indices) in (list, tuple):
        kinds = set(map(type, indices))
        if bool in kinds or not all(issubclass(kind, (int, np.integer)) for kind in kinds):
            return None
        return torch.tensor(indices, dtype=torch.int64)
    if type(indices) is range:
        return torch.arange(indices.start, indices.stop, indices.step)
    if type(indices) is np.ndarray and indices.dtype.kind == "i":
        indices = torch.from_numpy(indices)
    if type(indices) is torch.Tensor and indices.dtype in _INTEGERS and indices.dim() == 1:
        return indices.long()
    return None


def _concat(dataset: Any) -> Cut | None:
    parts = [part for part in dataset.datasets if len(part)]
    cuts: list[Any] = [_cut_of(part, _CPU) for part in parts]
    if None in cuts or len({_kind(cut(range(1))) for cut in cuts}) != 1:
        return None
    ends = list(accumulate(map(len, parts)))
    begins = [0, *ends]
    bounds = torch.tensor(ends)

    def by_range(index: range) -> list[Any]:
        first, last = bisect_right(ends, index.start), bisect_right(ends, index.stop - 1)
        return [
            cuts[number](
                range(
                    max(index.start, begins[number]) - begins[number],
                    min(index.stop, ends[number]) - begins[number],
                )
            )
            for number in range(first, last + 1)
        ]

    def cut(index: Any) -> Any:
        if type(index) is range:
            return _joined(by_range(index), None)
        numbers = torch.bucketize(index, bounds, right=True)
        order = numbers.argsort(stable=True)
        counts = torch.bincount(numbers, minlength=len(cuts)).tolist()
        if len(counts) > len(cuts):
            raise _beyond(int(index.max()), ends[-1])
        grouped = index[order].split(counts)
        found = [
            cuts[number](rows - begins[number]) for number, rows in enumerate(grouped) if len(rows)
        ]
        return _joined(found, order.argsort())

    return cut


def _joined(batches: list[Any], order: torch.Tensor | None) -> Any:
    """Join batches of equal structure, and bring their samples in an order."""
    first = batches[0]
    if isinstance(first, dict):
        return {name: _joined([batch[name] for batch in batches], order) for name in first}
    if isinstance(first, list):
        return [_joined(list(parts), order) for parts in zip(*batches, strict=True)]
    whole = first if len(batches) == 1 else torch.cat(batches)
    return whole if order is None else _rows(whole, order)


def _kind(batch: Any) -> Any:
    """Return what the batches of all parts of a concatenation must have in common."""
    if isinstance(batch, dict):
        return tuple((name, _kind(part)) for name, part in batch.items())
    if isinstance(batch, list):
        return tuple(map(_kind, batch))
    return batch.dtype, batch.shape[1:], batch.device


def _counted(index: torch.Tensor, size: int) -> torch.Tensor:
    """Count negative indices from the end."""
    return torch.where(index < 0, index + size, index) if len(index) and index.min() < 0 else index


def _beyond(index: int, size: int) -> IndexError:
    return IndexError(f"index {index} is out of range for a dataset of {size} samples")
