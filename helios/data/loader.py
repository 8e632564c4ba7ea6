"""From a dataset and `DataLoaderParams` to a loader that can start at any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from helios.core.utils import Registry
from helios.data.batches import KeyedBatchSampler
from helios.data.checks import check_integer
from helios.data.cutting import TensorBatches, can_be_cut
from helios.data.device import as_it_is
from helios.data.distributed import ResumableDistributedSampler
from helios.data.keyed import KeyedDataset
from helios.data.params import DataLoaderParams
from helios.data.samplers import (
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.data.stream import KeyedStream, is_stream
from helios.data.workers import shield
from helios.functional.rng import DEFAULT_SEED, fold

DATASET_REGISTRY = Registry("dataset")
"""The registry of datasets, for `create_dataset`."""

COLLATE_FN_REGISTRY = Registry("collate_fn")
"""The registry of functions that make a batch of samples, for ``DataLoaderParams.collate_fn``."""


def create_dataset(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Create a dataset that is registered in `DATASET_REGISTRY`.

    Args:
        type_name: the registered name.
        args: positional arguments of the dataset.
        kwargs: keyword arguments of the dataset.

    Raises:
        RegistryError: if no dataset of that name is registered.
    """
    return DATASET_REGISTRY.create(type_name, *args, **kwargs)


def create_dataloader(
    dataset: Any, params: DataLoaderParams | None = None, *, seed: int = DEFAULT_SEED
) -> tuple[DataLoader[Any], Any]:
    """Create the loader of a dataset, and the sampler that says its order.

    The loader's own generator is private: making or iterating it draws nothing from the global
    generators, and neither does a dataset that draws from them.

    Law: the batches of epoch e from batch k on are a function of the seed, e and k, for any
    number of workers (``tests/data/test_equality.py``).

    Args:
        dataset: indexable, or iterable.
        params: how to load it; None for the defaults.
        seed: what the order and the randomness of samples are drawn from, unless
            ``params.random_seed`` says so.

    Returns:
        The loader and its sampler. The sampler of an iterable dataset is None.

    Raises:
        DataError: if a sampler needs the length of the dataset and there is none.
        ValueError: if an iterable dataset is to be shuffled or sampled.

    Example:
        >>> loader, sampler = create_dataloader(range(5), DataLoaderParams(batch_size=2))
        >>> sampler.start_iter = 1
        >>> [batch.tolist() for batch in loader]
        [[2, 3], [4]]
    """
    params = DataLoaderParams() if params is None else params
    check_integer("seed", seed)
    if params.random_seed is not None:
        seed = params.random_seed
    if is_stream(dataset):
        return _stream_loader(dataset, params, seed), None
    sampler = _sampler(dataset, params, seed)
    shared = params.is_distributed is not False
    batch_sampler = KeyedBatchSampler(sampler, params.batch_size, params.drop_last, seed, shared)
    if params.workers == 0 and params.collate_fn is None and can_be_cut(dataset):
        whole = TensorBatches(dataset)
        batch_sampler.device = whole.device
        loader = DataLoader(
            whole,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=as_it_is,
            **_options(params, seed),
        )
    else:
        loader = DataLoader(
            KeyedDataset(dataset, seed),
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=_collate_fn(params),
            **_options(params, seed),
        )
    return loader, sampler


def _stream_loader(dataset: Any, params: DataLoaderParams, seed: int) -> DataLoader[Any]:
    for name, given in (("shuffle", params.shuffle), ("sampler", params.sampler is not None)):
        if given:
            raise ValueError(
                f"{name}: received {getattr(params, name)!r} for a {type(dataset).__name__}, "
                "which can only be iterated; expected the default: its order is its own"
            )
    return DataLoader(
        KeyedStream(
            dataset,
            seed,
            params.batch_size,
            params.drop_last,
            shared=params.is_distributed is not False,
        ),
        batch_size=None,
        collate_fn=_collate_fn(params),
        **_options(params, seed),
    )


def _options(params: DataLoaderParams, seed: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_workers": params.workers,
        # Without an accelerator torch would only warn.
        "pin_memory": params.pin_memory and torch.accelerator.is_available(),
        "generator": torch.Generator().manual_seed(fold(seed, "loader")),
    }
    if params.workers > 0:
        options["worker_init_fn"] = shield
        options["prefetch_factor"] = params.prefetch_factor
        options["persistent_workers"] = params.persistent_workers is not False
    return options


def _sampler(dataset: Any, params: DataLoaderParams, seed: int) -> Any:
    given = params.sampler
    if isinstance(given, str):
        given = create_sampler(given, dataset)
    elif isinstance(given, tuple) and given and isinstance(given[0], str):
        given = create_sampler(given[0], dataset, **given[1])
    elif given is None and params.is_distributed:
        given = ResumableDistributedSampler(
            dataset, shuffle=params.shuffle, drop_last=params.drop_last
        )
    elif given is None and params.shuffle:
        given = ResumableRandomSampler(dataset)
    elif given is None:
        given = ResumableSequentialSampler(dataset)
    if isinstance(given, ResumableSampler):
        given.attach(batch_size=params.batch_size, seed=seed)
    return given


def _collate_fn(params: DataLoaderParams) -> Callable[[list[Any]], Any]:
    if isinstance(params.collate_fn, str):
        registered: Callable[[list[Any]], Any] = COLLATE_FN_REGISTRY.get(params.collate_fn)
        return registered
    return default_collate if params.collate_fn is None else params.collate_fn
