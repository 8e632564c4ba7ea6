"""Loaders that the user has made: any `DataLoader`, any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from helios.core.rng import preserved_rng
from helios.data.distributed import is_own
from helios.data.feeds import WorkerFeed
from helios.data.keyed import draws_nothing
from helios.data.pieces import own
from helios.data.samplers import ResumableSampler
from helios.functional.rng import fold
from helios.functional.share import Shares


class ForeignFeed(WorkerFeed):
    """A loader that helios did not make; it goes to a position by fetching up to there.

    What the loader draws from the global generators, in the main process, comes from keys folded
    from the seed, the epoch and the batch, and the generators are put back after each batch. A
    `DataLoader` and a `RandomSampler` without a generator are lent a private one for the epoch.

    Args:
        loader: any iterable of batches, with or without a length.
        sampler: what the user returned beside it; its ``set_epoch`` is called.
        seed: the seed of the run.
        shares: this rank's share of every batch; None for the whole.
    """

    kept_state = False

    def __init__(self, loader: Any, sampler: Any, seed: int, shares: Shares | None = None) -> None:
        super().__init__(loader, shares)
        self.sampler = sampler
        self.seed = seed
        self.length = _length(loader)
        self._lent: list[Any] = []
        if shares is not None and any(is_own(part, shares) for part in self._samplers()):
            self.deal = own

    def begin(self, epoch: int, start: int, state: Any) -> tuple[Iterator[Any], int]:
        """Iterate, from ``start`` on where that is possible."""
        self._set_epoch(epoch)
        if type(self.loader) in (list, tuple):
            return self.dealt(islice(self.loader, start, None)), 0
        self._lend(epoch)
        first = self._jump(start)
        with preserved_rng(fold(self.seed, "loader", epoch)):
            batches = self.iterate()
        if not _draws_nothing(self.loader):
            batches = self._isolated(batches, epoch, first)
        return self.dealt(batches), start - first

    def _samplers(self) -> list[Any]:
        parts = [self.sampler]
        if isinstance(self.loader, DataLoader):
            plan: Any = self.loader.batch_sampler
            parts += [self.loader.sampler, plan, getattr(plan, "sampler", None)]
        return parts

    def _isolated(self, batches: Iterator[Any], epoch: int, number: int) -> Iterator[Any]:
        while True:
            with preserved_rng(fold(self.seed, "loader", epoch, number)):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch
            number += 1

    def _set_epoch(self, epoch: int) -> None:
        parts = [self.sampler, self.loader]
        if isinstance(self.loader, DataLoader):
            parts += [self.loader.sampler, self.loader.batch_sampler, self.loader.dataset]
        for part in {id(part): part for part in parts}.values():
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)

    def _jump(self, start: int) -> int:
        # A sampler of ours in a loader of theirs: batches are the same only at the same size.
        sampler = getattr(self.loader, "sampler", None)
        if type(self.loader) is not DataLoader or not isinstance(sampler, ResumableSampler):
            return 0
        if type(sampler).__iter__ is not ResumableSampler.__iter__:
            return 0
        if (self.loader.batch_size or 1) != sampler.batch_size:
            return 0
        sampler.start_iter = start
        return start

    def _lend(self, epoch: int) -> None:
        if not isinstance(self.loader, DataLoader):
            return
        for part in (self.loader, self.loader.sampler):
            if isinstance(part, (DataLoader, RandomSampler)) and part.generator is None:
                part.generator = torch.Generator().manual_seed(fold(self.seed, "loader", epoch))
                self._lent.append(part)

    def note(self, thrown: int) -> str | None:
        """Say that batches were thrown away, and what that does not restore."""
        notes = []
        if thrown:
            notes.append(
                f"the position was restored by fetching {thrown} batches anew: the "
                f"{type(self.loader).__name__} is your own"
            )
        if isinstance(self.loader, DataLoader):
            sampler = self.loader.sampler
            # Those without a generator are lent one while this is asked.
            if isinstance(sampler, RandomSampler) and sampler not in self._lent:
                notes.append(
                    "its order is drawn from your own generator, whose state was not restored"
                )
            if self.loader.num_workers > 0 and (not thrown or self.loader.persistent_workers):
                notes.append("random numbers drawn in its workers were not restored")
        return "; ".join(notes) or None

    def state(self) -> Any:
        """Return None."""

    def sizes(self) -> str:
        """Say what the number of batches comes from."""
        if not isinstance(self.loader, DataLoader):
            once = " (an iterator, which can be used once only)"
            return f"your own {type(self.loader).__name__}" + once * hasattr(
                self.loader, "__next__"
            )
        dataset = self.loader.dataset
        size = len(dataset) if hasattr(dataset, "__len__") else "unknown"
        return (
            f"your own {type(self.loader).__name__} of a dataset of {size} samples with "
            f"batch_size={self.loader.batch_size}, drop_last={self.loader.drop_last}"
        )

    def end(self) -> None:
        """Stop the iteration in progress, if any, and take back what was lent."""
        if isinstance(self.loader, DataLoader):
            super().end()
        self._iterator = None
        for part in self._lent:
            part.generator = None
        self._lent = []

    def close(self) -> None:
        """End all workers of a `DataLoader`."""
        self.end()
        if isinstance(self.loader, DataLoader):
            super().close()


def _length(loader: Any) -> int | None:
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        return None  # what such a dataset says is a guess as soon as there are workers
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _draws_nothing(loader: Any) -> bool:
    """Tell whether the next batch of a loader certainly draws nothing in this process."""
    return (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is BatchSampler
        and isinstance(loader.sampler, (RandomSampler, SequentialSampler, ResumableSampler))
        and (
            loader.num_workers > 0
            or (draws_nothing(loader.dataset) and loader.collate_fn is default_collate)
        )
    )
