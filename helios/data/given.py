"""`from_datasets`: a `DataModule` without a class, of datasets that exist already."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from helios.data.checks import check_flag
from helios.data.datamodule import DataModule
from helios.data.stream import is_stream
from helios.errors import DataError


class _GivenDatasets(DataModule):
    """A data module whose datasets exist already."""

    def setup(self) -> None:
        """Do nothing."""


def from_datasets(
    train: Any = None,
    valid: Any = None,
    test: Any = None,
    *,
    batch_size: int = 1,
    shuffle: bool = True,
    num_workers: int = 0,
    drop_last: bool = False,
    collate_fn: Any = None,
    **params: Any,
) -> DataModule:
    """Make a `DataModule` of datasets that exist already.

    Args:
        train: a dataset; a tuple of tensors or arrays with as many rows each; a sequence of
            samples; or an iterable dataset.
        valid: likewise.
        test: likewise.
        batch_size: samples per micro-batch, over all ranks.
        shuffle: draw the order of the training samples anew each epoch. The others are never
            shuffled, and the order of an iterable dataset is its own.
        num_workers: processes that fetch, for each loader.
        drop_last: leave out a last training batch that is smaller. Validation and test always
            take every sample.
        collate_fn: turns a list of samples into a batch; or the name of a registered one.
        params: further arguments of `DataLoaderParams`. A ``sampler`` is the training set's.

    Raises:
        DataError: if the tensors of a tuple differ in their number of rows.
        TypeError: if a dataset is neither indexable nor iterable.
        ValueError: if ``params`` has a name that is no argument of `DataLoaderParams`.

    Example:
        >>> data = from_datasets(train=(torch.zeros(6, 2), torch.arange(6)), batch_size=4)
        >>> [y.tolist() for x, y in from_datasets(valid=data.train_dataset).valid_dataloader()[0]]
        [[0], [1], [2], [3], [4], [5]]
    """
    check_flag("shuffle", shuffle)
    common = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "collate_fn": collate_fn,
        **params,
    }
    sampler = common.pop("sampler", None)
    module = _GivenDatasets()
    if train is not None:
        dataset = _as_dataset("train", train)
        order = {"shuffle": shuffle and not is_stream(dataset), "sampler": sampler}
        table = {**common, **order, "drop_last": drop_last}
        module._train_dataset = module._create_dataset(dataset, table)
    if valid is not None:
        module._valid_dataset = module._create_dataset(_as_dataset("valid", valid), common)
    if test is not None:
        module._test_dataset = module._create_dataset(_as_dataset("test", test), common)
    return module


def _as_dataset(name: str, data: Any) -> Any:
    tensors = (torch.Tensor, np.ndarray)
    if isinstance(data, tuple) and data and all(isinstance(part, tensors) for part in data):
        sizes = [tuple(part.shape) for part in data]
        if any(not size or size[0] != (sizes[0] or (None,))[0] for size in sizes):
            raise DataError(
                f"{name}: received tensors of the shapes {', '.join(map(str, sizes))}; expected "
                "as many rows in each"
            )
        return TensorDataset(*map(torch.as_tensor, data))
    if not (hasattr(data, "__getitem__") or hasattr(data, "__iter__")) or isinstance(data, str):
        raise TypeError(
            f"{name}: received a {type(data).__name__}; expected a dataset, a tuple of tensors, a "
            "sequence of samples or an iterable dataset"
        )
    return data
