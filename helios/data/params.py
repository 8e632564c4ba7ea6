"""`DataLoaderParams`: how a dataset is to be loaded, as one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from helios.data.checks import check_flag, check_integer


class DataLoaderParams(msgspec.Struct, frozen=True):
    """How a dataset is to be loaded.

    Neither the batches nor the random numbers of a sample depend on ``num_workers``,
    ``prefetch_factor``, ``persistent_workers``, ``pin_memory`` or ``debug_mode``.

    Args:
        random_seed: what order and randomness of the samples are drawn from; None for the
            trainer's seed.
        batch_size: samples per micro-batch, over all ranks.
        shuffle: draw the order of the samples anew each epoch.
        num_workers: processes that fetch; 0 to fetch in the main process.
        pin_memory: copy batches to page-locked memory, where there is an accelerator. A trainer on
            CUDA does so anyway, as it sends them; with workers, this does it in a thread.
        drop_last: leave out a last batch that is smaller.
        debug_mode: fetch in the main process, whatever ``num_workers`` says.
        is_distributed: whether ranks share every micro-batch. None and, in a `DataModule`, True:
            they do; the trainer gives each its pieces. False: each rank computes the whole of it.
            True in `create_dataloader`: a loop of your own, in which the loader gives each rank of
            ``torch.distributed`` ``batch_size`` samples by a `ResumableDistributedSampler`.
        sampler: a sampler, that is any iterable of indices; or the name of one in
            `helios.data.SAMPLER_REGISTRY`, or ``(name, keyword arguments)``. A named one is
            given the dataset first. It replaces ``shuffle`` and ``is_distributed``.
        collate_fn: turns a list of samples into a batch; or its name in
            `helios.data.COLLATE_FN_REGISTRY`. Where ranks share a micro-batch, each piece of it is
            collated by itself.
        prefetch_factor: batches fetched ahead by each worker; None for torch's default of 2. It
            means nothing without workers.
        persistent_workers: keep the workers between epochs; None to do so. It means nothing
            without workers.

    Raises:
        TypeError: if an argument has the wrong type; a bool is not an int here.
        ValueError: if an argument is out of its range.

    Example:
        >>> DataLoaderParams(batch_size=32, shuffle=True).to_dict()["batch_size"]
        32
    """

    random_seed: int | None = None
    batch_size: int = 1
    shuffle: bool = False
    num_workers: int = 0
    pin_memory: bool = False
    drop_last: bool = False
    debug_mode: bool = False
    is_distributed: bool | None = None
    sampler: Any = None
    collate_fn: Callable[[list[Any]], Any] | str | None = None
    prefetch_factor: int | None = None
    persistent_workers: bool | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("num_workers", self.num_workers, at_least=0)
        if self.random_seed is not None:
            check_integer("random_seed", self.random_seed)
        if self.prefetch_factor is not None:
            check_integer("prefetch_factor", self.prefetch_factor, at_least=1)
        for name in ("shuffle", "pin_memory", "drop_last", "debug_mode"):
            check_flag(name, getattr(self, name))
        for name in ("is_distributed", "persistent_workers"):
            if getattr(self, name) is not None:
                check_flag(name, getattr(self, name))
        _check_sampler(self.sampler)
        if self.collate_fn is not None and not isinstance(self.collate_fn, str):
            _check_callable(self.collate_fn)

    @property
    def workers(self) -> int:
        """Return how many worker processes there will be, 0 in debug mode."""
        return 0 if self.debug_mode else self.num_workers

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments by name; the values are not copied."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> DataLoaderParams:
        """Make params from a table of arguments.

        Args:
            table: arguments by name; those left out have their defaults.

        Raises:
            TypeError: if ``table`` is not a dict.
            ValueError: if it has a key that is no argument.

        Example:
            >>> DataLoaderParams.from_dict({"batch_size": 4}) == DataLoaderParams(batch_size=4)
            True
        """
        if not isinstance(table, dict):
            raise TypeError(
                f"DataLoaderParams.from_dict: received {type(table).__name__}; expected a dict"
            )
        unknown = [key for key in table if key not in cls.__struct_fields__]
        if unknown:
            raise ValueError(
                f"DataLoaderParams.from_dict: unknown keys {', '.join(map(repr, unknown))}; "
                f"the valid ones are {', '.join(cls.__struct_fields__)}"
            )
        return cls(**table)


def _check_callable(collate_fn: Any) -> None:
    if not callable(collate_fn):
        raise TypeError(
            f"collate_fn: received {collate_fn!r} ({type(collate_fn).__name__}); expected a "
            "callable, the name of a registered one, or None"
        )


def _check_sampler(sampler: Any) -> None:
    if sampler is None or isinstance(sampler, str):
        return
    if isinstance(sampler, tuple) and sampler and isinstance(sampler[0], str):
        if len(sampler) == 2 and isinstance(sampler[1], dict):
            return
    elif hasattr(sampler, "__iter__") and not isinstance(sampler, type):
        return
    raise TypeError(
        f"sampler: received {sampler!r} ({type(sampler).__name__}); expected an iterable of "
        "indices, the name of a registered sampler, (name, keyword arguments), or None"
    )
