"""The laws of a data module's training batches."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from helios.core.rng import preserved_rng
from helios.data import DataModule, EpochSource, source_of
from helios.data.datamodule import Dataset
from helios.errors import DataError
from helios.functional.rng import fold
from helios.testing.attributes import changes, describe_changes, snapshot
from helios.testing.report import LawResult


class Supply:
    """The training batches of a data module, opened as often as a law needs them.

    Args:
        datamodule: set up already.
        count: how many batches are looked at.
    """

    def __init__(self, datamodule: DataModule, count: int) -> None:
        self.datamodule = datamodule
        self.count = count
        dataset = datamodule.train_dataset
        # A stream that was read in part goes on from there: each opening puts it back.
        keeps = all(hasattr(dataset, n) for n in ("state_dict", "load_state_dict", "__iter__"))
        self._start = copy.deepcopy(dataset.state_dict()) if keeps else None

    @property
    def has_workers(self) -> bool:
        """Whether the number of workers is the data module's to choose."""
        own = type(self.datamodule).train_dataloader is DataModule.train_dataloader
        return own and isinstance(self.datamodule._train_dataset, Dataset)

    def first(self, workers: int | None = None) -> list[Any]:
        """Return the first batches of a run, from as many epochs as they need."""
        found: list[Any] = []
        with self._source(workers) as source:
            for epoch in itertools.count():
                for batch in source.open(epoch):
                    found.append(copy.deepcopy(batch))
                    if len(found) == self.count:
                        return found
        raise AssertionError("an epoch has a batch, or its source raises")

    def epoch(self, start: int) -> list[Any]:
        """Return the batches of the first epoch from one on, up to the last looked at."""
        with self._source(None) as source:
            batches = itertools.islice(source.open(0, start), max(self.count - start, 0))
            return [copy.deepcopy(batch) for batch in batches]

    @contextlib.contextmanager
    def _source(self, workers: int | None) -> Iterator[EpochSource]:
        module = self.datamodule
        kept = module._train_dataset
        if self._start is not None:
            module.train_dataset.load_state_dict(copy.deepcopy(self._start))
        if workers is not None and kept is not None:
            params = replace(kept.params, num_workers=workers, debug_mode=False)
            module._train_dataset = replace(kept, params=params)
        try:
            with preserved_rng(fold(module.seed, "session")):
                source = source_of(module.train_dataloader(), seed=module.seed)
                if source is None:
                    raise DataError(
                        f"{type(module).__name__} has no training set; assign self._train_dataset "
                        "in setup(), or override train_dataloader()"
                    )
                with contextlib.closing(source):
                    yield source
        finally:
            module._train_dataset = kept


def check_workers(supply: Supply, workers: Sequence[int]) -> LawResult:
    """Check that the batches are the same for every number of workers, and each time."""
    held = snapshot(supply.datamodule.train_dataset, "dataset", whole=False)
    first = supply.first(workers[0] if supply.has_workers else None)
    changed = describe_changes(
        held, snapshot(supply.datamodule.train_dataset, "dataset", whole=False)
    )
    why = f"; what fetching leaves behind: {changed}" if changed else ""
    where = _first_difference(first, supply.first(workers[0] if supply.has_workers else None))
    if where is not None:
        return LawResult("workers", False, f"{where} differs when it is fetched again{why}")
    if not supply.has_workers:
        reason = "the loader is made by train_dataloader(), so its workers were left as they are"
        return LawResult("workers", None, reason)
    for number in workers[1:]:
        where = _first_difference(first, supply.first(number))
        if where is not None:
            what = f"{where} with {number} workers is not that with {workers[0]}{why}"
            return LawResult("workers", False, what)
    return LawResult("workers", True)


def check_position(supply: Supply) -> LawResult:
    """Check that an epoch that is opened in its middle goes on as if read from its start."""
    whole = supply.epoch(0)
    if len(whole) < 2:
        return LawResult("position", None, "an epoch has one batch, and so no middle")
    for start in range(1, len(whole)):
        where = _first_difference(whole[start:], supply.epoch(start), start)
        if where is not None:
            why = f"opened after batch {start} of the epoch, {where} differs"
            return LawResult("position", False, why)
    return LawResult("position", True)


def _first_difference(a: list[Any], b: list[Any], done: int = 0) -> str | None:
    """Name the first place in which two lists of batches differ, ``done`` batches on."""
    for number, (left, right) in enumerate(zip(a, b, strict=False), start=done + 1):
        found = changes(snapshot(left, "batch"), snapshot(right, "batch"), same_objects=False)
        if found:
            return f"batch {number}, {found[0]}" if found[0] != "batch" else f"batch {number}"
    if len(a) != len(b):
        return f"the number of batches, {done + len(a)} and {done + len(b)},"
    return None
